"""Gradients through events of DAEs, and forward sensitivities through events.

Each against a closed form or against differences; every method that an engine has for them.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import pysciml as ps
from support import F64, assert_close, central_difference, f64
from test_events import ball, ball_at, bounces, box_problem

TOL = {"abstol": 1e-11, "reltol": 1e-11}
TIMES = (1.0, 2.0, 4.0, 5.0)

both = pytest.mark.parametrize(
    ("engine", "sensealg"),
    [
        pytest.param("sundials", ps.GaussAdjoint(), id="sundials-GaussAdjoint"),
        pytest.param("sundials", ps.ForwardSensitivity(), id="sundials-ForwardSensitivity"),
        pytest.param(
            "julia", ps.CollocationAdjoint(), id="julia-CollocationAdjoint", marks=pytest.mark.julia
        ),
    ],
)


def same(got, want, inputs, rtol=1e-6, atol=1e-9):
    """Value and gradient of two scalars."""
    assert_close(got, want, rtol, atol)
    a = torch.autograd.grad(got, inputs, retain_graph=True)
    b = torch.autograd.grad(want, inputs, retain_graph=True, allow_unused=True)
    for x, y in zip(a, b, strict=True):
        assert_close(x, torch.zeros_like(x) if y is None else y, rtol, atol)


# -- the bouncing ball with its energy as an algebraic variable ----------------------------


def energy(u, p):
    return p[0] * u[0] + 0.5 * u[1] ** 2


def rebound(u, p, t):
    """The speed after the bounce from the energy before it; the energy left is not consistent."""
    return torch.stack([torch.zeros_like(u[0]), p[1] * torch.sqrt(2.0 * u[2]), u[2] + 1.0])


def ball_dae(h0, g, e, form, tspan=(0.0, 5.0)):
    callback = ps.ContinuousCallback(lambda u, p, t: u[0], rebound, direction=-1)
    u0 = torch.stack([h0, f64(0.0), g * h0])
    p = torch.stack([g, e])
    if form == "mass matrix":
        return ps.ODEProblem(
            lambda u, p, t: torch.stack([u[1], -p[0], u[2] - energy(u, p)]), u0, tspan, p,
            mass_matrix=torch.diag(f64(1.0, 1.0, 0.0)), callback=callback,
        )  # fmt: skip
    named = torch.tensor([True, True, False]) if form == "residual" else None
    return ps.DAEProblem(
        lambda du, u, p, t: torch.stack([du[0] - u[1], du[1] + p[0], u[2] - energy(u, p)]),
        torch.stack([f64(0.0), -g.detach(), f64(0.0)]), u0, tspan, p,
        differential_vars=named, callback=callback,
    )  # fmt: skip


FORMS = ["mass matrix", "residual", "residual without differential_vars"]


@both
@pytest.mark.parametrize("form", FORMS)
def test_bouncing_ball_with_its_energy(form, engine, sensealg):
    inputs = (f64(10.0, grad=True), f64(9.81, grad=True), f64(0.8, grad=True))
    sol = ps.solve(ball_dae(*inputs, form), saveat=TIMES, sensealg=sensealg, engine=engine, **TOL)
    keep = torch.isin(sol.t, f64(*TIMES))
    weights = f64(1.0, 0.3, 0.1)
    want = f64(0.0)
    for t in TIMES:
        h, v = ball_at(f64(t), *inputs)
        want = want + (torch.stack([h, v, inputs[1] * h + 0.5 * v**2]) * weights).sum()
    same((sol.u[keep] * weights).sum(), want, inputs)


@both
@pytest.mark.parametrize("form", FORMS)
def test_the_events_themselves(form, engine, sensealg):
    """Their times, and all three variables before and after; the energy after is consistent."""
    inputs = (f64(10.0, grad=True), f64(9.81, grad=True), f64(0.8, grad=True))
    sol = ps.solve(ball_dae(*inputs, form), sensealg=sensealg, engine=engine, **TOL)
    times, speeds = bounces(*inputs, 3)
    assert len(sol.events) == 2
    for k, event in enumerate(sol.events):
        before, after = (sol.t == event.t).nonzero().reshape(-1)
        arrived = speeds[k] / inputs[2]
        for got, want in (
            (sol.t[before], times[k]),
            (sol.t[after], times[k]),
            (sol.u[before, 1], -arrived),
            (sol.u[before, 2], 0.5 * arrived**2),
            (sol.u[after, 1], speeds[k]),
            (sol.u[after, 2], 0.5 * speeds[k] ** 2),
        ):
            same(got, want, inputs)


@both
def test_a_time_between_the_bounces(engine, sensealg):
    inputs = (f64(10.0, grad=True), f64(9.81, grad=True), f64(0.8, grad=True))
    sol = ps.solve(ball_dae(*inputs, "mass matrix"), sensealg=sensealg, engine=engine, **TOL)
    at = f64(3.3, grad=True)
    h, v = ball_at(at, *inputs)
    same(sol(at)[2], inputs[1] * h + 0.5 * v**2, (*inputs, at))


@both
def test_tspan_through_events_of_a_dae(engine, sensealg):
    t0, t1 = f64(0.5, grad=True), f64(3.5, grad=True)
    inputs = (f64(10.0), f64(9.81), f64(0.8))
    prob = ball_dae(*inputs, "mass matrix", (t0, t1))
    sol = ps.solve(prob, sensealg=sensealg, engine=engine, **TOL)
    h, v = ball_at(t1 - t0, *inputs)
    same(sol.u[-1, 2], 9.81 * h + 0.5 * v**2, (t0, t1))
    same(sol.u[-1, 0], h, (t0, t1))


# -- an event on an algebraic variable whose constraint depends on time ---------------------


def growth(x0, a, q, r, level, affect=None, tspan=(0.0, 2.0)):
    """x' = -a x, y = q x exp(r t), which falls to ``level`` at log(q x0 / level) / (a - r)."""
    callback = ps.ContinuousCallback(lambda u, p, t: u[1] - p[3], affect, direction=-1)
    return ps.ODEProblem(
        lambda u, p, t: torch.stack([-p[0] * u[0], u[1] - p[1] * u[0] * torch.exp(p[2] * t)]),
        torch.stack([x0, (q * x0).detach()]), tspan, torch.stack([a, q, r, level]),
        mass_matrix=torch.diag(f64(1.0, 0.0)), callback=callback,
    )  # fmt: skip


@both
def test_a_condition_on_an_algebraic_variable(engine, sensealg):
    inputs = tuple(f64(x, grad=True) for x in (1.0, 1.3, 2.0, 0.4, 0.9))
    x0, a, q, r, level = inputs
    tau = torch.log(q * x0 / level) / (a - r)
    prob = growth(*inputs, lambda u, p, t: torch.stack([u[0] + 0.5 * u[1], u[1]]))
    sol = ps.solve(
        ps.remake(prob, tspan=(0.0, 1.2)),
        saveat=[0.3, 1.2],
        sensealg=sensealg,
        engine=engine,
        **TOL,
    )
    assert len(sol.events) == 1 and 0.3 < float(tau.detach()) < 1.2
    before, after = (sol.t == sol.events[0].t).nonzero().reshape(-1)
    x = x0 * torch.exp(-a * tau) + 0.5 * level
    same(sol.t[before], tau, inputs)
    same(sol.u[before, 1], level, inputs)
    same(sol.u[after, 1], q * x * torch.exp(r * tau), inputs)
    same(sol.u[-1, 0], x * torch.exp(-a * (1.2 - tau)), inputs)
    same(sol.u[-1, 1], q * x * torch.exp(-a * (1.2 - tau) + 1.2 * r), inputs)


@both
def test_saveat_counts_the_rate_of_an_algebraic_variable(engine, sensealg):
    at = f64([0.3, 0.5], grad=True)
    inputs = tuple(f64(x) for x in (1.0, 1.3, 2.0, 0.4, 0.1))
    sol = ps.solve(growth(*inputs), saveat=at, sensealg=sensealg, engine=engine, **TOL)
    want = 2.0 * torch.exp((0.4 - 1.3) * at)
    (got,) = torch.autograd.grad(sol.u[:, 1].sum(), at)
    assert_close(got, torch.autograd.grad(want.sum(), at)[0], 1e-8)


@both
def test_terminate_a_dae(engine, sensealg):
    inputs = tuple(f64(x, grad=True) for x in (1.0, 1.3, 2.0, 0.4, 0.9))
    x0, a, q, r, level = inputs
    sol = ps.solve(growth(*inputs, ps.terminate), sensealg=sensealg, engine=engine, **TOL)
    tau = torch.log(q * x0 / level) / (a - r)
    assert sol.retcode == "Terminated"
    same(sol.t[-1], tau, inputs)
    same(sol.u[-1, 0], x0 * torch.exp(-a * tau), inputs)
    same(sol.u[-1, 1], level, inputs)


@both
@pytest.mark.parametrize(
    ("discrete", "when"), [(False, 0.0), (False, 0.8), (False, 2.0), (True, 0.8), (True, 2.0)]
)
def test_doses_of_a_dae(discrete, when, engine, sensealg):
    """A dose at a fixed time goes into x; y follows through its constraint."""
    inputs = tuple(f64(x, grad=True) for x in (1.0, 1.3, 2.0, 0.4))
    x0, a, q, dose = inputs

    def act(u, p, t):
        return torch.stack([u[0] + p[2], u[1]])

    callback = ps.PresetTimeCallback([when], act)
    if discrete:
        callback = ps.DiscreteCallback(lambda u, p, t: t == when, act)
    prob = ps.ODEProblem(
        lambda u, p, t: torch.stack([-p[0] * u[0], u[1] - p[1] * u[0] ** 2]),
        torch.stack([x0, f64(2.0)]), (0.0, 2.0), torch.stack([a, q, dose]),
        mass_matrix=torch.diag(f64(1.0, 0.0)), callback=callback,
    )  # fmt: skip
    sol = ps.solve(prob, sensealg=sensealg, tstops=[0.8], engine=engine, **TOL)
    assert [e.t for e in sol.events] == [when]
    x = x0 * torch.exp(-2.0 * a) + dose * torch.exp(-a * (2.0 - when))
    same(sol.u[-1, 0], x, inputs)
    same(sol.u[-1, 1], q * x**2, inputs)
    before, after = (sol.t == when).nonzero().reshape(-1)
    x = x0 * torch.exp(-a * when)
    same(sol.u[before, 1], q * x**2, inputs)
    same(sol.u[after, 1], q * (x + dose) ** 2, inputs)


def test_two_presets_at_the_start_act_on_one_another(engine):
    add = ps.PresetTimeCallback([0.0], lambda u, p, t: u + p)
    double = ps.PresetTimeCallback([0.0], lambda u, p, t: 2.0 * u)
    p = f64(1.0, grad=True)
    prob = ps.ODEProblem(lambda u, p, t: 0.0 * u, f64([3.0]), (0.0, 1.0), p)
    for callbacks, value, slope in (([add, double], 8.0, 2.0), ([double, add], 7.0, 1.0)):
        sol = ps.solve(prob, callback=callbacks, engine=engine, **TOL)
        assert_close(sol.u[-1], f64([value]), 1e-12)
        assert_close(torch.autograd.grad(sol.u[-1].sum(), p)[0], f64(slope), 1e-9)


# -- against differences ---------------------------------------------------------------------


@both
def test_a_residual_that_is_nonlinear_in_its_rates(engine, sensealg):
    """x' + x'^3 / 10 = -a x + y, with y bound by a cubic; the event moves with both."""

    def residual(du, u, p, t):
        return torch.stack(
            [
                du[0] + 0.1 * du[0] ** 3 + p[0] * u[0] - 0.1 * u[1],
                du[1] - torch.cos(p[1] * t) * u[2],
                u[2] + u[2] ** 3 - p[2] * u[0] - torch.sin(t),
            ]
        )

    def loss(x, tol, sensealg=None):
        callback = ps.ContinuousCallback(
            lambda u, p, t: u[2] - p[3] - 0.1 * u[1],
            lambda u, p, t: torch.stack([u[0] + p[1] * u[2] + 0.2 * t, 0.5 * u[1] - u[2], u[2]]),
        )
        prob = ps.DAEProblem(
            residual, torch.zeros(3, dtype=F64), torch.stack([x[0], x[1], f64(0.7)]), (0.0, 2.0),
            x[2:], differential_vars=torch.tensor([True, True, False]), callback=callback,
        )  # fmt: skip
        sol = ps.solve(prob, saveat=[0.2, 1.1, 2.0], sensealg=sensealg, engine=engine, **tol)
        assert len(sol.events) == 1
        weights = f64([1.0, 2.0, 3.0])
        return (sol.u * weights).sum() + (sol.t**2).sum()

    x = f64(1.0, 0.3, 0.8, 1.2, 1.5, 0.75, grad=True)
    tol = {"abstol": 1e-11, "reltol": 1e-11}
    (got,) = torch.autograd.grad(loss(x, tol, sensealg), x)
    want = central_difference(lambda x: loss(x, {"abstol": 1e-13, "reltol": 1e-13}), x, 1e-3)
    assert_close(got, want, 1e-6)


FINEST = {"abstol": 1e-12, "reltol": 1e-12}


def against_differences(loss, x, sensealg):
    (got,) = torch.autograd.grad(loss(x, sensealg), x)
    assert_close(got, central_difference(lambda x: loss(x, None), x, 1e-4), 1e-6)


@both
def test_backward_time(engine, sensealg):
    def loss(x, sensealg):
        callback = ps.ContinuousCallback(
            lambda u, p, t: u[1] - p[1], lambda u, p, t: torch.stack([p[2] * u[0] + t, u[1]])
        )
        prob = ps.ODEProblem(
            lambda u, p, t: torch.stack([-p[0] * u[0], u[1] - u[0] ** 2 - t]),
            torch.stack([x[0], x[0]]), (1.0, 0.0), x[1:],
            mass_matrix=torch.diag(f64(1.0, 0.0)), callback=callback,
        )  # fmt: skip
        sol = ps.solve(prob, saveat=[0.9, 0.1], sensealg=sensealg, engine=engine, **FINEST)
        assert len(sol.events) == 3
        return (sol.u * f64(1.0, 2.0)).sum() + sol.t.sum() + sol(0.3)[1]

    against_differences(loss, f64(1.0, 1.0, 2.8, 0.5, grad=True), sensealg)


MASSES = {
    "not diagonal": (
        f64([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]),
        lambda u, p: torch.stack([u[2] - p[0] * u[0], -p[1] * u[1], u[2] - u[0] * u[1]]),
        lambda u, p, t: torch.stack([u[0] + p[3] * u[2], u[1] * t, u[2]]),
        lambda x: torch.stack([x[0], x[1], x[0] * x[1]]),
    ),
    # every entry of the state has a rate in it, and yet one equation is a constraint
    "no column of zeros": (
        f64([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        lambda u, p: torch.stack([-p[0] * u[0], u[0] - u[1], p[1] * u[0] - u[2]]),
        lambda u, p, t: torch.stack([u[0] + p[3], u[1] + p[3], u[2] * t]),
        lambda x: torch.stack([x[0], x[0], x[1]]),
    ),
}


@both
@pytest.mark.parametrize("name", MASSES)
def test_mass_matrices_of_other_forms(name, engine, sensealg):
    mass, f, affect, start = MASSES[name]

    def loss(x, sensealg):
        callback = ps.ContinuousCallback(lambda u, p, t: u[2] - p[2], affect)
        prob = ps.ODEProblem(
            lambda u, p, t: f(u, p), start(x), (0.0, 2.0), x[2:], mass_matrix=mass,
            callback=callback,
        )  # fmt: skip
        sol = ps.solve(prob, sensealg=sensealg, engine=engine, **FINEST)
        assert len(sol.events) >= 1
        return (sol.u[-1] * f64(1.0, 2.0, 3.0)).sum()

    against_differences(loss, f64(1.0, 1.2, 1.0, 0.5, 0.6, 0.3, grad=True), sensealg)


@both
def test_condition_and_affect_that_are_called_back(engine, sensealg):
    def condition(u, p, t):
        return u[0] - p[1] if float(u[0].detach()) > -1.0 else u[0]

    def affect(u, p, t):
        return u + p[2] * t if float(u[0].detach()) > 0.0 else u

    def loss(x, sensealg):
        callback = ps.ContinuousCallback(condition, affect, direction=-1)
        prob = ps.ODEProblem(lambda u, p, t: -p[0] * u, x[:1], (0.0, 2.0), x[1:], callback=callback)
        return ps.solve(prob, sensealg=sensealg, engine=engine, **FINEST).u[-1].sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.CaptureWarning)
        against_differences(loss, f64(1.0, 1.0, 0.6, 0.5, grad=True), sensealg)


def test_a_higher_index_is_named():
    """A rate bound by a constraint: y appears in no constraint that could determine it."""
    p = f64(1.0, grad=True)
    prob = ps.DAEProblem(
        lambda du, u, p, t: torch.stack([du[0] - u[1], u[0] - p * torch.sin(t)]),
        f64(1.0, 0.0), f64(0.0, 1.0), (0.0, 1.0), p,
    )  # fmt: skip
    sol = ps.solve(prob, engine="sundials", abstol=1e-5, reltol=1e-5)
    with pytest.raises(ps.EngineError, match="index of 1"):
        sol.u.sum().backward()


# -- forward sensitivities of ODEs ------------------------------------------------------------


def test_forward_sensitivity_through_bounces(engine):
    inputs = (f64(10.0, grad=True), f64(9.81, grad=True), f64(0.8, grad=True))
    sol = ps.solve(
        ball(*inputs), saveat=TIMES, sensealg=ps.ForwardSensitivity(), engine=engine, **TOL
    )
    keep = torch.isin(sol.t, f64(*TIMES))
    weights = f64(1.0, 0.3)
    want = sum((ball_at(f64(t), *inputs) * weights).sum() for t in TIMES)
    same((sol.u[keep] * weights).sum(), want, inputs)
    times, speeds = bounces(*inputs, 3)
    for k, event in enumerate(sol.events):
        before, after = (sol.t == event.t).nonzero().reshape(-1)
        same(sol.t[after], times[k], inputs)
        same(sol.u[before, 1], -speeds[k] / inputs[2], inputs)
        same(sol.u[after, 1], speeds[k], inputs)


def test_forward_sensitivity_with_two_callbacks_and_closures(engine):
    """Closures of condition and affect have columns of their own."""
    lift, keep = f64(0.2, grad=True), f64(0.7, grad=True)

    def loss(x, lift, keep, sensealg):
        left = ps.ContinuousCallback(
            lambda u, p, t: u[0] - lift, lambda u, p, t: torch.stack([u[0], -u[1]]), direction=-1
        )
        right = ps.ContinuousCallback(
            lambda u, p, t: u[0] - p[1], lambda u, p, t: torch.stack([u[0], -keep * u[1] + 0.1 * t])
        )
        prob = box_problem(x[0], x[1], x[2:])
        prob = ps.remake(prob, callback=ps.CallbackSet(left, right))
        sol = ps.solve(prob, sensealg=sensealg, engine=engine, **TOL)
        return sol.u[-1, 0] + 2.0 * sol.u[-1, 1] + sol(3.0)[0]

    x = f64(0.3, 1.0, 0.0, 1.0, 0.7, grad=True)
    inputs = (x, lift, keep)
    got = torch.autograd.grad(loss(*inputs, ps.ForwardSensitivity()), inputs)
    adjoint = torch.autograd.grad(loss(*inputs, None), inputs)
    for a, b in zip(got, adjoint, strict=True):
        assert_close(a, b, 1e-7, 1e-10)
    flat = torch.cat([x, lift.reshape(1), keep.reshape(1)]).detach()
    want = central_difference(lambda z: loss(z[:5], z[5], z[6], None), flat, 1e-4)
    assert_close(torch.cat([got[0], got[1].reshape(1), got[2].reshape(1)]), want, 1e-6)


def test_forward_sensitivity_of_an_oscillation_that_only_the_sensitivity_sees():
    """At rest the solution says nothing of the mode; the mesh is cut for the sensitivity's sake."""
    u0 = f64([0.0, 0.0, 1.0], grad=True)
    w = f64(20.0, grad=True)
    prob = ps.ODEProblem(
        lambda u, p, t: torch.stack([u[1], -(p**2) * u[0], -u[2]]), u0, (0.0, 2.0), w
    )
    sol = ps.solve(
        prob,
        ps.CVODE_BDF(),
        saveat=[2.0],
        sensealg=ps.ForwardSensitivity(),
        engine="sundials",
        **TOL,
    )
    (got,) = torch.autograd.grad(sol.u[0].sum(), u0)
    c, s = math.cos(40.0), math.sin(40.0)
    assert_close(got, f64(c - 20.0 * s, c + s / 20.0, math.exp(-2.0)), 1e-6)


def test_forward_sensitivity_of_a_function_that_is_called_back(engine):
    def f(u, p, t):
        return -p * u if float(u.detach().sum()) > -1.0 else u

    p, u0 = f64(0.7, grad=True), f64([2.0], grad=True)
    with pytest.warns(ps.CaptureWarning):
        sol = ps.solve(
            ps.ODEProblem(f, u0, (0.0, 1.0), p), saveat=[1.0],
            sensealg=ps.ForwardSensitivity(), engine=engine, **TOL,
        )  # fmt: skip
    same(sol.u[0, 0], u0[0] * torch.exp(-p), (u0, p))
