"""Boundary value problems: closed forms, gradients, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import InputError, SolveError
from support import (
    F64,
    assert_close,
    boundary_problem,
    central_difference,
    f64,
    nonstiff,
    pendulum,
    wave,
    wave_between,
)


def ends(sol: Any, p: Any, t: Any) -> Any:
    return torch.stack([sol(f64(0.0))[0] - p["a"], sol(f64(1.0))[0] - p["b"]])


@pytest.mark.parametrize("two_points", [False, True])
def test_linear_problem_in_closed_form(engine: str, two_points: bool) -> None:
    k, a, b = f64(2.0, grad=True), f64(0.7, grad=True), f64(-0.4, grad=True)
    u0, span, p = torch.zeros(2, dtype=F64), (0.0, 1.0), {"k": k, "a": a, "b": b}
    prob: Any = ps.BVProblem(wave, ends, u0, span, p)
    if two_points:
        bc = (lambda u, p: u[0] - p["a"], lambda u, p: u[0] - p["b"])
        prob = ps.TwoPointBVProblem(wave, bc, u0, span, p)
    times = torch.linspace(0.0, 1.0, 9, dtype=F64)
    alg = ps.Shooting(nonstiff(engine))
    sol = ps.solve(prob, alg, saveat=times, abstol=1e-11, reltol=1e-11, engine=engine)
    want = wave_between(k, a, b, times)
    assert sol.success and sol.prob is prob
    assert_close(sol.u[:, 0], want, 1e-8)
    weights = torch.linspace(1.0, 2.0, 9, dtype=F64)
    got = torch.autograd.grad((weights * sol.u[:, 0]).sum(), [k, a, b])
    for g, h in zip(got, torch.autograd.grad((weights * want).sum(), [k, a, b]), strict=True):
        assert_close(g, h, 1e-6)


def test_nonlinear_problem_with_an_inner_condition(engine: str) -> None:
    """The pendulum's angle at the start and a mean of it at two later times."""
    closed_over = f64(0.3, grad=True)

    def bc(sol: Any, p: Any, t: Any) -> Any:
        inner = sol(f64(0.8))["angle"] + sol(f64(1.5))["angle"]
        return {"start": sol.u["angle"][0] - p[1], "inner": inner - closed_over}

    def solved(x: Tensor) -> Any:
        u0 = {"angle": f64(0.0), "speed": f64(0.5)}
        prob = ps.BVProblem(pendulum, bc, u0, (0.0, 2.0), x)
        alg = ps.Shooting(nonstiff(engine))
        return ps.solve(prob, alg, saveat=[2.0], abstol=1e-11, reltol=1e-11, engine=engine)

    def loss(x: Tensor) -> Tensor:
        return solved(x).u["angle"].sum() + solved(x).u["speed"].square().sum()

    x = f64(2.0, 0.4, grad=True)
    gradient, of_closure = torch.autograd.grad(loss(x), [x, closed_over])
    assert_close(gradient, central_difference(loss, x, 1e-4), 1e-6)

    def by_closure(c: Tensor) -> Tensor:
        closed_over.data.copy_(c)
        return loss(x.detach())

    assert_close(of_closure, central_difference(by_closure, f64(0.3), 1e-4), 1e-6)


def test_the_end_of_the_span_has_a_gradient() -> None:
    """u = sin(t) / sin(T) between 0 and 1."""
    end = f64(1.2, grad=True)
    bc = (lambda u, p: u[0], lambda u, p: u[0] - 1.0)
    prob = ps.TwoPointBVProblem(wave, bc, f64(0.0, 1.0), (f64(0.0), end), {"k": 1.0})
    sol = ps.solve(prob, saveat=f64([0.5]), abstol=1e-11, reltol=1e-11, engine="sundials")
    (gradient,) = torch.autograd.grad(sol.u[0, 0], end)
    want = -math.sin(0.5) * math.cos(1.2) / math.sin(1.2) ** 2
    assert abs(sol.u[0, 0].item() - math.sin(0.5) / math.sin(1.2)) < 1e-8
    assert abs(gradient.item() - want) < 1e-6


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ({"bc": lambda u, p, t: u(0.0)[:1]}, {}, "1 numbers, but the state has 2"),
        ({"bc": lambda u, p, t: 0.0}, {}, "bc returned a float"),
        ({"bc": lambda u: u}, {}, r"called with \(u, p, t\)"),
        ({"f": lambda u, t: u}, {}, r"called with \(u, p, t\)"),
        ({"f": lambda t, u, p: u}, {}, r"f takes \(t, u, p\), but .*put them in this order"),
        ({"bc": lambda u, p, t: u[0]}, {}, r"bc indexes u.*call it.*u\(t\[0\]\)\[0\]"),
        ({"bc": lambda u, p, t: u(0.0).float()}, {}, "bc returned float32, but u0 is float64"),
        ({"bc": lambda u, p, t: u(0.0).detach()}, {}, "bc returned what does not depend on u"),
        ({"bc": lambda u, p, t: u(0.0).numpy()}, {}, "bc takes the state to NumPy"),
        ({"bc": lambda u, p, t: u(0.0) / 0}, {}, "bc returned nan on the solution from u0"),
        (
            {"f": lambda u, p, t: u, "bc": lambda u, p, t: u(0.0) - p["a"], "p": None}, {},
            "bc uses p, but the problem has none",
        ),
        ({"bc": lambda u, p, t: u("end")}, {}, "t is 'end'; give a time"),
        ({}, {"maxiters": 2.5}, "maxiters is 2.5; give a positive whole number"),
        ({}, {"maxiters": 0}, "maxiters is 0; give a positive whole number"),
        ({}, {"seed": 1}, "seed was given with a BVProblem"),
        ({}, {"trajectories": 2}, "trajectories was given with a BVProblem"),
        ({}, {"ensemblealg": ps.EnsembleSerial()}, "ensemblealg .* was given with a BVProblem"),
        ({}, {"alg": ps.CVODE_BDF()}, "solved by pysciml.Shooting"),
        ({}, {"callback": ps.PresetTimeCallback([0.5])}, "takes none"),
    ],
)  # fmt: skip
def test_bad_input(given: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ps.solve(boundary_problem(ends, **given), engine="sundials", **options)


def test_bad_pairs() -> None:
    with pytest.raises(InputError, match="pair of functions"):
        ps.TwoPointBVProblem(wave, ends, f64(0.0, 0.0), (0.0, 1.0))
    with pytest.raises(InputError, match="alg is a str"):
        ps.Shooting("Tsit5")
    called = ps.TwoPointBVProblem(
        wave, (lambda u, p: u(0.0)[:1], lambda u, p: u[:1]), f64(0.0, 0.0), (0.0, 1.0), {"k": 2.0}
    )
    with pytest.raises(InputError, match=r"bc\[0\] calls a tensor .*u is the state at its end"):
        ps.solve(called, engine="sundials")


def test_the_search_needs_solves_that_arrive() -> None:
    run_away = boundary_problem(
        ends, f=lambda u, p, t: torch.stack([u[0] ** 2, u[0]]), u0=f64(5.0, 0.0)
    )
    with pytest.raises(SolveError):
        ps.solve(run_away, raise_on_failure=False, engine="sundials")


def test_conditions_that_do_not_fix_the_state() -> None:
    def bc(sol: Any, p: Any, t: Any) -> Any:
        return torch.stack([sol(f64(0.0))[0], 0.0 * sol(f64(1.0))[0] - 1.0])

    with pytest.raises(SolveError, match="do not fix the initial state"):
        ps.solve(boundary_problem(ends, bc=bc), engine="sundials")


def test_conditions_that_cannot_be_met() -> None:
    def bc(sol: Any, p: Any, t: Any) -> Any:
        return torch.stack([sol(f64(0.0))[0], sol(f64(1.0))[0] ** 2 + 1.0])

    with pytest.raises(SolveError, match="stay off by|did not suffice"):
        ps.solve(boundary_problem(ends, bc=bc, u0=f64(0.0, 1.0)), engine="sundials")
