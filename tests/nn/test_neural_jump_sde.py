"""NeuralJumpSDE: Hawkes processes by their closed likelihood, sampling, training, input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pysciml.errors import InputError
from pysciml.nn import NeuralJumpSDE
from support import F64, largest_gap

julia = pytest.mark.julia
TIGHT: dict[str, Any] = {"abstol": 1e-9, "reltol": 1e-9}


class Hawkes(nn.Module):
    """Self-exciting events: rate ``mu + u``, where ``u' = -beta u`` and each adds ``alpha``."""

    def __init__(self, mu: float, alpha: float, beta: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor([mu, alpha, beta], dtype=F64).log())

    def values(self) -> Tensor:
        return self.log.exp()

    def model(self, end: float, engine: str, **options: Any) -> NeuralJumpSDE:
        made = NeuralJumpSDE(
            lambda u: -self.values()[2] * u,
            lambda u: self.values()[0] + u,
            lambda u, mark: self.values()[1] * torch.ones_like(u),
            tspan=(0.0, end), engine=engine, **{**TIGHT, **options},
        )  # fmt: skip
        return made


def likelihood(values: Tensor, times: Tensor, end: float) -> Tensor:
    """Ozaki, "Maximum likelihood estimation of Hawkes' self-exciting point processes" (1979)."""
    mu, alpha, beta = values
    gaps = times[:, None] - times[None]
    before = torch.where(gaps > 0, torch.exp(-beta * gaps.clamp(min=0)), 0.0)
    rates = mu + alpha * before.sum(1)
    return (
        rates.log().sum() - mu * end - alpha / beta * (1 - torch.exp(-beta * (end - times))).sum()
    )


def simulated(values: tuple[float, float, float], end: float, seed: int) -> Tensor:
    """Ogata's thinning, written out."""
    mu, alpha, beta = values
    generator = torch.Generator().manual_seed(seed)
    t, excited, times = 0.0, 0.0, []
    while True:
        bound = mu + excited
        wait = -math.log(float(torch.rand((), generator=generator, dtype=F64))) / bound
        t, excited = t + wait, excited * math.exp(-beta * wait)
        if t >= end:
            return torch.tensor(times, dtype=F64)
        if float(torch.rand((), generator=generator, dtype=F64)) * bound <= mu + excited:
            times.append(t)
            excited += alpha


def test_log_likelihood_and_gradient_of_a_hawkes_process(engine: str) -> None:
    hawkes, times = Hawkes(0.5, 0.8, 1.5), simulated((0.5, 0.8, 1.5), 10.0, 3)
    assert len(times) > 2
    u0 = torch.zeros(1, dtype=F64)
    got = hawkes.model(10.0, engine)(u0, times)
    want = likelihood(hawkes.values(), times, 10.0)
    assert abs(float(got - want)) < 1e-6 * abs(float(want))
    (a,) = torch.autograd.grad(got, hawkes.log)
    (b,) = torch.autograd.grad(want, hawkes.log)
    assert float((a - b).abs().max()) < 1e-5 * float(b.abs().max())


def test_kinds_of_events_have_rates_and_jumps_of_their_own(engine: str) -> None:
    # u' = 0; kind 0 adds 1, kind 1 adds 2; rates exp(0.1 u) and exp(-0.1 u)
    model = NeuralJumpSDE(
        lambda u: 0 * u,
        lambda u: torch.exp(torch.stack([0.1 * u[0], -0.1 * u[0]])),
        lambda u, mark: (mark[0] + 2 * mark[1]) * torch.ones_like(u),
        kinds=2, tspan=(0.0, 4.0), engine=engine, **TIGHT,
    )  # fmt: skip
    times, marks = torch.tensor([0.5, 1.5, 3.0]), torch.tensor([0, 1, 1])
    sol = model.solve(torch.zeros(1, dtype=F64), times, marks, saveat=[1.0, 2.0, 4.0])
    states = [0.0, 1.0, 3.0, 5.0]
    assert torch.allclose(sol.u[:, 0], torch.tensor([1.0, 3.0, 5.0], dtype=F64))
    spans = [0.5, 1.0, 1.5, 1.0]
    want = 0.1 * states[0] - 0.1 * states[1] - 0.1 * states[2]
    want -= sum(s * 2 * math.cosh(0.1 * u) for s, u in zip(spans, states, strict=True))
    assert abs(float(sol.u[-1, -1]) - want) < 1e-7


def test_training_reaches_the_likelihood_of_the_true_model(engine: str) -> None:
    true = (0.6, 0.7, 1.4)
    data = [simulated(true, 12.0, seed) for seed in range(6)]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).to(F64)
    decay = nn.Linear(2, 2, bias=False).to(F64)
    kick = nn.Parameter(torch.tensor([0.3, -0.3], dtype=F64))
    with torch.no_grad():
        decay.weight.copy_(-torch.eye(2))
    model = NeuralJumpSDE(
        decay, lambda u: nn.functional.softplus(network(u)), lambda u, mark: kick * mark.sum(),
        tspan=(0.0, 12.0), engine=engine, abstol=1e-5, reltol=1e-5,
    )  # fmt: skip
    parameters = [*network.parameters(), *decay.parameters(), kick]
    optimiser = torch.optim.Adam(parameters, lr=0.05)
    target = -sum(likelihood(torch.tensor(true, dtype=F64), t, 12.0) for t in data)
    u0, losses = torch.zeros(2, dtype=F64), []
    for _ in range(40):
        optimiser.zero_grad()
        loss = -sum(model(u0, t) for t in data)  # type: ignore[misc]
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < float(target) + 0.02 * abs(float(target)) and losses[-1] < losses[0] - 1


@julia
def test_samples_are_exponential_in_the_integral_of_their_rate() -> None:
    hawkes = Hawkes(0.8, 0.7, 1.4)
    with torch.no_grad():
        sol = hawkes.model(150.0, "julia").sample(torch.zeros(1, dtype=F64), seed=5)
        times = sol.jump_times
        mu, alpha, beta = hawkes.values()
        ages = (times[:, None] - times[None]).clamp(min=0)
        earlier = (times[:, None] > times[None]).to(F64)
        grown = mu * times + alpha / beta * ((1 - torch.exp(-beta * ages)) * earlier).sum(1)
    assert len(grown) > 100
    assert largest_gap(grown.diff(prepend=torch.zeros(1, dtype=F64))) < 1.95


@julia
def test_noise_between_events() -> None:
    model = NeuralJumpSDE(
        lambda u: -u, lambda u: nn.functional.softplus(u), lambda u, mark: 0.5 * torch.ones_like(u),
        tspan=(0.0, 2.0), diffusion=lambda u: 0.3 * torch.ones_like(u), engine="julia", dt=0.01,
    )  # fmt: skip
    u0 = torch.zeros(1, dtype=F64, requires_grad=True)
    times = torch.tensor([0.4, 1.1])
    first, again = (model(u0, times, seed=1) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, model(u0, times, seed=2))
    # the same steps by hand, on the same noise
    sol = model.solve(u0.detach(), times, seed=1)
    u, total, t, w = u0, torch.zeros((), dtype=F64), sol.W.t, sol.W.u[:, :1]
    for i in range(len(t) - 1):
        if float(t[i]) in times.double().tolist():
            total, u = total + nn.functional.softplus(u)[0].log(), u + 0.5
        dt = t[i + 1] - t[i]
        rate = nn.functional.softplus(u)[0]
        u, total = u - dt * u + 0.3 * (w[i + 1] - w[i]), total - dt * rate
    assert abs(float(first - total)) < 1e-10
    (a,), (b,) = torch.autograd.grad(first, u0), torch.autograd.grad(total, u0)
    assert abs(float(a - b)) < 1e-10
    drawn = model.sample(u0.detach(), seed=3)
    assert drawn.success and drawn.stats.jumps == len(drawn.jump_times)


def test_bad_input_of_a_neural_jump_sde(engine: str) -> None:
    model = Hawkes(0.5, 0.8, 1.5).model(10.0, engine)
    u0 = torch.zeros(1, dtype=F64)
    with pytest.raises(InputError, match=r"times reach from 0.5 to 11, but events are"):
        model(u0, [0.5, 11.0])
    with pytest.raises(InputError, match=r"marks reach from 0 to 2, but there are 1 kinds"):
        model(u0, [0.5, 1.0], [0, 2])
    with pytest.raises(InputError, match=r"give the hidden state of one sequence, \(d,\)"):
        model(torch.zeros(2, 1, dtype=F64), [0.5])
    with pytest.raises(InputError, match="kinds is 0"):
        NeuralJumpSDE(lambda u: u, lambda u: u, lambda u, mark: u, kinds=0)
    with pytest.raises(InputError, match="intensity is a int; give"):
        NeuralJumpSDE(lambda u: u, 3, lambda u, mark: u)
    dropping = NeuralJumpSDE(nn.Dropout(), lambda u: u, lambda u, mark: u, engine=engine)
    with pytest.raises(InputError, match="drift has Dropout in training mode"):
        dropping(u0, [0.5])
    with pytest.raises(InputError, match="does not take 'abstoll'"):
        NeuralJumpSDE(lambda u: u, lambda u: u, lambda u, mark: u, abstoll=1)
    negative = NeuralJumpSDE(lambda u: u, lambda u: u - 1, lambda u, mark: u, engine=engine)
    with pytest.raises(InputError, match="rates must not be negative"):
        negative(u0, [0.5])
    wide = NeuralJumpSDE(lambda u: u, lambda u: torch.ones(3), lambda u, mark: u, engine=engine)
    with pytest.raises(InputError, match=r"intensity gave shape \(3,\); it must give \(1,\)"):
        wide(u0, [0.5])
    shape = NeuralJumpSDE(
        lambda u: u, lambda u: 1 + 0 * u, lambda u, mark: torch.ones(2), engine=engine
    )
    with pytest.raises(InputError, match=r"jump gave \(2,\) for a state of shape \(1,\)"):
        shape(u0, [0.5])


def grow(u: Any) -> Any:
    return 1 + 0 * u


def one_more(u: Any, mark: Any) -> Any:
    return 1 + 0 * u


@pytest.mark.parametrize(
    ("given", "call", "said"),
    [
        ({"jump": lambda u: u}, {}, r"jump takes \(u\), but it is called with \(u, mark\)"),
        ({"jump": nn.Linear(1, 1)}, {}, r"called with \(u, mark\)"),
        ({"jump": lambda u, mark: torch.ones(1)}, {}, "jump gave float32, but u0 is float64"),
        ({"intensity": lambda u: 1.0}, {}, r"intensity gave a float; it must give \(1,\)"),
        ({"intensity": lambda u: torch.ones(1)}, {}, "intensity gave float32, but u0 is float64"),
        ({"drift": lambda u: u.repeat(2)}, {}, r"drift returned shape \(2,\), but u0 has .*\(1,\)"),
        ({"drift": nn.Linear(1, 1)}, {}, "drift mixes dtypes"),
        ({"tspan": 1.0}, {}, r"tspan is 1.0; give \(t0, t1\)"),
        ({"tspan": ("a", "b")}, {}, r"tspan\[0\] is 'a'; give a real number"),
        ({"tspan": (0.0, torch.ones((), requires_grad=True))}, {}, "tspan requires grad, but"),
        ({}, {"u0": torch.tensor([float("nan")], dtype=F64)}, "u0 holds nan"),
        ({}, {"u0": torch.ones(1, dtype=F64, device="meta")}, "u0 is on the device meta"),
        ({}, {"times": "soon"}, "times is 'soon'; give a 1-d tensor of times"),
        ({}, {"times": [[0.1], [0.2, 0.3]]}, "times is .*; give a 1-d tensor of times"),
        ({}, {"times": torch.ones(1, device="meta")}, "times is on the device meta"),
        ({}, {"times": torch.tensor([True])}, "times is of bool"),
        ({}, {"times": torch.tensor([0.5], requires_grad=True)}, "times requires grad, but no"),
        ({}, {"marks": [None]}, "marks is .*; give one whole number an event"),
        ({}, {"marks": [False]}, "marks is of bool; give one whole number an event"),
    ],
)
def test_models_and_events_that_cannot_be(
    given: dict[str, Any], call: dict[str, Any], said: str
) -> None:
    parts = {"drift": grow, "intensity": grow, "jump": one_more, "engine": "sundials", **given}
    with pytest.raises(InputError, match=said):
        model = NeuralJumpSDE(**parts)
        model(**{"u0": torch.ones(1, dtype=F64), "times": [0.5], **call})


@julia
def test_samples_of_a_module_in_float32() -> None:
    torch.manual_seed(0)
    intensity = nn.Sequential(nn.Linear(2, 1), nn.Softplus())
    model = NeuralJumpSDE(nn.Linear(2, 2), intensity, lambda u, mark: u + 0.1, engine="julia")
    sol = model.sample(torch.zeros(2), seed=1)
    assert sol.u.dtype is torch.float32 and not sol.u.requires_grad and len(sol.jump_times) > 0
