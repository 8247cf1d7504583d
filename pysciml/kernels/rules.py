"""What the simplifying rules share: the maker of nodes they are given, and tests on nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pysciml.kernels.graph import Node, Shape


class Maker(Protocol):
    """What a rule may ask of the builder that calls it (:class:`.simplify.Builder`)."""

    strong_zeros: bool

    def build(
        self,
        op: str,
        *args: Node,
        shape: Shape | None = None,
        kind: str | None = None,
        **attrs: Any,
    ) -> Node: ...

    def scalar(self, value: Any, kind: str = "f") -> Node: ...

    def literal(self, value: np.ndarray) -> Node: ...

    def full(self, value: Any, shape: Shape, kind: str = "f") -> Node: ...

    def broadcast(self, node: Node, shape: Shape, kind: str | None = None) -> Node: ...


#: A rule: the maker, the node as asked for, and its arguments in normal form (elementwise scalars
#: unexpanded, commutative ones in order); the replacement, or None to keep the node.
Rule = Callable[[Maker, Node, tuple[Node, ...]], "Node | None"]


def uniform(node: Node) -> Any:
    """The value that all elements of a literal share, or None."""
    while node.op in ("expand", "reshape"):
        node = node.args[0]
    if not node.is_const or node.size == 0:
        return None
    flat = node.value.reshape(-1)
    first = flat[0]
    if flat.size > 1 and (flat[-1] != first or not (flat == first).all()):
        return None
    return first.item()
