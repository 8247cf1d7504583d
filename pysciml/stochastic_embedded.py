"""Stochastic equations on the embedded engine: by torchsde, whose steps are taken in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysciml.advice import ADVICE
from pysciml.algorithms import Algorithm, as_algorithm
from pysciml.engines.base import Stats
from pysciml.errors import EngineError, InputError, PyscimlError, SolveError
from pysciml.flatten import to_numpy
from pysciml.noise import NoiseGrid, between
from pysciml.options import Grid, absolute_tolerance, check_options, saveat_grid, state_indices
from pysciml.progress import progress_bar
from pysciml.sensitivity import BacksolveAdjoint
from pysciml.solution import Solution
from pysciml.stochastic_torch import Run, Stop
from pysciml.torchsde import (
    COMMUTATIVE,
    FIXED_STEP,
    LEVY_AREA,
    euler,
    interpretation,
    milstein,
    srk,
)
from pysciml.transforms import leave_compiler, plain_mode, refuse_transforms, resume_compiler

__all__ = ["solve_embedded"]


def solve_embedded(
    prob: Any,
    alg: Any,
    *,
    seed: int,
    abstol: Any,
    reltol: float,
    dt: float | None = None,
    saveat: Any = None,
    sensealg: Any = None,
    save_idxs: Any = None,
    dtmin: float | None = None,
    maxiters: int = 100_000,
    adaptive: bool = True,
    progress: bool = False,
    raise_on_failure: bool = True,
    tstops: Any = None,
    dtmax: Any = None,
    **unknown: Any,
) -> Solution:
    """``solve`` of an SDEProblem by torchsde; ``srk`` where no algorithm is named, or ``euler``."""
    check_options(prob.as_pair(), unknown, abstol, reltol, dt, dtmax, dtmin, maxiters, sensealg)
    for name, value in (("tstops", tstops), ("dtmax", dtmax)):
        if value is not None:
            raise EngineError(
                f"{name} was given with torchsde's algorithms, which do not take it; leave it out, "
                "or use engine='julia' (install it with: python -m pysciml setup)."
            )
    alg = _algorithm(prob, alg)
    _require_fit(prob, alg, dt, sensealg)
    _require_few_steps(prob.tspan, dt, adaptive and alg.name not in FIXED_STEP)
    compiler = leave_compiler()
    try:
        refuse_transforms(prob.u0, prob.p, saveat)
        with plain_mode(), progress_bar(progress, *map(float, prob.tspan)) as report:
            t0, t1 = (torch.as_tensor(x, dtype=torch.float64) for x in prob.tspan)
            grid = saveat_grid(saveat, t0, t1)
            index = state_indices(save_idxs, prob.state_spec)
            tolerance = absolute_tolerance(abstol, prob.state_spec)
            if not isinstance(tolerance, float):
                raise EngineError(
                    "abstol has an entry for each entry of the state, but torchsde's algorithms "
                    "take one number; give one."
                )
            run = Run(
                prob, alg, seed, dt, adaptive and alg.name not in FIXED_STEP, sensealg,
                {"atol": tolerance, "rtol": float(reltol)}, dtmin, int(maxiters), report,
            )  # fmt: skip
            return _solved(run, grid, index, raise_on_failure)
    finally:
        resume_compiler(compiler)


# -- what fits -------------------------------------------------------------------------------------


def _algorithm(prob: Any, given: Any) -> Algorithm:
    alg = as_algorithm(given, "torchsde.srk")
    if alg is None:
        commutes = prob.noise_rate_prototype is None or prob.noise_type == "additive"
        best = milstein if isinstance(prob.noise, NoiseGrid) else srk
        return (best if commutes else euler)()
    if alg.package == "torchsde":
        return alg
    ours = "on the sundials engine use one of torchsde's, e.g. pysciml.torchsde.srk()"
    if alg.package == "StochasticDiffEq":
        raise EngineError(
            f"{alg.name} belongs to the julia engine: use engine='julia' (install it with: "
            f"python -m pysciml setup); {ours}."
        )
    raise EngineError(f"{alg.name} does not solve stochastic equations (SDEProblem); {ours}.")


#: More steps of one size than this are a mistake.
_MOST_STEPS = 1e8


def _require_few_steps(tspan: tuple[Any, Any], dt: Any, adaptive: bool) -> None:
    if dt is None or adaptive:
        return
    t0, t1 = map(float, tspan)
    if (t1 - t0) / dt > _MOST_STEPS:
        raise InputError(
            f"dt is {dt:g}, of which tspan ({t0:g}, {t1:g}) holds {(t1 - t0) / dt:.3g}; give a "
            "larger step."
        )


def _require_fit(prob: Any, alg: Algorithm, dt: Any, sensealg: Any) -> None:
    if interpretation(alg) not in ("ito", "stratonovich"):
        raise InputError(
            f'interpretation is {alg.options["interpretation"]!r}; give "Ito" or "Stratonovich".'
        )
    if not isinstance(alg.options.get("grad_free", False), bool):
        raise InputError(f"grad_free is {alg.options['grad_free']!r}; give True or False.")
    general = prob.noise_rate_prototype is not None and prob.noise_type != "additive"
    if alg.name in COMMUTATIVE and general and prob.noise_rate_prototype.shape[-1] > 1:
        raise EngineError(
            f"{alg.name} takes diagonal, scalar and additive noise only, but this problem's is "
            'general (noise_rate_prototype); use pysciml.torchsde.euler(), or noise="additive" '
            "where g does not depend on the state."
        )
    if isinstance(prob.noise, NoiseGrid):
        steps = prob.noise.t.diff()
        if alg.name in LEVY_AREA or float((steps - steps.mean()).abs().max()) > 1e-9 * float(dt):
            raise EngineError(
                f"{alg.name} cannot follow this NoiseGrid: torchsde's algorithms other than srk "
                "and log_ode do, at times of equal distance; use one of these, e.g. "
                "pysciml.torchsde.milstein(), or engine='julia'."
            )
    if dt is None and alg.name in FIXED_STEP:
        raise InputError(f"{alg.name} takes steps of one size, which is not given; give dt=.")
    if sensealg is not None and not isinstance(sensealg, BacksolveAdjoint):
        raise InputError(
            f"sensealg is {sensealg!r}, but gradients of an SDEProblem on the sundials engine go "
            "back through the steps, or by BacksolveAdjoint(); leave it out."
        )


# -- the path between the outputs, and the solution ------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A path between its steps: the line between the states there."""

    t: np.ndarray
    u: np.ndarray

    def __call__(self, at: np.ndarray, deriv: int) -> np.ndarray:
        _require_no_rate(deriv)
        out: np.ndarray = between(self.t, torch.from_numpy(self.u), at).numpy()
        return out


def _require_no_rate(deriv: int) -> None:
    if deriv:
        raise EngineError("A path of a stochastic equation has no derivative by time; give 0.")


class _Path:
    """The whole path of a solution: kept, or solved again when it is asked for."""

    def __init__(self, run: Run, times: np.ndarray, outputs: Tensor, all_steps: Any) -> None:
        self.run, self.times, self.outputs, self.steps = run, times, outputs, all_steps
        self.graph = torch.is_grad_enabled() and outputs.requires_grad

    def all(self) -> tuple[np.ndarray, Tensor]:
        if self.steps is None:
            with torch.set_grad_enabled(self.graph), plain_mode():
                self.run.sensealg, self.run.report = None, None
                times, states = self.run.path()
            again = between(times, states.detach(), self.times)
            if not torch.allclose(again, self.outputs.detach(), rtol=1e-5, atol=1e-12):
                raise PyscimlError(
                    "The path between its outputs is solved again when it is asked for, but what "
                    "f or g read has changed since the solve; take sol(t) and sol.W before that."
                )
            self.steps = (times, states)
        return self.steps

    def __call__(self, at: Tensor, deriv: int) -> Tensor:
        _require_no_rate(deriv)
        if at.requires_grad:
            raise EngineError(
                "A path of a stochastic equation has no derivative by time; detach the times of "
                "sol(t)."
            )
        return between(*self.all(), to_numpy(at))

    def portable(self) -> _Line:
        times, states = self.all()
        return _Line(times, to_numpy(states))

    def noise(self) -> tuple[Tensor, Tensor]:
        times, states = self.all()
        source = self.run.noise
        assert source is not None
        asked = source.steps
        w = [torch.zeros(source.shape, dtype=source.dtype, device=source.device)]
        for a, b in zip(asked, asked[1:], strict=False):
            w.append(w[-1] + source(a, b))
        rows = torch.stack(w).reshape(len(w), -1)[: len(times)]
        return torch.as_tensor(times).to(rows.device), rows


def _solved(run: Run, grid: Grid, index: Tensor | None, raises: bool) -> Solution:
    retcode, reached = "Success", run.t1
    steps: Any = None
    try:
        if grid.values is None or run.keeps_all:
            steps = run.path()
            times = steps[0] if grid.values is None else grid.values
            u = steps[1] if grid.values is None else between(steps[0], steps[1], times)
        else:
            times = grid.values
            u = run.outputs(times)
    except Stop as stop:
        retcode, reached = stop.retcode, stop.reached
        times, u, steps = _partial(run, grid, reached)
    sol = _solution(run, retcode, reached, times, u, steps, grid, index)
    if retcode != "Success" and raises:
        raise SolveError(
            f"The solve stopped at t = {reached:g} of {run.t1:g} with retcode {retcode}: "
            f"{ADVICE[retcode]}. What was computed is in this error's .solution.",
            retcode=retcode,
            t=reached,
            solution=sol,
        )
    return sol


def _partial(run: Run, grid: Grid, reached: float) -> tuple[np.ndarray, Tensor, Any]:
    """What came before a solve stopped."""
    spec, noise = run.prob.state_spec, run.noise
    assert noise is not None
    times = np.array([t for t in noise.steps if t <= reached])
    states = spec.flatten(run.prob.u0).detach()[None]
    if len(times) > 1:
        with torch.no_grad():
            states = run.at(times)
    steps = (times, states)
    if grid.values is None:
        return times, states, steps
    asked = grid.values[grid.values <= reached]
    return asked, between(times, states, asked), steps


def _solution(
    run: Run, retcode: str, reached: float, times: np.ndarray, u: Tensor, steps: Any,
    grid: Grid, index: Tensor | None,
) -> Solution:  # fmt: skip
    spec, noise = run.prob.state_spec, run.noise
    assert noise is not None
    path = _Path(run, times, u, steps)
    whole = grid.tensor is not None and len(times) == len(grid.tensor)
    taken = len(noise.steps) - 1
    return Solution(
        t=grid.tensor if whole else torch.as_tensor(times).to(spec.device),  # type: ignore[arg-type]
        u=spec.unflatten(u) if index is None else u[:, index],
        retcode=retcode,
        stats=Stats(
            nf=run.nf, naccept=taken, nreject=len(noise.attempts) - taken, algorithm=run.alg.name
        ),
        engine="sundials",
        algorithm=run.alg.name,
        prob=run.prob,
        spec=spec,
        save_idxs=index,
        seed=run.seed,
        _interpolate=path,
        _portable=path.portable,
        _noise=path.noise,
        _span=(run.t0, reached),
    )
