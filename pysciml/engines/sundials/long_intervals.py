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
which modes that only a cotangent excites are resolved too. Between its ends the polynomial is of
order s + 1 only; what outputs there miss is estimated by the same map, from the last coefficients
of the rates. Where the rate depends on time otherwise than through the state, the parameters'
product may change faster than both: the integrand of their gradient is looked at
(:class:`.lengths.Integral`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pysciml.engines.sundials.collocation import subdivide
from pysciml.engines.sundials.integrate import Segment
from pysciml.engines.sundials.legendre_rule import (
    PROBE,
    A,
    B,
    C,
    S,
    integral_beyond,
    integrals,
    mean_square,
    ratio,
    reach,
    tail,
)
from pysciml.engines.sundials.lengths import (
    INSIDE,
    INTEGRAND,
    JACOBIAN,
    Integral,
    Lengths,
    parts_of,
)

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: Where intervals begin that stay, states and Jacobians at their nodes.
_Kept = tuple[Array, Array, Array]

#: Single systems up to this size are solved for at once; others, and batches, by iteration.
_DIRECT, _ITERATIONS = 6, 60
#: What cotangents that cancel in the sum still count.
_CANCELLED = 0.03


class _Way(NamedTuple):
    """What goes back through the intervals.

    mu (m, nb) at the start; the rates' cotangents (K, m, s, nb); by what factor intervals are too
    long for the outputs inside (K,); which have such (k,), and the sources (k, m, s, nb) that show
    what these miss beside f_p.
    """

    mu: Array
    stages: Array
    need: Array
    bent: Ints
    probes: Array


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
        self, segment: Segment, jumps: list[tuple[float, Array]], integral: Integral | None = None
    ) -> tuple[Array, Array, Array, Array] | None:
        """mu at the segment's start, and cotangents (q, n) of the rates at states (q, n), times.

        ``jumps``: cotangents (n,) of the state at times of the segment. ``integral``: takes the
        last three of the result in as they come, and says where the mesh is to be cut; f_p is not
        looked at then. None where the solution is not smooth enough, or too stiff, for this to be
        worth while.
        """
        self._looks = integral is None and self._push_p is not None
        mesh, limit = self._first_mesh(segment), self._limit(segment)
        kept: _Kept | None = None
        done = np.empty(0)  # where intervals begin that the integral has
        while mesh is not None:
            found = self._resolve(segment, mesh, limit, kept)
            if found is None:
                return None
            mesh, t, u, jac = found
            way = self._carry(mesh, u, jac, jumps)
            if way is None:
                return None
            # what the integral has of intervals that stay is as good as their mesh
            new = ~np.isin(mesh[:-1], done)
            parts, weighted = np.where(new, parts_of(way.need), 1), self._flat(way.stages)
            if parts.max() == 1 and integral is not None:
                nodes, bent = np.repeat(new, S), np.isin(np.flatnonzero(new), way.bent)
                probes = self._flat(way.probes[np.isin(way.bent, np.flatnonzero(new))])
                need = integral.add(weighted[nodes], u[nodes], t[nodes], bent, probes)
                parts[new], limit = parts_of(need), self._limit(segment, by_parameters=True)
                done = mesh[:-1][parts == 1]
            if parts.max() == 1:
                start = np.empty(self._place.size)
                start[self._place] = way.mu
                return start, weighted, u, t
            mesh, kept = _cut(mesh, u, jac, parts)
        return None

    def _flat(self, stages: Array) -> Array:
        """Rates' cotangents (K, m, s, nb) as (K s, n)."""
        m, nb = self._place.shape
        flat = np.empty((len(stages) * S, m * nb))
        flat[:, self._place] = stages.transpose(0, 2, 1, 3).reshape(-1, m, nb)
        return flat

    # -- the mesh --------------------------------------------------------------

    def _resolve(
        self,
        segment: Segment,
        mesh: Array,
        limit: float,
        kept: _Kept | None,
    ) -> tuple[Array, Array, Array, Array] | None:
        """A mesh (K + 1,), its nodes (K s,), states there, and J^T (K, m, m, s, nb) by columns.

        ``kept``: where intervals begin that stay, states and Jacobians of these.
        """
        m, nb = self._place.shape
        while (count := len(mesh) - 1) * S <= limit:
            h = np.diff(mesh)
            t = mesh[:-1, None] + h[:, None] * C
            new = np.ones(count, dtype=bool) if kept is None else ~np.isin(mesh[:-1], kept[0])
            flat = t[new].reshape(-1)
            u_new = segment.interpolant(flat)
            jac_new = self._jac(u_new, flat).reshape(-1, S, nb, m, m).transpose(0, 3, 4, 1, 2)
            u_new = u_new.reshape(len(jac_new), S, -1)
            if kept is None:
                u, jac = u_new, np.ascontiguousarray(jac_new)
            else:
                u, jac = np.empty((count, S, m * nb)), np.empty((count, m, m, S, nb))
                u[~new], jac[~new] = kept[1:]
                u[new], jac[new] = u_new, jac_new
            parts = np.ones(count, dtype=np.int64)
            need = self._needed_by_jacobian(h[new], u[new], jac[new])
            parts[new], by_parameters = self._parts(need, h[new], t[new], u[new])
            if by_parameters:
                limit = self._limit(segment, by_parameters)
            if parts.max() == 1:
                return mesh, t.reshape(-1), u.reshape(count * S, -1), jac
            mesh, kept = _cut(mesh, u, jac, parts)
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
        rough = np.fmin(ratio(changes, resolved * largest), does / resolved)
        need = np.maximum(need, rough.max(axis=1) ** (1.0 / S))
        square = np.einsum("kiasb,kiasb->ksb", jac, jac).max(axis=(1, 2))
        return np.maximum(need, h * np.sqrt(square) / reach(self._rtol))

    # -- the way back ----------------------------------------------------------

    def _carry(
        self, mesh: Array, u: Array, jac: Array, jumps: list[tuple[float, Array]]
    ) -> _Way | None:
        """Back through all intervals; None where the iteration for an interval's stages fails."""
        count, m, _, _, nb = jac.shape
        h = np.diff(mesh)
        inside, mu_first = self._inside(mesh, jumps)
        direct = nb == 1 and m <= _DIRECT
        if direct:
            # (i, s) to (a, s'): delta - h A[s', s]^T J[a, i] at s'
            coupled = -h[:, None, None, None, None] * np.einsum("ts,kiat->kasit", A, jac[..., 0])
            inverse = np.linalg.inv(np.eye(m * S) + coupled.reshape(count, m * S, m * S))

        first_look: dict[float, int] = {}  # by what is enough: an interval takes about as many

        def solved(k: int, source: Array, enough: float) -> Array | None:
            if direct:
                return (inverse[k] @ source.reshape(-1)).reshape(m, S, 1)
            found, back, close = source, h[k] * A.T, enough * np.abs(source).max()
            looks = first_look.get(enough, 2)
            for i in range(_ITERATIONS):
                last = found
                found = back @ np.einsum("iasb,isb->asb", jac[k], found)
                found += source
                if i >= looks and not np.abs(found - last).max() > close:
                    first_look[enough] = max(2, i - 1)
                    return found
            return None

        stages = np.empty((count, m, S, nb))
        mu, need = np.zeros((m, nb)), np.zeros(count)
        size = mean_square(u[:, self._place]).max(axis=0)[:, None]
        probes: dict[int, Array] = {}
        for k in range(count - 1, -1, -1):
            source = (h[k] * B)[:, None] * mu[:, None, :]
            if k in inside:
                weights, missed, cotangents = inside[k]
                source += np.einsum("qs,qmb->msb", weights, cotangents)
                mu = mu + cotangents.sum(axis=0)
            found = solved(k, source, 0.01 * self._rtol)
            if found is None:
                return None
            stages[k] = found
            mu = mu + np.einsum("iasb,isb->ab", jac[k], found)
            if k in inside and missed.any():
                sent = np.einsum("q,qmb->mb", missed, cotangents)
                probe = solved(k, PROBE[:, None] * sent[:, None, :], 0.1)
                if probe is None:
                    return None
                lost = np.einsum("iasb,isb->ab", jac[k], probe)
                beside = np.linalg.norm(size * mu) + _CANCELLED * np.linalg.norm(size * cotangents)
                lost = float(np.linalg.norm(size * lost) / beside) if beside > 0.0 else 0.0
                need[k] = (lost / (INSIDE * self._rtol)) ** (1.0 / S)
                # beside f_p also with smooth weights, held to the root of rtol
                smooth = (h[k] * PROBE)[:, None] * mu[:, None, :]
                probes[k] = smooth + INTEGRAND / (INSIDE * math.sqrt(self._rtol)) * probe
        bent = np.array(sorted(probes), dtype=np.int64)
        probed = np.array([probes[k] for k in bent]).reshape(-1, m, S, nb)
        return _Way(mu + mu_first, stages, need, bent, probed)

    def _inside(
        self, mesh: Array, jumps: list[tuple[float, Array]]
    ) -> tuple[dict[int, tuple[Array, Array, Array]], Array]:
        """Weights (q, s) of outputs in each interval, what they miss (q,), cotangents (q, m, nb).

        What they miss: the integral of the first Legendre polynomial beyond the interval's own. And
        the cotangents (m, nb) at the start.
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
        theta = (times - mesh[which]) / h
        weights = h[:, None] * integrals(theta)
        missed = h * integral_beyond(theta)
        found = {
            int(k): (weights[which == k], missed[which == k], cotangents[which == k])
            for k in np.unique(which)
            if k >= 0
        }
        return found, cotangents[which < 0].sum(axis=0)


def _cut(mesh: Array, u: Array, jac: Array, parts: Ints) -> tuple[Array, _Kept]:
    """The mesh with its intervals in ``parts``, and what is known of those that stay."""
    stay = parts == 1
    kept = mesh[:-1][stay], u.reshape(len(stay), S, -1)[stay], jac[stay]
    return subdivide(mesh, parts), kept
