"""Which memory the statements of a kernel over a batch write to, and when they let it go.

Large values are as long as a batch. Made anew by every statement and kept to the end, they leave
the cache and are asked of the system again and again. Elementwise results are written over the
argument that nothing reads any more; others, and products, into slots: memory that one value after
another takes, made once for all parts of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pysciml.kernels import fold
from pysciml.kernels.graph import BINARY, UNARY, Node
from pysciml.kernels.numpy_memory import VIEWS

#: Operations that only look at memory (taking one number does), and those of them that look at all
#: of it, each once.
_LOOKS = VIEWS | {"elem", "take"}
_WHOLE = frozenset(("reshape", "permute", "flip"))
#: Operations whose result is surely new memory, of float64.
_NEW = UNARY | BINARY | {"matmul", "sum"}
#: Numbers an entry of the batch, from which on a value is worth a slot.
_SLOT = 64


class Reuse:
    """One instance a program.

    Parameters
    ----------
    nodes : in the order of their statements
    reads : the values that a node's statements read
    kept : values that are read after the last statement
    many : whether a value carries the batch axis
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        reads: Callable[[Node], Iterable[Node]],
        kept: Iterable[Node],
        many: Callable[[Node], bool],
    ) -> None:
        self._many = many
        self._root: dict[int, Node] = {}
        self._last: dict[int, int] = {}
        self._dying: dict[int, list[Node]] = {}
        self._names: dict[int, list[str]] = {}
        #: Numbers an entry that each slot has.
        self.slots: list[int] = []
        self._free: dict[int, list[int]] = {}
        self._taken: dict[int, int] = {}
        self._kept: set[int] = set()
        count = 0
        for count, node in enumerate(nodes):
            looks = node.op in _LOOKS and many(node.args[0])
            self._root[id(node)] = self._root[id(node.args[0])] if looks else node
            for read in reads(node):
                self._last[id(self._root[id(read)])] = count
        for node in kept:
            self._kept.add(id(self._root[id(node)]))
            self._last[id(self._root[id(node)])] = count + 1
        for node_id, last in self._last.items():
            root = self._root[node_id]
            if many(root) and root.op != "input":
                self._dying.setdefault(last, []).append(root)

    def over(self, node: Node, at: int) -> Node | None:
        """The argument that the statement of ``node``, the ``at``-th, may write its result over."""
        if not self._elementwise(node):
            return None
        kept = id(node) in self._kept
        for a in node.args:
            whole = a
            while whole.op in _WHOLE:
                whole = whole.args[0]
            if (
                self._many(a)
                and a.shape == node.shape
                and whole.op in _NEW
                and all(b.kind == "f" for b in whole.args)
                and self._last[id(whole)] == at
                and not (kept and id(whole) in self._taken)
            ):
                return a
        return None

    def slot(self, node: Node) -> int | None:
        """A slot for the result of ``node``, where it can take one and is worth it."""
        able = node.op == "matmul" or self._elementwise(node)
        if not able or node.size < _SLOT or id(node) in self._kept:
            return None
        free = self._free.get(node.size)
        if free:
            slot = free.pop()
        else:
            slot = len(self.slots)
            self.slots.append(node.size)
        self._taken[id(node)] = slot
        return slot

    def made(self, node: Node, names: Iterable[str], over: Node | None) -> None:
        """Say what a value is called, and which argument's memory it took."""
        root = id(self._root[id(node)])
        mine = self._names.setdefault(root, [])
        if over is not None:
            before = id(self._root[id(over)])
            mine.extend(self._names.pop(before, ()))
            if before in self._taken:
                self._taken[root] = self._taken.pop(before)
        mine.extend(name for name in names if name not in mine)

    def dead(self, at: int) -> list[str]:
        """Names that nothing reads after the ``at``-th node's statements. Slots get free."""
        names: list[str] = []
        for root in self._dying.get(at, ()):
            names += self._names.pop(id(root), ())
            if id(root) in self._taken:
                slot = self._taken.pop(id(root))
                self._free.setdefault(self.slots[slot], []).append(slot)
        return names

    def _elementwise(self, node: Node) -> bool:
        function = fold.FUNCTIONS.get(node.op)
        return (
            node.op in UNARY | BINARY
            and isinstance(function, np.ufunc)
            and node.kind == "f"
            and all(a.kind == "f" for a in node.args)
        )
