"""Events: what happens during a solve besides the equation itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from pysciml.errors import InputError

__all__ = [
    "Callback",
    "CallbackSet",
    "ContinuousCallback",
    "DiscreteCallback",
    "PresetTimeCallback",
    "terminate",
]


#: How a solve is ended by an event.
HOW_TO_END = (
    "give it as the affect itself, e.g. ContinuousCallback(condition, pysciml.terminate), in a "
    "callback of its own whose condition says when to stop."
)


class _Terminate:
    """Sentinel: as an ``affect``, ends the solve at the event."""

    _instance: _Terminate | None = None

    def __new__(cls) -> _Terminate:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "pysciml.terminate"

    def __call__(self, *_: Any) -> NoReturn:
        """Raises InputError: it is given, not called."""
        raise InputError(f"pysciml.terminate was called, but it is no function; {HOW_TO_END}")


#: As an ``affect``: end the solve at the event (retcode ``"Terminated"``).
terminate = _Terminate()

Affect = Callable[[Any, Any, Any], Any] | _Terminate | None


@dataclass(frozen=True, eq=False)
class Callback:
    """Base of the callbacks. ``save_positions``: save the state before and after the event."""

    def for_problem(self, prob: Any, t0: float, t1: float) -> tuple[Callback, ...]:
        """The basic callbacks (continuous, discrete, preset) that it stands for in a solve."""
        return (self,)

    def finish(self, sol: Any) -> None:
        """Called with every solution."""

    def _check(self, affect: Any) -> None:
        if affect is not None and affect is not terminate and not callable(affect):
            raise InputError(
                f"affect is a {type(affect).__name__}; give a function affect(u, p, t) that "
                "returns the new state, pysciml.terminate, or None to record the event only."
            )


@dataclass(frozen=True, eq=False)
class ContinuousCallback(Callback):
    """An event at a root of ``condition(u, p, t)``, located by the solver's root finding.

    condition
        Torch function to one number (a 0-d tensor, or one of a single element): ``u[0] - 5`` for
        the event at which ``u[0]`` passes 5.
    affect
        ``affect(u, p, t) -> u``: the state after the event; or ``terminate``; or None.
    direction
        +1: roots crossed upwards only; -1: downwards only; 0: both.

    Gradients include the motion of the event time. Source: Hairer, Norsett, Wanner, "Solving
    Ordinary Differential Equations I", section II.6 (differentiability at switching points).
    """

    condition: Callable[[Any, Any, Any], Any]
    affect: Affect = None
    direction: int = 0
    save_positions: tuple[bool, bool] = (True, True)

    kind = "continuous"

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise InputError(
                f"condition is a {type(self.condition).__name__}; give a function "
                "condition(u, p, t) whose root is the event."
            )
        self._check(self.affect)
        if self.direction not in (-1, 0, 1):
            raise InputError(
                f"direction is {self.direction!r}; give 1 (upward), -1 (downward) or 0 (both)."
            )


@dataclass(frozen=True, eq=False)
class DiscreteCallback(Callback):
    """An event after each step at which ``condition(u, p, t)``, such as ``u[0] < 5``, is true."""

    condition: Callable[[Any, Any, Any], Any]
    affect: Affect = None
    save_positions: tuple[bool, bool] = (True, True)

    kind = "discrete"

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise InputError(
                f"condition is a {type(self.condition).__name__}; give a function "
                "condition(u, p, t) that is true where the event happens."
            )
        self._check(self.affect)


@dataclass(frozen=True, eq=False)
class PresetTimeCallback(Callback):
    """An event at each of ``times`` (one, or several in any order); the solver stops there."""

    times: Any
    affect: Affect = None
    save_positions: tuple[bool, bool] = (True, True)

    kind = "preset"

    def __post_init__(self) -> None:
        given = self.times if isinstance(self.times, (list, tuple)) else [self.times]
        if any(isinstance(x, Tensor) and x.requires_grad for x in given):
            raise InputError(
                "times requires grad, but no gradient is taken for preset times; detach them, or "
                "give a ContinuousCallback(lambda u, p, t: t - time, affect), which has one."
            )
        self._check(self.affect)

    def for_problem(self, prob: Any, t0: float, t1: float) -> tuple[Callback, ...]:
        given = self.times
        if isinstance(given, (list, tuple)):
            count = len(given)
        else:
            count = given.numel() if isinstance(given, Tensor) else np.size(given)
        return (self,) if count else ()


@dataclass(frozen=True, eq=False)
class JumpCallback(Callback):
    """A jump as engines see it: an event that comes at random.

    kind
        ``"reaction"`` (of mass action, given by ``numbers``), ``"constant"`` or ``"variable"``;
        or ``"bound"`` on the variable rate of the jump before it.
    number
        The user's number of the jump; of a bound, 0 for the upper, 1 for how long, 2 for the lower.
    condition, affect
        The rate (or bound) and what the jump does, as functions of (u, p, t).
    """

    kind: str
    number: int
    condition: Callable[[Any, Any, Any], Any] | None = None
    affect: Affect = None
    numbers: Any = None
    save_positions: tuple[bool, bool] = (True, True)
    names: tuple[str, str] = ("rate", "affect")


@dataclass(frozen=True, eq=False)
class CallbackSet:
    """Several callbacks; at one time they act in the order given."""

    callbacks: tuple[Callback, ...]

    def __init__(self, *callbacks: Callback) -> None:
        object.__setattr__(self, "callbacks", as_callbacks(list(callbacks)))


def as_callbacks(callback: Any) -> tuple[Callback, ...]:
    """None, a callback, a CallbackSet or a sequence of these as a tuple."""
    if callback is None:
        return ()
    if isinstance(callback, Callback):
        return (callback,)
    if isinstance(callback, CallbackSet):
        return callback.callbacks
    if isinstance(callback, Sequence) and not isinstance(callback, str):
        return tuple(c for item in callback for c in as_callbacks(item))
    raise InputError(
        f"callback is a {type(callback).__name__}; give a ContinuousCallback, DiscreteCallback, "
        "PresetTimeCallback, or several in a list."
    )
