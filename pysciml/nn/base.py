"""What all continuous modules share: a vector field, a solver, and what a solve leaves behind."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pysciml.engines.base import Stats
from pysciml.errors import InputError, did_you_mean
from pysciml.flatten import state_spec
from pysciml.nn.field import Field, Integrals, check_field, takes_time
from pysciml.nn.regularise import (
    ErrorEstimate,
    JacobianFrobenius,
    Kinetic,
    RandomEndTime,
    StiffnessEstimate,
    as_regularisers,
)
from pysciml.nn.step_estimates import step_estimates
from pysciml.problems import ODEProblem, check_tspan, hand_on, plans_of
from pysciml.solution import Solution
from pysciml.solve import solve

__all__ = ["ContinuousModule", "check_times", "last_of"]

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


@dataclass
class Last:
    """What a module's last call left. Kept outside of it: kernels watch modules' attributes."""

    stats: Stats | None = None
    plans: tuple[Any, ...] = ()
    penalty: Tensor | None = None
    events: list[list[float]] | None = None


_last: weakref.WeakKeyDictionary[nn.Module, Last] = weakref.WeakKeyDictionary()


def check_times(times: Any, name: str = "saveat") -> Tensor:
    """A 1-d tensor of strictly increasing or decreasing times, or InputError."""
    try:
        t = times if isinstance(times, Tensor) else torch.as_tensor(times, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {times!r}; give a 1-d tensor of float times.") from None
    if t.ndim != 1 or not t.numel() or not t.is_floating_point():
        raise InputError(f"{name} has shape {tuple(t.shape)}; give a 1-d tensor of float times.")
    steps = t.detach().diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise InputError(f"{name} is not sorted, or repeats a time; sort it and take each once.")
    return t


def last_of(module: nn.Module) -> Last:
    """The record of a module's last call, to be read and written."""
    return _last.setdefault(module, Last())


class ContinuousModule(nn.Module):
    """Base of the modules that solve ``du/dt = f(u, t)`` with ``f`` a vector field that learns.

    Parameters
    ----------
    vector_field : nn.Module or callable
        ``f(u)``, or ``f(u, t)`` with ``t`` a 0-d tensor; returns the shape of ``u``.
    tspan : (t0, t1)
        Where the equation is solved.
    alg : Algorithm, optional
        As in :func:`pysciml.solve`.
    saveat : times, optional
        Where the solution is given; at ``t1`` only where None.
    engine : "auto", "julia" or "sundials"
    regularise : Kinetic, JacobianFrobenius, ErrorEstimate, StiffnessEstimate, RandomEndTime, or
        several of them.
        Act in training mode only; see :attr:`penalty`. The state is then one tensor.
    per_sample : bool
        False: a batch is one solve of a batched state, its step chosen for all samples together.
        True: each sample (first axis) is solved by itself, with its own steps.
    options
        ``abstol``, ``reltol`` (1e-6 where not given), ``sensealg``, ``dt``, ``maxiters``, ...

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
        self._integrals = Integrals(self._field, (), ())
        self.tspan = check_tspan(tspan)
        self.saveat = None if saveat is None else check_times(saveat)
        self.alg, self.engine, self.per_sample = alg, engine, per_sample
        self.regularise = as_regularisers(regularise)
        self.options = {"abstol": 1e-6, "reltol": 1e-6, **options}
        width = sum(r.width for r in self.regularise if isinstance(r, RandomEndTime))
        if width >= abs(self.tspan[1] - self.tspan[0]):
            raise InputError(
                f"RandomEndTime has width {width:g}, but tspan is only "
                f"{abs(self.tspan[1] - self.tspan[0]):g} long; give a smaller width."
            )

    # ---- what the last call left

    @property
    def stats(self) -> Stats | None:
        """Counts of the last solve (evaluations, steps), None before the first."""
        return _last[self].stats if self in _last else None

    @property
    def penalty(self) -> Tensor:
        """The regularisers' weighted sum for the last call in training, 0-d; 0 where there is none.

        Add it to the loss: ``(loss + model.penalty).backward()``.
        """
        found = _last[self].penalty if self in _last else None
        return torch.zeros(()) if found is None else found

    # ---- solving

    def solve(self, u0: Any, saveat: Any = None, tspan: Any = None) -> Solution:
        """The whole :class:`pysciml.Solution` from ``u0``, without regularisers."""
        span = self.tspan if tspan is None else check_tspan(tspan)
        return self._solve(self._field, u0, span, saveat=saveat)

    def _make_field(self, timed: bool) -> Field:
        return Field(self.vector_field, timed)

    def _solve(
        self, f: Any, u0: Any, tspan: Any, p: Any = None, saveat: Any = None, **more: Any
    ) -> Solution:
        check_field(self.vector_field)
        self._field.vector_field = self.vector_field  # it may have been replaced
        prob = ODEProblem(f, u0, tspan, p)
        last = last_of(self)
        hand_on(last.plans, prob)
        sol = solve(prob, self.alg, engine=self.engine, saveat=saveat, **self.options, **more)
        last.stats, last.plans = sol.stats, plans_of(prob)
        return sol

    def _states(self, u0: Any, saveat: Any = None, tspan: Any = None) -> Any:
        """States at ``saveat``, times in front; at the end of ``tspan`` where it is None."""
        if self.per_sample:
            return self._one_by_one(u0, saveat, tspan)
        span = self.tspan if tspan is None else tspan
        if self.training and self.regularise:
            return self._regularised(u0, saveat, span)
        last_of(self).penalty = None
        grid = end_of(span[1]) if saveat is None else saveat
        u = self._solve(self._field, u0, span, saveat=grid).u
        return pytree.tree_map(lambda x: x[0], u) if saveat is None else u

    def _one_by_one(self, u0: Any, saveat: Any, tspan: Any) -> Any:
        leaves, spec = pytree.tree_flatten(u0)
        count = len(leaves[0]) if leaves and leaves[0].ndim else 0
        if not count or any(not x.ndim or len(x) != count for x in leaves):
            raise InputError(
                "per_sample=True takes states whose first axis is the batch, of one length for all."
            )
        self.per_sample = False
        outs, penalties, stats = [], [], []
        try:
            for i in range(count):
                one = pytree.tree_unflatten([x[i : i + 1] for x in leaves], spec)
                outs.append(self._states(one, saveat, tspan))
                penalties.append(self.penalty)
                stats.append(self.stats)
        finally:
            self.per_sample = True
        axis = 0 if saveat is None else 1
        last = last_of(self)
        last.penalty = torch.stack(penalties).mean() if self.training and self.regularise else None
        last.stats = max((s for s in stats if s is not None), key=lambda s: s.nf or 0)
        return pytree.tree_map(lambda *xs: torch.cat(xs, dim=axis), *outs)

    # ---- regularisers

    def _regularised(self, u0: Any, saveat: Any, span: Any) -> Any:
        if not isinstance(u0, Tensor):
            raise InputError("regularise takes a state that is one tensor.")
        state_spec(u0)
        t0, t1 = span
        for r in self.regularise:
            if isinstance(r, RandomEndTime):
                if saveat is not None:
                    raise InputError(
                        "RandomEndTime moves the end of the solve, so the solution is given there "
                        "only; leave saveat out."
                    )
                if not (isinstance(t1, Tensor) and t1.requires_grad):
                    t1 = float(t1)
                t1 = t1 + r.width * (2.0 * float(torch.rand(())) - 1.0)
        named = {Kinetic: "kinetic", JacobianFrobenius: "jacobian"}
        weighted = [r for r in self.regularise if isinstance(r, (Kinetic, JacobianFrobenius))]
        kinds = tuple(named[type(r)] for r in weighted)
        penalty, u = self._penalty_of_steps(u0, (t0, t1), saveat)
        if kinds or penalty is None:
            u, integrals = self._with_integrals(u0, kinds, (t0, t1), saveat)
            if kinds:
                penalty = self._added(penalty, integrals, weighted)
        last_of(self).penalty = penalty
        return u

    def _penalty_of_steps(self, u0: Tensor, span: Any, saveat: Any) -> tuple[Any, Any]:
        """The penalty of what the solver's steps tell, and states as :meth:`_states`.

        Both are None where no regulariser asks for it.
        """
        of_steps = [r for r in self.regularise if isinstance(r, (ErrorEstimate, StiffnessEstimate))]
        if not of_steps:
            return None, None
        sol = self._solve(self._field, u0, span)
        t = sol.t.detach()
        abstol = torch.as_tensor(self.options["abstol"], dtype=u0.dtype, device=u0.device)
        abstol = abstol.reshape(u0.shape) if abstol.numel() > 1 else abstol
        reltol = float(self.options["reltol"])
        error, stiffness = step_estimates(self._field, t, sol.u, abstol, reltol)
        step = t.diff().abs().to(error.dtype)[:, None]
        sums = {ErrorEstimate: error * step, StiffnessEstimate: stiffness}
        parts = [r.weight * sums[type(r)].sum(0).mean() for r in of_steps]
        return torch.stack(parts).sum(), sol.u[-1] if saveat is None else sol(saveat)

    def _added(self, penalty: Tensor | None, integrals: Tensor, of: Any) -> Tensor:
        """The penalty with the weighted means of the regularisers' integrals (batch, k)."""
        weights = integrals.new_tensor([r.weight for r in of])
        own = (integrals.mean(0) * weights).sum()
        return own if penalty is None else penalty + own

    def _with_integrals(
        self, u0: Tensor, kinds: tuple[str, ...], span: Any, saveat: Any, noise: Any = None
    ) -> tuple[Any, Tensor]:
        """States as :meth:`_states`, and the integrals over the whole span, (batch, k)."""
        t0, t1 = (float(torch.as_tensor(t).detach()) for t in span)
        grid = end_of(span[1]) if saveat is None else saveat
        batch, k = (len(u0) if u0.ndim > 1 else 1), len(kinds)
        if not kinds:
            u = self._solve(self._field, u0, span, saveat=grid).u
            return (u[0] if saveat is None else u), u0.new_zeros(batch, 0)
        if noise is None and "jacobian" in kinds:
            noise = torch.randn_like(u0)
        self._integrals.kinds, self._integrals.shape = kinds, tuple(u0.shape)
        zeros = u0.new_zeros(batch, k)
        full = torch.cat([u0.reshape(batch, -1), zeros], dim=1)
        full = full.reshape(-1) if u0.ndim <= 1 else full
        out = self._solve(self._integrals, full, span, p=noise, saveat=grid).u
        rows = out.reshape(len(out), batch, -1)
        u = rows[..., :-k].reshape(len(out), *u0.shape)
        return (u[0] if saveat is None else u), (1.0 if t1 > t0 else -1.0) * rows[-1, :, -k:]

    def extra_repr(self) -> str:
        alg = "default" if self.alg is None else self.alg
        return f"tspan={self.tspan}, alg={alg}, engine={self.engine!r}"


def end_of(t1: Any) -> Tensor:
    """The end of a time span as the only output time."""
    return torch.as_tensor(t1, dtype=torch.float64)[None] if isinstance(t1, Tensor) else _only(t1)


@lru_cache(maxsize=64)
def _only(t: float) -> Tensor:
    # the same tensor each time, by which a plan is found again
    return torch.tensor([t], dtype=torch.float64)
