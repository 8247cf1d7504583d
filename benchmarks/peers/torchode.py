"""torchode: Dopri5, one step size for each system of a batch, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.base import Method, flat, trainable
from benchmarks.problem import Problem

__all__ = ["offer"]


def offer(problem: Problem) -> list[Method]:
    try:
        import torchode
    except ImportError:
        return []
    if problem.stiff:  # explicit methods only
        return []

    # torchode's states are (batch, features)
    u0 = problem.u0 if problem.batch else problem.u0[None]
    saveat = problem.saveat.expand(len(u0), -1)

    def solve(p: dict[str, Tensor], reltol: float) -> Tensor:
        term = torchode.ODETerm(lambda t, u: problem.torch_rhs(u, p, t))
        controller = torchode.IntegralController(
            atol=problem.abstol(reltol), rtol=reltol, term=term
        )
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
        solution = solver.solve(torchode.InitialValueProblem(y0=u0, t_eval=saveat))
        if not bool((solution.status == 0).all()):
            raise RuntimeError(f"torchode status {solution.status.unique().tolist()}")
        u = solution.ys.movedim(1, 0)
        return u if problem.batch else u[:, 0]

    def forward(reltol: float) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            with torch.no_grad():
                return solve(problem.p, reltol).numpy()

        return run

    def gradient(reltol: float) -> Callable[[], np.ndarray]:
        p = trainable(problem)
        return lambda: flat(problem, solve(p, reltol), p)

    return [Method("torchode", "Dopri5", forward, gradient)]
