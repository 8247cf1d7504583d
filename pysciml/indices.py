"""Which of a vector's entries are meant: flat indices, a mask, or a slice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysciml.errors import InputError

__all__ = ["flat_indices"]

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def flat_indices(given: Any, name: str, size: int, what: str) -> Tensor:
    """Indices of a vector of ``size`` entries as an int64 tensor (k,).

    ``given``: indices (negative ones from the end), a mask of all entries, or a slice; messages
    call the vector ``what``. Raises InputError for what is none.
    """
    expected = f"give flat indices between 0 and {size - 1}, e.g. [0], a slice, or a mask of {size}"
    try:
        chosen = list(range(size)[given]) if isinstance(given, slice) else given
        index = torch.as_tensor(chosen).reshape(-1).cpu()
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise InputError(f"{name} is {given!r}; {expected}.") from None
    if index.dtype == torch.bool and len(index) == size:
        index = index.nonzero().reshape(-1)
    if index.numel() and index.dtype not in _WHOLE:
        raise InputError(f"{name} is {given!r}, {_kind(index)}; {expected}.")
    index = index.long()
    if not index.numel() or not bool(((index >= -size) & (index < size)).all()):
        raise InputError(f"{name} is {given!r}, but {what} {size} entries; {expected}.")
    return index


def _kind(index: Tensor) -> str:
    if index.dtype == torch.bool:
        return f"a mask of {len(index)}"
    return f"of {str(index.dtype)[6:]}"
