"""Gradients by SciMLSensitivity's adjoints where they were wrong or failed, against known ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pysciml as ps
from support import f64

pytestmark = pytest.mark.julia

ADJOINTS = [ps.GaussAdjoint(), ps.InterpolatingAdjoint(), ps.QuadratureAdjoint()]
CHECKPOINTED = [ps.GaussAdjoint(checkpointing=True), ps.InterpolatingAdjoint(checkpointing=True)]


def forced(u, p, t):
    return p[0] * torch.cos(t) - p[1] * u


def exact(u0, p, t0, t):
    """The solution of ``forced``."""
    a, b = p[0], p[1]

    def along(x):
        return a * (b * torch.cos(x) + torch.sin(x)) / (1 + b**2)

    return along(t) + (u0 - along(t0)) * torch.exp(-b * (t - t0))


@pytest.mark.parametrize("sensealg", ADJOINTS, ids=lambda s: s.name)
@pytest.mark.parametrize("alg", [None, ps.Vern7()], ids=str)
def test_the_last_step_of_verner_methods(alg, sensealg) -> None:
    """Its stages were lost, and with them the third digit of the gradient at any tolerance."""
    p = f64(1.0, 0.5).requires_grad_()
    sol = ps.solve(
        ps.ODEProblem(forced, f64([0.0]), (0.0, 2.0), p), alg, tstops=[1.0], saveat=[2.0],
        sensealg=sensealg, engine="julia", abstol=1e-9, reltol=1e-9,
    )  # fmt: skip
    (got,) = torch.autograd.grad(sol.u.sum(), p)
    (want,) = torch.autograd.grad(exact(0.0, p, f64([0.0]), f64([2.0])).sum(), p)
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    "sensealg", [None, *ADJOINTS, ps.CollocationAdjoint(), ps.ForwardSensitivity()], ids=str
)
def test_moving_events_of_a_float32_state(sensealg) -> None:
    """u = exp(-p t) until it is 0.5, then 1 more: u(T) = 1.5 exp(-p T) / 0.5."""
    p = torch.tensor([0.7], requires_grad=True)
    hit = ps.ContinuousCallback(lambda u, p, t: u[0] - 0.5, lambda u, p, t: u + 1.0, direction=-1)
    prob = ps.ODEProblem(lambda u, p, t: -p * u, torch.ones(1), (0.0, 2.0), p)
    sol = ps.solve(
        prob, ps.Tsit5(), callback=hit, saveat=[2.0], sensealg=sensealg, engine="julia",
        abstol=1e-6, reltol=1e-6,
    )  # fmt: skip
    last = float(3.0 * np.exp(-1.4))
    (got,) = torch.autograd.grad(sol.u[-1].sum(), p)
    assert got.dtype == torch.float32 and len(sol.events) == 1
    np.testing.assert_allclose(sol.u[-1].detach(), [last], rtol=1e-5)
    np.testing.assert_allclose(got, [-2.0 * last], rtol=1e-4)


@pytest.mark.parametrize(
    ("sensealg", "alg"),
    [
        (CHECKPOINTED[0], None), (CHECKPOINTED[0], ps.Tsit5()), (CHECKPOINTED[0], ps.Rodas5P()),
        (CHECKPOINTED[1], ps.Tsit5()),
    ],
    ids=lambda x: getattr(x, "name", "None"),
)  # fmt: skip
@pytest.mark.parametrize("span", [(0.3, 3.0), (3.0, 0.3)], ids=["forwards", "backwards"])
def test_checkpoints_at_the_outputs(alg, sensealg, span) -> None:
    """By everything there is, and at sol(t), where the whole solution is solved for after all."""
    u0, p = f64([0.4]).requires_grad_(), f64(1.0, 0.5).requires_grad_()
    t0 = torch.tensor(span[0], dtype=torch.float64, requires_grad=True)
    step = 0.9 if span[1] > span[0] else -0.9
    saveat = (span[0] + step * f64(0.0, 1.0, 2.0, 3.0)).requires_grad_()
    sol = ps.solve(
        ps.ODEProblem(forced, u0, (t0, span[1]), p), alg, saveat=saveat, sensealg=sensealg,
        engine="julia", abstol=1e-9, reltol=1e-9,
    )  # fmt: skip
    weights = f64(0.3, -1.0, 2.0, 0.7)
    inputs = [u0, p, t0, saveat]
    got = torch.autograd.grad((weights * sol.u[:, 0]).sum(), inputs, retain_graph=True)
    want = torch.autograd.grad((weights * exact(u0, p, t0, saveat)).sum(), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    at = span[0] + step * f64(0.4, 1.7)
    got = torch.autograd.grad(sol(at).sum(), inputs[:3])
    want = torch.autograd.grad(exact(u0, p, t0, at).sum(), inputs[:3])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sensealg", CHECKPOINTED, ids=lambda s: s.name)
def test_checkpointing_through_events_and_along_every_step(sensealg) -> None:
    """Where steps are kept anyway, checkpointing changes nothing."""
    p = f64([0.7]).requires_grad_()
    hit = ps.ContinuousCallback(lambda u, p, t: u[0] - 0.5, lambda u, p, t: u + 1.0, direction=-1)
    prob = ps.ODEProblem(lambda u, p, t: -p * u, f64([1.0]), (0.0, 2.0), p)
    options = {"sensealg": sensealg, "engine": "julia", "abstol": 1e-9, "reltol": 1e-9}
    for more, last in (({"callback": hit, "saveat": [2.0]}, 3.0), ({}, 1.0)):
        sol = ps.solve(prob, ps.Tsit5(), **options, **more)
        (got,) = torch.autograd.grad(sol.u[-1].sum(), p)
        np.testing.assert_allclose(got, [-2.0 * last * np.exp(-1.4)], rtol=1e-6)
