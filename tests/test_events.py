"""Events: when they happen, what they do, and their gradients, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import pysciml as ps
from support import F64, assert_close, central_difference, f64, nonstiff, stiff

TOL = {"abstol": 1e-10, "reltol": 1e-10}


def fall(u, p, t):
    return torch.stack([u[1], -p[0]])


def height(u, p, t):
    return u[0]


def bounce(u, p, t):
    return torch.stack([torch.zeros_like(u[0]), -p[1] * u[1]])


GROUND = ps.ContinuousCallback(height, bounce, direction=-1)


def ball(h0=10.0, g=9.81, e=0.8, tspan=(0.0, 5.0), callback=GROUND):
    """A ball let go at a height h0; p is gravity and what is kept of the speed at a bounce."""
    u0 = torch.stack([torch.as_tensor(h0, dtype=F64), f64(0.0)])
    p = torch.stack([torch.as_tensor(g, dtype=F64), torch.as_tensor(e, dtype=F64)])
    return ps.ODEProblem(fall, u0, tspan, p, callback=callback)


def bounces(h0, g, e, count):
    """Times of the bounces, and the speeds just after them."""
    h0, g, e = (torch.as_tensor(x, dtype=F64) for x in (h0, g, e))
    t, v = torch.sqrt(2 * h0 / g), torch.sqrt(2 * g * h0)
    times, speeds = [], []
    for _ in range(count):
        v = e * v
        times.append(t)
        speeds.append(v)
        t = t + 2 * v / g
    return torch.stack(times), torch.stack(speeds)


def ball_at(t, h0, g, e):
    """The ball's (height, speed) at a time."""
    times, speeds = bounces(h0, g, e, 12)
    k = int((times < t).sum())
    g = torch.as_tensor(g, dtype=F64)
    if k == 0:
        return torch.stack([h0 - 0.5 * g * t**2, -g * t])
    since, v = t - times[k - 1], speeds[k - 1]
    return torch.stack([v * since - 0.5 * g * since**2, v - g * since])


# -- bouncing ball ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nonstiff, stiff])
def test_bouncing_ball_event_times(engine, kind):
    sol = ps.solve(ball(tspan=(0.0, 6.5)), kind(engine), engine=engine, **TOL)
    want, _ = bounces(10.0, 9.81, 0.8, 3)
    assert [e.callback for e in sol.events] == [0, 0, 0]
    assert_close(f64([e.t for e in sol.events]), want, 1e-7)
    assert (sol.u[:, 0] > -1e-7).all()


def test_bouncing_ball_between_its_bounces(engine):
    grid = torch.linspace(0.1, 5.0, 40, dtype=F64)
    callback = ps.ContinuousCallback(height, bounce, direction=-1, save_positions=(False, False))
    prob = ball(callback=callback)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=grid, **TOL)
    assert torch.equal(sol.t, grid)
    want = torch.stack([ball_at(t, f64(10.0), 9.81, 0.8) for t in grid])
    assert_close(sol.u, want, 0.0, 1e-6)
    assert_close(sol(grid), want, 0.0, 1e-6)


def test_the_state_before_and_after_an_event_is_saved(engine):
    sol = ps.solve(ball(tspan=(0.0, 2.0)), nonstiff(engine), engine=engine, **TOL)
    (event,) = sol.events
    at = (sol.t == event.t).nonzero().reshape(-1)
    assert len(at) == 2 and at[1] == at[0] + 1
    v = math.sqrt(2 * 9.81 * 10.0)
    assert_close(sol.u[at, 1], f64(-v, 0.8 * v), 1e-7)
    # exactly at the event the solution is the one after it
    assert_close(sol(event.t), sol.u[at[1]], 1e-12)


@pytest.mark.parametrize("positions", [(a, b) for a in (True, False) for b in (True, False)])
def test_save_positions_beside_a_grid(engine, positions):
    callback = ps.ContinuousCallback(height, bounce, direction=-1, save_positions=positions)
    prob = ball(tspan=(0.0, 2.0), callback=callback)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[0.5, 1.0, 1.5, 2.0], **TOL)
    tau = sol.events[0].t
    assert [t for t in sol.t.tolist() if t != tau] == [0.5, 1.0, 1.5, 2.0]
    v = math.sqrt(2 * 9.81 * 10.0)
    want = [-v] * positions[0] + [0.8 * v] * positions[1]
    at = (sol.t - tau).abs() < 1e-9
    assert_close(sol.u[at, 1], torch.tensor(want, dtype=F64), 1e-7)
    assert (sol.t.diff() >= 0).all()


def test_bouncing_ball_gradients_through_moving_events(engine):
    inputs = (f64(10.0, grad=True), f64(9.81, grad=True), f64(0.8, grad=True))
    sol = ps.solve(
        ball(*inputs), nonstiff(engine), engine=engine, saveat=[1.0, 2.0, 4.0, 5.0], **TOL
    )
    keep = torch.isin(sol.t, f64(1.0, 2.0, 4.0, 5.0))
    got = torch.autograd.grad((sol.u[keep] * f64(1.0, 0.3)).sum(), inputs)
    want = sum((ball_at(f64(t), *inputs) * f64(1.0, 0.3)).sum() for t in (1.0, 2.0, 4.0, 5.0))
    for a, b in zip(got, torch.autograd.grad(want, inputs), strict=True):
        assert_close(a, b, 1e-6)


def test_gradient_of_the_event_times_themselves(engine):
    inputs = (f64(10.0, grad=True), f64(9.81, grad=True), f64(0.8, grad=True))
    sol = ps.solve(ball(*inputs), nonstiff(engine), engine=engine, **TOL)
    times, speeds = bounces(*inputs, 3)
    for k, event in enumerate(sol.events):
        before, after = (sol.t == event.t).nonzero().reshape(-1)
        for got, want in (
            (sol.t[before], times[k]),
            (sol.t[after], times[k]),
            (sol.u[before, 1], -speeds[k] / inputs[2]),
            (sol.u[after, 1], speeds[k]),
        ):
            assert_close(got, want, 1e-7)
            a = torch.autograd.grad(got, inputs, retain_graph=True)
            b = torch.autograd.grad(want, inputs, retain_graph=True, allow_unused=True)
            for x, y in zip(a, b, strict=True):
                assert_close(x, torch.zeros(()) if y is None else y, 1e-6, 1e-7)


def test_interpolated_solution_has_gradients_through_events(engine):
    inputs = (f64(10.0, grad=True), f64(9.81, grad=True), f64(0.8, grad=True))
    sol = ps.solve(ball(*inputs), nonstiff(engine), engine=engine, **TOL)
    at = f64(3.3, grad=True)
    got = torch.autograd.grad(sol(at).sum(), (*inputs, at))
    want = torch.autograd.grad(ball_at(at, *inputs).sum(), (*inputs, at))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-6)


def test_gradient_to_tspan_through_events(engine):
    """The start moves all: the ball lands, and bounces, as much later as it was let go."""
    t0, t1 = f64(0.5, grad=True), f64(3.5, grad=True)
    prob = ball(tspan=(t0, t1))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    got = torch.autograd.grad(sol.u[-1].sum(), (t0, t1), retain_graph=True)
    want = torch.autograd.grad(ball_at(t1 - t0, f64(10.0), 9.81, 0.8).sum(), (t0, t1))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-6)
    first = (sol.t == sol.events[0].t).nonzero()[0, 0]
    d0, d1 = torch.autograd.grad(sol.t[first], (t0, t1))
    assert_close(d0, f64(1.0), 1e-6)
    assert d1 == 0.0


# -- terminate ------------------------------------------------------------------


def test_terminate_ends_the_solve_at_the_event(engine):
    callback = ps.ContinuousCallback(height, ps.terminate)
    h0, g = f64(10.0, grad=True), f64(9.81, grad=True)
    sol = ps.solve(ball(h0, g, callback=callback), nonstiff(engine), engine=engine, **TOL)
    assert sol.retcode == "Terminated" and sol.success and len(sol.events) == 1
    tau = torch.sqrt(2 * h0 / g)
    assert_close(sol.t[-1], tau, 1e-8)
    assert_close(sol.u[-1], torch.stack([f64(0.0), -g * tau]), 1e-7)
    for got, want in ((sol.t[-1], tau), (sol.u[-1, 1], -g * tau)):
        a = torch.autograd.grad(got, (h0, g), retain_graph=True)
        b = torch.autograd.grad(want, (h0, g), retain_graph=True)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y, 1e-6)
    # the height at the event is zero whatever the inputs are
    for x in torch.autograd.grad(sol.u[-1, 0], (h0, g)):
        assert_close(x, f64(0.0), 0.0, 1e-7)


def test_terminate_with_a_grid_keeps_what_was_reached_and_the_end(engine):
    callback = ps.ContinuousCallback(height, ps.terminate)
    sol = ps.solve(ball(callback=callback), nonstiff(engine), engine=engine, saveat=0.5, **TOL)
    assert sol.t[:3].tolist() == [0.0, 0.5, 1.0] and len(sol) == 4
    assert_close(sol.t[-1], f64(math.sqrt(20 / 9.81)), 1e-8)
    with pytest.raises(ps.InputError, match="outside the solution"):
        sol(2.0)


def test_training_on_an_event_time(engine):
    """Throw the ball so that it lands after two seconds."""
    v = f64(5.0, grad=True)
    optimiser = torch.optim.SGD([v], lr=10.0)
    callback = ps.ContinuousCallback(height, ps.terminate, direction=-1)
    for _ in range(40):
        prob = ps.ODEProblem(
            fall, torch.stack([f64(1.0), v]), (0.0, 50.0), f64(9.81, 0.0), callback=callback
        )
        sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
        loss = (sol.t[-1] - 2.0) ** 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert_close(v, f64((0.5 * 9.81 * 4.0 - 1.0) / 2.0), 1e-4)


# -- direction, several, order ------------------------------------------------------------


def test_direction(engine):
    prob = ps.ODEProblem(lambda u, p, t: torch.stack([u[1], -u[0]]), f64(0.5, 1.0), (0.0, 12.0))
    found = {}
    for direction in (-1, 0, 1):
        callback = ps.ContinuousCallback(lambda u, p, t: u[0], direction=direction)
        sol = ps.solve(prob, nonstiff(engine), engine=engine, callback=callback, **TOL)
        found[direction] = [e.t for e in sol.events]
    phase = math.atan2(0.5, 1.0)
    roots = [k * math.pi - phase for k in (1, 2, 3)]
    assert_close(f64(found[0]), f64(roots), 1e-7)
    assert_close(f64(found[-1]), f64(roots[::2]), 1e-7)
    assert_close(f64(found[1]), f64([roots[1]]), 1e-7)


def test_direction_in_backward_time_is_seen_along_the_solve(engine):
    """Upwards is the way in which the condition changes as the solve goes on."""
    prob = ps.ODEProblem(lambda u, p, t: torch.ones_like(u), f64([1.0]), (1.0, -1.0))
    down = ps.ContinuousCallback(lambda u, p, t: u[0], direction=-1)
    up = ps.ContinuousCallback(lambda u, p, t: u[0], direction=1)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, callback=[up, down], **TOL)
    assert [e.callback for e in sol.events] == [1]
    assert abs(sol.events[0].t) < 1e-8


def test_a_callback_without_affect_only_records(engine):
    prob = ps.ODEProblem(lambda u, p, t: torch.cos(t) * torch.ones_like(u), f64([0.0]), (0.0, 6.0))
    callback = ps.ContinuousCallback(lambda u, p, t: u[0] - 0.5)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, callback=callback, **TOL)
    assert_close(f64([e.t for e in sol.events]), f64(math.pi / 6, 5 * math.pi / 6), 1e-7)
    plain = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    assert_close(sol.u[-1], plain.u[-1], 0.0, 1e-8)


def box_problem(x, v, walls):
    left = ps.ContinuousCallback(
        lambda u, p, t: u[0] - p[0], lambda u, p, t: torch.stack([u[0], -u[1]]), direction=-1
    )
    right = ps.ContinuousCallback(
        lambda u, p, t: u[0] - p[1], lambda u, p, t: torch.stack([u[0], -p[2] * u[1]]), direction=1
    )
    return ps.ODEProblem(
        lambda u, p, t: torch.stack([u[1], torch.zeros_like(u[0])]),
        torch.stack([x, v]), (0.0, 6.0), walls, callback=ps.CallbackSet(left, right),
    )  # fmt: skip


def test_two_callbacks_against_differences(engine):
    """Between two walls, one of which is elastic and one that takes speed."""
    sol = ps.solve(
        box_problem(f64(0.3), f64(1.0), f64(0.0, 1.0, 0.7)), nonstiff(engine), engine=engine, **TOL
    )
    first = 0.7
    second = first + 1 / 0.7
    third = second + 1 / 0.7
    fourth = third + 1 / 0.49
    assert [e.callback for e in sol.events] == [1, 0, 1, 0]
    assert_close(f64([e.t for e in sol.events]), f64(first, second, third, fourth), 1e-7)

    def loss(x):
        prob = box_problem(x[0], x[1], x[2:])
        sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
        return sol.u[-1, 0] + 2.0 * sol.u[-1, 1] + sol(3.0)[0]

    x = f64(0.3, 1.0, 0.0, 1.0, 0.7, grad=True)
    (got,) = torch.autograd.grad(loss(x), x)
    assert_close(got, central_difference(loss, x, 1e-3), 1e-6)


def test_callbacks_at_one_time_act_in_their_order(engine):
    add = ps.PresetTimeCallback([1.0], lambda u, p, t: u + 1.0)
    double = ps.PresetTimeCallback([1.0], lambda u, p, t: 2.0 * u)
    prob = ps.ODEProblem(lambda u, p, t: torch.zeros_like(u), f64([3.0], grad=True), (0.0, 2.0))
    for callbacks, want in (([add, double], 8.0), ([double, add], 7.0)):
        sol = ps.solve(prob, nonstiff(engine), engine=engine, callback=callbacks, **TOL)
        assert_close(sol.u[-1], f64([want]), 1e-12)
        (g,) = torch.autograd.grad(sol.u[-1].sum(), prob.u0)
        assert_close(g, f64([2.0]), 1e-9)


def test_callbacks_of_the_problem_and_of_solve_join(engine):
    mine = ps.PresetTimeCallback([0.5], lambda u, p, t: u + 1.0)
    more = ps.PresetTimeCallback([0.7], lambda u, p, t: u + 10.0)
    prob = ps.ODEProblem(lambda u, p, t: 0.0 * u, f64([0.0]), (0.0, 1.0), callback=mine)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, callback=more, **TOL)
    assert_close(sol.u[-1], f64([11.0]), 1e-12)
    assert [(e.t, e.callback) for e in sol.events] == [(0.5, 0), (0.7, 1)]


def test_a_condition_of_time(engine):
    at = f64(0.7, grad=True)
    callback = ps.ContinuousCallback(lambda u, p, t: t - at, lambda u, p, t: u + 1.0)
    prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 2.0), callback=callback)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    assert_close(sol.u[-1], torch.exp(f64([-2.0])) + torch.exp(at.detach() - 2.0), 1e-8)
    (got,) = torch.autograd.grad(sol.u[-1].sum(), at)
    assert_close(got, torch.exp(at.detach() - 2.0), 1e-6)


def test_an_affect_that_depends_on_time(engine):
    """The affect's own slope in t counts where the event time moves."""
    level = f64(0.5, grad=True)
    callback = ps.ContinuousCallback(
        lambda u, p, t: u[0] - p, lambda u, p, t: u + torch.sin(3.0 * t), direction=-1
    )
    prob = ps.ODEProblem(
        lambda u, p, t: torch.full_like(u, -1.0), f64([1.0]), (0.0, 0.9), level, callback=callback
    )
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    # the event is at 1 - level
    assert_close(sol.u[-1], f64([0.1 + math.sin(1.5)]), 1e-8)
    (got,) = torch.autograd.grad(sol.u[-1].sum(), level)
    assert_close(got, f64(-3.0 * math.cos(1.5)), 1e-6)


# -- discrete ------------------------------------------------------------------


def test_discrete_callback_acts_after_a_step(engine):
    """Whenever the state is found below one half after a step it is set to one."""
    callback = ps.DiscreteCallback(lambda u, p, t: u[0] < 0.5, lambda u, p, t: torch.ones_like(u))
    prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 3.0), callback=callback)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, dtmax=0.01, **TOL)
    assert len(sol.events) == 4
    assert_close(f64([sol.events[0].t]), f64([math.log(2.0)]), 0.0, 0.011)
    assert sol.u.min() > 0.49


def test_discrete_callback_gradients(engine):
    """A step that is hit exactly makes the event time known."""
    callback = ps.DiscreteCallback(lambda u, p, t: t == 1.0, lambda u, p, t: p[1] * u)
    p = f64(0.5, 3.0, grad=True)
    prob = ps.ODEProblem(lambda u, p, t: -p[0] * u, f64([2.0]), (0.0, 2.0), p, callback=callback)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, tstops=[1.0], **TOL)
    assert [e.t for e in sol.events] == [1.0]
    value = 6.0 * math.exp(-1.0)
    assert_close(sol.u[-1], f64([value]), 1e-8)
    (got,) = torch.autograd.grad(sol.u[-1].sum(), p)
    assert_close(got, f64(-2.0 * value, value / 3.0), 1e-6)


def test_discrete_terminate(engine):
    callback = ps.DiscreteCallback(lambda u, p, t: t > 0.5, ps.terminate)
    prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 3.0), callback=callback)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, dtmax=0.1, **TOL)
    assert sol.retcode == "Terminated" and 0.5 < sol.t[-1] <= 0.6 + 1e-9


# -- preset: dosing ------------------------------------------------------------------


def dosing(dose, rate, times, tspan=(0.0, 10.0)):
    """One compartment, a dose at each of the times: u = sum of dose exp(-rate (t - t_k))."""
    callback = ps.PresetTimeCallback(times, lambda u, p, t: u + p["dose"])
    p = {"dose": dose, "rate": rate}
    return ps.ODEProblem(lambda u, p, t: -p["rate"] * u, f64([0.0]), tspan, p, callback=callback)


def dosed(t, dose, rate, times):
    return sum(dose * torch.exp(-rate * (t - x)) for x in times if x <= t)


def test_dosing_against_its_closed_form(engine):
    dose, rate = f64(2.0, grad=True), f64(0.3, grad=True)
    times, at = [1.0, 3.0, 4.5], [0.5, 2.0, 4.0, 8.0, 10.0]
    callback_times = torch.tensor(times, dtype=F64)
    prob = dosing(dose, rate, callback_times)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=at, **TOL)
    assert [e.t for e in sol.events] == times
    keep = torch.isin(sol.t, f64(*at))
    want = torch.stack([torch.as_tensor(dosed(t, dose, rate, times), dtype=F64) for t in at])
    assert_close(sol.u[keep, 0], want, 1e-8)
    got = torch.autograd.grad(sol.u[keep].square().sum(), (dose, rate))
    for a, b in zip(got, torch.autograd.grad(want.square().sum(), (dose, rate)), strict=True):
        assert_close(a, b, 1e-6)


def test_dose_at_the_very_start_and_the_very_end(engine):
    dose, rate = f64(2.0, grad=True), f64(0.3, grad=True)
    sol = ps.solve(
        dosing(dose, rate, [0.0, 2.0], (0.0, 2.0)), nonstiff(engine), engine=engine, **TOL
    )
    assert [e.t for e in sol.events] == [0.0, 2.0]
    assert_close(sol.u[0], f64([0.0]), 0.0, 0.0)
    assert_close(sol.u[1], f64([2.0]), 1e-12)
    assert_close(sol.u[-1], (dose + dose * torch.exp(-2.0 * rate)).reshape(1), 1e-8)
    got = torch.autograd.grad(sol.u[-1].sum(), (dose, rate))
    want = (1.0 + math.exp(-0.6), -4.0 * math.exp(-0.6))
    for a, b in zip(got, want, strict=True):
        assert_close(a, f64(b), 1e-6)


def test_a_grid_time_on_a_preset_event(engine):
    """The grid's own output is the state before the dose; beside it stands the one after."""
    prob = dosing(f64(2.0), f64(0.0), [1.0, 2.0], (0.0, 3.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[1.0, 2.0, 3.0], **TOL)
    assert sol.t.tolist() == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert_close(sol.u[:, 0], f64(0.0, 2.0, 2.0, 4.0, 4.0), 1e-9)


def test_dosing_in_backward_time(engine):
    prob = dosing(f64(2.0), f64(0.3), [3.0, 1.0], (4.0, 0.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    assert [e.t for e in sol.events] == [3.0, 1.0]
    want = 2.0 * math.exp(0.3 * 3.0) + 2.0 * math.exp(0.3 * 1.0)
    assert_close(sol.u[-1], f64([want]), 1e-8)


# -- closures ------------------------------------------------------------------


def test_closures_of_condition_and_affect_get_gradients(engine):
    level, kick = f64(0.4, grad=True), f64(0.3, grad=True)
    callback = ps.ContinuousCallback(
        lambda u, p, t: u[0] - level, lambda u, p, t: u + kick, direction=-1
    )
    prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 1.5), callback=callback)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    tau = -torch.log(level)
    again = tau + torch.log((level + kick) / level)
    want = (level + kick) * torch.exp(-(1.5 - again)) if again < 1.5 else None
    assert want is not None and len(sol.events) == 2
    assert_close(sol.u[-1], want.reshape(1), 1e-8)
    got = torch.autograd.grad(sol.u[-1].sum(), (level, kick))
    for a, b in zip(got, torch.autograd.grad(want, (level, kick)), strict=True):
        assert_close(a, b, 1e-6)


def test_a_changed_closure_of_an_affect_is_noticed(engine):
    class Kick:
        size = 1.0

        def affect(self, u, p, t):
            return u + self.size

    kick = Kick()
    callback = ps.PresetTimeCallback([0.5], kick.affect)
    prob = ps.ODEProblem(lambda u, p, t: 0.0 * u, f64([0.0]), (0.0, 1.0), callback=callback)
    for size in (1.0, 5.0):
        kick.size = size
        sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
        assert_close(sol.u[-1], f64([size]), 1e-12)


@pytest.mark.parametrize(
    "sensealg",
    [
        ps.GaussAdjoint(),
        ps.InterpolatingAdjoint(abstol=1e-11, reltol=1e-11),
        ps.QuadratureAdjoint(),
        ps.CollocationAdjoint(),
        ps.ForwardSensitivity(),
    ],
    ids=lambda s: s.name,
)
def test_sensitivity_algorithms_agree_through_events(engine, sensealg):
    inputs = (f64(10.0, grad=True), f64(9.81, grad=True), f64(0.8, grad=True))
    sol = ps.solve(ball(*inputs), nonstiff(engine), engine=engine, sensealg=sensealg, **TOL)
    got = torch.autograd.grad(sol.u[-1].sum(), inputs)
    want = torch.autograd.grad(ball_at(f64(5.0), *inputs).sum(), inputs)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-6)


# -- DAEs ------------------------------------------------------------------


def test_events_of_a_dae(engine):
    """A decaying pair bound by an algebraic equation is refilled where it falls to one half."""
    mass = torch.diag(f64(1.0, 0.0))
    callback = ps.ContinuousCallback(
        lambda u, p, t: u[0] - 0.5, lambda u, p, t: torch.stack([2.0 * u[0], 4.0 * u[0]])
    )
    prob = ps.ODEProblem(
        lambda u, p, t: torch.stack([-u[0], u[1] - 2.0 * u[0]]), f64(1.0, 2.0), (0.0, 2.0),
        mass_matrix=mass, callback=callback,
    )  # fmt: skip
    alg = ps.IDA() if engine == "sundials" else ps.Rodas5P()
    sol = ps.solve(prob, alg, engine=engine, abstol=1e-9, reltol=1e-9)
    assert_close(f64([e.t for e in sol.events]), f64(math.log(2), 2 * math.log(2)), 1e-6)
    assert_close(sol.u[-1, 1], 2.0 * sol.u[-1, 0], 1e-6)


# -- events that crowd ------------------------------------------------------------------


def test_an_event_right_after_another_is_not_stepped_over(engine):
    """Bounces of a ball that keeps half its speed: the second follows much sooner than a step."""
    g, e = 9.81, 1e-4
    sol = ps.solve(ball(g=g, e=e, tspan=(0.0, 2.0)), nonstiff(engine), engine=engine, **TOL)
    times, _ = bounces(10.0, g, e, 2)
    assert len(sol.events) >= 2
    assert_close(f64([x.t for x in sol.events[:2]]), times, 1e-6)
    assert float(times[1] - times[0]) < 3e-4


def test_an_event_does_not_repeat_on_the_rounding_that_it_leaves(engine):
    """The affect leaves the height where the solver found it: at zero up to rounding."""
    callback = ps.ContinuousCallback(height, lambda u, p, t: torch.stack([u[0], -p[1] * u[1]]))
    sol = ps.solve(ball(callback=callback), nonstiff(engine), engine=engine, **TOL)
    times, _ = bounces(10.0, 9.81, 0.8, 2)
    assert_close(f64([e.t for e in sol.events]), times, 1e-7)
    assert_close(sol.u[-1], ball_at(f64(5.0), f64(10.0), 9.81, 0.8), 1e-6)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_roots_at_exactly_one_time_all_act(engine, order):
    """A ball meets the corner of two walls, and loses speed in both directions."""

    def wall(i, keep):
        def rebound(u, p, t):
            v = u[2:] * torch.tensor([keep if k == i else 1.0 for k in range(2)], dtype=u.dtype)
            return torch.cat([u[:2], v])

        return ps.ContinuousCallback(lambda u, p, t: u[i] - 1.0, rebound, direction=1)

    walls = [wall(0, -0.5), wall(1, -0.25)]
    u0 = f64(0.0, 0.0, 1.0, 1.0)
    prob = ps.ODEProblem(lambda u, p, t: torch.cat([u[2:], 0.0 * u[2:]]), u0, (0.0, 2.0))
    callbacks = [walls[i] for i in order]
    sol = ps.solve(prob, nonstiff(engine), callback=callbacks, engine=engine, **TOL)
    assert sorted(e.callback for e in sol.events) == [0, 1]
    assert_close(f64([e.t for e in sol.events]), f64(1.0, 1.0), 1e-9)
    assert_close(sol.u[-1], f64(0.5, 0.75, -0.5, -0.25), 1e-8)


def test_a_condition_that_starts_from_zero(engine):
    """Thrown from the ground, in a step that reaches beyond the landing."""
    prob = ps.ODEProblem(fall, f64(0.0, 1.0), (0.0, 1.0), f64(9.81, 0.5))
    sol = ps.solve(
        prob, nonstiff(engine), callback=ps.ContinuousCallback(height, bounce), engine=engine,
        dt=0.25 if engine == "julia" else None, **TOL,
    )  # fmt: skip
    assert_close(f64([e.t for e in sol.events][:1]), f64([2 / 9.81]), 1e-8)
