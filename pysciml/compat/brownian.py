"""Brownian motion that is drawn where it is asked for."""

from __future__ import annotations

import bisect
import math
import numbers
from typing import Any

import torch
from torch import Tensor

from pysciml.errors import EngineError, InputError
from pysciml.flatten import is_real
from pysciml.options import is_whole

__all__ = ["BrownianInterval", "BrownianPath", "BrownianTree", "brownian_interval_like"]


class BrownianInterval:
    """A Brownian motion on [t0, t1]: ``bm(ta, tb)`` is its increment, (batch, m), from ta to tb.

    Parameters
    ----------
    t0, t1 : numbers
    size : tuple of int
    dtype, device : of the increments
    entropy : int, optional
        Equal entropies and queries give equal increments; drawn from torch's generator where None.
    W : tensor of ``size``, optional
        The increment over the whole interval; drawn where None.
    levy_area_approximation : "none"
        Areas are not drawn: no method here asks a given motion for them.
    dt, tol, pool_size, cache_size, halfway_tree, H
        torchsde's, without effect: values are kept, each new one drawn between its neighbours by
        the Brownian bridge.
    """

    def __init__(
        self, t0: Any = 0.0, t1: Any = 1.0, size: Any = None, dtype: torch.dtype | None = None,
        device: Any = None, entropy: int | None = None, dt: Any = None, tol: float = 0.0,
        pool_size: int = 8, cache_size: int | None = 45, halfway_tree: bool = False,
        levy_area_approximation: str = "none", W: Tensor | None = None, H: Tensor | None = None,
    ) -> None:  # fmt: skip
        first, last = _time(t0, "t0"), _time(t1, "t1")
        if not first < last:
            raise InputError(f"t0 is {float(t0):g} and t1 {float(t1):g}; give t0 < t1.")
        if size is None and W is None:
            raise InputError("size is missing; give the shape (batch, m) of the increments.")
        if levy_area_approximation != "none":
            raise EngineError(
                f"levy_area_approximation is {levy_area_approximation!r}, but a given motion's "
                "increments alone are read here; leave it out, or solve by torchsde itself."
            )
        self.shape = _shape(size, W)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InputError(f"dtype is {dtype!r}; give torch.float64 or torch.float32.")
        if entropy is not None and not is_whole(entropy):
            raise InputError(f"entropy is {entropy!r}; give a whole number, or None.")
        self.dtype = W.dtype if W is not None else dtype or torch.get_default_dtype()
        try:
            self.device = torch.device("cpu" if device is None else device)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"device is {device!r}; give e.g. 'cpu' or 'cuda'.") from None
        self.entropy = int(torch.randint(2**62, ())) if entropy is None else int(entropy)
        self.levy_area_approximation = "none"
        self._generator = torch.Generator().manual_seed(self.entropy % 2**63)
        self._times = [first, last]
        span = self._times[1] - self._times[0]
        end = self._normal() * span**0.5 if W is None else W.detach().cpu().double()
        self._values = [torch.zeros_like(end), end]

    def size(self) -> torch.Size:
        return self.shape

    def _normal(self) -> Tensor:
        return torch.randn(self.shape, generator=self._generator, dtype=torch.float64)

    def _at(self, t: float) -> Tensor:
        times, values = self._times, self._values
        i = bisect.bisect_left(times, t)
        if i < len(times) and times[i] == t:
            return values[i]
        if not 0 < i < len(times):
            raise InputError(
                f"t = {t:g} lies outside the Brownian motion, which covers [{times[0]:g}, "
                f"{times[-1]:g}]."
            )
        a, b = times[i - 1], times[i]
        part = (t - a) / (b - a)
        mean = values[i - 1] + part * (values[i] - values[i - 1])
        drawn = mean + self._normal() * ((t - a) * (b - t) / (b - a)) ** 0.5
        times.insert(i, t)
        values.insert(i, drawn)
        return drawn

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Tensor:
        """W(tb) - W(ta); from t0 to ``ta`` where ``tb`` is None."""
        if return_U or return_A:
            raise EngineError("This Brownian motion draws increments only, no areas.")
        first, last = (self._times[0], _time(ta, "ta"))
        if tb is not None:
            first, last = last, _time(tb, "tb")
        if first > last:
            raise InputError(f"ta = {first:g} is after tb = {last:g}; give ta <= tb.")
        end = self._at(last)
        return (end - self._at(first)).to(self.device, self.dtype)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(t0={self._times[0]:g}, t1={self._times[-1]:g}, "
            f"size={tuple(self.shape)}, entropy={self.entropy})"
        )


class _Started(BrownianInterval):
    """A motion that begins at ``w0``: ``bm(t)`` is its value, ``bm(ta, tb)`` an increment."""

    def __init__(self, t0: Any, w0: Tensor, t1: Any, w1: Any, entropy: int | None) -> None:
        if not isinstance(w0, Tensor):
            raise InputError(f"w0 is a {type(w0).__name__}; give a tensor (batch, m).")
        if w1 is not None and not (isinstance(w1, Tensor) and w1.shape == w0.shape):
            raise InputError(f"w1 must be a tensor like w0, of shape {tuple(w0.shape)}.")
        end = _time(t0, "t0") + 1.0 if t1 is None else t1
        super().__init__(
            t0, end, w0.shape, w0.dtype, w0.device, entropy, W=None if w1 is None else w1 - w0
        )
        self.w0 = w0

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Tensor:
        """W(tb) - W(ta); where ``tb`` is None, W(ta)."""
        moved = super().__call__(ta, tb, return_U, return_A)
        return moved if tb is not None else self.w0 + moved


class BrownianPath(_Started):
    """A Brownian motion from ``w0`` at ``t0``, for a unit of time.

    ``window_size`` is torchsde's, without effect.
    """

    def __init__(self, t0: Any, w0: Tensor, window_size: int = 8) -> None:
        super().__init__(t0, w0, None, None, None)


class BrownianTree(_Started):
    """A Brownian motion from ``w0`` at ``t0`` to ``w1`` at ``t1`` (t0 + 1, drawn, where None).

    Parameters
    ----------
    t0, t1 : numbers; w0, w1 : tensors (batch, m)
    entropy : int, optional
        Equal entropies and queries give equal values.
    tol, pool_size, cache_depth, safety
        torchsde's, without effect.
    """

    def __init__(
        self, t0: Any, w0: Tensor, t1: Any = None, w1: Tensor | None = None,
        entropy: int | None = None, tol: float = 1e-6, pool_size: int = 24, cache_depth: int = 9,
        safety: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(t0, w0, t1, w1, entropy)


def _time(t: Any, name: str) -> float:
    single = isinstance(t, Tensor) and t.numel() == 1 and is_real(t)
    if not single and (isinstance(t, bool) or not isinstance(t, numbers.Real)):
        raise InputError(f"{name} is {t!r}; give a number.")
    value = float(t.detach()) if isinstance(t, Tensor) else float(t)
    if math.isinf(value):
        raise InputError(f"{name} is {value}; give a finite time.")
    return value


def _shape(size: Any, W: Any) -> torch.Size:
    if W is not None:
        if not isinstance(W, Tensor) or W.is_meta or not W.is_floating_point():
            what = f"of {W.dtype} on {W.device}" if isinstance(W, Tensor) else f"{W!r}"
            raise InputError(f"W is {what}; give a tensor of real numbers, or None.")
        if W.requires_grad:
            raise InputError("W requires grad, but no gradient is taken for the noise; detach it.")
        if not bool(torch.isfinite(W).all()):
            raise InputError("W holds numbers that are not finite; give finite ones.")
    try:
        shape = torch.Size(W.shape if size is None else size)
        if any(n < 1 for n in shape):
            raise ValueError
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"size is {size!r}; give the shape (batch, m) of the increments."
        ) from None
    if W is not None and W.shape != shape:
        raise InputError(f"W has shape {tuple(W.shape)}, but size is {tuple(shape)}; give one.")
    return shape


def brownian_interval_like(y: Tensor, size: Any = None, **options: Any) -> BrownianInterval:
    """A motion like ``y`` (shape, dtype, device); ``options`` as :class:`BrownianInterval`."""
    if not isinstance(y, Tensor):
        raise InputError(f"y is a {type(y).__name__}; give a tensor.")
    given: dict[str, Any] = {
        "size": y.shape if size is None else size,
        "dtype": y.dtype,
        "device": y.device,
    }
    return BrownianInterval(**(given | options))
