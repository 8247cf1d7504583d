"""Partitioned and split equations: which algorithms take them apart, and gradients of these."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysciml.algorithms import Algorithm, algorithm
from pysciml.engines.base import (
    FIXED,
    FROM_T0,
    FROM_T1,
    FlatGradient,
    FlatProblem,
    FlatSolution,
    SolveOptions,
    Tuning,
)
from pysciml.errors import EngineError, InputError
from pysciml.ordinarydiffeq import ADAPTIVE_RKN, IMEX, NEEDS, VELOCITY_DEPENDENT

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import Handle, JuliaEngine

__all__ = ["adjoint_of_parts", "require_fitting_parts", "taken_apart"]

Array = npt.NDArray[np.float64]

#: Tolerances of the solve that a gradient goes back along: these, or tighter ones of the user's.
_RELTOL = {"partitioned": 1e-10, "split": 1e-8}


def taken_apart(problem: FlatProblem, alg: Algorithm | None) -> bool:
    """Whether the algorithm asks for the parts of the equation and not for the whole of it."""
    if alg is None or not problem.form:
        return False
    return alg.name in NEEDS or (problem.split == 0 and alg.name in IMEX)


def require_fitting_parts(
    problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
) -> None:
    """Raise where a method for partitioned equations would be wrong without a word."""
    if alg is None or problem.split == 0:
        return
    if alg.name not in ADAPTIVE_RKN and options.dt is None:
        raise InputError(f"{alg.name} takes steps of one size, which is not given; give dt=.")
    if alg.name in VELOCITY_DEPENDENT:
        return
    first, second = (_reads(f, problem.split) for f in problem.parts)
    if first[0]:
        raise EngineError(
            f"{alg.name} is for velocities whose rate does not depend on velocities, but f1 (or "
            "-dH/dq) does here; use pysciml.FineRKN5() for a second-order equation, or an "
            "algorithm for any ODE such as pysciml.Vern9()."
        )
    if second[1] and NEEDS[alg.name] == "partitioned":
        raise EngineError(
            f"{alg.name} is for positions whose rate does not depend on positions, but f2 (or "
            "dH/dp) does here; use an algorithm for any ODE such as pysciml.Vern9()."
        )


def _reads(functions: object, split: int) -> tuple[bool, bool]:
    """Whether a part depends on the first and on the second part of the state."""
    pattern = functions.sparsity("u")  # type: ignore[attr-defined]
    if pattern is None:  # called back, or taken as full: the caller's word is trusted
        return False, False
    columns = np.unique(pattern.tocoo().col)
    return bool((columns < split).any()), bool((columns >= split).any())


def adjoint_of_parts(
    engine: JuliaEngine,
    solution: FlatSolution,
    grad_u: Array,
    grad_t: Array | None,
    at: Array | None,
    by_times: bool,
) -> FlatGradient:
    """The gradient of the exact solution: along one that is computed without taking it apart.

    Methods that take an equation apart keep a coarse interpolant, if any, which no adjoint can
    follow: the whole equation is solved once more, to a tight tolerance, through the same events.
    """
    handle: Handle = solution.handle
    problem, options = handle.problem, handle.options
    kind = "partitioned" if problem.split else "split"
    reltol = min(_RELTOL[kind], options.reltol)
    ratio = reltol / options.reltol if options.reltol else 1.0
    wanted = np.isin(solution.source, (FROM_T0, FROM_T1, FIXED)) | (solution.source >= 0)
    twin = engine.solve(
        replace(problem, form="", parts=(), split=0),
        algorithm("Vern9")() if problem.split else None,
        replace(
            options, reltol=reltol, abstol=np.asarray(options.abstol) * ratio, dt=None,
            dtmax=None, dtmin=None, adaptive=True, saveat=solution.t[wanted], maxiters=10**7,
            tuning=Tuning(discontinuities=options.tuning.discontinuities),
        ),
    )  # fmt: skip
    if not twin.success:
        raise EngineError(
            f"The gradient's own solve stopped at t = {twin.t_reached:g} with retcode "
            f"{twin.retcode}; check the model there, or take gradients after an algorithm for any "
            "ODE."
        )
    if at is not None:
        return engine.adjoint(twin, grad_u, None, at, by_times)
    if len(twin.events) != len(solution.events) or len(twin.t) != len(solution.t):
        raise EngineError(
            f"The solve met {len(solution.events)} events, and the exact solution "
            f"{len(twin.events)}, so there is no gradient; take smaller steps, or an algorithm for "
            "any ODE."
        )
    return engine.adjoint(twin, grad_u, grad_t, None, by_times)
