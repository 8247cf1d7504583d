"""A boundary value problem in standard form: conditions on the states at two ends alone.

Where conditions ask for states at inner times, the time span is cut there. Its pieces are gone
through side by side, over one variable s in [0, length], and conditions that the state goes on from
one piece to the next are added (Ascher, Mattheij, Russell, "Numerical Solution of Boundary Value
Problems for Ordinary Differential Equations", section 1.5).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.boundary import BVProblem, TwoPointBVProblem
from pysciml.boundary_conditions import conditions_of, flat_conditions, require_conditions
from pysciml.errors import InputError
from pysciml.flatten import StateSpec
from pysciml.problems import number, require_finite
from pysciml.solution import as_times

__all__ = ["Pieces", "StandardForm", "flat_guess", "standard_form"]

Array = npt.NDArray[np.float64]

#: Times within this part of the span of an end, or of each other, are the same.
_SAME = 1e-12
_AT_GUESS = "at the guess"
_ONLY = "MIRK methods and SolveBVP know the states at times that bc asks for by u(t) alone"


@dataclass(frozen=True)
class Pieces:
    """The time span in pieces: piece k is at the time ``starts[k] + rates[k] s``, s in [0, length].

    The longest piece has a rate of 1 or, backwards in time, -1.
    """

    starts: Array
    rates: Array
    length: float

    @classmethod
    def of(cls, times: Array) -> Pieces:
        """Those between each of ``times`` (K + 1,) and the next."""
        lengths = np.diff(times)
        longest = float(np.abs(lengths).max())
        return cls(times[:-1].copy(), lengths / longest, longest)

    def __len__(self) -> int:
        return len(self.starts)

    def times(self, s: Array) -> Array:
        """The times of all pieces (m, K) at ``s`` (m,)."""
        return self.starts + self.rates * s[:, None]

    def find(self, times: Array) -> tuple[npt.NDArray[np.int64], Array]:
        """For each time (m,), the piece that it lies in, and its s there."""
        ways = np.abs(times - self.starts[0])
        k = np.searchsorted(np.abs(self.starts - self.starts[0]), ways, side="right") - 1
        s = (times - self.starts[k]) / self.rates[k]
        return k, np.clip(s, 0.0, self.length)


@dataclass(frozen=True)
class StandardForm:
    """The pieces, and the conditions as ``conditions(x, p, t)``.

    x (2 K n,): the states of all K pieces at s = 0, then those at s = length. ``at_start``: how
    many conditions depend on the former alone, with all others on the latter; 0 where the two are
    tied.
    """

    pieces: Pieces
    conditions: Callable[[Any, Any, Any], Tensor]
    at_start: int


def flat_guess(prob: BVProblem, t: float) -> Tensor:
    """The guess at ``t`` as a vector (n,). Raises InputError where it is not like that at t0."""
    guess = prob.guess(t)
    name = f"u0({t:g})" if callable(prob.u0) else "u0"
    require_finite(guess, name)
    return prob.state_spec.flatten_like(guess, name, "u0 at t0", "is").detach()


def standard_form(prob: BVProblem) -> StandardForm:
    """The problem in standard form. Raises InputError where bc asks for what is not there."""
    t0, t1 = (number(t) for t in prob.tspan)
    spec = prob.state_spec
    if isinstance(prob, TwoPointBVProblem):
        rows = [flat_guess(prob, t).requires_grad_() for t in (t0, t1)]
        with torch.enable_grad():
            given = [
                conditions_of(prob, f"bc[{i}]", bc, ("u", "p"), spec.unflatten(row), prob.p)
                for i, (bc, row) in enumerate(zip(prob.bc, rows, strict=True))
            ]
            require_conditions(flat_conditions(given, spec), rows, _AT_GUESS)
        at_start = sum(x.numel() for x in pytree.tree_leaves(given[0]))
        pieces = Pieces.of(np.array([t0, t1]))
        start, end = prob.bc
        whole = _two_points(start, end, _two_point_assembler(spec))
        return StandardForm(pieces, whole, at_start if 0 < at_start < spec.size else 0)
    asked = _Recorder(prob, t0, t1)
    with torch.enable_grad():
        u, t = _Unsolved(spec, asked.ends, asked, asked.time), _Rows(asked.ends, asked.time)
        found = conditions_of(prob, "bc", prob.bc, ("u", "p", "t"), u, prob.p, t)
        value = flat_conditions(found, spec)
        require_conditions(value, asked.rows, _AT_GUESS)
        asked.require_no_times(value)
    cuts = _cuts([t for times in asked.times for t in times], t0, t1)
    layout = tuple(
        (shape, tuple(_place(t, cuts) for t in times))
        for shape, times in zip(asked.shapes, asked.times, strict=True)
    )
    whole = _conditions(prob.bc, _assembler(spec, (t0, t1), layout, len(cuts) - 1))
    return StandardForm(Pieces.of(np.array(cuts)), whole, 0)


def _cuts(times: Sequence[float], t0: float, t1: float) -> list[float]:
    """t0, the inner times in order, and t1."""
    cuts, span = [t0], abs(t1 - t0)
    for t in sorted(times, key=lambda t: abs(t - t0)):
        if min(abs(t - cuts[-1]), abs(t - t1)) > _SAME * span:
            cuts.append(t)
    return [*cuts, t1]


def _place(t: float, cuts: list[float]) -> int:
    """Which block of n entries of x is the state at ``t``; at a cut, the end of a piece."""
    i = int(np.argmin(np.abs(np.array(cuts) - t)))
    return 0 if i == 0 else len(cuts) - 2 + i


class _End(float):
    """An end of the time span, which goes along with it; any other number is that very time."""


class _Recorder:
    """Answers bc with the guess, and writes down what it asks for."""

    def __init__(self, prob: BVProblem, t0: float, t1: float) -> None:
        self.prob, self.low, self.high = prob, min(t0, t1), max(t0, t1)
        self.ends = (_End(t0), _End(t1))
        grad = torch.is_grad_enabled()
        self.moves = [grad and bool(getattr(t, "requires_grad", False)) for t in prob.tspan]
        self.leaves = [
            torch.tensor(float(end), dtype=torch.float64, requires_grad=moves)
            for end, moves in zip(self.ends, self.moves, strict=True)
        ]
        self.shapes: list[tuple[int, ...]] = []
        self.times: list[tuple[float, ...]] = []
        self.rows: list[Tensor] = []

    def time(self, end: float) -> Tensor:
        """An end of the time span as bc gets it."""
        return self.leaves[int(end is self.ends[1])]

    def require_no_times(self, value: Tensor) -> None:
        """Raise InputError where the conditions read the value of an end that requires grad."""
        moving = [x for x in self.leaves if x.requires_grad]
        if not moving or not value.requires_grad:
            return
        weights = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype, device=value.device)
        slopes = torch.autograd.grad(
            (weights * value.reshape(-1)).sum(), moving, retain_graph=True, allow_unused=True
        )
        if any(slope is not None for slope in slopes):
            raise InputError(
                "bc computes with t[0] or t[-1], and tspan requires grad, which MIRK methods and "
                "SolveBVP do not follow there; compute with the tensor in tspan itself."
            )

    def _is_end(self, t: Any) -> bool:
        known = (*self.leaves, *(x for x in self.prob.tspan if isinstance(x, Tensor)))
        return isinstance(t, _End) or any(t is x for x in known)

    def __call__(self, t: Any) -> Tensor:
        end = self._is_end(t)
        if isinstance(t, Tensor) and t.requires_grad and not end:
            raise InputError(
                "bc asks for the state at a time that requires grad, but MIRK methods and SolveBVP "
                "have no gradient by it; make it a plain number, or use pysciml.Shooting()."
            )
        at = as_times(t).detach().double()
        times = tuple(at.reshape(-1).tolist())
        for value in times:
            near = _SAME * (self.high - self.low)
            for i, (x, moves) in enumerate(zip(self.ends, self.moves, strict=True)):
                if moves and not end and abs(value - x) <= near:
                    raise InputError(
                        f"bc asks for the state at t = {value:g}, a number that stays where "
                        f"tspan[{i}], which requires grad, moves; ask for u(t[{-i}]) to go along."
                    )
            if not self.low <= value <= self.high:
                raise InputError(
                    f"bc asks for the state at t = {value:g}, outside of tspan, which covers "
                    f"[{self.low:g}, {self.high:g}]; ask for times within it."
                )
        self.shapes.append(tuple(at.shape))
        self.times.append(times)
        spec = self.prob.state_spec
        rows = [flat_guess(self.prob, value).requires_grad_() for value in times]
        self.rows += rows
        return torch.stack(rows).reshape(*at.shape, spec.size)


class _Replay:
    """Answers bc with stretches of x, in the order of its calls."""

    def __init__(self, x: Tensor, n: int, layout: Any) -> None:
        self.blocks, self.n, self.layout, self.calls = x.split(n), n, layout, 0

    def __call__(self, t: Any) -> Tensor:
        if self.calls == len(self.layout):
            raise InputError(_uneven(len(self.layout)))
        shape, places = self.layout[self.calls]
        self.calls += 1
        if not shape:
            return self.blocks[places[0]]
        return torch.stack([self.blocks[k] for k in places]).reshape(*shape, self.n)


def _uneven(calls: int) -> str:
    return (
        f"bc asked for states {calls} times in one call, and for another number in the next; it "
        "must ask for the same ones whenever it is called (choose between them with torch.where)."
    )


class _Unsolved:
    """What bc gets for u: the states at the times that it asks for."""

    def __init__(
        self, spec: StateSpec, span: tuple[float, float], answer: Any, time: Any = None
    ) -> None:
        self._spec, self._span, self._answer, self._time = spec, span, answer, time

    def __call__(self, t: Any, deriv: int = 0) -> Any:
        if deriv:
            raise InputError(
                f"bc asks for u(t, deriv={deriv}), but {_ONLY}; write f(u(t), p, t) for the first "
                "derivative, or use pysciml.Shooting()."
            )
        return self._spec.unflatten(self._answer(t))

    @property
    def t(self) -> Any:
        return _Rows(self._span, self._time)

    @property
    def u(self) -> Any:
        spec, leaves = self._spec, range(len(self._spec.shapes))
        rows = [
            _Rows(self._span, lambda t, i=i: spec.leaves(spec.unflatten(self._answer(t)))[i])
            for i in leaves
        ]
        return pytree.tree_unflatten(rows, spec.treedef)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(f"bc asks for u.{name}, but {_ONLY}; use that, or pysciml.Shooting().")


class _Rows:
    """A series of which the first and last row alone are known: others depend on the mesh."""

    def __init__(self, span: tuple[float, float], value: Any = None) -> None:
        self._span, self._value = span, value or (lambda t: torch.tensor(t, dtype=torch.float64))

    def __len__(self) -> int:
        raise InputError(f"bc takes the length of u.u or t, but {_ONLY}; use rows 0 and -1.")

    def __getitem__(self, key: Any) -> Any:
        row, *rest = key if isinstance(key, tuple) else (key,)
        if type(row) is not int or row not in (0, -1):
            raise InputError(
                f"bc takes row {row!r} of u.u or t, but {_ONLY}, and rows 0 and -1; use these, or "
                "pysciml.Shooting()."
            )
        found = self._value(self._span[row])
        return found[tuple(rest)] if rest else found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(f"bc takes .{name} of u.u or t, but {_ONLY}; use that.")


def _conditions(bc: Any, assembled: Any) -> Callable[[Any, Any, Any], Tensor]:
    def conditions(x: Any, p: Any, t: Any) -> Tensor:
        value: Tensor = assembled(bc, x, p)
        return value

    return conditions


def _two_points(start: Any, end: Any, assembled: Any) -> Callable[[Any, Any, Any], Tensor]:
    def conditions(x: Any, p: Any, t: Any) -> Tensor:
        value: Tensor = assembled(start, end, x, p)
        return value

    return conditions


@functools.lru_cache(maxsize=256)
def _assembler(
    spec: StateSpec, span: tuple[float, float], layout: Any, pieces: int
) -> Callable[..., Tensor]:
    """bc's value, and what the states lack to go on from each piece to the next."""

    def assembled(bc: Any, x: Any, p: Any) -> Tensor:
        n = spec.size
        answer = _Replay(x, n, layout)
        given = flat_conditions(bc(_Unsolved(spec, span, answer), p, _Rows(span)), spec)
        if answer.calls < len(layout):
            raise InputError(_uneven(len(layout)))
        starts, ends = x[: pieces * n], x[pieces * n :]
        return torch.cat([given, starts[n:] - ends[:-n]])

    return assembled


@functools.lru_cache(maxsize=256)
def _two_point_assembler(spec: StateSpec) -> Callable[..., Tensor]:
    """What the conditions at the two ends give, one after the other."""

    def assembled(start: Any, end: Any, x: Any, p: Any) -> Tensor:
        a, b = (spec.unflatten(part) for part in x.split(spec.size))
        return flat_conditions([start(a, p), end(b, p)], spec)

    return assembled
