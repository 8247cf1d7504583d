"""``python -m benchmarks``: every problem by every peer that is installed, one table."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from benchmarks import peers, report
from benchmarks.measure import Budget, sweep
from benchmarks.problems import NAMES, make
from benchmarks.reference import reference

RELTOLS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only methods that contain NAME")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="how long each point is run, 5 times at least"
    )
    parser.add_argument("--quick", action="store_true", help="two problems, few and short runs")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder for the table, the CSV file, the figure and the references",
    )
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torchode|torchtyping|torch.jit")
    warnings.filterwarnings("ignore", message=".*torch.jit.*")
    budget = Budget(seconds=arguments.seconds)
    reltols, names = RELTOLS, arguments.problems
    if arguments.quick:
        budget, reltols = Budget(runs=1, seconds=0.0), (1e-3, 1e-5)
        names = [name for name in names if name in ("lotka_volterra_ude", "spiral_node")]

    results = []
    for name in names:
        problem = make(name)
        truth = reference(problem, arguments.out)
        points = []
        for offer in peers.ALL:
            for method in offer(problem):
                if arguments.peers and not any(word in method.label for word in arguments.peers):
                    continue
                print(f"{problem.title}: {method.label}", flush=True)
                points += sweep(method, truth, reltols, budget)
        results.append(report.Result(problem, points))
        # after every problem, so that an interrupted run leaves what it measured
        arguments.out.mkdir(parents=True, exist_ok=True)
        table = report.markdown(results)
        (arguments.out / "table.md").write_text(table, encoding="utf-8")
        report.write_csv(results, arguments.out / "points.csv")
    report.plot(results, arguments.out / "work_precision.png")
    print(table)
    print(f"Written to {arguments.out}: table.md, points.csv, work_precision.png")


if __name__ == "__main__":
    main()
