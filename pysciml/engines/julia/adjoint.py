"""Gradients of one solution on the host: what Julia is asked, and how it answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pysciml.engines.base import (
    FIRST_EVENT,
    FIXED,
    FlatGradient,
    FlatProblem,
    FlatSolution,
)
from pysciml.engines.julia.again import Differentiation
from pysciml.engines.julia.bridge import address
from pysciml.engines.julia.events import events_gradient
from pysciml.engines.julia.names import default_sensealg, sensealg_expression
from pysciml.errors import EngineError
from pysciml.sensitivity import CollocationAdjoint, SensitivityAlgorithm

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import Handle, JuliaEngine

__all__ = ["adjoint", "is_defined", "refuse_adjoint", "undefined"]

Array = npt.NDArray[np.float64]


def refuse_adjoint(problem: FlatProblem, sensealg: SensitivityAlgorithm) -> None:
    """Raise EngineError where SciMLSensitivity's adjoint would fail, or be wrong without a word."""
    if isinstance(sensealg, CollocationAdjoint):
        return
    if problem.kind == "dae":
        what = "a residual (DAEProblem)"
    elif problem.mass_matrix is not None and not _keeps_or_drops(problem.mass_matrix):
        what = "a mass matrix other than ones and zeros on its diagonal"
    else:
        return
    raise EngineError(
        f"{sensealg.name} has no gradients for {what}; use sensealg=pysciml.CollocationAdjoint(), "
        "the default there."
    )


def _keeps_or_drops(mass: Array) -> bool:
    diagonal = np.diagonal(mass)
    return bool(np.isin(diagonal, (0.0, 1.0)).all() and not (mass - np.diag(diagonal)).any())


def is_defined(*cotangents: Array | Tensor | None) -> bool:
    return all(
        x is None or bool((torch if isinstance(x, Tensor) else np).isfinite(x).all())
        for x in cotangents
    )


def undefined(problem: FlatProblem, times: int) -> FlatGradient:
    """The gradient of what is not a number, as torch has it: neither is it anywhere. On a device
    where u0 and p are tensors there."""
    devents, of_callbacks = events_gradient(problem)
    devents.fill(np.nan)
    return FlatGradient(
        u0=problem.u0 * math.nan,
        p=problem.p * math.nan,
        t0=np.nan,
        times=np.full(times, np.nan),
        du0=problem.u0 * math.nan if problem.kind == "dae" else None,
        callbacks_p=of_callbacks,
    )


def _how_to_differentiate(engine: JuliaEngine, handle: Handle) -> Differentiation:
    """By which sensitivity algorithm, to which tolerances. Raises where it cannot be done."""
    problem, options = handle.problem, handle.options
    known: Differentiation | None = problem.memo.get("differentiation")
    if known is not None and known.options is options:
        return known
    sensealg = options.sensealg or default_sensealg(problem, handle.alg, options.tuning)
    refuse_adjoint(problem, sensealg)
    number = engine.object(*sensealg_expression(sensealg))
    abstol = options.abstol if np.ndim(options.abstol) == 0 else np.min(options.abstol)
    made = Differentiation(
        options,
        number,
        (float(sensealg.abstol or abstol), float(sensealg.reltol or options.reltol)),
        ("adjoint", number, handle.events is None),
    )
    problem.memo["differentiation"] = made
    return made


def adjoint(
    engine: JuliaEngine,
    solution: FlatSolution,
    grad_u: Array,
    grad_t: Array | None,
    at: Array | None,
    by_times: bool,
) -> FlatGradient:
    """See :meth:`pysciml.engines.base.Engine.adjoint`."""
    handle: Handle = solution.handle
    problem = handle.problem
    how = _how_to_differentiate(engine, handle)
    engine.use(handle)
    times = np.ascontiguousarray(solution.t if at is None else at, np.float64)
    source = solution.source if at is None else np.full(len(times), FIXED, np.int64)
    cotangents = np.ascontiguousarray(grad_u, problem.dtype)
    if at is not None:
        order = np.argsort(times if problem.t1 >= problem.t0 else -times, kind="stable")
        times, cotangents = times[order], cotangents[order]
    of_events = None
    if solution.events:
        of_events = np.zeros(len(solution.events))
        if grad_t is not None and at is None:
            moved = source <= FIRST_EVENT
            np.add.at(of_events, FIRST_EVENT - source[moved], np.asarray(grad_t)[moved])
    du0 = np.zeros(len(problem.u0), problem.dtype)
    dp = np.zeros(len(problem.p), problem.dtype)
    dt0, dtimes = np.zeros(1), np.zeros(len(times))
    devents, of_callbacks = events_gradient(problem)
    given = (times, source, cotangents, of_events)
    to = (du0, dp, *((dt0, dtimes) if by_times else (None, None)), devents)
    with engine.first(handle.functions, how.what):
        engine.bridge.adjoint(
            handle.number, how.sensealg, len(times),
            tuple(map(address, given)),  # type: ignore[arg-type]
            how.tolerances,
            tuple(map(address, to)),  # type: ignore[arg-type]
        )  # fmt: skip
    if at is not None:
        unsorted = np.empty_like(dtimes)
        unsorted[order] = dtimes
        dtimes = unsorted
    return FlatGradient(
        u0=du0,
        p=dp,
        t0=float(dt0[0]),
        times=dtimes,
        du0=np.zeros_like(du0) if problem.kind == "dae" else None,
        callbacks_p=of_callbacks,
    )
