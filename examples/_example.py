"""What the example scripts share: their arguments, and where figures go."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

FIGURES = Path(__file__).resolve().parent / "figures"


def arguments(doc: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """``--quick``, ``--engine`` and ``--figure``."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, for tests")
    parser.add_argument("--engine", default="auto", choices=["auto", "julia", "sundials"])
    parser.add_argument("--figure", type=Path, default=None, help="where to save the figure")
    return parser.parse_args(argv)


def save(figure: Any, args: argparse.Namespace, name: str) -> Path:
    """Save a figure to ``--figure``, or as ``name`` in the folder of figures."""
    path = args.figure if args.figure is not None else FIGURES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)
    print(f"figure: {path}")
    return path
