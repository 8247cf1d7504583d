"""Solving boundary value problems by shooting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.algorithms import Algorithm, AlgorithmName
from pysciml.boundary import BVProblem, Shooting, SolveBVP, TwoPointBVProblem
from pysciml.boundary_collocation import solve_on_mesh
from pysciml.boundary_conditions import conditions_of, flat_conditions, require_conditions
from pysciml.dispatch import refuse_seed
from pysciml.errors import InputError, SolveError
from pysciml.options import positive, positive_whole
from pysciml.problems import ODEProblem, number
from pysciml.solution import Solution, detached

__all__ = ["solve_boundary"]

#: Halvings of a Newton step after which there is no way down.
_HALVINGS = 10


def solve_boundary(
    solve: Callable[..., Any],
    prob: BVProblem,
    alg: Any = None,
    **options: Any,
) -> Solution:
    """``solve`` for boundary value problems: ``Shooting()`` where no algorithm is named."""
    if alg is Shooting or alg is SolveBVP or isinstance(alg, AlgorithmName):
        alg = alg()
    on_mesh = isinstance(alg, SolveBVP) or (
        isinstance(alg, Algorithm) and alg.package == "BoundaryValueDiffEqMIRK"
    )
    if not (alg is None or isinstance(alg, Shooting) or on_mesh):
        raise InputError(
            f"alg is {alg!r}, but a {type(prob).__name__} is solved by "
            "pysciml.Shooting(an algorithm for the ODE), pysciml.MIRK4() (julia engine) or "
            "pysciml.SolveBVP()."
        )
    if options.pop("callback", None) is not None:
        raise InputError(
            f"callback was given with a {type(prob).__name__}, which takes none; write the "
            "conditions into bc."
        )
    refuse_seed(prob, options.pop("seed", None))
    if on_mesh:
        return solve_on_mesh(prob, alg, **options)
    return _shoot(solve, prob, alg, **options)


def _shoot(
    solve: Callable[..., Any],
    prob: BVProblem,
    alg: Shooting | None,
    *,
    raise_on_failure: bool = True,
    abstol: float = 1e-8,
    reltol: float = 1e-8,
    maxiters: int = 100,
    **options: Any,
) -> Solution:
    """The initial state is accepted where Newton's next step is at most ten times
    ``abstol + reltol |u|``; ``maxiters`` counts these steps. The tolerances, and other options,
    are those of the solves too.
    """
    positive_whole("maxiters", maxiters)
    positive("abstol", abstol, zero=True)
    positive("reltol", reltol, zero=True)
    outputs = {k: options.pop(k) for k in ("saveat", "save_idxs") if k in options}
    inner = None if alg is None else alg.alg

    def run(u0: Tensor, p: Any, **more: Any) -> Solution:
        ode = ODEProblem(prob.f, prob.state_spec.unflatten(u0), prob.tspan, p)
        solved: Solution = solve(ode, inner, abstol=abstol, reltol=reltol, **options, **more)
        return solved

    search = _Search(prob, run, abstol, reltol)
    found = search.initial_state(int(maxiters))
    if torch.is_grad_enabled():
        residual = search.residual(found, prob.p)
        if residual.requires_grad:
            # one more step of Newton's, whose derivative by all but the state is the solution's
            jacobian = search.linearised(found)[1]
            found = found - torch.linalg.solve(jacobian, residual)
    sol = run(found, prob.p, raise_on_failure=raise_on_failure, **outputs)
    return dataclasses.replace(sol, prob=prob)


class _Search:
    """The conditions as a function of the initial state (n,), and the search for their root."""

    def __init__(
        self,
        prob: BVProblem,
        run: Callable[..., Solution],
        abstol: float,
        reltol: float,
    ) -> None:
        self.prob, self.run, self.abstol, self.reltol = prob, run, abstol, reltol
        self.spec = prob.state_spec
        self.p = detached(prob.p)

    def residual(self, u0: Tensor, p: Any) -> Tensor:
        """What the conditions lack (n,). Raises SolveError where the solve fails."""
        prob = self.prob
        if isinstance(prob, TwoPointBVProblem):
            sol = self.run(u0, p, saveat=torch.stack([torch.as_tensor(t) for t in prob.tspan]))
            ends = (pytree.tree_map(lambda x, i=i: x[i], sol.u) for i in (0, -1))
            given: Any = [
                conditions_of(prob, f"bc[{i}]", bc, ("u", "p"), u, p)
                for i, (bc, u) in enumerate(zip(prob.bc, ends, strict=True))
            ]
        else:
            sol = self.run(u0, p)
            given = conditions_of(prob, "bc", prob.bc, ("u", "p", "t"), sol, p, sol.t)
        return flat_conditions(given, self.spec)

    def linearised(self, u0: Tensor) -> tuple[Tensor, Tensor]:
        """The residual at u0 and its Jacobian, without gradients."""
        with torch.enable_grad():
            at = u0.detach().clone().requires_grad_()
            residual = self.residual(at, self.p)
            require_conditions(residual, [at], "on the solution from u0")
            rows = [
                torch.autograd.grad(r, at, retain_graph=True, allow_unused=True)[0]
                if r.requires_grad
                else None
                for r in residual
            ]
        zero = torch.zeros_like(u0)
        jacobian = torch.stack([zero if row is None else row for row in rows])
        return residual.detach(), jacobian

    def initial_state(self, maxiters: int) -> Tensor:
        """The initial state from which the conditions are met. Raises SolveError."""
        start = self.prob.guess(self.prob.tspan[0])
        u = self.spec.flatten(self.spec.in_order(start)).detach().clone()
        for _ in range(maxiters):
            residual, jacobian = self.linearised(u)
            step, info = torch.linalg.solve_ex(jacobian, -residual)
            if int(info) or not bool(torch.isfinite(step).all()):
                self._fail(
                    "the conditions do not fix the initial state (their Jacobian is singular)",
                    "check bc, and begin from another u0",
                )
            if bool((step.abs() <= 10 * (self.abstol + self.reltol * u.abs())).all()):
                return u + step
            u = self._go(u, step, residual)
        self._fail(f"{maxiters} steps did not suffice", "begin from a nearer u0")

    def _go(self, u: Tensor, step: Tensor, residual: Tensor) -> Tensor:
        size = float(residual.norm())
        with torch.no_grad():
            for k in range(_HALVINGS):
                moved = u + step / 2**k
                try:
                    now = float(self.residual(moved, self.p).norm())
                except SolveError:
                    continue
                if now <= (1 - 0.5 ** (k + 2)) * size:
                    return moved
        self._fail(
            f"the conditions stay off by {size:.3g} from where the search came to",
            "begin from a nearer u0, or tighten the tolerances",
        )

    def _fail(self, why: str, advice: str) -> NoReturn:
        raise SolveError(
            f"Shooting found no solution: {why}; {advice}.",
            retcode="ConvergenceFailure",
            t=number(self.prob.tspan[0]),
            solution=None,
        )
