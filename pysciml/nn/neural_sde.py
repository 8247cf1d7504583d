"""Neural stochastic differential equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml import torchsde
from pysciml.algorithms import Algorithm, algorithm, as_algorithm
from pysciml.engines.choice import engine as choose_engine
from pysciml.ensemble import EnsembleProblem, EnsembleSolution
from pysciml.errors import InputError, did_you_mean
from pysciml.flatten import state_spec
from pysciml.functions import mistakes_named
from pysciml.nn.base import require_batch, require_known
from pysciml.nn.field import Field, check_field, takes_time
from pysciml.nn.record import Recorded, last_of
from pysciml.nn.regularise import (
    as_regularisers,
    integrals_in,
    require_width,
    steps_in,
    sum_over_steps,
    with_integrals,
    with_random_ends,
)
from pysciml.nn.step_estimates import (
    integrals_over_steps,
    noisy_step_estimates,
    over_steps,
    tolerance_of,
)
from pysciml.nn.times import as_saveat, end_of, output_times, solution_at
from pysciml.problems import check_tspan
from pysciml.solution import Solution
from pysciml.solve import solve
from pysciml.stochastic import SDEProblem, require_forward
from pysciml.stochasticdiffeq import interpretation as interpretation_in_julia

__all__ = ["NeuralSDE"]

_NOISES = ("diagonal", "scalar", "general", "additive")


class _Columns(Field):
    """A diffusion whose values are columns: scalar noise in a batch."""

    def __call__(self, u: Any, p: Any, t: Tensor) -> Any:
        return self.value(u, t)[..., None]


class NeuralSDE(Recorded):
    """``u0 -> u(t1)`` of ``du = f(u, t) dt + g(u, t) dW``, or the states at ``saveat``.

    Parameters
    ----------
    drift, diffusion : nn.Module or callable
        ``f(u)`` or ``f(u, t)`` with ``t`` a 0-d tensor; ``drift`` gives the shape of ``u``.
    tspan : (t0, t1)
        t0 < t1.
    alg : Algorithm, optional
        Of the engine. Where None, one that has gradients: with ``dt`` Euler-Maruyama
        (``EM(split=False)``, ``euler``) or Heun (``EulerHeun``, ``heun``); without it ``RKMil``
        (``LambaEM`` and ``LambaEulerHeun`` for general noise), or ``milstein`` and ``heun``.
    noise : "diagonal", "scalar", "general" or "additive"
        States are (batch, ...), each sample with noise of its own, or one sample (d,). Diagonal:
        ``diffusion`` gives the shape of ``u``, each entry with a Wiener process of its own. Scalar:
        that shape, one process a sample. General: (batch, d, m) for states (batch, d), or (d, m);
        m processes a sample. Additive: the diagonal or the general shape, whichever ``diffusion``
        gives, which must not depend on ``u``.
    interpretation : "Ito" or "Stratonovich"
        Whose equation it is; an algorithm for the other one is refused.
    saveat : times, or a positive step, optional
        Where the solution is given; at ``t1`` only where None.
    engine : "auto", "julia" or "sundials"
        On the latter torchsde solves (:mod:`pysciml.torchsde`).
    regularise : Kinetic, JacobianFrobenius, ErrorEstimate, StiffnessEstimate, RandomEndTime, or
        several of them.
        As for :class:`ContinuousModule`, along each path: the first two are integrals (by the
        trapezoidal rule on the steps) of the drift and of its Jacobian, the next two estimates of
        the drift's and noise's error, and of the drift's stiffness, on the solver's steps. See
        :attr:`penalty`.
    per_sample : bool
        As for :class:`ContinuousModule`: whether each sample has steps of its own.
    options
        ``dt``: steps of this size, or with ``adaptive=True`` the first. ``abstol``, ``reltol``
        (1e-3 where not given), ``sensealg``, ``maxiters``, ...

    Each call draws new noise, as a training step needs; ``torch.manual_seed`` makes a run
    repeatable, and ``model(u0, seed=1)`` draws the same noise again. Sources: Tzen and Raginsky,
    "Neural stochastic differential equations", arXiv 1905.09883; Li, Wong, Chen, Duvenaud,
    "Scalable gradients for stochastic differential equations", AISTATS 2020.

    Raises
    ------
    InputError
        At construction for what cannot be meant; at a call where drift or diffusion hold dropout
        or batch normalisation in training mode, or give shapes that do not fit the state and noise.
    """

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        *,
        noise: str = "diagonal",
        interpretation: str = "Ito",
        saveat: Any = None,
        engine: str = "auto",
        regularise: Any = None,
        per_sample: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        require_known(self, options)
        self.regularise, self.per_sample = as_regularisers(regularise), per_sample
        if not isinstance(noise, str) or noise not in _NOISES:
            raise InputError(
                f"noise is {noise!r}; give one of {', '.join(map(repr, _NOISES))}."
                f"{did_you_mean(str(noise), _NOISES)}"
            )
        if interpretation not in ("Ito", "Stratonovich"):
            raise InputError(f'interpretation is {interpretation!r}; give "Ito" or "Stratonovich".')
        self.drift, self.diffusion = drift, diffusion
        self._drift = Field(drift, takes_time(drift, "drift"))
        timed = takes_time(diffusion, "diffusion")
        # made once each: kernels are found again by them
        self._plain, self._columns = Field(diffusion, timed), _Columns(diffusion, timed)
        self.tspan = check_tspan(tspan)
        require_forward(self.tspan, "a stochastic equation")
        require_width(self.regularise, self.tspan)
        self.saveat = as_saveat(saveat)
        self.noise, self.interpretation, self.engine = noise, interpretation, engine
        self.alg = as_algorithm(alg, "EM")
        if self.alg is not None and _interpretation(self.alg) != interpretation:
            raise InputError(
                f"{self.alg!r} solves the equation of {_interpretation(self.alg)}, but "
                f"interpretation is {interpretation!r}; name another algorithm, or give "
                f"interpretation={_interpretation(self.alg)!r}."
            )
        adaptive = options.get("dt") is None
        self.options = {"abstol": 1e-3, "reltol": 1e-3, "adaptive": adaptive, **options}

    def forward(self, u0: Any, saveat: Any = None, seed: int | None = None) -> Any:
        """From the state at ``t0``, (batch, ...) or (d,), to the solution.

        Returns the state at ``t1`` in the shape of ``u0``; with ``saveat``, here or at
        construction, the states there, (m, *u0.shape). ``seed``: of the noise; new noise where
        None.
        """
        given = output_times(self.saveat if saveat is None else as_saveat(saveat), self.tspan)
        span, acting = self.tspan, self.regularise if self.training else ()
        last = last_of(self)
        last.penalty = None
        if acting and not isinstance(u0, Tensor):
            raise InputError("regularise takes a state that is one tensor.")
        given, span = with_random_ends(acting, given, span)
        of_steps = bool(integrals_in(acting)[0] or steps_in(acting))
        grid = end_of(span[1]) if given is None else given
        if self.per_sample:
            require_batch(u0)
            sim = self._each(u0, None if of_steps else grid, seed, span)
            solutions = [sim[i] for i in range(len(sim))]
        else:
            solutions = [self._solve(u0, None if of_steps else grid, seed, span)]
        if of_steps:
            last.penalty = torch.stack([self._penalty_along(s) for s in solutions]).mean()
            outs = [s.u[-1:] if given is None else solution_at(s, given) for s in solutions]
        else:
            outs = [s.u for s in solutions]
        u = pytree.tree_map(lambda *x: torch.cat(x, dim=1) if self.per_sample else x[0], *outs)
        return pytree.tree_map(lambda x: x[0], u) if given is None else u

    def solve(self, u0: Any, saveat: Any = None, seed: int | None = None) -> Solution:
        """The whole :class:`pysciml.Solution` from ``u0``: its steps where ``saveat`` is None."""
        return self._solve(u0, saveat, seed, self.tspan)

    def _solve(self, u0: Any, saveat: Any, seed: int | None, span: Any) -> Solution:
        prob, alg, name = self._prepared(u0, span)
        sol: Solution = solve(prob, alg, engine=name, saveat=saveat, seed=seed, **self.options)
        last_of(self).stats = sol.stats
        return sol

    def _each(self, u0: Any, saveat: Any, seed: int | None, span: Any) -> EnsembleSolution:
        """Samples as members of an ensemble, each a batch of one with noise of its own."""
        prob, alg, name = self._prepared(pytree.tree_map(lambda x: x[:1], u0), span)
        members = EnsembleProblem(prob, u0=pytree.tree_map(lambda x: x.unsqueeze(1), u0))
        sim: EnsembleSolution = solve(
            members, alg, engine=name, saveat=saveat, seed=seed, **self.options
        )
        last_of(self).stats = sim.stats
        return sim

    def _prepared(self, u0: Any, span: Any) -> tuple[SDEProblem, Algorithm, str]:
        """The problem of this batch, and what solves it."""
        check_field(self.drift, "drift")
        check_field(self.diffusion, "diffusion")
        self._drift.vector_field = self.drift  # they may have been replaced
        self._plain.vector_field = self._columns.vector_field = self.diffusion
        prob = self._problem(u0, span)
        name = choose_engine(self.engine).name
        alg = self._default(name, prob.noise_rate_prototype) if self.alg is None else self.alg
        return prob, alg, name

    def _penalty_along(self, sol: Solution) -> Tensor:
        """The penalty of a solution's steps, 0-d."""
        u, t = sol.u, sol.t.detach()
        drift = over_steps(lambda u, t: self._drift(u, None, t.to(u.dtype)))
        weighted, kinds = integrals_in(self.regularise)
        of_steps, parts = steps_in(self.regularise), []
        if kinds:
            noise = torch.randn_like(u[0]) if "jacobian" in kinds else None
            parts.append(
                with_integrals(None, weighted, integrals_over_steps(drift, t, u, kinds, noise))
            )
        if of_steps:
            abstol = tolerance_of(self.options["abstol"], u.shape[1:], u)
            dw = sol.W.u.diff(dim=0).to(u)
            g = over_steps(lambda u, t: self._plain(u, None, t.to(u.dtype)))
            h = t.diff()
            error, stiffness = noisy_step_estimates(
                drift, lambda u, t: self._kick(g(u, t), u, dw), t[:-1], h, u[:-1], u[1:],
                abstol, float(self.options["reltol"]),
            )  # fmt: skip
            parts.append(sum_over_steps(of_steps, error, stiffness, h))
        return torch.stack(parts).sum()

    def _kick(self, g: Tensor, u: Tensor, dw: Tensor) -> Tensor:
        """``g dW`` of states u (m, ...): g the diffusion there, dw the increments (m, k)."""
        if g.ndim > u.ndim:
            return (g @ dw.reshape(*u.shape[:-1], g.shape[-1], 1))[..., 0]
        return g * dw.reshape(*u.shape[:-1], -1)

    def _problem(self, u0: Any, span: Any) -> SDEProblem:
        """The equation of this batch, its noise's shape as the diffusion gives it."""
        diffusion, prototype, noise = self._plain, None, self.noise
        if noise != "diagonal":
            shape = self._shape_of_diffusion(u0)
            if len(shape) > u0.ndim:
                prototype = torch.empty(shape)
            elif noise == "scalar" and u0.ndim == 2:
                diffusion, prototype = self._columns, torch.empty(*shape, 1)
        if prototype is not None and noise != "additive":
            noise = "diagonal"  # the prototype says what it is
        return SDEProblem(
            self._drift, diffusion, u0, span, noise_rate_prototype=prototype, noise=noise
        )

    def _shape_of_diffusion(self, u0: Any) -> tuple[int, ...]:
        """Raises InputError where it fits neither state nor noise."""
        if not isinstance(u0, Tensor) or u0.ndim not in (1, 2):
            raise InputError(
                f'noise="{self.noise}" takes a state that is one tensor, (batch, d) or (d,); give '
                'such a one, or noise="diagonal".'
            )
        with torch.no_grad():
            t0 = torch.as_tensor(self.tspan[0], dtype=u0.dtype, device=u0.device)
            spec = state_spec(u0)
            with mistakes_named(self._plain, "diffusion", ("u", "p", "t"), spec, False):
                given = self._plain.value(u0.detach(), t0)
        shape = tuple(given.shape) if isinstance(given, Tensor) else ()
        like, matrix = shape == u0.shape, len(shape) == u0.ndim + 1 and shape[:-1] == u0.shape
        fits = {"scalar": like, "general": matrix, "additive": like or matrix}[self.noise]
        if not fits:
            wanted = {"scalar": f"{tuple(u0.shape)}", "general": f"{(*u0.shape, 'm')}"}
            raise InputError(
                f"diffusion gave {f'shape {shape}' if shape else 'no tensor'} for a state of shape "
                f'{tuple(u0.shape)} and noise="{self.noise}"; it must give '
                f"{wanted.get(self.noise, ' or '.join(wanted.values()))}."
            )
        return shape

    def _default(self, engine: str, prototype: Any) -> Algorithm:
        fixed, ito = not self.options["adaptive"], self.interpretation == "Ito"
        general = prototype is not None
        if engine == "sundials":
            if not ito:
                return torchsde.heun()
            return (torchsde.euler if fixed or self.noise == "general" else torchsde.milstein)()
        if fixed:
            return algorithm("EM")(split=False) if ito else algorithm("EulerHeun")()
        if general:
            return algorithm("LambaEM" if ito else "LambaEulerHeun")()
        return algorithm("RKMil")(interpretation=self.interpretation)

    def extra_repr(self) -> str:
        alg = "default" if self.alg is None else self.alg
        return (
            f"tspan={self.tspan}, alg={alg}, noise={self.noise!r}, "
            f"interpretation={self.interpretation!r}, engine={self.engine!r}"
        )


def _interpretation(alg: Algorithm) -> str:
    if alg.package == "torchsde":
        return torchsde.interpretation(alg).capitalize()
    return interpretation_in_julia(alg.name, alg.options)
