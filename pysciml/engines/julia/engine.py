"""The engine: flat problems to Julia and back."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pysciml.algorithms import Algorithm
from pysciml.diffeqgpu import GPU_ALGORITHMS
from pysciml.engines.base import (
    FIXED,
    Engine,
    FlatBoundary,
    FlatEnsemble,
    FlatEnsembleGradient,
    FlatGradient,
    FlatMembers,
    FlatMesh,
    FlatProblem,
    FlatSolution,
    Functions,
    SolveOptions,
    Stats,
    Tuning,
)
from pysciml.engines.julia import boundary, delay, device, ensemble, jumps, members, stochastic
from pysciml.engines.julia.adjoint import adjoint, is_defined, refuse_adjoint, undefined
from pysciml.engines.julia.again import Again
from pysciml.engines.julia.bridge import (
    HANDLES,
    REQUEST,
    Bridge,
    Response,
    address,
    array,
)
from pysciml.engines.julia.events import JuliaEvents
from pysciml.engines.julia.jumps import is_pure
from pysciml.engines.julia.models import JuliaFunctions, Loader
from pysciml.engines.julia.names import (
    COARSE_AT_FIXED_STEPS,
    COARSE_BETWEEN,
    algorithm_expression,
    refuse_error_control,
    refuse_wrong,
    require_sensealg,
    tuned_expression,
)
from pysciml.engines.julia.parts import (
    require_fitting_parts,
    taken_apart,
)
from pysciml.engines.julia.refusals import refused
from pysciml.engines.julia.sparse import Pattern, keeps_jacobian, pattern
from pysciml.engines.julia.startup import Julia, julia
from pysciml.engines.julia.twin import adjoint_of_twin, twin_between
from pysciml.errors import EngineError
from pysciml.kernels.callback import CallbackFunctions
from pysciml.ordinarydiffeq import NEEDS, PARTS, SATISFIED
from pysciml.sensitivity import GaussAdjoint, InterpolatingAdjoint

Array = npt.NDArray[np.float64]


_DONE = nullcontext()
UNTUNED = Tuning()

_NEEDS = {
    "dae": "residuals (DAEProblem)",
    "partitioned": "partitioned equations (DynamicalODEProblem, SecondOrderODEProblem, "
    "HamiltonianProblem)",
    "second_order": "second-order equations (SecondOrderODEProblem)",
    "split": "split equations (SplitODEProblem, SemilinearODEProblem)",
    "semilinear": "semilinear equations (SemilinearODEProblem)",
    "linear": "linear equations given by an operator",
    "discrete": "maps (DiscreteProblem)",
}
#: By the kind or form of a problem: what it is called, and an algorithm for it.
_GIVEN = {
    "ode": ("an ODEProblem", "e.g. pysciml.Tsit5() or pysciml.Rodas5P()"),
    "dae": ("a DAEProblem", "pysciml.DFBDF()"),
    "partitioned": ("a partitioned problem", "e.g. pysciml.KahanLi8() or pysciml.Tsit5()"),
    "second_order": ("a SecondOrderODEProblem", "e.g. pysciml.DPRKN6() or pysciml.Tsit5()"),
    "split": ("a SplitODEProblem", "e.g. pysciml.KenCarp4()"),
    "semilinear": ("a SemilinearODEProblem", "e.g. pysciml.ETDRK4() or pysciml.KenCarp4()"),
    "rode": ("an RODEProblem", "e.g. pysciml.RandomHeun() with dt="),
    "sde": ("an SDEProblem", "e.g. pysciml.SOSRI(), or pysciml.EM() with dt="),
    "dde": ("a DDEProblem", "e.g. pysciml.MethodOfSteps(pysciml.Tsit5())"),
}


def _part_of(name: str) -> str:
    """An algorithm that takes the option's value ``name``."""
    if name.startswith("NL"):
        return f"pysciml.KenCarp4(nlsolve=pysciml.{name}())"
    return f"pysciml.Rodas5P(linsolve=pysciml.{name}())"


def checked_options(
    alg: Algorithm | None, options: SolveOptions, problem: FlatProblem
) -> SolveOptions:
    """The options as the algorithm needs them. Raises where the two do not fit."""
    refuse_error_control(alg, options, problem)
    refuse_wrong(alg, options, problem)
    require_sensealg(options.sensealg, alg, options.tuning)
    if is_coarse(alg) and options.saveat is not None and not _lacks_steps(alg, options):
        # SciML sorts stops and leaves out the ends and what stands twice
        stops = [options.saveat] if options.tstops is None else [options.saveat, options.tstops]
        options = replace(options, tstops=np.concatenate(stops))
    return options


def _lacks_steps(alg: Algorithm | None, options: SolveOptions) -> bool:
    """Whether stops would become the steps of a method that nobody gave any: Julia refuses that."""
    fixed = not options.adaptive or (alg is not None and alg.name in COARSE_AT_FIXED_STEPS)
    return fixed and options.dt is None and options.tstops is None


def is_coarse(alg: Algorithm | None) -> bool:
    """Whether the solution is not to be read between the steps, of an algorithm or of one of those
    that it switches between. Of delay equations it is: see ``COARSE_BEFORE``."""
    if alg is None or alg.name == "MethodOfSteps":
        return False
    return alg.name in COARSE_BETWEEN or any(map(is_coarse, alg.parts))


def refuse_coarse_events(problem: FlatProblem, alg: Algorithm | None) -> None:
    """Raise EngineError where events would be looked for on a coarse interpolant."""
    if is_coarse(alg) and any(c.kind == "continuous" for c in problem.callbacks):
        raise EngineError(
            f"{alg!r} does not find events (ContinuousCallback) to its tolerance: what stands "
            "between its steps is coarse in Julia; use pysciml.Vern9(), or pysciml.Rodas5P() for a "
            "stiff equation."
        )


def _sparse_pattern(problem: FlatProblem, alg: Algorithm | None) -> Pattern | None:
    if problem.kind != "ode" or problem.dtype != "float64" or not keeps_jacobian(alg):
        return None
    return pattern(problem.functions)


def goes_by_outputs(problem: FlatProblem, options: SolveOptions) -> bool:
    """Whether a gradient needs the outputs alone: see ``Checkpointed`` in Julia."""
    if problem.jumps is not None or problem.form in ("sde", "dde", "rode"):
        return False
    sensealg = options.sensealg
    return isinstance(sensealg, (GaussAdjoint, InterpolatingAdjoint)) and sensealg.checkpointing


def _flat(x: Any, dtype: str) -> Array | None:
    return None if x is None else np.ascontiguousarray(x, dtype)


@dataclass
class Handle:
    """What a solution keeps: Julia's handle, dropped with this object."""

    number: int
    problem: FlatProblem
    options: SolveOptions
    functions: JuliaFunctions
    events: JuliaEvents | None
    alg: Algorithm | None
    parts: tuple[JuliaFunctions, ...] = ()  # of a stochastic or delay equation
    twin: FlatSolution | None = None  # to be read between the outputs


class JuliaEngine(Engine):
    """DifferentialEquations.jl: ODEs and DAEs by any of its algorithms, with gradients."""

    name = "julia"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._compiling = threading.RLock()
        self._functions: weakref.WeakKeyDictionary[Any, dict[Any, JuliaFunctions]] = (
            weakref.WeakKeyDictionary()
        )
        self._objects: dict[tuple[str, tuple[str, ...]], int] = {}
        self._devices: dict[tuple[str, int], bool] = {}

    @cached_property
    def julia(self) -> Julia:
        """The running Julia, started by the first solve."""
        return julia()

    def start(self) -> None:
        """Start Julia. What starts it should not be a thread that ends before the process does."""
        self.bridge  # noqa: B018

    @cached_property
    def bridge(self) -> Bridge:
        return Bridge(self.julia)

    @cached_property
    def loader(self) -> Loader:
        return Loader(self.bridge)

    def first(
        self, functions: JuliaFunctions, what: tuple[Any, ...]
    ) -> AbstractContextManager[None]:
        """Let one thread alone do what these functions have not done before.

        The first time Julia compiles, and asks Python for kernels: threads that did so at once
        were seen to wait for each other for ever.
        """
        return _DONE if what in functions.done else self._alone(functions, what)

    @contextmanager
    def _alone(self, functions: JuliaFunctions, what: tuple[Any, ...]) -> Iterator[None]:
        with self._compiling:
            yield
            functions.done.add(what)

    # -- what there is -------------------------------------------------------------------------

    def check(self, problem_kind: str, alg: Algorithm | None, has_mass_matrix: bool) -> None:
        if problem_kind not in _GIVEN:
            raise EngineError(
                f"The julia engine does not solve {problem_kind!r} problems yet; write yours as an "
                "ODEProblem or a DAEProblem."
            )
        if alg is not None and alg.name in PARTS:
            raise EngineError(
                f"alg is {alg.name}, which is an option of algorithms and not an algorithm itself; "
                f"give it to one, e.g. {_part_of(alg.name)}."
            )
        if alg is not None and alg.package == "BoundaryValueDiffEqMIRK":
            raise EngineError(
                f"{alg.name} is for boundary value problems (BVProblem, TwoPointBVProblem), but "
                f"this is {_GIVEN[problem_kind][0]}; use {_GIVEN[problem_kind][1]}."
            )
        if alg is not None and alg.package == "DiffEqGPU":
            raise EngineError(
                f"{alg.name} solves the members of an ensemble on a GPU: give it with an "
                "EnsembleProblem and EnsembleGPUKernel(), or use "
                f"pysciml.{GPU_ALGORITHMS[alg.name]}()."
            )
        stochastic.check_stochastic(problem_kind, alg)
        alg = delay.checked(problem_kind, alg)
        need = NEEDS.get(alg.name) if alg is not None else None
        if need is not None and problem_kind not in SATISFIED[need]:
            given, use = _GIVEN[problem_kind]
            raise EngineError(
                f"{alg.name} is for {_NEEDS[need]}, but this is {given}; "  # type: ignore[union-attr]
                f"use {use}."
            )
        if alg is not None and problem_kind == "dae" and need != "dae":
            raise EngineError(
                f"{alg.name} does not solve residuals (DAEProblem); use pysciml.DFBDF(), or write "
                "the problem as an ODEProblem with a mass_matrix."
            )
        if alg is not None and "julia" not in alg.engines:
            raise EngineError(
                f"{alg.name} belongs to the sundials engine: use engine='sundials', or on the "
                "julia engine FBDF (stiff), Vern7 (not stiff) or DFBDF (a residual)."
            )

    def object(self, text: str, packages: tuple[str, ...]) -> int:
        """The number of a Julia value (an algorithm) given as an expression."""
        key = (text, packages)
        if key not in self._objects:
            source, names = text.encode(), ",".join(packages).encode()
            self._objects[key] = self.bridge.number(
                "object", source, len(source), names, len(names)
            )
        return self._objects[key]

    def functions(self, functions: Functions, kind: str, dtype: str) -> JuliaFunctions:
        functions = functions.shared
        with self._lock:
            made = self._functions.setdefault(functions, {})
            key = (kind, dtype)
            if key not in made:
                made[key] = JuliaFunctions(self.loader, functions, kind, dtype)
            return made[key]

    def events(self, problem: FlatProblem) -> JuliaEvents | None:
        """The problem's callbacks in Julia, with their parameters set."""
        if not problem.callbacks:
            return None

        def functions(f: Functions, kind: str) -> JuliaFunctions:
            return self.functions(f, kind, problem.dtype)

        made = JuliaEvents(self.bridge, problem.callbacks, functions, problem.dtype)
        made.use(problem.callbacks)
        return made

    def require_tuning(self, tuning: Tuning, callbacks: tuple[Any, ...]) -> None:
        pass

    def takes_tensors(
        self, prob: Any, alg: Algorithm | None, sensealg: Any, has_callbacks: bool
    ) -> bool:
        where = device.device_of(prob.state_spec.device)
        if where is None or not device.suits(prob, alg, sensealg, has_callbacks):
            return False
        if where not in self._devices:
            name, index = where
            # -1 states: only whether Julia has such a device
            self._devices[where] = bool(
                self.bridge.number("new_device_model", 0, 0, -1, 0, name.encode(), index)
            )
        return self._devices[where]

    def why_no_tensors(self, prob: Any, alg: Algorithm | None, sensealg: Any, name: str) -> str:
        return device.why_not(prob, alg, sensealg, name)

    # -- forward -------------------------------------------------------------------------------

    def prepared(
        self, problem: FlatProblem, alg: Algorithm | None, tuning: Tuning = UNTUNED
    ) -> tuple[JuliaFunctions, int, int]:
        """The problem's functions in Julia, and the numbers of its model and algorithm."""
        functions = self.functions(problem.functions, problem.kind, problem.dtype)
        functions.use(problem.p, problem.c)
        if taken_apart(problem, alg):
            return functions, *self._in_parts(problem, functions, alg, tuning)
        sparse = _sparse_pattern(problem, alg)
        model = functions.model(len(problem.u0), problem.mass_matrix, sparse)
        return (
            functions,
            model,
            self._algorithm(problem, alg, tuning, sparse is not None),
        )

    def solve(
        self, problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
    ) -> FlatSolution:
        again = problem.memo.get(id(options))
        if again is not None and again.options is options:
            return self._solve_again(again, problem)
        try:
            return self._solve(problem, alg, options)
        except EngineError as error:
            said = refused(error, alg)
            if said is None:
                raise
            raise said from None

    def _solve(
        self, problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
    ) -> FlatSolution:
        asked = options
        if problem.jumps is not None:
            if problem.jumps.kind == "ode":
                options = checked_options(alg, options, problem)
            return jumps.solve(self, problem, alg, options)
        if problem.form in ("sde", "rode"):
            return stochastic.solve(self, problem, alg, options)
        if problem.form == "dde":
            taken = delay.checked("dde", alg)
            refuse_error_control(taken, options, problem)
            refuse_wrong(taken, options, problem)
            return delay.solve(self, problem, alg, options)
        options = checked_options(alg, options, problem)
        refuse_coarse_events(problem, alg)
        if isinstance(problem.u0, torch.Tensor):
            return device.solve(self, problem, alg, options)
        if taken_apart(problem, alg):
            require_fitting_parts(problem, alg, options)
        functions, model, number = self.prepared(problem, alg, options.tuning)
        events = self.events(problem)
        request, keep = self.request(
            model, number, events.number if events else 0, problem, options
        )
        with self.first(functions, ("solve", number, events is None, options.gradient)):
            response = self.bridge.solve(request, options.progress)
        plain = events is None and options.progress is None and problem.dtype == "float64"
        if plain and functions.functions.kernels is not None:
            problem.memo[id(asked)] = Again(asked, options, alg, functions, request, keep)
        return self.solution(response, problem, options, functions, events, alg)

    def solve_boundary(
        self, problem: FlatBoundary, alg: Algorithm, options: SolveOptions
    ) -> FlatMesh:
        return boundary.solve(self, problem, alg, options)

    def _solve_again(self, again: Again, problem: FlatProblem) -> FlatSolution:
        """Solve what was solved before, from other values."""
        again.functions.use(problem.p, problem.c)  # derivatives without a kernel are called back
        return self.solution(
            self.bridge.solve(again.request(problem)),
            problem,
            again.checked,
            again.functions,
            None,
            again.alg,
        )

    def _algorithm(
        self, problem: FlatProblem, alg: Algorithm | None, tuning: Tuning, sparse: bool = False
    ) -> int:
        made = algorithm_expression(alg, problem.kind, sparse)
        if tuning != UNTUNED:
            made = tuned_expression(alg, *made, tuning, problem.dtype)
        return self.object(*made)

    def _in_parts(
        self,
        problem: FlatProblem,
        functions: JuliaFunctions,
        alg: Algorithm | None,
        tuning: Tuning,
    ) -> tuple[int, int]:
        first, second = (self.functions(f, "ode", problem.dtype) for f in problem.parts)
        for part in (first, second):
            part.use(problem.p, problem.c)
        linear = NEEDS.get(alg.name) == "semilinear" if alg is not None else False
        model = functions.model_of_parts(len(problem.u0), (first, second), problem.split, linear)
        return model, self._algorithm(problem, alg, tuning)

    def request(
        self,
        model: int,
        alg: int,
        events: int,
        problem: FlatProblem,
        options: SolveOptions,
        at: tuple[int, int, int] | None = None,
    ) -> tuple[bytes, list[Array | None]]:
        """The request, and the arrays it points to, to be kept alive.

        ``at``: where u0, p and c are, if they are not the problem's own arrays.
        """
        dtype = problem.dtype
        tolerance = np.asarray(options.abstol, np.float64).reshape(-1)
        own = (problem.u0, problem.p, problem.c) if at is None else ()
        arrays = [
            *(_flat(x, dtype) for x in own),
            _flat(options.saveat, "float64"),
            _flat(options.tstops, "float64"),
            tolerance,
            _flat(problem.du0, dtype),
            _flat(problem.differential_vars, "uint8"),
        ]
        o, nan = options, math.nan
        dense = o.gradient and not goes_by_outputs(problem, o)
        request = REQUEST.pack(
            model, alg, events, dense, o.adaptive, o.maxiters,
            len(problem.u0), len(problem.p), len(problem.c),
            0 if o.saveat is None else len(o.saveat),
            0 if o.tstops is None else len(o.tstops),
            len(tolerance),
            *(at or ()), *map(address, arrays),
            problem.t0, problem.t1, o.reltol,
            nan if o.dt is None else o.dt,
            nan if o.dtmax is None else o.dtmax,
            nan if o.dtmin is None else o.dtmin,
        )  # fmt: skip
        return request, arrays

    def solution(
        self,
        r: Response,
        problem: FlatProblem,
        options: SolveOptions,
        functions: JuliaFunctions,
        events: JuliaEvents | None,
        alg: Algorithm | None,
    ) -> FlatSolution:
        handle = Handle(r.handle, problem, options, functions, events, alg)
        self.bridge.drop_with(handle, HANDLES, r.handle)
        m, k, saveat = r.m, r.nevents, options.saveat
        happened: list[tuple[float, int]] = []
        if k:
            times = array(r.event_times, (k,), "float64").tolist()
            which = array(r.event_indices, (k,), "int64").tolist()
            happened = list(zip(times, which, strict=True))
        retcode = self.bridge.retcodes[r.retcode]
        stopped = retcode not in ("Success", "Terminated")
        at_saveat = saveat is not None and not (k or stopped) and m == len(saveat)
        if saveat is not None and at_saveat:
            t, source = saveat.copy(), np.arange(m)
        else:
            t, source = array(r.t, (m,), "float64"), array(r.source, (m,), "int64")
            if stopped and m and t[-1] == r.t_reached:
                source[-1] = FIXED  # the last state, at no time that was asked for
        return FlatSolution(
            t=t,
            u=array(r.u, (m, len(problem.u0)), problem.dtype),
            source=source,
            retcode=retcode,
            stats=Stats(*r.counts, alg.name if alg else "default"),
            handle=handle,
            t_reached=r.t_reached,
            events=happened,
            at_saveat=at_saveat,
        )

    def interpolate(self, solution: FlatSolution, ts: Array, deriv: int = 0) -> Array:
        handle: Handle = solution.handle
        if isinstance(handle, device.DeviceHandle):
            return device.interpolate(self, handle, ts, deriv)
        if deriv and (is_pure(handle.problem) or handle.problem.form in ("sde", "rode")):
            raise EngineError(
                f"deriv is {deriv}, but a path along noise or jumps has no derivative by time; "
                "leave it out."
            )
        ts = np.ascontiguousarray(ts, np.float64)
        out = np.empty((len(ts), len(handle.problem.u0)), handle.problem.dtype)
        if len(ts) == 0:
            return out
        if is_coarse(handle.alg):
            twin = twin_between(self, handle, ts)
            return self.interpolate(twin, ts, deriv).astype(handle.problem.dtype)
        self.use(handle)
        what = (handle.number, ts.ctypes.data, len(ts), deriv, out.ctypes.data)
        with self.first(handle.functions, ("interpolate", deriv)):
            self.bridge.interruptibly(lambda: self.bridge.call("interpolate", *what))
        return out

    def noise_path(self, solution: FlatSolution) -> tuple[Array, Array]:
        return stochastic.noise_path(self, solution)

    # -- ensembles -----------------------------------------------------------------------------

    def solves_members(self, problem: FlatProblem, alg: Algorithm | None) -> bool:
        # what is called back in Python, a derivative or all, holds the parameters of one solve
        called_back = isinstance(problem.functions, CallbackFunctions)
        kernels = getattr(problem.functions, "kernels", None)
        if kernels is not None:
            roles = ("jac:u", "vjp:up" if len(problem.p) else "vjp:u")
            called_back = not all(map(kernels.available, roles))
        return not (
            problem.kind != "ode"
            or problem.form
            or problem.callbacks
            or called_back
            or is_coarse(alg)
        )

    def solve_members(
        self,
        problem: FlatProblem,
        members: FlatMembers,
        alg: Algorithm | None,
        options: SolveOptions,
        threads: int,
    ) -> FlatEnsemble:
        return ensemble.solve(
            self, problem, members, alg, checked_options(alg, options, problem), threads
        )

    def adjoint_members(
        self, solution: FlatEnsemble, grad_u: Array, by_times: bool = True
    ) -> FlatEnsembleGradient:
        handle: ensemble.Handle = solution.handle
        refuse_adjoint(handle.problem, handle.sensealg)
        return ensemble.adjoint(self, solution, grad_u, by_times)

    def solve_members_on_gpu(
        self, problem: FlatProblem, members_: FlatMembers, alg: Algorithm, options: SolveOptions
    ) -> FlatEnsemble:
        return members.solve(self, problem, members_, alg, options)

    def adjoint_members_on_gpu(
        self,
        solution: FlatEnsemble,
        grad_u: Any,
        by_times: bool,
        by_state: bool,
        directions: npt.NDArray[np.int64],
    ) -> FlatEnsembleGradient:
        return members.adjoint(self, solution, grad_u, by_times, by_state, directions)

    def use(self, handle: Handle) -> None:
        for functions in (handle.functions, *handle.parts):
            functions.use(handle.problem.p, handle.problem.c)
        if handle.events is not None:
            handle.events.use(handle.problem.callbacks)

    # -- backward ------------------------------------------------------------------------------

    def adjoint(
        self,
        solution: FlatSolution,
        grad_u: Array,
        grad_t: Array | None = None,
        at: Array | None = None,
        by_times: bool = True,
    ) -> FlatGradient:
        handle: Handle = solution.handle
        if not is_defined(grad_u, grad_t):
            return undefined(handle.problem, len(grad_u))
        if isinstance(handle, device.DeviceHandle):
            return device.adjoint(self, solution, grad_u, at, by_times)
        pure = is_pure(handle.problem)
        if pure and not handle.options.gradient:
            raise EngineError("This jump process was solved without gradients; solve it with them.")
        if pure or handle.problem.form in ("sde", "rode"):
            # what stays as it is between jumps does not change with the time it is looked at
            return stochastic.adjoint(self, solution, grad_u, at, by_times and not pure)
        if taken_apart(handle.problem, handle.alg) or is_coarse(handle.alg):
            return adjoint_of_twin(self, solution, grad_u, grad_t, at, by_times)
        return adjoint(self, solution, grad_u, grad_t, at, by_times)
