"""Delay differential equations."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pysciml.dispatch import refuse_seed, solves
from pysciml.errors import InputError
from pysciml.flatten import ParameterSpec, StateSpec
from pysciml.functions import mistakes_named
from pysciml.problems import ODEProblem, Problem, number, require_onward
from pysciml.signatures import require_function
from pysciml.solution import Solution

__all__ = ["DDEProblem"]


@dataclass(frozen=True, eq=False, repr=False)
class DDEProblem(Problem):
    """``u' = f(u, h, p, t)`` with ``u(t0) = u0``, and ``u(t) = h(p, t)`` before t0.

    Parameters
    ----------
    f : callable
        ``f(u, h, p, t)`` written in torch, returning the derivative in the structure of ``u``.
        ``h(p, s)`` gives the state at an earlier time ``s`` (a 0-d tensor), in that structure: from
        the history before t0, from the solution after it. The times may depend on u, p and t, not
        on other delayed states, and f must ask for as many of them whenever it is called.
    u0, tspan, p, callback
        As for :class:`ODEProblem`; tspan runs forward. ``u0`` may differ from ``h(p, t0)``.
    h : callable
        The history ``h(p, t)`` in torch, in the structure of ``u``, for the times before t0 that
        f asks for.
    constant_lags : number, 0-d tensor, or a sequence of them, optional
    dependent_lags : function ``lag(u, p, t)``, or a sequence of them, optional
        The lags ``t - s``, as SciML has them declared. They are known from f itself, and need not
        be given; where they are, every lag at t0 has to be among them.

    Discontinuities that the lags carry on from t0 are stepped on. Solved by the ``julia`` engine:
    ``MethodOfSteps(Tsit5())``, ``MethodOfSteps(Rodas5P())``, ... (an algorithm by itself stands for
    the method of steps with it).

    Raises
    ------
    InputError
        As :class:`ODEProblem`; and when it is solved, for a lag that is negative or zero or is not
        declared, a history of another shape, structure or dtype than u0 or that is not finite where
        f asks for it, and an f that never asks.
    """

    f: Callable[[Any, Any, Any, Any], Any]
    u0: Any
    h: Callable[[Any, Any], Any]
    tspan: tuple[Any, Any]
    p: Any = None
    constant_lags: Any = None
    dependent_lags: Any = None
    callback: Any = None

    kind = "dde"
    state_spec: StateSpec = field(init=False)
    params_spec: ParameterSpec = field(init=False)

    def __post_init__(self) -> None:
        require_function(self.f, "f", ("u", "h", "p", "t"))
        require_function(self.h, "h", ("p", "t"))
        made = ODEProblem(self.f, self.u0, self.tspan, self.p, callback=self.callback)  # type: ignore[arg-type]
        self._take(made, "state_spec", "params_spec", "tspan", "callback")
        require_onward(self.tspan, "a delay equation")
        object.__setattr__(self, "constant_lags", _constant_lags(self.constant_lags))
        object.__setattr__(self, "dependent_lags", _dependent_lags(self.dependent_lags))

    def as_whole(self) -> WholeOfDDE:
        """The equation as an engine gets it; what f asks for at t0 is looked at. See InputError."""
        values = self._asked_at_start()
        assembled = _assembler(self.state_spec, len(values))
        whole = _whole(self.f, self.h, assembled)
        made = WholeOfDDE(whole, self.u0, self.tspan, self.p, callback=self.callback)
        object.__setattr__(made, "asks", len(values))
        object.__setattr__(made, "delayed", torch.cat(values))
        return made

    def _asked_at_start(self) -> list[Tensor]:
        """The delayed states (n,) that f asks for at t0."""
        spec, values = self.state_spec, []
        lags: list[float] = []
        t0 = number(self.tspan[0])
        with torch.no_grad():
            t = torch.tensor(t0, dtype=spec.dtype, device=spec.device)

            def h(p: Any, s: Any = _MISSING) -> Any:
                if s is self.p and p is not self.p:
                    raise InputError("f calls h(s, p); it takes p first: h(p, t - tau).")
                lags.append(t0 - _one_time(s, spec).item())
                values.append(self._history_at(lags[-1], spec))
                return spec.unflatten(values[-1].clone())

            u0 = spec.unflatten(spec.flatten(spec.in_order(self.u0)).clone())
            with mistakes_named(self.f, "f", ("u", "h", "p", "t"), spec, self.p is None):
                spec.flatten_like(self.f(u0, h, self.p, t), "f")
            if not values:
                raise InputError(
                    "f never calls h, so this equation has no delay; write f(u, p, t) and an "
                    "ODEProblem."
                )
            self._require_declared(lags, u0, t)
        return values

    def _history_at(self, lag: float, spec: StateSpec) -> Tensor:
        t0 = number(self.tspan[0])
        at = f"t = {t0 - lag:g}"
        if not math.isfinite(lag):
            raise InputError(
                f"f asks h for {at} at t0 = {t0:g}; make the lag a finite positive number."
            )
        if lag < 0:
            raise InputError(
                f"f asks h for {at} at t0 = {t0:g}, a lag of {lag:g}, but h knows earlier times "
                "only; make every lag positive, as in h(p, t - tau) with tau > 0."
            )
        t = torch.tensor(t0 - lag, dtype=spec.dtype, device=spec.device)
        with mistakes_named(self.h, "h", ("p", "t"), spec, self.p is None):
            value = spec.flatten_like(self.h(self.p, t), "h").clone()
        if not bool(torch.isfinite(value).all()):
            bad = value[~torch.isfinite(value)][0].item()
            raise InputError(
                f"h gives {bad} at {at}, to which f looks back from t0 = {t0:g} (a lag of "
                f"{lag:g}); give a history that reaches as far, or a smaller lag."
            )
        return value

    def _require_declared(self, lags: list[float], u0: Any, t: Tensor) -> None:
        """Raise InputError for a lag that is not among the declared ones, where there are any."""
        constant, dependent = self.constant_lags, self.dependent_lags
        if constant is None and dependent is None:
            return
        declared = [number(x) for x in constant or ()]
        declared += [_one_lag(lag(u0, self.p, t), i) for i, lag in enumerate(dependent or ())]
        for lag in lags:
            if not any(math.isclose(lag, x, rel_tol=1e-6, abs_tol=1e-9) for x in declared):
                known = ", ".join(f"{x:g}" for x in declared) or "none"
                raise InputError(
                    f"f asks h for a lag of {lag:g} at t0, which is not among the declared ones "
                    f"({known}), so accuracy would be lost where it carries on the jump at t0; "
                    "add it to constant_lags (or dependent_lags), or leave both out: lags are "
                    "then found from f."
                )


class WholeOfDDE(ODEProblem):
    """A problem whose function gives, of ``x = [u; delayed states]``, p and t: f, the times that it
    asks for, and the history, one after the other.

    Attributes
    ----------
    asks : how many delayed states there are
    delayed : their values at t0, one after the other
    """

    form = "dde"
    asks: int
    delayed: Tensor


def _constant_lags(given: Any) -> tuple[Any, ...] | None:
    if given is None:
        return None
    if isinstance(given, (numbers.Real, Tensor)):
        given = given.reshape(-1).unbind() if isinstance(given, Tensor) else (given,)
    try:
        lags = tuple(given)
        if any(isinstance(x, (bool, str)) for x in lags):
            raise TypeError
        values = [number(x) for x in lags]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"constant_lags is {given!r}; give a positive number or a sequence of them, e.g. "
            "constant_lags=(0.5, 2.0)."
        ) from None
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"constant_lags holds {value:g}; give finite lags above 0.")
    return lags


def _dependent_lags(given: Any) -> tuple[Any, ...] | None:
    if given is None:
        return None
    lags = tuple(given) if isinstance(given, Iterable) else (given,)
    for i, lag in enumerate(lags):
        require_function(lag, f"dependent_lags[{i}]", ("u", "p", "t"))
    return lags


def _one_lag(value: Any, i: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"dependent_lags[{i}] gave a {type(value).__name__}; return one number (a 0-d tensor)."
        ) from None


#: In the place of a time that a call of h lacks.
_MISSING = object()


def _one_time(s: Any, spec: StateSpec) -> Tensor:
    """A time that h was asked for as a 0-d tensor. Raises InputError."""
    if s is _MISSING:
        raise InputError("f calls h with one argument; it takes p and a time: h(p, t - tau).")
    if isinstance(s, numbers.Real) and not isinstance(s, bool):
        s = torch.tensor(float(s), dtype=spec.dtype, device=spec.device)
    if not isinstance(s, Tensor) or s.numel() != 1 or not s.is_floating_point():
        given = f"shape {tuple(s.shape)}" if isinstance(s, Tensor) else f"a {type(s).__name__}"
        raise InputError(
            f"f calls h(p, s) with s of {given}; give one time (a 0-d tensor), and call h once for "
            "each time."
        )
    return s.reshape(()).to(spec.device, spec.dtype)


def _whole(f: Any, h: Any, assembled: Any) -> Callable[[Any, Any, Any], Tensor]:
    def rate_times_and_history(x: Any, p: Any, t: Any) -> Tensor:
        value: Tensor = assembled(f, h, x, p, t)
        return value

    return rate_times_and_history


@functools.lru_cache(maxsize=256)
def _assembler(spec: StateSpec, asks: int) -> Callable[..., Tensor]:
    """f's value, the times that it asks for and the history's value as one vector.

    The delayed states that f gets are those that follow u in ``x``, in the order of its calls.
    """

    def assembled(f: Any, h: Any, x: Any, p: Any, t: Any) -> Tensor:
        u, *delayed = (spec.unflatten(part) for part in x.split(spec.size))
        times: list[Tensor] = []

        def ask(p: Any, s: Any = _MISSING) -> Any:
            if len(times) == asks:
                raise InputError(_uneven(asks, "more"))
            times.append(_one_time(s, spec))
            return delayed[len(times) - 1]

        rate = spec.flatten_like(f(u, ask, p, t), "f")
        if len(times) < asks:
            raise InputError(_uneven(asks, f"{len(times)}"))
        return torch.cat([rate, torch.stack(times), spec.flatten_like(h(p, t), "h")])

    return assembled


def _uneven(asks: int, other: str) -> str:
    return (
        f"f called h {asks} times at t0 and {other} times in another call; it must ask for as many "
        "delayed states whenever it is called (choose between them with torch.where)."
    )


@solves(DDEProblem)
def solve_dde(solve: Any, prob: DDEProblem, alg: Any = None, **options: Any) -> Solution:
    """``solve`` for delay equations."""
    refuse_seed(prob, options.pop("seed", None))
    return dataclasses.replace(solve(prob.as_whole(), alg, **options), prob=prob)
