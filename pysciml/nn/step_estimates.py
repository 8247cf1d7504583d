"""What a solver thinks of its own steps: the local error, and how stiff the equation is there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["step_estimates"]

#: Dormand and Prince's pair of orders 5 and 4: Hairer, Norsett, Wanner, "Solving Ordinary
#: Differential Equations I", table II.5.2. The last stage is at the step's end, and its weights
#: are the step's own.
_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_LOWER = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)


def step_estimates(
    field: Any, p: Any, t: Tensor, u: Tensor, abstol: Any, reltol: float
) -> tuple[Tensor, Tensor]:
    """Local error and stiffness on each step, by Dormand and Prince's pair from its begin.

    Parameters
    ----------
    field : callable
        ``field(u, p, t)``, t a 0-d tensor.
    t : tensor (m + 1,), u : tensor (m + 1, batch, ...) or (m + 1, d)
        The solver's steps.
    abstol, reltol : tolerances
        The former a number or a tensor like ``u[0]``.

    Returns
    -------
    error : tensor (m, batch)
        The root mean square, over a sample's entries, of the difference of the pair's two results
        in units of ``abstol + reltol |u|``, |u| the larger one at the step's ends: a solver that
        goes by it takes steps where it is at most 1.
    stiffness : tensor (m, batch)
        ``|f(g7) - f(g6)| / |g7 - g6|`` of the two stages at the step's end, an estimate of the
        Jacobian's dominant eigenvalue (Hairer and Wanner, "Solving Ordinary Differential Equations
        II", section IV.2). The batch is 1 for states (d,).
    """
    start, step = u[:-1], t.diff().to(u.dtype)
    h = step.reshape(-1, *(1,) * (u.ndim - 1))
    at = t[:-1].to(u.dtype)
    value = torch.func.vmap(lambda u, t: field(u, p, t))
    slopes: list[Tensor] = []
    states: list[Tensor] = []
    for c, row in zip(_C, _A, strict=True):
        moved = sum((w * k for w, k in zip(row, slopes, strict=False)), torch.zeros_like(start))
        states.append(start + h * moved)
        slopes.append(value(states[-1], at + c * step))
    higher = (*_A[6], 0.0)
    gap = sum(
        ((b - d) * k for b, d, k in zip(higher, _LOWER, slopes, strict=True)),
        torch.zeros_like(start),
    )
    rows = (len(start), u.shape[1] if u.ndim > 2 else 1, -1)
    size = torch.maximum(u[:-1].detach().abs(), u[1:].detach().abs())
    error = _norm((h * gap / (abstol + reltol * size)).reshape(rows))
    error = error / (start[0].numel() // rows[1]) ** 0.5
    change = _norm((slopes[6] - slopes[5]).reshape(rows))
    distance = _norm((states[6] - states[5]).reshape(rows))
    still = distance <= torch.finfo(u.dtype).tiny ** 0.25
    return error, torch.where(still, torch.zeros_like(change), change / distance)


def _norm(x: Tensor) -> Tensor:
    """Of the last axis; with the gradient 0 at 0."""
    return (x.square().sum(-1) + torch.finfo(x.dtype).tiny).sqrt()
