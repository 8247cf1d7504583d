"""Julia source of a kernel graph: loops and small products over flat buffers.

The emitted function is ``kernel(ws, outs..., inputs...)``. Values of rank 0 are local variables;
arrays live in the flat workspace ``ws`` that the caller owns (``ws.f``, ``ws.i``, ``ws.b``), and
are addressed by views (:mod:`pysciml.kernels.strided`), so that a permuted, sliced or reshaped
array costs nothing and weights are read in place from ``p``. An output of several axes is a Julia
array with the dimensions reversed: the same memory. Elementwise operations with one user are
fused into that user's loop, and so are products whose sums have a few terms. Nothing is allocated,
and nothing depends on the element type, so the same source serves dual numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pysciml.kernels import julia_arrays, julia_ops
from pysciml.kernels.graph import ELEMENTWISE, REDUCE, Graph, Node
from pysciml.kernels.strided import View, contiguous, merge_axes

#: Operations that only look at their argument's memory differently.
_MOVES = frozenset({"reshape", "permute", "expand", "flip", "slice"})
#: Products (m, k) (k, n) that a loop over m and n computes as it goes: k at most, m and n at least.
#: BLAS would write and read again what takes less time to compute.
_FEW_TERMS, _ROWS, _COLUMNS = 4, 4, 16
_NEUTRAL = {"sum": "0", "prod": "1", "any": "false", "all": "true"}


#: An array that a loop reads: a value, or one column or row of a product's factors.
Leaf = int | tuple[int, str, int]


@dataclass(frozen=True)
class JuliaSource:
    """A kernel as Julia source.

    ``text`` is an anonymous function; ``sizes`` the lengths of the three buffers it works in
    (real, integer, boolean); ``constants`` its literal arrays, flat, real and integer and
    boolean. ``inputs`` and ``outputs`` state the arguments: names, and shapes of the outputs.
    """

    text: str
    sizes: tuple[int, int, int]
    constants: tuple[np.ndarray, np.ndarray, np.ndarray]
    inputs: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]


def emit(graph: Graph, dtype: str = "float64") -> JuliaSource:
    """Julia source of ``graph`` over real numbers of ``dtype`` (``"float64"`` or ``"float32"``).

    Inputs are vectors, or of rank 0 (a number in Julia).
    """
    return Emitter(graph, dtype).run()


@dataclass
class Emitter:
    """The state of one emission: lines so far, where every array lives, what is still lazy."""

    graph: Graph
    dtype: str
    lines: list[str] = field(default_factory=list)
    views: dict[int, View] = field(default_factory=dict)
    scalars: dict[int, str] = field(default_factory=dict)
    targets: dict[int, View] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=lambda: {"f": 0, "i": 0, "b": 0})
    literals: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {"f": [], "i": [], "b": []}
    )
    names: int = 0

    # -- the whole ---------------------------------------------------------------------------

    def run(self) -> JuliaSource:
        nodes = self.graph.nodes()
        self.users = Counter(id(a) for n in nodes for a in n.args)
        self.users.update(id(o) for o in self.graph.outputs)
        self.fused = self._find_fused(nodes)
        outs = self._out_names()
        self._place_outputs(outs)
        self._place_parts(nodes)
        for node in nodes:
            if id(node) not in self.fused:
                self._emit(node)
        for name, node in zip(outs, self.graph.outputs, strict=True):
            self._finish(name, node)
        return self._assemble(outs)

    def _out_names(self) -> list[str]:
        n = len(self.graph.outputs)
        return ["out"] if n == 1 else [f"out{i + 1}" for i in range(n)]

    def _assemble(self, outs: Sequence[str]) -> JuliaSource:
        inputs = tuple(str(n.attr("name")) for n in self.graph.inputs)
        arguments = ", ".join(["ws", *outs, *(f"in_{name}" for name in inputs)])
        parts = {name: f"ws.{kind}" for kind, name in julia_ops.BUFFERS.items()}
        parts |= {name: f"ws.k{kind}" for kind, name in julia_ops.CONSTANTS.items()}
        words = set(re.findall(r"\w+", " ".join(self.lines)))
        head = [f"{name} = {where}" for name, where in parts.items() if name in words]
        lines = [f"function ({arguments})", *(f"    {h}" for h in head), "    @inbounds begin"]
        lines += [f"        {line}" for line in self.lines]
        lines += ["    end", "    return nothing", "end"]
        types = {"f": np.float64, "i": np.int64, "b": np.bool_}
        constants = tuple(
            np.concatenate([np.zeros(0, types[k]), *self.literals[k]]) for k in ("f", "i", "b")
        )
        return JuliaSource(
            text="\n".join(lines) + "\n",
            sizes=(self.used["f"], self.used["i"], self.used["b"]),
            constants=constants,  # type: ignore[arg-type]
            inputs=inputs,
            outputs=tuple(o.shape for o in self.graph.outputs),
        )

    # -- where values live ---------------------------------------------------------------------

    def _find_fused(self, nodes: Iterable[Node]) -> set[int]:
        """Elementwise arrays with one user that can compute them inside its own loop."""
        fused = set()
        outputs = {id(o) for o in self.graph.outputs}
        for user in nodes:
            takes = user.op in REDUCE or (user.op in ELEMENTWISE and user.shape != ())
            if not takes:
                continue
            for a in user.args:
                if (
                    (a.op in ELEMENTWISE and a.shape != () or _is_small_product(a))
                    and self.users[id(a)] == 1
                    and id(a) not in outputs
                ):
                    fused.add(id(a))
        return fused

    def _place_outputs(self, outs: Sequence[str]) -> None:
        for name, node in zip(outs, self.graph.outputs, strict=True):
            if id(node) not in self.targets and node.shape != ():
                self.targets[id(node)] = View(name, 0, node.shape, contiguous(node.shape))

    def _place_parts(self, nodes: Sequence[Node]) -> None:
        """Let values be computed right where their one user (``cat``, ...) puts them."""
        for node in reversed(nodes):
            if node.shape == () or node.op not in ("cat", "reshape", "permute", "pad"):
                continue
            if node.op in ("reshape", "permute") and id(node) not in self.targets:
                continue
            if id(node) not in self.targets:
                self.targets[id(node)] = self.buffer(node)
            where = self.targets[id(node)]
            for arg, part in self._parts(node, where):
                free = id(arg) not in self.targets and id(arg) not in self.fused
                if part is not None and free and self.users[id(arg)] == 1 and arg.shape != ():
                    self.targets[id(arg)] = part

    @staticmethod
    def _parts(node: Node, where: View) -> list[tuple[Node, View | None]]:
        if node.op == "reshape":
            return [(node.args[0], where.reshape(node.args[0].shape))]
        if node.op == "permute":
            perm = node.attr("perm")
            inverse = [perm.index(i) for i in range(len(perm))]
            return [(node.args[0], where.permute(inverse))]
        return list(zip(node.args, regions(node, where), strict=True))

    def buffer(self, node: Node) -> View:
        """Fresh, contiguous memory for a value of ``node``'s shape and kind."""
        return self.scratch(node.shape, node.kind)

    def scratch(self, shape: tuple[int, ...], kind: str = "f") -> View:
        view = View(julia_ops.BUFFERS[kind], self.used[kind], shape, contiguous(shape))
        self.used[kind] += view.size
        return view

    def target(self, node: Node) -> View:
        """Where a computed value is to be written; it is readable there from now on."""
        view = self.targets.get(id(node))
        if view is None:
            view = self.buffer(node)
        self.views[id(node)] = view
        return view

    def in_place(self, arg: Node, part: View) -> bool:
        """Whether a value was computed where it is wanted (numbers never are)."""
        return arg.shape != () and self.views[id(arg)].same(part)

    def constant(self, value: np.ndarray, kind: str) -> View:
        flat = value.reshape(-1)
        if flat.size and (flat == flat[0]).all():
            flat = flat[:1]
        offset = sum(a.size for a in self.literals[kind])
        self.literals[kind].append(flat)
        strides = contiguous(value.shape) if flat.size == value.size else (0,) * value.ndim
        return View(julia_ops.CONSTANTS[kind], offset, value.shape, strides)

    def name(self, prefix: str = "v") -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def literal(self, value: object, kind: str) -> str:
        return julia_ops.literal(value, kind, self.dtype)

    # -- one node ------------------------------------------------------------------------------

    def _emit(self, node: Node) -> None:
        op = node.op
        if op == "input":
            name = f"in_{node.attr('name')}"
            if node.shape == ():
                self.scalars[id(node)] = name
            else:
                self.views[id(node)] = View(name, 0, node.shape, contiguous(node.shape))
        elif op == "const":
            if node.shape == ():
                self.scalars[id(node)] = self.literal(node.value, node.kind)
            else:
                self.views[id(node)] = self.constant(node.value, node.kind)
        elif op in _MOVES:
            self._move(node)
        elif op == "elem":
            self._elem(node)
        elif op == "pack":
            view = self.target(node)
            for i, a in enumerate(node.args):
                self.lines.append(f"{element(view, i)} = {self.scalars[id(a)]}")
        elif op in ELEMENTWISE and node.shape == ():
            args = [self.scalars[id(a)] for a in node.args]
            name = self.scalars[id(node)] = self.name("s")
            self.lines.append(f"{name} = {julia_ops.expression(node, args, self.dtype)}")
        elif op in ELEMENTWISE:
            self.loop(node, self.target(node))
        elif op in REDUCE:
            self._reduce(node)
        elif op == "cat":
            where = self.target(node)
            for arg, part in zip(node.args, regions(node, where), strict=True):
                if not self.in_place(arg, part):
                    self.copy(self.views[id(arg)], part)
        elif op == "pad":
            where = self.target(node)
            (part,) = regions(node, where)
            inside = self.in_place(node.args[0], part)
            self._pad(node, where, part, inside)
        else:
            julia_arrays.emit(self, node)

    def _move(self, node: Node) -> None:
        arg = node.args[0]
        if arg.shape == ():
            # a reshape or expansion of a number
            view = self.scratch((1,) * max(node.ndim, 1), node.kind)
            self.lines.append(f"{element(view, 0)} = {self.scalars[id(arg)]}")
            reshaped = View(view.base, view.offset, node.shape, (0,) * node.ndim)
            self.views[id(node)] = reshaped
            return
        view = self.views[id(arg)]
        if node.op == "reshape":
            if node.shape == ():
                self.scalars[id(node)] = self._read(view, 0, node.kind)
                return
            found = view.reshape(node.shape)
            if found is None:
                found = self.target(node)
                inner = View(found.base, found.offset, arg.shape, contiguous(arg.shape))
                if not found.is_contiguous:
                    whole = self.packed(view, arg.kind).reshape(node.shape)
                    assert whole is not None
                    self.copy(whole, found)
                else:
                    self.copy(view, inner)
            self.views[id(node)] = found
        elif node.op == "permute":
            self.views[id(node)] = view.permute(node.attr("perm"))
        elif node.op == "expand":
            self.views[id(node)] = view.expand(node.shape)
        elif node.op == "flip":
            self.views[id(node)] = view.flip(node.attr("dims"))
        else:
            attrs = (node.attr("starts"), node.attr("stops"), node.attr("steps"))
            self.views[id(node)] = view.slice(*attrs)

    def _read(self, view: View, index: int, kind: str) -> str:
        name = self.name("s")
        self.lines.append(f"{name} = {element(view, index)}")
        return name

    def _elem(self, node: Node) -> None:
        arg = node.args[0]
        if arg.shape == ():
            self.scalars[id(node)] = self.scalars[id(arg)]
        else:
            self.scalars[id(node)] = self._read(self.views[id(arg)], node.attr("index"), node.kind)

    def _pad(self, node: Node, where: View, part: View, inside: bool) -> None:
        zero = self.literal(0, node.kind)
        if not inside:
            self.fill(where, zero)
            self.copy(self.views[id(node.args[0])], part)
            return
        # the argument is in place already: zeros go around (and between) it, axis by axis
        lo, hi, gap = node.attr("lo"), node.attr("hi"), node.attr("interior")
        inner = node.args[0].shape
        starts, stops = [0] * node.ndim, list(node.shape)
        for axis, (d, size) in enumerate(zip(inner, node.shape, strict=True)):
            end = size - hi[axis]
            for a, b in ((0, lo[axis]), (end, size)):
                self.fill(_narrow(where, starts, stops, axis, a, b, 1), zero)
            for k in range(1, gap[axis] + 1):
                first = lo[axis] + k
                self.fill(_narrow(where, starts, stops, axis, first, end, gap[axis] + 1), zero)
            starts[axis], stops[axis] = lo[axis], end if d else lo[axis]

    def _finish(self, name: str, node: Node) -> None:
        """Make sure that an output stands in its own array."""
        if node.shape == ():
            self.lines.append(f"{name}[1] = {self.scalars[id(node)]}")
            return
        wanted = View(name, 0, node.shape, contiguous(node.shape))
        if not self.views[id(node)].same(wanted):
            self.copy(self.views[id(node)], wanted)

    # -- loops ---------------------------------------------------------------------------------

    def copy(self, source: View, to: View) -> None:
        """``to = source``, element by element (nothing where they are one)."""
        if to.size and not source.same(to):
            _, (s, t) = self.nest(to.shape, [source, to])
            self.lines.append(f"    {t} = {s}")
            self.close()

    def packed(self, source: View, kind: str = "f") -> View:
        """A copy whose elements lie one after the other."""
        to = self.scratch(source.shape, kind)
        self.copy(source, to)
        return to

    def fill(self, to: View, value: str) -> None:
        if to.size:
            _, (t,) = self.nest(to.shape, [to])
            self.lines.append(f"    {t} = {value}")
            self.close()

    def nest(
        self, shape: tuple[int, ...], views: Sequence[View], simd: bool = True
    ) -> tuple[list[str], list[str]]:
        """Open loops over ``shape``; the loop variables, and each view's element inside them.

        The lines that follow, indented once, are the body; :meth:`close` ends it. ``simd`` says
        that the steps are independent, or joined by one sum in a local variable.
        """
        dims, strides = merge_axes(shape, [v.strides for v in views])
        variables = [self.name("i") for _ in dims]
        self._open = 0
        if not dims:
            self.lines.append("begin")
            self._open = 1
        else:
            ranges = [f"{v} = 0:{d - 1}" for v, d in zip(variables, dims, strict=True)]
            if len(ranges) > 1:
                self.lines.append("for " + ", ".join(ranges[:-1]))
                self._open = 1
            self.lines.append(f"{'@simd ivdep ' if simd else ''}for {ranges[-1]}")
            self._open += 1
        cells = [
            at(v.base, v.offset, zip(variables, s, strict=True))
            for v, s in zip(views, strides, strict=True)
        ]
        return variables, cells

    def close(self) -> None:
        self.lines += ["end"] * self._open

    def loop(self, root: Node, to: View) -> None:
        """``to = root``, with everything fused into ``root`` computed in the same loop."""
        if not to.size:
            return
        leaves = self._leaves(root)
        _, cells = self.nest(root.shape, [to, *leaves.values()])
        value = self.body(root, dict(zip(leaves, cells[1:], strict=True)))
        self.lines.append(f"    {cells[0]} = {value}")
        self.close()

    def body(self, root: Node, inside: dict[Leaf, str]) -> str:
        """Lines computing one element of ``root``; the variable or cell that holds it."""
        if id(root) in inside:
            return inside[id(root)]
        stack = [root]
        while stack:
            node = stack[-1]
            if node.op == "matmul":
                stack.pop()
                inside[id(node)] = self._terms(node, inside)
                continue
            waiting = [a for a in node.args if a.shape != () and id(a) not in inside]
            if waiting:
                stack += waiting
                continue
            stack.pop()
            if id(node) in inside:
                continue
            args = [self.scalars[id(a)] if a.shape == () else inside[id(a)] for a in node.args]
            name = self.name("e")
            self.lines.append(f"    {name} = {julia_ops.expression(node, args, self.dtype)}")
            inside[id(node)] = name
        return inside[id(root)]

    def _terms(self, product: Node, inside: dict[Leaf, str]) -> str:
        """The element of a product with few terms."""
        name = self.name("e")
        total = ""
        for term in range(product.args[0].shape[1]):
            a, b = (inside[id(product), side, term] for side in "ab")
            total = f"muladd({a}, {b}, {total})" if total else f"{a} * {b}"
        self.lines.append(f"    {name} = {total}")
        return name

    def _leaves(self, root: Node) -> dict[Leaf, View]:
        """The arrays that a fused computation reads from memory, all of the root's shape."""
        leaves: dict[Leaf, View] = {}
        stack = [root]
        while stack:
            node = stack.pop()
            if node is not root and id(node) not in self.fused:
                leaves[id(node)] = self.views[id(node)]
            elif node.op == "matmul":
                leaves |= self._factors(node)
            else:
                stack += [a for a in node.args if a.shape != ()]
        return leaves

    def _factors(self, product: Node) -> dict[Leaf, View]:
        """What the terms of a product with few of them are made of: columns of A, rows of B."""
        a, b = (self.views[id(x)] for x in product.args)
        if b.strides[1] != 1:  # read once a row of A
            b = self.packed(b)
        factors: dict[Leaf, View] = {}
        for term in range(a.shape[1]):
            column = a.slice((0, term), (a.shape[0], term + 1), (1, 1))
            row = b.slice((term, 0), (term + 1, b.shape[1]), (1, 1))
            factors[id(product), "a", term] = column.expand(product.shape)
            factors[id(product), "b", term] = row.expand(product.shape)
        return factors

    # -- reductions ------------------------------------------------------------------------------

    def _neutral(self, node: Node) -> str:
        if node.op in _NEUTRAL:
            if node.kind == "b":
                return _NEUTRAL[node.op]
            return self.literal(int(_NEUTRAL[node.op]), node.kind)
        if node.kind == "f":
            return self.literal(-np.inf if node.op == "amax" else np.inf, "f")
        return "typemin(Int)" if node.op == "amax" else "typemax(Int)"

    def _reduce(self, node: Node) -> None:
        join = {"sum": "{} + {}", "prod": "{} * {}", "amax": "max({}, {})"}
        join |= {"amin": "min({}, {})", "any": "{} | {}", "all": "{} & {}"}
        arg = node.args[0]
        if arg.shape == ():
            self.scalars[id(node)] = self.scalars[id(arg)]
            return
        leaves = self._leaves(arg) if id(arg) in self.fused else {id(arg): self.views[id(arg)]}
        views = list(leaves.values())
        dims = set(node.attr("dims"))
        if len(dims) == arg.ndim:
            total = self.name("s")
            self.lines.append(f"{total} = {self._neutral(node)}")
            if arg.size:
                _, cells = self.nest(arg.shape, views)
                value = self.body(arg, dict(zip(leaves, cells, strict=True)))
                self.lines.append(f"    {total} = {join[node.op].format(total, value)}")
                self.close()
            self.scalars[id(node)] = total
            return
        to = self.target(node)
        self.fill(to, self._neutral(node))
        if not arg.size:
            return
        kept = iter(to.strides)
        spread = View(
            to.base,
            to.offset,
            arg.shape,
            tuple(0 if axis in dims else next(kept) for axis in range(arg.ndim)),
        )
        # innermost axis kept: the sums of neighbours are independent, else carried through memory
        wide = [axis for axis, d in enumerate(arg.shape) if d != 1]
        independent = not wide or wide[-1] not in dims
        _, cells = self.nest(arg.shape, [spread, *views], simd=independent)
        value = self.body(arg, dict(zip(leaves, cells[1:], strict=True)))
        self.lines.append(f"    {cells[0]} = {join[node.op].format(cells[0], value)}")
        self.close()


def _is_small_product(node: Node) -> bool:
    if node.op != "matmul" or node.ndim != 2:
        return False
    (m, n), k = node.shape, node.args[0].shape[1]
    return m >= _ROWS and n >= _COLUMNS and 1 <= k <= _FEW_TERMS


def regions(node: Node, where: View) -> list[View]:
    """Where the arguments of a ``cat`` or ``pad`` lie inside its result."""
    starts, stops, steps = [0] * node.ndim, list(node.shape), [1] * node.ndim
    if node.op == "pad":
        spans = zip(node.args[0].shape, node.attr("lo"), node.attr("interior"), strict=True)
        for axis, (d, lo, gap) in enumerate(spans):
            starts[axis], steps[axis] = lo, gap + 1
            stops[axis] = lo + (d - 1) * (gap + 1) + 1 if d else lo
        return [where.slice(starts, stops, steps)]
    dim, parts, position = node.attr("dim"), [], 0
    for arg in node.args:
        starts[dim], stops[dim] = position, position + arg.shape[dim]
        position = stops[dim]
        parts.append(where.slice(starts, stops, steps))
    return parts


def _narrow(
    where: View, starts: list[int], stops: list[int], axis: int, a: int, b: int, step: int
) -> View:
    first, last, steps = list(starts), list(stops), [1] * len(starts)
    first[axis], last[axis], steps[axis] = a, max(a, b), step
    return where.slice(first, last, steps)


def at(base: str, offset: int, terms: Iterable[tuple[str, int]]) -> str:
    """A cell of a buffer (Julia counts from 1): ``base[offset + 1 + sum(stride * variable)]``."""
    index = ""
    for variable, stride in terms:
        if stride:
            sign = " - " if stride < 0 else " + "
            scaled = variable if abs(stride) == 1 else f"{abs(stride)} * {variable}"
            index += f"{sign}{scaled}"
    return f"{base}[{offset + 1}{index}]"


def element(view: View, index: int) -> str:
    """The element of flat row-major ``index`` of a view."""
    offset = view.offset
    for d, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        offset += (index % d) * stride
        index //= d
    return f"{view.base}[{offset + 1}]"
