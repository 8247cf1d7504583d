"""Neural ODEs as modules: values and gradients, regularisers, behaviour as torch modules."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import pysciml as ps
from pysciml import nn as pn
from support import F64, assert_close, counted_captures, descend, f64, net, pair_gap, penalised

TIGHT = {"abstol": 1e-11, "reltol": 1e-10}


def test_value_and_gradient_against_torchdiffeq(engine: str) -> None:
    field = net()
    model = pn.NeuralODE(field, (0.0, 1.5), engine=engine, **TIGHT)
    x = torch.randn(4, 2, dtype=F64, requires_grad=True)
    ts = torch.linspace(0.0, 1.5, 6, dtype=F64)
    inputs = [x, *field.parameters()]
    want = torchdiffeq.odeint(lambda t, y: field(y), x, ts, rtol=1e-10, atol=1e-12)
    got = model(x, ts)
    assert_close(got, want, 1e-8)
    assert_close(model(x), want[-1], 1e-8)
    weights = torch.randn_like(want)
    a = torch.autograd.grad((got * weights).sum(), inputs)
    b = torch.autograd.grad((want * weights).sum(), inputs)
    for g, h in zip(a, b, strict=True):
        assert_close(g, h, 1e-7)


def test_linear_field_in_closed_form(engine: str) -> None:
    layer = nn.Linear(3, 3, bias=False).double()
    x = torch.randn(5, 3, dtype=F64)
    y = pn.NeuralODE(layer, (0.0, 0.7), engine=engine, **TIGHT)(x)
    want = x @ torch.linalg.matrix_exp(0.7 * layer.weight).T
    assert_close(y, want, 1e-8)
    assert_close(
        torch.autograd.grad(y.square().sum(), layer.weight)[0],
        torch.autograd.grad(want.square().sum(), layer.weight)[0],
        1e-7,
    )


def test_time_dependent_fields_backwards_and_pytrees(engine: str) -> None:
    model = pn.NeuralODE(lambda u, t: torch.cos(t) * u, (1.0, 0.0), engine=engine, **TIGHT)
    assert_close(model(f64([[2.0]])), f64([[2.0]]) * torch.exp(-torch.sin(f64(1.0))), 1e-8)
    tree = pn.NeuralODE(lambda u: {"a": u["b"], "b": -u["a"]}, (0.0, 1.0), engine=engine, **TIGHT)
    out = tree({"a": f64([0.0]), "b": f64([1.0])})
    assert_close(out["a"], torch.sin(f64([1.0])), 1e-8)


def test_augmented_is_the_padded_neural_ode(engine: str) -> None:
    field = net(4)
    x = torch.randn(6, 2, dtype=F64)
    model = pn.AugmentedNeuralODE(field, augment=2, engine=engine, **TIGHT)
    plain = pn.NeuralODE(field, engine=engine, **TIGHT)
    padded = torch.cat([x, torch.zeros_like(x)], dim=1)
    assert_close(model(x), plain(padded)[:, :2], 1e-12)
    kept = pn.AugmentedNeuralODE(field, augment=2, keep=True, engine=engine, **TIGHT)
    assert_close(kept(x, f64(0.5, 1.0)), plain(padded, f64(0.5, 1.0)), 1e-12)
    lift = net(2, 2)
    lifted = pn.AugmentedNeuralODE(field, augment=2, lift=lift, engine=engine, **TIGHT)
    assert_close(lifted(x), plain(torch.cat([x, lift(x)], 1))[:, :2], 1e-12)


def test_second_order_oscillator(engine: str) -> None:
    model = pn.SecondOrderNeuralODE(lambda u: -4.0 * u[..., :1], (0.0, 1.0), engine=engine, **TIGHT)
    y = model(f64([[1.0, 0.0], [0.0, 2.0]]))
    c, s = torch.cos(f64(2.0)), torch.sin(f64(2.0))
    assert_close(y, torch.stack([torch.stack([c, -2 * s]), torch.stack([s, 2 * c])]), 1e-8)


def test_ode_block_in_a_network(engine: str) -> None:
    block = pn.ODEBlock(net(5, 4), append_time=True, engine=engine, **TIGHT)
    plain = pn.NeuralODE(
        lambda u, t: block.vector_field(torch.cat([u, t.expand(len(u), 1)], 1)),
        engine=engine, **TIGHT,
    )  # fmt: skip
    model = nn.Sequential(net(2, 4), block, net(4, 1))
    x = torch.randn(3, 2, dtype=F64)
    assert_close(model(x), model[2](plain(model[0](x))), 1e-10)
    images = pn.ODEBlock(nn.Conv2d(2, 2, 3, padding=1).double(), engine=engine)
    assert images(torch.randn(2, 2, 4, 4, dtype=F64)).shape == (2, 2, 4, 4)


def test_samples_by_themselves_or_together(engine: str) -> None:
    field = net()
    x = torch.randn(5, 2, dtype=F64)
    together = pn.NeuralODE(field, engine=engine, **TIGHT)
    alone = pn.NeuralODE(field, engine=engine, per_sample=True, **TIGHT)
    assert_close(alone(x), together(x), 1e-8)
    assert_close(alone(x, f64(0.5, 1.0)), together(x, f64(0.5, 1.0)), 1e-8)
    for model in (alone, together):
        model.zero_grad()
        model(x).sum().backward()
        if model is alone:
            kept = field[0].weight.grad.clone()
    assert_close(kept, field[0].weight.grad, 1e-7)


def test_options_reach_the_solver(engine: str) -> None:
    model = pn.NeuralODE(
        net(), (0.0, 1.0), ps.CVODE_BDF() if engine == "sundials" else ps.Tsit5(),
        engine=engine, sensealg=ps.InterpolatingAdjoint(), reltol=1e-9,
    )  # fmt: skip
    x = torch.ones(1, 2, dtype=F64)
    sol = model.solve(x)
    assert sol.algorithm == ("CVODE_BDF" if engine == "sundials" else "Tsit5")
    few = model.stats.nf
    model.options["reltol"] = 1e-3
    model(x).sum().backward()
    assert model.stats.nf < few


def test_a_training_loop_captures_once_and_learns() -> None:
    torch.manual_seed(1)
    a = f64([[-0.1, 2.0], [-2.0, -0.1]])
    ts = torch.linspace(0.0, 1.5, 10, dtype=F64)
    x = torch.randn(16, 2, dtype=F64)
    want = torch.stack([x @ torch.linalg.matrix_exp(t * a.T) for t in ts])
    model = pn.NeuralODE(net(hidden=16), (0.0, 1.5), saveat=ts, engine="sundials")
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    with counted_captures() as names:
        for _ in range(150):
            optimiser.zero_grad()
            loss = (model(x) - want).square().mean()
            loss.backward()
            optimiser.step()
    assert names == ["f"]
    assert float(loss.detach()) < 0.02


# ---- as torch modules


def build(name: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """One of each module, and a call of it."""
    torch.manual_seed(0)
    batch = torch.randn(3, 2, dtype=F64)
    fixed = {"engine": "sundials"}
    coeffs = pn.hermite_coefficients(torch.randn(3, 5, 2, dtype=F64))
    times = torch.linspace(0.0, 1.0, 4, dtype=F64)
    series = torch.randn(3, 4, 2, dtype=F64)
    graph = pn.normalised_adjacency(torch.tensor([[0, 1], [1, 2]]), 3)
    made: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
        "NeuralODE": (lambda: pn.NeuralODE(net(), **fixed), lambda m: m(batch)),
        "AugmentedNeuralODE": (
            lambda: pn.AugmentedNeuralODE(net(3), augment=1, **fixed), lambda m: m(batch)),
        "SecondOrderNeuralODE": (
            lambda: pn.SecondOrderNeuralODE(net(2, 1), **fixed), lambda m: m(batch)),
        "ODEBlock": (lambda: pn.ODEBlock(net(), **fixed), lambda m: m(batch)),
        "HamiltonianNN": (lambda: pn.HamiltonianNN(net(2, 1), **fixed), lambda m: m(batch)),
        "LagrangianNN": (
            lambda: pn.LagrangianNN(Kinetic(net(2, 1)), **fixed), lambda m: m(batch)),
        "StableNeuralFlow": (
            lambda: pn.StableNeuralFlow(net(2, 1), size=2, **fixed).double(), lambda m: m(batch)),
        "GraphNeuralODE": (
            lambda: pn.GraphNeuralODE(graph, features=2, **fixed).double(), lambda m: m(batch)),
        "FFJORD": (lambda: pn.FFJORD(net(), 2, **fixed), lambda m: m.log_prob(batch)),
        "NeuralCDE": (
            lambda: pn.NeuralCDE(net(4, 8), 2, 4, **fixed).double(), lambda m: m(coeffs)),
        "LatentODE": (
            lambda: pn.LatentODE(2, 3, **fixed).double(), lambda m: m(times, series)),
        "HybridODE": (
            lambda: pn.HybridODE(net(), pn.Transition(Level()), **fixed),
            lambda m: m(batch)),
        "MultipleShooting": (
            lambda: pn.MultipleShooting(pn.NeuralODE(net(), **fixed), times, series[0]),
            lambda m: m()),
        "DeepEquilibrium": (
            lambda: pn.DeepEquilibrium(Contraction()), lambda m: m(batch)),
        "NeuralSDE": (
            lambda: pn.NeuralSDE(net(), net(), dt=0.1, **fixed), lambda m: m(batch, seed=1)),
        "NeuralJumpSDE": (
            lambda: pn.NeuralJumpSDE(
                net(), nn.Sequential(net(2, 1), nn.Softplus()), Kick(net(2)), **fixed),
            lambda m: m(batch[0], [0.2, 0.7])),
    }  # fmt: skip
    make, call = made[name]
    return make(), call


class Kinetic(nn.Module):
    """A Lagrangian with a kinetic energy in it, so that its second derivative is regular."""

    def __init__(self, potential: nn.Module) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, u: Tensor) -> Tensor:
        return 2.0 * u[..., 1:].square() + 0.1 * self.potential(u)


class Level(nn.Module):
    """The condition of a transition that is not met."""

    def forward(self, u: Tensor) -> Tensor:
        return u[0] - 9.0


class Kick(nn.Module):
    """The jump of a jump process."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change = change

    def forward(self, u: Tensor, mark: Tensor) -> Tensor:
        return self.change(u) * mark.sum()


class Contraction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.3 * torch.randn(2, 2, dtype=F64))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.w + x)


MODULES = [
    "NeuralODE", "AugmentedNeuralODE", "SecondOrderNeuralODE", "ODEBlock", "HamiltonianNN",
    "LagrangianNN", "StableNeuralFlow", "GraphNeuralODE", "FFJORD", "NeuralCDE", "LatentODE",
    "HybridODE", "MultipleShooting", "DeepEquilibrium", "NeuralSDE", "NeuralJumpSDE",
]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_a_torch_module(name: str) -> None:
    model, call = build(name)
    before = call(model)
    before.square().sum().backward()
    grads = [p.grad for p in model.parameters()]
    assert grads and all(g is not None and torch.isfinite(g).all() for g in grads)
    assert any(g.abs().max() > 0 for g in grads)

    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_close(call(torch.load(file, weights_only=False)), before, 1e-12)

    torch.optim.SGD(model.parameters(), lr=1e-1).step()
    after = call(model)
    assert float((after - before).detach().abs().max()) > 1e-8
    assert_close(call(twin), before, 1e-12)  # the copy has parameters of its own
    twin.load_state_dict(model.state_dict())
    assert_close(call(twin), after, 1e-12)

    if hasattr(model, "vector_field") and name not in ("HybridODE", "FFJORD", "NeuralCDE"):
        model.vector_field = copy.deepcopy(model.vector_field)  # replaced, not stale
        with torch.no_grad():
            for p in model.vector_field.parameters():
                p.mul_(0.5)
        assert float((call(model) - after).detach().abs().max()) > 1e-8


def test_a_delay_equation_is_saved_and_copied() -> None:
    model = pn.NeuralDDE(net(4, 2), [0.3], history=net(1, 2), learn_lags=True)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    fresh = pn.NeuralDDE(net(4, 2), [0.9], history=net(1, 2), learn_lags=True)
    fresh.load_state_dict(model.state_dict())
    for twin in (torch.load(file, weights_only=False), copy.deepcopy(model), fresh):
        assert_close(twin.lags, model.lags, 1e-12)
        found = dict(twin.named_parameters())
        for key, value in model.named_parameters():
            assert found[key] is not value
            assert_close(found[key], value, 1e-12)


def test_batches_of_a_dataloader(engine: str) -> None:
    data = torch.utils.data.TensorDataset(torch.randn(10, 2, dtype=F64))
    model = nn.Sequential(net(2, 3), pn.NeuralODE(net(3), engine=engine), net(3, 1))
    for (batch,) in torch.utils.data.DataLoader(data, batch_size=4):
        assert model(batch).shape == (len(batch), 1)


# ---- regularisers


def test_kinetic_penalty_in_closed_form(engine: str) -> None:
    model = pn.NeuralODE(
        nn.Linear(2, 2, bias=False).double(), (0.0, 1.0), regularise=pn.Kinetic(0.5),
        engine=engine, **TIGHT,
    )  # fmt: skip
    with torch.no_grad():
        model.vector_field.weight.copy_(-torch.eye(2))
    x = torch.randn(4, 2, dtype=F64)
    y = model(x)
    assert_close(y, x * torch.exp(f64(-1.0)), 1e-8)
    want = 0.5 * x.square().sum(1).mean() * (1 - torch.exp(f64(-2.0))) / 2
    assert_close(model.penalty, want, 1e-8)
    (g,) = torch.autograd.grad(model.penalty, model.vector_field.parameters())
    assert g.abs().max() > 0.01
    back = pn.NeuralODE(model.vector_field, (1.0, 0.0), regularise=pn.Kinetic(), engine=engine)
    back(x)
    assert back.penalty > 0
    model.eval()
    model(x)
    assert model.penalty == 0.0


def test_jacobian_penalty_is_the_frobenius_norm(engine: str) -> None:
    layer = nn.Linear(3, 3).double()
    model = pn.NeuralODE(
        layer, (0.0, 2.0), regularise=pn.JacobianFrobenius(1.0), engine=engine, **TIGHT
    )
    torch.manual_seed(0)
    state = torch.get_rng_state()
    model(torch.randn(7, 3, dtype=F64))
    torch.set_rng_state(state)
    torch.randn(7, 3, dtype=F64)
    noise = torch.randn(7, 3, dtype=F64)
    want = 2.0 * (noise @ layer.weight).square().sum(1).mean()
    assert_close(model.penalty, want, 1e-8)


def test_jacobian_penalty_through_forward_mode(engine: str) -> None:
    """Equations that take second derivatives themselves, on an oscillator u' = [v, -3 q]."""

    def lagrangian(u: Tensor) -> Tensor:
        return 0.5 * u[..., 1].square() - 1.5 * u[..., 0].square()

    def newton(u: Tensor) -> Tensor:
        force = -torch.vmap(torch.func.grad(lambda q: (1.5 * q * q).sum()))(u[:, :1])
        mass = torch.vmap(torch.func.hessian(lambda v: (0.5 * v * v).sum()))(u[:, 1:])
        return torch.cat([u[:, 1:], torch.linalg.solve(mass, force)], dim=1)

    weight = pn.JacobianFrobenius(1.0)
    for model in (
        pn.LagrangianNN(lagrangian, (0.0, 2.0), regularise=weight, engine=engine, **TIGHT),
        pn.NeuralODE(newton, (0.0, 2.0), regularise=weight, engine=engine, **TIGHT),
    ):
        u0 = torch.randn(7, 2, dtype=F64)
        torch.manual_seed(0)
        model(u0)
        torch.manual_seed(0)
        noise = torch.randn_like(u0)
        want = 2.0 * (noise @ f64([[0.0, 1.0], [-3.0, 0.0]])).square().sum(1).mean()
        assert_close(model.penalty, want, 1e-8)


def test_all_regularisers_together_leave_the_solution_alone(engine: str) -> None:
    x = torch.randn(3, 2, dtype=F64)
    both = [pn.Kinetic(), pn.JacobianFrobenius()]
    model = pn.NeuralODE(net(), regularise=both, engine=engine, **TIGHT)
    y = model(x, f64(0.5, 1.0))
    assert_close(y, model.eval()(x, f64(0.5, 1.0)), 1e-8)
    single = pn.NeuralODE(net(), regularise=both, engine=engine, **TIGHT)
    assert_close(single(x[0]), y[-1, 0], 1e-8)


def test_random_end_times(engine: str) -> None:
    model = pn.NeuralODE(
        lambda u: torch.ones_like(u), (0.0, 1.0), regularise=pn.RandomEndTime(0.3), engine=engine
    )
    torch.manual_seed(0)
    ends = torch.stack([model(f64([0.0]))[0] for _ in range(20)])
    assert ends.min() > 0.7 and ends.max() < 1.3 and ends.std() > 0.05
    assert_close(model.eval()(f64([0.0])), f64([1.0]), 1e-9)


def test_regularised_training_needs_fewer_evaluations() -> None:
    """Maps of points to their mirror images: the plain model gets there by detours."""
    torch.manual_seed(0)
    x = torch.randn(32, 2, dtype=F64)
    want = torch.stack([x[:, 0].tanh() * 2, x[:, 1] * x[:, 0].sign()], 1)
    cost = {}
    for name, regularise in (("plain", None), ("kinetic", pn.Kinetic(0.05)),
                             ("both", [pn.Kinetic(0.05), pn.JacobianFrobenius(0.05)])):  # fmt: skip
        torch.manual_seed(0)
        model = pn.NeuralODE(net(hidden=32), regularise=regularise, engine="sundials")
        descend(model.parameters(), penalised(model, x, want), 120)
        model.eval()
        model(x)
        cost[name] = model.stats.nf
    assert cost["kinetic"] < cost["plain"] and cost["both"] < cost["plain"], cost


@pytest.mark.parametrize("kind", ["error", "stiffness"])
def test_estimates_of_the_steps_in_closed_form(engine: str, kind: str) -> None:
    """On u' = a u the pair's results differ by a polynomial in a h, and the stiffness is |a|."""
    a = f64(-0.8, grad=True)
    x = f64([1.0], [2.0])
    estimate = {"error": pn.ErrorEstimate(3.0), "stiffness": pn.StiffnessEstimate(0.5)}[kind]
    model = pn.NeuralODE(
        lambda u: a * u, (0.0, 2.0), engine=engine, abstol=1e-5, reltol=1e-5, regularise=estimate
    )
    assert_close(model(x), x * torch.exp(2 * a), 1e-4)
    penalty = model.penalty
    t = model.eval().solve(x).t
    h, z = t.diff(), a * t.diff()
    gap = pair_gap(z)
    start = torch.exp(a * t[:-1]) * x
    scale = (1e-5 + 1e-5 * start).detach()
    error = ((gap * start).abs() / scale).mean(0)
    want = 3.0 * (error * h).sum() if kind == "error" else 0.5 * len(h) * a.abs()
    assert_close(penalty, want, 1e-3)
    got = torch.autograd.grad(penalty, a)[0]
    assert_close(got, torch.autograd.grad(want, a)[0], 2e-3)


def test_estimates_of_the_steps_in_any_shape(engine: str) -> None:
    x = torch.randn(3, 2, dtype=F64)
    both = [pn.ErrorEstimate(), pn.StiffnessEstimate(), pn.Kinetic()]
    field = net(3, 2)

    def timed(u: Tensor, t: Tensor) -> Tensor:
        return field(torch.cat([u, t.expand(*u.shape[:-1], 1)], dim=-1))

    model = pn.NeuralODE(timed, (1.0, 0.0), regularise=both, engine=engine, **TIGHT)
    y = model(x, f64(0.5, 0.0))
    assert float(model.penalty.detach()) > 0
    assert_close(y, model.eval()(x, f64(0.5, 0.0)), 1e-8)
    model.train()
    assert_close(model(x[0]), y[-1, 0], 1e-8)


def test_training_on_the_steps_estimates_needs_fewer_evaluations() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 2, dtype=F64)
    want = torch.stack([x[:, 0].tanh() * 2, x[:, 1] * x[:, 0].sign()], 1)
    cost = {}
    for name, regularise in (("plain", None), ("error", pn.ErrorEstimate(10.0)),
                             ("stiffness", pn.StiffnessEstimate(1e-3))):  # fmt: skip
        torch.manual_seed(0)
        model = pn.NeuralODE(net(hidden=32), regularise=regularise, engine="sundials")
        descend(model.parameters(), penalised(model, x, want), 100)
        model.eval()
        model(x)
        cost[name] = model.stats.nf
    assert cost["error"] < cost["plain"] and cost["stiffness"] < cost["plain"], cost


# ---- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pn.NeuralODE(3), "vector_field is a int"),
        (lambda: pn.NeuralODE(lambda a, b, c: a), "write it as f"),
        (lambda: pn.NeuralODE(net(), (1.0, 1.0)), "no length"),
        (lambda: pn.NeuralODE(net(), 5.0), "give .t0, t1."),
        (lambda: pn.NeuralODE(net(), rtol=1e-3), "does not take 'rtol'"),
        (lambda: pn.NeuralODE(net(), abstoll=1e-3), "Did you mean 'abstol'"),
        (lambda: pn.NeuralODE(net(), saveat=[0.0, 1.0, 0.5]), "not sorted"),
        (lambda: pn.NeuralODE(net(), saveat=[[0.0]]), "1-d tensor"),
        (lambda: pn.NeuralODE(net(), regularise="kinetic"), "regularise holds 'kinetic'"),
        (lambda: pn.NeuralODE(net(), regularise=[pn.Kinetic(), pn.Kinetic()]), "twice"),
        (lambda: pn.NeuralODE(net(), regularise=pn.RandomEndTime(1.5)), "smaller width"),
        (lambda: pn.Kinetic(-1.0), "number >= 0"),
        (lambda: pn.AugmentedNeuralODE(net(), augment=0), "augment is 0; give a positive whole"),
        (lambda: pn.AugmentedNeuralODE(net(), augment=True), "augment is True; give a positive"),
        (lambda: pn.AugmentedNeuralODE(net(), augment=1, lift=3), "lift is a int"),
        (
            lambda: pn.AugmentedNeuralODE(net(3), augment=1)(torch.tensor(1.0)),
            r"u0 has shape \(\); give \(..., d\)",
        ),
        (lambda: pn.SecondOrderNeuralODE(net(2, 1))([1.0, 2.0]), "u0 is a list; give a tensor"),
        (
            lambda: pn.SecondOrderNeuralODE(lambda u: None, engine="sundials")(torch.ones(2)),
            "What acceleration gave is a NoneType",
        ),
        (
            lambda: pn.ODEBlock(net(3, 2), append_time=True)(torch.zeros(2)),
            r"x has shape \(2,\); give \(batch, features, ...\)",
        ),
        (lambda: pn.ODEBlock(net(), saveat=[0.5, 1.0]), "use NeuralODE"),
    ],
)
def test_what_cannot_be_built(make: Any, message: str) -> None:
    with pytest.raises(ps.InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (pn.NeuralODE(nn.Linear(2, 3).double()), (4, 2), r"returned shape \(4, 3\)"),
        (pn.NeuralODE(nn.Sequential(nn.Dropout(0.1))), (4, 2), "Dropout in training mode"),
        (pn.NeuralODE(nn.Sequential(nn.BatchNorm1d(2).double())), (4, 2), "BatchNorm1d"),
        (pn.NeuralODE(nn.Linear(2, 3).double(), regularise=pn.Kinetic()), (4, 2),
         r"returned shape \(4, 3\), but u0 has shape \(4, 2\)"),
        (pn.NeuralODE(nn.Linear(2, 3).double(), regularise=pn.JacobianFrobenius()), (4, 2),
         r"returned shape \(4, 3\), but u0 has shape \(4, 2\)"),
        (pn.NeuralODE(nn.Linear(3, 2).double()), (4, 2), r"f fails on a state of shape \(4, 2\)"),
        (pn.NeuralODE(nn.Linear(2, 2)), (4, 2), "mixes dtypes"),
        (pn.SecondOrderNeuralODE(lambda u: u), (4, 2), "acceleration gave"),
        (pn.SecondOrderNeuralODE(lambda u: u[..., :1]), (4, 3), "even length"),
        (pn.AugmentedNeuralODE(lambda u: u, augment=1, lift=nn.Linear(2, 2).double()), (4, 2),
         "lift gave"),
        (pn.NeuralODE(lambda u: -u, per_sample=True), (), "first axis is the batch"),
    ],
)  # fmt: skip
def test_what_cannot_be_called(model: nn.Module, x: tuple[int, ...], message: str) -> None:
    model.engine = "sundials"
    with pytest.raises(ps.InputError, match=message):
        model(torch.ones(x, dtype=F64))


def test_dropout_in_evaluation_is_welcome() -> None:
    field = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)).double()
    model = pn.NeuralODE(field.eval(), engine="sundials")
    assert model(torch.ones(3, 2, dtype=F64)).shape == (3, 2)


def test_the_end_that_moves_keeps_its_gradient() -> None:
    """u' = 1: the gradient of u(t1) by t1 is 1, wherever t1 was moved to."""
    end = torch.tensor(1.0, dtype=F64, requires_grad=True)
    model = pn.NeuralODE(
        lambda u: torch.ones_like(u), (0.0, end), regularise=pn.RandomEndTime(0.1),
        engine="sundials",
    )  # fmt: skip
    (grad,) = torch.autograd.grad(model(torch.zeros(1, dtype=F64)).sum(), end)
    assert_close(grad, f64([1.0])[0], 1e-6)


def test_states_that_regularisers_do_not_take() -> None:
    model = pn.NeuralODE(net(), regularise=pn.RandomEndTime(0.1), engine="sundials")
    with pytest.raises(ps.InputError, match="one tensor"):
        model({"a": f64([1.0])})
    counted = pn.NeuralODE(net(), regularise=pn.JacobianFrobenius(), engine="sundials")
    with pytest.raises(ps.InputError, match="u0 is int64"):
        counted(torch.ones(1, 2, dtype=torch.int64))
