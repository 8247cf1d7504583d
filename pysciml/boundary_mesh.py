"""Mono-implicit Runge-Kutta equations on a mesh: solved to rounding, interpolated, differentiated.

Over each interval of length h, ``y1 - y0 = h sum_r b_r K_r`` with the stages
``K_r = F(s0 + c_r h, (1 - v_r) y0 + v_r y1 + h sum_j x_rj K_j)``, j < r, which are explicit in the
states at its ends. The interpolant takes more stages: ``y0 + h sum_r w_r(tau) K_r``. Source:
Enright and Muir, "Runge-Kutta Software with Defect Control for Boundary Value ODEs", SIAM J. Sci.
Comput. 17 (1996). All states of the mesh solve one system, and the implicit function theorem on it
gives gradients: no adjoint equation is integrated, which would grow as shooting does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, SuperLU, onenormest, splu

from pysciml.boundary_form import Pieces

__all__ = ["BoundarySystem", "Mesh", "Tableau"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

#: Points in [0, 1] at which weights of interpolants are sampled, polynomials of a lower degree.
SAMPLES = (1 + np.cos(np.pi * (2 * np.arange(12) + 1) / 24)) / 2
#: Where in an interval the defect is looked at.
_SAMPLED = (0.226, 0.5, 0.774)
#: Newton's steps towards the equations' solution, from what the solver has left.
_STEPS = 8
#: A last step, against the size of the states, below which a solution is one.
_CONVERGED = 1e-8


@dataclass(frozen=True)
class Tableau:
    """A method's coefficients: ``c``, ``v``, ``b`` (q,) and ``x`` (q, q) of all q stages.

    Those of the interpolant alone have b = 0. ``series`` (12, q): the weights as polynomials.
    """

    c: Array
    v: Array
    b: Array
    x: Array
    series: Array

    @classmethod
    def of(cls, c: Array, v: Array, b: Array, x: Array, weights: Array) -> Tableau:
        """With the ``weights`` (q, 12) at ``SAMPLES``."""
        vander = chebyshev.chebvander(2 * SAMPLES - 1, len(SAMPLES) - 1)
        series = 2 / len(SAMPLES) * vander.T @ weights.T  # Chebyshev polynomials are orthogonal
        series[0] /= 2
        return cls(c, v, np.concatenate([b, np.zeros(len(c) - len(b))]), x, series)

    def weights(self, tau: Array, deriv: int = 0) -> Array:
        """The stages' weights (q, m) at ``tau`` (m,), or their derivative by tau."""
        series = chebyshev.chebder(self.series, deriv) * 2.0**deriv if deriv else self.series
        return np.asarray(chebyshev.chebval(2 * tau - 1, series))


def lobatto() -> Tableau:
    """The equations of scipy.integrate.solve_bvp, with its interpolant, a cubic spline."""
    t = SAMPLES
    ends, left, right = t**2 * (3 - 2 * t), t * (1 - t) ** 2, t**2 * (t - 1)
    return Tableau.of(
        np.array([0, 1, 0.5]), np.array([0, 1, 0.5]), np.array([1, 1, 4]) / 6,
        np.array([[0, 0, 0], [0, 0, 0], [1, -1, 0]]) / 8,
        np.stack([left + ends / 6, right + ends / 6, 4 * ends / 6]),
    )  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """Functions at the parameters and data of one solve."""

    functions: Any
    p: Array
    c: Array

    def one(self, role: str) -> Callable[..., None]:
        """For one point: see ``Functions.bind``."""
        return self.functions.bind(role, self.p, self.c)

    def many(self, role: str, reduce: bool = False) -> Callable[..., Any]:
        """For many points: see ``Functions.bind_batched``."""
        return self.functions.bind_batched(role, self.p, self.c, reduce)


class BoundarySystem:
    """The right-hand side of all pieces, and the conditions, on arrays.

    States are (m, K, n): m points, K pieces, n entries.
    """

    def __init__(self, pieces: Pieces, n: int, f: Bound, bc: Bound) -> None:
        self.pieces, self.n, self.f, self.bc = pieces, n, f, bc
        self.calls = 0

    @property
    def size(self) -> int:
        return len(self.pieces) * self.n

    @cached_property
    def _value(self) -> Any:
        return self.f.many("value")

    @cached_property
    def _jac(self) -> Any:
        return self.f.many("jac:u")

    def _points(self, s: Array, y: Array) -> tuple[Array, Array]:
        flat = np.ascontiguousarray(y).reshape(-1, self.n)
        return flat, np.ascontiguousarray(self.pieces.times(s)).reshape(-1)

    def rate(self, s: Array, y: Array) -> Array:
        """The states' derivatives by s."""
        self.calls += len(s)
        with np.errstate(all="ignore"):
            value = np.asarray(self._value(*self._points(s, y)))
        return value.reshape(y.shape) * self.pieces.rates[:, None]

    def jacobian(self, s: Array, y: Array) -> Array:
        """The Jacobians of the rates (m, K, n, n)."""
        with np.errstate(all="ignore"):
            jac = np.asarray(self._jac(*self._points(s, y)))
        return jac.reshape(*y.shape, self.n) * self.pieces.rates[:, None, None]

    def by_span(self, w: Array, s: Array, y: Array) -> Array:
        """The cotangents (2, K) of the pieces' starts and rates, of those of the states' rates."""
        flat, times = self._points(s, y)
        with np.errstate(all="ignore"):
            slope = np.asarray(self.f.many("jac:t")(flat, times)).reshape(y.shape)
            value = np.asarray(self._value(flat, times)).reshape(y.shape)
        moved = self.pieces.rates[:, None] * slope
        by_rate = value + s[:, None, None] * moved
        return np.stack([np.einsum("mkn,mkn->k", w, x) for x in (moved, by_rate)])

    def pulled(self, w: Array, s: Array, y: Array) -> Array:
        """The cotangent of f's parameters, of the cotangents ``w`` of the rates."""
        if not len(self.f.p):
            return np.zeros(0)
        w = np.ascontiguousarray(w * self.pieces.rates[:, None]).reshape(-1, self.n)
        with np.errstate(all="ignore"):
            return np.asarray(self.f.many("vjp:p", True)(w, *self._points(s, y))).reshape(-1)

    def conditions(self, first: Array, last: Array, role: str = "value") -> Array:
        """What the conditions lack at the states (K, n) of both ends, or their Jacobian."""
        x = np.concatenate([first.reshape(-1), last.reshape(-1)])
        out = np.zeros(self.size if role == "value" else (self.size, 2 * self.size))
        with np.errstate(all="ignore"):
            self.bc.one(role)(x, 0.0, out)
        return out

    def conditions_pulled(self, w: Array, first: Array, last: Array) -> Array:
        """The cotangent of the conditions' parameters, of theirs."""
        out = np.zeros(len(self.bc.p))
        if len(out):
            x = np.concatenate([first.reshape(-1), last.reshape(-1)])
            with np.errstate(all="ignore"):
                self.bc.one("vjp:p")(np.ascontiguousarray(w), x, 0.0, out)
        return out


class Mesh:
    """The states ``y`` (N + 1, K, n) on a mesh ``s`` (N + 1,) that solve a method's equations."""

    def __init__(self, system: BoundarySystem, tableau: Tableau, s: Array, y: Array) -> None:
        self.system, self.tableau, self.s, self.y = system, tableau, s, y

    @property
    def _h(self) -> Array:
        return np.diff(self.s)[:, None, None]

    def _stage(self, r: int, before: Array) -> tuple[Array, Array]:
        """Where stage r is taken: s (N,) and the states (N, K, n), from the stages before it."""
        table, y = self.tableau, self.y
        at = (1 - table.v[r]) * y[:-1] + table.v[r] * y[1:]
        if r and table.x[r, :r].any():
            at = at + self._h * np.tensordot(table.x[r, :r], before[:r], 1)
        return self.s[:-1] + table.c[r] * np.diff(self.s), at

    def _stages(self, count: int | None = None) -> Array:
        """The stages (q, N, K, n)."""
        q = len(self.tableau.c) if count is None else count
        out = np.empty((q, len(self.s) - 1, *self.y.shape[1:]))
        for r in range(q):
            out[r] = self.system.rate(*self._stage(r, out))
        return out

    @cached_property
    def stages(self) -> Array:
        return self._stages()

    # -- the equations --------------------------------------------------------------------------

    def _linearised(self) -> tuple[Array, SuperLU]:
        """What the equations lack, the conditions first, and their Jacobian, factored."""
        table, h = self.tableau, self._h
        count = int(np.flatnonzero(table.b)[-1]) + 1
        stages = self._stages(count)
        eye = np.eye(self.system.n)
        by_left, by_right = (np.zeros((*stages.shape, self.system.n)) for _ in range(2))
        for r in range(count):
            jac = self.system.jacobian(*self._stage(r, stages))
            for by, own in ((by_left, 1 - table.v[r]), (by_right, table.v[r])):
                inner = np.tensordot(table.x[r, :r], by[:r], 1) if r else 0.0
                by[r] = jac @ (own * eye + h[..., None] * inner)
        total = [h[..., None] * np.tensordot(table.b[:count], by, 1) for by in (by_left, by_right)]
        change = self.y[1:] - self.y[:-1] - h * np.tensordot(table.b[:count], stages, 1)
        lack = self.system.conditions(self.y[0], self.y[-1])
        residual = np.concatenate([lack, change.reshape(-1)])
        return residual, self._factored(-eye - total[0], eye - total[1])

    def _factored(self, left: Array, right: Array) -> SuperLU:
        intervals, pieces, n, _ = left.shape
        size = pieces * n
        first = np.arange(intervals * pieces) * n
        rows = (size + first)[:, None, None] + np.arange(n)[:, None]
        columns = first[:, None, None] + np.arange(n)
        blocks = [np.broadcast_to(x, (len(first), n, n)).reshape(-1) for x in (rows, columns)]
        ends = np.concatenate([np.arange(size), intervals * size + np.arange(size)])
        of_ends = self.system.conditions(self.y[0], self.y[-1], "jac:u")
        i, j = (x.reshape(-1) for x in np.broadcast_arrays(np.arange(size)[:, None], ends))
        matrix = sparse.coo_matrix(
            (
                np.concatenate([of_ends.reshape(-1), left.reshape(-1), right.reshape(-1)]),
                (
                    np.concatenate([i, blocks[0], blocks[0]]),
                    np.concatenate([j, blocks[1], blocks[1] + size]),
                ),
            ),
            shape=((intervals + 1) * size,) * 2,
        ).tocsc()
        matrix.eliminate_zeros()
        return splu(matrix)

    def settle(self) -> bool:
        """Take Newton's steps until rounding is left; whether they came to rest."""
        last = np.inf
        for _ in range(_STEPS):
            try:
                residual, factors = self._linearised()
                step = factors.solve(-residual).reshape(self.y.shape)
            except (RuntimeError, ValueError):  # singular, or not finite
                return False
            size = float((np.abs(step) / (1.0 + np.abs(self.y))).max())
            if not np.isfinite(size) or size > 1e3:
                return False
            self.y = self.y + step
            if size <= 1e-14 or (size <= _CONVERGED and size >= 0.1 * last):
                break
            last = size
        self.__dict__.pop("stages", None)
        return size <= _CONVERGED

    # -- between the points ---------------------------------------------------------------------

    def find(self, times: Array) -> tuple[Index, Index, Array]:
        """Of each time the interval, the piece, and where in the interval it lies (0 to 1)."""
        k, s = self.system.pieces.find(times)
        i, tau = self._intervals(s)
        return i, k, tau

    def _intervals(self, s: Array) -> tuple[Index, Array]:
        """Of each s the interval, and where in the interval it lies (0 to 1)."""
        i = np.clip(np.searchsorted(self.s, s, side="right") - 1, 0, len(self.s) - 2)
        return i, (s - self.s[i]) / (self.s[i + 1] - self.s[i])

    def at(self, times: Array, deriv: int = 0) -> Array:
        """The states (m, n) at ``times``, or their derivatives by time."""
        i, k, tau = self.find(times)
        h = np.diff(self.s)[i]
        value = np.einsum("qm,qmn->mn", self.tableau.weights(tau, deriv), self.stages[:, i, k])
        if not deriv:
            return np.asarray(self.y[i, k] + h[:, None] * value)
        return np.asarray(value * (h / (h * self.system.pieces.rates[k]) ** deriv)[:, None])

    def points(self, s: Array, deriv: int = 0) -> Array:
        """The states (m, K, n) of all pieces at ``s`` (m,), or their derivatives by s."""
        i, tau = self._intervals(s)
        h = np.diff(self.s)[i]
        weights = self.tableau.weights(tau, deriv)
        value = np.einsum("qm,qmkn->mkn", weights, self.stages[:, i])
        return np.asarray(value if deriv else self.y[i] + h[:, None, None] * value)

    def _gaps(self) -> list[tuple[Array, Array]]:
        """``S' - f(S)`` and ``f(S)`` (N, K, n), each where intervals are sampled."""
        h, gaps = np.diff(self.s), []
        for tau in _SAMPLED:
            at = self.s[:-1] + tau * h
            rate = self.system.rate(at, self.points(at))
            gaps.append((self.points(at, 1) - rate, rate))
        return gaps

    def spread(self) -> float:
        """How far changes of f as large as the defect move the solution, relative to its size.

        From 1 on the solution is that of the mesh and not of the problem: the linearised problem is
        singular, or so nearly that the tolerance does not tell. Estimated by the norm of the
        inverse (Higham and Tisseur, SIAM Journal on Matrix Analysis and Applications 21, 2000).
        """
        gap = np.max([np.abs(gap) for gap, _ in self._gaps()], 0)
        change = np.concatenate([np.zeros(self.system.size), (self._h * gap).reshape(-1)])
        factors = self._linearised()[1]
        moved = LinearOperator(
            (len(change),) * 2, dtype=np.float64,
            matvec=lambda x: change * factors.solve(x.reshape(-1), trans="T"),
            rmatvec=lambda x: factors.solve(change * x.reshape(-1)),
        )  # fmt: skip
        # t > 1 would draw from NumPy's generator, which is the user's
        return float(onenormest(moved, t=1) / (1.0 + np.abs(self.y).max()))

    def refined(self, order: int, tolerance: float) -> Array | None:
        """A mesh on which the defect should be within the tolerance; None where it is.

        The defect ``|S' - f(S)| / (1 + |f(S)|)`` of an interval goes as its length to the power of
        ``order + 1``, and is spread evenly.
        """
        h = np.diff(self.s)
        off = [np.abs(gap) / (1.0 + np.abs(rate)) for gap, rate in self._gaps()]
        defect = np.max(off, 0).reshape(len(h), -1).max(1)
        if defect.max() <= tolerance:
            return None
        # intervals that each of the present ones should become, none more than four times as long
        parts = np.maximum((defect / tolerance) ** (1 / (order + 1)), 0.25)
        count = int(np.clip(1.3 * parts.sum() + 1, 1.1 * len(h) + 1, 4 * len(h)))
        ways = np.concatenate([[0.0], np.cumsum(parts)])
        out = np.interp(np.linspace(0.0, ways[-1], count + 1), ways, self.s)
        out[0], out[-1] = self.s[0], self.s[-1]
        return out

    def outputs(self) -> tuple[Array, Array]:
        """Times and states of all points of the mesh, one piece after the other."""
        t = self.system.pieces.times(self.s).T
        keep = np.ones(t.shape, bool)
        keep[1:, 0] = False  # where the piece before ends
        return t[keep], self.y.transpose(1, 0, 2)[keep]

    # -- gradients ------------------------------------------------------------------------------

    def _pull(self, of_stages: Array, of_states: Array | None, of_pieces: Array | None) -> Array:
        """Back through the stages: the cotangent of p; those of the states, and of the pieces'
        starts and rates, are added up."""
        dp = np.zeros(len(self.system.f.p))
        table, h = self.tableau, self._h
        for r in reversed(range(len(table.c))):
            w = of_stages[r]
            if not w.any():
                continue
            s, y = self._stage(r, self.stages)
            dp += self.system.pulled(w, s, y)
            if of_pieces is not None:
                of_pieces += self.system.by_span(w, s, y)
            of_y = np.einsum("mkji,mkj->mki", self.system.jacobian(s, y), w)
            if of_states is not None:
                of_states[:-1] += (1 - table.v[r]) * of_y
                of_states[1:] += table.v[r] * of_y
            for j in range(r):
                if table.x[r, j]:
                    of_stages[j] += h * table.x[r, j] * of_y
        return dp

    def gradient(
        self, times: Array, cotangents: Array, by_times: bool = False
    ) -> tuple[Array, Array, Array, Array]:
        """The cotangents of f's parameters, of the conditions', (2,) of the ends of the time span
        and (m,) of the times, of those of states (m, n); the last two zero without ``by_times``.

        With the equations ``Phi(y, p) = 0`` and outputs ``U(y, p)``: ``U_p' g - Phi_p' lambda``
        where ``Phi_y' lambda = U_y' g``. The mesh over s stays as it is; the time span moves where
        its pieces start, and their rates.
        """
        i, k, tau = self.find(times)
        of_pieces = np.zeros((2, len(self.system.pieces))) if by_times else None
        slopes = np.zeros(len(times))
        if of_pieces is not None:  # what is at s then, was at another s before
            slopes = np.einsum("mn,mn->m", cotangents, self.at(times, 1))
            s = self.system.pieces.find(times)[1]
            for of_piece, w in zip(of_pieces, (slopes, slopes * s), strict=True):
                np.add.at(of_piece, k, -w)
        of_states, of_stages = np.zeros_like(self.y), np.zeros_like(self.stages)
        np.add.at(of_states, (i, k), cotangents)
        scaled = self.tableau.weights(tau)[:, :, None] * (np.diff(self.s)[i, None] * cotangents)
        for of_stage, w in zip(of_stages, scaled, strict=True):
            np.add.at(of_stage, (i, k), w)
        dp = self._pull(of_stages, of_states, of_pieces)
        adjoint = self._linearised()[1].solve(of_states.reshape(-1), trans="T")
        of_bc, rest = adjoint[: self.system.size], adjoint[self.system.size :]
        of_intervals = rest.reshape(len(self.s) - 1, *self.y.shape[1:])
        scaled = self.tableau.b[:, None, None, None] * (self._h * of_intervals)
        dp += self._pull(scaled, None, of_pieces)
        of_ends = np.zeros(2)
        if of_pieces is not None:
            (starts, rates), length = of_pieces, self.system.pieces.length
            of_ends = np.array([starts[0] - rates[0] / length, rates[-1] / length])
        of_conditions = self.system.conditions_pulled(-of_bc, self.y[0], self.y[-1])
        return dp, of_conditions, of_ends, slopes
