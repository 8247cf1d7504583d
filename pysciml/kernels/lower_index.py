"""Lowerings of indexing by tables: index, gather, scatter, searchsorted, sort.

All of them become ``take`` or ``scatter_*`` on a flattened array with flat positions, which are
literals wherever the index is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pysciml.kernels.graph import Node, Shape, const, make
from pysciml.kernels.lower_pointwise import where
from pysciml.kernels.lower_shape import spread
from pysciml.kernels.lowering import (
    LoweringError,
    as_node,
    broadcast_shape,
    cast,
    elementwise,
    expand,
    full,
    literal,
    lowers,
    permute,
    reshape,
    scalar,
    slice_axis,
)

_NEVER_NEGATIVE = {"searchsorted", "argmax", "argmin", "argsort"}


def _nonnegative(index: Node) -> bool:
    """Whether an index is plainly never negative."""
    if index.op in _NEVER_NEGATIVE:
        return True
    if index.op in ("expand", "reshape", "slice", "permute", "elem"):
        return _nonnegative(index.args[0])
    if index.op in ("maximum", "minimum", "add", "mul"):
        known = []
        for a in index.args:
            value = literal(a)
            known.append(bool(np.all(value >= 0)) if value is not None else _nonnegative(a))
        return any(known) if index.op == "maximum" else all(known)
    return False


def _wrapped(index: Node, length: int) -> Node:
    """An index with negative entries counted from the end."""
    value = literal(index)
    if value is not None:
        if value.size and (value.min() < -length or value.max() >= length):
            raise LoweringError(f"an index is outside an axis of length {length}")
        return const(np.where(value < 0, value + length, value))
    if _nonnegative(index):
        return index
    n = scalar(length, "i")
    return where(elementwise("lt", index, 0), elementwise("add", index, n), index)


def _combine(parts: Sequence[tuple[Node, int]], offsets: np.ndarray, shape: Shape) -> Node:
    """Flat positions: offsets + sum of index * stride, of one shape."""
    fixed = np.broadcast_to(offsets, shape)
    moving: Node | None = None
    for index, stride in parts:
        value = literal(index)
        if value is not None:
            fixed = fixed + np.broadcast_to(value, shape) * stride
        else:
            term = elementwise("mul", expand(index, shape), stride)
            moving = term if moving is None else elementwise("add", moving, term)
    table = const(np.ascontiguousarray(fixed).astype(np.int64))
    if moving is None:
        return table
    return elementwise("add", moving, table) if np.any(fixed) else moving


def take(x: Node, flat: Node) -> Node:
    """``x.reshape(-1)[flat]``, as a slice where the positions are evenly spaced."""
    value = flat.value if flat.is_const else None
    source = reshape(x, (x.size,))
    if value is not None and value.size:
        positions = value.reshape(-1)
        if positions.size == 1:
            return reshape(make("elem", source, index=int(positions[0])), flat.shape)
        step = int(positions[1] - positions[0])
        if step > 0 and np.all(np.diff(positions) == step):
            start, stop = int(positions[0]), int(positions[-1]) + 1
            return reshape(slice_axis(source, 0, start, stop, step), flat.shape)
    return make("take", source, flat)


def scatter_add(flat: Node, values: Node, size: int) -> Node:
    """Zeros of ``size`` with values added at flat positions."""
    if flat.is_const and flat.size:
        positions = flat.value.reshape(-1)
        steps = np.diff(positions)
        if positions.size == 1 or (steps[0] > 0 and np.all(steps == steps[0])):
            step = int(steps[0]) if positions.size > 1 else 1
            return spread(reshape(values, (values.size,)), 0, size, int(positions[0]), step)
    return make("scatter_add", flat, values, size=size)


class _Indexed:
    """``x[i, :, j]`` as flat positions into ``x`` with its indexed axes moved to the front."""

    def __init__(self, x: Node, indices: Sequence[Node | None]) -> None:
        entries: list[Node | None] = []
        for index in indices:
            if index is not None and index.kind == "b":
                mask = literal(index)
                if mask is None:
                    raise LoweringError(
                        "a boolean mask that depends on the inputs gives a result whose shape "
                        "changes; use torch.where with a fixed shape"
                    )
                entries += [const(i) for i in np.nonzero(mask)]
            else:
                entries.append(index)
        entries += [None] * (x.ndim - len(entries))
        which = [i for i, e in enumerate(entries) if e is not None]
        found = [e for e in entries if e is not None]
        rest = [i for i in range(x.ndim) if i not in which]
        self.order = which + rest
        self.moved = permute(x, self.order)
        block = broadcast_shape(*(e.shape for e in found))
        self.block = block
        self.rest = tuple(x.shape[i] for i in rest)
        n_rest = math.prod(self.rest)
        parts = []
        stride = n_rest
        for axis, entry in zip(reversed(which), reversed(found), strict=True):
            fitted = _wrapped(entry, x.shape[axis])
            fitted = reshape(expand(fitted, block), block + (1,) * len(rest))
            parts.append((fitted, stride))
            stride *= x.shape[axis]
        offsets = np.arange(n_rest).reshape((1,) * len(block) + self.rest)
        self.flat = _combine(parts, offsets, block + self.rest)
        # torch puts the block where the indexed axes were if they are adjacent, else first
        adjacent = which == list(range(which[0], which[0] + len(which)))
        lead = which[0] if adjacent else 0
        nb = len(block)
        # result axis -> axis of (block, rest)
        self.result = [*range(nb, nb + lead), *range(nb), *range(nb + lead, nb + len(rest))]

    @property
    def result_shape(self) -> Shape:
        shape = self.block + self.rest
        return tuple(shape[i] for i in self.result)

    def to_block_first(self, values: Node) -> Node:
        values = expand(values, self.result_shape)
        return permute(values, np.argsort(self.result).tolist())

    def restore(self, flat: Node) -> Node:
        moved = reshape(flat, self.moved.shape)
        return permute(moved, np.argsort(self.order).tolist())


@lowers("index.Tensor", "_unsafe_index.Tensor")
def _index(ctx: Any, x: Node, indices: Sequence[Any]) -> Node:
    where_ = _Indexed(x, [None if i is None else as_node(i) for i in indices])
    return permute(take(where_.moved, where_.flat), where_.result)


@lowers("index_put", "_unsafe_index_put", "_index_put_impl")
def _index_put(
    ctx: Any, x: Node, indices: Sequence[Any], values: Node, accumulate: bool = False, *_: Any
) -> Node:
    nodes = [None if i is None else as_node(i) for i in indices]
    values = cast(values, x.kind)
    first = nodes[0]
    if len(nodes) == 1 and first is not None and first.kind == "b" and literal(first) is None:
        shape = first.shape + (1,) * (x.ndim - first.ndim)
        if values.ndim > x.ndim - first.ndim and values.size != 1:
            raise LoweringError(
                "assigning an array through a boolean mask that depends on the inputs; "
                "use torch.where"
            )
        if values.size == 1:
            values = reshape(values, ())
        mask = expand(reshape(first, shape), x.shape)
        new = elementwise("add", x, values) if accumulate else expand(values, x.shape)
        return where(mask, new, x)
    at = _Indexed(x, nodes)
    values = at.to_block_first(values)
    base = reshape(at.moved, (x.size,))
    if accumulate:
        out = elementwise("add", base, scatter_add(at.flat, values, x.size))
    else:
        out = make("scatter_set", base, at.flat, values)
    return at.restore(out)


@lowers("index_select")
def _index_select(ctx: Any, x: Node, dim: int, index: Node) -> Node:
    if x.ndim == 0:
        return x
    index = reshape(index, (index.size,))
    return _index(ctx, x, [None] * (dim % x.ndim) + [index])


@lowers("index_add")
def _index_add(ctx: Any, x: Node, dim: int, index: Node, source: Node, alpha: Any = 1) -> Node:
    if alpha != 1:
        source = elementwise("mul", source, alpha)
    return _index_put(ctx, x, [None] * (dim % x.ndim) + [index], source, True)


@lowers("index_copy")
def _index_copy(ctx: Any, x: Node, dim: int, index: Node, source: Node) -> Node:
    return _index_put(ctx, x, [None] * (dim % x.ndim) + [index], source)


@lowers("index_fill.int_Scalar", "index_fill.int_Tensor")
def _index_fill(ctx: Any, x: Node, dim: int, index: Node, value: Any) -> Node:
    return _index_put(ctx, x, [None] * (dim % x.ndim) + [index], as_node(value))


@lowers("take")
def _take(ctx: Any, x: Node, index: Node) -> Node:
    return take(x, _wrapped(index, x.size))


@lowers("put")
def _put(ctx: Any, x: Node, index: Node, source: Node, accumulate: bool = False) -> Node:
    flat = reshape(x, (x.size,))
    out = _index_put(
        ctx, flat, [reshape(index, (index.size,))], reshape(source, (index.size,)), accumulate
    )
    return reshape(out, x.shape)


@lowers("embedding")
def _embedding(ctx: Any, weight: Node, index: Node, *_: Any) -> Node:
    return _index(ctx, weight, [index])


@lowers("embedding_dense_backward")
def _embedding_backward(
    ctx: Any, grad: Node, index: Node, count: int, padding_idx: int, scale: bool
) -> Node:
    if padding_idx >= 0 or scale:
        raise LoweringError("embedding with padding_idx or scale_grad_by_freq")
    zeros = full((count, grad.shape[-1]), 0.0)
    return _index_put(ctx, zeros, [index], grad, True)


def _positions(x: Node, dim: int, index: Node) -> Node:
    """Flat positions in ``x`` for gather and scatter along one axis."""
    strides = [math.prod(x.shape[i + 1 :]) for i in range(x.ndim)]
    offsets = np.zeros(index.shape, np.int64)
    for axis in range(x.ndim):
        if axis != dim:
            line = np.arange(index.shape[axis]) * strides[axis]
            offsets = offsets + line.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return _combine([(_wrapped(index, x.shape[dim]), strides[dim])], offsets, index.shape)


def _vectors(*nodes: Node) -> list[Node]:
    return [reshape(n, (1,)) if n.ndim == 0 else n for n in nodes]


@lowers("gather")
def _gather(ctx: Any, x: Node, dim: int, index: Node, sparse_grad: bool = False) -> Node:
    shape = index.shape
    x, index = _vectors(x, index)
    return reshape(take(x, _positions(x, dim % x.ndim, index)), shape)


def _cut(source: Node, index: Node) -> Node:
    """torch lets the source be larger than the index."""
    for axis, n in enumerate(index.shape):
        source = slice_axis(source, axis, 0, n)
    return source


@lowers("scatter.src", "scatter.value")
def _scatter(ctx: Any, x: Node, dim: int, index: Node, source: Any) -> Node:
    shape = x.shape
    values = cast(as_node(source), x.kind)
    x, index = _vectors(x, index)
    if values.ndim == 0:
        values = expand(reshape(values, (1,) * index.ndim), index.shape)
    values = _cut(values, index)
    flat = _positions(x, dim % x.ndim, index)
    return reshape(make("scatter_set", reshape(x, (x.size,)), flat, values), shape)


@lowers("scatter_add")
def _scatter_add(ctx: Any, x: Node, dim: int, index: Node, source: Node) -> Node:
    shape = x.shape
    x, index, source = _vectors(x, index, source)
    flat = _positions(x, dim % x.ndim, index)
    added = scatter_add(flat, _cut(cast(source, x.kind), index), x.size)
    return (
        elementwise("add", x, reshape(added, x.shape))
        if x.shape == shape
        else reshape(elementwise("add", x, reshape(added, x.shape)), shape)
    )


@lowers("masked_select", "nonzero", "unique_dim", "_unique2", "masked_scatter")
def _changing_shape(ctx: Any, *_: Any, **__: Any) -> Node:
    raise LoweringError("its result's shape depends on values; use torch.where with a fixed shape")


# ---- searching and sorting


@lowers("searchsorted.Tensor", "searchsorted.Scalar")
def _searchsorted(
    ctx: Any,
    table: Node,
    values: Any,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Node | None = None,
) -> Node:
    if sorter is not None:
        raise LoweringError("searchsorted with sorter=")
    values = cast(as_node(values), table.kind)
    right = right or side == "right"
    if table.ndim == 1:
        return make("searchsorted", table, values, right=right)
    # row by row: count the entries before the value
    rows = reshape(table, (*table.shape[:-1], 1, table.shape[-1]))
    columns = reshape(values, (*values.shape, 1))
    before = elementwise("le" if right else "lt", rows, columns)
    return make("sum", cast(before, "i"), dims=(before.ndim - 1,))


@lowers("bucketize.Tensor", "bucketize.Scalar")
def _bucketize(
    ctx: Any, values: Any, table: Node, out_int32: bool = False, right: bool = False
) -> Node:
    return _searchsorted(ctx, table, values, right=right)


@lowers("sort", "sort.stable")
def _sort(
    ctx: Any, x: Node, *args: Any, dim: int = -1, descending: bool = False, stable: Any = None
) -> tuple[Node, Node]:
    if args:
        dim, descending = (*args, descending)[:2]
    if x.ndim == 0:
        return x, scalar(0, "i")
    dim %= x.ndim
    values = make("sort", x, dim=dim, descending=descending)
    return values, make("argsort", x, dim=dim, descending=descending)


@lowers("argsort", "argsort.stable")
def _argsort(ctx: Any, x: Node, *args: Any, **kwargs: Any) -> Node:
    return _sort(ctx, x, *args, **kwargs)[1]


@lowers("topk")
def _topk(
    ctx: Any,
    x: Node,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> tuple[Node, Node]:
    dim %= x.ndim
    values, order = _sort(ctx, x, dim=dim, descending=largest)
    return slice_axis(values, dim, 0, k), slice_axis(order, dim, 0, k)


def _ranked(x: Node, rank: int, dim: int, keepdim: bool) -> tuple[Node, Node]:
    dim %= x.ndim
    values, order = _sort(None, x, dim=dim)
    parts = [slice_axis(n, dim, rank, rank + 1) for n in (values, order)]
    if not keepdim:
        parts = [reshape(p, p.shape[:dim] + p.shape[dim + 1 :]) for p in parts]
    return parts[0], parts[1]


@lowers("median.dim", "nanmedian.dim")
def _median_dim(ctx: Any, x: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    return _ranked(x, (x.shape[dim] - 1) // 2, dim, keepdim)


@lowers("median")
def _median(ctx: Any, x: Node) -> Node:
    flat = reshape(x, (x.size,))
    return _ranked(flat, (x.size - 1) // 2, 0, False)[0]


@lowers("kthvalue")
def _kthvalue(ctx: Any, x: Node, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Node, Node]:
    return _ranked(x, k - 1, dim, keepdim)


@lowers("value_selecting_reduction_backward")
def _value_selecting(
    ctx: Any, grad: Node, dim: int, indices: Node, sizes: Sequence[int], keepdim: bool
) -> Node:
    if not keepdim and sizes:
        shape = list(grad.shape)
        shape.insert(dim % len(sizes), 1)
        grad, indices = reshape(grad, shape), reshape(indices, shape)
    return _scatter_add(ctx, full(tuple(sizes), 0.0), dim, indices, grad)
