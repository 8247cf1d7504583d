"""Delay equations that several test modules differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from support import assert_close, central_difference


def check(loss: Callable[[Tensor], Tensor], x: Tensor, rtol: float = 1e-6, h: float = 1e-4) -> None:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    assert_close(gradient, central_difference(loss, x, h), rtol=rtol)


def decay(u: Any, h: Any, p: Any, t: Any) -> Any:
    return -p[0] * h(p, t - p[1])


def constant(p: Any, t: Any) -> Any:
    return p[2].reshape(1)


def oscillator(u: Any, h: Any, p: Any, t: Any) -> Any:
    late, later = h(p, t - p["tau"]), h(p, t - 2 * p["tau"] - 0.1)
    return torch.stack(
        [p["a"] * late[1] - u[0] * later[0] ** 2, -u[0] + torch.sin(later[1]) + torch.cos(t)]
    )


def wave(p: Any, t: Any) -> Any:
    return torch.stack([torch.cos(p["w"] * t), p["b"] * t + 0.3])
