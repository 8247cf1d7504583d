"""Simplifying rules for operations that move whole axes: views, cat and pad."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from pysciml.kernels.graph import Node
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
        return slice_by(b, x.args[0], inner)
    if x.op == "expand":
        source = x.args[0]
        inner = [range(1) if n == 1 else r for n, r in zip(source.shape, ranges, strict=True)]
        return b.build("expand", slice_by(b, source, inner), shape=node.shape)
    if x.op == "permute":
        perm = x.attr("perm")
        inner = [ranges[perm.index(i)] for i in range(len(perm))]
        return b.build("permute", slice_by(b, x.args[0], inner), perm=perm)
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


def _attrs_of(ranges: list[range]) -> dict[str, Any]:
    """Slice attributes in their one normal form: the last element taken sets the stop."""
    starts = tuple(r.start for r in ranges)
    stops = tuple(r[-1] + 1 if len(r) else r.start for r in ranges)
    steps = tuple(r.step if len(r) > 1 else 1 for r in ranges)
    return {"starts": starts, "stops": stops, "steps": steps}


def slice_by(b: Maker, x: Node, ranges: list[range]) -> Node:
    """The part of ``x`` that a range along each axis takes."""
    return b.build("slice", x, **_attrs_of(ranges))


def _slice_of_cat(b: Maker, node: Node, x: Node, ranges: list[range]) -> Node | None:
    """A slice that lies within one of a cat's arguments. Across several, it stays a view."""
    dim = x.attr("dim")
    r = ranges[dim]
    start = 0
    for a in x.args:
        stop = start + a.shape[dim]
        if start <= r[0] and r[-1] < stop:
            inner = list(ranges)
            inner[dim] = range(r.start - start, r[-1] + 1 - start, r.step)
            return slice_by(b, a, inner)
        start = stop
    return None


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
    return slice_by(b, source, inner)


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
        return slice_by(b, source, ranges)
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


RULES: dict[str, Rule] = {
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "flip": _flip,
    "slice": _slice,
    "cat": _cat,
    "pad": _pad,
}
