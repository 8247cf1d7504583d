"""Solving for steady states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize
from torch import Tensor

from pysciml.callback_library import TerminateSteadyState
from pysciml.engines.base import FlatGradient, Stats
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import InputError, PyscimlError, SolveError
from pysciml.flatten import to_numpy
from pysciml.flattened import Flattened
from pysciml.options import positive, positive_whole
from pysciml.solve import once
from pysciml.steady import DynamicSS, SSRootfind, SteadyStateProblem, SteadyStateSolution
from pysciml.steady_linear import LargeJacobian
from pysciml.transforms import leave_compiler, plain_mode, refuse_transforms, resume_compiler

__all__ = ["solve_steady_state"]

Array = npt.NDArray[np.float64]

#: States up to which Jacobians are formed and factored as a whole.
_DENSE = 2000
#: Newton steps from a state at rest to the root; many, for they are short at a double root.
_STEPS = 60
#: How far from a state at rest the root may be, beside the largest entry of the state.
_NEAR = 0.05


def solve_steady_state(
    solve: Callable[..., Any],
    prob: SteadyStateProblem,
    alg: Any = None,
    *,
    engine: str = "auto",
    abstol: float = 1e-8,
    reltol: float = 1e-6,
    maxiters: int = 1000,
    raise_on_failure: bool = True,
    **unknown: Any,
) -> SteadyStateSolution:
    """``solve`` for steady states: ``SSRootfind()`` where no algorithm is named.

    The state is accepted where Newton's next step is at most ``abstol + reltol |u|`` in every
    entry. DynamicSS solves until rates are at most ``abstol`` or ``reltol |u|``, and goes on with
    Newton's method from there: slow rates alone are not rest (``u' = 1`` is slow beside a large u).
    """
    if unknown:
        raise InputError(
            f"solve does not take {next(iter(unknown))!r} for a SteadyStateProblem; it takes "
            "engine, abstol, reltol, maxiters, raise_on_failure."
        )
    if isinstance(alg, type) and issubclass(alg, (SSRootfind, DynamicSS)):
        alg = alg()
    if alg is not None and not isinstance(alg, (SSRootfind, DynamicSS)):
        raise InputError(
            f"alg is {alg!r}, but a SteadyStateProblem is solved by pysciml.SSRootfind() or "
            "pysciml.DynamicSS(an algorithm for the ODE)."
        )
    positive_whole("maxiters", maxiters)
    positive("abstol", abstol, zero=True)
    positive("reltol", reltol, zero=True)
    compiler = leave_compiler()
    try:
        refuse_transforms(prob.u0, prob.p)
        chosen = choose_engine(engine)
        with plain_mode():
            setup = Flattened(prob.as_ode(1.0), chosen, ())
            if not hasattr(setup.functions, "bind"):
                raise InputError(
                    "f is a julia_function, but steady states are searched for functions written "
                    "in torch; write it so."
                )
            state = _State(setup)
            original = None
            if isinstance(alg, DynamicSS):
                original = _come_to_rest(solve, prob, alg, engine, abstol, reltol)
                state.reached(original, float(abstol), float(reltol))
            else:
                state.find_root(float(abstol), float(reltol), int(maxiters))
            if state.retcode != "Success" and raise_on_failure:
                _fail(state, original)
            leaves = setup.leaves
            want = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
            if want:
                setup.require_differentiable()
                u = _Steady.apply(state, *leaves)
            else:
                u = setup.from_numpy(state.u)
    finally:
        resume_compiler(compiler)
    return SteadyStateSolution(
        u=setup.state.unflatten(u),
        resid=setup.state.unflatten(setup.from_numpy(state.value(state.u))),
        retcode=state.retcode,
        stats=original.stats if original is not None else Stats(nf=state.nf, njacs=state.njacs),
        engine=chosen.name,
        algorithm=type(alg or SSRootfind()).__name__,
        prob=prob,
        original=original,
    )


def _come_to_rest(
    solve: Any, prob: SteadyStateProblem, alg: DynamicSS, engine: str, abstol: float, reltol: float
) -> Any:
    rest = TerminateSteadyState(max(abstol, 1e-300), max(reltol, 1e-300))
    with torch.no_grad():
        return solve(
            prob.as_ode(float(alg.tspan), rest), alg.alg, engine=engine, saveat=[float(alg.tspan)],
            abstol=abstol, reltol=min(reltol, 1e-3), raise_on_failure=False,
        )  # fmt: skip


class _State:
    """The search for a steady state, and what its gradient needs."""

    def __init__(self, setup: Flattened) -> None:
        functions, p, c = setup.functions, setup.total_p, setup.c
        self.setup, self.n = setup, setup.state.size
        self._bind: Any = lambda role: functions.bind(role, p, c)
        self._value: Any = self._bind("value")
        self._jac: Any = None
        self.u: Array = to_numpy(setup.u0)
        self.retcode, self.nf, self.njacs, self.step = "Failure", 0, 0, math.inf
        self.t = math.inf
        self.judged = True
        self._structure: Any = None
        self.eps = torch.finfo(setup.state.dtype).eps

    def value(self, u: Array) -> Array:
        out = np.empty(self.n)
        with np.errstate(all="ignore"):
            self._value(u, self.t, out)
        self.nf += 1
        return out

    def jacobian(self, u: Array) -> Array:
        if self._jac is None:
            self._jac = self._bind("jac:u")
        out = np.empty((self.n, self.n))
        with np.errstate(all="ignore"):
            self._jac(u, self.t, out)
        self.njacs += 1
        return out

    def find_root(self, abstol: float, reltol: float, maxiters: int) -> None:
        start = self.value(self.u)
        if not np.isfinite(start).all():
            raise InputError(
                "f gives inf or NaN at u0 and t = inf, where a search for a steady state begins; "
                "give another u0, or leave t out of f."
            )
        found = optimize.root(
            self.value, self.u, jac=self.jacobian, method="hybr",
            options={"xtol": 1e-12, "maxfev": maxiters},
        )  # fmt: skip
        self.u = np.asarray(found.x)
        for _ in range(3):  # MINPACK judges by its steps alone
            step = self._newton(self.u)
            self.step = float(np.max(np.abs(step) / (abstol + reltol * np.abs(self.u) + 1e-300)))
            if not np.isfinite(self.step):
                break
            if self.step <= 1.0:
                self.u, self.retcode = self.u - step, "Success"
                return
            self.u = self.u - step
        self.retcode = "ConvergenceFailure"

    def _newton(self, u: Array) -> Array:
        """Newton's step; the shortest one where there is more than one."""
        if self.n > _DENSE:
            return self._newton_of_many(u)
        J, r = self.jacobian(u), self.value(u)
        if not (np.isfinite(J).all() and np.isfinite(r).all()):
            return np.full(self.n, np.inf)
        step: Array = np.linalg.lstsq(J, r, rcond=1e-13)[0].astype(float)
        return self._if_it_solves(step, float(np.abs(r - J @ step).max()), r)

    def _newton_of_many(self, u: Array) -> Array:
        J, r = self._large(u), self.value(u)
        step, left = J.solve(r)
        step = self._if_it_solves(step, left, r)
        self.judged = J.factored or bool(np.isfinite(step).all())
        return step

    def _if_it_solves(self, step: Array, left: float, r: Array) -> Array:
        """The step, where no more of r is ``left`` than rounding; one that is not small else."""
        small = max(1e-8, 10.0 * self.eps) * (1.0 + np.abs(r).max())
        return step if left <= small else np.full(self.n, np.inf)

    def _large(self, u: Array) -> LargeJacobian:
        if self._structure is None:
            self._structure = (LargeJacobian.structure_of(self.setup.functions),)
        self.njacs += 1
        return LargeJacobian(self._bind, self._structure[0], u, self.t)

    def reached(self, sol: Any, abstol: float, reltol: float) -> None:
        if len(sol):
            self.u = to_numpy(self.setup.state.flatten_series(sol.u)[-1])
        self.retcode = sol.retcode
        if sol.retcode == "Success":
            self.retcode = "MaxIters"  # the time was up
        if sol.retcode != "Terminated":
            return
        end = float(sol._span[1])
        if not np.isfinite(self.value(self.u)).all():
            self.t = end  # f has no value at t = inf
        if not (np.isfinite(self.u).all() and np.isfinite(self.value(self.u)).all()):
            self.retcode = "Unstable"
            return
        near = _NEAR * max(float(np.abs(self.u).max()), float(self.setup.u0.abs().max()))
        rests = self._settles(abstol, reltol, near)
        self.retcode = "Success" if rests else "ConvergenceFailure"

    def _settles(self, abstol: float, reltol: float, near: float) -> bool:
        """Whether Newton's method finds a root near the state; the state then becomes the root."""
        u = self.u
        for _ in range(_STEPS):
            step = self._newton(u)
            u = u - step
            if not np.abs(u - self.u).max() <= near + abstol:
                return False
            if (np.abs(step) <= abstol + max(reltol, 100.0 * self.eps) * np.abs(u)).all():
                self.u = u
                return True
        return False

    def pulled(self, cotangent: Array) -> Array:
        """The cotangent of the parameters: ``-f_p' J'^-1 cotangent``."""
        dp = np.zeros(len(self.setup.total_p))
        w = self._transposed_solve(cotangent)
        self._bind("vjp:p")(-w, self.u, self.t, dp)
        return dp

    def _transposed_solve(self, cotangent: Array) -> Array:
        conclusive = True
        if self.n <= _DENSE:
            J = self.jacobian(self.u)
            with np.errstate(all="ignore"):
                w: Array = np.linalg.lstsq(J.T, cotangent, rcond=1e-13)[0].astype(float)
            off = float(np.abs(J.T @ w - cotangent).max())
        else:
            large = self._large(self.u)
            w, off = large.solve(cotangent, transposed=True)
            conclusive = large.factored
        if not off <= 1e-6 * np.abs(cotangent).max():
            raise PyscimlError(
                "The Jacobian at the steady state is singular in a direction that the loss looks "
                "at, so the state has no derivative there (a quantity that the model conserves, or "
                "a bifurcation); take that quantity out of the state, or a loss that does not "
                "depend on it."
                if conclusive
                else f"The gradient of a steady state of {self.n} states was not found: products "
                f"with its Jacobian, which is not sparse, leave {off:.1g} of the loss's slope. It "
                f"may be singular, or ill-conditioned; scale the state, or use up to {_DENSE} "
                "states, whose Jacobian is factored."
            )
        return w


def _fail(state: _State, original: Any) -> None:
    size = float(np.abs(state.value(state.u)).max())
    if original is None:
        how = "no root was found from u0"
        advice = "begin nearer to it, or use pysciml.DynamicSS(), which finds stable states"
    elif state.retcode == "MaxIters" and original.retcode == "Success":
        how = f"the solve did not come to rest before t = {original._span[1]:g}"
        advice = "check that there is a stable state, loosen abstol and reltol, or raise tspan"
    elif not state.judged:
        how = (
            f"whether a root is near the state at t = {original._span[1]:g} cannot be told of "
            f"{state.n} states whose Jacobian is not sparse: its products do not give Newton's step"
        )
        advice = (
            f"scale the state, write f so that its Jacobian is sparse, or use up to {_DENSE} "
            "states, whose Jacobian is factored"
        )
    elif original.retcode == "Terminated" and state.retcode == "ConvergenceFailure":
        how = (
            f"rates became small beside the state at t = {original._span[1]:g}, but no root is near"
        )
        advice = (
            "check that there is a stable state (the solution may grow, or move on slowly), or "
            "tighten reltol and abstol"
        )
    else:
        how = f"the solve towards it stopped with retcode {state.retcode}"
        advice = "check the model, or use a stiff algorithm in DynamicSS"
    raise SolveError(
        f"The steady state was not reached: {how} (the largest rate is {size:.3g}); {advice}.",
        retcode=state.retcode,
        t=math.nan if original is None else float(original._span[1]),
        solution=original,
    )


class _Steady(torch.autograd.Function):
    """Inputs: the problem's leaves, of which the state depends on those of p and the closures."""

    @staticmethod
    def forward(ctx: Any, state: _State, *leaves: Tensor) -> Tensor:
        ctx.state = state
        return state.setup.from_numpy(state.u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        state: _State = ctx.state
        state.setup.require_unchanged()
        with plain_mode():
            dp = state.pulled(to_numpy(grad))
        flat = FlatGradient(np.zeros(state.n), dp, 0.0, np.zeros(0))
        out = tuple(state.setup.cotangents(flat, ctx.needs_input_grad[1:]))
        return (None, *once(out, *state.setup.leaves, grad))
