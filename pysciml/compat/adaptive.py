"""A torchdiffeq call with an adaptive method, as a problem for :func:`pysciml.solve`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysciml.callbacks import Callback, ContinuousCallback, PresetTimeCallback, terminate
from pysciml.compat.methods import adaptive_algorithm
from pysciml.compat.states import StateForm
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import InputError, SolveError, did_you_mean
from pysciml.problems import ODEProblem
from pysciml.solution import Solution
from pysciml.solve import solve

__all__ = ["AdaptiveSolve", "NoEffectWarning"]

#: torchdiffeq's default is no limit; a solve that takes this many steps goes nowhere.
_MAXITERS = 1_000_000
_KNOWN = (
    "norm first_step min_step max_step step_t jump_t safety ifactor dfactor max_num_steps dtype "
    "solver engine sensealg progress"
).split()
_NO_EFFECT = ("norm", "safety", "ifactor", "dfactor", "min_step")
#: Accepted for the sake of programs that switch between methods.
_OTHER_METHODS = ("grid_points", "eps")
_WINDOWS = 60


class NoEffectWarning(UserWarning):
    """An option of torchdiffeq's that an engine's step control has no use for."""


class AdaptiveSolve:
    """One call, translated."""

    def __init__(
        self, func: Any, form: StateForm, y0: Any, t: Tensor, rtol: Any, atol: Any, method: Any,
        options: dict[str, Any], event_fn: Any,
    ) -> None:  # fmt: skip
        self.func, self.form, self.t, self.event_fn = func, form, t, event_fn
        self.y0 = form.real(y0)
        self.engine = choose_engine(options.get("engine", "auto")).name
        self.alg = adaptive_algorithm(method, options, self.engine)
        self.f = form.real_rhs(func)
        self.sign = -1.0 if len(t) > 1 and bool(t[0] > t[1]) else 1.0
        self.events: list[Callback] = []
        self.options = self._options(options, rtol, atol)

    # ---- running

    def run(self) -> Any:
        if self.event_fn is not None:
            return self._until_event()
        callbacks = self._step_callbacks()
        if callbacks:
            sol = self._solve(self._problem(self.t[0], self.t[-1].detach()), None)
            self._replay(sol, callbacks)
            return self.form.from_real(sol(self.t))
        sol = self._solve(self._problem(self.t[0], self.t[-1].detach()), self.t)
        return self.form.from_real(sol.u)

    def dense(self) -> Callable[[Any], Any]:
        sol = self._solve(self._problem(self.t[0], self.t[-1]), None)
        return lambda t: self.form.from_real(sol(t))

    def _problem(self, t0: Any, t1: Any, y0: Any = None) -> ODEProblem:
        return ODEProblem(self.f, self.y0 if y0 is None else y0, (t0, t1))

    def _solve(self, prob: ODEProblem, saveat: Tensor | None, more: Any = ()) -> Solution:
        callbacks = [*self.events, *more]
        return solve(prob, self.alg, saveat=saveat, callback=callbacks or None, **self.options)

    # ---- options

    def _options(self, options: dict[str, Any], rtol: Any, atol: Any) -> dict[str, Any]:
        for key, value in options.items():
            if key in _OTHER_METHODS:
                continue
            if key not in _KNOWN:
                warnings.warn(
                    f"options[{key!r}] is not known and has no effect.{did_you_mean(key, _KNOWN)}",
                    NoEffectWarning,
                    stacklevel=6,
                )
            elif key in _NO_EFFECT and (key != "min_step" or float(value) > 0):
                warnings.warn(
                    f"options[{key!r}] has no effect: the engine's own step control is used.",
                    NoEffectWarning,
                    stacklevel=6,
                )
        out: dict[str, Any] = {
            "engine": self.engine,
            "reltol": self._relative(rtol),
            "abstol": self._absolute(atol),
            "sensealg": options.get("sensealg"),
            "progress": options.get("progress", False),
            "maxiters": int(options.get("max_num_steps", _MAXITERS)),
        }
        if options.get("first_step") is not None:
            out["dt"] = float(options["first_step"])
        if options.get("max_step") is not None and float(options["max_step"]) < float("inf"):
            out["dtmax"] = float(options["max_step"])
        if options.get("step_t") is not None:
            out["tstops"] = self._inside(options["step_t"])
            if not len(out["tstops"]):
                del out["tstops"]
        if options.get("jump_t") is not None:
            jumps = self._inside(options["jump_t"])
            if len(jumps):  # the solver stops there and begins anew
                self.events.append(PresetTimeCallback(jumps, save_positions=(False, False)))
        return out

    def _relative(self, rtol: Any) -> float:
        parts = rtol if isinstance(rtol, (tuple, list)) else [rtol]
        smallest = min(float(torch.as_tensor(x).detach().min()) for x in parts)
        if self.engine == "julia" and self.form.dtype in (torch.float32, torch.complex64):
            # Solved in float32 there: below its rounding no step would ever be good enough.
            smallest = max(smallest, 8 * torch.finfo(torch.float32).eps)
        return smallest

    def _absolute(self, atol: Any) -> Any:
        if isinstance(atol, (tuple, list)):
            if not self.form.is_tuple or len(atol) != len(self.form.shapes):
                raise InputError(
                    f"atol has {len(atol)} entries; give one for each part of a tuple y0, or a "
                    "number."
                )
            return tuple(
                torch.as_tensor(a, dtype=torch.float64).expand(x.shape[: len(s)]).clone()
                if not self.form.complex
                else torch.as_tensor(a, dtype=torch.float64).expand(x.shape).clone()
                for a, x, s in zip(atol, self.y0, self.form.shapes, strict=True)
            )
        if isinstance(atol, Tensor) and atol.numel() > 1:
            try:
                return atol.expand(self.form.shapes[0]).clone()
            except RuntimeError:
                raise InputError(
                    f"atol has shape {tuple(atol.shape)}, but y0 {tuple(self.form.shapes[0])}; "
                    "give a number, or one for each entry of y0."
                ) from None
        return float(torch.as_tensor(atol).detach())

    def _inside(self, times: Any) -> Tensor:
        """Those of ``times`` strictly within the span, in the direction of integration."""
        t = torch.as_tensor(times).detach().reshape(-1).double().cpu()
        low, high = sorted((float(self.t[0].detach()), float(self.t[-1].detach())))
        if len(t.unique()) != len(t):
            raise InputError("step_t and jump_t must not repeat a time.")
        kept = t[(t > low) & (t < high)].sort().values
        return kept if self.sign > 0 else kept.flip(0)

    # ---- step callbacks

    def _step_callbacks(self) -> list[Callable[..., None]]:
        names = ("callback_step", "callback_accept_step")
        found = [getattr(self.func, name, None) for name in names]
        if getattr(self.func, "callback_reject_step", None) is not None:
            warnings.warn(
                "callback_reject_step is never called: the engine does not tell of the steps it "
                "gave up.",
                NoEffectWarning,
                stacklevel=5,
            )
        return [c for c in found if c is not None]

    def _replay(self, sol: Solution, callbacks: list[Callable[..., None]]) -> None:
        """Tell of the accepted steps, in order, once the solve is over."""
        t = sol.t.detach()
        with torch.no_grad():
            states = self.form.from_real(sol.u)
            for i in range(len(t) - 1):
                y = tuple(x[i] for x in states) if self.form.is_tuple else states[i]
                for callback in callbacks:
                    callback(t[i], y, (t[i + 1] - t[i]).abs())

    # ---- events

    def _until_event(self) -> Any:
        start = self.t[0]
        with torch.no_grad():
            first = self._event_values(start, self.y0)
            if bool((first == 0).any()):
                return start.clone(), self._pair(self.y0)
        conditions = [
            ContinuousCallback(_entry(self.event_fn, self.form, i), terminate)
            for i in range(first.numel())
        ]
        t0 = float(start.detach())
        length = abs(float(self.t[1].detach()) - t0)
        end, sol = t0 + self.sign * length, None
        want = torch.is_grad_enabled()
        sol = self._solve(self._problem(start, end), None, conditions)
        if sol.retcode != "Terminated":
            # look for it window by window; then, for the gradient, once more in one solve
            with torch.no_grad():
                y, at = sol.u, end
                for _ in range(_WINDOWS):
                    length *= 2
                    last = tuple(x[-1] for x in y) if self.form.is_tuple else y[-1]
                    far = self._solve(
                        self._problem(at, at + self.sign * length, last), None, conditions
                    )
                    y, at = far.u, at + self.sign * length
                    if far.retcode == "Terminated":
                        break
                else:
                    raise SolveError(
                        f"No event up to t = {at:g}; check event_fn and the direction of t.",
                        retcode="Success", t=at, solution=far,
                    )  # fmt: skip
            sol = far
            if want:
                sol = self._solve(self._problem(start, at), None, conditions)
        last = tuple(x[-1] for x in sol.u) if self.form.is_tuple else sol.u[-1]
        return sol.t[-1].to(self.t), self._pair(last)

    def _event_values(self, t: Tensor, y: Any) -> Tensor:
        value = self.event_fn(t.to(self._time_dtype()), self.form.from_real(y))
        if not isinstance(value, Tensor):
            raise InputError(
                f"event_fn returned a {type(value).__name__}; return a tensor of one or more "
                "numbers."
            )
        return value.reshape(-1)

    def _time_dtype(self) -> torch.dtype:
        return torch.empty(0, dtype=self.form.dtype).real.dtype

    def _pair(self, y: Any) -> Any:
        if self.form.is_tuple:
            return self.form.from_real(
                tuple(torch.stack([a, b]) for a, b in zip(self.y0, y, strict=True))
            )
        return self.form.from_real(torch.stack([self.y0, y]))


def _entry(event_fn: Any, form: StateForm, i: int) -> Callable[[Any, Any, Tensor], Tensor]:
    def condition(u: Any, p: Any, t: Tensor) -> Tensor:
        return event_fn(t, form.from_real(u)).reshape(-1)[i]

    return condition
