"""torchdiffeq: dopri5 by backpropagation (``odeint``) and by its adjoint (``odeint_adjoint``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.peers.base import Method, flat, trainable
from benchmarks.problem import Problem

__all__ = ["offer"]


def offer(problem: Problem) -> list[Method]:
    try:
        from torchdiffeq import odeint, odeint_adjoint
    except ImportError:
        return []
    if problem.stiff:  # no implicit method with error control
        return []

    def options(reltol: float) -> dict[str, object]:
        return {"rtol": reltol, "atol": problem.abstol(reltol), "method": "dopri5"}

    def forward(reltol: float) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            with torch.no_grad():
                return odeint(
                    lambda t, u: problem.torch_rhs(u, problem.p, t),
                    problem.u0,
                    problem.saveat,
                    **options(reltol),
                ).numpy()

        return run

    def backpropagation(reltol: float) -> Callable[[], np.ndarray]:
        p = trainable(problem)

        def run() -> np.ndarray:
            u = odeint(
                lambda t, u: problem.torch_rhs(u, p, t),
                problem.u0,
                problem.saveat,
                **options(reltol),
            )
            return flat(problem, u, p)

        return run

    def adjoint(reltol: float) -> Callable[[], np.ndarray]:
        p = trainable(problem)

        def run() -> np.ndarray:
            u = odeint_adjoint(
                lambda t, u: problem.torch_rhs(u, p, t),
                problem.u0,
                problem.saveat,
                adjoint_params=tuple(p.values()),
                **options(reltol),
            )
            return flat(problem, u, p)

        return run

    return [
        Method("torchdiffeq", "dopri5", forward, backpropagation),
        Method("torchdiffeq", "dopri5 adjoint", None, adjoint),
    ]
