"""What makes an interval of many steps too long: states, ``f_p``, the parameters' integrand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from pysciml.engines.sundials.driven_mesh import EACH, HELD, has_little_part
from pysciml.engines.sundials.integrate import Segment
from pysciml.engines.sundials.legendre_rule import TO_LEGENDRE, B, C, S, mean_square, ratio, tail

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: Steps of the solver that an interval takes in at first.
STEPS, STEPS_TIMED = 16, 7
#: What the last coefficients may be: of the states in units of rtol; of the Jacobian, whose effect
#: is of order 2 s, of the root of rtol; of f_p, which is integrated with that order beside smooth
#: weights, of rtol's fourth root; of the integrand itself, of rtol's root; what outputs inside
#: miss, of rtol, an estimate that is some times too large. Measured on the benchmarks' problems
#: and others: gradients differ from those on a fine mesh by less than rtol, at most by five.
STATES, JACOBIAN, PARAMETERS, INTEGRAND, INSIDE = 300.0, 2.0, 2.0, 2.0, 2.0
#: Nodes a step of the solver, beyond which its own mesh is the better one; where f_p asks for them.
_NODES, _NODES_TIMED, _NODES_PARAMETERS = 1.5, 3.0, 20.0


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
        self._looks = push_p is not None
        self._whole = np.zeros(1)  # the largest share of an interval in the integral of f_p

    def _first_mesh(self, segment: Segment) -> Array | None:
        """None where the solver's own mesh has no more nodes than one interval."""
        if 3 * (len(segment.t) - 1) <= S:
            return None
        self._whole = np.zeros(1)
        return grouped(segment.t, STEPS_TIMED if self._looks else STEPS)

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
        need = ratio(tail(inside), STATES * self._rtol * size).max(axis=1) ** (1.0 / S)
        return need, size

    def _parts(self, need: Array, h: Array, t: Array, u: Array) -> tuple[Ints, bool]:
        """How many parts each interval is to be cut into; 1 where it is short enough.

        ``need`` (K,): by what factor it is too long, as far as f_p is not concerned. Returns also
        whether f_p alone asks for cuts.
        """
        fine, by_parameters = need <= 1.0, False
        if self._looks and fine.any():
            need[fine] = self._needed_by_parameters(np.abs(h[fine]), t[fine], u[fine])
            by_parameters = bool(fine.all())
        return parts_of(need), by_parameters

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
            ratio(changes, PARAMETERS * self._rtol**0.25 * largest),
            ratio(h[:, None] * changes, math.sqrt(self._rtol) * self._whole),
        )
        need = rough.max(axis=1) ** (1.0 / S)
        return np.where(np.isfinite(need), need, 0.0)


class Integral:
    """The parameters' gradient as it is summed up, and which intervals are too long for it.

    Parameters
    ----------
    pull : fn(w (q, n), u (q, n), t (q,)) -> w f_p (q, n_p)
    size : (n_p,) the parameters' own sizes
    rtol : what the gradient's own error is kept near

    A rule that is exact up to degree 2 S - 1 is off by about the square of the last coefficients
    beside the values near by, in units of these (on the benchmarks' flow in 1 to 20 intervals: 0.5
    to 4 times it). Few parameters are looked at one by one, many together, those that are little
    beside the others by themselves.
    """

    def __init__(
        self, pull: Callable[[Array, Array, Array], Array], size: Array, rtol: float
    ) -> None:
        self._pull, self._enough = pull, INTEGRAND * math.sqrt(rtol)
        little = has_little_part(size)
        self._together = None if len(size) <= EACH else (~little, little)
        self.total = np.zeros(len(size))
        self._largest = np.zeros(len(size))

    def add(self, weighted: Array, u: Array, t: Array, bent: Bools, probes: Array) -> Array:
        """By what factor intervals of S nodes are too long (K,); the others are added.

        Of those that are ``bent`` (K,), by outputs inside, ``probes`` (k S, n) tell.
        """
        ends = t.reshape(-1, S)[:, [0, -1]]
        h = np.abs(ends[:, 1] - ends[:, 0])[:, None] / (C[-1] - C[0])
        sums, last, largest = (np.empty((len(h), len(self.total))) for _ in range(3))
        for some, shares in self._shares(weighted, u, t):
            integrand = (shares / (h[some, None] * B[:, None])).transpose(0, 2, 1)
            last[some] = np.abs(integrand @ TO_LEGENDRE[-2:].T).sum(axis=2)
            largest[some] = np.abs(integrand).max(axis=2)
            sums[some] = shares.sum(axis=1)
        if bent.any():
            at = np.repeat(bent, S)
            missed = [x.sum(axis=1) for _, x in self._shares(probes, u[at], t[at])]
            last[bent] = np.abs(np.concatenate(missed)) / h[bent]
        self._largest = np.maximum(self._largest, largest.max(axis=0))
        sizes = [last, largest, self._largest[None]]
        if self._together is not None:
            sizes = [
                np.stack([np.linalg.norm(x[:, i], axis=1) for i in self._together], axis=1)
                for x in sizes
            ]
        last, largest, whole = sizes
        need: Array = ratio(last, self._enough * np.sqrt(largest * whole)).max(axis=1) ** (1.0 / S)
        self.total += sums[need <= 1.0].sum(axis=0)
        return need

    def _shares(self, w: Array, u: Array, t: Array) -> Iterator[tuple[slice, Array]]:
        """What the nodes of some intervals at a time add (k, S, n_p)."""
        held = max(1, HELD // (S * len(self.total)))
        for k in range(0, len(t) // S, held):
            at = slice(k * S, (k + held) * S)
            yield (
                slice(k, k + held),
                self._pull(w[at], u[at], t[at]).reshape(-1, S, len(self.total)),
            )


def grouped(t: Array, steps: int) -> Array:
    """A mesh of about ``steps`` of the times' steps each; short ones, as at a start, count less."""
    h = np.abs(np.diff(t))
    count = np.cumsum(np.minimum(1.0, h / np.median(h)))
    groups = max(1, math.ceil(count[-1] / steps))
    ends = np.searchsorted(count, np.arange(1, groups) * (count[-1] / groups)) + 1
    return t[np.unique(np.concatenate([[0], ends, [len(h)]]))]


def parts_of(need: Array) -> Ints:
    """How many parts each interval is to be cut into that is too long by a factor ``need``."""
    need = np.where(np.isfinite(need), need, 64.0)
    parts = np.where(need <= 1.0, 1, np.ceil(np.clip(1.1 * need, 2.0, 64.0)))
    return parts.astype(np.int64)
