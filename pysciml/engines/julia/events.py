"""Events in Julia: their functions once, their parameters for every solve."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FlatCallback, FlatProblem, Functions
from pysciml.engines.julia.bridge import EVENTS, Bridge, EventSpec, address
from pysciml.engines.julia.models import JuliaFunctions

Array = npt.NDArray[Any]
_KINDS = {
    k: i
    for i, k in enumerate(
        "continuous discrete preset reaction constant variable bound domain".split()
    )
}


def events_gradient(problem: FlatProblem) -> tuple[Array, list[tuple[Array | None, Array | None]]]:
    """Room for the cotangents of the callbacks' parameters: as one array, and as its parts, a pair
    (condition, affect) a callback."""
    given = [x for c in problem.callbacks for x in (c.condition_p, c.affect_p)]
    sizes = [0 if x is None else len(x) for x in given]
    whole = np.zeros(sum(sizes), problem.dtype)
    parts = np.split(whole, np.cumsum(sizes)[:-1]) if sizes else []
    return whole, list(zip(parts[::2], parts[1::2], strict=True))


class JuliaEvents:
    """The callbacks of a problem; ``use`` gives them the parameters of the solve that comes."""

    def __init__(
        self,
        bridge: Bridge,
        callbacks: tuple[FlatCallback, ...],
        functions: Callable[[Functions, str], JuliaFunctions],
        dtype: str,
    ) -> None:
        self.bridge, self.dtype = bridge, dtype
        self.functions = [
            [None if f is None else functions(f, "ode") for f in (c.condition, c.affect)]
            for c in callbacks
        ]
        specs = (EventSpec * len(callbacks))()
        self._times = []
        for spec, c, (condition, affect) in zip(specs, callbacks, self.functions, strict=True):
            times = np.ascontiguousarray([] if c.times is None else c.times, np.float64)
            self._times.append(times)
            spec.kind = _KINDS[c.kind]
            spec.condition = condition.id if condition else 0
            spec.affect = affect.id if affect else 0
            spec.terminate, spec.direction = c.terminate, c.direction
            spec.save_before, spec.save_after = c.save_positions
            spec.times, spec.ntimes = address(times), len(times)
        self.number = bridge.number(
            "new_events", dtype == "float32", ct.addressof(specs), len(callbacks)
        )
        bridge.drop_with(self, EVENTS, self.number)

    def use(self, callbacks: tuple[FlatCallback, ...]) -> None:
        for i, (c, pair) in enumerate(zip(callbacks, self.functions, strict=True)):
            given = ((c.condition_p, c.condition_c), (c.affect_p, c.affect_c))
            for which, (made, (p, data)) in enumerate(zip(pair, given, strict=True)):
                if made is None or p is None or data is None:
                    continue
                p, data = (np.ascontiguousarray(x, self.dtype) for x in (p, data))
                made.use(p, data)
                self.bridge.call(
                    "set_event", self.number, i, which, address(p), len(p), address(data), len(data)
                )
