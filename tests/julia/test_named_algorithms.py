"""Algorithms for equations in parts: the order that each is known for, or why it is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import pysciml as ps
from pysciml.engines.julia import twin
from pysciml.errors import EngineError, InputError
from support import f64

pytestmark = pytest.mark.julia


def split() -> ps.SplitODEProblem:
    """u1' = -u1 + u2 cos(t) / 2, u2' = -u2 - u1 / 2."""

    def turned(u, p, t):
        return torch.stack([0.5 * u[1] * torch.cos(t), -0.5 * u[0]])

    return ps.SplitODEProblem(lambda u, p, t: -u, turned, f64(1.0, 0.5), (0.0, 1.0))


def whole(u, p, t):
    return torch.stack([-u[0] + 0.5 * u[1] * torch.cos(t), -u[1] - 0.5 * u[0]])


def order_of(prob, alg, dt) -> float:
    exact = ps.solve(
        ps.ODEProblem(whole, f64(1.0, 0.5), (0.0, 1.0)), ps.Tsit5(), saveat=[1.0],
        engine="julia", abstol=1e-13, reltol=1e-13,
    ).u  # fmt: skip
    errors = []
    for step in (dt, dt / 2):
        sol = ps.solve(prob, alg, dt=step, adaptive=False, saveat=[1.0], engine="julia")
        errors.append(float((sol.u - exact).abs().max()))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(
    ("alg", "order"),
    [
        (ps.SBDF2(), 2), (ps.SBDF(order=2), 2), (ps.IMEXEuler(), 1), (ps.IMEXEulerARK(), 1),
        (ps.MRAB(m=4), 1), (ps.MIS(m=4), 2), (ps.MRIGARKERK22a(m=4), 2),
        (ps.MRIGARKERK33a(m=4), 3), (ps.MREEF(m=4), 4),
    ],
    ids=str,
)  # fmt: skip
def test_orders_of_methods_for_split_equations(alg, order) -> None:
    assert order_of(split(), alg, 1 / 32) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(
    "alg",
    [ps.SBDF3(), ps.SBDF4(), ps.SBDF(order=3), ps.SBDF(order=4), ps.IRKC(), ps.RKV76IIa()],
    ids=str,
)
def test_methods_that_are_wrong_in_julia_are_refused(alg) -> None:
    with pytest.raises(EngineError, match=r"is wrong in Julia.*use pysciml\.(KenCarp|Vern7)"):
        ps.solve(split(), alg, dt=0.01, engine="julia")


@pytest.mark.parametrize(
    ("alg", "message"),
    [
        (ps.SBDF(), "SBDF was given order = None; give order=1 or order=2"),
        (ps.SBDF(order=7), "order = 7"),
        (ps.MIS(), r"m is not given; give e\.g\. pysciml\.MIS\(m=4\)"),
    ],
    ids=str,
)
def test_options_that_a_method_cannot_do_without(alg, message) -> None:
    with pytest.raises(InputError, match=message):
        ps.solve(split(), alg, dt=0.01, engine="julia")


@pytest.mark.parametrize("name", ["KrylovJL_FGMRES", "SimpleGMRES", "SimpleLUFactorization"])
def test_linear_solvers(name) -> None:
    prob = ps.ODEProblem(whole, f64(1.0, 0.5), (0.0, 1.0))
    options = {"engine": "julia", "saveat": [1.0], "abstol": 1e-8, "reltol": 1e-8}
    want = ps.solve(prob, ps.Tsit5(), **options).u
    got = ps.solve(prob, ps.Rodas5P(linsolve=getattr(ps, name)()), **options).u
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_a_linear_solver_for_sparse_matrices_where_there_are_none() -> None:
    prob = ps.ODEProblem(whole, f64(1.0, 0.5), (0.0, 1.0))
    with pytest.raises(InputError, match="linear solver for sparse Jacobians.*LUFactorization"):
        ps.solve(prob, ps.Rodas5P(linsolve=ps.KLUFactorization()), engine="julia")


def test_switching_between_algorithms_of_the_users_choice() -> None:
    """Van der Pol's equation at mu = 100 is stiff between its jumps."""

    def van_der_pol(u, p, t):
        return torch.stack([u[1], 100.0 * ((1 - u[0] ** 2) * u[1]) - u[0]])

    prob = ps.ODEProblem(van_der_pol, f64(2.0, 0.0), (0.0, 50.0))
    options = {"engine": "julia", "saveat": [50.0], "abstol": 1e-8, "reltol": 1e-8}
    want = ps.solve(prob, ps.Rodas5P(), **options)
    got = ps.solve(prob, ps.AutoAlgSwitch(ps.Tsit5(), ps.Rodas5P(), switch_max=3), **options)
    torch.testing.assert_close(got.u, want.u, rtol=1e-5, atol=1e-7)
    assert got.stats.njacs > 0


# -- between the steps -------------------------------------------------------------------------

COARSE = [
    ps.ExtrapolationMidpointDeuflhard(), ps.Feagin10(), ps.TsitPap8(), ps.RadauIIA5(),
    ps.KenCarp58(), ps.Exprb43(), ps.Stepanov5(), ps.AutoTsit5(ps.KenCarp58()),
]  # fmt: skip


def oscillator(u, p, t):
    return torch.stack([p * u[1], -p * u[0]])


@pytest.mark.parametrize("alg", COARSE, ids=str)
def test_outputs_where_what_stands_between_the_steps_is_coarse(alg) -> None:
    """Outputs, sol(t), its derivative and gradients are as good as the steps themselves."""
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    prob = ps.ODEProblem(oscillator, f64(0.0, 1.0), (0.0, 6.0), w)
    ts = torch.linspace(0.3, 5.7, 10, dtype=torch.float64)
    options = {"engine": "julia", "abstol": 1e-8, "reltol": 1e-8, "maxiters": 10**6}
    sol = ps.solve(prob, alg, saveat=ts, **options)
    torch.testing.assert_close(sol.u[:, 0], torch.sin(w * ts), rtol=0, atol=2e-7)
    (got,) = torch.autograd.grad(sol.u[:, 0].sum(), w)
    torch.testing.assert_close(got, (ts * torch.cos(ts)).sum(), rtol=0, atol=5e-6)
    every = ps.solve(prob, alg, **options)
    torch.testing.assert_close(every(ts)[:, 0], torch.sin(w * ts), rtol=0, atol=2e-7)
    torch.testing.assert_close(every(ts, 1)[:, 0], torch.cos(w * ts), rtol=0, atol=2e-5)
    (got,) = torch.autograd.grad(every(ts)[:, 0].sum(), w)
    torch.testing.assert_close(got, (ts * torch.cos(ts)).sum(), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    "alg",
    [ps.Alshina6(), ps.FRK65(), ps.MSRK6(), ps.RKO65(), ps.SIR54(), ps.AutoTsit5(ps.Exprb43())],
    ids=str,
)
def test_fixed_steps_where_what_stands_between_them_is_coarse(alg) -> None:
    prob = ps.ODEProblem(oscillator, f64(0.0, 1.0), (0.0, 6.0), f64(1.0))
    ts = torch.linspace(0.33, 5.71, 10, dtype=torch.float64)
    options = {"engine": "julia", "dt": 0.05, "adaptive": False}
    for u in (
        ps.solve(prob, alg, saveat=ts, **options).u,
        ps.solve(prob, alg, **options)(ts),
    ):
        torch.testing.assert_close(u[:, 0], torch.sin(ts), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("alg", "options"),
    [(ps.RKO65(), {}), (ps.SFSDIRK4(), {}), (ps.RadauIIA5(), {"adaptive": False})],
    ids=str,
)
def test_outputs_do_not_become_the_steps_that_were_not_given(alg, options) -> None:
    prob = ps.ODEProblem(oscillator, f64(0.0, 1.0), (0.0, 6.0), f64(1.0))
    with pytest.raises(InputError, match="steps of one size.*give dt="):
        ps.solve(prob, alg, saveat=[1.0, 5.0], engine="julia", **options)


@pytest.mark.parametrize("alg", [COARSE[0], COARSE[-1]], ids=str)
def test_events_between_such_steps_are_refused(alg) -> None:
    prob = ps.ODEProblem(oscillator, f64(0.0, 1.0), (0.0, 6.0), f64(1.0))
    hit = ps.ContinuousCallback(lambda u, p, t: u[0])
    with pytest.raises(EngineError, match="does not find events.*Vern9"):
        ps.solve(prob, alg, callback=hit, engine="julia")


def test_a_solve_that_stopped_is_read_between_its_outputs_up_to_there(monkeypatch) -> None:
    """``u' = u^2`` from 1 is 1 / (1 - t), and ends at t = 1."""
    prob = ps.ODEProblem(lambda u, p, t: u**2, f64(1.0).reshape(1), (0.0, 2.0))
    sol = ps.solve(prob, ps.Feagin10(), engine="julia", raise_on_failure=False, reltol=1e-8)
    assert not sol.success
    assert float(sol(0.51)[0]) == pytest.approx(1.0 / 0.49, rel=1e-6)

    def stopped(engine, handle, saveat, gradient):
        return replace(made(engine, handle, saveat, gradient), retcode="MaxIters", t_reached=0.5)

    made = twin.twin
    monkeypatch.setattr(twin, "twin", stopped)
    sol = ps.solve(prob, ps.Feagin10(), engine="julia", raise_on_failure=False, reltol=1e-8)
    assert float(sol(0.49)[0]) == pytest.approx(1.0 / 0.51, rel=1e-6)
    with pytest.raises(EngineError, match=r"Feagin10 tells no states.*stopped at t = 0.5.*saveat"):
        sol(0.51)
