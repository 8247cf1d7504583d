"""What all continuous modules share: a vector field, a solver, and what a solve leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pysciml.ensemble import EnsembleProblem, EnsembleSolution
from pysciml.errors import InputError, did_you_mean
from pysciml.flatten import state_spec
from pysciml.nn.field import Field, Integrals, check_field, takes_time
from pysciml.nn.record import Recorded, last_of
from pysciml.nn.regularise import (
    as_regularisers,
    integrals_in,
    require_width,
    steps_in,
    sum_over_steps,
    with_integrals,
    with_random_ends,
)
from pysciml.nn.step_estimates import each_step, over_steps, step_estimates, tolerance_of
from pysciml.nn.times import as_saveat, direction_of, end_of, output_times, solution_at, through_end
from pysciml.problems import ODEProblem, check_tspan, hand_on, plans_of
from pysciml.solution import Solution
from pysciml.solve import solve

__all__ = ["ContinuousModule", "require_batch", "require_known"]

#: How many shapes of states a module keeps its field with integrals for.
_SHAPES = 16
_OPTIONS = (
    "abstol reltol sensealg tstops dt dtmax dtmin maxiters adaptive progress raise_on_failure"
).split()


def require_known(module: nn.Module, options: dict[str, Any]) -> None:
    """Raise InputError for an option that solves do not take, or that the module sets itself."""
    for key in options:
        if key not in _OPTIONS:
            raise InputError(
                f"{type(module).__name__} does not take {key!r}.{did_you_mean(key, _OPTIONS)}"
            )


class ContinuousModule(Recorded):
    """Base of the modules that solve ``du/dt = f(u, t)`` with ``f`` a vector field that learns.

    Parameters
    ----------
    vector_field : nn.Module or callable
        ``f(u)``, or ``f(u, t)`` with ``t`` a 0-d tensor; returns the shape of ``u``.
    tspan : (t0, t1)
        Where the equation is solved.
    alg : Algorithm, optional
        As in :func:`pysciml.solve`.
    saveat : times, or a positive step, optional
        Where the solution is given; at ``t1`` only where None.
    engine : "auto", "julia" or "sundials"
    regularise : Kinetic, JacobianFrobenius, ErrorEstimate, StiffnessEstimate, RandomEndTime, or
        several of them.
        Act in training mode only; see :attr:`penalty`. The state is then one tensor.
    per_sample : bool
        False: a batch is one solve of a batched state, its step chosen for all samples together.
        True: each sample (first axis) is solved by itself, with its own steps, as a member of an
        :class:`pysciml.EnsembleProblem`; ``stats`` then counts all of them.
    options
        ``abstol``, ``reltol`` (1e-6 where not given), ``sensealg``, ``dt``, ``maxiters``, ...
        ``sensealg`` says how gradients are made: by default, and with ``QuadratureAdjoint()``,
        the parameters' gradient is outside of the adjoint's error control ("Hey, that's not an
        ODE"); ``InterpolatingAdjoint()`` has it inside. See :mod:`pysciml.sensitivity`.

    Raises
    ------
    InputError
        At construction for what cannot be meant; at a call where the vector field holds dropout
        or batch normalisation in training mode, or gives another shape than the state's.
    """

    def __init__(
        self,
        vector_field: Callable[..., Any],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        *,
        saveat: Any = None,
        engine: str = "auto",
        regularise: Any = None,
        per_sample: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        require_known(self, options)
        self.vector_field = vector_field
        self._field = self._make_field(takes_time(vector_field))
        self._integrals: dict[Any, Integrals] = {}
        self.tspan = check_tspan(tspan)
        self.saveat = as_saveat(saveat)
        self.alg, self.engine, self.per_sample = alg, engine, per_sample
        self.regularise = as_regularisers(regularise)
        self.options = {"abstol": 1e-6, "reltol": 1e-6, **options}
        require_width(self.regularise, self.tspan)

    # ---- solving

    def solve(self, u0: Any, saveat: Any = None, tspan: Any = None) -> Solution:
        """The whole :class:`pysciml.Solution` from ``u0``, without regularisers."""
        span = self.tspan if tspan is None else check_tspan(tspan)
        return self._solve(self._field, u0, span, saveat=saveat)

    def _make_field(self, timed: bool) -> Field:
        return Field(self.vector_field, timed)

    def _refresh(self) -> None:
        """What a call may have changed, such as a replaced vector field, reaches the equation."""
        check_field(self.vector_field)
        self._field.vector_field = self.vector_field

    def _problem(self, f: Any, u0: Any, tspan: Any, p: Any) -> Any:
        return ODEProblem(f, u0, tspan, p)

    def _solve(
        self, f: Any, u0: Any, tspan: Any, p: Any = None, saveat: Any = None, **more: Any
    ) -> Solution:
        self._refresh()
        prob = self._problem(f, u0, tspan, p)
        last = last_of(self)
        hand_on(last.plans, prob)
        sol = solve(prob, self.alg, engine=self.engine, saveat=saveat, **self.options, **more)
        last.stats, last.plans = sol.stats, plans_of(prob)
        return sol

    def _outputs(self, saveat: Any, tspan: Any = None) -> Tensor | None:
        """The output times of a call: those it names, else the module's own."""
        given = self.saveat if saveat is None else as_saveat(saveat)
        return output_times(given, self.tspan if tspan is None else tspan)

    def _solved(
        self, f: Any, u0: Any, span: Any, saveat: Tensor, p: Any = None, rows: Any = (),
        **more: Any,
    ) -> Any:  # fmt: skip
        """States at ``saveat``, times in front: of the batch, or of each sample by itself.

        ``rows``: which leaves of ``p`` have the batch on their first axis.
        """
        if not self.per_sample:
            return self._solve(f, u0, span, p, saveat, **more).u
        u = self._each(f, u0, span, p, rows, saveat=saveat, **more).u
        return pytree.tree_map(lambda x: x.transpose(0, 1).flatten(1, 2), u)

    def _each(self, f: Any, u0: Any, span: Any, p: Any, rows: Any, **more: Any) -> EnsembleSolution:
        """Samples as members of an ensemble, each a batch of one."""
        self._refresh()
        first = pytree.tree_map(lambda x: x[:1], u0)
        u0 = pytree.tree_map(lambda x: x.unsqueeze(1), u0)
        one = None
        if p is not None:
            one = pytree.tree_map(lambda x, r: x[:1] if r else x, p, rows)
            p = pytree.tree_map(lambda x, r: x.unsqueeze(1) if r else x, p, rows)
        members = EnsembleProblem(self._problem(f, first, span, one), u0=u0, p=p)
        sim: EnsembleSolution = solve(members, self.alg, engine=self.engine, **self.options, **more)
        last_of(self).stats = sim.stats
        return sim

    def _states(
        self, u0: Any, saveat: Any = None, tspan: Any = None, p: Any = None, rows: Any = (),
        **more: Any,
    ) -> Any:  # fmt: skip
        """States at ``saveat``, times in front; at the end of ``tspan`` where it is None.

        ``p``: what the field is called with; ``rows``: as in :meth:`_solved`.
        """
        span = self.tspan if tspan is None else tspan
        if self.per_sample:
            require_batch(u0)
        last = last_of(self)
        last.penalty = None
        if self.training and self.regularise:
            u, last.penalty = self._regularised(u0, saveat, span, p, rows, **more)
            return u
        grid = end_of(span[1]) if saveat is None else saveat
        u = self._solved(self._field, u0, span, grid, p, rows, **more)
        return pytree.tree_map(lambda x: x[0], u) if saveat is None else u

    # ---- regularisers

    def _regularised(
        self, u0: Any, saveat: Any, span: Any, p: Any, rows: Any, **more: Any
    ) -> tuple[Any, Tensor | None]:
        """States as :meth:`_states`, and the penalty."""
        if not isinstance(u0, Tensor):
            raise InputError("regularise takes a state that is one tensor.")
        state_spec(u0)
        saveat, span = with_random_ends(self.regularise, saveat, span)
        weighted, kinds = integrals_in(self.regularise)
        penalty, u = self._penalty_of_steps(u0, span, saveat, p, rows, **more)
        if kinds or penalty is None:
            u, integrals = self._with_integrals(u0, kinds, span, saveat, None, p, rows, **more)
            if kinds:
                penalty = with_integrals(penalty, weighted, integrals)
        return u, penalty

    def _penalty_of_steps(
        self, u0: Tensor, span: Any, saveat: Any, p: Any = None, rows: Any = (), **more: Any
    ) -> tuple[Any, Any]:
        """The penalty of what the solver's steps tell, and states as :meth:`_states`.

        Both are None where no regulariser asks for it.
        """
        if not steps_in(self.regularise):
            return None, None
        if self.per_sample:
            sim = self._each(self._field, u0, span, p, rows, **more)
            solutions = [sim[i] for i in range(len(sim))]
        else:
            solutions = [self._solve(self._field, u0, span, p, **more)]
        penalties = [self._estimated(sol, self._slopes(sol)) for sol in solutions]
        ends = [sol.u[-1] if saveat is None else solution_at(sol, saveat) for sol in solutions]
        u = torch.cat(ends, dim=0 if saveat is None else 1) if self.per_sample else ends[0]
        return torch.stack(penalties).mean(), u

    def _slopes(self, sol: Solution) -> Callable[[Tensor, Tensor], Tensor]:
        """The field along a solution, of states (m, ...) at times (m,), one a step."""
        p = sol.prob.p
        return over_steps(lambda u, t: self._field(u, p, t.to(u.dtype)))

    def _estimated(self, sol: Solution, slopes: Any, entries: int | None = None) -> Tensor:
        """The penalty of one solve's steps, 0-d: of all entries of the state, or the first."""
        u = sol.u if entries is None else sol.u[..., :entries]
        t, h, start, end = each_step(sol.t, u)
        abstol = tolerance_of(self.options["abstol"], u.shape[1:], u)
        reltol = float(self.options["reltol"])
        error, stiffness = step_estimates(slopes, t, h, start, end, abstol, reltol)
        return sum_over_steps(steps_in(self.regularise), error, stiffness, h)

    def _with_integrals(
        self, u0: Tensor, kinds: tuple[str, ...], span: Any, saveat: Any, noise: Any = None,
        p: Any = None, rows: Any = (), **more: Any,
    ) -> tuple[Any, Tensor]:  # fmt: skip
        """States as :meth:`_states`, and the integrals over the whole span, (batch, k)."""
        grid = end_of(span[1]) if saveat is None else saveat
        alone, k = self.per_sample, len(kinds)
        batch = len(u0) if alone or u0.ndim > 1 else 1
        if not kinds:
            u = self._solved(self._field, u0, span, grid, p, rows, **more)
            return (u[0] if saveat is None else u), u0.new_zeros(batch, 0)
        if noise is None and "jacobian" in kinds:
            noise = torch.randn_like(u0)
        beside = self._beside(kinds, (1, *u0.shape[1:]) if alone else tuple(u0.shape))
        zeros = u0.new_zeros(batch, k)
        full = torch.cat([u0.reshape(batch, -1), zeros], dim=1)
        full = full if alone or u0.ndim > 1 else full.reshape(-1)
        out = self._solved(
            beside, full, span, through_end(grid, span),
            (() if p is None else p, () if noise is None else noise),
            (rows, () if noise is None else True), **more,
        )  # fmt: skip
        columns = out.reshape(len(out), batch, -1)
        u = columns[: len(grid), :, :-k].reshape(len(grid), *u0.shape)
        return (u[0] if saveat is None else u), direction_of(span) * columns[-1, :, -k:]

    def _beside(self, kinds: tuple[str, ...], shape: tuple[int, ...]) -> Integrals:
        """The field with these integrals, the same each time: kernels are found again by it."""
        held = self._integrals
        found = held.get((kinds, shape))
        if found is None or found.field is not self._field:
            found = held[kinds, shape] = self._make_integrals(kinds, shape)
            for key in list(held)[:-_SHAPES]:
                held.pop(key, None)
        return found

    def _make_integrals(self, kinds: tuple[str, ...], shape: tuple[int, ...]) -> Integrals:
        return Integrals(self._field, kinds, shape)

    def extra_repr(self) -> str:
        alg = "default" if self.alg is None else self.alg
        return f"tspan={self.tspan}, alg={alg}, engine={self.engine!r}"


def require_batch(u0: Any) -> None:
    """Raise InputError for a state that is no batch of samples."""
    leaves = pytree.tree_leaves(u0)
    tensors = all(isinstance(x, Tensor) and x.ndim for x in leaves)
    if not tensors or len({len(x) for x in leaves}) != 1 or not len(leaves[0]):
        raise InputError(
            "per_sample=True takes states whose first axis is the batch, of one length for all."
        )
