"""Consistent initial values of a DAE by Newton's method, where IDA's own search does not converge.

IDA keeps one Jacobian over its iterations (Brown, Hindmarsh, Petzold, "Consistent initial
condition calculation for differential-algebraic systems", SIAM J. Sci. Comput. 19, 1998); where
the equation is nonlinear in its rates and an event jumps far, that is not enough.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_ITERATIONS, _HALVINGS = 50, 12


def consistent(
    value: Callable[..., None],
    jac: Callable[..., None],
    algebraic: list[int],
    t: float,
    u: Array,
    du: Array,
) -> tuple[Array, Array] | None:
    """(u, du) with ``F(du, u, t) = 0``: other algebraic entries of u, other rates of the rest.

    ``value``: fn(du, u, t, out); ``jac``: fn(du, u, t, cj, out) filling dF/du + cj dF/du'. None
    where Newton's method, its steps halved while they do not help, does not get there.
    """
    n = len(u)
    free = np.zeros(n, dtype=bool)
    free[algebraic] = True
    residual, by_u, both = np.empty(n), np.empty((n, n)), np.empty((n, n))

    def size(u: Array, du: Array) -> float:
        value(du, u, t, residual)
        return float(np.abs(residual).max())

    now = size(u, du)
    for _ in range(_ITERATIONS):
        jac(du, u, t, 0.0, by_u)
        jac(du, u, t, 1.0, both)
        try:
            step = np.linalg.solve(np.where(free, by_u, both - by_u), -residual)
        except np.linalg.LinAlgError:
            return None
        for halving in range(_HALVINGS):
            part = 0.5**halving * step
            u_new, du_new = np.where(free, u + part, u), np.where(free, du, du + part)
            after = size(u_new, du_new)
            if after < now or after == 0.0:
                break
        else:  # no better any more: at the rounding, or stuck
            scale = np.abs(np.where(free, u, du))
            return (u, du) if bool((np.abs(step) <= 1e-8 * (1.0 + scale)).all()) else None
        u, du, now = u_new, du_new, after
        if now == 0.0:
            break
    return u, du
