"""Gradients of delay equations: closed forms, and differences in double."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from delayed import check, constant, decay, oscillator, wave
from support import F64, assert_close, f64

pytestmark = pytest.mark.julia
TIGHT = {"abstol": 1e-12, "reltol": 1e-12, "engine": "julia"}
TSIT5 = ps.MethodOfSteps(ps.Tsit5())


def test_closed_form() -> None:
    """On (tau, 2 tau): u = u0 - a c tau - a u0 (t - tau) + a^2 c (t - tau)^2 / 2."""
    a, tau, c, start, t = 1.3, 0.7, 0.8, 2.0, 1.1
    p = f64(a, tau, c, grad=True)
    u0 = f64([start], grad=True)
    prob = ps.DDEProblem(decay, u0, constant, (0.0, 2.0), p)
    ps.solve(prob, TSIT5, saveat=[t], **TIGHT).u.sum().backward()
    late = t - tau
    assert_close(u0.grad, f64([1 - a * late]), rtol=1e-9)
    of_a = -c * tau - start * late + a * c * late**2
    of_tau = -a * c + a * start - a**2 * c * late
    assert_close(p.grad, f64(of_a, of_tau, -a * tau + a**2 * late**2 / 2), rtol=1e-9)


@pytest.mark.parametrize(
    "alg",
    [
        TSIT5,
        ps.MethodOfSteps(ps.Tsit5(), constrained=True),
        ps.MethodOfSteps(ps.Vern9()),
        ps.MethodOfSteps(ps.Rodas5P()),
        None,
    ],
    ids=repr,
)
@pytest.mark.parametrize("start", [0.8, 2.0], ids=["no jump", "jump at t0"])
def test_every_input_of_the_linear_equation(alg: Any, start: float) -> None:
    def loss(x: Tensor) -> Tensor:
        prob = ps.DDEProblem(decay, x[3:], constant, (0.0, 3.0), x[:3])
        sol = ps.solve(prob, alg, saveat=[0.3, 0.9, 1.5, 2.0, 2.6, 3.0], **TIGHT)
        return (sol.u[:, 0] * f64(1.0, -2.0, 0.5, 1.5, 0.7, 1.0)).sum() + sol.u[-1, 0] ** 2

    check(loss, f64(1.3, 0.7, 0.8, start))


@pytest.mark.parametrize("alg", [TSIT5, ps.MethodOfSteps(ps.Rodas5P())], ids=repr)
def test_lags_and_history_with_parameters(alg: Any) -> None:
    def loss(x: Tensor) -> Tensor:
        p = {"tau": x[0], "a": x[1], "w": x[2], "b": x[3]}
        prob = ps.DDEProblem(
            oscillator, x[4:], wave, (0.2, 4.0), p, constant_lags=(x[0], 2 * x[0] + 0.1)
        )
        sol = ps.solve(prob, alg, saveat=0.5, **TIGHT)
        at = sol(f64(0.9, 2.35))
        return (sol.u**2).sum() + at.sum()

    check(loss, f64(0.6, 1.1, 1.7, 0.4, 0.9, 0.2))


def test_steps_longer_than_the_lag() -> None:
    def loss(x: Tensor) -> Tensor:
        def f(u: Any, h: Any, p: Any, t: Any) -> Any:
            return -u + p[0] * torch.sin(h(p, t - p[1]))

        prob = ps.DDEProblem(
            f, x[2:], lambda p, t: torch.cos(p[0] * t).reshape(1), (0.0, 3.0), x[:2]
        )
        return ps.solve(prob, ps.MethodOfSteps(ps.Vern9()), saveat=[1.0, 3.0], **TIGHT).u.sum()

    check(loss, f64(0.7, 0.01, 1.2))


def neves(u: Any, h: Any, p: Any, t: Any) -> Any:
    return p[0] * u * h(p, p[1] * torch.log(u[0])) / t


@pytest.mark.parametrize("alg", [TSIT5, ps.MethodOfSteps(ps.Rodas5P())], ids=repr)
@pytest.mark.parametrize("start", [1.0, 1.3], ids=["no jump", "jump at t0"])
def test_lag_that_depends_on_the_state(alg: Any, start: float) -> None:
    def loss(x: Tensor) -> Tensor:
        prob = ps.DDEProblem(neves, x[3:], lambda p, t: p[2].reshape(1), (1.0, 6.0), x[:3])
        return ps.solve(prob, alg, saveat=[2.0, 4.0, 6.0], **TIGHT).u.sum()

    check(loss, f64(1.0, 0.9, 1.0, start), rtol=2e-6)


def test_lag_that_depends_on_time() -> None:
    def loss(x: Tensor) -> Tensor:
        def f(u: Any, h: Any, p: Any, t: Any) -> Any:
            return -p[0] * h(p, t - 0.5 - p[1] * torch.sin(t) ** 2)

        history = lambda p, t: torch.exp(p[2] * t).reshape(1)
        prob = ps.DDEProblem(f, x[3:], history, (0.0, 4.0), x[:3])
        return ps.solve(prob, TSIT5, saveat=[1.0, 2.5, 4.0], **TIGHT).u.sum()

    check(loss, f64(0.8, 0.4, -0.3, 1.5), rtol=2e-6)


def test_times() -> None:
    def loss(x: Tensor) -> Tensor:
        p = {"tau": f64(0.6), "a": f64(1.1), "w": f64(1.7), "b": f64(0.4)}
        prob = ps.DDEProblem(oscillator, f64(0.9, 0.2), wave, (x[0], x[1]), p)
        sol = ps.solve(prob, TSIT5, saveat=torch.cat([x[2:], x[1:2]]), **TIGHT)
        return (sol.u**2).sum()

    check(loss, f64(0.1, 3.0, 0.4, 1.55))


def test_states_as_trees_and_closures() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    past = nn.Linear(1, 2).double()
    scale = f64(0.7, grad=True)

    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        late = h(p, t - scale)
        return {"x": net(torch.cat([u["x"], late["x"]])), "n": -u["n"] * late["n"]}

    def history(p: Any, t: Any) -> Any:
        return {"x": past(t.reshape(1)), "n": torch.exp(t)}

    def loss() -> Tensor:
        u0 = {"x": past(torch.zeros(1, dtype=F64)), "n": f64(1.0)}
        sol = ps.solve(ps.DDEProblem(f, u0, history, (0.0, 2.0)), TSIT5, saveat=0.5, **TIGHT)
        return (sol.u["x"] ** 2).sum() + sol.u["n"].sum()

    inputs = [scale, *past.parameters(), net[0].weight, net[2].bias]
    for x, gradient in zip(inputs, torch.autograd.grad(loss(), inputs), strict=True):
        kept = x.detach().clone()
        for i in range(0, x.numel(), 7):
            sides = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    x.view(-1)[i] += step
                    sides.append(loss().item())
                    x.copy_(kept)
            difference = (sides[0] - sides[1]) / 2e-5
            assert abs(gradient.reshape(-1)[i].item() - difference) < 1e-7 * (1 + abs(difference))


def test_changes_of_a_solution_at_rest() -> None:
    """The solver's steps have no bound there; a change of u0 oscillates all the same."""
    u0 = f64([0.0], grad=True)
    prob = ps.DDEProblem(
        lambda u, h, p, t: -1.5 * h(p, t - 1.0), u0, lambda p, t: f64([0.0]), (0.0, 20.0)
    )
    times = f64(3.5, 9.2, 20.0)
    sol = ps.solve(prob, TSIT5, abstol=1e-8, reltol=1e-8, saveat=times, engine="julia")
    for t, u in zip(times.tolist(), sol.u[:, 0], strict=True):
        (gradient,) = torch.autograd.grad(u, u0, retain_graph=True)
        want = sum((-1.5) ** k * max(t - k, 0.0) ** k / math.factorial(k) for k in range(21))
        assert abs(gradient.item() - want) < 1e-5 * (1 + abs(want))


def test_gradcheck() -> None:
    def u(x: Tensor, p: Tensor) -> Tensor:
        return ps.solve(
            ps.DDEProblem(decay, x, constant, (0.0, 2.0), p), TSIT5, saveat=[0.5, 1.0, 2.0], **TIGHT
        ).u

    assert torch.autograd.gradcheck(u, (f64([1.5], grad=True), f64(1.3, 0.7, 0.8, grad=True)))


def test_many_parameters_are_gathered_in_batches() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
    net = net.double()

    def loss() -> Tensor:
        prob = ps.DDEProblem(
            lambda u, h, p, t: net(torch.cat([u, h(p, t - 0.5)])), f64([0.4]),
            lambda p, t: torch.sin(t).reshape(1), (0.0, 3.0),
        )  # fmt: skip
        return (ps.solve(prob, TSIT5, saveat=0.25, **TIGHT).u ** 2).sum()

    weights = list(net.parameters())
    gradients = torch.autograd.grad(loss(), weights)
    direction = [torch.randn_like(w) for w in weights]
    slope = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
    sides = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w += step * d
            sides.append(loss().item())
            for w, d in zip(weights, direction, strict=True):
                w -= step * d
    assert math.isclose(slope, (sides[0] - sides[1]) / 2e-5, rel_tol=1e-6)


def test_float32() -> None:
    gradients = []
    for dtype in (torch.float32, F64):
        x = torch.tensor([1.3, 0.7, 0.8, 1.5], dtype=dtype, requires_grad=True)
        prob = ps.DDEProblem(decay, x[3:], constant, (0.0, 2.0), x[:3])
        sol = ps.solve(prob, TSIT5, saveat=[0.5, 2.0], reltol=1e-5, abstol=1e-5, engine="julia")
        gradients.append(torch.autograd.grad(sol.u.sum(), x)[0])
    assert gradients[0].dtype is torch.float32
    assert_close(gradients[0].double(), gradients[1], rtol=1e-3)


@pytest.mark.parametrize("lag", [0.02, 0.5])
def test_many_states(lag: float) -> None:
    """More than the stages' equations are formed for; one lag depends on the state."""
    torch.manual_seed(2)
    mix = torch.randn(60, 60, dtype=F64) / 8
    start = torch.linspace(-1.0, 1.0, 60, dtype=F64)

    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        late = h(p, t - p[1])
        return torch.tanh(mix @ late) - p[0] * u * h(p, t - 0.3 - 0.2 * torch.sigmoid(u[0]))

    def loss(x: Tensor) -> Tensor:
        history = lambda p, t: p[2] * torch.cos(t) * start
        prob = ps.DDEProblem(f, start * x[2], history, (0.0, 1.5), x)
        return (ps.solve(prob, TSIT5, saveat=[0.4, 1.5], **TIGHT).u ** 2).sum()

    check(loss, f64(0.8, lag, 0.9))


def test_stiff_equation_with_many_states() -> None:
    """Diffusion along a rod, whose fast modes the products do not settle: formed after all."""
    n = 50
    spread = torch.diag(torch.full((n - 1,), 1.0, dtype=F64), 1)
    laplacian = 400.0 * (spread + spread.T - 2.0 * torch.eye(n, dtype=F64))

    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        return p[0] * (laplacian @ u) + p[1] * h(p, t - p[2]) * (1 - u)

    def loss(x: Tensor) -> Tensor:
        u0 = torch.sin(torch.linspace(0.0, 3.0, n, dtype=F64))
        alg = ps.MethodOfSteps(ps.Rodas5P())
        prob = ps.DDEProblem(f, u0, lambda p, t: u0, (0.0, 2.0), x)
        u = ps.solve(prob, alg, saveat=[1.3, 2.0], abstol=1e-10, reltol=1e-10, engine="julia").u
        return (u**2).sum()

    check(loss, f64(0.5, 1.5, 0.7), rtol=2e-6, h=1e-3)
