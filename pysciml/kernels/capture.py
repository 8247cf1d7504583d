"""Capture: a torch function as a functional ATen graph, checked against the function itself.

Tensors that the function closes over are found by the tracer, which hands back the very objects
the user holds. They become inputs, so that their values are current at every solve and their
gradients flow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx import Node as FxNode

from pysciml.kernels.check import check_gradients, check_values
from pysciml.kernels.guards import Guards
from pysciml.kernels.lower import UnsupportedOp, lower, op_name
from pysciml.kernels.real_form import ComplexError, real_form
from pysciml.kernels.reasons import CaptureError, explain, line_of_op
from pysciml.kernels.trace import trace
from pysciml.kernels.walk import Walk

__all__ = ["Capture", "CaptureError", "capture"]


@dataclass(eq=False)
class Capture:
    """A captured function: its graph, the tensors it closes over, and when to trust it.

    Attributes:
        module: functional ATen graph taking ``(*names)``. Its ``"p"`` is the function's own
            ``p`` followed by the closed-over tensors that require grad; ``"c"`` (last) holds the
            other closed-over real tensors.
        names: the inputs' names, ``"c"`` last.
        sizes: the inputs' lengths (a 0-d ``"t"`` has length 1).
        n_out: length of the result.
        closures_p, closures_c: the user's own tensors.
        guards: whether what the trace read on the Python side is still the same.
        traced_at: the inputs that it was captured with.
        constants: the user's own tensors whose values the graph holds (index tables, masks).
        read: whether the value of some tensor was read in Python during the trace.
        data_inputs: names that no gradient is taken for.
        name: how messages call it.
    """

    module: GraphModule
    names: tuple[str, ...]
    sizes: dict[str, int]
    n_out: int
    closures_p: tuple[Tensor, ...]
    closures_c: tuple[Tensor, ...]
    guards: Guards
    traced_at: dict[str, Tensor]
    data_inputs: tuple[str, ...] = ()
    constants: tuple[Tensor, ...] = ()
    read: bool = False
    name: str = "the function"

    @property
    def dtype(self) -> torch.dtype:
        return self.traced_at["p"].dtype

    @property
    def device(self) -> torch.device:
        return self.traced_at["p"].device

    def extend_p(self, p: Tensor) -> Tensor:
        """``p`` followed by the current values of the closures that require grad (1-d)."""
        return self._joined([p.reshape(-1), *self.closures_p])

    def data(self) -> Tensor:
        """The current values of the closed-over tensors that do not require grad (1-d)."""
        return self._joined([c.detach() for c in self.closures_c])

    def relifted(
        self, closures_p: Sequence[Tensor], closures_c: Sequence[Tensor], guards: Guards
    ) -> Capture:
        """The same graph over other closed-over tensors, of the same shapes and dtypes.

        The caller knows that the Python state is equal, and what to guard.
        """
        return replace(
            self, closures_p=tuple(closures_p), closures_c=tuple(closures_c), guards=guards,
            constants=(),
        )  # fmt: skip

    def detached(self) -> Capture:
        """The same graph over the same values, without the user's own tensors and objects."""
        p = [x.detach().requires_grad_() for x in self.closures_p]
        return self.relifted(p, [x.detach() for x in self.closures_c], Guards())

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        flat = [x.reshape(-1).to(self.device, self.dtype) for x in parts]
        if not flat:
            return torch.zeros(0, dtype=self.dtype, device=self.device)
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def example(self, inputs: dict[str, Tensor] | None = None) -> list[Tensor]:
        """The module's arguments for the function's own inputs, closures at their values."""
        inputs = self.traced_at if inputs is None else inputs
        with torch.no_grad():
            own = {k: v.detach() for k, v in inputs.items()}
            own["p"] = self.extend_p(own["p"])
            return [*own.values(), self.data()]


def capture(
    fn: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    *,
    data_inputs: Sequence[str] = (),
    walk: Walk | None = None,
    name: str = "the function",
) -> Capture:
    """Capture ``fn(*inputs)`` as a functional graph, and check it.

    Args:
        fn: takes flat real tensors in the order of ``inputs`` (1-d; ``"t"`` may be 0-d) and
            returns a 1-d real tensor.
        inputs: example values by name, ``"p"`` among them (maybe of length 0), all of one dtype
            and device.
        data_inputs: names that no gradient is taken for.
        walk: what ``fn`` can reach, where that has been walked already.
        name: how messages call it.

    Raises:
        CaptureError: the function cannot be captured, or its graph does not agree with it at
            other values. ``kind`` is ``"random"`` where it draws random numbers.
        Exception: whatever ``fn`` itself raises when called at ``inputs``.

    Nothing of the user's changes: gradients, flags, buffers and random state stay as they were.
    """
    if "p" not in inputs:
        raise ValueError("capture needs an input named 'p' (of length 0 if there is none)")
    inputs = {k: v.detach().clone() for k, v in inputs.items()}
    guards = Guards(fn, walk=walk)
    read: list[Tensor] = []
    with _UnchangedRandomState(inputs["p"].device) as drawn, guards.unchanged_tensors():
        out = fn(*inputs.values())
        _require_vector(out)
        try:
            raw = trace(fn, list(inputs.values()), read=read)
            raw = real_form(raw, list(inputs.values()))
        except ComplexError as error:
            at = error.node
            where = "" if at is None else line_of_op(fn, list(inputs.values()), at)
            raise CaptureError(f"{error.reason}{where}", error.hint) from error
        except Exception as error:
            raise explain(error) from error
        _refuse_random(raw, fn, inputs, drawn())
        captured = _lift(raw, inputs, out, guards, tuple(data_inputs))
        _require_lowering(captured, fn, inputs)
        check_values(captured, fn, inputs)
        check_gradients(captured, fn, inputs)
        _refuse_random(raw, fn, inputs, drawn())
    captured.name = name
    guards.forget_changed()
    guards.watch_closures(captured.closures_p, captured.closures_c)
    if read:
        guards.watch_values()
        captured.read = True
    return captured


def _require_vector(out: Any) -> None:
    if not isinstance(out, Tensor) or out.ndim != 1 or not out.is_floating_point():
        given = (
            f"a tensor of shape {tuple(out.shape)} and dtype {out.dtype}"
            if isinstance(out, Tensor)
            else type(out).__name__
        )
        raise CaptureError(f"the function returned {given}", "return a real tensor of shape (n,)")


class _UnchangedRandomState:
    """Restores torch's, NumPy's and Python's random state; tells which of them was drawn from."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Callable[[], str | None]:
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(self._device) if self._is_cuda else None
        self._numpy = np.random.get_state()
        self._python = random.getstate()
        return self.drawn

    @property
    def _is_cuda(self) -> bool:
        return self._device.type == "cuda"

    def drawn(self) -> str | None:
        if self._cuda is not None:
            if not torch.equal(torch.cuda.get_rng_state(self._device), self._cuda):
                return "torch.cuda"
        if not torch.equal(torch.get_rng_state(), self._torch):
            return "torch"
        now: Any = np.random.get_state()
        before: Any = self._numpy
        if now[2] != before[2] or not np.array_equal(now[1], before[1]):
            return "numpy.random"
        if random.getstate() != self._python:
            return "random"
        return None

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        np.random.set_state(self._numpy)
        random.setstate(self._python)


def _refuse_random(
    module: GraphModule, fn: Callable[..., Tensor], inputs: dict[str, Tensor], drawn: str | None
) -> None:
    for node in module.graph.nodes:
        tags = getattr(node.target, "tags", ()) if node.op == "call_function" else ()
        if torch.Tag.nondeterministic_seeded in tags:
            where = line_of_op(fn, list(inputs.values()), node)
            raise CaptureError(
                f"the function draws random numbers ({op_name(node.target)}{where})",
                "draw them before solving and pass them in, or call eval() on modules with dropout",
                kind="random",
            )
    if drawn is not None:
        raise CaptureError(
            f"the function draws random numbers (from {drawn})",
            "draw them before solving and pass them in, or call eval() on modules with dropout",
            kind="random",
        )


def _lift(
    raw: GraphModule,
    inputs: dict[str, Tensor],
    out: Tensor,
    guards: Guards,
    data_inputs: tuple[str, ...],
) -> Capture:
    """Turn the tensors that the graph holds as attributes into slices of ``p`` and ``c``."""
    graph = raw.graph
    _refuse_read_out(raw)
    graph.eliminate_dead_code()
    places = [n for n in graph.nodes if n.op == "placeholder"]
    reference = inputs["p"]
    closures: dict[str, list[Tensor]] = {"p": [], "c": []}
    found: dict[int, tuple[str, int, int]] = {}
    constants: list[Tensor] = []
    lifted: list[tuple[FxNode, str, int, int, Tensor]] = []
    ends = {"p": reference.numel(), "c": 0}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(raw, node.target)
        if isinstance(value, Tensor) and value.layout != torch.strided:
            raise CaptureError("the function uses a sparse tensor", "make it dense: x.to_dense()")
        if not isinstance(value, Tensor) or not value.is_floating_point() or _is_literal(node):
            if isinstance(value, Tensor):
                if value.is_complex():
                    raise CaptureError(
                        "the function uses a complex tensor", "write it with real tensors"
                    )
                if not _is_literal(node):
                    guards.watch_constant(value)
                    constants.append(value)
                    # derivatives are traced later, and must hold the same values
                    setattr(raw, node.target, value.detach().clone())
            continue
        if id(value) not in found:
            if value.device != reference.device and value.ndim:
                raise CaptureError(
                    f"a tensor that the function closes over is on {value.device}, "
                    f"its inputs on {reference.device}",
                    "move it to the same device",
                )
            name = "p" if value.requires_grad else "c"
            closures[name].append(value)
            found[id(value)] = (name, ends[name], ends[name] + value.numel())
            ends[name] = found[id(value)][2]
        lifted.append((node, *found[id(value)], value))
    with graph.inserting_after(places[-1]):
        c = graph.placeholder("c")
    c.meta["val"] = torch.empty(ends["c"], dtype=reference.dtype, device="meta")
    names = (*inputs, "c")
    p = places[list(inputs).index("p")]
    p_users = list(p.users)
    p.meta = {"val": torch.empty(ends["p"], dtype=reference.dtype, device="meta")}
    aten = torch.ops.aten
    anchor = c
    if closures["p"]:
        with graph.inserting_after(anchor):
            own = graph.call_function(aten.slice.Tensor, (p, 0, 0, reference.numel()))
        anchor = own
        for user in p_users:
            user.replace_input_with(p, own)
        output = next(n for n in graph.nodes if n.op == "output")
        if output.args[0] is p:
            output.args = (own,)
    for node, name, start, stop, value in lifted:
        source = p if name == "p" else c
        with graph.inserting_before(node):
            piece = graph.call_function(aten.slice.Tensor, (source, 0, start, stop))
            piece = graph.call_function(aten.view.default, (piece, list(value.shape)))
            if value.dtype != reference.dtype:
                piece = graph.call_function(aten._to_copy.default, (piece,), {"dtype": value.dtype})
        node.replace_all_uses_with(piece)
        graph.erase_node(node)
    graph.lint()
    module = GraphModule(raw, graph)
    sizes = {k: v.numel() for k, v in inputs.items()} | ends
    return Capture(
        module,
        names,
        sizes,
        out.numel(),
        tuple(closures["p"]),
        tuple(closures["c"]),
        guards,
        inputs,
        data_inputs,
        tuple(constants),
    )


def _only_detached(node: FxNode) -> bool:
    """Whether a value is used by nothing but detaches that nothing uses."""
    aten = torch.ops.aten
    return bool(node.users) and all(
        u.target in (aten.detach.default, aten.alias.default) and (not u.users or _only_detached(u))
        for u in node.users
    )


def _refuse_read_out(raw: GraphModule) -> None:
    """``w.detach().numpy()`` leaves a detach that nothing uses."""
    for node in raw.graph.nodes:
        if node.op != "get_attr":
            continue
        value = getattr(raw, node.target)
        if isinstance(value, Tensor) and value.requires_grad and _only_detached(node):
            raise CaptureError(
                f"the function reads the values of a tensor of shape {tuple(value.shape)} that "
                "requires grad out of torch",
                "keep it a tensor: no .detach().numpy() or .tolist() on it",
            )


def _is_literal(node: FxNode) -> bool:
    """Whether a held tensor was made inside the function, as by ``torch.tensor([1.0, 2.0])``."""
    fresh = torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default
    return bool(node.users) and all(u.target in fresh for u in node.users)


def _require_lowering(
    captured: Capture, fn: Callable[..., Tensor], inputs: dict[str, Tensor]
) -> None:
    try:
        lower(captured.module, captured.names)
    except UnsupportedOp as error:
        where = line_of_op(fn, list(inputs.values()), error.fx_node)
        raise CaptureError(
            f"the operation {error}{where}",
            "write it with other torch operations, or accept the slower callbacks",
        ) from error
