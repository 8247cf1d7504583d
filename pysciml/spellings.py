"""The options of ``solve`` as users write them, brought to one form before anything reads them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from pysciml.errors import InputError
from pysciml.sensitivity import SensitivityAlgorithm

__all__ = ["one_form"]

_NUMBERS = frozenset(("abstol", "reltol", "dt", "dtmax", "dtmin", "maxiters"))
_FLAGS = frozenset(("adaptive", "progress", "raise_on_failure"))


def one_form(options: dict[str, Any]) -> None:
    """Bring options to one form, in place.

    Numbers in 0-d tensors and arrays become numbers, an infinite ``dtmax`` None, a sensitivity
    algorithm's class one of its kind, and flags bool. Raises InputError for what is no flag, and
    for a number that requires grad.
    """
    for name, value in options.items():
        if name in _FLAGS:
            if type(value) is not bool:
                options[name] = _flag(name, value)
        elif name in _NUMBERS:
            if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
                value = options[name] = _number(name, value)
            if name == "dtmax" and isinstance(value, float) and value == math.inf:
                options[name] = None
        elif name == "sensealg":
            if isinstance(value, type) and issubclass(value, SensitivityAlgorithm):
                options[name] = value()


def _number(name: str, value: Tensor | np.ndarray) -> Any:
    if not isinstance(value, Tensor):
        return value.item()
    if value.requires_grad:
        raise InputError(f"{name} requires grad, but no gradient is taken for it; detach it.")
    if value.is_meta:
        raise InputError(f"{name} is on the device meta, where tensors have no values.")
    return value.item()


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, np.bool_) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise InputError(f"{name} is {value!r}; give True or False.")
