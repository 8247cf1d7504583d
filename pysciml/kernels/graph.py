"""The kernel graph: a closed set of primitive operations with shapes on every value.

A captured torch function becomes a :class:`Graph` of :class:`Node` objects. Both emitters
(NumPy and Julia) read this one form, so the set of operations is closed: an operation that is
not in :data:`OPS` does not exist, and lowering a torch operation means writing it with these.

Conventions
-----------
* Shapes and axes are row-major, as in torch and NumPy.
* A value has a *kind*, not a dtype: ``"f"`` real, ``"i"`` integer, ``"b"`` boolean. The real
  element type (float64, float32, a dual number) is the emitter's business.
* Elementwise operations take arguments of one common shape; an argument of shape ``()`` stands
  beside any shape. All other broadcasting is written out with ``reshape`` and ``expand``.
* Reductions drop their axes. ``matmul`` and ``solve`` take operands of rank 2, or of rank 3 with
  equal leading (batch) length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]

#: Elementwise functions of one real argument with a real result.
UNARY = frozenset(
    "neg abs sign exp expm1 exp2 log log1p log2 log10 sqrt rsqrt reciprocal "
    "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh "
    "erf erfc lgamma digamma sigmoid softplus floor ceil round trunc".split()
)
#: Elementwise functions of two arguments, result of the arguments' kind.
BINARY = frozenset("add sub mul div pow maximum minimum atan2 fmod remainder floordiv".split())
#: Elementwise comparisons, boolean result.
COMPARE = frozenset("eq ne lt le gt ge".split())
#: Elementwise boolean functions.
LOGICAL = frozenset("and or xor not isnan isinf".split())
#: Reductions over ``dims`` (a sorted tuple of axes), which are dropped.
REDUCE = frozenset("sum prod amax amin any all".split())
#: Elementwise operations as a whole.
ELEMENTWISE = UNARY | BINARY | COMPARE | LOGICAL | {"where", "cast"}

#: Every operation, with what its attributes mean.
OPS: dict[str, str] = {
    **{op: "elementwise, one argument" for op in UNARY},
    **{op: "elementwise, two arguments" for op in BINARY | COMPARE},
    **{op: "elementwise, boolean" for op in LOGICAL},
    "where": "elementwise: condition, a, b",
    "cast": "elementwise: kind=; real to integer truncates",
    **{op: "reduction: dims=" for op in REDUCE},
    "input": "name=: an argument of the kernel",
    "const": "value=: a literal array (Const)",
    "matmul": "matrix product, rank 2 or batched rank 3",
    "solve": "A, B: X with A X = B, rank 2 or batched rank 3",
    "argmax": "dim=: integer result, axis dropped",
    "argmin": "dim=: integer result, axis dropped",
    "cumsum": "dim=",
    "cumprod": "dim=",
    "sort": "dim=, descending=: sorted values",
    "argsort": "dim=, descending=: integer result, stable",
    "reshape": "row-major reshape to the node's shape",
    "permute": "perm=: output axis i is input axis perm[i]",
    "expand": "same rank; axes of length 1 repeat to the node's shape",
    "flip": "dims=",
    "slice": "starts=, stops=, steps=: one entry an axis, positive steps",
    "cat": "dim=: one or more arguments",
    "pad": "lo=, hi=, interior=: one entry an axis, zeros (of the kind) put around and between",
    "take": "x (1-d), idx (any shape): x[idx], result of idx's shape; idx within [0, len)",
    "scatter_add": "idx, vals (one shape), size=: zeros(size) with vals added at idx",
    "scatter_set": "base (1-d), idx, vals (one shape): base with base[idx] = vals",
    "searchsorted": "sorted (1-d), values (any shape); right=: insertion indices",
    "pack": "scalars to an array: arguments of shape (), row-major, to the node's shape",
    "elem": "array to scalar: index= (flat, row-major)",
}


class Const:
    """A literal array that can be hashed and compared by value."""

    __slots__ = ("_key", "value")

    def __init__(self, value: np.ndarray) -> None:
        value = np.ascontiguousarray(value).reshape(np.shape(value))  # keeps rank 0
        value.setflags(write=False)
        self.value = value
        self._key = (value.shape, value.dtype.str, value.tobytes())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Const) and self._key == other._key

    def __repr__(self) -> str:
        if self.value.ndim == 0:
            return repr(self.value.item())
        return f"Const{self.value.shape}"


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One value: an operation, its arguments, and the shape and kind of the result.

    Nodes compare by identity; :meth:`key` is what common-subexpression elimination compares.
    """

    op: str
    args: tuple[Node, ...]
    attrs: tuple[tuple[str, Any], ...]
    shape: Shape
    kind: str

    def attr(self, name: str) -> Any:
        for key, value in self.attrs:
            if key == name:
                return value
        raise KeyError(f"{self.op} has no attribute {name!r}")

    @property
    def size(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_const(self) -> bool:
        return self.op == "const"

    @property
    def value(self) -> np.ndarray:
        """The literal of a ``const`` node."""
        return self.attr("value").value

    def key(self) -> tuple[Any, ...]:
        return (self.op, tuple(id(a) for a in self.args), self.attrs, self.shape, self.kind)

    def __repr__(self) -> str:
        attrs = "".join(f", {k}={v!r}" for k, v in self.attrs)
        args = ", ".join(f"{a.op}{list(a.shape)}" for a in self.args)
        return f"{self.op}({args}{attrs}) -> {self.kind}{list(self.shape)}"


@dataclass(frozen=True)
class Graph:
    """A kernel: named inputs to a tuple of outputs.

    ``inputs`` are ``input`` nodes in the order of the kernel's arguments. An input that no output
    depends on is still listed.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    name: str = "kernel"
    _order: list[tuple[Node, ...]] = field(default_factory=list, repr=False, compare=False)

    def nodes(self) -> tuple[Node, ...]:
        """Every node that an output needs (and every input), arguments before users."""
        if not self._order:
            self._order.append(topological(self.inputs + self.outputs))
        return self._order[0]

    def input(self, name: str) -> Node:
        for node in self.inputs:
            if node.attr("name") == name:
                return node
        raise KeyError(name)

    def __str__(self) -> str:
        number = {id(n): i for i, n in enumerate(self.nodes())}
        lines = [f"{self.name}:"]
        for n in self.nodes():
            attrs = "".join(f" {k}={v!r}" for k, v in n.attrs)
            args = " ".join(f"%{number[id(a)]}" for a in n.args)
            lines.append(f"  %{number[id(n)]} = {n.op} {args}{attrs} : {n.kind}{list(n.shape)}")
        lines.append("  return " + " ".join(f"%{number[id(o)]}" for o in self.outputs))
        return "\n".join(lines)


def topological(roots: Iterable[Node]) -> tuple[Node, ...]:
    """The roots and all they depend on, arguments first. Iterative: graphs can be deep."""
    order: list[Node] = []
    seen: set[int] = set()
    for root in roots:
        stack: list[tuple[Node, int]] = [(root, 0)]
        while stack:
            node, i = stack.pop()
            if i == 0:
                if id(node) in seen:
                    continue
                seen.add(id(node))
            if i < len(node.args):
                stack.append((node, i + 1))
                if id(node.args[i]) not in seen:
                    stack.append((node.args[i], 0))
            else:
                order.append(node)
    return tuple(order)


def _broadcast(op: str, args: Sequence[Node]) -> Shape:
    shape: Shape = ()
    for a in args:
        if a.shape == ():
            continue
        if shape not in ((), a.shape):
            raise ValueError(f"{op}: shapes {shape} and {a.shape} differ")
        shape = a.shape
    return shape


def _infer(op: str, args: Sequence[Node], attrs: dict[str, Any]) -> tuple[Shape, str]:
    """Shape and kind of a result, where they follow from the arguments."""
    if op in UNARY or op in BINARY:
        kind = "f" if any(a.kind == "f" for a in args) else args[0].kind
        return _broadcast(op, args), kind
    if op in COMPARE or op in LOGICAL:
        return _broadcast(op, args), "b"
    if op == "where":
        kind = "f" if "f" in (args[1].kind, args[2].kind) else args[1].kind
        return _broadcast(op, args), kind
    if op == "cast":
        return args[0].shape, attrs["kind"]
    if op in REDUCE:
        shape = tuple(d for i, d in enumerate(args[0].shape) if i not in attrs["dims"])
        return shape, "b" if op in ("any", "all") else args[0].kind
    if op in ("argmax", "argmin"):
        return tuple(d for i, d in enumerate(args[0].shape) if i != attrs["dim"]), "i"
    if op in ("cumsum", "cumprod", "sort", "flip"):
        return args[0].shape, args[0].kind
    if op == "argsort":
        return args[0].shape, "i"
    if op == "matmul":
        a, b = args
        if a.ndim != b.ndim or a.ndim not in (2, 3) or a.shape[-1] != b.shape[-2]:
            raise ValueError(f"matmul: shapes {a.shape} and {b.shape}")
        if a.shape[:-2] != b.shape[:-2]:
            raise ValueError(f"matmul: batch shapes {a.shape} and {b.shape} differ")
        return (*a.shape[:-1], b.shape[-1]), "f"
    if op == "solve":
        a, b = args
        if a.ndim != b.ndim or a.ndim not in (2, 3) or a.shape[-1] != b.shape[-2]:
            raise ValueError(f"solve: shapes {a.shape} and {b.shape}")
        return b.shape, "f"
    if op == "permute":
        return tuple(args[0].shape[i] for i in attrs["perm"]), args[0].kind
    if op == "slice":
        spans = zip(attrs["starts"], attrs["stops"], attrs["steps"], strict=True)
        return tuple(len(range(a, b, s)) for a, b, s in spans), args[0].kind
    if op == "cat":
        dim = attrs["dim"]
        joined = list(args[0].shape)
        joined[dim] = sum(a.shape[dim] for a in args)
        return tuple(joined), args[0].kind
    if op == "pad":
        padding = zip(args[0].shape, attrs["lo"], attrs["hi"], attrs["interior"], strict=True)
        return (
            tuple(lo + d + max(d - 1, 0) * gap + hi for d, lo, hi, gap in padding),
            args[0].kind,
        )
    if op == "take":
        return args[1].shape, args[0].kind
    if op == "scatter_add":
        return (attrs["size"],), args[1].kind
    if op == "scatter_set":
        return args[0].shape, args[0].kind
    if op == "searchsorted":
        return args[1].shape, "i"
    if op == "elem":
        return (), args[0].kind
    raise ValueError(f"{op}: its shape must be given")


def make(
    op: str,
    *args: Node,
    shape: Shape | None = None,
    kind: str | None = None,
    **attrs: Any,
) -> Node:
    """A node of operation ``op``; shape and kind are inferred where they follow from the arguments.

    ``reshape``, ``expand`` and ``pack`` take ``shape=``.
    """
    if op not in OPS:
        raise ValueError(f"{op!r} is not an operation of the kernel graph")
    if op == "cast":
        assert kind is not None
        attrs["kind"] = kind
    if op in ("reshape", "expand", "pack"):
        assert shape is not None
        inferred, inferred_kind = tuple(shape), args[0].kind
    else:
        inferred, inferred_kind = _infer(op, args, attrs)
    return Node(op, tuple(args), tuple(sorted(attrs.items())), inferred, kind or inferred_kind)


def input_node(name: str, shape: Shape, kind: str = "f") -> Node:
    return Node("input", (), (("name", name),), tuple(shape), kind)


def const(value: Any) -> Node:
    """A literal. Real values are kept in float64, integers in int64."""
    array = np.asarray(value)
    if array.dtype == np.bool_:
        kind = "b"
    elif np.issubdtype(array.dtype, np.integer):
        kind, array = "i", array.astype(np.int64)
    elif np.issubdtype(array.dtype, np.floating):
        kind, array = "f", array.astype(np.float64)
    else:
        raise TypeError(f"a constant of dtype {array.dtype} cannot stand in a kernel")
    return Node("const", (), (("value", Const(array)),), array.shape, kind)
