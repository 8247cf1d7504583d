"""Derivative graphs of a captured function, by torch's own autodiff, traced like the function.

Roles: ``"value"``, ``"jac:X"``, ``"jvp:X"`` and ``"vjp:X"`` for an input X; ``"vjp:up"``, the
products with the Jacobians by u and by p, one after the other, from one sweep; and ``"vjp:p*K"``,
the sum of the products by p at K points, whose inputs (all but p and c) follow each other. A
Jacobian is vmapped over rows (reverse mode) or columns (forward mode), whichever are fewer; the
identity that seeds it is a literal, so that the simplifier sees the zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from pysciml.kernels.capture import Capture
from pysciml.kernels.graph import Graph, input_node
from pysciml.kernels.lower import UnsupportedOp, lower
from pysciml.kernels.lowering import full
from pysciml.kernels.reasons import CaptureError, explain
from pysciml.kernels.trace import trace

Function = Callable[..., Tensor]


def derive(captured: Capture, role: str) -> Graph:
    """The kernel graph (as lowered, not simplified) of one role.

    Raises :class:`CaptureError` where the derivative cannot be traced or lowered.
    """
    if role == "value":
        return _lowered(captured.module, captured.names, role)
    kind, _, wrt = role.partition(":")
    if role == "vjp:up":
        args = [*_seed(captured, "vjp", "u"), *_arguments(captured)]
        return _lowered(_traced(_vjp_up(captured), args), ("w", *captured.names), role)
    if role.startswith("vjp:p*"):
        return _summed(captured, int(role.partition("*")[2]), role)
    if kind not in ("jac", "jvp", "vjp") or wrt not in captured.names:
        raise ValueError(f"no kernel has the role {role!r}")
    extra = {"jac": (), "jvp": ("v",), "vjp": ("w",)}[kind]
    names = (*extra, *captured.names)
    if not _used(captured, wrt):
        return _zeros(captured, kind, wrt, names, role)
    args = [*_seed(captured, kind, wrt), *_arguments(captured)]
    build: dict[str, Callable[[Capture, str], Function]] = {"jvp": _jvp, "vjp": _vjp}
    if kind == "jac":
        module = _jacobian(captured, wrt, args)
    else:
        module = _traced(build[kind](captured, wrt), args)
    return _lowered(module, names, role)


def derive_compressed(captured: Capture, wrt: str, seed: np.ndarray) -> Graph:
    """``J @ seed`` with a constant ``seed`` of shape (n_in, k), as a graph of shape (n_out, k)."""
    columns = torch.as_tensor(np.ascontiguousarray(seed.T), dtype=captured.dtype)
    columns = columns.to(captured.device)
    jvp = _jvp(captured, wrt)

    def compressed(*inputs: Tensor) -> Tensor:
        return torch.vmap(lambda v: jvp(v, *inputs), out_dims=1)(columns)

    module = _traced(compressed, _arguments(captured))
    return _lowered(module, captured.names, f"jac:{wrt}@seed")


def _arguments(captured: Capture) -> list[Tensor]:
    """Arguments to trace with. The graph does not depend on them, but they must be in range."""
    return captured.example()


def _seed(captured: Capture, kind: str, wrt: str) -> list[Tensor]:
    if kind == "jac":
        return []
    if kind == "vjp":
        return [torch.ones(captured.n_out, dtype=captured.dtype, device=captured.device)]
    return [torch.ones_like(_arguments(captured)[captured.names.index(wrt)])]


def _used(captured: Capture, wrt: str) -> bool:
    places = [n for n in captured.module.graph.nodes if n.op == "placeholder"]
    return bool(places[captured.names.index(wrt)].users) and captured.sizes[wrt] > 0


def _zeros(captured: Capture, kind: str, wrt: str, names: tuple[str, ...], role: str) -> Graph:
    """The derivative by an input that the function does not read."""
    by_name = dict(zip(captured.names, _arguments(captured), strict=True))
    shape_in = tuple(by_name[wrt].shape)
    value = lower(captured.module, captured.names)
    shape = {"jac": (captured.n_out, *shape_in), "jvp": (captured.n_out,), "vjp": shape_in}[kind]
    inputs = value.inputs
    if kind != "jac":
        first = (captured.n_out,) if kind == "vjp" else shape_in
        inputs = (input_node(names[0], first), *inputs)
    return Graph(inputs, (full(shape, 0.0),), role)


def _only(captured: Capture, wrt: str, inputs: tuple[Tensor, ...]) -> tuple[Function, Tensor]:
    """The module as a function of one input, and that input."""
    at = captured.names.index(wrt)

    def partial(x: Tensor) -> Any:
        return captured.module(*inputs[:at], x, *inputs[at + 1 :])

    return partial, inputs[at]


def _jvp(captured: Capture, wrt: str) -> Function:
    # The vjp is linear in its cotangent, and the transpose of a transpose is the map itself.
    # Traced, this leaves fewer operations than forward mode, and torch's forward mode under the
    # tracer is less reliable (2.13 crashes on some operations).
    def jvp(v: Tensor, *inputs: Tensor) -> Tensor:
        partial, x = _only(captured, wrt, inputs)
        pull = torch.func.vjp(partial, x)[1]
        w = torch.zeros(captured.n_out, dtype=captured.dtype, device=captured.device)
        out: Tensor = torch.func.vjp(lambda cotangent: pull(cotangent)[0], w)[1](v)[0]
        return out

    return jvp


def _vjp(captured: Capture, wrt: str) -> Function:
    def vjp(w: Tensor, *inputs: Tensor) -> Tensor:
        partial, x = _only(captured, wrt, inputs)
        out: Tensor = torch.func.vjp(partial, x)[1](w)[0]
        return out

    return vjp


def _vjp_up(captured: Capture) -> Function:
    places = [captured.names.index(k) for k in ("u", "p")]
    used = [i for k, i in zip(("u", "p"), places, strict=True) if _used(captured, k)]

    def vjp(w: Tensor, *inputs: Tensor) -> Tensor:
        parts = {i: torch.zeros_like(inputs[i]) for i in places}
        if used:

            def partial(*xs: Tensor) -> Any:
                at = dict(zip(used, xs, strict=True))
                return captured.module(*(at.get(i, x) for i, x in enumerate(inputs)))

            pull = torch.func.vjp(partial, *(inputs[i] for i in used))[1]
            parts |= zip(used, pull(w), strict=True)
        return torch.cat([parts[i].reshape(-1) for i in places])

    return vjp


def _summed(captured: Capture, count: int, role: str) -> Graph:
    """The parameter gradient of a whole stretch at once: products become matrix products."""
    names, module = captured.names, captured.module
    at = names.index("p")
    examples = _arguments(captured)
    shapes = [None if k in ("p", "c") else x.shape for k, x in zip(names, examples, strict=True)]
    if not _used(captured, "p"):
        first = input_node("w", (count * captured.n_out,))
        inputs = (
            input_node(k, tuple(x.shape) if s is None else (count * x.numel(),))
            for k, x, s in zip(names, examples, shapes, strict=True)
        )
        return Graph((first, *inputs), (full((captured.sizes["p"],), 0.0),), role)
    dims = tuple(None if s is None else 0 for s in shapes)

    def summed(w: Tensor, *inputs: Tensor) -> Tensor:
        rows = [
            x if s is None else x.reshape(count, *s) for x, s in zip(inputs, shapes, strict=True)
        ]

        def partial(p: Tensor) -> Any:
            return torch.vmap(module, in_dims=dims)(*rows[:at], p, *rows[at + 1 :])

        out: Tensor = torch.func.vjp(partial, inputs[at])[1](w.reshape(count, -1))[0]
        return out

    args = [torch.ones(count * captured.n_out, dtype=captured.dtype, device=captured.device)]
    args += [
        x if s is None else x.reshape(-1).repeat(count)
        for x, s in zip(examples, shapes, strict=True)
    ]
    _require_sum(captured, summed, args, shapes)
    return _lowered(_traced(summed, args), ("w", *names), role)


def _require_sum(
    captured: Capture, summed: Function, args: list[Tensor], shapes: list[Any]
) -> None:
    """Raise CaptureError where torch.vmap gets another sum than one point after the other.

    Seen in torch 2.13 on slices that are written to.
    """
    count = len(args[0]) // captured.n_out
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(args[0].shape, generator=generator, dtype=captured.dtype).to(captured.device)
    scale = torch.linspace(1.0, 1.1, count, dtype=captured.dtype, device=captured.device)
    moved = [
        x if s is None else (x.reshape(count, -1) * scale[:, None]).reshape(-1)
        for x, s in zip(args[1:], shapes, strict=True)
    ]
    pull = _vjp(captured, "p")
    try:
        got = summed(w, *moved)
        one_by_one = [
            pull(
                w.reshape(count, -1)[k],
                *(
                    x if s is None else x.reshape(count, *s)[k]
                    for x, s in zip(moved, shapes, strict=True)
                ),
            )
            for k in range(count)
        ]
        expected = torch.stack(one_by_one).sum(0)
    except Exception as error:
        raise explain(error) from error
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise CaptureError(
            "torch.vmap gives other products than one point after the other",
            "nothing: engines take the points one by one",
        )


def _jacobian(captured: Capture, wrt: str, args: list[Tensor]) -> GraphModule:
    def eye(n: int) -> Tensor:
        return torch.eye(n, dtype=captured.dtype, device=captured.device)

    n_out = captured.n_out
    x = args[captured.names.index(wrt)]
    jvp = _jvp(captured, wrt)
    if x.ndim == 0:
        return _traced(lambda *inputs: jvp(torch.ones_like(x), *inputs), args)
    rows, columns = eye(n_out), eye(x.numel())

    def reverse(*inputs: Tensor) -> Tensor:
        partial, value = _only(captured, wrt, inputs)
        pull = torch.func.vjp(partial, value)[1]
        return torch.vmap(lambda w: pull(w)[0])(rows)

    def forward(*inputs: Tensor) -> Tensor:
        return torch.vmap(lambda v: jvp(v, *inputs), out_dims=1)(columns)

    first, second = (reverse, forward) if n_out <= x.numel() else (forward, reverse)
    try:
        return _traced(first, args)
    except CaptureError:
        return _traced(second, args)


def _traced(fn: Function, args: list[Tensor]) -> GraphModule:
    try:
        module = trace(fn, args)
    except Exception as error:
        raise explain(error) from error
    module.graph.eliminate_dead_code()
    return module


def _lowered(module: GraphModule, names: tuple[str, ...], role: str) -> Graph:
    try:
        return lower(module, names, role)
    except UnsupportedOp as error:
        raise CaptureError(
            f"the derivative {role} needs an operation without a kernel: {error}",
            "use an algorithm that does not need it, or write the function otherwise",
        ) from error
