"""Write a scalarised graph as Python source over a leading batch axis.

A value that depends on a batched input carries the batch axis first; the others do not. With
``reduce`` the outputs are sums over the batch, and the sum is taken as early as it can be: through
linear operations down to products, where it turns into a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pysciml.kernels.graph import Graph, Node
from pysciml.kernels.numpy_batch_values import BatchWriter, unexpanded
from pysciml.kernels.numpy_memory import VIEWS, Program
from pysciml.kernels.numpy_reuse import Reuse

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


class _Writer(BatchWriter):
    """Writes the whole program."""

    def program(self) -> Program:
        nodes = self.graph.nodes()
        want_value, want_total = self.demands(nodes)
        for node in nodes:
            if id(node) in want_value and node.op == "elem" and self.is_many(node):
                x = node.args[0]
                self.elements[id(x)] = self.elements.get(id(x), 0) + 1
        reuse = Reuse(
            nodes,
            lambda node: self.reads(node, want_value, want_total),
            [] if self.reduce else self.graph.outputs,
            self.is_many,
        )
        for i, node in enumerate(nodes):
            if id(node) in want_value and not self.is_many(node):
                self.value(node)
            elif id(node) in want_value:
                over, begun = reuse.over(node, i), len(self.body)
                self.value(node, self.place(reuse, node, over))
                if node.op != "input":
                    reuse.made(node, _assigned(self.body[begun:]), over)
            if id(node) in want_total:
                total = self.total(node, id(node) in want_value)
                self.totals[id(node)] = self.put(node, total, live=True)
            if dead := reuse.dead(i):
                self.body.append("del " + ", ".join(dead))
        results = [self.result(o) for o in self.graph.outputs]
        names = [n.attr("name") for n in self.graph.inputs]
        head = ", ".join(["K", *(f"x_{n}" for n in names if n in self.fixed)])
        call = "".join(f", x_{n}" for n in names if n not in self.fixed)
        lines = [f"def factory({head}):"]
        lines += [f"    {line}" for line in (*self.statics, *self.prologue)]
        lines.append(f"    def batched(W{call}):")
        lines.append(f"        B = len(x_{self.batch_of})")
        lines += [f"        w{k} = W[{k}][:B]" for k in range(len(reuse.slots))]
        lines += [f"        {line}" for line in self.body]
        lines.append("        return (" + "".join(r + ", " for r in results) + ")")
        lines.append("    return batched")
        computed = (
            n.size for n in nodes
            if id(n) in want_value and self.is_many(n) and n.op not in (*VIEWS, "input")
        )  # fmt: skip
        width = max(computed, default=1)
        return Program("\n".join(lines) + "\n", self.literals, True, width, tuple(reuse.slots))

    def place(self, reuse: Reuse, node: Node, over: Node | None) -> str | None:
        """The memory that a value is written to; None where it is made anew."""
        if over is not None:
            return self.names[id(over)]
        slot = reuse.slot(node)
        if slot is None:
            return None
        return f"w{slot}" if node.ndim == 1 else f"w{slot}.reshape(B, *{node.shape})"

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
                for a, summed in self.terms(node, id(node) in value):
                    (total if summed else value).add(id(a))
            if id(node) in value:
                value.update(id(a) for a in self.operands(node))
        return value, total

    def terms(self, node: Node, known: bool) -> Iterator[tuple[Node, bool]]:
        """What a sum over the batch is computed from, and which of these are such sums."""
        if known and self.summed_itself(node):
            yield node, False
        elif (linear := self.linear(node)) is not None:
            yield from zip(node.args, linear, strict=True)
        else:
            yield from ((a, False) for a in self.leaves(node))

    def summed_itself(self, node: Node) -> bool:
        """Where the value is wanted too: whether to add it up rather than to sum earlier."""
        return self.is_many(node) and node.op not in VIEWS and node.op != "elem"

    def reads(self, node: Node, value: set[int], total: set[int]) -> Iterator[Node]:
        """The values that a node's statements read."""
        if id(node) in value:
            yield from self.operands(node)
        if id(node) in total:
            yield from (a for a, s in self.terms(node, id(node) in value) if not s)

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
            return [unexpanded(a) for a in node.args]
        if self.is_many(node) and node.op == "matmul":
            return list(node.args)
        return [node]

    def total(self, node: Node, known: bool) -> str:
        """Text of the sum of a value over the batch."""
        if not self.is_many(node):
            return f"B * {self.names[id(node)]}"
        if known and self.summed_itself(node):
            return f"{self.names[id(node)]}.sum(0)"
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
        x, y = (unexpanded(a) for a in node.args)
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
            if x.op == "permute" and x.attr("perm") == (1, 0):  # its rows, as they lie
                return f"{self.names[id(x.args[0])]}.reshape(-1, {m}).T @ {ty}.reshape(-1, {n})"
            return f"{tx}.transpose(1, 0, 2).reshape({m}, -1) @ {ty}.reshape(-1, {n})"
        left = f"{tx}.transpose(1, 2, 0, 3).reshape({g[0]}, {m}, -1)"
        return f"matmul({left}, {ty}.transpose(1, 0, 2, 3).reshape({g[0]}, -1, {n}))"


def _assigned(lines: list[str]) -> list[str]:
    """The names that these statements give."""
    names = (line.partition(" = ")[0] for line in lines)
    return [name for name in names if name.isidentifier()]
