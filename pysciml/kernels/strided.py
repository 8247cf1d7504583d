"""Strided views of flat buffers: how an array of the graph lies in a kernel's memory.

A view names a flat buffer, an offset (from 0) and one stride an axis, in elements. Permuting,
slicing, expanding, flipping and most reshaping make a new view and move no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pysciml.kernels.graph import Shape


def contiguous(shape: Shape) -> Shape:
    """Row-major strides of a shape."""
    strides = []
    step = 1
    for d in reversed(shape):
        strides.append(step)
        step *= d
    return tuple(reversed(strides))


@dataclass(frozen=True)
class View:
    base: str
    offset: int
    shape: Shape
    strides: Shape

    @property
    def size(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def is_contiguous(self) -> bool:
        wanted = contiguous(self.shape)
        return all(
            d == 1 or a == b for d, a, b in zip(self.shape, self.strides, wanted, strict=True)
        )

    def same(self, other: View) -> bool:
        """Whether both name the very same elements in the same order."""
        if self.base != other.base or self.offset != other.offset or self.shape != other.shape:
            return False
        spans = zip(self.shape, self.strides, other.strides, strict=True)
        return all(d == 1 or a == b for d, a, b in spans)

    def drop(self, axis: int) -> View:
        """The first elements of the lanes along ``axis``."""
        kept = [i for i in range(len(self.shape)) if i != axis]
        return self.permute(kept)

    def permute(self, perm: Sequence[int]) -> View:
        return View(
            self.base,
            self.offset,
            tuple(self.shape[i] for i in perm),
            tuple(self.strides[i] for i in perm),
        )

    def slice(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> View:
        offset, shape, strides = self.offset, [], []
        for start, stop, step, stride in zip(starts, stops, steps, self.strides, strict=True):
            offset += start * stride
            shape.append(len(range(start, stop, step)))
            strides.append(stride * step)
        return View(self.base, offset, tuple(shape), tuple(strides))

    def flip(self, dims: Sequence[int]) -> View:
        offset, strides = self.offset, list(self.strides)
        for axis in dims:
            offset += max(self.shape[axis] - 1, 0) * strides[axis]
            strides[axis] = -strides[axis]
        return View(self.base, offset, self.shape, tuple(strides))

    def expand(self, shape: Shape) -> View:
        strides = tuple(
            s if d == new else 0 for d, new, s in zip(self.shape, shape, self.strides, strict=True)
        )
        return View(self.base, self.offset, tuple(shape), strides)

    def reshape(self, shape: Shape) -> View | None:
        """The view in another shape, or None where that takes a copy."""
        if self.size == 0 or self.is_contiguous:
            return View(self.base, self.offset, tuple(shape), contiguous(shape))
        old = [(d, s) for d, s in zip(self.shape, self.strides, strict=True) if d != 1]
        new = [d for d in shape if d != 1]
        strides: list[int] = []
        i = j = 0
        while j < len(new):
            # the shortest runs of old and new axes that hold equally many elements
            di, dj, i0, j0 = old[i][0], new[j], i, j
            while di != dj:
                if di < dj:
                    i += 1
                    di *= old[i][0]
                else:
                    j += 1
                    dj *= new[j]
            run = old[i0 : i + 1]
            if any(s != d2 * s2 for (_, s), (d2, s2) in zip(run, run[1:], strict=False)):
                return None
            step = run[-1][1]
            part = []
            for d in reversed(new[j0 : j + 1]):
                part.append(step)
                step *= d
            strides += reversed(part)
            i, j = i + 1, j + 1
        full = iter(strides)
        return View(
            self.base, self.offset, tuple(shape), tuple(0 if d == 1 else next(full) for d in shape)
        )


def merge_axes(shape: Shape, strides: Sequence[Shape]) -> tuple[Shape, list[Shape]]:
    """Drop axes of length 1 and join neighbours that every operand walks as one.

    ``strides`` holds one tuple an operand, all over ``shape``; returned likewise.
    """
    dims: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, d in enumerate(shape):
        if d == 1:
            continue
        joined = bool(dims) and all(
            kept[-1] == s[axis] * d for kept, s in zip(steps, strides, strict=True)
        )
        if joined:
            dims[-1] *= d
            for kept, s in zip(steps, strides, strict=True):
                kept[-1] = s[axis]
        else:
            dims.append(d)
            for kept, s in zip(steps, strides, strict=True):
                kept.append(s[axis])
    return tuple(dims), [tuple(s) for s in steps]
