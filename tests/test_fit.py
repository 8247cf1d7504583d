"""Multiple shooting and the two-stage recipe."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import InputError
from pysciml.fit import MultipleShooting, two_stage

OPTIONS = {"engine": "sundials", "abstol": 1e-9, "reltol": 1e-9}


def oscillator(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return torch.stack([u[1], -p[0] * u[0] + p[1] * torch.sin(t)])


def closed_form(t: Tensor, u0: Tensor, w2: float, f: float) -> Tensor:
    """Of u'' = -w2 u + f sin t."""
    w, k = math.sqrt(w2), f / (w2 - 1.0)
    a, b = u0[0], (u0[1] - k) / w
    x = a * torch.cos(w * t) + b * torch.sin(w * t) + k * torch.sin(t)
    v = -a * w * torch.sin(w * t) + b * w * torch.cos(w * t) + k * torch.cos(t)
    return torch.stack([x, v], -1)


@pytest.fixture
def problem() -> tuple[ps.ODEProblem, Tensor, Tensor]:
    """A forced oscillator (its time matters) at irregular times, with its closed form."""
    u0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    t = torch.tensor([0.0, 0.3, 1.1, 1.9, 2.0, 3.7, 4.1, 5.0, 6.6, 7.0, 8.0], dtype=torch.float64)
    p = torch.tensor([4.0, 0.7], dtype=torch.float64, requires_grad=True)
    prob = ps.ODEProblem(oscillator, u0, (0.0, 8.0), p)
    return prob, t, closed_form(t, u0, 4.0, 0.7)


@pytest.mark.parametrize("intervals", [1, 3, 4, 10, 25])
def test_segments_of_a_solution_have_no_gaps(problem, intervals: int) -> None:
    prob, t, data = problem
    shooting = MultipleShooting(prob, t, data, intervals=intervals, **OPTIONS)
    states, gaps = shooting.predict()
    assert len(shooting.starts) == math.ceil(10 / intervals)
    assert gaps.shape == (len(shooting.starts) - 1, 2)
    torch.testing.assert_close(states, data, atol=1e-6, rtol=0.0)
    assert float(gaps.detach().abs().sum()) < 1e-6
    assert float(shooting().detach()) < 1e-14


def test_gradients_of_shooting_against_differences(problem) -> None:
    prob, t, data = problem
    shooting = MultipleShooting(prob, t, data + 0.3, intervals=3, continuity=0.7, **OPTIONS)
    with torch.no_grad():
        shooting.starts += 0.1
    shooting().backward()
    for tensor, index in ((prob.p, (0,)), (prob.p, (1,)), (shooting.starts, (2, 1))):
        h, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                tensor[index] += sign * h
                values.append(float(shooting()))
                tensor[index] -= sign * h
        assert float(tensor.grad[index]) == pytest.approx(
            (values[0] - values[1]) / (2 * h), rel=1e-5
        )


def test_observe_maps_states_to_data(problem) -> None:
    prob, t, data = problem
    starts = data[[0, 5]]
    shooting = MultipleShooting(
        prob, t, data[:, 0], intervals=5, observe=lambda u: u[:, 0], starts=starts, **OPTIONS
    )
    assert float(shooting().detach()) < 1e-14
    with pytest.raises(InputError, match="give observe"):
        MultipleShooting(prob, t, data[:, 0], intervals=5, starts=starts, **OPTIONS)()


def test_shooting_takes_modules_and_shaped_states() -> None:
    """A state of shape (2, 3), a module as p, and one capture for the whole training."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3, dtype=torch.float64)
    prob = ps.ODEProblem(
        lambda u, m, t: torch.tanh(m(u)), torch.zeros(2, 3, dtype=torch.float64), (0.0, 1.0), model
    )
    t = torch.linspace(0.0, 2.0, 7, dtype=torch.float64)
    data = torch.randn(7, 2, 3, dtype=torch.float64)
    shooting = MultipleShooting(prob, t, data, intervals=2, **OPTIONS)
    before = float(shooting().detach())
    result = two_stage(
        shooting, [*model.parameters(), shooting.starts],
        adam_steps=30, lr=5e-2, lbfgs_steps=20, progress=False,
    )  # fmt: skip
    assert result.loss < 0.5 * before
    assert float(shooting().detach()) == result.loss


def test_shooting_finds_a_frequency_that_the_whole_horizon_misses() -> None:
    """Over 10 periods the whole horizon's loss is full of minima; over segments it has one."""
    u0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    t = torch.linspace(0.0, 30.0, 121, dtype=torch.float64)
    data = closed_form(t, u0, 4.0, 0.0)
    fitted = []
    for segments in (True, False):
        p = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
        prob = ps.ODEProblem(oscillator, u0, (0.0, 30.0), p)
        if segments:
            loss = MultipleShooting(prob, t, data, intervals=3, **OPTIONS)
            parameters = [p, loss.starts]
        else:
            parameters = [p]

            def loss(prob=prob):
                u = ps.solve(prob, ps.CVODE_BDF(), saveat=t, engine="sundials").u
                return (u - data).square().mean()

        two_stage(loss, parameters, adam_steps=100, lr=5e-2, lbfgs_steps=30, progress=False)
        fitted.append(float(p[0].detach()))
    assert fitted[0] == pytest.approx(4.0, rel=1e-4)
    assert abs(fitted[1] - 4.0) > 0.5


def test_bad_input_of_shooting(problem) -> None:
    prob, t, data = problem
    event = ps.ContinuousCallback(lambda u, p, t: u[0], ps.terminate)
    mass = torch.eye(2, dtype=torch.float64)
    cases = [
        ((ps.remake(prob, callback=event), t, data), {}, "without mass matrix and callbacks"),
        ((ps.remake(prob, mass_matrix=mass), t, data), {}, "without mass matrix and callbacks"),
        ((3,), {}, r"given a int .* call it as MultipleShooting\(prob, t, data\)"),
        ((prob,), {}, "t is missing; give"),
        ((prob, t), {}, "data is missing; give a tensor with 11 rows"),
        ((prob, t.flip(0), data), {}, "increasing times"),
        ((prob, t, data[:-1]), {}, "11 rows"),
        ((prob, t, data[:, 0]), {}, "give starts"),
        ((prob, t, data), {"intervals": 0}, "positive integer"),
        ((prob, t, data), {"intervals": 5, "starts": data[:3]}, "2 segments"),
    ]
    for arguments, keywords, message in cases:
        with pytest.raises(InputError, match=message):
            MultipleShooting(*arguments, **keywords)


def test_two_stage_minimises_rosenbrock_and_keeps_the_best() -> None:
    x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    result = two_stage(loss, [x], adam_steps=100, lr=5e-2, lbfgs_steps=80, progress=False)
    torch.testing.assert_close(x.detach(), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0.0)
    assert result.loss == float(loss().detach()) == min(result.history)
    assert result.adam_steps == 100 and 100 < len(result.history) <= 180
    assert x.grad is None and result.failed_solves == 0


def test_two_stage_recovers_from_failing_solves() -> None:
    """u' = u^2 blows up at t = 1/u0: steps that are too large meet it, and come back."""
    u0 = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    prob = ps.ODEProblem(lambda u, p, t: u**2, u0, (0.0, 1.0))

    def loss() -> Tensor:
        u = ps.solve(prob, ps.CVODE_BDF(), saveat=[1.0], maxiters=2000, **OPTIONS).u
        return (u[0, 0] - 9.0).square()  # u(1) = 9 for u0 = 0.9

    result = two_stage(loss, [u0], adam_steps=30, lr=0.5, lbfgs_steps=40, progress=False)
    assert result.failed_solves > 0
    assert float(u0.detach()) == pytest.approx(0.9, rel=1e-5)


def test_two_stage_says_why_it_cannot_start() -> None:
    u0 = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    prob = ps.ODEProblem(lambda u, p, t: u**2, u0, (0.0, 1.0))
    with pytest.raises(InputError, match="starts from: The solve stopped at t = 0.5"):
        two_stage(lambda: ps.solve(prob, ps.CVODE_BDF(), **OPTIONS).u.sum(), [u0], progress=False)
    x = torch.zeros(1, requires_grad=True)
    with pytest.raises(InputError, match="not finite"):
        two_stage(lambda: (1.0 / x).sum(), [x], progress=False)
    with pytest.raises(InputError, match="requires grad"):
        two_stage(lambda: torch.zeros(()), [torch.zeros(1)], progress=False)
    with pytest.raises(InputError, match="does not depend"):
        two_stage(lambda: torch.zeros(()), [x], progress=False)


def test_two_stage_ends_early_and_fills_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.ones(3, requires_grad=True)
    result = two_stage(
        lambda: x.square().sum(), [x], adam_steps=5, lbfgs_steps=100, description="bowl"
    )
    assert len(result.history) < 60
    told = capsys.readouterr().err
    assert "bowl: 100%" in told and "105/105" in told
