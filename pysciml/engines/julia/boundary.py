"""Boundary value problems in Julia, by MIRK methods."""

from __future__ import annotations

import ctypes as ct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysciml.algorithms import Algorithm
from pysciml.boundary_mesh import SAMPLES
from pysciml.engines.base import FlatBoundary, FlatMesh, SolveOptions
from pysciml.engines.julia.bridge import address
from pysciml.engines.julia.names import algorithm_expression

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import JuliaEngine

__all__ = ["solve"]

Array = npt.NDArray[np.float64]

#: Stages that there is room for.
_MOST_STAGES = 16


class BoundaryRequest(ct.Structure):
    """See ``boundary.jl``."""

    _fields_ = [
        *((k, ct.c_int64) for k in (
            "f bc alg n pieces intervals at_start maxiters np nc nbp nbc".split()
        )),
        *((k, ct.c_void_p) for k in "p c bp bc_c starts rates s states".split()),
        ("tolerance", ct.c_double),
    ]  # fmt: skip


class BoundaryResponse(ct.Structure):
    """See ``boundary.jl``."""

    _fields_ = [("retcode", ct.c_int64), ("calls", ct.c_int64)]


def solve(
    engine: JuliaEngine, problem: FlatBoundary, alg: Algorithm, options: SolveOptions
) -> FlatMesh:
    """See :meth:`pysciml.engines.base.Engine.solve_boundary`."""
    f = engine.functions(problem.functions, "ode", "float64")
    bc = engine.functions(problem.conditions, "ode", "float64")
    f.use(problem.p, problem.c)
    bc.use(problem.conditions_p, problem.conditions_c)
    number = engine.object(*algorithm_expression(alg, "bvp"))
    s = np.ascontiguousarray(problem.s)
    states = np.array(problem.guess, order="C")
    size = states.shape[1]
    request = BoundaryRequest(
        f.id, bc.id, number, size // len(problem.starts), len(problem.starts), len(s) - 1,
        problem.at_start, options.maxiters, len(problem.p), len(problem.c),
        len(problem.conditions_p), len(problem.conditions_c), address(problem.p),
        address(problem.c), address(problem.conditions_p), address(problem.conditions_c),
        address(problem.starts), address(problem.rates), address(s), address(states),
        options.abstol,
    )  # fmt: skip
    response = BoundaryResponse()
    kind = ("boundary", number, problem.at_start > 0)
    with engine.first(f, kind), engine.first(bc, kind):
        engine.bridge.interruptibly(
            lambda: engine.bridge.call(
                "solve_boundary", ct.addressof(request), ct.addressof(response)
            )
        )
    retcode = engine.bridge.retcodes[response.retcode]
    return FlatMesh(states, retcode, response.calls, _tableau(engine, number))


def _tableau(engine: JuliaEngine, alg: int) -> tuple[Array, Array, Array, Array, Array]:
    """The method's coefficients c, v, b, x, and the weights of its interpolant at SAMPLES."""
    out = np.empty(2 + _MOST_STAGES * (3 + _MOST_STAGES + len(SAMPLES)))
    engine.bridge.call(
        "mirk_tableau", alg, address(SAMPLES), len(SAMPLES), address(out), len(out)
    )  # fmt: skip
    s, q = int(out[0]), int(out[1])
    ends = np.cumsum([2, q, q, s, q * q, q * len(SAMPLES)])
    c, v, b, x, weights = (out[i:j] for i, j in zip(ends, ends[1:], strict=False))
    return c, v, b, x.reshape(q, q), weights.reshape(q, -1)
