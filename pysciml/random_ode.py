"""Random differential equations: ordinary ones along a path of noise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pysciml.callbacks import as_callbacks
from pysciml.dispatch import solves
from pysciml.errors import InputError
from pysciml.flatten import ParameterSpec, StateSpec, state_spec
from pysciml.problems import ODEProblem, Problem
from pysciml.signatures import require_function
from pysciml.solution import Solution
from pysciml.stochastic import drawn_seed, most_steps, require_forward, require_no_times

__all__ = ["RODEProblem"]


@dataclass(frozen=True, eq=False, repr=False)
class RODEProblem(Problem):
    """``u' = f(u, p, t, W)`` along a path of Wiener processes, ``u(t0) = u0`` and ``W(t0) = 0``.

    Parameters
    ----------
    f : callable
        ``f(u, p, t, W)`` in torch, returning the derivative in the structure of ``u``.
    u0, tspan, p, callback
        As for :class:`ODEProblem`; tspan runs forward.
    rand_prototype : tensor (m,), optional
        W is then a tensor of m processes; without it W is like u, a process an entry. Its shape
        alone counts.

    Solved by the ``julia`` engine with steps of one size: ``solve(prob, RandomHeun(), dt=1e-3,
    seed=1)``, or ``RandomEM()``, ``RandomTamedEM()`` (which tames each entry by itself). Seeds,
    ``sol.W`` and pathwise gradients are as for an :class:`SDEProblem`. Source of the methods: Han,
    Kloeden, "Random Ordinary Differential Equations and Their Numerical Solution" (2017).

    Raises
    ------
    InputError
        As :class:`ODEProblem`, and for a prototype of another shape.
    """

    f: Callable[[Any, Any, Any, Any], Any]
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    rand_prototype: Any = None
    callback: Any = None

    kind = "rode"
    state_spec: StateSpec = field(init=False)
    params_spec: ParameterSpec = field(init=False)

    def __post_init__(self) -> None:
        require_function(self.f, "f", ("u", "p", "t", "W"))
        f: Any = self.f
        made = ODEProblem(f, self.u0, self.tspan, self.p)
        self._take(made, "state_spec", "params_spec", "tspan")
        object.__setattr__(self, "callback", as_callbacks(self.callback))
        require_forward(self.tspan, "a random equation")
        given = self.rand_prototype
        if given is not None and not (isinstance(given, Tensor) and given.ndim == 1 and len(given)):
            what = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"{given!r}"
            raise InputError(
                f"rand_prototype is {what}; give a tensor (m,) for m processes, or leave it out "
                "for a process an entry of the state."
            )

    def as_flat(self) -> ODEProblem:
        """The equation as an engine gets it: a function of state and noise together."""
        spec = self.state_spec
        noise = self.u0
        if self.rand_prototype is not None:
            noise = torch.zeros(len(self.rand_prototype), dtype=spec.dtype, device=spec.device)
        pair = state_spec((self.u0, noise))
        rate = _of_pair(self.f, spec)
        made = AlongNoise(rate, self.u0, self.tspan, self.p, callback=self.callback)
        object.__setattr__(made, "pair_spec", pair)
        object.__setattr__(made, "columns", pair.size - spec.size)
        return made


class AlongNoise(ODEProblem):
    """A problem whose function takes the pair of state and noise."""

    form = "rode"
    pair_spec: StateSpec
    columns: int


@functools.lru_cache(maxsize=256)
def _flat_rate(spec: StateSpec) -> Callable[[Any], Tensor]:
    def like_state(value: Any) -> Tensor:
        return spec.flatten_like(value, "f")

    return like_state


def _of_pair(f: Any, spec: StateSpec) -> Callable[[Any, Any, Any], Any]:
    flat = _flat_rate(spec)

    def rate(pair: Any, p: Any, t: Any) -> Any:
        u, w = pair
        return flat(f(u, p, t, w))

    return rate


@solves(RODEProblem)
def solve_rode(
    solve: Any,
    prob: RODEProblem,
    alg: Any = None,
    *,
    seed: int | None = None,
    dt: float | None = None,
    **options: Any,
) -> Solution:
    """``solve`` for random equations."""
    require_no_times(options.get("saveat"))
    options.setdefault("maxiters", most_steps(prob.tspan, dt, 100_000))
    options.setdefault("adaptive", False)
    sol = solve(prob.as_flat(), alg, seed=drawn_seed(seed), dt=dt, **options)
    return dataclasses.replace(sol, prob=prob)
