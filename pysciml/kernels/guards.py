"""Guards: whether what a trace read on the Python side is still what it was.

:class:`Guards` takes what a :class:`pysciml.kernels.walk.Walk` found within a function's reach,
and later compares it in microseconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pysciml.kernels.python_state import MISSING, SCALARS, content
from pysciml.kernels.reasons import CaptureError
from pysciml.kernels.walk import Walk


class Guards:
    """What ``roots`` (functions and other objects) can reach, noted so that a change is seen.

    Attributes:
        opaque: whether something reachable cannot be guarded; the caller then compares values.
    """

    def __init__(self, *roots: Any, walk: Walk | None = None) -> None:
        walk = Walk(*roots) if walk is None else walk
        self.opaque = walk.opaque
        # (mapping or sequence, key, object): still the same object, or an equal number
        self._items = list(walk.items)
        self._lengths = list(walk.lengths)
        self._hidden = list(walk.hidden)
        self._cells = list(walk.cells)
        self._functions = walk.functions
        self._arrays = walk.arrays
        self._sets = walk.sets
        self._tensors = walk.tensors
        self._constants: list[tuple[Tensor, int]] = []
        self._closures: list[tuple[Tensor, bool, torch.dtype, torch.Size]] = []

    # ---- asking

    def ok(self) -> bool:
        """Whether everything noted is unchanged."""
        for owner, key, value in self._items:
            try:
                now = owner[key]
            except (KeyError, IndexError):
                return False
            if now is not value and not _equal(now, value):
                return False
        for cell, value in self._cells:
            now = content(cell)
            if now is not value and not _equal(now, value):
                return False
        return (
            all(t._version == v for t, v in self._constants)
            and not any(key in state for state, key in self._hidden)
            and all(len(x) == n for x, n in self._lengths)
            and all(
                t.requires_grad is g and t.dtype is d and t.shape == s
                for t, g, d, s in self._closures
            )
            and all(
                f.__code__ is c and f.__defaults__ is d and f.__kwdefaults__ is k
                for f, c, d, k in self._functions
            )
            and all(x == v for x, v in self._sets)
            and all(a.shape == b.shape and (a == b).all() for a, b in self._arrays)
        )

    # ---- telling

    def watch_closures(self, *groups: Sequence[Tensor]) -> None:
        """Tensors lifted to inputs: their values may change, not what they are."""
        for group in groups:
            self._closures += [(t, t.requires_grad, t.dtype, t.shape) for t in group]

    def watch_values(self) -> None:
        """Every reachable tensor: the value of one of them was read out of torch."""
        for tensor in self._tensors:
            self.watch_constant(tensor)

    def watch_constant(self, tensor: Tensor) -> None:
        """A tensor whose value the trace holds (an index table, a mask)."""
        self._constants.append((tensor, tensor._version))

    def forget_changed(self) -> None:
        """Drop what the function itself changed since the walk, such as a counter of its calls.

        Its calls saw several values of it and gave results that the check found consistent.
        """
        self._items = [(o, k, v) for o, k, v in self._items if _same(_get(o, k), v)]
        self._cells = [(c, v) for c, v in self._cells if _same(content(c), v)]
        self._lengths = [(x, n) for x, n in self._lengths if len(x) == n]
        self._hidden = [(s, k) for s, k in self._hidden if k not in s]

    @contextlib.contextmanager
    def unchanged_tensors(self) -> Iterator[None]:
        """Put reachable tensors back to their values, and raise if the function wrote to one."""
        from_before = [
            (t, t.detach().clone())
            for t in self._tensors
            if not t.requires_grad and t.numel() <= 1_000_000 and t.layout == torch.strided
        ]
        try:
            yield
        finally:
            written = False
            for tensor, value in from_before:
                # by value: batch normalisation writes without counting a version
                if not _equal_tensors(tensor, value):
                    written = True
                    with torch.no_grad():
                        tensor.copy_(value)
        if written:
            raise CaptureError(
                "the function writes to a tensor that lives outside it",
                "return new tensors; call eval() on modules with running statistics",
            )


def _equal_tensors(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _get(owner: Any, key: Any) -> Any:
    try:
        return owner[key]
    except (KeyError, IndexError):
        return MISSING


def _equal(now: Any, then: Any) -> bool:
    """Numbers and strings by value (nan equal to itself); tuples of them too; no other object."""
    if type(now) is not type(then):
        return False
    if isinstance(then, tuple):
        return len(now) == len(then) and all(map(_same, now, then))
    return isinstance(then, (*SCALARS, slice)) and bool(
        now == then or (now != now and then != then)
    )


def _same(now: Any, then: Any) -> bool:
    return now is then or _equal(now, then)
