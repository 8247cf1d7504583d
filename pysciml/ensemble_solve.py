"""Solving ensembles: a batch at once where the engine can, else member by member."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.advice import ADVICE
from pysciml.callbacks import as_callbacks
from pysciml.engines.base import Stats
from pysciml.ensemble import (
    EnsembleAlgorithm,
    EnsembleExecutor,
    EnsembleGPUArray,
    EnsembleGPUKernel,
    EnsembleProblem,
    EnsembleSerial,
    EnsembleSolution,
    EnsembleThreads,
)
from pysciml.ensemble_array import solve_as_one
from pysciml.ensemble_batch import Summary, solve_batch, solve_by_kernels
from pysciml.ensemble_remote import solve_by_executor
from pysciml.errors import InputError, SolveError
from pysciml.extra_options import EXTRA
from pysciml.noise import NoiseGrid
from pysciml.options import require_count
from pysciml.problems import DAEProblem, ODEProblem
from pysciml.solution import Solution
from pysciml.solve import solve
from pysciml.stochastic import drawn_seed

__all__ = ["solve_ensemble"]

_DEFAULTS = {
    name: x.default
    for name, x in inspect.signature(solve).parameters.items()
    if x.kind is inspect.Parameter.KEYWORD_ONLY
}


def solve_ensemble(
    solve: Callable[..., Any],
    prob: EnsembleProblem,
    alg: Any = None,
    ensemblealg: EnsembleAlgorithm | None = None,
    *,
    trajectories: int | None = None,
    batch_size: int | None = None,
    raise_on_failure: bool = True,
    **options: Any,
) -> EnsembleSolution:
    """``solve`` for ensembles: see :func:`pysciml.solve` and :class:`pysciml.EnsembleProblem`."""
    count = _trajectories(prob, trajectories)
    where = _algorithm(ensemblealg)
    if batch_size is not None and prob.reduction is None:
        raise InputError(
            "batch_size was given without a reduction, which is what takes one batch at a time; "
            "leave it out, or give the EnsembleProblem a reduction."
        )
    if batch_size is not None:
        require_count("batch_size", batch_size)
    noisy = getattr(prob.prob, "kind", "") in ("sde", "rode", "jump")
    noisy = noisy and not isinstance(getattr(prob.prob, "noise", None), NoiseGrid)
    if noisy:  # drawn here: threads would draw in any order
        options["seed"] = drawn_seed(options.get("seed"))
        if options["seed"] + count > 2**63:
            raise InputError(
                f"seed is {options['seed']}, and members take those after it; give at most "
                f"2**63 - {count}."
            )

    def members(numbers: range) -> _Solved:
        return _members(solve, prob, alg, where, numbers, options)

    if prob.reduction is None:
        return _whole(prob, members(range(count)), count, raise_on_failure)
    u = [] if prob.u_init is None else prob.u_init
    parts = []
    for first in range(0, count, batch_size or count):
        numbers = range(first, min(first + (batch_size or count), count))
        part = _whole(prob, members(numbers), len(numbers), raise_on_failure, first)
        parts.append(part)
        outputs = [part[i] for i in range(len(part))]
        made = prob.reduction(u, outputs, numbers)
        if not isinstance(made, tuple) or len(made) != 2:
            raise InputError(
                f"reduction returned a {type(made).__name__}; return (u, converged), the reduced "
                "value and whether to stop."
            )
        u, converged = made
        try:
            stop = bool(converged)
        except (ValueError, RuntimeError):
            raise InputError(
                f"reduction returned converged = {converged!r}; return one boolean."
            ) from None
        if stop:
            break
    retcodes = [code for part in parts for code in part.retcodes]
    return replace(
        parts[-1], u=u, t=None, retcodes=retcodes, stats=_summed([x.stats for x in parts]),
        _member=_reduced, _count=len(retcodes),
    )  # fmt: skip


def _reduced(i: int) -> Any:
    raise InputError("The members' outputs went into the reduction; what it made is in sim.u.")


def _trajectories(prob: EnsembleProblem, given: Any) -> int:
    if given is not None:
        require_count("trajectories", given)
    if prob.members is None:
        if given is None:
            raise InputError(
                "trajectories is not given, and the ensemble has no batch of u0 or p that would "
                "say how many members there are; give solve(..., trajectories=100)."
            )
        return int(given)
    if given is not None and given != prob.members:
        raise InputError(
            f"trajectories is {given}, but the batch has {prob.members} rows; leave it out, or "
            "give as many rows."
        )
    return prob.members


_MADE_WITHOUT = (EnsembleSerial, EnsembleThreads, EnsembleGPUKernel, EnsembleGPUArray)


def _algorithm(given: Any) -> EnsembleAlgorithm:
    if given is None:
        return EnsembleThreads()
    if any(given is x for x in _MADE_WITHOUT):
        made: EnsembleAlgorithm = given()
        return made
    if not isinstance(given, EnsembleAlgorithm):
        raise InputError(
            f"ensemblealg is {given!r}; give EnsembleThreads(), EnsembleSerial(), "
            "EnsembleGPUKernel(), EnsembleGPUArray() or EnsembleExecutor(an executor)."
        )
    return given


class _Solved:
    """The members' solutions: all states together where they have their times in common."""

    def __init__(
        self, solutions: Any, t: Tensor | None = None, u: Any = None, error: Any = None
    ) -> None:
        self.solutions, self.t, self.u, self.error = solutions, t, u, error

    def summary(self) -> Summary:
        found: Summary | None = getattr(self.solutions, "summary", None)
        if found is not None:
            return found
        done = [s for s in self.solutions if s is not None]
        return Summary(
            ["Failure" if s is None else s.retcode for s in self.solutions],
            _summed([s.stats for s in done]),
            done[0].engine if done else "",
            done[0].algorithm if done else "",
        )


def _given(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All options of a solve, and those given that it does not have."""
    given = {**_DEFAULTS, **options}
    return given, {key: given.pop(key) for key in options if key not in _DEFAULTS}


def _members(
    solve: Callable[..., Any], prob: EnsembleProblem, alg: Any, where: EnsembleAlgorithm,
    numbers: range, options: dict[str, Any],
) -> _Solved:  # fmt: skip
    if isinstance(where, EnsembleExecutor):
        problems = [prob.member(i) for i in numbers]
        first = options.get("seed")
        seeds = None if first is None else [first + i for i in numbers]
        found, error = solve_by_executor(where.executor, problems, alg, options, seeds)
        return _together(found, error)
    if isinstance(where, EnsembleGPUKernel):
        return _Solved(*solve_by_kernels(solve, prob, alg, numbers, *_given(options), options))
    if isinstance(where, EnsembleGPUArray):
        return _Solved(*solve_as_one(solve, prob, alg, numbers, *_given(options), options))
    threads = 1
    if isinstance(where, EnsembleThreads):
        threads = where.threads or os.cpu_count() or 1
    plain = not as_callbacks(options.get("callback")) and not options.get("progress")
    plain = plain and EXTRA.isdisjoint(options)
    seed = options.get("seed")
    at_once = isinstance(prob.prob, (ODEProblem, DAEProblem)) and seed is None
    if prob.members is not None and plain and at_once:
        solved = solve_batch(solve, prob, alg, numbers, *_given(options), threads, options)
        if solved is not None:
            return _Solved(*solved)
    gradient = torch.is_grad_enabled()

    def one(i: int) -> Any:
        with torch.set_grad_enabled(gradient):
            own = options if seed is None else {**options, "seed": seed + i}
            return solve(prob.member(i), alg, raise_on_failure=False, **own)

    # the first by itself: what it captures and compiles serves the others
    found = [one(numbers[0])]
    rest = numbers[1:]
    if threads > 1 and len(rest) > 1:
        with ThreadPoolExecutor(threads) as pool:
            found += pool.map(one, rest)
    else:
        found += map(one, rest)
    return _together(found)


def _together(found: list[Any], error: Any = None) -> _Solved:
    """Stacked, where all are solutions at the same times."""
    first = found[0]
    alike = all(isinstance(s, Solution) and torch.equal(s.t, first.t) for s in found)
    if not alike or error is not None:
        return _Solved(found, error=error)
    u = pytree.tree_map(lambda *x: torch.stack(x), *(s.u for s in found))
    return _Solved(found, first.t, u)


def _whole(
    prob: EnsembleProblem, solved: _Solved, count: int, raises: bool, first: int = 0
) -> EnsembleSolution:
    solutions, summary = solved.solutions, solved.summary()
    outputs: Any = solutions
    u: Any = solved.u if solved.u is not None else [*solutions]
    t = solved.t
    if prob.output_func is not None:
        outputs = [
            None if s is None else prob.output_func(s, first + i) for i, s in enumerate(solutions)
        ]
        u, t = outputs, None
    made = EnsembleSolution(
        u=u, t=t, retcodes=summary.retcodes, stats=summary.stats, engine=summary.engine,
        algorithm=summary.algorithm, _member=outputs.__getitem__, _count=count,
    )  # fmt: skip
    if solved.error is not None:
        left = made.retcodes.count("Failure")
        raise SolveError(
            f"The executor ended with {left} of {count} members left "
            f"({type(solved.error).__name__}: {solved.error}); what finished is in this error's "
            ".solution, where these are None.",
            retcode="Failure", t=float("nan"), solution=made,  # type: ignore[arg-type]
        ) from solved.error  # fmt: skip
    if raises and not made.converged:
        _fail(made, first)
    return made


def _fail(made: EnsembleSolution, first: int) -> None:
    failed = [i for i, code in enumerate(made.retcodes) if code not in ("Success", "Terminated")]
    i, code = failed[0], made.retcodes[failed[0]]
    advice = ADVICE.get(code, "check the model there")
    raise SolveError(
        f"{len(failed)} of {len(made)} members stopped on their way, the first of them member "
        f"{first + i} with retcode {code}: {advice}. What was computed is in this error's "
        ".solution; raise_on_failure=False returns it.",
        retcode=code, t=float("nan"), solution=made,  # type: ignore[arg-type]
    )  # fmt: skip


def _summed(stats: list[Stats]) -> Stats:
    out = Stats(algorithm=stats[0].algorithm if stats else "")
    for name in ("nf", "njacs", "naccept", "nreject", "nsolve", "nnonliniter"):
        values = [getattr(s, name) for s in stats]
        if values and None not in values:
            setattr(out, name, int(np.sum(values)))
    return out
