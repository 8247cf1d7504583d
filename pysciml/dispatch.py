"""Which function solves which kind of problem: the front door's list."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from pysciml.errors import InputError
from pysciml.spellings import one_form

__all__ = ["front_door", "refuse_ensemble_options", "refuse_seed", "solved_by", "solves"]

Solver = TypeVar("Solver", bound=Callable[..., Any])
Problem = TypeVar("Problem", bound=type)

#: ``function(solve, prob, alg, ensemblealg, **options)`` by the class of the problem; or the
#: function's module and name, for one that is loaded when it is needed.
_SOLVERS: dict[type, Any] = {}


def solves(*problems: type) -> Callable[[Solver], Solver]:
    """Name the function that solves problems of these classes.

    It gets the front door itself, ``solve``, for the problems that it makes of its own, and then
    what ``solve`` was given.
    """

    def register(function: Solver) -> Solver:
        for problem in problems:
            _SOLVERS[problem] = function
        return function

    return register


def solved_by(module: str, function: str) -> Callable[[Problem], Problem]:
    """As :func:`solves`, from the side of the problem: the function's module is loaded on need.

    For functions whose module needs ``solve`` itself, or takes long to import.
    """

    def register(problem: Problem) -> Problem:
        _SOLVERS[problem] = (module, function)
        return problem

    return register


def front_door(solve: Solver) -> Solver:
    """``solve`` for all kinds of problems: those of ``solves`` go their own way."""

    @functools.wraps(solve)
    def door(prob: Any, alg: Any = None, ensemblealg: Any = None, **options: Any) -> Any:
        one_form(options)
        own = _SOLVERS.get(type(prob))
        if own is None:
            return solve(prob, alg, ensemblealg, **options)
        if isinstance(own, tuple):
            module, name = own
            own = _SOLVERS[type(prob)] = getattr(importlib.import_module(module), name)
        if prob.kind == "ensemble":
            return own(door, prob, alg, ensemblealg, **options)
        refuse_ensemble_options(prob, ensemblealg, options.pop("trajectories", None))
        return own(door, prob, alg, **options)

    return door  # type: ignore[return-value]


def refuse_ensemble_options(prob: Any, ensemblealg: Any, trajectories: Any) -> None:
    """Raise InputError where they were given with a single problem."""
    if ensemblealg is None and trajectories is None:
        return
    given = "trajectories" if ensemblealg is None else f"ensemblealg ({ensemblealg!r})"
    raise InputError(
        f"{given} was given with {_an(prob)}, but is for ensembles; wrap the problem, "
        "e.g. pysciml.EnsembleProblem(prob, prob_func=...), or leave it out."
    )


def refuse_seed(prob: Any, seed: Any) -> None:
    """Raise InputError where a seed was given for a problem in which nothing is random."""
    if seed is not None:
        raise InputError(f"seed was given with {_an(prob)}, which draws no noise; leave it out.")


def _an(prob: Any) -> str:
    name = type(prob).__name__
    spoken = name.startswith(("A", "E", "I", "O", "SD"))  # an ODEProblem, an SDEProblem
    return f"{'an' if spoken else 'a'} {name}"
