"""ForwardSensitivity of the embedded engine: the sensitivity equations along the forward solution.

``M S' = J S + f_p``, ``S(t0) = I`` in the columns of u0 (Dickinson and Gelinas, "Sensitivity
analysis of ordinary differential equation systems", 1976), collocated with the 3-stage Radau IIA
rule on the forward solution's own steps, as the adjoint is. Cost grows with the number of
parameters.

At an event at time tau, where ``c(u, p, t) = 0`` and the state becomes ``a(u, p, t)``, with D the
change of the state at the moving event time (Hairer, Norsett, Wanner, "Solving Ordinary
Differential Equations I", section II.6):

    dtau = -(c_u S- + c_p) / (c_u f- + c_t),   D- = S- + f- dtau
    D+ = a_u D- + a_p + a_t dtau,              S+ = D+ - f+ dtau

and on a DAE S+ is made consistent, as the state is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FlatCallback, FlatProblem
from pysciml.engines.sundials.adjoint import Outputs, rate_at, speed_of
from pysciml.engines.sundials.collocation import (
    EIGENVALUES,
    A,
    B,
    C,
    join,
    parts_needed,
    parts_needed_in_turn,
    subdivide,
)
from pysciml.engines.sundials.driven_mesh import along_parameters, along_state, resolved
from pysciml.engines.sundials.integrate import EventRecord, Segment, Trajectory
from pysciml.engines.sundials.rates import Rates

Array = npt.NDArray[np.float64]

#: Numbers in the stage systems solved at once: bounds the memory.
_BATCH = 4_000_000


def forward_gradient(
    problem: FlatProblem, trajectory: Trajectory, outputs: Outputs, rates: Rates, rtol: float
) -> tuple[Array, Array, list[tuple[Array | None, Array | None]]]:
    """Cotangents of (u0, p, callbacks' own p), as :func:`run_adjoint` gives them.

    ``rtol``: intervals are cut where a growing or oscillating sensitivity needs it.
    """
    columns = _Columns(problem)
    n, segments = len(problem.u0), trajectory.segments
    sensitivity = _Sensitivity(problem, rates, rtol, columns)
    total = np.zeros(columns.count)
    used = outputs.grad_u.any(axis=1) | (outputs.grad_t != 0.0)
    s = np.zeros((n, columns.count))
    s[:, :n] = np.eye(n)
    moved = np.zeros(columns.count)  # of the event that the segment starts with
    for index, segment in enumerate(segments):
        records = trajectory.ends[index]
        mine = np.nonzero((outputs.segment == index) & used)[0]
        s = sensitivity.consistent(segment, s)
        at, s = sensitivity.through(segment, s, outputs.t[mine])
        total += np.einsum("qi,qij->j", outputs.grad_u[mine], at)
        ahead = sensitivity.time_of_event(segment, records, s)
        for k in mine[outputs.moves[mine] >= 0].tolist():
            dtau = ahead if outputs.moves[k] == index else moved
            rate = rate_at(segment, rates, float(outputs.t[k]), outputs.u[k])
            total += (outputs.grad_u[k] @ rate + outputs.grad_t[k]) * dtau
        if records and index + 1 < len(segments):
            s = sensitivity.across(segment, segments[index + 1], records, s, ahead)
        moved = ahead
    return columns.split(total)


class _Columns:
    """Where the inputs' columns stand: u0, p, then each callback's condition and affect."""

    def __init__(self, problem: FlatProblem) -> None:
        self.n = len(problem.u0)
        self.p = slice(self.n, self.n + len(problem.p))
        self.count = self.p.stop
        self.own: list[dict[str, slice]] = []
        for callback in problem.callbacks:
            own = {}
            for name, values in (("c", callback.condition_p), ("a", callback.affect_p)):
                if values is not None:
                    own[name] = slice(self.count, self.count + len(values))
                    self.count += len(values)
            self.own.append(own)

    def split(self, total: Array) -> tuple[Array, Array, list[tuple[Array | None, Array | None]]]:
        extra = [tuple(total[own[k]] if k in own else None for k in ("c", "a")) for own in self.own]
        return total[: self.n], total[self.p], extra  # type: ignore[return-value]


class _Sensitivity:
    """S over segments and across events; arrays (n, columns)."""

    def __init__(self, problem: FlatProblem, rates: Rates, rtol: float, columns: _Columns) -> None:
        self.problem, self.rates, self.rtol, self.columns = problem, rates, rtol, columns
        functions, p, c = problem.functions, problem.p, problem.c
        self.residual = problem.kind == "dae"
        self.jac_u = functions.bind_batched("jac:u", p, c)
        if self.residual:
            self.jac_du = functions.bind_batched("jac:du", p, c)
        self.along_parameters = along_parameters(problem, little=True)
        self.one_jac_p = functions.bind("jac:p", p, c) if len(p) else None
        self.jac_p = None
        if len(p) and functions.kernels is not None:
            self.jac_p = functions.bind_batched("jac:p", p, c)

    def _by_p(self, *args: Array) -> Array:
        """f_p at states (q, n) and times (q,): array (q, n, n_p)."""
        out = np.zeros((len(args[-1]), len(self.problem.u0), len(self.problem.p)))
        if self.jac_p is not None:
            out[...] = self.jac_p(*args)
        elif self.one_jac_p is not None:  # called back in torch: one by one
            for k, entry in enumerate(zip(*args, strict=True)):
                self.one_jac_p(*entry, out[k])
        return -out if self.residual else out

    def consistent(self, segment: Segment, s: Array) -> Array:
        """S at the start of a segment with its algebraic part found from the constraints."""
        if self.rates.explicit:
            return s
        t, u = float(segment.t[0]), segment.u[0]
        du = rate_at(segment, self.rates, t, u) if self.residual else None
        here = self.rates.linearised(u, t, du)
        args = [x[None] for x in (du, u) if x is not None]
        forced = np.zeros_like(s)
        forced[:, self.columns.p] = self._by_p(*args, np.array([t]))[0]
        return here.stacked(here.mass @ s, -forced)

    def through(self, segment: Segment, s: Array, times: Array) -> tuple[Array, Array]:
        """S at ``times`` (q,) of the segment, array (q, n, columns), and at its end."""
        at = np.empty((len(times), *s.shape))
        at[times == segment.t[0]] = s
        if len(segment.t) == 1:
            return at, s
        mesh = self._refined(segment, join(segment.t, times))
        size = max(1, _BATCH // (9 * len(s) ** 2))
        for first in range(0, len(mesh) - 1, size):
            part = mesh[first : first + size + 1]
            grow, forced = self._steps(segment, part)
            for k, t in enumerate(part[1:]):
                s = s + grow[k] @ s
                s[:, self.columns.p] += forced[k]
                at[times == t] = s
        return at, s

    def _refined(self, segment: Segment, mesh: Array) -> Array:
        mass = self.problem.mass_matrix
        alongs = self.along_parameters, along_state(self.problem, segment.u)
        mesh = resolved(mesh, segment, alongs, self.rtol)
        new = None
        for _ in range(3):
            middle = 0.5 * (mesh[1:] + mesh[:-1])
            u, h = segment.interpolant(middle), np.diff(mesh)
            if self.residual:
                du = segment.interpolant(middle, 1)
                jac, mass = -self.jac_u(du, u, middle), self.jac_du(du, u, middle)
            else:
                jac = self.jac_u(u, middle)
            if mass is None and u.shape[1] <= EIGENVALUES:
                parts = parts_needed(h, jac, self.rtol, new)
            else:
                parts = parts_needed_in_turn(h, jac, mass, self.rtol, new)
            if parts is None:
                break
            mesh, new = subdivide(mesh, parts), np.repeat(parts > 1, parts)
        return mesh

    def _steps(self, segment: Segment, mesh: Array) -> tuple[Array, Array]:
        """(G, g) of each interval's step ``S + G S + g``: arrays (K, n, n) and (K, n, n_p).

        Stage i: ``M_i K_i - h sum_j A_ij J_i K_j = J_i S + f_p``; then ``S + h sum_j B_j K_j``.
        """
        h = np.diff(mesh)
        t = (mesh[:-1, None] + C * h[:, None]).reshape(-1)
        u = segment.interpolant(t)
        args = (segment.interpolant(t, 1), u, t) if self.residual else (u, t)
        count, n = len(h), u.shape[1]
        jac = self.jac_u(*args).reshape(count, 3, n, n)
        mass = np.eye(n) if self.problem.mass_matrix is None else self.problem.mass_matrix
        if self.residual:
            jac, mass = -jac, self.jac_du(*args).reshape(count, 3, n, n)
        forced = self._by_p(*args).reshape(count, 3, n, -1)
        system = -np.einsum("k,ij,kiab->kiajb", h, A, jac)
        for i in range(3):
            system[:, i, :, i, :] += mass[:, i] if mass.ndim == 4 else mass
        rhs = np.concatenate([jac, forced], axis=3).reshape(count, 3 * n, -1)
        stages = np.linalg.solve(system.reshape(count, 3 * n, 3 * n), rhs)
        step = np.einsum("k,j,kjab->kab", h, B, stages.reshape(count, 3, n, -1))
        return step[:, :, :n], step[:, :, n:]

    # -- events ----------------------------------------------------------------

    def time_of_event(self, segment: Segment, records: list[EventRecord], s: Array) -> Array:
        """dtau by every input; zeros where the event stays where it is."""
        callbacks = self.problem.callbacks
        moving = next((r for r in records if callbacks[r.index].kind == "continuous"), None)
        if moving is None:
            return np.zeros(self.columns.count)
        t, u = float(segment.t[-1]), segment.u[-1]
        before = rate_at(segment, self.rates, t, u)
        speed, c_u, c_p = speed_of(self.problem, moving.index, u, t, before)
        change = c_u @ s
        change[self.columns.own[moving.index]["c"]] += c_p
        return -change / speed

    def across(
        self, segment: Segment, after: Segment, records: list[EventRecord], s: Array, dtau: Array
    ) -> Array:
        t = float(segment.t[-1])
        d = s + np.outer(rate_at(segment, self.rates, t, segment.u[-1]), dtau)
        for record in records:
            d = self._affected(self.problem.callbacks[record.index], record, d, dtau)
        return d - np.outer(rate_at(after, self.rates, t, after.u[0]), dtau)

    def _affected(
        self, callback: FlatCallback, record: EventRecord, d: Array, dtau: Array
    ) -> Array:
        affect, p, c = callback.affect, callback.affect_p, callback.affect_c
        if affect is None or p is None or c is None:
            return d
        n, u, t = len(d), record.u_before, record.t
        by_u, by_t, by_p = np.empty((n, n)), np.empty(n), np.empty((n, len(p)))
        affect.bind("jac:u", p, c)(u, t, by_u)
        affect.bind("jac:t", p, c)(u, t, by_t)
        out = by_u @ d + np.outer(by_t, dtau)
        if len(p):
            affect.bind("jac:p", p, c)(u, t, by_p)
            out[:, self.columns.own[record.index]["a"]] += by_p
        return out
