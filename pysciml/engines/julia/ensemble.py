"""All members of an ensemble in one call into Julia, on Julia's threads."""

from __future__ import annotations

import ctypes as ct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pysciml.algorithms import Algorithm
from pysciml.engines.base import (
    FlatEnsemble,
    FlatEnsembleGradient,
    FlatMembers,
    FlatProblem,
    SolveOptions,
)
from pysciml.engines.julia.bridge import HANDLES, REQUEST, address, array
from pysciml.engines.julia.models import JuliaFunctions
from pysciml.engines.julia.names import default_sensealg, sensealg_expression
from pysciml.sensitivity import SensitivityAlgorithm

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import JuliaEngine

Array = npt.NDArray[np.float64]


class EnsembleRequest(ct.Structure):
    """After the request of a solve: see ``bridge_ensemble.jl``."""

    _fields_ = [
        ("solve", ct.c_char * REQUEST.size),
        ("members", ct.c_int64),
        ("threads", ct.c_int64),
        ("nown", ct.c_int64),
        ("at", ct.c_void_p),
        ("own", ct.c_void_p),
    ]


class EnsembleResponse(ct.Structure):
    _fields_ = [
        ("handle", ct.c_int64),
        ("total", ct.c_int64),
        *((k, ct.c_void_p) for k in "counts t u source retcodes stats reached".split()),
    ]


class EnsembleAdjointRequest(ct.Structure):
    _fields_ = [
        ("handle", ct.c_int64),
        ("sensealg", ct.c_int64),
        ("cotangents", ct.c_void_p),
        ("abstol", ct.c_double),
        ("reltol", ct.c_double),
        *((k, ct.c_void_p) for k in "du0 dp down dt0 dtimes".split()),
    ]


@dataclass
class Handle:
    """What a solved ensemble keeps: Julia's handle, dropped with this object."""

    number: int
    problem: FlatProblem
    options: SolveOptions
    functions: JuliaFunctions
    sensealg: SensitivityAlgorithm
    own: tuple[int, int]


def solve(
    engine: JuliaEngine,
    problem: FlatProblem,
    members: FlatMembers,
    alg: Algorithm | None,
    options: SolveOptions,
    threads: int,
) -> FlatEnsemble:
    """See :meth:`pysciml.engines.base.Engine.solve_members`; ``options`` are checked already."""
    functions, model, number = engine.prepared(problem, alg)
    count, width = members.own.shape
    # u0 of all members in place of the problem's own
    u0, p, c, own = (
        np.ascontiguousarray(x, problem.dtype)
        for x in (members.u0, problem.p, problem.c, members.own)
    )
    at = np.ascontiguousarray(members.at, np.int64)
    where = (address(u0), address(p), address(c))
    packed, keep = engine.request(model, number, 0, problem, options, where)
    request = EnsembleRequest()
    ct.memmove(ct.addressof(request), packed, REQUEST.size)
    request.members, request.threads, request.nown = count, threads, width
    request.at, request.own = address(at), address(own)
    response = EnsembleResponse()
    what = (ct.addressof(request), ct.addressof(response))
    with engine.first(functions, ("ensemble", number)):
        engine.bridge.interruptibly(lambda: engine.bridge.call("ensemble", *what))
    del keep
    sensealg = options.sensealg or default_sensealg(problem, alg, options.tuning)
    handle = Handle(response.handle, problem, options, functions, sensealg, (count, width))
    engine.bridge.drop_with(handle, HANDLES, response.handle)
    n, total = len(problem.u0), response.total
    every = total if options.saveat is None else 0
    return FlatEnsemble(
        counts=array(response.counts, (count,), "int64"),
        t=array(response.t, (every,), "float64"),
        u=array(response.u, (total, n), problem.dtype),
        source=array(response.source, (every,), "int64"),
        retcodes=[
            engine.bridge.retcodes[k] for k in array(response.retcodes, (count,), "int64").tolist()
        ],
        stats=array(response.stats, (count, 6), "int64"),
        t_reached=array(response.reached, (count,), "float64"),
        algorithm=alg.name if alg else "default",
        handle=handle,
    )


def adjoint(
    engine: JuliaEngine, solution: FlatEnsemble, grad_u: Array, by_times: bool
) -> FlatEnsembleGradient:
    """See :meth:`pysciml.engines.base.Engine.adjoint_members`."""
    handle: Handle = solution.handle
    problem, options, sensealg = handle.problem, handle.options, handle.sensealg
    handle.functions.use(problem.p, problem.c)
    dtype, (count, width) = problem.dtype, handle.own
    cotangents = np.ascontiguousarray(grad_u, dtype)
    lost = _undefined_members(solution, cotangents, options.saveat)
    if lost.any():
        cotangents = np.where(np.isfinite(cotangents), cotangents, 0.0).astype(dtype)
    abstol = np.min(options.abstol)
    out: dict[str, Any] = {
        "du0": np.zeros((count, len(problem.u0)), dtype),
        "dp": np.zeros(len(problem.p), dtype),
        "down": np.zeros((count, width), dtype),
        "dt0": np.zeros(count),
        "dtimes": np.zeros(len(cotangents)),
    }
    r = EnsembleAdjointRequest()
    r.handle, r.sensealg = handle.number, engine.object(*sensealg_expression(sensealg))
    r.cotangents = address(cotangents)
    r.abstol = float(sensealg.abstol or abstol)
    r.reltol = float(sensealg.reltol or options.reltol)
    for name, x in out.items():
        if by_times or name not in ("dt0", "dtimes"):
            setattr(r, name, address(x))
    with engine.first(handle.functions, ("ensemble adjoint", r.sensealg)):
        engine.bridge.interruptibly(lambda: engine.bridge.call("ensemble_adjoint", ct.addressof(r)))
    if lost.any():
        out["dp"].fill(np.nan)
        for name in ("du0", "down", "dt0"):
            out[name][lost] = np.nan
    return FlatEnsembleGradient(
        u0=out["du0"], own=out["down"], p=out["dp"], t0=out["dt0"], times=out["dtimes"]
    )


def _undefined_members(solution: FlatEnsemble, cotangents: Array, saveat: Array | None) -> Array:
    """Which members' cotangents (total, n) are not all numbers: their gradients are none either."""
    rows = ~np.isfinite(cotangents).all(axis=1)
    counts = solution.counts
    each = counts if saveat is None else np.full(len(counts), len(saveat))
    out = np.zeros(len(counts), bool)
    out[np.repeat(np.arange(len(counts)), each)[rows]] = True
    return out
