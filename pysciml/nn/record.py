"""What a module's last call left behind: counts, a penalty, events."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pysciml.engines.base import Stats

__all__ = ["Recorded", "last_of"]


@dataclass
class Last:
    """What a module's last call left. Kept outside of it: kernels watch modules' attributes."""

    stats: Stats | None = None
    plans: tuple[Any, ...] = ()
    penalty: Tensor | None = None
    events: list[list[float]] | None = None


_last: weakref.WeakKeyDictionary[nn.Module, Last] = weakref.WeakKeyDictionary()


def last_of(module: nn.Module) -> Last:
    """The record of a module's last call, to be read and written."""
    return _last.setdefault(module, Last())


class Recorded(nn.Module):
    """Base of modules that say what their last call took, and what its regularisers came to."""

    @property
    def stats(self) -> Stats | None:
        """Counts of the last solve (evaluations, steps), None before the first."""
        return _last[self].stats if self in _last else None

    @property
    def penalty(self) -> Tensor:
        """The regularisers' weighted sum for the last call in training, 0-d; 0 where there is none.

        Add it to the loss: ``(loss + model.penalty).backward()``.
        """
        found = _last[self].penalty if self in _last else None
        return torch.zeros(()) if found is None else found
