"""Training runs that reach a stated loss, which the model before training is far from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pysciml import nn as pn
from support import F64, descend, f64, penalised


def net(inputs: int, outputs: int, hidden: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
    ).double()  # fmt: skip


def train(model: nn.Module, loss: Callable[[], Tensor], steps: int, lr: float = 2e-2) -> float:
    """The loss after ``steps`` of Adam."""
    descend(model.parameters(), loss, steps, lr)
    with torch.no_grad():
        return float(loss())


def mean_square(model: nn.Module, x: Tensor, want: Tensor) -> Callable[[], Tensor]:
    return lambda: (model(x) - want).square().mean()


def test_an_augmented_ode_swaps_points_that_a_plain_one_cannot() -> None:
    """x -> -x: paths on a line do not cross, so in one dimension the order of points is kept."""
    x = torch.linspace(-1.0, 1.0, 9, dtype=F64)[:, None]
    torch.manual_seed(0)
    plain = pn.NeuralODE(net(1, 1), engine="sundials")
    augmented = pn.AugmentedNeuralODE(net(2, 2), augment=1, engine="sundials")
    before = float(mean_square(augmented, x, -x)().detach())
    least = float(x.square().mean())  # of an increasing map: a constant, 0
    assert train(plain, mean_square(plain, x, -x), 80) > 0.99 * least
    assert train(augmented, mean_square(augmented, x, -x), 120) < 0.02 < 0.1 * before


def test_a_second_order_ode_learns_a_spring() -> None:
    """x'' = -4 x, from positions alone."""
    torch.manual_seed(0)
    u0 = torch.randn(12, 2, dtype=F64)
    t = torch.linspace(0.0, 1.5, 8, dtype=F64)
    want = u0[:, 0] * torch.cos(2 * t)[:, None] + u0[:, 1] / 2 * torch.sin(2 * t)[:, None]
    model = pn.SecondOrderNeuralODE(net(2, 1), (0.0, 1.5), saveat=t, engine="sundials")

    def loss() -> Tensor:
        return (model(u0)[..., 0] - want).square().mean()

    before = float(loss().detach())
    assert train(model, loss, 120) < 0.01 < 0.1 * before


def rings(count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    inner = torch.arange(count) % 2 == 0
    radius = torch.where(inner, 0.5, 1.5) + 0.1 * torch.randn(count)
    angle = 2 * math.pi * torch.rand(count)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).double()
    return x, inner.long()


def test_an_ode_block_classifies_rings() -> None:
    x, label = rings(64)
    model = nn.Sequential(
        pn.ODEBlock(net(3, 2), append_time=True, engine="sundials"), nn.Linear(2, 2).double()
    )

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x), label)

    before = float(loss().detach())
    assert before > 0.5
    assert train(model, loss, 150, lr=5e-2) < 0.1
    assert float((model(x).argmax(1) == label).double().mean()) > 0.95


def test_a_stable_flow_learns_a_damped_rotation() -> None:
    """u' = (S - 1/2) u with S a rotation's generator, the flow of E = |u|^2 / 4."""
    torch.manual_seed(0)
    generator = f64([[-0.5, 2.0], [-2.0, -0.5]])
    u0 = torch.randn(16, 2, dtype=F64)
    t = torch.linspace(0.0, 1.5, 8, dtype=F64)
    want = torch.stack([u0 @ torch.linalg.matrix_exp(s * generator.T) for s in t])
    model = pn.StableNeuralFlow(
        net(2, 1), (0.0, 1.5), size=2, saveat=t, engine="sundials"
    ).double()  # fmt: skip
    loss = mean_square(model, u0, want)
    before = float(loss().detach())
    assert train(model, loss, 120, lr=3e-2) < 0.01 < 0.1 * before


def test_a_graph_ode_learns_diffusion() -> None:
    """x' = -A A x, the layers' own form, on a ring of six nodes; right on new features too."""
    edges = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    a = pn.normalised_adjacency(edges, 6).double()
    flow = torch.linalg.matrix_exp(-1.5 * a @ a)
    torch.manual_seed(0)
    x, fresh = torch.randn(2, 16, 6, 1, dtype=F64)
    model = pn.GraphNeuralODE(a, features=1, hidden=16, engine="sundials").double()
    loss = mean_square(model, x, flow @ x)
    before = float(loss().detach())
    assert train(model, loss, 150) < 0.01 < 0.1 * before
    assert float((model(fresh) - flow @ fresh).square().mean().detach()) < 0.03


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        ).double()  # fmt: skip

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([u, t.expand(len(u), 1)], dim=1))


def evaluations(field: nn.Module, regularise: object, steps: int, lr: float) -> int:
    """Of the model after so many steps of training towards a map with a cut in it."""
    torch.manual_seed(0)
    x = torch.randn(32, 2, dtype=F64)
    want = torch.stack([x[:, 0].tanh() * 2, x[:, 1] * x[:, 0].sign()], 1)
    model = pn.NeuralODE(field, regularise=regularise, engine="sundials")
    torch.manual_seed(0)

    train(model, penalised(model, x, want), steps, lr)
    model.eval()
    model(x)
    assert model.stats is not None and model.stats.nf is not None
    return model.stats.nf


def test_the_jacobian_penalty_alone_saves_evaluations() -> None:
    cost = {}
    for name, regularise in (("plain", None), ("jacobian", pn.JacobianFrobenius(0.05))):
        torch.manual_seed(0)
        cost[name] = evaluations(net(2, 2, 32), regularise, 60, 2e-2)
    assert cost["jacobian"] < 0.8 * cost["plain"], cost


def test_random_ends_save_evaluations() -> None:
    """At an equal number of training steps; it fits less closely by then."""
    cost = {}
    for name, regularise in (("plain", None), ("random", pn.RandomEndTime(0.5))):
        torch.manual_seed(0)
        cost[name] = evaluations(Timed(), regularise, 150, 1e-2)
    assert cost["random"] < cost["plain"], cost
