"""Whether a mesh resolves the adjoint: of what is too large for all its eigenvalues to be found.

The forward mesh resolves the modes that the forward solution contains. A cotangent can excite
others: those that decay are damped by the rule as they should be, but a mode that oscillates or
grows must be followed, or the gradient loses it without a word.

Which modes an interval's adjoint holds is asked of the vector itself: its Krylov space with the
transposed Jacobian holds the fast ones first, and the eigenvalues of the projected matrix (Arnoldi,
"The principle of minimized iterations in the solution of the matrix eigenvalue problem", 1951)
stand for them. Each has a share of the vector and an error on the interval, as
:func:`~pysciml.engines.sundials.collocation.parts_needed` explains; where the product counts, the
interval is cut. Near the beginning of the mesh it is cut for modes that decay, too: see
:mod:`.damping`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pysciml.engines.sundials.collocation import CUT, SLACK, A, C, must_be_followed, resolved
from pysciml.engines.sundials.damping import parts_for_damping

Array = npt.NDArray[np.float64]
Multiply = Callable[[Array], Array]
Refine = Callable[[int, int, Array], tuple[Array, float]]

#: Size of the Krylov space, and parts of an interval on which the iteration failed.
_SPACE, _FAILED = 10, 8
#: The space for slow modes, which it holds last.
_LARGE_SPACE = 30
#: Intervals that are not looked into after one that held nothing to be followed.
_TRUSTED = 4
#: Intervals at the beginning of a mesh that are looked into for modes that decay.
_FIRST = 16
#: From stages less the entering value, which are h A times lambda' at the nodes, to the third
#: derivative of lambda times h^3.
_THIRD = np.array([2.0 / np.prod([c - d for d in C if d != c]) for c in C]) @ np.linalg.inv(A)
#: Most parts that one interval is cut into at once, and how often parts are cut again.
_PARTS, DEEPEST = 4096, 4


class Resolution:
    """Follows the adjoint from interval to interval, and has those cut that need it.

    ``refine(k, parts, mu)`` takes ``mu`` back through interval k cut into parts; it also gives the
    ``fastest`` of these. What the interval's stages were before no longer counts then. ``steps``:
    the lengths of the mesh's intervals; None where these are such parts themselves.
    """

    def __init__(self, rtol: float, refine: Refine | None, steps: Array | None = None) -> None:
        self.rtol, self.reach, self.refine, self.steps = rtol, resolved(rtol), refine, steps
        self._look = 1.2 * self.reach / CUT if steps is None else self.reach
        self.fastest = 0.0  # largest |h lambda| at a first look, of all intervals so far
        self._length = np.inf  # of parts that the interval before needed
        self._trusted, self._trusted_length = 0, 0.0  # intervals of which nothing new is feared

    def before(self, k: int, h: float, mu: Array) -> Array | None:
        """``mu`` taken through an interval that is known to need cutting, else None."""
        if self.refine is None or abs(h) <= 1.2 * self._length or not mu.any():
            return None
        return self._cut(k, h, int(np.ceil(abs(h) / self._length)), mu)

    def jump(self) -> None:
        """Something was added to mu."""
        self._trusted = 0

    def after(self, k: int, h: float, mu: Array, stages: Array, multiply: Multiply) -> Array | None:
        """``mu`` taken through an interval that has to be cut, None where the ``stages`` will do.

        ``multiply`` is by the transposed Jacobian in the interval.
        """
        size = float(np.linalg.norm(stages[2]))
        if size == 0.0 or not np.isfinite(size):
            return None
        # the third derivative of the collocation polynomial: the fastest mode that it holds, cubed
        z = (float(np.linalg.norm(_THIRD @ (stages - mu))) / size) ** (1 / 3)
        self.fastest = max(self.fastest, z)
        self._trusted -= 1
        if self.refine is None or not z > self._look:
            self._length = np.inf
            return None
        if self._first(k) is None and self._trusted > 0 and abs(h) <= self._trusted_length:
            return None
        vector = stages[2] / max(size, float(np.linalg.norm(mu)))
        parts = self._parts(k, h, vector, multiply)
        if parts < 2:
            self._trusted, self._trusted_length = _TRUSTED, 1.2 * abs(h)
            return None
        return self._cut(k, h, parts, mu)

    def failed(self, k: int, h: float, mu: Array) -> Array | None:
        """``mu`` taken through an interval whose stages were not found, None where it cannot be."""
        return None if self.refine is None else self._cut(k, h, _FAILED, mu)

    def _cut(self, k: int, h: float, parts: int, mu: Array) -> Array:
        assert self.refine is not None
        parts = min(parts, _PARTS)
        new, fastest = self.refine(k, parts, mu)
        longer = self.reach / (CUT * fastest) if fastest > 0.0 else np.inf
        self._length = abs(h) / parts * min(max(longer, 1.0), 2.0)
        return new

    def _parts(self, k: int, h: float, vector: Array, multiply: Multiply) -> int:
        steps = self._first(k)
        values, shares = _modes(vector, multiply, _SPACE if steps is None else _LARGE_SPACE)
        z = h * values
        error = shares * np.minimum(1.0, np.abs(z) ** 6 / 7200.0)
        follow = must_be_followed(z) & (error > SLACK * self.rtol)
        parts = int(np.ceil(min(CUT * np.where(follow, np.abs(z), 0.0).max() / self.reach, _PARTS)))
        if steps is None:
            return parts
        decaying = np.where(must_be_followed(z), 0.0, z)[None]
        damped = parts_for_damping(decaying, np.array([k]), steps, self.rtol, SLACK, shares[None])
        return max(parts, int(damped[0]))

    def _first(self, k: int) -> Array | None:
        """The mesh's steps where interval k is looked into for modes that decay, else None."""
        return self.steps if k < _FIRST else None


def _modes(
    vector: Array, multiply: Multiply, space: int
) -> tuple[npt.NDArray[np.complex128], Array]:
    """Eigenvalues (m,) for which the vector's Krylov space stands, and their shares of it (m,)."""
    size = float(np.linalg.norm(vector))
    basis = [vector / size]
    m = min(space, len(vector))
    h = np.zeros((m + 1, m))
    for j in range(m):
        new = multiply(basis[j])
        scale = float(np.linalg.norm(new))
        for _ in range(2):  # once more: rounding
            for i, known in enumerate(basis):
                part = float(known @ new)
                h[i, j] += part
                new = new - part * known
        left = float(np.linalg.norm(new))
        h[j + 1, j] = left
        if not left > 1e-12 * scale:
            m = j + 1
            break
        basis.append(new / left)
    values, vectors = np.linalg.eig(h[:m, :m])
    first = np.zeros(m)
    first[0] = size
    return values, np.abs(np.linalg.lstsq(vectors, first, rcond=None)[0])
