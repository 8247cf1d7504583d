"""Event functions of torchdiffeq's kind: several entries as one, and the gradient of the event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["combined", "reroute"]

Event = Callable[[Tensor, Tensor], Tensor]


def combined(event: Event, t0: Tensor, y0: Tensor) -> Event:
    """One number whose sign changes where the first entry of ``event`` changes its own."""
    with torch.no_grad():
        signs = torch.sign(event(t0, y0))
    return lambda t, y: (event(t, y) * signs).min()


class _Reroute(torch.autograd.Function):
    """The event's time and state, found without gradient (time) and at fixed time (state)."""

    @staticmethod
    def forward(ctx: Any, f: Any, event: Event, t: Tensor, y: Tensor) -> Any:
        ctx.f, ctx.event = f, event
        ctx.save_for_backward(t, y)
        return t.clone(), y.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_t: Tensor, grad_y: Tensor) -> Any:
        t, y = (x.detach().requires_grad_() for x in ctx.saved_tensors)
        with torch.enable_grad():
            value = ctx.event(t, y)
            c_t, c_y = torch.autograd.grad(value, (t, y), allow_unused=True)
        c_t = torch.zeros_like(t) if c_t is None else c_t
        c_y = torch.zeros_like(y) if c_y is None else c_y
        f = ctx.f(t.detach(), y.detach()).detach()
        # c(t, y(t)) = 0 as the inputs move:  dt = - c_y dy / (c_t + c_y f)
        moved = grad_t + (grad_y * f).sum()
        rate = c_t + (c_y * f).sum()
        return None, None, None, grad_y - c_y * (moved / rate)


def reroute(f: Any, event: Event, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The time and state with the gradient of an event whose time moves with the inputs.

    Source: the implicit function theorem on event(t, y(t)) = 0; Chen, Amos, Nickel, "Learning
    Neural Event Functions for Ordinary Differential Equations", ICLR 2021.
    """
    return _Reroute.apply(f, event, t, y)
