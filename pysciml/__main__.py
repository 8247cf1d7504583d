"""The command line: ``python -m pysciml demo | setup | doctor``."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pysciml
from pysciml.demo.figure import save
from pysciml.demo.hare_lynx import run
from pysciml.demo.report import report
from pysciml.engines.choice import EngineChoiceWarning, engine, engine_names
from pysciml.errors import EngineError, PyscimlError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 failed, 2 a wrong command line, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except PyscimlError as error:
        print(f"pysciml: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"pysciml: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npysciml: interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pysciml",
        description="Differential equations written in PyTorch, solved with "
        "DifferentialEquations.jl or SUNDIALS, with gradients.",
        epilog="python -m pysciml COMMAND --help says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"pysciml {pysciml.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="fit a universal differential equation to the hare-lynx record",
        description="Fits a universal differential equation (Lotka-Volterra with a neural "
        "interaction term) to the Hudson Bay record of hare and lynx, 1900-1920, beside a plain "
        "Lotka-Volterra model fitted the same way. Prints training and held-out errors and the "
        "learned interaction, and saves hare_lynx.png. Takes under a minute on two cores.",
    )
    demo.add_argument(
        "--engine", choices=("auto", *engine_names()), default="auto",
        help="solver engine (default: auto, which is julia where it has been set up)",
    )  # fmt: skip
    demo.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR",
        help="folder for the figure, made where missing (default: the current one)",
    )  # fmt: skip
    demo.add_argument("--quick", action="store_true", help="fewer steps and one start: seconds")
    demo.set_defaults(command=_demo)

    setup = commands.add_parser(
        "setup",
        help="install Julia and the packages of the julia engine",
        description="Installs Julia, where none is found, and the Julia packages that the julia "
        "engine needs, and compiles them. Needed once; takes minutes and a network connection.",
    )
    setup.add_argument(
        "--sysimage", action="store_true",
        help="also make a system image, from which Julia starts faster (takes long, up "
        "to an hour on two cores, a C compiler, and some 10 GB of memory)",
    )  # fmt: skip
    setup.add_argument(
        "--gpu", action="store_true",
        help="also install CUDA.jl, for states on an NVIDIA card",
    )  # fmt: skip
    setup.set_defaults(command=_setup)

    doctor = commands.add_parser(
        "doctor",
        help="say what is found on this machine, and how to mend what is wrong",
        description="Looks at both engines and what they need, and says how to mend what is wrong. "
        "Installs nothing. Exits with 1 where something is wrong.",
    )
    doctor.set_defaults(command=_doctor)
    return parser


def _demo(options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EngineChoiceWarning)
        name = engine(options.engine).name
    for warning in caught:
        print(f"{warning.message}".removesuffix(" Name the engine to silence this."), flush=True)
    demo = run(name, quick=options.quick)
    print(f"\n{report(demo)}\n")
    print(f"{demo.seconds:.0f} s on the {demo.engine} engine, {demo.algorithm}.")
    try:
        print(f"Figure: {save(demo, options.out)}")
    except PyscimlError as error:  # no matplotlib: the fit is worth having without a figure
        print(f"No figure was drawn. {error}")
    return 0


def _setup(options: argparse.Namespace) -> int:
    _doctor_module().setup(image=options.sysimage, gpu=options.gpu)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    found = _doctor_module().diagnose()
    print(found)
    return 0 if getattr(found, "ok", True) else 1


def _doctor_module() -> Any:
    # Imported here: what it imports is needed by these two commands only.
    try:
        return importlib.import_module("pysciml.engines.julia.doctor")
    except ImportError as error:
        raise EngineError(
            f"this installation cannot look after the julia engine ({error}). "
            "The sundials engine needs no setup: solve with engine='sundials'."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
