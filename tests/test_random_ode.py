"""Random equations: closed forms along the path that was drawn, gradients, input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import EngineError, InputError
from support import F64, assert_close, central_difference, f64

julia = pytest.mark.julia
METHODS = [ps.RandomEM(), ps.RandomHeun(), ps.RandomTamedEM()]


def growth(u: Any, p: Any, t: Any, W: Any) -> Any:
    return p[0] * u * torch.sin(W) + p[1]


def mixed(u: Any, p: Any, t: Any, W: Any) -> Any:
    x, y = u.unbind()
    return torch.stack([-p[0] * x + y * W[1], torch.cos(W[0] + W[2]) - p[1] * y * t])


def step(alg: str, f: Any, u: Tensor, p: Any, t: Any, dt: Any, w: Tensor, later: Tensor) -> Tensor:
    k = f(u, p, t, w)
    if alg == "RandomTamedEM":
        return u + dt * k / (1 + dt * k.abs())
    if alg == "RandomHeun":
        return u + dt / 2 * (k + f(u + dt * k, p, t + dt, later))
    return u + dt * k


def replayed(alg: str, f: Any, sol: Any, u: Tensor, p: Tensor) -> Tensor:
    t, w = sol.W.t, sol.W.u
    for i in range(len(t) - 1):
        u = step(alg, f, u, p, t[i], t[i + 1] - t[i], w[i], w[i + 1])
    return u


@julia
@pytest.mark.parametrize("alg", METHODS, ids=repr)
def test_the_steps_and_their_gradients_by_hand(alg: Any) -> None:
    u0, p = f64(1.0, -0.5, grad=True), f64(0.8, 1.3, grad=True)
    prob = ps.RODEProblem(mixed, u0, (0.0, 1.0), p, rand_prototype=torch.zeros(3))
    sol = ps.solve(prob, alg, dt=0.01, seed=4, engine="julia")
    assert sol.W.u.shape == (len(sol.t), 3) and sol.W.u[0].abs().sum() == 0
    want = replayed(alg.name, mixed, sol, u0, p)
    assert_close(sol.u[-1], want, 1e-12)
    weights = f64(1.0, 2.0)
    got, expected = (torch.autograd.grad((weights * x).sum(), (u0, p)) for x in (sol.u[-1], want))
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 1e-10)


@julia
def test_closed_form_along_the_path() -> None:
    # u' = a u sin W: the exponential of the integral of sin W, by the trapezoidal rule on the path
    f = lambda u, p, t, W: p * u * torch.sin(W)
    prob = ps.RODEProblem(f, torch.ones(50, dtype=F64), (0.0, 1.0), f64(1.5))
    errors = []
    for dt in (0.01, 0.0005):
        sol = ps.solve(prob, ps.RandomHeun(), dt=dt, seed=2, engine="julia")
        integral = torch.trapezoid(torch.sin(sol.W.u), sol.W.t, dim=0)
        errors.append(float((sol.u[-1] - torch.exp(1.5 * integral)).abs().max()))
    assert errors[1] < 2e-3 and errors[1] < errors[0] / 5


@julia
def test_moments_of_the_integral_of_noise() -> None:
    # u' = W: normal with variance t^3 / 3
    n = 3000
    prob = ps.RODEProblem(lambda u, p, t, W: W, torch.zeros(n, dtype=F64), (0.0, 2.0))
    sol = ps.solve(prob, ps.RandomHeun(), dt=0.01, seed=6, saveat=[1.0, 2.0], engine="julia")
    for t, u in zip((1.0, 2.0), sol.u, strict=True):
        variance = t**3 / 3
        assert abs(float(u.mean())) < 4 * math.sqrt(variance / n)
        assert abs(float(u.var()) / variance - 1) < 4 * math.sqrt(2 / n) + 1e-3


@julia
def test_gradients_between_steps_and_through_events() -> None:
    u0, p = f64(1.0, 0.4, grad=True), f64(0.8, 1.3, grad=True)
    event = ps.PresetTimeCallback([0.415], lambda u, p, t: p[1] * u)
    options: dict[str, Any] = {
        "dt": 0.05, "seed": 4, "engine": "julia", "saveat": [0.21, 0.83], "callback": event,
    }  # fmt: skip
    weights = f64([1.0, 2.0], [0.5, -1.0])

    def loss(u0: Tensor, p: Tensor) -> Tensor:
        sol = ps.solve(ps.RODEProblem(growth, u0, (0.0, 1.0), p), ps.RandomHeun(), **options)
        inside = sol.u[[list(sol.t).index(t) for t in (0.21, 0.83)]]
        return (weights * inside).sum()

    got = torch.autograd.grad(loss(u0, p), (u0, p))
    want = central_difference(lambda x: loss(x[:2], x[2:]), torch.cat([u0, p]).detach())
    assert_close(torch.cat(got), want, 1e-8)


@julia
def test_equal_seeds_and_closures() -> None:
    network = torch.nn.Linear(2, 1, dtype=F64)
    prob = ps.RODEProblem(lambda u, p, t, W: network(torch.cat([u, W])), f64([0.3]), (0.0, 1.0))
    first, again, other = (
        ps.solve(prob, ps.RandomEM(), dt=0.1, seed=s, engine="julia") for s in (1, 1, 2)
    )
    assert torch.equal(first.u, again.u) and not torch.equal(first.u, other.u)
    first.u[-1].sum().backward()
    u = f64([0.3])
    for i in range(len(first.W.t) - 1):
        dt = first.W.t[i + 1] - first.W.t[i]
        u = u + dt * network(torch.cat([u, first.W.u[i]]))
    want = torch.autograd.grad(u.sum(), list(network.parameters()))
    for parameter, w in zip(network.parameters(), want, strict=True):
        assert_close(parameter.grad, w, 1e-10)


def test_bad_input_of_random_equations() -> None:
    with pytest.raises(InputError, match=r"called with \(u, p, t, W\)"):
        ps.RODEProblem(lambda u, p, t: u, f64([1.0]), (0.0, 1.0))
    with pytest.raises(InputError, match=r"rand_prototype is shape \(2, 2\)"):
        ps.RODEProblem(growth, f64([1.0]), (0.0, 1.0), rand_prototype=torch.zeros(2, 2))
    with pytest.raises(InputError, match="runs backwards"):
        ps.RODEProblem(growth, f64([1.0]), (1.0, 0.0))
    with pytest.raises(EngineError, match=r"random equations \(RODEProblem\), which need"):
        prob = ps.RODEProblem(growth, f64([1.0]), (0.0, 1.0), f64(1.0, 1.0))
        ps.solve(prob, ps.RandomEM(), dt=0.1, engine="sundials")


@julia
def test_bad_input_of_random_equations_in_julia() -> None:
    prob = ps.RODEProblem(growth, f64([1.0]), (0.0, 1.0), f64(1.0, 1.0))
    with pytest.raises(InputError, match="takes steps of one size, which is not given; give dt="):
        ps.solve(prob, ps.RandomEM(), engine="julia")
    with pytest.raises(EngineError, match=r"EM does not solve random equations"):
        ps.solve(prob, ps.EM(), dt=0.1, engine="julia")
    ode = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 1.0))
    with pytest.raises(EngineError, match="RandomEM is for random equations"):
        ps.solve(ode, ps.RandomEM(), dt=0.1, engine="julia")
