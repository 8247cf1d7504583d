"""Boundary value problems on a mesh, by MIRK methods and SolveBVP."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml.errors import EngineError, InputError, SolveError
from support import (
    F64,
    assert_close,
    boundary_problem,
    central_difference,
    f64,
    pendulum,
    wave,
    wave_between,
)

#: Of MIRK methods besides the 4th; each takes a minute to compile.
ORDERS = (2, 3, 5, 6) if os.environ.get("PYSCIML_TEST_ALL_ALGORITHMS") else (6,)


def on_mesh(engine: str) -> Any:
    return ps.SolveBVP() if engine == "sundials" else ps.MIRK4()


def ends(sol: Any, p: Any, t: Any) -> Any:
    return torch.stack([sol(0.0)[0] - p["a"], sol.u[-1, 0] - p["b"]])


TWO_POINTS = (lambda u, p: u[0] - p["a"], lambda u, p: u[0] - p["b"])


@pytest.mark.parametrize("two_points", [False, True])
def test_linear_problem_in_closed_form(engine: str, two_points: bool) -> None:
    k, a, b = f64(2.0, grad=True), f64(0.7, grad=True), f64(-0.4, grad=True)
    u0, span, p = torch.zeros(2, dtype=F64), (0.0, 1.0), {"k": k, "a": a, "b": b}
    prob: Any = ps.BVProblem(wave, ends, u0, span, p)
    if two_points:
        prob = ps.TwoPointBVProblem(wave, TWO_POINTS, u0, span, p)
    times = torch.linspace(0.0, 1.0, 9, dtype=F64)
    sol = ps.solve(prob, on_mesh(engine), dt=0.05, saveat=times, abstol=1e-9, engine=engine)
    want = wave_between(k, a, b, times)
    assert sol.success and sol.prob is prob and sol.engine == engine
    assert_close(sol.u[:, 0], want, 1e-8)
    weights = torch.linspace(1.0, 2.0, 9, dtype=F64)
    got = torch.autograd.grad((weights * sol.u[:, 0]).sum(), [k, a, b])
    for g, h in zip(got, torch.autograd.grad((weights * want).sum(), [k, a, b]), strict=True):
        assert_close(g, h, 1e-6)


def bratu(u: Any, p: Any, t: Any) -> Any:
    return torch.stack([u[1], -p * torch.exp(u[0])])


AT_REST = (lambda u, p: u[0], lambda u, p: u[0])


def bratu_wave_between(rate: float, branch: str, t: float) -> float:
    """-2 log(cosh((t - 1/2) x / 2) / cosh(x / 4)) where x = sqrt(2 rate) cosh(x / 4)."""
    low, high = (0.0, 4.79) if branch == "lower" else (4.80, 20.0)
    for _ in range(200):  # bisection
        x = (low + high) / 2
        below = x < math.sqrt(2 * rate) * math.cosh(x / 4)
        low, high = (x, high) if below == (branch == "lower") else (low, x)
    return -2 * math.log(math.cosh((t - 0.5) * x / 2) / math.cosh(x / 4))


@pytest.mark.parametrize("branch", ["lower", "upper"])
def test_bratu(engine: str, branch: str) -> None:
    """Two solutions, of which the guess, a function of t, chooses."""
    height = 0.1 if branch == "lower" else 4.0

    def guess(t: float) -> Tensor:
        return height * f64(math.sin(math.pi * t), math.pi * math.cos(math.pi * t))

    rate = f64(1.0, grad=True)
    prob = ps.TwoPointBVProblem(bratu, AT_REST, guess, (0.0, 1.0), rate)
    sol = ps.solve(prob, on_mesh(engine), dt=0.05, abstol=1e-9, engine=engine)
    for t in (0.13, 0.5, 0.9):
        assert abs(sol(t)[0].item() - bratu_wave_between(1.0, branch, t)) < 1e-7
    (slope,) = torch.autograd.grad(sol(0.5)[0], rate)
    above, below = (bratu_wave_between(r, branch, 0.5) for r in (1.0 + 1e-5, 1.0 - 1e-5))
    assert abs(slope.item() - (above - below) / 2e-5) < 1e-5


def test_boundary_layer_that_shooting_cannot_pass(engine: str) -> None:
    """eps u'' = u: solutions from a wrong slope grow by exp(100)."""

    def layer(u: Any, p: Any, t: Any) -> Any:
        return torch.stack([u[1], u[0] / p])

    eps, times = f64(1e-4, grad=True), f64(0.0, 0.01, 0.02, 0.05)
    bc = (lambda u, p: u[0] - 1.0, lambda u, p: u[0])
    prob = ps.TwoPointBVProblem(layer, bc, f64(0.0, 0.0), (0.0, 1.0), eps)
    with pytest.raises(SolveError):
        ps.solve(prob, ps.Shooting(), engine="sundials")
    sol = ps.solve(prob, on_mesh(engine), dt=0.02, saveat=times, abstol=1e-7, engine=engine)
    want = torch.exp(-times / eps.sqrt())
    assert_close(sol.u[:, 0], want, 1e-6)
    for row in (1, 2):
        (got,) = torch.autograd.grad(sol.u[row, 0], eps, retain_graph=True)
        (expected,) = torch.autograd.grad(want[row], eps, retain_graph=True)
        assert_close(got / expected, torch.ones((), dtype=F64), 1e-4)


@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0)])
def test_inner_conditions(engine: str, span: tuple[float, float]) -> None:
    """The pendulum's angle at an end and a mean of it at two inner times: three pieces."""
    closed_over = f64(0.3, grad=True)

    def bc(sol: Any, p: Any, t: Any) -> Any:
        inner = sol(f64(0.8, 1.5))["angle"].sum() - closed_over
        return {"first": sol.u["angle"][0] - p[1], "inner": inner}

    def loss(x: Tensor, alg: Any, **options: Any) -> Tensor:
        u0 = {"angle": f64(0.0), "speed": f64(0.5)}
        prob = ps.BVProblem(pendulum, bc, u0, span, x)
        sol = ps.solve(prob, alg, saveat=[0.3 * span[0] + 0.7 * span[1], span[1]], **options)
        at_times = (sol.u["angle"] * f64(1.0, 2.0)).sum() + sol.u["speed"].square().sum()
        return at_times + sol(1.1)["angle"] * sol(0.8)["speed"]

    def by_mesh(x: Tensor) -> Tensor:
        return loss(x, on_mesh(engine), abstol=1e-9, dt=0.05, engine=engine)

    x = f64(2.0, 0.4, grad=True)
    value = by_mesh(x)
    tight: dict[str, Any] = {"abstol": 1e-11, "reltol": 1e-11, "engine": "sundials"}
    other = loss(x, ps.Shooting(ps.CVODE_Adams()), **tight)
    assert_close(value, other, 1e-8)
    gradients = torch.autograd.grad(value, [x, closed_over])
    for got, want in zip(gradients, torch.autograd.grad(other, [x, closed_over]), strict=True):
        assert_close(got, want, 1e-7)
    assert_close(gradients[0], central_difference(by_mesh, x.detach(), 1e-4), 1e-6)


def test_outputs_are_the_mesh_and_times_have_gradients(engine: str) -> None:
    prob = ps.TwoPointBVProblem(
        wave, TWO_POINTS, f64(0.0, 0.0), (0.0, 1.0), {"k": f64(2.0), "a": f64(1.0), "b": f64(0.5)}
    )
    sol = ps.solve(prob, on_mesh(engine), dt=0.1, abstol=1e-9, engine=engine)
    assert sol.t[0] == 0.0 and sol.t[-1] == 1.0 and bool((sol.t.diff() > 0).all())
    assert len(sol.t) == sol.stats.naccept + 1
    assert_close(sol.u[:, 0], wave_between(f64(2.0), 1.0, 0.5, sol.t), 1e-8)
    assert_close(sol(sol.t), sol.u, 1e-12)
    assert_close(sol(0.37, deriv=1)[0], sol(0.37)[1], 1e-6)
    at = f64(0.37, grad=True)
    (slope,) = torch.autograd.grad(sol(at)[0], at)
    assert_close(slope, sol(0.37)[1], 1e-6)
    times = f64(0.2, 0.6, grad=True)
    again = ps.solve(prob, on_mesh(engine), saveat=times, abstol=1e-8, engine=engine)
    (slopes,) = torch.autograd.grad(again.u[:, 0].sum(), times)
    assert_close(slopes, again.u[:, 1], 1e-6)


def test_the_time_span_in_closed_form(engine: str) -> None:
    """``u'' = -k^2 u`` between a and b: by both ends, of outputs that stay and that go along."""
    p = {"k": f64(2.0), "a": f64(0.7), "b": f64(-0.4)}

    def both(end_values: Any) -> tuple[Tensor, Tensor]:
        span = f64(0.1, 1.2, grad=True)
        t0, t1 = span
        prob = ps.TwoPointBVProblem(wave, TWO_POINTS, f64(0.0, 0.0), (t0, t1), p)
        saveat = torch.cat([f64(0.3, 0.9), t1[None]]) if end_values else None
        sol = ps.solve(prob, on_mesh(engine), saveat=saveat, abstol=1e-10, engine=engine)
        slope = sol.u[-1, 1] + 0.5 * sol.u[-2, 1] ** 2 if end_values else sol.u[-1, 1] * sol.u[0, 1]

        def exact(t: Tensor) -> Tensor:
            k, a, b = p["k"], p["a"], p["b"]
            over = torch.sin(k * (t1 - t0))
            return k * (b * torch.cos(k * (t - t0)) - a * torch.cos(k * (t1 - t))) / over

        want = exact(t1) * exact(t0)
        if end_values:
            want = exact(t1) + 0.5 * exact(f64(0.9)) ** 2
        got = slope + sol(0.5)[1]
        want = want + exact(f64(0.5))
        assert_close(got, want, 1e-7)
        return torch.autograd.grad(got, span)[0], torch.autograd.grad(want, span)[0]

    for end_values in (False, True):
        got, want = both(end_values)
        assert_close(got, want, 1e-6)


@pytest.mark.parametrize(("back", "captured"), [(False, True), (True, True), (True, False)])
def test_the_time_span_of_several_pieces(engine: str, back: bool, captured: bool) -> None:
    """Conditions at both ends and at a time between them, which stays; f depends on time."""

    def f(u: Any, p: Any, t: Any) -> Any:
        scale = 1.0 if captured else float(u.detach().sum() * 0.0) + 1.0
        return torch.stack([u[1], scale * torch.cos(3 * t) - p * torch.sin(u[0]) * (1 + t**2)])

    def bc(u: Any, p: Any, t: Any) -> Any:
        return torch.stack([u.u[0, 0] + 0.5 * u(t[-1])[1], u(0.6)[0] - 0.4])

    def loss(x: Tensor) -> Tensor:
        span = (x[1], x[0]) if back else (x[0], x[1])
        prob = ps.BVProblem(f, bc, f64(0.1, 0.0), span, x[2])
        times = [0.3, 0.6, 1.1][:: -1 if back else 1]
        sol = ps.solve(prob, on_mesh(engine), saveat=times, abstol=1e-9, dt=0.05, engine=engine)
        return (sol.u**2).sum() + sol(f64(0.45, 0.8)).sum() + sol.u[1, 0]

    x = f64(0.1, 1.2, 1.5, grad=True)
    if captured:
        value = loss(x)
    else:
        with pytest.warns(ps.CaptureWarning):
            value = loss(x)
    (gradient,) = torch.autograd.grad(value, x)
    assert_close(gradient, central_difference(loss, x.detach(), 1e-4), 1e-6)


@pytest.mark.parametrize(
    ("bc", "match"),
    [
        (lambda u, p, t: u(1.0) - f64(1.0, 0.0), r"stays where tspan\[1\].*u\(t\[-1\]\)"),
        (lambda u, p, t: u(t[-1]) - t[-1], "computes with t"),
        (lambda u, p, t: u(0.5 * t[-1]), "a time that requires grad"),
    ],
)
def test_conditions_that_do_not_go_along_with_the_time_span(bc: Any, match: str) -> None:
    prob = ps.BVProblem(wave, bc, f64(0.0, 0.0), (0.0, f64(1.0, grad=True)), {"k": f64(2.0)})
    with pytest.raises(InputError, match=match):
        ps.solve(prob, ps.SolveBVP(), engine="sundials")
    with torch.no_grad():
        assert ps.solve(prob, ps.SolveBVP(), engine="sundials").success


def test_modules_and_single_precision(engine: str) -> None:
    """The parameters of a network in f and of a target in bc get their gradients."""
    torch.manual_seed(0)
    net, target = nn.Linear(2, 1), nn.Parameter(torch.tensor(0.5))

    def f(u: Any, p: Any, t: Any) -> Any:
        return torch.cat([u[1:], net(u).tanh() * p])

    bc = (lambda u, p: u[0], lambda u, p: u[0] - target)

    def loss(values: Any = None) -> Tensor:
        prob = ps.TwoPointBVProblem(f, bc, torch.zeros(2), (0.0, 1.0), 1.5)
        sol = ps.solve(prob, on_mesh(engine), saveat=[0.25, 0.5], abstol=1e-6, engine=engine)
        assert sol.u.dtype == torch.float32
        return sol.u.square().sum()

    wanted = [*net.parameters(), target]
    got = torch.autograd.grad(loss(), wanted)
    for parameter, gradient in zip(wanted, got, strict=True):
        for k in range(parameter.numel()):
            entry = parameter.data.view(-1)
            before, values = entry[k].item(), []
            for change in (1e-2, -1e-2):
                entry[k] = before + change
                values.append(loss().item())
            entry[k] = before
            assert abs((values[0] - values[1]) / 2e-2 - gradient.view(-1)[k].item()) < 2e-3


def cubic(u: Any, p: Any, t: Any) -> Any:
    return torch.stack([u[1], p * u[0] ** 3 + torch.sin(t)])


@pytest.mark.julia
def test_order_of_mirk4_and_the_gradient_of_its_numbers() -> None:
    """On a fixed mesh errors fall by 2^4, and gradients are those of the computed numbers."""
    p = {"k": f64(2.0), "a": f64(1.0), "b": f64(0.5)}
    prob = ps.TwoPointBVProblem(wave, TWO_POINTS, f64(0.0, 0.0), (0.0, 1.0), p)
    times = torch.linspace(0.0, 1.0, 37, dtype=F64)
    fixed: dict[str, Any] = {"adaptive": False, "engine": "julia"}

    def error(dt: float) -> float:
        sol = ps.solve(prob, ps.MIRK4(), dt=dt, saveat=times, **fixed)
        assert sol.stats.naccept == round(1 / dt)
        return (sol.u[:, 0] - wave_between(p["k"], 1.0, 0.5, times)).abs().max().item()

    errors = [error(dt) for dt in (0.2, 0.1, 0.05, 0.025)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 3.7 < math.log2(coarse / fine) < 4.6

    def loss(x: Tensor) -> Tensor:
        bc = (lambda u, p: u[0] + 1.0, lambda u, p: u[0] ** 3 + u[1] - 2.0 * p)
        coarse = ps.TwoPointBVProblem(cubic, bc, f64(0.0, 1.0), (0.0, 2.0), x)
        sol = ps.solve(coarse, ps.MIRK4(), dt=0.5, saveat=[0.3, 0.5, 1.7, 2.0], **fixed)
        return (sol.u * torch.arange(1.0, 9.0, dtype=F64).reshape(4, 2)).sum()

    x = f64(0.7, grad=True)
    (gradient,) = torch.autograd.grad(loss(x), x)
    assert_close(gradient, central_difference(loss, x.detach(), 1e-4), 1e-7)


@pytest.mark.julia
@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_the_other_methods(order: int) -> None:
    alg = getattr(ps, f"MIRK{order}")(max_num_subintervals=100)
    p = {"k": f64(2.0), "a": f64(1.0), "b": f64(0.5)}
    prob = ps.TwoPointBVProblem(wave, TWO_POINTS, f64(0.0, 0.0), (0.0, 1.0), p)
    times = torch.linspace(0.0, 1.0, 37, dtype=F64)
    errors = []
    for dt in (0.2, 0.1):
        sol = ps.solve(prob, alg, dt=dt, saveat=times, adaptive=False, engine="julia")
        errors.append((sol.u[:, 0] - wave_between(p["k"], 1.0, 0.5, times)).abs().max().item())
    assert order - 0.4 < math.log2(errors[0] / errors[1]) < order + 1.6


def test_conditions_all_at_one_end(engine: str) -> None:
    k = f64(2.0)
    ends = (lambda u, p: [], lambda u, p: u - torch.stack([torch.cos(k), -k * torch.sin(k)]))
    prob = ps.TwoPointBVProblem(wave, ends, f64(0.0, 0.0), (0.0, 1.0), {"k": k})
    alg = ps.SolveBVP() if engine == "sundials" else ps.MIRK4()
    sol = ps.solve(prob, alg, saveat=[0.0], abstol=1e-8, engine=engine)
    assert_close(sol.u[0], f64(1.0, 0.0), 1e-6)


def test_no_solution(engine: str) -> None:
    """Bratu's problem has none above 3.51.

    SciMLSensitivity brings methods of differentiation that NonlinearSolve would take for the
    kernels: it is loaded first.
    """
    if engine == "julia":
        p = f64(1.0, grad=True)
        prob = ps.ODEProblem(lambda u, p, t: -p * u, f64(1.0), (0.0, 1.0), p)
        ps.solve(prob, ps.Tsit5(), engine=engine, sensealg=ps.GaussAdjoint()).u[-1].backward()
    prob = ps.TwoPointBVProblem(bratu, AT_REST, f64(0.0, 0.0), (0.0, 1.0), 5.0)
    alg = ps.SolveBVP(max_nodes=200) if engine == "sundials" else ps.MIRK4(max_num_subintervals=200)
    with pytest.raises(SolveError, match="found no solution: .*nearer guess"):
        ps.solve(prob, alg, engine=engine)
    sol = ps.solve(prob, alg, engine=engine, raise_on_failure=False)
    assert not sol.success


def test_a_singular_problem_has_no_solution(engine: str) -> None:
    """u'' = -pi^2 u with u(0) = 1 and u(1) = 0; on a mesh it has one, of the size of 1/defect."""
    ends = (lambda u, p: u[0] - 1, lambda u, p: u[0])
    alg = ps.SolveBVP() if engine == "sundials" else ps.MIRK4()
    for k in (math.pi, 1.001 * math.pi):
        prob = ps.TwoPointBVProblem(wave, ends, f64(0.0, 0.0), (0.0, 1.0), {"k": f64(k)})
        if k == math.pi:
            with pytest.raises(SolveError, match="conditions do not determine it .*eigenvalue"):
                ps.solve(prob, alg, engine=engine)
        else:  # nearly singular, and determined
            sol = ps.solve(prob, alg, saveat=[0.5], engine=engine)
            assert_close(sol.u[:, 0], wave_between(f64(k), 1.0, 0.0, f64([0.5])), 1e-3)


def test_too_few_points_are_named() -> None:
    prob = ps.TwoPointBVProblem(bratu, AT_REST, f64(0.0, 0.0), (0.0, 1.0), 1.0)
    with pytest.raises(SolveError, match="max_nodes = 25 do not suffice; give a larger max_nodes"):
        ps.solve(prob, ps.SolveBVP(max_nodes=25), abstol=1e-10, engine="sundials")


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ({"bc": lambda u, p, t: u(0.0)[:1]}, {}, "1 numbers, but the state has 2"),
        ({"bc": lambda u, p, t: u(0.0).detach()}, {}, "what does not depend on u"),
        ({"bc": lambda u, p, t: u(0.0) / 0}, {}, "bc returned nan at the guess"),
        ({"bc": lambda u, p, t: u[0]}, {}, "bc indexes u"),
        ({"bc": lambda u, p, t: 0.0}, {}, "bc returned a float"),
        ({"bc": lambda u, p, t: u(1.5)}, {}, "t = 1.5, outside of tspan"),
        ({"bc": lambda u, p, t: u("end")}, {}, "t is 'end'; give a time"),
        ({"bc": lambda u, p, t: u.u[len(t)]}, {}, "bc takes the length of u.u or t"),
        (
            {},
            {"dt": 1e-9},
            r"dt is 1e-09, of which tspan holds 1e\+09, but max_no",
        ),
        ({}, {"abstol": None}, "abstol is None"),
        ({"u0": lambda t, p: f64(0.0, 0.0)}, {}, r"u0 takes \(t, p\), but it is called with \(t\)"),
        ({"u0": lambda t: torch.sin(t)}, {}, r"u0 fails at t = 0 .*math.sin\(t\)"),
        (
            {"u0": lambda t: f64(0.0, math.nan if t > 0.1 else 0.0)},
            {},
            r"u0\(1\) holds nan",
        ),
        ({"bc": lambda u, p, t: u(0.5, deriv=1)}, {}, "deriv=1"),
        ({"bc": lambda u, p, t: u.u[1]}, {}, "row 1 of u.u or t"),
        ({"bc": lambda u, p, t: u.u[:, 0]}, {}, "row slice"),
        ({"bc": lambda u, p, t: u.u.sum()}, {}, r"takes \.sum"),
        ({"bc": lambda u, p, t: u.stats}, {}, r"asks for u\.stats"),
        ({"bc": lambda u, p, t: u(p), "p": f64(0.5, grad=True)}, {}, "a time that requires grad"),
        ({"tspan": (0.0, 0.0)}, {}, "has no length"),
        ({"u0": lambda t: f64(0.0) if t else f64(0.0, 0.0)}, {}, r"u0\(1\) is shape"),
        ({"u0": lambda t: f64(0.0, 0.0), "tspan": 1.0}, {}, "tspan"),
        ({"f": lambda u, p, t: 1.0 / u}, {}, "inf or NaN at the guess at t = 0"),
        ({}, {"tstops": [0.5]}, "does not take 'tstops'"),
        ({}, {"dt": -1.0}, "dt is -1.0"),
        ({}, {"abstol": 0.0}, "abstol is 0.0"),
        ({}, {"adaptive": False}, "adaptive=False was given with SolveBVP"),
        ({}, {"maxiters": 2.5}, "maxiters is 2.5"),
        ({}, {"maxiters": 10}, "maxiters was given with SolveBVP"),
        ({}, {"alg": ps.MIRK4(), "adaptive": False}, "give dt="),
        ({}, {"callback": ps.PresetTimeCallback([0.5])}, "takes none"),
    ],
)
def test_bad_input(given: dict[str, Any], options: dict[str, Any], said: str) -> None:
    options = {"alg": ps.SolveBVP()} | options
    with pytest.raises(InputError, match=said):
        ps.solve(boundary_problem(ends, **given), engine="sundials", **options)


def test_methods_where_they_do_not_belong() -> None:
    with pytest.raises(EngineError, match=r"MIRK4 belongs to the julia engine.*SolveBVP"):
        ps.solve(boundary_problem(ends), ps.MIRK4(), engine="sundials")
    ode = ps.ODEProblem(wave, f64(0.0, 1.0), (0.0, 1.0), {"k": 1.0})
    with pytest.raises(EngineError, match="MIRK4"):
        ps.solve(ode, ps.MIRK4(), engine="sundials")
    with pytest.raises(InputError, match="max_nodes is 0"):
        ps.SolveBVP(0)
    with pytest.raises(InputError, match="max_num_subintervals is 'a'"):
        ps.solve(boundary_problem(ends), ps.MIRK4(max_num_subintervals="a"), engine="sundials")


@pytest.mark.julia
def test_mirk_is_for_boundary_value_problems() -> None:
    ode = ps.ODEProblem(wave, f64(0.0, 1.0), (0.0, 1.0), {"k": 1.0})
    with pytest.raises(EngineError, match="MIRK4 is for boundary value problems"):
        ps.solve(ode, ps.MIRK4(), engine="julia")


def test_the_users_random_numbers_are_not_drawn_from() -> None:
    before = np.random.get_state()[2]
    prob = ps.TwoPointBVProblem(bratu, AT_REST, f64(0.0, 0.0), (0.0, 1.0), 1.0)
    ps.solve(prob, ps.SolveBVP(), engine="sundials")
    assert np.random.get_state()[2] == before
