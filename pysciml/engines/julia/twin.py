"""A second solution of the same equation, where the first cannot be read between its steps.

Methods that take an equation apart keep a coarse interpolant, if any. Of others the interpolant, a
cubic, is coarse beside their order: it was seen to be wrong by 0.1 between states that were right
to 1e-6. What is asked of such a solution between its outputs, and its gradient, comes from one that
is computed without taking the equation apart, to a tight tolerance and in double precision, through
the same events.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysciml.algorithms import algorithm
from pysciml.engines.base import (
    FIXED,
    FROM_T0,
    FROM_T1,
    FlatGradient,
    FlatSolution,
    Tuning,
)
from pysciml.errors import EngineError

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import Handle, JuliaEngine

__all__ = ["adjoint_of_twin", "twin_between"]

Array = npt.NDArray[np.float64]

#: Tolerances: these, or tighter ones of the user's; of partitioned equations, and of others.
_PARTITIONED, _RELTOL = 1e-10, 1e-8


def twin(engine: JuliaEngine, handle: Handle, saveat: Array | None, gradient: bool) -> FlatSolution:
    """The solution at ``saveat``, or at every step."""
    problem, options = handle.problem, handle.options
    reltol = min(_PARTITIONED if problem.split else _RELTOL, options.reltol)
    ratio = reltol / options.reltol if options.reltol else 1.0
    return engine.solve(
        replace(problem, form="", parts=(), split=0, dtype="float64", memo={}),
        algorithm("Vern9")() if problem.split else None,
        replace(
            options, reltol=reltol, abstol=np.asarray(options.abstol) * ratio, dt=None,
            dtmax=None, dtmin=None, adaptive=True, saveat=saveat, maxiters=10**7,
            gradient=gradient, tuning=Tuning(discontinuities=options.tuning.discontinuities),
        ),
    )  # fmt: skip


def twin_between(engine: JuliaEngine, handle: Handle, ts: Array) -> FlatSolution:
    """The solution to be read between the outputs.

    Raises EngineError where its solve stopped before one of ``ts``.
    """
    made, alg = handle.twin, handle.alg
    if made is None:
        made = handle.twin = twin(engine, handle, None, handle.options.gradient)
    t0 = handle.problem.t0
    if not made.success and np.abs(ts - t0).max() > abs(made.t_reached - t0):
        name = alg.name if alg else "The algorithm"
        raise EngineError(
            f"{name} tells no states between outputs, and the second solve, which does, stopped at "
            f"t = {made.t_reached:g} with retcode {made.retcode}; ask for the times by saveat, or "
            "solve by an algorithm for any ODE, e.g. pysciml.Vern7()."
        )
    return made


def adjoint_of_twin(
    engine: JuliaEngine,
    solution: FlatSolution,
    grad_u: Array,
    grad_t: Array | None,
    at: Array | None,
    by_times: bool,
) -> FlatGradient:
    """The gradient of the exact solution."""
    wanted = np.isin(solution.source, (FROM_T0, FROM_T1, FIXED)) | (solution.source >= 0)
    made = solution.handle.twin if at is not None else None
    if made is None:
        made = twin(engine, solution.handle, solution.t[wanted], True)
    if not made.success:
        raise EngineError(
            f"The gradient's own solve stopped at t = {made.t_reached:g} with retcode "
            f"{made.retcode}; check the model there, or take gradients after an algorithm for any "
            "ODE, e.g. pysciml.Vern7()."
        )
    if at is not None:
        return engine.adjoint(made, grad_u, None, at, by_times)
    if len(made.events) != len(solution.events) or len(made.t) != len(solution.t):
        raise EngineError(
            f"The solve met {len(solution.events)} events, and the exact solution "
            f"{len(made.events)}, so there is no gradient; take smaller steps, or an algorithm for "
            "any ODE, e.g. pysciml.Vern7()."
        )
    return engine.adjoint(made, grad_u, grad_t, None, by_times)
