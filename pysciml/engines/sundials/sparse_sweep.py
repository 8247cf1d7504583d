"""The stage systems of the collocated adjoint with a sparse Jacobian.

Each interval's stages solve ``L_i = mu + h sum_j A_ij J_j^T L_j``: by fixed-point iteration where
``h J`` is small, else by GMRES (Saad and Schultz, 1986) preconditioned with one Jacobian in place
of three. Then the eigenvectors of A take the system apart into a real and a complex one of the
state's size (Hairer and Wanner, "Solving Ordinary Differential Equations II", section IV.8), which
sparse LU factors; the factors serve the following intervals too, as long as few iterations are
needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, gmres, splu

from pysciml.engines.sundials.collocation import A, Follower, Nodes, StagesFailed, Sweep, follow
from pysciml.engines.sundials.matrix_free import extrapolation, fixed_point

Array = npt.NDArray[np.float64]

_VALUES, _VECTORS = np.linalg.eig(A)
_REAL = int(np.argmin(np.abs(_VALUES.imag)))
_COMPLEX = int(np.argmax(_VALUES.imag))
_BACK = np.linalg.inv(_VECTORS)
#: GMRES iterations after which the factors are made anew, and at most.
_REFACTOR, _MOST = 8, 60


class _Preconditioner:
    """``(I - h A (x) J^T)^-1`` for one Jacobian, from its transpose."""

    def __init__(self, h: float, transposed: sparse.csc_matrix) -> None:
        eye = sparse.identity(transposed.shape[0], format="csc")
        self.real = splu(eye - h * _VALUES[_REAL].real * transposed)
        self.complex = splu((eye - h * _VALUES[_COMPLEX] * transposed).tocsc())

    def __call__(self, x: Array) -> Array:
        """``x`` and the result (3 n,)."""
        parts = _BACK @ x.reshape(3, -1)
        real = self.real.solve(np.ascontiguousarray(parts[_REAL].real))
        other = self.complex.solve(np.ascontiguousarray(parts[_COMPLEX]))
        # the third part is the second's conjugate
        out = np.outer(_VECTORS[:, _REAL].real, real)
        out += 2.0 * np.outer(_VECTORS[:, _COMPLEX], other).real
        return out.reshape(-1)


def transposer(
    rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64], n: int
) -> Callable[[Array], sparse.csr_matrix]:
    """fn(a Jacobian's entries, column by column) to its transpose: J by columns is J^T by rows."""
    starts = np.searchsorted(cols, np.arange(n + 1))
    return lambda entries: sparse.csr_matrix((entries, rows, starts), shape=(n, n))


def sweep_sparse(
    nodes: Nodes,
    values: Callable[[int], Array],
    rows: npt.NDArray[np.int64],
    cols: npt.NDArray[np.int64],
    n: int,
    jumps: dict[int, Array],
    rtol: float,
    follower: Follower,
) -> Sweep:
    """As :func:`sweep_dense`; ``values(k)`` gives the entries (3, nnz) of interval k's Jacobians.

    Entry i stands at ``(rows[i], cols[i])``, entries column by column.
    """
    count = len(nodes.h)
    transposed = transposer(rows, cols, n)
    stages = np.empty((count, 3, n))
    ahead = extrapolation()
    made: _Preconditioner | None = None
    known: tuple[int, sparse.csr_matrix] | None = None
    tol = 0.01 * rtol

    def step(k: int, mu: Array) -> Array:
        nonlocal made
        size = float(np.linalg.norm(mu))
        if size == 0.0 or not np.isfinite(size):
            stages[k] = size * 0.0
            return stages[k, 2]
        h, entries = float(nodes.h[k]), values(k)
        matrices = [transposed(entries[j]) for j in range(3)]
        coupling = h * A
        guess = np.repeat(mu[None], 3, axis=0)
        if k + 1 < count and (k + 1) not in jumps:
            guess = mu + ahead(h / nodes.h[k + 1]) @ (stages[k + 1] - mu)

        def pull(x: Array) -> Array:
            return np.stack([m @ v for m, v in zip(matrices, x, strict=True)])

        if made is None:
            found = fixed_point(pull, coupling, mu, guess, tol * size)
            if found is not None:
                stages[k] = found
                return found[2]

        def system(x: Array) -> Array:
            x = x.reshape(3, n)
            return (x - coupling @ pull(x)).reshape(-1)

        fresh = made is None
        iterations = 0

        def counted(_: float) -> None:
            nonlocal iterations
            iterations += 1

        operator = LinearOperator((3 * n, 3 * n), matvec=system, dtype=np.float64)
        while True:
            if made is None:
                made = _Preconditioner(h, matrices[1].tocsc())
            inverse = LinearOperator((3 * n, 3 * n), matvec=made, dtype=np.float64)
            x, info = gmres(
                operator, np.tile(mu, 3), x0=guess.reshape(-1), rtol=tol, atol=0.0,
                restart=_MOST, maxiter=1, M=inverse, callback=counted, callback_type="pr_norm",
            )  # fmt: skip
            if info == 0:
                break
            if fresh:
                raise StagesFailed(
                    f"The adjoint equation could not be solved near t = {nodes.mesh[k]:g}: use "
                    "sensealg=pysciml.QuadratureAdjoint(), or engine='julia'."
                )
            made, fresh = None, True
        if iterations > _REFACTOR:
            made = None
        stages[k] = x.reshape(3, n)
        return stages[k, 2]

    def multiply(k: int, v: Array) -> Array:
        nonlocal known
        if known is None or known[0] != k:
            known = k, transposed(values(k)[1])
        product: Array = known[1] @ v
        return product

    return follow(nodes, jumps, stages, step, multiply, follower)
