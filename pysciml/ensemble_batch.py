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
from pysciml.ensemble_gpu import (
    MOST_DIRECTIONS,
    batched,
    gpu_algorithm,
    made_by,
    plain_algorithm,
    require_for_gpu,
    require_for_kernel,
    require_julia,
    spans_of,
)
from pysciml.errors import EngineError, InputError
from pysciml.flatten import to_numpy
from pysciml.flattened import Flattened
from pysciml.options import (
    absolute_tolerance,
    check_options,
    saveat_grid,
    state_indices,
    stops_within,
)
from pysciml.problems import number, remake
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
    threads: int | None,
    options: dict[str, Any],
    spans: np.ndarray | None = None,
) -> tuple[_Members, Tensor | None, Any] | None:
    """The members' solutions, their times and states together; None where the engine cannot.

    ``given`` are the options of a solve, all of them, ``options`` those that the user gave. On
    ``threads`` threads, or a GPU where None, there with time spans (N, 2) of their own.
    """
    on_gpu = threads is None
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
        if on_gpu:
            require_julia(engine, "EnsembleGPUKernel")
        engine.check(template.kind, plain_algorithm(alg), mass is not None)
        with plain_mode():
            setup = Flattened(template, engine, (), tensors=on_gpu)
            if on_gpu and not setup.keeps_tensors:
                raise EngineError(
                    "f could not be captured (see the CaptureWarning), and no thread of a GPU can "
                    "call Python; write f with torch operations only, or use EnsembleThreads()."
                )
            problem = setup.flat_problem()
            if not on_gpu and not engine.solves_members(problem, alg):
                return None
            grid = saveat_grid(o["saveat"], setup.t0_t, setup.t1_t)
            index = state_indices(o["save_idxs"], setup.state)
            tstops = stops_within(o["tstops"], setup.t0, setup.t1)
            batch = _Batch(ensemble, setup, numbers, spans)
            inputs = (setup.t0_t, setup.t1_t, *batch.leaves)
            want = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *grid.inputs))
            if want:
                setup.require_differentiable()
                if on_gpu:
                    batch.require_few([x.requires_grad for x in batch.leaves])
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
    alone = plain_algorithm(alg)
    members = _Members(solve, ensemble, numbers, alone, options, run, t, u, index)
    if t is None or (run.flat.counts != len(t)).any():
        return members, None, None
    u = u.reshape(len(numbers), len(t), -1)
    return members, t, setup.state.unflatten(u) if index is None else u


def solve_by_kernels(
    solve: Callable[..., Any],
    ensemble: EnsembleProblem,
    alg: Any,
    numbers: range,
    given: dict[str, Any],
    unknown: dict[str, Any],
    options: dict[str, Any],
) -> tuple[_Members, Tensor | None, Any]:
    """As ``solve_batch``, each member by one thread of a GPU. Raises where that cannot be."""
    name = "EnsembleGPUKernel"
    require_for_gpu(ensemble.prob, name, given, unknown)
    alg = gpu_algorithm(alg, name)
    require_for_kernel(given)
    made = made_by(ensemble, numbers)
    spans = spans_of(made, given["saveat"])
    ensemble, numbers = batched(ensemble, numbers, made, name, spans is not None)
    solved = solve_batch(solve, ensemble, alg, numbers, given, unknown, None, options, spans)
    assert solved is not None
    return solved


class _Batch:
    """The members' own values: the user's tensors, as rows, and the way back for gradients.

    ``leaves``: those of u0, those of p, and then what the model closes over; ``rows`` says which
    of them have one row a member.
    """

    def __init__(
        self,
        ensemble: EnsembleProblem,
        setup: Flattened,
        numbers: range,
        spans: np.ndarray | None = None,
    ) -> None:
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
            x[chosen] if r else x.expand(count, *x.shape)
            for x, r in zip(given_u, self.rows, strict=False)
        ]
        at, values, position = [], [], 0
        for x, r, size in zip(given_p, self.rows[n_u:], params.sizes, strict=True):
            if r:
                at.append(np.arange(position, position + size))
                values.append(x[chosen])
            position += size
        self.members = FlatMembers(
            u0=self._beside(parts, count, n),
            at=np.concatenate(at) if at else np.empty(0, np.int64),
            own=self._beside(values, count, sum(map(len, at))),
            spans=spans,
        )

    def _beside(self, parts: list[Tensor], count: int, width: int) -> Any:
        """Rows beside each other, (count, width): an array, or a tensor where these are kept."""
        spec = self.setup.state
        flat = [x.detach().reshape(count, -1) for x in parts]
        joined = torch.cat(flat, 1) if flat else torch.empty((count, 0), dtype=spec.dtype)
        joined = joined.reshape(count, width)
        if self.setup.keeps_tensors:
            return joined.to(spec.device, spec.dtype).contiguous()
        return to_numpy(joined)

    def directions(self, wanted: Sequence[bool]) -> tuple[bool, np.ndarray]:
        """Whether u0 is among the leaves that are ``wanted``, and which parameters are."""
        n_u = self.setup.counts[0]
        sizes = [x.numel() for x in self.leaves[len(self.rows) :]]
        found, position = [np.empty(0, np.int64)], 0
        for size, want in zip((*self.setup.params.sizes, *sizes), wanted[n_u:], strict=True):
            if want:
                found.append(np.arange(position, position + size))
            position += size
        return any(wanted[:n_u]), np.concatenate(found)

    def require_few(self, wanted: Sequence[bool]) -> None:
        """Raise InputError where a member has too many numbers for forward sensitivities."""
        by_state, parameters = self.directions(wanted)
        size = self.setup.state.size * by_state + len(parameters)
        if size > MOST_DIRECTIONS:
            raise InputError(
                f"Gradients by {size} numbers a member were asked for (u0 and what of p and "
                f"closures requires grad), but EnsembleGPUKernel takes at most {MOST_DIRECTIONS}, "
                "since each is one more solve; use EnsembleGPUArray() or EnsembleThreads()."
            )

    def cotangents(self, g: FlatEnsembleGradient, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradient as tensors like ``leaves``; None for those that are not ``wanted``."""
        spec, params = self.setup.state, self.setup.params
        n_u = self.setup.counts[0]
        out: list[Tensor | None] = []
        u0 = torch.as_tensor(g.u0).split(list(spec.sizes), 1)
        every_own, every_p = torch.as_tensor(g.own), torch.as_tensor(g.p)
        for x, r, block in zip(self.leaves, self.rows, u0, strict=False):
            out.append(self._like(x, r, block if r else block.sum(0)))
        position = column = 0
        for x, r, size in zip(self.leaves[n_u:], self.rows[n_u:], params.sizes, strict=False):
            if r:
                block, column = every_own[:, column : column + size], column + size
            else:
                block = every_p[position : position + size]
            position += size
            out.append(self._like(x, r, block))
        for x in self.leaves[len(self.rows) :]:
            out.append(self._like(x, False, every_p[position : position + x.numel()]))
            position += x.numel()
        return [x if want else None for x, want in zip(out, wanted, strict=True)]

    def _like(self, x: Tensor, rows: bool, block: Tensor) -> Tensor:
        flat = block.to(x.device, x.dtype)
        if not rows or len(self.numbers) == len(x):
            return flat.reshape(x.shape)
        full = torch.zeros_like(x)
        full[self.numbers.start : self.numbers.stop] = flat.reshape(-1, *x.shape[1:])
        return full


class _Run:
    """One solve of a batch, kept for its backward."""

    def __init__(
        self, setup: Flattened, batch: _Batch, alg: Any, threads: int | None, options: SolveOptions
    ) -> None:
        self.setup, self.batch, self.alg, self.threads = setup, batch, alg, threads
        self.options = options
        self.flat: FlatEnsemble | None = None

    def forward(self) -> FlatEnsemble:
        engine, problem = self.setup.engine, self.setup.flat_problem()
        what = (problem, self.batch.members, self.alg, self.options)
        if self.threads is None:
            self.flat = engine.solve_members_on_gpu(*what)
        else:
            self.flat = engine.solve_members(*what, self.threads)
        return self.flat

    def pull(self, grad_u: Tensor, by_times: bool, wanted: Sequence[bool]) -> FlatEnsembleGradient:
        """The gradient of ``sum(grad_u * u)``, by the leaves that are ``wanted``."""
        engine, flat = self.setup.engine, self.flat
        assert flat is not None
        if self.threads is None:
            which = self.batch.directions(wanted)
            return engine.adjoint_members_on_gpu(flat, grad_u, by_times, *which)
        return engine.adjoint_members(flat, to_numpy(grad_u), by_times)

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
            g = run.pull(grad_u, any(wanted[:3]), wanted[3:])
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


def _stats(counts: list[int]) -> Stats:
    nf, njacs, naccept, nreject, nsolve, nnonliniter = (k if k >= 0 else None for k in counts)
    return Stats(nf, njacs, naccept, nreject, nsolve, nnonliniter)


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
        stats = _stats(flat.stats.sum(0).tolist())
        stats.algorithm = flat.algorithm
        return Summary(flat.retcodes, stats, self.run.setup.engine.name, flat.algorithm)

    def __getitem__(self, i: int) -> Solution:
        if not 0 <= i < len(self):
            raise IndexError(i)
        run, spec = self.run, self.run.setup.state
        flat = run.flat
        assert flat is not None
        rows = run.rows(i)
        prob, spans = self.ensemble.member(self.numbers[i]), run.batch.members.spans
        if spans is not None:
            prob = remake(prob, tspan=tuple(spans[i].tolist()))
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

        stats = _stats(flat.stats[i].tolist())
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
            _span=(number(prob.tspan[0]), float(flat.t_reached[i])),
        )
