"""Simplifying rules for single elements: take, scatter, elem and pack."""

from __future__ import annotations

import numpy as np

from pysciml.kernels.graph import Node
from pysciml.kernels.rules import Maker, Rule, uniform
from pysciml.kernels.rules_shape import slice_by


def _take(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x, idx = args
    if idx.size == 0:
        return b.full(0, node.shape, node.kind)
    value = uniform(x)
    if value is not None:
        return b.full(value, node.shape, node.kind)
    if not idx.is_const:
        return None
    flat = idx.value.reshape(-1)
    step = int(flat[1] - flat[0]) if flat.size > 1 else 1
    if step == 0 and (flat == flat[0]).all():
        one = b.build("reshape", b.build("elem", x, index=int(flat[0])), shape=(1,) * node.ndim)
        return b.build("expand", one, shape=node.shape)
    if step != 0 and (np.diff(flat) == step).all():
        if step > 0:
            span = range(int(flat[0]), int(flat[-1]) + 1, step)
            return b.build("reshape", slice_by(b, x, [span]), shape=node.shape)
        span = range(int(flat[-1]), int(flat[0]) + 1, -step)
        return b.build(
            "reshape", b.build("flip", slice_by(b, x, [span]), dims=(0,)), shape=node.shape
        )
    return None


def _scatter_add(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    idx, vals = args
    if vals.size == 0 or uniform(vals) == 0:
        return b.full(0, node.shape, node.kind)
    if not idx.is_const:
        return None
    flat = idx.value.reshape(-1)
    step = int(flat[1] - flat[0]) if flat.size > 1 else 1
    if step > 0 and (np.diff(flat) == step).all():
        return b.build(
            "pad",
            b.build("reshape", vals, shape=(flat.size,)),
            lo=(int(flat[0]),),
            hi=(node.size - 1 - int(flat[-1]),),
            interior=(step - 1,),
        )
    return None


def _scatter_set(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    base, idx, vals = args
    if idx.size == 0:
        return base
    if not idx.is_const:
        return None
    flat = idx.value.reshape(-1)
    if (np.diff(flat) == 1).all():
        lo, hi = int(flat[0]), int(flat[-1]) + 1
        vals = b.build("reshape", vals, shape=(flat.size,), kind=vals.kind)
        if vals.kind != node.kind:
            vals = b.build("cast", vals, kind=node.kind)
        parts = []
        if lo > 0:
            parts.append(slice_by(b, base, [range(0, lo)]))
        parts.append(vals)
        if hi < base.size:
            parts.append(slice_by(b, base, [range(hi, base.size)]))
        return b.build("cat", *parts, dim=0)
    return None


def _elem(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    """An element, looked up through everything that only moves elements."""
    x, index = args[0], node.attr("index")
    source, at = x, index
    while True:
        if source.shape == ():
            return source
        value = uniform(source)
        if value is not None:
            return b.scalar(value, node.kind)
        if source.is_const:
            return b.scalar(source.value.reshape(-1)[at], node.kind)
        if source.op == "pack":
            return source.args[at]
        if source.op == "reshape":
            source = source.args[0]
            continue
        if source.op not in ("permute", "expand", "flip", "slice", "cat", "pad"):
            break
        step = _through(source, np.unravel_index(at, source.shape))
        if step is None:
            return b.scalar(0, node.kind)
        source, position = step
        at = int(np.ravel_multi_index(position, source.shape)) if position else 0
    return b.build("elem", source, index=int(at)) if source is not x else None


def _through(x: Node, position: tuple[np.intp, ...]) -> tuple[Node, tuple[int, ...]] | None:
    """Where the element at ``position`` of a moving operation comes from; None: a padding zero."""
    where = [int(i) for i in position]
    source = x.args[0]
    if x.op == "permute":
        perm = x.attr("perm")
        return source, tuple(where[perm.index(i)] for i in range(len(perm)))
    if x.op == "expand":
        return source, tuple(0 if n == 1 else i for n, i in zip(source.shape, where, strict=True))
    if x.op == "flip":
        dims = x.attr("dims")
        return source, tuple(
            n - 1 - i if d in dims else i
            for d, (n, i) in enumerate(zip(source.shape, where, strict=True))
        )
    if x.op == "slice":
        spans = zip(where, x.attr("starts"), x.attr("steps"), strict=True)
        return source, tuple(start + i * step for i, start, step in spans)
    if x.op == "cat":
        dim = x.attr("dim")
        for a in x.args:
            if where[dim] < a.shape[dim]:
                return a, tuple(where)
            where[dim] -= a.shape[dim]
        raise IndexError(x)
    inner = []
    for i, n, lo, gap in zip(where, source.shape, x.attr("lo"), x.attr("interior"), strict=True):
        j, rest = divmod(i - lo, gap + 1)
        if i < lo or rest or j >= n:
            return None
        inner.append(j)
    return source, tuple(inner)


def _pack(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    """A pack of neighbouring elements of one array is a slice of it."""
    if node.shape == ():
        return args[0]
    first = args[0]
    if first.op != "elem" or len(args) < 2:
        return b.build("reshape", first, shape=node.shape) if len(args) == 1 else None
    source, start = first.args[0], first.attr("index")
    for i, a in enumerate(args):
        if a.op != "elem" or a.args[0] is not source or a.attr("index") != start + i:
            return None
    if len(args) == source.size:
        return b.build("reshape", source, shape=node.shape)
    flat = b.build("reshape", source, shape=(source.size,))
    part = slice_by(b, flat, [range(start, start + len(args))])
    return b.build("reshape", part, shape=node.shape)


RULES: dict[str, Rule] = {
    "take": _take,
    "scatter_add": _scatter_add,
    "scatter_set": _scatter_set,
    "elem": _elem,
    "pack": _pack,
}
