"""Neural SDEs: against Euler-Maruyama by hand on the same noise, seeds, moments, bad input."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml import nn as pn
from pysciml.errors import EngineError, InputError
from support import F64, assert_close, counted_captures, f64


def net(inputs: int, outputs: int, last: nn.Module | None = None) -> nn.Sequential:
    layers = [nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)]
    return nn.Sequential(*layers, *([last] if last is not None else [])).double()


class Timed(nn.Module):
    """A network of the state and the time, as a matrix of ``columns`` where these are given."""

    def __init__(self, size: int, columns: int = 0) -> None:
        super().__init__()
        self.net, self.size, self.columns = net(size + 1, size * max(columns, 1)), size, columns

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        out = self.net(torch.cat([u, t.expand(*u.shape[:-1], 1)], dim=-1))
        return out.reshape(*u.shape, self.columns) if self.columns else out


def by_hand(model: pn.NeuralSDE, u0: Tensor, sol: Any) -> Tensor:
    """The states by the model's scheme, Euler-Maruyama or Heun, along the noise of ``sol``."""
    u, states, w = u0, [u0], sol.W.u

    def moved(u: Tensor, t: Tensor, dt: float, dw: Tensor) -> Tensor:
        g = model.diffusion(u, t)
        if model.noise == "diagonal":
            noise = g * dw.reshape(u.shape)
        elif model.noise == "scalar":
            noise = g * dw.reshape(*u.shape[:-1], 1)
        else:
            noise = (g @ dw.reshape(*u.shape[:-1], g.shape[-1], 1))[..., 0]
        return dt * model.drift(u, t) + noise

    for k, dt in enumerate(sol.t.diff().tolist()):
        dw = w[k + 1] - w[k]
        step = moved(u, sol.t[k], dt, dw)
        if model.interpretation == "Stratonovich":
            step = (step + moved(u + step, sol.t[k + 1], dt, dw)) / 2
        u = u + step
        states.append(u)
    return torch.stack(states)


@pytest.mark.parametrize("interpretation", ["Ito", "Stratonovich"])
@pytest.mark.parametrize("noise", ["diagonal", "scalar", "general"])
@pytest.mark.parametrize("batch", [(5,), ()], ids=["batch", "one"])
def test_value_and_gradient_against_the_steps_by_hand(
    engine: str, noise: str, interpretation: str, batch: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    diffusion = Timed(2, 3 if noise == "general" else 0)
    model = pn.NeuralSDE(
        Timed(2), diffusion, (0.5, 1.5), noise=noise, interpretation=interpretation, dt=0.125,
        engine=engine,
    )  # fmt: skip
    u0 = torch.randn(*batch, 2, dtype=F64, requires_grad=True)
    sol = model.solve(u0, seed=4)
    want = by_hand(model, u0, sol)
    assert len(sol.t) == 9 and sol.u.shape == want.shape
    assert sol.W.u.shape[1] == math.prod(batch) * {"diagonal": 2, "scalar": 1, "general": 3}[noise]
    got = model(u0, [0.75, 1.5], seed=4)
    assert_close(got, want[[2, 8]], 1e-10)
    assert_close(model(u0, seed=4), want[-1], 1e-10)
    inputs = [u0, *model.parameters()]
    a = torch.autograd.grad(got.square().sum(), inputs)
    b = torch.autograd.grad(want[[2, 8]].square().sum(), inputs)
    for g, h in zip(a, b, strict=True):
        assert_close(g, h, 1e-8)


def test_noise_that_does_not_depend_on_the_state(engine: str) -> None:
    spread = f64([0.3, 0.1], [0.0, 0.2])
    u0 = torch.randn(3, 2, dtype=F64)
    for value in (lambda u: spread.expand(3, 2, 2), lambda u: spread[:1].expand(3, 2)):
        model = pn.NeuralSDE(
            lambda u: 0 * u, value, noise="additive", dt=0.25, engine=engine
        )  # fmt: skip
        sol = model.solve(u0, seed=1)
        if sol.W.u.shape[1] == 6 and value(u0).ndim == 3:
            moved = (spread @ sol.W.u[-1].reshape(3, 2, 1))[..., 0]
        else:
            moved = spread[0] * sol.W.u[-1].reshape(3, 2)
        assert_close(sol.u[-1], u0 + moved, 1e-11)


def test_each_call_draws_new_noise_and_a_seed_draws_it_again(engine: str) -> None:
    model = pn.NeuralSDE(lambda u: -u, lambda u: 0.5 * u, dt=0.1, engine=engine)
    u0 = torch.ones(4, 1, dtype=F64)
    first, other = model(u0), model(u0)
    assert not torch.equal(first, other) and len(first.unique()) == 4
    torch.manual_seed(7)
    drawn = model(u0)
    torch.manual_seed(7)
    assert torch.equal(drawn, model(u0))
    assert torch.equal(model(u0, seed=3), model(u0, seed=3))


@pytest.mark.parametrize("interpretation", ["Ito", "Stratonovich"])
def test_step_control_and_the_closed_form(engine: str, interpretation: str) -> None:
    a, b = f64(0.4, grad=True), f64(0.3, grad=True)
    model = pn.NeuralSDE(
        lambda u: a * u, lambda u: b * u, interpretation=interpretation, engine=engine,
        abstol=1e-5, reltol=1e-5,
    )  # fmt: skip
    sol = model.solve(torch.ones(20, 1, dtype=F64), seed=2)
    w = sol.W.u[-1]
    exact = torch.exp(a - (b**2 / 2 if interpretation == "Ito" else 0.0) + b * w)
    assert_close(sol.u[-1, :, 0], exact, 1e-2)
    got = torch.autograd.grad(sol.u[-1].sum(), (a, b))
    for g, h in zip(got, torch.autograd.grad(exact.sum(), (a, b)), strict=True):
        assert_close(g, h, 3e-2)
    assert model.stats is not None and model.stats.naccept > 10


def test_moments_of_ornstein_uhlenbeck_are_learned(engine: str) -> None:
    """Networks for drift and diffusion are trained on mean and variance at four times."""
    torch.manual_seed(1)
    drift, diffusion = net(1, 1), net(1, 1, nn.Softplus())
    model = pn.NeuralSDE(drift, diffusion, (0.0, 2.0), dt=0.1, engine=engine)
    times = f64(0.5, 1.0, 1.5, 2.0)
    theta, sigma = 1.5, 0.6
    mean = 2.0 * torch.exp(-theta * times)
    variance = sigma**2 * (1 - torch.exp(-2 * theta * times)) / (2 * theta)
    u0 = torch.full((256, 1), 2.0, dtype=F64)

    def loss() -> Tensor:
        u = model(u0, times)[..., 0]
        return (u.mean(1) - mean).square().sum() + (u.var(1) - variance).square().sum()

    before = float(loss().detach())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    with counted_captures() as names:
        for _ in range(80):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
    assert len(names) <= 1
    with torch.no_grad():
        after = sum(float(loss()) for _ in range(5)) / 5
    assert before > 1.0 and after < 0.01


def test_as_a_torch_module(engine: str) -> None:
    torch.manual_seed(2)
    block = pn.NeuralSDE(net(2, 2), net(2, 2), dt=0.25, engine=engine)
    model = nn.Sequential(nn.Linear(3, 2), block, nn.Linear(2, 1)).double()
    x = torch.randn(4, 3, dtype=F64)

    def value(m: nn.Module) -> Tensor:
        torch.manual_seed(0)
        return m(x).detach()

    want = value(model)
    assert torch.equal(value(copy.deepcopy(model)), want)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(value(torch.load(file, weights_only=False)), want)
    other = nn.Sequential(
        nn.Linear(3, 2), pn.NeuralSDE(net(2, 2), net(2, 2), dt=0.25, engine=engine),
        nn.Linear(2, 1),
    ).double()  # fmt: skip
    other.load_state_dict(model.state_dict())
    assert torch.equal(value(other), want)
    model(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    block.diffusion = net(2, 2)
    assert not torch.equal(value(model), want)


def test_pytrees_and_float32(engine: str) -> None:
    model = pn.NeuralSDE(
        lambda u: {"a": -u["a"], "b": u["a"]}, lambda u: {"a": 0 * u["a"], "b": 0 * u["b"]},
        dt=0.5, saveat=[0.5, 1.0], engine=engine,
    )  # fmt: skip
    out = model({"a": torch.ones(2, 3), "b": torch.zeros(2, 3)})
    assert out["a"].dtype == torch.float32 and out["a"].shape == (2, 2, 3)
    assert_close(out["b"][:, 0, 0], torch.tensor([0.5, 0.75]), 1e-6)


def make(**options: Any) -> pn.NeuralSDE:
    drift, diffusion = options.pop("drift", lambda u: -u), options.pop("diffusion", lambda u: u)
    return pn.NeuralSDE(drift, diffusion, **{"engine": "sundials", "dt": 0.5, **options})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"drift": 3}, "drift is a int"),
        ({"diffusion": lambda u, t, p: u}, r"diffusion takes \(u, t, p\)"),
        ({"noise": np.zeros(2)}, r"noise is array"),
        ({"saveat": "end"}, "saveat is 'end'; give a 1-d tensor of float times"),
        ({"tspan": (0.0, "end")}, r"tspan\[1\] is 'end'; give a real number"),
        ({"noise": "diag"}, "noise is 'diag'.*Did you mean 'diagonal'"),
        ({"interpretation": "ito"}, 'give "Ito" or "Stratonovich"'),
        ({"tspan": (1.0, 0.0)}, "runs backwards"),
        ({"steps": 3}, "NeuralSDE does not take 'steps'"),
        ({"alg": ps.torchsde.heun()}, r"heun\(\) solves the equation of Stratonovich"),
        ({"alg": ps.EulerHeun()}, r"EulerHeun\(\) solves the equation of Stratonovich"),
        (
            {"alg": ps.RKMil(interpretation="Stratonovich")},
            "solves the equation of Stratonovich, but interpretation is 'Ito'",
        ),
    ],
)
def test_modules_that_cannot_be(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        make(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"drift": nn.Dropout()}, "drift has Dropout in training mode"),
        ({"diffusion": nn.BatchNorm1d(2)}, "diffusion has BatchNorm1d in training mode"),
        ({"drift": lambda u: u[:1]}, r"f returned shape \(1, 2\)"),
        ({"diffusion": lambda u: u[:1]}, r"g returned shape \(1, 2\)"),
        ({"noise": "general"}, r"must give \(3, 2, 'm'\)"),
        ({"noise": "scalar", "diffusion": lambda u: u[:, :1]}, r"must give \(3, 2\)"),
        ({"drift": nn.Linear(3, 2)}, r"f fails on a state of shape \(3, 2\)"),
        ({"diffusion": nn.Linear(2, 2).double()}, "g mixes dtypes or devices"),
        ({"diffusion": nn.Linear(3, 2), "noise": "scalar"}, "diffusion fails on a state of shape"),
        ({"noise": "additive"}, "does not depend on the state, but it does"),
    ],
)
def test_calls_that_cannot_be(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        make(**options)(torch.ones(3, 2))


def test_scalar_noise_is_stepped_adaptively_without_julia() -> None:
    model = make(noise="scalar", dt=None)
    sol = model.solve(torch.ones(3, 2, dtype=F64), torch.tensor([1.0]), seed=1)
    assert sol.algorithm == "milstein" and sol.W.u.shape[1] == 3  # one a sample


def test_general_noise_needs_a_step_without_julia() -> None:
    model = make(noise="general", diffusion=lambda u: u[..., None] * torch.ones(3), dt=None)
    with pytest.raises(InputError, match="give dt="):
        model(torch.ones(3, 2))
    with pytest.raises(EngineError, match="EM belongs to the julia engine"):
        make(alg=ps.EM())(torch.ones(3, 2))
