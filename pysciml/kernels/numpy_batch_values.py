"""How operations are written over a leading batch axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pysciml.kernels.graph import ELEMENTWISE, REDUCE, Graph, Node, Shape
from pysciml.kernels.numpy_memory import VIEWS, index_text, parts_of
from pysciml.kernels.numpy_scalars import careful, literal


class BatchWriter:
    """Writes the values of a graph whose batched ones carry the batch axis first."""

    def __init__(
        self, graph: Graph, fixed: frozenset[str], batched: frozenset[str], reduce: bool
    ) -> None:
        self.graph = graph
        self.fixed = fixed
        self.reduce = reduce
        self.statics: list[str] = []
        self.prologue: list[str] = []
        self.body: list[str] = []
        self.literals: list[np.ndarray] = []
        self.names: dict[int, str] = {}
        self.totals: dict[int, str] = {}
        self.columns: dict[int, str] = {}
        self.elements: dict[int, int] = {}
        self.many: set[int] = set()  # values that carry the batch axis
        self.live: set[int] = set()  # values that depend on inputs of a call
        self.batch_of = next(
            (n.attr("name") for n in graph.inputs if n.attr("name") in batched), None
        )
        for node in graph.nodes():
            if node.op == "input":
                if node.attr("name") in batched:
                    self.many.add(id(node))
                if node.attr("name") not in fixed:
                    self.live.add(id(node))
            elif any(id(a) in self.many for a in node.args):
                self.many.add(id(node))
            if any(id(a) in self.live for a in node.args):
                self.live.add(id(node))

    def is_many(self, node: Node) -> bool:
        return id(node) in self.many

    def put(self, node: Node, text: str, live: bool = False) -> str:
        """A statement that names a value; before the call where that can be."""
        if text.isidentifier():
            return text
        name = f"s{len(self.prologue) + len(self.body)}"
        lines = self.body if live or id(node) in self.live else self.prologue
        lines.append(f"{name} = {text}")
        return name

    def constant(self, value: np.ndarray) -> str:
        self.literals.append(value)
        name = f"k{len(self.literals)}"
        self.statics.append(f"{name} = K[{len(self.literals) - 1}]")
        return name

    def value(self, node: Node, into: str | None = None) -> None:
        """The statements of a value; elementwise ones and products go ``into`` memory given."""
        if node.op == "const":
            text = literal(node.value) if node.shape == () else self.constant(node.value)
            self.names[id(node)] = text
            return
        if node.op == "input":
            name = f"x_{node.attr('name')}"
            dtype = {"f": "float64", "i": "int64", "b": "bool_"}[node.kind]
            self.put_line(node, f"{name} = asarray({name}, {dtype})")
            self.names[id(node)] = name
            return
        args = [self.names[id(a)] for a in self.operands(node)]
        if not self.is_many(node):
            text = self.plain(node, args)
        elif into is None:
            text = self.many_text(node, args)
        elif node.op == "matmul":
            text = self.matmul(node, args, into)
        else:
            text = f"{self.elementwise(node, args).removesuffix(')')}, out={into})"
        self.names[id(node)] = self.put(node, text)

    def put_line(self, node: Node, line: str) -> None:
        (self.body if id(node) in self.live else self.prologue).append(line)

    def plain(self, node: Node, args: list[str]) -> str:
        """An operation without a batch axis."""
        op = node.op
        if op in ELEMENTWISE and op != "cast":
            return careful(op, len(args)).format(*args)
        if op == "matmul":
            return f"matmul({args[0]}, {args[1]})"
        if op == "reshape":
            return f"asarray({args[0]}).reshape({node.shape})"
        joined = "".join(a + ", " for a in args)
        return f"apply({op!r}, ({joined}), {_attrs(node)}, {node.shape}, {node.kind!r})[()]"

    def lift(self, arg: Node, text: str, ndim: int) -> str:
        """A batched scalar beside batched arrays."""
        if arg.shape == () and ndim and self.is_many(arg):
            return f"{text}.reshape(B{', 1' * ndim})"
        return text

    def full(self, arg: Node, text: str) -> str:
        """An argument with the batch axis, repeated where it has none."""
        return text if self.is_many(arg) else f"broadcast_to({text}, (B, *{arg.shape}))"

    def many_text(self, node: Node, args: list[str]) -> str:
        op = node.op
        if op in ELEMENTWISE:
            return self.elementwise(node, args)
        if op in VIEWS:
            return self.view(node, args[0])
        if op in REDUCE:
            dims = tuple(d + 1 for d in node.attr("dims"))
            if op == "sum" and node.kind == "f" and node.shape == ():
                return f"{args[0]}.reshape(B, -1).sum(1)"
            return f"reduce_{op}({args[0]}, axis={dims})"
        special = _MANY.get(op)
        if special is not None:
            return special(self, node, args)
        # One row at a time.
        rows = "".join(
            (f"{t}[b], " if self.is_many(a) else f"{t}, ")
            for a, t in zip(node.args, args, strict=True)
        )
        each = f"apply({op!r}, ({rows}), {_attrs(node)}, {node.shape}, {node.kind!r})"
        dtype = {"f": "float64", "i": "int64", "b": "bool_"}[node.kind]
        return f"array([{each} for b in range(B)], {dtype}).reshape(B, *{node.shape})"

    def operands(self, node: Node) -> list[Node]:
        """What the statements of a value read."""
        if self.is_many(node) and node.op in ELEMENTWISE:
            short = [unexpanded(a) for a in node.args]
            # NumPy repeats by itself what the arguments' shapes together ask for.
            if np.broadcast_shapes(*(a.shape for a in short)) == node.shape:
                return short
        return list(node.args)

    def elementwise(self, node: Node, args: list[str]) -> str:
        operands = [self.lift(a, t, node.ndim) for a, t in zip(node.args, args, strict=True)]
        if node.op == "cast":
            dtype = {"f": "float64", "i": "int64", "b": "bool_"}[node.kind]
            return f"{operands[0]}.astype({dtype})"
        return careful(node.op, len(operands)).format(*operands)

    def view(self, node: Node, x: str) -> str:
        op = node.op
        if op == "reshape":
            return f"{x}.reshape(B, *{node.shape})" if node.shape else f"{x}.reshape(B)"
        if op == "permute":
            return f"{x}.transpose({(0, *(i + 1 for i in node.attr('perm')))})"
        if op == "expand":
            return f"broadcast_to({x}, (B, *{node.shape}))"
        if op == "flip":
            return f"flip({x}, {tuple(d + 1 for d in node.attr('dims'))})"
        spans = zip(node.attr("starts"), node.attr("stops"), node.attr("steps"), strict=True)
        return x + index_text((slice(None), *(slice(*s) for s in spans)))

    def element(self, node: Node, args: list[str]) -> str:
        x, index = node.args[0], node.attr("index")
        if x.shape == ():
            return args[0]
        flat = args[0] if x.ndim == 1 else f"{args[0]}.reshape(B, -1)"
        if self.elements[id(x)] < 2:
            return f"{flat}[:, {index}]"
        if id(x) not in self.columns:  # columns side by side in memory are read several times
            self.columns[id(x)] = self.put(node, f"ascontiguousarray({flat}.T)")
        return f"{self.columns[id(x)]}[{index}]"

    def pack(self, node: Node, args: list[str]) -> str:
        name = self.new(node.size, node.kind)
        literals = np.array([a.value if a.is_const else 0 for a in node.args])
        if any(a.is_const for a in node.args):
            self.body.append(f"{name}[...] = {self.constant(literals) if literals.any() else 0}")
        for i, (a, text) in enumerate(zip(node.args, args, strict=True)):
            if not a.is_const:
                self.body.append(f"{name}[:, {i}] = {text}")
        return f"{name}.reshape(B, *{node.shape})" if node.ndim != 1 else name

    def new(self, shape: int | Shape, kind: str, make: str = "empty") -> str:
        name = f"a{len(self.body)}"
        sizes = (shape,) if isinstance(shape, int) else shape
        dtype = {"f": "", "i": ", int64", "b": ", bool_"}[kind]
        self.body.append(f"{name} = {make}((B, *{sizes}){dtype})")
        return name

    def assemble(self, node: Node, args: list[str]) -> str:
        name = self.new(node.shape, node.kind, "zeros" if node.op == "pad" else "empty")
        for (_, index), text in zip(parts_of(node), args, strict=True):
            self.body.append(f"{name}{index_text((slice(None), *index))} = {text}")
        return name

    def matmul(self, node: Node, args: list[str], into: str | None = None) -> str:
        (x, y), (tx, ty) = node.args, args
        out = "" if into is None else f", out={into}"
        if node.ndim == 3:
            return f"matmul({tx}, {ty}{out})"
        (m, k), n = x.shape, y.shape[1]
        if k == 1:
            return f"np_mul({tx}, {ty}{out})"
        if not self.is_many(y):  # one product for the whole batch
            out = "" if into is None else f", out={into}.reshape(-1, {n})"
            return f"matmul({tx}.reshape(-1, {k}), {ty}{out}).reshape(B, {m}, {n})"
        if not self.is_many(x):
            if n == 1:
                out = "" if into is None else f", out={into}.reshape(B, {m})"
                return f"matmul({ty}.reshape(B, {k}), {tx}.T{out}).reshape(B, {m}, 1)"
            rows = f"{ty}.transpose(0, 2, 1).reshape(-1, {k})"
            out = "" if into is None else f", out={into}.reshape(-1, {m})"
            return f"matmul({rows}, {tx}.T{out}).reshape(B, {n}, {m}).transpose(0, 2, 1)"
        if m == n == 1:
            return (
                f"einsum('zk,zk->z', {tx}.reshape(B, {k}), {ty}.reshape(B, {k})).reshape(B, 1, 1)"
            )
        return f"matmul({tx}, {ty}{out})"

    def solve(self, node: Node, args: list[str]) -> str:
        a, b = (self.full(x, t) for x, t in zip(node.args, args, strict=True))
        return f"solve_batch({a}, {b})"

    def take(self, node: Node, args: list[str]) -> str:
        x, idx = node.args
        if not self.is_many(idx):
            return f"{args[0]}[:, {args[1]}]"
        if not self.is_many(x):
            return f"{args[0]}[{args[1]}]"
        return f"{args[0]}[{self.rows(idx)}, {args[1]}]"

    def rows(self, idx: Node) -> str:
        """The batch index beside batched indices."""
        return f"arange(B).reshape(B{', 1' * idx.ndim})"

    def scatter(self, node: Node, args: list[str]) -> str:
        if node.op == "scatter_add":
            name = self.new(node.shape, node.kind, "zeros")
            idx, index, vals = node.args[0], *args
        else:
            name = self.new(node.shape, node.kind)
            self.body.append(f"{name}[...] = {args[0]}")
            idx, index, vals = node.args[1], *args[1:]
        where = f"{self.rows(idx)}, {index}" if self.is_many(idx) else f":, {index}"
        distinct = idx.is_const and len(np.unique(idx.value)) == idx.size
        if node.op == "scatter_set" or distinct:
            self.body.append(f"{name}[{where}] = {vals}")
        else:
            where = where.replace(":, ", "slice(None), ", 1)
            self.body.append(f"np_add.at({name}, ({where}), {vals})")
        return name

    def along(self, node: Node, args: list[str]) -> str:
        attrs = dict(node.attrs)
        attrs["dim"] += 1
        shape = f"(B, *{node.shape})"
        return f"apply({node.op!r}, ({args[0]},), {attrs!r}, {shape}, {node.kind!r})"

    def searchsorted(self, node: Node, args: list[str]) -> str:
        side = "right" if node.attr("right") else "left"
        if self.is_many(node.args[0]):
            rows = f"zip({args[0]}, {self.full(node.args[1], args[1])})"
            each = f"searchsorted(x, v, side={side!r})"
            return f"array([{each} for x, v in {rows}], int64).reshape(B, *{node.shape})"
        return f"asarray(searchsorted({args[0]}, {args[1]}, side={side!r}))"


def unexpanded(node: Node) -> Node:
    """What a repeated value repeats."""
    while node.op == "expand":
        node = node.args[0]
    return node


def _attrs(node: Node) -> str:
    return "{" + ", ".join(f"{k!r}: {v!r}" for k, v in node.attrs) + "}"


_MANY: dict[str, Callable[[Any, Node, list[str]], str]] = {
    "elem": BatchWriter.element,
    "pack": BatchWriter.pack,
    "cat": BatchWriter.assemble,
    "pad": BatchWriter.assemble,
    "matmul": BatchWriter.matmul,
    "solve": BatchWriter.solve,
    "take": BatchWriter.take,
    "scatter_add": BatchWriter.scatter,
    "scatter_set": BatchWriter.scatter,
    "searchsorted": BatchWriter.searchsorted,
    **{
        op: BatchWriter.along for op in ("argmax", "argmin", "cumsum", "cumprod", "sort", "argsort")
    },
}
