"""The equation around a point of a solution: the rate u', and how small changes go on from there.

Both forms of an equation, ``M u' = f(u, p, t)`` and ``F(u', u, p, t) = 0``, are linearised as
``M v' = J v + f_p q + f_t s`` (with M = dF/du', J = -dF/du, f_p = -dF/dp, f_t = -dF/dt for the
second). Where M is singular, its left null space W gives the constraints ``W^T f = 0``. Their time
derivative, ``W^T (J u' + f_t) = 0``, is what determines the rates of algebraic variables (index 1;
Brenan, Campbell, Petzold, "Numerical Solution of Initial-Value Problems in Differential-Algebraic
Equations", section 2.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FlatProblem
from pysciml.errors import EngineError

Array = npt.NDArray[np.float64]

#: Newton iterations for the rates of a residual; one is enough where it is linear in u'.
_ITERATIONS = 12


@dataclass
class Linearised:
    """M, J, and the bases of M's range and left null space, at one point of a DAE."""

    mass: Array
    jac: Array
    kept: Array  # (n, rank)
    null: Array  # (n, n - rank)
    t: float

    def cotangent(self, c: Array) -> tuple[Array, Array]:
        """(mu, w) with ``c = mu + J^T w``, mu in the range of M^T and w in the null space.

        A cotangent of algebraic variables acts at once: the state's is mu, and the parameters
        get ``-f_p^T w``.
        """
        rank = self.kept.shape[1]
        columns = np.concatenate([self.mass.T @ self.kept, self.jac.T @ self.null], axis=1)
        coefficients = _solve(columns, c, self.t)
        return columns[:, :rank] @ coefficients[:rank], self.null @ coefficients[rank:]

    def stacked(self, differential: Array, algebraic: Array) -> Array:
        """v with ``M v = differential`` (along M's range) and ``W^T J v = W^T algebraic``."""
        matrix = np.concatenate([self.kept.T @ self.mass, self.null.T @ self.jac])
        rhs = np.concatenate([self.kept.T @ differential, self.null.T @ algebraic])
        return _solve(matrix, rhs, self.t)


def _solve(matrix: Array, rhs: Array, t: float) -> Array:
    try:
        out: Array = np.asarray(np.linalg.solve(matrix, rhs), dtype=np.float64)
    except np.linalg.LinAlgError:
        out = np.full_like(rhs, np.nan)
    if not np.isfinite(out).all():
        raise EngineError(
            f"The constraints do not determine the algebraic variables at t = {t:g} (a DAE of an "
            "index above 1), but gradients need an index of 1: differentiate the constraints with "
            "respect to time by hand until each algebraic variable stands in one of them."
        )
    return out


class Rates:
    """u' as a function of (u, t), for every kind of problem, algebraic variables included."""

    def __init__(self, problem: FlatProblem) -> None:
        self.problem = problem
        functions, p, c = problem.functions, problem.p, problem.c
        self.value = functions.bind("value", p, c)
        self.residual = problem.kind == "dae"
        mass = problem.mass_matrix
        #: Whether the equation has the form u' = f, or M u' = f with an invertible M.
        self.explicit = not self.residual and (mass is None or _full(mass))
        self._bases = None if self.residual or mass is None else _bases(mass)
        if not self.explicit:
            self._jac = functions.bind("jac:u", p, c)
            self._by_t = functions.bind("jac:t", p, c)
        if self.residual:
            self._jac_du = functions.bind("jac:du", p, c)

    def __call__(self, u: Array, t: float, guess: Array | None = None) -> Array:
        """The rate; a residual that is nonlinear in u' needs a ``guess`` near it."""
        if self.residual:
            return self._of_residual(u, t, guess)
        out = np.empty_like(u)
        self.value(u, t, out)
        mass = self.problem.mass_matrix
        if mass is None:
            return out
        if self.explicit:
            return np.asarray(np.linalg.solve(mass, out), dtype=np.float64)
        by_t = np.empty_like(u)
        self._by_t(u, t, by_t)
        return self.linearised(u, t).stacked(out, -by_t)

    def linearised(self, u: Array, t: float, du: Array | None = None) -> Linearised:
        """The linearised equation at (u', u, t); ``du`` counts for a residual only."""
        n = len(u)
        jac = np.empty((n, n))
        if self.residual:
            du = np.zeros_like(u) if du is None else du
            mass = np.empty((n, n))
            self._jac(du, u, t, jac)
            self._jac_du(du, u, t, mass)
            return Linearised(mass, -jac, *_bases(mass), t)
        assert self.problem.mass_matrix is not None and self._bases is not None
        if self.explicit:
            jac[...] = 0.0  # not needed: there is no constraint
        else:
            self._jac(u, t, jac)
        return Linearised(self.problem.mass_matrix, jac, *self._bases, t)

    def _of_residual(self, u: Array, t: float, guess: Array | None) -> Array:
        du = np.zeros_like(u) if guess is None else guess.copy()
        value, by_t = np.empty_like(u), np.empty_like(u)
        for _ in range(_ITERATIONS):
            self.value(du, u, t, value)
            self._by_t(du, u, t, by_t)
            here = self.linearised(u, t, du)
            step = here.stacked(-value, by_t - here.jac @ du)
            du += step
            if np.abs(step).max() <= 1e-13 * np.abs(du).max():
                break
        return du


def _bases(mass: Array) -> tuple[Array, Array]:
    left, sigma, _ = np.linalg.svd(mass)
    rank = int((sigma > 1e-12 * max(sigma[0], 1e-300)).sum())
    return left[:, :rank], left[:, rank:]


def _full(mass: Array) -> bool:
    return _bases(mass)[0].shape[1] == len(mass)
