"""GaussAdjoint of the embedded engine: collocation on the forward mesh, refined where needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FlatProblem
from pysciml.engines.sundials import jacobian
from pysciml.engines.sundials.banded_sweep import sweep_banded
from pysciml.engines.sundials.collocation import (
    EIGENVALUES,
    Nodes,
    Sweep,
    join,
    parts_needed,
    parts_needed_in_turn,
    subdivide,
    sweep_blocks,
    sweep_dense,
)
from pysciml.engines.sundials.driven_mesh import (
    HELD,
    Along,
    along_parameters,
    along_state,
    resolved,
)
from pysciml.engines.sundials.integrate import Segment
from pysciml.engines.sundials.lengths import Integral
from pysciml.engines.sundials.long_intervals import LongIntervals
from pysciml.engines.sundials.long_products import LongProducts
from pysciml.engines.sundials.matrix_free import TooStiff, sweep_matrix_free
from pysciml.engines.sundials.rates import Rates
from pysciml.engines.sundials.resolution import DEEPEST, Resolution
from pysciml.engines.sundials.sparse_sweep import sweep_sparse

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Up to this size a dense Jacobian is formed at once; beyond it, only where the problem is stiff.
_DIRECT = 32


class CollocationAdjoint:
    """See :mod:`pysciml.engines.sundials.collocation`; one instance a backward pass.

    rtol
        The gradient's own error is kept near it, by cutting intervals where
        :meth:`_parts_needed` says so.
    """

    def __init__(self, problem: FlatProblem, rtol: float, rates: Rates) -> None:
        self.problem = problem
        self.rates = rates
        self.rtol = rtol
        functions, p, c = problem.functions, problem.p, problem.c
        self._dae = problem.kind == "dae"
        self._mass = problem.mass_matrix
        self._plan = jacobian.plan(functions)
        self._iterate = False
        plain = problem.kind == "ode" and self._mass is None
        self._sparse = plain and self._plan.kind in ("banded", "sparse")
        if not self._dae and self._mass is None:
            if self._plan.kind == "none" or self._plan.kind == "dense" and self._plan.n > _DIRECT:
                self._iterate = True
        if self._dae:
            self._jac_du = functions.bind_batched("jac:du", p, c)
        self._pull = functions.bind_batched("vjp:p", p, c, reduce=True) if len(p) else None
        #: nodes, stages, u and du at the nodes, of which the parameters' gradient is made
        self._pieces: list[tuple[Nodes, Array, Array, Array | None]] = []

    @cached_property
    def _jac(self) -> Callable[..., Array]:
        """The Jacobian in the plan's form; dense on a DAE and beside a mass matrix.

        Made when first asked for: of a large state, that takes longer than a solve.
        """
        functions, p, c = self.problem.functions, self.problem.p, self.problem.c
        if self._dae or self._mass is not None:
            return functions.bind_batched("jac:u", p, c)
        return jacobian.batched(functions, p, c)

    @cached_property
    def _pull_u(self) -> Callable[..., Array]:
        return self.problem.functions.bind_batched("vjp:u", self.problem.p, self.problem.c)

    @cached_property
    def _pull_each(self) -> Callable[..., Array]:
        return self.problem.functions.bind_batched("vjp:p", self.problem.p, self.problem.c)

    @cached_property
    def _along(self) -> Along | None:
        return along_parameters(self.problem, self._plan.blocks)

    @cached_property
    def _along_little(self) -> Along | None:
        return along_parameters(self.problem, self._plan.blocks, little=True)

    @cached_property
    def _long(self) -> LongIntervals | LongProducts | None:
        """The way over long intervals, where there is one. Stiff stretches never ask for it."""
        kernels, made = self.problem.functions.kernels, self._plan
        if self._dae or self._mass is not None:
            return None
        if kernels is not None and kernels.piecewise("t"):
            return None  # the solver stops where the pieces meet: its own mesh knows them
        along = self._along
        push = None if along is None else lambda u, t: along(u, t, None)
        if not self._iterate and made.kind in ("dense", "blocks"):
            return LongIntervals(self._jac, push, made.blocks, made.n, self.rtol)
        # a wide band or a large pattern costs more than products
        return LongProducts(self._pull_u, push, made.n, self.rtol)

    def __call__(
        self, segment: Segment, mu_end: Array, times: Array, cotangents: Array, grad_p: Array
    ) -> Array:
        """See :class:`pysciml.engines.sundials.adjoint.SegmentAdjoint`."""
        jumps = self._jumps(segment, mu_end, times, cotangents, grad_p)
        if len(segment.t) == 1:
            return sum((c for _, c in jumps), np.zeros_like(mu_end))
        if segment.nonstiff and self._long is not None:
            found = self._over_long(self._long, segment, jumps, grad_p)
            if found is not None:
                return found
        self._pieces.clear()
        mesh = join(segment.t, times)
        of_state = along_state(self.problem, segment.u, self._plan.blocks)
        mesh = resolved(mesh, segment, (self._along_little, of_state), self.rtol)
        mu, _ = self._through(segment, mesh, jumps, 0)
        if self._pull is not None:
            for nodes, stages, u, du in self._pieces:
                weighted = (nodes.weights[:, :, None] * stages).reshape(-1, u.shape[-1])
                grad_p += self._vjp(weighted, u, du, nodes)
        return mu

    def _over_long(
        self,
        long: LongIntervals | LongProducts,
        segment: Segment,
        jumps: list[tuple[float, Array]],
        grad_p: Array,
    ) -> Array | None:
        """mu at the beginning, by intervals of many steps; None where these will not do."""
        few = len(segment.t) * len(grad_p) <= HELD
        if isinstance(long, LongIntervals) and self._along is not None and few:
            integral = Integral(self._pull_each, np.abs(self.problem.p), self.rtol)
            found = long(segment, jumps, integral)
            if found is None:
                return None
            grad_p += integral.total
            return found[0]
        found = long(segment, jumps)
        if found is None:
            return None
        mu, weighted, u, t = found
        if self._pull is not None:
            grad_p += self._pull(weighted, u, t)
        return mu

    def _through(
        self, segment: Segment, mesh: Array, jumps: list[tuple[float, Array]], depth: int
    ) -> tuple[Array, float]:
        """mu at the beginning of a mesh, and what its :class:`Resolution` has seen.

        The stages go into the pieces.
        """
        nodes = Nodes.of(mesh)
        u, du = self._states(segment, nodes.t.reshape(-1))

        def refine(k: int, parts: int, mu: Array) -> tuple[Array, float]:
            inner = np.linspace(nodes.mesh[k], nodes.mesh[k + 1], parts + 1)
            return self._through(segment, inner, [(float(inner[-1]), mu)], depth + 1)

        follower = Resolution(
            self.rtol, refine if depth < DEEPEST else None, None if depth else nodes.h
        )
        sweep = None
        if self._iterate:
            sweep = self._by_iteration(nodes, u, _place(mesh, jumps), follower, depth)
        elif self._sparse:
            sweep = self._by_sparse(nodes, u, _place(mesh, jumps), follower)
        if sweep is None:
            jac, mass = self._matrices(nodes.t.reshape(-1), u, du)
            fresh = None
            for _ in range(3 if depth == 0 else 0):
                parts = self._parts_needed(nodes, jac, mass, fresh)
                if parts is None:
                    break
                mesh = subdivide(mesh, parts)
                nodes = Nodes.of(mesh)
                # only what is new is computed
                fresh = np.repeat(parts > 1, parts)
                new = np.repeat(fresh, 3)
                t = nodes.t.reshape(-1)[new]
                u_new, du_new = self._states(segment, t)
                jac_new, mass_new = self._matrices(t, u_new, du_new)
                u, jac = _renewed(u, u_new, parts, new), _renewed(jac, jac_new, parts, new)
                if du is not None and du_new is not None:
                    du = _renewed(du, du_new, parts, new)
                if mass is not None and mass_new is not None:
                    mass = _renewed(mass, mass_new, parts, new)
            sweep = self._sweep(nodes, jac, mass, _place(mesh, jumps), follower)
        if self._pull is not None:
            self._pieces.append((nodes, sweep.stages, u, du))
        return sweep.mu_start, follower.fastest

    # -- parts -----------------------------------------------------------------

    def _states(self, segment: Segment, t: Array) -> tuple[Array, Array | None]:
        return segment.interpolant(t), segment.interpolant(t, 1) if self._dae else None

    def _matrices(self, t: Array, u: Array, du: Array | None) -> tuple[Array, Array | None]:
        """Jacobians at the nodes in the plan's form (K, 3, ...), and a DAE's mass matrices."""
        if not self._dae:
            jac = self._jac(u, t)
            return jac.reshape(-1, 3, *jac.shape[1:]), None
        assert du is not None
        both = -self._jac(du, u, t), self._jac_du(du, u, t)
        n = u.shape[-1]
        return both[0].reshape(-1, 3, n, n), both[1].reshape(-1, 3, n, n)

    def _sweep(
        self,
        nodes: Nodes,
        jac: Array,
        mass: Array | None,
        jumps: dict[int, Array],
        follower: Resolution,
    ) -> Sweep:
        made = self._plan
        mass = self._mass if mass is None else mass
        if mass is None and made.kind == "blocks" and made.blocks is not None:
            return sweep_blocks(nodes, jac, made.blocks, jumps)
        return sweep_dense(nodes, jac, jumps, mass, None if made.n <= EIGENVALUES else follower)

    def _by_iteration(
        self, nodes: Nodes, u: Array, jumps: dict[int, Array], follower: Resolution, depth: int
    ) -> Sweep | None:
        """The sweep without Jacobians; None where the problem is stiff and they can be formed."""
        formable = self._plan.kind != "none"
        states = u.reshape(len(nodes.h), 3, -1)
        try:
            return sweep_matrix_free(
                nodes, self._pull_u, states, jumps, self.rtol, follower, formable
            )
        except TooStiff:
            if depth > 0:
                raise
            self._iterate = False
            self._pieces.clear()
            return None

    def _by_sparse(
        self, nodes: Nodes, u: Array, jumps: dict[int, Array], follower: Resolution
    ) -> Sweep:
        made = self._plan
        assert made.rows is not None and made.cols is not None
        entries = len(made.rows)
        held = max(HELD // (3 * entries), 1)
        known: tuple[int, Array] = (-1, np.empty(0))

        def values(k: int) -> Array:
            nonlocal known
            first = k - k % held  # some intervals at a time
            if known[0] != first:
                at = slice(3 * first, 3 * (first + held))
                known = first, self._jac(u[at], nodes.t.reshape(-1)[at])
            own: Array = known[1].reshape(-1, 3, entries)[k - first]
            return own

        if made.band is not None:
            return sweep_banded(nodes, values, made.band, jumps, follower)
        return sweep_sparse(nodes, values, made.rows, made.cols, made.n, jumps, self.rtol, follower)

    def _vjp(self, w: Array, u: Array, du: Array | None, nodes: Nodes) -> Array:
        assert self._pull is not None
        t = nodes.t.reshape(-1)
        if self._dae:
            return -self._pull(w, du, u, t)
        total: Array = self._pull(w, u, t)
        return total

    def _parts_needed(
        self, nodes: Nodes, jac: Array, mass: Array | None, new: Bools | None
    ) -> npt.NDArray[np.int64] | None:
        """See :func:`parts_needed`."""
        here = self._mass if mass is None else mass[:, 1]
        if here is None:
            return parts_needed(nodes.h, jac[:, 1], self.rtol, new)
        return parts_needed_in_turn(nodes.h, jac[:, 1], here, self.rtol, new)

    def _jumps(
        self, segment: Segment, mu_end: Array, times: Array, cotangents: Array, grad_p: Array
    ) -> list[tuple[float, Array]]:
        """What is added to mu, with the algebraic part of each cotangent turned into its effect.

        On a DAE the cotangent of an algebraic variable acts at once: with
        ``c = M^T nu + J^T W eta`` (W spans the left null space of M) mu jumps by ``M^T nu`` and
        the parameters get ``-f_p^T W eta``.
        """
        jumps = [(float(t), c) for t, c in zip(times, cotangents, strict=True)]
        if mu_end.any():
            jumps.append((float(segment.t[-1]), mu_end))
        if not (self._dae or self._mass is not None):
            return jumps
        return [(t, self._consistent(segment, t, c, grad_p)) for t, c in jumps]

    def _consistent(self, segment: Segment, t: float, cotangent: Array, grad_p: Array) -> Array:
        if self.rates.explicit:
            return cotangent
        at = np.array([t])
        u = segment.interpolant(at)
        du = self.rates(u[0], t, segment.interpolant(at, 1)[0]) if self._dae else None
        mu, w = self.rates.linearised(u[0], t, du).cotangent(cotangent)
        if self._pull is not None and w.any():
            if du is None:
                grad_p -= self._pull(w[None], u, at)
            else:
                grad_p += self._pull(w[None], du[None], u, at)
        return mu


def _renewed(old: Array, fresh: Array, parts: npt.NDArray[np.int64], new: Bools) -> Array:
    """What is known at the nodes, in their order, after intervals were cut into ``parts``.

    ``new`` (nodes,) says which nodes ``fresh`` is of. All by nodes, or by intervals.
    """
    kept = parts == 1
    if len(old) == len(parts):
        new = new[::3]
    else:
        kept = np.repeat(kept, 3)
    out = np.empty((len(new), *old.shape[1:]))
    out[new], out[~new] = fresh, old[kept]
    return out


def _place(mesh: Array, jumps: list[tuple[float, Array]]) -> dict[int, Array]:
    sign = 1.0 if mesh[-1] > mesh[0] else -1.0
    out: dict[int, Array] = {}
    times = np.array([t for t, _ in jumps])
    for k, (_, c) in zip(np.searchsorted(sign * mesh, sign * times).tolist(), jumps, strict=True):
        out[k] = out[k] + c if k in out else c
    return out
