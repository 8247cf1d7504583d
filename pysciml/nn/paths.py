"""Control paths through data, for controlled differential equations: made from values and times.

Values may be irregular in time and missing (nan). A path is held by coefficients (a tensor that a
DataLoader can serve) and the times they belong to. Linear paths are held by their values at the
knots, (..., m, c); cubic ones by ``[a, b, 2 c, 3 d]`` a piece, (..., m - 1, 4 c), of
``a + b s + c s^2 + d s^3`` with ``s`` the time since the piece's start.

Sources: Kidger, Morrill, Foster, Lyons, "Neural controlled differential equations for irregular
time series", NeurIPS 2020; Morrill, Kidger, Yang, Lyons, "Neural controlled differential equations
for online prediction tasks", 2021 (rectilinear, and Hermite cubic with backward differences).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pysciml.errors import InputError

__all__ = [
    "CubicPath",
    "LinearPath",
    "Path",
    "cubic_derivative",
    "cubic_value",
    "fill_forward",
    "fill_linear",
    "hermite_coefficients",
    "linear_coefficients",
    "linear_derivative",
    "linear_value",
    "natural_cubic_coefficients",
    "path_times",
]


def path_times(x: Any, t: Any) -> Tensor:
    """The times of data (..., m, c): ``t``, or 0, 1, ..., m - 1 where None.

    Raises InputError for data and times that do not fit, times that are not sorted, infinite ones.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        given = f"of shape {tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else type(x)
        raise InputError(f"The data are {given}; give a float tensor (..., length, channels).")
    length = x.shape[-2]
    if x.is_meta:
        raise InputError("The data are on the device meta, where tensors have no values.")
    if length < 2:
        raise InputError("The data hold one time only; a path needs two or more.")
    if bool(torch.isinf(x.detach()).any()):
        raise InputError(
            "The data hold infinite values; a path needs finite ones, nan where missing."
        )
    if t is None:
        return torch.arange(length, dtype=x.dtype, device=x.device)
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.ndim != 1 or t.is_meta:
        kind = f"{tuple(t.shape)} on {t.device}" if isinstance(t, Tensor) else type(t).__name__
        raise InputError(f"t is {kind}; give a 1-d float tensor of times.")
    if len(t) != length:
        raise InputError(
            f"t has {len(t)} times, but the data have {length} (shape {tuple(x.shape)}); give one "
            "time for each."
        )
    _require_rising(t)
    return t


def _require_rising(t: Tensor) -> None:
    """Raise InputError unless the times increase strictly and are finite."""
    if not bool(torch.isfinite(t.detach()).all()):
        raise InputError("t holds an infinite time, or nan; give finite ones.")
    if not bool((t.detach().diff() > 0).all()):
        raise InputError("t must increase strictly; sort it, and the data with it.")


# ---- missing values


def fill_forward(x: Tensor) -> Tensor:
    """Each missing value replaced by the last one seen in its channel; missing until the first."""
    seen = ~torch.isnan(x)
    steps = torch.arange(x.shape[-2], device=x.device)[:, None].expand_as(x)
    last = torch.where(seen, steps, 0).cummax(dim=-2).values
    return x.gather(-2, last)


def fill_linear(x: Tensor, t: Tensor) -> Tensor:
    """Missing values from the line between their neighbours in time; constant beyond the ends.

    A channel without any value is zero.
    """
    if not bool(torch.isnan(x).any()):
        return x
    seen = ~torch.isnan(x)
    length = x.shape[-2]
    steps = torch.arange(length, device=x.device)[:, None].expand_as(x)
    before = torch.where(seen, steps, -1).cummax(dim=-2).values
    after = torch.where(seen, steps, length).flip(-2).cummin(dim=-2).values.flip(-2)
    low = torch.where(before < 0, after, before).clamp(0, length - 1)
    high = torch.where(after >= length, before, after).clamp(0, length - 1)
    clean = torch.where(seen, x, 0.0)
    a, b = clean.gather(-2, low), clean.gather(-2, high)
    gap = t[high] - t[low]
    part = torch.where(gap > 0, (t[steps] - t[low]) / torch.where(gap > 0, gap, 1.0), 0.0)
    return torch.where(seen, clean, a + part.to(x.dtype) * (b - a))


# ---- coefficients


def linear_coefficients(
    x: Tensor, t: Tensor | None = None, rectilinear: int | None = None
) -> Tensor:
    """Values at the knots of the linear path, (..., m, c), nothing missing.

    Parameters
    ----------
    x : tensor (..., m, c), nan where missing
    t : tensor (m,), optional
    rectilinear : int, optional
        The channel that holds time. The path then first moves in time with the values held, then
        in the values: it never looks ahead. Its knots are (..., 2 m - 1, c), at times 0, 1, ...
    """
    if rectilinear is not None:
        x = _rectilinear(x, rectilinear)
        t = None
    return fill_linear(x, path_times(x, t))


def _rectilinear(x: Tensor, channel: int) -> Tensor:
    path_times(x, None)
    count = x.shape[-1]
    if type(channel) is not int or not 0 <= channel < count:
        raise InputError(
            f"rectilinear is {channel!r}; give the index of the time channel, 0 to {count - 1}."
        )
    if bool(torch.isnan(x[..., channel]).any()):
        raise InputError(
            "The time channel has missing values; fill them, e.g. with the last time of the series."
        )
    held = fill_forward(x).repeat_interleave(2, dim=-2)
    times = held[..., channel]
    moved = torch.cat([times[..., 1:], times[..., -1:]], dim=-1)
    parts = [*held.unbind(-1)]
    parts[channel] = moved
    return torch.stack(parts, dim=-1)[..., :-1, :]


def hermite_coefficients(x: Tensor, t: Tensor | None = None) -> Tensor:
    """Cubic pieces whose slope at each knot is the one of the line before it, (..., m - 1, 4 c).

    Once continuously differentiable, and causal but for missing values between two seen ones.
    """
    t = path_times(x, t)
    x = fill_linear(x, t)
    h = t.diff()[:, None].to(x.dtype)
    slope = x.diff(dim=-2) / h
    start = torch.cat([slope[..., :1, :], slope[..., :-1, :]], dim=-2)
    # the piece ends with the slope of its own line
    c = (slope - start) / h
    return torch.cat([x[..., :-1, :], start, 4.0 * c, -3.0 * c / h], dim=-1)


def natural_cubic_coefficients(x: Tensor, t: Tensor | None = None) -> Tensor:
    """The natural cubic spline through the values that are there, (..., m - 1, 4 c).

    Twice continuously differentiable; every piece depends on all values. Before the first value
    and after the last, the path is as if these had been held.
    """
    t = path_times(x, t)
    batch, (length, channels) = x.shape[:-2], x.shape[-2:]
    columns = x.movedim(-2, 0).reshape(length, -1)
    missing = torch.isnan(columns)
    if not bool(missing.any()):
        parts = _natural(columns, t.to(x.dtype))
    else:
        parts = _natural_with_gaps(columns, t.to(x.dtype), ~missing)
    shaped = [p.reshape(length - 1, *batch, channels).movedim(0, -2) for p in parts]
    return torch.cat(shaped, dim=-1)


Parts = tuple[Tensor, Tensor, Tensor, Tensor]


def _natural(x: Tensor, t: Tensor) -> Parts:
    """a, b, 2 c, 3 d of the natural spline through columns (m, k), each (m - 1, k)."""
    h, rise = t.diff()[:, None], x.diff(dim=0)
    inverse = 1.0 / h[:, 0]
    edge = inverse.new_zeros(1)
    left, right = torch.cat([edge, inverse]), torch.cat([inverse, edge])
    matrix = torch.diag(2.0 * (left + right)) + torch.diag(inverse, 1) + torch.diag(inverse, -1)
    pull = 3.0 * rise / h**2
    none = pull.new_zeros(1, pull.shape[1])
    slope = torch.linalg.solve(matrix, torch.cat([none, pull]) + torch.cat([pull, none]))
    s0, s1 = slope[:-1], slope[1:]
    c = (3.0 * rise / h - 2.0 * s0 - s1) / h
    d = (s0 + s1 - 2.0 * rise / h) / h**2
    return x[:-1], s0, 2.0 * c, 3.0 * d


def _natural_with_gaps(x: Tensor, t: Tensor, seen: Tensor) -> Parts:
    """As :func:`_natural`, through the values seen; columns of equal gaps are solved together."""
    filled = fill_linear(x, t)
    knots = seen.clone()
    knots[0], knots[-1] = True, True
    patterns, which = torch.unique(knots, dim=1, return_inverse=True)
    out = [torch.zeros_like(x[:-1]) for _ in range(4)]
    for k in range(patterns.shape[1]):
        here = torch.nonzero(which == k)[:, 0]
        rows = torch.nonzero(patterns[:, k])[:, 0]
        a, b, two_c, three_d = _natural(filled[rows][:, here], t[rows])
        piece = torch.searchsorted(rows, torch.arange(len(t) - 1, device=x.device), right=True) - 1
        s = (t[:-1] - t[rows][piece])[:, None]
        a, b, two_c, three_d = a[piece], b[piece], two_c[piece], three_d[piece]
        moved = (
            a + s * (b + s * (two_c / 2 + s * three_d / 3)),
            b + s * (two_c + s * three_d),
            two_c + 2.0 * s * three_d,
            three_d,
        )
        out = [o.index_copy(1, here, m) for o, m in zip(out, moved, strict=True)]
    return out[0], out[1], out[2], out[3]


# ---- evaluation


def _piece(times: Tensor, t: Tensor) -> Tensor:
    return (torch.bucketize(t, times) - 1).clamp(0, times.shape[0] - 2)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows (..., c), or (..., *index.shape, c), of (..., m, c)."""
    return x[..., index, :]


def linear_value(coeffs: Tensor, times: Tensor, t: Tensor) -> Tensor:
    """The path at ``t`` (...)."""
    i = _piece(times, t)
    part = ((t - times[i]) / (times[i + 1] - times[i])).unsqueeze(-1)
    low = _take(coeffs, i)
    return low + part * (_take(coeffs, i + 1) - low)


def linear_derivative(coeffs: Tensor, times: Tensor, t: Tensor) -> Tensor:
    """Its derivative."""
    i = _piece(times, t)
    return (_take(coeffs, i + 1) - _take(coeffs, i)) / (times[i + 1] - times[i]).unsqueeze(-1)


def cubic_value(coeffs: Tensor, times: Tensor, t: Tensor) -> Tensor:
    """The path at ``t`` (...)."""
    i = _piece(times, t)
    a, b, two_c, three_d = _take(coeffs, i).chunk(4, dim=-1)
    s = (t - times[i]).unsqueeze(-1)
    return a + s * (b + s * (two_c / 2 + s * three_d / 3))


def cubic_derivative(coeffs: Tensor, times: Tensor, t: Tensor) -> Tensor:
    """Its derivative."""
    i = _piece(times, t)
    _, b, two_c, three_d = _take(coeffs, i).chunk(4, dim=-1)
    s = (t - times[i]).unsqueeze(-1)
    return b + s * (two_c + s * three_d)


class Path(nn.Module):
    """A path by its coefficients; base of :class:`LinearPath` and :class:`CubicPath`."""

    coeffs: Tensor
    times: Tensor
    #: Whether its derivative jumps at the knots.
    kinks = False

    def __init__(self, coeffs: Tensor, t: Tensor | None = None) -> None:
        super().__init__()
        if not isinstance(coeffs, Tensor):
            raise InputError(
                f"The coefficients are a {type(coeffs).__name__}; give the tensor that e.g. "
                "hermite_coefficients makes of the data."
            )
        if not coeffs.is_floating_point() or coeffs.is_meta:
            what = "on the device meta" if coeffs.is_meta else f"of {str(coeffs.dtype)[6:]}"
            raise InputError(f"The coefficients are {what}; give a tensor of float numbers.")
        knots = self._knots(coeffs)
        if t is None:
            t = torch.arange(knots, dtype=coeffs.dtype, device=coeffs.device)
        if not isinstance(t, Tensor) or t.is_meta:
            what = "on the device meta" if isinstance(t, Tensor) else f"a {type(t).__name__}"
            raise InputError(f"t is {what}; give a 1-d tensor of times.")
        if t.ndim != 1 or len(t) != knots:
            raise InputError(
                f"The coefficients belong to {knots} times, but t has shape {tuple(t.shape)}; give "
                "the times they were made with."
            )
        _require_rising(t)
        self.register_buffer("coeffs", coeffs)
        self.register_buffer("times", t.to(coeffs.dtype))

    @staticmethod
    def _knots(coeffs: Tensor) -> int:
        if coeffs.ndim < 2:
            raise InputError(
                f"The coefficients have shape {tuple(coeffs.shape)}; give (..., length, channels)."
            )
        return coeffs.shape[-2]

    @property
    def interval(self) -> Tensor:
        """First and last time, (2,)."""
        return torch.stack([self.times[0], self.times[-1]])

    @property
    def channels(self) -> int:
        return self.coeffs.shape[-1]

    def evaluate(self, t: Any) -> Tensor:
        """The path at ``t``: (..., c), or (..., *t.shape, c)."""
        raise NotImplementedError

    def derivative(self, t: Any) -> Tensor:
        """Its derivative at ``t``, of the same shape."""
        raise NotImplementedError

    def _time(self, t: Any) -> Tensor:
        try:
            return torch.as_tensor(t, dtype=self.times.dtype, device=self.times.device)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"t is {t!r}; give a time, or a tensor of times.") from None


class LinearPath(Path):
    """The piecewise linear path of :func:`linear_coefficients`."""

    kinks = True

    def evaluate(self, t: Any) -> Tensor:
        return linear_value(self.coeffs, self.times, self._time(t))

    def derivative(self, t: Any) -> Tensor:
        return linear_derivative(self.coeffs, self.times, self._time(t))


class CubicPath(Path):
    """The path of :func:`hermite_coefficients` or :func:`natural_cubic_coefficients`."""

    @staticmethod
    def _knots(coeffs: Tensor) -> int:
        if coeffs.ndim < 2 or coeffs.shape[-1] % 4:
            raise InputError(
                f"The coefficients have shape {tuple(coeffs.shape)}; those of a cubic path are "
                "(..., length - 1, 4 * channels), made by hermite_coefficients or "
                "natural_cubic_coefficients."
            )
        return coeffs.shape[-2] + 1

    @property
    def channels(self) -> int:
        return self.coeffs.shape[-1] // 4

    def evaluate(self, t: Any) -> Tensor:
        return cubic_value(self.coeffs, self.times, self._time(t))

    def derivative(self, t: Any) -> Tensor:
        return cubic_derivative(self.coeffs, self.times, self._time(t))
