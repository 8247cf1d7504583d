"""What reactions take and change, as the user writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pysciml.errors import InputError
from pysciml.flatten import is_real

__all__ = ["Pairs", "kind_of", "reactions"]

#: Entries of the state, and how many of each.
Pairs = tuple[tuple[int, int], ...]


def kind_of(x: Any) -> str:
    """How messages call what was given."""
    if not isinstance(x, Tensor):
        return f"a {type(x).__name__}"
    return "a tensor on the device meta" if x.is_meta else f"a tensor of {str(x.dtype)[6:]}"


def reactions(given: Any, name: str) -> tuple[Pairs, ...]:
    """Each reaction's (entry, count) pairs. Raises InputError."""
    if isinstance(given, Tensor):
        whole = given.ndim == 2 and is_real(given)
        if not whole or given.dtype.is_floating_point and bool((given % 1 != 0).any()):
            raise InputError(
                f"{name} is {kind_of(given)}, of shape {tuple(given.shape)}; give whole numbers, "
                "one row a reaction and one column an entry of the state."
            )
        rows = given.to(torch.int64).tolist()
        return tuple(tuple((i, n) for i, n in enumerate(row) if n != 0) for row in rows)
    if isinstance(given, dict) or not isinstance(given, Sequence):
        raise InputError(
            f"{name} is a {type(given).__name__}; give a list with one dict {{entry: count}} a "
            "reaction, or a tensor (reactions, entries)."
        )
    out = []
    for i, row in enumerate(given):
        try:
            pairs = tuple((k, n) for k, n in (row.items() if isinstance(row, dict) else row))
        except (TypeError, ValueError):
            pairs = (("", ""),)
        if not all(type(x) is int for pair in pairs for x in pair) or any(k < 0 for k, _ in pairs):
            raise InputError(
                f"{name}[{i}] is {row!r}; give a dict {{entry: count}} (or pairs) of whole "
                "numbers, entries being flat indices of the state from 0."
            )
        out.append(pairs)
    return tuple(out)
