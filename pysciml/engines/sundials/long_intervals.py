"""The adjoint equation on intervals of many steps, where solution and Jacobian are smooth in time.

A multistep method of high order takes several steps within a stretch that one polynomial describes
to its tolerance. There the variation of the solution, ``v' = J(t) v + f_p dp``, is collocated at
the ``s`` Gauss-Legendre nodes of an interval (Hairer and Wanner, "Solving Ordinary Differential
Equations II", section IV.5: order 2 s at its end; between, the collocation polynomial),

    v_i = v_a + h sum_j A_ij k_j,   k_j = J_j v_j + f_p,j dp,
    v(a + theta h) = v_a + h sum_j beta_j(theta) k_j,

and this map is transposed: the cotangent of ``k_j`` takes in that of the end and those of all
outputs inside, which so need no mesh points of their own. ``J^T`` at all nodes is one batched call,
the parameter gradient another.

Whether an interval is short enough is told by what is computed anyway: the last Legendre
coefficients of the states and the Jacobian at its nodes, and ``h`` times the Jacobian's size, by
which modes that only a cotangent excites are resolved too. Where the rate depends on time otherwise
than through the state, the parameters' product may change faster than both: ``f_p`` is looked at
as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy.polynomial import legendre

from pysciml.engines.sundials.collocation import subdivide
from pysciml.engines.sundials.integrate import Segment

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Nodes of an interval, and steps of the solver that one takes in at first.
S, STEPS, STEPS_TIMED = 10, 16, 7
#: What the last coefficients may be: of the states in units of rtol; of the Jacobian, whose effect
#: is of order 2 s, of the root of rtol; of f_p, which is integrated with that order beside smooth
#: weights, of rtol's fourth root. Measured: so the gradients of the benchmarks' problems differ
#: from those on a fine mesh by less than rtol.
STATES, JACOBIAN, PARAMETERS = 300.0, 1.5, 2.0
#: Nodes a step of the solver, beyond which its own mesh is the better one; where f_p asks for them.
_NODES, _NODES_TIMED, _NODES_PARAMETERS = 1.5, 3.0, 20.0
#: Single systems up to this size are solved for at once; others, and batches, by iteration.
_DIRECT, _ITERATIONS = 6, 60

_x, _w = legendre.leggauss(S)
#: Nodes in [0, 1] and weights; values at the nodes to Legendre coefficients.
C: Array = (_x + 1.0) / 2.0
B: Array = _w / 2.0
_TO_LEGENDRE: Array = ((legendre.legvander(_x, S - 1) * _w[:, None]) * (np.arange(S) + 0.5)).T


def integrals(theta: Array) -> Array:
    """``beta`` (q, s): integrals of the nodes' Lagrange polynomials from 0 to ``theta`` (q,)."""
    y = 2.0 * theta - 1.0
    p = legendre.legvander(y, S)
    k = np.arange(1, S)
    inside = np.empty((len(y), S))
    inside[:, 0] = y + 1.0
    inside[:, 1:] = (p[:, 2:] - p[:, :-2]) / (2 * k + 1)
    return 0.5 * inside @ _TO_LEGENDRE


A: Array = integrals(C)


def reach(rtol: float) -> float:
    """The largest ``h |J|`` whose exponential the polynomial resolves to ``rtol`` all along.

    The error of interpolating ``exp(z theta)`` at s + 1 points of [0, 1] is about
    ``2 (z / 4)^(s + 1) / (s + 1)!``.
    """
    return 4.0 * (0.5 * rtol * math.factorial(S + 1)) ** (1.0 / (S + 1))


class Lengths:
    """What both kinds of long intervals look at, but for the Jacobian.

    Parameters
    ----------
    push_p : fn(u (q, n), t (q,)) -> what is looked at of f_p (q, rows, members), members of a row
        together; None where that need not be looked at
    place : (m, nb) the state's entries, by blocks; what is looked at is averaged over these
    rtol : what the gradient's own error is kept near
    """

    def __init__(
        self, push_p: Callable[[Array, Array], Array] | None, place: Ints, rtol: float
    ) -> None:
        self._push_p, self._place, self._rtol = push_p, place, rtol
        self._whole = np.zeros(1)  # the largest share of an interval in the integral of f_p

    def _first_mesh(self, segment: Segment) -> Array | None:
        """None where the solver's own mesh has no more nodes than one interval."""
        if 3 * (len(segment.t) - 1) <= S:
            return None
        self._whole = np.zeros(1)
        return grouped(segment.t, STEPS if self._push_p is None else STEPS_TIMED)

    def _limit(self, segment: Segment, by_parameters: bool = False) -> float:
        """How many nodes are worth while."""
        a_step = _NODES if self._push_p is None else _NODES_TIMED
        if by_parameters:
            a_step = _NODES_PARAMETERS
        return max(a_step * (len(segment.t) - 1), 2.0 * S)

    def _needed_by_states(self, u: Array) -> tuple[Array, Array]:
        """By what factor intervals are too long for states (K, s, n), and these' sizes (K, m)."""
        inside = u[:, :, self._place].transpose(0, 2, 1, 3)
        size = mean_square(inside).max(axis=2)
        need = _ratio(tail(inside), STATES * self._rtol * size).max(axis=1) ** (1.0 / S)
        return need, size

    def _parts(self, need: Array, h: Array, t: Array, u: Array) -> tuple[Ints, bool]:
        """How many parts each interval is to be cut into; 1 where it is short enough.

        ``need`` (K,): by what factor it is too long, as far as f_p is not concerned. Returns also
        whether f_p alone asks for cuts.
        """
        fine, by_parameters = need <= 1.0, False
        if self._push_p is not None and fine.any():
            need[fine] = self._needed_by_parameters(np.abs(h[fine]), t[fine], u[fine])
            by_parameters = bool(fine.all())
        need = np.where(np.isfinite(need), need, 64.0)
        parts = np.where(need <= 1.0, 1, np.ceil(np.clip(1.1 * need, 2.0, 64.0)))
        return parts.astype(np.int64), by_parameters

    def _needed_by_parameters(self, h: Array, t: Array, u: Array) -> Array:
        """By what factor intervals that else will do are too long for f_p: two rates a node.

        0 where it cannot be told, at the edge of what the parameters may be.
        """
        assert self._push_p is not None
        moved = self._push_p(u.reshape(t.size, -1), t.reshape(-1))
        moved = moved.reshape(*t.shape, *moved.shape[1:]).transpose(0, 2, 1, 3)
        finite = np.isfinite(moved).all(axis=(0, 2, 3), keepdims=True)
        moved = np.where(finite, moved, 0.0)
        largest, changes = mean_square(moved).max(axis=2), tail(moved)
        self._whole = np.maximum(self._whole, (h[:, None] * largest).max(axis=0))
        rough = np.fmin(
            _ratio(changes, PARAMETERS * self._rtol**0.25 * largest),
            _ratio(h[:, None] * changes, math.sqrt(self._rtol) * self._whole),
        )
        need = rough.max(axis=1) ** (1.0 / S)
        return np.where(np.isfinite(need), need, 0.0)


class LongIntervals(Lengths):
    """One instance a backward pass.

    Parameters
    ----------
    jac : fn(u (q, n), t (q,)) -> (q, n, n), or (q, nb, m, m) where ``blocks`` are given
    push_p, rtol : as for :class:`Lengths`
    blocks : (nb, m) the state's entries in each independent block; None for one block
    n : number of states
    """

    def __init__(
        self,
        jac: Callable[[Array, Array], Array],
        push_p: Callable[[Array, Array], Array] | None,
        blocks: Ints | None,
        n: int,
        rtol: float,
    ) -> None:
        super().__init__(push_p, (np.arange(n)[None] if blocks is None else blocks).T, rtol)
        self._jac = jac

    def __call__(
        self, segment: Segment, jumps: list[tuple[float, Array]]
    ) -> tuple[Array, Array, Array, Array] | None:
        """mu at the segment's start, and cotangents (q, n) of the rates at states (q, n), times.

        ``jumps``: cotangents (n,) of the state at times of the segment. None where the solution is
        not smooth enough, or too stiff, for this to be worth while.
        """
        found = self._resolve(segment)
        if found is None:
            return None
        mesh, t, u, jac = found
        out = self._carry(mesh, jac, jumps)
        if out is None:
            return None
        mu, stages = out
        start, weighted = np.empty(self._place.size), np.empty((len(t), self._place.size))
        start[self._place] = mu
        m, nb = self._place.shape
        weighted[:, self._place] = stages.transpose(0, 2, 1, 3).reshape(len(t), m, nb)
        return start, weighted, u, t

    # -- the mesh --------------------------------------------------------------

    def _resolve(self, segment: Segment) -> tuple[Array, Array, Array, Array] | None:
        """A mesh (K + 1,), its nodes (K s,), states there, and J^T (K, m, m, s, nb) by columns."""
        mesh = self._first_mesh(segment)
        if mesh is None:
            return None
        m, nb = self._place.shape
        kept: tuple[Array, Array] | None = None  # states and Jacobians of intervals that stay
        old = np.zeros(len(mesh) - 1, dtype=bool)
        limit = self._limit(segment)
        while (count := len(mesh) - 1) * S <= limit:
            h = np.diff(mesh)
            t = mesh[:-1, None] + h[:, None] * C
            new = ~old
            flat = t[new].reshape(-1)
            u_new = segment.interpolant(flat)
            jac_new = self._jac(u_new, flat).reshape(-1, S, nb, m, m).transpose(0, 3, 4, 1, 2)
            u_new = u_new.reshape(len(jac_new), S, -1)
            if kept is None:
                u, jac = u_new, np.ascontiguousarray(jac_new)
            else:
                u, jac = np.empty((count, S, m * nb)), np.empty((count, m, m, S, nb))
                u[old], jac[old] = kept
                u[new], jac[new] = u_new, jac_new
            parts = np.ones(count, dtype=np.int64)
            need = self._needed_by_jacobian(h[new], u[new], jac[new])
            parts[new], by_parameters = self._parts(need, h[new], t[new], u[new])
            if by_parameters:
                limit = self._limit(segment, by_parameters)
            if parts.max() == 1:
                return mesh, t.reshape(-1), u.reshape(count * S, -1), jac
            stay = parts == 1
            kept = u[stay], jac[stay]
            old = np.repeat(stay, parts)
            mesh = subdivide(mesh, parts)
        return None

    def _needed_by_jacobian(self, h: Array, u: Array, jac: Array) -> Array:
        """By what factor each interval is too long for states and Jacobian."""
        count, h = len(h), np.abs(h)
        m, nb = self._place.shape
        need, size = self._needed_by_states(u)
        # Entries of J: small beside themselves, or in what they do to components of their sizes.
        entries = jac.reshape(count, m * m, S, nb)
        largest, changes = mean_square(entries).max(axis=2), tail(entries)
        with np.errstate(divide="ignore", invalid="ignore"):
            units = np.maximum(1.0, size[:, None, :] / size[:, :, None]).reshape(count, m * m)
        does = h[:, None] * np.where(changes > 0.0, changes * units, 0.0)
        resolved = JACOBIAN * math.sqrt(self._rtol)
        rough = np.fmin(_ratio(changes, resolved * largest), does / resolved)
        need = np.maximum(need, rough.max(axis=1) ** (1.0 / S))
        square = np.einsum("kiasb,kiasb->ksb", jac, jac).max(axis=(1, 2))
        return np.maximum(need, h * np.sqrt(square) / reach(self._rtol))

    # -- the way back ----------------------------------------------------------

    def _carry(
        self, mesh: Array, jac: Array, jumps: list[tuple[float, Array]]
    ) -> tuple[Array, Array] | None:
        """mu (m, nb) at the start, and the rates' cotangents (K, m, s, nb)."""
        count, m, _, _, nb = jac.shape
        h = np.diff(mesh)
        inside, mu_first = self._inside(mesh, jumps)
        direct = nb == 1 and m <= _DIRECT
        if direct:
            # (i, s) to (a, s'): delta - h A[s', s]^T J[a, i] at s'
            coupled = -h[:, None, None, None, None] * np.einsum("ts,kiat->kasit", A, jac[..., 0])
            inverse = np.linalg.inv(np.eye(m * S) + coupled.reshape(count, m * S, m * S))
        stages = np.empty((count, m, S, nb))
        mu = np.zeros((m, nb))
        enough = 0.01 * self._rtol
        for k in range(count - 1, -1, -1):
            source = (h[k] * B)[:, None] * mu[:, None, :]
            if k in inside:
                weights, cotangents = inside[k]
                source += np.einsum("qs,qmb->msb", weights, cotangents)
                mu = mu + cotangents.sum(axis=0)
            by, back = jac[k], h[k] * A.T
            if direct:
                found = (inverse[k] @ source.reshape(-1)).reshape(m, S, 1)
            else:
                found = source
                close = enough * np.abs(source).max()
                for i in range(_ITERATIONS):
                    last, found = found, source + back @ np.einsum("iasb,isb->asb", by, found)
                    if i > 1 and not np.abs(found - last).max() > close:
                        break
                else:
                    return None
            stages[k] = found
            mu = mu + np.einsum("iasb,isb->ab", by, found)
        return mu + mu_first, stages

    def _inside(
        self, mesh: Array, jumps: list[tuple[float, Array]]
    ) -> tuple[dict[int, tuple[Array, Array]], Array]:
        """For each interval the weights (q, s) of outputs in it, and their cotangents (q, m, nb).

        And the cotangents (m, nb) at the start.
        """
        first = np.zeros(self._place.shape)
        if not jumps:
            return {}, first
        sign = 1.0 if mesh[-1] > mesh[0] else -1.0
        times = np.array([t for t, _ in jumps])
        cotangents = np.array([c for _, c in jumps])[:, self._place]
        which = np.searchsorted(sign * mesh, sign * times) - 1
        which = np.minimum(which, len(mesh) - 2)
        h = mesh[which + 1] - mesh[which]
        weights = h[:, None] * integrals((times - mesh[which]) / h)
        found = {
            int(k): (weights[which == k], cotangents[which == k])
            for k in np.unique(which)
            if k >= 0
        }
        return found, cotangents[which < 0].sum(axis=0)


def grouped(t: Array, steps: int) -> Array:
    """A mesh of about ``steps`` of the times' steps each; short ones, as at a start, count less."""
    h = np.abs(np.diff(t))
    count = np.cumsum(np.minimum(1.0, h / np.median(h)))
    groups = max(1, math.ceil(count[-1] / steps))
    ends = np.searchsorted(count, np.arange(1, groups) * (count[-1] / groups)) + 1
    return t[np.unique(np.concatenate([[0], ends, [len(h)]]))]


def tail(values: Array) -> Array:
    """The last two Legendre coefficients' size, of ``values`` (..., s, b): array (...)."""
    return mean_square(_TO_LEGENDRE[-2:] @ values).sum(axis=-1)


def mean_square(values: Array) -> Array:
    """Root mean square over the batch, the last axis, as the solver's error control takes it."""
    found: Array = np.sqrt(np.einsum("...b,...b->...", values, values) / values.shape[-1])
    return found


def _ratio(a: Array, b: Array) -> Array:
    """a / b, where 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a == 0.0, 0.0, a / b)
