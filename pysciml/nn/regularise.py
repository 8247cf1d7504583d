"""Regularisers of continuous models: what makes their equations easier to solve.

Given as ``regularise=`` to a module, they are integrated beside the state during training, or
summed over the solver's steps, and their weighted sum is the module's ``penalty`` after each call,
to be added to the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pysciml.errors import InputError

__all__ = [
    "ErrorEstimate",
    "JacobianFrobenius",
    "Kinetic",
    "RandomEndTime",
    "Regulariser",
    "StiffnessEstimate",
    "as_regularisers",
]


@dataclass(frozen=True)
class Regulariser:
    """Base of all of them. Raises InputError unless its numbers are finite and >= 0."""

    def __post_init__(self) -> None:
        for what, x in vars(self).items():
            if isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 <= x < 1e300:
                raise InputError(f"{type(self).__name__}: {what} is {x!r}; give a number >= 0.")


@dataclass(frozen=True)
class Kinetic(Regulariser):
    """``weight * mean over the batch of the integral of |f|^2``: short, straight paths.

    Source: Finlay, Jacobsen, Nurbekyan, Oberman, "How to train your neural ODE: the world of
    Jacobian and kinetic regularization", ICML 2020 (RNODE).
    """

    weight: float = 0.01


@dataclass(frozen=True)
class JacobianFrobenius(Regulariser):
    """``weight * mean of the integral of |e^T df/du|^2``, e normal: the Jacobian's Frobenius norm.

    One vector ``e`` a sample is drawn for each solve (Hutchinson's estimate). Source: as
    :class:`Kinetic`.
    """

    weight: float = 0.01


@dataclass(frozen=True)
class ErrorEstimate(Regulariser):
    """``weight * mean over the batch of the sum over the steps of error * step``.

    On the solver's own steps, the local error as Dormand and Prince's pair estimates it, in units
    of the tolerance: what makes a solver shorten its steps. Source: Pal, Ma, Shah, Rackauckas,
    "Opening the blackbox: accelerating neural differential equations by regularizing internal
    solver heuristics", ICML 2021.
    """

    weight: float = 0.1


@dataclass(frozen=True)
class StiffnessEstimate(Regulariser):
    """``weight * mean over the batch of the sum over the steps of the stiffness there``.

    The Jacobian's dominant eigenvalue, as Dormand and Prince's pair estimates it on the solver's
    own steps. Source: as :class:`ErrorEstimate`.
    """

    weight: float = 1e-3


@dataclass(frozen=True)
class RandomEndTime(Regulariser):
    """In training, the end time is drawn uniformly within ``width`` of its value.

    With ``saveat``, each of its times is drawn so, by itself, but for one at ``t0``; ``width`` is
    then below half of the shortest interval between them, which keeps their order.

    Source: Ghosh, Behl, Dupont, Torr, Namboodiri, "STEER: simple temporal regularization for
    neural ODEs", NeurIPS 2020.
    """

    width: float = 0.25


def as_regularisers(given: Any) -> tuple[Regulariser, ...]:
    """One, several or None as a tuple without repeats. Raises InputError."""
    if given is None:
        return ()
    items = tuple(given) if isinstance(given, Iterable) else (given,)
    for item in items:
        if not isinstance(item, Regulariser):
            raise InputError(
                f"regularise holds {item!r}; give Kinetic(), JacobianFrobenius(), "
                "ErrorEstimate(), StiffnessEstimate() or RandomEndTime(), one or several."
            )
    kinds = [type(i) for i in items]
    if len(set(kinds)) < len(kinds):
        raise InputError("regularise names one kind twice; give each once.")
    return items
