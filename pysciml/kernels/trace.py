"""Tracing with ``make_fx``: functional graphs of ATen operations, decomposed."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pysciml.kernels.decompositions import table


class TraceError(RuntimeError):
    """What a function does that no trace can keep: ``args`` are what (a predicate) and a hint."""


class _NoReadOut(TorchDispatchMode):
    """Refuses ``.item()`` of tensors that require grad, whose value the trace would freeze."""

    def __init__(self, read: list[Tensor]) -> None:
        super().__init__()
        self.read = read

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            if args[0].requires_grad:
                raise TraceError(
                    "turns a tensor that requires grad into a Python number",
                    "keep it a tensor: no .item(), float() or math.* on it",
                )
            self.read.append(args[0])
        return func(*args, **(kwargs or {}))


def _is_position(index: Any) -> bool:
    return (
        isinstance(index, Tensor)
        and index.ndim == 0
        and not index.is_floating_point()
        and index.dtype != torch.bool
    )


def _getitem(x: Tensor, index: Any) -> Tensor | None:
    """``x[index]`` where 0-d integer tensors stand among slices and numbers; None: not such."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if not any(map(_is_position, entries)):
        return None
    plain = (int, slice, type(None), type(Ellipsis))
    if any(isinstance(e, bool) or not (_is_position(e) or isinstance(e, plain)) for e in entries):
        return None
    if Ellipsis in [e for e in entries if not isinstance(e, Tensor)]:
        at = next(i for i, e in enumerate(entries) if e is Ellipsis)
        taken = sum(e is not None and e is not Ellipsis for e in entries)
        entries[at : at + 1] = [slice(None)] * (x.ndim - taken)
    out = x[tuple(slice(None) if _is_position(e) else e for e in entries)]
    axis = 0
    for entry in entries:
        if _is_position(entry):
            out = out.index_select(axis, entry.reshape(1)).squeeze(axis)
        elif not isinstance(entry, int):
            axis += 1
    return out


#: Methods that hand a tensor's values, or what follows from them, to Python.
_READING = frozenset(
    {
        "item", "tolist", "numpy", "data_ptr", "storage", "untyped_storage", "equal", "allclose",
        "__array__", "__dlpack__", "__bool__", "__int__", "__index__", "__float__", "__complex__",
        "__format__", "__repr__",
    }
)  # fmt: skip
_DETACHING = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]


def _drop_own_detaches(module: GraphModule) -> None:
    """Remove the detaches that autograd itself put round values it saved.

    A function that calls ``torch.autograd.grad`` inside has them in its graph, where they would
    cut the second derivative.
    """
    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.target is not aten.detach.default or not node.users:
            continue
        if not any(user.target is aten.alias.default for user in node.users):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


class _WithoutReading(TorchFunctionMode):
    """Writes otherwise what torch does by reading a tensor's value although it need not.

    Indexing with a 0-d integer tensor (the interval found by ``bucketize(t, grid)``) and
    ``one_hot`` are the cases. Tensors whose values are read all the same are added to ``read``.
    """

    def __init__(self, read: list[Tensor]) -> None:
        super().__init__()
        self.read = read

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", None) in _READING:
            self.read += [x for x in args if isinstance(x, Tensor)]
        if func is Tensor.__getitem__:
            found = _getitem(*args)
            if found is not None:
                return found
        elif func is Tensor.__setitem__ and _is_position(args[1]):
            return func(args[0], args[1].reshape(1), args[2])
        elif func in _DETACHING:
            # marked, to be told from the detaches with which autograd saves its own values
            return torch.ops.aten.alias.default(func(*args, **(kwargs or {})))
        elif func is torch.tensor and isinstance(args[0], Tensor):
            options = {k: v for k, v in (kwargs or {}).items() if k in ("dtype", "device")}
            copy = torch.ops.aten.alias.default(args[0].detach())
            return copy.to(**options) if options else copy
        elif func in (torch.tensor, torch.as_tensor) and isinstance(args[0], (list, tuple)):
            if any(isinstance(x, Tensor) for x in tree_leaves(args[0])):
                raise TraceError(
                    "builds a tensor from a list of tensors by value, which cuts their gradients",
                    "use torch.stack instead of torch.tensor",
                )
        elif func is torch.nn.functional.one_hot and len(args) + len(kwargs or {}) == 2:
            index, classes = args[0], (kwargs or {}).get("num_classes", args[-1])
            if isinstance(classes, int) and classes > 0:
                return (index.unsqueeze(-1) == torch.arange(classes, device=index.device)).long()
        return func(*args, **(kwargs or {}))


def _is_mutating(module: GraphModule) -> bool:
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
        if schema is not None and schema.is_mutable:
            return True
    return False


def _refuse_written_inputs(module: GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder":
            raise TraceError("writes to its own argument in place", "write to a copy: u.clone()")


def _bound_slices(module: GraphModule) -> None:
    """Write slice ends within the axis: torch overflows on its own "to the end" with a step."""
    aten = torch.ops.aten
    first = {aten.slice.Tensor: 1, aten.slice_scatter.default: 2}
    for node in module.graph.nodes:
        at = first.get(node.target)
        if at is None or len(node.args) <= at + 2:
            continue
        args = list(node.args)
        # a constant that the trace holds has no value beside it before torch 2.7
        held = getattr(module, args[0].target) if args[0].op == "get_attr" else None
        shape = (args[0].meta["val"] if held is None else held).shape
        args[at + 2] = min(args[at + 2], shape[args[at]])
        node.args = tuple(args)


@contextlib.contextmanager
def _quick() -> Iterator[None]:
    """Halves the time of a trace: one fake mode for all metadata, no garbage collection inside."""
    paused = gc.isenabled()
    gc.disable()
    try:
        context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
        # compiled functions are traced through, as if they were not compiled
        with tracing(context), torch._dynamo.config.patch(error_on_nested_fx_trace=False):
            yield
    finally:
        if paused:
            gc.enable()


def _plain(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``fn`` without its signature: the tracer would count arguments that have defaults."""

    def call(*inputs: Tensor) -> Tensor:
        return fn(*inputs)

    return call


#: make_fx patches torch while it traces, for all threads.
_one_at_a_time = threading.RLock()


def trace(
    fn: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    read: list[Tensor] | None = None,
    watch: TorchDispatchMode | None = None,
) -> GraphModule:
    """``fn`` at ``inputs`` as a graph without mutation; held tensors are attributes.

    ``read`` is for the user's own function: it may not turn tensors that require grad into
    numbers, and does not where torch would only by habit; other tensors whose values it turned
    into numbers are added to the list.
    ``watch`` sees every operation as it is traced.
    """
    with _one_at_a_time:
        return _trace(fn, inputs, read, watch)


def _trace(
    fn: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    read: list[Tensor] | None,
    watch: TorchDispatchMode | None,
) -> GraphModule:
    options: dict[str, Any] = {"decomposition_table": table()}
    # Plain first: a function that differentiates with torch.autograd.grad cannot be traced
    # under functionalize. Mutation, if any, is then removed from the graph.
    with _quick(), contextlib.ExitStack() as modes:
        if read is not None:
            modes.enter_context(_NoReadOut(read))
            modes.enter_context(_WithoutReading(read))
        if watch is not None:
            modes.enter_context(watch)
        module = make_fx(_plain(fn), **options)(*inputs)
    if read is not None:
        _drop_own_detaches(module)
        module.recompile()
    if _is_mutating(module):
        with _quick():
            module = make_fx(torch.func.functionalize(module), **options)(*inputs)
        _refuse_written_inputs(module)
    _bound_slices(module)
    module.recompile()
    return module
