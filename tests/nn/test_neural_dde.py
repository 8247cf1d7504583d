"""The neural delay equation as a module: value and gradient by hand, training, bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml import nn as pn
from pysciml.errors import EngineError, InputError
from support import F64, assert_close, counted_captures, f64, net

julia = pytest.mark.julia
TIGHT = {"abstol": 1e-11, "reltol": 1e-11, "engine": "julia"}
TSIT5 = ps.MethodOfSteps(ps.Tsit5())


def by_rk4(f: Any, u0: Tensor, n: int, lags: int, history: Any = None) -> Tensor:
    """The state at ``lags`` times the lag 0.5, by RK4 in torch with 2 n steps a lag.

    The past is known at every other step's ends, so that halfway it is known too.
    """
    dt = 0.5 / n
    past = (lambda t: u0) if history is None else history
    # of the first pass: states at multiples of dt / 2
    known = [past(torch.tensor(-0.5 + i * dt / 2, dtype=F64)) for i in range(2 * n + 1)]
    u = u0
    for _ in range(lags):
        mids = [u]
        for i in range(n):
            a, b, c = known[2 * i : 2 * i + 3]
            k1 = f(torch.cat([u, a], -1))
            k2 = f(torch.cat([u + dt / 2 * k1, b], -1))
            k3 = f(torch.cat([u + dt / 2 * k2, b], -1))
            k4 = f(torch.cat([u + dt * k3, c], -1))
            new = u + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            end = f(torch.cat([new, c], -1))
            mids += [(u + new) / 2 + dt / 8 * (k1 - end), new]
            u = new
        known = mids
    return u


@julia
@pytest.mark.parametrize("with_history", [False, True])
def test_value_and_gradient_by_hand(with_history: bool) -> None:
    field = net(4, 2)
    past = net(1, 2)
    history = (lambda t: past(t.reshape(1)).expand(3, 2)) if with_history else None
    model = pn.NeuralDDE(field, [0.5], (0.0, 1.5), TSIT5, history=history, **TIGHT)
    x = torch.randn(3, 2, dtype=F64, requires_grad=True)
    inputs = [x, *field.parameters(), *(past.parameters() if with_history else ())]
    want, got = by_rk4(field, x, 64, 3, history), model(x)
    assert_close(got, want, 1e-8)
    weights = torch.randn_like(want)
    a = torch.autograd.grad((got * weights).sum(), inputs)
    b = torch.autograd.grad((want * weights).sum(), inputs)
    for g, h in zip(a, b, strict=True):
        assert_close(g, h, 1e-7)
    series = model(x, f64(0.5, 1.5))
    assert series.shape == (2, 3, 2)
    assert_close(series[-1], want, 1e-8)


@julia
def test_lags_that_are_learnt() -> None:
    model = pn.NeuralDDE(
        lambda x: -x[..., 1:2], [0.8], (0.0, 1.0), TSIT5, learn_lags=True, **TIGHT
    ).double()
    u = model(f64([2.0]))
    # 1 - t up to the lag, from there on minus the integral of 1 - s too
    lag = model.lags[0]
    want = 2.0 * (1 - 1.0 + (1.0 - lag) ** 2 / 2)
    assert_close(u[0], want, 1e-9)
    (gradient,) = torch.autograd.grad(u.sum(), model.log_lags)
    assert_close(gradient, torch.autograd.grad(want, model.log_lags)[0], 1e-7)
    assert [k for k, _ in model.named_parameters()] == ["log_lags"]
    assert_close(copy.deepcopy(model)(f64([2.0])), u, 1e-12)


@julia
def test_training_reaches_a_loss() -> None:
    """One state that oscillates, which no equation u' = f(u) does: the lag is needed."""
    torch.manual_seed(0)
    times = torch.linspace(0.0, 6.0, 25, dtype=F64)[1:]
    data = torch.cos(times)[:, None]
    history = lambda t: torch.cos(t).reshape(1)
    model = pn.NeuralDDE(
        net(2, 1, 16), [1.0], (0.0, 6.0), TSIT5, history=history, engine="julia",
        abstol=1e-6, reltol=1e-6,
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    with counted_captures() as captures:
        for _ in range(150):
            optimiser.zero_grad()
            loss = (model(f64([1.0]), times) - data).square().mean()
            loss.backward()
            optimiser.step()
    assert len(captures) == 1
    assert loss < 2e-3
    assert model.stats.naccept > 0


def test_bad_input() -> None:
    for lags in ([], [0.0], [-1.0], "x", "1", [True], [float("nan")]):
        with pytest.raises(InputError, match="lags is"):
            pn.NeuralDDE(net(2, 1), lags)
    with pytest.raises(InputError, match="learn_lags is 'no'; give True or False"):
        pn.NeuralDDE(net(2, 1), [1.0], learn_lags="no")
    with pytest.raises(InputError, match=r"f fails on a state of shape \(1,\)"):
        pn.NeuralDDE(net(1, 1), [1.0])(f64([1.0]))
    with pytest.raises(InputError, match="history is"):
        pn.NeuralDDE(net(2, 1), [1.0], history=lambda p, t: t)
    with pytest.raises(InputError, match="regularise holds"):
        pn.NeuralDDE(net(2, 1), [1.0], regularise="kinetic")
    with pytest.raises(InputError, match="u0 is a dict"):
        pn.NeuralDDE(net(2, 1), [1.0])({"x": f64([1.0])})
    with pytest.raises(EngineError, match="delay equations"):
        pn.NeuralDDE(net(2, 1), [1.0], engine="sundials")(f64([1.0]))
