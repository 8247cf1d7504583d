"""Piecewise polynomial interpolation of a solution through the solver's own steps.

Between two steps the polynomial goes through the nearest ``width`` steps (Lagrange form, weights
on an uneven mesh). Values alone are used, no derivatives: on a stiff problem a derivative
computed from a value that carries the solver's error is useless.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Interpolant:
    """A solution on one smooth stretch.

    Parameters
    ----------
    t : array (K + 1,)
        Strictly monotone, either direction.
    u : array (K + 1, n)
    width : int
        Steps a polynomial goes through, so its degree is ``width - 1`` (less on short stretches).
    """

    def __init__(self, t: Array, u: Array, width: int = 6) -> None:
        self.t, self.u = t, u
        self.width = min(width, len(t))
        self.sign = 1.0 if len(t) < 2 or t[-1] >= t[0] else -1.0
        self._key = t if self.sign > 0 else -t

    def __call__(self, times: Array, deriv: int = 0) -> Array:
        """Values (or derivatives of order 1 or 2) at ``times``, shape (q,): array (q, n)."""
        times = np.asarray(times, dtype=np.float64)
        if self.width == 1:
            row = self.u[0] if deriv == 0 else np.zeros_like(self.u[0])
            return np.repeat(row[None], len(times), axis=0)
        interval = np.searchsorted(self._key, self.sign * times, side="right") - 1
        interval = np.clip(interval, 0, len(self.t) - 2)
        w = self.width
        start = np.clip(interval - (w // 2 - 1), 0, len(self.t) - w)
        weights = self._weights(times, start, deriv)
        out = weights[0][:, None] * self.u[start]
        for j in range(1, w):
            out += weights[j][:, None] * self.u[start + j]
        return out

    def _weights(self, times: Array, start: npt.NDArray[np.int64], deriv: int) -> Array:
        """Lagrange weights (width, q) by the product rule, for the derivative asked for."""
        w = self.width
        nodes = self.t[start[None, :] + np.arange(w)[:, None]]
        ahead = times[None, :] - nodes
        weights = np.empty((w, len(times)))
        for j in range(w):
            value = np.ones(len(times))
            first = second = None
            for m in range(w):
                if m == j:
                    continue
                gap = nodes[j] - nodes[m]
                factor = ahead[m] / gap
                if deriv:
                    slope = 1.0 / gap
                    if deriv == 2:
                        grown = 0.0 if first is None else 2.0 * first * slope
                        second = grown if second is None else second * factor + grown
                    first = value * slope if first is None else first * factor + value * slope
                value = value * factor
            weights[j] = value if deriv == 0 else first if deriv == 1 else second
        return weights
