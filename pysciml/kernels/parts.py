"""Functions made of a function's outputs: a stretch of them, or the sum of their two halves.

A split equation is captured once, both sides one after the other, and so is a partitioned one: what
its solvers call for each side are these. They share the whole function's inputs, closures included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule
from torch.fx import Node as FxNode

from pysciml.kernels.callback import CallbackFunctions
from pysciml.kernels.capture import Capture
from pysciml.kernels.captured import CapturedFunctions

__all__ = ["halves_added", "stretch"]

Functions = CapturedFunctions | CallbackFunctions
_slice = torch.ops.aten.slice.Tensor
_add = torch.ops.aten.add.Tensor


def stretch(whole: Functions, start: int, stop: int) -> Functions:
    """The outputs from ``start`` to ``stop``."""

    def build(graph: FxGraph, out: FxNode) -> FxNode:
        return graph.call_function(_slice, (out, 0, start, stop))

    return _derived(whole, (start, stop), build, lambda out: out[start:stop], stop - start)


def halves_added(whole: Functions) -> Functions:
    """The sum of the first and the second half of the outputs."""
    n = whole.n_out // 2

    def build(graph: FxGraph, out: FxNode) -> FxNode:
        first = graph.call_function(_slice, (out, 0, 0, n))
        second = graph.call_function(_slice, (out, 0, n, 2 * n))
        return graph.call_function(_add, (first, second))

    return _derived(whole, "sum", build, lambda out: out[:n] + out[n:], n)


def _derived(
    whole: Functions,
    key: Any,
    build: Callable[[FxGraph, FxNode], FxNode],
    of_value: Callable[[Tensor], Tensor],
    n_out: int,
) -> Functions:
    if isinstance(whole, CallbackFunctions):
        return whole.then(of_value)
    shared = whole.shared
    made: dict[Any, CapturedFunctions] = shared.__dict__.setdefault("_derived", {})
    if key not in made:
        made[key] = CapturedFunctions(_changed(shared.capture, build, n_out))
    return CapturedFunctions(_over(made[key].capture, whole.capture), made[key])


def _changed(captured: Capture, build: Callable[[FxGraph, FxNode], FxNode], n_out: int) -> Capture:
    graph = FxGraph()
    out: Any = graph.graph_copy(captured.module.graph, {})
    nested = isinstance(out, (tuple, list))
    value = build(graph, out[0] if nested else out)
    graph.output((value,) if nested else value)
    graph.eliminate_dead_code()
    graph.lint()
    return replace(captured, module=GraphModule(captured.module, graph), n_out=n_out)


def _over(derived: Capture, whole: Capture) -> Capture:
    """The derived graph over the whole function's own tensors, with its guards."""
    return replace(whole, module=derived.module, n_out=derived.n_out)
