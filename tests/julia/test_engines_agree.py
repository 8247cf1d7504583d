"""Both engines' solutions and gradients of the reference problems, held against each other.

They share the captured kernels and nothing else: steppers, interpolants, adjoints and the code that
runs the kernels are written twice.
"""

from __future__ import annotations

import pytest
import torch

import pysciml as ps
from reference.problems import DAES, ODES, Problem, tensor

pytestmark = pytest.mark.julia

#: Shorter than the problem: where the whole of it costs minutes, or its sensitivity grows until
#: the tolerance says nothing of it.
ENDS = {
    "BEAM": 0.005, "E5": 1e3, "MEDAKZO": 0.05, "PLEIADES": 1.0, "RINGMOD": 1e-6, "TRANSAMP": 0.01,
    "VDPOL": 0.5,
}  # fmt: skip

#: Digits that gradients have less than the tolerance.
GRADIENT_SLACK = 3.0


def solved(problem: Problem, engine: str, u0: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
    """The state at three times, everything running ``speed`` times as fast, (3, n)."""
    _, own = problem.legs[0]
    end = ENDS.get(problem.name, problem.legs[0][0])
    p = speed if own is None else torch.cat([speed, own.reshape(-1)])

    def f(u, p, t):
        return p[0] * problem.f(u, None if own is None else p[1:], t)

    prob = ps.ODEProblem(f, u0, (0.0, end), p, mass_matrix=problem.mass_matrix)
    if problem.mass_matrix is not None:
        alg = ps.IDA() if engine == "sundials" else ps.Rodas5P()
    elif problem.name == "PLEIADES":
        alg = ps.CVODE_Adams() if engine == "sundials" else ps.Vern7()
    else:
        alg = ps.CVODE_BDF() if engine == "sundials" else ps.Rodas5P()
    sol = ps.solve(
        prob, alg, saveat=[0.1 * end, 0.5 * end, end], engine=engine, maxiters=1_000_000,
        abstol=problem.abstol, reltol=problem.reltol,
    )  # fmt: skip
    assert sol.engine == engine
    return sol.u


def digits(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> float:
    return float(-torch.log10(((a - b).abs() / scale).max().clamp_min(1e-17)))


@pytest.mark.parametrize("problem", [*ODES, *DAES], ids=repr)
def test_engines_agree(problem: Problem) -> None:
    found = {}
    for engine in ("sundials", "julia"):
        u0, speed = problem.u0.clone().requires_grad_(), tensor(1.0).requires_grad_()
        u = solved(problem, engine, u0, speed)
        # what is small in the problem counts as much as what is large
        size = problem.abstol / problem.reltol + u.detach().abs()
        if engine == "julia":
            size = found["sundials"][1]
        weights = torch.linspace(0.5, 1.0, u.numel(), dtype=u.dtype).reshape(u.shape) / size
        found[engine] = (u.detach(), size, *torch.autograd.grad((weights * u).sum(), (u0, speed)))
    (u, size, *a), (v, _, *b) = found["sundials"], found["julia"]
    promised = -torch.log10(tensor(problem.reltol)).item()
    got = digits(u, v, size)
    assert got >= promised - problem.slack, f"solutions agree to {got:.1f} digits"
    for name, x, y in zip(("u0", "speed"), a, b, strict=True):
        got = digits(x, y, x.abs().max().clamp_min(1e-300))
        assert got >= promised - problem.slack - GRADIENT_SLACK, f"{name}: {got:.1f} digits"
