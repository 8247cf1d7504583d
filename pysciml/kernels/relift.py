"""Reuse of a capture for another function of the same code over equal Python state.

A training loop often makes its right-hand side anew at each step, around tensors that are new
too: weights that another network puts out, ``log_rate.exp()``. Such functions differ in the values
of tensors alone, which are inputs of the captured graph. The tokens of a
:class:`pysciml.kernels.walk.Walk` tell that this is so, and the tensors it met, in order, are
what is lifted anew.

Refused, so that the function is captured again: reach that cannot be seen through, a tensor
whose value was read in Python, a lifted tensor that the walk did not meet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysciml.kernels.captured import CapturedFunctions
from pysciml.kernels.guards import Guards
from pysciml.kernels.walk import Walk

__all__ = ["Relifts"]

#: States kept for each piece of code: a training and an evaluation mode, a few options.
_KEEP_EACH = 4


@dataclass
class _Known:
    """A state that was captured.

    ``functions`` is what was made of it, without the user's tensors; None where it could not be
    captured. ``p_at`` and ``c_at`` say which of the walk's tensors the closures are, and
    ``constants`` which of them must have the values that the graph holds. ``counters`` are
    the places of numbers that the function itself changes at each call. ``kept`` keeps the
    objects alive whose ids the tokens mention.
    """

    tokens: list[Any]
    counters: list[int]
    kept: list[Any]
    functions: CapturedFunctions | None
    p_at: tuple[int, ...] = ()
    c_at: tuple[int, ...] = ()
    constants: tuple[tuple[int, Tensor], ...] = ()

    def fits(self, walk: Walk) -> bool:
        return len(walk.tokens) == len(self.tokens) and (
            _without(walk.tokens, self.counters) == self.tokens
            and all(_same_values(walk.tensors[i], value) for i, value in self.constants)
        )

    def guards(self, walk: Walk, p: tuple[Tensor, ...], c: tuple[Tensor, ...]) -> Guards | None:
        """Guards of what was walked; None where it changes itself, or will not come again."""
        if self.counters or not all(x.is_leaf for x in (*p, *c)):
            return None
        guards = Guards(walk=walk)
        guards.watch_closures(p, c)
        for i, _ in self.constants:
            guards.watch_constant(walk.tensors[i])
        return guards


class Relifts:
    """Captures by the state that they were made in. Not locked: the caller does."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._known: OrderedDict[Any, list[_Known]] = OrderedDict()

    def add(self, key: Any, before: Walk, after: Walk, functions: CapturedFunctions | None) -> bool:
        """Keep what was captured (None: could not be) in the state ``before``; tell whether.

        ``after`` is the state when the capture was done, during which the function was called.
        """
        counters = _counters(before.tokens, after.tokens)
        if before.opaque or after.opaque or counters is None:
            return False
        known = _Known(_without(before.tokens, counters), counters, before.kept, None)
        if functions is not None:
            capture = functions.capture
            if capture.read:
                return False
            place = {id(x): i for i, x in enumerate(before.tensors)}
            groups = (capture.closures_p, capture.closures_c, capture.constants)
            if any(id(x) not in place for group in groups for x in group):
                return False
            known.functions = functions.shared
            known.p_at, known.c_at, constants = (
                tuple(place[id(x)] for x in group) for group in groups
            )
            known.constants = tuple(
                (i, x.detach().clone()) for i, x in zip(constants, capture.constants, strict=True)
            )
        states = self._known.setdefault(key, [])
        states.insert(0, known)
        del states[_KEEP_EACH:]
        self._known.move_to_end(key)
        while len(self._known) > self._keep:
            self._known.popitem(last=False)
        return True

    def find(self, key: Any, walk: Walk) -> tuple[bool, CapturedFunctions | None]:
        """Whether the state is known, and its capture with the tensors of ``walk`` lifted."""
        states = () if walk.opaque else self._known.get(key, ())
        for i, known in enumerate(states):
            if not known.fits(walk):
                continue
            self._known.move_to_end(key)
            if i and isinstance(states, list):
                states.insert(0, states.pop(i))
            if known.functions is None:
                return True, None
            p, c = (tuple(walk.tensors[k] for k in at) for at in (known.p_at, known.c_at))
            return True, known.functions.relifted(p, c, known.guards(walk, p, c))
        return False, None


def _counters(before: Sequence[Any], after: Sequence[Any]) -> list[int] | None:
    """Where the tokens differ, if in numbers alone."""
    if before == after:
        return []
    if len(before) != len(after):
        return None
    places = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    numbers = all(before[i][0] is after[i][0] and before[i][0] in (int, float) for i in places)
    return places if numbers else None


def _without(tokens: list[Any], places: Sequence[int]) -> list[Any]:
    if not places:
        return tokens
    tokens = list(tokens)
    for i in places:
        kind = tokens[i][0]
        tokens[i] = kind if kind in (int, float) else tokens[i]
    return tokens


def _same_values(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a.detach(), b)
