"""Solving where the user's tensors are: states, parameters and gradients stay on the device.

Julia reads torch's memory by its address and writes gradients there; a solution's states come
back by DLPack. Either side waits for the device before the other one goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pysciml.algorithms import Algorithm, algorithm
from pysciml.engines.base import FlatGradient, FlatProblem, FlatSolution, SolveOptions, Stats
from pysciml.engines.julia.bridge import HANDLES, address, array
from pysciml.engines.julia.dlpack import tensor_at
from pysciml.engines.julia.models import JuliaFunctions
from pysciml.engines.julia.names import algorithm_expression, fails_on_adjoints
from pysciml.engines.julia.startup import how_to_add_gpu
from pysciml.julia_function import JuliaFunction
from pysciml.sensitivity import DiscreteAdjoint, GaussAdjoint

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import JuliaEngine

#: Packages whose algorithms are proven on arrays of a device.
_PACKAGES = frozenset(
    f"OrdinaryDiffEq{name}"
    for name in (
        "Tsit5", "Verner", "LowOrderRK", "HighOrderRK", "SSPRK", "Rosenbrock", "SDIRK", "BDF",
    )
)  # fmt: skip
_SENSEALGS = (type(None), GaussAdjoint, DiscreteAdjoint)

#: For tests: the name of a device of Julia's that stands for the CPU.
_stand_in: list[str] = []


@contextlib.contextmanager
def standing_in(name: str) -> Iterator[None]:
    """Let tensors on the CPU be solved on a device of Julia's, such as ``"jlarrays"``."""
    _stand_in.append(name)
    try:
        yield
    finally:
        _stand_in.pop()


def device_of(device: torch.device) -> tuple[str, int] | None:
    """Julia's name and number of a torch device; None where Julia has nothing to do with it."""
    if device.type == "cuda":
        return "cuda", device.index or 0
    return (_stand_in[-1], 0) if _stand_in and device.type == "cpu" else None


def suits(prob: Any, alg: Algorithm | None, sensealg: Any, has_callbacks: bool) -> bool:
    """Whether a problem can be solved on a device; else it is solved on the CPU."""
    return (
        prob.kind == "ode"
        and not getattr(prob, "form", "")  # not in parts
        and getattr(prob, "mass_matrix", None) is None
        and not has_callbacks
        and not isinstance(prob.f, JuliaFunction)
        and prob.state_spec.dtype in (torch.float64, torch.float32)
        and type(sensealg) in _SENSEALGS
        and (alg is None or _runs(alg))
    )


def _runs(alg: Algorithm) -> bool:
    return alg.package in _PACKAGES and not alg.parts and not fails_on_adjoints(alg)


def why_not(prob: Any, alg: Algorithm | None, sensealg: Any, name: str) -> str:
    """Why an ODE that is to be solved on a device cannot be, as a sentence about ``name``."""
    if type(sensealg) not in _SENSEALGS:
        return (
            f"sensealg is {sensealg!r}, but {name} has GaussAdjoint and, after Tsit5, "
            "DiscreteAdjoint; leave it out."
        )
    if alg is not None and not _runs(alg):
        return (
            f"{alg!r} does not run on a GPU's arrays; give {name} an explicit Runge-Kutta method, "
            "e.g. pysciml.Tsit5(), or for few members pysciml.Rodas5P() or pysciml.FBDF()."
        )
    if device_of(prob.state_spec.device) is None:
        return (
            f"u0 is on the CPU, but {name} solves where the tensors are; move u0, p and what f "
            "closes over to the card, e.g. u0.to('cuda'), or use EnsembleThreads()."
        )
    return (
        f"{name} needs CUDA.jl and an NVIDIA card that it finds; {how_to_add_gpu()} ('python -m "
        "pysciml doctor' says more), or use EnsembleThreads()."
    )


@dataclass
class DeviceHandle:
    """What a solution keeps: Julia's handle, dropped with this object, and what it reads."""

    number: int
    problem: FlatProblem
    options: SolveOptions
    functions: JuliaFunctions
    alg: Algorithm


def solve(
    engine: JuliaEngine, problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
) -> FlatSolution:
    """As the engine's ``solve``, for a problem whose u0, p and c are tensors on a device."""
    alg = alg or algorithm("Tsit5")()
    u0, p, c = _tensors(problem)
    functions = engine.functions(problem.functions, problem.kind, problem.dtype)
    where = device_of(u0.device)
    assert where is not None
    model = functions.device_model(len(u0), len(c), *where)
    number = engine.object(*algorithm_expression(alg, problem.kind))
    at = (u0.data_ptr(), p.data_ptr(), c.data_ptr())
    request, keep = engine.request(model, number, 0, problem, options, at)
    wait_for(u0)
    with engine.first(functions, ("device solve", alg.name)):
        r = engine.bridge.solve(request, options.progress)
    del keep
    handle = DeviceHandle(r.handle, problem, options, functions, alg)
    engine.bridge.drop_with(handle, HANDLES, r.handle)
    return FlatSolution(
        t=array(r.t, (r.m,), "float64"),
        u=tensor_at(r.u, (r.m, len(u0)), u0.dtype, u0.device, handle),  # type: ignore[arg-type]
        source=array(r.source, (r.m,), "int64"),
        retcode=engine.bridge.retcodes[r.retcode],
        stats=Stats(*r.counts, alg.name),
        handle=handle,
        t_reached=r.t_reached,
    )


def interpolate(engine: JuliaEngine, handle: DeviceHandle, ts: Any, deriv: int) -> Tensor:
    """As the engine's ``interpolate``, a tensor on the device."""
    u0 = _tensors(handle.problem)[0]
    ts = np.ascontiguousarray(ts, np.float64)
    out = torch.empty((len(ts), len(u0)), dtype=u0.dtype, device=u0.device)
    if len(ts):
        wait_for(u0)
        what = (handle.number, ts.ctypes.data, len(ts), deriv, out.data_ptr())
        engine.bridge.interruptibly(lambda: engine.bridge.call("interpolate", *what))
    return out


def adjoint(
    engine: JuliaEngine, solution: FlatSolution, grad_u: Tensor, at: Any, by_times: bool
) -> FlatGradient:
    """As the engine's ``adjoint``; u0's and p's gradients are tensors on the device."""
    handle: DeviceHandle = solution.handle
    options = handle.options
    u0, p, _ = _tensors(handle.problem)
    times = np.ascontiguousarray(solution.t if at is None else at, np.float64)
    cotangents = grad_u.detach().to(u0.dtype).contiguous()
    order = None
    if at is not None:
        order = np.argsort(
            times if handle.problem.t1 >= handle.problem.t0 else -times, kind="stable"
        )
        times, cotangents = times[order], cotangents[torch.as_tensor(order, device=u0.device)]
    sensealg = options.sensealg or (DiscreteAdjoint() if handle.alg.name == "Tsit5" else None)
    name = "DiscreteAdjoint" if isinstance(sensealg, DiscreteAdjoint) else "DeviceAdjoint"
    tolerances = (float(np.min(options.abstol)), float(options.reltol))
    if sensealg is not None:
        tolerances = (sensealg.abstol or tolerances[0], sensealg.reltol or tolerances[1])
    du0, dp = torch.empty_like(u0), torch.empty_like(p)
    dt0, dtimes = np.zeros(1), np.zeros(len(times))
    by = (address(dt0), address(dtimes)) if by_times else (0, 0)
    number = engine.object(f"PySciML.{name}()", ())
    wait_for(u0)
    with engine.first(handle.functions, ("device adjoint", name)):
        engine.bridge.adjoint(
            handle.number, number, len(times), (address(times), 0, cotangents.data_ptr(), 0),
            tolerances, (du0.data_ptr(), dp.data_ptr(), *by, 0),
        )  # fmt: skip
    if order is not None:
        unsorted = np.empty_like(dtimes)
        unsorted[order] = dtimes
        dtimes = unsorted
    gradient: Any = FlatGradient
    found: FlatGradient = gradient(u0=du0, p=dp, t0=float(dt0[0]), times=dtimes)
    return found


def _tensors(problem: FlatProblem) -> tuple[Tensor, Tensor, Tensor]:
    given: Any = problem
    return given.u0, given.p, given.c


def wait_for(x: Tensor) -> None:
    """Until torch has computed what it was asked for."""
    if x.device.type == "cuda":
        torch.cuda.current_stream(x.device).synchronize()
