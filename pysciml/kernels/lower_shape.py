"""Lowerings of operations that move values: views, joins, splits, pads, diagonals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pysciml.kernels.graph import Node, const, make
from pysciml.kernels.lower_pointwise import where
from pysciml.kernels.lowering import (
    LoweringError,
    as_node,
    cast,
    cat,
    expand,
    full,
    lowers,
    pad_axis,
    permute,
    promote,
    reshape,
    slice_axis,
)


@lowers("view", "reshape", "_unsafe_view", "_reshape_alias", "view_copy")
def _view(ctx: Any, x: Node, shape: Sequence[int], *_: Any) -> Node:
    shape = list(shape)
    if -1 in shape:
        known = 1
        for d in shape:
            known *= d if d != -1 else 1
        shape[shape.index(-1)] = x.size // known
    return reshape(x, shape)


@lowers("unsqueeze", "unsqueeze_")
def _unsqueeze(ctx: Any, x: Node, dim: int) -> Node:
    dim %= x.ndim + 1
    return reshape(x, (*x.shape[:dim], 1, *x.shape[dim:]))


@lowers("squeeze", "squeeze.dim", "squeeze.dims", "squeeze_.dim", "squeeze_.dims", "squeeze_")
def _squeeze(ctx: Any, x: Node, dim: Any = None) -> Node:
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    drop = {d % x.ndim for d in dims} if x.ndim else set()
    return reshape(x, [n for i, n in enumerate(x.shape) if i not in drop or n != 1])


@lowers("expand", "expand_copy")
def _expand(ctx: Any, x: Node, shape: Sequence[int], implicit: bool = False) -> Node:
    lead = len(shape) - x.ndim
    return expand(x, [x.shape[i - lead] if d == -1 else d for i, d in enumerate(shape)])


@lowers("permute", "permute_copy")
def _permute(ctx: Any, x: Node, dims: Sequence[int]) -> Node:
    return permute(x, dims)


@lowers("transpose.int", "swapaxes", "transpose_")
def _transpose(ctx: Any, x: Node, a: int, b: int) -> Node:
    if x.ndim == 0:
        return x
    perm = list(range(x.ndim))
    perm[a], perm[b] = perm[b], perm[a]
    return permute(x, perm)


@lowers("t", "t_", "numpy_T", "mT")
def _t(ctx: Any, x: Node) -> Node:
    return permute(x, [*range(x.ndim - 2), x.ndim - 1, x.ndim - 2]) if x.ndim >= 2 else x


def select(x: Node, dim: int, index: int) -> Node:
    """``x.select(dim, index)``: one entry of an axis, which is dropped."""
    dim %= x.ndim
    index %= x.shape[dim]
    if x.ndim == 1:
        return make("elem", x, index=index)
    piece = slice_axis(x, dim, index, index + 1)
    return reshape(piece, x.shape[:dim] + x.shape[dim + 1 :])


@lowers("select.int", "select_copy.int")
def _select(ctx: Any, x: Node, dim: int, index: int) -> Node:
    return select(x, dim, index)


def bounds(length: int, start: int | None, stop: int | None, step: int = 1) -> tuple[int, int]:
    """torch's slice bounds (negative, missing or beyond the end) as plain ones."""
    first, last, _ = slice(start, stop, step).indices(length)
    return first, max(first, last)


@lowers("slice.Tensor", "slice_copy.Tensor")
def _slice(
    ctx: Any, x: Node, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Node:
    dim %= x.ndim
    first, last = bounds(x.shape[dim], start, end, step)
    return slice_axis(x, dim, first, last, step)


@lowers("split.Tensor", "unsafe_split.Tensor", "split_copy.Tensor")
def _split(ctx: Any, x: Node, size: int, dim: int = 0) -> tuple[Node, ...]:
    dim %= x.ndim
    n = x.shape[dim]
    return tuple(slice_axis(x, dim, i, min(i + size, n)) for i in range(0, max(n, 1), size))


@lowers("split_with_sizes", "unsafe_split_with_sizes", "split_with_sizes_copy")
def _split_sizes(ctx: Any, x: Node, sizes: Sequence[int], dim: int = 0) -> tuple[Node, ...]:
    dim %= x.ndim
    stops = np.cumsum(sizes)
    return tuple(slice_axis(x, dim, int(b) - n, int(b)) for n, b in zip(sizes, stops, strict=True))


@lowers("unbind.int", "unbind_copy.int")
def _unbind(ctx: Any, x: Node, dim: int = 0) -> tuple[Node, ...]:
    return tuple(select(x, dim, i) for i in range(x.shape[dim]))


def _common(tensors: Sequence[Any]) -> list[Node]:
    nodes = [as_node(t) for t in tensors]
    kind = promote(*(n.kind for n in nodes))
    return [cast(n, kind) for n in nodes]


@lowers("cat")
def _cat(ctx: Any, tensors: Sequence[Any], dim: int = 0) -> Node:
    nodes = _common(tensors)
    # torch lets an empty vector stand beside anything
    nodes = [n for n in nodes if n.shape != (0,)] or nodes[:1]
    return cat(nodes, dim % nodes[0].ndim)


def stack(nodes: Sequence[Node], dim: int = 0) -> Node:
    """``torch.stack``: scalars are packed, arrays get a new axis and are joined."""
    if nodes[0].ndim == 0:
        return make("pack", *nodes, shape=(len(nodes),))
    dim %= nodes[0].ndim + 1
    return cat([reshape(n, (*n.shape[:dim], 1, *n.shape[dim:])) for n in nodes], dim)


@lowers("stack")
def _stack(ctx: Any, tensors: Sequence[Any], dim: int = 0) -> Node:
    return stack(_common(tensors), dim)


@lowers("flip")
def _flip(ctx: Any, x: Node, dims: Sequence[int]) -> Node:
    which = tuple(sorted(d % x.ndim for d in dims)) if x.ndim else ()
    return make("flip", x, dims=which) if which else x


@lowers("roll")
def _roll(ctx: Any, x: Node, shifts: Sequence[int], dims: Sequence[int] = ()) -> Node:
    if not dims:
        flat = reshape(x, (x.size,))
        return reshape(_roll(ctx, flat, shifts, (0,)), x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        dim %= x.ndim
        n = x.shape[dim]
        cut = (n - shift) % n if n else 0
        if cut:
            x = cat([slice_axis(x, dim, cut, n), slice_axis(x, dim, 0, cut)], dim)
    return x


@lowers("repeat")
def _repeat(ctx: Any, x: Node, repeats: Sequence[int]) -> Node:
    lead = len(repeats) - x.ndim
    shape = (1,) * lead + x.shape
    apart: list[int] = []
    wide: list[int] = []
    for d, r in zip(shape, repeats, strict=True):
        apart += [1, d]
        wide += [r, d]
    out = expand(reshape(x, apart), wide)
    return reshape(out, [d * r for d, r in zip(shape, repeats, strict=True)])


# ---- the adjoints and updates of slices


@lowers("select_backward")
def _select_backward(ctx: Any, grad: Node, sizes: Sequence[int], dim: int, index: int) -> Node:
    dim %= len(sizes)
    index %= sizes[dim]
    row = reshape(grad, (*sizes[:dim], 1, *sizes[dim + 1 :]))
    return pad_axis(row, dim, index, sizes[dim] - index - 1)


def spread(values: Node, dim: int, length: int, start: int, step: int) -> Node:
    """Zeros of ``length`` on an axis with ``values`` at start, start + step, ..."""
    count = values.shape[dim]
    if count == 0:
        shape = list(values.shape)
        shape[dim] = length
        return full(tuple(shape), 0.0, values.kind)
    last = start + (count - 1) * step
    return pad_axis(values, dim, start, length - last - 1, step - 1)


@lowers("slice_backward")
def _slice_backward(
    ctx: Any, grad: Node, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Node:
    dim %= len(sizes)
    first, _ = bounds(sizes[dim], start, end, step)
    return spread(grad, dim, sizes[dim], first, step)


def _axis_mask(x: Node, dim: int, where_true: np.ndarray) -> Node:
    shape = [1] * x.ndim
    shape[dim] = x.shape[dim]
    return const(np.ascontiguousarray(np.broadcast_to(where_true.reshape(shape), x.shape)))


@lowers("slice_scatter")
def _slice_scatter(
    ctx: Any,
    x: Node,
    source: Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Node:
    dim %= x.ndim
    n = x.shape[dim]
    first, last = bounds(n, start, end, step)
    source = cast(source, x.kind)
    if step == 1:
        parts = [slice_axis(x, dim, 0, first), source, slice_axis(x, dim, last, n)]
        return cat([p for p in parts if p.shape[dim]] or [x], dim)
    mask = np.zeros(n, bool)
    mask[first:last:step] = True
    return where(_axis_mask(x, dim, mask), spread(source, dim, n, first, step), x)


@lowers("select_scatter")
def _select_scatter(ctx: Any, x: Node, source: Node, dim: int, index: int) -> Node:
    dim %= x.ndim
    index %= x.shape[dim]
    row = reshape(source, (*x.shape[:dim], 1, *x.shape[dim + 1 :]))
    return _slice_scatter(ctx, x, row, dim, index, index + 1)


# ---- padding


@lowers("constant_pad_nd")
def _constant_pad(ctx: Any, x: Node, pad: Sequence[int], value: float = 0) -> Node:
    for i in range(len(pad) // 2):
        dim = x.ndim - 1 - i
        lo, hi = pad[2 * i], pad[2 * i + 1]
        x = slice_axis(x, dim, max(0, -lo), x.shape[dim] - max(0, -hi))
        lo, hi = max(0, lo), max(0, hi)
        if value == 0:
            x = pad_axis(x, dim, lo, hi)
            continue
        ends = []
        for width in (lo, hi):
            shape = list(x.shape)
            shape[dim] = width
            ends.append(full(tuple(shape), value, x.kind))
        x = cat([n for n in (ends[0], x, ends[1]) if n.shape[dim]], dim)
    return x


# ---- diagonals and windows


def _diagonal_span(rows: int, columns: int, offset: int) -> tuple[int, int]:
    """First flat index and length of a diagonal of a row-major matrix."""
    if offset >= 0:
        return offset, max(0, min(rows, columns - offset))
    return -offset * columns, max(0, min(rows + offset, columns))


def _to_back(ndim: int, dim1: int, dim2: int) -> list[int]:
    dim1, dim2 = dim1 % ndim, dim2 % ndim
    return [i for i in range(ndim) if i not in (dim1, dim2)] + [dim1, dim2]


@lowers("diagonal", "diagonal_copy")
def _diagonal(ctx: Any, x: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    x = permute(x, _to_back(x.ndim, dim1, dim2))
    rows, columns = x.shape[-2:]
    start, length = _diagonal_span(rows, columns, offset)
    flat = reshape(x, (*x.shape[:-2], rows * columns))
    stop = start + (length - 1) * (columns + 1) + 1 if length else start
    return slice_axis(flat, flat.ndim - 1, start, stop, columns + 1)


@lowers("diagonal_backward")
def _diagonal_backward(
    ctx: Any, grad: Node, sizes: Sequence[int], offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Node:
    order = _to_back(len(sizes), dim1, dim2)
    back = [sizes[i] for i in order]
    rows, columns = back[-2:]
    start, _ = _diagonal_span(rows, columns, offset)
    flat = spread(grad, grad.ndim - 1, rows * columns, start, columns + 1)
    return permute(reshape(flat, back), np.argsort(order).tolist())


@lowers("diagonal_scatter")
def _diagonal_scatter(
    ctx: Any, x: Node, source: Node, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Node:
    embedded = _diagonal_backward(ctx, cast(source, x.kind), x.shape, offset, dim1, dim2)
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask.diagonal(offset, dim1, dim2).fill_(True)
    return where(const(mask.numpy()), embedded, x)


@lowers("diag_embed")
def _diag_embed(ctx: Any, x: Node, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Node:
    ndim = x.ndim + 1
    n = x.shape[-1] + abs(offset)
    dim1, dim2 = dim1 % ndim, dim2 % ndim
    lead = iter(x.shape[:-1])
    sizes = [n if i in (dim1, dim2) else next(lead) for i in range(ndim)]
    return _diagonal_backward(ctx, x, sizes, offset, dim1, dim2)


def triangle(x: Node, lower: bool, diagonal: int = 0) -> Node:
    """The lower or upper triangle of the last two axes, zeros elsewhere."""
    mask = (np.tril if lower else np.triu)(np.ones(x.shape[-2:], bool), diagonal)
    inside = const(np.ascontiguousarray(np.broadcast_to(mask, x.shape)))
    return where(inside, x, cast(as_node(0), x.kind))


@lowers("tril")
def _tril(ctx: Any, x: Node, diagonal: int = 0) -> Node:
    return triangle(x, True, diagonal)


@lowers("triu")
def _triu(ctx: Any, x: Node, diagonal: int = 0) -> Node:
    return triangle(x, False, diagonal)


@lowers("trace")
def _trace(ctx: Any, x: Node) -> Node:
    return make("sum", _diagonal(ctx, x), dims=(0,))


@lowers("unfold", "unfold_copy")
def _unfold(ctx: Any, x: Node, dim: int, size: int, step: int) -> Node:
    dim %= x.ndim
    count = (x.shape[dim] - size) // step + 1
    return stack([slice_axis(x, dim, k, k + (count - 1) * step + 1, step) for k in range(size)], -1)


@lowers("unfold_backward")
def _unfold_backward(
    ctx: Any, grad: Node, sizes: Sequence[int], dim: int, size: int, step: int
) -> Node:
    dim %= len(sizes)
    total: Node | None = None
    for k in range(size):
        part = spread(select(grad, -1, k), dim, sizes[dim], k, step)
        total = part if total is None else make("add", total, part)
    if total is None:
        raise LoweringError("a window of length 0")
    return total
