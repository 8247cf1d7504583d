"""The stiffness test behind the embedded engine's default algorithm.

A problem is started with CVODE_BDF where, at the start, the fastest decaying mode would decay over
more than ``SPAN`` time constants during the solve; otherwise with CVODE_Adams, watched on the way:
where the step times the fastest decay rate sits at the edge of the Adams formulas' stability
region for several checks in a row, stability and not accuracy limits the step, and CVODE_BDF
takes over from there (the idea of Petzold, "Automatic selection of methods for solving stiff and
nonstiff systems of ordinary differential equations", SIAM J. Sci. Stat. Comput. 4, 1983).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Time constants of the fastest mode within the solve beyond which BDF is started with.
SPAN = 500.0
#: Step times decay rate at which an Adams step counts as limited by stability.
EDGE = 0.5
#: States up to which the eigenvalues of a formed Jacobian are computed: their cost grows as n^3.
EIGENVALUES = 64
#: Steps between two checks, and checks in a row that it takes.
EVERY, IN_A_ROW = 20, 3


def decay_rate(
    jac: Callable[..., None] | None,
    jvp: Callable[..., None] | None,
    u: Array,
    t: float,
    sign: float,
) -> float:
    """Fastest decay rate in the direction of integration, 0 where no derivative is at hand.

    Eigenvalues of the Jacobian where it is formed and small; else a power iteration of 20 products.
    """
    n = len(u)
    if jac is not None and (n <= EIGENVALUES or jvp is None):
        matrix = np.empty((n, n)) if n <= 12 else np.zeros((n, n))
        jac(u, t, matrix)
        if not np.isfinite(matrix).all():
            return 0.0
        values = np.linalg.eigvals(matrix) * sign
        decaying = values[np.abs(values.real) >= np.abs(values.imag)]
        return float(max(0.0, -decaying.real.min())) if len(decaying) else 0.0
    if jvp is None:
        return 0.0
    v = np.cos(np.arange(n) + 1.0)
    v /= np.linalg.norm(v)
    out = np.empty(n)
    size = 0.0
    for _ in range(20):
        jvp(v, u, t, out)
        size = float(np.linalg.norm(out))
        if not np.isfinite(size) or size == 0.0:
            return 0.0
        along = sign * float(v @ out)
        v = out / size
    return size if along < 0.0 else 0.0


def is_stiff(
    jac: Callable[..., None] | None,
    jvp: Callable[..., None] | None,
    u: Array,
    t0: float,
    t1: float,
    span: float = SPAN,
) -> bool:
    """The test at the start."""
    sign = 1.0 if t1 > t0 else -1.0
    return decay_rate(jac, jvp, u, t0, sign) * abs(t1 - t0) > span


def stiffness_monitor(
    state: dict[str, Any],
    jac: Callable[..., None] | None,
    jvp: Callable[..., None] | None,
) -> Callable[[float, Array, float], bool]:
    """The watch on the way: sets ``state["method"]`` to BDF and says so by True."""
    seen = {"steps": 0, "row": 0}

    def monitor(t: float, u: Array, h: float) -> bool:
        seen["steps"] += 1
        if seen["steps"] % EVERY:
            return False
        rate = decay_rate(jac, jvp, u, t, 1.0 if h > 0 else -1.0)
        seen["row"] = seen["row"] + 1 if abs(h) * rate > EDGE else 0
        if seen["row"] < IN_A_ROW:
            return False
        state["method"] = "BDF"
        return True

    return monitor
