"""Partitioned equations: velocities and positions, each with a right-hand side of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pysciml.dispatch import solves
from pysciml.errors import InputError
from pysciml.flatten import state_spec
from pysciml.problems import ODEProblem, Problem, require_callable

__all__ = ["DynamicalODEProblem", "HamiltonianProblem", "SecondOrderODEProblem"]


@dataclass(frozen=True, eq=False, repr=False)
class DynamicalODEProblem(Problem):
    """``v' = f1(v, u, p, t)``, ``u' = f2(v, u, p, t)`` with ``v(t0) = v0``, ``u(t0) = u0``.

    Parameters
    ----------
    f1, f2 : callable
        In torch, in the structures of ``v`` and of ``u``.
    v0, u0 : tensor or pytree of tensors
        float64 or float32, of one dtype.
    tspan, p, callback
        As for :class:`ODEProblem`; events see the state ``(v, u)``.

    The solution's ``u`` is the pair ``(v, u)``: ``v, u = sol.u``. On the ``julia`` engine the
    symplectic methods (``VelocityVerlet``, ``KahanLi8``, ...) take steps of a given ``dt`` and keep
    energies over long times, where ``f1`` depends on ``u`` alone and ``f2`` on ``v`` alone; every
    algorithm for ODEs solves the equation as one of first order, as the ``sundials`` engine does.
    Gradients are those of the exact solution, by the adjoint along one of first order.

    Raises
    ------
    InputError
        As :class:`ODEProblem`.
    """

    f1: Callable[[Any, Any, Any, Any], Any]
    f2: Callable[[Any, Any, Any, Any], Any]
    v0: Any
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    callback: Any = None

    kind = "partitioned"

    def __post_init__(self) -> None:
        require_callable(self.f1, "f1(v, u, p, t)", "f1")
        require_callable(self.f2, "f2(v, u, p, t)", "f2")
        self._take(self.first_order(), "state_spec", "tspan", "callback")

    def first_order(self) -> ODEProblem:
        """The equation as one of first order, in the state ``(v, u)``."""
        return PartitionedODE(
            _both(self.f1, self.f2), (self.v0, self.u0), self.tspan, self.p, callback=self.callback
        )


@dataclass(frozen=True, eq=False, repr=False)
class SecondOrderODEProblem(Problem):
    """``u'' = f(u', u, p, t)`` with ``u'(t0) = du0``, ``u(t0) = u0``.

    Parameters
    ----------
    f : callable
        ``f(du, u, p, t)`` in torch, in the structure of ``u``.
    du0, u0 : tensor or pytree of tensors
        Of one structure.
    tspan, p, callback
        As for :class:`DynamicalODEProblem`, and so is the solution: ``du, u = sol.u``.

    Runge-Kutta-Nystrom methods (``DPRKN6``, ``Nystrom4``, ...) are for these; most of them, and
    the symplectic ones, take an ``f`` that does not depend on ``u'``.

    Raises
    ------
    InputError
        As :class:`ODEProblem`.
    """

    f: Callable[[Any, Any, Any, Any], Any]
    du0: Any
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    callback: Any = None

    kind = "second_order"

    def __post_init__(self) -> None:
        require_callable(self.f, "f(du, u, p, t)")
        spec = state_spec(self.u0)
        spec.flatten_like(self.du0, "du0", verb="has")
        self._take(self.first_order(), "state_spec", "tspan", "callback")

    def first_order(self) -> ODEProblem:
        """The equation as one of first order, in the state ``(du, u)``."""
        return SecondOrderODE(
            _both(self.f, _velocity), (self.du0, self.u0), self.tspan, self.p,
            callback=self.callback,
        )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class HamiltonianProblem(Problem):
    """``p' = -dH/dq``, ``q' = dH/dp`` with ``p(t0) = p0``, ``q(t0) = q0``.

    Parameters
    ----------
    H : callable
        ``H(p, q, params, t)`` in torch, one number: the energy. torch differentiates it.
    p0, q0 : tensor or pytree of tensors
        Momenta and positions, of one structure.
    tspan, p, callback
        As for :class:`DynamicalODEProblem`, and so is the solution: ``p, q = sol.u``. ``p`` are the
        parameters, H's third argument.

    Symplectic methods keep the energy of a separable H (a sum of one function of the momenta
    and one of the positions).

    Raises
    ------
    InputError
        As :class:`ODEProblem`, and where H does not give one number.
    """

    H: Callable[[Any, Any, Any, Any], Any]
    p0: Any
    q0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    callback: Any = None

    kind = "partitioned"

    def __post_init__(self) -> None:
        require_callable(self.H, "H(p, q, params, t)", "H")
        spec = state_spec(self.q0, "q0")
        spec.flatten_like(self.p0, "p0", expected="q0", verb="has")
        self._take(self.first_order(), "state_spec", "tspan", "callback")

    @property
    def u0(self) -> tuple[Any, Any]:
        """``(p0, q0)``, the solution's ``u`` at the start."""
        return (self.p0, self.q0)

    def first_order(self) -> ODEProblem:
        """The equation as one of first order, in the state ``(p, q)``."""
        return PartitionedODE(
            _flow(self.H), (self.p0, self.q0), self.tspan, self.p, callback=self.callback
        )


class PartitionedODE(ODEProblem):
    """The equation of a partitioned problem as one of first order; engines may take it apart."""

    form = "partitioned"

    @property
    def parts(self) -> int:
        """Entries of the first part of the state."""
        first: Any = self.u0[0]
        return sum(x.numel() for x in pytree.tree_leaves(first))


class SecondOrderODE(PartitionedODE):
    form = "second_order"


def _both(f1: Any, f2: Any) -> Callable[[Any, Any, Any], Any]:
    # cached captures find these functions again by what they close over
    def both(x: Any, p: Any, t: Any) -> Any:
        v, u = x
        return (f1(v, u, p, t), f2(v, u, p, t))

    return both


def _velocity(v: Any, u: Any, p: Any, t: Any) -> Any:
    return v


def _flow(H: Any) -> Callable[[Any, Any, Any], Any]:
    def flow(x: Any, params: Any, t: Any) -> Any:
        def energy(p: Any, q: Any) -> Any:
            value = H(p, q, params, t)
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                given = (
                    tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                )
                raise InputError(f"H returned {given}; return one number, the energy.")
            return value.reshape(())

        by_p, by_q = torch.func.grad(energy, argnums=(0, 1))(*x)
        return (pytree.tree_map(torch.neg, by_q), by_p)

    return flow


@solves(DynamicalODEProblem, SecondOrderODEProblem, HamiltonianProblem)
def solve_partitioned(solve: Any, prob: Any, *args: Any, **options: Any) -> Any:
    """``solve`` for partitioned problems: the solution's ``prob`` is the user's own."""
    sol = solve(prob.first_order(), *args, **options)
    return dataclasses.replace(sol, prob=prob)
