"""Regularisers of continuous models: what makes their equations easier to solve.

Given as ``regularise=`` to a module, they are integrated beside the state during training, or
summed over the solver's steps, and their weighted sum is the module's ``penalty`` after each call,
to be added to the loss. Every module takes those that mean something for it: stochastic and delay
equations and hybrid automata all of them, jump processes and controlled equations all but random
ends, segments of a record the integrals, an equilibrium its Jacobian; the others are refused with
the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysciml.errors import InputError
from pysciml.nn.times import moved_times

__all__ = [
    "ErrorEstimate",
    "JacobianFrobenius",
    "Kinetic",
    "RandomEndTime",
    "Regulariser",
    "StiffnessEstimate",
    "as_regularisers",
    "integrals_in",
    "require_width",
    "steps_in",
    "sum_over_steps",
    "with_integrals",
    "with_random_ends",
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
    several = isinstance(given, Iterable) and not isinstance(given, str)
    items = tuple(given) if several else (given,)
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


# ---- what modules do with them


def integrals_in(regularisers: Iterable[Regulariser]) -> tuple[list[Any], tuple[str, ...]]:
    """Those that are integrals along the solution, and what :class:`Integrals` calls them."""
    found = [r for r in regularisers if isinstance(r, (Kinetic, JacobianFrobenius))]
    return found, tuple("kinetic" if isinstance(r, Kinetic) else "jacobian" for r in found)


def steps_in(regularisers: Iterable[Regulariser]) -> list[Any]:
    """Those that are sums over the solver's steps."""
    return [r for r in regularisers if isinstance(r, (ErrorEstimate, StiffnessEstimate))]


def with_integrals(penalty: Tensor | None, weighted: list[Any], integrals: Tensor) -> Tensor:
    """The penalty with the weighted means of integrals (batch, k), 0-d."""
    weights = integrals.new_tensor([r.weight for r in weighted])
    own = (integrals.mean(0) * weights).sum()
    return own if penalty is None else penalty + own


def sum_over_steps(of_steps: list[Any], error: Tensor, stiffness: Tensor, h: Tensor) -> Tensor:
    """The penalty of steps of lengths h (m,) from their estimates (m, batch), 0-d."""
    length = h.abs().to(error.dtype)[:, None]
    sums = {ErrorEstimate: error * length, StiffnessEstimate: stiffness}
    return torch.stack([r.weight * sums[type(r)].sum(0).mean() for r in of_steps]).sum()


def with_random_ends(
    regularisers: Iterable[Regulariser], saveat: Tensor | None, tspan: tuple[Any, Any]
) -> tuple[Tensor | None, tuple[Any, Any]]:
    """Output times and time span as :class:`RandomEndTime` moves them, where it is there."""
    for r in regularisers:
        if isinstance(r, RandomEndTime):
            saveat, tspan = moved_times(saveat, tspan, r.width)
    return saveat, tspan


def require_width(regularisers: Iterable[Regulariser], tspan: tuple[Any, Any]) -> None:
    """Raise InputError for an end that may move further than tspan is long."""
    t0, t1 = (float(torch.as_tensor(t).detach()) for t in tspan)
    length = abs(t1 - t0)
    for r in regularisers:
        if isinstance(r, RandomEndTime) and r.width >= length:
            raise InputError(
                f"RandomEndTime has width {r.width:g}, but tspan is only {length:g} long; give a "
                "smaller width."
            )
