"""Sparse Jacobians on the julia engine: the numbers of dense ones, and where they are used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import pysciml as ps
from pysciml.engines import julia as engine_package
from pysciml.engines.choice import engine
from pysciml.engines.julia.sparse import keeps_jacobian

N = 96
X = torch.linspace(0, 1, N, dtype=torch.float64)
TIGHT = {"engine": "julia", "abstol": 1e-8, "reltol": 1e-8}


def diffusion(u, p, t):
    """Fisher's equation in one dimension, nothing flowing through the ends."""
    left, right = torch.cat([u[:1], u[:-1]]), torch.cat([u[1:], u[-1:]])
    return p[0] * N**2 * (left - 2 * u + right) + p[1] * u * (1 - u)


def problem(p: torch.Tensor, mass_matrix: torch.Tensor | None = None) -> ps.ODEProblem:
    u0 = torch.exp(-100 * (X - 0.3) ** 2)
    return ps.ODEProblem(diffusion, u0, (0.0, 1.0), p, mass_matrix=mass_matrix)


def parameters(grad: bool = False) -> torch.Tensor:
    return torch.tensor([0.01, 5.0], dtype=torch.float64, requires_grad=grad)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    """By scipy's Radau, with the same function."""
    u0 = torch.exp(-100 * (X - 0.3) ** 2).numpy()

    def f(t: float, u: np.ndarray) -> np.ndarray:
        return diffusion(torch.from_numpy(u), parameters(), t).numpy()

    return solve_ivp(f, (0, 1), u0, method="Radau", rtol=1e-9, atol=1e-10).y[:, -1]


def models(functions) -> list:
    return [key for made in functions.values() for key in made._models]


@pytest.mark.julia
@pytest.mark.parametrize(
    "alg",
    [
        ps.Rodas5P(), ps.FBDF(), ps.QNDF(), None,
        ps.Rodas5P(linsolve=ps.UMFPACKFactorization()), ps.Rodas5P(linsolve=ps.KLUFactorization()),
        ps.Rodas5P(linsolve=ps.KrylovJL_GMRES()),
    ],
    ids=str,
)  # fmt: skip
def test_stiff_methods_agree_with_scipy(alg, reference) -> None:
    sol = ps.solve(problem(parameters()), alg, saveat=[1.0], **TIGHT)
    np.testing.assert_allclose(sol.u[-1], reference, rtol=2e-6, atol=2e-7)


@pytest.mark.julia
def test_the_model_is_sparse_for_implicit_methods_alone() -> None:
    prob = problem(parameters())
    sol = ps.solve(prob, ps.Rodas5P(), saveat=[1.0], **TIGHT)
    assert sol.stats.njacs > 0
    used = engine("julia")._functions
    assert isinstance(engine("julia"), engine_package.JuliaEngine)
    keys = [key for made in used.values() for key in models(made)]
    assert (None, True) in keys


def test_which_algorithms_keep_a_sparse_jacobian() -> None:
    assert keeps_jacobian(None) and keeps_jacobian(ps.Rodas5P()) and keeps_jacobian(ps.FBDF())
    assert keeps_jacobian(ps.AutoTsit5(ps.Rosenbrock23()))
    assert not keeps_jacobian(ps.Tsit5())
    assert not keeps_jacobian(ps.Rodas5P(linsolve=ps.KrylovJL_GMRES()))
    assert not keeps_jacobian(ps.RadauIIA5())


@pytest.mark.julia
@pytest.mark.parametrize("sensealg", ["GaussAdjoint", "QuadratureAdjoint", "InterpolatingAdjoint"])
def test_gradient_agrees_with_differences(sensealg) -> None:
    def loss(p, **options):
        sol = ps.solve(problem(p), ps.Rodas5P(), saveat=[0.5, 1.0], **TIGHT, **options)
        return (sol.u**2).sum()

    p = parameters(grad=True)
    (got,) = torch.autograd.grad(loss(p, sensealg=getattr(ps, sensealg)()), p)
    for i, h in enumerate((1e-5, 1e-3)):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = h
        with torch.no_grad():
            numeric = (loss(p + step) - loss(p - step)) / (2 * h)
        np.testing.assert_allclose(got[i], numeric, rtol=1e-5)


@pytest.mark.julia
def test_mass_matrix_beside_a_sparse_jacobian(reference) -> None:
    mass = torch.diag(torch.full((N,), 2.0, dtype=torch.float64))
    sol = ps.solve(problem(2 * parameters(), mass), ps.Rodas5P(), saveat=[1.0], **TIGHT)
    np.testing.assert_allclose(sol.u[-1], reference, rtol=1e-6, atol=1e-7)


@pytest.mark.julia
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_default_algorithm_keeps_its_tolerance_when_it_switches(tolerance, reference) -> None:
    """FBDF, begun anew after Tsit5, used to leave an error of 1e-3 whatever the tolerance."""
    options = {"engine": "julia", "abstol": tolerance, "reltol": tolerance}
    sol = ps.solve(problem(parameters()), saveat=[1.0], **options)
    assert abs(sol.u[-1].numpy() - reference).max() < 20 * tolerance
