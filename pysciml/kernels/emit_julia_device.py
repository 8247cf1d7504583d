"""Julia source of a kernel graph over whole arrays: for GPU arrays, and any other kind.

The emitted function is ``kernel(ws, out, inputs...)`` with vectors on a device. Every operation
is a broadcast, a reduction, a matrix product, or a view; none reads or writes one element from
the host. What depends on the time and on constants alone is computed on the host, as numbers.
Values of rank 0 that come from arrays stay on the device, as vectors of one element.

An array of the graph is a Julia array with the dimensions reversed: the same memory. Elementwise
operations with one user are fused into that user's broadcast, and expansions are left to the
broadcast where they can be. What no broadcast of Julia's says (gathers, sorts, searches) is a
broadcast over the result's elements of a function that reads whole arrays, which it is given
behind a ``Ref``; these functions are those of ``PySciML.DeviceRuntime``. Results are allocated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from pysciml.kernels import julia_device_arrays, julia_ops
from pysciml.kernels.emit_julia import JuliaSource
from pysciml.kernels.graph import ELEMENTWISE, REDUCE, Graph, Node, Shape
from pysciml.kernels.julia_values import Value, dims, joint_extent

#: Most operations that are fused into one broadcast: a GPU kernel is compiled for each.
MOST_FUSED = 24
_REDUCTIONS = {
    "sum": "sum", "prod": "prod", "amax": "maximum", "amin": "minimum", "any": "any", "all": "all",
}  # fmt: skip
_TYPES = {"i": "Int", "b": "Bool"}


def emit(graph: Graph, dtype: str = "float64") -> JuliaSource:
    """Julia source of a ``graph`` with one output over real numbers of ``dtype``.

    Inputs are vectors on a device, or of rank 0 (a number in Julia). The source needs no buffers;
    ``ws`` holds its literal arrays, on the device.
    """
    return DeviceEmitter(graph, dtype).run()


@dataclass
class DeviceEmitter:
    """The state of one emission: lines so far, and how every value is spelt."""

    graph: Graph
    dtype: str
    lines: list[str] = field(default_factory=list)
    values: dict[int, Value] = field(default_factory=dict)
    whole: dict[int, str] = field(default_factory=dict)
    literals: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {"f": [], "i": [], "b": []}
    )
    names: int = 0

    def run(self) -> JuliaSource:
        (output,) = self.graph.outputs
        nodes = self.graph.nodes()
        self.output = output
        self.users = Counter(id(a) for n in nodes for a in n.args)
        self.users[id(output)] += 1
        self.takers: dict[int, list[Node]] = {}
        for n in nodes:
            for a in n.args:
                self.takers.setdefault(id(a), []).append(n)
        for node in nodes:
            self.values[id(node)] = self._emit(node)
        value = self.values[id(output)]
        if value.text != "out":
            self.lines.append(f"@. out = {value.text}")
        inputs = tuple(str(n.attr("name")) for n in self.graph.inputs)
        arguments = ", ".join(["ws", "out", *(f"in_{name}" for name in inputs)])
        lines = [f"function ({arguments})", *(f"    {line}" for line in self.lines)]
        types = {"f": np.float64, "i": np.int64, "b": np.bool_}
        constants = tuple(
            np.concatenate([np.zeros(0, types[k]), *self.literals[k]]) for k in ("f", "i", "b")
        )
        return JuliaSource(
            text="\n".join([*lines, "    return nothing", "end"]) + "\n",
            sizes=(0, 0, 0),
            constants=constants,  # type: ignore[arg-type]
            inputs=inputs,
            outputs=(output.shape,),
        )

    # -- parts of the source -------------------------------------------------------------------

    def name(self, prefix: str = "v") -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def assign(self, text: str, prefix: str = "v") -> str:
        """The name of a local variable that holds ``text``."""
        name = self.name(prefix)
        self.lines.append(f"{name} = {text}")
        return name

    def element_type(self, kind: str) -> str:
        return _TYPES.get(kind) or julia_ops.real_type(self.dtype)

    def empty(self, shape: Shape, kind: str) -> str:
        """The name of a new array, not filled."""
        return self.assign(f"similar(out, {self.element_type(kind)}, {dims(shape)})")

    def literal_array(self, value: np.ndarray, kind: str) -> str:
        """The name of a literal array on the device."""
        start = sum(a.size for a in self.literals[kind])
        self.literals[kind].append(value.reshape(-1))
        place = f"view(ws.k{kind}, {start + 1}:{start + value.size})"
        return self.assign(f"reshape({place}, {dims(value.shape)})", "k")

    def of(self, node: Node) -> Value:
        """How a node's value is spelt, an expression made a variable first."""
        value = self.values[id(node)]
        if value.cost:
            value = Value(self.assign(f"@. {value.text}"), value.extent)
            self.values[id(node)] = value
        return value

    def solid(self, node: Node) -> str:
        """The name of the node's value as an array of its full size (one element for rank 0)."""
        if id(node) not in self.whole:
            value = self.values[id(node)]
            if value.extent == node.shape:
                self.whole[id(node)] = self.of(node).text
            else:
                array = self.empty(node.shape, node.kind)
                self.lines.append(f"@. {array} = {value.text}")
                self.whole[id(node)] = array
        return self.whole[id(node)]

    def ref(self, node: Node) -> str:
        """A whole array as a broadcast hands it to every element's function."""
        return self.assign(f"Ref({self.solid(node)})", "r")

    # -- one node ------------------------------------------------------------------------------

    def _emit(self, node: Node) -> Value:
        op = node.op
        if op == "input":
            name = f"in_{node.attr('name')}"
            return Value(name, node.shape if node.shape else None)
        if op == "const":
            return self._const(node)
        if op in ELEMENTWISE:
            return self._elementwise(node)
        if op == "expand":
            return self._expand(node)
        if op == "reshape":
            return self._reshape(node)
        if op in REDUCE:
            return self._reduce(node)
        if op == "matmul" and node.ndim == 2:
            return self._matmul(node)
        if op in ("cat", "pack"):
            return self._cat(node)
        return julia_device_arrays.emit(self, node)

    def _const(self, node: Node) -> Value:
        flat = node.value.reshape(-1)
        if flat.size and (flat == flat[0]).all():
            return Value(julia_ops.literal(flat[0], node.kind, self.dtype), None)
        return Value(self.literal_array(node.value, node.kind), node.shape)

    def _elementwise(self, node: Node) -> Value:
        values = [self.values[id(a)] for a in node.args]
        if all(v.extent is None for v in values):
            texts = [v.text for v in values]
            return Value(self.assign(julia_ops.expression(node, texts, self.dtype), "s"), None)
        extent = joint_extent(v.extent for v in values if v.extent)
        return self.broadcast(
            node.args, extent, lambda texts: julia_ops.expression(node, texts, self.dtype)
        )

    def broadcast(
        self, args: Iterable[Node], extent: Shape, spell: Callable[[list[str]], str]
    ) -> Value:
        """An expression over ``args``, of which those used here alone are written out."""
        texts, cost = [], 1
        for a in args:
            value = self.values[id(a)]
            alone = self.users[id(a)] == 1 and value.extent == extent
            if value.cost and not (alone and cost + value.cost <= MOST_FUSED):
                value = self.of(a)
            cost += value.cost
            texts.append(f"({value.text})" if value.cost else value.text)
        return Value(spell(texts), extent, cost)

    def _expand(self, node: Node) -> Value:
        return self.of(node.args[0])

    def _reshape(self, node: Node) -> Value:
        (arg,) = node.args
        value = self.of(arg)
        if not value.extent or node.shape == arg.shape:
            return value
        return Value(self.assign(f"reshape({self.solid(arg)}, {dims(node.shape)})"), node.shape)

    def _reduce(self, node: Node) -> Value:
        (arg,) = node.args
        over = node.attr("dims")
        if not over:
            return self.values[id(arg)]
        axes = ", ".join(str(arg.ndim - d) for d in reversed(over))
        function = _REDUCTIONS[node.op]
        reduced = f"{function}({self.solid(arg)}; dims = ({axes},))"
        return Value(self.assign(f"reshape({reduced}, {dims(node.shape)})"), node.shape)

    def _matmul(self, node: Node) -> Value:
        a, b = node.args
        m, n = node.shape
        k = a.shape[1]
        if k == 1:
            # an outer product: the factors broadcast against each other
            extents = [self.values[id(x)].extent for x in (a, b)]
            extent = joint_extent(e for e in extents if e)
            return self.broadcast((a, b), extent, lambda texts: f"{texts[0]} * {texts[1]}")
        if node.size == 0 or k == 0:
            return Value(julia_ops.literal(0, "f", self.dtype), None)
        return Value(self.assign(f"{self._matrix(b)} * {self._matrix(a)}"), node.shape)

    def _matrix(self, node: Node) -> str:
        """A factor of a product: a permuted one as the transpose of what it was."""
        if self.stays_transposed(node):
            return f"transpose({self.solid(node.args[0])})"
        return self.solid(node)

    def stays_transposed(self, node: Node) -> bool:
        """Whether a permuted matrix is a factor of products alone, which read it as it was."""
        return (
            node.op == "permute"
            and node.ndim == 2
            and node is not self.output
            and all(x.op == "matmul" and x.args[0].shape[1] > 1 for x in self.takers[id(node)])
        )

    def _cat(self, node: Node) -> Value:
        """Parts are computed right into their place."""
        direct = node is self.output and self.users[id(node)] == 1
        array = "out" if direct else self.empty(node.shape, node.kind)
        flat = node.op == "pack"
        dim = 0 if flat else node.attr("dim")
        whole = self.assign(f"reshape({array}, {node.size})") if flat else array
        position = 0
        for arg in node.args:
            length = 1 if flat else arg.shape[dim]
            ranges = [":"] * (1 if flat else node.ndim)
            ranges[len(ranges) - 1 - dim] = f"{position + 1}:{position + length}"
            if arg.size:
                value = self.values[id(arg)]
                part = self.assign(f"view({whole}, {', '.join(ranges)})", "w")
                alone = self.users[id(arg)] == 1
                text = value.text if alone else self.of(arg).text
                self.lines.append(f"@. {part} = {text}")
            position += length
        return Value(array, node.shape)
