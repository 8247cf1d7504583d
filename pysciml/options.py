"""Checks of the keyword arguments of ``solve``."""

from __future__ import annotations

import math
import numbers
from typing import Any

from pysciml.errors import InputError, did_you_mean
from pysciml.problems import DAEProblem, ODEProblem
from pysciml.sensitivity import SensitivityAlgorithm

__all__ = ["check_options"]

_KNOWN = (
    "engine saveat abstol reltol sensealg callback save_idxs tstops dt dtmax dtmin maxiters "
    "adaptive progress raise_on_failure"
).split()

#: What people coming from SciPy and torchdiffeq write.
_ELSEWHERE = {
    "rtol": "reltol", "atol": "abstol", "method": "alg (the second argument)",
    "t_eval": "saveat", "max_step": "dtmax", "first_step": "dt", "max_steps": "maxiters",
    "events": "callback", "args": "p of the problem", "max_num_steps": "maxiters",
}  # fmt: skip


def check_options(
    prob: Any,
    unknown: dict[str, Any],
    abstol: Any,
    reltol: Any,
    dt: Any,
    dtmax: Any,
    dtmin: Any,
    maxiters: Any,
    sensealg: Any,
) -> None:
    """Raise InputError for the first thing that cannot be meant."""
    if not isinstance(prob, (ODEProblem, DAEProblem)):
        raise InputError(
            f"solve was given a {type(prob).__name__}; give a problem, "
            "e.g. pysciml.ODEProblem(f, u0, (t0, t1), p)."
        )
    for key in unknown:
        if key in _ELSEWHERE:
            raise InputError(f"solve does not take {key!r}; it is called {_ELSEWHERE[key]} here.")
        raise InputError(f"solve does not take {key!r}.{did_you_mean(key, _KNOWN)}")
    positive("reltol", reltol, zero=True)
    if reltol >= 1.0:
        raise InputError(f"reltol is {reltol}; a relative tolerance lies below 1, e.g. 1e-6.")
    if isinstance(abstol, numbers.Real):
        positive("abstol", abstol, zero=True)
        if float(abstol) == 0.0 and float(reltol) == 0.0:
            raise InputError("abstol and reltol are both 0; give at least one a positive value.")
    for name, value in (("dt", dt), ("dtmax", dtmax), ("dtmin", dtmin)):
        if value is not None:
            positive(name, value)
    if isinstance(maxiters, bool) or not isinstance(maxiters, numbers.Real) or maxiters < 1:
        raise InputError(f"maxiters is {maxiters!r}; give a positive whole number.")
    if sensealg is not None and not isinstance(sensealg, SensitivityAlgorithm):
        raise InputError(
            f"sensealg is {sensealg!r}; give a sensitivity algorithm, e.g. pysciml.GaussAdjoint()."
        )


def positive(name: str, value: Any, zero: bool = False) -> None:
    """Raise InputError unless ``value`` is a finite number > 0 (>= 0 with ``zero``)."""
    least = ">= 0" if zero else "> 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} is {value!r}; give a number {least}.")
    number = float(value)
    if not math.isfinite(number) or number < 0.0 or (number == 0.0 and not zero):
        raise InputError(f"{name} is {value}; give a number {least}.")
