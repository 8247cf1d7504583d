"""What every test shares: one thread, and tests marked `julia` skipped where Julia is missing."""

from __future__ import annotations

import os

# Before torch and NumPy are imported: the suite runs beside other work on small machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import importlib
from collections import Counter
from functools import cache

import pytest


@cache
def why_no_julia() -> str | None:
    """The reason for which `julia` tests cannot run here, or None where they can.

    Asks the Julia engine, which looks and starts nothing.
    """
    try:
        engine = importlib.import_module("pysciml.engines.julia")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("pysciml"):
            raise
        return "this version of pysciml has no Julia engine"
    if not engine.is_set_up():
        return "Julia is not set up: python -m pysciml setup"
    return None


#: What the julia engine does not do yet, by test: run all the same, and reported as xfailed.
KNOWN_GAPS = {
    **{
        f"{test}[{form}-julia-CollocationAdjoint]": reason
        for test in ("test_bouncing_ball_with_its_energy", "test_the_events_themselves")
        for form, reason in {
            "residual": "DFBDF ends in MaxIters at 1e-11",
            "residual without differential_vars": "an event's state is not made consistent",
        }.items()
    },
    "test_a_residual_that_is_nonlinear_in_its_rates": "no consistent rates are found at the start",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("julia") is None:
            continue
        for name in (item.name, getattr(item, "originalname", item.name)):
            if name in KNOWN_GAPS:
                item.add_marker(pytest.mark.xfail(reason=f"julia engine: {KNOWN_GAPS[name]}"))
                break


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("julia") is not None:
        reason = why_no_julia()
        if reason is not None:
            pytest.skip(reason)
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    outcome = yield
    outcome.get_result().is_julia_test = item.get_closest_marker("julia") is not None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line, `julia tests: N ran, M skipped (reason)`."""
    ran = 0
    skipped: Counter[str] = Counter()
    for category, reports in terminalreporter.stats.items():
        for report in reports:
            if not getattr(report, "is_julia_test", False):
                continue
            if category == "skipped":
                where = report.longrepr
                reason = where[2] if isinstance(where, tuple) else str(where)
                skipped[reason.removeprefix("Skipped: ")] += 1
            elif report.when == "call":
                ran += 1
    reasons = "; ".join(sorted(skipped))
    because = f" ({reasons})" if skipped else ""
    terminalreporter.write_line(f"julia tests: {ran} ran, {skipped.total()} skipped{because}")


@pytest.fixture(params=["sundials", pytest.param("julia", marks=pytest.mark.julia)])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine: every test that asks for it runs on each."""
    name: str = request.param
    return name
