"""Lowerings of reductions, scans and factories."""

from __future__ import annotations

import math
from typing import Any

import torch

from pysciml.kernels.graph import Node, make
from pysciml.kernels.lowering import (
    axes,
    cast,
    elementwise,
    kind_of,
    lowers,
    promote,
    reduce,
    reshape,
    scalar,
)

# ---- factories that read only the shape of a value: constants again


def _like(x: Node, dtype: torch.dtype | None, value: float) -> torch.Tensor:
    kinds = {"f": torch.float64, "i": torch.int64, "b": torch.bool}
    return torch.full(x.shape, value, dtype=dtype or kinds[x.kind])


@lowers("zeros_like", "empty_like")
def _zeros_like(ctx: Any, x: Node, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return _like(x, dtype, 0)


@lowers("ones_like")
def _ones_like(ctx: Any, x: Node, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return _like(x, dtype, 1)


@lowers("full_like")
def _full_like(
    ctx: Any, x: Node, value: Any, dtype: torch.dtype | None = None, **_: Any
) -> torch.Tensor:
    return _like(x, dtype, value)


def _new(x: Node, size: Any, dtype: torch.dtype | None, value: float) -> torch.Tensor:
    kinds = {"f": torch.float64, "i": torch.int64, "b": torch.bool}
    return torch.full(tuple(size), value, dtype=dtype or kinds[x.kind])


@lowers("new_zeros", "new_empty")
def _new_zeros(
    ctx: Any, x: Node, size: Any, dtype: torch.dtype | None = None, **_: Any
) -> torch.Tensor:
    return _new(x, size, dtype, 0)


@lowers("new_empty_strided")
def _new_empty_strided(
    ctx: Any, x: Node, size: Any, stride: Any, dtype: torch.dtype | None = None, **_: Any
) -> torch.Tensor:
    return _new(x, size, dtype, 0)


@lowers("new_ones")
def _new_ones(
    ctx: Any, x: Node, size: Any, dtype: torch.dtype | None = None, **_: Any
) -> torch.Tensor:
    return _new(x, size, dtype, 1)


@lowers("new_full")
def _new_full(
    ctx: Any, x: Node, size: Any, value: Any, dtype: torch.dtype | None = None, **_: Any
) -> torch.Tensor:
    return _new(x, size, dtype, value)


# ---- reductions


def _summand(x: Node, dtype: torch.dtype | None) -> Node:
    return cast(x, kind_of(dtype) if dtype else promote(x.kind, "i"))


@lowers("sum", "sum.dim_IntList")
def _sum(
    ctx: Any, x: Node, dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Node:
    return reduce("sum", _summand(x, dtype), dim, keepdim)


@lowers("mean", "mean.dim")
def _mean(
    ctx: Any, x: Node, dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Node:
    x = cast(x, "f")
    count = math.prod(x.shape[i] for i in axes(dim, x.ndim))
    return elementwise("div", reduce("sum", x, dim, keepdim), float(count))


@lowers("prod", "prod.dim_int")
def _prod(
    ctx: Any, x: Node, dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Node:
    return reduce("prod", _summand(x, dtype), dim, keepdim)


@lowers("amax")
def _amax(ctx: Any, x: Node, dim: Any = (), keepdim: bool = False) -> Node:
    return reduce("amax", x, dim, keepdim)


@lowers("amin")
def _amin(ctx: Any, x: Node, dim: Any = (), keepdim: bool = False) -> Node:
    return reduce("amin", x, dim, keepdim)


@lowers("max")
def _max(ctx: Any, x: Node) -> Node:
    return reduce("amax", x, None)


@lowers("min")
def _min(ctx: Any, x: Node) -> Node:
    return reduce("amin", x, None)


@lowers("any", "any.dim", "any.dims")
def _any(ctx: Any, x: Node, dim: Any = None, keepdim: bool = False) -> Node:
    return reduce("any", cast(x, "b"), dim, keepdim)


@lowers("all", "all.dim", "all.dims")
def _all(ctx: Any, x: Node, dim: Any = None, keepdim: bool = False) -> Node:
    return reduce("all", cast(x, "b"), dim, keepdim)


def _extreme(op: str, x: Node, dim: int, keepdim: bool) -> tuple[Node, Node]:
    if x.ndim == 0:
        return x, scalar(0, "i")
    dim %= x.ndim
    index = make("argmax" if op == "amax" else "argmin", x, dim=dim)
    if keepdim:
        index = reshape(index, tuple(1 if i == dim else d for i, d in enumerate(x.shape)))
    return reduce(op, x, dim, keepdim), index


@lowers("max.dim")
def _max_dim(ctx: Any, x: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    return _extreme("amax", x, dim, keepdim)


@lowers("min.dim")
def _min_dim(ctx: Any, x: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    return _extreme("amin", x, dim, keepdim)


def _arg(op: str, x: Node, dim: int | None, keepdim: bool) -> Node:
    if dim is None:
        flat = make(op, reshape(x, (x.size,)), dim=0)
        return reshape(flat, (1,) * x.ndim) if keepdim else flat
    return _extreme("amax" if op == "argmax" else "amin", x, dim, keepdim)[1]


@lowers("argmax")
def _argmax(ctx: Any, x: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    return _arg("argmax", x, dim, keepdim)


@lowers("argmin")
def _argmin(ctx: Any, x: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    return _arg("argmin", x, dim, keepdim)


@lowers("cumsum")
def _cumsum(ctx: Any, x: Node, dim: int, dtype: torch.dtype | None = None) -> Node:
    x = _summand(x, dtype)
    return x if x.ndim == 0 else make("cumsum", x, dim=dim % x.ndim)


@lowers("cumprod")
def _cumprod(ctx: Any, x: Node, dim: int, dtype: torch.dtype | None = None) -> Node:
    x = _summand(x, dtype)
    return x if x.ndim == 0 else make("cumprod", x, dim=dim % x.ndim)


@lowers("linalg_vector_norm", "norm.Scalar", "norm.ScalarOpt_dim")
def _norm(
    ctx: Any,
    x: Node,
    ord: Any = 2,
    dim: Any = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Node:
    p = 2.0 if ord is None else float(ord)
    if p == 0:
        return reduce("sum", cast(elementwise("ne", x, 0.0), "f"), dim, keepdim)
    if p == 1:
        return reduce("sum", make("abs", x), dim, keepdim)
    if p == 2:
        return make("sqrt", reduce("sum", make("mul", x, x), dim, keepdim))
    if math.isinf(p):
        return reduce("amax" if p > 0 else "amin", make("abs", x), dim, keepdim)
    powers = elementwise("pow", make("abs", x), p)
    return elementwise("pow", reduce("sum", powers, dim, keepdim), 1.0 / p)
