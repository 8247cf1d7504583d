"""Which entries of its inputs a function reads at all, and which of the state it passes on.

Unlike a Jacobian's pattern this counts what decides between values (comparisons, rounding), and
takes what it cannot tell for read, and for changed.
"""

from __future__ import annotations

import math
from typing import Any

from pysciml.kernels.graph import Graph, Node
from pysciml.kernels.scalarise import scalarise

__all__ = ["changed_entries", "entries_read"]

#: Of functions with more entries than these all counts as read and changed.
_MOST = 2000


def _by_entries(functions: Any) -> Graph | None:
    graph: Graph = functions.kernels.graph("value")
    if sum(node.size for node in graph.inputs if node.attr("name") != "c") > _MOST:
        return None
    return scalarise(graph, math.inf)


def entries_read(functions: Any, name: str) -> frozenset[int]:
    """Positions in the flat input ``name`` on which the function's value depends."""
    if functions.kernels is None:
        return frozenset(range(functions.sizes[name]))
    found: frozenset[int] = functions.kernels.once(
        ("read", name), lambda: frozenset(_read(functions, name))
    )
    return found


def _read(functions: Any, name: str) -> set[int]:
    every = set(range(functions.sizes[name]))
    graph = _by_entries(functions)
    if graph is None:
        return every if name in _inputs_used(functions.kernels.graph("value")) else set()
    found: set[int] = set()
    seen: set[int] = set()
    todo = list(graph.outputs)
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if _is_input(node, name):
            return every
        entry = _entry(node, name)
        if entry is not None:
            found.add(entry)
        else:
            todo += node.args
    return found


def changed_entries(functions: Any) -> frozenset[int]:
    """Entries of the state that a function from the state to a new one may change."""
    if functions.kernels is None:
        return frozenset(range(functions.sizes["u"]))
    found: frozenset[int] = functions.kernels.once(
        ("changed",), lambda: frozenset(_changed(functions))
    )
    return found


def _changed(functions: Any) -> set[int]:
    every = set(range(functions.sizes["u"]))
    graph = _by_entries(functions)
    if graph is None:
        return every
    (out,) = graph.outputs
    if _is_input(out, "u"):
        return set()
    if out.op != "pack":
        return every
    return {i for i, node in enumerate(out.args) if _entry(node, "u") != i}


def _is_input(node: Node, name: str) -> bool:
    return node.op == "input" and node.attr("name") == name


def _entry(node: Node, name: str) -> int | None:
    """The position of a scalar that is an entry of the input."""
    if node.op == "elem" and _is_input(node.args[0], name):
        return int(node.attr("index"))
    if _is_input(node, name) and node.shape == ():
        return 0
    return None


def _inputs_used(graph: Graph) -> set[str]:
    return {node.attr("name") for node in graph.nodes() if node.op == "input"}
