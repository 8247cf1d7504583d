"""Solving boundary value problems on a mesh: MIRK methods, and SciPy's solve_bvp."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.integrate import solve_bvp

from pysciml.algorithms import Algorithm
from pysciml.boundary import BVProblem, SolveBVP
from pysciml.boundary_form import StandardForm, flat_guess, standard_form
from pysciml.boundary_mesh import Bound, BoundarySystem, Mesh, Tableau, lobatto
from pysciml.engines.base import (
    FIXED,
    FROM_T0,
    FROM_T1,
    Engine,
    FlatBoundary,
    FlatGradient,
    FlatProblem,
    FlatSolution,
    SolveOptions,
    Stats,
)
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import EngineError, InputError, SolveError
from pysciml.flatten import to_numpy
from pysciml.flattened import Flattened
from pysciml.options import positive, positive_whole, require_count, saveat_grid, state_indices
from pysciml.plan import Plan
from pysciml.problems import ODEProblem, number
from pysciml.solution import Solution
from pysciml.solve import solved
from pysciml.transforms import leave_compiler, plain_mode, refuse_transforms, resume_compiler

__all__ = ["solve_on_mesh"]

Array = npt.NDArray[np.float64]

#: Intervals of the first mesh where dt is not given.
_INTERVALS = 20
#: Nonlinear iterations of MIRK methods on one mesh where maxiters is not given.
_ITERATIONS = 100
#: Intervals of a mesh where max_num_subintervals is not given, as in Julia.
_MOST = 3000
_NEARER = "a nearer guess (u0 may be a function of t), a smaller dt, or larger tolerances"
_ADVICE = f"give {_NEARER}"


def solve_on_mesh(
    prob: BVProblem,
    alg: Algorithm | SolveBVP,
    *,
    engine: str = "auto",
    saveat: Any = None,
    save_idxs: Any = None,
    abstol: float = 1e-6,
    reltol: float | None = None,
    dt: float | None = None,
    adaptive: bool = True,
    maxiters: int | None = None,
    raise_on_failure: bool = True,
    **unknown: Any,
) -> Solution:
    """``solve`` for boundary value problems by MIRK methods and SolveBVP.

    The defect ``|u' - f|`` of the solution between the points of the mesh is at most the smaller
    of ``abstol`` and ``reltol``, relative to ``1 + |f|``. ``dt`` is the interval of the first mesh
    (a twentieth of tspan where None; of the only one with ``adaptive=False``), ``maxiters`` the
    most nonlinear iterations on one mesh (of MIRK methods, 100 where None).
    """
    if unknown:
        raise InputError(
            f"solve does not take {next(iter(unknown))!r} for a {type(prob).__name__} with "
            f"{_name(alg)}; it takes engine, saveat, save_idxs, abstol, reltol, dt, adaptive, "
            "maxiters, raise_on_failure."
        )
    if maxiters is not None:
        positive_whole("maxiters", maxiters)
    for name, value in (("abstol", abstol), ("reltol", reltol), ("dt", dt)):
        if value is not None or name == "abstol":
            positive(name, value)
    _refuse_interval(prob, alg, dt)
    if not adaptive and isinstance(alg, SolveBVP):
        raise InputError(
            "adaptive=False was given with SolveBVP, which chooses its mesh itself; leave it out, "
            "or use e.g. pysciml.MIRK4()."
        )
    if maxiters is not None and isinstance(alg, SolveBVP):
        raise InputError(
            "maxiters was given with SolveBVP, whose bound is the number of points; give "
            "pysciml.SolveBVP(max_nodes=...)."
        )
    if not adaptive and dt is None:
        raise InputError("adaptive=False needs the interval of the mesh; give dt=.")
    compiler = leave_compiler()
    try:
        refuse_transforms(None if callable(prob.u0) else prob.u0, prob.p, saveat)
        with plain_mode():
            chosen = choose_engine(engine)
            form = standard_form(prob)
            run = _OnMesh(chosen, form, alg, prob)
            start = prob.guess(prob.tspan[0])
            setup = Flattened(ODEProblem(prob.f, start, prob.tspan, prob.p), run, ())
            run.prepare(setup)
            grid = saveat_grid(saveat, setup.t0_t, setup.t1_t)
            tolerance = float(abstol if reltol is None else min(abstol, reltol))
            plan = Plan(
                (), engine=run, alg=None, grid=grid, index=state_indices(save_idxs, setup.state),
                options=SolveOptions(
                    abstol=tolerance, saveat=grid.values, dt=None if dt is None else float(dt),
                    adaptive=adaptive, maxiters=int(maxiters or _ITERATIONS),
                ),
                raises=False, f=prob.f,
            )  # fmt: skip
            made = dataclasses.replace(solved(plan, setup), prob=prob)
    finally:
        resume_compiler(compiler)
    if not made.success and raise_on_failure:
        raise SolveError(
            f"{_name(alg)} found no solution: {made.message}; {run.advice}.",
            retcode=made.retcode,
            t=math.nan,
            solution=None,
        )
    return made


def _refuse_interval(prob: BVProblem, alg: Algorithm | SolveBVP, dt: float | None) -> None:
    """Raise InputError for a first mesh that has more intervals than the algorithm is to take."""
    name, most = "max_nodes", alg.max_nodes if isinstance(alg, SolveBVP) else 0
    if isinstance(alg, Algorithm):
        name = "max_num_subintervals"
        most = alg.options.get(name, _MOST)
        require_count(name, most)
    t0, t1 = map(number, prob.tspan)
    if dt is not None and abs(t1 - t0) / dt > most:
        raise InputError(
            f"dt is {dt:g}, of which tspan holds {abs(t1 - t0) / dt:.3g}, but {name} is {most}; "
            "give a larger interval."
        )


def _name(alg: Algorithm | SolveBVP) -> str:
    return alg.name if isinstance(alg, Algorithm) else type(alg).__name__


class _OnMesh(Engine):
    """An engine of one boundary value problem: what it solves, interpolates and differentiates is
    the mesh that ``chosen`` (or SciPy) has found."""

    def __init__(
        self, chosen: Engine, form: StandardForm, alg: Algorithm | SolveBVP, prob: BVProblem
    ) -> None:
        self.chosen, self.form, self.alg, self.prob = chosen, form, alg, prob
        self.name, self.advice = chosen.name, _ADVICE
        self.setup: Any = None

    def check(self, problem_kind: str, alg: Algorithm | None, has_mass_matrix: bool) -> None:
        """Nothing is left to check here."""

    def prepare(self, setup: Flattened) -> None:
        """Capture the conditions. Raises InputError where they cannot be differentiated."""
        size = setup.state.size * len(self.form.pieces)
        x = setup.u0.repeat(2 * len(self.form.pieces))
        conditions, p, c = setup.conditions(self.form.conditions, x)
        f: Any = setup.functions
        for name, functions in (("f", f), ("bc", conditions)):
            if not getattr(functions, "differentiable", True):
                raise InputError(
                    f"{name} cannot be differentiated by torch ({functions.reason}), which "
                    f"{_name(self.alg)} needs; write it with torch operations only."
                )
        assert conditions.n_out == size
        self.setup = setup
        bound = Bound(f, setup.total_p, setup.c), Bound(conditions, p, c)
        self.system = BoundarySystem(self.form.pieces, setup.state.size, *bound)

    # -- forward -------------------------------------------------------------------------------

    def _guess(self, s: Array) -> Array:
        """The guess on a mesh (m, K, n)."""
        spec = self.setup.state
        times = self.form.pieces.times(s)
        if callable(self.prob.u0):
            rows = [to_numpy(flat_guess(self.prob, float(t))) for t in times.reshape(-1)]
        else:
            rows = [to_numpy(self.setup.u0)] * times.size
        return np.stack(rows).reshape(*times.shape, spec.size)

    def solve(
        self, problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
    ) -> FlatSolution:
        length = self.form.pieces.length
        ratio = _INTERVALS if options.dt is None else length / options.dt
        intervals = max(1, math.ceil(ratio * (1 - 1e-12)))
        s = np.linspace(0.0, length, intervals + 1)
        guess = self._guess(s)
        lost = ~np.isfinite(self.system.rate(s, guess)).all(2)
        if lost.any():
            raise InputError(
                f"f gives inf or NaN at the guess at t = {self.form.pieces.times(s)[lost][0]:g}; "
                "give another u0."
            )
        mesh, retcode, why = (
            self._by_scipy(self.alg, s, guess, options)
            if isinstance(self.alg, SolveBVP)
            else self._by_engine(self.alg, s, guess, options)
        )
        if retcode == "Success" and not mesh.settle():
            retcode, why = "ConvergenceFailure", "the equations on the mesh could not be solved"
        elif retcode == "Success" and (spread := mesh.spread()) >= 1.0:
            retcode, why = (
                "ConvergenceFailure",
                (
                    "f and the conditions do not determine it (changes of f as small as the defect "
                    f"move it by {spread:.1g} times its own size), as at an eigenvalue"
                ),
            )
            self.advice = "check the conditions, or tighten abstol"
        return self._solution(mesh, retcode, why, options)

    def _by_engine(
        self, alg: Algorithm, s: Array, guess: Array, options: SolveOptions
    ) -> tuple[Mesh, str, str]:
        order, most = int(alg.name[-1]), int(alg.options.get("max_num_subintervals", _MOST))
        mesh: Mesh | None = None
        assert isinstance(options.abstol, float)
        while True:
            new, retcode = self._asked(alg, s, guess, options)
            count = len(s) - 1
            if retcode == "Success":
                mesh = new
                finer = mesh.refined(order, options.abstol) if options.adaptive else None
                if finer is None:
                    return mesh, retcode, ""
                if len(finer) - 1 > most:
                    self.advice = f"give a larger max_num_subintervals, or {_NEARER}"
                    why = f"max_num_subintervals = {most} intervals of the mesh do not suffice"
                    return mesh, "MaxIters", why
                s, guess = finer, mesh.points(finer)
                continue
            if not options.adaptive or 2 * count > most:
                why = f"the solver stopped with {retcode} on a mesh of {count} intervals"
                return new, retcode, why
            s = np.linspace(0.0, s[-1], 2 * count + 1)
            guess = self._guess(s) if mesh is None else mesh.points(s)

    def _asked(
        self, alg: Algorithm, s: Array, guess: Array, options: SolveOptions
    ) -> tuple[Mesh, str]:
        system, pieces = self.system, self.form.pieces
        found = self.chosen.solve_boundary(
            FlatBoundary(
                system.f.functions, system.f.p, system.f.c, system.bc.functions, system.bc.p,
                system.bc.c, pieces.starts, pieces.rates, self.form.at_start, s,
                guess.reshape(len(s), -1),
            ),
            alg, options,
        )  # fmt: skip
        system.calls += found.calls
        y = found.u.reshape(guess.shape)
        return Mesh(system, Tableau.of(*found.tableau), s, y), found.retcode

    def _by_scipy(
        self, alg: SolveBVP, s: Array, guess: Array, options: SolveOptions
    ) -> tuple[Mesh, str, str]:
        system, shape = self.system, guess.shape[1:]

        def states(y: Array) -> Array:
            return y.T.reshape(-1, *shape)

        def rate(s: Array, y: Array) -> Array:
            return system.rate(s, states(y)).reshape(len(s), -1).T

        def jacobian(s: Array, y: Array) -> Array:
            blocks = system.jacobian(s, states(y))
            pieces, n = shape
            out = np.zeros((pieces, n, pieces, n, len(s)))
            for k in range(pieces):
                out[k, :, k] = blocks[:, k].transpose(1, 2, 0)
            return out.reshape(system.size, system.size, len(s))

        def of_ends(a: Array, b: Array) -> tuple[Array, Array]:
            jac = system.conditions(a, b, "jac:u")
            return jac[:, : system.size], jac[:, system.size :]

        assert isinstance(options.abstol, float)
        with np.errstate(all="ignore"):
            found = solve_bvp(
                rate, system.conditions, s, guess.reshape(len(s), -1).T, fun_jac=jacobian,
                bc_jac=of_ends, tol=options.abstol, max_nodes=alg.max_nodes,
            )  # fmt: skip
        mesh = Mesh(system, lobatto(), found.x, states(found.y))
        if found.status == 1:
            self.advice = f"give a larger max_nodes, or {_NEARER}"
        retcode, why = {
            0: ("Success", ""),
            1: ("MaxIters", f"max_nodes = {alg.max_nodes} do not suffice"),
            2: ("ConvergenceFailure", "a singular Jacobian was met"),
            3: ("ConvergenceFailure", "the conditions could not be met"),
        }[found.status]
        return mesh, retcode, why

    def _solution(self, mesh: Mesh, retcode: str, why: str, options: SolveOptions) -> FlatSolution:
        t, u = mesh.outputs()
        source = np.full(len(t), FIXED)
        source[0], source[-1] = FROM_T0, FROM_T1
        ok = retcode == "Success"
        if ok and options.saveat is not None:
            t, u = options.saveat, mesh.at(options.saveat)
            source = np.arange(len(t))
        stats = Stats(nf=self.system.calls, naccept=len(mesh.s) - 1, algorithm=_name(self.alg))
        return FlatSolution(
            t=t, u=u, source=source, retcode=retcode, stats=stats, handle=mesh,
            message="" if ok else why, t_reached=self.setup.t1,
            at_saveat=ok and options.saveat is not None,
        )  # fmt: skip

    def interpolate(self, solution: FlatSolution, ts: Array, deriv: int = 0) -> Array:
        mesh: Mesh = solution.handle
        return mesh.at(ts, deriv)

    # -- backward ------------------------------------------------------------------------------

    def adjoint(
        self,
        solution: FlatSolution,
        grad_u: Array,
        grad_t: Array | None = None,
        at: Array | None = None,
        by_times: bool = True,
    ) -> FlatGradient:
        if not solution.success:
            raise EngineError(
                f"This solve failed ({solution.message}), so its states have no gradient; solve "
                "with raise_on_failure=True to be told at once."
            )
        mesh: Mesh = solution.handle
        times = solution.t if at is None else at
        dp, of_bc, (t0, t1), moved = mesh.gradient(times, grad_u, by_times)
        return FlatGradient(
            u0=np.zeros(self.system.n), p=dp, t0=t0, t1=t1, times=moved,
            callbacks_p=[(of_bc, None)],
        )  # fmt: skip
