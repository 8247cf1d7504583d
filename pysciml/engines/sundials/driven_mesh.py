"""Where a driven rate's derivatives change faster than the solution: a mesh that resolves them.

The solver's steps tell how fast the solution changes. Where the rate depends on time otherwise
than through the state, its derivatives may change faster: ``f_p`` where a control is zero so far,
``f_u`` where the state is. The steps are too long then for the adjoint, or for its integral beside
``f_p``. Their values at the three nodes of every interval tell what the Radau rule makes of them
there: entry by entry where these are few, else in some directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FlatProblem
from pysciml.engines.sundials.collocation import C, Nodes, subdivide
from pysciml.engines.sundials.integrate import Segment
from pysciml.engines.sundials.legendre_rule import mean_square

__all__ = [
    "EACH",
    "HELD",
    "Along",
    "along_parameters",
    "along_state",
    "has_little_part",
    "resolved",
]

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Rate = Callable[[], Array]
Along = Callable[[Array, Array, Rate | None], Array]

#: The rule's error for ``cos(w t)``, in units of ``h |cos|``, is this times the 5/2-th power of the
#: second divided difference at its nodes: ``1.4e-5 (h w)^5``, the difference being ``(h w)^2 / 2``.
_ERROR = 7.9e-5
#: Differences beyond ``_SEEN`` times the values near by may tell of no rate, and such beyond
#: ``_SKIPPED`` tell of none: the nodes skip whole waves (it is ``(h w)^2 / 2`` where they do not,
#: up to 5 where they do). One below ``_KNOWN`` is taken at its word.
_SEEN, _SKIPPED, _KNOWN = 1.0, 2.5, 0.2
#: Intervals whose nodes skip waves are cut in so many; most intervals of a mesh, and rounds.
_BLIND, _MOST, _ROUNDS = 8, 10_000, 8
#: Larger states without blocks are looked at together; up to how many derivatives are looked at one
#: by one; and what has little part beside the largest, among as many entries and among more: of
#: those some are always small, and move as the others do.
_APART, EACH, _LITTLE, _OF_MANY = 50, 400, 0.03, 1e-6
#: Numbers that are held at a time.
HELD = 4_000_000

#: Values at the nodes, by rising time, to the second divided difference in units of the interval.
_theta = 1.0 - C[::-1]
_SECOND: Array = 1.0 / np.array(
    [np.prod([_theta[i] - _theta[j] for j in range(3) if j != i]) for i in range(3)]
)


def along_parameters(
    problem: FlatProblem, blocks: Ints | None = None, little: bool = False
) -> Along | None:
    """fn(u (q, n), t (q,), rate) to what is looked at of f_p: (q, rows, members).

    Members of a row are looked at together. ``rate()`` gives u' (q, n), for residuals. ``blocks``
    (nb, m): the state's entries in each independent block. ``little``: only parameters that have
    little part beside the largest are looked at, on a mesh that sees the others by the solution.
    None where there is nothing to look at: where the rate depends on time through the state alone,
    and so do all its derivatives; and where it has pieces in time, between which f_p jumps, so that
    no mesh resolves it.
    """
    functions, p = problem.functions, problem.p
    if not len(p) or not _is_driven(problem) or little and not has_little_part(np.abs(p)).any():
        return None
    if functions.kernels is not None and len(problem.u0) * len(p) <= EACH:
        return _each(problem, "jac:p")
    arranged = _arranged(len(problem.u0), blocks)

    @cache  # often nothing is looked at
    def ways() -> list[tuple[Along, Along]]:
        steps = _directions(np.abs(p))[-1 if little else 0 :]
        return [(_value(problem, p + d), _value(problem, p - d)) for d in steps]

    def along(u: Array, t: Array, rate: Rate | None) -> Array:
        moved = [arranged(ahead(u, t, rate) - behind(u, t, rate)) for ahead, behind in ways()]
        return np.concatenate(moved, axis=1)

    return along


def along_state(problem: FlatProblem, u: Array, blocks: Ints | None = None) -> Along | None:
    """As :func:`along_parameters` with ``little``, of f_u; ``u`` (N, n): the solution."""
    n, size = len(problem.u0), np.abs(u).max(axis=0)
    if not _is_driven(problem) or not has_little_part(size).any():
        return None
    if problem.functions.kernels is not None and n * n <= EACH:
        return _each(problem, "jac:u")
    value, arranged, d = _value(problem, problem.p), _arranged(n, blocks), _directions(size)[-1]
    return lambda u, t, rate: arranged(value(u + d, t, rate) - value(u - d, t, rate))


def _each(problem: FlatProblem, role: str) -> Along:
    jac = problem.functions.bind_batched(role, problem.p, problem.c)
    of = _called(problem, jac)
    return lambda u, t, rate: of(u, t, rate).reshape(len(t), -1, 1)


def _arranged(n: int, blocks: Ints | None) -> Callable[[Array], Array]:
    """fn(x (q, n)) to (q, rows, members): blocks, or all entries of many, are looked at together.

    Of many entries some always bend.
    """
    if blocks is not None:
        return lambda x: x[:, blocks.T]
    return (lambda x: x[:, None]) if n > _APART else (lambda x: x[:, :, None])


def _is_driven(problem: FlatProblem) -> bool:
    kernels = problem.functions.kernels
    return kernels is None or bool(kernels.driven)


def _value(problem: FlatProblem, p: Array) -> Along:
    return _called(problem, problem.functions.bind_batched("value", p, problem.c))


def _called(problem: FlatProblem, role: Callable[..., Array]) -> Along:
    if problem.kind != "dae":
        return lambda u, t, rate: role(u, t)

    def of_residual(u: Array, t: Array, rate: Rate | None) -> Array:
        assert rate is not None
        return role(rate(), u, t)

    return of_residual


def _directions(size: Array) -> list[Array]:
    """Small steps of which every entry has its part, for entries of some ``size``.

    The second, where there is one, is of those that have little part in the first.
    """
    largest = size.max() or 1.0
    part = 1e-5 * np.cos(1.0 + 2.0 * np.arange(len(size)) ** 2)
    ways = [(size + 1e-3 * largest) * part]
    small = has_little_part(size)
    if small.any() and not small.all():
        ways.append(np.where(small, largest * part, 0.0))
    return ways


def has_little_part(size: Array) -> Bools:
    """Which entries of some ``size`` count for little beside the largest."""
    return size <= (_OF_MANY if len(size) > EACH else _LITTLE) * size.max(initial=0.0)


def resolved(mesh: Array, segment: Segment, alongs: Sequence[Along | None], rtol: float) -> Array:
    """``mesh`` with its intervals cut where they do not resolve what is looked at to ``rtol``.

    Given back as it is where it cannot be told (what is looked at is not finite, as a root's
    derivative at zero) and where no mesh will do, as over jumps.
    """
    looked_at = [along for along in alongs if along is not None]
    if not looked_at:
        return mesh
    n, first = segment.u.shape[-1], mesh

    def look(t: Array) -> list[Array]:
        count, t = len(t), t.reshape(-1)
        u, rate = segment.interpolant(t), partial(segment.interpolant, t, 1)
        seen = [_bent(along(u, t, rate), count) for along in looked_at]
        return [np.concatenate(x, axis=1) for x in zip(*seen, strict=True)]

    if 3 * (len(mesh) - 1) * n > HELD:
        return first
    largest, second = look(Nodes.of(mesh).t)
    for _ in range(_ROUNDS):
        h = np.abs(np.diff(mesh))
        ratio = _ratio(largest, second, h, rtol)
        need = _ERROR * ratio**2.5 / rtol
        parts = np.where(need > 1.0, np.ceil(1.1 * need**0.2), 1.0)
        parts = np.where(ratio > _SEEN, np.clip(parts, 2.0, _BLIND), parts)
        parts[ratio > _SKIPPED] = _BLIND
        if parts.max() == 1.0:
            return mesh
        cut = _as_neighbours(parts, h)
        count = int(cut.sum())
        if count > max(_MOST, 4 * len(h)) or 3 * count * n > HELD:
            return first  # no wave, but jumps
        mesh = subdivide(mesh, cut)
        # of what was seen through the parts follow from the whole
        known = (cut == 1) | (_nearby(ratio, np.max) <= _KNOWN)
        largest, second = np.repeat(largest, cut, axis=0), np.repeat(second, cut, axis=0)
        second /= np.repeat(cut, cut)[:, None] ** 2.0
        new = np.repeat(~known, cut)
        if new.any():
            largest[new], second[new] = look(Nodes.of(mesh).t[new])
    return first if (_ratio(largest, second, np.abs(np.diff(mesh)), rtol) > _SEEN).any() else mesh


def _ratio(largest: Array, second: Array, h: Array, rtol: float) -> Array:
    """The difference that counts most in each interval (K,), in units of the values near by."""
    finite = np.isfinite(second).all(axis=0)
    largest, second = largest[:, finite], second[:, finite]
    weighted = h[:, None] * largest
    # Waves take themselves away in the integral, and the adjoint may be large where f_p is
    # small: each interval is held to rtol of what is near by, where it counts at all.
    counts = (weighted > rtol * weighted.sum(axis=0) / len(h)) & (second > 0.0)
    ratio = np.divide(second, _nearby(largest, np.max), out=np.zeros_like(second), where=counts)
    return ratio.max(axis=1, initial=0.0)


def _bent(values: Array, count: int) -> tuple[Array, Array]:
    """Rows' largest values (K, rows) in each interval, and their second divided difference."""
    values = values.reshape(count, 3, *values.shape[1:])
    second = np.einsum("kirb,i->krb", values[:, ::-1], _SECOND)
    return mean_square(values).max(axis=1), mean_square(second)


def _as_neighbours(parts: Array, h: Array) -> npt.NDArray[np.int64]:
    """How many parts (K,), no longer than those of neighbours that are cut.

    Three nodes that skip whole waves may lie on a line by chance; not in the intervals beside too.
    """
    shortest = _nearby(np.where(parts > 1.0, h / parts, np.inf), np.min)
    return np.clip(np.ceil(h / shortest - 1e-9), 1, 2 * _BLIND).astype(np.int64)


def _nearby(x: Array, of: Callable[..., Array]) -> Array:
    """The smallest or largest of each entry (K, ...) and the two on either side of it."""
    padded = np.pad(x, [(2, 2)] + [(0, 0)] * (x.ndim - 1), mode="edge")
    return of([padded[i : i + len(x)] for i in range(5)], axis=0)
