"""pysciml on each engine that is set up here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.base import Method, flat, trainable
from benchmarks.problem import Problem

__all__ = ["offer"]


def julia_is_set_up() -> bool:
    if importlib.util.find_spec("pysciml.engines.julia") is None:
        return False
    from pysciml.engines.julia import is_set_up

    return is_set_up()


def offer(problem: Problem) -> list[Method]:
    import pysciml as ps

    methods = [method(problem, "sundials", name) for name in ("CVODE_BDF", "CVODE_Adams")]
    if problem.stiff:
        methods = methods[:1]
    if julia_is_set_up():
        names = ("Rodas5P", "FBDF") if problem.stiff else ("Tsit5", "Vern7")
        methods += [method(problem, "julia", name) for name in names if hasattr(ps, name)]
    return methods


def method(problem: Problem, engine: str, name: str) -> Method:
    import pysciml as ps

    alg = getattr(ps, name)()

    def f(u: Tensor, p: dict[str, Tensor], t: Tensor) -> Tensor:
        return problem.torch_rhs(u, p, t)

    def solve(prob: Any, reltol: float) -> Tensor:
        return ps.solve(
            prob,
            alg,
            saveat=problem.saveat,
            reltol=reltol,
            abstol=problem.abstol(reltol),
            engine=engine,
        ).u

    def forward(reltol: float) -> Callable[[], np.ndarray]:
        prob = ps.ODEProblem(f, problem.u0, problem.tspan, problem.p)

        def run() -> np.ndarray:
            with torch.no_grad():
                return solve(prob, reltol).numpy()

        return run

    def gradient(reltol: float) -> Callable[[], np.ndarray]:
        p = trainable(problem)
        prob = ps.ODEProblem(f, problem.u0, problem.tspan, p)
        return lambda: flat(problem, solve(prob, reltol), p)

    return Method(f"pysciml[{engine}]", name, forward, gradient)
