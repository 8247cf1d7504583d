"""The adjoint equation by collocation on a mesh: 3-stage Radau IIA, all steps at once.

With ``mu = M^T lambda`` the adjoint of ``M u' = f(u, p, t)`` is, backwards in time,

    mu(a) = mu(b) + integral_a^b J(t)^T lambda(t) dt,   dL/dp = integral lambda^T f_p dt.

On each mesh interval ``lambda`` is represented at the nodes of the Radau IIA rule taken backwards
from ``b`` (Hairer and Wanner, "Solving Ordinary Differential Equations II", section IV.5: order 5,
stiffly accurate, L-stable). The state at the nodes comes from the forward solution, so all
Jacobians are one batched call and all stage systems one batched solve; then a short sweep of small
matrix-vector products carries ``mu`` from the last interval to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigvals

from pysciml.engines.sundials.damping import parts_for_damping
from pysciml.errors import EngineError

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_S6 = np.sqrt(6.0)
#: Nodes, matrix and weights of the 3-stage Radau IIA rule.
C = np.array([(4.0 - _S6) / 10.0, (4.0 + _S6) / 10.0, 1.0])
A = np.array(
    [
        [(88 - 7 * _S6) / 360, (296 - 169 * _S6) / 1800, (-2 + 3 * _S6) / 225],
        [(296 + 169 * _S6) / 1800, (88 + 7 * _S6) / 360, (-2 - 3 * _S6) / 225],
        [(16 - _S6) / 36, (16 + _S6) / 36, 1 / 9],
    ]
)
B = A[2]

#: Largest matrix whose eigenvalues are looked at, and most intervals of a refined mesh.
EIGENVALUES, _LONGEST = 64, 200_000
#: An interval is cut where its error is this many times the tolerance, and then down to it.
SLACK = 30.0
CUT = SLACK ** (1.0 / 6.0)


@dataclass
class Nodes:
    """Collocation nodes of a mesh: times (K, 3) and step lengths (K,), signed."""

    mesh: Array
    h: Array
    t: Array

    @staticmethod
    def of(mesh: Array) -> Nodes:
        """``mesh`` (K + 1,) in the direction of the forward integration."""
        h = np.diff(mesh)
        t = mesh[1:, None] - C[None, :] * h[:, None]
        t[:, 2] = mesh[:-1]
        return Nodes(mesh, h, t)

    @property
    def weights(self) -> Array:
        """Quadrature weights (K, 3)."""
        return self.h[:, None] * B[None, :]


@dataclass
class Sweep:
    """Result of a sweep: mu at the mesh points' left sides, and lambda at the nodes (K, 3, n)."""

    mu_start: Array
    stages: Array


class Follower(Protocol):
    """Has intervals cut that do not resolve the adjoint: see :mod:`.resolution`."""

    def before(self, k: int, h: float, mu: Array) -> Array | None:
        """``mu`` taken through an interval that is known to need cutting, else None."""

    def jump(self) -> None:
        """Something was added to mu."""

    def after(
        self, k: int, h: float, mu: Array, stages: Array, multiply: Callable[[Array], Array]
    ) -> Array | None:
        """``mu`` taken through an interval that must be cut, None where the ``stages`` will do."""

    def failed(self, k: int, h: float, mu: Array) -> Array | None:
        """``mu`` taken through an interval whose stages were not found, None where it cannot be."""


class StagesFailed(EngineError):
    """The iteration for an interval's stages did not converge."""


def follow(
    nodes: Nodes,
    jumps: dict[int, Array],
    stages: Array,
    step: Callable[[int, Array], Array],
    multiply: Callable[[int, Array], Array],
    follower: Follower,
) -> Sweep:
    """As :func:`carry`, with intervals cut by ``follower``; their ``stages`` become zero.

    ``multiply(k, v)`` is by the transposed Jacobian in interval k.
    """

    def followed(k: int, mu: Array) -> Array:
        if k + 1 in jumps:
            follower.jump()
        h = float(nodes.h[k])
        out = follower.before(k, h, mu)
        if out is None:
            try:
                new = step(k, mu)
            except StagesFailed:
                out = follower.failed(k, h, mu)
                if out is None:
                    raise
            else:
                out = follower.after(k, h, mu, stages[k], lambda v: multiply(k, v))
                if out is None:
                    return new
        stages[k] = 0.0
        return out

    return Sweep(carry(nodes, jumps, stages.shape[2], followed)[0], stages)


def carry(
    nodes: Nodes, jumps: dict[int, Array], n: int, step: Callable[[int, Array], Array]
) -> tuple[Array, Array]:
    """Take ``mu`` backwards, adding the jumps: mu at the start, and mu entering each interval."""
    count = len(nodes.h)
    entering = np.empty((count, n))
    mu = np.zeros(n)
    for k in range(count - 1, -1, -1):
        jump = jumps.get(k + 1)
        if jump is not None:
            mu = mu + jump
        entering[k] = mu
        mu = step(k, mu)
    if 0 in jumps:
        mu = mu + jumps[0]
    return mu, entering


def sweep_dense(
    nodes: Nodes,
    jac: Array,
    jumps: dict[int, Array],
    mass: Array | None = None,
    follower: Follower | None = None,
) -> Sweep:
    """Dense Jacobians ``jac`` (K, 3, n, n); ``mass`` None, (n, n) or (K, 3, n, n).

    ``jumps`` maps a mesh index to what the loss adds to mu there.
    """
    count, _, n, _ = jac.shape
    # Row i of the stage system: M_i^T L_i - h sum_j A_ij J_j^T L_j = mu.
    system = _coupled(nodes.h, jac[:, :, None], mass is None).reshape(count, 3 * n, 3 * n)
    if mass is not None:
        parts = system.reshape(count, 3, n, 3, n)
        for i in range(3):
            parts[:, i, :, i, :] += mass[:, i].transpose(0, 2, 1) if mass.ndim == 4 else mass.T
    if n <= 12:
        # The solution for every mu at once: small matrices, then the sweep is mat-vecs only.
        rhs = np.tile(np.eye(n), (3, 1))[None].repeat(count, axis=0)
        solution = np.linalg.solve(system, rhs)
        last = solution[:, 2 * n :]
        through = last if mass is None else _times_mass(mass, last)
        maps = [m.dot for m in through]
        mu, entering = carry(nodes, jumps, n, lambda k, m: maps[k](m))
        stages = (solution @ entering[:, :, None]).reshape(count, 3, n)
        return Sweep(mu, stages)
    stages = np.empty((count, 3, n))

    def step(k: int, mu: Array) -> Array:
        stages[k] = np.linalg.solve(system[k], np.tile(mu, 3)).reshape(3, n)
        last = stages[k, 2]
        if mass is None:
            return last
        return (mass[k, 2] if mass.ndim == 4 else mass).T @ last

    if follower is None or mass is not None:
        return Sweep(carry(nodes, jumps, n, step)[0], stages)
    return follow(nodes, jumps, stages, step, lambda k, v: jac[k, 1].T @ v, follower)


def _times_mass(mass: Array, last: npt.NDArray[np.floating[Any]]) -> Array:
    if mass.ndim == 4:
        return mass[:, 2].transpose(0, 2, 1) @ last
    return mass.T @ last


def sweep_blocks(
    nodes: Nodes, jac: Array, blocks: npt.NDArray[np.int64], jumps: dict[int, Array]
) -> Sweep:
    """A Jacobian that falls into ``nb`` independent blocks of one size m.

    ``jac`` (K, 3, nb, m, m); ``blocks`` (nb, m): the state's entries in each block.
    """
    count, _, nb, m, _ = jac.shape
    n = nb * m
    system = _coupled(nodes.h, jac, True)
    rhs = np.tile(np.eye(m), (3, 1))[None, None]
    solution = np.linalg.solve(system, np.broadcast_to(rhs, (count, nb, 3 * m, m)))
    last = np.ascontiguousarray(solution[:, :, 2 * m :])
    inside = {k: v[blocks] for k, v in jumps.items()}
    mu = np.zeros((nb, m))
    entering = np.empty((count, nb, m))
    for k in range(count - 1, -1, -1):
        if k + 1 in inside:
            mu = mu + inside[k + 1]
        entering[k] = mu
        mu = (last[k] @ mu[:, :, None])[:, :, 0]
    if 0 in inside:
        mu = mu + inside[0]
    by_block = (solution @ entering[..., None]).reshape(count, nb, 3, m)
    stages = np.empty((count, 3, n))
    stages[:, :, blocks] = by_block.transpose(0, 2, 1, 3)
    start = np.empty(n)
    start[blocks] = mu
    return Sweep(start, stages)


def _coupled(h: Array, jac: Array, with_identity: bool) -> Array:
    """``I - h_k A_ij J_j^T`` (K, nb, 3 m, 3 m) of blocks ``jac`` (K, 3, nb, m, m).

    A product into memory of the system's own order: einsum takes twice as long.
    """
    count, _, nb, m, _ = jac.shape
    coupling = (-h[:, None, None] * A)[:, None, :, None, :, None]
    system: Array = np.empty((count, nb, 3, m, 3, m))
    np.multiply(coupling, jac.transpose(0, 2, 4, 1, 3)[:, :, None], out=system)
    if with_identity:
        system.reshape(count, nb, -1)[:, :, :: 3 * m + 1] += 1.0
    return system.reshape(count, nb, 3 * m, 3 * m)


# -- meshes ------------------------------------------------------------------


def parts_needed(
    h: Array, jac: Array, rtol: float, new: Bools | None = None
) -> npt.NDArray[np.int64] | None:
    """How many parts each interval of length h must be cut into; None where the mesh will do.

    The forward mesh resolves the modes that the forward solution contains. A cotangent or a
    sensitivity can excite others: those that decay are damped by the rule, mostly as they should be
    (see :mod:`.damping`), but a mode that oscillates or grows must be followed. The rule's error on
    ``z = h * eigenvalue`` is ``|R(z) - exp(z)|``, about ``|z|^6 / 7200`` (its error constant), so
    ``|z|`` is kept below :func:`resolved` for such modes. ``jac`` (K, ..., m, m): the Jacobian
    inside each interval, or its diagonal blocks; large ones are not looked at, see
    :mod:`.resolution`. ``new`` (K,): the intervals that have come from cutting, the others will do;
    modes that decay are seen to by then. None where the mesh is looked at first.
    """
    if jac.shape[-1] > EIGENVALUES:
        return None
    reach = resolved(rtol)
    size = np.abs(h) * np.sqrt(
        np.einsum("...ij,...ij->...", jac, jac).reshape(len(h), -1).max(axis=1)
    )
    suspects = np.nonzero((size > reach) & np.isfinite(size) & (True if new is None else new))[0]
    if not len(suspects):
        return None
    step = h[suspects].reshape((-1,) + (1,) * (jac.ndim - 2))
    z = (step * np.linalg.eigvals(jac[suspects]).astype(complex)).reshape(len(suspects), -1)
    return _parts(suspects, z, h, rtol, new is None)


def parts_needed_in_turn(
    h: Array, jac: Array, mass: Array | None, rtol: float, new: Bools | None = None
) -> npt.NDArray[np.int64] | None:
    """As :func:`parts_needed`, for ``jac`` (K, n, n) of any size; ``mass`` (n, n), (K, n, n), None.

    The eigenvalues, with a mass matrix the pencil's, are found anew where the matrices have changed
    by a fifth.
    """
    count, n, _ = jac.shape
    both = jac
    if mass is not None:
        both = np.concatenate([jac, np.broadcast_to(mass, jac.shape)], axis=1)
    both = both.reshape(count, -1)
    size = np.linalg.norm(both, axis=1)
    last, z = -1, np.zeros((count, n), dtype=complex)
    values = z[0]
    for k in range(count) if new is None else np.nonzero(new)[0].tolist():
        if last < 0 or not np.linalg.norm(both[k] - both[last]) <= 0.2 * size[k]:
            last = k
            here = mass[k] if mass is not None and mass.ndim == 3 else mass
            with np.errstate(all="ignore"):
                found = eigvals(jac[k], here, check_finite=False)
            # an algebraic part has none: infinite ones, or large by rounding
            values = np.where(np.isfinite(found), found, 0.0)
        z[k] = h[k] * values
    if mass is not None:
        z[~(np.abs(z) < 1e6)] = 0.0
    return _parts(np.arange(count), z, h, rtol, new is None)


def _parts(
    suspects: npt.NDArray[np.int64],
    z: npt.NDArray[np.complex128],
    h: Array,
    rtol: float,
    first: bool,
) -> npt.NDArray[np.int64] | None:
    follow = must_be_followed(z)
    need = np.where(follow, np.abs(z), 0.0).max(axis=1) / resolved(rtol)
    cut = np.ceil(np.minimum(np.where(need > 1.0, CUT * need, 1.0), 4096.0)).astype(np.int64)
    if first:
        damped = parts_for_damping(np.where(follow, 0.0, z), suspects, h, rtol, SLACK)
        cut = np.maximum(cut, damped)
    parts = np.ones(len(h), dtype=np.int64)
    parts[suspects] = cut
    return None if parts.max() == 1 or parts.sum() > _LONGEST else parts


def resolved(rtol: float) -> float:
    """The largest ``|h * eigenvalue|`` at which a mode is resolved."""
    return float((7200.0 * SLACK * rtol) ** (1.0 / 6.0))


def must_be_followed(z: npt.NDArray[np.complex128]) -> npt.NDArray[np.bool_]:
    """Which modes ``h * eigenvalue`` oscillate or grow, and do not decay within the interval."""
    follow = (np.abs(z.imag) > 0.3 * np.abs(z.real)) | (z.real > 0)
    return follow & (z.real > -5.0)


def join(mesh: Array, more: Array) -> Array:
    """Mesh and further times, strictly monotone in the mesh's direction."""
    if not len(more):
        return mesh
    sign = 1.0 if mesh[-1] > mesh[0] else -1.0
    return sign * np.unique(sign * np.concatenate([mesh, more]))


def subdivide(mesh: Array, parts: npt.NDArray[np.int64]) -> Array:
    """Cut interval k of the mesh into ``parts[k]`` equal ones."""
    starts = np.repeat(mesh[:-1], parts)
    steps = np.repeat(np.diff(mesh) / parts, parts)
    first = np.repeat(np.cumsum(parts) - parts, parts)
    inner = starts + (np.arange(len(starts)) - first) * steps
    return np.append(inner, mesh[-1])
