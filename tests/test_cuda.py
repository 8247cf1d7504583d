"""States on a GPU: the same answers and gradients as on the CPU, on the user's device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pysciml as ps
from pysciml.engines.choice import engine as engine_named
from support import F64, LV_P, LV_U0, assert_close, f64, lotka_volterra, nonstiff, stiff

pytestmark = pytest.mark.gpu

TOL = {"abstol": 1e-9, "reltol": 1e-9}


@pytest.mark.parametrize("kind", [nonstiff, stiff], ids=["nonstiff", "stiff"])
def test_values_and_gradients_are_those_of_the_cpu(engine, kind):
    def run(device):
        u0 = f64(*LV_U0).to(device).requires_grad_()
        p = f64(*LV_P).to(device).requires_grad_()
        prob = ps.ODEProblem(lotka_volterra, u0, (0.0, 4.0), p)
        sol = ps.solve(prob, kind(engine), engine=engine, saveat=0.5, **TOL)
        assert sol.u.device.type == sol.t.device.type == torch.device(device).type
        grads = torch.autograd.grad(sol.u.square().sum() + sol(1.3).sum(), (u0, p))
        assert all(g.device.type == torch.device(device).type for g in grads)
        return [x.detach().cpu() for x in (sol.u, *grads)]

    for a, b in zip(run("cuda"), run("cpu"), strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_batched_neural_ode(engine, dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).to(dtype)
    u0 = torch.randn(32, 2, dtype=dtype)
    tol = {"abstol": 1e-8, "reltol": 1e-8} if dtype == F64 else {"abstol": 1e-5, "reltol": 1e-5}

    def run(device):
        model = net.to(device)
        prob = ps.ODEProblem(lambda u, p, t: model(u), u0.to(device), (0.0, 1.0))
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[0.5, 1.0], **tol)
        assert sol.u.dtype == dtype and sol.u.device.type == torch.device(device).type
        grads = torch.autograd.grad(sol.u.square().mean(), list(model.parameters()))
        return [x.detach().cpu() for x in (sol.u, *grads)]

    for a, b in zip(run("cuda"), run("cpu"), strict=True):
        assert_close(a, b, 1e-5 if dtype == F64 else 1e-2)


@pytest.mark.julia
@pytest.mark.parametrize("alg", [ps.Tsit5(), ps.Vern7(), ps.Rodas5P()], ids=lambda a: a.name)
def test_julia_solves_where_the_tensors_are(alg):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    start = torch.randn(4, 2, dtype=F64)

    def run(device):
        model, u0 = net.to(device), start.to(device).requires_grad_()
        prob = ps.ODEProblem(lambda u, p, t: model(u) - t * u, u0, (0.0, 1.0))
        there = engine_named("julia").takes_tensors(prob, alg, None, False)
        if device == "cuda" and not there:
            pytest.skip("the Julia project has no CUDA.jl that finds the GPU")
        sol = ps.solve(prob, alg, engine="julia", saveat=[0.5, 1.0], abstol=1e-10, reltol=1e-10)
        assert there == (sol.u.device.type == "cuda")
        loss = sol.u.square().sum() + sol(0.7).sum()
        return [
            x.detach().cpu() for x in (sol.u, *torch.autograd.grad(loss, [u0, *net.parameters()]))
        ]

    for a, b in zip(run("cuda"), run("cpu"), strict=True):
        assert_close(a, b, 1e-7)


def test_training_on_the_gpu(engine):
    torch.manual_seed(0)
    net = nn.Linear(1, 1, bias=False).double().cuda()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(60):
        prob = ps.ODEProblem(
            lambda u, p, t: net(u), torch.ones(1, 1, dtype=F64, device="cuda"), (0.0, 1.0)
        )
        sol = ps.solve(prob, nonstiff(engine), engine=engine, abstol=1e-7, reltol=1e-7)
        loss = (sol.u[-1] - 0.5).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert abs(float(sol.u[-1].detach()) - 0.5) < 1e-3


def test_events_on_the_gpu(engine):
    p = f64(9.81, 0.8).cuda().requires_grad_()
    callback = ps.ContinuousCallback(
        lambda u, p, t: u[0], lambda u, p, t: torch.stack([0.0 * u[0], -p[1] * u[1]]), direction=-1
    )

    def run(p):
        u0 = f64(10.0, 0.0).to(p.device)
        prob = ps.ODEProblem(
            lambda u, p, t: torch.stack([u[1], -p[0]]), u0, (0.0, 3.0), p, callback=callback
        )
        sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
        return sol.u[-1].detach().cpu(), torch.autograd.grad(sol.u[-1].sum(), p)[0].cpu()

    for a, b in zip(run(p), run(p.detach().cpu().requires_grad_()), strict=True):
        assert_close(a, b, 1e-6)


def test_mixed_devices_are_refused(engine):
    with pytest.raises(ps.InputError, match=r"p is on cpu, but u0 is on cuda.*move"):
        ps.ODEProblem(lotka_volterra, f64(*LV_U0).cuda(), (0.0, 1.0), f64(*LV_P))
    net = nn.Linear(2, 2).double()
    prob = ps.ODEProblem(lambda u, p, t: net(u), f64(*LV_U0).cuda(), (0.0, 1.0))
    with pytest.raises(ps.InputError, match="device"):
        ps.solve(prob, engine=engine)


def test_random_functions_are_refused_on_the_gpu(engine):
    drop = nn.Dropout(0.5)
    prob = ps.ODEProblem(lambda u, p, t: drop(u), torch.ones(64, dtype=F64).cuda(), (0.0, 1.0))
    with pytest.raises(ps.InputError, match=r"eval\(\)"):
        ps.solve(prob, engine=engine)
