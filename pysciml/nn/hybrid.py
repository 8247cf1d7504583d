"""Hybrid systems: continuous motion, jumps at events, and modes with equations of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pysciml.callbacks import ContinuousCallback
from pysciml.errors import InputError
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import Field, Integrals, require_tensor, takes_time
from pysciml.nn.record import last_of
from pysciml.nn.regularise import (
    integrals_in,
    steps_in,
    with_integrals,
    with_random_ends,
)
from pysciml.nn.step_estimates import each_step, over_steps
from pysciml.nn.times import direction_of, end_of, solution_at, through_end
from pysciml.options import is_whole
from pysciml.problems import check_tspan
from pysciml.solution import Solution

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
    """The equations of all modes, chosen by the mode's number; one mode needs none."""

    def __init__(self, fields: Any, timed: list[bool]) -> None:
        super().__init__(fields, False)
        self.vector_field: Any
        self.times = timed

    def __call__(self, u: Tensor, mode: Any, t: Tensor) -> Tensor:
        value = self._one(0, u, t)
        for i in range(1, len(self.times)):
            value = torch.where(_is(mode, i), self._one(i, u, t), value)
        return value

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


def _is(mode: Tensor, number: int) -> Tensor:
    """Whether the mode is this one: an interpolant gives it to rounding only."""
    return (mode - number).abs() < 0.5


class _Automaton:
    """The state with what goes along: [state, integrals], and the mode where there are several."""

    def __init__(self, modes: _Modes, kinds: tuple[str, ...], size: int) -> None:
        self.modes, self.size = modes, size
        self.several = len(modes.times) > 1
        self.integrals = Integrals(modes, kinds, (size,)) if kinds else None

    def parts(self, full: Tensor) -> tuple[Tensor, Any]:
        """State and mode."""
        return full[: self.size], full[-1] if self.several else None

    def __call__(self, full: Tensor, p: Any, t: Tensor) -> Tensor:
        u, mode = self.parts(full)
        if self.integrals is None:
            value = self.modes(u, mode, t)
        else:
            value = self.integrals(full[:-1] if self.several else full, (mode, p), t)
        return torch.cat([value, torch.zeros_like(full[-1:])]) if self.several else value


class _Condition:
    def __init__(self, transition: Transition, automaton: _Automaton) -> None:
        self.transition, self.automaton = transition, automaton

    def __call__(self, full: Tensor, p: Any, t: Tensor) -> Tensor:
        tr = self.transition
        u, mode = self.automaton.parts(full)
        value = tr.condition(u, t) if tr.condition_timed else tr.condition(u)
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = (
                f"shape {tuple(value.shape)}" if isinstance(value, Tensor)
                else f"a {type(value).__name__}"
            )  # fmt: skip
            raise InputError(f"condition gave {given}; it must give one number, a 0-d tensor.")
        value = value.reshape(())
        if mode is None:
            return value
        # in other modes it stays away from zero, on the side it is left on
        return torch.where(_is(mode, tr.source), value, torch.ones_like(value))


class _Reset:
    def __init__(self, transition: Transition, automaton: _Automaton) -> None:
        self.transition, self.automaton = transition, automaton

    def __call__(self, full: Tensor, p: Any, t: Tensor) -> Tensor:
        tr = self.transition
        u, mode = self.automaton.parts(full)
        after = u
        if tr.reset is not None:
            after = tr.reset(u, t) if tr.reset_timed else tr.reset(u)
        rest = full[self.automaton.size :]
        if mode is not None:
            rest = torch.cat([rest[:-1], torch.full_like(rest[-1:], float(tr.target))])
        return torch.cat([after, rest]) if len(rest) else after


class HybridODE(ContinuousModule):
    """A hybrid automaton: a vector field for each mode, and transitions between them.

    Parameters
    ----------
    vector_fields : nn.Module, callable, or several
        ``f(u)`` or ``f(u, t)`` of one sample's state (d,), one for each mode.
    transitions : Transition, or several
    tspan, alg, saveat, engine, regularise, options : as :class:`ContinuousModule`

    Events happen at each sample's own times, so samples are solved one by one. Gradients include
    the motion of the event times. Regularisers go along a sample's whole path, in each mode with
    that mode's equation; jumps of the state add nothing to them.

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
        if options.get("per_sample"):
            raise InputError(
                "HybridODE does not take per_sample: each sample is solved by itself as it is, "
                "through its own events; leave it out."
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
        # of each size of states: kernels are found again by these
        self._made: dict[Any, tuple[_Automaton, list[ContinuousCallback], list[Any]]] = {}

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
        if not u0.numel():
            raise InputError(f"u0 has no entries (shape {tuple(u0.shape)}); give at least one.")
        self._require_mode(mode)
        acting = self.regularise if self.training else ()
        given, span = with_random_ends(acting, self._outputs(saveat), self.tspan)
        outs, events, penalties = [], [], []
        for row in u0[None] if u0.ndim == 1 else u0:
            sol, out, penalty = self._one(row, mode, given, span, acting)
            outs.append(out)
            events.append([e.t for e in sol.events])
            penalties.append(penalty)
        last = last_of(self)
        last.events = events
        found = [x for x in penalties if x is not None]
        last.penalty = torch.stack(found).mean() if found else None
        u = outs[0] if u0.ndim == 1 else torch.stack(outs, dim=1)
        return u[0] if given is None else u

    def solve(self, u0: Any, saveat: Any = None, tspan: Any = None, mode: int = 0) -> Solution:
        """The whole :class:`pysciml.Solution` of one sample (d,), through its events.

        States are (d,), with several modes (d + 1,), the mode's number behind; both sides of each
        event are among the steps, which are given where ``saveat`` is None.
        """
        require_tensor(u0, "u0", "(d,)")
        if u0.ndim != 1:
            raise InputError(
                f"u0 has shape {tuple(u0.shape)}; solve takes one sample (d,), as each has events "
                "at times of its own."
            )
        self._require_mode(mode)
        span = self.tspan if tspan is None else check_tspan(tspan)
        return self._through(u0, mode, (), None, span, saveat=saveat)

    def _one(
        self, row: Tensor, mode: int, given: Tensor | None, span: Any, acting: Any
    ) -> tuple[Solution, Tensor, Tensor | None]:
        """One sample's solution, its outputs with the times in front, and its penalty."""
        size, (weighted, kinds) = len(row), integrals_in(acting)
        noise = torch.randn_like(row) if "jacobian" in kinds else None
        if steps_in(acting):
            sol = self._through(row, mode, kinds, noise, span)
            u, penalty = sol.u, self._estimated(sol, self._slopes(sol, size), size)
            out = u[-1:] if given is None else solution_at(sol, given)
        else:
            grid = end_of(span[1]) if given is None else given
            sol = self._through(
                row, mode, kinds, noise, span, saveat=through_end(grid, span) if kinds else grid
            )
            u, penalty = sol.u, None
            out = u[: len(grid)]
        if kinds:
            integrals = direction_of(span) * u[-1:, size : size + len(kinds)]
            penalty = with_integrals(penalty, weighted, integrals)
        return sol, out[:, :size], penalty

    def _through(
        self,
        row: Tensor,
        mode: int,
        kinds: tuple[str, ...],
        noise: Any,
        span: Any,
        saveat: Any = None,
    ) -> Solution:
        """One sample's solution with integrals beside it."""
        every = saveat is None
        key: Any = (len(row), kinds, every)
        transitions: list[Any] = list(self.transitions)
        found = self._made.get(key)
        if found is None or found[2] != transitions:
            assert isinstance(self._field, _Modes)
            made = _Automaton(self._field, kinds, len(row))
            callbacks = [
                ContinuousCallback(
                    _Condition(x, made), _Reset(x, made), x.direction, (every, every)
                )
                for x in transitions
            ]
            found = self._made[key] = made, callbacks, transitions
        parts = [row, row.new_zeros(len(kinds))]
        if len(self._timed) > 1:
            parts.append(row.new_full((1,), float(mode)))
        start = row if len(parts) == 2 and not kinds else torch.cat(parts)
        return self._solve(found[0], start, span, noise, saveat, callback=found[1])

    def _slopes(self, sol: Solution, size: int) -> Any:  # type: ignore[override]
        modes = None
        if len(self._timed) > 1:
            modes = each_step(sol.t, sol.u[:, -1].detach())[2]
        each = over_steps(lambda u, t, m: self._field(u, m, t.to(u.dtype)))
        return lambda u, t: each(u, t, t if modes is None else modes)

    def _require_mode(self, mode: Any) -> None:
        if not is_whole(mode) or not 0 <= mode < len(self._timed):
            raise InputError(
                f"mode is {mode!r}; there are {len(self._timed)} modes, counted from 0."
            )


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
