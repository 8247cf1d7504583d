"""Flows, mechanics, graphs, hybrid systems, latent and equilibrium models: against closed forms."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
import support
from pysciml import nn as pn
from support import F64, assert_close, central_difference, f64

TIGHT = {"abstol": 1e-11, "reltol": 1e-10}


net = functools.partial(support.net, hidden=16)


# ---- FFJORD


def test_ffjord_is_the_exact_affine_flow(engine: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(2, 2).double()
    model = pn.FFJORD(layer, 2, (0.0, 1.3), engine=engine, **TIGHT)
    x = torch.randn(6, 2, dtype=F64)
    # x(1.3) = M z + m with [A b; 0 0] exponentiated
    block = torch.zeros(3, 3, dtype=F64)
    block = block.index_put(
        (torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2])),
        torch.cat([layer.weight, layer.bias[:, None]], 1).reshape(-1),
    )
    whole = torch.linalg.matrix_exp(1.3 * block)
    mean, m = whole[:2, 2], whole[:2, :2]
    want = torch.distributions.MultivariateNormal(mean, m @ m.T).log_prob(x)
    got = model.log_prob(x)
    assert_close(got, want, 1e-8)
    a = torch.autograd.grad(got.sum(), list(layer.parameters()), retain_graph=True)
    b = torch.autograd.grad(want.sum(), list(layer.parameters()))
    for g, h in zip(a, b, strict=True):
        assert_close(g, h, 1e-7)
    z, log_det = model(x)
    again, back = model.inverse(z)
    assert_close(again, x, 1e-8)
    assert_close(back, -log_det, 1e-8)


def test_ffjord_integrates_to_one(engine: str) -> None:
    model = pn.FFJORD(TimeField(), 2, engine=engine, abstol=1e-8)
    axis = torch.linspace(-8.0, 8.0, 81, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = model.log_prob(grid).exp()
    assert abs(float(density.sum() * (axis[1] - axis[0]) ** 2) - 1.0) < 1e-4
    samples = model.sample(2000)
    mean = (grid * density[:, None]).sum(0) * (axis[1] - axis[0]) ** 2
    assert samples.shape == (2000, 2)
    assert float((samples.mean(0) - mean).abs().max()) < 0.15


class TimeField(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net(3, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 1.5 * self.net(torch.cat([x, t.expand(len(x), 1)], 1))


def test_hutchinson_estimates_the_trace() -> None:
    exact = pn.FFJORD(net(2, 2), 2, engine="sundials")
    estimate = pn.FFJORD(exact.vector_field, 2, trace="hutchinson", engine="sundials")
    x = torch.tensor([[0.3, -0.5]], dtype=F64)
    torch.manual_seed(0)
    with torch.no_grad():
        many = estimate.log_prob(x.repeat(4000, 1))
        want = exact.log_prob(x)
    error = float(many.std()) / math.sqrt(4000)
    assert error > 0 and abs(float(many.mean() - want)) < 4 * error


def test_ffjord_with_regularisers(engine: str) -> None:
    both = [pn.Kinetic(0.1), pn.JacobianFrobenius(0.1), pn.RandomEndTime(0.1)]
    for trace in ("exact", "hutchinson"):
        model = pn.FFJORD(net(2, 2), 2, trace=trace, regularise=both, engine=engine)
        x = torch.randn(5, 2, dtype=F64)
        loss = -model.log_prob(x).mean() + model.penalty
        assert model.penalty > 0
        loss.backward()
        assert model.vector_field[0].weight.grad.abs().max() > 0
        model.eval()
        plain = pn.FFJORD(model.vector_field, 2, trace="exact", engine=engine)
        got, want = model.log_prob(x), plain.log_prob(x)
        if trace == "exact":
            assert_close(got, want, 1e-5)
        assert model.penalty == 0.0


def test_ffjord_with_estimates_of_its_steps(engine: str) -> None:
    x = torch.randn(5, 2, dtype=F64)
    field = net(2, 2)
    penalties = []
    for regularise in (pn.Kinetic(0.5), pn.StiffnessEstimate(0.1), [pn.Kinetic(0.5),
                       pn.StiffnessEstimate(0.1)]):  # fmt: skip
        model = pn.FFJORD(field, 2, engine=engine, regularise=regularise)
        model.log_prob(x)
        penalties.append(float(model.penalty.detach()))
    assert 0 < penalties[1]
    assert abs(penalties[0] + penalties[1] - penalties[2]) < 1e-4 * penalties[2]


# ---- mechanics


def test_hamiltonian_keeps_its_energy_to_the_tolerance(engine: str) -> None:
    model = pn.HamiltonianNN(net(4, 1), (0.0, 20.0), engine=engine)
    u0 = torch.randn(3, 4, dtype=F64)
    ts = torch.linspace(0.0, 20.0, 40, dtype=F64)
    drift = []
    for tol in (1e-5, 1e-9):
        model.options |= {"abstol": tol, "reltol": tol}
        with torch.no_grad():
            energy = model.energy(model(u0, ts))
        drift.append(float((energy - energy[0]).abs().max()))
    assert drift[0] < 1e-2 and drift[1] < 1e-6 and drift[1] < drift[0] / 100


def pendulum_energy(u: Tensor) -> Tensor:
    return 0.5 * u[..., 1].square() - torch.cos(u[..., 0])


def pendulum_lagrangian(u: Tensor) -> Tensor:
    return 0.5 * u[..., 1].square() + torch.cos(u[..., 0])


def test_pendulum_by_either_energy(engine: str) -> None:
    u0 = f64([[0.5, 0.1], [1.5, -0.3]])
    plain = pn.NeuralODE(
        lambda u: torch.stack([u[..., 1], -torch.sin(u[..., 0])], -1), (0.0, 3.0), engine=engine,
        **TIGHT,
    )  # fmt: skip
    h = pn.HamiltonianNN(pendulum_energy, (0.0, 3.0), engine=engine, **TIGHT)
    lagrange = pn.LagrangianNN(pendulum_lagrangian, (0.0, 3.0), engine=engine, **TIGHT)
    assert_close(h(u0), plain(u0), 1e-8)
    assert_close(lagrange(u0), plain(u0), 1e-8)
    assert_close(h.field(u0), plain.vector_field(u0), 1e-12)
    assert_close(lagrange.energy(u0), pendulum_energy(u0), 1e-12)


def test_lagrangian_with_a_mass_that_depends_on_position(engine: str) -> None:
    """L = (1 + q^2) v^2 / 2 - q^2 / 2, so (1 + q^2) a + q v^2 + q = 0."""

    def lagrangian(u: Tensor) -> Tensor:
        q, v = u.unbind(-1)
        return 0.5 * (1 + q**2) * v**2 - 0.5 * q**2

    model = pn.LagrangianNN(lagrangian, (0.0, 2.0), engine=engine, **TIGHT)
    u = torch.randn(5, 2, dtype=F64)
    q, v = u.unbind(-1)
    assert_close(model.field(u)[:, 1], -(q * v**2 + q) / (1 + q**2), 1e-12)
    out = model(u, f64(0.5, 1.0, 2.0))
    assert_close(model.energy(out), model.energy(u).expand(3, -1), 1e-8)


@pytest.mark.parametrize("kind", ["hamiltonian", "lagrangian"])
def test_mechanics_gradients_against_differences(engine: str, kind: str) -> None:
    base = {"hamiltonian": pendulum_energy, "lagrangian": pendulum_lagrangian}[kind]
    k = nn.Parameter(f64(0.3))

    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = k

        def forward(self, u: Tensor) -> Tensor:
            return base(u) + self.k * (u[..., 0] * u[..., 1]).tanh() * u[..., 1]

    made = pn.HamiltonianNN if kind == "hamiltonian" else pn.LagrangianNN
    model = made(Energy(), (0.0, 1.0), engine=engine, **TIGHT)
    u0 = f64([[0.5, 0.2]])
    (got,) = torch.autograd.grad(model(u0).square().sum(), k)

    def loss(value: Tensor) -> Tensor:
        k.data.copy_(value)
        return model(u0).square().sum()

    want = central_difference(loss, f64(0.3), 1e-4)
    assert_close(got, want, 1e-6)


def test_stable_flow_never_climbs(engine: str) -> None:
    energy = nn.Sequential(net(3, 1), nn.Softplus())
    model = pn.StableNeuralFlow(energy, (0.0, 5.0), size=3, engine=engine).double()
    u0 = torch.randn(4, 3, dtype=F64)
    with torch.no_grad():
        values = model.energy(model(u0, torch.linspace(0.0, 5.0, 30, dtype=F64)))
    assert float(values.diff(dim=0).max()) < 0.0
    turning = pn.StableNeuralFlow(
        lambda u: 0.5 * u.square().sum(-1), (0.0, 1.0), size=2, friction=0.0, engine=engine, **TIGHT
    ).double()
    with torch.no_grad():
        turning.skew.copy_(f64([[0.0, 1.0], [0.0, 0.0]]))
    c, s = math.cos(1.0), math.sin(1.0)
    assert_close(turning(f64([[1.0, 0.0]])), f64([[c, s]]), 1e-8)


# ---- graphs


def test_normalised_adjacency() -> None:
    got = pn.normalised_adjacency(torch.tensor([[0, 1], [1, 2]]), 4)
    degree = f64(2.0, 3.0, 2.0, 1.0)
    a = torch.eye(4, dtype=F64)
    a[0, 1] = a[1, 0] = a[1, 2] = a[2, 1] = 1.0
    assert_close(got, a / torch.sqrt(degree[:, None] * degree), 1e-6)
    bare = pn.normalised_adjacency(torch.tensor([[0], [1]]), 3, self_loops=False)
    assert bare[2].sum() == 0.0 and bare[0, 1] == 1.0


def test_diffusion_on_a_graph(engine: str) -> None:
    a = pn.normalised_adjacency(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4).double()

    class Heat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return a @ x - x

    model = pn.GraphNeuralODE(a, Heat(), (0.0, 2.0), engine=engine, **TIGHT)
    x = torch.randn(4, 3, dtype=F64)
    assert_close(model(x), torch.linalg.matrix_exp(2.0 * (a - torch.eye(4))) @ x, 1e-8)


def test_nodes_may_be_renumbered(engine: str) -> None:
    edges = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 4]])
    order = torch.tensor([3, 0, 4, 1, 2])
    place = torch.argsort(order)
    torch.manual_seed(0)
    one = pn.GraphNeuralODE(
        pn.normalised_adjacency(edges, 5), features=2, engine=engine, **TIGHT
    ).double()
    two = pn.GraphNeuralODE(
        pn.normalised_adjacency(place[edges], 5), features=2, engine=engine, **TIGHT
    ).double()
    weights = {k: v for k, v in one.state_dict().items() if "adjacency" not in k}
    two.load_state_dict(weights, strict=False)
    x = torch.randn(2, 5, 2, dtype=F64)
    assert_close(two(x[:, order]), one(x)[:, order], 1e-8)


# ---- latent ODE


def test_latent_ode_sees_only_what_is_there(engine: str) -> None:
    torch.manual_seed(0)
    model = pn.LatentODE(2, 3, engine=engine).double()
    t = f64(0.0, 0.3, 0.7, 1.5)
    x = torch.randn(4, 4, 2, dtype=F64)
    mask = torch.rand(4, 4, 2) < 0.6
    other = torch.where(mask, x, 1e3)
    gaps = torch.where(mask, x, torch.nan)
    want = model(t, x, mask)
    assert_close(model(t, other, mask), want, 1e-12)
    assert_close(model(t, gaps), want, 1e-12)
    torch.manual_seed(1)
    bound = model.elbo(t, x, mask)
    torch.manual_seed(1)
    assert_close(model.elbo(t, gaps), bound, 1e-12)
    assert model(t, x, t_out=f64(0.0, 2.0, 5.0)).shape == (4, 3, 2)
    assert_close(model(t, x, t_out=f64([0.0]))[:, 0], model(t, x)[:, 0], 1e-9)


def test_latent_ode_learns_oscillations() -> None:
    torch.manual_seed(0)
    t = torch.linspace(0.0, 3.0, 15)
    phase = 6.28 * torch.rand(64, 1, 1)
    x = torch.sin(2.0 * t[None, :, None] + phase)
    x = torch.where(torch.rand_like(x) < 0.7, x, torch.nan)
    model = pn.LatentODE(1, 3, hidden=16, noise=0.2, engine="sundials", abstol=1e-4, reltol=1e-4)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(120):
        optimiser.zero_grad()
        loss = -model.elbo(t, x, kl_weight=min(1.0, step / 60))
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        error = (model(t, x) - torch.sin(2.0 * t[None, :, None] + phase)).square().mean().sqrt()
    assert float(error) < 0.3  # of an amplitude of 0.7 (rms)


# ---- hybrid systems


class Bounce(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.restitution = nn.Parameter(f64(0.8))

    def forward(self, u: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(u[0]), -self.restitution * u[1]])


class Fall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(f64(9.8))

    def forward(self, u: Tensor) -> Tensor:
        return torch.stack([u[1], -self.g])


def test_bouncing_ball_in_closed_form(engine: str) -> None:
    ball = pn.HybridODE(
        Fall(), pn.Transition(lambda u: u[0], Bounce(), direction=-1), (0.0, 0.9), engine=engine,
        **TIGHT,
    )  # fmt: skip
    u0 = f64([[1.0, 0.0], [2.0, 0.0]])
    out = ball(u0)

    def exact(h: Tensor, g: Tensor, e: Tensor) -> Tensor:
        hit = torch.sqrt(2 * h / g)
        v, s = e * g * hit, 0.9 - hit
        return torch.stack([v * s - 0.5 * g * s**2, v - g * s])

    g, e = (p for p in (ball.vector_field[0].g, ball.transitions[0].reset.restitution))
    want = torch.stack([exact(h, g, e) for h in u0[:, 0]])
    assert_close(out, want, 1e-8)
    assert [len(x) for x in ball.events] == [1, 1]
    assert abs(ball.events[1][0] - math.sqrt(4 / 9.8)) < 1e-8
    a = torch.autograd.grad(out.square().sum(), [g, e])
    b = torch.autograd.grad(want.square().sum(), [g, e])
    for x, y in zip(a, b, strict=True):
        assert_close(x, y, 1e-6)


def test_thermostat_switches_modes(engine: str) -> None:
    """Cooling u' = -u / 2 down to 1, heating u' = 3 - u / 2 up to 2, and again."""
    heater = nn.Linear(1, 1).double()
    nn.init.constant_(heater.weight, -0.5)
    nn.init.constant_(heater.bias, 3.0)
    cooler = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(cooler.weight, -0.5)
    model = pn.HybridODE(
        nn.ModuleList([cooler, heater]),
        [
            pn.Transition(lambda u: u[0] - 1.0, source=0, target=1, direction=-1),
            pn.Transition(lambda u: u[0] - 2.0, source=1, target=0, direction=1),
        ],
        (0.0, 4.0), engine=engine, **TIGHT,
    )  # fmt: skip
    out = model(f64([1.5]), f64(0.5, 1.0, 4.0))
    cool, heat = 2 * math.log(2.0), 2 * math.log(5.0 / 4.0)
    first = 2 * math.log(1.5)
    want = [first, first + heat, first + heat + cool, first + 2 * heat + cool]
    assert len(model.events[0]) == len([t for t in (*want, want[-1] + cool) if t < 4.0])
    for got, t in zip(model.events[0], want, strict=False):
        assert abs(got - t) < 1e-7
    assert_close(out[0], f64([1.5 * math.exp(-0.25)]), 1e-8)
    assert_close(out[1], 6.0 - 5.0 * torch.exp(f64([-(1.0 - first) / 2])), 1e-7)
    assert_close(
        model(f64([1.5]), f64([0.1]), mode=1)[0], 6.0 - 4.5 * torch.exp(f64([-0.05])), 1e-8
    )


# ---- multiple shooting


def test_shooting_a_module_is_shooting_its_problem(engine: str) -> None:
    field = net(2, 2)
    model = pn.NeuralODE(field, engine=engine)
    t = torch.linspace(0.0, 2.0, 9, dtype=F64)
    data = torch.randn(9, 2, dtype=F64)
    shot = pn.MultipleShooting(model, t, data, intervals=3, continuity=2.0)
    prob = ps.ODEProblem(lambda u, p, t: field(u), data[0], (0.0, 2.0))
    plain = ps.fit.MultipleShooting(
        prob, t, data, intervals=3, continuity=2.0, engine=engine, abstol=1e-6, reltol=1e-6
    )
    assert_close(shot(), plain(), 1e-6)
    names = {n for n, _ in shot.named_parameters()}
    assert "shooting.starts" in names and any(n.startswith("model.vector_field") for n in names)
    shot.continuity = 5.0
    assert float(shot()) > float(plain())
    assert shot.predict()[0].shape == (9, 2)


# ---- deep equilibrium


def test_linear_equilibrium_in_closed_form() -> None:
    torch.manual_seed(0)
    a = (0.3 * torch.randn(4, 4, dtype=F64)).requires_grad_()
    x = torch.randn(6, 4, dtype=F64, requires_grad=True)
    model = pn.DeepEquilibrium(lambda z, x: z @ a.T + x, tol=1e-12)
    want = torch.linalg.solve(torch.eye(4) - a, x.T).T
    got = model(x)
    assert_close(got, want, 1e-9)
    assert model.iterations > 1
    weights = torch.randn_like(want)
    for g, h in zip(
        torch.autograd.grad((got * weights).sum(), [a, x]),
        torch.autograd.grad((want * weights).sum(), [a, x]), strict=True,
    ):  # fmt: skip
        assert_close(g, h, 1e-8)


def test_equilibrium_as_a_steady_state(engine: str) -> None:
    """cos(3 z) + x has slope -3 sin(3 z): plain iteration runs away from its fixed point."""
    x = f64([[0.1], [0.2]])
    f = lambda z, x: torch.cos(3.0 * z) + x
    model = pn.DeepEquilibrium(f, solver="ode", tol=1e-9, engine=engine)
    z = model(x)
    assert_close(f(z, x), z, 1e-7)
    assert model.iterations > 0


def test_an_equilibrium_that_is_none() -> None:
    with pytest.raises(ps.SolveError, match="forward iteration"):
        pn.DeepEquilibrium(lambda z, x: z + 1.0 + x, max_iters=20)(f64([[1.0]]))


# ---- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pn.FFJORD(net(2, 2), 2, trace="some"), "'exact' or 'hutchinson'"),
        (lambda: pn.FFJORD(net(2, 2), 2, saveat=[1.0]), "does not take 'saveat'"),
        (lambda: pn.FFJORD(net(2, 2), 2)(torch.ones(3, 4, dtype=F64)), r"\(3, 4\); give"),
        (lambda: pn.FFJORD(net(2, 2), 2).sample(0), "count is 0; give a positive whole"),
        (lambda: pn.FFJORD(net(2, 2), 3, base=torch.distributions.Normal(0.0, 1.0)), "event_shape"),
        (lambda: pn.HamiltonianNN(net(2, 2), engine="sundials")(f64([[1.0, 2.0]])),
         "one number a sample"),
        (lambda: pn.HamiltonianNN(net(3, 1))(f64([[1.0, 2.0, 3.0]])), "even length"),
        (lambda: pn.HamiltonianNN(lambda u, t: u), "state alone"),
        (lambda: pn.StableNeuralFlow(net(2, 1), friction=-1.0), "friction"),
        (lambda: pn.StableNeuralFlow(net(3, 1), size=2)(f64([[1.0, 2.0, 3.0]])), "size is 2"),
        (lambda: pn.normalised_adjacency(torch.tensor([[0], [9]]), 3), "from 0 to 2"),
        (lambda: pn.normalised_adjacency(torch.tensor([0, 1]), 3), "give an integer tensor"),
        (lambda: pn.GraphNeuralODE(torch.eye(3)), "Give vector_field, or features"),
        (lambda: pn.GraphNeuralODE(torch.eye(3), features=1)(torch.ones(4, 1)), "3 nodes"),
        (lambda: pn.LatentODE(2, 3)(f64(0.0, 1.0), torch.ones(1, 3, 2)), "with 2 times"),
        (lambda: pn.LatentODE(2, 3)(f64(0.0, 1.0), [[1.0]]), "x is a list; give a tensor"),
        (lambda: pn.FFJORD(net(2, 2), None), "event_shape is None; give the shape of one sample"),
        (lambda: pn.FFJORD(net(2, 2), (2, 0)), r"event_shape is \(2, 0\)"),
        (lambda: pn.FFJORD(net(2, 2), 2)([[1.0, 2.0]]), "x is a list"),
        (lambda: pn.HamiltonianNN(net(2, 1))([1.0, 2.0]), "u0 is a list"),
        (lambda: pn.StableNeuralFlow(net(2, 1), size="2"), "size is '2'; give a positive whole"),
        (lambda: pn.StableNeuralFlow(net(2, 1), friction="a"), "friction is 'a'; give a number"),
        (lambda: pn.GraphNeuralODE(None, features=1), "adjacency is a NoneType; give a tensor of"),
        (lambda: pn.GraphNeuralODE([[1.0]], features=1), "adjacency is a list; give a tensor of"),
        (lambda: pn.GraphNeuralODE(torch.eye(3), features=1)(None), "u0 is a NoneType"),
        (lambda: pn.GraphConv("a", 1, torch.eye(3)), "in_features is 'a'"),
        (lambda: pn.normalised_adjacency(torch.tensor([[0], [1]]), "a"), "nodes is 'a'"),
        (lambda: pn.LatentODE(2, 3)(f64(1.0, 0.0, 2.0), torch.ones(1, 3, 2)), "not sorted"),
        (lambda: pn.LatentODE(2, 3, noise=0.0), "noise is 0.0; give a number > 0"),
        (lambda: pn.LatentODE(1, 2)(torch.tensor([1.0, 2.0]), torch.ones(1, 2, 1),
                                    t_out=torch.tensor([0.0, 1.0])), "Times must increase from"),
        (lambda: pn.LatentODE(1, 2)(torch.tensor([1.0, 2.0]), torch.ones(1, 2, 1),
                                    torch.ones(1, 2, 2, dtype=torch.bool)), "boolean tensor"),
        (lambda: pn.HybridODE(net(2, 2), [3]), r"transitions is \[3\]; give"),
        (lambda: pn.HybridODE(net(2, 2), None), "transitions is None; give"),
        (lambda: pn.HybridODE(None, pn.Transition(lambda u: u[0])), "vector_fields is None; give"),
        (lambda: pn.HybridODE([net(2, 2), 3], []), "one a mode"),
        (lambda: pn.HybridODE(net(2, 2), [])([1.0, 2.0]), "u0 is a list; give a tensor"),
        (lambda: pn.HybridODE(net(2, 2), [])(f64(1.0, 2.0), mode="a"), "mode is 'a'"),
        (lambda: pn.Transition(lambda u: u[0], source="a"), "source is 'a'; give the number of"),
        (lambda: pn.HybridODE(net(2, 2), pn.Transition(lambda u: u[0], target=1)), "1 modes"),
        (lambda: pn.Transition(lambda u: u[0], direction=2), "direction is 2"),
        (lambda: pn.HybridODE(lambda u: u[:1], pn.Transition(lambda u: u[0]), engine="sundials")(
            f64(1.0, 2.0)), "mode 0 gave shape"),
        (lambda: pn.MultipleShooting(net(2, 2), f64(0, 1), f64(0, 1)), "fit.MultipleShooting"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z[:, :1])(f64([[1.0, 2.0]])), "see size"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z, solver="newton"), "solver is"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z, tol=2.0), "tol is"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z, tol="a"), "tol is 'a'; give a number > 0"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z, max_iters=None), "max_iters is None; give"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z, size=0), "size is 0; give"),
        (lambda: pn.DeepEquilibrium(lambda z: z), "it is called with"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z + x)(torch.ones(3, 2), torch.ones(2, 2)),
         r"f fails on z of shape \(2, 2\) and x of shape \(3, 2\)"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z + x)([1.0]), "x is a list"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z + x)(f64([1.0]), [1.0]), "z0 is a list"),
        (lambda: pn.DeepEquilibrium(lambda z, x: nn.functional.dropout(z + x))(f64([1.0] * 9)),
         "f gives another value each time"),
        (lambda: pn.DeepEquilibrium(
            lambda z, x: nn.functional.dropout(0.5 * z + x), solver="ode", engine="sundials")(
                f64([1.0] * 9)), "random"),
        (lambda: pn.DeepEquilibrium(lambda z, x: z + x)(f64([[math.nan]])), "gave inf or NaN"),
        (lambda: pn.LagrangianNN(nn.Linear(2, 1).double(), engine="sundials")(f64([[1.0, 2.0]])),
         "singular linear system"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ps.InputError, match=message):
        make()
