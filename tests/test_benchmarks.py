"""The benchmarks run: the harness in its quick mode, and its arithmetic."""

from __future__ import annotations

import csv
import math
import re
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
    assert 10_000 < (tmp_path / "work_precision.png").stat().st_size < 200_000
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


@pytest.mark.timeout(600)
def test_costs_and_the_page_of_the_documentation(tmp_path: Path) -> None:
    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    results, docs = tmp_path / "results", tmp_path / "docs"
    done = run("benchmarks.costs", "--quick", "--engines", "sundials", "--out", str(results))
    assert done.returncode == 0, done.stderr
    costs = (results / "costs.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in costs.splitlines() if line.startswith("| sundials")]
    *times, first, second = rows
    assert [len(row) - 2 for row in times] == [7, 5, 7]
    assert all(float(cell) >= 0.0 for row in times for cell in row[-4:-1])
    # memory: of two algorithms, of as many networks as the short mode takes
    assert [row[2].strip() for row in (first, second)] == ["CVODE_Adams", "CVODE_BDF"]
    assert all(row[4].strip() == "3" and len(row) - 2 == 5 for row in (first, second))
    # the page is refused until all of its parts were measured
    page = ("--results", str(results), "--docs", str(docs), "--on", "a day, on a machine")
    done = run("benchmarks.docs", *page)
    assert done.returncode != 0 and "table.md is missing" in done.stderr
    (results / "table.md").write_text("# Benchmarks\n\n| a table |\n", encoding="utf-8")
    for name in ("ensemble", "latent_sde"):
        (results / f"{name}.md").write_text(f"# T\n\n| of {name} |\n", encoding="utf-8")
    (results / "work_precision.png").write_bytes(b"a figure")
    done = run("benchmarks.docs", *page)
    assert done.returncode == 0, done.stderr
    text = (docs / "benchmarks.md").read_text(encoding="utf-8")
    assert "| of ensemble |" in text and "| of latent_sde |" in text
    assert "| a table |" in text and "## Fixed cost" in text and "a day, on a machine" in text
    assert text.count("# Benchmarks\n") == 1
    assert (docs / "work_precision.png").read_bytes() == b"a figure"


@pytest.mark.usefixtures("checkout_on_path")
def test_adjoint_and_sensitivity_equations_of_van_der_pol_agree() -> None:
    from benchmarks.van_der_pol import error, reference

    want = reference(10.0, 1.0)
    assert error(10.0, 1.0, 1e-10, want) < 1e-6


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


@pytest.mark.timeout(600)
def test_ensembles_reach_their_error(tmp_path: Path) -> None:
    pytest.importorskip("torchdiffeq")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ensemble", "--quick", "--cases", "sir", "--members",
         "30", "--peers", "torchdiffeq", "--error", "1e-4", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = done.stdout.strip().splitlines()[-1].split("|")
    assert cells[1].strip() == "SIR" and "torchdiffeq" in cells[2]
    assert all(float(cell.strip().lstrip("<")) > 0.0 for cell in cells[3:5])
    assert (tmp_path / "ensemble.md").read_text("utf-8") == f"# Ensembles\n\n{done.stdout}"


@pytest.mark.julia
@pytest.mark.timeout(600)
def test_the_latent_sde_is_torchsdes(tmp_path: Path) -> None:
    pytest.importorskip("torchsde")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.latent_sde", "--batches", "4", "--width", "8",
         "--runs", "1", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gaps = re.search(r"states differ by (\S+), gradients by (\S+)", done.stdout)
    assert gaps is not None and all(float(gap) < 1e-4 for gap in gaps.groups()), done.stdout
    page = (tmp_path / "latent_sde.md").read_text(encoding="utf-8")
    assert "| 4 | forward + gradient |" in page
