"""Linear systems with the Jacobian of many states, which is not formed as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, SuperLU, gmres, splu

from pysciml.kernels.structure import Structure, analyse

__all__ = ["LargeJacobian"]

Array = npt.NDArray[np.float64]

#: Colours up to which a sparse Jacobian is computed, a product for each.
_MOST_COLORS = 256
#: How far from singular the factors are, beside the largest entry.
_SHIFT = 1e-10
#: Products in a row, and how often, with the factors of a sparse Jacobian and without any.
_FACTORED, _FREE = (20, 5), (200, 10)


class LargeJacobian:
    """``J x = r`` and ``J' x = r`` at one state and time.

    Where the pattern of J is sparse and known, J is computed by coloured products (Curtis, Powell
    and Reid, "On the estimation of sparse Jacobian matrices", 1974) and ``J - shift`` factored:
    with these factors GMRES takes a few products, also where J is singular. Else GMRES has
    products alone (Saad and Schultz, SIAM J. Sci. Stat. Comput. 7, 1986).

    ``factored`` tells the two apart: where it is true, a remainder that is left is one that no x
    takes away; else it may as well be that there were too few products.
    """

    def __init__(
        self,
        bind: Callable[[str], Any],
        structure: tuple[Any, Structure] | None,
        u: Array,
        t: float,
    ) -> None:
        self.n, self.u, self.t = len(u), u, t
        self._bind = bind
        self._factors = None if structure is None else self._factor(*structure)

    @staticmethod
    def structure_of(functions: Any) -> tuple[Any, Structure] | None:
        """The pattern of the functions' Jacobian and its colours; None where there is none."""
        pattern = functions.sparsity("u") if functions.kernels is not None else None
        if pattern is None or pattern.nnz > pattern.shape[0] ** 2 // 10:
            return None
        made = analyse(pattern)
        return (pattern, made) if made.ncolors <= _MOST_COLORS else None

    @property
    def factored(self) -> bool:
        return self._factors is not None

    def _factor(self, pattern: Any, structure: Structure) -> SuperLU | None:
        push, products = self._product("jvp:u"), np.empty((self.n, structure.ncolors))
        for k, direction in enumerate(np.ascontiguousarray(structure.seed().T)):
            products[:, k] = push(direction)
        rows, columns = pattern.nonzero()
        entries = products[rows, structure.colors[columns]]
        if not np.isfinite(entries).all():
            return None
        shift = _SHIFT * max(float(np.abs(entries).max(initial=0.0)), np.finfo(float).tiny)
        J = sparse.csc_matrix((entries, (rows, columns)), shape=(self.n, self.n))
        try:
            return splu((J - shift * sparse.identity(self.n)).tocsc())
        except RuntimeError:  # singular all the same
            return None

    def _product(self, role: str) -> Callable[[Array], Array]:
        bound = self._bind(role)

        def product(x: Array) -> Array:
            out = np.empty(self.n)
            with np.errstate(all="ignore"):
                bound(np.ascontiguousarray(x).reshape(-1), self.u, self.t, out)
            return out

        return product

    def solve(self, r: Array, transposed: bool = False) -> tuple[Array, float]:
        """x, and the largest entry of what it leaves of r (inf where that is not finite)."""
        if not r.any():
            return np.zeros(self.n), 0.0
        product = self._product("vjp:u" if transposed else "jvp:u")
        shape, factors = (self.n, self.n), self._factors
        J, M, limits = LinearOperator(shape, product, dtype=np.float64), None, _FREE
        if factors is not None:
            way, limits = "T" if transposed else "N", _FACTORED
            M = LinearOperator(shape, lambda x: factors.solve(x, trans=way), dtype=np.float64)
        if not np.isfinite(product(r)).all():
            return np.full(self.n, np.inf), np.inf
        restart, cycles = limits
        x, left = np.zeros(self.n), r
        for _ in range(3):  # again for what rounding, or a scaled measure, has left
            with np.errstate(all="ignore"):
                step, _ = gmres(
                    J, left, rtol=1e-12, restart=min(restart, self.n), maxiter=cycles, M=M
                )
            new = left - product(step)
            if not np.abs(new).max() < 0.5 * np.abs(left).max():
                break
            x, left = x + step, new
        return x, float(np.abs(left).max())
