"""Initial values that do not satisfy the equation: which of its entries, and by how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["off_at_start", "without_rate"]

Array = npt.NDArray[np.float64]

#: Residuals are named from this size on, beside the state's: less is rounding.
_LEAST = 1e-9
#: Most equations named.
_NAMED = 3


def off_at_start(problem: Any) -> str:
    """The equations that u0 (and du0) of a FlatProblem leave unsatisfied; empty where none,
    or where they are not finite.

    Those without a rate in them come first: others are satisfied by their rates. A mass matrix
    leaves those combinations of f that it has no rate for.
    """
    functions, mass = problem.functions, problem.mass_matrix
    if problem.kind != "dae" and mass is None:
        return ""
    if not hasattr(functions, "bind") or not isinstance(problem.u0, np.ndarray):
        return ""
    u = np.array(problem.u0, np.float64)
    off: Array = np.empty(len(u))
    value = functions.bind("value", problem.p, problem.c)
    with np.errstate(all="ignore"):
        if problem.kind == "dae":
            value(np.array(problem.du0, np.float64), u, problem.t0, off)
            fixed = without_rate(problem, 1)
            if (np.abs(off[fixed]) > _LEAST).any():
                off[~fixed] = 0.0
        else:
            value(u, problem.t0, off)
            off = off - mass @ (np.linalg.pinv(mass) @ off)
    if not np.isfinite(off).all():
        return ""  # another fault
    size = np.abs(off)
    largest = np.argsort(-size, kind="stable")[:_NAMED]
    least = _LEAST * (1.0 + float(np.abs(u).max()))
    named = [f"equation {i} is off by {off[i]:.3g}" for i in largest if size[i] > least]
    if not named:
        return ""
    of = "u0 and du0" if problem.kind == "dae" else "u0"
    return f"with {of} {', '.join(named)} (equations counted from 0)"


def without_rate(problem: Any, axis: int) -> npt.NDArray[np.bool_]:
    """Which equations (axis 1) or entries of the state (axis 0) of a residual have no rate."""
    functions, n = problem.functions, len(problem.u0)
    pattern = functions.sparsity("du")
    if pattern is not None:
        return np.asarray(pattern.getnnz(axis=axis) == 0)
    if not getattr(functions, "differentiable", True):
        return np.zeros(n, bool)
    by_rate = np.empty((n, n))
    functions.bind("jac:du", problem.p, problem.c)(
        np.array(problem.du0, np.float64), np.array(problem.u0, np.float64), problem.t0, by_rate
    )
    return np.asarray((by_rate == 0.0).all(axis=axis))
