"""Partitioned and split equations: which algorithms take them apart, and what these ask for."""

from __future__ import annotations

import numpy as np

from pysciml.algorithms import Algorithm
from pysciml.engines.base import FlatProblem, SolveOptions
from pysciml.errors import EngineError, InputError
from pysciml.ordinarydiffeq import ADAPTIVE_RKN, IMEX, NEEDS, VELOCITY_DEPENDENT

__all__ = ["require_fitting_parts", "taken_apart"]


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
