"""Sparse Jacobians on the embedded engine: a reaction-diffusion equation in two dimensions."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import pysciml as ps
from pysciml.engines.sundials import jacobian
from pysciml.engines.sundials.engine import SundialsEngine
from support import F64, assert_close, central_difference, f64


def brusselator(u, p, t):
    """Hairer and Wanner, "Solving Ordinary Differential Equations II", section IV.10; no flux."""
    x, y = u
    a, b, log_diffusion = p
    k = log_diffusion.exp() * u.shape[-1] ** 2
    reaction = x * x * y
    return torch.stack(
        [
            b + reaction - (a + 1.0) * x + k * laplacian(x),
            a * x - reaction + k * laplacian(y),
        ]
    )


def laplacian(x):
    wide = torch.nn.functional.pad(x[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    inner = slice(1, -1)
    near = wide[2:, inner] + wide[:-2, inner] + wide[inner, 2:] + wide[inner, :-2]
    return near - 4.0 * x


def start(n):
    x = torch.linspace(0.0, 1.0, n, dtype=F64)
    x, y = torch.meshgrid(x, x, indexing="ij")
    return torch.stack([22.0 * y * (1.0 - y) ** 1.5, 27.0 * x * (1.0 - x) ** 1.5])


def problem(n, diffusion, grad=False):
    p = f64(3.4, 1.0, math.log(diffusion), grad=grad)
    return ps.ODEProblem(brusselator, start(n).requires_grad_(grad), (0.0, 1.0), p)


def reference(prob, times, rtol=1e-10):
    """SciPy's Radau with torch's own Jacobian."""
    shape = prob.u0.shape
    p = prob.p.detach()

    def f(t, y):
        return brusselator(torch.as_tensor(y).reshape(shape), p, t).reshape(-1).numpy()

    def jac(t, y):
        of = lambda u: brusselator(u.reshape(shape), p, t).reshape(-1)
        return torch.func.jacrev(of)(torch.as_tensor(y)).numpy()

    u0 = prob.u0.detach().reshape(-1).numpy()
    out = solve_ivp(f, prob.tspan, u0, "Radau", times, rtol=rtol, atol=rtol, jac=jac)
    return torch.as_tensor(out.y.T).reshape(len(times), *shape)


def solved(prob, alg, **options):
    """The solution, and the problem as the engine saw it."""
    seen = []
    real = SundialsEngine.solve

    def solve(self, problem, *args):
        seen.append(problem)
        return real(self, problem, *args)

    with mock.patch.object(SundialsEngine, "solve", solve):
        sol = ps.solve(prob, alg, engine="sundials", **options)
    return sol, seen[0]


def plan_of(flat):
    return jacobian.plan(flat.functions)


TIGHT = {"abstol": 1e-9, "reltol": 1e-9}


@pytest.mark.parametrize("alg", [ps.CVODE_BDF(), ps.CVODE_Adams(), None], ids=str)
def test_values_are_those_of_another_solver(alg):
    prob = problem(8, 0.02)
    times = [0.3, 0.7, 1.0]
    sol, flat = solved(prob, alg, saveat=times, **TIGHT)
    want = reference(prob, times)
    assert_close(sol.u, want, 1e-7)
    assert_close(sol(f64(0.3, 0.7)), want[:2], 1e-7)
    made = plan_of(flat)
    assert made.kind == "sparse"
    assert made.structure.nnz < 0.1 * made.n**2


def test_the_pattern_and_its_entries():
    prob = problem(6, 0.02)
    _, flat = solved(prob, ps.CVODE_BDF())
    made, functions = plan_of(flat), flat.functions
    u = start(6).reshape(-1).numpy()
    entries = np.empty(len(made.rows))
    jacobian.sparse_filler(functions, flat.p, flat.c)(u, 0.0, entries)
    dense = np.zeros((72, 72))
    dense[made.rows, made.cols] = entries
    of = lambda u: brusselator(u.reshape(2, 6, 6), prob.p, 0.0).reshape(-1)
    np.testing.assert_allclose(dense, torch.func.jacrev(of)(torch.as_tensor(u)), atol=1e-12)
    both = jacobian.batched(functions, flat.p, flat.c)(np.stack([u, 2.0 * u]), np.zeros(2))
    np.testing.assert_allclose(both[0], entries, atol=1e-12)
    assert both.shape == (2, len(entries))


@pytest.mark.parametrize("diffusion", [0.02, 5.0], ids=["hardly stiff", "stiff"])
def test_gradients_are_those_of_differences(diffusion):
    prob = problem(7, diffusion, grad=True)
    weights = torch.linspace(0.5, 1.5, 98, dtype=F64).reshape(2, 7, 7)

    def loss(p, u0=prob.u0):
        sol = ps.solve(
            ps.remake(prob, p=p, u0=u0), ps.CVODE_BDF(), engine="sundials",
            saveat=[0.2, 1.0], abstol=1e-11, reltol=1e-11,
        )  # fmt: skip
        return (weights * sol.u).square().sum()

    g_p, g_u = torch.autograd.grad(loss(prob.p), (prob.p, prob.u0))
    assert_close(g_p, central_difference(loss, prob.p, 5e-3), 1e-6)
    direction = torch.cos(torch.arange(98, dtype=F64)).reshape(2, 7, 7)
    along = central_difference(
        lambda s: loss(prob.p, prob.u0.detach() + s * direction), f64(0.0), 2e-2
    )
    assert_close((g_u * direction).sum(), along, 1e-6)


@pytest.mark.parametrize("diffusion", [0.002, 10.0], ids=["iterations", "factors"])
def test_many_states(diffusion):
    """Beyond 400 states factors are for stiff problems; both ways give one solution."""
    prob = problem(15, diffusion, grad=True)
    options = {"saveat": [1.0], "abstol": 1e-8, "reltol": 1e-8}
    sol, flat = solved(prob, ps.CVODE_BDF(), **options)
    options["engine"] = "sundials"
    assert plan_of(flat).kind == "sparse"
    assert (sol.stats.njacs == 0) == (diffusion < 1.0)
    iterated = ps.solve(prob, ps.CVODE_BDF(linear_solver="GMRES"), **options)
    assert_close(sol.u, iterated.u, 1e-6)
    got = torch.autograd.grad(sol.u.square().sum(), (prob.p, prob.u0))
    by_quadrature = ps.solve(
        prob, ps.CVODE_BDF(), sensealg=ps.QuadratureAdjoint(), **options
    ) if diffusion < 1.0 else iterated  # fmt: skip
    want = torch.autograd.grad(by_quadrature.u.square().sum(), (prob.p, prob.u0))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 2e-5)


def test_tolerances_by_entry_events_and_saved_entries():
    prob = problem(6, 0.02)
    level = 0.5
    callback = ps.ContinuousCallback(
        lambda u, p, t: u[0, 0, 0] - level, lambda u, p, t: u + 0.1 * torch.ones_like(u)
    )
    abstol = torch.full((2, 6, 6), 1e-9, dtype=F64)
    abstol[1] = 1e-10
    tight = {"engine": "sundials", "abstol": abstol, "reltol": 1e-9}
    first = ps.solve(prob, ps.CVODE_BDF(), callback=callback, saveat=[1.0], **tight)
    dense = ps.solve(
        prob, ps.CVODE_BDF(linear_solver="Dense"), callback=callback, saveat=[1.0], **tight
    )
    assert len(first.events) == len(dense.events) >= 1
    for a, b in zip(first.events, dense.events, strict=True):
        assert abs(a.t - b.t) < 1e-7
    assert_close(first.u, dense.u, 1e-6)
    some = ps.solve(prob, ps.CVODE_BDF(), save_idxs=[0, 40, 71], saveat=[1.0], **tight)
    assert_close(some.u, reference(prob, [1.0]).reshape(1, -1)[:, [0, 40, 71]], 1e-7)
