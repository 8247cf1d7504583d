"""Neural delay differential equations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pysciml.delay import DDEProblem
from pysciml.errors import InputError
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import Field, check_field
from pysciml.nn.record import last_of
from pysciml.solution import Solution
from pysciml.solve import solve

__all__ = ["NeuralDDE"]


class _Delayed(Field):
    """The field at the state and the delayed ones, side by side on the last axis."""

    lags: tuple[float, ...] = ()
    log_lags: Tensor | None = None  # of lags that are learnt

    def __call__(self, u: Tensor, h: Any, p: Any, t: Tensor) -> Tensor:  # type: ignore[override]
        lags = self.lags if self.log_lags is None else self.log_lags.exp().unbind()
        late = [h(p, t - lag) for lag in lags]
        return self.value(torch.cat([u, *late], dim=-1), t)


class _History:
    """The state before t0: p, which is u0, or what the user's function gives."""

    def __init__(self, history: Callable[[Tensor], Tensor] | None) -> None:
        self.history = history

    def __call__(self, p: Any, t: Tensor) -> Tensor:
        return p if self.history is None else self.history(t)


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

    Other parameters as :class:`ContinuousModule`, without ``regularise`` and ``per_sample``; the
    ``julia`` engine solves it. Source: Zhu, Guo, Lin, "Neural delay differential equations", ICLR
    2021.

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
        for key in ("regularise", "per_sample"):
            if key in options:
                raise InputError(f"NeuralDDE does not take {key!r}; leave it out.")
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
        self._past = _History(history)

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

    def _solve(
        self, f: Any, u0: Any, tspan: Any, p: Any = None, saveat: Any = None, **more: Any
    ) -> Solution:
        if not isinstance(u0, Tensor) or u0.ndim == 0:
            what = "a number" if isinstance(u0, Tensor) else f"a {type(u0).__name__}"
            raise InputError(f"u0 is {what}; a NeuralDDE takes a tensor of shape (..., d).")
        check_field(self.vector_field)
        f.vector_field, self._past.history = self.vector_field, self.history
        f.lags, f.log_lags = self._fixed, self.log_lags
        prob = DDEProblem(f, u0, self._past, tspan, u0)
        sol = solve(prob, self.alg, engine=self.engine, saveat=saveat, **self.options, **more)
        last_of(self).stats = sol.stats
        return sol


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
