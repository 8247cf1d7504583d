"""A function made anew around new tensors is captured once, and gives them their gradients.

Every right-hand side is ``-rate * u``; after each step value and gradient are compared with the
closed form.
"""

from __future__ import annotations

import functools
import gc
import types
import weakref

import pytest
import torch
from torch import nn

import pysciml as ps
from recapturing import U0, Steps, check, run
from support import assert_close, counted_captures, f64, nonstiff


@pytest.fixture
def steps():
    return Steps()


@pytest.mark.parametrize("kind", ["cell", "default", "partial", "method", "global", "nested"])
def test_fresh_tensors_are_lifted_anew(engine, steps, kind):
    class System:
        def __init__(self, theta, eta):
            self.parts = {"theta": theta, "rest": [eta]}

        def rhs(self, u, p, t):
            return -self.parts["theta"] * self.parts["rest"][0] * u

    def in_cell(theta, eta):
        return lambda u, p, t: -theta * eta * u

    def in_default(theta, eta):
        def f(u, p, t, theta=theta, *, eta=eta):
            return -theta * eta * u

        return f

    def in_partial(theta, eta):
        return functools.partial(lambda a, u, p, t, b: -a * b * u, theta, b=eta)

    def in_method(theta, eta):
        return System(theta, eta).rhs

    def in_global(theta, eta):
        global THETA, ETA
        THETA, ETA = theta, eta
        return _reads_globals

    def in_nested(theta, eta):
        def scaled(u):
            return theta * u

        def f(u, p, t):
            def inner():
                return -eta * scaled(u)

            return inner()

        return f

    make = locals()[f"in_{kind}"]
    with counted_captures() as captures:
        for _ in range(4):
            theta, eta = steps.fresh()
            check(make(theta, eta), theta * eta, steps.leaves, engine=engine)
    assert captures == ["f"]


def _reads_globals(u, p, t):
    return -THETA * ETA * u


def test_a_network_that_puts_out_the_weights(engine):
    """Gradients reach the network through tensors that are new at each step."""

    def decay(w):
        return lambda u, p, t: -w * u

    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    x = f64(1.0, -1.0, 0.5)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    target = f64(0.3, 1.1)
    losses = []
    with counted_captures() as captures:
        for _ in range(40):
            w = net(x)
            prob = ps.ODEProblem(decay(w), f64(*U0), (0.0, 1.0))
            sol = ps.solve(prob, nonstiff(engine), engine=engine, abstol=1e-8, reltol=1e-8)
            loss = (sol.u[-1] - target).square().sum()
            optimiser.zero_grad()
            loss.backward()
            want = (torch.exp(-net(x)) * f64(*U0) - target).square().sum()
            (g,) = torch.autograd.grad(want, net.weight)
            assert_close(net.weight.grad, g, 1e-5, 1e-9)
            optimiser.step()
            losses.append(float(loss.detach()))
    assert captures == ["f"]
    assert losses[-1] < 1e-2 * losses[0]


def test_a_module_that_solves_in_its_forward():
    """Parameters that f can reach but does not use change too, at each step of the optimiser."""

    class Latent(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            self.field = nn.Linear(2, 2)
            self.alg = ps.CVODE_Adams()

        def rhs(self, u, p, t):
            return self.field(u)

        def forward(self, x):
            prob = ps.ODEProblem(self.rhs, self.encoder(x), (0.0, 1.0))
            return ps.solve(prob, self.alg, engine="sundials", abstol=1e-9, reltol=1e-9).u[-1]

    torch.manual_seed(0)
    model = Latent().double()
    x = torch.randn(3, 2, dtype=torch.float64)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with counted_captures() as captures:
        for _ in range(4):
            out = model(x)
            u0 = model.encoder(x)
            exact = torch.matrix_exp(model.field.weight)
            bias = torch.linalg.solve(model.field.weight, model.field.bias)
            assert_close(out, (u0 + bias) @ exact.T - bias, 1e-6)
            optimiser.zero_grad()
            out.square().sum().backward()
            optimiser.step()
    assert captures == ["f"]


def test_an_object_whose_tensor_is_replaced(steps):
    holder = types.SimpleNamespace()
    with counted_captures() as captures:
        for _ in range(3):
            holder.theta = steps.fresh()[0]
            check(lambda u, p, t: -holder.theta * u, holder.theta, steps.leaves)
    assert len(captures) <= 3  # a library's object: compared by value or captured anew


def test_a_counter_of_calls_does_not_spoil_it(steps):
    class System(nn.Module):
        def __init__(self):
            super().__init__()
            self.nfe = 0

        def forward(self, u, p, t):
            self.nfe += 1
            return -self.theta * u

    system = System()
    with counted_captures() as captures:
        for _ in range(4):
            system.theta = steps.fresh()[0]
            check(system, system.theta, steps.leaves)
            system.nfe = 0
    assert captures == ["f"]


def test_conditions_and_affects(steps):
    """Callbacks are functions too: u' = 1 from 0, set to ``theta`` where it reaches ``eta``."""

    def event(theta, eta):
        return ps.ContinuousCallback(
            lambda u, p, t: u[0] - eta, lambda u, p, t: theta.reshape(1), direction=1
        )

    with counted_captures() as captures:
        for _ in range(3):
            theta, eta = (0.1 * x for x in steps.fresh())
            callback = event(theta, eta)
            prob = ps.ODEProblem(lambda u, p, t: torch.ones_like(u), f64([0.0]), (0.0, 0.13))
            sol = ps.solve(
                prob, ps.CVODE_Adams(), engine="sundials", callback=callback, saveat=[0.13]
            )
            count = len(sol.events)
            want = theta + 0.13 - eta - (count - 1) * (eta - theta)
            assert count >= 1
            assert_close(sol.u[-1], want.reshape(1), 1e-6)
            got = torch.autograd.grad(sol.u[-1].sum(), steps.leaves, retain_graph=True)
            for a, b in zip(got, torch.autograd.grad(want, steps.leaves), strict=True):
                assert_close(a, b, 1e-5)
    assert len(captures) == 3  # f, condition, affect


def test_the_same_tensor_twice_is_not_two(steps):
    def make(theta, same):
        a, b = theta, theta if same else theta * 2.0
        return (lambda u, p, t: -a * b * u if a is b else -a * u), (a * b if same else a)

    assert run(steps, make, [True, True, False, False, True]) == 2


def test_one_that_cannot_be_captured_is_tried_once(steps):
    def make(theta, _):
        return lambda u, p, t: -theta * u if t.item() >= 0 else u, theta

    with pytest.warns(ps.CaptureWarning) as caught:
        assert run(steps, make, range(3)) == 1
    assert len([w for w in caught if w.category is ps.CaptureWarning]) == 1


def test_the_first_tensors_are_let_go(steps):
    def solved():
        theta = steps.fresh()[0]
        check(lambda u, p, t: -theta * u, theta, steps.leaves)
        return weakref.ref(theta)

    first = solved()
    gc.collect()
    assert first() is None
