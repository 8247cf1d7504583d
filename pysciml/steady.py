"""Steady states: where the right-hand side is zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pysciml.algorithms import Algorithm, AlgorithmName, as_algorithm
from pysciml.dispatch import solved_by
from pysciml.engines.base import Stats
from pysciml.errors import InputError
from pysciml.flatten import StateSpec
from pysciml.julia_function import JuliaFunction
from pysciml.options import positive
from pysciml.problems import ODEProblem, Problem
from pysciml.signatures import require_function

__all__ = ["DynamicSS", "SSRootfind", "SteadyStateProblem", "SteadyStateSolution"]


@solved_by("pysciml.steady_solve", "solve_steady_state")
@dataclass(frozen=True, eq=False, repr=False)
class SteadyStateProblem(Problem):
    """``f(u, p, t) = 0`` near ``u0``: the steady state of ``u' = f(u, p, t)``.

    Parameters
    ----------
    f : callable, or ODEProblem
        As the function of an :class:`ODEProblem`; of such a problem everything is taken, and
        ``u0`` and ``p`` left out. ``t`` is infinite.
    u0 : tensor or pytree of tensors
        Where the search begins, and where :class:`DynamicSS` starts.
    p : as for :class:`ODEProblem`

    Solve it with ``solve(prob, SSRootfind())`` or ``solve(prob, DynamicSS(alg))``. Gradients flow
    to p and closed-over tensors, by the implicit function theorem at the state found; on u0 that
    state does not depend, as long as it stays the same one.

    Raises
    ------
    InputError
        As :class:`ODEProblem`.
    """

    f: Callable[[Any, Any, Any], Any] | ODEProblem
    u0: Any = None
    p: Any = None

    kind = "steady_state"
    state_spec: StateSpec = field(init=False)
    tspan: tuple[float, float] = field(init=False, default=(0.0, 1.0))
    callback: Any = field(init=False, default=())

    def __post_init__(self) -> None:
        if isinstance(self.f, ODEProblem):
            if self.f.mass_matrix is not None or hasattr(self.f, "form"):
                raise InputError(
                    "A SteadyStateProblem was given an ODEProblem with a mass matrix or in two "
                    "parts; give its right-hand side as a function f(u, p, t)."
                )
            for name in ("u0", "p"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"{name} was given beside an ODEProblem, from which everything is taken; "
                        f"leave it out, or give pysciml.remake(prob, {name}=...)."
                    )
            self._take(self.f, "u0", "p", "f")  # f last: it is the problem
        if not isinstance(self.f, JuliaFunction):  # which has its own message, at the solve
            require_function(self.f, "f", ("u", "p", "t"))
        self._take(self.as_ode(1.0), "state_spec")

    def as_ode(self, end: float, callback: Any = None) -> ODEProblem:
        """The equation ``u' = f(u, p, t)`` from ``t = 0`` on."""
        assert not isinstance(self.f, ODEProblem)
        return ODEProblem(self.f, self.u0, (0.0, end), self.p, callback=callback)


@dataclass(frozen=True)
class SSRootfind:
    """Newton's method in Powell's hybrid form, with the model's Jacobian (MINPACK, by SciPy).

    It may find any root, unstable ones too: begin near the one that is meant. Runs outside of the
    engine, the same with each of them. Source: Powell, "A hybrid method for nonlinear
    equations", 1970.
    """


@dataclass(frozen=True)
class DynamicSS:
    """The solve of ``u' = f(u, p, t)`` from u0 until it rests: finds stable states only.

    alg : algorithm of the engine for the ODE; chosen by a stiffness test where None
    tspan : how long to wait for rest
    """

    alg: Algorithm | AlgorithmName | None = None
    tspan: float = 1e8

    def __post_init__(self) -> None:
        as_algorithm(self.alg, "Rodas5P")
        positive("tspan", self.tspan)


@dataclass(eq=False, repr=False)
class SteadyStateSolution:
    """A steady state.

    Attributes
    ----------
    u : in the structure of u0
    resid : ``f(u, p, t)``, in the same structure, without gradient
    retcode : ``"Success"``, or why there is none
    stats, engine, algorithm : as of a :class:`Solution`
    original : the :class:`Solution` of the ODE, where :class:`DynamicSS` solved one
    """

    u: Any
    resid: Any
    retcode: str
    stats: Stats
    engine: str
    algorithm: str
    prob: Any = None
    original: Any = None

    @property
    def success(self) -> bool:
        return self.retcode == "Success"

    def __repr__(self) -> str:
        leaves = torch.utils._pytree.tree_leaves(self.resid)
        size = max(float(x.abs().max()) for x in leaves)
        return f"SteadyStateSolution({self.retcode}, residual {size:.3g}, {self.algorithm})"
