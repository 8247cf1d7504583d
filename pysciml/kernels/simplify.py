"""Simplify a kernel graph: fold constants, remove identities, share equal nodes, drop dead ones.

A graph is rebuilt from its inputs upwards through a :class:`Builder`, whose :meth:`Builder.build`
looks at an operation and its (already simplified) arguments and returns the simplest node with
that value. Equal nodes come out as one object; what no output needs is left behind.

The arithmetic is kept as written, up to rounding: sums are not reassociated. Two liberties are
taken. ``x - x`` and ``0 * x`` are zero even where ``x`` is not finite (``strong_zeros``), because
a Jacobian's structural zeros must not turn into arithmetic; and the sign of a zero may change.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pysciml.kernels import rules_algebra, rules_index, rules_shape
from pysciml.kernels.fold import DTYPES, apply
from pysciml.kernels.graph import ELEMENTWISE, Graph, Node, Shape, const, make
from pysciml.kernels.rules import uniform

_COMMUTATIVE = frozenset("add mul maximum minimum and or xor eq ne".split())
#: Results larger than this are not folded into literals unless an argument is as large.
FOLD_LIMIT = 4096
_RULES = {**rules_algebra.RULES, **rules_shape.RULES, **rules_index.RULES}


class Builder:
    """Makes simplified, shared nodes.

    Args:
        strong_zeros: whether ``0 * x`` and ``x - x`` are zero for every ``x``.
    """

    def __init__(self, *, strong_zeros: bool = True) -> None:
        self.strong_zeros = strong_zeros
        self._table: dict[tuple[Any, ...], Node] = {}
        self._serial: dict[int, int] = {}
        self._scalars: dict[tuple[str, Any, str], Node] = {}

    def intern(self, node: Node) -> Node:
        """The one node with this operation, arguments and attributes."""
        found = self._table.setdefault(node.key(), node)
        if found is node:
            self._serial[id(node)] = len(self._serial)
        return found

    def scalar(self, value: Any, kind: str = "f") -> Node:
        """A literal of shape ()."""
        value = DTYPES[kind](value)
        key = (kind, value.tobytes(), "")
        if key not in self._scalars:
            self._scalars[key] = self.intern(const(value))
        return self._scalars[key]

    def literal(self, value: np.ndarray) -> Node:
        """A literal array."""
        return self.intern(const(value))

    def full(self, value: Any, shape: Shape, kind: str = "f") -> Node:
        """An array of one value: a literal, or a literal expanded where that would be large."""
        if shape == ():
            return self.scalar(value, kind)
        if int(np.prod(shape)) <= FOLD_LIMIT:
            return self.intern(const(np.full(shape, value, dtype=DTYPES[kind])))
        one = self.intern(const(np.full((1,) * len(shape), value, dtype=DTYPES[kind])))
        return self.intern(make("expand", one, shape=shape))

    def broadcast(self, node: Node, shape: Shape, kind: str | None = None) -> Node:
        """``node``, of this shape or a scalar, as an array of this shape (and kind)."""
        if kind is not None and node.kind != kind:
            node = self.build("cast", node, kind=kind)
        if node.shape == shape:
            return node
        value = uniform(node)
        if value is not None:
            return self.full(value, shape, node.kind)
        one = self.build("reshape", node, shape=(1,) * len(shape))
        return self.build("expand", one, shape=shape)

    def build(
        self,
        op: str,
        *args: Node,
        shape: Shape | None = None,
        kind: str | None = None,
        **attrs: Any,
    ) -> Node:
        """The simplest node for this operation; arguments as for :func:`.graph.make`."""
        node = make(op, *args, shape=shape, kind=kind, **attrs)
        if all(a.is_const for a in args) and self._foldable(node):
            value = apply(op, [a.value for a in args], dict(node.attrs), node.shape, node.kind)
            if node.shape == ():
                return self.scalar(value, node.kind)
            return self.intern(const(value))
        known = self._table.get(node.key())
        if known is not None:
            return known
        if op in ELEMENTWISE:
            args = self._operands(op, args)
            if node.shape not in ((), *(a.shape for a in args)):
                # All arguments are repeated scalars: so is the result.
                extra = {} if op == "cast" else attrs
                return self.broadcast(self.build(op, *args, kind=kind, **extra), node.shape)
        rule = _RULES.get(op)
        if rule is not None:
            found = rule(self, node, args)
            if found is not None:
                return found
        if args is not node.args:
            node = Node(op, args, node.attrs, node.shape, node.kind)
        return self.intern(node)

    def _foldable(self, node: Node) -> bool:
        return node.size <= max(FOLD_LIMIT, *(a.size for a in node.args))

    def _operands(self, op: str, args: tuple[Node, ...]) -> tuple[Node, ...]:
        """Elementwise arguments, with repeated scalars unexpanded and in a settled order."""
        args = tuple(unexpanded(self, a) for a in args)
        if op in _COMMUTATIVE:
            a, b = args
            if (a.is_const, self._serial[id(a)]) > (b.is_const, self._serial[id(b)]):
                args = (b, a)
        return args


def unexpanded(builder: Builder, node: Node) -> Node:
    """A scalar with the value of all elements where there is but one value; else ``node``."""
    if node.shape == ():
        return node
    value = uniform(node)
    if value is not None:
        return builder.scalar(value, node.kind)
    if node.op == "expand" and node.args[0].size == 1:
        return builder.build("reshape", node.args[0], shape=())
    return node


def simplify(graph: Graph, *, strong_zeros: bool = True) -> Graph:
    """An equivalent graph with constants folded, identities and duplicates removed.

    Args:
        graph: any kernel graph; it is not changed.
        strong_zeros: take ``0 * x`` and ``x - x`` as zero for every ``x``, infinite or nan too.

    Returns:
        A graph with the same inputs and outputs (names, shapes and kinds).
    """
    while True:
        before = len(graph.nodes())
        graph = _rebuild(graph, strong_zeros)
        # A second pass sees rules that the first one's results enable; it seldom finds more.
        if len(graph.nodes()) >= before:
            return graph


def _rebuild(graph: Graph, strong_zeros: bool) -> Graph:
    builder = Builder(strong_zeros=strong_zeros)
    new: dict[int, Node] = {}
    for node in graph.nodes():
        new[id(node)] = rebuild_node(builder, node, tuple(new[id(a)] for a in node.args))
    return Graph(
        tuple(new[id(n)] for n in graph.inputs),
        tuple(new[id(n)] for n in graph.outputs),
        graph.name,
    )


def rebuild_node(builder: Builder, node: Node, args: tuple[Node, ...]) -> Node:
    """The simplified form of ``node`` with new arguments."""
    if node.op == "input":
        return builder.intern(node)
    if node.op == "const":
        if node.shape == ():
            return builder.scalar(node.value, node.kind)
        return builder.intern(node)
    attrs = dict(node.attrs)
    attrs.pop("kind", None)
    shape = node.shape if node.op in ("reshape", "expand", "pack") else None
    return builder.build(node.op, *args, shape=shape, kind=node.kind, **attrs)
