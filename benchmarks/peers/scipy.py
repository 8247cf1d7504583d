"""SciPy's ``solve_ivp`` with a right-hand side in torch. It has no gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.peers.base import Method
from benchmarks.problem import Problem

__all__ = ["offer"]


def offer(problem: Problem) -> list[Method]:
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        return []

    shape = problem.u0.shape
    y0 = problem.u0.reshape(-1).numpy()
    saveat = problem.saveat.numpy()

    def f(t: float, y: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return problem.torch_rhs(torch.from_numpy(y).view(shape), problem.p, t).numpy().ravel()

    def method(name: str) -> Method:
        def forward(reltol: float) -> Callable[[], np.ndarray]:
            atol = problem.abstol(reltol)

            def run() -> np.ndarray:
                sol = solve_ivp(
                    f, problem.tspan, y0, method=name, t_eval=saveat, rtol=reltol, atol=atol
                )
                if not sol.success:
                    raise RuntimeError(sol.message)
                return sol.y.T.reshape(-1, *shape)

            return run

        return Method("SciPy", f"{name}, torch callback", forward)

    return [method(name) for name in (("BDF", "LSODA") if problem.stiff else ("RK45", "LSODA"))]
