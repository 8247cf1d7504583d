"""Regularisers on neural jump SDEs: closed forms between events, by hand along noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml import nn as pn
from support import F64, assert_close, descend, f64, pair_gap

TIGHT = {"abstol": 1e-10, "reltol": 1e-10}
TIMES = f64(0.5, 1.2)


class Decay(nn.Module):
    """u' = -b u, of which each event adds a."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.a = nn.Parameter(f64(1.5)), nn.Parameter(f64(0.8))

    def model(self, engine: str, **options: Any) -> pn.NeuralJumpSDE:
        return pn.NeuralJumpSDE(
            lambda u: -self.b * u, lambda u: 0.4 + u[:1].square(),
            lambda u, mark: self.a * torch.ones_like(u), tspan=(0.0, 2.0), engine=engine, **options,
        )  # fmt: skip

    def pieces(self, u0: Tensor) -> list[tuple[Tensor, float, float]]:
        """States after each event, and from when to when they decay."""
        u, found = u0, []
        for begin, end in ((0.0, 0.5), (0.5, 1.2), (1.2, 2.0)):
            u = u if begin == 0.0 else u + self.a
            found.append((u, begin, end))
            u = u * torch.exp(-self.b * (end - begin))
        return found


def compare(decay: Decay, penalty: Tensor, want: Tensor, tolerance: float) -> None:
    assert_close(penalty, want, tolerance)
    inputs = list(decay.parameters())
    got = torch.autograd.grad(penalty, inputs, allow_unused=True)
    wanted = torch.autograd.grad(want, inputs, allow_unused=True)
    for g, w in zip(got, wanted, strict=True):
        assert_close(f64(0.0) if g is None else g, f64(0.0) if w is None else w,
                     10 * tolerance, 10 * tolerance)  # fmt: skip


def test_integrals_in_closed_form(engine: str) -> None:
    decay, u0 = Decay(), f64(1.0, -0.5)
    both = decay.model(engine, regularise=pn.Kinetic(2.0), **TIGHT)
    plain = decay.model(engine, **TIGHT)
    value = both(u0, TIMES)
    want = torch.stack([
        decay.b / 2 * (u.square() * (1 - torch.exp(-2 * decay.b * (end - begin)))).sum()
        for u, begin, end in decay.pieces(u0)
    ]).sum()  # fmt: skip
    compare(decay, both.penalty, 2.0 * want, 1e-7)
    assert_close(value, plain(u0, TIMES), 1e-8)
    assert plain.penalty == 0.0
    jacobian = decay.model(engine, regularise=pn.JacobianFrobenius(0.5), **TIGHT)
    torch.manual_seed(2)
    jacobian(u0, TIMES)
    torch.manual_seed(2)
    e = torch.randn(2, dtype=F64)
    compare(decay, jacobian.penalty, 0.5 * 2.0 * decay.b**2 * e.square().sum(), 1e-7)
    jacobian.eval()
    assert_close(jacobian(u0, TIMES), value, 1e-8)
    assert jacobian.penalty == 0.0


@pytest.mark.parametrize("kind", ["error", "stiffness"])
def test_estimates_of_the_steps_in_closed_form(engine: str, kind: str) -> None:
    estimate = {"error": pn.ErrorEstimate(3.0), "stiffness": pn.StiffnessEstimate(0.5)}[kind]
    decay, u0 = Decay(), f64([1.0])
    model = decay.model(engine, regularise=estimate, abstol=1e-5, reltol=1e-5)
    seen = []
    inner = model._estimates
    model._estimates = lambda sol, size: (seen.append(sol.t), inner(sol, size))[1]  # type: ignore
    model(u0, TIMES)
    t = seen[0].detach()
    want = f64(0.0)
    for u, begin, end in decay.pieces(u0):
        at = t[(t >= begin) & (t <= end)].unique()
        h = at.diff()
        z = -decay.b * h
        gap = pair_gap(z)
        x = u * torch.exp(-decay.b * (at - begin))
        error = (gap * x[:-1]).abs() / (1e-5 + 1e-5 * x[:-1].detach())
        # of steps too short to move a number nothing is told
        count = int((h > 1e-7).sum())
        want = want + (3.0 * (error * h).sum() if kind == "error" else 0.5 * count * decay.b)
    compare(decay, model.penalty, want, 2e-3)


@pytest.mark.julia
def test_along_noise_by_hand() -> None:
    decay, u0, g = Decay(), f64([1.0]), 0.3
    model = decay.model("julia", diffusion=lambda u: g * u, dt=0.1)
    for r in (pn.Kinetic(1.0), pn.ErrorEstimate(1.0), pn.StiffnessEstimate(1.0)):
        model.regularise = (r,)
        value = model(u0, TIMES, seed=1)
        sol = model.solve(u0, TIMES, seed=1, saveat=[2.0])
        t, w = sol.W.t, sol.W.u[:, 0]
        assert_close(value, sol.u[-1, -1], 1e-12)
        u, want = u0, f64(0.0)
        for i in range(len(t) - 1):
            if bool((TIMES == t[i]).any()):
                u = u + decay.a
            h, dw = t[i + 1] - t[i], w[i + 1] - w[i]
            slope, kick = -decay.b * u, g * u * dw
            after = u + h * slope + kick
            if isinstance(r, pn.Kinetic):
                want = want + h * (slope.square() + (decay.b * after).square()).sum() / 2
            elif isinstance(r, pn.StiffnessEstimate):
                want = want + decay.b
            else:
                error = (h**2 * decay.b**2 * u / 2).abs() + (g * kick * dw / 2).abs()
                scale = 1e-6 + 1e-6 * torch.maximum(u.abs(), after.abs()).detach()
                want = want + h * (error / scale).sum()
            u = after
        compare(decay, model.penalty, want, 1e-8)


def test_training_with_each_saves_evaluations() -> None:
    kinds = {"plain": None, "kinetic": pn.Kinetic(0.1), "jacobian": pn.JacobianFrobenius(0.1),
             "error": pn.ErrorEstimate(1.0), "stiffness": pn.StiffnessEstimate(1e-3)}  # fmt: skip
    times, u0 = f64(0.3, 0.4, 0.5, 1.5, 1.6), f64(0.5, -0.5)
    cost = {}
    for name, regularise in kinds.items():
        torch.manual_seed(0)
        drift = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)).double()
        rate = nn.Sequential(nn.Linear(2, 1), nn.Softplus()).double()
        kick = nn.Linear(1, 2).double()
        model = pn.NeuralJumpSDE(
            drift, rate, lambda u, mark, kick=kick: kick(mark), tspan=(0.0, 2.0),
            engine="sundials", regularise=regularise,
        )  # fmt: skip
        descend(
            [*model.parameters(), *kick.parameters()],
            lambda model=model: -model(u0, times) + model.penalty,
            60,
        )
        model.eval()
        model(u0, times)
        cost[name] = model.stats.nf
    assert all(n < cost["plain"] for name, n in cost.items() if name != "plain"), cost


def test_ends_are_data() -> None:
    with pytest.raises(ps.InputError, match="does not take RandomEndTime: events are observed"):
        Decay().model("sundials", regularise=pn.RandomEndTime(0.1))
