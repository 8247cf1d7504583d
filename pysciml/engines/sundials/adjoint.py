"""Gradients on the embedded engine: backwards over the segments of a trajectory and its events.

On each segment a method (collocation, or stepping with CVODE) carries ``mu``, the cotangent of the
state, and adds to the parameters' cotangent; here stand the loss's jumps and the events between
the segments, which are the same for all methods.

At an event at time tau, where ``c(u, p, t) = 0`` and the state becomes ``a(u, p, t)``: with A =
da/du, cotangents S of the event time and mu+ of the state after it,

    S     = mu+ . (A f- + a_t - f+) + (cotangents of outputs at tau) . (f there)
    mu-   = A^T mu+  -  c_u S / (c_u f- + c_t),   dL/dp += a_p^T mu+ - c_p S / (c_u f- + c_t)

(implicit differentiation of the event condition; Hairer, Norsett, Wanner, "Solving Ordinary
Differential Equations I", section II.6, for the forward form). On a DAE f- and f+ are the rates
of all variables, algebraic ones included, and mu+ has no part along algebraic variables: after the
event they are found anew from the constraints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FIRST_EVENT, FlatProblem, FlatSolution
from pysciml.engines.sundials.integrate import EventRecord, Segment, Trajectory
from pysciml.engines.sundials.rates import Rates
from pysciml.errors import EngineError

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
class Outputs:
    """Where the loss looks at the state, and its cotangents.

    Attributes
    ----------
    t : array (m,), segment : int array (m,), u : array (m, n), grad_u : array (m, n)
    grad_t : array (m,)
        Cotangents of the times of those outputs that move with an event.
    moves : int array (m,)
        The segment whose end an output moves with; -1 for those at fixed times.
    """

    t: Array
    segment: npt.NDArray[np.int64]
    u: Array
    grad_u: Array
    grad_t: Array
    moves: npt.NDArray[np.int64]

    @staticmethod
    def fixed(t: Array, segment: npt.NDArray[np.int64], u: Array, grad_u: Array) -> Outputs:
        """Outputs at times that stay where they are."""
        return Outputs(t, segment, u, grad_u, np.zeros(len(t)), np.full(len(t), -1))

    @staticmethod
    def of(
        solution: FlatSolution, trajectory: Trajectory, segment: npt.NDArray[np.int64],
        grad_u: Array, grad_t: Array | None,
    ) -> Outputs:  # fmt: skip
        """The outputs of a solution."""
        moves = np.full(len(solution.t), -1)
        for i in np.nonzero(solution.source <= FIRST_EVENT)[0].tolist():
            k = int(segment[i])
            after = k > 0 and solution.t[i] == trajectory.segments[k].t[0]
            moves[i] = k - 1 if after else k
        grad_t = np.zeros(len(solution.t)) if grad_t is None else grad_t
        return Outputs(solution.t, segment, solution.u, grad_u, grad_t, moves)

    def slopes(self, trajectory: Trajectory, rates: Rates, every: bool = True) -> Array:
        """The change of the loss with each output's time through the state there: g . u'.

        Zero, where not ``every``, for outputs whose time does not move with an event.
        """
        out = np.zeros(len(self.t))
        wanted = self.grad_u.any(axis=1)
        if not every:
            wanted &= self.moves >= 0
        for i in np.nonzero(wanted)[0].tolist():
            segment = trajectory.segments[self.segment[i]]
            out[i] = self.grad_u[i] @ rate_at(segment, rates, float(self.t[i]), self.u[i])
        return out


def rate_at(segment: Segment, rates: Rates, t: float, u: Array) -> Array:
    """u' at a point of a segment."""
    guess = None
    if rates.residual:
        at_start = t == segment.t[0] and segment.du0 is not None
        guess = segment.du0 if at_start else segment.interpolant(np.array([t]), 1)[0]
    return rates(u, t, guess)


def run_adjoint(
    problem: FlatProblem,
    trajectory: Trajectory,
    outputs: Outputs,
    slopes: Array,
    rates: Rates,
    method: SegmentAdjoint,
) -> tuple[Array, Array, list[tuple[Array | None, Array | None]]]:
    """Cotangents of (u0, p, callbacks' own p). ``slopes``: of :meth:`Outputs.slopes`."""
    grad_p = np.zeros(len(problem.p))
    extra: list[tuple[Array | None, Array | None]] = [
        (_zeros(c.condition_p), _zeros(c.affect_p)) for c in problem.callbacks
    ]
    used = outputs.grad_u.any(axis=1)
    mu = np.zeros(len(problem.u0))
    for index in range(len(trajectory.segments) - 1, -1, -1):
        segment = trajectory.segments[index]
        records = trajectory.ends[index]
        if records:
            moving = outputs.moves == index
            s = float((slopes + outputs.grad_t)[moving].sum())
            if not any(r.terminal for r in records):
                after = trajectory.segments[index + 1]
                s -= float(mu @ rate_at(after, rates, float(after.t[0]), after.u[0]))
            before = rate_at(segment, rates, float(segment.t[-1]), segment.u[-1])
            mu = _through(problem, records, mu, s, before, extra)
        mine = np.nonzero((outputs.segment == index) & used)[0]
        times = outputs.t[mine]
        order = np.argsort(times if problem.t1 > problem.t0 else -times, kind="stable")
        mu = method(segment, mu, times[order], outputs.grad_u[mine[order]], grad_p)
    return mu, grad_p, extra


def _zeros(p: Array | None) -> Array | None:
    return None if p is None else np.zeros(len(p))


def _through(
    problem: FlatProblem,
    records: list[EventRecord],
    mu: Array,
    s: float,
    f_before: Array,
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
    s += float(mu @ f_before)
    speed, c_u, c_p = speed_of(problem, moving.index, u, t, f_before)
    grad = extra[moving.index][0]
    assert grad is not None
    grad -= c_p * (s / speed)
    return mu - c_u * (s / speed)


def speed_of(
    problem: FlatProblem, index: int, u: Array, t: float, rate: Array
) -> tuple[float, Array, Array]:
    """d condition / d t along the solution, and the condition's slopes by u and by its own p.

    Raises EngineError where the condition touches zero without crossing it.
    """
    callback = problem.callbacks[index]
    condition, p, c = callback.condition, callback.condition_p, callback.condition_c
    assert condition is not None and p is not None and c is not None
    one, c_u, c_p, c_t = np.ones(1), np.empty(len(u)), np.empty(len(p)), np.empty(1)
    condition.bind("vjp:u", p, c)(one, u, t, c_u)
    condition.bind("vjp:p", p, c)(one, u, t, c_p)
    condition.bind("jac:t", p, c)(u, t, c_t)
    speed = float(c_u @ rate + c_t[0])
    if speed == 0.0:
        raise EngineError(
            f"The condition of callback {index} touches zero at t = {t:g} without crossing it, so "
            "its event time has no derivative there: give a condition that crosses zero."
        )
    return speed, c_u, c_p
