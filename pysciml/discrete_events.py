"""Events of maps: what happens at a step after its state is there, and the way back through it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pysciml.errors import InputError

__all__ = ["MapEvents", "steps_at"]

Array = npt.NDArray[np.float64]


def steps_at(asked: Array, times: Array, name: str) -> npt.NDArray[np.int64]:
    """The steps at which these times are. Raises InputError for times that are no steps."""
    rows: npt.NDArray[np.int64] = np.searchsorted((times[1:] + times[:-1]) / 2, asked)
    off = np.abs(times[rows] - asked) > 1e-9 * max(abs(times[0]), abs(times[-1]))
    if off.any():
        i = int(np.nonzero(off)[0][0])
        raise InputError(
            f"{name}[{i}] = {asked[i]:g} is no step of the map, whose times are {times[0]:g}, "
            f"{times[0] + (times[1] - times[0] if len(times) > 1 else 0):g}, ...; leave it out."
        )
    return rows


@dataclass
class Record:
    """One event: its callback, the step, and the state that it acted on."""

    index: int
    k: int
    before: Array


class MapEvents:
    """The callbacks of a map in NumPy, and which of them acted.

    Raises InputError for a callback that a map cannot have.
    """

    def __init__(self, setup: Any, times: Array) -> None:
        self.callbacks, self.times = setup.flat_callbacks, times
        self.records: dict[int, list[Record]] = {}  # by step
        self.terminated = False
        self._conditions: dict[int, Any] = {}
        self._affects: dict[int, Any] = {}
        self._presets: dict[int, set[int]] = {}
        for i, c in enumerate(self.callbacks):
            given = setup.origins[i][0]
            if c.kind == "continuous":
                raise InputError(
                    f"callback {given} is of the continuous kind, which acts at a root in time, "
                    "but the state of a map changes at its steps alone; give a DiscreteCallback "
                    "whose condition is true at the step."
                )
            if c.condition is not None:
                self._conditions[i] = c.condition.bind("value", c.condition_p, c.condition_c)
            if c.affect is not None:
                self._affects[i] = c.affect.bind("value", c.affect_p, c.affect_c)
            if c.kind == "preset":
                name = f"times of callback {given}: times"
                self._presets[i] = set(steps_at(np.asarray(c.times), times, name).tolist())

    def act(self, k: int, u: Array) -> Array:
        """The state after the events of step ``k``, which act in the callbacks' order."""
        t = float(self.times[k])
        fired = [i for i, steps in self._presets.items() if k in steps]
        if k:  # a condition is asked after a step
            fired += [i for i, condition in self._conditions.items() if _true(condition, u, t)]
        for i in sorted(fired):
            self.records.setdefault(k, []).append(Record(i, k, u))
            if i in self._affects:
                after = np.empty_like(u)
                self._affects[i](u, t, after)
                u = after
            self.terminated = self.terminated or self.callbacks[i].terminate
        return u

    def outputs(self, states: tuple[Array, Array], wanted: Any) -> npt.NDArray[np.int64]:
        """Rows of the states before and after events, one after the other, that are outputs.

        ``wanted``: the steps that were asked for, or None for all. As of an ODE: at an event both
        states, or at ``wanted`` the one before; and those that ``save_positions`` asks for.
        """
        before, after = states
        m = len(before)
        asked = np.arange(m) if wanted is None else wanted[wanted < m]
        times_asked = Counter(asked.tolist())
        rows: list[int] = []
        for k in sorted({*times_asked, *self.records}):
            events = self.records.get(k, [])
            rows += [k] * times_asked[k]
            if not events:
                continue
            first, last = self.callbacks[events[0].index].save_positions
            ends = any(self.callbacks[r.index].terminate for r in events)
            if not (rows and rows[-1] == k) and (first or ends):
                rows.append(k)
            same = np.array_equal(before[k], after[k])
            if (wanted is None or last) and not (ends and same):
                rows.append(m + k)
        return np.array(rows, dtype=np.int64)

    def pull(self, k: int, mu: Array, own: dict[int, Array], affects: dict[int, Any]) -> Array:
        """The cotangent before the events of step ``k``; parameters' are added to ``own``."""
        for record in reversed(self.records.get(k, [])):
            affect = affects.get(record.index)
            if affect is None:
                continue
            both = np.empty(len(mu) + len(own[record.index]))
            affect(mu, record.before, float(self.times[k]), both)
            own[record.index] += both[len(mu) :]
            mu = both[: len(mu)].copy()
        return mu

    def pulls(self) -> tuple[dict[int, Array], dict[int, Any]]:
        """Of each affect: zeros for its parameters' cotangent, and what pulls one back."""
        own, affects = {}, {}
        for i in self._affects:
            c = self.callbacks[i]
            own[i] = np.zeros(len(c.affect_p))
            affects[i] = c.affect.bind("vjp:up", c.affect_p, c.affect_c)
        return own, affects


def _true(condition: Any, u: Array, t: float) -> bool:
    out = np.empty(1)
    condition(u, t, out)
    return bool(out[0] != 0.0)
