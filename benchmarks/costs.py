"""``python -m benchmarks.costs``: what a solve costs beside solving.

Four tables, for each engine that is set up: the fixed cost of a solve and of a backward pass, the
first solve in a new process, the first solve of a new model in a running one, and the memory that a
new architecture keeps.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pysciml as ps
from benchmarks import report
from benchmarks.peers.pysciml import julia_is_set_up
from benchmarks.problems import NAMES, make

ROOT = Path(__file__).resolve().parent.parent
F64 = torch.float64

ALGORITHMS = {
    ("sundials", False): "CVODE_Adams", ("sundials", True): "CVODE_BDF",
    ("julia", False): "Tsit5", ("julia", True): "Rodas5P",
}  # fmt: skip


def median_ms(run: Callable[[], Any], seconds: float) -> float:
    """Median of warm runs, at least five, in milliseconds."""
    run()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


# -- fixed cost ---------------------------------------------------------------------


def decay(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return -p * u


def fixed_cost(engine: str, seconds: float) -> list[str]:
    """A solve that is over after a handful of steps, and its backward pass."""
    alg = getattr(ps, ALGORITHMS[engine, False])()
    u0, p = torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)
    prob = ps.ODEProblem(decay, u0, (0.0, 1e-3), p)
    options = {"engine": engine, "saveat": [1e-3], "abstol": 1e-3, "reltol": 1e-3}
    steps = ps.solve(prob, alg, **options).stats.naccept

    def solve() -> None:
        ps.solve(prob, alg, **options)

    trained = ps.remake(prob, p=p.clone().requires_grad_())
    sol = ps.solve(trained, alg, **options)

    def backward() -> None:
        torch.autograd.grad(sol.u.sum(), trained.p, retain_graph=True)

    def evaluate() -> None:
        sol(5e-4)

    cells = [f"{median_ms(run, seconds):.3f}" for run in (solve, backward, evaluate)]
    return [f"{engine}, {ALGORITHMS[engine, False]}", str(steps), *cells]


# -- a new process ---------------------------------------------------------------------

#: Run in a process of its own; prints the times, in seconds, as JSON.
_NEW_PROCESS = """
import json, sys, time
start = time.perf_counter()
import torch
torch_done = time.perf_counter()
import pysciml as ps
times = {"import torch": torch_done - start, "import pysciml": time.perf_counter() - torch_done}
u0 = torch.tensor([1.0, 1.0], dtype=torch.float64)
p = torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=torch.float64, requires_grad=True)

def f(u, p, t):
    x, y = u
    return torch.stack([p[0] * x - p[1] * x * y, p[3] * x * y - p[2] * y])

def solve():
    prob = ps.ODEProblem(f, u0, (0.0, 10.0), p)
    return ps.solve(prob, getattr(ps, sys.argv[2])(), engine=sys.argv[1], saveat=0.1)

for word in ("first", "second"):
    start = time.perf_counter()
    sol = solve()
    times[f"{word} solve"] = time.perf_counter() - start
    start = time.perf_counter()
    sol.u.sum().backward()
    times[f"{word} gradient"] = time.perf_counter() - start
print(json.dumps(times))
"""

_STAGES = ("import torch", "import pysciml", "first solve", "first gradient",
           "second solve", "second gradient")  # fmt: skip


def new_process(engine: str, runs: int) -> list[str]:
    """Medians over new processes, in seconds: imports, and the first and second of everything."""
    name = ALGORITHMS[engine, False]
    found = []
    for _ in range(runs):
        done = subprocess.run(
            [sys.executable, "-c", _NEW_PROCESS, engine, name],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"a new process with {engine} failed:\n{done.stderr}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    cells = [f"{statistics.median(times[stage] for times in found):.3f}" for stage in _STAGES]
    return [f"{engine}, {name}", *cells]


# -- a new model ---------------------------------------------------------------------


def new_model(engine: str, name: str) -> list[str]:
    """The first solve and gradient of a model in a process that has solved others before."""
    problem = make(name)
    alg = getattr(ps, ALGORITHMS[engine, problem.stiff])()
    p = {key: value.clone().requires_grad_() for key, value in problem.p.items()}
    prob = ps.ODEProblem(lambda u, p, t: problem.torch_rhs(u, p, t), problem.u0, problem.tspan, p)
    reltol = 1e-4

    def once() -> tuple[float, float]:
        start = time.perf_counter()
        sol = ps.solve(
            prob, alg, engine=engine, saveat=problem.saveat, reltol=reltol,
            abstol=problem.abstol(reltol),
        )  # fmt: skip
        solved = time.perf_counter()
        torch.autograd.grad(problem.loss(sol.u), list(p.values()))
        return solved - start, time.perf_counter() - solved

    first, second = once(), once()
    cells = [f"{x:.3f}" for x in (first[0], first[1], second[0], second[1])]
    added = sum(first) - sum(second)
    return [engine, problem.title, *cells, f"{added:.3f}"]


# -- a new architecture --------------------------------------------------------------


def resident_mb() -> float:
    """The process's memory, where the system tells it (Linux), in MB; else nan."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return float("nan")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def new_architectures(engine: str, name: str, count: int) -> list[str]:
    """What ``count`` networks of different widths, each solved and differentiated, have left."""
    alg = getattr(ps, name)()

    def once(width: int) -> None:
        net = torch.nn.Sequential(
            torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, 2)
        ).double()
        prob = ps.ODEProblem(lambda u, p, t: p(u), torch.ones(2, dtype=F64), (0.0, 1.0), net)
        ps.solve(prob, alg, engine=engine, saveat=[0.5, 1.0]).u.sum().backward()

    before = resident_mb()
    once(3)
    first = resident_mb() - before
    for width in range(4, 10):
        once(width)
    gc.collect()
    before = resident_mb()
    for width in range(10, 10 + count):
        once(width)
    gc.collect()
    each = (resident_mb() - before) / count
    return [engine, name, f"{first:.0f}", str(count), f"{each:.2f}"]


# -- tables ---------------------------------------------------------------------


def table(title: str, note: str, head: list[str], rows: list[list[str]], words: int = 1) -> str:
    """A Markdown table whose first ``words`` columns are text and the others numbers."""
    lines = [f"## {title}", "", note, "", "| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * words + "---:|" * (len(head) - words))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def tables(
    engines: list[str], names: list[str], runs: int, seconds: float, architectures: int
) -> str:
    # in a process of its own before Julia starts in this one
    processes = [new_process(engine, runs) for engine in engines]
    parts = [
        table(
            "A new process",
            f"Seconds, medians of {runs} processes: Lotka-Volterra, 101 outputs, everything from "
            "the interpreter's first line on.",
            ["engine", *_STAGES],
            processes,
        ),
        table(
            "Fixed cost",
            "Milliseconds, medians: two states, one output, a span so short that little is solved. "
            "`sol(t)` is one evaluation between the steps.",
            ["engine", "steps", "a solve", "its backward", "sol(t)"],
            [fixed_cost(engine, seconds) for engine in engines],
        ),
        table(
            "A new model",
            "Seconds, in a process that has solved before: the first solve and gradient of a model "
            "capture, emit and compile it. `added` is what the first costs more than the second.",
            ["engine", "problem", "first solve", "first gradient", "second solve",
             "second gradient", "added"],
            [new_model(engine, name) for engine in engines for name in names],
            words=2,
        ),
        table(
            "A new architecture",
            "Growth of the process's memory, MB: by the first network solved and differentiated by "
            "an algorithm, and by each of further ones of other widths, after six.",
            ["engine", "algorithm", "the first", "networks", "each"],
            [
                new_architectures(engine, ALGORITHMS[engine, stiff], architectures)
                for engine in engines for stiff in (False, True)
            ],
            words=2,
        ),
    ]  # fmt: skip
    return "\n".join([report.machine() + "\n", *parts])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=__doc__)
    parser.add_argument("--engines", nargs="+", choices=("sundials", "julia"))
    parser.add_argument("--quick", action="store_true", help="one process, one model, short runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engines = arguments.engines or ["sundials", *(["julia"] if julia_is_set_up() else [])]
    quick = arguments.quick
    text = tables(
        engines,
        list(NAMES[:1] if quick else NAMES),
        1 if quick else 5,
        0.05 if quick else 2.0,
        3 if quick else 60,
    )
    report.Page(arguments.out / "costs.md", "What a solve costs beside solving").say(text)


if __name__ == "__main__":
    main()
