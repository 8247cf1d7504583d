"""Stepping CVODE and IDA through a problem: stops, events, failures, and what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import FlatCallback
from pysciml.engines.sundials.interpolant import WIDTH, Interpolant
from pysciml.engines.sundials.quiet import Quiet

Array = npt.NDArray[np.float64]

#: SUNDIALS' negative return values as SciML's return codes.
_RETCODES = {
    -1: "MaxIters",
    -2: "DtLessThanMin",
    -3: "DtLessThanMin",
    -4: "ConvergenceFailure",
    -5: "InitialFailure",
    -8: "Unstable",
    -9: "Unstable",
    -10: "Unstable",
    -11: "Unstable",
}


#: Steps in a row that may leave t where it is, by rounding, before the solve counts as stuck.
#: SUNDIALS itself goes on, and so steps over a singularity.
_STUCK = 50


class NotFinite(Exception):
    """The right-hand side was not finite where it had to be: at the start, or again and again."""


class InitialFailure(Exception):
    """The solver could not begin at the initial values; the message is SUNDIALS' own."""


class Stepper(Protocol):
    """One solver on one stretch; the step loop knows CVODE and IDA through this."""

    def start(self, t: float, u: Array, du: Array | None) -> tuple[Array, Array | None]:
        """Begin at (t, u); gives the consistent (u, du)."""
        ...

    def settle(self, t: float, u: Array, du: Array | None) -> tuple[Array, Array | None]:
        """The consistent (u, du) where nothing is stepped; as they are for an ODE."""
        ...

    def step(self, t1: float, stop: float) -> Any:
        """One internal step toward ``t1``, not past ``stop``: scikit-sundae's result."""
        ...

    def after_step(self, t: float, u: Array, h: float) -> bool:
        """True where the stretch should be started anew from here (another method takes over)."""
        ...


@dataclass
class Segment:
    """A smooth stretch between events: the solver's own steps and their interpolant."""

    t: Array
    u: Array
    interpolant: Interpolant
    du0: Array | None = None
    nonstiff: bool = False  # by Adams' method, of high order


@dataclass
class EventRecord:
    """What happened at ``t``: callback ``index``; the state before and after."""

    t: float
    index: int
    u_before: Array
    u_after: Array
    restarts: bool
    terminal: bool


@dataclass
class Trajectory:
    """Everything a solve leaves: segments in order, and the event that ends each of them."""

    segments: list[Segment] = field(default_factory=list)
    ends: list[list[EventRecord]] = field(default_factory=list)
    retcode: str = "Success"
    message: str = ""
    steps: int = 0


class Conditions:
    """The conditions of all continuous callbacks as one root function of scikit-sundae's form."""

    def __init__(
        self, callbacks: tuple[FlatCallback, ...], values: list[Callable[..., None]], ida: bool
    ) -> None:
        self.indices = [i for i, c in enumerate(callbacks) if c.kind == "continuous"]
        self._values = values
        out = np.empty(1)

        def roots(t: float, u: Array, events: Array) -> None:
            for k, value in enumerate(values):
                value(u, t, out)
                if math.isnan(out[0]):
                    raise NotFinite(
                        f"the condition of callback {self.indices[k]} became NaN, and would be "
                        "missed"
                    )
                events[k] = out[0]

        def roots_ida(t: float, u: Array, du: Array, events: Array) -> None:
            roots(t, u, events)

        fn: Any = roots_ida if ida else roots
        self.fn = fn
        self.fn.direction = [callbacks[i].direction for i in self.indices]
        self.fn.terminal = [True] * len(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def value(self, k: int, t: float, u: Array) -> float:
        out = np.empty(1)
        self._values[k](u, t, out)
        return float(out[0])


@dataclass
class Events:
    """How callbacks act, in NumPy: bound conditions and affects by callback index."""

    callbacks: tuple[FlatCallback, ...]
    conditions: Conditions | None
    discrete: dict[int, Callable[..., None]]
    affects: dict[int, Callable[..., None]]

    def apply(self, index: int, t: float, u: Array) -> Array:
        affect = self.affects.get(index)
        if affect is None:
            return u
        out = np.empty_like(u)
        affect(u, t, out)
        return out

    def discrete_now(self, t: float, u: Array) -> list[int]:
        fired = []
        out = np.empty(1)
        for index, condition in self.discrete.items():
            condition(u, t, out)
            if out[0] != 0.0:
                fired.append(index)
        return fired


def integrate(
    make_stepper: Callable[[], Stepper],
    t0: float,
    t1: float,
    u0: Array,
    du0: Array | None,
    stops: Array,
    events: Events | None,
    maxiters: int,
    width: Callable[[], int],
    progress: Callable[[float], None] | None = None,
) -> Trajectory:
    """Step from t0 to t1, through all stops and events.

    ``stops`` are times the solver must hit, in order; where a preset callback stands at one, it
    acts there. Failures end the trajectory early with a return code.
    """
    sign = 1.0 if t1 > t0 else -1.0
    out = Trajectory()
    presets = _presets(events)
    pending = [float(s) for s in stops if sign * (s - t0) > 0 and sign * (t1 - s) > 0] + [t1]
    t, u, du = t0, np.array(u0, dtype=np.float64), du0
    here = [i for i, times in presets.items() if t0 in times]
    if here:
        with Quiet():
            u, du, fine = _settled(out, make_stepper, t, u, du)
        if not fine:
            return out
        first = []
        for i in here:
            assert events is not None
            after = events.apply(i, t, u)
            first.append(EventRecord(t, i, u, after, True, events.callbacks[i].terminate))
            u = after
        out.ends[-1] = first
        if any(r.terminal for r in first):
            out.retcode = "Terminated"
            return out
    with Quiet() as quiet:
        while True:
            stepper = make_stepper()
            try:
                u, du = stepper.start(t, u, du)
            except (InitialFailure, NotFinite) as error:
                bad = isinstance(error, NotFinite)
                out.retcode = "Unstable" if bad else "InitialFailure"
                out.message = str(error)
                _close(out, [t], [u], width(), du, [])
                return out
            ts, us, du_start = [t], [u], du
            # A continuous callback that has just acted sits on its own root; see _crossed.
            acted = {r.index: t for r in out.ends[-1]} if out.ends else {}
            records: list[EventRecord] = []
            stuck = 0
            while not records:
                if out.steps >= maxiters:
                    out.retcode = "MaxIters"
                    break
                try:
                    result = stepper.step(t1, pending[0])
                except NotFinite as error:
                    out.retcode, out.message = "Unstable", str(error)
                    break
                if result.status < 0:
                    out.retcode = _RETCODES.get(result.status, "Failure")
                    out.message = "; ".join([str(result.message), *quiet.messages])
                    break
                out.steps += 1
                t_new, u = float(result.t), result.y
                du = getattr(result, "yp", None)
                if t_new != t:
                    ts.append(t_new)
                    us.append(u)
                    stuck = 0
                elif (stuck := stuck + 1) > _STUCK:
                    out.retcode = "DtLessThanMin"
                    out.message = "the step size fell below the rounding of t"
                    break
                h, t = t_new - t, t_new
                if progress is not None:
                    progress(t)
                if events is not None:
                    records = _happened(events, presets, result, t, u, acted, t1 - t0)
                if t == pending[0]:  # the equation may jump here: no step looks back across it
                    pending.pop(0)
                    break
                if not records and stepper.after_step(t, u, h):
                    break
            _close(out, ts, us, width(), du_start, records)
            if out.retcode != "Success":
                return out
            if any(r.terminal for r in records):
                out.retcode = "Terminated"
                return out
            if records:
                u = records[-1].u_after
            if not pending:
                if records:  # what an event at the very end leaves
                    _settled(out, make_stepper, t, u, du)
                return out


def _settled(
    out: Trajectory, make: Callable[[], Stepper], t: float, u: Array, du: Array | None
) -> tuple[Array, Array | None, bool]:
    """A segment of one point, consistent; False, and a return code, where that fails."""
    fine = True
    try:
        u, du = make().settle(t, u, du)
    except (InitialFailure, NotFinite) as error:
        out.retcode = "Unstable" if isinstance(error, NotFinite) else "InitialFailure"
        out.message, fine = str(error), False
    _close(out, [t], [u], 1, du, [])
    return u, du, fine


def integrate_at_once(
    stepper: Any, t0: float, t1: float, u0: Array, maxiters: int, width: int
) -> Trajectory | None:
    """The same steps by one call of the solver, where there are no stops and events to look after.

    None where it does not simply arrive; :func:`integrate` then finds out why.
    """
    with Quiet():
        result = stepper.whole(t0, t1, u0, maxiters)
    if result is None or len(result.t) - 1 > maxiters or not np.diff(result.t).all():
        return None
    out = Trajectory(steps=len(result.t) - 1)
    _close(out, result.t, result.y, width, None, [])
    return out


def _close(
    out: Trajectory,
    ts: list[float] | Array,
    us: list[Array] | Array,
    width: int,
    du: Array | None,
    records: list[EventRecord],
) -> None:
    t, u = np.asarray(ts), np.asarray(us)
    adams = width == WIDTH["Adams"]
    out.segments.append(Segment(t, u, Interpolant(t, u, width), du, adams))
    out.ends.append(records)


def _presets(events: Events | None) -> dict[int, set[float]]:
    if events is None:
        return {}
    return {
        i: {float(x) for x in c.times}
        for i, c in enumerate(events.callbacks)
        if c.kind == "preset" and c.times is not None
    }


def _happened(
    events: Events,
    presets: dict[int, set[float]],
    result: Any,
    t: float,
    u: Array,
    acted: dict[int, float],
    span: float,
) -> list[EventRecord]:
    """The events at the end of this step, in the callbacks' order, each acting on the last."""
    fired: list[int] = []
    if result.status == 2 and events.conditions is not None:
        flags = result.i_events[-1]
        for k, index in enumerate(events.conditions.indices):
            if flags[k] and _crossed(acted.get(index), t, span):
                fired.append(index)
    fired += [i for i, times in presets.items() if t in times]
    fired += events.discrete_now(t, u)
    records = []
    for index in sorted(set(fired)):
        after = events.apply(index, t, u)
        ends = events.callbacks[index].terminate
        records.append(EventRecord(t, index, u, after, True, ends))
        u = after
    return records


def _crossed(last: float | None, t: float, span: float) -> bool:
    """Whether a root is a new one: not the one that the callback acted on when this stretch began.

    After an affect the condition is zero up to rounding, and its leaving zero reads as a root.
    """
    if last is None:
        return True
    near = abs(t - last) <= 1e-12 * max(abs(span), abs(t))
    return not (near or math.isclose(t, last, rel_tol=1e-13))
