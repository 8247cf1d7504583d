"""The registry of the project's own decompositions, used while tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

#: Decompositions by ATen operation.
OWN: dict[Any, Callable[..., Any]] = {}


def decomposes(*ops: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a decomposition; it may return ``NotImplemented`` to leave a use as it is."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            OWN[op] = fn
        return fn

    return register
