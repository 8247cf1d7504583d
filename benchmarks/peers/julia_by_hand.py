"""The same problems hand-written in Julia, on the Julia that pysciml uses: what is to be reached.

The model stands in ``by_hand.jl``. Python only calls a Julia function that solves, so the time is
that of DifferentialEquations.jl itself and of one call through juliacall (about 20 microseconds).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.base import Method
from benchmarks.peers.pysciml import julia_is_set_up
from benchmarks.problem import Problem
from benchmarks.problems import BALANCE, REACTIONS

__all__ = ["offer"]

_MODELS = Path(__file__).with_name("by_hand.jl")


def offer(problem: Problem) -> list[Method]:
    if not julia_is_set_up() or f"{problem.name}(p, u0" not in _MODELS.read_text("utf-8"):
        return []
    names = ("Rodas5P", "FBDF") if problem.stiff else ("Tsit5", "Vern7")
    return [Method("Julia by hand", name, _forward(problem, name)) for name in names]


def _module() -> Any:
    from pysciml.engines.julia.startup import julia

    main = julia().main
    if not main.seval("isdefined(Main, :ByHand)"):
        main.include(str(_MODELS))
    return main


def _forward(problem: Problem, name: str) -> Callable[[float], Callable[[], np.ndarray]]:
    def forward(reltol: float) -> Callable[[], np.ndarray]:
        main = _module()
        convert = main.seval("x -> Array{Float64}(x)")
        integers = main.seval("x -> Vector{Int}(x)")
        # a batch is the columns of a matrix in Julia
        u0 = convert(problem.u0.numpy().T)
        store = main.seval("setindex!")
        p = main.seval("Dict{String, Array{Float64}}()")
        for key, value in problem.p.items():
            store(p, convert(value.numpy()), key)
        more: list[Any] = []
        if problem.name == "pollu":
            more = [
                convert(np.array([rate for rate, _ in REACTIONS])),
                integers([species[0] for _, species in REACTIONS]),
                integers([species[1] if len(species) > 1 else 0 for _, species in REACTIONS]),
                main.seval("x -> [Vector{Int}(r) for r in x]")(
                    [[*made, *(-i for i in taken)] for made, taken in BALANCE]
                ),
            ]
        f = getattr(main.ByHand, problem.name)(p, u0, *more)
        out = np.empty((len(problem.saveat), *problem.u0.shape))
        abstol = problem.abstol(reltol)
        solve = main.ByHand.solver(
            f,
            name,
            u0,
            problem.tspan,
            convert(problem.saveat.numpy()),
            convert(abstol) if isinstance(abstol, np.ndarray) else abstol,
            reltol,
            main.seval("(p, n) -> unsafe_wrap(Array, Ptr{Float64}(UInt(p)), n)")(
                out.ctypes.data, out.size
            ),
        )

        def run() -> np.ndarray:
            solve()
            return out.copy()

        return run

    return forward
