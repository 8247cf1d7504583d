"""Coefficients of the fixed-grid methods: Runge-Kutta tableaux, and Adams formulas of any order.

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I" (sections II.1 and
III.1); Hairer, Wanner, "Solving Ordinary Differential Equations II" (sections IV.5 and IV.6); Bank
et al. 1985 for TR-BDF2.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import sqrt

__all__ = ["EXPLICIT", "IMPLICIT", "Tableau", "adams_bashforth", "adams_moulton"]


@dataclass(frozen=True)
class Tableau:
    """Nodes ``c``, stage weights ``a`` (rows), step weights ``b`` of a Runge-Kutta method."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int


EXPLICIT = {
    "euler": Tableau((0.0,), ((),), (1.0,), 1),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), 2),
    "heun2": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), 2),
    "heun3": Tableau(
        (0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), 3
    ),
    # Kutta's 3/8 rule
    "rk4": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        4,
    ),
}  # fmt: skip

_S3, _S6, _S15 = sqrt(3.0), sqrt(6.0), sqrt(15.0)
_G = 1.0 - sqrt(0.5)  # SDIRK2, TR-BDF2
_W = sqrt(2.0) / 4.0

IMPLICIT = {
    "implicit_euler": Tableau((1.0,), ((1.0,),), (1.0,), 1),
    "implicit_midpoint": Tableau((0.5,), ((0.5,),), (1.0,), 2),
    "trapezoid": Tableau((0.0, 1.0), ((0.0, 0.0), (0.5, 0.5)), (0.5, 0.5), 2),
    "gl4": Tableau(
        (0.5 - _S3 / 6, 0.5 + _S3 / 6),
        ((0.25, 0.25 - _S3 / 6), (0.25 + _S3 / 6, 0.25)),
        (0.5, 0.5),
        4,
    ),
    "gl6": Tableau(
        (0.5 - _S15 / 10, 0.5, 0.5 + _S15 / 10),
        (
            (5 / 36, 2 / 9 - _S15 / 15, 5 / 36 - _S15 / 30),
            (5 / 36 + _S15 / 24, 2 / 9, 5 / 36 - _S15 / 24),
            (5 / 36 + _S15 / 30, 2 / 9 + _S15 / 15, 5 / 36),
        ),
        (5 / 18, 4 / 9, 5 / 18),
        6,
    ),
    "radauIIA3": Tableau((1 / 3, 1.0), ((5 / 12, -1 / 12), (3 / 4, 1 / 4)), (3 / 4, 1 / 4), 3),
    "radauIIA5": Tableau(
        ((4 - _S6) / 10, (4 + _S6) / 10, 1.0),
        (
            ((88 - 7 * _S6) / 360, (296 - 169 * _S6) / 1800, (-2 + 3 * _S6) / 225),
            ((296 + 169 * _S6) / 1800, (88 + 7 * _S6) / 360, (-2 - 3 * _S6) / 225),
            ((16 - _S6) / 36, (16 + _S6) / 36, 1 / 9),
        ),
        ((16 - _S6) / 36, (16 + _S6) / 36, 1 / 9),
        5,
    ),
    "sdirk2": Tableau((_G, 1.0), ((_G, 0.0), (1.0 - _G, _G)), (1.0 - _G, _G), 2),
    "trbdf2": Tableau(
        (0.0, 2 * _G, 1.0),
        ((0.0, 0.0, 0.0), (_G, _G, 0.0), (_W, _W, _G)),
        (_W, _W, _G),
        2,
    ),
}


@lru_cache
def adams_bashforth(order: int) -> tuple[float, ...]:
    """Weights of f at t_n, t_(n-1), ...: explicit, exact for polynomials below ``order``."""
    return _interpolatory(tuple(range(0, -order, -1)))


@lru_cache
def adams_moulton(order: int) -> tuple[float, ...]:
    """Weights of f at t_(n+1), t_n, ...: implicit, exact for polynomials below ``order``."""
    return _interpolatory(tuple(range(1, 1 - order, -1)))


def _interpolatory(nodes: tuple[int, ...]) -> tuple[float, ...]:
    """The integrals from 0 to 1 of the Lagrange polynomials on ``nodes``, in exact arithmetic."""
    weights = []
    for i, node in enumerate(nodes):
        poly = [Fraction(1)]  # coefficients, constant term first
        for j, other in enumerate(nodes):
            if j != i:
                shifted = [Fraction(0), *poly]
                low = [-other * x for x in poly] + [Fraction(0)]
                poly = [(a + b) / (node - other) for a, b in zip(shifted, low, strict=True)]
        weights.append(float(sum((x / (k + 1) for k, x in enumerate(poly)), Fraction(0))))
    return tuple(weights)
