"""Solving problems with jumps: these become callbacks of the problem that they act on."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from torch.utils import _pytree as pytree

from pysciml.algorithms import Algorithm, as_algorithm
from pysciml.callback_library import VectorContinuousCallback
from pysciml.callbacks import ContinuousCallback, JumpCallback, as_callbacks
from pysciml.discrete import DiscreteProblem, stays
from pysciml.engines.base import FlatJumps
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import EngineError, InputError
from pysciml.jump_gradients import refuse_constants, refuse_undefined
from pysciml.jumpprocesses import STEPPER
from pysciml.jumps import (
    ConstantRateJump,
    JumpProblem,
    MassActionJump,
    VariableRateJump,
    goes_along,
)
from pysciml.problems import ODEProblem
from pysciml.solution import Solution
from pysciml.stochastic import SDEProblem, drawn_seed, most_steps, require_no_times

__all__ = ["as_problem", "solve_jumps"]

#: Jumps are cheap, and there are many.
_MOST = {"pure": 1_000_000_000, "ode": 10_000_000, "sde": 10_000_000}


class _WithJumps(ODEProblem):
    """The problem that jumps act on, with these, as it is flattened."""

    jumps: tuple[JumpCallback, ...]
    how_jumps: FlatJumps

    def require_differentiable(self, setup: Any) -> None:
        refuse_undefined(setup)


class _NoisyWithJumps(_WithJumps):
    form = "sde"
    columns: int


def solve_jumps(
    solve: Any,
    prob: JumpProblem,
    alg: Any = None,
    *,
    seed: int | None = None,
    engine: str = "auto",
    saveat: Any = None,
    callback: Any = None,
    **options: Any,
) -> Solution:
    """``solve`` for problems with jumps."""
    inner = prob.prob
    kind = _kind(inner)
    alg = _fitting(alg, kind)
    if choose_engine(engine).name != "julia":
        raise EngineError(
            "The sundials engine does not solve problems with jumps (JumpProblem), which need "
            "engine='julia' (install it with: python -m pysciml setup)."
        )
    require_no_times(saveat)
    seed = drawn_seed(seed)
    more = as_callbacks(callback)
    if kind == "pure":
        for c in (*inner.callback, *more):
            if isinstance(c, (ContinuousCallback, VectorContinuousCallback)):
                raise InputError(
                    f"a {type(c).__name__} was given with a pure jump process, whose state does "
                    "not cross a root but jumps over it; give a DiscreteCallback."
                )
    save = prob.save_positions
    if save is None:
        save = (False, False) if saveat is not None else (kind != "pure", True)
    made = as_problem(prob, save)
    options.setdefault("maxiters", most_steps(inner.tspan, options.get("dt"), _MOST[kind]))
    if kind == "sde":
        options = {"abstol": 1e-2, "reltol": 1e-2, **options}
    sol = solve(made, alg, engine="julia", seed=seed, saveat=saveat, callback=more, **options)
    u = sol.u
    if kind == "pure":
        sol.stats.algorithm = STEPPER
        if inner.whole:
            u = pytree.tree_map(lambda x: x.round().to(inner.whole), u)
    return dataclasses.replace(sol, prob=prob, u=u, algorithm=sol.stats.algorithm)


def _kind(inner: Any) -> Any:
    if isinstance(inner, DiscreteProblem):
        return "pure"
    return "sde" if isinstance(inner, SDEProblem) else "ode"


def _fitting(given: Any, kind: str) -> Algorithm | None:
    alg = as_algorithm(given, "Tsit5")
    if kind == "pure":
        if alg is not None and alg.name != STEPPER:
            raise InputError(
                f"alg is {alg!r}, but jumps on a DiscreteProblem are stepped by "
                "pysciml.SSAStepper(); use it, or put the jumps on an ODEProblem."
            )
        return None  # nothing is integrated
    if alg is not None and alg.package == "JumpProcesses":
        what = "an ODEProblem" if kind == "ode" else "an SDEProblem"
        use = "pysciml.Tsit5()" if kind == "ode" else "pysciml.EM() with dt="
        raise InputError(
            f"alg is {alg!r}, which steps pure jump processes (on a DiscreteProblem), but the "
            f"jumps act on {what} here; use e.g. {use}."
        )
    return alg


def as_problem(prob: JumpProblem, save: tuple[bool, bool] = (False, False)) -> _WithJumps:
    """The problem with its jumps as it is flattened; ``save``: the states around jumps."""
    inner = prob.prob
    kind = _kind(inner)
    jumps = _in_order(prob, save)
    made: _WithJumps
    if kind == "sde":
        pair = inner.as_pair()
        made = _NoisyWithJumps(pair.f, pair.u0, pair.tspan, pair.p, callback=inner.callback)
        object.__setattr__(made, "columns", pair.columns)
    elif kind == "pure":
        made = _WithJumps(stays, inner.real_u0, inner.tspan, inner.p, callback=inner.callback)
    else:
        made = _WithJumps(inner.f, inner.u0, inner.tspan, inner.p, callback=inner.callback)
    how = FlatJumps(
        kind, prob.aggregator,
        None if prob.dep_graph is None else tuple(tuple(row) for row in prob.dep_graph),
        any(save),
    )  # fmt: skip
    object.__setattr__(made, "jumps", jumps)
    object.__setattr__(made, "how_jumps", how)
    return made


def _in_order(prob: JumpProblem, save: tuple[bool, bool]) -> tuple[JumpCallback, ...]:
    """The jumps in the order of the aggregator, bounds after the jumps that they belong to."""
    reactions: list[JumpCallback] = []
    constants: list[JumpCallback] = []
    drawn: list[JumpCallback] = []
    along: list[JumpCallback] = []
    number = 0
    for jump in prob.jumps:
        if isinstance(jump, MassActionJump):
            numbers = _numbers(jump, prob.p)
            reactions += [
                JumpCallback("reaction", number + i, numbers=x, save_positions=save)
                for i, x in enumerate(numbers)
            ]
            number += len(jump)
            continue
        names = (f"rate of jump {number}", f"affect of jump {number}")
        kind = "constant" if isinstance(jump, ConstantRateJump) else "variable"
        made = [JumpCallback(kind, number, jump.rate, jump.affect, None, save, names)]
        beside = goes_along(jump, prob.aggregator)
        if isinstance(jump, VariableRateJump) and not beside:
            for i, name in enumerate(("urate", "rateinterval", "lrate")):
                bound = getattr(jump, name)
                if bound is not None:
                    own = (f"{name} of jump {number}", "")
                    made.append(JumpCallback("bound", i, bound, None, None, save, own))
        where = along if beside else drawn if kind == "variable" else constants
        where += made
        number += 1
    return (*reactions, *constants, *drawn, *along)


def _numbers(jump: MassActionJump, p: Any) -> list[np.ndarray]:
    """Of each reaction: its constant, and reactants and changes, each with their number first."""
    out = []
    constants = jump.constants(p)
    refuse_constants(constants)
    each = zip(constants.tolist(), jump.reactant_stoich, jump.net_stoich, strict=True)
    for c, before, change in each:
        if jump.scale_rates:
            c /= math.prod(math.factorial(count) for _, count in before)
        row = [c]
        for pairs in (before, change):
            row += [len(pairs), *(x for k, count in pairs for x in (k + 1, count))]
        out.append(np.array(row, np.float64))
    return out
