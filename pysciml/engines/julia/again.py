"""What the engine keeps of a solve for the next one that differs in u0, p and c alone.

It stands in the problem's memo: see ``FlatProblem``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pysciml.algorithms import Algorithm
from pysciml.engines.base import FlatProblem, SolveOptions
from pysciml.engines.julia.bridge import ADDRESSES, address
from pysciml.engines.julia.models import JuliaFunctions

__all__ = ["Again", "Differentiation"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Differentiation:
    """How solutions with these options are differentiated: ``sensealg`` by its number."""

    options: SolveOptions
    sensealg: int
    tolerances: tuple[float, float]
    what: tuple[Any, ...]


#: Where the request's addresses of u0, p and c stand.
_VALUES = slice(12 * 8, 15 * 8)


class Again:
    """A solve as it was asked for, for the next one that differs in u0, p and c alone."""

    def __init__(
        self,
        options: SolveOptions,
        checked: SolveOptions,
        alg: Algorithm | None,
        functions: JuliaFunctions,
        request: bytes,
        keep: list[Array | None],
    ) -> None:
        self.options, self.checked = options, checked
        self.alg, self.functions = alg, functions
        self._before, self._after = request[: _VALUES.start], request[_VALUES.stop :]
        self._keep = keep[3:]  # the arrays that the rest of the request points to

    def request(self, problem: FlatProblem) -> bytes:
        where = map(address, (problem.u0, problem.p, problem.c))
        return self._before + ADDRESSES.pack(*where) + self._after
