"""Events and jumps of stochastic equations: the steps replayed by hand, pathwise gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import EngineError
from support import F64, assert_close, central_difference, f64

julia = pytest.mark.julia
OPTIONS: dict[str, Any] = {"dt": 0.01, "seed": 8, "engine": "julia"}


def drift(u: Any, p: Any, t: Any) -> Any:
    return p[0] * u


def diffusion(u: Any, p: Any, t: Any) -> Any:
    return p[1] * u


def cut_down(u: Any, p: Any, t: Any) -> Any:
    return p[2] * u + 0.1


def walk(u0: Any = None, p: Any = None, **options: Any) -> ps.SDEProblem:
    u0 = f64(1.0, 2.0) if u0 is None else u0
    p = f64(0.5, 0.4, 0.7) if p is None else p
    return ps.SDEProblem(drift, diffusion, u0, (0.0, 1.0), p, **options)


def replayed(sol: Any, u0: Tensor, p: Tensor, times: list[float]) -> Tensor:
    """The Euler-Maruyama steps at the solver's times with its noise, ``cut_down`` at ``times``."""
    t, w, u = sol.W.t, sol.W.u, u0
    left = sorted(times)
    for k in range(len(t) - 1):
        while left and left[0] == float(t[k]):
            u, left = cut_down(u, p, t[k]), left[1:]
        u = u + (t[k + 1] - t[k]) * drift(u, p, t[k]) + diffusion(u, p, t[k]) * (w[k + 1] - w[k])
    return cut_down(u, p, t[-1]) if left else u


PRESET = ps.PresetTimeCallback([0.333, 0.75], cut_down)


@julia
def test_preset_events_of_a_stochastic_equation() -> None:
    sol = ps.solve(walk(), ps.EM(split=False), callback=PRESET, **OPTIONS)
    assert [e.t for e in sol.events] == [0.333, 0.75]
    assert_close(sol.u[-1], replayed(sol, f64(1.0, 2.0), f64(0.5, 0.4, 0.7), [0.333, 0.75]), 1e-12)
    k = int((sol.t == 0.333).nonzero()[0])
    assert_close(sol.u[k + 1], 0.7 * sol.u[k] + 0.1, 1e-15)
    assert torch.equal(sol(0.333), sol.u[k + 1])
    own = ps.solve(walk(callback=PRESET), ps.EM(split=False), saveat=[0.5, 1.0], **OPTIONS)
    assert torch.equal(own.u[-1], sol.u[-1])
    assert_close(own.u[list(own.t).index(0.5)], sol(0.5), 1e-14)


@julia
@pytest.mark.parametrize("alg", [ps.SOSRI(), ps.ImplicitEM()], ids=repr)
def test_adaptive_methods_step_onto_events(alg: Any) -> None:
    p = f64(0.5, 0.4, 0.7)
    sol = ps.solve(walk(), alg, callback=PRESET, seed=8, abstol=1e-4, reltol=1e-4, engine="julia")
    # the closed form from event to event, on the noise of the path
    u, last, w = f64(1.0, 2.0), 0.0, torch.zeros(2, dtype=F64)
    for t in (0.333, 0.75, 1.0):
        k = int((sol.W.t - t).abs().argmin())
        u = u * torch.exp((0.5 - 0.08) * (t - last) + 0.4 * (sol.W.u[k] - w))
        last, w = t, sol.W.u[k]
        u = cut_down(u, p, None) if t < 1 else u
    assert_close(sol.u[-1], u, 0.02)


@julia
def test_discrete_and_continuous_events_of_a_stochastic_equation() -> None:
    def first_to_rise(callback: Any) -> ps.Solution:
        solved = (
            ps.solve(walk(), ps.EM(), callback=callback, **{**OPTIONS, "seed": seed})
            for seed in range(1, 30)
        )
        return next(sol for sol in solved if sol.events)

    high = ps.DiscreteCallback(lambda u, p, t: u[0] > 1.3, lambda u, p, t: torch.ones_like(u))
    sol = first_to_rise(high)
    for e in sol.events:
        k = int((sol.t == e.t).nonzero()[0])
        assert sol.u[k, 0] > 1.3 and torch.equal(sol.u[k + 1], f64(1.0, 1.0))
    stop = ps.ContinuousCallback(lambda u, p, t: u[0] - 1.2, ps.terminate, direction=1)
    sol = first_to_rise(stop)
    assert sol.retcode == "Terminated" and abs(float(sol.u[-1, 0]) - 1.2) < 1e-8
    with pytest.raises(EngineError, match="ContinuousCallback has no gradient"):
        ps.solve(walk(p=f64(0.5, 0.4, 0.7, grad=True)), ps.EM(), callback=stop, **OPTIONS)


@julia
@pytest.mark.parametrize("alg", [ps.EM(split=False), ps.EM(), ps.SRIW1()], ids=repr)
def test_gradients_through_events_of_a_stochastic_equation(alg: Any) -> None:
    u0, p = f64(1.0, 2.0, grad=True), f64(0.5, 0.4, 0.7, grad=True)
    options: dict[str, Any] = {**OPTIONS, "adaptive": False, "callback": PRESET}
    sol = ps.solve(walk(u0, p), alg, **options)
    weights = torch.linspace(-1, 1, sol.u.numel(), dtype=F64).reshape(sol.u.shape)
    got = torch.autograd.grad((weights * sol.u).sum() + sol(0.333).sum(), (u0, p))

    def loss(x: Tensor) -> Tensor:
        again = ps.solve(walk(x[:2], x[2:]), alg, **options)
        return (weights * again.u).sum() + again(0.333).sum()

    at = torch.cat([u0, p]).detach()
    assert_close(torch.cat(got), central_difference(loss, at), 1e-8)


@julia
def test_jump_diffusion_of_constant_rate() -> None:
    jump = ps.ConstantRateJump(lambda u, p, t: 4.0 * torch.ones_like(t), cut_down)
    u0, p = f64(1.0, 2.0, grad=True), f64(0.5, 0.4, 0.7, grad=True)
    prob = ps.JumpProblem(walk(u0, p), ps.Direct(), jump)
    sol = ps.solve(prob, ps.EM(split=False), **OPTIONS)
    times = sol.jump_times.tolist()
    assert len(times) > 1
    assert torch.equal(sol.u, ps.solve(prob, ps.EM(split=False), **OPTIONS).u)
    want = replayed(sol, u0, p, times)
    assert_close(sol.u[-1], want, 1e-12)
    weights = f64(1.0, -0.5)
    got, expected = (torch.autograd.grad((weights * x).sum(), (u0, p)) for x in (sol.u[-1], want))
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 1e-10)


@julia
@pytest.mark.parametrize("alg", [ps.EM(), ps.RKMil(), ps.LambaEM(), ps.SOSRI()], ids=repr)
def test_jump_diffusion_of_variable_rate(alg: Any) -> None:
    # the rate depends on time alone: the jumps stay where they are when parameters move
    jump = ps.VariableRateJump(lambda u, p, t: 4 + 4 * torch.sin(9 * t), cut_down)
    u0, p = f64(1.0, 2.0, grad=True), f64(0.5, 0.4, 0.7, grad=True)
    options = {**OPTIONS, "adaptive": False}

    def solve(u0: Tensor, p: Tensor) -> Any:
        return ps.solve(ps.JumpProblem(walk(u0, p), ps.Direct(), jump), alg, **options)

    sol = solve(u0, p)
    assert sol.stats.jumps > 1
    weights = torch.linspace(-1, 1, sol.u.numel(), dtype=F64).reshape(sol.u.shape)
    got = torch.autograd.grad((weights * sol.u).sum(), (u0, p))

    def loss(x: Tensor) -> Tensor:
        return (weights * solve(x[:2], x[2:]).u).sum()

    want = central_difference(loss, torch.cat([u0, p]).detach())
    assert_close(torch.cat(got), want, 1e-7)


@julia
def test_gradients_in_float32() -> None:
    jump = ps.VariableRateJump(lambda u, p, t: 4 + 4 * torch.sin(9 * t), cut_down)

    def loss(p: Tensor) -> Tensor:
        prob = walk(torch.tensor([1.0, 2.0]), p)
        sol = ps.solve(ps.JumpProblem(prob, ps.Direct(), jump), ps.EM(), **OPTIONS)
        assert sol.stats.jumps > 1 and sol.u.dtype is torch.float32
        return sol.u[-1].square().sum()

    p = torch.tensor([0.5, 0.4, 0.7], requires_grad=True)
    loss(p).backward()
    assert_close(p.grad, central_difference(loss, p, h=1e-2), 1e-2)


@julia
def test_mean_of_a_jump_diffusion() -> None:
    # du = a u dt + b u dW, u -> c u at the rate r: the mean is exp((a + r (c - 1)) t)
    prob = ps.JumpProblem(
        ps.SDEProblem(drift, diffusion, f64([1.0]), (0.0, 1.0), f64(0.5, 0.2)), ps.Direct(),
        ps.ConstantRateJump(lambda u, p, t: 2.0 * torch.ones_like(t), lambda u, p, t: 0.8 * u),
    )  # fmt: skip
    ensemble = ps.EnsembleProblem(prob)
    sim = ps.solve(
        ensemble, ps.EM(), trajectories=1000, dt=0.02, saveat=[1.0], seed=3, engine="julia"
    )
    assert sim.u.shape == (1000, 1, 1)
    a, b, c, r = 0.5, 0.2, 0.8, 2.0
    mean, second = math.exp(a + r * (c - 1)), math.exp(2 * a + b**2 + r * (c**2 - 1))
    deviation = math.sqrt((second - mean**2) / 1000)
    assert abs(float(sim.u.mean()) - mean) < 4 * deviation + 0.01
