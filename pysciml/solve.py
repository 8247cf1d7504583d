"""``solve``: the front door, and the one place where gradients enter and leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysciml.algorithms import Algorithm, AlgorithmName
from pysciml.callbacks import (
    Callback,
    ContinuousCallback,
    DiscreteCallback,
    PresetTimeCallback,
    as_callbacks,
    terminate,
)
from pysciml.engines.base import (
    FIRST_EVENT,
    FROM_T0,
    FROM_T1,
    Engine,
    FlatCallback,
    FlatProblem,
    FlatSolution,
    SolveOptions,
)
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import InputError, PyscimlError, SolveError
from pysciml.flatten import ParameterSpec, StateSpec, to_numpy
from pysciml.functions import FlatFunction, FlatFunctions, functions_for
from pysciml.options import (
    Grid,
    absolute_tolerance,
    check_options,
    saveat_grid,
    state_indices,
    times_within,
)
from pysciml.problems import DAEProblem, ODEProblem
from pysciml.progress import progress_bar
from pysciml.solution import Event, Solution

__all__ = ["solve"]


def solve(
    prob: ODEProblem | DAEProblem,
    alg: Algorithm | AlgorithmName | None = None,
    *,
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
    **unknown: Any,
) -> Solution:
    """Solve a problem; the solution's tensors carry gradients where the inputs do.

    Parameters
    ----------
    prob : ODEProblem or DAEProblem
    alg : Algorithm, optional
        e.g. ``pysciml.Rodas5P()``; chosen by a stiffness test where None.
    engine : "auto", "julia" or "sundials"
    saveat : number, 1-d tensor or sequence, optional
        A step, or the times to save at (in the direction of integration, within tspan).
        The solver's own steps where None.
    abstol, reltol : tolerances; ``abstol`` may be a vector of the state's length, or its structure
    sensealg : sensitivity algorithm, optional
        How gradients are computed; ``GaussAdjoint()`` where None.
    callback : callbacks besides the problem's own
    save_idxs : sequence of int, optional
        Flat indices of the state's entries to keep; ``u`` is then a tensor (m, k).
    tstops : times the solver must step on
    dt : first step (the step, for fixed-step methods)
    dtmax, dtmin : bounds of the step
    maxiters : most steps
    adaptive : False for fixed steps of ``dt``, where the algorithm can
    progress : show a bar of the time reached
    raise_on_failure : False returns a failed solution instead of raising (see its ``retcode``)

    Returns
    -------
    Solution

    Raises
    ------
    InputError
        Bad input, before anything is solved.
    EngineError
        The engine cannot do this, or is not there.
    SolveError
        The solve failed on its way; the partial solution is attached.
    """
    check_options(prob, unknown, abstol, reltol, dt, dtmax, dtmin, maxiters, sensealg)
    if isinstance(alg, AlgorithmName):
        alg = alg()
    if alg is not None and not isinstance(alg, Algorithm):
        raise InputError(
            f"alg is a {type(alg).__name__}; give an algorithm such as pysciml.CVODE_BDF()."
        )
    chosen = choose_engine(engine)
    mass = getattr(prob, "mass_matrix", None)
    chosen.check(prob.kind, alg, mass is not None)
    setup = _Setup(prob, chosen, as_callbacks(callback))
    grid = saveat_grid(saveat, setup.t0, setup.t1)
    index = state_indices(save_idxs, setup.state)
    options = {
        "abstol": absolute_tolerance(abstol, setup.state),
        "reltol": float(reltol),
        "tstops": None if tstops is None else times_within(tstops, "tstops", setup.t0, setup.t1),
        "dt": dt, "dtmax": dtmax, "dtmin": dtmin, "maxiters": int(maxiters),
        "adaptive": adaptive, "sensealg": sensealg,
    }  # fmt: skip
    want = torch.is_grad_enabled() and any(
        x.requires_grad for x in (*setup.tensors(), *grid.inputs)
    )
    if want:
        setup.require_differentiable()
    with progress_bar(progress, setup.t0, setup.t1) as report:
        solve_options = SolveOptions(saveat=grid.values, gradient=want, progress=report, **options)
        run = _Run(setup, alg, solve_options, raise_on_failure)
        if want:
            t, u = _Solve.apply(run, setup.u0, setup.t0_t, setup.t1_t, grid.tensor, *setup.ps)
        else:
            flat = run.forward()
            t, u = setup.from_numpy(flat.t, time=True), setup.from_numpy(flat.u)
    assert run.flat is not None
    t = _times_of(run.flat, grid, setup, t)
    return _solution(run, t, u, index)


class _Setup:
    """A problem flattened: specs, flat tensors, functions, and the callbacks' own."""

    def __init__(self, prob: Any, engine: Engine, more: tuple[Callback, ...]) -> None:
        self.prob, self.engine = prob, engine
        self.state: StateSpec = prob.state_spec
        spec = self.state
        self.u0 = spec.flatten(prob.u0)
        self.params, p = ParameterSpec.flatten(prob.p, spec.dtype, spec.device)
        self.t0_t, self.t1_t = (
            x if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64)
            for x in prob.tspan
        )
        self.t0, self.t1 = float(self.t0_t.detach()), float(self.t1_t.detach())
        self.callbacks = (*prob.callback, *more)
        role = "residual" if prob.kind == "dae" else "rhs"
        self.functions = self._functions(prob.f, role, "f", p)
        self.ps: list[Tensor] = [self.functions.extend_p(p)]
        self.p_of_callback: dict[tuple[int, str], int] = {}
        self.flat_callbacks = tuple(self._callback(c, i, p) for i, c in enumerate(self.callbacks))
        self._called_back = [
            (x, x._version)
            for functions in self._all_functions()
            if functions.kernels is None
            for x in functions.closures_p
        ]

    def _all_functions(self) -> list[Any]:
        pairs = [(c.condition, c.affect) for c in self.flat_callbacks]
        return [f for f in (self.functions, *sum(pairs, ())) if f is not None]

    def require_unchanged(self) -> None:
        """Raise RuntimeError where a tensor that a called-back function reads was written to."""
        if any(x._version != version for x, version in self._called_back):
            raise RuntimeError(
                "A tensor that the model closes over was changed in place between solve and "
                "backward, and the model is called back in Python (see the CaptureWarning); call "
                "backward before the optimiser's step."
            )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.u0, self.t0_t, self.t1_t, *self.ps)

    def _functions(self, f: Any, role: str, name: str, p: Tensor) -> FlatFunctions:
        flat = FlatFunction(f, role, name, self.state, self.params)
        t = torch.tensor(self.t0, dtype=self.state.dtype, device=self.state.device)
        inputs = {"u": self.u0.detach(), "p": p.detach(), "t": t}
        if role == "residual":
            inputs = {"du": self.state.flatten(self.prob.du0).detach(), **inputs}
        return functions_for(flat, inputs, self.engine.name)

    def require_differentiable(self) -> None:
        """Raise InputError where torch cannot differentiate what an adjoint has to."""
        needed: list[tuple[str, Any]] = [("f", self.functions)]
        for i, c in enumerate(self.flat_callbacks):
            needed.append((f"affect of callback {i}", c.affect))
            if c.kind == "continuous":
                needed.append((f"condition of callback {i}", c.condition))
        for name, functions in needed:
            if functions is not None and not getattr(functions, "differentiable", True):
                raise InputError(
                    f"{name} cannot be differentiated by torch ({functions.reason}), but an input "
                    "requires grad; write it with torch operations only, or solve without "
                    "gradients (in torch.no_grad(), or with inputs that do not require grad)."
                )

    def _callback(self, c: Any, i: int, p: Tensor) -> FlatCallback:
        condition = affect = None
        own: dict[str, Any] = {}
        if isinstance(c, (ContinuousCallback, DiscreteCallback)):
            condition = self._functions(c.condition, "condition", f"condition of callback {i}", p)
            own |= self._own(condition, i, "condition", p)
        if getattr(c, "affect", None) is not None and c.affect is not terminate:
            affect = self._functions(c.affect, "affect", f"affect of callback {i}", p)
            own |= self._own(affect, i, "affect", p)
        kind = (
            "continuous" if isinstance(c, ContinuousCallback)
            else "discrete" if isinstance(c, DiscreteCallback) else "preset"
        )  # fmt: skip
        times = None
        if isinstance(c, PresetTimeCallback):
            times = times_within(c.times, "times", self.t0, self.t1)
        return FlatCallback(
            kind=kind,  # type: ignore[arg-type]
            condition=condition,
            affect=affect,
            terminate=c.affect is terminate,
            direction=getattr(c, "direction", 0),
            times=times,
            save_positions=c.save_positions,
            **own,
        )

    def _own(self, functions: FlatFunctions, i: int, which: str, p: Tensor) -> dict[str, Any]:
        total = functions.extend_p(p)
        self.p_of_callback[i, which] = len(self.ps)
        self.ps.append(total)
        return {f"{which}_p": to_numpy(total), f"{which}_c": to_numpy(functions.data())}

    def flat_problem(self) -> FlatProblem:
        prob, spec = self.prob, self.state
        mass = getattr(prob, "mass_matrix", None)
        flags = getattr(prob, "differential_vars", None)
        if flags is not None:
            leaves = torch.utils._pytree.tree_leaves(flags)
            flags = np.concatenate([np.asarray(torch.as_tensor(x)).reshape(-1) for x in leaves])
        return FlatProblem(
            kind=prob.kind,
            functions=self.functions,
            u0=to_numpy(self.u0),
            p=to_numpy(self.ps[0]),
            c=to_numpy(self.functions.data()),
            t0=self.t0,
            t1=self.t1,
            mass_matrix=None if mass is None else to_numpy(torch.as_tensor(mass)),
            du0=to_numpy(spec.flatten(prob.du0)) if prob.kind == "dae" else None,
            differential_vars=flags,
            callbacks=self.flat_callbacks,
            dtype="float32" if spec.dtype == torch.float32 else "float64",
            name=getattr(prob.f, "__name__", type(prob.f).__name__),
        )

    def from_numpy(self, x: np.ndarray, time: bool = False) -> Tensor:
        out = torch.from_numpy(np.ascontiguousarray(x)).to(self.state.device)
        return out if time else out.to(self.state.dtype)


class _Run:
    """One forward solve, kept for its backward."""

    def __init__(
        self, setup: _Setup, alg: Algorithm | None, options: SolveOptions, raises: bool
    ) -> None:
        self.setup, self.alg, self.options, self.raises = setup, alg, options, raises
        self.flat: FlatSolution | None = None

    def forward(self) -> FlatSolution:
        flat = self.setup.engine.solve(self.setup.flat_problem(), self.alg, self.options)
        self.flat = flat
        if not flat.success and self.raises:
            _fail(self, flat)
        return flat


_ADVICE = {
    "MaxIters": "raise maxiters, loosen the tolerances, or use a stiff algorithm",
    "DtLessThanMin": "the solution may blow up or jump there; check the model, loosen the "
    "tolerances, or use a stiff algorithm",
    "ConvergenceFailure": "check the model near that time, tighten reltol, or set a smaller dtmax",
    "DtNaN": "the model gives inf or NaN at the start; check u0 and the model there",
    "Unstable": "the model left its domain (a log or root of a negative number, an overflow); "
    "check it near that time, tighten the tolerances, or set a smaller dtmax",
    "InitialFailure": "no consistent initial values were found; check u0, du0 and "
    "differential_vars",
}


def _fail(run: _Run, flat: FlatSolution) -> None:
    setup = run.setup
    t, u = setup.from_numpy(flat.t, time=True), setup.from_numpy(flat.u)
    partial = _solution(run, t, u, None)
    said = f" ({flat.message})" if flat.message else ""
    advice = _ADVICE.get(flat.retcode, "check the model near that time")
    raise SolveError(
        f"The solve stopped at t = {flat.t_reached:g} of {setup.t1:g} with retcode "
        f"{flat.retcode}{said}: {advice}. What was computed is in this error's .solution.",
        retcode=flat.retcode,
        t=flat.t_reached,
        solution=partial,
    )


class _Solve(torch.autograd.Function):
    """Inputs: u0, t0, t1, saveat, then p of the problem and of the callbacks' functions."""

    @staticmethod
    def forward(
        ctx: Any, run: _Run, u0: Tensor, t0: Tensor, t1: Tensor, grid: Any, *ps: Tensor
    ) -> Any:
        flat = run.forward()
        ctx.run, ctx.has_grid = run, grid is not None
        t = run.setup.from_numpy(flat.t, time=True)
        return t, run.setup.from_numpy(flat.u)

    @staticmethod
    def backward(ctx: Any, grad_t: Tensor, grad_u: Tensor) -> Any:
        run: _Run = ctx.run
        flat = run.flat
        assert flat is not None
        run.setup.require_unchanged()
        g_u, g_t = to_numpy(grad_u), to_numpy(grad_t)
        gradient = run.setup.engine.adjoint(flat, g_u, g_t)
        times = gradient.times + np.where(flat.source > FIRST_EVENT, g_t, 0.0)
        source = flat.source
        d_t0 = gradient.t0 + float(times[source == FROM_T0].sum())
        d_t1 = float(times[source == FROM_T1].sum())
        d_grid = None
        if ctx.has_grid and run.options.saveat is not None:
            d_grid = np.zeros(len(run.options.saveat))
            from_grid = source >= 0
            np.add.at(d_grid, source[from_grid], times[from_grid])
        return (None, *_cotangents(run, gradient, d_t0, d_t1, d_grid))


class _Interpolate(torch.autograd.Function):
    """As _Solve, for the state at any times: inputs u0, t0, times, then the ps."""

    @staticmethod
    def forward(
        ctx: Any, run: _Run, deriv: int, u0: Tensor, t0: Tensor, at: Tensor, *ps: Tensor
    ) -> Any:
        ctx.run, ctx.at, ctx.deriv = run, to_numpy(at), deriv
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
        gradient = run.setup.engine.adjoint(run.flat, to_numpy(grad_u), at=ctx.at)
        d_u0, d_t0, _, d_at, *rest = _cotangents(run, gradient, gradient.t0, 0.0, gradient.times)
        return (None, None, d_u0, d_t0, d_at, *rest)


class _NotTwice(torch.autograd.Function):
    """Passes gradients on. Without it their own gradient would be left out without a word."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *gradients: Tensor | None) -> Any:
        return tuple(None if g is None else g.clone() for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise PyscimlError(
            "A gradient of solve cannot be differentiated again: the adjoint gives first "
            "derivatives only. Leave create_graph=True out, or detach the gradient."
        )


def _cotangents(run: _Run, gradient: Any, d_t0: float, d_t1: float, d_grid: Any) -> tuple[Any, ...]:
    """Cotangents of u0, t0, t1, grid, *ps as tensors like these."""
    setup = run.setup

    def like(x: Any, ref: Tensor) -> Tensor:
        return torch.as_tensor(np.asarray(x)).to(ref.device, ref.dtype).reshape(ref.shape)

    ps: list[Tensor | None] = [like(gradient.p, setup.ps[0])]
    ps += [None] * (len(setup.ps) - 1)
    for i, pair in enumerate(gradient.callbacks_p):
        for which, value in zip(("condition", "affect"), pair, strict=True):
            place = setup.p_of_callback.get((i, which)) if value is not None else None
            if place is not None:
                ps[place] = like(value, setup.ps[place])
    grid = None
    if d_grid is not None:
        grid = torch.as_tensor(d_grid)
    out = (
        like(gradient.u0, setup.u0),
        like(d_t0, setup.t0_t),
        like(d_t1, setup.t1_t),
        grid,
        *ps,
    )
    return (
        _NotTwice.apply(torch.empty(0, requires_grad=True), *out)
        if torch.is_grad_enabled()
        else out
    )


def _times_of(flat: FlatSolution, grid: Grid, setup: _Setup, t: Tensor) -> Tensor:
    """Output times; the very tensor given as saveat where the outputs are exactly it."""
    if grid.tensor is not None and len(flat.t) == len(grid.tensor) and (flat.source >= 0).all():
        return grid.tensor
    return t


def _solution(run: _Run, t: Tensor, u: Tensor, index: Tensor | None) -> Solution:
    setup, flat = run.setup, run.flat
    assert flat is not None
    state = setup.state.unflatten(u) if index is None else u[:, index]

    def interpolate(at: Tensor, deriv: int) -> Tensor:
        needs = (*setup.tensors(), at)
        if torch.is_grad_enabled() and any(x.requires_grad for x in needs):
            return _Interpolate.apply(run, deriv, setup.u0, setup.t0_t, at, *setup.ps)
        return setup.from_numpy(setup.engine.interpolate(flat, to_numpy(at), deriv))

    return Solution(
        t=t,
        u=state,
        retcode=flat.retcode,
        stats=flat.stats,
        engine=setup.engine.name,
        algorithm=flat.stats.algorithm,
        events=[Event(time, k) for time, k in flat.events],
        message=flat.message,
        prob=setup.prob,
        spec=setup.state,
        save_idxs=index,
        _interpolate=interpolate,
        _span=(setup.t0, flat.t_reached),
    )
