"""Decompositions of determinants, factorisations, eigenvalues and functions of small matrices.

All are written with a fixed number of primitive operations, so that they differentiate and emit
like anything else; a choice that depends on values (a pivot, a number of squarings) is a mask.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysciml.kernels.decomposing import aten, decomposes

#: Largest matrices, by operation: beyond, the unrolled operations outgrow their use.
_DETERMINANT, _COFACTORS, _CHOLESKY, _SCALAR_CHOLESKY, _EIGEN = 32, 4, 32, 8, 8


def _constant(x: Tensor) -> Tensor:
    """``x`` without derivative. The alias tells it from the detaches of autograd's own."""
    out: Tensor = aten.alias.default(x.detach())
    return out


def _from_triangle(a: Tensor, lower: bool) -> tuple[Tensor, Tensor]:
    """(the symmetric matrix of one triangle, what it differs by from ``a``).

    torch reads one triangle, but its derivatives are those by a whole matrix.
    """
    half = a.tril() if lower else a.triu().mT
    whole = half + half.tril(-1).mT
    return whole, _constant(whole - a)


# ---- determinants


def _by_cofactors(a: Tensor) -> Tensor:
    """The determinant: exact derivatives for singular matrices too."""

    def minor(top: int, columns: tuple[int, ...]) -> Tensor:
        if not columns:
            return torch.ones_like(a.sum((-2, -1)))
        total: Tensor | None = None
        for k, column in enumerate(columns):
            term = a[..., top, column]
            if len(columns) > 1:
                term = term * minor(top + 1, columns[:k] + columns[k + 1 :])
            total = term if total is None else total - term if k % 2 else total + term
        assert total is not None
        return total

    return minor(0, tuple(range(a.shape[-1])))


def _eliminated(a: Tensor) -> tuple[Tensor, Tensor]:
    """Pivots (..., n) of Gaussian elimination with row exchanges, and the exchanges' sign (...)."""
    n = a.shape[-1]
    sign = torch.ones_like(a[..., 0, 0])
    pivots = []
    for k in range(n - 1):
        at = torch.argmax(a[..., 0].abs(), dim=-1, keepdim=True)
        chosen = torch.arange(n - k, device=a.device) == at
        row = torch.where(chosen[..., None], a, 0.0).sum(-2)
        # the first row takes the place of the chosen one
        below = torch.where(chosen[..., 1:, None], a[..., :1, :], a[..., 1:, :])
        sign = torch.where(at[..., 0] == 0, sign, -sign)
        pivot = row[..., 0]
        pivots.append(pivot)
        factor = below[..., 0] / torch.where(pivot == 0.0, 1.0, pivot)[..., None]
        a = below[..., 1:] - factor[..., None] * row[..., None, 1:]
    pivots.append(a[..., 0, 0])
    return torch.stack(pivots, -1), sign


def _no_pivots(a: Tensor) -> Tensor:
    return torch.zeros(a.shape[:-1], dtype=torch.int32, device=a.device)


@decomposes(aten._linalg_det.default)
def _linalg_det(a: Tensor) -> Any:
    n = a.shape[-1]
    if n > _DETERMINANT:
        return NotImplemented
    if n <= _COFACTORS:
        return _by_cofactors(a), a, _no_pivots(a)
    pivots, sign = _eliminated(a)
    return pivots.prod(-1) * sign, a, _no_pivots(a)


@decomposes(aten._linalg_slogdet.default)
def _linalg_slogdet(a: Tensor) -> Any:
    n = a.shape[-1]
    if n > _DETERMINANT:
        return NotImplemented
    if n <= _COFACTORS:
        det = _by_cofactors(a)
        return torch.sign(det), torch.log(torch.abs(det)), a, _no_pivots(a)
    pivots, sign = _eliminated(a)
    return torch.sign(pivots).prod(-1) * sign, torch.log(pivots.abs()).sum(-1), a, _no_pivots(a)


# ---- Cholesky


def _cholesky_by_entries(a: Tensor) -> Tensor:
    n = a.shape[-1]
    rows: list[list[Tensor]] = []
    for i in range(n):
        row: list[Tensor] = []
        for j in range(i + 1):
            other = row if j == i else rows[j]
            rest = a[..., i, j]
            for k in range(j):
                rest = rest - row[k] * other[k]
            row.append(torch.sqrt(rest) if i == j else rest / rows[j][j])
        rows.append(row)
    zero = torch.zeros_like(a[..., 0, 0])
    return torch.stack([torch.stack(row + [zero] * (n - len(row)), -1) for row in rows], -2)


def _cholesky_by_columns(a: Tensor) -> Tensor:
    columns = []
    for k in range(a.shape[-1]):
        column = a[..., 0] / torch.sqrt(a[..., :1, 0])
        columns.append(torch.nn.functional.pad(column, (k, 0)))
        a = a[..., 1:, 1:] - column[..., 1:, None] * column[..., None, 1:]
    return torch.stack(columns, -1)


@decomposes(aten.linalg_cholesky_ex.default)
def _cholesky(a: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    n = a.shape[-1]
    if n > _CHOLESKY:
        return NotImplemented
    a = _from_triangle(a, not upper)[1] + a
    a = (a + a.mT) * 0.5
    lower = _cholesky_by_entries(a) if n <= _SCALAR_CHOLESKY else _cholesky_by_columns(a)
    info = torch.zeros(a.shape[:-2], dtype=torch.int32, device=a.device)
    return (lower.mT if upper else lower), info


@decomposes(aten.cholesky_solve.default)
def _cholesky_solve(b: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    lower = factor.mT if upper else factor
    half = torch.linalg.solve_triangular(lower, b, upper=False)
    return torch.linalg.solve_triangular(lower.mT, half, upper=True)


@decomposes(aten.cholesky_inverse.default)
def _cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return _cholesky_solve(eye.expand(factor.shape), factor, upper)


# ---- the matrix exponential

#: Coefficients of the diagonal Pade approximant of order 13, and the norm up to which it is exact
#: to double precision (Higham, "The scaling and squaring method for the matrix exponential
#: revisited", SIAM J. Matrix Anal. Appl. 26, 2005).
_PADE = [math.factorial(26 - k) // (math.factorial(k) * math.factorial(13 - k)) for k in range(14)]
_REACH = 5.371920351148152
#: Squarings at most: norms beyond _REACH * 2^_SQUARINGS give NaN.
_SQUARINGS = 16


@decomposes(aten.linalg_matrix_exp.default)
def _matrix_exp(a: Tensor) -> Tensor:
    norm = _constant(a.abs().sum(-2).amax(-1))
    count = torch.clamp(torch.ceil(torch.log2(torch.clamp(norm / _REACH, min=1.0))), min=0.0)
    a = a * torch.exp2(-count)[..., None, None]
    b = [c / _PADE[-1] for c in _PADE]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    a2 = a @ a
    a4 = a2 @ a2
    a6 = a2 @ a4
    odd = (
        a6 @ (b[13] * a6 + b[11] * a4 + b[9] * a2) + b[7] * a6 + b[5] * a4 + b[3] * a2 + b[1] * eye
    )
    even = (
        a6 @ (b[12] * a6 + b[10] * a4 + b[8] * a2) + b[6] * a6 + b[4] * a4 + b[2] * a2 + b[0] * eye
    )
    odd = a @ odd
    out = torch.linalg.solve(even - odd, even + odd)
    for k in range(_SQUARINGS):
        out = torch.where((count > k)[..., None, None], out @ out, out)
    return torch.where((count <= _SQUARINGS)[..., None, None], out, math.nan)


# ---- eigenvalues of symmetric matrices


def _rounds(n: int) -> list[list[tuple[int, int]]]:
    """Every pair of n indices once, in rounds of disjoint pairs (a round-robin tournament)."""
    seats = [*range(n), *([-1] if n % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append([(min(x), max(x)) for x in pairs if -1 not in x])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def _rotated(a: Tensor, v: Tensor, pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Jacobi rotations that make a[p, q] zero for disjoint pairs (Golub and Van Loan, ch. 8.5)."""
    n = a.shape[-1]
    take = np.zeros((2, len(pairs), n * n))
    diagonal, skew = np.zeros((2, len(pairs), n * n))
    for k, (p, q) in enumerate(pairs):
        take[0, k, p * n + q] = 2.0
        take[1, k, q * n + q], take[1, k, p * n + p] = 1.0, -1.0
        diagonal[k, p * n + p] = diagonal[k, q * n + q] = 1.0
        skew[k, p * n + q], skew[k, q * n + p] = 1.0, -1.0
    flat = a.reshape(*a.shape[:-2], n * n)
    twice, gap = (flat @ _literal(x.T, a) for x in take)
    small = twice == 0.0
    tau = gap / torch.where(small, 1.0, twice)
    t = torch.where(tau >= 0.0, 1.0, -1.0) / (tau.abs() + torch.sqrt(1.0 + tau * tau))
    t = torch.where(small, 0.0, t)
    c = torch.rsqrt(1.0 + t * t)
    change = (c - 1.0) @ _literal(diagonal, a) + (t * c) @ _literal(skew, a)
    rotation = change.reshape(a.shape) + _literal(np.eye(n), a)
    return rotation.mT @ a @ rotation, v @ rotation


def _literal(x: np.ndarray, like: Tensor) -> Tensor:
    return torch.tensor(x.tolist(), dtype=like.dtype, device=like.device)


@decomposes(aten._linalg_eigh.default)
def _eigh(a: Tensor, uplo: str = "L", compute_v: bool = True) -> Any:
    """Cyclic Jacobi, and one step of perturbation theory, through which derivatives go."""
    n = a.shape[-1]
    if n > _EIGEN:
        return NotImplemented
    whole, rest = _from_triangle(a, uplo == "L")
    eye = torch.eye(n, dtype=a.dtype, device=a.device)
    d, v = _constant(whole), eye.expand(a.shape)
    for _ in range(5 + n // 4 if n > 2 else 1):
        for pairs in _rounds(n):
            d, v = _rotated(d, v, pairs)
    values = d.diagonal(dim1=-2, dim2=-1)
    order = torch.argsort(values, dim=-1)
    v = _constant(torch.gather(v, -1, order[..., None, :].expand(v.shape)))
    # Rayleigh quotients with the first-order change of the vectors (Kato, section II.2)
    b = v.mT @ (a + rest) @ v
    first = b.diagonal(dim1=-2, dim2=-1)
    gap = first[..., None, :] - first[..., :, None]
    apart = gap != 0.0
    change = torch.where(apart, b, 0.0) / torch.where(apart, gap, 1.0)
    return first + (b * change).sum(-2), v + v @ change
