"""The continuous adjoint of torchdiffeq, for fixed grids: stepped back by the same method.

Source: Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, appendix B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["AdjointSolve"]

Solve = Callable[..., tuple[Tensor, ...]]


class AdjointSolve(torch.autograd.Function):
    """States at times ``t`` by ``forward_solve``, gradients by solving the adjoint backwards.

    Inputs: forward_solve(y0, t) -> (m, *y0); back_solve(field, state, times) -> states of a tuple
    at two times; f(t, y); whether the times need gradients; y0; t; then the parameters.
    """

    @staticmethod
    def forward(
        ctx: Any,
        forward_solve: Callable[[Tensor, Tensor], Tensor],
        back_solve: Solve,
        f: Callable[[Tensor, Tensor], Tensor],
        y0: Tensor,
        t: Tensor,
        *params: Tensor,
    ) -> Tensor:
        ctx.back_solve, ctx.f, ctx.times = back_solve, f, t.requires_grad
        y = forward_solve(y0, t)
        ctx.save_for_backward(y, t, *params)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, t, *params = ctx.saved_tensors
        field = _augmented(ctx.f, params, ctx.times)
        zeros = [torch.zeros_like(p) for p in params]
        state = (torch.zeros((), dtype=y.dtype, device=y.device), y[-1], grad[-1], *zeros)
        at = torch.zeros_like(t)
        for i in range(len(t) - 1, 0, -1):
            if ctx.times:
                moved = (ctx.f(t[i].to(y.dtype), y[i]) * grad[i]).sum()
                at[i] = moved
                state = (state[0] - moved, *state[1:])
            ends = ctx.back_solve(field, state, t[i - 1 : i + 1].flip(0))
            d_t, _, d_y, *d_p = (x[-1] for x in ends)
            # the state itself is known there, better than from solving it backwards
            state = (d_t, y[i - 1], d_y + grad[i - 1], *d_p)
        at[0] = state[0]
        return (None, None, None, state[2], at if ctx.times else None, *state[3:])


def _augmented(
    f: Callable[[Tensor, Tensor], Tensor], params: list[Tensor], times: bool
) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def field(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        _, y, adjoint, *_ = state
        with torch.enable_grad():
            t = t.detach().requires_grad_(times)
            y = y.detach().requires_grad_(True)
            value = f(t, y)
            inputs = [t, y, *params] if times else [y, *params]
            grads: list[Tensor | None]
            if value.requires_grad:
                grads = list(
                    torch.autograd.grad(
                        value, inputs, -adjoint, allow_unused=True, retain_graph=True
                    )
                )
            else:
                grads = [None] * len(inputs)
        d_t = grads.pop(0) if times else None
        filled = [
            torch.zeros_like(x) if g is None else g
            for x, g in zip((t, y, *params), (d_t, *grads), strict=True)
        ]
        return (filled[0].to(y.dtype), value.detach(), *filled[1:])

    return field
