"""What the writer of scalar-mode source keeps: the text of every scalar and array so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from pysciml.kernels.graph import Graph, Node
from pysciml.kernels.numpy_memory import CALL, FIXED, STATIC, VIEWS, Memory, Ref

CONVERT = {"f": "float", "i": "int", "b": "bool"}
DTYPE = {"f": "float64", "i": "int64", "b": "bool_"}


@dataclass(frozen=True)
class Text:
    """A scalar expression, fast and careful; ``atom``: a name or a literal."""

    fast: str
    careful: str
    atom: bool = True

    @property
    def operand(self) -> str:
        return self.fast if self.atom else f"({self.fast})"


class Writer:
    """Statements by when they run, and what names and memory values have.

    ``statics`` make memory and literals, ``prologue`` computes what depends on fixed inputs alone;
    ``head`` and ``body`` are the kernel, each statement twice: fast and careful.
    """

    def __init__(self, graph: Graph, fixed: frozenset[str]) -> None:
        self.graph = graph
        self.fixed = fixed
        self.statics: list[str] = []
        self.prologue: list[str] = []
        self.head: list[tuple[str, str]] = []
        self.body: list[tuple[str, str]] = []
        self.memory = Memory(self.statics)
        self.literals: list[np.ndarray] = []
        self.stage: dict[int, int] = {}
        self.uses: Counter[int] = Counter()
        self.elements: dict[int, dict[int, Node]] = {}
        self.texts: dict[int, Text] = {}
        self.refs: dict[int, Ref] = {}
        self.names: dict[int, str] = {}  # fixed values in the prologue
        self.places: dict[int, Ref] = {}
        self.copies: dict[int, Ref] = {}
        self.cells: dict[int, str] = {}
        self.arrays = False

    def text(self, node: Node) -> Text:
        """A scalar's expression, for use in a call."""
        if id(node) not in self.texts:
            name = self.names[id(node)]  # a fixed value
            if not node.is_const:
                plain = "f" + name.removeprefix("x_")
                self.prologue.append(f"{plain} = {name}.item()")
                name = plain
            self.texts[id(node)] = Text(name, name)
        return self.texts[id(node)]

    def define(self, node: Node, fast: str, slow: str | None = None) -> None:
        """A statement that gives a scalar its name."""
        name = self.memory.name("s")
        self.body.append((f"{name} = {fast}", f"{name} = {slow or fast}"))
        self.texts[id(node)] = Text(name, name)

    def named(self, node: Node) -> Text:
        text = self.text(node)
        if not text.atom:
            self.define(node, text.fast, text.careful)
        return self.texts[id(node)]

    def ref(self, node: Node) -> Ref:
        """An array's text, made now if it is a view."""
        if id(node) not in self.refs:
            assert node.op in VIEWS, node
            (x,) = node.args
            if x.shape == ():
                self.refs[id(node)] = self.cell_array(x, node)
                return self.refs[id(node)]
            source = self.ref(x)
            if source.stage == CALL:
                source = self.copied(x, source)
            view = self.memory.view(node, source)
            if view is None:  # a reshape that needs its elements moved
                view = self.memory.buffer(node.shape, node.kind)
                as_source = self.memory.reshaped(view, x.shape)
                self.step(f"{as_source.name}[...] = {source.name}")
            self.refs[id(node)] = view
        return self.refs[id(node)]

    def cell_array(self, scalar: Node, node: Node) -> Ref:
        """A scalar as an array of one element (or many)."""
        buffer = self.memory.buffer(node.shape, node.kind)
        text = self.text(scalar)
        self.body.append(
            (f"{buffer.name}[...] = {text.fast}", f"{buffer.name}[...] = {text.careful}")
        )
        return buffer

    def copied(self, node: Node, ref: Ref) -> Ref:
        """An input in the kernel's own memory, so that views of it can be made beforehand."""
        if id(node) not in self.copies:
            buffer = self.memory.buffer(node.shape, node.kind)
            self.head.append((f"{buffer.name}[...] = {ref.name}",) * 2)
            self.copies[id(node)] = buffer
        return self.copies[id(node)]

    def step(self, text: str) -> None:
        self.arrays = True
        self.body.append((text, text))

    def flat(self, node: Node) -> str:
        """An array as one axis, contiguous."""
        while node.op == "reshape" and node.args[0].shape != ():
            node = node.args[0]
        ref = self.ref(node)
        if node.ndim == 1:
            if ref.stage != STATIC or ref.contiguous:
                return ref.name
        if ref.stage == FIXED:
            return self.fixed_view(ref.name + ".reshape(-1)")
        if ref.stage == CALL:
            return self.memory.reshaped(self.copied(node, ref), (node.size,)).name
        if not ref.contiguous:
            copy = self.memory.buffer(node.shape, node.kind)
            self.step(f"{copy.name}[...] = {ref.name}")
            ref = copy
        return self.memory.reshaped(ref, (node.size,)).name

    def fixed_view(self, text: str) -> str:
        name = self.memory.name("h")
        self.prologue.append(f"{name} = {text}")
        return name

    def operand(self, node: Node) -> str:
        """An argument of an array operation; a scalar sits in an array of rank 0, which NumPy
        takes faster than a Python number."""
        if node.shape != ():
            while node.op == "expand":
                node = node.args[0]
            return self.ref(node).name
        if id(node) not in self.cells:
            dtype = DTYPE[node.kind]
            cell = self.memory.name("z")
            if self.stage[id(node)] == FIXED:
                self.prologue.append(f"{cell} = array({self.names[id(node)]}, {dtype})")
            else:
                self.statics.append(f"{cell} = empty((), {dtype})")
                text = self.text(node)
                self.body.append((f"{cell}[()] = {text.fast}", f"{cell}[()] = {text.careful}"))
            self.cells[id(node)] = cell
        return self.cells[id(node)]
