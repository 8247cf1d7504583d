"""Arrays of scalar nodes: what :mod:`.scalarise` computes with in place of array nodes.

A :class:`Symbols` is an array whose elements are each a literal or a numbered scalar node. Moving
elements about is NumPy indexing on two small arrays, and arithmetic touches Python objects only
where an element is neither literal nor trivial, so that a Jacobian's thousands of structural zeros
cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pysciml.kernels.fold import DTYPES, SHAPE_OPS, apply, shape_op
from pysciml.kernels.graph import Shape


@dataclass(frozen=True)
class Symbols:
    """An array of elements, each a literal or a scalar node.

    Args:
        ids: number of each element's node; -1 where the element is a literal.
        vals: the literals; 1 where the element is a node.
        kind: kind of the elements.
    """

    ids: np.ndarray
    vals: np.ndarray
    kind: str

    @property
    def shape(self) -> Shape:
        return self.ids.shape

    @property
    def literal(self) -> bool:
        """Whether every element is a literal."""
        return bool((self.ids < 0).all())

    @property
    def nonzero(self) -> np.ndarray:
        """Where an element is not a literal zero."""
        return (self.ids >= 0) | (self.vals != 0)

    def literals(self) -> np.ndarray:
        """The literals, with zeros where the element is a node."""
        return np.where(self.ids < 0, self.vals, DTYPES[self.kind](0))

    def is_literal(self, value: Any) -> np.ndarray:
        """Where the element is this literal."""
        return (self.ids < 0) & (self.vals == value)

    def broadcast(self, shape: Shape) -> Symbols:
        return Symbols(
            np.broadcast_to(self.ids, shape), np.broadcast_to(self.vals, shape), self.kind
        )

    def flat(self) -> Symbols:
        return Symbols(self.ids.reshape(-1), self.vals.reshape(-1), self.kind)

    def __getitem__(self, index: Any) -> Symbols:
        return Symbols(np.asarray(self.ids[index]), np.asarray(self.vals[index]), self.kind)


def of_literal(value: np.ndarray, kind: str) -> Symbols:
    """An array of literals."""
    return Symbols(np.full(value.shape, -1, dtype=np.int64), np.asarray(value), kind)


def of_ids(ids: np.ndarray, kind: str) -> Symbols:
    """An array of nodes, by number."""
    return Symbols(ids, np.ones(ids.shape, dtype=DTYPES[kind]), kind)


def move(op: str, args: list[Symbols], attrs: dict[str, Any], shape: Shape) -> Symbols:
    """An operation that only moves elements (and pads with zeros)."""
    assert op in SHAPE_OPS
    # Numbers are shifted so that a padded zero, like every literal, comes out as -1.
    ids = shape_op(op, [a.ids + 1 for a in args], attrs, shape) - 1
    return Symbols(ids, shape_op(op, [a.vals for a in args], attrs, shape), args[0].kind)


@dataclass(frozen=True)
class Split:
    """An elementwise operation, taken apart: what is settled, and what has to be computed.

    Args:
        out: the result, complete except at ``where`` (flat positions).
        ids, vals: the arguments of each different computation, one row each.
        row: for each position of ``where``, its computation.
    """

    out: Symbols
    where: np.ndarray
    ids: np.ndarray
    vals: list[np.ndarray]
    row: np.ndarray


def split_elementwise(op: str, args: list[Symbols], shape: Shape, kind: str) -> Split:
    """Settle the literal and trivial elements of an elementwise operation; group the others."""
    flat = [a.broadcast(shape).flat() for a in args]
    vals = apply(op, [a.vals for a in flat], {}, flat[0].ids.shape, kind).copy()
    ids = np.full(vals.shape, -1, dtype=np.int64)
    todo = np.zeros(vals.shape, dtype=bool)
    for a in flat:
        todo |= a.ids >= 0

    def settle(mask: np.ndarray, source: Symbols | None) -> None:
        """Where ``mask``, the result is ``source``'s element (None: zero)."""
        if source is not None and source.kind != kind:
            return
        mask = mask & todo
        ids[mask] = -1 if source is None else source.ids[mask]
        vals[mask] = 0 if source is None else source.vals[mask]
        todo[mask] = False

    if op == "mul":
        settle(flat[0].is_literal(0) | flat[1].is_literal(0), None)
        settle(flat[0].is_literal(1), flat[1])
        settle(flat[1].is_literal(1), flat[0])
    elif op in ("add", "sub"):
        settle(flat[1].is_literal(0), flat[0])
        if op == "add":
            settle(flat[0].is_literal(0), flat[1])
    elif op == "div":
        settle(flat[0].is_literal(0), None)
        settle(flat[1].is_literal(1), flat[0])
    elif op == "where":
        settle(flat[0].is_literal(True), flat[1])
        settle(flat[0].is_literal(False), flat[2])
    elif op == "neg":
        settle(flat[0].is_literal(0), None)
    where = np.flatnonzero(todo)
    columns = [a.ids[where] for a in flat] + [_bits(a.vals[where]) for a in flat]
    table = np.stack(columns, axis=1) if len(where) else np.zeros((0, len(columns)), np.int64)
    _, first, row = np.unique(table, axis=0, return_index=True, return_inverse=True)
    rows = where[first]
    out = Symbols(ids, vals, kind)
    return Split(
        out,
        where,
        np.stack([a.ids[rows] for a in flat], axis=1),
        [a.vals[rows] for a in flat],
        row.reshape(-1),
    )


def _bits(vals: np.ndarray) -> np.ndarray:
    return vals.view(np.int64) if vals.dtype == np.float64 else vals.astype(np.int64)
