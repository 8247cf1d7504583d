"""Adjoints stepped backwards by CVODE, under SciML's names.

All carry ``mu' = -J(u(t), t)^T mu`` from the end of a segment to its start, restarting where the
loss adds to ``mu``; they differ in where u(t) comes from and how ``integral mu^T f_p`` is taken:

* Quadrature: u from the interpolant; Gauss-Legendre on mu's own steps, batched vjps, the mesh
  halved until the integral no longer changes.
* Interpolating: the integral is stepped with mu, under the same error control.
* Backsolve: u is solved backwards too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FlatProblem, SolveOptions
from pysciml.engines.sundials.integrate import Segment, integrate
from pysciml.engines.sundials.interpolant import Interpolant
from pysciml.engines.sundials.steppers import Counts, CvodeStepper, Linear, Tolerances
from pysciml.errors import EngineError
from pysciml.sensitivity import SensitivityAlgorithm

Array = npt.NDArray[np.float64]

_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(4)
#: Numbers in one batch of states: bounds the memory of the quadrature.
_BATCH = 2_000_000


class AdjointFailed(EngineError):
    """The adjoint solve did not reach the start of a segment."""


def stepping_adjoint(
    problem: FlatProblem, options: SolveOptions, sensealg: SensitivityAlgorithm
) -> Any:
    """The :class:`pysciml.engines.sundials.adjoint.SegmentAdjoint` of ``sensealg``."""
    if problem.kind == "dae" or problem.mass_matrix is not None:
        raise EngineError(
            f"{sensealg.name} is for ODEs on the sundials engine; a DAE's gradient comes from "
            "GaussAdjoint() or, for few parameters, ForwardSensitivity()."
        )
    kinds = {
        "QuadratureAdjoint": _Quadrature,
        "InterpolatingAdjoint": _Interpolating,
        "BacksolveAdjoint": _Backsolve,
    }
    if sensealg.name not in kinds:
        raise EngineError(
            f"{sensealg.name} belongs to the julia engine; on sundials use GaussAdjoint(), "
            "InterpolatingAdjoint(), QuadratureAdjoint(), BacksolveAdjoint() or "
            "ForwardSensitivity()."
        )
    return kinds[sensealg.name](problem, options, sensealg)


class _Stepping:
    """What they share: the breakpoints, and one CVODE solve between two of them."""

    def __init__(
        self, problem: FlatProblem, options: SolveOptions, sensealg: SensitivityAlgorithm
    ) -> None:
        self.problem = problem
        self.sensealg = sensealg
        functions, p, c = problem.functions, problem.p, problem.c
        self.n, self.n_p = len(problem.u0), len(p)
        self.vjp_u = functions.bind("vjp:u", p, c)
        self.vjp_p = functions.bind("vjp:p", p, c)
        self.value = functions.bind("value", p, c)
        self.rtol = float(sensealg.reltol or options.reltol)
        atol = options.abstol if sensealg.abstol is None else sensealg.abstol
        self.atol = float(np.min(atol))
        self.maxiters = options.maxiters

    def __call__(
        self, segment: Segment, mu_end: Array, times: Array, cotangents: Array, grad_p: Array
    ) -> Array:
        a, b = float(segment.t[0]), float(segment.t[-1])
        mu = mu_end.copy()
        here = b
        groups: list[tuple[float, Array]] = []
        for t, cot in zip(times[::-1], cotangents[::-1], strict=True):
            if groups and groups[-1][0] == t:
                groups[-1] = (float(t), groups[-1][1] + cot)
            else:
                groups.append((float(t), cot))
        for t, cot in groups:
            if t != here and mu.any():
                mu = self.between(segment, here, t, mu, grad_p)
            here = t
            mu = mu + cot
        if here != a and mu.any():
            mu = self.between(segment, here, a, mu, grad_p)
        return mu

    def between(self, segment: Segment, b: float, a: float, mu: Array, grad_p: Array) -> Array:
        raise NotImplementedError

    def run(
        self,
        value: Callable[..., None],
        jvp: Callable[..., None] | None,
        y: Array,
        b: float,
        a: float,
        scale: float,
    ) -> Any:
        """Integrate y from b to a; absolute tolerance relative to ``scale``."""
        # Cotangents carry the loss's units, so their absolute tolerance follows their size.
        tol = Tolerances(self.rtol, max(self.rtol * scale * 1e-2, 1e-300))
        linear = Linear("gmres", krylov_dim=min(len(y), 20))
        out = integrate(
            lambda: CvodeStepper("BDF", value, None, jvp, linear, tol, None, Counts()),
            b, a, y, None, np.empty(0), None, self.maxiters, lambda: 6,
        )  # fmt: skip
        if out.retcode != "Success":
            raise AdjointFailed(
                f"The adjoint of {self.sensealg.name} stopped at t = {out.segments[-1].t[-1]:g} "
                f"with retcode {out.retcode}: use GaussAdjoint(), or tighter tolerances."
            )
        return out.segments

    def state_at(self, segment: Segment) -> Callable[[float], Array]:
        interpolant, at = segment.interpolant, np.empty(1)

        def u(t: float) -> Array:
            at[0] = t
            return interpolant(at)[0]

        return u


class _Quadrature(_Stepping):
    def between(self, segment: Segment, b: float, a: float, mu: Array, grad_p: Array) -> Array:
        u = self.state_at(segment)
        vjp = self.vjp_u

        def value(y: Array, t: float, out: Array) -> None:
            vjp(y, u(t), t, out)
            np.negative(out, out)

        def jvp(v: Array, y: Array, t: float, out: Array) -> None:
            value(v, t, out)

        pieces = self.run(value, jvp, mu, b, a, float(np.abs(mu).max()))
        if self.n_p:
            for piece in pieces:
                mesh = np.unique(np.concatenate([piece.t, self._inside(segment, piece.t)]))
                mesh = mesh if piece.t[-1] > piece.t[0] else mesh[::-1]
                grad_p -= self._integral(segment, piece.interpolant, mesh)
        return pieces[-1].u[-1]

    def _inside(self, segment: Segment, t: Array) -> Array:
        low, high = min(t[0], t[-1]), max(t[0], t[-1])
        return segment.t[(segment.t > low) & (segment.t < high)]

    def _integral(self, segment: Segment, mu: Interpolant, mesh: Array) -> Array:
        total = self._rule(segment, mu, mesh)
        for _ in range(8):
            mesh = np.sort(np.concatenate([mesh, 0.5 * (mesh[1:] + mesh[:-1])]))
            mesh = mesh if mu.t[-1] > mu.t[0] else mesh[::-1]
            finer = self._rule(segment, mu, mesh)
            done = np.abs(finer - total).max() <= self.rtol * max(np.abs(finer).max(), 1e-300)
            total = finer
            if done:
                break
        return total

    def _rule(self, segment: Segment, mu: Interpolant, mesh: Array) -> Array:
        h = np.diff(mesh)
        t = (mesh[:-1, None] + 0.5 * h[:, None] * (1.0 + _GAUSS_NODES)).reshape(-1)
        w = (0.5 * h[:, None] * _GAUSS_WEIGHTS).reshape(-1)
        functions, p, c = self.problem.functions, self.problem.p, self.problem.c
        pull = functions.bind_batched("vjp:p", p, c, reduce=True)
        total = np.zeros(self.n_p)
        size = max(1, _BATCH // max(self.n, 1))
        for k in range(0, len(t), size):
            part = slice(k, k + size)
            total += pull(w[part, None] * mu(t[part]), segment.interpolant(t[part]), t[part])
        return total


class _Interpolating(_Stepping):
    def between(self, segment: Segment, b: float, a: float, mu: Array, grad_p: Array) -> Array:
        n, u = self.n, self.state_at(segment)
        vjp_u, vjp_p = self.vjp_u, self.vjp_p

        def value(y: Array, t: float, out: Array) -> None:
            state, w = u(t), y[:n]
            vjp_u(w, state, t, out[:n])
            vjp_p(w, state, t, out[n:])
            np.negative(out, out)

        def jvp(v: Array, y: Array, t: float, out: Array) -> None:
            value(v, t, out)

        y = np.concatenate([mu, np.zeros(self.n_p)])
        end = self.run(value, jvp, y, b, a, float(np.abs(mu).max()))[-1].u[-1]
        grad_p += end[n:]
        return end[:n]


class _Backsolve(_Stepping):
    def between(self, segment: Segment, b: float, a: float, mu: Array, grad_p: Array) -> Array:
        n = self.n
        value_f, vjp_u, vjp_p = self.value, self.vjp_u, self.vjp_p

        def value(y: Array, t: float, out: Array) -> None:
            state, w = y[:n], y[n : 2 * n]
            value_f(state, t, out[:n])
            vjp_u(w, state, t, out[n : 2 * n])
            vjp_p(w, state, t, out[2 * n :])
            np.negative(out[n:], out[n:])

        state = segment.interpolant(np.array([b]))[0]
        y = np.concatenate([state, mu, np.zeros(self.n_p)])
        scale = float(max(np.abs(mu).max(), np.abs(state).max()))
        end = self.run(value, None, y, b, a, scale)[-1].u[-1]
        grad_p += end[2 * n :]
        return end[n : 2 * n]
