"""Maps against closed forms and torch's own loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import InputError, SolveError
from support import F64, assert_close, f64


def logistic(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return p * u * (1 - u)


def test_geometric_growth_is_exact(engine) -> None:
    prob = ps.DiscreteProblem(lambda u, p, t: p * u, f64(1.0, 3.0), (0.0, 10.0), f64(1.5))
    sol = ps.solve(prob, ps.FunctionMap(), engine=engine)
    assert sol.t.tolist() == list(range(11)) and sol.stats.naccept == 10
    assert_close(sol.u, f64([1.0, 3.0]) * 1.5 ** sol.t[:, None], 1e-14)
    assert torch.equal(sol(3.7), sol.u[3]) and torch.equal(sol(10.0), sol.u[10])


def test_gradients_are_those_of_the_loop(engine) -> None:
    W = torch.tensor([[0.5, -0.3], [0.2, 0.9]], dtype=F64, requires_grad=True)
    p, u0 = f64(0.7, grad=True), f64(0.1, 0.4, grad=True)

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(W @ u + p * torch.sin(t))

    sol = ps.solve(ps.DiscreteProblem(f, u0, (0.0, 8.0), p), engine=engine, saveat=[2.0, 5.0, 8.0])
    states = [u0]
    for k in range(1, 9):
        states.append(f(states[-1], p, f64(float(k))))
    want = torch.stack([states[2], states[5], states[8]])
    assert_close(sol.u, want, 1e-14)
    inputs = (u0, p, W)
    got = torch.autograd.grad((sol.u.square() * f64([1.0, 2.0])).sum() + sol(3.5).sum(), inputs)
    ref = torch.autograd.grad((want.square() * f64([1.0, 2.0])).sum() + states[3].sum(), inputs)
    for a, b in zip(got, ref, strict=True):
        assert_close(a, b, 1e-12)


def test_steps_scaled_by_time_are_eulers() -> None:
    u0, p = f64([1.0], grad=True), f64(0.5, grad=True)
    prob = ps.DiscreteProblem(lambda u, p, t: -p * u, u0, (1.0, 2.0), p)
    sol = ps.solve(prob, ps.FunctionMap(scale_by_time=True), engine="sundials", dt=0.25)
    exact = u0 * (1 - 0.25 * p) ** 4
    assert_close(sol.u[-1], exact, 1e-14)
    for a, b in zip(
        torch.autograd.grad(sol.u[-1], [u0, p]), torch.autograd.grad(exact, [u0, p]), strict=True
    ):
        assert_close(a, b, 1e-13)


def test_pytrees_and_a_part_of_the_state() -> None:
    def f(u: Any, p: Any, t: Tensor) -> Any:
        return {"a": u["b"], "b": u["a"] + u["b"]}

    prob = ps.DiscreteProblem(f, {"a": f64(0.0), "b": f64(1.0)}, (0.0, 10.0))
    assert float(ps.solve(prob, engine="sundials").u["b"][-1]) == 89.0  # Fibonacci
    assert ps.solve(prob, engine="sundials", save_idxs=[0]).u[-1].tolist() == [55.0]
    assert "DiscreteProblem" in repr(prob)


def test_an_ensemble_of_maps(engine) -> None:
    rates = f64(2.0, 2.5, grad=True)
    prob = ps.DiscreteProblem(logistic, f64([0.3]), (0.0, 200.0), f64(2.0))
    ensemble = ps.EnsembleProblem(prob, lambda prob, i: ps.remake(prob, p=rates[i]))
    sim = ps.solve(ensemble, trajectories=2, engine=engine, saveat=[200.0])
    assert_close(sim.u[:, 0, 0], 1 - 1 / rates, 1e-12)
    (got,) = torch.autograd.grad(sim.u.sum(), rates)
    assert_close(got, 1 / rates**2, 1e-10)


@pytest.mark.parametrize("scaled", [False, True])
def test_events_of_a_map_and_their_gradient(scaled: bool) -> None:
    dose, p, u0 = f64(0.2, grad=True), f64(0.7, 0.5, grad=True), f64(0.3, 1.1, grad=True)
    dt = 0.5

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return p[0] * torch.sin(u) + 0.1 * u.flip(0) * t

    def halved(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return p[1] * u**2

    def dosed(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return u + dose * t

    def high(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return u[1] > 0.8

    events = [
        ps.DiscreteCallback(high, halved),
        ps.PeriodicCallback(dosed, 1.0, initial_affect=True, save_positions=(False, False)),
    ]
    prob = ps.DiscreteProblem(f, u0, (1.0, 5.0), p, callback=events[0])
    sol = ps.solve(
        prob, ps.FunctionMap(scale_by_time=scaled), dt=dt, callback=events[1], engine="sundials"
    )
    t, u = 1.0, dosed(u0, p, f64(1.0))
    times, states, happened = [1.0, 1.0], [u0, u], [(1, 1.0)]
    while t < 5.0:
        t += dt
        u = u + dt * f(u, p, f64(t)) if scaled else f(u, p, f64(t))
        before, hit = u, []
        if bool(high(u, p, f64(t))):
            u, hit = halved(u, p, f64(t)), [0]
        if t in (2.0, 3.0, 4.0):
            u, hit = dosed(u, p, f64(t)), [*hit, 1]
        happened += [(i, t) for i in hit]
        pair = [before, u] if hit and hit[0] == 0 else [u]
        if hit and hit[0] == 1:
            pair = [before, u]
        times, states = times + [t] * len(pair), states + pair
    assert [(e.callback, e.t) for e in sol.events] == happened and {i for i, _ in happened} == {
        0,
        1,
    }
    assert sol.t.tolist() == times
    want = torch.stack(states)
    assert_close(sol.u, want, 1e-13)
    assert torch.equal(sol(2.0), sol.u[times.index(2.0) + 1])  # after its event
    inputs = (u0, p, dose)
    weights = torch.linspace(0.5, 1.5, want.numel(), dtype=F64).reshape(want.shape)
    got = torch.autograd.grad((weights * sol.u).sum() + sol(2.5).square().sum(), inputs)
    last = len(times) - 1 - times[::-1].index(2.5)
    ref = torch.autograd.grad((weights * want).sum() + want[last].square().sum(), inputs)
    for a, b in zip(got, ref, strict=True):
        assert_close(a, b, 1e-12)


def test_outputs_at_events_of_a_map() -> None:
    def plus(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return u + 10.0

    def solved(saves: tuple[bool, bool], **options: Any) -> list[tuple[float, float]]:
        event = ps.PresetTimeCallback([2.0], plus, save_positions=saves)
        prob = ps.DiscreteProblem(lambda u, p, t: u + 1, f64([0.0]), (0.0, 4.0), callback=event)
        sol = ps.solve(prob, engine="sundials", **options)
        return list(zip(sol.t.tolist(), sol.u[:, 0].tolist(), strict=True))

    every = [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (2.0, 12.0), (3.0, 13.0), (4.0, 14.0)]
    assert solved((True, True)) == every
    at = {"saveat": [1.0, 2.0, 4.0]}
    assert solved((True, True), **at) == [every[1], every[2], every[3], every[5]]
    assert solved((False, False), **at) == [every[1], every[2], every[5]]
    assert solved((True, False), saveat=[4.0]) == [every[2], every[5]]
    assert solved((False, False), saveat=[4.0]) == [every[5]]


def test_a_map_that_an_event_ends_and_what_it_saved() -> None:
    p = f64(1.5, grad=True)
    saved = ps.SavedValues()
    callbacks = [
        ps.DiscreteCallback(lambda u, p, t: u[0] > 3.0, ps.terminate),
        ps.SavingCallback(lambda u, p, t: p * u[0], saved, saveat=[0.5, 2.0, 9.0]),
        ps.PositiveDomain(),
    ]
    prob = ps.DiscreteProblem(lambda u, p, t: p * u, f64([1.0]), (0.0, 10.0), p, callbacks)
    sol = ps.solve(prob, engine="sundials")
    assert sol.retcode == "Terminated" and sol.success and sol.t.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert [e.callback for e in sol.events] == [0]
    assert saved.t.tolist() == [0.5, 2.0]
    assert_close(saved.saveval, torch.stack([p, p**3]), 1e-14)
    (got,) = torch.autograd.grad(saved.saveval.sum() + sol.u[-1, 0], p)
    assert_close(got, 1 + 6 * p**2, 1e-13)
    kept = ps.DiscreteProblem(
        lambda u, p, t: u - 1.0, f64(1.5, 9.0), (0.0, 4.0), callback=ps.PositiveDomain()
    )
    assert_close(ps.solve(kept, engine="sundials").u[-1], f64(0.0, 5.0), 1e-15)


@pytest.mark.julia
def test_a_pure_jump_process_keeps_the_callbacks_of_its_map() -> None:
    stop = ps.DiscreteCallback(lambda u, p, t: u[0] > 7.5, ps.terminate)
    counts = ps.DiscreteProblem(None, torch.tensor([0]), (0.0, 100.0), f64(1.0), callback=stop)
    birth = ps.ConstantRateJump(lambda u, p, t: p, lambda u, p, t: u + 1)
    sol = ps.solve(ps.JumpProblem(counts, birth), ps.SSAStepper(), seed=1, engine="julia")
    assert sol.retcode == "Terminated" and int(sol.u[-1]) == 8


def with_callback(callback: Any, end: float = 4.0) -> Any:
    return lambda: ps.solve(
        ps.DiscreteProblem(logistic, ONE, (0.0, end), ONE, callback=callback), engine="sundials"
    )


ONE = f64([1.0])
BAD: dict[str, tuple[Any, str]] = {
    "f": (lambda: ps.DiscreteProblem(3, ONE, (0.0, 1.0)), "f is a int; give a function"),
    "root": (
        with_callback([None, ps.ContinuousCallback(lambda u, p, t: u[0] - 0.5)]),
        "callback 0 is of the continuous kind.*give a DiscreteCallback",
    ),
    "roots": (
        with_callback(ps.VectorContinuousCallback(lambda u, p, t: u - 0.5, None, 1)),
        "callback 0 is of the continuous kind",
    ),
    "no step": (
        with_callback(ps.PresetTimeCallback([1.0, 2.5], lambda u, p, t: u)),
        r"times of callback 0: times\[1\] = 2.5 is no step of the map",
    ),
    "rest": (with_callback(ps.TerminateSteadyState()), "a map, which has no rate"),
    "whole": (
        lambda: ps.DiscreteProblem(logistic, torch.tensor([1, 2]), (0.0, 4.0)),
        r"u0 is int64, but a state is float64 or float32; convert it with .double\(\)",
    ),
    "back": (lambda: ps.DiscreteProblem(logistic, ONE, (1.0, 0.0)), "runs backwards"),
    "grad": (
        lambda: ps.DiscreteProblem(logistic, ONE, (0.0, f64(1.0, grad=True))),
        "the times of a map have no gradient",
    ),
    "alg": (
        lambda: ps.solve(ps.DiscreteProblem(logistic, ONE, (0.0, 1.0)), ps.Tsit5()),
        r"iterated by pysciml.FunctionMap\(\)",
    ),
    "option": (
        lambda: ps.solve(ps.DiscreteProblem(logistic, ONE, (0.0, 1.0)), reltol=1e-3),
        "does not take 'reltol' for a DiscreteProblem",
    ),
    "saveat": (
        lambda: ps.solve(ps.DiscreteProblem(logistic, ONE, (0.0, 2.0), ONE), saveat=[0.5, 1.0],
                         engine="sundials"),
        r"saveat\[0\] = 0.5 is no step of the map",
    ),
    "dt": (
        lambda: ps.solve(ps.DiscreteProblem(logistic, ONE, (0.0, 2.0), ONE), dt=-1.0,
                         engine="sundials"),
        "dt is -1.0; give a number > 0",
    ),
    "many": (
        lambda: ps.solve(ps.DiscreteProblem(logistic, ONE, (0.0, 2.0), ONE), dt=1e-9,
                         engine="sundials"),
        "give a larger one",
    ),
    "deriv": (
        lambda: ps.solve(ps.DiscreteProblem(logistic, ONE, (0.0, 2.0), ONE), engine="sundials")(
            1.0, deriv=1
        ),
        "a map has no derivatives by time",
    ),
    "ode": (
        lambda: ps.solve(ps.ODEProblem(logistic, ONE, (0.0, 2.0), ONE), ps.FunctionMap(),
                         engine="sundials"),
        "FunctionMap",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises((InputError, ps.EngineError), match=message):
        call()


def test_a_map_that_leaves_the_finite_numbers() -> None:
    prob = ps.DiscreteProblem(lambda u, p, t: u * u, f64([10.0]), (0.0, 20.0))
    with pytest.raises(SolveError, match="left the finite numbers at t = 8 of 20") as caught:
        ps.solve(prob, engine="sundials")
    assert len(caught.value.solution.t) == 9
    assert ps.solve(prob, engine="sundials", raise_on_failure=False).retcode == "Unstable"
