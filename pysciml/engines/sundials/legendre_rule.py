"""The Gauss-Legendre rule of the long intervals: nodes, weights, integrals, last coefficients."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numpy.polynomial import legendre

Array = npt.NDArray[np.float64]

#: Nodes of an interval.
S = 10

_x, _w = legendre.leggauss(S)
#: Nodes in [0, 1] and weights; values at the nodes to Legendre coefficients.
C: Array = (_x + 1.0) / 2.0
B: Array = _w / 2.0
TO_LEGENDRE: Array = ((legendre.legvander(_x, S - 1) * _w[:, None]) * (np.arange(S) + 0.5)).T
#: The last two together.
PROBE: Array = TO_LEGENDRE[-2:].sum(axis=0)


def integrals(theta: Array) -> Array:
    """``beta`` (q, s): integrals of the nodes' Lagrange polynomials from 0 to ``theta`` (q,)."""
    y = 2.0 * theta - 1.0
    p = legendre.legvander(y, S)
    k = np.arange(1, S)
    inside = np.empty((len(y), S))
    inside[:, 0] = y + 1.0
    inside[:, 1:] = (p[:, 2:] - p[:, :-2]) / (2 * k + 1)
    return 0.5 * inside @ TO_LEGENDRE


def integral_beyond(theta: Array) -> Array:
    """Integrals (q,) from 0 to ``theta`` (q,) of the first Legendre polynomial beyond the rule's.

    Zero at the ends, to the last bit.
    """
    p = legendre.legvander(2.0 * theta - 1.0, S + 1)
    found = (p[:, -1] - p[:, -3]) / (4 * S + 2)
    return np.where(np.abs(found) > 1e-9, found, 0.0)


A: Array = integrals(C)


def reach(rtol: float) -> float:
    """The largest ``h |J|`` whose exponential the polynomial resolves to ``rtol`` all along.

    The error of interpolating ``exp(z theta)`` at s + 1 points of [0, 1] is about
    ``2 (z / 4)^(s + 1) / (s + 1)!``.
    """
    return 4.0 * (0.5 * rtol * math.factorial(S + 1)) ** (1.0 / (S + 1))


def tail(values: Array) -> Array:
    """The last two Legendre coefficients' size, of ``values`` (..., s, b): array (...)."""
    return mean_square(TO_LEGENDRE[-2:] @ values).sum(axis=-1)


def mean_square(values: Array) -> Array:
    """Root mean square over the batch, the last axis, as the solver's error control takes it."""
    found: Array = np.sqrt(np.einsum("...b,...b->...", values, values) / values.shape[-1])
    return found


def ratio(a: Array, b: Array) -> Array:
    """a / b, where 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a == 0.0, 0.0, a / b)
