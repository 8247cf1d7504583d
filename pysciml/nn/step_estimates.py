"""What a solver thinks of its own steps: the local error, and how stiff the equation is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "integrals_over_steps",
    "noisy_step_estimates",
    "over_steps",
    "step_estimates",
    "tolerance_of",
]

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


def over_steps(f: Callable[..., Any]) -> Callable[..., Tensor]:
    """``f`` of one step's tensors, on many: together, or one by one where it looks at values."""
    together = torch.func.vmap(f)

    def values(*rows: Tensor) -> Tensor:
        try:
            return together(*rows)
        except RuntimeError:  # vmap does not take a branch that depends on a value
            return torch.stack([f(*row) for row in zip(*rows, strict=True)])

    return values


def each_step(t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Begins and lengths of steps (m,), and the states (m, ...) at both ends of each.

    Both sides of an event are at one time, and no step.
    """
    t = t.detach()
    h = t.diff()
    real = h != 0
    return t[:-1][real], h[real], u[:-1][real], u[1:][real]


def tolerance_of(abstol: Any, shape: Any, like: Tensor) -> Tensor:
    """The absolute tolerance as a number, or as a tensor of a state's shape."""
    tol = torch.as_tensor(abstol, dtype=like.dtype, device=like.device)
    return tol.reshape(shape) if tol.numel() > 1 else tol


def step_estimates(
    value: Callable[[Tensor, Tensor], Tensor], t: Tensor, h: Tensor, start: Tensor, end: Tensor,
    abstol: Any, reltol: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Local error and stiffness on each step, by Dormand and Prince's pair from its begin.

    Parameters
    ----------
    value : callable
        Slopes of states (m, ...) at times (m,), one a step.
    t, h : tensor (m,)
        Begins and lengths of the solver's steps.
    start, end : tensor (m, batch, ...) or (m, d)
        The states at their ends.
    abstol, reltol : tolerances
        The former a number or a tensor like ``start[0]``.

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
    step = _like(h, start)
    slopes: list[Tensor] = []
    states: list[Tensor] = []
    for c, row in zip(_C, _A, strict=True):
        moved = sum((w * k for w, k in zip(row, slopes, strict=False)), torch.zeros_like(start))
        states.append(start + step * moved)
        slopes.append(value(states[-1], t + c * h))
    higher = (*_A[6], 0.0)
    gap = sum(
        ((b - d) * k for b, d, k in zip(higher, _LOWER, slopes, strict=True)),
        torch.zeros_like(start),
    )
    error = _scaled(step * gap, start, end, abstol, reltol)
    return error, _ratio(slopes[6] - slopes[5], states[6] - states[5])


def noisy_step_estimates(
    drift: Callable[[Tensor, Tensor], Tensor], noise: Callable[[Tensor, Tensor], Tensor],
    t: Tensor, h: Tensor, start: Tensor, end: Tensor, abstol: Any, reltol: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same on the steps of a stochastic equation, ``noise`` being ``g dW`` of each step.

    The error is Lamba's: that of Euler's step in the drift, ``h (f(u + h f) - f(u)) / 2``, and of
    Maruyama's in the noise, ``(g(u + g dW) - g(u)) dW / 2``, their sizes added. The stiffness is
    ``|f(k) - f(v)| / |k - v|`` of the drift's steps by Heun and by Euler. Sources: Lamba, "An
    adaptive timestepping algorithm for stochastic differential equations", J. Comput. Appl. Math.
    161, 2003; Rackauckas, Nie, "Adaptive methods for stochastic differential equations via natural
    embeddings and rejection sampling with memory", DCDS-B 22, 2017.
    """
    step, after = _like(h, start), t + h
    slope = drift(start, t)
    euler = start + step * slope
    last = drift(euler, after)
    heun = start + step * (slope + last) / 2
    kick = noise(start, t)
    error = (step * (last - slope)).abs() / 2 + (noise(start + kick, t) - kick).abs() / 2
    return (
        _scaled(error, start, end, abstol, reltol),
        _ratio(drift(heun, after) - last, heun - euler),
    )


def integrals_over_steps(
    value: Callable[[Tensor, Tensor], Tensor], t: Tensor, u: Tensor, kinds: tuple[str, ...],
    noise: Tensor | None,
) -> Tensor:  # fmt: skip
    """Integrals along steps by the trapezoidal rule, (batch, k): of |f|^2, or of |e^T df/du|^2.

    ``value``: slopes of states u (m, ...) at times t (m,); ``kinds``: "kinetic", "jacobian";
    ``noise``: e, like ``u[0]``.
    """
    slopes, pull = torch.func.vjp(lambda x: value(x, t), u)[:2]
    columns = []
    for kind in kinds:
        if kind == "kinetic":
            rows = slopes
        else:
            assert noise is not None
            rows = pull(noise.expand_as(slopes))[0]
        columns.append(_samples(rows).square().sum(2))
    column = torch.stack(columns, dim=2)
    return (t.diff().to(u.dtype)[:, None, None] * (column[:-1] + column[1:]) / 2).sum(0)


def _like(h: Tensor, u: Tensor) -> Tensor:
    """One number a step, to be multiplied with states."""
    return h.to(u.dtype).reshape(-1, *(1,) * (u.ndim - 1))


def _samples(x: Tensor) -> Tensor:
    """(steps, batch, entries)"""
    return x.reshape(len(x), x.shape[1] if x.ndim > 2 else 1, -1)


def _scaled(error: Tensor, start: Tensor, end: Tensor, abstol: Any, reltol: float) -> Tensor:
    """Root mean square in units of the tolerance, (steps, batch)."""
    size = torch.maximum(start.detach().abs(), end.detach().abs())
    rows = _samples(error / (abstol + reltol * size))
    return _norm(rows) / rows.shape[2] ** 0.5


def _ratio(change: Tensor, distance: Tensor) -> Tensor:
    over, under = _norm(_samples(change)), _norm(_samples(distance))
    still = under <= torch.finfo(under.dtype).tiny ** 0.25
    return torch.where(still, torch.zeros_like(over), over / under)


def _norm(x: Tensor) -> Tensor:
    """Of the last axis; with the gradient 0 at 0."""
    return (x.square().sum(-1) + torch.finfo(x.dtype).tiny).sqrt()
