"""Hybrid systems: continuous motion, jumps at events, and modes with equations of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pysciml.callbacks import ContinuousCallback
from pysciml.errors import InputError
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import Field, require_tensor, takes_time
from pysciml.nn.record import last_of
from pysciml.nn.times import end_of
from pysciml.options import is_whole

__all__ = ["HybridODE", "Transition"]


class Transition(nn.Module):
    """What happens where ``condition`` is zero.

    Parameters
    ----------
    condition : nn.Module or callable
        ``g(u)`` or ``g(u, t)`` of one sample's state (d,), to one number; its root is the event.
    reset : nn.Module or callable, optional
        ``r(u)`` or ``r(u, t)``, the state after the event; the state itself where None.
    source, target : int
        The mode it leaves, and the one it enters (``source`` where None).
    direction : -1, 0 or 1
        Which sign changes count: downwards, both, upwards.
    """

    def __init__(
        self,
        condition: Callable[..., Any],
        reset: Callable[..., Any] | None = None,
        *,
        source: int = 0,
        target: int | None = None,
        direction: int = 0,
    ) -> None:
        super().__init__()
        if direction not in (-1, 0, 1):
            raise InputError(f"direction is {direction!r}; give -1, 0 or 1.")
        for name, mode in (("source", source), ("target", target)):
            if not (is_whole(mode) or (name == "target" and mode is None)):
                raise InputError(f"{name} is {mode!r}; give the number of a mode, from 0.")
        self.condition_timed = takes_time(condition, "condition")
        self.reset_timed = reset is not None and takes_time(reset, "reset")
        self.condition, self.reset = condition, reset
        self.source = source
        self.target = source if target is None else target
        self.direction = direction


class _Modes(Field):
    """The equations of all modes, chosen by the state's last entry; one mode needs none."""

    def __init__(self, fields: Any, timed: list[bool]) -> None:
        super().__init__(fields, False)
        self.vector_field: Any
        self.times = timed

    def __call__(self, full: Tensor, p: Any, t: Tensor) -> Tensor:
        if len(self.times) == 1:
            return self._one(0, full, t)
        u, mode = full[:-1], full[-1]
        value = self._one(0, u, t)
        for i in range(1, len(self.times)):
            value = torch.where(mode == i, self._one(i, u, t), value)
        return torch.cat([value, torch.zeros_like(full[-1:])])

    def _one(self, i: int, u: Tensor, t: Tensor) -> Tensor:
        field = self.vector_field[i]
        value = field(u, t) if self.times[i] else field(u)
        require_tensor(value, f"What the vector field of mode {i} gave", f"{tuple(u.shape)}", 0)
        if value.shape != u.shape:
            raise InputError(
                f"The vector field of mode {i} gave shape {tuple(value.shape)} for a state of "
                f"shape {tuple(u.shape)}; it must give the state's."
            )
        return value


class _Condition:
    def __init__(self, transition: Transition, several: bool) -> None:
        self.transition, self.several = transition, several

    def __call__(self, full: Tensor, p: Any, t: Tensor) -> Tensor:
        tr = self.transition
        u = full[:-1] if self.several else full
        value = tr.condition(u, t) if tr.condition_timed else tr.condition(u)
        value = value.reshape(())
        if not self.several:
            return value
        # in other modes it stays away from zero, on the side it is left on
        return torch.where(full[-1] == tr.source, value, torch.ones_like(value))


class _Reset:
    def __init__(self, transition: Transition, several: bool) -> None:
        self.transition, self.several = transition, several

    def __call__(self, full: Tensor, p: Any, t: Tensor) -> Tensor:
        tr = self.transition
        u = full[:-1] if self.several else full
        after = u
        if tr.reset is not None:
            after = tr.reset(u, t) if tr.reset_timed else tr.reset(u)
        if not self.several:
            return after
        return torch.cat([after, torch.full_like(full[-1:], float(tr.target))])


class HybridODE(ContinuousModule):
    """A hybrid automaton: a vector field for each mode, and transitions between them.

    Parameters
    ----------
    vector_fields : nn.Module, callable, or several
        ``f(u)`` or ``f(u, t)`` of one sample's state (d,), one for each mode.
    transitions : Transition, or several
    tspan, alg, saveat, engine, options : as :class:`ContinuousModule`

    Events happen at each sample's own times, so samples are solved one by one. Gradients include
    the motion of the event times.

    Attributes
    ----------
    events : list of list of float
        The event times of each sample in the last call.

    Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section II.6;
    Chen, Amos, Nickel, "Learning neural event functions for ordinary differential equations",
    ICLR 2021.
    """

    def __init__(
        self,
        vector_fields: Any,
        transitions: Transition | Iterable[Transition],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        **options: Any,
    ) -> None:
        if options.get("regularise") or options.get("per_sample"):
            raise InputError(
                "HybridODE takes neither regularise nor per_sample: each sample is solved by "
                "itself as it is, through its own events; leave them out."
            )
        one = callable(vector_fields) and not isinstance(vector_fields, nn.ModuleList)
        fields = _several(vector_fields, one)
        items = _several(transitions, isinstance(transitions, Transition))
        if not fields or not all(map(callable, fields)):
            raise InputError(
                f"vector_fields is {vector_fields!r}; give an nn.Module or a function, or a list "
                "of them, one a mode."
            )
        if items is None or not all(isinstance(x, Transition) for x in items):
            raise InputError(
                f"transitions is {transitions!r}; give pysciml.nn.Transition(condition, reset), "
                "or a list of them, [] for none."
            )
        for x in items:
            if not (0 <= x.source < len(fields) and 0 <= x.target < len(fields)):
                raise InputError(
                    f"A transition goes from mode {x.source} to {x.target}, but there are "
                    f"{len(fields)} modes; count from 0."
                )
        self._timed = [takes_time(f) for f in fields]
        wrapped = [f if isinstance(f, nn.Module) else _Function(f) for f in fields]
        modules = nn.ModuleList(wrapped)
        super().__init__(wrapped[0], tspan, alg, **options)
        self.vector_field = modules
        self.transitions = nn.ModuleList(items)
        self._field = _Modes(modules, self._timed)
        several = len(fields) > 1
        self._callbacks = [
            ContinuousCallback(
                _Condition(x, several), _Reset(x, several), x.direction, (False, False)
            )
            for x in items
        ]

    @property
    def events(self) -> list[list[float]]:
        return last_of(self).events or []

    def forward(self, u0: Tensor, saveat: Any = None, mode: int = 0) -> Tensor:
        """From (d,) or (batch, d) at ``t0`` in ``mode`` to the state at ``t1``, or at ``saveat``.

        With ``saveat``, here or at construction, the times stand in front.
        """
        require_tensor(u0, "u0", "(d,) or (batch, d)")
        if u0.ndim not in (1, 2):
            raise InputError(f"u0 has shape {tuple(u0.shape)}; give (d,) or (batch, d).")
        if not is_whole(mode) or not 0 <= mode < len(self._timed):
            raise InputError(
                f"mode is {mode!r}; there are {len(self._timed)} modes, counted from 0."
            )
        given = self._outputs(saveat)
        grid = end_of(self.tspan[1]) if given is None else given
        rows = u0[None] if u0.ndim == 1 else u0
        several = len(self._timed) > 1
        outs, events = [], []
        for row in rows:
            start = torch.cat([row, row.new_full((1,), float(mode))]) if several else row
            sol = self._solve(self._field, start, self.tspan, saveat=grid, callback=self._callbacks)
            outs.append(sol.u[:, :-1] if several else sol.u)
            events.append([e.t for e in sol.events])
        last_of(self).events = events
        u = outs[0] if u0.ndim == 1 else torch.stack(outs, dim=1)
        return u[0] if given is None else u


def _several(given: Any, one: bool) -> list[Any] | None:
    """A list of what was given, None where that is neither one nor several."""
    if one:
        return [given]
    return list(given) if isinstance(given, Iterable) else None


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)
