"""Times and errors over a sweep of tolerances, and the time at equal error between them."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.base import Method
from benchmarks.reference import Reference

__all__ = ["Budget", "Estimate", "Point", "at_equal_error", "sweep"]


@dataclass(frozen=True)
class Budget:
    """How long to measure: medians of at least ``runs``, more until ``seconds`` have passed.

    A sweep of a method stops where one run takes longer than ``longest`` seconds.
    """

    runs: int = 5
    seconds: float = 1.0
    longest: float = 10.0


@dataclass(frozen=True)
class Point:
    """One tolerance of one method.

    ``ms`` is the median of warm runs, ``best_ms`` their minimum (far below the median where the
    machine was busy), ``first_ms`` the first run in the process at this
    tolerance (with whatever it captures or compiles), ``error`` that of the solution for what
    "forward" and that of the gradient for what "gradient". ``note`` says why there is none.
    """

    method: str
    what: str
    reltol: float
    first_ms: float = math.nan
    ms: float = math.nan
    best_ms: float = math.nan
    runs: int = 0
    error: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """Time at an error: interpolated, or of the nearest measured point that is as good."""

    ms: float
    how: str  # "" interpolated, "<" the loosest tolerance is already better, "-" never reached


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def warm(run: Callable[[], np.ndarray], first: float, budget: Budget) -> list[float]:
    """Times of warm runs, in seconds."""
    # one more run in the warm, where that is cheap
    if first < budget.seconds / 2:
        run()
    gc.collect()
    times: list[float] = []
    stop = time.perf_counter() + budget.seconds
    while len(times) < budget.runs or (time.perf_counter() < stop and len(times) < 200):
        times.append(timed(run)[0])
        if sum(times) > 4 * budget.seconds and len(times) >= min(3, budget.runs):
            break
    return times


def sweep(
    method: Method,
    reference: Reference,
    reltols: Sequence[float],
    budget: Budget,
    enough: Mapping[str, float] | None = None,
) -> list[Point]:
    """Every point of a method, forward and gradient, from the loosest tolerance on.

    With ``enough``, the errors asked for of "forward" and "gradient", no further than to these.
    """
    points: list[Point] = []
    for what, make, error in (
        ("forward", method.forward, reference.error),
        ("gradient", method.gradient, reference.gradient_error),
    ):
        if make is None:
            continue
        for reltol in sorted(reltols, reverse=True):
            try:
                run = make(reltol)
                first, result = timed(run)
                times = warm(run, first, budget)
            except Exception as failure:  # a solver that fails is a row of the table
                note = f"{type(failure).__name__}: {failure}".splitlines()[0][:120]
                points.append(Point(method.label, what, reltol, note=note))
                continue
            seconds = statistics.median(times)
            points.append(
                Point(
                    method.label,
                    what,
                    reltol,
                    first_ms=first * 1e3,
                    ms=seconds * 1e3,
                    best_ms=min(times) * 1e3,
                    runs=len(times),
                    error=error(result),
                )
            )
            if seconds > budget.longest or points[-1].error < (enough or {}).get(what, 0.0):
                break
    return points


def at_equal_error(points: Sequence[Point], error: float) -> Estimate:
    """Time of a method at ``error``, from its points of one kind.

    Interpolates the logarithm of time in the logarithm of error between the cheapest point that
    is as good and the dearest one before it that is not.
    """
    good = [point for point in points if point.error <= error]
    if not good:
        return Estimate(math.nan, "-")
    best = min(good, key=lambda point: point.ms)
    worse = [point for point in points if point.error > error and point.ms <= best.ms]
    if not worse:
        return Estimate(best.ms, "<")
    near = min(worse, key=lambda point: point.error)
    share = math.log(near.error / error) / math.log(near.error / max(best.error, 1e-300))
    return Estimate(near.ms * (best.ms / near.ms) ** share, "")
