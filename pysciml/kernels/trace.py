"""Tracing with ``make_fx``: functional graphs of ATen operations, decomposed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from pysciml.kernels.decompositions import table


class ReadOutError(RuntimeError):
    """A closed-over tensor's value was turned into a Python number while tracing."""


class _NoReadOut(TorchDispatchMode):
    """Refuses ``.item()`` of tensors that require grad, whose value the trace would freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            if args[0].requires_grad:
                raise ReadOutError("a tensor that requires grad was turned into a Python number")
            self.read.append(args[0])
        return func(*args, **(kwargs or {}))


def _is_mutating(module: GraphModule) -> bool:
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
        if schema is not None and schema.is_mutable:
            return True
    return False


def _plain(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``fn`` without its signature: the tracer would count arguments that have defaults."""

    def call(*inputs: Tensor) -> Tensor:
        return fn(*inputs)

    return call


def trace(
    fn: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    guarded: bool = False,
    stack_traces: bool = False,
) -> GraphModule:
    """``fn`` at ``inputs`` as a graph without mutation; held tensors are attributes.

    ``guarded`` refuses the user's function to turn tensors that require grad into numbers.
    ``stack_traces`` keeps the Python lines of each operation where this torch can (slow).
    """
    options: dict[str, Any] = {"decomposition_table": table()}
    if stack_traces and "record_stack_traces" in inspect.signature(make_fx).parameters:
        options["record_stack_traces"] = True
    # Plain first: a function that differentiates with torch.autograd.grad cannot be traced
    # under functionalize. Mutation, if any, is then removed from the graph.
    with _NoReadOut() if guarded else contextlib.nullcontext():
        module = make_fx(_plain(fn), **options)(*inputs)
    if _is_mutating(module):
        module = make_fx(torch.func.functionalize(module), **options)(*inputs)
    return module
