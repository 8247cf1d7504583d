"""Jump processes in Julia: rates and affects as events' functions, what depends on what."""

from __future__ import annotations

import ctypes as ct
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pysciml.algorithms import Algorithm
from pysciml.engines.base import (
    FlatCallback,
    FlatProblem,
    FlatSolution,
    SolveOptions,
)
from pysciml.engines.julia import stochastic
from pysciml.engines.julia.bridge import address, array
from pysciml.engines.julia.names import algorithm_expression
from pysciml.errors import InputError
from pysciml.jumpprocesses import NEEDS_DEPENDENT, NEEDS_VARIABLES
from pysciml.kernels.reach import changed_entries, entries_read

if TYPE_CHECKING:
    from pysciml.engines.julia.engine import JuliaEngine

__all__ = ["check_rates", "solve"]

Array = npt.NDArray[np.float64]
Graph = list[list[int]]
_KINDS = ("pure", "ode", "sde")
_BESIDE = "make it a VariableRateJump"


class JumpRequest(ct.Structure):
    """See ``jumps.jl``."""

    _fields_ = [
        ("kind", ct.c_int64),
        ("aggregator", ct.c_int64),
        ("first", ct.c_int64),
        ("seed", ct.c_uint64),
        ("keep", ct.c_int64),
        ("every", ct.c_int64),
        ("graphs", ct.c_void_p),
        ("ngraphs", ct.c_int64),
    ]


def is_pure(problem: FlatProblem) -> bool:
    """Whether it is a jump process on a state that stays as it is between jumps."""
    return problem.jumps is not None and problem.jumps.kind == "pure"


def first_jump(problem: FlatProblem) -> int:
    """The position of the first jump among the callbacks."""
    kinds = ("reaction", "constant", "variable")
    return next(i for i, c in enumerate(problem.callbacks) if c.kind in kinds)


def _rate_at(c: FlatCallback, u: Array, t: float) -> float:
    assert c.condition is not None and c.condition_p is not None and c.condition_c is not None
    out = np.empty(1)
    with np.errstate(all="ignore"):
        c.condition.bind("value", c.condition_p, c.condition_c)(u, t, out)
    return float(out[0])


def check_rates(problem: FlatProblem) -> None:
    """Raise InputError for rates that cannot be one: negative at the start, or not as they say."""
    moving = _moving(problem)
    for c in problem.callbacks:
        if c.kind == "reaction":
            _refuse_moving(c, moving, f"reaction {c.direction}", "a MassActionJump", _BESIDE)
        if c.condition is None or c.kind not in ("constant", "variable"):
            continue
        value = _rate_at(c, problem.u0, problem.t0)
        if not 0.0 <= value < np.inf:
            raise InputError(
                f"rate of jump {c.direction} is {value:g} at the start (t = {problem.t0:g}); a "
                "rate must be finite and not negative, e.g. by torch.relu."
            )
        if c.kind == "variable" or c.condition.kernels is None:  # called back: its word is trusted
            continue
        use = (
            "give a VariableRateJump with bounds (urate, rateinterval) and the aggregator "
            "pysciml.Coevolve()"
            if is_pure(problem)
            else _BESIDE
        )
        if entries_read(c.condition, "t"):
            raise InputError(
                f"rate of jump {c.direction} depends on t, but that of a ConstantRateJump stays as "
                f"it is between jumps; {use}."
            )
        _refuse_moving(c, moving, f"rate of jump {c.direction}", "a ConstantRateJump", use)


def _refuse_moving(c: FlatCallback, moving: set[int], what: str, kind: str, use: str) -> None:
    read = sorted(moving & _reads(c)) if moving else []
    if read:
        raise InputError(
            f"{what} depends on entry {read[0]} of the state, which moves between jumps, but the "
            f"rate of {kind} stays as it is there; {use}."
        )


def _moving(problem: FlatProblem) -> set[int]:
    """Entries of the state that were seen to change by themselves."""
    if is_pure(problem):
        return set()
    functions, n = problem.functions, len(problem.u0)
    out = np.empty(functions.n_out)
    value = functions.bind("value", problem.p, problem.c)
    found: set[int] = set()
    states = [problem.u0, np.linspace(0.7, 1.3, n) * problem.u0, problem.u0 + np.linspace(1, 2, n)]
    with np.errstate(all="ignore"):
        for u in states:
            value(u, problem.t0 + 0.3 * (problem.t1 - problem.t0), out)
            found |= set(np.nonzero(out[:n])[0].tolist())
            if problem.columns > 0:
                found |= set(np.nonzero(out[n:].reshape(problem.columns, n).any(0))[0].tolist())
            else:
                found |= set(np.nonzero(out[n:])[0].tolist())
    return found


# -- what depends on what -----------------------------------------------------------------------


def _graphs(problem: FlatProblem, first: int) -> tuple[Graph, Graph, Graph]:
    """The dependent jumps of each, those by each entry of the state, the entries of each.

    Counted from 1, in the order of the aggregator; empty where it needs none.
    """
    plan = problem.jumps
    assert plan is not None
    name = plan.aggregator.name
    if name not in NEEDS_DEPENDENT | NEEDS_VARIABLES:
        return [], [], []
    jumps = [c for c in problem.callbacks[first:] if c.kind != "bound"]
    reads = [_reads(c) for c in jumps]
    changes = [_changes(c) for c in jumps]
    by_variable = [[j + 1 for j, r in enumerate(reads) if i in r] for i in range(len(problem.u0))]
    if name in NEEDS_VARIABLES:
        return [], by_variable, [sorted(i + 1 for i in c) for c in changes]
    if plan.dependent is not None:
        return [[j + 1 for j in sorted({*d, i})] for i, d in enumerate(plan.dependent)], [], []
    dependent = [
        sorted({i + 1, *(j for e in c for j in by_variable[e])}) for i, c in enumerate(changes)
    ]
    return dependent, [], []


def _pairs(c: FlatCallback) -> tuple[list[int], list[int]]:
    """The entries that a reaction reads and changes."""
    assert c.times is not None
    numbers = c.times.astype(int).tolist()
    k = numbers[1]
    return [i - 1 for i in numbers[2 : 2 + 2 * k : 2]], [i - 1 for i in numbers[3 + 2 * k :: 2]]


def _reads(c: FlatCallback) -> frozenset[int]:
    return frozenset(_pairs(c)[0]) if c.condition is None else entries_read(c.condition, "u")


def _changes(c: FlatCallback) -> frozenset[int]:
    return frozenset(_pairs(c)[1]) if c.affect is None else changed_entries(c.affect)


def _as_numbers(graphs: tuple[Graph, Graph, Graph]) -> npt.NDArray[np.int64]:
    numbers: list[int] = []
    for graph in graphs:
        numbers += [len(graph), *map(len, graph)]
        for row in graph:
            numbers += row
    return np.array(numbers, np.int64)


# -- solving ------------------------------------------------------------------------------------


def jump_request(
    engine: JuliaEngine, problem: FlatProblem, options: SolveOptions
) -> tuple[JumpRequest, Any]:
    """What the jumps of a solve are, and the array it points to, to be kept alive."""
    plan = problem.jumps
    assert plan is not None and options.seed is not None
    first = first_jump(problem)
    numbers = _as_numbers(_graphs(problem, first))
    r = JumpRequest()
    r.kind = _KINDS.index(plan.kind)
    r.aggregator = engine.object(*algorithm_expression(plan.aggregator, "ode"))
    r.first, r.seed = first + 1, options.seed + 1
    r.keep = plan.kind != "pure" or options.gradient
    r.every = plan.every
    r.graphs, r.ngraphs = address(numbers), len(numbers)
    return r, numbers


def solve(
    engine: JuliaEngine, problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
) -> FlatSolution:
    """See :meth:`pysciml.engines.base.Engine.solve`."""
    plan = problem.jumps
    assert plan is not None
    check_rates(problem)
    if plan.kind == "sde":
        jumps, keep = jump_request(engine, problem, options)
        made = stochastic.solve(engine, problem, alg, options, ct.addressof(jumps))
        del keep
        times = np.array([t for t, _ in made.events])
        return _with_jumps(made, problem, times, np.array([k for _, k in made.events], np.int64))
    if plan.kind == "pure":
        functions = engine.functions(problem.functions, "ode", problem.dtype)
        functions.use(problem.p, problem.c)
        model, number = functions.model(len(problem.u0), None), 0
    else:
        functions, model, number = engine.prepared(problem, alg)
    events = engine.events(problem)
    assert events is not None
    jumps, keep = jump_request(engine, problem, options)
    request, kept = engine.request(model, number, events.number, problem, options)
    what = ("jumps", number, jumps.aggregator, tuple(c.kind for c in problem.callbacks))
    with engine.first(functions, what):
        response = engine.bridge.solve(
            request, options.progress, "solve_jumps", ct.addressof(jumps)
        )
    del keep, kept
    count = response.nevents
    times = array(response.event_times, (count,), "float64")
    which = array(response.event_indices, (count,), "int64")
    if plan.kind == "pure":
        response = response._replace(nevents=0)
    made = engine.solution(response, problem, options, functions, events, alg)
    if plan.kind == "pure":
        first = first_jump(problem)
        own = which < first
        made.events = list(zip(times[own].tolist(), which[own].tolist(), strict=True))
        for name, value in vars(made.stats).items():
            if value == -1:
                setattr(made.stats, name, None)
    return _with_jumps(made, problem, times, which)


def _with_jumps(
    made: FlatSolution, problem: FlatProblem, times: Array, which: npt.NDArray[np.int64]
) -> FlatSolution:
    jumped = which >= first_jump(problem)
    numbers = np.array([c.direction for c in problem.callbacks], np.int64)
    made.jumps = (times[jumped], numbers[which[jumped]])
    made.stats.jumps = int(jumped.sum())
    return made
