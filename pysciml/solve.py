"""``solve``: the front door, and the one place where gradients enter and leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysciml.advice import advice
from pysciml.algorithms import Algorithm, AlgorithmName, as_algorithm
from pysciml.callbacks import as_callbacks
from pysciml.consistency import off_at_start
from pysciml.dispatch import front_door, refuse_ensemble_options, refuse_seed
from pysciml.engines.base import (
    FIRST_EVENT,
    FROM_T0,
    FROM_T1,
    FlatGradient,
    FlatSolution,
    SolveOptions,
    Tuning,
)
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import InputError, PyscimlError, SolveError
from pysciml.extra_options import Extra
from pysciml.flatten import to_numpy
from pysciml.flattened import Flattened
from pysciml.options import (
    absolute_tolerance,
    check_options,
    saveat_grid,
    state_indices,
    stops_within,
)
from pysciml.plan import Plan, find_plan, keep_plan
from pysciml.problems import number, plans_of
from pysciml.progress import progress_bar
from pysciml.solution import Event, Solution
from pysciml.transforms import (
    leave_compiler,
    plain_mode,
    refuse_transforms,
    resume_compiler,
)

__all__ = ["solve", "solved"]


@front_door
def solve(
    prob: Any,
    alg: Algorithm | AlgorithmName | None = None,
    ensemblealg: Any = None,
    *,
    trajectories: int | None = None,
    engine: str = "auto",
    saveat: Any = None,
    abstol: Any = 1e-6,
    reltol: float = 1e-3,
    sensealg: Any = None,
    callback: Any = None,
    save_idxs: Any = None,
    tstops: Any = None,
    dt: float | None = None,
    dtmax: float | None = None,
    dtmin: float | None = None,
    maxiters: int = 100_000,
    adaptive: bool = True,
    progress: bool = False,
    raise_on_failure: bool = True,
    seed: int | None = None,
    **more: Any,
) -> Any:
    """Solve a problem; the solution's tensors carry gradients where the inputs do.

    Parameters
    ----------
    prob : ODEProblem, DAEProblem, or another problem, such as an EnsembleProblem
    alg : Algorithm, optional
        e.g. ``pysciml.Rodas5P()``; chosen by a stiffness test where None.
    ensemblealg, trajectories : of an EnsembleProblem
        Where its members are solved (``EnsembleThreads()`` where None), and how many there are
        (not needed with a batch); ``batch_size`` is what its reduction takes at once.
    engine : "auto", "julia" or "sundials"
    saveat : number, 1-d tensor or sequence, optional
        A step from t0 on (its times move with tspan), or the times to save at (in the direction
        of integration, within tspan). The solver's own steps where None.
    abstol, reltol : tolerances; ``abstol`` may be a vector of the state's length, or its structure
    sensealg : sensitivity algorithm, optional
        How gradients are computed; by the engine's choice where None (DiscreteAdjoint after Tsit5,
        CollocationAdjoint for small systems, else GaussAdjoint).
    callback : callbacks besides the problem's own
    save_idxs : sequence of int, bool mask (n,) or slice, optional
        Which of the state's n entries to keep, flat; ``u`` is then a tensor (m, k).
    tstops : time or times the solver must step on, in any order, within tspan
    dt : first step (the step, for fixed-step methods); cut to tspan where longer
    dtmax, dtmin : bounds of the step
    maxiters : most steps
    adaptive : False for fixed steps of ``dt``, where the algorithm can
    progress : show a bar of the time reached
    raise_on_failure : False returns a failed solution instead of raising (see its ``retcode``)
    seed : of noise and jumps (SDEProblem, RODEProblem, JumpProblem), a whole number; drawn from
        torch's generator where None

    Other Parameters
    ----------------
    save_everystep : False saves at both ends only, where there is no saveat
    save_start, save_end : whether to save there; where None, as saveat says, or both
    dense : False where sol(t) is not to be had
    d_discontinuities : time or times at which f jumps, within tspan: steps end there, and begin
        anew. f at the time itself belongs to what was before, as by ``t > time``
    isoutofdomain : function (u, p, t), true where the state must not be: a step that ends there is
        rejected, and tried again shorter (julia)
    force_dtmin : True goes on with steps of dtmin where the tolerances ask for less (julia)
    controller : of the step length, e.g. ``pysciml.PIController(beta1=0.14, beta2=0.08, qmax=5)``
        (julia)
    initializealg : how initial values of a DAE are made to fit, ``pysciml.BrownFullBasicInit()``,
        ``ShampineCollocationInit()``, ``CheckInit()`` or ``NoInit()`` (julia)

    Returns
    -------
    Solution
        Or what the problem's own kind gives, such as an EnsembleSolution.

    Raises
    ------
    InputError
        Bad input, before anything is solved.
    EngineError
        The engine cannot do this, or is not there.
    SolveError
        The solve failed on its way; the partial solution is attached.
    """
    compiler = leave_compiler()
    try:
        refuse_transforms(getattr(prob, "u0", None), getattr(prob, "p", None), saveat)
        asked = (
            alg, saveat, abstol, reltol, sensealg, save_idxs, tstops, dt, dtmax, dtmin, maxiters,
            adaptive, raise_on_failure,
        )  # fmt: skip
        plain = not (more or progress) and ensemblealg is trajectories is callback is seed is None
        if plain and plans_of(prob):
            plan, again = find_plan(prob, choose_engine(engine), asked)
            if plan is not None and again is not None:
                with plain_mode():
                    return solved(plan, again)
        refuse_ensemble_options(prob, ensemblealg, trajectories)
        extra = Extra.taken(more)
        check_options(prob, more, abstol, reltol, dt, dtmax, dtmin, maxiters, sensealg)
        alg = as_algorithm(alg, "CVODE_BDF")
        random = getattr(prob, "form", "") in ("sde", "rode") or hasattr(prob, "how_jumps")
        if not random:
            refuse_seed(prob, seed)
        chosen = choose_engine(engine)
        mass = getattr(prob, "mass_matrix", None)
        chosen.check(getattr(prob, "form", prob.kind), alg, mass is not None)
        with plain_mode():
            callbacks = (*as_callbacks(callback), *extra.callbacks())
            tuning = extra.tuning(prob, *map(number, prob.tspan))
            chosen.require_tuning(tuning, callbacks)
            special = bool(prob.callback or callbacks or tuning != Tuning())
            tensors = chosen.takes_tensors(
                prob, alg, sensealg, special or hasattr(prob, "how_jumps")
            )
            setup = Flattened(prob, chosen, callbacks, tensors)
            t0, t1 = setup.t0, setup.t1
            grid = extra.grid(
                saveat_grid(saveat, setup.t0_t, setup.t1_t),
                lambda: saveat_grid(abs(t1 - t0), setup.t0_t, setup.t1_t),
                t0,
                t1,
            )
            index = state_indices(save_idxs, setup.state)
            options = SolveOptions(
                abstol=absolute_tolerance(abstol, setup.state),
                reltol=float(reltol),
                saveat=grid.values,
                tstops=stops_within(tstops, t0, t1),
                dt=dt,
                dtmax=dtmax,
                dtmin=dtmin,
                maxiters=int(maxiters),
                adaptive=adaptive,
                sensealg=sensealg,
                seed=seed,
                tuning=tuning,
            )
            plan = Plan(
                asked,
                engine=chosen,
                alg=alg,
                grid=grid,
                index=index,
                options=options,
                raises=raise_on_failure,
                f=prob.f,
            )
            with progress_bar(progress, t0, t1) as report:
                if report is not None:
                    plan.options = replace(options, progress=report)
                sol = solved(plan, setup, extra)
            if plain:
                keep_plan(prob, plan, setup)
            return sol
    finally:
        resume_compiler(compiler)


def solved(plan: Plan, setup: Flattened, extra: Extra | None = None) -> Solution:
    """The solution by a plan, with gradients where an input requires them."""
    grid = plan.grid
    want = torch.is_grad_enabled() and any(
        x.requires_grad for x in (*setup.tensors(), *grid.inputs)
    )
    if want:
        setup.require_differentiable()
    run = _Run(setup, plan.alg, plan.options_for(want), plan.raises, plan.index)
    if want:
        t, u = _Solve.apply(run, grid.tensor, *setup.tensors())
    else:
        t, u = run.outputs()
    if t is None:
        assert run.flat is not None
        # the very tensor given as saveat, where there is one
        t = setup.from_numpy(run.flat.t, time=True) if grid.tensor is None else grid.tensor
    if extra is not None and grid.values is None:
        assert run.flat is not None
        keep = extra.kept(run.flat)
        if keep is not None:
            t, u = t[keep], u[keep]
    sol = _solution(run, t, u)
    sol.dense = extra is None or extra.dense is not False
    for c in setup.callbacks:
        c.finish(sol)
    return sol


class _Run:
    """One forward solve, kept for its backward."""

    def __init__(
        self, setup: Flattened, alg: Algorithm | None, options: SolveOptions, raises: bool,
        index: Tensor | None,
    ) -> None:  # fmt: skip
        self.setup, self.alg, self.options, self.raises = setup, alg, options, raises
        self.index = index
        self.flat: FlatSolution | None = None

    def forward(self) -> FlatSolution:
        flat = self.setup.engine.solve(self.setup.flat_problem(), self.alg, self.options)
        self.flat = flat
        if not flat.success and self.raises:
            _fail(self, flat)
        return flat

    def outputs(self) -> tuple[Tensor | None, Tensor]:
        """Times and states; None for times that are exactly those asked for."""
        flat, saveat = self.forward(), self.options.saveat
        u = self.setup.from_numpy(flat.u)
        whole = saveat is not None and len(flat.t) == len(saveat)
        if flat.at_saveat or (whole and bool((flat.source >= 0).all())):
            return None, u
        return self.setup.from_numpy(flat.t, time=True), u


def _fail(run: _Run, flat: FlatSolution) -> None:
    setup = run.setup
    t, u = setup.from_numpy(flat.t, time=True), setup.from_numpy(flat.u)
    partial = _solution(run, t, u)
    said = f" ({flat.message})" if flat.message else ""
    what = advice(flat, setup, run.options, _about_start(run, flat))
    raise SolveError(
        f"The solve stopped at t = {flat.t_reached:g} of {setup.t1:g} with retcode "
        f"{flat.retcode}{said}: {what}. What was computed is in this error's .solution.",
        retcode=flat.retcode,
        t=flat.t_reached,
        solution=partial,
    )


def _about_start(run: _Run, flat: FlatSolution) -> str:
    """What is wrong with initial values that a solve did not get away from; empty for nothing."""
    if flat.t_reached != run.setup.t0 or flat.retcode == "MaxIters":
        return ""
    problem = run.setup.flat_problem()
    off = off_at_start(problem)
    if not off:
        return ""
    if problem.kind == "dae" and problem.differential_vars is None:
        return f"{off}; mend them, or give differential_vars=, by which they are made consistent"
    return (
        f"no consistent initial values were found: {off}; check that this can be satisfied, and "
        "start nearer to where it is"
    )


class _Solve(torch.autograd.Function):
    """Inputs: saveat, t0, t1, then the problem's leaves."""

    @staticmethod
    def forward(ctx: Any, run: _Run, grid: Any, *inputs: Tensor) -> Any:
        ctx.run, ctx.grid = run, grid
        ctx.set_materialize_grads(False)
        return run.outputs()

    @staticmethod
    def backward(ctx: Any, grad_t: Tensor | None, grad_u: Tensor | None) -> Any:
        run: _Run = ctx.run
        flat = run.flat
        assert flat is not None
        run.setup.require_unchanged()
        if grad_u is None:
            grad_u = torch.zeros_like(run.setup.from_numpy(flat.u))
        g_u = run.setup.to_engine(grad_u)
        g_t = None if grad_t is None else to_numpy(grad_t)
        wanted = ctx.needs_input_grad[1:]
        by_times = any(wanted[:3])
        with plain_mode():
            gradient = run.setup.engine.adjoint(flat, g_u, g_t, by_times=by_times)
        d_t0 = d_t1 = d_grid = None
        if by_times:
            times = gradient.times
            if g_t is not None:
                times = times + np.where(flat.source > FIRST_EVENT, g_t, 0.0)
            source = flat.source
            d_t0 = gradient.t0 + float(times[source == FROM_T0].sum())
            d_t1 = gradient.t1 + float(times[source == FROM_T1].sum())
            if ctx.grid is not None and run.options.saveat is not None:
                d_grid = np.zeros(len(run.options.saveat))
                from_grid = source >= 0
                np.add.at(d_grid, source[from_grid], times[from_grid])
        out = _cotangents(run, gradient, (d_grid, d_t0, d_t1), wanted, ctx.grid)
        return (None, *once(out, *run.setup.tensors(), ctx.grid, grad_t, grad_u))


class _Interpolate(torch.autograd.Function):
    """As _Solve, for the state at any times: inputs times, t0, t1, then the leaves."""

    @staticmethod
    def forward(ctx: Any, run: _Run, deriv: int, at: Tensor, *inputs: Tensor) -> Any:
        ctx.run, ctx.times, ctx.at, ctx.deriv = run, at, to_numpy(at), deriv
        assert run.flat is not None
        return run.setup.from_numpy(run.setup.engine.interpolate(run.flat, ctx.at, deriv))

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor) -> Any:
        run: _Run = ctx.run
        if ctx.deriv:
            raise InputError(
                f"sol(t, deriv={ctx.deriv}) has no gradient; differentiate f(sol(t), p, t) instead."
            )
        assert run.flat is not None
        run.setup.require_unchanged()
        wanted = ctx.needs_input_grad[2:]
        with plain_mode():
            gradient = run.setup.engine.adjoint(
                run.flat, run.setup.to_engine(grad_u), at=ctx.at, by_times=any(wanted[:3])
            )
        times = (gradient.times, gradient.t0, gradient.t1)
        out = _cotangents(run, gradient, times, wanted, ctx.times)
        return (None, None, *once(out, *run.setup.tensors(), ctx.times, grad_u))


class _NotTwice(torch.autograd.Function):
    """Passes gradients on. Without it their own gradient would be left out without a word.

    ``inputs``: all that the gradients depend on, so that autograd finds its way here whichever
    of them it differentiates by.
    """

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor | None], *inputs: Tensor | None) -> Any:
        return tuple(None if g is None else g.clone() for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise PyscimlError(
            "A gradient of a solution (sol.u, sol(t), sol.t) cannot be differentiated again: the "
            "adjoint gives first derivatives only. Leave create_graph=True out, detach the "
            "gradient, or take differences of it for a second derivative."
        )


def _cotangents(
    run: _Run,
    gradient: FlatGradient,
    times: tuple[Any, Any, Any],
    wanted: Sequence[bool],
    grid: Tensor | None,
) -> tuple[Any, ...]:
    """Cotangents of the grid, t0, t1 and the leaves, like these; None where not wanted."""
    setup = run.setup
    of_times = cotangents_of_times(times, (grid, setup.t0_t, setup.t1_t), wanted[:3])
    return (*of_times, *setup.cotangents(gradient, wanted[3:]))


def cotangents_of_times(
    values: Sequence[Any], like: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Cotangents of the output times and the time span like these; None where not wanted."""
    return [
        torch.as_tensor(value, dtype=torch.float64).to(ref.device, ref.dtype).reshape(ref.shape)
        if want and value is not None and ref is not None
        else None
        for value, ref, want in zip(values, like, wanted, strict=True)
    ]


def once(gradients: tuple[Any, ...], *inputs: Tensor | None) -> tuple[Any, ...]:
    """The gradients, themselves differentiable where create_graph asks for it: to an error."""
    if not torch.is_grad_enabled():
        return gradients
    out: tuple[Any, ...] = _NotTwice.apply(list(gradients), *inputs)
    return out


def _solution(run: _Run, t: Tensor, u: Tensor) -> Solution:
    setup, flat, index = run.setup, run.flat, run.index
    assert flat is not None
    state = setup.state.unflatten(u) if index is None else u[:, index]

    def interpolate(at: Tensor, deriv: int) -> Tensor:
        inputs = setup.tensors()
        if not run.options.gradient:  # solved without gradients, so these are constants
            inputs = tuple(x.detach() for x in inputs)
        compiler = leave_compiler()
        try:
            if torch.is_grad_enabled() and any(x.requires_grad for x in (at, *inputs)):
                return _Interpolate.apply(run, deriv, at, *inputs)
            return setup.from_numpy(setup.engine.interpolate(flat, to_numpy(at), deriv))
        finally:
            resume_compiler(compiler)

    def noise() -> tuple[Tensor, Tensor]:
        times, values = setup.engine.noise_path(flat)
        return setup.from_numpy(times, time=True), setup.from_numpy(values)

    return Solution(
        t=t,
        u=state,
        retcode=flat.retcode,
        stats=flat.stats,
        engine=setup.engine.name,
        algorithm=flat.stats.algorithm,
        events=[
            Event(time, *setup.origins[k])
            for time, k in flat.events
            if setup.flat_callbacks[k].kind in ("continuous", "discrete", "preset")
        ],
        message=flat.message,
        prob=setup.prob,
        spec=setup.state,
        save_idxs=index,
        _interpolate=interpolate,
        _portable=lambda: setup.engine.portable(flat),
        seed=run.options.seed,
        _noise=noise if setup.form in ("sde", "rode") else None,
        _jumps=None if flat.jumps is None else tuple(map(torch.from_numpy, flat.jumps)),  # type: ignore[arg-type]
        _span=(setup.t0, flat.t_reached),
    )
