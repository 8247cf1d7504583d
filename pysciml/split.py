"""Split equations: a stiff side, treated implicitly, and another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysciml.dispatch import solves
from pysciml.errors import InputError
from pysciml.flatten import state_spec
from pysciml.problems import ODEProblem, Problem, require_callable, require_finite

__all__ = ["SemilinearODEProblem", "SplitODEProblem"]


@dataclass(frozen=True, eq=False, repr=False)
class SplitODEProblem(Problem):
    """``u' = f1(u, p, t) + f2(u, p, t)`` with ``u(t0) = u0``, ``f1`` the stiff side.

    Parameters
    ----------
    f1, f2 : callable
        As the function of an :class:`ODEProblem`.
    u0, tspan, p, callback
        As for :class:`ODEProblem`.

    On the ``julia`` engine IMEX methods (``KenCarp4``, ``CNAB2``, ``SBDF``, ...) treat ``f1``
    implicitly and ``f2`` explicitly; every other algorithm for ODEs, and the ``sundials`` engine,
    solves for the sum. Gradients are those of the exact solution, by the adjoint of the sum.

    Raises
    ------
    InputError
        As :class:`ODEProblem`.
    """

    f1: Callable[[Any, Any, Any], Any]
    f2: Callable[[Any, Any, Any], Any]
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    callback: Any = None

    kind = "split"

    def __post_init__(self) -> None:
        require_callable(self.f1, "f1(u, p, t)", "f1")
        require_callable(self.f2, "f2(u, p, t)", "f2")
        self._take(self.sum(), "state_spec", "tspan", "callback")

    def sum(self) -> ODEProblem:
        """The equation as an engine gets it: its sides one after the other."""
        return SplitODE(
            _sides(self.f1, self.f2), self.u0, self.tspan, self.p, callback=self.callback
        )


@dataclass(frozen=True, eq=False, repr=False)
class SemilinearODEProblem(Problem):
    """``u' = A u + f(u, p, t)`` with ``u(t0) = u0``: a stiff linear side and another one.

    Parameters
    ----------
    A : tensor (n, n)
        ``n`` is the number of entries of the state, in the pytree's order, row-major. Gradients
        flow to it.
    f : callable
        As the function of an :class:`ODEProblem`.
    u0, tspan, p, callback
        As for :class:`ODEProblem`.

    On the ``julia`` engine exponential methods (``ETDRK4``, ``LawsonEuler``, ...) solve the linear
    side exactly, IMEX methods treat it implicitly; the rest is as for :class:`SplitODEProblem`.

    Raises
    ------
    InputError
        As :class:`ODEProblem`, and where A does not fit the state.
    """

    A: Tensor
    f: Callable[[Any, Any, Any], Any]
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    callback: Any = None

    kind = "semilinear"

    def __post_init__(self) -> None:
        require_callable(self.f, "f(u, p, t)")
        spec = state_spec(self.u0)
        if not isinstance(self.A, Tensor) or self.A.shape != (spec.size, spec.size):
            given = tuple(self.A.shape) if isinstance(self.A, Tensor) else type(self.A).__name__
            raise InputError(
                f"A is {given}, but the state has {spec.size} entries; give a tensor of shape "
                f"({spec.size}, {spec.size})."
            )
        if self.A.dtype != spec.dtype or self.A.device != spec.device:
            raise InputError(
                f"A is {str(self.A.dtype)[6:]} on {self.A.device}, but u0 is "
                f"{str(spec.dtype)[6:]} on {spec.device}; convert one of them."
            )
        require_finite(self.A, "A")
        self._take(self.sum(), "state_spec", "tspan", "callback")

    def sum(self) -> ODEProblem:
        """The equation as an engine gets it: its sides one after the other."""
        spec = state_spec(self.u0)
        made = _sides(_linear(self.A, spec), self.f)
        return SemilinearODE(made, self.u0, self.tspan, self.p, callback=self.callback)


class SplitODE(ODEProblem):
    """A problem whose function gives its two sides as a pair."""

    form = "split"


class SemilinearODE(SplitODE):
    form = "semilinear"


def _sides(f1: Any, f2: Any) -> Callable[[Any, Any, Any], Any]:
    def sides(u: Any, p: Any, t: Any) -> Any:
        return (f1(u, p, t), f2(u, p, t))

    return sides


def _linear(A: Tensor, spec: Any) -> Callable[[Any, Any, Any], Any]:
    # made anew at every solve: only what it closes over tells the capture which one it is
    if spec.is_tensor:
        shape = spec.shapes[0]

        def linear(u: Tensor, p: Any, t: Any) -> Tensor:
            return torch.mv(A, u.reshape(-1)).reshape(shape)

        return linear

    def linear_tree(u: Any, p: Any, t: Any) -> Any:
        return spec.unflatten(torch.mv(A, spec.flatten(u)))

    return linear_tree


@solves(SplitODEProblem, SemilinearODEProblem)
def solve_split(solve: Any, prob: Any, *args: Any, **options: Any) -> Any:
    """``solve`` for split problems: the solution's ``prob`` is the user's own."""
    sol = solve(prob.sum(), *args, **options)
    return dataclasses.replace(sol, prob=prob)
