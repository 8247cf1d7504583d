"""The members of an ensemble on the threads of a GPU, in one call into Julia: see ``members.jl``.

What is large, states and parameters, outputs, cotangents and gradients, are torch tensors: Julia
reads and fills their memory where they are on its device, and copies it where they are not.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pysciml.algorithms import Algorithm
from pysciml.diffeqgpu import IMPLICIT, WRONG_TIMES
from pysciml.engines.base import (
    FROM_T0,
    FROM_T1,
    FlatEnsemble,
    FlatEnsembleGradient,
    FlatMembers,
    FlatProblem,
    SolveOptions,
)
from pysciml.engines.julia.bridge import address
from pysciml.engines.julia.device import wait_for
from pysciml.engines.julia.models import JuliaFunctions
from pysciml.engines.julia.startup import how_to_add_gpu
from pysciml.errors import EngineError

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import JuliaEngine

#: The most states of a member, by the method: its stages are registers, and straight-line code,
#: which takes a minute to compile where there are more.
MOST_STATES = {"GPUTsit5": 64, "GPUVern7": 32, "GPUVern9": 32, **dict.fromkeys(IMPLICIT, 16)}
#: The most numbers and operations of a kernel: a thread keeps the former to itself.
MOST_NUMBERS, MOST_LINES = 2048, 4096

_stand_in: list[str] = []


@contextlib.contextmanager
def standing_in(name: str = "cpu") -> Iterator[None]:
    """For tests: let kernels run on another device of Julia's, ``"cpu"`` or ``"jlarrays"``."""
    _stand_in.append(name)
    try:
        yield
    finally:
        _stand_in.pop()


class MembersRequest(ct.Structure):
    """See ``members.jl``."""

    _fields_ = [
        *((k, ct.c_int64) for k in (
            "model alg members there adaptive maxiters nsaveat nown nabstol".split()
        )),
        *((k, ct.c_void_p) for k in "u0 p c own at spans saveat abstol".split()),
        *((k, ct.c_double) for k in "t0 t1 reltol dt dtmax dtmin".split()),
        *((k, ct.c_void_p) for k in "u counts reached".split()),
    ]  # fmt: skip


class MembersAdjointRequest(ct.Structure):
    _fields_ = [
        ("forward", MembersRequest),
        ("cotangents", ct.c_void_p),
        ("by_state", ct.c_int64),
        ("ndirections", ct.c_int64),
        *((k, ct.c_void_p) for k in "directions gradient slopes".split()),
    ]


@dataclass
class Handle:
    """What a solved ensemble keeps for its gradient."""

    problem: FlatProblem
    members: FlatMembers
    functions: JuliaFunctions
    request: MembersRequest
    keep: tuple[Any, ...]  # what the request points to


def _device() -> tuple[str, int]:
    if _stand_in:
        return _stand_in[-1], 0
    return "cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0


def prepared(
    engine: JuliaEngine, problem: FlatProblem, alg: Algorithm
) -> tuple[JuliaFunctions, int, int]:
    """The problem's functions, and the numbers of its model and algorithm.

    Raises EngineError where there is no GPU, DiffEqGPU is missing, or the model is too large.
    """
    n = len(problem.u0)
    implicit = alg.name in IMPLICIT
    if n > MOST_STATES[alg.name]:
        raise EngineError(
            f"A member has {n} states, but by {alg.name} EnsembleGPUKernel takes at most "
            f"{MOST_STATES[alg.name]}, which one thread of a GPU can hold; use EnsembleGPUArray() "
            "or EnsembleThreads()."
        )
    functions = engine.functions(problem.functions, problem.kind, problem.dtype)
    given: Any = problem
    where = _device()
    if given.u0.device.type == "cuda":
        where = where[0], given.u0.device.index or 0
    sizes = np.array([n, len(problem.p), len(problem.c)], np.int64)
    model = functions.members_model(sizes, *where)
    if model <= 0:
        raise EngineError(_missing(model))
    for role in ("value", "jac:u", "jac:t") if implicit else ("value",):
        _require_small(functions, role)
    kernels = functions.functions.kernels
    if alg.name in WRONG_TIMES and kernels is not None and kernels.timed:
        raise EngineError(
            f"f depends on t, and {alg.name} asks for it at wrong times (DiffEqGPU 3.15); use "
            "pysciml.Rodas5P()."
        )
    number = engine.object(f"DiffEqGPU.{alg.name}()", ("DiffEqGPU",))
    return functions, model, number


def _missing(model: int) -> str:
    """What is missing, by the numbers of ``new_members_model``."""
    what = "EnsembleGPUKernel"
    if model == -1:
        return (
            f"{what} solves through DiffEqGPU.jl, which is not installed in Julia's project; "
            f"{how_to_add_gpu()}, or use EnsembleThreads()."
        )
    if model == -2:
        return (
            f"{what} needs CUDA.jl, which is not installed in Julia's project; {how_to_add_gpu()}, "
            "or use EnsembleThreads()."
        )
    return (
        f"{what} needs an NVIDIA card, but CUDA.jl finds none that works here ('python -m pysciml "
        "doctor' says more); use EnsembleThreads()."
    )


def _require_small(functions: JuliaFunctions, role: str) -> None:
    kernels = functions.functions.kernels
    assert kernels is not None
    if not kernels.available(role):
        raise EngineError(
            f"f has no derivative that a kernel can compute ({role}), which this method needs; use "
            "pysciml.Tsit5(), or EnsembleThreads()."
        )
    try:
        source = functions.static_source(role)
    except NotImplementedError as error:
        raise EngineError(
            f"f cannot run on one thread of a GPU ({error}); use EnsembleThreads()."
        ) from error
    lines = source.text.count("\n")
    if sum(source.sizes) > MOST_NUMBERS or lines > MOST_LINES:
        raise EngineError(
            f"f is too large for EnsembleGPUKernel: it takes {lines} operations and keeps "
            f"{sum(source.sizes)} numbers, and one thread of a GPU has room for {MOST_LINES} and "
            f"{MOST_NUMBERS}; use EnsembleGPUArray() or EnsembleThreads()."
        )


def _tensors(problem: FlatProblem, members: FlatMembers) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u0 of all members, p, c, and what members have of their own, as contiguous tensors."""
    given: Any = problem
    own: Any = members
    return own.u0, given.p, given.c, own.own


def _pointer(x: Tensor) -> int:
    return x.data_ptr() if x.numel() else 0


def solve(
    engine: JuliaEngine,
    problem: FlatProblem,
    members: FlatMembers,
    alg: Algorithm,
    options: SolveOptions,
) -> FlatEnsemble:
    """See :meth:`pysciml.engines.base.Engine.solve_members_on_gpu`."""
    functions, model, number = prepared(engine, problem, alg)
    u0, p, c, own = _tensors(problem, members)
    count, n = u0.shape
    saveat = None if options.saveat is None else np.ascontiguousarray(options.saveat, np.float64)
    m = 2 if saveat is None else len(saveat)
    u = torch.empty((count * m, n), dtype=u0.dtype, device=u0.device)
    at = np.ascontiguousarray(members.at, np.int64)
    abstol = np.ascontiguousarray(options.abstol, np.float64).reshape(-1)
    counts, reached = np.zeros((count, 4), np.int64), np.zeros(count)
    r = MembersRequest()
    r.model, r.alg, r.members, r.there = model, number, count, u0.device.type == "cuda"
    r.adaptive, r.maxiters = options.adaptive, options.maxiters
    r.nsaveat, r.nown, r.nabstol = 0 if saveat is None else m, len(at), len(abstol)
    r.u0, r.p, r.c, r.own = map(_pointer, (u0, p, c, own))
    r.at, r.saveat, r.abstol = address(at), address(saveat), address(abstol)
    r.t0, r.t1, r.reltol = problem.t0, problem.t1, options.reltol
    for name in ("dt", "dtmax", "dtmin"):
        value = getattr(options, name)
        setattr(r, name, math.nan if value is None else float(value))
    spans = None if members.spans is None else np.ascontiguousarray(members.spans, np.float64)
    r.spans = address(spans)
    r.u, r.counts, r.reached = u.data_ptr(), address(counts), address(reached)
    wait_for(u0)
    what = ("members", number, options.adaptive, r.nabstol > 1)
    with engine.first(functions, what):
        engine.bridge.interruptibly(lambda: engine.bridge.call("solve_members", ct.addressof(r)))
    keep = (u0, p, c, own, u, at, saveat, abstol, spans, counts)
    handle = Handle(problem, members, functions, r, keep)
    every = saveat is None
    ends = np.tile([problem.t0, problem.t1], count) if spans is None else spans.reshape(-1)
    stats = np.full((count, 6), -1, np.int64)
    stats[:, 2] = counts[:, 2]
    return FlatEnsemble(
        counts=counts[:, 0].copy(),
        t=ends if every else np.empty(0),
        u=u,  # type: ignore[arg-type]
        source=np.tile([FROM_T0, FROM_T1], count) if every else np.empty(0, np.int64),
        retcodes=[engine.bridge.retcodes[k] for k in counts[:, 1].tolist()],
        stats=stats,
        t_reached=reached,
        algorithm=alg.name,
        handle=handle,
    )


def adjoint(
    engine: JuliaEngine,
    solution: FlatEnsemble,
    grad_u: Tensor,
    by_times: bool,
    by_state: bool,
    directions: npt.NDArray[np.int64],
) -> FlatEnsembleGradient:
    """See :meth:`pysciml.engines.base.Engine.adjoint_members_on_gpu`."""
    handle: Handle = solution.handle
    u0, p, _, own = _tensors(handle.problem, handle.members)
    count, n = u0.shape
    cotangents = grad_u.detach().to(u0.device, u0.dtype).contiguous()
    by_state = by_state or by_times
    directions = np.ascontiguousarray(directions, np.int64)
    width = n * by_state + len(directions)
    gradient = torch.zeros((count, width), dtype=u0.dtype, device=u0.device)
    slopes = torch.empty_like(cotangents) if by_times else None
    a = MembersAdjointRequest()
    a.forward, a.cotangents = handle.request, _pointer(cotangents)
    a.by_state, a.ndirections, a.directions = by_state, len(directions), address(directions)
    a.gradient = _pointer(gradient)
    a.slopes = 0 if slopes is None else _pointer(slopes)
    wait_for(u0)
    with engine.first(handle.functions, ("members adjoint", handle.request.alg, width, by_times)):
        engine.bridge.interruptibly(
            lambda: engine.bridge.call("differentiate_members", ct.addressof(a))
        )
    du0 = gradient[:, : n * by_state]
    dp, down = torch.zeros_like(p), torch.zeros_like(own)
    row = {int(j): k for k, j in enumerate(handle.members.at)}
    for k, j in enumerate(directions.tolist()):
        column = gradient[:, n * by_state + k]
        if j in row:
            down[:, row[j]] = column
        else:
            dp[j] = column.sum()
    times, dt0 = np.zeros(len(cotangents)), np.zeros(count)
    if slopes is not None:
        wanted = cotangents != 0  # what was not reached has no slope
        products = torch.where(wanted, slopes * cotangents, torch.zeros_like(slopes))
        times = products.sum(1).to("cpu", torch.float64).numpy()
        dt0 = _by_start(engine, handle, du0)
    made: Any = FlatEnsembleGradient
    found: FlatEnsembleGradient = made(
        u0=du0 if by_state else torch.zeros_like(u0), own=down, p=dp, t0=dt0, times=times
    )
    return found


def _by_start(engine: JuliaEngine, handle: Handle, du0: Tensor) -> npt.NDArray[np.float64]:
    """A later start is an initial state that was passed on the way: minus f there, times du0."""
    u0 = _tensors(handle.problem, handle.members)[0]
    r = MembersRequest.from_buffer_copy(handle.request)
    start = np.array([handle.problem.t0])
    slopes = torch.empty_like(u0)
    none = torch.zeros_like(u0)  # CUDA.jl wraps no null pointer
    r.nsaveat, r.saveat, r.u = 1, address(start), _pointer(u0)
    a = MembersAdjointRequest()
    a.forward, a.cotangents, a.slopes = r, _pointer(none), _pointer(slopes)
    with engine.first(handle.functions, ("members adjoint", handle.request.alg, "start")):
        engine.bridge.call("differentiate_members", ct.addressof(a))
    products: npt.NDArray[np.float64] = -(slopes * du0).sum(1).to("cpu", torch.float64).numpy()
    return products
