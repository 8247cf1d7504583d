"""Regularisers on the modules that solve by themselves, in closed form; per-sample solves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml import nn as pn
from support import F64, assert_close, descend, f64, net

TIGHT = {"abstol": 1e-11, "reltol": 1e-10}


# ---- random ends


def test_times_of_a_series_move_each_by_itself(engine: str) -> None:
    """u' = 1 from 0: the outputs are the times at which they were taken."""
    # a start that float32 does not hold
    late = pn.NeuralODE(
        torch.ones_like, (0.1, 1.0), regularise=pn.RandomEndTime(0.1), engine=engine
    )
    assert float(late(f64([0.1]), f64(0.1, 0.5, 1.0))[0]) == 0.1
    at = f64(0.0, 0.5, 1.0)
    model = pn.NeuralODE(
        torch.ones_like, (0.0, 1.0), regularise=pn.RandomEndTime(0.2), engine=engine
    )
    torch.manual_seed(0)
    moved = torch.cat([model(f64([0.0]), at) for _ in range(20)], dim=1) - at[:, None]
    assert moved[0].abs().max() < 1e-12
    assert 0.1 < moved[1:].abs().max() < 0.2
    assert moved[1].std() > 0.05 and moved[2].std() > 0.05
    assert float(torch.corrcoef(moved[1:])[0, 1].abs()) < 0.9
    assert moved[2].max() > 0.05  # beyond tspan
    assert_close(model.eval()(f64([0.0]), at)[:, 0], at, 1e-9)
    back = pn.NeuralODE(
        torch.ones_like, (1.0, 0.0), regularise=pn.RandomEndTime(0.2), engine=engine
    )
    out = torch.cat([back(f64([1.0]), at.flip(0)) for _ in range(10)], dim=1) - at.flip(0)[:, None]
    assert out[0].abs().max() < 1e-12 and 0.05 < out[1:].abs().max() < 0.2


def test_integrals_go_to_the_end_wherever_outputs_do(engine: str) -> None:
    """u' = -u: the integral of |f|^2 over tspan, with outputs in its first half."""
    model = pn.NeuralODE(lambda u: -u, (0.0, 2.0), engine=engine, regularise=pn.Kinetic(1.0),
                         **TIGHT)  # fmt: skip
    u = model(f64([1.0], [2.0]), f64(0.5, 1.0))
    assert_close(u[:, 0, 0], torch.exp(-f64(0.5, 1.0)), 1e-8)
    assert_close(model.penalty, 2.5 * (1.0 - torch.exp(f64(-4.0))) / 2, 1e-8)


def test_a_series_needs_room_between_its_times() -> None:
    model = pn.NeuralODE(net(), regularise=pn.RandomEndTime(0.25), engine="sundials")
    with pytest.raises(ps.InputError, match=r"times of saveat are only 0.5 apart"):
        model(torch.ones(1, 2, dtype=F64), [0.5, 1.0])


def test_a_latent_ode_with_regularisers(engine: str) -> None:
    t, x = f64(0.0, 0.4, 1.0), torch.randn(5, 3, 2, dtype=F64)
    kinds = [pn.Kinetic(), pn.RandomEndTime(0.1)]
    model = pn.LatentODE(2, 3, regularise=kinds, engine=engine).double()
    loss = -model.elbo(t, x)
    assert model.penalty > 0 and model.stats is not None
    alone = torch.autograd.grad(model.penalty, model.ode.vector_field[0].weight, retain_graph=True)
    assert alone[0].abs().max() > 0
    (loss + model.penalty).backward()
    model.eval()
    plain = model(t, x)
    assert model.penalty == 0.0
    model.ode.regularise = ()
    assert_close(plain, model.train()(t, x), 1e-9)


# ---- controlled equations: z' = f(z) X'(t) on a linear path, whose X' is constant by pieces


class Steered(nn.Module):
    """``f(z)`` (batch, 2, 3) = A z, or A alone."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        shape = (2, 3, 2) if linear else (2, 3)
        self.a = nn.Parameter(0.5 * torch.randn(shape, dtype=F64))

    def forward(self, z: Tensor) -> Tensor:
        if self.a.ndim == 2:
            return self.a.expand(len(z), 2, 3)
        return torch.einsum("hcd,bd->bhc", self.a, z)


def path() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 5, 3, dtype=F64), f64(0.0, 0.4, 1.0, 1.3, 2.0)


def test_kinetic_penalty_of_a_controlled_equation(engine: str) -> None:
    x, t = path()
    model = pn.NeuralCDE(
        Steered(False), 3, 2, path="linear", regularise=pn.Kinetic(2.0), engine=engine, **TIGHT
    ).double()
    end = model(x, t)
    rise = torch.einsum("hc,bmc->bmh", model.vector_field.a, x.diff(dim=1))
    want = 2.0 * (rise.square().sum(-1) / t.diff()).sum(1).mean()
    assert_close(model.penalty, want, 1e-7)
    got = torch.autograd.grad(model.penalty, model.vector_field.a)[0]
    assert_close(got, torch.autograd.grad(want, model.vector_field.a)[0], 1e-6)
    assert_close(end, model.initial(x[:, 0]) + rise.sum(1), 1e-8)


def test_jacobian_penalty_of_a_controlled_equation(engine: str) -> None:
    x, t = path()
    model = pn.NeuralCDE(
        Steered(True), 3, 2, path="linear", regularise=pn.JacobianFrobenius(2.0), engine=engine,
        **TIGHT,
    ).double()  # fmt: skip
    torch.manual_seed(7)
    model(x, t)
    torch.manual_seed(7)
    noise = torch.randn(4, 2, dtype=F64)
    jacobian = torch.einsum("hcd,bmc->bmhd", model.vector_field.a, x.diff(dim=1))
    rows = torch.einsum("bh,bmhd->bmd", noise, jacobian)
    want = 2.0 * (rows.square().sum(-1) / t.diff()).sum(1).mean()
    assert_close(model.penalty, want, 1e-7)


def test_stiffness_of_a_controlled_equation(engine: str) -> None:
    """z' = a s z on a straight path of slope s: the stiffness is |a s| on every step."""
    a, slope = -0.7, 3.0
    x = slope * f64([[[0.0], [1.0]]])
    model = pn.NeuralCDE(
        lambda z: a * z[..., None], 1, 1, path="linear", engine=engine,
        regularise=pn.StiffnessEstimate(1.0),
    ).double()  # fmt: skip
    model(x)
    steps = float(model.penalty.detach()) / abs(a * slope)
    assert steps > 2 and abs(steps - round(steps)) < 1e-3
    errors = pn.NeuralCDE(
        lambda z: a * z[..., None], 1, 1, path="linear", engine=engine,
        regularise=pn.ErrorEstimate(1.0),
    ).double()  # fmt: skip
    errors(x)
    (g,) = torch.autograd.grad(errors.penalty, errors.initial.bias)
    assert errors.penalty > 0 and g.abs().max() > 0


# ---- samples by themselves


def test_samples_do_not_see_each_other(engine: str) -> None:
    seen = []

    def field(u: Tensor) -> Tensor:
        seen.append(model.per_sample)
        return -u * (1.0 + u.square())

    model = pn.NeuralODE(field, engine=engine, per_sample=True)
    x = f64([[0.1], [9.0], [0.5]])
    out = model(x, f64(0.5, 1.0))
    assert seen and all(seen)  # nothing is switched meanwhile
    assert torch.equal(out[:, :1], model(x[:1], f64(0.5, 1.0)))
    assert_close(out, model(x.reshape(3), f64(0.5, 1.0))[..., None], 1e-12)
    tree = pn.NeuralODE(
        lambda u: {"a": u["b"], "b": -u["a"]}, engine=engine, per_sample=True, **TIGHT
    )({"a": f64(0.0, 0.0), "b": f64(1.0, 2.0)})
    assert_close(tree["a"], f64(1.0, 2.0) * torch.sin(f64(1.0)), 1e-8)


@pytest.mark.parametrize(
    "regularise", [pn.Kinetic(), pn.ErrorEstimate(), pn.StiffnessEstimate(), [pn.Kinetic(),
                   pn.StiffnessEstimate()]], ids=["kinetic", "error", "stiffness", "two"],
)  # fmt: skip
def test_penalties_of_samples_by_themselves(engine: str, regularise: Any) -> None:
    field, x = net(), torch.randn(3, 2, dtype=F64)
    made: dict[str, Any] = {"engine": engine, "regularise": regularise, "reltol": 1e-8}
    alone = pn.NeuralODE(field, per_sample=True, **made)
    one = pn.NeuralODE(field, **made)
    y, parts = alone(x, f64(0.5, 1.0)), []
    for i in range(3):
        assert_close(y[:, i : i + 1], one(x[i : i + 1], f64(0.5, 1.0)), 1e-7)
        parts.append(one.penalty)
    want = torch.stack(parts).mean()
    assert_close(alone.penalty, want, 1e-6)
    got = torch.autograd.grad(alone.penalty, field[0].weight)[0]
    assert_close(got, torch.autograd.grad(want, field[0].weight)[0], 1e-5)


def test_jacobian_penalty_of_samples_by_themselves(engine: str) -> None:
    layer, x = nn.Linear(3, 3).double(), torch.randn(4, 3, dtype=F64)
    model = pn.NeuralODE(
        layer, (0.0, 2.0), regularise=pn.JacobianFrobenius(1.0), engine=engine, per_sample=True,
        **TIGHT,
    )  # fmt: skip
    torch.manual_seed(0)
    model(x)
    torch.manual_seed(0)
    noise = torch.randn(4, 3, dtype=F64)
    assert_close(model.penalty, 2.0 * (noise @ layer.weight).square().sum(1).mean(), 1e-8)


def test_flows_and_controlled_equations_by_samples(engine: str) -> None:
    field, x = net(), torch.randn(3, 2, dtype=F64)
    together = pn.FFJORD(field, 2, engine=engine, **TIGHT)
    alone = pn.FFJORD(field, 2, engine=engine, per_sample=True, **TIGHT)
    assert_close(alone.log_prob(x), together.log_prob(x), 1e-7)
    assert alone.sample(3).shape == (3, 2)
    values, t = path()
    for regularise in (None, pn.Kinetic()):
        made: dict[str, Any] = {"path": "linear", "engine": engine, "regularise": regularise}
        one = pn.NeuralCDE(Steered(True), 3, 2, per_sample=True, **made, **TIGHT).double()
        all_ = pn.NeuralCDE(one.vector_field, 3, 2, initial=one.initial, **made, **TIGHT)
        a, b = one(values, t, [0.5, 2.0]), all_(values, t, [0.5, 2.0])
        assert_close(a, b, 1e-8)
        assert_close(one.penalty, all_.penalty, 1e-8)
        got = torch.autograd.grad(a.sum(), one.vector_field.a)[0]
        assert_close(got, torch.autograd.grad(b.sum(), one.vector_field.a)[0], 1e-6)


def test_one_module_in_several_threads() -> None:
    """Batches of different sizes at once, with and without per-sample solves."""
    sizes = [3, 5, 2, 4] * 4
    batches = [torch.randn(n, 2, dtype=F64) for n in sizes]
    for per_sample in (False, True):
        model = pn.NeuralODE(net(), engine="sundials", regularise=pn.Kinetic(),
                             per_sample=per_sample)  # fmt: skip
        want = [model(x) for x in batches]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(model, batches))
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, 1e-12)


# ---- output times by a step


def test_outputs_at_a_step(engine: str) -> None:
    x, at = torch.randn(3, 2, dtype=F64), f64(0.0, 0.3, 0.6, 0.9, 1.0)
    model = pn.NeuralODE(net(), engine=engine, saveat=0.3, **TIGHT)
    assert_close(model(x), model(x, at), 1e-12)
    assert_close(model(x, 0.5), model(x, f64(0.0, 0.5, 1.0)), 1e-12)
    assert model.solve(x, 0.5).t.tolist() == [0.0, 0.5, 1.0]
    values, t = path()
    controlled = pn.NeuralCDE(Steered(True), 3, 2, path="linear", engine=engine).double()
    assert_close(controlled(values, t, 1.0), controlled(values, t, f64(0.0, 1.0, 2.0)), 1e-12)
    ball = pn.HybridODE(net(), pn.Transition(lambda u: u[0] - 9.0), engine=engine, saveat=0.5)
    assert_close(ball(x), ball(x, f64(0.0, 0.5, 1.0)), 1e-12)
    noisy = pn.NeuralSDE(net(), net(), engine=engine, dt=0.1, saveat=0.5)
    assert_close(noisy(x, seed=1), noisy(x, f64(0.0, 0.5, 1.0), seed=1), 1e-12)
    end = f64(1.0, grad=True)
    moving = pn.NeuralODE(torch.ones_like, (0.0, end), engine=engine, saveat=0.4)
    (grad,) = torch.autograd.grad(moving(f64([0.0])).sum(), end)
    assert_close(grad, f64(1.0), 1e-6)


# ---- segments of a record


def test_penalties_of_shooting_in_closed_form(engine: str) -> None:
    """``u' = a u`` on segments of two lengths: the integral of ``|a u|^2`` over each is known."""
    a = f64([-0.7]).requires_grad_()
    t = f64(0.0, 0.3, 0.7, 1.0, 1.6)
    data = torch.exp(-0.5 * t)[:, None]

    def shot(*regularise: Any) -> Any:
        model = pn.NeuralODE(
            lambda u: a * u, regularise=regularise, engine=engine, abstol=1e-10, reltol=1e-10
        )
        return pn.MultipleShooting(model, t, data, intervals=2, continuity=3.0)

    plain, both = shot(), shot(pn.Kinetic(0.5), pn.JacobianFrobenius(2.0))
    torch.manual_seed(3)
    loss = both()
    assert_close(loss, plain(), 1e-7)
    assert float(plain.penalty) == 0.0
    torch.manual_seed(3)
    e = torch.randn(1, dtype=F64)
    starts, width = both.starts[:, 0], f64(0.7, 0.9)
    kinetic = (a * starts**2 * (torch.exp(2 * a * width) - 1) / 2).sum()
    want = 0.5 * kinetic + 2.0 * (a * e).square().sum() * 1.6
    assert_close(both.penalty, want, 1e-7)
    for x in (a, both.starts):
        got, exact = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (both.penalty, want))
        assert_close(got, exact, 1e-6)
    both.eval()
    assert_close(both(), plain(), 1e-7)
    assert float(both.penalty) == 0.0


def test_shooting_learns_slower_fields_with_a_penalty(engine: str) -> None:
    torch.manual_seed(0)
    t = torch.linspace(0.0, 3.0, 13, dtype=F64)
    data = torch.stack([torch.cos(t), torch.sin(t)], dim=1)

    def trained(weight: float) -> tuple[float, float]:
        torch.manual_seed(1)
        model = pn.NeuralODE(net(), regularise=pn.Kinetic(weight), engine=engine)
        shot = pn.MultipleShooting(model, t, data, intervals=4)
        descend(shot.parameters(), lambda: shot() + shot.penalty, 60)
        loss = float(shot().detach())
        return loss, float(shot.penalty.detach()) / weight

    (small, fast), (_, slow) = trained(1e-6), trained(0.1)
    assert small < 0.05 and slow < 0.7 * fast


# ---- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pn.NeuralODE(net(), saveat=-0.1), "saveat is -0.1; give a number > 0"),
        (lambda: pn.NeuralODE(net(), saveat=True), "saveat is True"),
        (lambda: pn.NeuralCDE(net(4, 12), 3, 4, regularise=pn.RandomEndTime(0.1)),
         "its path ends with the data"),
        (lambda: pn.LatentODE(2, 3, saveat=[1.0]), "does not take 'saveat'"),
        (lambda: pn.LatentODE("a", 3), "channels is 'a'; give a positive whole number"),
        (lambda: pn.LatentODE(2, 3, noise="a"), "noise is 'a'"),
        (lambda: pn.MultipleShooting(pn.NeuralODE(net(), regularise=pn.RandomEndTime(0.1)),
                                     f64(0.0, 1.0), torch.ones(2, 2, dtype=F64)),
         "made with RandomEndTime.*end where the data are"),
        (lambda: pn.MultipleShooting(pn.NeuralODE(net(), per_sample=True), f64(0.0, 1.0),
                                     torch.ones(2, 2, dtype=F64)), "per_sample; leave it out"),
        (lambda: pn.MultipleShooting(pn.NeuralODE(net()), f64(0.0, 1.0), [[1.0, 2.0]] * 2),
         "data is a list; give a tensor of shape"),
        (lambda: pn.MultipleShooting(pn.NeuralODE(net()), "t", torch.ones(2, 2)), "t is 't'; give"),
        (lambda: pn.HybridODE(net(), pn.Transition(lambda u: u[0]), per_sample=True),
         "each sample is solved by itself as it is"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(make: Any, message: str) -> None:
    with pytest.raises(ps.InputError, match=message):
        make()
