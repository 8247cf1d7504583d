"""Decompositions of products and distances."""

from __future__ import annotations

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


# ---- distances


@decomposes(aten._cdist_forward.default)
def _cdist(a: Tensor, b: Tensor, p: float, mode: int | None) -> Tensor:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, dim=-1)


@decomposes(aten._euclidean_dist.default)
def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), 2, dim=-1)
