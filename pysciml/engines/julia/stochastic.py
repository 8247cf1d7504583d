"""Stochastic equations in Julia: drift and diffusion as kernels, the seed, the noise's path."""

from __future__ import annotations

import ctypes as ct
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pysciml.algorithms import Algorithm, algorithm
from pysciml.engines.base import FIXED, FlatGradient, FlatProblem, FlatSolution, SolveOptions
from pysciml.engines.julia.bridge import address, array
from pysciml.engines.julia.events import events_gradient
from pysciml.engines.julia.names import algorithm_expression, refuse_error_control
from pysciml.errors import EngineError, InputError
from pysciml.stochasticdiffeq import (
    ADDITIVE,
    ALONG_PATHS,
    DIAGONAL,
    FIXED_STEP,
    NOT_SCALAR,
    PATHWISE,
    RODE_ALGORITHMS,
)

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import Handle, JuliaEngine

__all__ = ["adjoint", "check_stochastic", "default_algorithm", "noise_path", "solve"]

Array = npt.NDArray[np.float64]
_WORKS = "EM, EulerHeun, RKMil, ImplicitEM, ImplicitEulerHeun or ImplicitRKMil"


class PathResponse(ct.Structure):
    """See ``stochastic.jl``."""

    _fields_ = [
        ("count", ct.c_int64),
        ("m", ct.c_int64),
        ("t", ct.c_void_p),
        ("w", ct.c_void_p),
    ]


def check_stochastic(problem_kind: str, alg: Algorithm | None) -> None:
    """Raise EngineError where an algorithm for SDEs meets another problem, or the reverse."""
    if alg is None:
        return
    if alg.package == "torchsde":
        raise EngineError(
            f"{alg.name} is torchsde's, and belongs to the sundials engine: use engine='sundials', "
            "or on the julia engine EM (Ito), EulerHeun (Stratonovich) or SOSRI."
        )
    if alg.package == "JumpProcesses":
        raise EngineError(
            f"{alg.name} is for jumps (JumpProblem), but this problem has none that it could draw; "
            "use e.g. pysciml.Tsit5(), or put jumps on a DiscreteProblem."
        )
    stochastic = alg.package == "StochasticDiffEq"
    if alg.name in RODE_ALGORITHMS or problem_kind == "rode":
        if not (alg.name in RODE_ALGORITHMS and problem_kind == "rode"):
            what, use = "random equations (RODEProblem)", ", ".join(RODE_ALGORITHMS)
            raise EngineError(
                f"{alg.name} does not solve {what}; use one of {use} with dt=."
                if problem_kind == "rode"
                else f"{alg.name} is for {what}, but this is another problem; write one of "
                "these, or use an algorithm for yours, e.g. pysciml.Tsit5() or pysciml.SOSRI()."
            )
        return
    if stochastic and problem_kind != "sde":
        raise EngineError(
            f"{alg.name} is for stochastic equations (SDEProblem), but this problem has no noise; "
            "use e.g. pysciml.Tsit5() or pysciml.Rodas5P(), or write an SDEProblem."
        )
    if problem_kind == "sde" and not stochastic:
        raise EngineError(
            f"{alg.name} does not solve stochastic equations (SDEProblem); use e.g. "
            "pysciml.SOSRI(), or pysciml.EM() with dt=."
        )


def default_algorithm(problem: FlatProblem) -> Algorithm:
    """StochasticDiffEq's own choice: SOSRI, and LambaEM for general noise; RKMil along a path."""
    if problem.form == "rode":
        return algorithm("RandomEM")()
    if problem.noise is not None and problem.columns <= 0:
        return algorithm("RKMil")()
    return algorithm("LambaEM" if problem.columns > 0 else "SOSRI")()


def _require_fit(problem: FlatProblem, alg: Algorithm, options: SolveOptions) -> None:
    """Raise where algorithm, noise, steps and gradients do not go together."""
    if problem.columns > 0 and alg.name in DIAGONAL:
        raise EngineError(
            f"{alg.name} takes diagonal and scalar noise only, but this problem's is general "
            "(noise_rate_prototype); use pysciml.LambaEM(), pysciml.EM() or, for Stratonovich's "
            "equation, pysciml.EulerHeun()."
        )
    if problem.columns < 0 and alg.name in NOT_SCALAR:
        raise EngineError(
            f"{alg.name} does not take scalar noise; use pysciml.RKMil(), or write the noise as "
            "general, with a noise_rate_prototype of one column."
        )
    refuse_error_control(alg, options, problem)
    if alg.name == "SKenCarp" and options.adaptive and problem.columns > 0:
        raise EngineError(
            "SKenCarp does not choose its own steps where the noise is general (Julia's error "
            "estimate takes diagonal noise only); give dt= and adaptive=False, or use "
            "pysciml.SOSRA()."
        )
    if alg.name in ADDITIVE and _reads_state(problem):
        raise EngineError(
            f"{alg.name} takes additive noise only, but g depends on the state here; use "
            "pysciml.SOSRI() or pysciml.ImplicitEM()."
        )
    if options.dt is None and (alg.name in FIXED_STEP or not options.adaptive):
        raise InputError(f"{alg.name} takes steps of one size, which is not given; give dt=.")
    if options.gradient and alg.name not in PATHWISE:
        raise EngineError(
            f"{alg.name} has no gradients: they are pathwise, along the steps of methods whose "
            "noise is that of the equation; use SOSRI or ImplicitEM (diagonal noise), SOSRA or "
            "SKenCarp (additive), LambaEM (general) or LambaEulerHeun (Stratonovich), or solve in "
            "torch.no_grad()."
        )
    if problem.noise is not None and alg.name not in ALONG_PATHS:
        raise EngineError(f"{alg.name} cannot follow a NoiseGrid; use {_WORKS}.")
    if options.gradient and any(c.kind == "continuous" for c in problem.callbacks):
        raise EngineError(
            "A ContinuousCallback has no gradient here: its time moves along a path that has no "
            "derivative by time. Give a DiscreteCallback or a PresetTimeCallback, or solve in "
            "torch.no_grad()."
        )
    if options.sensealg is not None:
        raise InputError(
            f"sensealg is {options.sensealg!r}, but gradients along noise are pathwise, by "
            "the steps run backwards; leave it out."
        )


def _reads_state(problem: FlatProblem) -> bool:
    """Whether the diffusion depends on the state, as far as that is known."""
    kernels = problem.parts[1].kernels
    if kernels is None:  # called back: the caller's word is trusted
        return False
    pattern = problem.parts[1].sparsity("u")
    return pattern is None or pattern.nnz > 0


def solve(
    engine: JuliaEngine,
    problem: FlatProblem,
    alg: Algorithm | None,
    options: SolveOptions,
    jumps: int | None = None,
) -> FlatSolution:
    """See :meth:`pysciml.engines.base.Engine.solve`; ``jumps``: the address of a JumpRequest."""
    alg = alg or default_algorithm(problem)
    _require_fit(problem, alg, options)
    functions = engine.functions(problem.functions, "ode", problem.dtype)
    parts = tuple(engine.functions(f, "ode", problem.dtype) for f in problem.parts)
    for f in (functions, *parts):
        f.use(problem.p, problem.c)
    n = len(problem.u0)
    if problem.form == "rode":
        model = functions.model_of_random(n, problem.columns)
    else:
        model = functions.model_of_noise(n, parts, problem.columns)
    number = engine.object(*algorithm_expression(alg, "sde"))
    events = engine.events(problem)
    request, keep = engine.request(model, number, events.number if events else 0, problem, options)
    assert options.seed is not None
    along, kept = _path(problem)
    if jumps is not None:
        by = ("solve_jumps", jumps)
    elif along is not None:
        by = ("solve_along", along)
    else:
        by = ("solve_noisy", options.seed + 1)
    kinds = tuple(c.kind for c in problem.callbacks)
    with engine.first(
        functions, ("solve", number, problem.columns, options.gradient, kinds, by[0])
    ):
        response = engine.bridge.solve(request, options.progress, *by)
    del keep, kept
    made = engine.solution(response, problem, options, functions, events, alg)
    made.handle.parts = parts
    made.stats.nf = made.stats.nf or None  # StochasticDiffEq does not count for all algorithms
    return made


def _path(problem: FlatProblem) -> tuple[int | None, Any]:
    """The address of the path that the noise is to follow, and what must stay alive for it."""
    if problem.noise is None:
        return None, None
    times, values = problem.noise
    values = np.ascontiguousarray(values, problem.dtype)
    path = PathResponse(len(times), values.shape[1], address(times), address(values))
    return ct.addressof(path), (path, times, values)


def noise_path(engine: JuliaEngine, solution: FlatSolution) -> tuple[Array, Array]:
    """See :meth:`pysciml.engines.base.Engine.noise_path`."""
    handle: Handle = solution.handle
    engine.use(handle)
    r = PathResponse()
    what = (handle.number, ct.addressof(r))
    with engine.first(handle.functions, ("noise path",)):
        engine.bridge.interruptibly(lambda: engine.bridge.call("noise_path", *what))
    return (
        array(r.t, (r.count,), "float64"),
        array(r.w, (r.count, r.m), handle.problem.dtype),
    )


def adjoint(
    engine: JuliaEngine, solution: FlatSolution, grad_u: Array, at: Array | None, by_times: bool
) -> FlatGradient:
    """See :meth:`pysciml.engines.base.Engine.adjoint`."""
    handle: Handle = solution.handle
    problem = handle.problem
    if by_times:
        raise EngineError(
            "A path of a stochastic equation has no derivative by time; detach saveat, or the "
            "times of sol(t)."
        )
    engine.use(handle)
    times = np.ascontiguousarray(solution.t if at is None else at, np.float64)
    order = np.argsort(times, kind="stable")
    times, cotangents = times[order], np.ascontiguousarray(grad_u, problem.dtype)[order]
    source = np.full(len(times), FIXED) if at is not None else solution.source[order]
    source = np.ascontiguousarray(source, np.int64)
    devents, of_callbacks = events_gradient(problem)
    du0, dp = np.zeros(len(problem.u0), problem.dtype), np.zeros(len(problem.p), problem.dtype)
    number = engine.object("nothing", ())
    given = (address(times), address(source), address(cotangents), 0)
    with engine.first(handle.functions, ("pathwise", repr(handle.alg))):
        engine.bridge.adjoint(
            handle.number, number, len(times), given, (0.0, 0.0),
            (address(du0), address(dp), 0, 0, address(devents)),
        )  # fmt: skip
    return FlatGradient(u0=du0, p=dp, t0=0.0, times=np.zeros(len(times)), callbacks_p=of_callbacks)
