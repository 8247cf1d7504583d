"""Hybrid automata: regularisers in closed form through modes and events, whole solutions."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml import nn as pn
from support import F64, assert_close, descend, f64, pair_gap, penalised

TIGHT = {"abstol": 1e-10, "reltol": 1e-10}


class Rate(nn.Module):
    """x' = a, or x' = -b x."""

    def __init__(self, value: float, constant: bool) -> None:
        super().__init__()
        self.rate, self.constant = nn.Parameter(f64(value)), constant

    def forward(self, u: Tensor) -> Tensor:
        return self.rate * torch.ones_like(u) if self.constant else -self.rate * u


def two_modes(**options: Any) -> pn.HybridODE:
    """Up at the rate a to 1, from there on down from 0.5 as exp(-b t)."""
    turn = pn.Transition(
        lambda u: u[0] - 1.0, lambda u: 0.5 * torch.ones_like(u), target=1, direction=1
    )
    return pn.HybridODE([Rate(0.8, True), Rate(1.5, False)], turn, (0.0, 3.0), **options)


def parameters(model: pn.HybridODE) -> tuple[Tensor, Tensor]:
    return tuple(model.parameters())  # type: ignore[return-value]


def compare(model: pn.HybridODE, want: Tensor, tolerance: float) -> None:
    """The penalty and its gradients, which include the event's motion."""
    assert_close(model.penalty, want, tolerance)
    inputs = parameters(model)
    got = torch.autograd.grad(model.penalty, inputs)
    for g, w in zip(got, torch.autograd.grad(want, inputs), strict=True):
        assert_close(g, w, 10 * tolerance)


def test_gradients_after_a_change_of_mode(engine: str) -> None:
    """An interpolant gives the mode to rounding only, which must not take it for another one."""
    model = two_modes(engine=engine, **TIGHT)
    y, (a, b) = model(f64([0.0])), parameters(model)
    want = 0.5 * torch.exp(-b * (3.0 - 1.0 / a))
    assert_close(y[0], want, 1e-7)
    got = torch.autograd.grad(y.sum(), (a, b))
    assert_close(torch.stack(got), torch.stack(torch.autograd.grad(want, (a, b))), 1e-6)


@pytest.mark.parametrize("saveat", [None, [0.5, 2.0]])
def test_kinetic_penalty_in_closed_form(engine: str, saveat: Any) -> None:
    model = two_modes(engine=engine, regularise=pn.Kinetic(2.0), **TIGHT)
    u0 = f64([0.0], [0.4])
    y = model(u0, saveat)
    a, b = parameters(model)
    events = (1.0 - u0[:, 0]) / a
    rest = 3.0 - events
    want = a**2 * events + b / 8 * (1 - torch.exp(-2 * b * rest))
    compare(model, 2.0 * want.mean(), 1e-7)
    assert_close(f64(*[e for (e,) in model.events]), events.detach(), 1e-8)
    assert_close(y, model.eval()(u0, saveat), 1e-8)
    assert model.penalty == 0.0


def test_jacobian_penalty_in_closed_form(engine: str) -> None:
    model = two_modes(engine=engine, regularise=pn.JacobianFrobenius(2.0), **TIGHT)
    torch.manual_seed(1)
    model(f64([0.0]))
    torch.manual_seed(1)
    e = torch.randn(1, dtype=F64)
    a, b = parameters(model)
    compare(model, (2.0 * e.square() * b**2 * (3.0 - 1.0 / a))[0], 1e-7)


@pytest.mark.parametrize("kind", ["error", "stiffness"])
def test_estimates_of_the_steps_in_closed_form(engine: str, kind: str) -> None:
    """In the first mode the pair makes no error, in the second a polynomial in b h."""
    estimate = {"error": pn.ErrorEstimate(3.0), "stiffness": pn.StiffnessEstimate(0.5)}[kind]
    model = two_modes(engine=engine, regularise=estimate, abstol=1e-5, reltol=1e-5)
    y = model(f64([0.0]), [0.5, 3.0])
    assert_close(y[0, 0], f64(0.4), 1e-4)
    sol = model.solve(f64([0.0]))
    assert sol.u.shape == (len(sol.t), 2) and len(sol.events) == 1
    second = (sol.u[:-1, 1] == 1.0) & (sol.t.diff() != 0)
    t, h = sol.t[:-1][second].detach(), sol.t.diff()[second].detach()
    a, b = parameters(model)
    z = -b * h
    gap = pair_gap(z)
    start = 0.5 * torch.exp(-b * (t - 1.0 / a))
    error = (gap * start).abs() / (1e-5 + 1e-5 * start.detach())
    want = 3.0 * (error * h).sum() if kind == "error" else 0.5 * len(h) * b
    assert_close(model.penalty, want, 2e-3)
    got = torch.autograd.grad(model.penalty, b)[0]
    assert_close(got, torch.autograd.grad(want, b)[0], 5e-3)


def test_all_together_on_one_mode_and_random_ends(engine: str) -> None:
    """A ball: height and velocity; the integral of v^2 + g^2 through its bounces."""

    def fall(u: Tensor) -> Tensor:
        return torch.stack([u[1], torch.full_like(u[1], -9.81)])

    bounce = pn.Transition(
        lambda u: u[0], lambda u: torch.stack([u[0].abs(), -0.8 * u[1]]), direction=-1
    )
    kinds = [pn.Kinetic(1.0), pn.StiffnessEstimate(), pn.ErrorEstimate(0.0)]
    ball = pn.HybridODE(fall, bounce, (0.0, 1.0), engine=engine, regularise=kinds, **TIGHT)
    y = ball(f64(1.0, 0.0))
    hit = math.sqrt(2.0 / 9.81)
    up, rest = 0.8 * 9.81 * hit, 1.0 - hit
    energy = 9.81**2 * hit**3 / 3 + (up**3 - (up - 9.81 * rest) ** 3) / (3 * 9.81)
    stiffness = float(ball.penalty.detach()) - (energy + 9.81**2)
    assert 0.0 <= stiffness < 1e-2 * energy
    sol = ball.solve(f64(1.0, 0.0))
    assert_close(sol.u[-1], y, 1e-8)
    assert len(sol.events) == 1 and float(sol.u[:, 0].min()) > -1e-9
    twin = copy.deepcopy(ball)
    assert_close(twin(f64(1.0, 0.0)), y, 1e-10)
    moving = two_modes(engine=engine, regularise=pn.RandomEndTime(0.5), **TIGHT)
    torch.manual_seed(0)
    a, b = (float(x.detach()) for x in parameters(moving))
    ends = [-math.log(2 * float(moving(f64([0.0])).detach()[0])) / b + 1 / a for _ in range(10)]
    assert 2.5 < min(ends) < 3.0 < max(ends) < 3.5


def test_training_with_each_saves_evaluations() -> None:
    torch.manual_seed(0)
    x = f64([-1.0, 0.3], [-0.7, 0.8], [-0.9, -0.5])
    want = f64([0.9, -1.0], [1.2, -0.6], [1.0, 0.7])
    kinds = {"plain": None, "kinetic": pn.Kinetic(0.05), "jacobian": pn.JacobianFrobenius(0.05),
             "error": pn.ErrorEstimate(1.0), "stiffness": pn.StiffnessEstimate(1e-3)}  # fmt: skip
    cost = {}
    for name, regularise in kinds.items():
        torch.manual_seed(0)
        fields = [
            nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double() for _ in "ab"
        ]
        model = pn.HybridODE(fields, pn.Transition(lambda u: u[0], target=1), engine="sundials",
                             regularise=regularise, abstol=1e-7, reltol=1e-7)  # fmt: skip
        descend(model.parameters(), penalised(model, x, want), 40, 3e-2)
        model.eval()
        cost[name] = sum((model(row), model.stats.nf)[1] for row in x)
    assert all(n < cost["plain"] for name, n in cost.items() if name != "plain"), cost


def test_whole_solutions_are_of_one_sample() -> None:
    model = two_modes(engine="sundials")
    with pytest.raises(ps.InputError, match=r"solve takes one sample \(d,\)"):
        model.solve(f64([0.0], [1.0]))
    with pytest.raises(ps.InputError, match="mode is 2; there are 2 modes"):
        model.solve(f64([0.0]), mode=2)
    assert model.solve(f64([0.7]), [3.0], mode=1).events == []


@pytest.mark.parametrize(
    ("condition", "u0", "message"),
    [
        (lambda u: u, torch.ones(3, 2, dtype=F64), r"condition gave shape \(2,\)"),
        (lambda u: None, torch.ones(3, 2, dtype=F64), "condition gave a NoneType"),
        (lambda u: u[0] - 9.0, torch.ones(0, 2, dtype=F64), "u0 has no entries"),
    ],
)
def test_bad_input(condition: Any, u0: Tensor, message: str) -> None:
    model = pn.HybridODE(lambda u: -u, pn.Transition(condition), engine="sundials")
    with pytest.raises(ps.InputError, match=message):
        model(u0)
