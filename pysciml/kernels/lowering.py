"""What the ``lower_*`` modules share: the registry of lowerings and helpers that build nodes.

A *lowering* is a function that writes one ATen operation with the primitives of
:mod:`pysciml.kernels.graph`. It is called as ``rule(ctx, *args, **kwargs)`` with the operation's
own arguments, tensors replaced by nodes, and returns a node, a tuple of values, or a concrete
tensor (a constant that later operations may still fold in torch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pysciml.kernels.graph import Node, Shape, const, make

#: Lowerings by ATen name with overload, such as ``"add.Tensor"``.
RULES: dict[str, Callable[..., Any]] = {}


class LoweringError(Exception):
    """An operation (or one use of it) that cannot be written with the graph's primitives."""


def lowers(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a rule for ATen operations; a bare name stands for its ``default`` overload."""

    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            key = name if "." in name else name + ".default"
            assert key not in RULES, key
            RULES[key] = rule
        return rule

    return register


def kind_of(dtype: torch.dtype) -> str:
    """The kind ("f", "i" or "b") that values of a torch dtype have in the graph."""
    if dtype == torch.bool:
        return "b"
    if dtype.is_complex:
        raise LoweringError("complex numbers are not supported in a kernel")
    return "f" if dtype.is_floating_point else "i"


def tensor_node(tensor: torch.Tensor) -> Node:
    """A concrete tensor as a literal; a uniform real one as an expanded scalar."""
    kind = kind_of(tensor.dtype)
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.double()
    array = tensor.numpy()
    if kind == "f" and array.size > 1:
        first = array.flat[0]
        if np.all(array == first):
            return full(array.shape, float(first))
    return const(np.array(array))


def scalar(value: float | int | bool, kind: str) -> Node:
    """A literal of shape () and the given kind."""
    return const(np.asarray(value, {"f": np.float64, "i": np.int64, "b": np.bool_}[kind]))


def full(shape: Shape, value: float, kind: str = "f") -> Node:
    """A value repeated to ``shape``, kept as a scalar literal and an ``expand``."""
    node = scalar(value, kind)
    if shape == ():
        return node
    return make("expand", make("reshape", node, shape=(1,) * len(shape)), shape=tuple(shape))


def uniform(node: Node) -> Node | None:
    """The scalar that an array repeats, when the node says so plainly; else None."""
    while node.op in ("expand", "reshape", "permute", "slice", "flip") and node.args:
        if node.args[0].size == 1 and node.args[0].shape == ():
            return node.args[0]
        node = node.args[0]
    if node.size == 1:
        return reshape(node, ())
    return None


def literal(node: Node) -> np.ndarray | None:
    """The value of a node that is a literal behind views only; else None."""
    if node.op == "const":
        return node.value
    if not node.args:
        return None
    inner = literal(node.args[0]) if len(node.args) == 1 else None
    if inner is None:
        return None
    if node.op == "reshape":
        return inner.reshape(node.shape)
    if node.op == "expand":
        return np.broadcast_to(inner, node.shape)
    if node.op == "permute":
        return inner.transpose(node.attr("perm"))
    if node.op == "cast":
        return inner.astype({"f": np.float64, "i": np.int64, "b": np.bool_}[node.kind])
    return None


def as_node(value: Any, kind: str | None = None) -> Node:
    """A node, tensor or number as a node, cast to ``kind`` if given."""
    if isinstance(value, Node):
        node = value
    elif isinstance(value, torch.Tensor):
        node = tensor_node(value)
    elif isinstance(value, bool):
        node = scalar(value, "b")
    elif isinstance(value, int):
        node = scalar(value, "i")
    elif isinstance(value, float):
        node = scalar(value, "f")
    else:
        raise LoweringError(f"an argument of type {type(value).__name__} is not understood")
    return node if kind is None else cast(node, kind)


def cast(node: Node, kind: str) -> Node:
    """The node as another kind; literals are cast on the spot."""
    if node.kind == kind:
        return node
    if node.is_const:
        return const(node.value.astype({"f": np.float64, "i": np.int64, "b": np.bool_}[kind]))
    if kind == "b":
        return make("ne", node, scalar(0, node.kind))
    return make("cast", node, kind=kind)


def promote(*kinds: str) -> str:
    """The kind of arithmetic between kinds: real over integer over boolean."""
    return "f" if "f" in kinds else "i" if "i" in kinds else "b"


def reshape(node: Node, shape: Sequence[int]) -> Node:
    shape = tuple(shape)
    if node.shape == shape:
        return node
    if node.op == "reshape":
        node = node.args[0]
        if node.shape == shape:
            return node
    if node.is_const:
        return const(node.value.reshape(shape))
    return make("reshape", node, shape=shape)


def permute(node: Node, perm: Sequence[int]) -> Node:
    perm = tuple(p % node.ndim for p in perm) if node.ndim else ()
    if perm == tuple(range(node.ndim)):
        return node
    return make("permute", node, perm=perm)


def expand(node: Node, shape: Sequence[int]) -> Node:
    """Broadcast to ``shape``: new leading axes and axes of length 1 repeat."""
    shape = tuple(shape)
    if node.shape == shape:
        return node
    if node.ndim < len(shape):
        node = reshape(node, (1,) * (len(shape) - node.ndim) + node.shape)
    return node if node.shape == shape else make("expand", node, shape=shape)


def broadcast_shape(*shapes: Shape) -> Shape:
    return tuple(np.broadcast_shapes(*shapes))


def elementwise(op: str, *args: Any, kind: str | None = None, shape: Shape | None = None) -> Node:
    """An elementwise operation with torch's broadcasting written out.

    Arguments are nodes, tensors or numbers and are promoted to ``kind`` (the promoted kind of all
    unless given; "" leaves each as it is). Those of one element become scalars.
    """
    nodes = [as_node(a) for a in args]
    if kind is None:
        kind = promote(*(n.kind for n in nodes))
    if kind:
        nodes = [cast(n, kind) for n in nodes]
    target = broadcast_shape(*(n.shape for n in nodes)) if shape is None else shape
    fitted = []
    for n in nodes:
        if n.shape != target or n.size == 1 or n.op in ("expand", "const"):
            small = uniform(n)
            n = expand(n, target) if small is None else small
        fitted.append(n)
    out = make(op, *fitted)
    return expand(out, target) if out.size != 1 or target == () else _fill(out, target)


def _fill(node: Node, shape: Shape) -> Node:
    """A one-element node repeated to ``shape``."""
    return expand(reshape(node, (1,) * len(shape)), shape)


def slice_axis(node: Node, dim: int, start: int, stop: int, step: int = 1) -> Node:
    """``node[start:stop:step]`` along one axis, bounds already within the axis."""
    if start == 0 and stop == node.shape[dim] and step == 1:
        return node
    starts, stops, steps = [0] * node.ndim, list(node.shape), [1] * node.ndim
    starts[dim], stops[dim], steps[dim] = start, max(start, stop), step
    return make("slice", node, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


def pad_axis(node: Node, dim: int, lo: int, hi: int, interior: int = 0) -> Node:
    """Zeros put around (and between) the entries of one axis."""
    if lo == hi == interior == 0:
        return node
    los, his, gaps = [0] * node.ndim, [0] * node.ndim, [0] * node.ndim
    los[dim], his[dim], gaps[dim] = lo, hi, interior
    return make("pad", node, lo=tuple(los), hi=tuple(his), interior=tuple(gaps))


def cat(nodes: Sequence[Node], dim: int) -> Node:
    return nodes[0] if len(nodes) == 1 else make("cat", *nodes, dim=dim)


def axes(dims: Any, ndim: int) -> tuple[int, ...]:
    """torch's ``dim`` argument (None, a number or a list) as sorted axes; none means all."""
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return tuple(range(ndim))
    if isinstance(dims, int):
        dims = [dims]
    return tuple(sorted(d % ndim for d in dims)) if ndim else ()


def reduce(op: str, node: Node, dims: Any, keepdim: bool = False) -> Node:
    """A reduction with torch's ``dim`` and ``keepdim``."""
    which = axes(dims, node.ndim)
    out = make(op, node, dims=which) if which else node
    if op in ("any", "all") and not which:
        out = cast(node, "b")
    if keepdim:
        out = reshape(out, tuple(1 if i in which else d for i, d in enumerate(node.shape)))
    return out
