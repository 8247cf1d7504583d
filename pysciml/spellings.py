"""The options of ``solve`` as users write them, brought to one form before anything reads them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from pysciml.errors import InputError
from pysciml.sensitivity import SensitivityAlgorithm

__all__ = ["one_form"]

_NUMBERS = ("abstol", "reltol", "dt", "dtmax", "dtmin", "maxiters")
_FLAGS = ("adaptive", "progress", "raise_on_failure")


def one_form(options: dict[str, Any]) -> None:
    """Bring options to one form, in place.

    Numbers in 0-d tensors and arrays become numbers, an infinite ``dtmax`` None, a sensitivity
    algorithm's class one of its kind, and flags bool. Raises InputError for what is no flag, and
    for a number that requires grad.
    """
    for name in _NUMBERS:
        value = options.get(name)
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
            options[name] = _number(name, value)
    if options.get("dtmax") == math.inf:
        options["dtmax"] = None
    for name in _FLAGS:
        if name in options and type(options[name]) is not bool:
            options[name] = _flag(name, options[name])
    sensealg = options.get("sensealg")
    if isinstance(sensealg, type) and issubclass(sensealg, SensitivityAlgorithm):
        options["sensealg"] = sensealg()


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
