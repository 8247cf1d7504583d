"""Lowering: a functional ATen graph (``torch.fx``) to the kernel :class:`Graph`.

Operations on constants alone are run in torch, so that index tables, grids and identity
matrices arrive as literals. Everything else goes through the rules in ``lower_*.py``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_leaves, tree_map

from pysciml.kernels import lower_index, lower_reduce  # noqa: F401
from pysciml.kernels.graph import Graph, Node, input_node
from pysciml.kernels.lower_linalg import Factors
from pysciml.kernels.lowering import RULES, LoweringError, as_node, cast, kind_of, tensor_node


@dataclass
class Context:
    """What a rule can ask about the operation it lowers."""

    fx_node: FxNode | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def meta(self) -> Any:
        """The traced value's metadata (``shape`` and ``dtype``), or None where it was not kept."""
        assert self.fx_node is not None
        meta = self.fx_node.meta.get("tensor_meta")
        return meta if hasattr(meta, "shape") else None


class UnsupportedOp(LoweringError):
    """An ATen operation without a lowering, with the fx node that called it."""

    def __init__(self, message: str, fx_node: FxNode) -> None:
        super().__init__(message)
        self.fx_node = fx_node


def op_name(target: Any) -> str:
    """``add.Tensor`` for ``torch.ops.aten.add.Tensor``."""
    text = str(target)
    for prefix in ("aten.", "prims."):
        if text.startswith(prefix):
            return text[len(prefix) :] if prefix == "aten." else text
    return text


def lower(module: GraphModule, names: Sequence[str], name: str = "kernel") -> Graph:
    """Lower a functional ATen module whose placeholders are the kernel's inputs, in order.

    Raises :class:`UnsupportedOp` for an operation that has no lowering.
    """
    env: dict[FxNode, Any] = {}
    inputs: list[Node] = []
    outputs: tuple[Node, ...] = ()
    ctx = Context()
    labels = iter(names)
    for fx_node in module.graph.nodes:
        if fx_node.op == "placeholder":
            value = fx_node.meta["val"]
            node = input_node(next(labels), tuple(value.shape), kind_of(value.dtype))
            inputs.append(node)
            env[fx_node] = node
        elif fx_node.op == "get_attr":
            env[fx_node] = _attribute(module, fx_node.target)
        elif fx_node.op == "call_function":
            ctx.fx_node = fx_node
            env[fx_node] = _call(ctx, fx_node, env)
        elif fx_node.op == "output":
            result = fx_node.args[0]
            flat = result if isinstance(result, (list, tuple)) else (result,)
            outputs = tuple(cast(as_node(env[r]), "f") for r in flat)
    return Graph(tuple(inputs), outputs, name)


def _attribute(module: GraphModule, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, torch.Tensor) else value


def _call(ctx: Context, fx_node: FxNode, env: Mapping[FxNode, Any]) -> Any:
    args, kwargs = tree_map(
        lambda a: env[a] if isinstance(a, FxNode) else a, (list(fx_node.args), dict(fx_node.kwargs))
    )
    if fx_node.target is operator.getitem:
        return args[0][args[1]]
    name = op_name(fx_node.target)
    rule = RULES.get(name)
    if not any(isinstance(a, (Node, Factors)) for a in tree_leaves((args, kwargs))):
        constant = _constant(name, fx_node, args, kwargs)
        if constant is not None:
            return constant
    if rule is None:
        raise UnsupportedOp(f"{name} has no lowering", fx_node)
    args, kwargs = tree_map(
        lambda a: tensor_node(a) if isinstance(a, torch.Tensor) else a, (args, kwargs)
    )
    try:
        if args and isinstance(args[0], Factors) and name != "linalg_lu_solve.default":
            return args[0].view(rule, ctx, *args[1:], **kwargs)
        out = rule(ctx, *args, **kwargs)
    except LoweringError as error:
        raise UnsupportedOp(f"{name}: {error}", fx_node) from error
    _check(name, ctx, out)
    return out


def _constant(name: str, fx_node: FxNode, args: Any, kwargs: Any) -> Any:
    """Run an operation of constants in torch; None where it has no value of its own."""
    assert callable(fx_node.target)
    leaves = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
    if not all(a.device.type == "cpu" for a in leaves):
        args, kwargs = tree_map(
            lambda a: a.cpu() if isinstance(a, torch.Tensor) else a, (args, kwargs)
        )
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    if name.startswith(("_efficientzerotensor", "empty.")):
        # neither kind of storage may reach a literal
        return torch.zeros(args[0], dtype=kwargs.get("dtype"))
    try:
        with torch.no_grad():
            return fx_node.target(*args, **kwargs)
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def _check(name: str, ctx: Context, out: Any) -> None:
    """A rule's result must have the shape and kind that the tracer saw."""
    meta = ctx.meta
    if meta is None or not isinstance(out, Node):
        return
    if tuple(meta.shape) != out.shape or kind_of(meta.dtype) != out.kind:
        raise LoweringError(
            f"{name} was lowered to {out.kind}{list(out.shape)}, "
            f"torch has {meta.dtype}{list(meta.shape)}"
        )
