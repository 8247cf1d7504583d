"""Ensembles as one state: all members beside each other on a GPU, with one step size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.algorithms import Algorithm, as_algorithm
from pysciml.engines.base import Engine
from pysciml.engines.choice import engine as choose_engine
from pysciml.ensemble import EnsembleProblem
from pysciml.ensemble_batch import Summary
from pysciml.ensemble_gpu import (
    batched,
    made_by,
    plain_algorithm,
    require_for_gpu,
    require_julia,
)
from pysciml.errors import EngineError
from pysciml.flatten import StateSpec
from pysciml.flattened import Flattened
from pysciml.options import absolute_tolerance, check_options, state_indices
from pysciml.problems import ODEProblem
from pysciml.solution import Solution
from pysciml.transforms import plain_mode, refuse_transforms

__all__ = ["solve_as_one"]

_NAME = "EnsembleGPUArray"
#: The largest state of all members together whose Jacobian is formed, in packages that do.
MOST_TOGETHER = 4096
_JACOBIANS = ("OrdinaryDiffEqRosenbrock", "OrdinaryDiffEqSDIRK", "OrdinaryDiffEqBDF")


def solve_as_one(
    solve: Callable[..., Any],
    ensemble: EnsembleProblem,
    alg: Any,
    numbers: range,
    given: dict[str, Any],
    unknown: dict[str, Any],
    options: dict[str, Any],
) -> tuple[_Together, Tensor, Any]:
    """The members' solutions, their times and states together. Raises where that cannot be."""
    refuse_transforms(ensemble.u0, ensemble.p, given["saveat"])
    require_for_gpu(ensemble.prob, _NAME, given, unknown)
    ensemble, numbers = batched(ensemble, numbers, made_by(ensemble, numbers), _NAME)
    o, prob = given, ensemble.prob
    check_options(
        prob, unknown, o["abstol"], o["reltol"], o["dt"], o["dtmax"], o["dtmin"], o["maxiters"],
        o["sensealg"],
    )  # fmt: skip
    engine = choose_engine(o["engine"])
    alg = plain_algorithm(as_algorithm(alg, "Tsit5"))
    spec: StateSpec = prob.state_spec
    index = state_indices(o["save_idxs"], spec)
    whole = _beside(ensemble, numbers)
    _require_device(engine, whole, alg, o["sensealg"], spec.size * len(numbers))
    abstol = absolute_tolerance(o["abstol"], spec)
    own = {**options, "save_idxs": None, "raise_on_failure": False}
    if not isinstance(abstol, float):
        rows = spec.unflatten(torch.as_tensor(abstol).expand(len(numbers), spec.size))
        own["abstol"] = pytree.tree_map(lambda x: x.contiguous(), rows)
    sol = solve(whole, alg, **own)
    u = pytree.tree_map(lambda x: x.transpose(0, 1), sol.u)
    if index is not None:
        flat = [x.reshape(*x.shape[:2], -1) for x in pytree.tree_leaves(u)]
        u = torch.cat(flat, -1)[:, :, index]
    return _Together(ensemble, numbers, sol, u, index), sol.t, u


class _AllMembers:
    """f of all members: of states and parameters with one row a member, or shared."""

    def __init__(self, f: Any, p_rows: tuple[bool, ...]) -> None:
        self.f, self.p_rows = f, p_rows

    def __call__(self, u: Any, p: Any, t: Tensor) -> Any:
        leaves, structure = pytree.tree_flatten(p)
        rows = [x for x, r in zip(leaves, self.p_rows, strict=True) if r]

        def one(u: Any, rows: list[Tensor]) -> Any:
            own = iter(rows)
            mine = [next(own) if r else x for x, r in zip(leaves, self.p_rows, strict=True)]
            return self.f(u, pytree.tree_unflatten(mine, structure), t)

        if not rows:
            return torch.vmap(lambda u: one(u, []))(u)
        return torch.vmap(one)(u, rows)


def _beside(ensemble: EnsembleProblem, numbers: range) -> ODEProblem:
    """The problem whose state is those of all members, one row each."""
    prob, chosen = ensemble.prob, slice(numbers.start, numbers.stop)

    def rows_of(x: Any, one: Any) -> bool:
        return isinstance(x, Tensor) and x.ndim == torch.as_tensor(one).ndim + 1

    u0 = pytree.tree_map(
        lambda x, one: x[chosen] if rows_of(x, one) else x.expand(len(numbers), *x.shape),
        prob.u0 if ensemble.u0 is None else prob.state_spec.in_order(ensemble.u0), prob.u0,
    )  # fmt: skip
    single, structure = pytree.tree_flatten(prob.p)
    given = single if ensemble.p is None else pytree.tree_leaves(ensemble.p)
    is_row = tuple(
        rows_of(x, s) if x is not s else False for x, s in zip(given, single, strict=True)
    )
    p = [x[chosen] if r else x for x, r in zip(given, is_row, strict=True)]
    return ODEProblem(
        _AllMembers(prob.f, is_row), u0, prob.tspan, pytree.tree_unflatten(p, structure)
    )


def _require_device(
    engine: Engine, whole: ODEProblem, alg: Algorithm | None, sensealg: Any, size: int
) -> None:
    """Raise EngineError where the problem would not be solved on a GPU."""
    require_julia(engine, _NAME)
    engine.check(whole.kind, alg, False)
    if alg is not None and alg.package in _JACOBIANS and size > MOST_TOGETHER:
        raise EngineError(
            f"{alg.name} forms the Jacobian of all members together, ({size}, {size}), and {_NAME} "
            f"takes at most {MOST_TOGETHER}; use EnsembleGPUKernel(), or an explicit method, e.g. "
            "pysciml.Tsit5()."
        )
    if not engine.takes_tensors(whole, alg, sensealg, False):
        raise EngineError(engine.why_no_tensors(whole, alg, sensealg, _NAME))
    with plain_mode():
        if not Flattened(whole, engine, (), tensors=True).keeps_tensors:
            raise EngineError(
                "f could not be captured as one function of all members (see the CaptureWarning); "
                "write f with torch operations that torch.vmap takes, or use EnsembleThreads()."
            )


class _Together:
    """The members of one solution, each made when it is asked for."""

    def __init__(
        self, ensemble: EnsembleProblem, numbers: range, sol: Solution, u: Any, index: Any
    ) -> None:
        self.ensemble, self.numbers, self.sol = ensemble, numbers, sol
        self.u, self.index = u, index

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def summary(self) -> Summary:
        """One solve: its retcode is that of every member, its counts stand once."""
        sol = self.sol
        return Summary([sol.retcode] * len(self), sol.stats, sol.engine, sol.algorithm)

    def __getitem__(self, i: int) -> Solution:
        if not 0 <= i < len(self):
            raise IndexError(i)
        sol, prob = self.sol, self.ensemble.member(self.numbers[i])
        spec: StateSpec = prob.state_spec
        whole: Any = sol

        def interpolate(at: Tensor, deriv: int) -> Tensor:
            series = whole.spec.unflatten(whole._interpolate(at, deriv))
            rows = pytree.tree_map(lambda x: x[:, i], series)
            return spec.flatten_series(rows)

        return Solution(
            t=sol.t,
            u=pytree.tree_map(lambda x: x[i], self.u),
            retcode=sol.retcode,
            stats=sol.stats,
            engine=sol.engine,
            algorithm=sol.algorithm,
            prob=prob,
            spec=spec,
            save_idxs=self.index,
            _interpolate=interpolate,
            _span=sol._span,
        )
