"""What a solve is besides the values of its tensors, kept for the next one like it.

A training loop solves one problem over and over, by the same algorithm and options: checking
these again, and finding the kernels of the same function again, would take longer than many a
small problem takes to solve. A problem keeps the plans of its last few kinds of solves, and
hands them on to those that are made of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from pysciml.algorithms import Algorithm, AlgorithmName
from pysciml.engines.base import Engine, SolveOptions
from pysciml.flattened import Flattened
from pysciml.options import Grid
from pysciml.problems import hand_on, plans_of
from pysciml.sensitivity import SensitivityAlgorithm

__all__ = ["Plan", "find_plan", "keep_plan"]

#: Plans that one problem keeps: a loop may solve it in a few ways, for training and for figures.
_KEEP = 4
_NUMBERS = (bool, int, float)
_BY_VALUE = (*_NUMBERS, str, Algorithm, SensitivityAlgorithm, list, tuple)


@dataclass
class Plan:
    """All that follows from what ``solve`` was ``asked``."""

    asked: tuple[Any, ...]
    engine: Engine
    alg: Algorithm | None
    grid: Grid
    index: Tensor | None  # of the entries to keep
    options: SolveOptions
    raises: bool
    f: Any
    setup: Flattened | None = None  # without the values of tensors
    versions: tuple[tuple[Tensor, int], ...] = ()

    @cached_property
    def with_gradient(self) -> SolveOptions:
        return replace(self.options, gradient=True)

    def options_for(self, gradient: bool) -> SolveOptions:
        return self.with_gradient if gradient else self.options

    def again(self, prob: Any, engine: Engine, asked: tuple[Any, ...]) -> Flattened | None:
        """The problem flattened, where the same is asked of one like it; else None."""
        setup = self.setup
        if setup is None or engine is not self.engine or prob.f is not self.f or prob.callback:
            return None
        if not all(map(_same, (*asked, *_own(prob)), self.asked)):
            return None
        if any(x.requires_grad or x._version != v for x, v in self.versions):
            return None
        return setup.again(prob)


def find_plan(
    prob: Any, engine: Engine, asked: tuple[Any, ...]
) -> tuple[Plan | None, Flattened | None]:
    """The problem's plan for what is asked, and the problem flattened by it."""
    for plan in plans_of(prob):
        setup = plan.again(prob, engine, asked)
        if setup is not None:
            return plan, setup
    return None, None


def _own(prob: Any) -> tuple[Any, ...]:
    """What the problem itself asks besides f, u0 and p."""
    return (*prob.tspan, prob.mass_matrix)


def keep_plan(prob: Any, plan: Plan, setup: Flattened) -> None:
    """Keep it with its problem, where what was asked can be compared later."""
    plan.setup = setup.kept()
    if plan.setup is None:
        return
    asked: list[Any] = []
    versions = []
    for x in (*plan.asked, *_own(prob)):
        if isinstance(x, Tensor):
            if x.requires_grad:
                return  # it may hold a graph
            versions.append((x, x._version))
        elif isinstance(x, (list, tuple)):
            if not all(type(v) in _NUMBERS for v in x):
                return
            x = type(x)(x)  # the user's own may be written to
        elif x is not None and not isinstance(
            x, (*_NUMBERS, str, Algorithm, AlgorithmName, SensitivityAlgorithm)
        ):
            return
        asked.append(x)
    plan.asked, plan.versions = tuple(asked), tuple(versions)
    others = [
        p for p in plans_of(prob) if not (p.f is plan.f and all(map(_same, plan.asked, p.asked)))
    ]
    hand_on((plan, *others)[:_KEEP], prob)


def _same(now: Any, then: Any) -> bool:
    """Whether two arguments are the same object, or are of a kind that is compared by value."""
    if now is then:
        return True
    if type(now) is not type(then) or not isinstance(then, _BY_VALUE) or not bool(now == then):
        return False
    # a mask [True, False] equals the indices [1, 0]
    return not isinstance(then, (list, tuple)) or [*map(type, now)] == [*map(type, then)]
