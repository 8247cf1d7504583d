"""Boundary value problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pysciml.algorithms import Algorithm, AlgorithmName, as_algorithm
from pysciml.dispatch import solved_by
from pysciml.errors import InputError
from pysciml.flatten import ParameterSpec, StateSpec
from pysciml.options import positive_whole
from pysciml.problems import ODEProblem, Problem, check_tspan, number
from pysciml.signatures import require_function

__all__ = ["BVProblem", "Shooting", "SolveBVP", "TwoPointBVProblem"]


@solved_by("pysciml.boundary_solve", "solve_boundary")
@dataclass(frozen=True, eq=False, repr=False)
class BVProblem(Problem):
    """``u' = f(u, p, t)`` on ``tspan`` with ``bc(u, p, t) = 0``.

    Parameters
    ----------
    f, tspan, p
        As for :class:`ODEProblem`.
    bc : callable
        ``bc(u, p, t)`` in torch. ``u`` is the :class:`Solution`: ``u(s)`` is the state at any
        time, ``t`` are the solver's times. Returns as many numbers as the state has entries (a
        tensor or pytree of tensors), all zero where the conditions hold.
    u0 : tensor or pytree of tensors, or function of t
        A guess of the state, from which the search begins: at t0 (:class:`Shooting`) or at all
        times (the others).

    Solved by :class:`Shooting` or :class:`SolveBVP`, with either engine, or by ``MIRK2()`` to
    ``MIRK6()`` on the julia engine. Gradients flow to p, closed-over tensors and tspan, by the
    implicit function theorem at the solution found, which does not depend on u0 as long as it
    stays the same one.

    On a mesh (MIRK methods, SolveBVP) bc may ask for states by ``u(s)`` alone, at times that are
    plain numbers, and for the first and last row of ``u.u`` and ``t``. Where tspan requires grad,
    ``u(t[0])``, ``u(t[-1])`` and these rows go along with it; plain numbers stay.

    Raises
    ------
    InputError
        As :class:`ODEProblem`; when it is solved, for conditions of another number than the
        state's entries. SolveError where no solution is found from u0.
    """

    f: Callable[[Any, Any, Any], Any]
    bc: Any
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None

    kind = "bvp"
    callback = ()
    state_spec: StateSpec = field(init=False)
    params_spec: ParameterSpec = field(init=False)

    def __post_init__(self) -> None:
        self._check_conditions()
        require_function(self.f, "f", ("u", "p", "t"))
        if callable(self.u0):
            require_function(self.u0, "u0", ("t",))
        first = self.guess(check_tspan(self.tspan)[0]) if callable(self.u0) else self.u0
        made = ODEProblem(self.f, first, self.tspan, self.p)
        self._take(made, "state_spec", "params_spec", "tspan")

    def guess(self, t: Any) -> Any:
        """The guess of the state at ``t``."""
        if not callable(self.u0):
            return self.u0
        try:
            return self.u0(number(t))
        except TypeError as error:
            raise InputError(
                f"u0 fails at t = {number(t):g} ({error}); it is called with t as a number: use "
                "math.sin(t), or torch.as_tensor(t)."
            ) from error

    def _check_conditions(self) -> None:
        require_function(self.bc, "bc", ("u", "p", "t"))


@solved_by("pysciml.boundary_solve", "solve_boundary")
@dataclass(frozen=True, eq=False, repr=False)
class TwoPointBVProblem(BVProblem):
    """``u' = f(u, p, t)`` with conditions at the two ends, ``bca(u(t0), p)`` and ``bcb(u(t1), p)``.

    Parameters
    ----------
    bc : pair of callables (bca, bcb)
        Each of the state at its end and p, in torch; together as many numbers as the state has
        entries.

    All else as for :class:`BVProblem`.
    """

    def _check_conditions(self) -> None:
        if not isinstance(self.bc, (tuple, list)) or len(self.bc) != 2:
            raise InputError(
                f"bc is a {type(self.bc).__name__}; give a pair of functions (bca, bcb), of the "
                "states at the two ends."
            )
        for name, bc in zip(("bc[0]", "bc[1]"), self.bc, strict=True):
            require_function(bc, name, ("u", "p"))


@dataclass(frozen=True)
class Shooting:
    """Newton's method, damped, for the initial state from which the solve meets the conditions.

    alg : algorithm of the engine for the ODE; the engine's choice where None

    Fails where solutions from wrong initial states blow up before the end. Source: Ascher,
    Mattheij, Russell, "Numerical Solution of Boundary Value Problems for Ordinary Differential
    Equations", section 4.2.
    """

    alg: Algorithm | AlgorithmName | None = None

    def __post_init__(self) -> None:
        as_algorithm(self.alg, "Tsit5")


@dataclass(frozen=True)
class SolveBVP:
    """Collocation at three points an interval, of order 4: :func:`scipy.integrate.solve_bvp`.

    max_nodes : most points of the mesh

    For what shooting cannot do, such as boundary layers. Source: Kierzenka and Shampine, "A BVP
    Solver Based on Residual Control and the Maltab PSE", ACM Trans. Math. Softw. 27 (2001).
    """

    max_nodes: int = 10_000

    def __post_init__(self) -> None:
        positive_whole("max_nodes", self.max_nodes)
