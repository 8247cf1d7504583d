"""Steps of stochastic equations in torch, as torchsde takes them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysciml.algorithms import Algorithm
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import EngineError, InputError
from pysciml.flatten import to_numpy
from pysciml.flattened import Flattened
from pysciml.functions import mistakes_named
from pysciml.noise import NoiseGrid, between
from pysciml.sensitivity import BacksolveAdjoint
from pysciml.torchsde import LEVY_AREA, interpretation

__all__ = ["Run", "Stop"]

#: Numbers up to which all steps of a solve are kept, whatever outputs were asked for.
_KEPT = 2e7


def _torchsde() -> Any:
    try:
        return importlib.import_module("torchsde")
    except ImportError:
        raise EngineError(
            "Stochastic equations on the sundials engine are solved by torchsde, which is not "
            "installed; install it with: pip install 'pysciml[sde]', or use engine='julia' "
            "(install it with: python -m pysciml setup)."
        ) from None


class Stop(Exception):
    """Ends a solve from within."""

    def __init__(self, retcode: str, reached: float) -> None:
        self.retcode, self.reached = retcode, reached


class _Equation:
    """Drift and diffusion of states (batch, d); the diffusion (batch, d) or (batch, d, m)."""

    def __init__(self, prob: Any, alg: Algorithm) -> None:
        self.prob, self.spec = prob, prob.state_spec
        self.sde_type = interpretation(alg)
        prototype = prob.noise_rate_prototype
        if prototype is None:
            self.noise_type = "scalar" if prob.noise_type == "scalar" else "diagonal"
            self.batch, self.width = 1, 1 if self.noise_type == "scalar" else self.spec.size
        else:
            shape = tuple(prototype.shape)
            self.batch, self.width = (shape[0] if len(shape) == 3 else 1), shape[-1]
            one = "scalar" if self.width == 1 else "general"
            self.noise_type = "additive" if prob.noise_type == "additive" else one
        self.nf = 0
        self.noise: _Noise | None = None
        self._require_no_draws()

    def _require_no_draws(self) -> None:
        """Raise InputError where f or g draw random numbers: the noise is the equation's own."""
        before = torch.get_rng_state()
        t, u = self._at(float(self.prob.tspan[0])), self.prob.u0
        with torch.no_grad():
            for name in ("f", "g"):
                function, takes = getattr(self.prob, name), ("u", "p", "t")
                with mistakes_named(function, name, takes, self.spec, self.prob.p is None):
                    function(u, self.prob.p, t)
                if not torch.equal(torch.get_rng_state(), before):
                    raise InputError(
                        f"{name} draws random numbers (dropout in training mode?), but the noise "
                        "of a stochastic equation comes from g alone; take them out, e.g. with "
                        "model.eval()."
                    )

    def _at(self, t: Any) -> Tensor:
        return torch.as_tensor(t, dtype=self.spec.dtype, device=self.spec.device)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.nf += 1
        if self.noise is not None and not bool(torch.isfinite(y.detach()).all()):
            self.noise.unstable(float(t))
        u = self.spec.unflatten(y.reshape(-1))
        value = self.prob.f(u, self.prob.p, self._at(t))
        return self.spec.flatten_like(value, "f").reshape(y.shape)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        value = self.prob.g(self.spec.unflatten(y.reshape(-1)), self.prob.p, self._at(t))
        if self.prob.noise_rate_prototype is None:
            flat = self.spec.flatten_like(value, "g").reshape(y.shape)
            return flat[..., None] if self.noise_type == "scalar" else flat
        return self.prob.diffusion_matrix(value).reshape(*y.shape, self.width)


class _Given:
    """A given path as a Brownian motion."""

    levy_area_approximation = "none"

    def __init__(self, grid: NoiseGrid, shape: tuple[int, int], like: Any) -> None:
        self.times, self.shape = to_numpy(grid.t), shape
        self.values = grid.W.to(like.device, like.dtype)
        self.dtype, self.device = like.dtype, like.device

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Any:
        ends = between(self.times, self.values, [float(ta), float(tb)])
        return (ends[1] - ends[0]).reshape(self.shape)


class _Noise:
    """A Brownian motion that knows the steps it was asked for, and ends a solve that goes wrong."""

    def __init__(self, inner: Any, run: Run) -> None:
        self.inner, self.run = inner, run
        self.queries: list[tuple[float, float]] = []
        self.forward = True
        self.shape, self.dtype, self.device = inner.shape, inner.dtype, inner.device
        self.levy_area_approximation = inner.levy_area_approximation

    def size(self) -> Any:
        return self.shape

    def __call__(
        self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
    ) -> Any:
        if self.forward:
            run, first, last = self.run, float(ta), float(tb)
            self.queries.append((first, last))
            if len(self.queries) > run.maxiters * (3 if run.adaptive else 1):
                raise Stop("MaxIters", first)
            if run.adaptive and len(self.queries) % 3 == 1 and run.report is not None:
                run.report(first)
            elif run.report is not None and not run.adaptive:
                run.report(last)
            if run.adaptive and last - first <= run.dtmin and last < run.t1:
                raise Stop("DtLessThanMin", self.attempts[-1][0])
        return self.inner(ta, tb, return_U=return_U, return_A=return_A)

    @property
    def attempts(self) -> list[tuple[float, float]]:
        """The steps tried; with step control each is followed by its halves."""
        return self.queries[:: 3 if self.run.adaptive else 1]

    @property
    def steps(self) -> list[float]:
        """Times of the steps taken, the start among them."""
        tried = self.attempts
        ends = [b for (_, b), (a, _) in zip(tried, tried[1:], strict=False) if a == b]
        return [self.run.t0, *ends, tried[-1][1]] if tried else [self.run.t0]

    def unstable(self, t: float) -> None:
        tried = [a for a, _ in self.attempts if a < t]
        raise Stop("Unstable", tried[-1] if tried else self.run.t0)


@dataclass
class Run:
    """What a solve was asked for; ``at`` takes its steps."""

    prob: Any
    alg: Algorithm
    seed: int
    dt: float | None
    adaptive: bool
    sensealg: BacksolveAdjoint | None
    tolerances: dict[str, float]
    smallest: float | None
    maxiters: int
    report: Callable[[float], None] | None

    def __post_init__(self) -> None:
        self.torchsde = _torchsde()
        self.t0, self.t1 = map(float, self.prob.tspan)
        span = self.t1 - self.t0
        if self.dt is None and not self.adaptive:
            raise InputError(
                "adaptive=False takes steps of one size, which is not given; give dt=."
            )
        self.dtmin = 1e-9 * span if self.smallest is None else self.smallest
        wanted = span / 100 if self.dt is None else float(self.dt)
        self.count = max(1, math.ceil(span / wanted * (1 - 1e-9)))
        steps = self.t0 + wanted * np.arange(self.count + 1, dtype=np.float64)
        steps[-1] = self.t1
        # where the sum of the steps stays behind them, there would be a last step of no length:
        # steps are then a little longer
        summed = np.add.accumulate(np.r_[self.t0, np.full(self.count, wanted)])
        size = self.count * max(abs(self.t0), abs(self.t1), span) / span
        behind = bool((summed < steps).any())
        self.step = wanted * (1 + np.finfo(float).eps * size) if behind else wanted
        self.fixed = steps
        self.nf = 0
        self.noise: _Noise | None = None

    def at(self, times: Any) -> Tensor:
        """States (m, n) at increasing times, the first of them t0. Raises Stop."""
        equation = _Equation(self.prob, self.alg)
        spec = self.prob.state_spec
        given, size = self.prob.noise, (equation.batch, equation.width)
        noise = _Given(given, size, spec) if isinstance(given, NoiseGrid) else self._drawn(size)
        self.noise = equation.noise = _Noise(noise, self)
        y0 = spec.flatten(self.prob.u0).reshape(equation.batch, -1)
        options = {k: v for k, v in self.alg.options.items() if k == "grad_free"}
        asked = {
            "bm": self.noise, "method": self.alg.name, "dt": self.step, "adaptive": self.adaptive,
            "dt_min": self.dtmin, "options": options, **self.tolerances,
        }  # fmt: skip
        at = torch.as_tensor(times, dtype=torch.float64)
        try:
            if self.sensealg is not None and torch.is_grad_enabled():
                asked |= self._of_adjoint(self.sensealg)
                out = self.torchsde.sdeint_adjoint(equation, y0, at, **asked)
            else:
                out = self.torchsde.sdeint(equation, y0, at, **asked)
        except AssertionError as error:
            if "nans" not in str(error):
                raise
            raise Stop("Unstable", self.noise.attempts[-1][0]) from error
        finally:
            self.noise.forward, self.nf = False, equation.nf
            equation.noise = None
        out = out.reshape(len(at), spec.size)
        bad = ~torch.isfinite(out.detach()).all(1)
        if bool(bad.any()):
            self.noise.unstable(float(at[bad][0]))
        return out

    def _drawn(self, size: tuple[int, int]) -> Any:
        spec = self.prob.state_spec
        return self.torchsde.BrownianInterval(
            t0=self.t0, t1=self.t1, size=size, dtype=spec.dtype, device=spec.device,
            entropy=self.seed, dt=self.step,
            levy_area_approximation=LEVY_AREA.get(self.alg.name, "none"),
        )  # fmt: skip

    def _of_adjoint(self, how: BacksolveAdjoint) -> dict[str, Any]:
        setup = Flattened(self.prob.as_pair(), choose_engine("sundials"), ())
        leaves = setup.leaves[setup.counts[0] :]
        return {
            "adjoint_params": tuple(x for x in leaves if x.requires_grad),
            "adjoint_adaptive": self.adaptive,
            "adjoint_atol": self.tolerances["atol"] if how.abstol is None else how.abstol,
            "adjoint_rtol": self.tolerances["rtol"] if how.reltol is None else how.reltol,
        }

    def path(self) -> tuple[np.ndarray, Tensor]:
        """Times and states of all steps."""
        times = self.fixed
        if self.adaptive:
            with torch.no_grad():
                self.at([self.t0, self.t1])
            assert self.noise is not None
            times = np.array(self.noise.steps)
        return times, self.at(times)

    def outputs(self, times: np.ndarray) -> Tensor:
        """States at some times."""
        more = np.unique(np.concatenate([[self.t0], times, [self.t1]]))
        return self.at(more)[np.searchsorted(more, times)]

    @property
    def keeps_all(self) -> bool:
        small = self.count * self.prob.state_spec.size <= _KEPT
        return not self.adaptive and self.sensealg is None and small
