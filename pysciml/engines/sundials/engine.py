"""The embedded engine: CVODE and IDA of SUNDIALS through scikit-sundae, with gradients.

Source: Hindmarsh et al., "SUNDIALS: Suite of nonlinear and differential/algebraic equation
solvers", ACM TOMS 31 (2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pysciml.algorithms import Algorithm
from pysciml.consistency import without_rate
from pysciml.engines.base import (
    FIRST_EVENT,
    FIXED,
    FROM_T0,
    FROM_T1,
    Engine,
    FlatGradient,
    FlatProblem,
    FlatSolution,
    SolveOptions,
    Stats,
)
from pysciml.engines.sundials import jacobian
from pysciml.engines.sundials.adjoint import (
    Outputs,
    rate_at,
    run_adjoint,
)
from pysciml.engines.sundials.consistent import require_satisfied
from pysciml.engines.sundials.forward import forward_gradient
from pysciml.engines.sundials.gauss import CollocationAdjoint
from pysciml.engines.sundials.integrate import (
    Conditions,
    Events,
    Stepper,
    Trajectory,
    integrate,
    integrate_at_once,
)
from pysciml.engines.sundials.interpolant import WIDTH, Piecewise
from pysciml.engines.sundials.rates import Rates
from pysciml.engines.sundials.steppers import (
    NOT_FINITE,
    Counts,
    CvodeStepper,
    IdaStepper,
    Linear,
    Tolerances,
)
from pysciml.engines.sundials.stepping import stepping_adjoint
from pysciml.engines.sundials.stiffness import EIGENVALUES, is_stiff, stiffness_monitor
from pysciml.errors import EngineError, InputError
from pysciml.sensitivity import GaussAdjoint

Array = npt.NDArray[np.float64]

#: Time constants of the fastest mode in a solve, beyond which a large sparse Jacobian is factored.
_FACTOR = 1e4


@dataclass
class Handle:
    """What a solution keeps for interpolation and for its gradient."""

    problem: FlatProblem
    options: SolveOptions
    trajectory: Trajectory
    segment_of: npt.NDArray[np.int64]

    @cached_property
    def piecewise(self) -> Piecewise:
        """The solution as a function of time."""
        sign = 1.0 if self.problem.t1 > self.problem.t0 else -1.0
        return Piecewise([segment.interpolant for segment in self.trajectory.segments], sign)


class SundialsEngine(Engine):
    """ODEs by CVODE, DAEs (also in mass-matrix form) by IDA."""

    name = "sundials"

    def check(self, problem_kind: str, alg: Algorithm | None, has_mass_matrix: bool) -> None:
        if problem_kind in ("partitioned", "second_order", "split", "semilinear"):
            problem_kind = "ode"  # solved as one of first order, or for the sum
        if problem_kind in ("dde", "rode"):
            what = "delay" if problem_kind == "dde" else "random"
            raise EngineError(
                f"The sundials engine does not solve {what} equations "
                f"({problem_kind.upper()}Problem), which need "
                "engine='julia' (install it with: python -m pysciml setup)."
            )
        if problem_kind not in ("ode", "dae"):
            raise EngineError(
                f"The sundials engine solves ODEs and DAEs, not {problem_kind!r} problems; "
                "they need engine='julia' (install it with: python -m pysciml setup)."
            )
        if alg is None:
            return
        if "sundials" not in alg.engines:
            raise EngineError(
                f"{alg.name} belongs to the julia engine; install it with 'python -m pysciml "
                "setup', or use CVODE_BDF, CVODE_Adams or IDA on the sundials engine."
            )
        if alg.package == "torchsde":
            raise EngineError(
                f"{alg.name} is for stochastic equations (SDEProblem), but this problem has no "
                "noise; use pysciml.CVODE_BDF(), or write an SDEProblem."
            )
        needs_ida = problem_kind == "dae" or has_mass_matrix
        if needs_ida != (alg.name == "IDA"):
            what = "a DAE (or a mass matrix)" if needs_ida else "an ODE"
            use = "IDA" if needs_ida else "CVODE_BDF or CVODE_Adams"
            raise EngineError(
                f"{alg.name} does not solve {what}; use pysciml.{use}() on the sundials engine."
            )

    # -- forward ---------------------------------------------------------------

    def solve(
        self, problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
    ) -> FlatSolution:
        with np.errstate(all="ignore"):  # kernels give inf and NaN; they are looked at here
            return self._solve(problem, alg, options)

    def _solve(
        self, problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
    ) -> FlatSolution:
        if not options.adaptive:
            raise EngineError(
                "adaptive=False is not available on the sundials engine, whose methods choose "
                "their steps; bound them with dtmax=, or use engine='julia' (install it with: "
                "python -m pysciml setup)."
            )
        if ((np.asarray(options.abstol) == 0.0) & (problem.u0 == 0.0)).any():
            raise InputError(
                "abstol is 0 for an entry of u0 that is 0, which leaves no scale for its error; "
                "give a positive abstol, the size below which that entry does not matter."
            )
        counts = Counts()
        ida = problem.kind == "dae" or problem.mass_matrix is not None
        events = _bind_events(problem, ida)
        stops = _stops(problem, options)
        make: Callable[[], Stepper]
        if ida:
            name = "IDA"
            make, width = _ida(problem, alg, options, events, counts)
        else:
            make, width, name = _cvode(problem, alg, options, events, counts)
        if not (ida or alg is None or events or options.progress or len(stops)):
            simple = integrate_at_once(
                make(), problem.t0, problem.t1, problem.u0, options.maxiters, width()
            )
            if simple is not None:
                return _collect(problem, options, simple, counts, name)
            counts.nf = counts.njacs = counts.njv = counts.bad = 0
        trajectory = integrate(
            make, problem.t0, problem.t1, problem.u0, problem.du0, stops, events,
            options.maxiters, width, options.progress,
        )  # fmt: skip
        if counts.bad and trajectory.retcode not in ("Success", "Terminated", "MaxIters"):
            trajectory.retcode, trajectory.message = "Unstable", NOT_FINITE
        return _collect(problem, options, trajectory, counts, name)

    def interpolate(self, solution: FlatSolution, ts: Array, deriv: int = 0) -> Array:
        handle: Handle = solution.handle
        return handle.piecewise(ts, deriv)

    def portable(self, solution: FlatSolution) -> Piecewise:
        handle: Handle = solution.handle
        return handle.piecewise

    # -- backward --------------------------------------------------------------

    def adjoint(
        self,
        solution: FlatSolution,
        grad_u: Array,
        grad_t: Array | None = None,
        at: Array | None = None,
        by_times: bool = True,
    ) -> FlatGradient:
        with np.errstate(all="ignore"):
            return self._adjoint(solution, grad_u, grad_t, at, by_times)

    def _adjoint(
        self,
        solution: FlatSolution,
        grad_u: Array,
        grad_t: Array | None,
        at: Array | None,
        by_times: bool,
    ) -> FlatGradient:
        handle: Handle = solution.handle
        problem, options, trajectory = handle.problem, handle.options, handle.trajectory
        rates = Rates(problem)
        forward = options.sensealg is not None and options.sensealg.name == "ForwardSensitivity"
        if at is None:
            outputs = Outputs.of(solution, trajectory, handle.segment_of, grad_u, grad_t)
            slopes = outputs.slopes(trajectory, rates, by_times)
        else:
            u = self.interpolate(solution, at)
            outputs = Outputs.fixed(at, handle.piecewise.which(at), u, grad_u)
            slopes = np.zeros(len(at))
            if by_times:
                slopes = np.einsum("ij,ij->i", grad_u, self.interpolate(solution, at, 1))
        if forward:
            rtol = (options.sensealg and options.sensealg.reltol) or options.reltol
            mu, grad_p, extra = forward_gradient(problem, trajectory, outputs, rates, rtol)
        else:
            method = _method(problem, options, rates)
            mu, grad_p, extra = run_adjoint(problem, trajectory, outputs, slopes, rates, method)
        t0 = 0.0
        if by_times:
            first = trajectory.segments[0]
            t0 = -float(mu @ rate_at(first, rates, float(first.t[0]), first.u[0]))
        times = np.where(outputs.moves < 0, slopes, 0.0)
        return FlatGradient(
            u0=mu, p=grad_p, t0=t0, times=times, callbacks_p=extra,
            du0=np.zeros_like(mu) if problem.kind == "dae" else None,
        )  # fmt: skip


def _method(problem: FlatProblem, options: SolveOptions, rates: Rates) -> Any:
    sensealg = options.sensealg or GaussAdjoint()
    rtol = sensealg.reltol or options.reltol
    if sensealg.name in ("GaussAdjoint", "CollocationAdjoint"):
        return CollocationAdjoint(problem, rtol, rates)
    return stepping_adjoint(problem, options, sensealg)


# -- setting up ------------------------------------------------------------------


def _bind_events(problem: FlatProblem, ida: bool) -> Events | None:
    if not problem.callbacks:
        return None
    continuous, discrete, affects = [], {}, {}
    for i, c in enumerate(problem.callbacks):
        if c.condition is not None:
            assert c.condition_p is not None and c.condition_c is not None
            value = c.condition.bind("value", c.condition_p, c.condition_c)
            if c.kind == "continuous":
                continuous.append(value)
            else:
                discrete[i] = value
        if c.affect is not None:
            assert c.affect_p is not None and c.affect_c is not None
            affects[i] = c.affect.bind("value", c.affect_p, c.affect_c)
    conditions = Conditions(problem.callbacks, continuous, ida) if continuous else None
    return Events(problem.callbacks, conditions, discrete, affects)


def _stops(problem: FlatProblem, options: SolveOptions) -> Array:
    parts = [np.asarray(c.times, dtype=float) for c in problem.callbacks if c.times is not None]
    if options.tstops is not None:
        parts.append(options.tstops)
    if options.tuning.discontinuities:  # after every stop a new beginning
        parts.append(np.array(options.tuning.discontinuities))
    if not parts:
        return np.empty(0)
    sign = 1.0 if problem.t1 > problem.t0 else -1.0
    return sign * np.unique(sign * np.concatenate(parts))


def _tolerances(problem: FlatProblem, alg: Algorithm | None, options: SolveOptions) -> Tolerances:
    extra: dict[str, Any] = {}
    given = {} if alg is None else alg.options
    for ours, theirs in (
        ("max_order", "max_order"),
        ("max_nonlinear_iters", "max_nonlin_iters"),
        ("max_convergence_failures", "max_conv_fails"),
    ):
        if ours in given:
            extra[theirs] = int(given[ours])
    atol = options.abstol
    return Tolerances(
        rtol=float(options.reltol),
        atol=float(atol) if np.ndim(atol) == 0 else np.asarray(atol, dtype=float),
        first_step=math.copysign(options.dt or 0.0, problem.t1 - problem.t0),
        # none of its own is the span: scikit-sundae compares it with the least
        max_step=abs(options.dtmax or (problem.t1 - problem.t0 if options.dtmin else 0.0)),
        min_step=abs(options.dtmin or 0.0),
        extra=extra,
    )


def _linear(alg: Algorithm | None, made: jacobian.Plan) -> Linear:
    given = {} if alg is None else alg.options
    wish = given.get("linear_solver")
    if wish is None:
        return made.linear
    table = {
        "Dense": "dense", "LapackDense": "lapackdense", "Band": "band",
        "GMRES": "gmres", "BCG": "bicgstab", "TFQMR": "tfqmr",
    }  # fmt: skip
    if wish not in table:
        raise InputError(f"linear_solver is {wish!r}; give one of {', '.join(table)}.")
    if wish == "Band":
        if "jac_lower" not in given or "jac_upper" not in given:
            raise InputError(
                "linear_solver is 'Band', but the bandwidths are not given; give the numbers of "
                "diagonals below and above the main one as jac_lower= and jac_upper=."
            )
        return Linear("band", int(given["jac_lower"]), int(given["jac_upper"]))
    return Linear(table[wish], krylov_dim=int(given.get("krylov_dim", 0)))


def _cvode(
    problem: FlatProblem,
    alg: Algorithm | None,
    options: SolveOptions,
    events: Events | None,
    counts: Counts,
) -> tuple[Callable[[], CvodeStepper], Callable[[], int], str]:
    functions, p, c = problem.functions, problem.p, problem.c
    value = functions.bind("value", p, c)
    made = jacobian.plan(functions)
    linear = _linear(alg, made)
    jac = jvp = None
    if linear.kind == "sparse":
        jac = jacobian.sparse_filler(functions, p, c)
    elif linear.kind != "gmres":
        jac = jacobian.dense_filler(functions, p, c)
    watched = alg is None and (len(problem.u0) > EIGENVALUES or linear.kind == "sparse")
    large = linear.kind == "sparse" and len(problem.u0) > jacobian.DENSE_LIMIT
    if (watched or large or linear.kind == "gmres") and getattr(functions, "differentiable", True):
        jvp = functions.bind("jvp:u", p, c)
    if large:
        # many states that are hardly stiff: iterations are cheaper than factors
        if not is_stiff(None, jvp, problem.u0, problem.t0, problem.t1, span=_FACTOR):
            linear, jac = Linear("gmres", krylov_dim=30), None
    conditions = None if events is None else events.conditions
    tol = _tolerances(problem, alg, options)
    state = {"method": "BDF", "auto": alg is None}
    formed = None if linear.kind == "sparse" else jac  # as a dense matrix
    if alg is None:
        stiff = is_stiff(formed, jvp, problem.u0, problem.t0, problem.t1)
        state["method"] = "BDF" if stiff else "Adams"
    elif alg.name == "CVODE_Adams":
        state["method"] = "Adams"
    if state["method"] == "BDF" and int(tol.extra.get("max_order", 5)) > 5:
        given = tol.extra["max_order"]
        raise InputError(f"max_order is {given}; give CVODE_BDF an order from 1 to 5.")
    monitor = stiffness_monitor(state, formed, jvp) if alg is None else None

    def make() -> CvodeStepper:
        return CvodeStepper(
            str(state["method"]), value, jac, jvp, linear, tol, conditions, counts,
            monitor if state["method"] == "Adams" else None,
        )  # fmt: skip

    return make, lambda: WIDTH[str(state["method"])], f"CVODE_{state['method']}"


def _ida(
    problem: FlatProblem,
    alg: Algorithm | None,
    options: SolveOptions,
    events: Events | None,
    counts: Counts,
) -> tuple[Callable[[], IdaStepper], Callable[[], int]]:
    functions = problem.functions
    n = len(problem.u0)
    made = jacobian.plan(functions)
    wish = _linear(alg, made)
    linear = wish
    if wish.kind in ("band", "sparse"):
        linear = Linear("dense") if n <= jacobian.DENSE_LIMIT else Linear("gmres", krylov_dim=30)
    value, jac = _residual(problem)
    if problem.kind == "dae":
        flags = problem.differential_vars
        algebraic = [] if flags is None else [i for i in range(n) if not flags[i]]
        initial = ["yp0" if flags is not None else None]
        if flags is None:
            require_satisfied(problem, options, jacobian.DENSE_LIMIT)
        if flags is None and events is not None:
            # The user vouches for u0 and du0, but not for what is consistent after an affect.
            algebraic = np.flatnonzero(without_rate(problem, 0)).tolist()
            initial = ["yp0", None]
    else:
        mass = problem.mass_matrix
        assert mass is not None
        algebraic = [i for i in range(n) if not mass[:, i].any()]
        initial = ["yp0"]
    span = problem.t1 - problem.t0
    conditions = None if events is None else events.conditions
    tol = _tolerances(problem, alg, options)
    usable = getattr(functions, "differentiable", True)

    def make() -> IdaStepper:
        return IdaStepper(
            value, jac if usable else None, None, linear, tol, conditions, counts,
            algebraic, initial.pop() if len(initial) > 1 else initial[0], span,
        )  # fmt: skip

    return make, lambda: WIDTH["BDF"]


def _residual(problem: FlatProblem) -> tuple[Callable[..., None], Callable[..., None]]:
    """(residual, dF/du + cj dF/du') of IDA's form, from either kind of problem."""
    functions, p, c = problem.functions, problem.p, problem.c
    value = functions.bind("value", p, c)
    jac_u = functions.bind("jac:u", p, c)
    n = len(problem.u0)
    work = np.empty((n, n))
    if problem.kind == "dae":
        jac_du = functions.bind("jac:du", p, c)

        def jac(du: Array, u: Array, t: float, cj: float, out: Array) -> None:
            jac_u(du, u, t, out)
            jac_du(du, u, t, work)
            out += cj * work

        return value, jac
    mass = problem.mass_matrix
    assert mass is not None

    def residual(du: Array, u: Array, t: float, out: Array) -> None:
        value(u, t, out)
        out -= mass @ du

    def jac_mass(du: Array, u: Array, t: float, cj: float, out: Array) -> None:
        jac_u(u, t, work)
        out[...] = work - cj * mass

    return residual, jac_mass


# -- collecting ------------------------------------------------------------------


def _collect(
    problem: FlatProblem,
    options: SolveOptions,
    trajectory: Trajectory,
    counts: Counts,
    name: str,
) -> FlatSolution:
    sign = 1.0 if problem.t1 > problem.t0 else -1.0
    ts: list[Array] = []
    us: list[Array] = []
    sources: list[npt.NDArray[np.int64]] = []
    segments: list[npt.NDArray[np.int64]] = []
    events: list[tuple[float, int]] = []

    def put(k: int, t: Array, u: Array, source: Any) -> None:
        ts.append(t)
        us.append(u)
        sources.append(np.broadcast_to(np.asarray(source, dtype=np.int64), t.shape))
        segments.append(np.full(t.shape, k, dtype=np.int64))

    grid = options.saveat
    last = len(trajectory.segments) - 1
    for k, (segment, ends) in enumerate(zip(trajectory.segments, trajectory.ends, strict=True)):
        a, b = segment.t[0], segment.t[-1]
        if grid is None:
            source = np.full(len(segment.t), FIXED)
            if k == 0:
                source[0] = FROM_T0
            if b == problem.t1:
                source[-1] = FROM_T1
            keep = slice(None)
            if k > 0:  # the right limit at an event is saved by the event itself
                keep = slice(1, None)
            if ends:
                keep = slice(keep.start, -1)
            put(k, segment.t[keep], segment.u[keep], source[keep])
        else:
            inside = (sign * grid > sign * a) & (sign * grid <= sign * b)
            if k == 0:
                inside |= grid == a
            index = np.nonzero(inside)[0]
            if len(index):
                put(k, grid[index], segment.interpolant(grid[index]), index)
        if not ends:
            continue
        for r in ends:
            events.append((r.t, r.index))
        before, after = problem.callbacks[ends[0].index].save_positions
        label = FIRST_EVENT - (len(events) - len(ends))
        terminal = any(r.terminal for r in ends)
        moment = np.array([ends[0].t])
        if grid is None or before or terminal:
            already = grid is not None and len(ts) and len(ts[-1]) and ts[-1][-1] == ends[0].t
            if not already:
                put(k, moment, ends[0].u_before[None], label)
        changed = not np.array_equal(ends[-1].u_after, ends[0].u_before)
        if (grid is None or after) and not (terminal and not changed) and k < last:
            # what the affect left, made consistent where the equation has constraints
            put(k + 1, moment, trajectory.segments[k + 1].u[:1], label)
    n = len(problem.u0)
    t = np.concatenate(ts) if ts else np.empty(0)
    u = np.concatenate(us) if us else np.empty((0, n))
    source = np.concatenate(sources) if sources else np.empty(0, dtype=np.int64)
    segment_of = np.concatenate(segments) if segments else np.empty(0, dtype=np.int64)
    handle = Handle(problem, options, trajectory, segment_of)
    stats = Stats(nf=counts.nf, njacs=counts.njacs, naccept=trajectory.steps, algorithm=name)
    return FlatSolution(
        t=t, u=u, source=source, retcode=trajectory.retcode, stats=stats, handle=handle,
        message=trajectory.message, t_reached=float(trajectory.segments[-1].t[-1]), events=events,
    )  # fmt: skip
