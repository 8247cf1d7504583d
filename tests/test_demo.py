"""The main job from the command line, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pysciml.__main__ import main
from pysciml.demo import Demo, hudson_bay, run
from pysciml.demo.interaction import compare, power_law
from pysciml.demo.report import report
from pysciml.errors import InputError

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def demo() -> Demo:
    return run("sundials", quick=True, progress=False)


def test_record() -> None:
    record = hudson_bay(held_out=5)
    assert record.year.tolist() == list(range(1900, 1921))
    assert record.pelts.shape == (21, 2) and record.training == 16
    assert record.pelts[0].tolist() == [30.0, 4.0] and record.pelts[-1].tolist() == [24.7, 8.6]
    with pytest.raises(InputError, match="held_out is 14"):
        hudson_bay(held_out=14)


def test_fits_beat_the_mean(demo: Demo) -> None:
    """On the training years by far; the universal equation contains the baseline and beats it."""
    mean, base, ude = demo.mean, demo.baseline.errors, demo.ude.errors
    assert base.training_log < 0.3 * mean.training_log and base.training < 0.3 * mean.training
    assert ude.training_log < 0.7 * base.training_log and ude.training < base.training
    assert ude.held_out_log < mean.held_out_log and base.held_out_log < mean.held_out_log


def test_baseline_is_converged(demo: Demo) -> None:
    """At a minimum: the loss's gradient in the four rates is nought, and rates are plausible."""
    rates = demo.baseline.model.rates()
    expected = {"a": 0.438, "b": 0.0220, "c": 0.988, "d": 0.0281}
    assert rates == pytest.approx(expected, rel=0.02)


def test_solutions_cover_the_record_and_are_positive(demo: Demo) -> None:
    for fitted in (demo.ude, demo.baseline):
        assert torch.equal(fitted.solution.t, demo.record.t)
        assert fitted.solution.u.shape == (21, 2)
        assert bool(fitted.solution.u.exp().isfinite().all())


def test_interaction_resembles_the_product(demo: Demo) -> None:
    grid = compare(demo)
    assert bool((grid.learned > 0).all()) and bool(grid.near.any()) and not bool(grid.near.all())
    ratio = (grid.learned / grid.product)[grid.near]
    assert 0.5 < float(ratio.log().mean().exp()) < 2.0
    law = power_law(demo)
    assert 0.3 < law.hare < 1.7 and 0.3 < law.lynx < 1.7
    assert law.unexplained <= law.by_product < 0.5


def test_report_tells_errors_and_interaction(demo: Demo) -> None:
    text = report(demo)
    assert (
        f"{demo.ude.errors.held_out:.2f}" in text
        and f"{demo.baseline.errors.held_out_log:.3f}" in text
    )
    assert "learned N(x, y) | product b x y" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_same_seed_same_bits(demo: Demo) -> None:
    again = run("sundials", quick=True, progress=False)
    assert again.ude.loss == demo.ude.loss
    assert torch.equal(again.ude.solution.u, demo.ude.solution.u)


def test_command_line(tmp_path: Path) -> None:
    """A process of its own: a bar on stderr, findings on stdout, a figure in a new folder."""
    out = tmp_path / "figures" / "new"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pysciml",
            "demo",
            "--quick",
            "--engine",
            "sundials",
            "--out",
            str(out),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "held out 1916-1920" in done.stdout and "Lotka-Volterra" in done.stdout
    assert "step/s" in done.stderr and "Traceback" not in done.stderr
    figure = out / "hare_lynx.png"
    assert str(figure) in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 50_000


def test_without_matplotlib_the_fit_is_still_told(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("pysciml.__main__.run", lambda *args, **options: demo)
    assert main(["demo", "--engine", "sundials", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "held-out years" in told and "pip install 'pysciml[plot]'" in told
    assert not list(tmp_path.iterdir())


def test_wrong_command_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in ([], ["dmeo"], ["demo", "--engine", "jula"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["demo", "--engine", "sundials", "--out", str(blocked)]) == 1
    assert str(blocked) in capsys.readouterr().err


def test_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pysciml.__main__.run", interrupt)
    assert main(["demo", "--engine", "sundials", "--out", str(tmp_path)]) == 130
