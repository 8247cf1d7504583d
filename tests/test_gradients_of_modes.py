"""Gradients by inputs that excite what the solution does not hold.

A smooth wave on a grid moves slowly, and its solver takes long steps; the derivative of one point
by another runs over every frequency of the grid. Linear problems, so that the exact gradient is a
matrix exponential's (torch.matrix_exp). Errors are relative to the gradient's norm, and may be
some hundred times the tolerance: an error a step, times the steps that the fast modes ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pysciml as ps

END = 1.3


def _second_difference(n: int) -> Tensor:
    ones = torch.ones(n - 1, dtype=torch.float64)
    stencil = torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(n, dtype=torch.float64)
    return (n + 1) ** 2 * stencil


def _sine(n: int) -> Tensor:
    return torch.sin(math.pi * torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))


def _shifted(u: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([u[1:], u.new_zeros(1)]), torch.cat([u.new_zeros(1), u[:-1]])


def _laplacian(u: Tensor) -> Tensor:
    right, left = _shifted(u)
    return (right - 2 * u + left) * (len(u) + 1) ** 2


def _wave(n: int) -> tuple[Callable[..., Tensor], Tensor]:
    """Displacements, then velocities: a sparse Jacobian."""

    def f(s: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return torch.cat([s[n:], p * _laplacian(s[:n])])

    return f, torch.cat([_sine(n), torch.zeros(n, dtype=torch.float64)])


def _wave_in_turn(n: int) -> tuple[Callable[..., Tensor], Tensor]:
    """The displacement and velocity of each point beside each other: a band."""

    def f(s: Tensor, p: Tensor, t: Tensor) -> Tensor:
        u, v = s.reshape(n, 2).unbind(1)
        return torch.stack([v, p * _laplacian(u)], 1).reshape(-1)

    return f, torch.stack([_sine(n), torch.zeros(n, dtype=torch.float64)], 1).reshape(-1)


def _wave_dense(n: int) -> tuple[Callable[..., Tensor], Tensor]:
    """By a full matrix."""
    zero, eye = torch.zeros(n, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    matrix = torch.cat([torch.cat([zero, eye], 1), torch.cat([_second_difference(n), zero], 1)])
    mixed = matrix + 1e-9 * torch.sin(torch.arange(4 * n * n, dtype=torch.float64)).view(2 * n, -1)

    def f(s: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return p * (mixed @ s)

    return f, _wave(n)[1]


def _heat(n: int) -> tuple[Callable[..., Tensor], Tensor]:
    def f(s: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return 0.1 * p * _laplacian(s)

    return f, _sine(n)


def _relaxation(n: int) -> tuple[Callable[..., Tensor], Tensor]:
    """A fast variable at rest: explicit steps grow far beyond stability before they notice."""

    def f(s: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return torch.stack([-1000.0 * p * s[0], s[0] - s[1]])

    return f, torch.tensor([0.0, 1.0], dtype=torch.float64)


PROBLEMS = {
    "wave-20": (_wave, 10), "wave-140": (_wave, 70), "in-turn-140": (_wave_in_turn, 70),
    "dense-100": (_wave_dense, 50), "heat-30": (_heat, 30), "heat-100": (_heat, 100),
    "relaxation": (_relaxation, 2),
}  # fmt: skip


def check_gradient(
    name: str,
    alg: ps.Algorithm | None,
    engine: str,
    tol: float,
    most: float,
    sensealg: ps.SensitivityAlgorithm | None = None,
    at: torch.device | str = "cpu",
) -> None:
    make, n = PROBLEMS[name]
    f, start = make(n)
    one = torch.ones((), dtype=torch.float64)
    matrix = torch.stack([f(e, one, one) for e in torch.eye(len(start)).double()], 1)
    which = max(1, len(start) // 3)
    want = torch.matrix_exp(END * matrix)[which]
    u0, p = (x.clone().to(at).requires_grad_() for x in (start, one))
    prob = ps.ODEProblem(f, u0, (0.0, END), p)
    sol = ps.solve(
        prob, alg, engine=engine, saveat=[0.5 * END, END], abstol=tol, reltol=tol, sensealg=sensealg
    )
    by_u0, _ = torch.autograd.grad(sol.u[-1, which], (u0, p))
    error = float((by_u0.cpu() - want).norm() / want.norm())
    assert error < most, f"the gradient is off by {error:.1e}"


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("alg", [ps.CVODE_BDF(), ps.CVODE_Adams()], ids=repr)
def test_sundials(name: str, alg: ps.Algorithm) -> None:
    check_gradient(name, alg, "sundials", 1e-6, 2e-3)


@pytest.mark.parametrize("tol", [1e-4, 1e-8])
@pytest.mark.parametrize("name", ["wave-20", "wave-140", "in-turn-140", "dense-100"])
def test_follows_the_tolerance(name: str, tol: float) -> None:
    check_gradient(name, None, "sundials", tol, 400 * tol + 2e-5)


@pytest.mark.parametrize("name", ["wave-20", "heat-30"])
def test_forward_sensitivities(name: str, engine: str) -> None:
    alg = ps.CVODE_BDF() if engine == "sundials" else ps.Rodas5P()
    check_gradient(name, alg, engine, 1e-6, 2e-3, ps.ForwardSensitivity())


def test_many_forward_sensitivities(engine: str) -> None:
    if engine == "sundials":
        check_gradient("wave-140", ps.CVODE_BDF(), engine, 1e-6, 2e-3, ps.ForwardSensitivity())
        return
    with pytest.raises(ps.EngineError, match="19880 equations .* 3 GiB; leave sensealg out"):
        check_gradient("wave-140", ps.Rodas5P(), engine, 1e-6, 2e-3, ps.ForwardSensitivity())


@pytest.mark.julia
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("alg", [None, ps.Tsit5(), ps.Rodas5P()], ids=repr)
def test_julia(name: str, alg: ps.Algorithm | None) -> None:
    check_gradient(name, alg, "julia", 1e-6, 2e-3)


@pytest.mark.parametrize("form", ["mass matrix", "residual"])
def test_wave_with_a_constraint(form: str, engine: str) -> None:
    """A wave, the velocities found from ``0 = w - v`` at every time."""
    n = 30
    matrix = _wave(n)[0]
    one = torch.ones((), dtype=torch.float64)
    eye = torch.eye(2 * n, dtype=torch.float64)
    want = torch.matrix_exp(END * torch.stack([matrix(e, one, one) for e in eye], 1))[n // 3]
    u0 = _wave(n)[1].requires_grad_()

    def f(s: Tensor, p: Tensor, t: Tensor) -> Tensor:
        u, v, w = s.reshape(3, n)
        return torch.cat([w, _laplacian(u), w - v])

    def residual(ds: Tensor, s: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return torch.cat([ds[: 2 * n], s.new_zeros(n)]) - f(s, p, t)

    start = torch.cat([u0, u0[n:]])
    flags = torch.arange(3 * n) < 2 * n
    prob: ps.ODEProblem | ps.DAEProblem
    if form == "residual":
        rate = torch.cat([f(start.detach(), one, one)[: 2 * n], torch.zeros(n).double()])
        prob = ps.DAEProblem(residual, rate, start, (0.0, END), None, differential_vars=flags)
    else:
        prob = ps.ODEProblem(f, start, (0.0, END), mass_matrix=torch.diag(flags.double()))
    alg: ps.Algorithm = ps.IDA()
    if engine == "julia":
        alg = ps.DFBDF() if form == "residual" else ps.Rodas5P()
    sol = ps.solve(prob, alg, engine=engine, saveat=[END], abstol=1e-6, reltol=1e-6)
    (by_u0,) = torch.autograd.grad(sol.u[-1, n // 3], (u0,))
    assert float((by_u0 - want).norm() / want.norm()) < 2e-3
