"""The keyword arguments of ``solve``: checked, and brought into the engines' form."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.errors import InputError, did_you_mean
from pysciml.flatten import StateSpec, to_numpy
from pysciml.indices import flat_indices
from pysciml.problems import DAEProblem, ODEProblem, number
from pysciml.sensitivity import SensitivityAlgorithm

__all__ = [
    "Grid",
    "absolute_tolerance",
    "check_options",
    "positive",
    "positive_whole",
    "saveat_grid",
    "state_indices",
    "stops_within",
    "times_within",
]

Array = npt.NDArray[np.float64]

#: More output times than this are a mistake.
_MOST_OUTPUTS = 1e8

_KNOWN = (
    "engine saveat abstol reltol sensealg callback save_idxs tstops dt dtmax dtmin maxiters "
    "adaptive progress raise_on_failure seed save_everystep save_start save_end dense "
    "d_discontinuities isoutofdomain force_dtmin controller initializealg"
).split()

#: What people coming from SciPy and torchdiffeq write.
_ELSEWHERE = {
    "rtol": "reltol", "atol": "abstol", "method": "alg (the second argument)",
    "t_eval": "saveat", "max_step": "dtmax", "first_step": "dt", "max_steps": "maxiters",
    "events": "callback", "args": "p of the problem", "max_num_steps": "maxiters",
}  # fmt: skip


def check_options(
    prob: Any,
    unknown: dict[str, Any],
    abstol: Any,
    reltol: Any,
    dt: Any,
    dtmax: Any,
    dtmin: Any,
    maxiters: Any,
    sensealg: Any,
) -> None:
    """Raise InputError for the first thing that cannot be meant."""
    if not isinstance(prob, (ODEProblem, DAEProblem)):
        raise InputError(
            f"solve was given a {type(prob).__name__}; give a problem, "
            "e.g. pysciml.ODEProblem(f, u0, (t0, t1), p)."
        )
    for key in unknown:
        if key in _ELSEWHERE:
            raise InputError(f"solve does not take {key!r}; give {_ELSEWHERE[key]} instead.")
        raise InputError(
            f"solve does not take {key!r}; it takes {', '.join(_KNOWN)}.{did_you_mean(key, _KNOWN)}"
        )
    positive("reltol", reltol, zero=True)
    if reltol >= 1.0:
        raise InputError(f"reltol is {reltol}; give a relative tolerance below 1, e.g. 1e-6.")
    if isinstance(abstol, numbers.Real):
        positive("abstol", abstol, zero=True)
        if float(abstol) == 0.0 and float(reltol) == 0.0:
            raise InputError("abstol and reltol are both 0; give at least one a positive value.")
    if dt is not None or dtmax is not None or dtmin is not None:
        for name, value in (("dt", dt), ("dtmax", dtmax), ("dtmin", dtmin)):
            if value is not None:
                positive(name, value)
        for name, value in (("dtmin", dtmin), ("dt", dt)):
            if value is not None and dtmax is not None and value > dtmax:
                raise InputError(f"{name} is {value}, above dtmax = {dtmax}; give {name} <= dtmax.")
        if dtmin is not None:
            _refuse_least_step(prob, dt, dtmin)
    positive_whole("maxiters", maxiters)
    if sensealg is not None and not isinstance(sensealg, SensitivityAlgorithm):
        raise InputError(
            f"sensealg is {sensealg!r}; give a sensitivity algorithm, e.g. pysciml.GaussAdjoint()."
        )
    if sensealg is not None:
        for name in ("abstol", "reltol"):
            value = getattr(sensealg, name)
            if value is not None and not isinstance(value, Tensor):  # one number, of torchdiffeq's
                positive(f"{name} of {sensealg.name}", value, zero=True)


def _refuse_least_step(prob: Any, dt: Any, dtmin: Any) -> None:
    if dt is not None and dt < dtmin:
        raise InputError(f"dt is {dt}, below dtmin = {dtmin}; give dt >= dtmin.")
    t0, t1 = map(number, prob.tspan)
    if dtmin > abs(t1 - t0) > 0.0:
        raise InputError(
            f"dtmin is {dtmin}, longer than tspan ({t0:g}, {t1:g}); give a smaller one."
        )


def positive(name: str, value: Any, zero: bool = False) -> None:
    """Raise InputError unless ``value`` is a finite number > 0 (>= 0 with ``zero``)."""
    if type(value) is float and 0.0 < value < math.inf:
        return
    least = ">= 0" if zero else "> 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} is {value!r}; give a number {least}.")
    x = float(value)
    if not math.isfinite(x) or x < 0.0 or (x == 0.0 and not zero):
        raise InputError(f"{name} is {value}; give a number {least}.")


def is_whole(x: Any) -> bool:
    """Whether it is a whole number: Python's or NumPy's."""
    return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def require_count(name: str, value: Any) -> None:
    """Raise InputError unless ``value`` is a whole number > 0, of a whole type."""
    if not is_whole(value) or value < 1:
        raise InputError(f"{name} is {value!r}; give a positive whole number.")


def positive_whole(name: str, value: Any) -> None:
    """Raise InputError unless ``value`` is a whole number > 0, of whichever type."""
    if type(value) is int and value >= 1:
        return
    whole = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not whole or not value >= 1 or value != math.floor(min(value, 1e18)):
        raise InputError(f"{name} is {value!r}; give a positive whole number.")


@dataclass
class Grid:
    """The times asked for: values, and the tensor they came from."""

    values: Array | None
    tensor: Tensor | None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return () if self.tensor is None else (self.tensor,)


def saveat_grid(saveat: Any, start: Tensor, end: Tensor) -> Grid:
    """The output times that ``saveat`` stands for; those of a step move with tspan.

    Raises InputError.
    """
    t0, t1 = float(start.detach()), float(end.detach())
    if saveat is None:
        return Grid(None, None)
    if isinstance(saveat, (Tensor, np.ndarray)) and saveat.ndim == 0:
        if isinstance(saveat, Tensor) and saveat.requires_grad:
            raise InputError(
                "saveat is a step that requires grad, but no gradient is taken for a step; detach "
                "it, or give the times themselves as a 1-d tensor."
            )
        saveat = saveat.item()
    if isinstance(saveat, numbers.Real) and not isinstance(saveat, bool):
        step = float(saveat)
        if not math.isfinite(step) or step <= 0.0:
            raise InputError(f"saveat is {saveat}; give a positive step, or the times themselves.")
        if abs(t1 - t0) / step > _MOST_OUTPUTS:
            raise InputError(
                f"saveat is {saveat}, a step of which tspan ({t0:g}, {t1:g}) holds "
                f"{abs(t1 - t0) / step:.3g}; give a larger step."
            )
        count = math.floor(abs(t1 - t0) / step * (1 + 1e-12))
        grid = t0 + math.copysign(step, t1 - t0) * np.arange(count + 1, dtype=np.float64)
        if abs(grid[-1] - t1) <= 1e-12 * max(abs(t0), abs(t1), step):
            grid[-1] = t1
        else:
            grid = np.append(grid, t1)
        if not (start.requires_grad or end.requires_grad):
            return Grid(grid, None)
        inner = torch.as_tensor(grid[1:-1] - t0)
        first, last = (x.to("cpu", torch.float64).reshape(1) for x in (start, end))
        return Grid(grid, torch.cat([first, first + inner, last]))
    if isinstance(saveat, (list, tuple)) and any(isinstance(x, Tensor) for x in saveat):
        saveat = _stacked(saveat)
    values = times_within(saveat, "saveat", t0, t1)
    tensor = saveat if isinstance(saveat, Tensor) and saveat.is_floating_point() else None
    return Grid(values, tensor)


def _stacked(times: Any) -> Any:
    """Numbers and 0-d tensors as one tensor, differentiably; as they are where they do not fit."""
    try:
        return torch.stack([torch.as_tensor(x, dtype=torch.float64).reshape(()) for x in times])
    except (TypeError, ValueError, RuntimeError):
        return times


def state_indices(save_idxs: Any, spec: StateSpec) -> Tensor | None:
    """The entries to keep as a tensor (k,). Raises InputError for what are none."""
    if save_idxs is None:
        return None
    return flat_indices(save_idxs, "save_idxs", spec.size, "the state has").to(spec.device)


def times_within(times: Any, name: str, t0: float, t1: float, any_order: bool = False) -> Array:
    """Times within tspan, sorted in the direction of integration. Raises InputError.

    With ``any_order`` they may be given in any, more than once, as one number, or be none.
    """
    if isinstance(times, Tensor) and times.is_meta:
        raise InputError(f"{name} is on the device meta, where tensors have no values.")
    if isinstance(times, Tensor) and times.dtype is torch.float64 and times.ndim == 1:
        # what almost always holds, asked at once; NaN fails every comparison
        found = to_numpy(times)
        if len(found) and (
            t0 <= found[0] and found[-1] <= t1 and bool((found[1:] > found[:-1]).all())
        ):
            return found
    try:
        tensor = times if isinstance(times, Tensor) else torch.as_tensor(np.asarray(times, float))
        if times is None or isinstance(times, (bool, str)):
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {times!r}; give a 1-d tensor or sequence of times.") from None
    if any_order and tensor.ndim == 0:
        tensor = tensor.reshape(1)
    if tensor.ndim != 1 or (tensor.numel() == 0 and not any_order):
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}; give a 1-d tensor of at least one time."
        )
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise InputError(f"{name} is a tensor of {tensor.dtype}; give real times.")
    values = to_numpy(tensor)
    if not np.isfinite(values).all():
        bad = int(np.nonzero(~np.isfinite(values))[0][0])
        raise InputError(f"{name}[{bad}] is {values[bad]}; give finite times only.")
    sign = 1.0 if t1 > t0 else -1.0
    steps = sign * np.diff(values)
    if (steps <= 0).any() and not any_order:
        i = int(np.nonzero(steps <= 0)[0][0])
        order = "increase" if sign > 0 else "decrease (tspan runs backwards)"
        raise InputError(
            f"{name} must {order}, but {name}[{i}] = {values[i]:g} is followed by "
            f"{values[i + 1]:g}; sort it and remove repeated times."
        )
    low, high = sorted((t0, t1))
    # A grid that was computed may miss the ends by its rounding: taken as the ends.
    rounding = 1e-6 if tensor.dtype == torch.float32 else 4 * np.finfo(np.float64).eps
    slack = rounding * max(abs(low), abs(high))
    outside = (values < low - slack) | (values > high + slack)
    if outside.any():
        i = int(np.nonzero(outside)[0][0])
        raise InputError(
            f"{name}[{i}] = {values[i]:g} lies outside tspan ({t0:g}, {t1:g}); "
            "widen tspan or leave that time out."
        )
    values = np.clip(values, low, high)
    return np.unique(values)[:: int(sign)].copy() if any_order else values


def stops_within(tstops: Any, t0: float, t1: float) -> Array | None:
    """Times to step on, in order; None where there are none. Raises InputError."""
    if tstops is None:
        return None
    times = times_within(tstops, "tstops", t0, t1, any_order=True)
    return times if len(times) else None


def absolute_tolerance(abstol: Any, spec: StateSpec) -> float | Array:
    """One number, or one for each entry of the state. Raises InputError."""
    if type(abstol) is float or isinstance(abstol, numbers.Real):
        return float(abstol)
    leaves, structure = pytree.tree_flatten(spec.in_order(abstol))
    if isinstance(abstol, dict) and structure != spec.treedef:
        raise InputError(
            f"abstol is {abstol!r}, which is not built like u0; give one number, one for each "
            "entry of u0, or a structure like u0."
        )
    try:
        parts = [torch.as_tensor(x, dtype=torch.float64).cpu().reshape(-1) for x in leaves]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"abstol is {abstol!r}; give a positive number, or one for each entry of u0."
        ) from None
    flat = to_numpy(torch.cat(parts)) if parts else np.empty(0)
    if len(flat) == 1:
        flat = np.repeat(flat, spec.size)
    if len(flat) != spec.size:
        raise InputError(
            f"abstol has {len(flat)} entries, but the state has {spec.size}; "
            "give one number, or one for each entry."
        )
    if not (np.isfinite(flat).all() and (flat >= 0).all()):
        bad = flat[~(np.isfinite(flat) & (flat >= 0))][0]
        raise InputError(f"abstol has the entry {bad}; give finite numbers >= 0.")
    return flat
