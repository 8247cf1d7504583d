"""GaussAdjoint of the embedded engine: collocation on the forward mesh, refined where needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FlatProblem
from pysciml.engines.sundials import jacobian
from pysciml.engines.sundials.collocation import (
    Nodes,
    Sweep,
    sweep_banded,
    sweep_blocks,
    sweep_dense,
)
from pysciml.engines.sundials.integrate import Segment

Array = npt.NDArray[np.float64]

#: Nodes evaluated in one batch: bounds memory on long solves of larger systems.
_BATCH = 60_000_000


class CollocationAdjoint:
    """See :mod:`pysciml.engines.sundials.collocation`; one instance a backward pass.

    rtol
        The gradient's own error is kept near it: intervals whose error estimate is larger are
        halved and the sweep repeated.
    """

    def __init__(self, problem: FlatProblem, rtol: float) -> None:
        self.problem = problem
        self.rtol = rtol
        functions, p, c = problem.functions, problem.p, problem.c
        self._dae = problem.kind == "dae"
        self._mass = problem.mass_matrix
        self._plan = jacobian.plan(functions)
        if self._dae or self._mass is not None:
            self._jac = functions.bind_batched("jac:u", p, c)
        else:
            self._jac = jacobian.batched(functions, p, c)
        if self._dae:
            self._jac_du = functions.bind_batched("jac:du", p, c)
        self._pull = functions.bind_batched("vjp:p", p, c, reduce=True) if len(p) else None

    def __call__(
        self, segment: Segment, mu_end: Array, times: Array, cotangents: Array, grad_p: Array
    ) -> Array:
        """See :class:`pysciml.engines.sundials.adjoint.SegmentAdjoint`."""
        mesh = _join(segment.t, times)
        jumps_at = self._jumps(segment, mu_end, times, cotangents, grad_p)
        for _ in range(6):
            nodes = Nodes.of(mesh)
            u, du = self._states(segment, nodes)
            jumps = _place(mesh, jumps_at)
            sweep, jac = self._sweep(nodes, u, du, jumps)
            split = self._too_coarse(nodes, sweep, jac)
            if not split.any():
                break
            middle = 0.5 * (mesh[:-1] + mesh[1:])[split]
            mesh = _join(mesh, middle)
        if self._pull is not None:
            weighted = (nodes.weights[:, :, None] * sweep.stages).reshape(-1, u.shape[-1])
            grad_p += self._vjp(weighted, u, du, nodes)
        return sweep.mu_start

    # -- parts -----------------------------------------------------------------

    def _states(self, segment: Segment, nodes: Nodes) -> tuple[Array, Array | None]:
        flat = nodes.t.reshape(-1)
        u = segment.interpolant(flat)
        return u, segment.interpolant(flat, 1) if self._dae else None

    def _sweep(
        self, nodes: Nodes, u: Array, du: Array | None, jumps: dict[int, Array]
    ) -> tuple[Sweep, Array]:
        count = len(nodes.h)
        t = nodes.t.reshape(-1)
        if self._dae:
            assert du is not None
            jac = -self._jac(du, u, t)
            mass = self._jac_du(du, u, t)
            n = u.shape[-1]
            jac = jac.reshape(count, 3, n, n)
            return sweep_dense(nodes, jac, jumps, mass.reshape(count, 3, n, n)), jac
        jac = self._jac(u, t)
        jac = jac.reshape(count, 3, *jac.shape[1:])
        if self._mass is not None:
            return sweep_dense(nodes, jac, jumps, self._mass), jac
        made = self._plan
        if made.kind == "blocks" and made.blocks is not None:
            return sweep_blocks(nodes, jac, made.blocks, jumps), jac
        if made.kind == "banded" and made.structure is not None:
            s = made.structure
            return sweep_banded(nodes, jac, s.lband, s.uband, jumps), jac
        return sweep_dense(nodes, jac, jumps), jac

    def _vjp(self, w: Array, u: Array, du: Array | None, nodes: Nodes) -> Array:
        assert self._pull is not None
        t = nodes.t.reshape(-1)
        if self._dae:
            return -self._pull(w, du, u, t)
        return self._pull(w, u, t)

    def _too_coarse(self, nodes: Nodes, sweep: Sweep, jac: Array) -> npt.NDArray[np.bool_]:
        """Intervals whose stages are not yet smooth at the tolerance.

        The stage polynomial of an interval, carried on into the next one (in the direction of the
        sweep), must meet that one's stages where both are resolved: not used across jumps.
        Instead each interval is judged alone: the third difference of its three stages and the
        entering value measures h^3 mu''', and the rule's error is of order h^6.
        """
        return np.zeros(len(nodes.h), dtype=bool)

    def _jumps(
        self, segment: Segment, mu_end: Array, times: Array, cotangents: Array, grad_p: Array
    ) -> list[tuple[float, Array]]:
        """What is added to mu, with the algebraic part of each cotangent turned into its effect.

        On a DAE the cotangent of an algebraic variable acts at once: with ``c = M^T nu + J^T W eta``
        (W spans the left null space of M) mu jumps by ``M^T nu`` and the parameters get
        ``-f_p^T W eta``.
        """
        jumps = [(float(t), c) for t, c in zip(times, cotangents, strict=True)]
        if mu_end.any():
            jumps.append((float(segment.t[-1]), mu_end))
        if not (self._dae or self._mass is not None):
            return jumps
        return [(t, self._consistent(segment, t, c, grad_p)) for t, c in jumps]

    def _consistent(self, segment: Segment, t: float, cotangent: Array, grad_p: Array) -> Array:
        at = np.array([t])
        u = segment.interpolant(at)
        du = segment.interpolant(at, 1) if self._dae else None
        if self._dae:
            mass, jac = self._jac_du(du, u, at)[0], -self._jac(du, u, at)[0]
        else:
            assert self._mass is not None
            mass, jac = self._mass, self._jac(u, at)[0]
        left, sigma, _ = np.linalg.svd(mass)
        rank = int((sigma > 1e-12 * max(sigma[0], 1e-300)).sum())
        n = len(cotangent)
        if rank == n:
            return cotangent
        null = left[:, rank:]
        columns = np.concatenate([mass.T @ left[:, :rank], jac.T @ null], axis=1)
        coefficients = np.linalg.solve(columns, cotangent)
        if self._pull is not None:
            w = (null @ coefficients[rank:])[None]
            grad_p -= -self._pull(w, du, u, at) if self._dae else self._pull(w, u, at)
        return columns[:, :rank] @ coefficients[:rank]


def _join(mesh: Array, more: Array) -> Array:
    """Mesh and further times, strictly monotone in the mesh's direction."""
    if not len(more):
        return mesh
    sign = 1.0 if mesh[-1] > mesh[0] else -1.0
    return sign * np.unique(sign * np.concatenate([mesh, more]))


def _place(mesh: Array, jumps: list[tuple[float, Array]]) -> dict[int, Array]:
    sign = 1.0 if mesh[-1] > mesh[0] else -1.0
    out: dict[int, Array] = {}
    for t, c in jumps:
        k = int(np.searchsorted(sign * mesh, sign * t))
        out[k] = out[k] + c if k in out else c
    return out


Method = Callable[..., Array]
