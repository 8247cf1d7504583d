"""The Jacobian of a right-hand side in the form that its structure allows.

Small systems: dense. Larger ones whose pattern falls into equal independent blocks (a batch), is
banded (a discretised PDE in one dimension) or sparse (in more dimensions, a network): only the
entries of the pattern are computed, by a coloured product ``J @ seed`` (Curtis, Powell and Reid,
"On the estimation of sparse Jacobian matrices", 1974), and the linear algebra keeps to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pysciml.engines.base import Functions
from pysciml.engines.sundials.banded_sweep import Band
from pysciml.engines.sundials.steppers import Linear, has_sparse_solver
from pysciml.kernels import emit_numpy
from pysciml.kernels.reasons import CaptureError
from pysciml.kernels.structure import Structure, analyse

Array = npt.NDArray[np.float64]

#: Up to this size dense linear algebra is as fast as any other.
_SMALL = 12
#: From these sizes on a sparse direct solver, or LAPACK's dense one, is worth its fixed cost.
_SPARSE, _LAPACK = 64, 100
#: Up to this width the adjoint solves with a band directly, as it stands or as one is found in
#: another order: beyond, iteration is faster.
_NARROW, _FOUND = 32, 16
#: Beyond this size a dense Jacobian is not formed: Krylov solver, matrix-free adjoint.
DENSE_LIMIT = 400


@dataclass(frozen=True)
class Plan:
    """How the Jacobian of one set of functions is computed.

    kind: "dense", "blocks", "banded", "sparse", or "none" where it is not formed. ``rows`` and
    ``cols`` are the pattern's entries, column by column; ``band`` where the adjoint goes by it.
    """

    kind: str
    n: int
    structure: Structure | None = None
    blocks: npt.NDArray[np.int64] | None = None  # (nb, m)
    seed: Array | None = None
    rows: npt.NDArray[np.int64] | None = None
    cols: npt.NDArray[np.int64] | None = None
    band: Band | None = None
    kernel: Any = None  # of J @ seed, one state
    batched_kernel: Any = None  # the same over a batch

    @property
    def linear(self) -> Linear:
        """The linear solver that CVODE's Newton iteration should use."""
        made = self.structure
        lband, uband = (0, 0) if made is None else (made.lband, made.uband)
        # A batch of small systems, each entry beside its own, is a narrow band too.
        if self.kind == "banded" or self.kind == "blocks" and lband + uband + 1 <= self.n // 3:
            return Linear("band", lband, uband)
        if self.kind == "sparse":
            assert self.rows is not None
            pattern = sparse.csc_matrix(
                (np.ones(len(self.rows)), (self.rows, self.cols)), shape=(self.n, self.n)
            )
            return Linear("sparse", sparsity=pattern)
        if self.kind == "none":
            return Linear("gmres", krylov_dim=min(self.n, 30))
        return Linear("dense" if self.n < _LAPACK else "lapackdense")


def plan(functions: Functions) -> Plan:
    """The plan for d value / d u, made once a set of functions and kept with it."""
    shared = functions.shared
    cached: Plan | None = getattr(shared, "_jacobian_plan", None)
    if cached is None:
        cached = shared._jacobian_plan = _make_plan(functions)
    return cached


def _make_plan(functions: Functions) -> Plan:
    n = functions.sizes["u"]
    if n <= _SMALL:
        return Plan("dense", n)
    pattern = functions.sparsity("u") if functions.kernels is not None else None
    if pattern is None:
        return Plan("dense" if n <= DENSE_LIMIT else "none", n)
    assert functions.kernels is not None
    structure = analyse(pattern)
    if structure.ncolors > max(4, n // 3):
        return Plan("dense" if n <= DENSE_LIMIT else "none", n, structure=structure)
    blocks = _equal_blocks(structure)
    if blocks is not None:
        kind = "blocks"
    elif structure.lband + structure.uband + 1 <= n // 3:
        kind = "banded"
    elif n >= _SPARSE and structure.nnz <= n * n // 10 and has_sparse_solver():
        kind = "sparse"
    else:
        return Plan("dense" if n <= DENSE_LIMIT else "none", n, structure=structure)
    cols, rows = pattern.T.nonzero()
    seed = structure.seed()
    try:
        graph = functions.kernels.compressed_jacobian(seed)
    except CaptureError:  # torch gives it, without its zeros
        return Plan("dense" if n <= DENSE_LIMIT else "none", n, structure=structure)
    names = frozenset(k for k in functions.names if k not in ("p", "c"))
    kernel = emit_numpy.compile(graph)
    batched_kernel = emit_numpy.compile_batched(graph, names)
    band = _band(kind, rows, cols, n)
    return Plan(kind, n, structure, blocks, seed, rows, cols, band, kernel, batched_kernel)


def _band(
    kind: str, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64], n: int
) -> Band | None:
    """The band that the adjoint solves with; None where there is none, or iteration is faster."""
    if kind == "banded":
        band = Band.of(rows, cols, np.arange(n))
        iterates = n >= _SPARSE and has_sparse_solver()
        return None if iterates and band.width > _NARROW else band
    if kind == "sparse":
        band = Band.found(rows, cols, n)
        return band if band.width <= _FOUND else None
    return None


def _equal_blocks(structure: Structure) -> npt.NDArray[np.int64] | None:
    sizes = {len(b) for b in structure.blocks}
    if len(sizes) != 1 or len(structure.blocks) < 2 or sizes.pop() > 16:
        return None
    return np.array([np.sort(b) for b in structure.blocks], dtype=np.int64)


def sparse_filler(functions: Functions, p: Array, c: Array) -> Callable[..., None]:
    """fn(u, t, out (nnz,)) for CVODE: the entries of a sparse plan, column by column."""
    made = plan(functions)
    assert made.kernel is not None and made.seed is not None and made.structure is not None
    inner = made.kernel.bind(errstate=False, p=p, c=c)
    buffer = np.empty(made.seed.shape)
    assert made.rows is not None
    where = made.rows * made.structure.ncolors + made.structure.colors[made.cols]
    flat = buffer.reshape(-1)

    def fill(u: Array, t: float, out: Array) -> None:
        inner(u, t, buffer)
        np.take(flat, where, out=out)

    return fill


def dense_filler(functions: Functions, p: Array, c: Array) -> Callable[..., None] | None:
    """fn(u, t, out (n, n)) for CVODE: dense or coloured; None where no Jacobian is to be formed."""
    made = plan(functions)
    if made.kind == "none" or not getattr(functions, "differentiable", True):
        return None
    if made.kernel is None:
        return functions.bind("jac:u", p, c)
    inner = made.kernel.bind(errstate=False, p=p, c=c)
    assert made.seed is not None and made.structure is not None
    buffer = np.empty(made.seed.shape)
    rows, cols = made.rows, made.cols
    colors = made.structure.colors[cols]

    def fill(u: Array, t: float, out: Array) -> None:
        inner(u, t, buffer)
        out[rows, cols] = buffer[rows, colors]

    return fill


def batched(functions: Functions, p: Array, c: Array) -> Callable[[Array, Array], Array]:
    """fn(u (B, n), t (B,)) to the plan's form.

    dense: (B, n, n); blocks: (B, nb, m, m); banded and sparse: the entries (B, nnz).
    """
    made = plan(functions)
    if made.kernel is None:
        return functions.bind_batched("jac:u", p, c)
    inner = made.batched_kernel.bind(p=p, c=c)
    assert made.structure is not None
    colors = made.structure.colors
    if made.kind == "blocks":
        blocks = made.blocks
        assert blocks is not None
        take_rows = blocks[:, :, None]
        take_colors = colors[blocks][:, None, :]
        # Columns of one block share a colour where no row has both: their zeros must stay zeros.
        count, m = blocks.shape
        block, local = np.empty(made.n, dtype=np.int64), np.empty(made.n, dtype=np.int64)
        block[blocks], local[blocks] = np.arange(count)[:, None], np.arange(m)[None, :]
        live = np.zeros((count, m, m))
        live[block[made.rows], local[made.rows], local[made.cols]] = 1.0
        full = bool(live.all())

        def by_blocks(u: Array, t: Array) -> Array:
            out = inner(u, t)[0][:, take_rows, take_colors]
            return out if full else np.where(live, out, 0.0)

        return by_blocks
    assert made.rows is not None and made.cols is not None
    where = made.rows * made.structure.ncolors + colors[made.cols]
    return lambda u, t: inner(u, t)[0].reshape(len(u), -1).take(where, axis=1)
