"""Regularisers of continuous models: what makes their equations easier to solve.

Given as ``regularise=`` to a module, they are integrated beside the state during training, and
their weighted sum is the module's ``penalty`` after each call, to be added to the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pysciml.errors import InputError

__all__ = ["JacobianFrobenius", "Kinetic", "RandomEndTime", "Regulariser", "as_regularisers"]


@dataclass(frozen=True)
class Regulariser:
    """Base of all of them."""


@dataclass(frozen=True)
class Kinetic(Regulariser):
    """``weight * mean over the batch of the integral of |f|^2``: short, straight paths.

    Source: Finlay, Jacobsen, Nurbekyan, Oberman, "How to train your neural ODE: the world of
    Jacobian and kinetic regularization", ICML 2020 (RNODE).
    """

    weight: float = 0.01

    def __post_init__(self) -> None:
        _nonnegative("Kinetic", "weight", self.weight)


@dataclass(frozen=True)
class JacobianFrobenius(Regulariser):
    """``weight * mean of the integral of |e^T df/du|^2``, e normal: the Jacobian's Frobenius norm.

    One vector ``e`` a sample is drawn for each solve (Hutchinson's estimate). Source: as
    :class:`Kinetic`.
    """

    weight: float = 0.01

    def __post_init__(self) -> None:
        _nonnegative("JacobianFrobenius", "weight", self.weight)


@dataclass(frozen=True)
class RandomEndTime(Regulariser):
    """In training, the end time is drawn uniformly within ``width`` of its value.

    Source: Ghosh, Behl, Dupont, Torr, Namboodiri, "STEER: simple temporal regularization for
    neural ODEs", NeurIPS 2020.
    """

    width: float = 0.25

    def __post_init__(self) -> None:
        _nonnegative("RandomEndTime", "width", self.width)


def _nonnegative(name: str, what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e300:
        raise InputError(f"{name}: {what} is {value!r}; give a number >= 0.")


def as_regularisers(given: Any) -> tuple[Regulariser, ...]:
    """One, several or None as a tuple without repeats. Raises InputError."""
    if given is None:
        return ()
    items = tuple(given) if isinstance(given, Iterable) else (given,)
    for item in items:
        if not isinstance(item, Regulariser):
            raise InputError(
                f"regularise holds {item!r}; give Kinetic(), JacobianFrobenius() or "
                "RandomEndTime(), one or several."
            )
    kinds = [type(i) for i in items]
    if len(set(kinds)) < len(kinds):
        raise InputError("regularise names one kind twice; give each once.")
    return items
