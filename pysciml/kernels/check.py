"""A capture is compared with the function itself before it is trusted.

Tracing can succeed and be wrong: values read out of torch (``.numpy()``, Python state) become
constants without a word. Other values of the inputs show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from pysciml.kernels.partial import partial_from_total
from pysciml.kernels.reasons import CaptureError

Function = Callable[..., Tensor]


class Checked(Protocol):
    """What the checks need of a capture."""

    module: GraphModule
    closures_p: tuple[Tensor, ...]
    data_inputs: tuple[str, ...]

    def example(self, inputs: dict[str, Tensor]) -> list[Tensor]: ...


def _other_values(inputs: dict[str, Tensor], scale: float, seed: int) -> dict[str, Tensor]:
    """The inputs moved by about ``scale`` relative to their size, the same way every time."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, x in inputs.items():
        noise = torch.as_tensor(rng.uniform(-1.0, 1.0, tuple(x.shape))).to(x)
        moved[name] = x * (1 + scale * noise) + 0.1 * scale * noise.abs()
    return moved


def _size(*tensors: Tensor) -> float:
    """The largest finite magnitude."""
    finite = [x[torch.isfinite(x)].abs() for x in tensors]
    return max((float(x.max()) for x in finite if x.numel()), default=0.0)


def _agree(a: Tensor, b: Tensor, size: float) -> bool:
    # loose enough for torch's own single-precision constants (hardsigmoid's 1/6)
    rtol, atol = (1e-6, 1e-10) if a.dtype == torch.float64 else (1e-4, 1e-5)
    if a.shape != b.shape:
        return False
    return bool(torch.allclose(a, b, rtol=rtol, atol=atol * max(size, 1e-30), equal_nan=True))


def check_values(captured: Checked, fn: Function, inputs: dict[str, Tensor]) -> None:
    """Compare the graph with the function at the traced and at other values.

    Raises :class:`CaptureError` (kind ``"mismatch"``) on a difference.
    """
    for scale, seed in ((0.0, 0), (0.01, 1), (0.7, 2)):
        at = _other_values(inputs, scale, seed)
        with torch.no_grad():
            got = captured.module(*captured.example(at))
        try:
            # with grad mode as it is: the function may differentiate inside
            want = fn(*at.values()).detach()
        except Exception:
            continue
        if _agree(got, want, _size(want)):
            continue
        again = fn(*at.values()).detach()
        if not _agree(want, again, _size(want)):
            raise CaptureError(
                "the function returns different values when called twice with the same arguments",
                "make it depend on its arguments only",
                kind="mismatch",
            )
        raise CaptureError(
            "the captured graph gives other values than the function"
            + ("" if scale == 0 else " at other u, p or t"),
            "values are read out of torch inside it: no .numpy(), .item(), .tolist() or Python "
            "state that changes between calls",
            kind="mismatch",
        )


def check_gradients(captured: Checked, fn: Function, inputs: dict[str, Tensor]) -> None:
    """Compare one vector-Jacobian product, so that a lost ``detach`` or ``no_grad`` is seen.

    A function that autograd cannot differentiate passes: its values agreed.
    """
    at = _other_values(inputs, 0.01, 3)
    names = [k for k in at if k not in captured.data_inputs]
    closures = list(captured.closures_p)
    leaves = {k: v.clone().requires_grad_(k in names) for k, v in at.items()}
    try:
        with torch.enable_grad():
            out = fn(*leaves.values())
            weights = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype, device=out.device)
            want = (
                torch.autograd.grad(
                    out,
                    [*(leaves[k] for k in names), *closures],
                    weights,
                    allow_unused=True,
                    retain_graph=True,  # closures may be computed, by a graph that is the user's
                )
                if out.requires_grad
                else [None] * (len(names) + len(closures))
            )
    except Exception:
        return
    args = [x.requires_grad_(True) for x in captured.example(at)]
    with torch.enable_grad():
        result = captured.module(*args)
        got = (
            torch.autograd.grad(result, args, weights, allow_unused=True)
            if result.requires_grad
            else [None] * len(args)
        )
    by_name = dict(zip([*at, "c"], got, strict=True))
    wanted = dict(zip(names, want, strict=False))
    p = wanted.get("p")
    parts = [torch.zeros_like(at["p"]) if p is None else p]
    totals = [
        torch.zeros_like(closure) if g is None else g
        for closure, g in zip(closures, want[len(names) :], strict=True)
    ]
    parts += [g.reshape(-1).to(at["p"].dtype) for g in partial_from_total(totals, closures)]
    wanted["p"] = torch.cat(parts)
    size = _size(*(w.detach() for w in wanted.values() if w is not None))
    for name in names:
        w, g = wanted[name], by_name[name]
        w = torch.zeros_like(at[name]) if w is None else w
        g = torch.zeros_like(w) if g is None else g
        if not _agree(g.detach(), w.detach(), size):
            raise CaptureError(
                f"the captured graph has another derivative by {name} than the function",
                "a no_grad block, a detach or a custom autograd.Function inside it is lost",
                kind="mismatch",
            )
