"""The stage systems of the collocated adjoint with a Jacobian that is a narrow band in some order.

Stages are interleaved with the state's entries, so that each interval's system is a band three
times as wide, which LAPACK's gbsv solves. An order that makes a pattern's band narrow is found as
in Cuthill and McKee, "Reducing the bandwidth of sparse symmetric matrices" (1969): a periodic grid
in one dimension, whose ends are neighbours, is folded by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import lapack
from scipy.sparse.csgraph import reverse_cuthill_mckee

from pysciml.engines.sundials.collocation import A, Follower, Nodes, StagesFailed, Sweep, follow
from pysciml.engines.sundials.sparse_sweep import transposer

__all__ = ["Band", "sweep_banded"]

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Band:
    """A pattern's entries (rows[i], cols[i]), column by column, and its order.

    The state's entry k is column ``place[k]`` of the band.
    """

    rows: Ints
    cols: Ints
    place: Ints
    lower: int
    upper: int

    @property
    def width(self) -> int:
        return self.lower + self.upper + 1

    @classmethod
    def of(cls, rows: Ints, cols: Ints, place: Ints) -> Band:
        away = place[rows] - place[cols]
        return cls(rows, cols, place, int(max(away.max(), 0)), int(max(-away.min(), 0)))

    @classmethod
    def found(cls, rows: Ints, cols: Ints, n: int) -> Band:
        """The band in an order that makes it narrow."""
        pattern = sparse.csr_matrix((np.ones(len(rows)), (rows, cols)), shape=(n, n))
        place = np.empty(n, np.int64)
        place[reverse_cuthill_mckee(pattern + pattern.T, symmetric_mode=True)] = np.arange(n)
        return cls.of(rows, cols, place)


def sweep_banded(
    nodes: Nodes,
    values: Callable[[int], Array],
    band: Band,
    jumps: dict[int, Array],
    follower: Follower,
) -> Sweep:
    """As :func:`sweep_sparse`."""
    rows, cols, place, n = band.rows, band.cols, band.place, len(band.place)
    # of the transposed system
    lower, upper = 3 * band.upper + 2, 3 * band.lower + 2
    height = 2 * lower + upper + 1
    # Row (a, i) and column (b, j) hold delta - h A_ij J_j[b, a].
    i, j = np.arange(3)[:, None, None], np.arange(3)[None, :, None]
    row, col = 3 * place[cols] + i, 3 * place[rows] + j
    where = (col * height + lower + upper + row - col).reshape(-1)
    order = np.argsort(place)
    transposed = transposer(rows, cols, n)
    stages = np.empty((len(nodes.h), 3, n))

    def step(k: int, mu: Array) -> Array:
        system = np.zeros((3 * n, height))
        system.reshape(-1)[where] = ((-nodes.h[k] * A)[:, :, None] * values(k)).reshape(-1)
        system[:, lower + upper] += 1.0
        _, _, x, info = lapack.dgbsv(
            lower, upper, system.T, np.repeat(mu[order], 3), overwrite_ab=True, overwrite_b=True
        )
        if info:
            raise StagesFailed(
                f"The adjoint's stage equations are singular near t = {nodes.mesh[k]:g}: use "
                "sensealg=pysciml.QuadratureAdjoint(), or engine='julia'."
            )
        stages[k] = x.reshape(n, 3)[place].T
        return stages[k, 2]

    def multiply(k: int, v: Array) -> Array:
        product: Array = transposed(values(k)[1]) @ v
        return product

    return follow(nodes, jumps, stages, step, multiply, follower)
