"""Piecewise polynomial interpolation of a solution through the solver's own steps.

Between two steps the polynomial goes through ``width`` of the nearest steps (Lagrange form,
weights on an uneven mesh). Values alone are used, no derivatives: on a stiff problem a derivative
computed from a value that carries the solver's error is useless.

Where the steps change fast, the nearest ones can be a bad choice: through a cluster of small steps
a polynomial of high degree swings far out over the large step beside it, and magnifies the errors
of the cluster without bound. There the stencil is chosen by its Lebesgue constant (the largest
factor by which errors of the values can grow): moved to the side where the steps are alike, and
shortened where that does not help.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Steps an interpolating polynomial goes through, by method: BDF has order 5 at most, Adams 12.
WIDTH = {"BDF": 6, "Adams": 8}
#: Neighbouring steps whose sizes differ by more than this factor call for a look at the stencil.
_UNEVEN = 3.0
#: Largest Lebesgue constant that is taken without need.
_LEBESGUE = 20.0


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
        self._stencils: tuple[Ints, Ints] | None = None

    def __call__(self, times: Array, deriv: int = 0) -> Array:
        """Values (or derivatives of order 1 or 2) at ``times``, shape (q,): array (q, n)."""
        times = np.asarray(times, dtype=np.float64)
        if self.width == 1:
            row = self.u[0] if deriv == 0 else np.zeros_like(self.u[0])
            return np.repeat(row[None], len(times), axis=0)
        interval = np.searchsorted(self._key, self.sign * times, side="right") - 1
        interval = np.clip(interval, 0, len(self.t) - 2)
        if self._stencils is None:
            self._stencils = _stencils(self.t, self.width)
        starts, counts = self._stencils
        start, count = starts[interval], counts[interval]
        if len(times) and count.min() == self.width:
            return self._through(times, start, self.width, deriv)
        out = np.empty((len(times), self.u.shape[1]))
        for w in np.unique(count):
            of = count == w
            out[of] = self._through(times[of], start[of], int(w), deriv)
        return out

    def _through(self, times: Array, start: Ints, width: int, deriv: int) -> Array:
        rows = start + np.arange(width)[:, None]
        if deriv == 0:
            weights = _value_weights(self.t[rows], times)
        else:
            weights = _weights(self.t, times, start, width, deriv)
        if self.u.shape[1] * rows.size < 100_000:
            return np.einsum("wq,wqn->qn", weights, self.u[rows])
        out = weights[0][:, None] * self.u[rows[0]]
        for j in range(1, width):
            out += weights[j][:, None] * self.u[rows[j]]
        return out


class Piecewise:
    """A solution that jumps between its pieces: at a jump it is the piece after it.

    Parameters
    ----------
    pieces : interpolants of stretches that follow each other
    sign : 1.0 or -1.0, the direction of time
    """

    def __init__(self, pieces: list[Interpolant], sign: float) -> None:
        self.pieces, self.sign = pieces, sign
        self.starts = np.array([piece.t[0] for piece in pieces])

    def which(self, times: Array) -> Ints:
        """The piece that holds each time."""
        found = np.searchsorted(self.sign * self.starts, self.sign * times, side="right") - 1
        return np.clip(found, 0, len(self.starts) - 1)

    def __call__(self, times: Array, deriv: int = 0) -> Array:
        """Values (or derivatives) at ``times``, shape (q,): array (q, n)."""
        out = np.empty((len(times), self.pieces[0].u.shape[1]))
        which = self.which(times)
        for k in np.unique(which):
            mask = which == k
            out[mask] = self.pieces[k](times[mask], deriv)
        return out


def _stencils(t: Array, width: int) -> tuple[Ints, Ints]:
    """For each interval of the mesh the first step of its stencil, and how many it takes."""
    last = len(t) - 1
    interval = np.arange(last)
    starts = np.clip(interval - (width // 2 - 1), 0, last + 1 - width)
    counts = np.full(last, width)
    if width < 3:
        return starts, counts
    h = np.abs(np.diff(t))
    ratio = h[1:] / h[:-1]
    uneven = np.concatenate([[0], np.cumsum((ratio > _UNEVEN) | (ratio * _UNEVEN < 1.0))])
    suspects = np.nonzero(uneven[starts + width - 2] > uneven[starts])[0]
    if len(suspects):
        starts[suspects], counts[suspects] = _best(t, suspects, width)
    return starts, counts


@lru_cache
def _candidates(width: int) -> tuple[Ints, Ints, Array]:
    """Every stencil around an interval: offset of its first step, length, and as a 0-1 matrix.

    Sorted by length, the longest last, and among equals the most central last. The rows of the
    matrix are the steps ``width - 2`` before the interval's left end to ``width - 1`` after it.
    """
    found = [
        (-before, count)
        for count in range(2, width + 1)
        for before in sorted(range(count - 1), key=lambda b: -abs(b - (count / 2 - 1)))
    ]
    offsets, counts = np.array(found, dtype=np.int64).T
    rows = np.arange(2 - width, width)[:, None]
    return offsets, counts, ((rows >= offsets) & (rows < offsets + counts)).astype(float)


def _best(t: Array, intervals: Ints, width: int) -> tuple[Ints, Ints]:
    """The longest stencil with a small Lebesgue constant, by the middle of each interval."""
    offsets, counts, chosen = _candidates(width)
    index = intervals[:, None] + np.arange(2 - width, width)
    inside = (index >= 0) & (index < len(t))
    nodes = np.where(inside, t[np.clip(index, 0, len(t) - 1)], np.nan)
    middle = 0.5 * (t[intervals] + t[intervals + 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ahead = np.log(np.abs(middle[:, None] - nodes))
        gaps = np.log(np.abs(nodes[:, :, None] - nodes[:, None, :]))
        # log |weight of step j| is a sum over the stencil's other steps m
        terms = ahead[:, None, :] - gaps
    terms = np.where(np.isfinite(terms), terms, 0.0)
    lebesgue = (np.exp(np.minimum(terms @ chosen, 600.0)) * chosen).sum(axis=1)
    valid = inside.astype(float) @ chosen == counts
    lebesgue = np.where(valid, lebesgue, np.inf)
    # the last of those that pass is the longest and, of that length, the most central
    passes = lebesgue <= _LEBESGUE
    pick = passes.shape[1] - 1 - np.argmax(passes[:, ::-1], axis=1)
    return intervals + offsets[pick], counts[pick]


def _value_weights(nodes: Array, times: Array) -> Array:
    """Lagrange weights (width, q) at ``times`` (q,) on ``nodes`` (width, q)."""
    ahead = times - nodes
    width = len(nodes)
    gaps = nodes[:, None] - nodes[None]
    gaps[np.arange(width), np.arange(width)] = 1.0
    # products of all the others, from those before and those after
    before, after = np.ones_like(ahead), np.ones_like(ahead)
    np.cumprod(ahead[:-1], axis=0, out=before[1:])
    after[:-1] = np.cumprod(ahead[:0:-1], axis=0)[::-1]
    weights = before * after / gaps.prod(axis=1)
    at_node = ahead == 0.0
    hit = at_node.any(axis=0)
    weights[:, hit] = at_node[:, hit]  # the step's own value, to the last bit
    return weights


def _weights(t: Array, times: Array, start: Ints, width: int, deriv: int) -> Array:
    """Lagrange weights (width, q) by the product rule, for the derivative asked for."""
    nodes = t[start[None, :] + np.arange(width)[:, None]]
    ahead = times[None, :] - nodes
    weights = np.empty((width, len(times)))
    for j in range(width):
        value = np.ones(len(times))
        first = second = None
        for m in range(width):
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
