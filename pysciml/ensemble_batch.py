"""A batch of members solved by one call into the engine, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.algorithms import as_algorithm
from pysciml.engines.base import (
    FIRST_EVENT,
    FROM_T0,
    FROM_T1,
    FlatEnsemble,
    FlatEnsembleGradient,
    FlatMembers,
    SolveOptions,
    Stats,
)
from pysciml.engines.choice import engine as choose_engine
from pysciml.ensemble import EnsembleProblem
from pysciml.flatten import to_numpy
from pysciml.flattened import Flattened
from pysciml.options import (
    absolute_tolerance,
    check_options,
    saveat_grid,
    state_indices,
    stops_within,
)
from pysciml.solution import Solution
from pysciml.solve import cotangents_of_times, once
from pysciml.transforms import leave_compiler, plain_mode, refuse_transforms, resume_compiler

__all__ = ["Summary", "solve_batch"]


def solve_batch(
    solve: Callable[..., Any],
    ensemble: EnsembleProblem,
    alg: Any,
    numbers: range,
    given: dict[str, Any],
    unknown: dict[str, Any],
    threads: int,
    options: dict[str, Any],
) -> tuple[_Members, Tensor | None, Any] | None:
    """The members' solutions, their times and states together; None where the engine cannot.

    ``given`` are the options of a solve, all of them, ``options`` those that the user gave.
    """
    compiler = leave_compiler()
    try:
        refuse_transforms(ensemble.u0, ensemble.p, given["saveat"])
        template = ensemble.member(0)
        o = given
        check_options(
            template, unknown, o["abstol"], o["reltol"], o["dt"], o["dtmax"], o["dtmin"],
            o["maxiters"], o["sensealg"],
        )  # fmt: skip
        alg = as_algorithm(alg, "Tsit5")
        engine = choose_engine(o["engine"])
        mass = getattr(template, "mass_matrix", None)
        engine.check(template.kind, alg, mass is not None)
        with plain_mode():
            setup = Flattened(template, engine, ())
            problem = setup.flat_problem()
            if not engine.solves_members(problem, alg):
                return None
            grid = saveat_grid(o["saveat"], setup.t0_t, setup.t1_t)
            index = state_indices(o["save_idxs"], setup.state)
            tstops = stops_within(o["tstops"], setup.t0, setup.t1)
            batch = _Batch(ensemble, setup, numbers)
            inputs = (setup.t0_t, setup.t1_t, *batch.leaves)
            want = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *grid.inputs))
            if want:
                setup.require_differentiable()
            run = _Run(
                setup, batch, alg, threads,
                SolveOptions(
                    abstol=absolute_tolerance(o["abstol"], setup.state),
                    reltol=float(o["reltol"]), saveat=grid.values, tstops=tstops, dt=o["dt"],
                    dtmax=o["dtmax"], dtmin=o["dtmin"], maxiters=int(o["maxiters"]),
                    adaptive=o["adaptive"], gradient=want, sensealg=o["sensealg"],
                ),
            )  # fmt: skip
            if want:
                u = _SolveBatch.apply(run, grid.tensor, *inputs)
            else:
                u = setup.from_numpy(run.forward().u)
    finally:
        resume_compiler(compiler)
    assert run.flat is not None
    if index is not None:
        u = u[:, index]
    t = None
    if grid.values is not None:
        t = grid.tensor if grid.tensor is not None else setup.from_numpy(grid.values, time=True)
    members = _Members(solve, ensemble, numbers, alg, options, run, t, u, index)
    if t is None or (run.flat.counts != len(t)).any():
        return members, None, None
    u = u.reshape(len(numbers), len(t), -1)
    return members, t, setup.state.unflatten(u) if index is None else u


class _Batch:
    """The members' own values: the user's tensors, as rows, and the way back for gradients.

    ``leaves``: those of u0, those of p, and then what the model closes over; ``rows`` says which
    of them have one row a member.
    """

    def __init__(self, ensemble: EnsembleProblem, setup: Flattened, numbers: range) -> None:
        self.setup, self.numbers = setup, numbers
        spec, params, prob = setup.state, setup.params, ensemble.prob
        n_u, n_p = setup.counts
        given_u = spec.leaves(prob.u0 if ensemble.u0 is None else spec.in_order(ensemble.u0))
        shapes = [*spec.shapes, *(s for s in params.slots if s is not None)]
        given_p = [
            x if isinstance(x, Tensor) else torch.tensor(x, dtype=spec.dtype, device=spec.device)
            for x, slot in zip(
                pytree.tree_leaves(prob.p if ensemble.p is None else ensemble.p),
                params.slots, strict=True,
            )
            if slot is not None
        ]  # fmt: skip
        own = [*given_u, *given_p]
        assert len(own) == n_u + n_p
        self.rows = [x.ndim == len(shape) + 1 for x, shape in zip(own, shapes, strict=True)]
        self.leaves = [*own, *setup.leaves[n_u + n_p :]]
        count, n = len(numbers), spec.size
        chosen = slice(numbers.start, numbers.stop)
        parts = [
            self._flat(x[chosen] if r else x.expand(count, *x.shape))
            for x, r in zip(given_u, self.rows, strict=False)
        ]
        at, values, position = [], [np.empty((count, 0))], 0
        for x, r, size in zip(given_p, self.rows[n_u:], params.sizes, strict=True):
            if r:
                at.append(np.arange(position, position + size))
                values.append(self._flat(x[chosen]))
            position += size
        self.members = FlatMembers(
            u0=np.concatenate(parts, axis=1).reshape(count, n),
            at=np.concatenate(at) if at else np.empty(0, np.int64),
            own=np.concatenate(values, axis=1),
        )

    @staticmethod
    def _flat(x: Tensor) -> np.ndarray:
        return to_numpy(x).reshape(x.shape[0], -1)

    def cotangents(self, g: FlatEnsembleGradient, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradient as tensors like ``leaves``; None for those that are not ``wanted``."""
        spec, params = self.setup.state, self.setup.params
        n_u = self.setup.counts[0]
        out: list[Tensor | None] = []
        u0 = np.split(g.u0, np.cumsum(spec.sizes)[:-1], axis=1)
        for x, r, block in zip(self.leaves, self.rows, u0, strict=False):
            out.append(self._like(x, r, block if r else block.sum(0)))
        position = column = 0
        for x, r, size in zip(self.leaves[n_u:], self.rows[n_u:], params.sizes, strict=False):
            if r:
                block, column = g.own[:, column : column + size], column + size
            else:
                block = g.p[position : position + size]
            position += size
            out.append(self._like(x, r, block))
        for x in self.leaves[len(self.rows) :]:
            out.append(self._like(x, False, g.p[position : position + x.numel()]))
            position += x.numel()
        return [x if want else None for x, want in zip(out, wanted, strict=True)]

    def _like(self, x: Tensor, rows: bool, block: np.ndarray) -> Tensor:
        flat = torch.from_numpy(np.ascontiguousarray(block)).to(x.device, x.dtype)
        if not rows or len(self.numbers) == len(x):
            return flat.reshape(x.shape)
        full = torch.zeros_like(x)
        full[self.numbers.start : self.numbers.stop] = flat.reshape(-1, *x.shape[1:])
        return full


class _Run:
    """One solve of a batch, kept for its backward."""

    def __init__(
        self, setup: Flattened, batch: _Batch, alg: Any, threads: int, options: SolveOptions
    ) -> None:
        self.setup, self.batch, self.alg, self.threads = setup, batch, alg, threads
        self.options = options
        self.flat: FlatEnsemble | None = None

    def forward(self) -> FlatEnsemble:
        engine = self.setup.engine
        self.flat = engine.solve_members(
            self.setup.flat_problem(), self.batch.members, self.alg, self.options, self.threads
        )
        return self.flat

    def rows(self, i: int) -> slice:
        """The outputs of member ``i``."""
        assert self.flat is not None
        counts, saveat = self.flat.counts, self.options.saveat
        first = int(counts[:i].sum()) if saveat is None else i * len(saveat)
        return slice(first, first + int(counts[i]))


class _SolveBatch(torch.autograd.Function):
    """Inputs: saveat, t0, t1, then the batch's leaves."""

    @staticmethod
    def forward(ctx: Any, run: _Run, grid: Any, *inputs: Tensor) -> Tensor:
        ctx.run, ctx.grid, ctx.inputs = run, grid, inputs
        return run.setup.from_numpy(run.forward().u)

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor) -> Any:
        run: _Run = ctx.run
        flat, saveat = run.flat, run.options.saveat
        assert flat is not None
        run.setup.require_unchanged()
        wanted = ctx.needs_input_grad[1:]
        with plain_mode():
            g = run.setup.engine.adjoint_members(flat, to_numpy(grad_u), any(wanted[:3]))
        d_t0, d_t1, d_grid = float(g.t0.sum()), 0.0, None
        if saveat is None:
            assert (flat.source > FIRST_EVENT).all()
            d_t0 += float(g.times[flat.source == FROM_T0].sum())
            d_t1 = float(g.times[flat.source == FROM_T1].sum())
        else:
            d_grid = g.times.reshape(-1, len(saveat)).sum(0)
        times = cotangents_of_times((d_grid, d_t0, d_t1), (ctx.grid, *ctx.inputs[:2]), wanted[:3])
        out = (*times, *run.batch.cotangents(g, wanted[3:]))
        return (None, *once(out, *ctx.inputs, ctx.grid, grad_u))


@dataclass(frozen=True)
class Summary:
    """Of an ensemble: retcodes, one a member, summed counts, and by what."""

    retcodes: list[str]
    stats: Stats
    engine: str
    algorithm: str


class _Members:
    """The solutions of a batch, each made when it is asked for."""

    def __init__(
        self, solve: Callable[..., Any], ensemble: EnsembleProblem, numbers: range, alg: Any,
        options: dict[str, Any], run: _Run, t: Tensor | None, u: Tensor, index: Tensor | None,
    ) -> None:  # fmt: skip
        self.solve, self.ensemble, self.numbers = solve, ensemble, numbers
        self.alg, self.options, self.run = alg, options, run
        self.t, self.u, self.entries = t, u, index

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def summary(self) -> Summary:
        """Of all members, without a solution of each."""
        flat = self.run.flat
        assert flat is not None
        stats = Stats(*flat.stats.sum(0).tolist())
        stats.algorithm = flat.algorithm
        return Summary(flat.retcodes, stats, self.run.setup.engine.name, flat.algorithm)

    def __getitem__(self, i: int) -> Solution:
        if not 0 <= i < len(self):
            raise IndexError(i)
        run, spec = self.run, self.run.setup.state
        flat = run.flat
        assert flat is not None
        rows = run.rows(i)
        prob = self.ensemble.member(self.numbers[i])
        t = (
            run.setup.from_numpy(flat.t[rows], time=True) if self.t is None
            else self.t[: int(flat.counts[i])]
        )  # fmt: skip
        inner: list[Any] = []

        def interpolate(at: Tensor, deriv: int) -> Tensor:
            # the batch keeps output times only: this member is solved once more
            if not inner:
                options = {**self.options, "save_idxs": None, "raise_on_failure": False}
                with torch.set_grad_enabled(run.options.gradient):
                    inner.append(self.solve(prob, self.alg, **options))
            value: Tensor = inner[0]._interpolate(at, deriv)
            return value

        stats = Stats(*flat.stats[i].tolist())
        stats.algorithm = flat.algorithm
        return Solution(
            t=t,
            u=spec.unflatten(self.u[rows]) if self.entries is None else self.u[rows],
            retcode=flat.retcodes[i],
            stats=stats,
            engine=run.setup.engine.name,
            algorithm=flat.algorithm,
            prob=prob,
            spec=spec,
            save_idxs=self.entries,
            _interpolate=interpolate,
            _span=(run.setup.t0, float(flat.t_reached[i])),
        )
