"""How values are spelt in Julia source over whole arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pysciml.kernels.graph import Shape


@dataclass(frozen=True)
class Value:
    """A value as Julia source.

    ``text`` is a name, a literal, or an expression to be broadcast. ``extent`` is None for a
    number on the host; else the shape that the array has, in which axes of length 1 may stand for
    longer ones, or ``()`` for a vector of one element that stands for any shape. ``cost`` counts
    the operations in ``text``.
    """

    text: str
    extent: Shape | None
    cost: int = 0


def dims(shape: Shape) -> str:
    """A shape as Julia has it; one element for rank 0."""
    return "(" + ", ".join(map(str, reversed(shape or (1,)))) + ",)"


def joint_extent(extents: Iterable[Shape]) -> Shape:
    """The shape of a broadcast over arrays of one rank; ``()`` where there are none."""
    joint: Shape = ()
    for extent in extents:
        pairs = zip(joint or (1,) * len(extent), extent, strict=True)
        joint = tuple(b if a == 1 else a for a, b in pairs)
    return joint
