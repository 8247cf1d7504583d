"""The table, as markdown and CSV, and the work-precision figure."""

from __future__ import annotations

import csv
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.measure import Estimate, Point, at_equal_error
from benchmarks.problem import Problem

__all__ = ["Result", "markdown", "plot", "write_csv"]


@dataclass(frozen=True)
class Result:
    """All points of a problem, of all methods."""

    problem: Problem
    points: list[Point]

    def of(self, method: str, what: str) -> list[Point]:
        return [p for p in self.points if p.method == method and p.what == what and not p.note]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(point.method for point in self.points))

    def estimate(self, method: str, what: str) -> Estimate:
        problem = self.problem
        error = problem.equal_error if what == "forward" else problem.equal_grad_error
        return at_equal_error(self.of(method, what), error)


def milliseconds(estimate: Estimate) -> str:
    if math.isnan(estimate.ms):
        return "not reached"
    digits = max(0, 2 - math.floor(math.log10(estimate.ms)))
    return f"{'≤ ' if estimate.how == '<' else ''}{estimate.ms:.{min(digits, 3)}f}"


def closest(points: Sequence[Point], error: float) -> str:
    """Tolerance and error of the measured point nearest to an error, on a logarithmic scale."""
    real = [p for p in points if 0 < p.error < math.inf]
    if not real:
        return ""
    point = min(real, key=lambda p: abs(math.log(p.error / error)))
    return f"{point.error:.1e} at {point.reltol:.0e}: {point.ms:.3g} ms"


def machine() -> str:
    packages = (
        "torch",
        "numpy",
        "scipy",
        "scikit-sundae",
        "torchdiffeq",
        "torchode",
        "diffrax",
        "jax",
    )
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return (
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} thread; {', '.join(found)}"
    )


class Page:
    """A result that is printed and written as it grows."""

    def __init__(self, path: Path, title: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {title}\n\n", encoding="utf-8")
        self.path = path

    def say(self, text: str) -> None:
        print(text, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def markdown(results: Sequence[Result]) -> str:
    """One table, a row for each problem and method."""
    lines = [
        "# Benchmarks",
        "",
        machine(),
        "",
        "Times are medians of warm runs in one process, at equal error: interpolated between the "
        "measured points of a sweep over tolerances. `≤` means that the loosest tolerance was "
        "already better; a gradient's error is its own, not that of the solution under it. "
        "`first` is the first call in the process at the loosest tolerance, capture and "
        "compilation included.",
        "",
        "| problem | method | forward, ms | first, ms | forward + gradient, ms | first, ms | "
        "nearest measured solution | nearest measured gradient |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for result in results:
        problem = result.problem
        title = (
            f"**{problem.title}** (solution to {problem.equal_error:.0e}, "
            f"gradient to {problem.equal_grad_error:.0e})"
        )
        for method in result.methods:
            cells = [title, method]
            near = []
            for what, error in (
                ("forward", problem.equal_error),
                ("gradient", problem.equal_grad_error),
            ):
                points = result.of(method, what)
                if points:
                    cells += [
                        milliseconds(result.estimate(method, what)),
                        f"{points[0].first_ms:.3g}",
                    ]
                else:
                    notes = [p.note for p in result.points if p.method == method and p.what == what]
                    cells += [notes[0] if notes else "", ""]
                near.append(closest(points, error))
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells + near) + " |")
            title = ""
    return "\n".join(lines) + "\n"


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Every measured point, one a line."""
    with path.open("w", newline="") as file:
        writer = None
        for result in results:
            for point in result.points:
                row = {"problem": result.problem.name, **asdict(point)}
                if writer is None:
                    writer = csv.DictWriter(file, fieldnames=list(row))
                    writer.writeheader()
                writer.writerow(row)


#: Bytes of the figure: it is kept with the documentation.
LARGEST = 200_000


def plot(results: Sequence[Result], path: Path) -> None:
    """Time against error for every method: solutions above, gradients below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(results), figsize=(3.6 * len(results), 7.2), squeeze=False, layout="constrained"
    )
    labels = list(dict.fromkeys(method for result in results for method in result.methods))
    colours = {label: plt.get_cmap("tab20")(i % 20) for i, label in enumerate(labels)}
    for column, result in zip(axes.T, results, strict=True):
        for ax, what in zip(column, ("forward", "gradient"), strict=True):
            for method in result.methods:
                points = [p for p in result.of(method, what) if 0 < p.error < math.inf]
                if points:
                    ax.loglog(
                        [p.error for p in points],
                        [p.ms for p in points],
                        "s-" if method.startswith("pysciml") else "o--",
                        color=colours[method],
                        markersize=4,
                        label=method,
                    )
            error = "solution" if what == "forward" else "gradient"
            ax.set_xlabel(f"relative error of the {error}")
            ax.set_ylabel("forward, ms" if what == "forward" else "forward + gradient, ms")
            ax.grid(True, which="major", alpha=0.3)
            ax.invert_xaxis()
        column[0].set_title(result.problem.title, fontsize=9)
    handles = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    for dpi in (130, 110, 90, 75, 60):
        figure.savefig(path, dpi=dpi)
        if path.stat().st_size < LARGEST:
            break
    plt.close(figure)
