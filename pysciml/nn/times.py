"""When a continuous module gives its solution: at sorted times, at a step, or at the end only."""

from __future__ import annotations

import numbers
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pysciml.errors import InputError
from pysciml.options import positive, saveat_grid

__all__ = [
    "as_saveat",
    "check_times",
    "end_of",
    "moved_times",
    "output_times",
    "solution_at",
    "through_end",
]


def check_times(times: Any, name: str = "saveat") -> Tensor:
    """A 1-d tensor of strictly increasing or decreasing times, or InputError."""
    try:
        t = times if isinstance(times, Tensor) else torch.as_tensor(times, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {times!r}; give a 1-d tensor of float times.") from None
    if t.ndim != 1 or not t.numel() or not t.is_floating_point():
        raise InputError(f"{name} has shape {tuple(t.shape)}; give a 1-d tensor of float times.")
    steps = t.detach().diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise InputError(f"{name} is not sorted, or repeats a time; sort it and take each once.")
    return t


def as_saveat(given: Any) -> Tensor | float | None:
    """Times by :func:`check_times`, a positive step, or None. Raises InputError."""
    if given is None:
        return None
    if isinstance(given, numbers.Real):
        positive("saveat", given)
        return float(given)
    return check_times(given)


def output_times(saveat: Tensor | float | None, tspan: tuple[Any, Any]) -> Tensor | None:
    """The times that ``saveat`` stands for; those of a step begin and end with ``tspan``."""
    if saveat is None or isinstance(saveat, Tensor):
        return saveat
    t0, t1 = tspan
    if isinstance(t0, Tensor) or isinstance(t1, Tensor):
        return _stepped(saveat, *(torch.as_tensor(t, dtype=torch.float64) for t in tspan))
    return _held(saveat, float(t0), float(t1))


@lru_cache(maxsize=64)
def _held(step: float, t0: float, t1: float) -> Tensor:
    # the same tensor each time, by which a plan is found again
    return _stepped(step, *torch.tensor([t0, t1], dtype=torch.float64))


def _stepped(step: float, t0: Tensor, t1: Tensor) -> Tensor:
    grid = saveat_grid(step, t0, t1)
    return torch.from_numpy(grid.values) if grid.tensor is None else grid.tensor


def end_of(t1: Any) -> Tensor:
    """The end of a time span as the only output time."""
    return torch.as_tensor(t1, dtype=torch.float64)[None] if isinstance(t1, Tensor) else _only(t1)


def direction_of(tspan: tuple[Any, Any]) -> float:
    """1.0 for a time span that runs forwards, else -1.0."""
    t0, t1 = (float(torch.as_tensor(t).detach()) for t in tspan)
    return 1.0 if t1 > t0 else -1.0


def through_end(grid: Tensor, tspan: tuple[Any, Any]) -> Tensor:
    """Output times, and the end of the time span where they do not reach it."""
    end = end_of(tspan[1]).to(grid)
    left = direction_of(tspan) * (float(end.detach()) - float(grid[-1].detach()))
    return torch.cat([grid, end]) if left > 0.0 else grid


def solution_at(sol: Any, times: Tensor) -> Any:
    """``sol(times)``, an end of the solution being one to the rounding of the state's dtype."""
    lo, hi = sorted(float(t) for t in sol.t.detach()[[0, -1]])
    at = times.detach()
    near = at.clamp(lo, hi)
    close = (near - at).abs() <= 1e-6 * max(abs(lo), abs(hi))
    return sol(times + torch.where(close, near - at, 0.0))


@lru_cache(maxsize=64)
def _only(t: float) -> Tensor:
    # the same tensor each time, by which a plan is found again
    return torch.tensor([t], dtype=torch.float64)


def moved_times(
    saveat: Tensor | None, tspan: tuple[Any, Any], width: float
) -> tuple[Tensor | None, tuple[Any, Any]]:
    """Output times and time span with ends drawn within ``width`` of where they are.

    The times of a series are moved each by itself, all but one at ``t0``; without ``saveat``
    the end of ``tspan`` is. Raises InputError where times could then change their order.
    """
    t0, t1 = tspan
    if saveat is None:
        end = t1 if isinstance(t1, Tensor) and t1.requires_grad else float(t1)
        return None, (t0, end + width * (2.0 * float(torch.rand(())) - 1.0))
    start = float(torch.as_tensor(t0, dtype=saveat.dtype).detach())
    values = saveat.detach().to("cpu", torch.float64)
    gaps = torch.cat([(values[:1] - start).abs(), values.diff().abs()])
    gaps = gaps[gaps > 0]
    if len(gaps) and 2.0 * width >= float(gaps.min()):
        raise InputError(
            f"RandomEndTime has width {width:g}, but times of saveat are only "
            f"{float(gaps.min()):g} apart; give a width below half of that."
        )
    moves = width * (2.0 * torch.rand(len(values), dtype=torch.float64) - 1.0)
    moves = torch.where(values == start, 0.0, moves).to(saveat.device, saveat.dtype)
    moved = saveat + moves
    last, end = float(moved[-1].detach()), float(torch.as_tensor(t1, dtype=torch.float64).detach())
    beyond = last > end if end > start else last < end
    return moved, (t0, last if beyond else t1)
