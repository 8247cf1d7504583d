"""Consistent initial values of a DAE: by Newton's method, where IDA's own search fails; refusals.

IDA keeps one Jacobian over its iterations (Brown, Hindmarsh, Petzold, "Consistent initial
condition calculation for differential-algebraic systems", SIAM J. Sci. Comput. 19, 1998); where
the equation is nonlinear in its rates and an event jumps far, that is not enough.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pysciml.consistency import off_at_start, without_rate
from pysciml.engines.base import FlatProblem, SolveOptions
from pysciml.errors import InputError

Array = npt.NDArray[np.float64]

_ITERATIONS, _HALVINGS = 50, 12


def consistent(
    value: Callable[..., None], jac: Callable[..., None], t: float, u: Array, du: Array
) -> tuple[Array, Array] | None:
    """(u, du) with ``F(du, u, t) = 0``: u changed along the null space of dF/du' alone.

    What the rates act on is kept, so where the equation has algebraic variables these are what
    changes. ``value``: fn(du, u, t, out); ``jac``: fn(du, u, t, cj, out) filling dF/du + cj
    dF/du'. None where Newton's method, its steps halved while they do not help, does not get
    there.
    """
    n = len(u)
    residual, by_u, both = np.empty(n), np.empty((n, n)), np.empty((n, n))

    def size(u: Array, du: Array) -> float:
        value(du, u, t, residual)
        return float(np.abs(residual).max())

    now = size(u, du)
    for _ in range(_ITERATIONS):
        jac(du, u, t, 0.0, by_u)
        jac(du, u, t, 1.0, both)
        mass = both - by_u
        if not (np.isfinite(mass).all() and np.isfinite(by_u).all() and np.isfinite(now)):
            return None
        _, sigma, rows = np.linalg.svd(mass)
        rank = int((sigma > 1e-12 * max(sigma[0], 1e-300)).sum())
        matrix = np.concatenate([mass @ rows[:rank].T, by_u @ rows[rank:].T], axis=1)
        try:
            step = np.linalg.solve(matrix, -residual)
        except np.linalg.LinAlgError:
            return None
        step_du, step_u = step[:rank] @ rows[:rank], step[rank:] @ rows[rank:]
        for halving in range(_HALVINGS):
            part = 0.5**halving
            after = size(u + part * step_u, du + part * step_du)
            if after < now or after == 0.0:
                break
        else:  # no better any more: at the rounding, or stuck
            near = np.abs(step_u) <= 1e-8 * (1.0 + np.abs(u))
            near &= np.abs(step_du) <= 1e-8 * (1.0 + np.abs(du))
            return (u, du) if near.all() else None
        u, du, now = u + part * step_u, du + part * step_du, after
        if now == 0.0:
            break
    return u, du


def require_satisfied(problem: FlatProblem, options: SolveOptions, limit: int) -> None:
    """Raise InputError where u0 misses an equation without a rate, which no step can mend.

    By more than the tolerances of u0 allow for. Systems of more than ``limit`` are not looked at.
    """
    functions, n = problem.functions, len(problem.u0)
    if n > limit or not getattr(functions, "differentiable", True):
        return
    off, by_u = np.empty(n), np.empty((n, n))
    given = (problem.du0, problem.u0, problem.t0)
    functions.bind("value", problem.p, problem.c)(*given, off)
    if not off.any():
        return
    rows = without_rate(problem, 1)
    if not off[rows].any():
        return
    functions.bind("jac:u", problem.p, problem.c)(*given, by_u)
    allowed = np.abs(by_u) @ (options.reltol * np.abs(problem.u0) + options.abstol)
    beyond = (np.abs(off) > 10.0 * allowed + 1e-12)[rows].any()
    if beyond and (said := off_at_start(problem)):
        raise InputError(
            f"The initial values do not satisfy the equation: {said}; mend them, or give "
            "differential_vars=, with which the entries of u0 that have no rate, and du0, are "
            "computed from the others."
        )
