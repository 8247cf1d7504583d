"""Simplifying rules for operations that move elements: views, cat, pad, take, pack and elem."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pysciml.kernels.graph import Node, Shape
from pysciml.kernels.rules import Maker, Rule, uniform


def _reshape(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    (x,) = args
    if x.shape == node.shape:
        return x
    value = uniform(x)
    if value is not None:
        return b.full(value, node.shape, node.kind)
    if x.op == "reshape":
        return b.build("reshape", x.args[0], shape=node.shape)
    if x.op == "pack":
        return b.build("pack", *x.args, shape=node.shape, kind=node.kind)
    if x.size == 1 and node.shape == ():
        return b.build("elem", x, index=0)
    if x.op == "elem" and x.args[0].size == 1:
        return b.build("reshape", x.args[0], shape=node.shape)
    if x.op == "expand" and x.args[0].size == 1:
        one = b.build("reshape", x.args[0], shape=(1,) * len(node.shape))
        return b.build("expand", one, shape=node.shape)
    return None


def _permute(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    (x,) = args
    perm = node.attr("perm")
    if perm == tuple(range(x.ndim)):
        return x
    value = uniform(x)
    if value is not None:
        return b.full(value, node.shape, node.kind)
    if x.op == "permute":
        inner = x.attr("perm")
        return b.build("permute", x.args[0], perm=tuple(inner[i] for i in perm))
    long_axes = [i for i in perm if x.shape[i] != 1]
    if long_axes == sorted(long_axes):  # only axes of length 1 move
        return b.build("reshape", x, shape=node.shape)
    if x.op == "expand":
        return b.build("expand", b.build("permute", x.args[0], perm=perm), shape=node.shape)
    return None


def _expand(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    (x,) = args
    if x.shape == node.shape:
        return x
    if x.op == "expand":
        return b.build("expand", x.args[0], shape=node.shape)
    return None


def _flip(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    (x,) = args
    dims = tuple(d for d in node.attr("dims") if x.shape[d] > 1)
    if x.op == "flip":
        both = set(dims) ^ set(x.attr("dims"))
        return b.build("flip", x.args[0], dims=tuple(sorted(both)))
    if dims == ():
        return x
    return b.build("flip", x, dims=dims) if dims != node.attr("dims") else None


def _slice(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    (x,) = args
    ranges = [
        range(*span)
        for span in zip(node.attr("starts"), node.attr("stops"), node.attr("steps"), strict=True)
    ]
    if node.shape == x.shape:
        return x
    value = uniform(x)
    if value is not None or node.size == 0:
        return b.full(value or 0, node.shape, node.kind)
    if x.op == "slice":
        spans = zip(x.attr("starts"), x.attr("stops"), x.attr("steps"), strict=True)
        inner = [range(*s)[r.start : r.stop : r.step] for s, r in zip(spans, ranges, strict=True)]
        return _slice_by(b, x.args[0], inner)
    if x.op == "expand":
        source = x.args[0]
        inner = [range(1) if n == 1 else r for n, r in zip(source.shape, ranges, strict=True)]
        return b.build("expand", _slice_by(b, source, inner), shape=node.shape)
    if x.op == "permute":
        perm = x.attr("perm")
        inner = [ranges[perm.index(i)] for i in range(len(perm))]
        return b.build("permute", _slice_by(b, x.args[0], inner), perm=perm)
    if x.op == "cat":
        return _slice_of_cat(b, node, x, ranges)
    if x.op == "pad" and not any(x.attr("interior")):
        return _slice_of_pad(b, node, x, ranges)
    if x.op == "pack":
        kept = np.arange(x.size).reshape(x.shape)[tuple(_as_slice(r) for r in ranges)]
        parts = [x.args[i] for i in kept.reshape(-1)]
        return b.build("pack", *parts, shape=node.shape, kind=node.kind)
    clean = _attrs_of(ranges)
    if any(node.attr(k) != v for k, v in clean.items()):
        return b.build("slice", x, **clean)
    return None


def _as_slice(r: range) -> slice:
    return slice(r.start, r.stop, r.step)


def _attrs_of(ranges: list[range]) -> dict[str, Shape]:
    """Slice attributes in their one normal form: the last element taken sets the stop."""
    starts = tuple(r.start for r in ranges)
    stops = tuple(r[-1] + 1 if len(r) else r.start for r in ranges)
    steps = tuple(r.step if len(r) > 1 else 1 for r in ranges)
    return {"starts": starts, "stops": stops, "steps": steps}


def _slice_by(b: Maker, x: Node, ranges: list[range]) -> Node:
    return b.build("slice", x, **_attrs_of(ranges))


def _slice_of_cat(b: Maker, node: Node, x: Node, ranges: list[range]) -> Node | None:
    """A slice that keeps only some of a cat's arguments, or parts of them."""
    dim = x.attr("dim")
    r = ranges[dim]
    if r.step != 1:
        return None
    parts = []
    start = 0
    for a in x.args:
        stop = start + a.shape[dim]
        lo, hi = max(r.start, start), min(r.stop, stop)
        if lo < hi:
            inner = list(ranges)
            inner[dim] = range(lo - start, hi - start)
            parts.append(_slice_by(b, a, inner))
        start = stop
    return b.build("cat", *parts, dim=dim)


def _slice_of_pad(b: Maker, node: Node, x: Node, ranges: list[range]) -> Node | None:
    source = x.args[0]
    inner = []
    for n, lo, r in zip(source.shape, x.attr("lo"), ranges, strict=True):
        shifted = range(r.start - lo, r.stop - lo, r.step)
        inside = [i for i in (shifted[0], shifted[-1]) if 0 <= i < n]
        if len(inside) == 2:
            inner.append(shifted)
        elif shifted[-1] < 0 or shifted[0] >= n:
            return b.full(0, node.shape, node.kind)
        else:
            return None
    return _slice_by(b, source, inner)


def _cat(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    dim = node.attr("dim")
    if len(args) == 1:
        return args[0]
    parts: list[Node] = []
    for a in args:
        if a.shape[dim] == 0:
            continue
        parts.extend(a.args if a.op == "cat" and a.attr("dim") == dim else (a,))
    if not parts:
        return args[0]
    merged: list[Node] = []
    for a in parts:
        joined = _join(b, merged[-1], a, dim) if merged else None
        if joined is None:
            merged.append(a)
        else:
            merged[-1] = joined
    if len(merged) == len(args):
        return None
    return b.build("cat", *merged, dim=dim)


def _join(b: Maker, x: Node, y: Node, dim: int) -> Node | None:
    """Two neighbours of a cat as one value: literals, or adjoining slices of one array."""
    if x.is_const and y.is_const:
        return b.build("cat", x, y, dim=dim)
    vx, vy = uniform(x), uniform(y)
    if vx is not None and vx == vy:
        shape = tuple(n + y.shape[dim] if d == dim else n for d, n in enumerate(x.shape))
        return b.full(vx, shape, x.kind)
    if x.op == y.op == "slice" and x.args[0] is y.args[0]:
        source = x.args[0]
        ranges: list[range] = []
        for d in range(x.ndim):
            rx, ry = (
                range(n.attr("starts")[d], n.attr("stops")[d], n.attr("steps")[d]) for n in (x, y)
            )
            if d != dim:
                if rx != ry:
                    return None
                ranges.append(rx)
            elif rx.stop == ry.start and rx.step == ry.step == 1:
                ranges.append(range(rx.start, ry.stop))
            else:
                return None
        return _slice_by(b, source, ranges)
    return None


def _pad(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    (x,) = args
    if x.shape == node.shape:
        return x
    if uniform(x) == 0 or x.size == 0:
        return b.full(0, node.shape, node.kind)
    lo, hi, interior = node.attr("lo"), node.attr("hi"), node.attr("interior")
    if x.op == "pad" and not any(interior) and not any(x.attr("interior")):
        return b.build(
            "pad",
            x.args[0],
            lo=tuple(i + j for i, j in zip(lo, x.attr("lo"), strict=True)),
            hi=tuple(i + j for i, j in zip(hi, x.attr("hi"), strict=True)),
            interior=interior,
        )
    if x.op == "neg":
        return b.build("neg", b.build("pad", x.args[0], lo=lo, hi=hi, interior=interior))
    return None


def pieces(x: Node) -> tuple[int, list[tuple[int, Node | None]]] | None:
    """A pad or cat as (axis, [(length, piece or None for zeros), ...]); None if it is neither."""
    if x.op == "cat":
        dim = x.attr("dim")
        return dim, [(a.shape[dim], None if uniform(a) == 0 else a) for a in x.args]
    if x.op == "pad" and not any(x.attr("interior")):
        lo, hi = x.attr("lo"), x.attr("hi")
        axes = [d for d in range(x.ndim) if lo[d] or hi[d]]
        if len(axes) == 1:
            d = axes[0]
            parts = [(lo[d], None), (x.args[0].shape[d], x.args[0]), (hi[d], None)]
            return d, [p for p in parts if p[0]]
    return None


def add_pieces(b: Maker, x: Node, y: Node) -> Node | None:
    """x + y where both are zero outside pieces that do not overlap, or that match: one cat.

    This is how a sum of the gradients of slices becomes their concatenation.
    """
    px, py = pieces(x), pieces(y)
    if px is None or py is None or px[0] != py[0]:
        return None
    dim = px[0]
    if not any(p is None for _, p in px[1]) or not any(p is None for _, p in py[1]):
        return None
    cuts = sorted({0, *_ends(px[1]), *_ends(py[1])})
    out: list[Node] = []
    for start, stop in pairwise(cuts):
        a, b_ = _piece_at(px[1], start, stop), _piece_at(py[1], start, stop)
        if isinstance(a, str) or isinstance(b_, str):
            return None  # a piece would be cut in two
        if a is not None and b_ is not None:
            out.append(b.build("add", a, b_))
        elif a is not None or b_ is not None:
            out.append(a if a is not None else b_)  # type: ignore[arg-type]
        else:
            shape = tuple(stop - start if d == dim else n for d, n in enumerate(x.shape))
            out.append(b.full(0, shape, x.kind))
    return b.build("cat", *out, dim=dim)


def _ends(parts: list[tuple[int, Node | None]]) -> list[int]:
    return [int(i) for i in np.cumsum([n for n, _ in parts])]


def _piece_at(parts: list[tuple[int, Node | None]], start: int, stop: int) -> Node | None | str:
    at = 0
    for n, piece in parts:
        if at <= start and stop <= at + n:
            if piece is None or (at, at + n) == (start, stop):
                return piece
            return "cut"
        at += n
    return "cut"


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
            return b.build("reshape", _slice_by(b, x, [span]), shape=node.shape)
        span = range(int(flat[-1]), int(flat[0]) + 1, -step)
        return b.build(
            "reshape", b.build("flip", _slice_by(b, x, [span]), dims=(0,)), shape=node.shape
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
            parts.append(_slice_by(b, base, [range(0, lo)]))
        parts.append(vals)
        if hi < base.size:
            parts.append(_slice_by(b, base, [range(hi, base.size)]))
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
    spans = zip(where, source.shape, x.attr("lo"), x.attr("interior"), strict=True)
    for i, n, lo, gap in spans:
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
    part = _slice_by(b, flat, [range(start, start + len(args))])
    return b.build("reshape", part, shape=node.shape)


RULES: dict[str, Rule] = {
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "flip": _flip,
    "slice": _slice,
    "cat": _cat,
    "pad": _pad,
    "take": _take,
    "scatter_add": _scatter_add,
    "scatter_set": _scatter_set,
    "elem": _elem,
    "pack": _pack,
}
