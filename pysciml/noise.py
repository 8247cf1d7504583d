"""A path of the noise that a stochastic equation is to follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysciml.errors import InputError
from pysciml.flatten import is_real, to_numpy

__all__ = ["NoiseGrid", "between"]


@dataclass(frozen=True, eq=False)
class NoiseGrid:
    """The noise of an SDEProblem as values at times: its ``noise=``, e.g. another solution's.

    Parameters
    ----------
    t : tensor or sequence (k,)
        Increasing, from t0 to t1. They are the solver's steps.
    W : tensor (k, m) or (k, *u0.shape)
        The path there, m processes. For a problem without noise_rate_prototype, as many as the
        state has entries (diagonal noise), or one (scalar noise).

    Only increments count, so W need not begin at zero. Taken by algorithms that read nothing else
    of the noise: EM, LambaEM, EulerHeun, LambaEulerHeun and RKMil on the ``julia`` engine, and
    torchsde's without ``srk`` and ``log_ode``, for times at equal distances, on ``sundials``.

    Raises
    ------
    InputError
        For times that do not increase, and values that do not fit them.
    """

    t: Any
    W: Any

    def __post_init__(self) -> None:
        t = self._times()
        W = self.W
        if not isinstance(W, Tensor) or W.ndim < 2 or len(W) != len(t):
            given = f"shape {tuple(W.shape)}" if isinstance(W, Tensor) else f"a {type(W).__name__}"
            raise InputError(
                f"W of a NoiseGrid has {given}, but t has {len(t)} times; give a tensor "
                f"({len(t)}, m), a row for each."
            )
        if isinstance(self.t, Tensor) and self.t.requires_grad:
            raise InputError(
                "t of a NoiseGrid requires grad, but a path along noise has no derivative by time; "
                "detach it."
            )
        if not is_real(W):
            what = "on the device meta" if W.is_meta else str(W.dtype)[6:]
            raise InputError(f"W of a NoiseGrid is {what}; give real numbers.")
        if W.requires_grad:
            raise InputError(
                "W of a NoiseGrid requires grad, but no gradient is taken for the noise; detach it."
            )
        if not bool(torch.isfinite(W).all()):
            raise InputError(
                "W of a NoiseGrid holds numbers that are not finite; give finite ones."
            )
        object.__setattr__(self, "t", t)
        object.__setattr__(self, "W", W.reshape(len(t), -1))

    def _times(self) -> Tensor:
        given = self.t
        try:
            if isinstance(given, Tensor) and not is_real(given):
                raise TypeError
            t = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"t of a NoiseGrid is {given!r}; give two increasing times or more."
            ) from None
        if t.ndim != 1 or len(t) < 2:
            raise InputError(
                f"t of a NoiseGrid has shape {tuple(t.shape)}; give two increasing times or more."
            )
        if not bool(torch.isfinite(t).all()):
            raise InputError("t of a NoiseGrid holds numbers that are not finite; give times.")
        if not bool((t.diff() > 0).all()):
            i = int((t.diff() <= 0).nonzero()[0])
            raise InputError(
                f"t of a NoiseGrid must increase, but t[{i}] = {float(t[i]):g} is followed by "
                f"{float(t[i + 1]):g}; sort it, W with it, and take each time once."
            )
        return t

    def __repr__(self) -> str:
        k, m = self.W.shape
        return f"NoiseGrid({k} times in [{float(self.t[0]):g}, {float(self.t[-1]):g}], m={m})"

    def require_fit(self, t0: float, t1: float, processes: tuple[int, ...]) -> None:
        """Raise InputError where it is not over (t0, t1), or has other numbers of processes."""
        slack = 1e-9 * max(abs(t0), abs(t1))
        if abs(float(self.t[0]) - t0) > slack or abs(float(self.t[-1]) - t1) > slack:
            raise InputError(
                f"noise is {self!r}, but tspan is ({t0:g}, {t1:g}); give the noise from t0 to t1."
            )
        if self.W.shape[1] not in processes:
            expected = " or ".join(map(str, sorted(set(processes))))
            raise InputError(
                f"noise is {self!r}, but this problem has {expected} processes; give a column for "
                "each."
            )


def between(times: np.ndarray, values: Tensor, at: Any) -> Tensor:
    """Values (k, n) at increasing times, on the line between these: (m, n) at ``at`` (m,)."""
    at = np.asarray(to_numpy(at) if isinstance(at, Tensor) else at)
    i = np.clip(np.searchsorted(times, at, side="right") - 1, 0, max(len(times) - 2, 0))
    if len(times) == 1:
        return values[torch.as_tensor(i)]
    part = (at - times[i]) / (times[i + 1] - times[i])
    on = torch.as_tensor(part, dtype=values.dtype, device=values.device)[:, None]
    rows = torch.as_tensor(i, device=values.device)
    return (1 - on) * values[rows] + on * values[rows + 1]
