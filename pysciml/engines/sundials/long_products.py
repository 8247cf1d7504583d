"""Long intervals, as in :mod:`.long_intervals`, for states whose Jacobian is not formed.

The stages of an interval are found by Picard's iteration, each a batched vjp at its ten nodes. What
the Jacobian would tell of the interval's length, its products do: those with the entering cotangent
are looked at for their last Legendre coefficients, and how fast the iteration contracts says how
fast the modes are that the cotangent excites.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pysciml.engines.sundials.collocation import subdivide
from pysciml.engines.sundials.integrate import Segment
from pysciml.engines.sundials.legendre_rule import A, B, C, S, integrals, mean_square, reach, tail
from pysciml.engines.sundials.lengths import JACOBIAN, Lengths

Array = npt.NDArray[np.float64]

_ITERATIONS = 30


class LongProducts(Lengths):
    """One instance a backward pass.

    Parameters
    ----------
    pull : fn(w (q, n), u (q, n), t (q,)) -> J^T w (q, n)
    push_p, rtol : as for :class:`Lengths`
    n : number of states
    """

    def __init__(
        self,
        pull: Callable[[Array, Array, Array], Array],
        push_p: Callable[[Array, Array], Array] | None,
        n: int,
        rtol: float,
    ) -> None:
        super().__init__(push_p, np.arange(n)[None], rtol)
        self._pull = pull
        self._resolved, self._reach = JACOBIAN * math.sqrt(rtol), reach(rtol)

    def __call__(
        self, segment: Segment, jumps: list[tuple[float, Array]]
    ) -> tuple[Array, Array, Array, Array] | None:
        """See :class:`.long_intervals.LongIntervals`."""
        found = self._mesh(segment)
        if found is None:
            return None
        mesh, limit = found
        sign = 1.0 if mesh[-1] > mesh[0] else -1.0
        ahead = sorted(jumps, key=lambda jump: sign * jump[0])  # outputs still to be taken in
        pending = list(zip(mesh[:-1].tolist(), mesh[1:].tolist(), strict=True))
        pieces: list[tuple[Array, Array, Array]] = []
        mu, spent = np.zeros(self._place.size), 0
        while pending:
            if (spent + len(pending)) * S > limit:
                return None
            a, b = pending.pop()
            spent += 1
            inside = len(ahead)
            while inside and sign * ahead[inside - 1][0] > sign * a:
                inside -= 1
            t = a + (b - a) * C
            u = segment.interpolant(t)
            out = self._interval(a, b - a, t, u, mu, ahead[inside:])
            if out is None:
                middle = 0.5 * (a + b)
                pending += [(a, middle), (middle, b)]
                continue
            mu, stages = out
            pieces.append((stages, u, t))
            del ahead[inside:]
        mu = sum((c for _, c in ahead), mu)
        stages, u, t = (np.concatenate(x) for x in zip(*pieces, strict=True))
        return mu, stages, u, t

    def _mesh(self, segment: Segment) -> tuple[Array, float] | None:
        """A mesh that resolves states and f_p, and how many nodes are worth while."""
        mesh, limit = self._first_mesh(segment), self._limit(segment)
        while mesh is not None and (len(mesh) - 1) * S <= limit:
            h = np.diff(mesh)
            t = mesh[:-1, None] + h[:, None] * C
            u = segment.interpolant(t.reshape(-1)).reshape(len(h), S, -1)
            need, _ = self._needed_by_states(u)
            parts, by_parameters = self._parts(need, h, t, u)
            if by_parameters:
                limit = self._limit(segment, by_parameters)
            if parts.max() == 1:
                return mesh, limit
            mesh = subdivide(mesh, parts)
        return None

    def _interval(
        self, a: float, h: float, t: Array, u: Array, mu: Array, outputs: list[tuple[float, Array]]
    ) -> tuple[Array, Array] | None:
        """mu before an interval and the rates' cotangents; None where it is to be cut."""
        source = (h * B)[:, None] * mu
        if outputs:
            theta = (np.array([time for time, _ in outputs]) - a) / h
            cotangents = np.array([c for _, c in outputs])
            source += (h * integrals(theta)).T @ cotangents
            mu = mu + cotangents.sum(axis=0)
        if not mu.any() and not source.any():
            return mu, source
        # J^T is looked at in the direction of what goes back through the interval
        moved = self._pull(np.broadcast_to(mu, u.shape), u, t)
        size, largest, changes = mean_square(mu), mean_square(moved).max(), tail(moved)
        if not (changes <= self._resolved * largest or abs(h) * changes <= self._resolved * size):
            return None
        back, found = h * A.T, source
        close, before = 0.01 * self._rtol * np.abs(source).max(), 0.0
        for i in range(_ITERATIONS):
            last, found = found, source + back @ self._pull(found, u, t)
            change = float(np.abs(found - last).max())
            if not change > close:
                return mu + self._pull(found, u, t).sum(axis=0), found
            # z^i / i! is what the i-th iteration adds, z the interval times the fastest rate
            if i > 1 and change / before * (i + 1) > self._reach:
                return None
            before = change
        return None
