"""Stochastic differential equations."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._pytree import tree_leaves

from pysciml.callback_library import SavingCallback
from pysciml.callbacks import as_callbacks
from pysciml.dispatch import solves
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import InputError
from pysciml.flatten import ParameterSpec, StateSpec, to_numpy
from pysciml.functions import mistakes_named
from pysciml.noise import NoiseGrid
from pysciml.options import is_whole
from pysciml.problems import ODEProblem, Problem, number, require_onward
from pysciml.signatures import require_function
from pysciml.solution import Solution
from pysciml.stochastic_embedded import solve_embedded

__all__ = ["SDEProblem"]


@dataclass(frozen=True, eq=False, repr=False)
class SDEProblem(Problem):
    """``du = f(u, p, t) dt + g(u, p, t) dW`` with ``u(t0) = u0``.

    Parameters
    ----------
    f : callable
        The drift, as the function of an :class:`ODEProblem`.
    g : callable
        The diffusion ``g(u, p, t)`` in torch. Diagonal noise: like ``u``, each entry of the state
        with a Wiener process of its own. Scalar noise: like ``u``, one process for all. General
        noise: a matrix (n, m) for m processes, n being the number of entries of the state; or
        matrices (b, d, m), b d = n, for b equations of d entries with m processes each.
    u0, tspan, p
        As for :class:`ODEProblem`; tspan runs forward.
    noise_rate_prototype : tensor (n, m) or (b, d, m), optional
        Makes the noise general; its shape alone counts.
    noise : "diagonal", "scalar", "additive" or NoiseGrid
        The first two of a problem without noise_rate_prototype. Additive: g does not depend on the
        state (diagonal, or general with a prototype). A :class:`NoiseGrid`: a path to be followed.
    callback : optional
        Events, as for :class:`ODEProblem`; of torchsde's algorithms a :class:`SavingCallback` only.

    Solved by the ``julia`` engine, Ito's equation or Stratonovich's as the algorithm says (``EM``,
    ``SOSRI``, ``SRIW1``, ``ImplicitEM`` the former, ``EulerHeun`` the latter, ``RKMil`` as its
    ``interpretation``), or without Julia by torchsde's algorithms (:mod:`pysciml.torchsde`).
    ``solve(prob, alg, seed=1)`` draws the same noise at every call; without a
    seed one is drawn from torch's generator. ``sol.W`` is the noise at the solver's steps. Between
    steps ``sol(t)`` is the line between the states at its ends.

    Gradients to u0, p and closures are pathwise: of the computed numbers with the noise held, by
    the steps run backwards, after the methods of the strong kind (EM, LambaEM, EulerHeun,
    LambaEulerHeun, RKMil, RKMilCommute, the Roessler methods SOSRI, SRIW1, SOSRA, SRA1 and their
    kin, and of the implicit ones ImplicitEM, ImplicitEulerHeun, ImplicitRKMil, ISSEM, ISSEulerHeun
    and SKenCarp, whose equations are solved once more), and after every algorithm of torchsde.
    Events are held at their times; a ContinuousCallback's, which moves along a path that has no
    derivative by time, is refused.

    Raises
    ------
    InputError
        As :class:`ODEProblem`, and for a noise that does not fit the state.
    """

    f: Callable[[Any, Any, Any], Any]
    g: Callable[[Any, Any, Any], Any]
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    noise_rate_prototype: Any = None
    noise: Any = "diagonal"
    callback: Any = None

    kind = "sde"
    state_spec: StateSpec = field(init=False)
    params_spec: ParameterSpec = field(init=False)

    def __post_init__(self) -> None:
        for name in ("f", "g"):
            require_function(getattr(self, name), name, ("u", "p", "t"))
        made = ODEProblem(self.f, self.u0, self.tspan, self.p)
        self._take(made, "state_spec", "params_spec", "tspan")
        object.__setattr__(self, "callback", as_callbacks(self.callback))
        require_forward(self.tspan, "a stochastic equation")
        grid = isinstance(self.noise, NoiseGrid)
        named = isinstance(self.noise, str) and self.noise in ("diagonal", "scalar", "additive")
        if not grid and not named:
            raise InputError(
                f'noise is {self.noise!r}; give "diagonal", "scalar", "additive" or a NoiseGrid, '
                "or a noise_rate_prototype of shape (n, m) for general noise."
            )
        if self.noise_rate_prototype is not None:
            self._check_prototype()
        if grid:
            n, columns = self.state_spec.size, self.columns
            processes = (columns,) if self.noise_rate_prototype is not None else (n, 1)
            self.noise.require_fit(*map(float, self.tspan), processes)
        if self.noise_type == "additive":
            self._require_additive()

    def _check_prototype(self) -> None:
        n, given = self.state_spec.size, self.noise_rate_prototype
        shape = tuple(given.shape) if isinstance(given, Tensor) else None
        sizes = shape or ()
        if len(sizes) not in (2, 3) or math.prod(sizes[:-1]) != n or sizes[-1] < 1:
            what = f"has shape {shape}" if shape is not None else f"is a {type(given).__name__}"
            raise InputError(
                f"noise_rate_prototype {what}, but the state has {n} entries; give a tensor of "
                f"shape ({n}, m) for m noise processes, or (b, d, m) with b * d = {n}."
            )
        if self.noise_type == "scalar":
            raise InputError(
                'noise="scalar" was given with a noise_rate_prototype, which means general noise; '
                "leave one of them out."
            )

    def _require_additive(self) -> None:
        """Raise InputError where the diffusion is another at another state."""
        spec, given = self.state_spec, self.noise_rate_prototype
        flat = _flat_diffusion(spec, () if given is None else tuple(given.shape))
        t = torch.as_tensor(float(self.tspan[0]), dtype=spec.dtype, device=spec.device)
        # up and down: a relu may be flat on one side
        moves = (lambda x: x + 0.0, lambda x: x + 1.0, lambda x: -x - 1.0)
        states = [pytree.tree_map(lambda x, move=move: move(x.detach()), self.u0) for move in moves]
        with torch.no_grad(), mistakes_named(self.g, "g", ("u", "p", "t"), spec, self.p is None):
            here, *there = (flat(self.g(u, self.p, t)) for u in states)
        if not bool(torch.isfinite(here).all()):
            raise InputError(
                "g gives numbers that are not finite at u0 and t0; mend it, or start elsewhere."
            )
        if not all(torch.equal(here, x) for x in there):
            raise InputError(
                'noise is "additive", which says that g does not depend on the state, but it does; '
                "leave it out."
            )

    @property
    def noise_type(self) -> str:
        """``noise`` without its path: "diagonal", "scalar" or "additive"."""
        if isinstance(self.noise, NoiseGrid):
            one = self.noise_rate_prototype is None and self.noise.W.shape[1] == 1
            return "scalar" if one and self.state_spec.size > 1 else "diagonal"
        return str(self.noise)

    @property
    def columns(self) -> int:
        """Columns of the diffusion's matrix: 0 for diagonal noise, -1 for scalar noise."""
        if self.noise_rate_prototype is not None:
            shape = self.noise_rate_prototype.shape
            return int(shape[-1]) * (int(shape[0]) if len(shape) == 3 else 1)
        return -1 if self.noise_type == "scalar" else 0

    def diffusion_matrix(self, value: Any) -> Tensor:
        """What g returned, where it has the shape of the prototype. Raises InputError."""
        return _require_matrix(self.state_spec, tuple(self.noise_rate_prototype.shape), value)

    def as_pair(self) -> ODEProblem:
        """The equation as an engine gets it: drift and diffusion one after the other."""
        given = self.noise_rate_prototype
        flat = _flat_diffusion(self.state_spec, () if given is None else tuple(given.shape))
        made = PairOfSDE(
            _pair(self.f, self.g, flat), self.u0, self.tspan, self.p, callback=self.callback
        )
        object.__setattr__(made, "columns", self.columns)
        if isinstance(self.noise, NoiseGrid):
            path = (to_numpy(self.noise.t), to_numpy(self.noise.W))
            object.__setattr__(made, "noise_path", path)
        return made


class PairOfSDE(ODEProblem):
    """A problem whose function gives the drift, and the diffusion as one vector."""

    form = "sde"


def require_forward(tspan: tuple[Any, Any], what: str) -> None:
    """Raise InputError for a time span that a path along noise cannot have."""
    if any(isinstance(x, Tensor) and x.requires_grad for x in tspan):
        raise InputError(
            f"tspan requires grad, but a path of {what} has no derivative by time; detach it."
        )
    require_onward(tspan, what)


def most_steps(tspan: tuple[Any, Any], dt: Any, least: int) -> int:
    """The most steps of a solve: ``least``, and more where steps of ``dt`` take more."""
    if not isinstance(dt, numbers.Real) or not 0 < float(dt) < math.inf:
        return least
    steps = (float(tspan[1]) - float(tspan[0])) / float(dt)
    return max(least, 2 * math.ceil(steps)) if math.isfinite(steps) else least


def require_no_times(times: Any, name: str = "saveat") -> None:
    """Raise InputError for output times that a gradient is asked for."""
    if any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(times)):
        raise InputError(
            f"{name} requires grad, but a path along noise has no derivative by time; detach it."
        )


def _pair(f: Any, g: Any, flat: Any) -> Callable[[Any, Any, Any], Any]:
    def drift_and_diffusion(u: Any, p: Any, t: Any) -> Any:
        return f(u, p, t), flat(g(u, p, t))

    return drift_and_diffusion


@functools.lru_cache(maxsize=256)
def _flat_diffusion(spec: StateSpec, shape: tuple[int, ...]) -> Callable[[Any], Tensor]:
    """What g returned as one vector, matrices column by column. Raises InputError."""

    def like_state(value: Any) -> Tensor:
        return spec.flatten_like(value, "g")

    def matrix(value: Any) -> Tensor:
        return _require_matrix(spec, shape, value).t().reshape(-1)

    def blocks(value: Any) -> Tensor:
        # equations with processes of their own are the diagonal blocks of one matrix
        rows = _require_matrix(spec, shape, value).transpose(1, 2)
        same = torch.eye(shape[0], dtype=spec.dtype, device=spec.device)
        return (same[:, None, :, None] * rows[:, :, None, :]).reshape(-1)

    return {0: like_state, 2: matrix, 3: blocks}[len(shape)]


def _require_matrix(spec: StateSpec, shape: tuple[int, ...], value: Any) -> Tensor:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        given = (
            f"shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"a {type(value).__name__}"
        )
        raise InputError(
            f"g returned {given}, but noise_rate_prototype has shape {shape}; return a tensor "
            "of that shape."
        )
    if value.dtype != spec.dtype:
        raise InputError(
            f"g returned {str(value.dtype)[6:]}, but u0 is {str(spec.dtype)[6:]}; convert it."
        )
    if value.device != spec.device:
        raise InputError(
            f"g returned a tensor on {value.device}, but u0 is on {spec.device}; move it there."
        )
    return value


def drawn_seed(seed: Any) -> int:
    """The seed given, or one drawn from torch's generator. Raises InputError."""
    if seed is None:
        return int(torch.randint(2**62, ()))
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed!r}; give a whole number between 0 and 2**63 - 1.")
    return int(seed)


@solves(SDEProblem)
def solve_sde(
    solve: Any,
    prob: SDEProblem,
    alg: Any = None,
    *,
    engine: str = "auto",
    seed: int | None = None,
    abstol: Any = 1e-2,
    reltol: float = 1e-2,
    dt: float | None = None,
    **options: Any,
) -> Solution:
    """``solve`` for stochastic equations: SciML's tolerances, 1e-2, where none are given."""
    chosen = choose_engine(engine)
    callback = options.pop("callback", None)
    events = (*prob.callback, *as_callbacks(callback))
    acting = [c for c in events if not isinstance(c, SavingCallback)]
    if acting and chosen.name == "sundials":
        raise InputError(
            f"{type(acting[0]).__name__} was given with an SDEProblem, but torchsde's algorithms "
            "have no events (SavingCallback alone); use engine='julia', or solve from one event to "
            "the next."
        )
    require_no_times(options.get("saveat"))
    if isinstance(prob.noise, NoiseGrid):
        if seed is not None or dt is not None or acting:
            raise InputError(
                f"noise is {prob.noise!r}, whose times are the steps, and nothing is drawn; leave "
                "seed, dt and callback out."
            )
        times = to_numpy(prob.noise.t)
        # a little longer than the longest, so that each ends at a time of the noise
        dt, options["adaptive"] = float(np.diff(times).max()), False
        if chosen.name == "julia":
            dt, options["tstops"] = dt * (1 + 1e-9), times[1:-1] if len(times) > 2 else None
        options.setdefault("maxiters", max(100_000, 2 * len(times)))
    seed = drawn_seed(seed)
    options.setdefault("maxiters", most_steps(prob.tspan, dt, 100_000))
    options |= {"seed": seed, "abstol": abstol, "reltol": reltol, "dt": dt}
    if chosen.name == "sundials":
        for saving in events:
            saving.for_problem(prob, *map(number, prob.tspan))
        sol = solve_embedded(prob, alg, **options)
        for saving in events:
            saving.finish(sol)
        return sol
    sol = solve(prob.as_pair(), alg, engine=engine, callback=callback, **options)
    return dataclasses.replace(sol, prob=prob)
