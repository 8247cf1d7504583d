"""The benchmarks run: the harness in its quick mode, and its arithmetic."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(600)
def test_quick_run_writes_table_points_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("torchdiffeq")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--problems", "lotka_volterra_ude",
         "--peers", "sundials", "torchdiffeq", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "pysciml[sundials] CVODE_BDF" in table and "torchdiffeq dopri5 adjoint" in table
    assert (tmp_path / "work_precision.png").stat().st_size > 10_000
    with (tmp_path / "points.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert all(point["note"] == "" for point in points), points
    # every method comes near the reference, in value and in gradient, and nearer when asked to
    for what in ("forward", "gradient"):
        for method in {point["method"] for point in points if point["what"] == what}:
            loose, tight = (
                float(point["error"])
                for point in points
                if point["method"] == method and point["what"] == what
            )
            assert tight < 2e-3 and tight < loose, (method, what, loose, tight)


def point(ms: float, error: float):
    from benchmarks.measure import Point

    return Point("m", "forward", 1e-3, ms=ms, error=error)


@pytest.fixture
def checkout_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    # the benchmarks are not installed; their folder is the checkout's
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.usefixtures("checkout_on_path")
def test_time_at_equal_error_is_interpolated_between_points() -> None:
    from benchmarks.measure import at_equal_error

    points = [point(1.0, 1e-2), point(4.0, 1e-4), point(16.0, 1e-6)]
    assert at_equal_error(points, 1e-3).ms == pytest.approx(2.0)
    assert at_equal_error(points, 1e-4).ms == pytest.approx(4.0)
    assert at_equal_error(points, 1e-1).ms == 1.0
    assert at_equal_error(points, 1e-1).how == "<"
    assert math.isnan(at_equal_error(points, 1e-8).ms)


@pytest.mark.usefixtures("checkout_on_path")
def test_a_fast_wrong_answer_does_not_count() -> None:
    from benchmarks.measure import at_equal_error

    points = [point(1.0, 1e-1), point(5.0, 1e-5)]
    assert at_equal_error(points, 1e-5).ms == pytest.approx(5.0)
    # a dear point that is no better than a cheap one is left out
    points = [point(1.0, 1e-5), point(3.0, 1e-3), point(9.0, 1e-6)]
    assert at_equal_error(points, 1e-4).ms == pytest.approx(1.0)
