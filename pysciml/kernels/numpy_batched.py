"""Write a scalarised graph as Python source over a leading batch axis.

A value that depends on a batched input carries the batch axis first; the others do not. With
``reduce`` the outputs are sums over the batch, and the sum is taken as early as it can be: through
linear operations down to products, where it turns into a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pysciml.kernels.graph import ELEMENTWISE, REDUCE, Graph, Node, Shape
from pysciml.kernels.numpy_memory import VIEWS, Program, index_text, parts_of
from pysciml.kernels.numpy_scalars import careful, literal

_LETTERS = "abcdefghijklmnopqrstuvwxy"


def write_batched(
    graph: Graph, fixed: frozenset[str], batched: frozenset[str], reduce: bool
) -> Program:
    """The program of a scalarised graph over a batch.

    Args:
        graph: from :func:`pysciml.kernels.scalarise.scalarise`.
        fixed: names of the inputs that ``factory`` takes; the function takes the others.
        batched: names of the inputs that carry a leading axis.
        reduce: whether outputs are summed over the batch.
    """
    return _Writer(graph, fixed, batched, reduce).program()


class _Writer:
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

    def program(self) -> Program:
        nodes = self.graph.nodes()
        want_value, want_total = self.demands(nodes)
        for node in nodes:
            if id(node) in want_value and node.op == "elem" and self.is_many(node):
                x = node.args[0]
                self.elements[id(x)] = self.elements.get(id(x), 0) + 1
        for node in nodes:
            if id(node) in want_value:
                self.value(node)
            if id(node) in want_total:
                self.totals[id(node)] = self.put(node, self.total(node), live=True)
        results = [self.result(o) for o in self.graph.outputs]
        names = [n.attr("name") for n in self.graph.inputs]
        head = ", ".join(["K", *(f"x_{n}" for n in names if n in self.fixed)])
        call = ", ".join(f"x_{n}" for n in names if n not in self.fixed)
        lines = [f"def factory({head}):"]
        lines += [f"    {line}" for line in (*self.statics, *self.prologue)]
        lines.append(f"    def batched({call}):")
        lines.append(f"        B = len(x_{self.batch_of})")
        lines += [f"        {line}" for line in self.body]
        lines.append("        return (" + "".join(r + ", " for r in results) + ")")
        lines.append("    return batched")
        return Program("\n".join(lines) + "\n", self.literals, True)

    def is_many(self, node: Node) -> bool:
        return id(node) in self.many

    def result(self, node: Node) -> str:
        if self.reduce:
            return f"array({self.totals[id(node)]})" if self.shared(node) else self.totals[id(node)]
        name = self.names[id(node)]
        if not self.is_many(node):
            return f"array(broadcast_to({name}, (B, *{node.shape})))"
        return f"array({name})" if self.shared(node) else name

    def shared(self, node: Node) -> bool:
        """Whether a result may be memory of an input or of another result."""
        if node.shape == () and self.reduce:
            return True
        return node.op in VIEWS or node.op in ("input", "const", "elem", "cat")

    # -- summation over the batch ---------------------------------------------------------------

    def demands(self, nodes: tuple[Node, ...]) -> tuple[set[int], set[int]]:
        """Which values, and which sums over the batch, are needed."""
        value: set[int] = set()
        total: set[int] = set()
        (total if self.reduce else value).update(id(o) for o in self.graph.outputs)
        for node in reversed(nodes):
            if id(node) in total:
                linear = self.linear(node)
                if linear is None:
                    value.update(id(a) for a in self.leaves(node))
                else:
                    for a, summed in zip(node.args, linear, strict=True):
                        (total if summed else value).add(id(a))
            if id(node) in value:
                value.update(id(a) for a in node.args)
        return value, total

    def linear(self, node: Node) -> list[bool] | None:
        """Where the operation is linear, which arguments to sum instead; None where it is not."""
        if not self.is_many(node) or node.kind != "f" or any(a.kind != "f" for a in node.args[-1:]):
            return None
        many = [self.is_many(a) for a in node.args]
        op = node.op
        if op in ("add", "sub", "cat", "pack"):
            return [True] * len(node.args) if all(a.kind == "f" for a in node.args) else None
        if op in VIEWS or op in ("neg", "pad", "elem", "sum", "cumsum"):
            return [True]
        if op == "mul" and not all(many) or op == "matmul" and not all(many):
            return many
        if op == "div" and not many[1]:
            return [True, False]
        if op == "where" and not many[0] and node.args[1].kind == "f":
            return [False, True, True]
        if op == "take" and not many[1]:
            return [True, False]
        if op == "scatter_add" and not many[0]:
            return [False, True]
        return None

    def leaves(self, node: Node) -> list[Node]:
        """The values that the sum of a value is computed from."""
        if self.is_many(node) and node.op == "mul":
            return [_unexpanded(a) for a in node.args]
        if self.is_many(node) and node.op == "matmul":
            return list(node.args)
        return [node]

    def total(self, node: Node) -> str:
        """Text of the sum of a value over the batch."""
        if not self.is_many(node):
            return f"B * {self.names[id(node)]}"
        linear = self.linear(node)
        if linear is not None:
            args = [
                self.totals[id(a)] if summed else self.names[id(a)]
                for a, summed in zip(node.args, linear, strict=True)
            ]
            return self.plain(node, args)
        if node.op == "mul":
            return self.sum_of_product(node)
        if node.op == "matmul":
            return self.sum_of_matmul(node)
        return f"{self.names[id(node)]}.sum(0)"

    def sum_of_product(self, node: Node) -> str:
        x, y = (_unexpanded(a) for a in node.args)
        tx, ty = self.names[id(x)], self.names[id(y)]
        lx = [d for d in range(x.ndim) if x.shape[d] != 1]
        ly = [d for d in range(y.ndim) if y.shape[d] != 1]
        if x.shape == y.shape == ():
            return f"dot({tx}, {ty})"
        if not set(lx) & set(ly):  # an outer product: one product of matrices
            order = [*lx, *ly]
            sizes = tuple(node.shape[d] for d in order)
            text = f"({tx}.reshape(B, -1).T @ {ty}.reshape(B, -1)).reshape({sizes})"
            if order != sorted(order):
                text += f".transpose({tuple(int(i) for i in np.argsort(order))})"
            filled = tuple(n if d in order else 1 for d, n in enumerate(node.shape))
            text += f".reshape({filled})"
            return text if filled == node.shape else f"broadcast_to({text}, {node.shape})"
        ax, ay = ("".join(_LETTERS[d] for d in dims) for dims in (lx, ly))
        out = [d for d in range(node.ndim) if d in lx or d in ly]
        sx, sy = (
            f"{t}.reshape(B, *{tuple(a.shape[d] for d in dims)})"
            for t, a, dims in ((tx, x, lx), (ty, y, ly))
        )
        spec = f"z{ax},z{ay}->{''.join(_LETTERS[d] for d in out)}"
        filled = tuple(n if d in out else 1 for d, n in enumerate(node.shape))
        text = f"einsum({spec!r}, {sx}, {sy}).reshape({filled})"
        return text if filled == node.shape else f"broadcast_to({text}, {node.shape})"

    def sum_of_matmul(self, node: Node) -> str:
        x, y = node.args
        tx, ty = self.names[id(x)], self.names[id(y)]
        (*g, m, k), n = x.shape, y.shape[-1]
        if not g:
            if k == 1:
                return f"{tx}.reshape(B, {m}).T @ {ty}.reshape(B, {n})"
            return f"{tx}.transpose(1, 0, 2).reshape({m}, -1) @ {ty}.reshape(-1, {n})"
        left = f"{tx}.transpose(1, 2, 0, 3).reshape({g[0]}, {m}, -1)"
        return f"matmul({left}, {ty}.transpose(1, 0, 2, 3).reshape({g[0]}, -1, {n}))"

    # -- values ---------------------------------------------------------------------------------

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

    def value(self, node: Node) -> None:
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
        args = [self.names[id(a)] for a in node.args]
        text = self.many_text(node, args) if self.is_many(node) else self.plain(node, args)
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

    def elementwise(self, node: Node, args: list[str]) -> str:
        short = [_unexpanded(a) for a in node.args]
        # NumPy repeats by itself what another argument's shape asks for.
        whole = any(a.shape == node.shape for a in short)
        if whole:
            args = [self.names[id(a)] for a in short]
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

    def matmul(self, node: Node, args: list[str]) -> str:
        (x, y), (tx, ty) = node.args, args
        if node.ndim == 3:
            return f"matmul({tx}, {ty})"
        (m, k), n = x.shape, y.shape[1]
        if k == 1:
            return f"{tx} * {ty}"
        if not self.is_many(y):  # one product for the whole batch
            return f"({tx}.reshape(-1, {k}) @ {ty}).reshape(B, {m}, {n})"
        if not self.is_many(x):
            if n == 1:
                return f"({ty}.reshape(B, {k}) @ {tx}.T).reshape(B, {m}, 1)"
            rows = f"{ty}.transpose(0, 2, 1).reshape(-1, {k})"
            return f"({rows} @ {tx}.T).reshape(B, {n}, {m}).transpose(0, 2, 1)"
        if m == n == 1:
            return (
                f"einsum('zk,zk->z', {tx}.reshape(B, {k}), {ty}.reshape(B, {k})).reshape(B, 1, 1)"
            )
        return f"matmul({tx}, {ty})"

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


def _unexpanded(node: Node) -> Node:
    while node.op == "expand":
        node = node.args[0]
    return node


def _attrs(node: Node) -> str:
    return "{" + ", ".join(f"{k!r}: {v!r}" for k, v in node.attrs) + "}"


_MANY: dict[str, Callable[[Any, Node, list[str]], str]] = {
    "elem": _Writer.element,
    "pack": _Writer.pack,
    "cat": _Writer.assemble,
    "pad": _Writer.assemble,
    "matmul": _Writer.matmul,
    "solve": _Writer.solve,
    "take": _Writer.take,
    "scatter_add": _Writer.scatter,
    "scatter_set": _Writer.scatter,
    "searchsorted": _Writer.searchsorted,
    **{op: _Writer.along for op in ("argmax", "argmin", "cumsum", "cumprod", "sort", "argsort")},
}
