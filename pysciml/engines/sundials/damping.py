"""How often intervals are cut so that modes which decay are gone by the beginning of the mesh.

The Radau rule takes a mode ``z = h * eigenvalue`` with a negative real part through an interval by
``R(z)`` in place of ``exp(z)``: small, but for large ``-z`` no more than about ``3 / |z|``. What is
left of a cotangent, or of a sensitivity at its start, is damped by the intervals between it and the
beginning (or between the beginning and it) and does no harm where these are many, as where a stiff
solution was followed. A solution at rest, or one that is a line, is followed in a few steps as long
as it likes, and there the modes have to be taken through rightly.

R is the rule's stability function (Hairer and Wanner, "Solving Ordinary Differential Equations II",
section IV.3).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["parts_for_damping"]

Array = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Ints = npt.NDArray[np.int64]

#: In how many parts an interval may be cut.
_CHOICES = np.unique(np.round(2.0 ** np.arange(0.0, 12.1, 0.5)).astype(np.int64))


def _through(z: Complex) -> Complex:
    out: Complex = (1.0 + z * (0.4 + z / 20.0)) / (1.0 - z * (0.6 - z * (0.15 - z / 60.0)))
    return out


def parts_for_damping(
    z: Complex, at: Ints, h: Array, tol: float, slack: float, weights: Array | float = 1.0
) -> Ints:
    """How many parts (S,) intervals ``at`` (S,) of the mesh need for their decaying modes.

    Args:
        z: the modes (S, m) of these intervals, ``h[at]`` times the eigenvalues.
        at: numbers of the intervals.
        h: lengths of all intervals (K,).
        tol: what a mode may be off by at the beginning of the mesh; ``slack`` times as much
            where the interval is not cut.
        weights: how much of each mode there is.
    """
    parts = np.ones(len(z), dtype=np.int64)
    decays = z.real < 0.0
    error = np.where(decays, weights * np.abs(_through(z) - np.exp(np.where(decays, z, 0.0))), 0.0)
    which, mode = np.nonzero(error > slack * tol)
    values, index, error = z[which, mode], at[which], error[which, mode]
    scale, left = values / h[index], np.ones(len(which))
    for back in range(1, int(index.max(initial=0)) + 1):
        # not gone yet, nor at the beginning
        there = np.nonzero((error * left > slack * tol) & (index >= back))[0]
        if not len(there):
            break
        left[there] *= np.abs(_through(scale[there] * h[index[there] - back]))
    cut = np.nonzero(error * left > slack * tol)[0]
    if not len(cut):
        return parts
    which, values, left = which[cut], values[cut], left[cut]
    size = np.broadcast_to(weights, z.shape)[which, mode[cut]]
    wrong = np.abs(_through(values[:, None] / _CHOICES) ** _CHOICES - np.exp(values)[:, None])
    enough = wrong * (size * left)[:, None] <= tol
    enough[:, -1] = True
    np.maximum.at(parts, which, _CHOICES[np.argmax(enough, axis=1)])
    return parts
