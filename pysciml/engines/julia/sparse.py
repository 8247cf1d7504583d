"""Which models keep their Jacobian sparse, and what Julia is told of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pysciml.algorithms import Algorithm, algorithm
from pysciml.engines.base import Functions
from pysciml.kernels.reasons import CaptureError
from pysciml.kernels.structure import analyse

__all__ = ["Pattern", "keeps_jacobian", "pattern"]

#: From this many states on sparse LU is worth its fixed cost.
_SMALLEST = 64
#: Packages whose methods were seen to be slower with sparse matrices (complex ones, made anew at
#: every step), and the linear solvers that take a sparse matrix.
_DENSE = ("OrdinaryDiffEqFIRK", "OrdinaryDiffEqExtrapolation")
_SPARSE_SOLVERS = ("KLUFactorization", "UMFPACKFactorization", "LUFactorization")


@dataclass(frozen=True, eq=False)
class Pattern:
    """The entries of a sparse Jacobian of ``n`` states and how they are computed.

    Attributes
    ----------
    seed : array (n, ncolors)
        The Jacobian times it holds every entry once (see :mod:`pysciml.kernels.structure`).
    numbers : int64 array
        As Julia reads it (``pattern_at``): entries, ncolors, then colptr, rowval and from, from 1.
    """

    seed: npt.NDArray[np.float64]
    numbers: npt.NDArray[np.int64]


def keeps_jacobian(alg: Algorithm | None) -> bool:
    """Whether an algorithm solves with a Jacobian that may be a sparse matrix."""
    if alg is None:
        return True
    if alg.parts:
        return any(keeps_jacobian(part) for part in alg.parts)
    if "linsolve" not in algorithm(alg.name).allowed or alg.package in _DENSE:
        return False
    solver = alg.options.get("linsolve")
    return solver is None or solver.name in _SPARSE_SOLVERS


def pattern(functions: Functions) -> Pattern | None:
    """The pattern of d value / d u where keeping it sparse pays, else None; made once."""
    shared = functions.shared
    if not hasattr(shared, "_julia_pattern"):
        shared._julia_pattern = _pattern(functions)
    made: Pattern | None = shared._julia_pattern
    return made


def _pattern(functions: Functions) -> Pattern | None:
    n = functions.sizes["u"]
    if n < _SMALLEST or functions.kernels is None:
        return None
    entries = functions.sparsity("u")
    if entries is None or entries.nnz > n * n // 10:
        return None
    structure = analyse(entries)
    if structure.ncolors > n // 3:
        return None
    # the diagonal always, since methods subtract multiples of the identity from the Jacobian
    whole = sparse.csc_matrix(entries + sparse.identity(n, dtype=entries.dtype))
    whole.sort_indices()
    columns = np.repeat(np.arange(n), np.diff(whole.indptr))
    there = np.asarray(entries.tocsc()[whole.indices, columns]).reshape(-1) != 0
    place = 1 + whole.indices + n * structure.colors[columns]
    numbers = [
        [whole.nnz, structure.ncolors],
        whole.indptr + 1,
        whole.indices + 1,
        np.where(there, place, 0),
    ]
    seed = structure.seed()
    try:
        functions.kernels.compressed_jacobian(seed)
    except CaptureError:  # an operation whose derivative has no kernel
        return None
    return Pattern(seed, np.concatenate(numbers).astype(np.int64))
