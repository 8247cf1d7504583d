"""The fast calls into Julia: plain C functions through ctypes, which lets go of the GIL.

The structures mirror those of ``bridge.jl`` field by field.
"""

from __future__ import annotations

import ctypes as ct
from typing import Any

import numpy as np
import numpy.typing as npt

from pysciml.engines.julia.startup import Julia
from pysciml.errors import EngineError

OK, FAILED, INTERRUPTED, CALLBACK_FAILED = 0, 1, 2, 3

_INTEGERS = (
    "model alg events dense adaptive maxiters n np nc nsaveat ntstops nabstol".split()
)
_POINTERS = "u0 p c saveat tstops abstol du0 differential_vars".split()
_NUMBERS = "t0 t1 reltol dt dtmax dtmin".split()


class Request(ct.Structure):
    _fields_ = [
        *((k, ct.c_int64) for k in _INTEGERS),
        *((k, ct.c_void_p) for k in _POINTERS),
        *((k, ct.c_double) for k in _NUMBERS),
    ]


class Response(ct.Structure):
    _fields_ = [
        ("handle", ct.c_int64),
        ("retcode", ct.c_int64),
        ("m", ct.c_int64),
        ("nevents", ct.c_int64),
        ("stats", ct.c_int64 * 6),
        ("t", ct.c_void_p),
        ("u", ct.c_void_p),
        ("source", ct.c_void_p),
        ("event_times", ct.c_void_p),
        ("event_indices", ct.c_void_p),
        ("t_reached", ct.c_double),
        ("error", ct.c_void_p),
    ]


class AdjointRequest(ct.Structure):
    _fields_ = [
        ("handle", ct.c_int64),
        ("sensealg", ct.c_int64),
        ("m", ct.c_int64),
        ("times", ct.c_void_p),
        ("source", ct.c_void_p),
        ("cotangents", ct.c_void_p),
        ("event_times", ct.c_void_p),
        ("abstol", ct.c_double),
        ("reltol", ct.c_double),
        ("du0", ct.c_void_p),
        ("dp", ct.c_void_p),
        ("dt0", ct.c_void_p),
        ("dtimes", ct.c_void_p),
        ("devents", ct.c_void_p),
    ]


def address(x: npt.NDArray[Any] | None) -> int | None:
    return None if x is None or x.size == 0 else x.ctypes.data


def array(pointer: int | None, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """A copy of Julia's memory as an array."""
    if not pointer or 0 in shape:
        return np.empty(shape, dtype)
    count = int(np.prod(shape))
    raw = (ct.c_char * (count * np.dtype(dtype).itemsize)).from_address(pointer)
    return np.frombuffer(raw, dtype).reshape(shape).copy()


class Bridge:
    """The C functions of a running Julia."""

    def __init__(self, julia: Julia) -> None:
        solve, interpolate, adjoint, drop, free = (int(x) for x in julia.module.entry_points())
        p, i = ct.c_void_p, ct.c_int64
        self.solve = ct.CFUNCTYPE(ct.c_int, p, p)(solve)
        self.interpolate = ct.CFUNCTYPE(ct.c_int, i, p, i, i, p, p)(interpolate)
        self.adjoint = ct.CFUNCTYPE(ct.c_int, p, p)(adjoint)
        self.drop = ct.CFUNCTYPE(None, i)(drop)
        self._free = ct.CFUNCTYPE(None, p)(free)
        self.retcodes = {int(k): str(name) for k, name in julia.module.retcodes()}

    def fail(self, status: int, error: int | None, pending: list[BaseException]) -> None:
        """Raise what a call that did not return OK has met."""
        if status == CALLBACK_FAILED and pending:
            raise pending.pop()
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        text = "unknown error"
        if error:
            text = ct.string_at(error).decode("utf-8", "replace")
            self._free(error)
        raise EngineError(f"Julia reports: {text}")
