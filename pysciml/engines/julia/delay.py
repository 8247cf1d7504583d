"""Delay equations in Julia: the rate, the delayed times and the history as kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysciml.algorithms import Algorithm, algorithm
from pysciml.engines.base import FlatProblem, FlatSolution, Functions, SolveOptions
from pysciml.engines.julia.names import COARSE_BEFORE, algorithm_expression
from pysciml.errors import EngineError, InputError
from pysciml.kernels.reasons import CaptureError
from pysciml.sensitivity import CollocationAdjoint

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import JuliaEngine

__all__ = ["checked", "solve"]

Array = npt.NDArray[np.float64]

#: What moves a lag besides p, as ``Delayed`` in Julia has it.
BY_NOTHING, BY_TIME, BY_STATE = 0, 1, 2
#: Times of the time span at which lags are compared.
_SAMPLES = 33


def checked(problem_kind: str, alg: Algorithm | None) -> Algorithm | None:
    """The algorithm within the method of steps, or another one as it is. Raises EngineError."""
    if alg is None or alg.package != "DelayDiffEq":
        return alg
    if problem_kind != "dde":
        raise EngineError(
            f"{alg.name} is for delay equations (DDEProblem), but this problem has no delay; use "
            f"{alg.parts[0]!r} by itself."
        )
    inner = alg.parts[0]
    if inner.package in ("DelayDiffEq", "StochasticDiffEq"):
        raise EngineError(
            f"{alg.name} takes an algorithm for ODEs, and {inner.name} is none; use e.g. "
            f"pysciml.{alg.name}(pysciml.Tsit5())."
        )
    return inner


def method_of_steps(alg: Algorithm | None) -> Algorithm:
    """The algorithm as DelayDiffEq takes it, which likewise wraps one that comes by itself."""
    if alg is not None and alg.package == "DelayDiffEq":
        return alg
    inner = alg or algorithm("AutoTsit5")(algorithm("Rodas5P")())
    return algorithm("MethodOfSteps")(inner)


def solve(
    engine: JuliaEngine, problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
) -> FlatSolution:
    """See :meth:`pysciml.engines.base.Engine.solve`."""
    _require_sensealg(options)
    alg = method_of_steps(alg)
    _refuse_coarse(alg.parts[0])
    moves = [*what_moves(problem), *(_by_parameters(f) for f in problem.parts[1:])]
    functions = engine.functions(problem.functions, "ode", problem.dtype)
    parts = tuple(engine.functions(f, "ode", problem.dtype) for f in problem.parts)
    for f in (functions, *parts):
        f.use(problem.p, problem.c)
    flags = np.array(moves, np.int64)
    model = functions.model_of_delay(len(problem.u0), parts, flags)
    number = engine.object(*algorithm_expression(alg, "dde"))
    events = engine.events(problem)
    request, keep = engine.request(model, number, events.number if events else 0, problem, options)
    with engine.first(functions, ("solve", number, events is None, options.gradient)):
        response = engine.bridge.solve(request, options.progress)
    del keep
    made = engine.solution(response, problem, options, functions, events, alg)
    made.handle.parts = parts
    if not made.success and BY_STATE in moves[:-2]:
        made.message = "lags depend on the state here, and one that turns negative stops the solve"
    return made


def _refuse_coarse(alg: Algorithm) -> None:
    for part in alg.parts:
        _refuse_coarse(part)
    if alg.name in COARSE_BEFORE:
        raise EngineError(
            f"{alg.name} does not solve delay equations to its tolerance: what stands between its "
            "steps, where the past is read, is coarse in Julia; use pysciml.Vern9(), or "
            "pysciml.Rodas5P() for a stiff equation."
        )


def _require_sensealg(options: SolveOptions) -> None:
    """Raise InputError for another sensitivity algorithm than the one there is."""
    sensealg = options.sensealg
    if sensealg is not None and not isinstance(sensealg, CollocationAdjoint):
        raise InputError(
            f"sensealg is {sensealg.name}, but gradients of a DDEProblem are by CollocationAdjoint "
            "alone, for every algorithm; leave sensealg out."
        )


def what_moves(problem: FlatProblem) -> npt.NDArray[np.int64]:
    """For each delayed time, what moves its lag.

    Raises InputError for a time that delayed states move, and for a lag that is not positive.
    """
    asked, n = problem.parts[1], len(problem.u0)
    by_state = _by_state(asked, n, problem)
    times = np.linspace(problem.t0, problem.t1, _SAMPLES)
    lags = _lags(asked, problem, times)
    rounding = 1e-9 if problem.dtype == "float64" else 1e-4
    constant = np.ptp(lags, axis=0) <= rounding * np.maximum(1.0, np.abs(lags).max(axis=0))
    constant &= _slope_is_one(asked) & ~by_state
    for k in np.nonzero(~by_state)[0]:
        i = int(np.argmin(lags[:, k]))
        lag, t = lags[i, k], times[i]
        if lag < -1e-12 or (constant[k] and lag < 1e-12):
            raise InputError(
                f"call {k + 1} of h in f asks for t = {t - lag:g} at t = {t:g}, a lag of {lag:g}, "
                "but h knows earlier times only; make every lag positive."
            )
    return np.where(by_state, BY_STATE, np.where(constant, BY_NOTHING, BY_TIME)).astype(np.int64)


def _lags(asked: Functions, problem: FlatProblem, times: Array, shift: float = 0.0) -> Array:
    """The lags at u0 (moved by ``shift``) and these times: array (len(times), K)."""
    x = np.zeros(asked.sizes["u"])
    x[: len(problem.u0)] = problem.u0 + shift
    out = np.empty((len(times), asked.n_out))
    with np.errstate(all="ignore"):
        value = asked.bind("value", problem.p, problem.c)
        for t, row in zip(times, out, strict=True):
            value(x, t, row)
    return times[:, None] - out


def _by_state(asked: Functions, n: int, problem: FlatProblem) -> npt.NDArray[np.bool_]:
    pattern = asked.sparsity("u") if asked.kernels is not None else None
    if pattern is None:  # unknown: as far as values show it
        at = np.array([problem.t0])
        return np.asarray(_lags(asked, problem, at, 0.1)[0] != _lags(asked, problem, at)[0])
    dense = np.asarray(pattern.toarray()) != 0
    for k in range(len(dense)):
        if dense[k, n:].any():
            raise InputError(
                f"call {k + 1} of h in f asks for a time that depends on another delayed state, "
                "which is not supported; let the times depend on u, p and t only."
            )
    return np.asarray(dense[:, :n].any(axis=1))


def _by_parameters(f: Functions) -> bool:
    """Whether parameters (or closed-over tensors that require grad) move a function's value."""
    pattern = f.sparsity("p") if f.kernels is not None else None
    return pattern is None or pattern.nnz > 0


def _slope_is_one(asked: Functions) -> bool:
    """Whether the times move with t evenly, as far as the kernel tells."""
    if asked.kernels is None:
        return True
    try:
        pattern = asked.kernels.sparsity("t", "jac:t")
    except CaptureError:
        return True
    return pattern is None or pattern.nnz == 0
