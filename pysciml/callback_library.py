"""Callbacks made of the basic ones, under the names of SciML's callback library."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.callbacks import (
    Affect,
    Callback,
    ContinuousCallback,
    DiscreteCallback,
    PresetTimeCallback,
    terminate,
)
from pysciml.errors import InputError
from pysciml.options import times_within
from pysciml.signatures import require_function

__all__ = [
    "ManifoldProjection",
    "PeriodicCallback",
    "PositiveDomain",
    "SavedValues",
    "SavingCallback",
    "TerminateSteadyState",
    "VectorContinuousCallback",
]


#: More events of one callback than this are a mistake.
_MOST_EVENTS = 1e7


def _require_size(x: Any, name: str) -> None:
    if isinstance(x, bool) or not isinstance(x, numbers.Real) or not 0 < float(x) < math.inf:
        raise InputError(f"{name} is {x!r}; give a positive number.")


@dataclass(frozen=True, eq=False)
class VectorContinuousCallback(Callback):
    """Several conditions in one function, each an event at its root.

    condition
        ``condition(u, p, t)`` in torch, a tensor (len,).
    affect
        ``affect(u, p, t, i) -> u`` for the root of condition ``i`` (from 0); or ``terminate``; or
        None. Roots at one time act in the order of their numbers.
    len
        How many conditions there are.
    direction, save_positions
        As for :class:`ContinuousCallback`.

    ``sol.events[k].component`` tells which condition an event belongs to. Raises InputError where
    condition is no function, or gives another shape.
    """

    condition: Callable[[Any, Any, Any], Any]
    affect: Any
    len: int
    direction: int = 0
    save_positions: tuple[bool, bool] = (True, True)

    def __post_init__(self) -> None:
        if type(self.len) is not int or self.len < 1:
            raise InputError(f"len is {self.len!r}; give the number of conditions.")
        require_function(self.condition, "condition", ("u", "p", "t"))
        if callable(self.affect) and self.affect is not terminate:
            require_function(self.affect, "affect", ("u", "p", "t", "i"))
        self._component(0)

    def _component(self, i: int) -> ContinuousCallback:
        affect: Affect = self.affect
        if callable(affect) and affect is not terminate:
            affect = _numbered(self.affect, i)
        return ContinuousCallback(
            _entry(self.condition, self.len, i), affect, self.direction, self.save_positions
        )

    def for_problem(self, prob: Any, t0: float, t1: float) -> tuple[Callback, ...]:
        return tuple(self._component(i) for i in range(self.len))


def _entry(condition: Any, count: int, i: int) -> Callable[[Any, Any, Any], Any]:
    def entry(u: Any, p: Any, t: Any) -> Any:
        value = condition(u, p, t)
        if not isinstance(value, Tensor) or value.shape != (count,):
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"condition of a VectorContinuousCallback returned {given}; return a tensor of "
                f"shape ({count},), e.g. by torch.stack([...])."
            )
        return value[i]

    return entry


def _numbered(affect: Any, i: int) -> Callable[[Any, Any, Any], Any]:
    def numbered(u: Any, p: Any, t: Any) -> Any:
        return affect(u, p, t, i)

    return numbered


@dataclass(frozen=True, eq=False)
class PeriodicCallback(Callback):
    """An event every ``dt`` from the start on; the solver stops there exactly.

    affect
        ``affect(u, p, t) -> u``; or ``terminate``; or None.
    dt
        The time between two events, positive whichever way the solve runs.
    phase
        How long after the start the first one would be; the events are at ``phase + k dt``.
    initial_affect, final_affect
        Whether there is one at the very start, and at the very end.

    Raises InputError for a period that is not positive, and at the solve where the start of tspan
    requires grad (the times move with it, and no gradient is taken for them).
    """

    affect: Affect
    dt: float
    phase: float = 0.0
    initial_affect: bool = False
    final_affect: bool = False
    save_positions: tuple[bool, bool] = (True, True)

    def __post_init__(self) -> None:
        self._check(self.affect)
        if callable(self.affect) and self.affect is not terminate:
            require_function(self.affect, "affect", ("u", "p", "t"))
        _require_size(self.dt, "dt")
        for name in ("initial_affect", "final_affect"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name} is {getattr(self, name)!r}; give True or False.")
        real = isinstance(self.phase, numbers.Real) and not isinstance(self.phase, bool)
        if not real or not 0 <= float(self.phase) < math.inf:
            raise InputError(f"phase is {self.phase!r}; give a number >= 0.")

    def for_problem(self, prob: Any, t0: float, t1: float) -> tuple[Callback, ...]:
        start = prob.tspan[0]
        if isinstance(start, Tensor) and start.requires_grad:
            raise InputError(
                "tspan[0] requires grad, but the times of a PeriodicCallback move with it, and no "
                "gradient is taken for them; detach it."
            )
        length = abs(t1 - t0)
        if length / self.dt > _MOST_EVENTS:
            raise InputError(
                f"dt is {self.dt} in a PeriodicCallback, a period of which tspan ({t0:g}, {t1:g}) "
                f"holds {length / self.dt:.3g}; give a larger one."
            )
        count = math.floor((length - self.phase) / self.dt * (1 + 1e-12)) + 1
        after = self.phase + self.dt * np.arange(max(count, 0))
        slack = 1e-12 * max(length, abs(t0), abs(t1))
        at_start, at_end = np.abs(after) <= slack, np.abs(after - length) <= slack
        times = t0 + math.copysign(1.0, t1 - t0) * after
        times[at_start], times[at_end] = t0, t1
        keep = (self.initial_affect | ~at_start) & (self.final_affect | ~at_end)
        if not keep.any():
            return ()
        return (PresetTimeCallback(times[keep].tolist(), self.affect, self.save_positions),)


@dataclass(eq=False)
class SavedValues:
    """What a :class:`SavingCallback` saved in the last solve.

    ``t``: tensor (m,); ``saveval``: the values at these times, stacked where they are tensors of
    one shape, else a list. Gradients flow through them.
    """

    t: Any = None
    saveval: Any = None


@dataclass(frozen=True, eq=False)
class SavingCallback(Callback):
    """Saves ``save_func(u, p, t)`` along the solution, into ``saved_values``.

    save_func
        In torch; it may return anything.
    saved_values
        A :class:`SavedValues`, filled by every solve.
    saveat
        Times to save at; the solution's own output times where None. Of a solve that ends before,
        those that it reached.

    The values are computed from the solution when it is there, so that gradients flow through
    them. Raises InputError for what is no function, or no SavedValues, and at the solve for times
    that do not lie within tspan, in its direction.
    """

    save_func: Callable[[Any, Any, Any], Any]
    saved_values: SavedValues = field(default_factory=SavedValues)
    saveat: Any = None

    def __post_init__(self) -> None:
        require_function(self.save_func, "save_func", ("u", "p", "t"))
        if not isinstance(self.saved_values, SavedValues):
            raise InputError(
                f"saved_values is a {type(self.saved_values).__name__}; give a "
                "pysciml.SavedValues()."
            )

    def for_problem(self, prob: Any, t0: float, t1: float) -> tuple[Callback, ...]:
        if self.saveat is not None:
            times_within(self._times(), "saveat", t0, t1)
        return ()

    def _times(self) -> Tensor:
        given = self.saveat
        try:
            if isinstance(given, Tensor) and (given.dtype.is_complex or given.dtype == torch.bool):
                raise TypeError
            return torch.as_tensor(given, dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"saveat is {self.saveat!r}; give a 1-d tensor or sequence of times."
            ) from None

    def finish(self, sol: Any) -> None:
        if self.saveat is None:
            times = sol.t
            if sol.save_idxs is not None:
                raise InputError(
                    "A SavingCallback needs the whole state, but save_idxs keeps a part of it; "
                    "leave save_idxs out, or give the callback saveat=."
                )
            states = sol.u
        else:
            times = self._times()
            start, reached = sol._span
            times = times[(times - start) * (times - reached) <= 0.0]
            states = sol.spec.unflatten(sol._interpolate(times, 0))
        values = [self.save_func(_row(states, i), sol.prob.p, t) for i, t in enumerate(times)]
        self.saved_values.t = times
        alike = all(isinstance(x, Tensor) and x.shape == values[0].shape for x in values)
        self.saved_values.saveval = torch.stack(values) if values and alike else values


def _row(states: Any, i: int) -> Any:
    return pytree.tree_map(lambda x: x[i], states)


@dataclass(frozen=True, eq=False)
class ManifoldProjection(Callback):
    """Keeps ``g(u, p, t) = 0``: after a step that left it, back to the nearest point of it.

    g
        In torch, a tensor of any shape: one residual each. An energy less its value at the start,
        for example.
    abstol
        A state is left as it is where no residual is larger.

    The nearest point is found by Newton's method, its steps in the span of g's gradients. Source:
    Hairer, Lubich, Wanner, "Geometric Numerical Integration", section IV.4. Multistep methods (all
    of the ``sundials`` engine) begin anew after each projection: give an ``abstol`` there that is
    not reached at every step.

    Raises InputError for what is no function, or a tolerance that is not positive.
    """

    g: Callable[[Any, Any, Any], Any]
    abstol: float = 1e-8

    def __post_init__(self) -> None:
        require_function(self.g, "g", ("u", "p", "t"))
        _require_size(self.abstol, "abstol")

    def for_problem(self, prob: Any, t0: float, t1: float) -> tuple[Callback, ...]:
        g = _residual(self.g, prob.state_spec)
        left = _left(g, self.abstol)
        return (DiscreteCallback(left, _projected(g, prob.state_spec), (False, False)),)


_NEWTON_STEPS = 4


def _residual(g: Any, spec: Any) -> Callable[[Any, Any, Any], Any]:
    def residual(u: Any, p: Any, t: Any) -> Any:
        value = g(u, p, t)
        if not isinstance(value, Tensor) or value.dtype != spec.dtype:
            given = str(value.dtype)[6:] if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"g of a ManifoldProjection returned {given}; return a tensor of "
                f"{str(spec.dtype)[6:]}, a residual each entry."
            )
        if not 0 < value.numel() <= spec.size:
            raise InputError(
                f"g of a ManifoldProjection returned {value.numel()} residuals, but the state has "
                f"{spec.size} entries; return at least one, and no more than these."
            )
        return value

    return residual


def _left(g: Any, abstol: float) -> Callable[[Any, Any, Any], Any]:
    def left(u: Any, p: Any, t: Any) -> Any:
        return g(u, p, t).abs().max() > abstol

    return left


def _projected(g: Any, spec: Any) -> Callable[[Any, Any, Any], Any]:
    def projected(u: Any, p: Any, t: Any) -> Any:
        def residual(x: Tensor) -> Tensor:
            out: Tensor = g(spec.unflatten(x), p, t).reshape(-1)
            return out

        x = spec.flatten(u)
        for _ in range(_NEWTON_STEPS):
            J = torch.func.jacrev(residual)(x)
            x = x - J.T @ torch.linalg.solve(J @ J.T, residual(x))
        return spec.unflatten(x)

    return projected


@dataclass(frozen=True, eq=False)
class PositiveDomain(Callback):
    """Keeps the state from becoming negative: after a step, negative entries are set to zero.

    For models that have no meaning, or no value, there (concentrations, populations). A step that
    overshoots far is still a step too long: bound it by the tolerances, or by ``dtmax``.
    """

    def for_problem(self, prob: Any, t0: float, t1: float) -> tuple[Callback, ...]:
        return (DiscreteCallback(_any_negative, _cut, (False, False)),)


def _any_negative(u: Any, p: Any, t: Any) -> Any:
    return torch.stack([(x < 0).any() for x in pytree.tree_leaves(u)]).any()


def _cut(u: Any, p: Any, t: Any) -> Any:
    return pytree.tree_map(lambda x: x.clamp(min=0.0), u)


@dataclass(frozen=True, eq=False)
class TerminateSteadyState(Callback):
    """Ends the solve where the state has come to rest.

    That is after a step at which every entry of the rate is at most ``abstol``, or at most
    ``reltol`` times its entry of ``u``; not before ``min_t``. A small rate is no proof of a steady
    state: see :class:`DynamicSS`.

    The rate is ``f(u, p, t)``; with a mass matrix M the smallest one with ``M rate = f``, which
    leaves constraints out; in place of a DAEProblem's stands its residual with ``u' = 0``. Raises
    InputError, when it is solved, for equations with noise, jumps or delays.
    """

    abstol: float = 1e-8
    reltol: float = 1e-6
    min_t: float | None = None

    def __post_init__(self) -> None:
        _require_size(self.abstol, "abstol")
        _require_size(self.reltol, "reltol")
        real = isinstance(self.min_t, numbers.Real) and not math.isnan(float(self.min_t))
        if self.min_t is not None and not real:
            raise InputError(f"min_t is {self.min_t!r}; give a number, or None.")

    def for_problem(self, prob: Any, t0: float, t1: float) -> tuple[Callback, ...]:
        if prob.kind == "discrete":
            raise InputError(
                "TerminateSteadyState was given with a map, which has no rate; end it by a "
                "DiscreteCallback whose condition compares f(u, p, t) with u."
            )
        form = getattr(prob, "form", "")
        why = "jumps move the state on" if hasattr(prob, "how_jumps") else _NO_REST.get(form)
        if why is not None:
            raise InputError(
                f"TerminateSteadyState was given, but {why} where its rate is zero, so such a "
                "state is not at rest; end the solve by a DiscreteCallback with a condition of "
                "your own."
            )
        rate = _rate(prob, form)
        rest = _at_rest(rate, float(self.abstol), float(self.reltol), self.min_t, t1 < t0)
        return (DiscreteCallback(rest, terminate),)


_NO_REST = {
    "sde": "noise moves the state on",
    "rode": "noise moves the state on",
    "dde": "earlier states move the state on",
}


def _rate(prob: Any, form: str) -> Callable[[Any, Any, Any], Any]:
    """What is zero at rest, as a function (u, p, t) in the structure of the state."""
    f, spec = prob.f, prob.state_spec
    if prob.kind == "dae":
        return lambda u, p, t: f(pytree.tree_map(torch.zeros_like, u), u, p, t)
    if form in ("split", "semilinear"):
        return lambda u, p, t: pytree.tree_map(torch.add, *f(u, p, t))
    if prob.mass_matrix is not None:
        mass = torch.as_tensor(prob.mass_matrix).to(spec.device, torch.float64)
        inverse = torch.linalg.pinv(mass).to(spec.dtype)
        return lambda u, p, t: spec.unflatten(inverse @ spec.flatten(spec.in_order(f(u, p, t))))
    return f


def _at_rest(
    rate: Any, abstol: float, reltol: float, min_t: float | None, back: bool
) -> Callable[[Any, Any, Any], Any]:
    def at_rest(u: Any, p: Any, t: Any) -> Any:
        rates = rate(u, p, t)
        small = [
            # a state that blew up does not rest: inf is not small beside inf
            (((r.abs() <= abstol) | (r.abs() <= reltol * x.abs())) & x.isfinite()).all()
            for r, x in zip(pytree.tree_leaves(rates), pytree.tree_leaves(u), strict=True)
        ]
        if min_t is not None:
            small.append(t <= min_t if back else t >= min_t)
        return torch.stack(small).all()

    return at_rest
