"""Multiple shooting: fit short pieces of a trajectory first, and pull them together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysciml.errors import InputError
from pysciml.problems import ODEProblem, remake
from pysciml.solve import solve

__all__ = ["MultipleShooting"]


def _mean_square(prediction: Tensor, data: Tensor) -> Tensor:
    return ((prediction - data) ** 2).mean()


class MultipleShooting(torch.nn.Module):
    """The loss of a trajectory cut into segments, each with an initial state of its own.

    A loss over a whole oscillating record has many poor minima (a flat line through the mean is
    one). Over segments shorter than an oscillation it has few. The initial states of the segments
    are parameters beside the model's, and a penalty draws the end of each segment to the start of
    the next; as it grows, the pieces become one solution (Bock and Plitt, "A multiple shooting
    algorithm for direct solution of optimal control problems", IFAC 1984).

    All segments are solved as **one** batched problem: segment ``i``, over ``[a, a + h]``, is
    ``dv/ds = h f(v, p, a + h s)`` for ``s`` from 0 to 1.

    Parameters
    ----------
    prob : ODEProblem
        Its state is one tensor; it has no mass matrix and no callbacks. Its ``u0`` and ``tspan``
        are not used.
    t : 1-d tensor (m,)
        Times of the data, increasing.
    data : tensor (m, ...)
        Observations at ``t``.
    intervals : int
        Intervals between data that make one segment; the last one may be shorter.
    continuity : float
        Weight of the gaps between segments, an attribute that may be raised during training.
    observe : callable, optional
        Observations predicted from states: ``observe(u) -> like data``, ``u`` with the times in
        front. The state itself where None.
    starts : tensor (segments, *state), optional
        First guess of the segments' initial states; the data there where None, for which data
        and state must have one shape.
    loss : callable
        ``loss(prediction, data)`` -> 0-d tensor; mean square where None.
    alg, options
        As for :func:`pysciml.solve`, e.g. ``engine=``, ``abstol=``, ``reltol=``.

    Attributes
    ----------
    starts : Parameter (segments, *state)
        The segments' initial states.

    Raises
    ------
    InputError
        For problems and data that are not of this form.
    """

    def __init__(
        self,
        prob: ODEProblem,
        t: Tensor | None = None,
        data: Tensor | None = None,
        *,
        intervals: int = 4,
        continuity: float = 1.0,
        observe: Callable[[Tensor], Tensor] | None = None,
        starts: Tensor | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        alg: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        t, data = _checked(prob, t, data, intervals)
        self.data, self.observe, self.continuity = data, observe, float(continuity)
        self.loss = loss if loss is not None else _mean_square
        self.alg, self.options = alg, options
        first = range(0, len(t) - 1, intervals)
        begin, end = list(first), [min(i + intervals, len(t) - 1) for i in first]
        like = prob.u0
        if starts is None:
            starts = data[begin]
            if starts.shape[1:] != like.shape:
                raise InputError(
                    f"data has shape {tuple(data.shape)} and the state {tuple(like.shape)}; give "
                    "starts, a first guess of the state at the start of each segment."
                )
        elif starts.shape != (len(begin), *like.shape):
            raise InputError(
                f"starts has shape {tuple(starts.shape)}; there are {len(begin)} segments, so "
                f"give {(len(begin), *like.shape)}."
            )
        self.starts = torch.nn.Parameter(starts.detach().clone().to(like.dtype))
        self._place_data(t.detach().to(torch.float64), begin, end)
        self._segments = _Segments(prob.f, t, begin, end, like)
        self.prob = ODEProblem(self._segments, self.starts, (0.0, 1.0), prob.p)

    def _place_data(self, t: Tensor, begin: list[int], end: list[int]) -> None:
        """Where each datum lies in the batched solution: index of its time, and its segment."""
        local, segment = [], []
        for i, (a, b) in enumerate(zip(begin, end, strict=True)):
            last = b + 1 if b == len(t) - 1 else b  # the end belongs to the next segment
            local.append((t[a:last] - t[a]) / (t[b] - t[a]))
            segment += [i] * (last - a)
        times = torch.cat([*local, torch.ones(1, dtype=torch.float64)])
        # Equal up to rounding is equal: two times a rounding apart would cost a step each.
        times = (times * 2.0**40).round() / 2.0**40
        self._grid, where = torch.unique(times, return_inverse=True)
        self._time, self._segment = where[:-1], torch.tensor(segment)

    def predict(self, p: Any = None) -> tuple[Tensor, Tensor]:
        """States at the data's times (m, *state), and gaps between segments (segments - 1, *state).

        ``p`` replaces the problem's parameters where given.
        """
        prob = remake(self.prob, u0=self.starts, **({} if p is None else {"p": p}))
        return self._read(solve(prob, self.alg, saveat=self._grid, **self.options).u)

    def _read(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return u[self._time, self._segment], u[-1, :-1] - self.starts[1:]

    def _beside(self, f: Any) -> _Segments:
        """Another equation on the same segments."""
        return self._segments.of(f)

    def _predict_beside(self, f: _Segments, p: Any, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`predict`, and integrals over each segment (segments, k).

        ``f``, by :meth:`_beside`, is the equation of a flat state and these integrals behind it.
        """
        count = len(self.starts)
        nothing = self.starts.new_zeros(count, k)
        full = torch.cat([self.starts.reshape(count, -1), nothing], dim=1)
        prob = ODEProblem(f, full, (0.0, 1.0), p)
        u = solve(prob, self.alg, saveat=self._grid, **self.options).u
        states = u[..., :-k].reshape(len(u), *self.starts.shape)
        return (*self._read(states), u[-1, :, -k:])

    def forward(self, p: Any = None) -> Tensor:
        """The loss at parameters ``p`` (the problem's own where None), gaps included."""
        return self._value(*self.predict(p))

    def _value(self, states: Tensor, gaps: Tensor) -> Tensor:
        """The loss of what :meth:`predict` gives."""
        prediction = states if self.observe is None else self.observe(states)
        if prediction.shape != self.data.shape:
            raise InputError(
                f"The prediction has shape {tuple(prediction.shape)} and the data "
                f"{tuple(self.data.shape)}; give observe, which maps the one to the other."
            )
        value = self.loss(prediction, self.data)
        return value + self.continuity * (gaps**2).mean() if len(gaps) else value


def _checked(prob: Any, t: Any, data: Any, intervals: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(prob, ODEProblem):
        raise InputError(
            f"MultipleShooting was given a {type(prob).__name__} as its problem; call it as "
            "MultipleShooting(prob, t, data) with an ODEProblem, its times and its data."
        )
    if prob.mass_matrix is not None or prob.callback:
        has = "callbacks" if prob.mass_matrix is None else "a mass matrix"
        raise InputError(
            f"MultipleShooting was given a problem with {has}; give one without mass matrix and "
            "callbacks, or fit it with pysciml.solve and a loss over the whole record."
        )
    if not isinstance(prob.u0, Tensor):
        raise InputError(
            f"MultipleShooting was given a problem whose u0 is a {type(prob.u0).__name__}; give "
            "one whose state is one tensor, e.g. by torch.cat of its parts."
        )
    if not isinstance(t, Tensor) or t.ndim != 1 or len(t) < 2 or not bool((t.diff() > 0).all()):
        raise InputError(f"t is {_said(t)}; give a 1-d tensor of at least two increasing times.")
    if not isinstance(data, Tensor) or data.shape[:1] != t.shape:
        raise InputError(
            f"data is {_said(data)}; give a tensor with {len(t)} rows, one for each time."
        )
    if not isinstance(intervals, int) or isinstance(intervals, bool) or intervals < 1:
        raise InputError(f"intervals is {intervals!r}; give a positive integer.")
    return t, data


def _said(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)}"
    return "missing" if x is None else f"a {type(x).__name__}"


class _Segments:
    """``f`` on all segments at once, in each its own time. An object, so that modules pickle."""

    def __init__(self, f: Any, t: Tensor, begin: list[int], end: list[int], like: Tensor) -> None:
        times = t.detach().to(like.device, like.dtype)
        self.f, self.start, self.width = f, times[begin], times[end] - times[begin]

    def of(self, f: Any) -> _Segments:
        made = copy.copy(self)
        made.f = f
        return made

    def __call__(self, u: Tensor, p: Any, s: Tensor) -> Tensor:
        def one(v: Tensor, a: Tensor, h: Tensor) -> Tensor:
            return h * self.f(v, p, a + h * s)

        return torch.vmap(one)(u, self.start, self.width)
