"""Neural delay differential equations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pysciml.delay import DDEProblem
from pysciml.ensemble import EnsembleSolution
from pysciml.errors import InputError
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import Field, Integrals
from pysciml.nn.step_estimates import each_step, over_steps
from pysciml.solution import Solution

__all__ = ["NeuralDDE"]


class _Delayed(Field):
    """The field at the state and the delayed ones, side by side on the last axis."""

    lags: tuple[float, ...] = ()
    log_lags: Tensor | None = None  # of lags that are learnt

    def all_lags(self) -> Any:
        return self.lags if self.log_lags is None else self.log_lags.exp().unbind()

    def __call__(self, u: Tensor, h: Any, p: Any, t: Tensor) -> Tensor:  # type: ignore[override]
        late = [h(p, t - lag) for lag in self.all_lags()]
        return self.value(torch.cat([u, *late], dim=-1), t)


class _DelayedIntegrals(Integrals):
    """The same with integrals beside the state; J is by the state and the delayed ones."""

    field: _Delayed

    def __call__(self, full: Tensor, h: Any, p: Any, t: Tensor) -> Tensor:  # type: ignore[override]
        late = [self.state(h(p, t - lag)) for lag in self.field.all_lags()]
        x = torch.cat([self.state(full), *late], dim=-1)
        return self.beside(full, lambda x: self.field.value(x, t), x, p[1])


class _History:
    """The state before t0: u0, which is the first of p, or what the user's function gives."""

    def __init__(self, history: Callable[[Tensor], Tensor] | None) -> None:
        self.history = history

    def __call__(self, p: Any, t: Tensor) -> Tensor:
        return p[0] if self.history is None else self.history(t)


class _HistoryBeside(_History):
    """The same with integrals beside it, which no one asks for."""

    def __call__(self, p: Any, t: Tensor) -> Tensor:
        if self.history is None:
            return p[0]
        full, past = p[0], self.history(t)
        batch = full.shape[0] if full.ndim > 1 else 1
        rows = past.reshape(batch, -1)
        more = full.new_zeros(batch, full.numel() // batch - rows.shape[1])
        return torch.cat([rows, more], dim=1).reshape(full.shape)


class NeuralDDE(ContinuousModule):
    """``u0 -> u(t1)`` of ``u' = f([u(t), u(t - lag_1), ..., u(t - lag_K)])``.

    Delayed states let a first-order equation in few variables oscillate, or do what depends on more
    of the past than the present shows, and paths of the state may cross.

    Parameters
    ----------
    vector_field : nn.Module or callable
        ``f(x)``, or ``f(x, t)``, of ``x = [u, delayed states]`` on the last axis, (..., (1 + K) d),
        giving (..., d).
    lags : sequence of K numbers above 0
    history : callable, optional
        ``h(t)``, the states before t0 in the shape of ``u0``, ``t`` being a 0-d tensor; a module of
        its own learns. ``u0`` throughout where None.
    learn_lags : bool
        Whether the lags are parameters (as ``log_lags``, so that they stay above 0).

    Other parameters as :class:`ContinuousModule`; the ``julia`` engine solves it. The Jacobian that
    JacobianFrobenius keeps small is that of ``f`` by all of ``x``, and the steps' estimates see
    the delayed states as the solution has them. Source: Zhu, Guo, Lin, "Neural delay differential
    equations", ICLR 2021.

    Raises
    ------
    InputError
        As ContinuousModule, and for lags that are not above 0; EngineError on the embedded engine.
    """

    log_lags: nn.Parameter | None

    def __init__(
        self,
        vector_field: Callable[..., Any],
        lags: Sequence[float],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        *,
        history: Callable[[Tensor], Tensor] | None = None,
        learn_lags: bool = False,
        saveat: Any = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(vector_field, tspan, alg, saveat=saveat, engine=engine, **options)
        values = _lags(lags)
        if type(learn_lags) is not bool:
            raise InputError(f"learn_lags is {learn_lags!r}; give True or False.")
        if history is not None:
            _require_history(history)
        self.history = history
        logs = nn.Parameter(torch.tensor(values).log()) if learn_lags else None
        self.register_parameter("log_lags", logs)
        self._fixed = tuple(values)
        self._past, self._past_beside = _History(history), _HistoryBeside(history)

    @property
    def lags(self) -> Tensor:
        """The lags as they are now, (K,)."""
        return torch.tensor(self._fixed) if self.log_lags is None else self.log_lags.exp()

    def forward(self, u0: Tensor, saveat: Any = None) -> Tensor:
        """From the state at ``t0``, (..., d), to that at ``t1``; ``saveat``: as NeuralODE."""
        given = self._outputs(saveat)
        return self._states(u0, given)

    def _make_field(self, timed: bool) -> Field:
        return _Delayed(self.vector_field, timed)

    def _make_integrals(self, kinds: tuple[str, ...], shape: tuple[int, ...]) -> Integrals:
        return _DelayedIntegrals(self._field, kinds, shape)

    def _refresh(self) -> None:
        super()._refresh()
        assert isinstance(self._field, _Delayed)
        self._past.history = self._past_beside.history = self.history
        self._field.lags, self._field.log_lags = self._fixed, self.log_lags

    def _solve(
        self, f: Any, u0: Any, tspan: Any, p: Any = None, saveat: Any = None, **more: Any
    ) -> Solution:
        _require_state(u0)
        return super()._solve(f, u0, tspan, (u0, p[1] if p else ()), saveat, **more)

    def _each(self, f: Any, u0: Any, span: Any, p: Any, rows: Any, **more: Any) -> EnsembleSolution:
        _require_state(u0)
        noise = p[1] if p else ()
        return super()._each(f, u0, span, (u0, noise), (True, rows[1] if p else ()), **more)

    def _problem(self, f: Any, u0: Any, tspan: Any, p: Any) -> Any:
        past = self._past if f is self._field else self._past_beside
        return DDEProblem(f, u0, past, tspan, p)

    def _slopes(self, sol: Solution) -> Callable[[Tensor, Tensor], Tensor]:
        field = self._field
        assert isinstance(field, _Delayed)
        t0, p = float(sol.t[0].detach()), sol.prob.p
        begins, steps, *_ = each_step(sol.t, sol.u)
        middles = begins + steps / 2
        value = over_steps(lambda x, t: field.value(x, t.to(x.dtype)))

        def slopes(u: Tensor, t: Tensor) -> Tensor:
            parts = [u]
            for lag in field.all_lags():
                at = t - lag
                # a step's own side of t0, where u0 need not be what the history gives
                before = (middles - torch.as_tensor(lag).detach()) < t0
                found = sol(torch.where(before, t0, at).clamp(min=t0))
                if bool(before.any()):
                    past = [self._past(p, s.to(u.dtype)) for s in at[before].unbind()]
                    found = found.index_put((before,), torch.stack(past).to(found.dtype))
                parts.append(found)
            return value(torch.cat(parts, dim=-1), t)

        return slopes


def _require_state(u0: Any) -> None:
    if not isinstance(u0, Tensor) or u0.ndim == 0:
        what = "a number" if isinstance(u0, Tensor) else f"a {type(u0).__name__}"
        raise InputError(f"u0 is {what}; a NeuralDDE takes a tensor of shape (..., d).")


def _lags(lags: Any) -> list[float]:
    try:
        if any(isinstance(x, (bool, str)) for x in lags):
            raise TypeError
        values = [float(x) for x in lags]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"lags is {lags!r}; give a sequence of numbers, e.g. [0.5].") from None
    if not values or not all(math.isfinite(x) and x > 0 for x in values):
        raise InputError(f"lags is {lags!r}; give at least one, all finite and above 0.")
    return values


def _require_history(history: Any) -> None:
    call = history.forward if isinstance(history, nn.Module) else history
    try:
        inspect.signature(call).bind("t")
    except ValueError:  # a builtin without a signature
        return
    except TypeError:
        raise InputError(
            f"history is {history!r}; give a function h(t) of one time, a 0-d tensor."
        ) from None
