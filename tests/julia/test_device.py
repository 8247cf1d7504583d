"""Solves on a device of Julia's: on JLArrays and, where there is a GPU, on CuArrays."""

from __future__ import annotations

import gc
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pysciml as ps
from pysciml.engines.julia import dlpack
from test_gradients_of_modes import check_gradient

pytestmark = pytest.mark.julia

F64 = torch.float64
TIGHT = {"abstol": 1e-10, "reltol": 1e-10}


def neural_ode(at: torch.device) -> tuple[Any, list[torch.Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    u0 = torch.randn(4, 3, dtype=F64).to(at).requires_grad_()
    net.to(at)
    return ps.ODEProblem(lambda u, p, t: net(u) - 0.1 * t * u, u0, (0.0, 1.0)), [
        u0, *net.parameters(),
    ]  # fmt: skip


def reaction_diffusion(at: torch.device) -> tuple[Any, list[torch.Tensor]]:
    x = torch.linspace(0, 1, 24, dtype=F64, device=at)
    u0 = torch.exp(-40 * (x - 0.4) ** 2).requires_grad_()
    p = torch.tensor([0.8, 1.7], dtype=F64, device=at, requires_grad=True)

    def f(u, p, t):
        around = torch.cat([u[1:2], u, u[-2:-1]])
        return p[0] * (around[2:] - 2 * u + around[:-2]) + p[1] * u * (1 - u)

    return ps.ODEProblem(f, u0, (0.0, 1.0), p), [u0, p]


def outcome(made: Any, at: torch.device, alg: Any, **options: Any) -> tuple[Any, list[np.ndarray]]:
    prob, leaves = made(at)
    sol = ps.solve(prob, alg, engine="julia", saveat=[0.0, 0.25, 0.6, 1.0], **TIGHT, **options)
    assert sol.u.device.type == at.type
    weights = torch.linspace(0.5, 1.5, sol.u.numel(), dtype=F64, device=at).reshape(sol.u.shape)
    loss = (weights * sol.u).square().sum() + sol(0.4).sum()
    grads = torch.autograd.grad(loss, leaves)
    return sol, [x.detach().cpu().numpy() for x in (sol.u, sol(0.7), sol(0.7, 1), *grads)]


@pytest.mark.parametrize(
    ("alg", "options"),
    [
        (None, {}),
        (ps.Tsit5(), {}),
        (ps.Tsit5(), {"sensealg": ps.GaussAdjoint()}),
        (ps.Vern7(), {}),
        (ps.Rodas5P(), {}),
    ],
    ids=["default", "Tsit5", "Tsit5-GaussAdjoint", "Vern7", "Rodas5P"],
)
@pytest.mark.parametrize("made", [neural_ode, reaction_diffusion])
def test_values_and_gradients_are_those_of_the_cpu(made, alg, options, place) -> None:
    _, on_cpu = outcome(made, torch.device("cpu"), ps.Vern9())
    with place.solving():
        sol, found = outcome(made, place.torch, alg, **options)
    assert sol.retcode == "Success"
    assert sol.algorithm == (alg.name if alg else "Tsit5")
    for k, (got, want) in enumerate(zip(found, on_cpu, strict=True)):
        size = max(1.0, np.abs(want).max())
        bound = 1e-6 if k == 2 else 1e-8  # k == 2: the interpolant's derivative
        np.testing.assert_allclose(got, want, rtol=0, atol=bound * size)


@pytest.mark.parametrize(
    ("alg", "sensealg"),
    [(ps.Tsit5(), None), (ps.Tsit5(), ps.GaussAdjoint()), (ps.Vern7(), None), (ps.Rodas5P(), None)],
    ids=["Tsit5", "Tsit5-GaussAdjoint", "Vern7", "Rodas5P"],
)
def test_controls_that_are_zero(alg, sensealg, place) -> None:
    """They leave no trace in the solution, whose steps are longer than their waves."""
    u0 = torch.ones(3, dtype=F64, device=place.torch)
    p = torch.zeros(3, dtype=F64, device=place.torch, requires_grad=True)
    prob = ps.ODEProblem(lambda u, p, t: p * torch.cos(40 * t) - u, u0, (0.0, 4.0), p)
    with place.solving():
        sol = ps.solve(prob, alg, engine="julia", saveat=[4.0], sensealg=sensealg)
        (got,) = torch.autograd.grad(sol.u.sum(), [p])
    exact = (math.cos(160.0) + 40 * math.sin(160.0) - math.exp(-4.0)) / 1601
    np.testing.assert_allclose(got.cpu(), exact, rtol=1e-3)


@pytest.mark.parametrize("alg", [ps.Tsit5(), ps.Vern7()], ids=["Tsit5", "Vern7"])
def test_a_loss_that_is_no_number_has_a_gradient_that_is_none(alg, place) -> None:
    prob, leaves = reaction_diffusion(place.torch)
    with place.solving():
        sol = ps.solve(prob, alg, engine="julia", saveat=[1.0])
        for grad in torch.autograd.grad(sol.u.sum() * math.nan, leaves):
            assert grad.device.type == place.torch.type and torch.isnan(grad).all()


def test_times_have_gradients(place) -> None:
    def grads(on: torch.device) -> list[torch.Tensor]:
        t0, t1 = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.1, 1.2))
        at = torch.tensor([0.5, 0.9], dtype=F64, requires_grad=True)
        u0 = torch.tensor([1.0, 0.5], dtype=F64, device=on)
        prob = ps.ODEProblem(lambda u, p, t: torch.cos(t) * u.flip(0) - u, u0, (t0, t1))
        sol = ps.solve(prob, ps.Tsit5(), engine="julia", saveat=at, **TIGHT)
        steps = ps.solve(prob, ps.Tsit5(), engine="julia", **TIGHT)
        return list(torch.autograd.grad(sol.u.sum() + steps.u[-1].prod(), (t0, t1, at)))

    want = grads(torch.device("cpu"))
    with place.solving():
        got = grads(place.torch)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_every_algorithm_that_goes_to_a_device(place) -> None:
    u0, rate = torch.tensor([[1.0, 2.0], [0.5, 3.0]], dtype=F64, device=place.torch)
    prob = ps.ODEProblem(lambda u, p, t: -p * u, u0, (0.0, 1.0), rate)
    for name in ("BS3", "DP5", "DP8", "SSPRK43", "TRBDF2", "KenCarp4", "FBDF", "Rosenbrock23"):
        with place.solving():
            sol = ps.solve(prob, getattr(ps, name)(), engine="julia", saveat=[0.5, 1.0],
                           abstol=1e-8, reltol=1e-8)  # fmt: skip
        assert sol.algorithm == name
        exact = u0 * torch.exp(-rate * sol.t[:, None])
        # TRBDF2 is off by 3e-4 at this tolerance, on the CPU too
        torch.testing.assert_close(sol.u, exact, rtol=1e-3, atol=1e-6, msg=name)


def test_single_precision_and_each_step(place) -> None:
    u0 = torch.ones(3, dtype=torch.float32, device=place.torch, requires_grad=True)
    prob = ps.ODEProblem(lambda u, p, t: -u, u0, (1.0, 0.0))
    with place.solving():
        sol = ps.solve(prob, ps.Tsit5(), engine="julia")
        (grad,) = torch.autograd.grad(sol.u[-1].sum(), u0)
    assert sol.u.dtype == torch.float32 and sol.t[0] == 1.0 and sol.t[-1] == 0.0
    torch.testing.assert_close(grad, torch.full_like(u0, 2.71828), rtol=1e-3, atol=0)


def test_what_does_not_suit_a_device_is_solved_on_the_cpu(place) -> None:
    u0 = torch.tensor([1.0, 0.0], dtype=F64, device=place.torch)

    def f(u, p, t):
        return torch.stack([u[1], -u[0]])

    stop = ps.ContinuousCallback(lambda u, p, t: u[0], ps.terminate)
    with place.solving():
        ended = ps.solve(ps.ODEProblem(f, u0, (0.0, 3.0)), ps.Tsit5(), engine="julia",
                         callback=stop, **TIGHT)  # fmt: skip
        other = ps.solve(ps.ODEProblem(f, u0, (0.0, 3.0)), ps.RadauIIA5(), engine="julia", **TIGHT)
    assert abs(float(ended.t[-1]) - np.pi / 2) < 1e-7
    assert abs(float(other.u[-1, 0]) - np.cos(3.0)) < 1e-6


@pytest.mark.parametrize("name", ["wave-20", "heat-30"])
def test_modes_that_the_steps_do_not_resolve(name, place) -> None:
    with place.solving():
        check_gradient(name, ps.Tsit5(), "julia", 1e-6, 2e-3, at=place.torch)


def test_a_thread_that_waits_for_a_device_waits_by_itself(place) -> None:
    # torch's backward pass over a GPU's tensors has a thread of its own, for which the first waits
    alone(place.main.seval("() -> PySciML.attended(() -> sleep(0.01))"))


def test_a_thread_that_waits_for_members_waits_by_itself(place) -> None:
    wait = place.main.seval("""
        begin
            PySciML.fetch_kernels!(::Val{:waits}, alg) = sleep(0.01)
            words = zeros(Int, sizeof(PySciML.MembersRequest) ÷ 8)
            words[1] = PySciML.register!(PySciML.MODELS, Val(:waits))
            words[2] = PySciML.register!(PySciML.OBJECTS, nothing)
            request = only(reinterpret(PySciML.MembersRequest, words))
            () -> PySciML.with_kernels((r, model, alg) -> sleep(0.01), nothing, request)
        end
    """)
    alone(wait)


def alone(wait: Any) -> None:
    """Call it on another thread, while this one is outside Julia."""
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_states_come_back_without_a_copy_and_outlive_their_solution(place) -> None:
    gc.collect()
    place.main.seval("GC.gc()")
    gc.collect()
    before = len(dlpack._alive)
    with place.solving():
        u0 = torch.ones(5, dtype=F64, device=place.torch)
        prob = ps.ODEProblem(lambda u, p, t: -u, u0, (0.0, 1.0))
        u = ps.solve(prob, ps.Tsit5(), engine="julia", saveat=[0.0, 1.0], **TIGHT).u
    gc.collect()
    place.main.seval("GC.gc()")
    assert len(dlpack._alive) == before + 1
    torch.testing.assert_close(u[1], torch.full_like(u0, np.exp(-1.0)))
    del u
    gc.collect()
    assert len(dlpack._alive) == before
