"""The stage systems of the collocated adjoint without forming a Jacobian.

For larger states. Each interval's stages solve ``L_i = mu + h sum_j A_ij J_j^T L_j``: by
fixed-point iteration where ``h J`` is small (a non-stiff problem), else by GMRES (Saad and Schultz,
1986). A product with all three ``J_j^T`` is one batched vjp.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import LinearOperator, gmres

from pysciml.engines.sundials.collocation import A, C, Follower, Nodes, StagesFailed, Sweep, follow

Array = npt.NDArray[np.float64]

#: Fixed-point iterations before GMRES takes an interval, and the contraction that it must show.
_ITERATIONS, _CONTRACTION = 20, 0.45


class TooStiff(Exception):
    """Most intervals need GMRES: a formed Jacobian, where it fits, is the better way."""


def sweep_matrix_free(
    nodes: Nodes,
    pull: Callable[[Array, Array, Array], Array],
    u: Array,
    jumps: dict[int, Array],
    rtol: float,
    follower: Follower,
    give_up: bool = False,
) -> Sweep:
    """As :func:`sweep_dense`; ``pull(w, u, t)`` gives ``J(u, t)^T w`` for a batch of three.

    ``u`` (K, 3, n) is the state at the nodes. With ``give_up`` raises TooStiff once a quarter of
    the intervals (at least 8) needed GMRES, or that fails.
    """
    count, _, n = u.shape
    stages = np.empty((count, 3, n))
    ahead = extrapolation()
    tol = 0.01 * rtol
    hard = 0

    def step(k: int, mu: Array) -> Array:
        nonlocal hard
        coupling = nodes.h[k] * A
        u_k, t_k = u[k], nodes.t[k]
        size = float(np.linalg.norm(mu))
        if size == 0.0:
            stages[k] = 0.0
            return mu
        guess = np.repeat(mu[None], 3, axis=0)
        if k + 1 < count and (k + 1) not in jumps:
            # The last interval's stages carried on: its length need not be this one's.
            guess = mu + ahead(nodes.h[k] / nodes.h[k + 1]) @ (stages[k + 1] - mu)
        found = fixed_point(lambda x: pull(x, u_k, t_k), coupling, mu, guess, tol * size)
        if found is not None:
            stages[k] = found
            return found[2]
        hard += 1
        if give_up and hard >= max(8, count // 4):
            raise TooStiff

        def system(x: Array) -> Array:
            x = x.reshape(3, n)
            return (x - coupling @ pull(x, u_k, t_k)).reshape(-1)

        operator = LinearOperator((3 * n, 3 * n), matvec=system, dtype=np.float64)
        x, info = gmres(operator, np.tile(mu, 3), rtol=tol, atol=0.0, restart=60, maxiter=20)
        if info != 0:
            if give_up:
                raise TooStiff
            raise StagesFailed(
                f"The adjoint equation is too stiff for iteration near t = {nodes.mesh[k]:g} "
                f"with {n} states: use engine='julia', or sensealg=pysciml.QuadratureAdjoint()."
            )
        stages[k] = x.reshape(3, n)
        return stages[k, 2]

    def multiply(k: int, v: Array) -> Array:
        return pull(v[None], u[k, 1:2], nodes.t[k, 1:2])[0]

    return follow(nodes, jumps, stages, step, multiply, follower)


def fixed_point(
    pull: Callable[[Array], Array], coupling: Array, mu: Array, guess: Array, tol: float
) -> Array | None:
    """The stages (3, n) by ``L = mu + coupling J^T L``, None where that does not contract well."""
    before = np.inf
    for i in range(_ITERATIONS):
        new = mu + coupling @ pull(guess)
        change = float(np.linalg.norm(new - guess))
        guess = new
        if not np.isfinite(change):
            break
        rate = change / before
        if change <= tol and (rate < _CONTRACTION or i == 0):
            return guess
        if i >= 2 and rate > _CONTRACTION:
            break
        before = change
    return None


def extrapolation() -> Callable[[float], Array]:
    """Weights (3, 3): from (stages - value at the end) of one interval to stages of the next.

    The polynomial through the entering value (at 1, where the new interval begins) and the old
    stages at c_1, c_2 is evaluated at 1 + r c_i, r the ratio of the lengths.
    """
    x = np.array([C[0], C[1], 0.0]) - 1.0  # relative to the old interval's end, the value's place

    def weights(ratio: float) -> Array:
        at = np.minimum(ratio, 4.0) * C
        out = np.zeros((3, 3))
        # Basis vanishing at 0 (the value's place): s (s - x_other) / (x_j (x_j - x_other)).
        for j, other in ((0, 1), (1, 0)):
            out[:, j] = at * (at - x[other]) / (x[j] * (x[j] - x[other]))
        return out

    return weights
