"""Stochastic differential equations."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pysciml.dispatch import solves
from pysciml.errors import InputError
from pysciml.flatten import ParameterSpec, StateSpec
from pysciml.julia_function import JuliaFunction
from pysciml.problems import ODEProblem, Problem, require_callable
from pysciml.solution import Solution

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
        noise: a matrix (n, m) for m processes, n being the number of entries of the state.
    u0, tspan, p
        As for :class:`ODEProblem`; tspan runs forward.
    noise_rate_prototype : tensor (n, m), optional
        Makes the noise general; its shape alone counts.
    noise : "diagonal" or "scalar"
        Of a problem without noise_rate_prototype.

    Solved by the ``julia`` engine, Ito's equation or Stratonovich's as the algorithm says (``EM``,
    ``SOSRI``, ``SRIW1``, ``ImplicitEM`` the former, ``EulerHeun`` the latter, ``RKMil`` as its
    ``interpretation``). ``solve(prob, alg, seed=1)`` draws the same noise at every call; without a
    seed one is drawn from torch's generator. ``sol.W`` is the noise at the solver's steps. Between
    steps ``sol(t)`` is the line between the states at its ends.

    Gradients to u0, p and closures are pathwise: of the computed numbers with the noise held, by
    the steps run backwards, after EM, LambaEM, EulerHeun, LambaEulerHeun and RKMil.

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
    noise: str = "diagonal"

    kind = "sde"
    callback = ()
    state_spec: StateSpec = field(init=False)
    params_spec: ParameterSpec = field(init=False)

    def __post_init__(self) -> None:
        for name in ("f", "g"):
            _require_function(getattr(self, name), name)
        made = ODEProblem(self.f, self.u0, self.tspan, self.p)
        self._take(made, "state_spec", "params_spec", "tspan")
        if any(isinstance(x, Tensor) and x.requires_grad for x in self.tspan):
            raise InputError(
                "tspan requires grad, but a path of a stochastic equation has no derivative by "
                "time; detach it."
            )
        t0, t1 = map(float, self.tspan)
        if t1 < t0:
            raise InputError(
                f"tspan ({t0:g}, {t1:g}) runs backwards, but a stochastic equation runs forward; "
                "give t0 < t1."
            )
        if self.noise not in ("diagonal", "scalar"):
            raise InputError(
                f'noise is {self.noise!r}; give "diagonal" or "scalar", or a noise_rate_prototype '
                "of shape (n, m) for general noise."
            )
        if self.noise_rate_prototype is not None:
            self._check_prototype()

    def _check_prototype(self) -> None:
        n, given = self.state_spec.size, self.noise_rate_prototype
        shape = tuple(given.shape) if isinstance(given, Tensor) else None
        if shape is None or len(shape) != 2 or shape[0] != n or shape[1] < 1:
            what = f"has shape {shape}" if shape is not None else f"is a {type(given).__name__}"
            raise InputError(
                f"noise_rate_prototype {what}, but the state has {n} entries; give a tensor of "
                f"shape ({n}, m) for m noise processes."
            )
        if self.noise == "scalar":
            raise InputError(
                'noise="scalar" was given with a noise_rate_prototype, which means general noise; '
                "leave one of them out."
            )

    @property
    def columns(self) -> int:
        """Columns of the diffusion's matrix: 0 for diagonal noise, -1 for scalar noise."""
        if self.noise_rate_prototype is not None:
            return int(self.noise_rate_prototype.shape[1])
        return -1 if self.noise == "scalar" else 0

    def as_pair(self) -> ODEProblem:
        """The equation as an engine gets it: drift and diffusion one after the other."""
        flat = _flat_diffusion(self.state_spec, max(self.columns, 0))
        made = PairOfSDE(_pair(self.f, self.g, flat), self.u0, self.tspan, self.p)
        object.__setattr__(made, "columns", self.columns)
        return made


class PairOfSDE(ODEProblem):
    """A problem whose function gives the drift, and the diffusion as one vector."""

    form = "sde"


def _require_function(f: Any, name: str) -> None:
    require_callable(f, f"{name}(u, p, t)", name)
    if isinstance(f, JuliaFunction):
        raise InputError(
            f"{name} is a julia_function, which an ODEProblem takes as its right-hand side alone; "
            "write this one in torch."
        )
    try:
        signature = inspect.signature(f)
        signature.bind("u", "p", "t")
    except ValueError:  # a builtin without a signature
        return
    except TypeError:
        raise InputError(
            f"{name} takes {signature}, but it is called with (u, p, t), in SciML's order; give it "
            "these arguments."
        ) from None


def _pair(f: Any, g: Any, flat: Any) -> Callable[[Any, Any, Any], Any]:
    def drift_and_diffusion(u: Any, p: Any, t: Any) -> Any:
        return f(u, p, t), flat(g(u, p, t))

    return drift_and_diffusion


@functools.lru_cache(maxsize=256)
def _flat_diffusion(spec: StateSpec, columns: int) -> Callable[[Any], Tensor]:
    """What g returned as one vector, matrices column by column. Raises InputError."""
    if columns == 0:

        def like_state(value: Any) -> Tensor:
            return spec.flatten_like(value, "g")

        return like_state

    def matrix(value: Any) -> Tensor:
        shape = (spec.size, columns)
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
        return value.t().reshape(-1)

    return matrix


@solves(SDEProblem)
def solve_sde(
    solve: Any,
    prob: SDEProblem,
    alg: Any = None,
    ensemblealg: Any = None,
    *,
    seed: int | None = None,
    abstol: Any = 1e-2,
    reltol: float = 1e-2,
    dt: float | None = None,
    callback: Any = None,
    **options: Any,
) -> Solution:
    """``solve`` for stochastic equations: SciML's tolerances, 1e-2, where none are given."""
    if callback is not None:
        raise InputError(
            "callback was given with an SDEProblem, which takes none here; write the event into f "
            "and g, or solve from one event to the next."
        )
    if any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(options.get("saveat"))):
        raise InputError(
            "saveat requires grad, but a path of a stochastic equation has no derivative by time; "
            "detach it."
        )
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed!r}; give a whole number between 0 and 2**63 - 1.")
    if dt is not None and isinstance(dt, (int, float)) and 0 < dt < math.inf:
        steps = math.ceil((float(prob.tspan[1]) - float(prob.tspan[0])) / dt)
        options.setdefault("maxiters", max(100_000, 2 * steps))
    if ensemblealg is not None:
        options["ensemblealg"] = ensemblealg
    sol = solve(prob.as_pair(), alg, seed=seed, abstol=abstol, reltol=reltol, dt=dt, **options)
    return dataclasses.replace(sol, prob=prob)
