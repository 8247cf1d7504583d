"""Gradients on the embedded engine: backwards over the segments of a trajectory and its events.

On each segment a method (collocation, or stepping with CVODE) carries ``mu``, the cotangent of the
state, and adds to the parameters' cotangent; here stand the loss's jumps and the events between
the segments, which are the same for all methods.

At an event at time tau, where ``c(u, p, t) = 0`` and the state becomes ``a(u, p, t)``: with A =
da/du, cotangents S of the event time and mu+ of the state after it,

    S     = mu+ . (A f- + a_t - f+) + (cotangents of outputs at tau) . (f there)
    mu-   = A^T mu+  -  c_u S / (c_u f- + c_t),   dL/dp += a_p^T mu+ - c_p S / (c_u f- + c_t)

(implicit differentiation of the event condition; Hairer, Norsett, Wanner, "Solving Ordinary
Differential Equations I", section II.6, for the forward form).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FIRST_EVENT, FlatProblem, FlatSolution
from pysciml.engines.sundials.integrate import EventRecord, Segment, Trajectory

Array = npt.NDArray[np.float64]


class SegmentAdjoint(Protocol):
    """A method for one smooth stretch."""

    def __call__(
        self, segment: Segment, mu_end: Array, times: Array, cotangents: Array, grad_p: Array
    ) -> Array:
        """mu at the start of the segment, from ``mu_end`` at its end.

        ``cotangents`` (k, n) act on the state at ``times`` (k,), sorted in the direction of
        integration, inside the segment or at its ends. Adds to ``grad_p``.
        """
        ...


@dataclass
class Injections:
    """The loss's cotangents by segment, and those of outputs that move with an event."""

    times: list[list[float]]
    cotangents: list[list[Array]]
    event_time: dict[int, float] = field(default_factory=dict)  # segment whose end moves: dL/dtau

    @staticmethod
    def empty(count: int) -> Injections:
        return Injections([[] for _ in range(count)], [[] for _ in range(count)])

    def add(self, segment: int, t: float, cotangent: Array) -> None:
        self.times[segment].append(t)
        self.cotangents[segment].append(cotangent)


def rate(problem: FlatProblem) -> Callable[[Array, float], Array]:
    """u' as a function of (u, t), for an ODE with or without an invertible mass matrix."""
    value = problem.functions.bind("value", problem.p, problem.c)
    mass = problem.mass_matrix

    def f(u: Array, t: float) -> Array:
        out = np.empty_like(u)
        value(u, t, out)
        if mass is None:
            return out
        return np.asarray(np.linalg.lstsq(mass, out, rcond=None)[0], dtype=np.float64)

    return f


def run_adjoint(
    problem: FlatProblem,
    trajectory: Trajectory,
    injections: Injections,
    method: SegmentAdjoint,
) -> tuple[Array, Array, list[tuple[Array | None, Array | None]]]:
    """Cotangents of (u0, p, callbacks' own p)."""
    n = len(problem.u0)
    grad_p = np.zeros(len(problem.p))
    extra: list[tuple[Array | None, Array | None]] = [
        (_zeros(c.condition_p), _zeros(c.affect_p)) for c in problem.callbacks
    ]
    f = rate(problem) if problem.callbacks else None
    mu = np.zeros(n)
    for index in range(len(trajectory.segments) - 1, -1, -1):
        segment = trajectory.segments[index]
        records = trajectory.ends[index]
        times = np.array(injections.times[index])
        rows = injections.cotangents[index]
        if records:
            assert f is not None
            u_after = records[-1].u_after
            s = injections.event_time.get(index, 0.0)
            if not any(r.terminal for r in records):
                s -= float(mu @ f(u_after, records[0].t))
            mu = _through(problem, records, mu, s, f, extra)
        order = np.argsort(times if problem.t1 > problem.t0 else -times, kind="stable")
        cot = np.array(rows).reshape(len(rows), n)[order] if rows else np.zeros((0, n))
        if len(segment.t) > 1:
            mu = method(segment, mu, times[order], cot, grad_p)
        else:
            mu = mu + cot.sum(axis=0)
    return mu, grad_p, extra


def _zeros(p: Array | None) -> Array | None:
    return None if p is None else np.zeros(len(p))


def _through(
    problem: FlatProblem,
    records: list[EventRecord],
    mu: Array,
    s: float,
    f: Callable[[Array, float], Array],
    extra: list[tuple[Array | None, Array | None]],
) -> Array:
    """mu before the events at one time, from mu after them."""
    for record in reversed(records):
        callback = problem.callbacks[record.index]
        if callback.affect is None or callback.affect_p is None or callback.affect_c is None:
            continue
        bind = callback.affect.bind
        w, u, t = mu, record.u_before, record.t
        mu = np.empty_like(mu)
        bind("vjp:u", callback.affect_p, callback.affect_c)(w, u, t, mu)
        added = np.empty(len(callback.affect_p))
        bind("vjp:p", callback.affect_p, callback.affect_c)(w, u, t, added)
        grad = extra[record.index][1]
        assert grad is not None
        grad += added
        slope = np.empty_like(mu)
        bind("jac:t", callback.affect_p, callback.affect_c)(u, t, slope)
        s += float(w @ slope)
    first = records[0]
    moving = next((r for r in records if problem.callbacks[r.index].kind == "continuous"), None)
    if moving is None:
        return mu  # preset and discrete events stay where they are
    u, t = first.u_before, first.t
    f_before = f(u, t)
    s += float(mu @ f_before)
    callback = problem.callbacks[moving.index]
    assert callback.condition is not None
    assert callback.condition_p is not None and callback.condition_c is not None
    bind = callback.condition.bind
    one = np.ones(1)
    c_u, c_p, c_t = np.empty_like(mu), np.empty(len(callback.condition_p)), np.empty(1)
    bind("vjp:u", callback.condition_p, callback.condition_c)(one, u, t, c_u)
    bind("vjp:p", callback.condition_p, callback.condition_c)(one, u, t, c_p)
    bind("jac:t", callback.condition_p, callback.condition_c)(u, t, c_t)
    speed = float(c_u @ f_before + c_t[0])
    if speed == 0.0:
        raise ZeroDivisionError(
            f"The condition of callback {moving.index} touches zero without crossing it at "
            f"t = {t:g}: its event time has no derivative there."
        )
    grad = extra[moving.index][0]
    assert grad is not None
    grad -= c_p * (s / speed)
    return mu - c_u * (s / speed)


def outputs_to_injections(
    solution: FlatSolution, trajectory: Trajectory, segments_of: npt.NDArray[np.int64],
    grad_u: Array, grad_t: Array | None, f: Callable[[Array, float], Array] | None,
) -> tuple[Injections, Array]:  # fmt: skip
    """Split the outputs' cotangents by segment; also g . u' at every output (zero at events)."""
    injections = Injections.empty(len(trajectory.segments))
    times = np.zeros(len(solution.t))
    for i in np.nonzero(grad_u.any(axis=1))[0].tolist():
        injections.add(int(segments_of[i]), float(solution.t[i]), grad_u[i])
    for i, source in enumerate(solution.source):
        g_t = 0.0 if grad_t is None else float(grad_t[i])
        if source > FIRST_EVENT and (f is None or not grad_u[i].any()):
            continue
        along = 0.0 if f is None else float(grad_u[i] @ f(solution.u[i], float(solution.t[i])))
        if source <= FIRST_EVENT:
            t_event = solution.events[FIRST_EVENT - source][0]
            for k, ends in enumerate(trajectory.ends):
                if ends and ends[0].t == t_event:
                    injections.event_time[k] = injections.event_time.get(k, 0.0) + along + g_t
                    break
        else:
            times[i] = along
    return injections, times
