"""diffrax, compiled by JAX: Tsit5, or Kvaerno5 where the problem is stiff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.base import Method
from benchmarks.problem import Problem

__all__ = ["offer"]


def offer(problem: Problem) -> list[Method]:
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return []
    jax.config.update("jax_enable_x64", True)

    def array(tensor: Any) -> Any:
        return jnp.asarray(tensor.numpy())

    u0, saveat = array(problem.u0), array(problem.saveat)
    p = {key: array(value) for key, value in problem.p.items()}
    weights = array(problem.loss_weights)
    name = "Kvaerno5" if problem.stiff else "Tsit5"
    term = diffrax.ODETerm(lambda t, u, p: problem.rhs(u, p, t, jnp))

    def solve(p: dict[str, Any], reltol: Any, abstol: Any) -> Any:
        return diffrax.diffeqsolve(
            term,
            getattr(diffrax, name)(),
            t0=problem.tspan[0],
            t1=problem.tspan[1],
            dt0=None,
            y0=u0,
            args=p,
            saveat=diffrax.SaveAt(ts=saveat),
            stepsize_controller=diffrax.PIDController(rtol=reltol, atol=abstol),
            max_steps=100_000,
        ).ys

    # tolerances are arguments of the compiled functions: each is compiled once for all
    solution = jax.jit(solve)
    derivative = jax.jit(jax.grad(lambda p, *tolerances: (weights * solve(p, *tolerances)).sum()))

    def tolerances(reltol: float) -> tuple[Any, Any]:
        return jnp.asarray(reltol), jnp.asarray(problem.abstol(reltol))

    def forward(reltol: float) -> Callable[[], np.ndarray]:
        both = tolerances(reltol)
        return lambda: np.asarray(solution(p, *both))

    def gradient(reltol: float) -> Callable[[], np.ndarray]:
        both = tolerances(reltol)

        def run() -> np.ndarray:
            # a dict comes back from JAX with its keys sorted
            grads = derivative(p, *both)
            return np.concatenate([np.asarray(grads[key]).ravel() for key in p])

        return run

    return [Method("diffrax", f"{name}, jit", forward, gradient)]
