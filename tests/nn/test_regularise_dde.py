"""Regularisers and per-sample solves of neural delay equations: closed forms, differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml import nn as pn
from support import F64, assert_close, descend, f64, net, pair_gap, penalised

pytestmark = pytest.mark.julia

TIGHT = {"abstol": 1e-10, "reltol": 1e-10, "engine": "julia"}
TSIT5 = ps.MethodOfSteps(ps.Tsit5())


@pytest.mark.parametrize("with_history", [False, True])
def test_kinetic_penalty_in_closed_form(with_history: bool) -> None:
    """u' = -a u(t - 1) after 1: the rate is -a, then -a (1 - a (t - 1))."""
    a = f64(0.6, grad=True)
    model = pn.NeuralDDE(
        lambda x: -a * x[..., 1:], [1.0], (0.0, 2.0), TSIT5, regularise=pn.Kinetic(0.5),
        history=(lambda t: torch.ones(3, 1, dtype=F64)) if with_history else None, **TIGHT,
    )  # fmt: skip
    u0 = torch.ones(3, 1, dtype=F64)
    u = model(u0)
    want = 0.5 * a**2 * (2.0 - a + a**2 / 3)
    assert_close(model.penalty, want, 1e-8)
    (got,) = torch.autograd.grad(model.penalty, a)
    assert_close(got, torch.autograd.grad(want, a)[0], 1e-7)
    assert_close(u, model.eval()(u0), 1e-8)
    assert model.penalty == 0.0


def test_jacobian_penalty_is_by_all_that_f_is_given() -> None:
    layer = nn.Linear(4, 2).double()
    model = pn.NeuralDDE(
        layer, [0.5], (0.0, 2.0), TSIT5, regularise=pn.JacobianFrobenius(1.0), **TIGHT
    )
    torch.manual_seed(0)
    model(torch.ones(3, 2, dtype=F64), [0.5, 2.0])
    torch.manual_seed(0)
    e = torch.randn(3, 2, dtype=F64)
    want = 2.0 * (e @ layer.weight).square().sum(1).mean()
    assert_close(model.penalty, want, 1e-8)
    got = torch.autograd.grad(model.penalty, layer.weight)[0]
    assert_close(got, torch.autograd.grad(want, layer.weight)[0], 1e-7)


def test_estimates_of_the_steps_in_closed_form() -> None:
    """u' = a u + 1 u(t - 5) while the delayed state is 1: as u' = a u of u + 1 / a."""
    a, x = f64(-0.8, grad=True), f64([1.0], [2.0])
    for kind in ("error", "stiffness"):
        estimate = {"error": pn.ErrorEstimate(3.0), "stiffness": pn.StiffnessEstimate(0.5)}[kind]
        model = pn.NeuralDDE(
            lambda x: a * x[..., :1] + x[..., 1:], [5.0], (0.0, 2.0), TSIT5, engine="julia",
            history=lambda t: torch.ones(2, 1, dtype=F64), abstol=1e-5, reltol=1e-5,
            regularise=estimate,
        )  # fmt: skip
        model(x)
        penalty = model.penalty
        t = model.eval().solve(x).t
        h, z = t.diff(), a * t.diff()
        gap = pair_gap(z)
        u = torch.exp(a * t) * (x + 1 / a) - 1 / a
        size = torch.maximum(u[:, :-1].abs(), u[:, 1:].abs()).detach()
        error = ((gap * (u[:, :-1] + 1 / a)).abs() / (1e-5 + 1e-5 * size)).mean(0)
        want = 3.0 * (error * h).sum() if kind == "error" else 0.5 * len(h) * a.abs()
        assert_close(penalty, want, 1e-3)
        got = torch.autograd.grad(penalty, a)[0]
        assert_close(got, torch.autograd.grad(want, a)[0], 2e-3)


def test_gradient_by_finite_differences() -> None:
    """Of steps' estimates past several lags, u0 being none of the history's."""
    made = [pn.ErrorEstimate(1.0), pn.StiffnessEstimate(1.0), pn.Kinetic(1.0)]
    field = net(4, 2)
    model = pn.NeuralDDE(
        field, [0.5], (0.0, 1.5), TSIT5, learn_lags=True, history=lambda t: f64([[0.3, -0.2]]) * t,
        engine="julia", regularise=made, abstol=0.1, reltol=1e-9, adaptive=False, dt=0.0625,
    ).double()  # fmt: skip
    assert model.log_lags is not None
    u0, w = torch.ones(1, 2, dtype=F64, requires_grad=True), field[0].weight

    def penalty() -> Tensor:
        model(u0)
        return model.penalty

    got = torch.autograd.grad(penalty(), [u0, w, model.log_lags])
    # a lag that moves changes the steps, and with them what differences see: not compared
    for x, g in zip([u0, w], got, strict=False):
        e = torch.randn_like(x)
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                x.add_(sign * 1e-5 * e)
            values.append(float(penalty().detach()))
            with torch.no_grad():
                x.sub_(sign * 1e-5 * e)
        assert_close((g * e).sum(), f64((values[0] - values[1]) / 2e-5), 1e-4)
    assert got[2].isfinite().all() and got[2].abs().max() > 0


def test_samples_by_themselves_and_random_ends() -> None:
    field, x = net(4, 2), torch.randn(3, 2, dtype=F64)
    for kinds in (None, pn.Kinetic(), pn.ErrorEstimate(), [pn.Kinetic(), pn.StiffnessEstimate()]):
        made = {"regularise": kinds, **TIGHT}
        alone = pn.NeuralDDE(field, [0.5], (0.0, 1.0), TSIT5, per_sample=True, **made)
        one = pn.NeuralDDE(field, [0.5], (0.0, 1.0), TSIT5, **made)
        y, parts = alone(x, f64(0.5, 1.0)), []
        for i in range(3):
            assert_close(y[:, i : i + 1], one(x[i : i + 1], f64(0.5, 1.0)), 1e-8)
            parts.append(one.penalty)
        want = torch.stack(parts).mean()
        assert_close(alone.penalty, want, 1e-7)
        if kinds is not None:
            got = torch.autograd.grad(alone.penalty, field[0].weight)[0]
            assert_close(got, torch.autograd.grad(want, field[0].weight)[0], 1e-5)
    moving = pn.NeuralDDE(
        lambda x: torch.ones_like(x[..., :1]) + 0.0 * x[..., 1:], [0.5], (0.0, 1.0), TSIT5,
        regularise=pn.RandomEndTime(0.2), **TIGHT,
    )  # fmt: skip
    ends = torch.stack([moving(f64([0.0])) for _ in range(10)])
    assert ends.min() > 0.8 and ends.max() < 1.2 and ends.std() > 0.03


def test_training_with_each_saves_evaluations() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 2, dtype=F64)
    want = torch.stack([x[:, 0].tanh() * 2, x[:, 1] * x[:, 0].sign()], 1)
    kinds = {"plain": None, "kinetic": pn.Kinetic(0.2), "jacobian": pn.JacobianFrobenius(0.05),
             "error": pn.ErrorEstimate(1.0), "stiffness": pn.StiffnessEstimate(2e-3)}  # fmt: skip
    cost = {}
    for name, regularise in kinds.items():
        torch.manual_seed(0)
        model = pn.NeuralDDE(net(4, 2, 32), [0.5], (0.0, 1.0), TSIT5, engine="julia",
                             regularise=regularise, abstol=1e-8, reltol=1e-8)  # fmt: skip
        descend(model.parameters(), penalised(model, x, want), 100)
        model.eval()
        model(x)
        cost[name] = model.stats.nf
    assert all(n < cost["plain"] for name, n in cost.items() if name != "plain"), cost
