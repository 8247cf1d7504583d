"""Gradients of delay equations through events: closed forms, and differences in double."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from delayed import check, constant, decay, oscillator, wave
from pysciml.errors import EngineError
from support import F64, assert_close, f64

pytestmark = pytest.mark.julia
TIGHT = {"abstol": 1e-12, "reltol": 1e-12, "engine": "julia"}
TSIT5 = ps.MethodOfSteps(ps.Tsit5())
RODAS = ps.MethodOfSteps(ps.Rodas5P())
ALGORITHMS = [TSIT5, ps.MethodOfSteps(ps.Vern9()), RODAS, None]


def check_closed_form(loss: Any, exact: Any, x: Tensor, rtol: float = 1e-8) -> None:
    x = x.clone().requires_grad_()
    value, want = loss(x), exact(x)
    assert_close(value, want, rtol=rtol)
    assert_close(torch.autograd.grad(value, x)[0], torch.autograd.grad(want, x)[0], rtol=rtol)


def term(z: Tensor, a: Tensor, k: int) -> Tensor:
    """The answer of ``u' = -a u(t - tau)`` to a jump of one, k lags and z later."""
    return torch.where(z >= 0, (-a) ** k * z.clamp(min=0.0) ** k / math.factorial(k), 0.0 * z)


def undisturbed(t: Tensor, a: Tensor, tau: Tensor, c: Tensor, u0: Tensor) -> Tensor:
    u = torch.zeros_like(t) + u0
    for k in range(1, 9):
        later = term(t - k * tau, a, k)
        u = u + u0 * later + c * (term(t - (k - 1) * tau, a, k) - later)
    return u


def answer(t: Tensor, a: Tensor, tau: Tensor) -> Tensor:
    return sum(term(t - k * tau, a, k) for k in range(9))  # type: ignore[return-value]


TIMES = f64(0.3, 0.9, 1.3, 2.0, 2.6, 3.0)
WEIGHTS = f64(1.0, -2.0, 0.5, 1.5, 0.7, 1.0)


@pytest.mark.parametrize("alg", ALGORITHMS, ids=repr)
@pytest.mark.parametrize("start", [0.8, 2.0], ids=["no jump", "jump at t0"])
def test_kicks_at_given_times_in_closed_form(alg: Any, start: float) -> None:
    """x: a, tau, c, u0 and the sizes of the kicks; the lag carries each of them on."""

    def loss(x: Tensor) -> Tensor:
        kick = ps.PresetTimeCallback([0.5], lambda u, p, t: u + x[4])
        scale = ps.PresetTimeCallback([1.1], lambda u, p, t: u * x[5] + x[4] * t)
        prob = ps.DDEProblem(decay, x[3:4], constant, (0.0, 3.0), x[:3])
        sol = ps.solve(prob, alg, callback=[kick, scale], saveat=TIMES, **TIGHT)
        assert len(sol.events) == 2
        return (sol(TIMES)[:, 0] * WEIGHTS).sum()

    def exact(x: Tensor) -> Tensor:
        a, tau, c, u0, size, factor = x
        first = undisturbed(f64(1.1), a, tau, c, u0) + size * answer(f64(1.1) - 0.5, a, tau)
        second = (factor - 1) * first + 1.1 * size
        u = undisturbed(TIMES, a, tau, c, u0) + size * answer(TIMES - 0.5, a, tau)
        return ((u + second * answer(TIMES - 1.1, a, tau)) * WEIGHTS).sum()

    check_closed_form(loss, exact, f64(1.3, 0.7, 0.8, start, 0.6, 1.2))


@pytest.mark.parametrize("alg", ALGORITHMS, ids=repr)
@pytest.mark.parametrize("start", [1.0, 1.2], ids=["no jump", "jump at t0"])
def test_a_moving_event_in_closed_form(alg: Any, start: float) -> None:
    """u falls from u0 at the rate a c until it is at the level, and what is added then comes back
    a lag later, at a moment that moves with all of them."""

    def loss(x: Tensor) -> Tensor:
        def level(u: Any, p: Any, t: Any) -> Any:
            return u[0] - x[4] + 9.0 * torch.relu(t - 0.7)

        kick = ps.ContinuousCallback(level, lambda u, p, t: u + x[5] * u, direction=-1)
        prob = ps.DDEProblem(decay, x[3:4], constant, (0.0, 3.0), x[:3])
        sol = ps.solve(prob, alg, callback=kick, saveat=[1.9], **TIGHT)
        assert len(sol.events) == 1
        return (sol(TIMES)[:, 0] * WEIGHTS).sum() + 0.3 * sol.t[0] ** 2 + 2.0 * sol.u[1, 0]

    def exact(x: Tensor) -> Tensor:
        a, tau, c, u0, level, factor = x
        t = (u0 - level) / (a * c)
        u = undisturbed(TIMES, a, tau, c, u0) + factor * level * answer(TIMES - t, a, tau)
        return (u * WEIGHTS).sum() + 0.3 * t**2 + 2.0 * level * (1 + factor)

    check_closed_form(loss, exact, f64(1.3, 0.7, 1.0, start, 0.4, 2.5))


def bounce(x: Tensor) -> ps.ContinuousCallback:
    def turned(u: Any, p: Any, t: Any) -> Any:
        return torch.stack([-0.7 * u[0] + 0.1 * t, u[1] * p["a"] + 0.2 * u[0] ** 2 - 0.3])

    return ps.ContinuousCallback(lambda u, p, t: u[0] - 0.4 * x.sum() * p["w"] + 0.3 * t, turned)


@pytest.mark.parametrize("alg", [TSIT5, RODAS], ids=repr)
def test_moving_events_of_several_lags_with_parameters(alg: Any) -> None:
    counts = set()

    def loss(x: Tensor) -> Tensor:
        p = {"tau": x[0], "a": x[1], "w": x[2], "b": x[3]}
        kick = ps.PresetTimeCallback([0.85], lambda u, p, t: u + p["b"] * f64(1.0, -1.0) + x[4])
        prob = ps.DDEProblem(oscillator, x[4:], wave, (0.2, 4.0), p)
        sol = ps.solve(prob, alg, callback=[bounce(x[:2]), kick], saveat=0.5, **TIGHT)
        counts.add(len(sol.events))
        return (sol.u**2).sum() + sol(f64(0.9, 2.35)).sum() + (sol.t**2).sum()

    check(loss, f64(0.6, 1.1, 1.7, 0.4, 0.9, 0.2), rtol=2e-6, h=1e-5)
    assert len(counts) == 1 and counts.pop() > 4


@pytest.mark.parametrize("alg", [TSIT5, RODAS], ids=repr)
def test_jumps_seen_by_lags_that_depend_on_the_state(alg: Any) -> None:
    """Delayed times pass both the jump at t0 and that of the event, at moments of their own."""

    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        late = h(p, t - p[1] - 0.3 * torch.tanh(u[0]))
        return -p[0] * late + 0.2 * torch.cos(t)

    def loss(x: Tensor) -> Tensor:
        kick = ps.ContinuousCallback(
            lambda u, p, t: u[0] - p[2], lambda u, p, t: u + 0.9 * p[0], direction=-1
        )
        prob = ps.DDEProblem(f, x[3:], lambda p, t: p[2].reshape(1) + 0.1, (0.0, 3.0), x[:3])
        sol = ps.solve(prob, alg, callback=kick, saveat=[1.0, 2.2, 3.0], **TIGHT)
        assert sol.events
        return sol.u.sum() + sol.t[0] ** 2

    check(loss, f64(1.1, 0.5, 0.4, 1.2), rtol=2e-6, h=1e-3)


def test_a_lag_that_the_event_itself_moves() -> None:
    """After the kick the lag is another: the delayed time leaps over the jump at t0."""

    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        return -p[0] * h(p, t - 0.4 - 0.5 * torch.sigmoid(4 * u[0] - 4))

    def loss(x: Tensor) -> Tensor:
        kick = ps.ContinuousCallback(lambda u, p, t: t - 0.7 * p[1], lambda u, p, t: u - p[1])
        prob = ps.DDEProblem(f, x[2:], lambda p, t: p[1].reshape(1), (0.0, 2.5), x[:2])
        sol = ps.solve(prob, TSIT5, callback=kick, saveat=[1.0, 2.5], **TIGHT)
        return sol.u.sum()

    check(loss, f64(0.9, 0.8, 1.6), rtol=5e-6, h=1e-5)


def test_a_lag_that_depends_on_time() -> None:
    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        return -p[0] * h(p, t - 0.5 - p[1] * torch.sin(t) ** 2)

    def loss(x: Tensor) -> Tensor:
        kick = ps.ContinuousCallback(lambda u, p, t: u[0] - 0.9, lambda u, p, t: u * x[3])
        prob = ps.DDEProblem(f, x[2:3], lambda p, t: f64([0.7]), (0.0, 4.0), x[:2])
        return ps.solve(prob, TSIT5, callback=kick, saveat=[1.0, 2.5, 4.0], **TIGHT).u.sum()

    check(loss, f64(0.8, 0.4, 1.5, 1.3), rtol=2e-6, h=1e-5)


@pytest.mark.parametrize("alg", [TSIT5, RODAS], ids=repr)
def test_the_time_of_the_end(alg: Any) -> None:
    """The solve ends where u is at the level: on (tau, 2 tau), where u is a parabola."""

    def loss(x: Tensor) -> Tensor:
        stop = ps.ContinuousCallback(lambda u, p, t: u[0] - x[4], ps.terminate)
        prob = ps.DDEProblem(decay, x[3:4], constant, (0.0, 3.0), x[:3])
        sol = ps.solve(prob, alg, callback=stop, saveat=[0.2], **TIGHT)
        assert sol.retcode == "Terminated"
        return sol.t[-1] + 0.5 * sol.u[0, 0] ** 2 + sol.u[-1, 0]

    def exact(x: Tensor) -> Tensor:
        a, tau, c, u0, level = x
        # u0 - a c tau - a u0 z + a^2 c z^2 / 2 = level, with z = t - tau
        half, rest = u0 / (a * c), 2 * (u0 - a * c * tau - level) / (a**2 * c)
        z = half - torch.sqrt(half**2 - rest)
        return tau + z + 0.5 * (u0 - 0.2 * a * c) ** 2 + level

    check_closed_form(loss, exact, f64(1.3, 0.7, 0.8, 2.0, 0.3))


def test_discrete_events_act_after_steps() -> None:
    def loss(x: Tensor) -> Tensor:
        once = ps.DiscreteCallback(lambda u, p, t: t == 0.5, lambda u, p, t: u * p[0] + x[3])
        prob = ps.DDEProblem(decay, x[3:], constant, (0.0, 2.0), x[:3])
        sol = ps.solve(prob, TSIT5, callback=once, tstops=[0.5], saveat=[0.9, 2.0], **TIGHT)
        assert [e.t for e in sol.events] == [0.5]
        return (sol.u**2).sum()

    check(loss, f64(1.3, 0.7, 0.8, 1.2))


def test_times_and_an_event_at_the_start() -> None:
    def loss(x: Tensor) -> Tensor:
        p = {"tau": f64(0.6), "a": f64(1.1), "w": f64(1.7), "b": f64(0.4)}
        prob = ps.DDEProblem(oscillator, f64(0.9, 0.2), wave, (x[0], x[1]), p)
        kick = ps.ContinuousCallback(lambda u, p, t: u[0] - 0.8, lambda u, p, t: u + 0.4)
        sol = ps.solve(prob, TSIT5, callback=kick, saveat=torch.cat([x[2:], x[1:2]]), **TIGHT)
        return (sol.u**2).sum()

    check(loss, f64(0.1, 3.0, 0.4, 1.55), rtol=2e-6, h=1e-5)

    def with_start(x: Tensor) -> Tensor:
        first = ps.PresetTimeCallback([0.0, 0.9], lambda u, p, t: u * p[0] ** 2)
        prob = ps.DDEProblem(decay, x[3:], constant, (0.0, 2.0), x[:3])
        sol = ps.solve(prob, TSIT5, callback=first, saveat=[0.0, 0.5, 2.0], **TIGHT)
        assert len(sol.events) == 2
        return (sol.u[:, 0] * torch.arange(1.0, len(sol.t) + 1, dtype=F64)).sum()

    check(with_start, f64(1.3, 0.7, 0.8, 1.2))


def test_an_event_at_the_end() -> None:
    def loss(x: Tensor) -> Tensor:
        last = ps.PresetTimeCallback([2.0], lambda u, p, t: u * p[0] ** 2)
        prob = ps.DDEProblem(decay, x[3:], constant, (0.0, 2.0), x[:3])
        sol = ps.solve(prob, TSIT5, callback=last, saveat=[1.5, 2.0], **TIGHT)
        return (sol.u[:, 0] * torch.arange(1.0, len(sol.t) + 1, dtype=F64)).sum() + sol(2.0).sum()

    check(loss, f64(1.3, 0.7, 0.8, 1.2))


def dosed(lag: Any, affect: Any) -> Callable[[Tensor], Tensor]:
    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        return p[0] * h(p, t - lag(p)) / (1 + u**2) - 0.3 * u

    def loss(x: Tensor) -> Tensor:
        prob = ps.DDEProblem(f, x[2:], lambda p, t: p[0].reshape(1), (0.0, 3.2), x[:2])
        doses = ps.PeriodicCallback(affect, 0.5)
        return (ps.solve(prob, TSIT5, callback=doses, saveat=[1.2, 3.2], **TIGHT).u ** 2).sum()

    return loss


def test_doses_in_step_with_a_lag() -> None:
    """Each dose falls on the moment at which the lag brings an earlier one back."""
    check(dosed(lambda p: 1.0, lambda u, p, t: u + p[1] * torch.sqrt(u)), f64(1.1, 0.4, 0.6))
    # the rate sees the state that the dose changes: it matters which comes first
    loss = dosed(lambda p: 2.5 * p[1], lambda u, p, t: u + 0.3)
    with pytest.raises(
        EngineError, match=r"passes the jump at t = 2\.0 exactly at the event of t = 3\.0"
    ):
        loss(f64(1.1, 0.4, 0.6, grad=True)).backward()

    def additive(x: Tensor) -> Tensor:
        doses = ps.PeriodicCallback(lambda u, p, t: u + 0.3 * p[0], 0.5)
        prob = ps.DDEProblem(decay, x[3:], constant, (0.0, 2.2), x[:3])
        return ps.solve(prob, TSIT5, callback=doses, **TIGHT)(f64(1.2, 2.2)).sum()

    check(additive, f64(0.9, 0.5, 1.2, 0.8))


def test_float32() -> None:
    gradients = []
    for dtype in (torch.float32, F64):
        x = torch.tensor([1.3, 0.7, 0.8, 1.5], dtype=dtype, requires_grad=True)
        kick = ps.ContinuousCallback(lambda u, p, t: u[0] - p[2], lambda u, p, t: u + p[0])
        prob = ps.DDEProblem(decay, x[3:], constant, (0.0, 2.0), x[:3])
        sol = ps.solve(
            prob, TSIT5, callback=kick, saveat=[0.5, 2.0], reltol=1e-5, abstol=1e-5, engine="julia"
        )
        gradients.append(torch.autograd.grad(sol.u.sum(), x)[0])
    assert gradients[0].dtype is torch.float32
    assert_close(gradients[0].double(), gradients[1], rtol=2e-3)


def test_many_states() -> None:
    """More than the stages' equations are formed for."""
    torch.manual_seed(2)
    mix = torch.randn(60, 60, dtype=F64) / 8
    start = torch.linspace(-1.0, 1.0, 60, dtype=F64)

    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        return torch.tanh(mix @ h(p, t - p[1])) - p[0] * u

    def loss(x: Tensor) -> Tensor:
        kick = ps.ContinuousCallback(
            lambda u, p, t: u[:20].mean() + 0.5, lambda u, p, t: u.flip(0) * p[2] + 0.2
        )
        history = lambda p, t: p[2] * torch.cos(t) * start
        prob = ps.DDEProblem(f, start * x[2], history, (0.0, 1.5), x)
        sol = ps.solve(prob, TSIT5, callback=kick, saveat=[0.4, 1.5], **TIGHT)
        assert sol.events
        return (sol.u**2).sum()

    check(loss, f64(0.8, 0.35, 0.9))
