"""``python -m benchmarks.docs``: results as a page of the documentation.

Takes what ``python -m benchmarks``, ``benchmarks.costs``, ``benchmarks.ensemble`` and
``benchmarks.latent_sde`` left in ``results/``, and writes ``docs/benchmarks.md`` and
``docs/work_precision.png``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: The results that the page is made of, and what makes them.
PARTS = {
    "table.md": "python -m benchmarks",
    "work_precision.png": "python -m benchmarks",
    "costs.md": "python -m benchmarks.costs",
}

#: Results that stand there too where they were measured, with their titles.
MORE = {"ensemble.md": "Ensembles", "latent_sde.md": "A latent SDE"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docs", description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    parser.add_argument("--on", required=True, help="when and on which machine they were measured")
    arguments = parser.parse_args()
    for name, command in PARTS.items():
        if not (arguments.results / name).exists():
            parser.error(f"{arguments.results / name} is missing; make it with: {command}")
    page = [
        "# Benchmarks",
        "",
        f"Measured {arguments.on}. How it is done: [benchmarks](../benchmarks/README.md).",
        "",
        "![Time against error, all problems and methods](work_precision.png)",
        "",
        _body(arguments.results / "table.md"),
        *_more(arguments.results),
        "# What a solve costs beside solving",
        "",
        _body(arguments.results / "costs.md"),
    ]
    arguments.docs.mkdir(parents=True, exist_ok=True)
    (arguments.docs / "benchmarks.md").write_text("\n".join(page).rstrip() + "\n", "utf-8")
    shutil.copyfile(arguments.results / "work_precision.png", arguments.docs / "work_precision.png")
    print(f"Written to {arguments.docs}: benchmarks.md, work_precision.png")


def _more(results: Path) -> list[str]:
    found = [(title, results / name) for name, title in MORE.items() if (results / name).exists()]
    return [line for title, path in found for line in (f"# {title}", "", _body(path))]


def _body(path: Path) -> str:
    """A result without its title."""
    text = path.read_text(encoding="utf-8")
    return text.split("\n", 2)[2] if text.startswith("# ") else text


if __name__ == "__main__":
    main()
