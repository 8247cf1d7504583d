"""Maps: ``u[k+1] = f(u[k], p, t[k+1])``, iterated, with the exact gradient of the iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.algorithms import Algorithm, AlgorithmName, algorithm
from pysciml.callbacks import as_callbacks
from pysciml.discrete_events import MapEvents, steps_at
from pysciml.dispatch import solves
from pysciml.engines.base import FlatGradient, Stats
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import InputError, SolveError
from pysciml.flatten import ParameterSpec, StateSpec, to_numpy
from pysciml.flattened import Flattened
from pysciml.options import positive, state_indices, times_within
from pysciml.problems import ODEProblem, Problem, require_callable, require_onward
from pysciml.solution import Event, Solution
from pysciml.solve import once
from pysciml.transforms import leave_compiler, plain_mode, refuse_transforms, resume_compiler

__all__ = ["DiscreteProblem"]

Array = npt.NDArray[np.float64]

#: More steps than these are a mistake.
_MOST_STEPS = 1e8


@dataclass(frozen=True, eq=False, repr=False)
class DiscreteProblem(Problem):
    """``u[k+1] = f(u[k], p, t[k+1])`` with ``u[0] = u0`` and ``t[k] = t0 + k dt``.

    Parameters
    ----------
    f : callable
        ``f(u, p, t)`` in torch: the next state, in the structure of ``u``. None where the problem
        is only the start of a :class:`JumpProblem`, whose u0 may be of whole numbers (int64).
    u0, tspan, p
        As for :class:`ODEProblem`; tspan runs forward.
    callback : optional
        Events after a step (:class:`DiscreteCallback` and those made of it), or at steps
        (:class:`PresetTimeCallback`, :class:`PeriodicCallback`), and :class:`SavingCallback`.

    Solve it with ``solve(prob, FunctionMap(), dt=1.0)``: every state is an output, or those at
    ``saveat``, which must be among the ``t[k]``; ``sol(t)`` is the state of the last step before.
    ``FunctionMap(scale_by_time=True)`` iterates ``u + dt f``. Maps need no solver, and run the
    same on both engines.

    Raises
    ------
    InputError
        As :class:`ODEProblem`.
    """

    f: Callable[[Any, Any, Any], Any]
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    callback: Any = None

    kind = "discrete"
    state_spec: StateSpec = field(init=False)
    params_spec: ParameterSpec = field(init=False)
    whole: torch.dtype | None = field(init=False)  # of a state of whole numbers
    real_u0: Any = field(init=False)

    def __post_init__(self) -> None:
        if self.f is not None:
            require_callable(self.f, "f(u, p, t)")
        whole = _whole_numbers(self.u0) if self.f is None else None
        object.__setattr__(self, "whole", whole)
        real = self.u0
        if whole is not None:
            real = pytree.tree_map(lambda x: x.to(torch.float64), self.u0)
        object.__setattr__(self, "real_u0", real)
        made = ODEProblem(stays if self.f is None else self.f, real, self.tspan, self.p)
        self._take(made, "state_spec", "params_spec", "tspan")
        if any(isinstance(x, Tensor) and x.requires_grad for x in self.tspan):
            raise InputError(
                "tspan requires grad, but the times of a map have no gradient; detach them."
            )
        require_onward(self.tspan, "a map")
        object.__setattr__(self, "callback", as_callbacks(self.callback))


def stays(u: Any, p: Any, t: Any) -> Any:
    return u


def _whole_numbers(u0: Any) -> torch.dtype | None:
    """The dtype of a state of whole numbers. Raises InputError for one of several dtypes."""
    kinds = {x.dtype for x in pytree.tree_leaves(u0) if isinstance(x, Tensor)}
    if not any(k in (torch.int64, torch.int32) for k in kinds):
        return None
    if len(kinds) > 1:
        raise InputError(
            f"u0 mixes {', '.join(sorted(str(k)[6:] for k in kinds))}; give one dtype, e.g. int64."
        )
    return kinds.pop()


@solves(DiscreteProblem)
def solve_discrete(
    solve: Any,
    prob: DiscreteProblem,
    alg: Algorithm | AlgorithmName | None = None,
    *,
    engine: str = "auto",
    dt: float = 1.0,
    saveat: Any = None,
    save_idxs: Any = None,
    callback: Any = None,
    raise_on_failure: bool = True,
    **unknown: Any,
) -> Solution:
    """``solve`` for maps: ``FunctionMap()`` where no algorithm is named."""
    if unknown:
        raise InputError(
            f"solve does not take {next(iter(unknown))!r} for a DiscreteProblem; it takes engine, "
            "dt, saveat, save_idxs, callback, raise_on_failure."
        )
    if prob.f is None:
        raise InputError(
            "f is None, but a map needs the function that gives the next state; give f(u, p, t), "
            "or put jumps on the problem (JumpProblem)."
        )
    if isinstance(alg, AlgorithmName):
        alg = alg()
    alg = algorithm("FunctionMap")() if alg is None else alg
    if not isinstance(alg, Algorithm) or alg.name != "FunctionMap":
        raise InputError(
            f"alg is {alg!r}, but a DiscreteProblem is iterated by pysciml.FunctionMap()."
        )
    compiler = leave_compiler()
    try:
        refuse_transforms(prob.u0, prob.p)
        chosen = choose_engine(engine)
        with plain_mode():
            setup = Flattened(prob, chosen, as_callbacks(callback))
            if not hasattr(setup.functions, "bind"):
                raise InputError(
                    "f is a julia_function, but maps are iterated for functions written in torch; "
                    "write it so."
                )
            times = _times(setup, dt)
            index = state_indices(save_idxs, setup.state)
            rows = _rows(saveat, times, setup)
            events = MapEvents(setup, times) if setup.flat_callbacks else None
            scaled = bool(alg.options.get("scale_by_time"))
            run = _Iteration(setup, times, float(dt), scaled, events)
            leaves = setup.leaves
            if torch.is_grad_enabled() and any(x.requires_grad for x in leaves):
                setup.require_differentiable()
                states = _Iterate.apply(run, *leaves)
            else:
                states = setup.from_numpy(run.forward())
    finally:
        resume_compiler(compiler)
    reached = len(run.states) - 1
    sol = _solution(prob, setup, run, states, rows, index)
    if not sol.success and raise_on_failure:
        raise SolveError(
            f"The map left the finite numbers at t = {times[reached]:g} of {setup.t1:g}: "
            "f or an affect gives inf or NaN from there (a log or root of a negative number, an "
            "overflow); check the model. What was computed is in this error's .solution.",
            retcode="Unstable",
            t=float(times[reached]),
            solution=sol,
        )
    for c in setup.callbacks:
        c.finish(sol)
    return sol


def _times(setup: Flattened, dt: Any) -> Array:
    positive("dt", dt)
    count = (setup.t1 - setup.t0) / float(dt)
    if count > _MOST_STEPS:
        raise InputError(
            f"dt is {dt}, of which tspan ({setup.t0:g}, {setup.t1:g}) holds {count:.3g}; give a "
            "larger one."
        )
    steps: Array = np.arange(math.floor(count * (1 + 1e-12)) + 1, dtype=np.float64)
    return setup.t0 + float(dt) * steps


def _rows(saveat: Any, times: Array, setup: Flattened) -> npt.NDArray[np.int64] | None:
    """Which steps are outputs; None for all. Raises InputError for times that are no steps."""
    if saveat is None:
        return None
    if isinstance(saveat, (int, float)):
        positive("saveat", saveat)
        saveat = np.arange(times[0], times[-1] * (1 + 1e-12), float(saveat))
    return steps_at(times_within(saveat, "saveat", setup.t0, setup.t1), times, "saveat")


class _Iteration:
    """The states of a map, and the way back through them.

    ``states``: after each step and its events; ``before``: before these, the same where none are.
    """

    def __init__(
        self, setup: Flattened, times: Array, dt: float, scaled: bool, events: MapEvents | None
    ) -> None:
        self.setup, self.times, self.dt, self.scaled = setup, times, dt, scaled
        self.events = events
        self.states: Array = np.empty((0, 0))
        self.before: Array = self.states

    def forward(self) -> Array:
        """Every state (m, n), as far as they are finite; with events (2m, n), before and after."""
        setup, n, events = self.setup, self.setup.state.size, self.events
        value = setup.functions.bind("value", setup.total_p, setup.c)
        states: Array = np.empty((len(self.times), n))
        before = states if events is None else np.empty_like(states)
        states[0] = before[0] = to_numpy(setup.u0)
        count = len(states)
        with np.errstate(all="ignore"):
            if events is not None:
                states[0] = events.act(0, before[0])
            for k in range(1, len(states)):
                if events is not None and events.terminated:
                    count = k
                    break
                value(states[k - 1], self.times[k], before[k])
                if self.scaled:
                    before[k] *= self.dt
                    before[k] += states[k - 1]
                finite = np.isfinite(before[k]).all()
                if events is not None and finite:
                    states[k] = events.act(k, before[k])
                    finite = np.isfinite(states[k]).all()
                if not finite:
                    count = k
                    break
        self.states, self.before = states[:count], before[:count]
        if events is None:
            return self.states
        events.records = {k: r for k, r in events.records.items() if k < count}
        return np.concatenate([self.before, self.states])

    @property
    def retcode(self) -> str:
        if self.events is not None and self.events.terminated:
            return "Terminated"
        return "Success" if len(self.states) == len(self.times) else "Unstable"

    def backward(self, cotangents: Array) -> FlatGradient:
        """Cotangents of u0, p and the callbacks' parameters."""
        setup, n, events = self.setup, self.setup.state.size, self.events
        p, c, m = setup.total_p, setup.c, len(self.states)
        pull = setup.functions.bind("vjp:up", p, c)
        mu, dp, both = np.zeros(n), np.zeros(len(p)), np.empty(n + len(p))
        own, affects = ({}, {}) if events is None else events.pulls()
        factor = self.dt if self.scaled else 1.0
        with np.errstate(all="ignore"):
            for k in range(m - 1, -1, -1):
                mu = mu + cotangents[k - m]
                if events is not None:
                    mu = events.pull(k, mu, own, affects) + cotangents[k]
                if k == 0:
                    break
                pull(factor * mu, self.states[k - 1], self.times[k], both)
                mu = both[:n] + (mu if self.scaled else 0.0)
                dp += both[n:]
        pairs: list[Any] = [(None, own.get(i)) for i in range(len(setup.flat_callbacks))]
        return FlatGradient(mu, dp, 0.0, np.zeros(0), callbacks_p=pairs)


class _Iterate(torch.autograd.Function):
    """Inputs: the problem's leaves."""

    @staticmethod
    def forward(ctx: Any, run: _Iteration, *leaves: Tensor) -> Tensor:
        ctx.run = run
        return run.setup.from_numpy(run.forward())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        run: _Iteration = ctx.run
        run.setup.require_unchanged()
        with plain_mode():
            flat = run.backward(to_numpy(grad))
        out = tuple(run.setup.cotangents(flat, ctx.needs_input_grad[1:]))
        return (None, *once(out, *run.setup.leaves, grad))


def _solution(
    prob: Any, setup: Flattened, run: _Iteration, states: Tensor, steps: Any, index: Tensor | None
) -> Solution:
    count = len(run.states)
    after = states[-count:]
    if run.events is not None:
        rows = run.events.outputs((run.before, run.states), steps)
    else:
        rows = np.arange(count) if steps is None else steps[steps < count]

    def before(at: Tensor, deriv: int) -> Tensor:
        if deriv:
            raise InputError(f"deriv is {deriv}, but a map has no derivatives by time; give 0.")
        slack = 1e-12 * max(abs(setup.t0), abs(setup.t1))
        k = np.searchsorted(run.times[:count], to_numpy(at) + slack, side="right") - 1
        return after[torch.as_tensor(k, device=states.device)]

    chosen = states[torch.as_tensor(rows, device=states.device)]
    happened = [] if run.events is None else sum(run.events.records.values(), [])
    return Solution(
        t=setup.from_numpy(run.times[rows % count], time=True),
        u=setup.state.unflatten(chosen) if index is None else chosen[:, index],
        retcode=run.retcode,
        stats=Stats(nf=count - 1, naccept=count - 1, algorithm="FunctionMap"),
        engine=setup.engine.name,
        algorithm="FunctionMap",
        events=[Event(float(run.times[r.k]), *setup.origins[r.index]) for r in happened],
        prob=prob,
        spec=setup.state,
        save_idxs=index,
        _interpolate=before,
        _span=(setup.t0, float(run.times[count - 1])),
    )
