"""Neural jump stochastic differential equations: hidden states that move, and jump at events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysciml.algorithms import algorithm
from pysciml.callbacks import PresetTimeCallback
from pysciml.errors import InputError
from pysciml.flatten import is_real, state_spec
from pysciml.functions import mistakes_named
from pysciml.jumps import JumpProblem, VariableRateJump
from pysciml.nn.base import require_known
from pysciml.nn.field import Field, check_field, require_dtype, takes_time
from pysciml.nn.jump_parts import Event, Jump, Noise, Observed, Parts, Rate, a_kind
from pysciml.nn.record import Recorded, last_of
from pysciml.nn.regularise import (
    RandomEndTime,
    as_regularisers,
    integrals_in,
    steps_in,
    sum_over_steps,
    with_integrals,
)
from pysciml.nn.step_estimates import (
    each_step,
    integrals_over_steps,
    noisy_step_estimates,
    over_steps,
    step_estimates,
    tolerance_of,
)
from pysciml.problems import ODEProblem, check_tspan, require_finite
from pysciml.signatures import require_function
from pysciml.solution import Solution
from pysciml.solve import solve
from pysciml.stochastic import SDEProblem, drawn_seed, require_forward

__all__ = ["NeuralJumpSDE"]


class NeuralJumpSDE(Recorded):
    """``du = f(u, t) dt (+ g(u, t) dW) + sum_k w_k(u, t) dN_k``, where events of kind k, counted by
    N_k, come at the rate ``intensity(u, t)[k]``.

    Parameters
    ----------
    drift : nn.Module or callable
        ``f(u)`` or ``f(u, t)`` of the hidden state (d,), to its rate (d,).
    intensity : nn.Module or callable
        ``intensity(u)`` or ``intensity(u, t)``, to the rates (kinds,), positive.
    jump : nn.Module or callable
        ``jump(u, mark)``, what an event adds to the state (d,); ``mark`` is its kind as a one-hot
        vector (kinds,).
    kinds : int
        How many kinds of events there are.
    diffusion : nn.Module or callable, optional
        ``g(u)`` or ``g(u, t)``, (d,): diagonal noise.
    tspan : (t0, t1)
        Where events are observed; t0 < t1.
    alg : Algorithm, optional
        As in :func:`pysciml.solve`; with a diffusion ``EM(split=False)`` where None, with ``dt``.
    engine : "auto", "julia" or "sundials"
        The latter without diffusion, and not for :meth:`sample`.
    regularise : Kinetic, JacobianFrobenius, ErrorEstimate, StiffnessEstimate, or several of them
        As for :class:`ContinuousModule`, of the drift between events; jumps add nothing. With a
        diffusion the steps' estimates are those of :class:`NeuralSDE`. See :attr:`penalty`.
    options
        ``abstol``, ``reltol`` (1e-6 where not given), ``dt``, ``maxiters``, ...

    ``model(u0, times, marks)`` is the log-likelihood of the events that were observed,
    differentiable in the modules' parameters and ``u0``: the state jumps at their times, and the
    rates' integral goes along. ``model.sample(u0, seed=1)`` draws events. Source: Jia, Benson,
    "Neural jump stochastic differential equations", NeurIPS 2019.

    Raises
    ------
    InputError
        At construction for what cannot be meant; at a call for events outside of tspan or of no
        kind, modules in training mode with dropout, or rates of another shape.
    """

    def __init__(
        self,
        drift: Callable[..., Any],
        intensity: Callable[..., Any],
        jump: Callable[..., Any],
        kinds: int = 1,
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        *,
        diffusion: Callable[..., Any] | None = None,
        engine: str = "auto",
        regularise: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        require_known(self, options)
        self.regularise = as_regularisers(regularise)
        if any(isinstance(r, RandomEndTime) for r in self.regularise):
            raise InputError(
                "NeuralJumpSDE does not take RandomEndTime: events are observed up to the end of "
                "tspan, and none are known beyond; give another regulariser."
            )
        if type(kinds) is not int or kinds < 1:
            raise InputError(f"kinds is {kinds!r}; give the number of kinds of events.")
        require_function(jump, "jump", ("u", "mark"))
        span = check_tspan(tspan)
        require_forward(span, "a jump process")
        t0, t1 = map(float, span)
        self.drift, self.intensity, self.jump, self.diffusion = drift, intensity, jump, diffusion
        self.kinds, self.tspan, self.engine = kinds, (t0, t1), engine
        if alg is None and diffusion is not None:
            alg = algorithm("EM")(split=False)
        self.alg = alg
        self.options = {"abstol": 1e-6, "reltol": 1e-6, **options}
        # made once: kernels are found again by them
        self._parts = Parts(
            Field(drift, takes_time(drift, "drift")),
            Field(intensity, takes_time(intensity, "intensity")), jump,
            None if diffusion is None else Field(diffusion, takes_time(diffusion, "diffusion")),
        )  # fmt: skip
        self._made: dict[Any, tuple[Observed, list[Event]]] = {}
        self._noise = Noise(self._parts, 1)
        self._own_noise = Noise(self._parts, 0)
        self._jumps = [
            VariableRateJump(Rate(self._parts, i), Jump(self._parts, i, kinds))
            for i in range(kinds)
        ]

    def forward(
        self, u0: Tensor, times: Any, marks: Any = None, *, seed: int | None = None
    ) -> Tensor:
        """The log-likelihood of events at ``times`` (m,) of kinds ``marks`` (m,), 0-d.

        ``marks``: whole numbers from 0, all 0 where None. ``seed``: of the noise.
        """
        acting = self.regularise if self.training else ()
        (weighted, kinds), of_steps = integrals_in(acting), steps_in(acting)
        last = last_of(self)
        last.penalty = None
        # entries beside the state would draw noise of their own, and so another path
        beside = kinds if self.diffusion is None else ()
        every = bool(of_steps) or beside != kinds
        sol = self._along(u0, times, marks, None, seed, beside, every)
        size = len(u0)
        if of_steps:
            last.penalty = sum_over_steps(of_steps, *self._estimates(sol, size))
        if kinds:
            integrals = sol.u[-1:, size:-1] if beside else self._integrals(sol, size, kinds)
            last.penalty = with_integrals(last.penalty, weighted, integrals)
        return sol.u[-1, -1]

    def solve(
        self,
        u0: Tensor,
        times: Any,
        marks: Any = None,
        *,
        saveat: Any = None,
        seed: int | None = None,
    ) -> Solution:
        """The solution along observed events: the state, and their log-likelihood up to then.

        ``u`` is (m, d + 1) at ``saveat``, at ``t1`` where None.
        """
        return self._along(u0, times, marks, saveat, seed, (), False)

    def _along(
        self, u0: Tensor, times: Any, marks: Any, saveat: Any, seed: Any, kinds: tuple[str, ...],
        every: bool,
    ) -> Solution:  # fmt: skip
        """The solution along events with integrals of these kinds: at ``saveat``, or every step."""
        self._check(u0)
        if seed is not None:
            drawn_seed(seed)
        times, marks = self._checked_events(times, marks)
        size, key = len(u0), (len(u0), kinds)
        found = self._made.get(key)
        if found is None:  # kernels are found again by them
            parts, beside = self._parts, len(kinds) + 1
            found = self._made[key] = (
                Observed(parts, kinds, size),
                [Event(parts, i, self.kinds, beside) for i in range(self.kinds)],
            )  # fmt: skip
        observed, affects = found
        events = [
            PresetTimeCallback(times[marks == i], e, save_positions=(every, every))
            for i, e in enumerate(affects)
            if bool((marks == i).any())
        ]
        full = torch.cat([u0, u0.new_zeros(len(kinds) + 1)])
        noise = torch.randn_like(u0) if "jacobian" in kinds else None
        more: dict[str, Any] = {"callback": events, **self.options}
        if not every:
            end = torch.tensor([self.tspan[1]], dtype=torch.float64)
            more["saveat"] = end if saveat is None else saveat
        prob: Any
        if self.diffusion is None:
            prob = ODEProblem(observed, full, self.tspan, noise)
        else:
            prob = SDEProblem(observed, self._noise, full, self.tspan)
            more["seed"] = seed
        sol: Solution = solve(prob, self.alg, engine=self.engine, **more)
        last_of(self).stats = sol.stats
        return sol

    def _integrals(self, sol: Solution, size: int, kinds: tuple[str, ...]) -> Tensor:
        """Integrals along a solution that has both sides of events, (1, k)."""
        u = sol.u[:, :size]
        noise = torch.randn_like(u[0]) if "jacobian" in kinds else None
        return integrals_over_steps(self._slopes, sol.t.detach(), u, kinds, noise)

    def _slopes(self, u: Tensor, t: Tensor) -> Tensor:
        """The drift at states (m, d) and times (m,)."""
        return over_steps(lambda u, t: self._parts.drift.value(u, t.to(u.dtype)))(u, t)

    def _estimates(self, sol: Solution, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Error, stiffness and lengths of the steps of a solution that has both sides of events."""
        u = sol.u[:, :size]
        at, h, start, end = each_step(sol.t.double(), u)
        drift = self._slopes
        tol = (tolerance_of(self.options["abstol"], size, u), float(self.options["reltol"]))
        if self.diffusion is None:
            return (*step_estimates(drift, at, h, start, end, *tol), h)
        path = sol.W
        where = torch.searchsorted(path.t.double().contiguous(), torch.stack([at, at + h]))
        w = path.u[where.clamp(max=len(path.t) - 1), :size].to(u)
        dw = w[1] - w[0]
        diffusion = self._parts.diffusion
        assert diffusion is not None
        g = over_steps(lambda u, t: diffusion.value(u, t.to(u.dtype)))
        found = noisy_step_estimates(drift, lambda u, t: g(u, t) * dw, at, h, start, end, *tol)
        return (*found, h)

    def sample(self, u0: Tensor, *, saveat: Any = None, seed: int | None = None) -> Solution:
        """Events drawn from the model: ``sol.jump_times`` and ``sol.jump_indices`` (their kinds).

        By the julia engine. ``sol.u`` is the hidden state. Nothing of it has a gradient: the
        parameters move the times of what is drawn, and a count has no derivative by these.
        """
        self._check(u0)
        prob: Any
        if self.diffusion is None:
            prob = ODEProblem(self._parts.drift, u0, self.tspan)
        else:
            prob = SDEProblem(self._parts.drift, self._own_noise, u0, self.tspan)
        jumps = JumpProblem(prob, algorithm("Direct")(), *self._jumps)
        alg = self.alg or algorithm("Tsit5")()
        with torch.no_grad():
            sol: Solution = solve(
                jumps, alg, engine=self.engine, saveat=saveat, seed=seed, **self.options
            )
        last_of(self).stats = sol.stats
        return sol

    def _check(self, u0: Any) -> None:
        for name in ("drift", "intensity", "jump", "diffusion"):
            check_field(getattr(self, name), name)
        self._parts.take(self)
        if not isinstance(u0, Tensor) or u0.ndim != 1:
            given = f"of shape {tuple(u0.shape)}" if isinstance(u0, Tensor) else a_kind(u0)
            raise InputError(f"u0 is {given}; give the hidden state of one sequence, (d,).")
        require_finite(u0, "u0")
        spec, takes = state_spec(u0), ("u", "p", "t")
        t0 = u0.new_tensor(self.tspan[0])
        with torch.no_grad():
            with mistakes_named(self._parts.intensity, "intensity", takes, spec, False):
                rates: Any = self._parts.rates(u0.detach(), t0)
            with mistakes_named(self._parts.drift, "drift", takes, spec, False):
                spec.flatten_like(self._parts.drift.value(u0.detach(), t0), "drift")
            if self._parts.diffusion is not None:
                with mistakes_named(self._parts.diffusion, "diffusion", takes, spec, False):
                    spec.flatten_like(self._parts.diffusion.value(u0.detach(), t0), "diffusion")
        if not isinstance(rates, Tensor) or tuple(rates.shape) != (self.kinds,):
            what = f"shape {tuple(rates.shape)}" if isinstance(rates, Tensor) else a_kind(rates)
            raise InputError(
                f"intensity gave {what}; it must give ({self.kinds},), one rate a kind of event."
            )
        require_dtype(rates, "intensity", u0)
        if not bool((rates >= 0).all()):
            raise InputError(
                f"intensity gave {rates.tolist()} at t0; rates must not be negative, e.g. by "
                "torch.nn.functional.softplus."
            )

    def _checked_events(self, times: Any, marks: Any) -> tuple[Tensor, Tensor]:
        t = _as_tensor(times, "times", "a 1-d tensor of times", torch.float64)
        if t.requires_grad:
            raise InputError("times requires grad, but no gradient is taken for it; detach it.")
        t = t.double().reshape(-1)
        t0, t1 = self.tspan
        if not bool(((t > t0) & (t <= t1)).all()):
            raise InputError(
                f"times reach from {float(t.min()):g} to {float(t.max()):g}, but events are "
                f"observed in ({t0:g}, {t1:g}]; give those in between."
            )
        if marks is None:
            return t, torch.zeros(len(t), dtype=torch.int64)
        kinds = _as_tensor(marks, "marks", "one whole number an event").reshape(-1)
        if kinds.dtype.is_floating_point or len(kinds) != len(t):
            raise InputError(
                f"marks has dtype {str(kinds.dtype)[6:]} and {len(kinds)} entries for {len(t)} "
                "times; give one whole number an event."
            )
        if len(t) and not bool(((kinds >= 0) & (kinds < self.kinds)).all()):
            raise InputError(
                f"marks reach from {int(kinds.min())} to {int(kinds.max())}, but there are "
                f"{self.kinds} kinds of events, from 0; give these."
            )
        return t, kinds


def _as_tensor(given: Any, name: str, wanted: str, dtype: torch.dtype | None = None) -> Tensor:
    """Raises InputError for what cannot be one of real numbers; ``dtype``: of what is no tensor."""
    try:
        made = given if isinstance(given, Tensor) else torch.as_tensor(given, dtype=dtype)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {given!r}; give {wanted}.") from None
    if not is_real(made):
        what = "on the device meta" if made.is_meta else f"of {str(made.dtype)[6:]}"
        raise InputError(f"{name} is {what}; give {wanted}.")
    return made
