"""Turn small values into scalars, so that kernels of a few elements become straight-line code.

Each operation is looked at once, arguments first. Where its elements, spelled out one by one,
cost less than the array operation would, the result is kept as scalar nodes; else it stays an
array, whose elements can still be taken out later. What counts is the arithmetic that is left after
constant folding: a (20, 20) block of a Jacobian with thirty nonzeros is thirty scalars.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pysciml.kernels.fold import DTYPES, SHAPE_OPS
from pysciml.kernels.graph import (
    BINARY,
    COMPARE,
    ELEMENTWISE,
    LOGICAL,
    REDUCE,
    Graph,
    Node,
    Shape,
    const,
)
from pysciml.kernels.simplify import Builder, rebuild_node, simplify
from pysciml.kernels.symbols import Symbols, move, of_ids, of_literal, split_elementwise

_CHEAP = BINARY | COMPARE | LOGICAL | {"neg", "abs", "where", "cast", "reciprocal"}
#: Arrays of more elements than this are not packed one by one, except for few from one array.
_PACKED, _FEW = 512, 8
_CHAIN = {
    "sum": "add",
    "prod": "mul",
    "amax": "maximum",
    "amin": "minimum",
    "any": "or",
    "all": "and",
    "cumsum": "add",
    "cumprod": "mul",
}


@dataclass(frozen=True)
class Costs:
    """What operations cost, counted in scalar additions.

    Args:
        limit: one operation on a small array; what may at most be spent on spelling it out.
        function: a transcendental function of a scalar.
        multiply_add: one term of a matrix product.
        element: taking one element out of an array.
        max_size: arrays of more elements stay arrays whatever their literals.
    """

    limit: float = 12.0
    function: float = 2.0
    multiply_add: float = 1.0
    element: float = 0.8
    max_size: int = 4096

    def of(self, op: str) -> float:
        """One application of an elementwise operation to scalars."""
        return 1.0 if op in _CHEAP else self.function


class _Value:
    """A value in both its forms: symbols (elements), and an array node once someone needs it."""

    __slots__ = ("fixed", "kind", "make", "node", "shape", "symbols")

    def __init__(
        self,
        shape: Shape,
        kind: str,
        *,
        node: Node | None = None,
        symbols: Symbols | None = None,
        make: Callable[[], Node] | None = None,
        fixed: bool = False,
    ) -> None:
        self.shape = shape
        self.kind = kind
        self.node = node
        self.symbols = symbols
        self.make = make
        self.fixed = fixed

    @property
    def has_array(self) -> bool:
        return self.node is not None or self.make is not None


def scalarise(
    graph: Graph,
    limit: float = 12.0,
    *,
    costs: Costs | None = None,
    fixed: Iterable[str] = (),
) -> Graph:
    """An equivalent graph in which values of few elements are scalars (``elem``, ``pack``).

    Args:
        graph: any kernel graph; it is not changed.
        limit: how many scalar operations may stand for one array operation.
        costs: the whole cost model, in place of ``limit``.
        fixed: names of inputs that stay the same over many calls: taking their elements is free.

    Returns:
        A simplified graph with the same inputs and outputs.
    """
    work = _Scalariser(costs or Costs(limit=limit), frozenset(fixed))
    return simplify(work.run(graph))


class _Scalariser:
    def __init__(self, costs: Costs, fixed: frozenset[str]) -> None:
        self.costs = costs
        self.fixed = fixed
        self.builder = Builder()
        self.nodes: list[Node | None] = []  # scalar nodes by number; None: not taken out yet
        self.numbers: dict[int, int] = {}
        self.starts: list[int] = []  # first numbers of the arrays whose elements are numbered
        self.owners: list[_Value] = []

    def run(self, graph: Graph) -> Graph:
        values: dict[int, _Value] = {}
        for node in graph.nodes():
            values[id(node)] = self.value(node, [values[id(a)] for a in node.args])
        inputs = tuple(self.array(values[id(n)]) for n in graph.inputs)
        outputs = tuple(self.array(values[id(n)]) for n in graph.outputs)
        return Graph(inputs, outputs, graph.name)

    # -- the two forms of a value ---------------------------------------------------------------

    def of_node(self, node: Node, fixed: bool) -> _Value:
        """A value that is there as an array (or scalar) node."""
        value = _Value(node.shape, node.kind, node=node, fixed=fixed)
        if node.is_const:
            if node.size <= self.costs.max_size:
                value.symbols = of_literal(node.value, node.kind)
        elif node.shape == ():
            value.symbols = of_ids(np.array(self.number(node)), node.kind)
        elif node.size <= self.costs.max_size:
            start = len(self.nodes)
            self.starts.append(start)
            self.owners.append(value)
            self.nodes.extend([None] * node.size)
            ids = np.arange(start, start + node.size, dtype=np.int64)
            value.symbols = of_ids(ids.reshape(node.shape), node.kind)
        return value

    def number(self, node: Node) -> int:
        """The number of a scalar node."""
        number = self.numbers.get(id(node))
        if number is None:
            number = self.numbers[id(node)] = len(self.nodes)
            # Numbers of array elements are blocks: a scalar's own block keeps them apart.
            self.nodes.append(node)
        return number

    def scalar(self, number: int) -> Node:
        """The scalar node of a number."""
        node = self.nodes[number]
        if node is None:
            i = bisect_right(self.starts, number) - 1
            owner = self.array(self.owners[i])
            node = self.builder.build("elem", owner, index=number - self.starts[i])
            self.nodes[number] = node
            self.numbers.setdefault(id(node), number)
        return node

    def element(self, number: int, literal: Any, kind: str) -> Node:
        return self.scalar(number) if number >= 0 else self.builder.scalar(literal, kind)

    def array(self, value: _Value) -> Node:
        """The value as one node."""
        if value.node is None:
            symbols = value.symbols
            if symbols is not None and symbols.literal:
                value.node = self.builder.intern(const(symbols.vals))
            elif value.make is not None:
                value.node = value.make()
            else:
                assert symbols is not None
                value.node = self.pack(symbols)
        return value.node

    def pack(self, symbols: Symbols) -> Node:
        ids = symbols.ids.reshape(-1)
        if symbols.shape == ():
            return self.scalar(int(ids[0]))
        if (ids == ids[0]).all():
            return self.builder.broadcast(self.scalar(int(ids[0])), symbols.shape)
        if len(ids) > _PACKED and symbols.kind == "f":
            return self.scattered(symbols)
        vals = symbols.vals.reshape(-1)
        parts = [
            self.element(i, v, symbols.kind)
            for i, v in zip(ids.tolist(), vals.tolist(), strict=True)
        ]
        return self.builder.build("pack", *parts, shape=symbols.shape, kind=symbols.kind)

    def scattered(self, symbols: Symbols) -> Node:
        """As :meth:`pack`, for many elements: set into the array of the literals among them.

        Elements that still stand in arrays are taken from there, array by array.
        """
        build, ids = self.builder.build, symbols.ids.reshape(-1)
        literals = np.where(ids < 0, symbols.vals.reshape(-1), 0.0)
        out = self.builder.intern(const(literals))
        live = np.flatnonzero(ids >= 0)
        owners = np.array(
            [-1 if self.nodes[i] is not None else bisect_right(self.starts, i) - 1
             for i in ids[live].tolist()]
        )  # fmt: skip
        for owner in np.unique(owners).tolist():
            at = live[owners == owner]
            if owner < 0 or len(at) <= _FEW:
                values = build(
                    "pack", *map(self.scalar, ids[at].tolist()), shape=at.shape, kind="f"
                )
            else:
                array = self.array(self.owners[owner])
                flat = build("reshape", array, shape=(array.size,), kind="f")
                index = self.builder.intern(const(ids[at] - self.starts[owner]))
                values = build("take", flat, index)
            if len(at) == len(ids):
                out = values
            else:
                out = build("scatter_set", out, self.builder.intern(const(at)), values)
        return build("reshape", out, shape=symbols.shape, kind="f")

    def taking(self, ids: Iterable[int]) -> float:
        """What taking out the elements that are still in arrays costs."""
        cost = 0.0
        for i in set(ids):
            if i >= 0 and self.nodes[i] is None:
                owner = self.owners[bisect_right(self.starts, i) - 1]
                if not owner.fixed:
                    cost += self.costs.element
        return cost

    # -- operations -----------------------------------------------------------------------------

    def value(self, node: Node, args: list[_Value]) -> _Value:
        op = node.op
        if op == "input":
            return self.of_node(self.builder.intern(node), node.attr("name") in self.fixed)
        if op == "const":
            return self.of_node(rebuild_node(self.builder, node, ()), True)
        fixed = all(a.fixed for a in args)
        if all(a.symbols is not None for a in args) and node.size <= self.costs.max_size:
            symbols = self.spelled(node, [a.symbols for a in args])  # type: ignore[misc]
            if symbols is not None:
                return _Value(
                    node.shape,
                    node.kind,
                    symbols=symbols,
                    make=self.maker(node, args, symbols),
                    fixed=fixed,
                )
        array = rebuild_node(self.builder, node, tuple(self.array(a) for a in args))
        return self.of_node(array, fixed)

    def maker(self, node: Node, args: list[_Value], symbols: Symbols) -> Callable[[], Node] | None:
        """How to make the array of a spelled-out value without packing its elements, if that is
        cheaper: a view of an array is."""
        if node.op not in SHAPE_OPS or node.shape == () or not any(a.has_array for a in args):
            return None
        if node.op in ("cat", "pad"):
            live = symbols.ids[symbols.ids >= 0]
            # Copying a piece costs half an array operation, packing a scalar half an addition.
            spare = (len(args) * self.costs.limit - len(live)) / 2
            if spare > 0 and self.taking(live.tolist()) < spare:
                return None
        return lambda: rebuild_node(self.builder, node, tuple(self.array(a) for a in args))

    def spelled(self, node: Node, args: list[Symbols]) -> Symbols | None:
        """The operation on elements, or None where that costs more than the array operation."""
        op = node.op
        if op in ELEMENTWISE:
            return self.elementwise(node, args)
        if op in SHAPE_OPS:
            return move(op, args, dict(node.attrs), node.shape)
        if op == "pack":
            ids = np.array([a.ids for a in args]).reshape(node.shape)
            return Symbols(ids, np.array([a.vals for a in args]).reshape(node.shape), node.kind)
        if op == "elem":
            return args[0].flat()[node.attr("index")]
        if op in REDUCE:
            return self.reduce(node, args[0])
        if op == "matmul":
            return self.matmul(node, *args)
        if op in ("cumsum", "cumprod"):
            return self.accumulate(node, args[0])
        if op == "take" and args[1].literal:
            return args[0][args[1].vals]
        if op == "scatter_add" and args[0].literal:
            return self.scatter_add(node, *args)
        if op == "scatter_set" and args[1].literal and args[2].kind == node.kind:
            ids, vals = args[0].ids.copy(), args[0].vals.copy()
            ids[args[1].vals], vals[args[1].vals] = args[2].ids, args[2].vals
            return Symbols(ids, vals, node.kind)
        return None

    def elementwise(self, node: Node, args: list[Symbols]) -> Symbols | None:
        if node.op == "cast" and args[0].kind == node.kind:
            return args[0]
        split = split_elementwise(node.op, args, node.shape, node.kind)
        cost = len(split.ids) * self.costs.of(node.op)
        if node.shape != ():
            if cost > self.costs.limit:
                return None
            if cost + self.taking(split.ids.reshape(-1).tolist()) > self.costs.limit:
                return None
        ids, vals = [], []
        for row, numbers in enumerate(split.ids.tolist()):
            parts = [
                self.element(i, split.vals[k][row], args[k].kind) for k, i in enumerate(numbers)
            ]
            made = self.builder.build(node.op, *parts, kind=node.kind)
            ids.append(-1 if made.is_const else self.number(made))
            vals.append(made.value if made.is_const else 1)
        if ids:
            split.out.ids[split.where] = np.array(ids)[split.row]
            split.out.vals[split.where] = np.array(vals, dtype=DTYPES[node.kind])[split.row]
        return Symbols(
            split.out.ids.reshape(node.shape), split.out.vals.reshape(node.shape), node.kind
        )

    def reduce(self, node: Node, x: Symbols) -> Symbols | None:
        if x.kind != node.kind and node.op in ("sum", "prod"):
            return None
        dims = node.attr("dims")
        kept = [d for d in range(len(x.shape)) if d not in dims]
        order = (*kept, *dims)
        rows = int(np.prod([x.shape[d] for d in kept], dtype=int))
        length = int(np.prod([x.shape[d] for d in dims], dtype=int))
        if length == 0:
            return None
        return self.chains(
            node,
            x.ids.transpose(order).reshape(rows, length),
            x.vals.transpose(order).reshape(rows, length),
        )

    def chains(self, node: Node, ids: np.ndarray, vals: np.ndarray) -> Symbols | None:
        """Each row of elements joined by one operation."""
        op = _CHAIN[node.op]
        used = np.ones(ids.shape, dtype=bool)
        if op == "add":
            used = (ids >= 0) | (vals != 0)
        elif op == "mul":
            used = (ids >= 0) | (vals != 1)
        counts = used.sum(axis=1)
        cost = float(np.maximum(counts - 1, 0).sum())
        if cost > self.costs.limit:
            return None
        if cost > 0 and cost + self.taking(ids[used].tolist()) > self.costs.limit:
            return None
        empty = 0 if op == "add" else 1
        out_ids = np.full(len(ids), -1, dtype=np.int64)
        out_vals: np.ndarray = np.full(len(ids), empty, dtype=DTYPES[node.kind])
        if op == "mul":
            zero = ((ids < 0) & (vals == 0)).any(axis=1)
            counts = np.where(zero, 0, counts)
            out_vals[zero] = 0
        single = np.flatnonzero(counts == 1)
        at = used[single].argmax(axis=1) if ids.shape[1] else single
        out_ids[single], out_vals[single] = ids[single, at], vals[single, at]
        for r in np.flatnonzero(counts > 1).tolist():
            terms = [
                self.element(int(ids[r, c]), vals[r, c], node.kind)
                for c in np.flatnonzero(used[r]).tolist()
            ]
            self.put(out_ids, out_vals, r, self.chain(op, terms))
        return Symbols(out_ids.reshape(node.shape), out_vals.reshape(node.shape), node.kind)

    def chain(self, op: str, terms: Sequence[Node]) -> Node:
        total = terms[0]
        for term in terms[1:]:
            total = self.builder.build(op, total, term)
        return total

    def put(self, ids: np.ndarray, vals: np.ndarray, at: Any, node: Node) -> None:
        if node.is_const:
            ids[at], vals[at] = -1, node.value
        else:
            ids[at], vals[at] = self.number(node), 1

    def accumulate(self, node: Node, x: Symbols) -> Symbols | None:
        op, dim = _CHAIN[node.op], node.attr("dim")
        cost = int((x.nonzero if op == "add" else x.ids >= 0).sum())
        if x.kind != node.kind or x.ids.size == 0 or cost > self.costs.limit:
            return None
        if cost + self.taking(x.ids.reshape(-1).tolist()) > self.costs.limit:
            return None
        ids, vals = np.moveaxis(x.ids, dim, 0).copy(), np.moveaxis(x.vals, dim, 0).copy()
        for k in range(1, len(ids)):
            for at in np.ndindex(ids.shape[1:]):
                before, this = (
                    self.element(int(ids[(j, *at)]), vals[(j, *at)], node.kind) for j in (k - 1, k)
                )
                self.put(ids, vals, (k, *at), self.builder.build(op, before, this))
        return Symbols(np.moveaxis(ids, 0, dim), np.moveaxis(vals, 0, dim), node.kind)

    def scatter_add(self, node: Node, idx: Symbols, x: Symbols) -> Symbols | None:
        at = idx.vals.reshape(-1)
        flat = x.flat()
        depth = int(np.bincount(at).max()) if at.size else 0
        if depth * node.size > 4 * self.costs.max_size:
            return None
        # One row a target, its terms side by side, the missing ones zero.
        ids = np.full((node.size, depth), -1, dtype=np.int64)
        vals: np.ndarray = np.zeros((node.size, depth), dtype=DTYPES[node.kind])
        filled = np.zeros(node.size, dtype=int)
        for k, target in enumerate(at.tolist()):
            ids[target, filled[target]] = flat.ids[k]
            vals[target, filled[target]] = flat.vals[k]
            filled[target] += 1
        return self.sum_rows(node, ids, vals)

    def sum_rows(self, node: Node, ids: np.ndarray, vals: np.ndarray) -> Symbols | None:
        summed = Node("sum", (), (), node.shape, node.kind)
        return self.chains(summed, ids, vals)

    def matmul(self, node: Node, x: Symbols, y: Symbols) -> Symbols | None:
        if x.kind != "f" or y.kind != "f":
            return None
        if len(x.shape) == 2:
            x, y = x[None], y[None]
        nx, ny = x.nonzero, y.nonzero
        lx, ly = x.literals(), y.literals()
        terms = np.matmul(nx.astype(float), ny.astype(float))
        free = np.matmul((np.abs(lx) == 1).astype(float), ny.astype(float)) + np.matmul(
            nx.astype(float), (np.abs(ly) == 1).astype(float)
        )
        both = np.matmul((lx != 0).astype(float), (ly != 0).astype(float))
        live = terms - both
        adds = float(np.maximum(live - 1, 0).sum())
        cost = max(float((live - free).clip(0).sum()), adds) * self.costs.multiply_add
        if cost > self.costs.limit:
            return None
        used = x.ids[nx & (x.ids >= 0)].tolist() + y.ids[ny & (y.ids >= 0)].tolist()
        if cost + self.taking(used) > self.costs.limit:
            return None
        vals = np.matmul(lx, ly)
        ids = np.full(vals.shape, -1, dtype=np.int64)
        for g, i, j in zip(*(w.tolist() for w in np.nonzero(live)), strict=True):
            parts = [self.builder.scalar(vals[g, i, j])]
            for k in np.flatnonzero(nx[g, i] & ny[g, :, j]).tolist():
                if x.ids[g, i, k] >= 0 or y.ids[g, k, j] >= 0:
                    a = self.element(int(x.ids[g, i, k]), x.vals[g, i, k], "f")
                    b = self.element(int(y.ids[g, k, j]), y.vals[g, k, j], "f")
                    parts.append(self.builder.build("mul", a, b))
            if parts[0].value == 0 and len(parts) > 1:
                del parts[0]
            self.put(ids, vals, (g, i, j), self.chain("add", parts))
        return Symbols(ids.reshape(node.shape), vals.reshape(node.shape), "f")
