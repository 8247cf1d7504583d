"""Gradients: against central differences, torchdiffeq, closed forms and gradcheck."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import pysciml as ps
from support import (
    F64,
    LV_P,
    LV_U0,
    ROBER_P,
    ROBER_U0,
    assert_close,
    central_difference,
    counted_captures,
    dae_solver,
    f64,
    lotka_volterra,
    mass_matrix_solver,
    nonstiff,
    rober,
    stiff,
)

TOL = {"abstol": 1e-9, "reltol": 1e-9}
#: what the differences are taken of: a solution whose own error does not show in them
FINE = {"abstol": 1e-13, "reltol": 1e-13}


def lv_problem(u0=LV_U0, tspan=(0.0, 4.0), p=LV_P):
    u0 = u0 if isinstance(u0, torch.Tensor) else f64(*u0)
    p = p if isinstance(p, torch.Tensor) else f64(*p)
    return ps.ODEProblem(lotka_volterra, u0, tspan, p)


GRID = torch.linspace(0.0, 4.0, 9, dtype=F64)
WEIGHTS = torch.linspace(-1.0, 2.0, 18, dtype=F64).reshape(9, 2)


def loss_of(u):
    """Uneven in time and entry, and not linear, so that no mistake cancels."""
    return (WEIGHTS[: len(u)] * u).sum() + u.square().mean()


# -- against differences ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stiff", "nonstiff"])
def test_u0_and_p_against_differences(engine, kind):
    alg = {"stiff": stiff, "nonstiff": nonstiff}[kind](engine)
    u0, p = f64(*LV_U0, grad=True), f64(*LV_P, grad=True)

    def loss(u0, p, tol):
        sol = ps.solve(lv_problem(u0, p=p), alg, engine=engine, saveat=GRID, **tol)
        return loss_of(sol.u)

    got = torch.autograd.grad(loss(u0, p, TOL), (u0, p))
    assert_close(got[0], central_difference(lambda x: loss(x, p, FINE), u0, 1e-4), 1e-6)
    assert_close(got[1], central_difference(lambda x: loss(u0, x, FINE), p, 1e-4), 1e-6)


def test_tspan_and_saveat_against_differences(engine):
    """f depends on t, the outputs on t0, t1 and the grid; all in one."""

    def f(u, p, t):
        return torch.stack([torch.sin(t) * u[1] + p, -u[0] * torch.cos(0.5 * t)])

    def loss(times, tol):
        prob = ps.ODEProblem(f, f64(1.0, -0.5), (times[0], times[-1]), f64(0.3))
        options = {"engine": engine, **tol}
        sol = ps.solve(prob, nonstiff(engine), saveat=times[1:-1], **options)
        end = ps.solve(prob, nonstiff(engine), **options)
        own = (sol.u * f64([[1.0, 2.0], [0.5, -1.0]])).sum() + (sol.t**2).sum()
        return own + end.u[-1].square().sum() + 3.0 * end.t[-1] * end.u[-1, 0] + end.t[0]

    times = f64(0.2, 0.9, 1.6, 2.5, grad=True)
    (got,) = torch.autograd.grad(loss(times, TOL), times)
    assert_close(got, central_difference(lambda x: loss(x, FINE), times, 1e-4), 1e-6)


def test_saveat_at_both_ends_counts_once(engine):
    """u(t0) is u0 whatever t0 is; a grid that begins and ends with tspan moves along with it."""
    t0, t1 = f64(0.0, grad=True), f64(2.0, grad=True)
    prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (t0, t1))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[t0, t1], **TOL)
    d0, d1 = torch.autograd.grad(sol.u[-1].sum(), (t0, t1), retain_graph=True)
    assert_close(d0, f64(math.exp(-2.0)), 1e-6)
    assert_close(d1, f64(-math.exp(-2.0)), 1e-6)
    d0, d1 = torch.autograd.grad(sol.u[0].sum(), (t0, t1))
    assert_close(d0, f64(0.0), 0.0, 1e-9)
    assert_close(d1, f64(0.0), 0.0, 1e-9)


def test_backward_time_against_differences(engine):
    def loss(x, tol):
        prob = lv_problem(x[:2], (x[6], x[7]), x[2:6])
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[2.0, 1.0], **tol)
        end = ps.solve(prob, nonstiff(engine), engine=engine, **tol)
        return loss_of(sol.u) + end.u[-1, 0]

    x = f64(*LV_U0, *LV_P, 2.5, 0.5, grad=True)
    (got,) = torch.autograd.grad(loss(x, TOL), x)
    assert_close(got, central_difference(lambda x: loss(x, FINE), x, 1e-4), 1e-6)


@pytest.mark.parametrize("saveat", [None, 0.5, [0.25, 2.0, 4.0], GRID], ids=repr)
def test_every_kind_of_saveat_has_gradients(engine, saveat):
    p = f64(*LV_P, grad=True)
    sol = ps.solve(lv_problem(p=p), nonstiff(engine), engine=engine, saveat=saveat, **TOL)
    (got,) = torch.autograd.grad(sol.u[-1].sum(), p)

    def end(p):
        return ps.solve(lv_problem(p=p), nonstiff(engine), engine=engine, **FINE).u[-1].sum()

    assert_close(got, central_difference(end, p, 1e-4), 1e-6)


def test_interpolated_solution_against_differences(engine):
    at = f64([[0.3, 1.1], [2.2, 3.7]])

    def loss(x, tol):
        prob = lv_problem(x[:2], (x[6], 4.0), x[2:6])
        sol = ps.solve(prob, nonstiff(engine), engine=engine, **tol)
        return (sol(at + x[7]) * f64(1.0, -2.0)).square().sum()

    x = f64(*LV_U0, *LV_P, 0.0, 0.1, grad=True)
    (got,) = torch.autograd.grad(loss(x, TOL), x)
    assert_close(got, central_difference(lambda x: loss(x, FINE), x, 1e-4), 3e-6)


def test_derivative_of_the_interpolant_says_that_it_has_no_gradient(engine):
    p = f64(*LV_P, grad=True)
    sol = ps.solve(lv_problem(p=p), nonstiff(engine), engine=engine, **TOL)
    with pytest.raises(ps.InputError, match=r"differentiate f\(sol\(t\), p, t\)"):
        sol(1.0, deriv=1).sum().backward()


def test_save_idxs_against_differences(engine):
    def loss(p, tol):
        prob = lv_problem(p=p)
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=1.0, save_idxs=[1], **tol)
        return sol.u.square().sum() + sol(1.7).sum()

    p = f64(*LV_P, grad=True)
    (got,) = torch.autograd.grad(loss(p, TOL), p)
    assert_close(got, central_difference(lambda x: loss(x, FINE), p, 1e-4), 1e-6)


def test_stiff_problem_against_differences(engine):
    times = f64(1.0, 40.0, 400.0)
    scale = f64(1.0, 1e4, 1.0)

    def loss(log_p, abstol, reltol):
        prob = ps.ODEProblem(rober, f64(*ROBER_U0), (0.0, 400.0), log_p.exp())
        sol = ps.solve(
            prob, stiff(engine), engine=engine, saveat=times, abstol=abstol, reltol=reltol
        )
        return (sol.u * scale).square().sum()

    log_p = f64(*ROBER_P).log().requires_grad_()
    (got,) = torch.autograd.grad(loss(log_p, 1e-12, 1e-9), log_p)
    want = central_difference(lambda x: loss(x, 1e-15, 1e-12), log_p, 1e-3)
    assert_close(got, want, 1e-6)


# -- against torchdiffeq and gradcheck ----------------------------------------------------


def test_against_backprop_through_torchdiffeq(engine):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    u0 = torch.randn(5, 2, dtype=F64, requires_grad=True)
    grid = torch.linspace(0, 1.5, 6, dtype=F64, requires_grad=True)
    wanted = (u0, grid, *net.parameters())

    def loss(u):
        return (u**3).sum() + u[2].sum()

    prob = ps.ODEProblem(lambda u, p, t: net(u) - 0.1 * u * t, u0, (grid[0], grid[-1]))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=grid, **TOL)
    got = torch.autograd.grad(loss(sol.u), wanted)
    u = torchdiffeq.odeint(
        lambda t, u: net(u) - 0.1 * u * t, u0, grid, method="dopri8", rtol=1e-11, atol=1e-12
    )
    assert_close(sol.u, u, 1e-7)
    want = torch.autograd.grad(loss(u), wanted)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-6)


def test_gradcheck_on_the_front_door(engine):
    def run(u0, p, t0, t1, grid):
        prob = ps.ODEProblem(lotka_volterra, u0, (t0, t1), p)
        sol = ps.solve(
            prob, nonstiff(engine), engine=engine, saveat=grid, abstol=1e-12, reltol=1e-12
        )
        return sol.u, sol(grid[0] + 0.1)

    inputs = (
        f64(*LV_U0, grad=True), f64(*LV_P, grad=True), f64(0.1, grad=True), f64(2.0, grad=True),
        f64(0.5, 1.25, grad=True),
    )  # fmt: skip
    assert torch.autograd.gradcheck(run, inputs, eps=1e-5, atol=1e-6, rtol=1e-5)


def test_gradcheck_on_the_solvers_own_end(engine):
    def run(u0, t0, t1):
        sol = ps.solve(
            ps.ODEProblem(lambda u, p, t: torch.cos(t) - u**2, u0, (t0, t1)),
            nonstiff(engine), engine=engine, abstol=1e-12, reltol=1e-12,
        )  # fmt: skip
        return sol.u[-1], sol.t[-1], sol.u[0], sol.t[0]

    inputs = (f64([0.4, 0.9], grad=True), f64(0.1, grad=True), f64(2.0, grad=True))
    assert torch.autograd.gradcheck(run, inputs, eps=1e-5, atol=1e-6, rtol=1e-5)


# -- where tensors come from ------------------------------------------------------------------

_GLOBAL = f64(0.5, grad=True)
_global_number = 1.0


def reads_a_global(u, p, t):
    return -_GLOBAL * u


def reads_a_global_number(u, p, t):
    return -_global_number * u


def test_tensors_from_everywhere_get_their_gradient(engine):
    """p, closure, global, default, module weight, attribute: u' = -(their product) u."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(f64(0.9))

        def forward(self, u):
            return self.weight * u

    class Holder:
        value = f64(1.2, grad=True)

    model, holder, closed = Model(), Holder(), f64(0.8, grad=True)
    default = f64(1.1, grad=True)

    def f(u, p, t, k=default):
        return -p["a"] * closed * _GLOBAL * k * holder.value * model(u)

    p = {"a": f64(0.7, grad=True)}
    leaves = [p["a"], closed, _GLOBAL, default, holder.value, model.weight]
    prob = ps.ODEProblem(f, f64([2.0]), (0.0, 1.5), p)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    product = math.prod(float(x.detach()) for x in leaves)
    value = 2.0 * math.exp(-1.5 * product)
    assert_close(sol.u[-1], f64([value]), 1e-7)
    for leaf, g in zip(leaves, torch.autograd.grad(sol.u[-1].sum(), leaves), strict=True):
        assert_close(g, f64(-1.5 * value * product / float(leaf.detach())), 1e-6)


def test_gradient_flows_on_through_a_closure_that_is_no_leaf(engine):
    leaf = f64(0.3, grad=True)
    rate = leaf.exp()
    prob = ps.ODEProblem(lambda u, p, t: -rate * u, f64([1.0]), (0.0, 1.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    (got,) = torch.autograd.grad(sol.u[-1].sum(), leaf)
    rate = math.exp(0.3)
    assert_close(got, f64(-rate * math.exp(-rate)), 1e-6)


def test_inputs_without_influence_get_zeros(engine):
    p = {"used": f64(0.5, grad=True), "unused": f64(1.0, 2.0, grad=True)}
    prob = ps.ODEProblem(lambda u, p, t: -p["used"] * u, f64([1.0]), (0.0, 1.0), p)
    ps.solve(prob, nonstiff(engine), engine=engine, **TOL).u.sum().backward()
    assert p["unused"].grad.tolist() == [0.0, 0.0] and p["used"].grad != 0.0


@pytest.mark.parametrize("kind", ["stiff", "nonstiff"])
def test_a_loss_that_is_no_number_has_a_gradient_that_is_none(engine, kind):
    alg = {"stiff": stiff, "nonstiff": nonstiff}[kind](engine)
    u0, p = f64(*LV_U0, grad=True), f64(*LV_P, grad=True)
    sol = ps.solve(lv_problem(u0, p=p), alg, engine=engine, saveat=[1.0, 4.0])
    for loss in (sol.u.sum() * math.nan, (0.0 * sol.u[-1]).sqrt().sum(), sol(3.0).sum() * math.nan):
        for grad in torch.autograd.grad(loss, [u0, p], retain_graph=True):
            assert torch.isnan(grad).all()


def test_structured_state_and_parameters(engine):
    u0 = {"q": f64([1.0, 0.5], grad=True), "v": [f64(0.2, grad=True)]}
    p = {"k": (f64(2.0, grad=True), f64([[0.1], [0.2]], grad=True))}

    def f(u, p, t):
        k, c = p["k"]
        return {"q": u["v"][0] - c[:, 0] * u["q"], "v": [-k * u["q"].sum()]}

    def loss(flat, tol):
        u0 = {"q": flat[:2], "v": [flat[2]]}
        p = {"k": (flat[3], flat[4:].reshape(2, 1))}
        prob = ps.ODEProblem(f, u0, (0.0, 2.0), p)
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=0.5, **tol)
        return sol.u["q"].square().sum() + sol.u["v"][0][-1]

    leaves = [u0["q"], u0["v"][0], *p["k"]]
    flat = torch.cat([x.reshape(-1) for x in leaves])
    got = torch.autograd.grad(loss(flat, TOL), leaves)
    want = central_difference(lambda x: loss(x, FINE), flat, 1e-4)
    assert_close(torch.cat([x.reshape(-1) for x in got]), want, 1e-6)


def test_float32_gradients(engine):
    p = torch.tensor([1.5, 1.0, 3.0, 1.0], requires_grad=True)
    u0 = torch.tensor([1.0, 1.0], requires_grad=True)
    prob = ps.ODEProblem(lotka_volterra, u0, (0.0, 2.0), p)
    grid = torch.linspace(0, 2, 5, requires_grad=True)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=grid, abstol=1e-6, reltol=1e-6)
    got = torch.autograd.grad(sol.u.square().sum(), (u0, p, grid))
    assert all(g.dtype == torch.float32 for g in got)

    def loss(x):
        prob = lv_problem(x[:2], (0.0, 2.0), x[2:6])
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=x[6:], **FINE)
        return sol.u.square().sum()

    x = torch.cat([u0, p, grid]).double().detach()
    x[6:] = x[6:].clamp(2e-4, 2.0 - 2e-4)  # room for the differences
    want = central_difference(loss, x, 1e-5)
    assert_close(torch.cat(got).double()[:6], want[:6], 1e-3)
    assert_close(torch.cat(got).double()[7:-1], want[7:-1], 1e-3)


# -- sensitivity algorithms ------------------------------------------------------------------

SENSEALGS = [
    ps.GaussAdjoint(),
    ps.GaussAdjoint(reltol=1e-10),
    ps.InterpolatingAdjoint(abstol=1e-10, reltol=1e-10),
    ps.QuadratureAdjoint(abstol=1e-10, reltol=1e-10),
    ps.BacksolveAdjoint(abstol=1e-11, reltol=1e-11),
    ps.ForwardSensitivity(abstol=1e-10, reltol=1e-10),
]


@pytest.mark.parametrize("sensealg", SENSEALGS, ids=repr)
def test_every_sensitivity_algorithm_gives_the_same_gradient(engine, sensealg):
    def loss(x, sensealg, tol):
        prob = lv_problem(x[:2], (0.0, 4.0), x[2:])
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=GRID, sensealg=sensealg, **tol)
        return loss_of(sol.u)

    x = f64(*LV_U0, *LV_P, grad=True)
    (got,) = torch.autograd.grad(loss(x, sensealg, TOL), x)
    want = central_difference(lambda x: loss(x, None, FINE), x, 1e-4)
    assert_close(got, want, 1e-6)


def test_an_algorithm_of_the_other_engine_is_refused():
    p = f64(*LV_P, grad=True)
    with pytest.raises(ps.EngineError, match="ForwardDiffSensitivity belongs to the julia engine"):
        sol = ps.solve(
            lv_problem(p=p), engine="sundials", sensealg=ps.ForwardDiffSensitivity(), **TOL
        )
        sol.u.sum().backward()


# -- larger states: each way the adjoint's linear algebra can take --------------------------


def heat(u, p, t):
    """Banded: diffusion and a reaction on a line."""
    padded = torch.nn.functional.pad(u, (1, 1))
    return p[0] * (padded[2:] - 2.0 * u + padded[:-2]) + p[1] * u * (1.0 - u)


def batch_of_pendulums(u, p, t):
    """Blocks: independent systems of two."""
    q, v = u.unbind(-1)
    return torch.stack([v, -p[0] * torch.sin(q) - p[1] * v], dim=-1)


def coupled(u, p, t):
    """Dense: everything with everything."""
    mean = torch.tanh(u).mean()
    return p[0] * (mean - u) + p[1] * torch.sin(t)


@pytest.mark.parametrize(
    ("f", "shape", "p"),
    [
        (heat, (60,), (5.0, 1.5)),
        (batch_of_pendulums, (20, 2), (2.0, 0.1)),
        (coupled, (50,), (0.8, 0.3)),
        (coupled, (450,), (0.8, 0.3)),
    ],
    ids=["banded", "blocks", "dense", "matrix-free"],
)
def test_large_states_against_directional_differences(engine, f, shape, p):
    torch.manual_seed(0)
    u0 = 0.2 + 0.5 * torch.rand(shape, dtype=F64)
    du0, dp = torch.randn(shape, dtype=F64), f64(0.7, -0.4)
    weights = torch.randn(shape, dtype=F64)

    def loss(u0, p, tol):
        prob = ps.ODEProblem(f, u0, (0.0, 2.0), p)
        sol = ps.solve(prob, stiff(engine), engine=engine, saveat=[0.7, 2.0], **tol)
        return (weights * sol.u).sum() + sol.u[0].square().sum()

    a, b = u0.clone().requires_grad_(), f64(*p, grad=True)
    g_u, g_p = torch.autograd.grad(loss(a, b, TOL), (a, b))
    fine = {"abstol": 1e-12, "reltol": 1e-12}
    zero = f64([0.0])
    got = (g_u * du0).sum() + (g_p * dp).sum()
    want = central_difference(
        lambda s: loss(u0 + s * du0, f64(*p) + s * dp, fine), zero, 1e-3
    )  # fmt: skip
    assert_close(got, want[0], 2e-6)


# -- DAEs ------------------------------------------------------------------


def test_mass_matrix_against_differences(engine):
    mass = torch.diag(f64(1.0, 1.0, 0.0))

    def f(u, p, t):
        x, y, z = u.unbind()
        return torch.stack([-p[0] * x + z, p[1] * x - y * z, x + y - p[2] * z])

    def loss(x, tol):
        u0 = torch.stack([x[0], x[1], (x[0] + x[1]) / x[4]])
        prob = ps.ODEProblem(f, u0, (0.0, 2.0), x[2:], mass_matrix=mass)
        alg = mass_matrix_solver(engine)
        sol = ps.solve(prob, alg, engine=engine, saveat=[0.5, 1.3, 2.0], **tol)
        return (sol.u * f64([[1.0, 2.0, 3.0], [0.5, -1.0, 0.7], [1.0, 1.0, -2.0]])).sum()

    x = f64(1.0, 0.5, 0.8, 1.2, 1.5, grad=True)
    (got,) = torch.autograd.grad(loss(x, TOL), x)
    want = central_difference(lambda x: loss(x, {"abstol": 1e-12, "reltol": 1e-12}), x, 1e-3)
    assert_close(got, want, 1e-6)


def test_invertible_mass_matrix_against_closed_form(engine):
    mass = f64([[2.0, 0.0], [1.0, 4.0]])
    u0, p = f64(1.0, 2.0, grad=True), f64(0.7, grad=True)
    prob = ps.ODEProblem(lambda u, p, t: -p * u, u0, (0.0, 1.0), p, mass_matrix=mass)
    sol = ps.solve(prob, mass_matrix_solver(engine), engine=engine, saveat=[1.0], **TOL)
    got = torch.autograd.grad(sol.u.square().sum(), (u0, p))
    flow = torch.matrix_exp(-p * torch.linalg.inv(mass))
    want = torch.autograd.grad((flow @ u0).square().sum(), (u0, p))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-6)


def test_dae_problem_against_differences(engine):
    def f(du, u, p, t):
        x, y, z = u.unbind()
        return torch.stack([du[0] + p[0] * x - z, du[1] - p[1] * x + y * z, x + y - p[2] * z])

    def loss(x, tol):
        u0 = torch.stack([x[0], x[1], (x[0] + x[1]) / x[4]]).detach() * 0 + torch.stack(
            [x[0], x[1], (x[0] + x[1]) / x[4]]
        )
        prob = ps.DAEProblem(
            f, torch.zeros(3, dtype=F64), u0, (0.0, 2.0), x[2:],
            differential_vars=torch.tensor([True, True, False]),
        )  # fmt: skip
        sol = ps.solve(prob, dae_solver(engine), engine=engine, saveat=[0.5, 1.3, 2.0], **tol)
        return (sol.u * f64([[1.0, 2.0, 3.0], [0.5, -1.0, 0.7], [1.0, 1.0, -2.0]])).sum()

    x = f64(1.0, 0.5, 0.8, 1.2, 1.5, grad=True)
    (got,) = torch.autograd.grad(loss(x, TOL), x)
    want = central_difference(lambda x: loss(x, {"abstol": 1e-12, "reltol": 1e-12}), x, 1e-3)
    assert_close(got, want, 1e-6)


# -- autograd's own rules ------------------------------------------------------------------


def test_backward_twice_with_retain_graph(engine):
    p = f64(*LV_P, grad=True)
    sol = ps.solve(lv_problem(p=p), nonstiff(engine), engine=engine, saveat=GRID, **TOL)
    loss = loss_of(sol.u)
    loss.backward(retain_graph=True)
    once = p.grad.clone()
    loss.backward()
    assert torch.equal(p.grad, 2.0 * once)


def test_several_losses_of_one_solution_add_up(engine):
    p = f64(*LV_P, grad=True)
    sol = ps.solve(lv_problem(p=p), nonstiff(engine), engine=engine, saveat=GRID, **TOL)
    (whole,) = torch.autograd.grad(sol.u.sum() + sol(1.3).sum(), p, retain_graph=True)
    (grid,) = torch.autograd.grad(sol.u.sum(), p, retain_graph=True)
    (point,) = torch.autograd.grad(sol(1.3).sum(), p)
    assert_close(whole, grid + point, 1e-10)


@pytest.mark.parametrize("linear", [True, False], ids=["linear loss", "nonlinear loss"])
def test_a_second_derivative_is_refused_by_name(engine, linear):
    p = f64(*LV_P, grad=True)
    sol = ps.solve(lv_problem(p=p), nonstiff(engine), engine=engine, saveat=GRID, **TOL)
    loss = sol.u.sum() if linear else sol.u.square().sum()
    (g,) = torch.autograd.grad(loss, p, create_graph=True)
    with pytest.raises(ps.PyscimlError, match="cannot be differentiated again"):
        (g.square().sum() + p.sum()).backward(retain_graph=True)
    with pytest.raises(ps.PyscimlError, match="cannot be differentiated again"):
        torch.autograd.grad(g.square().sum() + p.sum(), p)


SECOND = {
    "sol.u by u0": (lambda sol, x: sol.u.sum(), "u0"),
    "sol.u by p": (lambda sol, x: sol.u.sum(), "p"),
    "sol.u by a closure": (lambda sol, x: sol.u.sum(), "closure"),
    "sol.u by saveat": (lambda sol, x: sol.u.sum(), "saveat"),
    "sol.u by tspan": (lambda sol, x: sol.u[-1].sum(), "t1"),
    "sol(t) by p": (lambda sol, x: sol(1.3).sum(), "p"),
    "sol(t) by t": (lambda sol, x: sol(x["saveat"]).sum(), "saveat"),
    "sol.t by p": (lambda sol, x: sol.t[-1], "p"),
}


@pytest.mark.parametrize("name", SECOND)
def test_a_second_derivative_is_refused_whatever_is_differentiated(engine, name):
    """Also where the first derivative depends on what it is differentiated by in no other way."""
    of, by = SECOND[name]
    x = {
        "u0": f64(*LV_U0, grad=True), "p": f64(*LV_P, grad=True), "closure": f64(1.0, grad=True),
        "saveat": f64(0.5, 1.0, 1.5, grad=True), "t1": f64(2.0, grad=True),
    }  # fmt: skip
    prob = ps.ODEProblem(
        lambda u, p, t: x["closure"] * lotka_volterra(u, p, t), x["u0"], (0.0, x["t1"]), x["p"]
    )
    options = {"engine": engine, **TOL}
    if by == "saveat":
        options["saveat"] = x["saveat"]
    if name.startswith("sol.t"):
        options["callback"] = ps.ContinuousCallback(lambda u, p, t: u[0] - 1.5, ps.terminate)
    sol = ps.solve(prob, nonstiff(engine), **options)
    (g,) = torch.autograd.grad(of(sol, x), x[by], create_graph=True)
    for other in (x[by], x["p"]):
        with pytest.raises(ps.PyscimlError, match="cannot be differentiated again"):
            torch.autograd.grad(g.sum() + other.sum(), other, retain_graph=True)


def test_hessian_of_torch_is_refused(engine):
    def loss(p):
        sol = ps.solve(lv_problem(p=p), nonstiff(engine), engine=engine, saveat=GRID, **TOL)
        return loss_of(sol.u)

    with pytest.raises(ps.PyscimlError, match="cannot be differentiated again"):
        torch.autograd.functional.hessian(loss, f64(*LV_P))


def test_transforms_of_torch_are_refused(engine):
    def loss(p):
        return ps.solve(lv_problem(p=p), nonstiff(engine), engine=engine, **TOL).u[-1].sum()

    p = f64(*LV_P)
    prob = lv_problem(p=p)

    def by_closure(scale):
        scaled = ps.remake(prob, f=lambda u, p, t: scale * lotka_volterra(u, p, t))
        return ps.solve(scaled, nonstiff(engine), engine=engine, **TOL).u[-1].sum()

    for call in (
        lambda: torch.func.grad(loss)(p),
        lambda: torch.func.vmap(loss)(torch.stack([p, p])),
        lambda: torch.func.jvp(loss, (p,), (torch.ones_like(p),)),
        lambda: torch.func.jacrev(by_closure)(f64(1.0)),
    ):
        with pytest.raises(ps.InputError, match="batch dimension"):
            call()


def test_forward_mode_tangents_are_refused(engine):
    with torch.autograd.forward_ad.dual_level():
        p = torch.autograd.forward_ad.make_dual(f64(*LV_P), f64(1.0, 0.0, 0.0, 0.0))
        with pytest.raises(ps.InputError, match="reverse mode only"):
            ps.solve(lv_problem(p=p), nonstiff(engine), engine=engine, **TOL)
        plain = ps.solve(lv_problem(), nonstiff(engine), engine=engine, **TOL)
        assert plain.success


def test_inputs_changed_in_place_after_the_solve_do_no_harm(engine):
    net = nn.Linear(2, 2).double()
    prob = ps.ODEProblem(lambda u, p, t: torch.tanh(net(u)), f64(1.0, 2.0), (0.0, 1.0))
    options = {"engine": engine, **TOL}
    sol = ps.solve(prob, nonstiff(engine), **options)
    want = torch.autograd.grad(sol.u[-1].sum(), net.weight, retain_graph=True)[0]
    with torch.no_grad():
        net.weight.add_(1.0)
    got = torch.autograd.grad(sol.u[-1].sum(), net.weight)[0]
    assert torch.equal(got, want)


# -- training ------------------------------------------------------------------


def test_training_reaches_its_target_without_capturing_again(engine):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    u0, grid = f64(1.0, 0.0), torch.linspace(0, 2, 11, dtype=F64)
    target = torch.stack([torch.cos(2 * grid), torch.sin(2 * grid)], dim=1)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    with counted_captures() as captures:
        for _ in range(150):
            # a new problem and a new lambda each time, as people write it
            prob = ps.ODEProblem(lambda u, p, t: net(u), u0, (0.0, 2.0))
            sol = ps.solve(
                prob, nonstiff(engine), engine=engine, saveat=grid, abstol=1e-6, reltol=1e-6
            )
            loss = (sol.u - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    assert len(captures) == 1
    assert losses[0] > 0.1 and losses[-1] < 5e-3


def test_training_a_module_given_as_p_without_capturing_again(engine):
    torch.manual_seed(0)
    net = nn.Linear(1, 1, bias=False).double()
    prob = ps.ODEProblem(lambda u, p, t: p(u), f64([1.0]), (0.0, 1.0), net)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    with counted_captures() as captures:
        for _ in range(80):
            sol = ps.solve(ps.remake(prob, p=net), nonstiff(engine), engine=engine, **TOL)
            loss = (sol.u[-1] - 0.5).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert len(captures) == 1
    assert_close(net.weight.reshape(()), f64(math.log(0.5)), 1e-4)


# -- what Python changes between two solves is noticed ------------------------------------


def end(f, engine, u0=(1.0,), p=None):
    prob = ps.ODEProblem(f, f64([*u0]), (0.0, 1.0), p)
    return float(ps.solve(prob, nonstiff(engine), engine=engine, **TOL).u[-1, 0].detach())


def test_a_changed_attribute_is_noticed(engine):
    class Model:
        rate = 1.0

        def f(self, u, p, t):
            return -self.rate * u

    model = Model()
    for rate in (1.0, 2.0, 0.5):
        model.rate = rate
        assert math.isclose(end(model.f, engine), math.exp(-rate), rel_tol=1e-7)


def test_a_rebound_global_is_noticed(engine, monkeypatch):
    assert math.isclose(end(reads_a_global_number, engine), math.exp(-1.0), rel_tol=1e-7)
    monkeypatch.setitem(globals(), "_global_number", 2.0)
    assert math.isclose(end(reads_a_global_number, engine), math.exp(-2.0), rel_tol=1e-7)
    fresh = f64(0.25, grad=True)
    monkeypatch.setitem(globals(), "_GLOBAL", fresh)
    prob = ps.ODEProblem(reads_a_global, f64([1.0]), (0.0, 1.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    (got,) = torch.autograd.grad(sol.u[-1].sum(), fresh)
    assert_close(got, f64(-math.exp(-0.25)), 1e-6)


def test_a_rebound_closure_is_noticed(engine):
    rate = 1.0

    def f(u, p, t):
        return -rate * u

    values = []
    for x in (1.0, 3.0):
        rate = x
        values.append(end(f, engine))
    assert math.isclose(values[0], math.exp(-1.0), rel_tol=1e-7)
    assert math.isclose(values[1], math.exp(-3.0), rel_tol=1e-7)


def test_eval_and_train_are_noticed(engine):
    class Model(nn.Module):
        def forward(self, u):
            return -u if self.training else -2.0 * u

    model = Model()
    f = partial(lambda m, u, p, t: m(u), model)
    assert math.isclose(end(f, engine), math.exp(-1.0), rel_tol=1e-7)
    model.eval()
    assert math.isclose(end(f, engine), math.exp(-2.0), rel_tol=1e-7)
    model.train()
    assert math.isclose(end(f, engine), math.exp(-1.0), rel_tol=1e-7)


def test_a_replaced_weight_is_noticed(engine):
    net = nn.Linear(1, 1, bias=False).double()
    for value in (-1.0, -2.0):
        net.weight = nn.Parameter(f64([[value]]))
        prob = ps.ODEProblem(lambda u, p, t: net(u), f64([1.0]), (0.0, 1.0))
        sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
        (got,) = torch.autograd.grad(sol.u[-1].sum(), net.weight)
        assert_close(got, f64([[math.exp(value)]]), 1e-6)


def test_a_tensor_that_begins_to_require_grad_is_noticed(engine):
    k = f64(0.5)
    f = lambda u, p, t: -k * u
    assert math.isclose(end(f, engine), math.exp(-0.5), rel_tol=1e-7)
    k.requires_grad_()
    prob = ps.ODEProblem(f, f64([1.0]), (0.0, 1.0))
    ps.solve(prob, nonstiff(engine), engine=engine, **TOL).u[-1].sum().backward()
    assert_close(k.grad, f64(-math.exp(-0.5)), 1e-6)


def test_a_tensor_changed_in_place_is_read_anew_without_capturing(engine):
    k, index = f64(0.5), torch.tensor([1, 0])
    f = lambda u, p, t: -k * u[index]
    first = end(f, engine, (1.0, 2.0))
    with counted_captures() as captures:
        k.fill_(0.0)
        assert end(f, engine, (1.0, 2.0)) == 1.0 != first
    assert not captures


def test_an_index_tensor_changed_in_place_is_noticed(engine):
    index = torch.tensor([0, 0])
    rates = f64(1.0, 3.0)
    f = lambda u, p, t: -rates[index] * u
    assert math.isclose(end(f, engine, (1.0, 1.0)), math.exp(-1.0), rel_tol=1e-7)
    index.fill_(1)
    assert math.isclose(end(f, engine, (1.0, 1.0)), math.exp(-3.0), rel_tol=1e-7)


def test_lists_and_dicts_that_change_are_noticed(engine):
    options = {"rates": [1.0, 2.0]}
    f = lambda u, p, t: -sum(options["rates"]) * u
    assert math.isclose(end(f, engine), math.exp(-3.0), rel_tol=1e-7)
    options["rates"].append(1.0)
    assert math.isclose(end(f, engine), math.exp(-4.0), rel_tol=1e-7)
    options["rates"] = [0.5]
    assert math.isclose(end(f, engine), math.exp(-0.5), rel_tol=1e-7)


def test_a_solution_made_without_gradients_stays_without(engine):
    rate = f64(0.5).requires_grad_()
    prob = ps.ODEProblem(lambda u, p, t: -rate * u, f64([1.0]), (0.0, 1.0))
    with torch.no_grad():
        sol = ps.solve(prob, engine=engine, saveat=0.5, abstol=1e-10, reltol=1e-10)
    assert not sol.u.requires_grad and not sol(0.3).requires_grad
    at = f64(0.3).requires_grad_()
    (g,) = torch.autograd.grad(sol(at)[0], at)
    assert_close(g, -0.5 * torch.exp(f64(-0.15)), 1e-6)


def test_batches_with_integrals_beside_the_state(engine):
    """Quadrature columns have no column in the Jacobian, and share a colour with those that do."""
    a = f64([[0.1, -1.0], [1.2, -0.3]], grad=True)
    u0 = torch.cat([torch.linspace(-1.0, 1.0, 16, dtype=F64).reshape(8, 2), torch.zeros(8, 2)], 1)

    def f(u, p, t):
        du = torch.tanh(u[:, :2] @ p)
        return torch.cat([du, du.square().sum(1, keepdim=True), du.prod(1, keepdim=True)], 1)

    def loss(p):
        sol = ps.solve(
            ps.ODEProblem(f, u0.to(F64), (0.0, 2.0), p), engine=engine, abstol=1e-11, reltol=1e-10
        )
        return (sol.u[-1, :, 2:] * f64(1.0, 2.0)).sum()

    (got,) = torch.autograd.grad(loss(a), a)
    assert_close(got, central_difference(loss, a), 1e-6)


@pytest.mark.parametrize("captured", [True, False])
def test_closures_of_which_one_is_computed_from_another(engine, captured):
    def f(u, p, t):
        if not captured and float(t.detach()) > 1e9:  # read: called back
            return u
        return (b * c - a) * u

    a = f64(0.5, grad=True)
    b = (0.3 * a).exp()
    c = a.square() * b
    u0 = f64(1.0, 2.0)
    prob = ps.ODEProblem(f, u0, (0.0, 1.0))
    expected = warnings.catch_warnings() if captured else pytest.warns(ps.CaptureWarning)
    with expected:
        if captured:
            warnings.simplefilter("error", ps.CaptureWarning)
        sol = ps.solve(prob, nonstiff(engine), engine=engine, abstol=1e-10, reltol=1e-10)
    want = torch.exp(b * c - a) * u0
    assert_close(sol.u[-1], want, 1e-8)
    got, exact = (torch.autograd.grad(x.sum(), a, retain_graph=True)[0] for x in (sol.u[-1], want))
    assert_close(got, exact, 1e-7)
    sol.u[-1].sum().backward()  # the graph of b and c is still the user's
    assert_close(a.grad, exact, 1e-7)
