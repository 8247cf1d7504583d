"""Regularisers on neural SDEs: by hand along the same noise, in closed form, and what they save."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml import nn as pn
from support import F64, assert_close, descend, f64, net, penalised


class Matrix(nn.Module):
    """A diffusion of three processes, (batch, 2, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(2, 6)

    def forward(self, u: Tensor) -> Tensor:
        return self.net(u).reshape(*u.shape, 3)


def times_noise(g: Tensor, dw: Tensor, noise: str) -> Tensor:
    if noise == "diagonal":
        return g * dw.reshape(g.shape)
    if noise == "scalar":
        return g * dw.reshape(len(g), 1)
    return torch.einsum("bij,bj->bi", g, dw.reshape(len(g), 3))


def by_hand(model: pn.NeuralSDE, u: Tensor, w: Tensor, dt: float, e: Tensor) -> dict[str, Tensor]:
    """The unweighted penalties of Euler and Maruyama's steps along ``w``, one by one."""
    f, g = model.drift, model.diffusion
    tol = model.options["abstol"]
    sums = {"kinetic": f64(0.0), "jacobian": f64(0.0), "error": f64(0.0), "stiffness": f64(0.0)}

    def rows(u: Tensor) -> tuple[Tensor, Tensor]:
        each = torch.vmap(torch.func.jacrev(f))(u)
        return f(u).square().sum(1), torch.einsum("bi,bij->bj", e, each).square().sum(1)

    for k in range(len(w) - 1):
        dw = w[k + 1] - w[k]
        slope, kick = f(u), times_noise(g(u), dw, model.noise)
        after = u + dt * slope + kick
        for name, a, b in zip(("kinetic", "jacobian"), rows(u), rows(after), strict=True):
            sums[name] = sums[name] + dt * (a + b).mean() / 2
        euler, heun = u + dt * slope, u + dt * (slope + f(u + dt * slope)) / 2
        error = dt * (f(euler) - slope).abs() / 2
        error = error + (times_noise(g(u + kick), dw, model.noise) - kick).abs() / 2
        scale = tol + tol * torch.maximum(u.abs(), after.abs()).detach()
        sums["error"] = sums["error"] + dt * (error / scale).square().mean(1).sqrt().mean()
        stiffness = (f(heun) - f(euler)).norm(dim=1) / (heun - euler).norm(dim=1)
        sums["stiffness"] = sums["stiffness"] + stiffness.mean()
        u = after
    return sums


KINDS = {
    "kinetic": pn.Kinetic(2.0), "jacobian": pn.JacobianFrobenius(2.0),
    "error": pn.ErrorEstimate(2.0), "stiffness": pn.StiffnessEstimate(2.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", ["diagonal", "scalar", "general"])
def test_value_and_gradient_by_hand(engine: str, noise: str, kind: str) -> None:
    diffusion = Matrix() if noise == "general" else nn.Sequential(net(), nn.Sigmoid())
    model = pn.NeuralSDE(
        net(), diffusion, (0.0, 1.0), noise=noise, dt=0.125, engine=engine, regularise=KINDS[kind]
    )
    torch.manual_seed(5)
    u0 = torch.randn(4, 2, dtype=F64, requires_grad=True)
    w = model.solve(u0, seed=3).W.u.to(F64)
    torch.manual_seed(5)
    y = model(u0, [0.25, 1.0], seed=3)
    torch.manual_seed(5)
    want = 2.0 * by_hand(model, u0, w, 0.125, torch.randn(4, 2, dtype=F64))[kind]
    assert_close(model.penalty, want, 1e-9)
    inputs = [u0, model.drift[0].weight, next(model.diffusion.parameters())]
    got = torch.autograd.grad(model.penalty, inputs, retain_graph=True)
    for a, b in zip(got, torch.autograd.grad(want, inputs), strict=True):
        assert_close(a, b, 1e-8)
    # the states are those of a solve without it, their gradients too
    plain = model.eval()(u0, [0.25, 1.0], seed=3)
    assert model.penalty == 0.0
    assert_close(y, plain, 1e-12)
    a, b = (torch.autograd.grad(x.square().sum(), inputs)[1] for x in (y, plain))
    assert_close(a, b, 1e-10)


def test_gradient_by_finite_differences() -> None:
    a = f64(-0.7, grad=True)
    both = [pn.Kinetic(1.0), pn.ErrorEstimate(1.0), pn.StiffnessEstimate(1.0)]

    def penalty(a: Tensor) -> Tensor:
        model = pn.NeuralSDE(
            lambda u: a * u - u**3, lambda u: 0.5 * u.cos(), dt=0.1, engine="sundials",
            regularise=both, abstol=0.1, reltol=1e-12,  # the scale is held: not by the state
        )  # fmt: skip
        model(f64([1.0, -0.5]), seed=2)
        return model.penalty

    (got,) = torch.autograd.grad(penalty(a), a)
    h = 1e-6
    slope = (penalty(a.detach() + h) - penalty(a.detach() - h)) / (2 * h)
    assert_close(got, slope, 1e-6)


def test_closed_forms(engine: str) -> None:
    """A linear drift, and a constant one: its energy is the same along every path."""
    layer = nn.Linear(3, 3).double()
    one = pn.NeuralSDE(layer, torch.ones_like, (0.0, 2.0), noise="scalar", engine=engine,
                       regularise=pn.JacobianFrobenius(1.0))  # fmt: skip
    torch.manual_seed(0)
    one(torch.zeros(4, 3, dtype=F64), seed=1)
    torch.manual_seed(0)
    e = torch.randn(4, 3, dtype=F64)
    assert_close(one.penalty, 2.0 * (e @ layer.weight).square().sum(1).mean(), 1e-8)
    two = pn.NeuralSDE(lambda u: 3.0 * torch.ones_like(u), lambda u: 0.1 * u, (0.0, 2.0),
                       engine=engine, regularise=pn.Kinetic(0.5))  # fmt: skip
    two(torch.zeros(4, 3, dtype=F64))
    assert_close(two.penalty, f64(0.5 * 2.0 * 27.0), 1e-8)
    stiff = pn.NeuralSDE(lambda u: -4.0 * u, lambda u: 0.1 * u, dt=0.05, engine=engine,
                         regularise=pn.StiffnessEstimate(0.5))  # fmt: skip
    stiff(torch.ones(4, 3, dtype=F64))
    assert_close(stiff.penalty, f64(0.5 * 20 * 4.0), 1e-6)


def test_one_sample_additive_noise_and_float32(engine: str) -> None:
    both = [*KINDS.values(), pn.RandomEndTime(0.1)]
    for diffusion in (lambda u: torch.full_like(u, 0.2), lambda u: u.new_ones(*u.shape, 3)):
        model = pn.NeuralSDE(net().float(), diffusion, noise="additive", dt=0.1, engine=engine,
                             regularise=both)  # fmt: skip
        for shape in ((2,), (3, 2)):
            y = model(torch.ones(shape), [0.5, 1.0])
            assert y.dtype == model.penalty.dtype == torch.float32
            assert y.shape == (2, *shape) and model.penalty > 0
            (y.sum() + model.penalty).backward()


@pytest.mark.parametrize("regularise", [None, [pn.Kinetic(), pn.ErrorEstimate()]])
def test_samples_by_themselves(engine: str, regularise: Any) -> None:
    """Without noise each is the solution of its own; with it, each has a path of its own."""
    field, x = net(), torch.randn(3, 2, dtype=F64)
    still: dict[str, Any] = {"engine": engine, "regularise": regularise}
    alone = pn.NeuralSDE(field, torch.zeros_like, per_sample=True, **still)
    one = pn.NeuralSDE(field, torch.zeros_like, **still)
    y, parts = alone(x, [0.5, 1.0], seed=1), []
    for i in range(3):
        assert_close(y[:, i : i + 1], one(x[i : i + 1], [0.5, 1.0], seed=1), 1e-10)
        parts.append(one.penalty)
    assert_close(alone.penalty, torch.stack(parts).mean(), 1e-10, 1e-14)
    assert_close(alone(x, seed=1), y[-1], 1e-10)
    (y.sum() + alone.penalty).backward()
    assert field[0].weight.grad.abs().max() > 0
    noisy = pn.NeuralSDE(field, torch.ones_like, dt=0.1, per_sample=True, **still)
    same = x[:1].expand(3, 2)
    a, b = noisy(same, seed=2), noisy(same, seed=2)
    assert torch.equal(a, b) and float((a[0] - a[1]).detach().abs().min()) > 1e-6
    with pytest.raises(ps.InputError, match="first axis is the batch"):
        noisy(torch.tensor(1.0, dtype=F64))


def test_random_ends(engine: str) -> None:
    """du = dt: the outputs are the times at which they were taken."""
    model = pn.NeuralSDE(torch.ones_like, torch.zeros_like, dt=0.25, engine=engine,
                         regularise=pn.RandomEndTime(0.2))  # fmt: skip
    torch.manual_seed(0)
    ends = torch.stack([model(f64([0.0])) for _ in range(20)])
    assert ends.min() > 0.8 and ends.max() < 1.2 and ends.std() > 0.05
    at = f64(0.0, 0.5, 1.0)
    moved = torch.cat([model(f64([0.0]), at) for _ in range(20)], dim=1) - at[:, None]
    assert moved[0].abs().max() < 1e-12 and moved[1:].abs().max() < 0.2
    assert moved[1].std() > 0.05 and moved[2].std() > 0.05
    assert_close(model.eval()(f64([0.0]), at)[:, 0], at, 1e-9)


def test_training_with_each_saves_steps() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 2, dtype=F64)
    want = torch.stack([x[:, 0].tanh() * 2, x[:, 1] * x[:, 0].sign()], 1)
    kinds = {"plain": None, "kinetic": pn.Kinetic(0.1), "jacobian": pn.JacobianFrobenius(0.1),
             "error": pn.ErrorEstimate(0.2), "stiffness": pn.StiffnessEstimate(1e-2)}  # fmt: skip
    cost = {}
    for name, regularise in kinds.items():
        torch.manual_seed(0)
        model = pn.NeuralSDE(net(hidden=32), nn.Sequential(net(), nn.Tanh()), engine="sundials",
                             regularise=regularise, reltol=5e-3, abstol=5e-3)  # fmt: skip
        descend(model.parameters(), penalised(model, x, want), 40)
        model.eval()
        cost[name] = 0
        for seed in range(5):
            model(x, seed=seed)
            cost[name] += model.stats.nf
    assert all(n < cost["plain"] for name, n in cost.items() if name != "plain"), cost


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pn.NeuralSDE(net(), net(), regularise="kinetic"), "regularise holds"),
        (lambda: pn.NeuralSDE(net(), net(), regularise=pn.RandomEndTime(1.5)), "smaller width"),
        (lambda: pn.NeuralSDE(net(), net(), regularise=pn.Kinetic(), engine="sundials")(
            {"a": f64([1.0])}), "one tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ps.InputError, match=message):
        make()
