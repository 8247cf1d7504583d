"""Decompositions of products, distances and small factorisations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysciml.kernels.decomposing import aten, decomposes

# ---- products


def _tree_product(x: Tensor, dim: int) -> Tensor:
    """The product over an axis, pairwise: its derivative holds at zeros too."""
    n = x.shape[dim]
    if n == 0:
        return torch.ones_like(x.sum(dim))
    while n > 1:
        half = n // 2
        pairs = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat([pairs, x.narrow(dim, 2 * half, n - 2 * half)], dim) if n % 2 else pairs
        n = x.shape[dim]
    return x.squeeze(dim)


@decomposes(aten.prod.default)
def _prod(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    if not x.is_floating_point():
        return NotImplemented
    return _tree_product(x.reshape(-1), 0)


@decomposes(aten.prod.dim_int)
def _prod_dim(
    x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if not x.is_floating_point() or x.ndim == 0:
        return NotImplemented
    out = _tree_product(x, dim % x.ndim)
    return out.unsqueeze(dim) if keepdim else out


@decomposes(aten.cumprod.default)
def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    if not x.is_floating_point() or x.ndim == 0:
        return NotImplemented
    # a doubling scan
    dim %= x.ndim
    shift = 1
    while shift < x.shape[dim]:
        rest = x.shape[dim] - shift
        x = torch.cat(
            [x.narrow(dim, 0, shift), x.narrow(dim, shift, rest) * x.narrow(dim, 0, rest)], dim
        )
        shift *= 2
    return x


@decomposes(aten.logcumsumexp.default)
def _logcumsumexp(x: Tensor, dim: int) -> Tensor:
    top = torch.amax(x, dim, keepdim=True).detach()
    return torch.log(torch.cumsum(torch.exp(x - top), dim)) + top


# ---- distances and factorisations


@decomposes(aten._cdist_forward.default)
def _cdist(a: Tensor, b: Tensor, p: float, mode: int | None) -> Tensor:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, dim=-1)


@decomposes(aten._euclidean_dist.default)
def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), 2, dim=-1)


def _determinant(a: Tensor) -> Tensor:
    """By cofactors."""

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


@decomposes(aten._linalg_det.default)
def _linalg_det(a: Tensor) -> Any:
    if a.shape[-1] > 4:
        return NotImplemented
    return _determinant(a), a, torch.zeros(a.shape[:-1], dtype=torch.int32, device=a.device)


@decomposes(aten._linalg_slogdet.default)
def _linalg_slogdet(a: Tensor) -> Any:
    if a.shape[-1] > 4:
        return NotImplemented
    det = _determinant(a)
    pivots = torch.zeros(a.shape[:-1], dtype=torch.int32, device=a.device)
    return torch.sign(det), torch.log(torch.abs(det)), a, pivots


@decomposes(aten.linalg_cholesky_ex.default)
def _cholesky(a: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    n = a.shape[-1]
    if n > 8:
        return NotImplemented
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
    lower = torch.stack([torch.stack(row + [zero] * (n - len(row)), -1) for row in rows], -2)
    info = torch.zeros(a.shape[:-2], dtype=torch.int32, device=a.device)
    return (lower.mT if upper else lower), info
