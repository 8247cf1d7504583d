"""Ensembles whose members threads of a GPU solve: on the CPU in its place, and on a card."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from devices import load
from torch import Tensor, nn

import pysciml as ps
from pysciml.engines.julia import members

pytestmark = pytest.mark.julia

F64, F32 = torch.float64, torch.float32
KERNEL, THREADS = ps.EnsembleGPUKernel(), ps.EnsembleThreads(1)
TIGHT: dict[str, Any] = {"abstol": 1e-10, "reltol": 1e-10, "engine": "julia"}
METHODS = "Tsit5 Vern7 Vern9 Rodas4 Rodas5P Rosenbrock23 Kvaerno3 Kvaerno5".split()
#: Where kernels run: on the CPU, on arrays that must be handed over like a GPU's, on a card.
PLACES = ["cpu", "jlarrays", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=PLACES)
def place(request: Any) -> Iterator[str]:
    """The device of the tensors, as kernels run in one of ``PLACES``."""
    if request.param == "jlarrays":
        load("JLArrays")
    inside: Any = contextlib.nullcontext()
    if request.param != "cuda":
        inside = members.standing_in(request.param)
    with inside:
        yield "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture(params=[PLACES[0], PLACES[2]])
def main_place(request: Any) -> Iterator[str]:
    """As ``place``, without the arrays between the two."""
    inside: Any = contextlib.nullcontext()
    if request.param != "cuda":
        inside = members.standing_in(request.param)
    with inside:
        yield request.param


def predator(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    season = 1 + 0.3 * torch.sin(2 * t)
    return torch.stack(
        [p[0] * season * u[0] - p[1] * u[0] * u[1], p[3] * u[0] * u[1] - p[2] * u[1]]
    )


def without_seasons(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return torch.stack([p[0] * u[0] - p[1] * u[0] * u[1], p[3] * u[0] * u[1] - p[2] * u[1]])


def batch(
    n: int, dtype: Any = F64, place: str = "cpu", f: Any = predator
) -> tuple[Any, list[Tensor]]:
    """An ensemble with its own u0 and p in each member, and these."""
    torch.manual_seed(0)
    u0 = (1 + torch.rand(n, 2, dtype=F64)).to(place, dtype).requires_grad_()
    p = torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=F64) * (1 + 0.1 * torch.rand(n, 4, dtype=F64))
    p = p.to(place, dtype).requires_grad_()
    prob = ps.ODEProblem(f, u0[0].detach(), (0.0, 4.0), p[0].detach())
    return ps.EnsembleProblem(prob, u0=u0, p=p), [u0, p]


def weighted(u: Tensor) -> Tensor:
    weights = torch.cos(torch.arange(u.numel(), dtype=F64)).to(u.device, u.dtype)
    return (weights.reshape(u.shape) * u.square()).sum()


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    a, b = a.detach().to("cpu", F64), b.detach().to("cpu", F64)
    return float((a - b).abs().max() / b.abs().max())


def by_threads(f: Any) -> tuple[Tensor, list[Tensor]]:
    ensemble, leaves = batch(5, f=f)
    sim = ps.solve(
        ensemble, ps.Vern9(), THREADS, saveat=0.5, abstol=1e-13, reltol=1e-13, engine="julia"
    )
    return sim.u.detach(), list(torch.autograd.grad(weighted(sim.u), leaves))


@pytest.fixture(scope="module")
def on_threads() -> tuple[Tensor, list[Tensor]]:
    """The solution of ``batch(5)`` by Julia's threads, and its gradients."""
    return by_threads(predator)


@pytest.fixture(scope="module")
def without_time() -> tuple[Tensor, list[Tensor]]:
    """The same of ``without_seasons``."""
    return by_threads(without_seasons)


@pytest.mark.parametrize("name", METHODS)
def test_values_and_gradients_are_those_of_threads(
    main_place, on_threads, without_time, name
) -> None:
    f, reference = predator, on_threads
    if name.startswith("Kvaerno"):  # which is refused where f depends on the time
        f, reference = without_seasons, without_time
    ensemble, leaves = batch(5, place=main_place, f=f)
    low = name in ("Rosenbrock23", "Kvaerno3")
    options = {**TIGHT, **({"abstol": 1e-8, "reltol": 1e-8} if low else {})}
    sim = ps.solve(ensemble, getattr(ps, name)(), KERNEL, saveat=0.5, **options)
    assert sim.u.shape == (5, 9, 2) and sim.u.device.type == main_place and sim.converged
    assert sim.algorithm == f"GPU{name}" and sim.stats.naccept > 5 and sim.stats.nf is None
    assert sim.t.tolist() == [0.5 * k for k in range(9)]
    bound = 3e-5 if low else 2e-8
    assert gap(sim.u, reference[0]) < bound
    grads = torch.autograd.grad(weighted(sim.u), leaves)
    for got, want in zip(grads, reference[1], strict=True):
        assert got.device.type == main_place
        assert gap(got, want) < 10 * bound


def test_arrays_are_handed_over(place, on_threads) -> None:
    ensemble, leaves = batch(5, place=place)
    for alg in (ps.GPUVern7(), ps.GPURodas5P):
        sim = ps.solve(ensemble, alg, KERNEL, saveat=0.5, **TIGHT)
        assert gap(sim.u, on_threads[0]) < 2e-8
        grads = torch.autograd.grad(weighted(sim.u), leaves)
        assert all(gap(a, b) < 2e-7 for a, b in zip(grads, on_threads[1], strict=True))


def test_a_member_by_itself(main_place) -> None:
    ensemble, (u0, p) = batch(3, place=main_place)
    sim = ps.solve(ensemble, ps.GPUTsit5(), KERNEL, saveat=[2.0, 4.0], **TIGHT)
    with torch.no_grad():
        alone = ps.solve(
            ps.remake(ensemble.prob, u0=u0[1].detach(), p=p[1].detach()), ps.Vern9(), **TIGHT
        )
    assert torch.equal(sim[1].u, sim.u[1]) and sim[1].t.tolist() == [2.0, 4.0]
    assert gap(sim[1](1.3), alone(1.3)) < 1e-7
    assert sim[1].retcode == "Success" and sim[1].stats.naccept > 5


@pytest.mark.parametrize("alg", ["Tsit5", "Rosenbrock23"])
def test_single_precision(main_place, on_threads, alg) -> None:
    ensemble, leaves = batch(5, F32, main_place)
    sim = ps.solve(
        ensemble, getattr(ps, alg)(), KERNEL, saveat=0.5, abstol=1e-5, reltol=1e-5, engine="julia"
    )
    assert sim.u.dtype is F32 and gap(sim.u, on_threads[0]) < 2e-3
    grads = torch.autograd.grad(weighted(sim.u), leaves)
    for got, want in zip(grads, on_threads[1], strict=True):
        assert got.dtype is F32 and gap(got, want) < 1e-2


def test_without_saveat_both_ends_and_gradients_of_times(main_place) -> None:
    # u(t) = u0 exp(-p (t - t0))
    t0, t1 = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.5, 2.0))
    u0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64, device=main_place, requires_grad=True)
    p = torch.tensor([[0.3], [0.7], [1.1]], dtype=F64, device=main_place, requires_grad=True)
    prob = ps.ODEProblem(lambda u, p, t: -p * u, u0[0].detach(), (t0, t1), p[0].detach())
    sim = ps.solve(ps.EnsembleProblem(prob, u0=u0, p=p), ps.Tsit5(), KERNEL, **TIGHT)
    end = torch.stack([s.u[-1] for s in sim])
    assert [s.t.tolist() for s in sim] == [[0.5, 2.0]] * 3
    exact = (u0 * torch.exp(-1.5 * p)).detach()
    assert gap(end, exact) < 1e-9
    by_u0, by_p, by_t0, by_t1 = torch.autograd.grad(end.sum(), [u0, p, t0, t1])
    assert gap(by_u0, torch.exp(-1.5 * p)) < 1e-9 and gap(by_p, -1.5 * exact) < 1e-8
    rate = float((p * exact).sum())
    assert abs(float(by_t0) - rate) < 1e-8 and abs(float(by_t1) + rate) < 1e-8


def test_gradients_of_output_times_and_shared_values(main_place) -> None:
    at = torch.tensor([0.4, 1.0], dtype=F64, requires_grad=True)
    u0 = torch.tensor([[1.0], [2.0]], dtype=F64, device=main_place)
    p = torch.tensor([0.7], dtype=F64, device=main_place, requires_grad=True)
    shift = torch.tensor(0.1, dtype=F64, device=main_place, requires_grad=True)  # a closure
    fixed = torch.tensor([2.0], dtype=F64, device=main_place)

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return -p * u + shift * fixed * t

    def loss(p: Tensor, shift: Tensor, at: Tensor) -> Tensor:
        # with a = 2 shift / p: u = a (t - 1/p) + (u0 + a/p) exp(-p t)
        a = 2 * shift / p
        t = at[None, :].to(main_place)
        return (a * (t - 1 / p) + (u0 + a / p) * torch.exp(-p * t)).square().sum()

    ensemble = ps.EnsembleProblem(ps.ODEProblem(f, u0[0], (0.0, 1.0), p), u0=u0)
    sim = ps.solve(ensemble, ps.Vern7(), KERNEL, saveat=at, **TIGHT)
    got = torch.autograd.grad(sim.u.square().sum(), [p, shift, at])
    want = torch.autograd.grad(loss(p, shift, at), [p, shift, at])
    for a, b in zip(got, want, strict=True):
        assert gap(a, b) < 1e-8


def test_backwards_in_time(main_place) -> None:
    prob = ps.ODEProblem(
        lambda u, p, t: p * u * torch.cos(t),
        torch.ones(1, dtype=F64, device=main_place), (3.0, 1.0),
        torch.ones(1, dtype=F64, device=main_place),
    )  # fmt: skip
    p = torch.tensor([[0.5], [1.0]], dtype=F64, device=main_place)
    for alg in (ps.Tsit5(), ps.Rodas4()):
        sim = ps.solve(ps.EnsembleProblem(prob, p=p), alg, KERNEL, saveat=[3.0, 2.2, 1.0], **TIGHT)
        t = sim.t.to(main_place)
        exact = torch.exp(p * (torch.sin(t) - math.sin(3.0)))
        assert gap(sim.u[..., 0], exact) < 1e-8


@pytest.mark.parametrize("name", METHODS)
def test_fixed_steps_have_the_order_of_the_method(main_place, name) -> None:
    order = {"Vern7": 7, "Vern9": 9, "Rodas4": 4, "Rosenbrock23": 2, "Kvaerno3": 3}.get(name, 5)
    u0 = torch.tensor([[1.0], [0.5]], dtype=F64, device=main_place)
    f, exact = (lambda u, p, t: u * (3 * t).cos() - u), u0 * math.exp(math.sin(6.15) / 3 - 2.05)
    if name.startswith("Kvaerno"):
        f, exact = (lambda u, p, t: -u * u), u0 / (1 + 2.05 * u0)
    prob = ps.ODEProblem(f, u0[0], (0.0, 2.05))

    def error(dt: float) -> float:
        sim = ps.solve(
            ps.EnsembleProblem(prob, u0=u0), getattr(ps, name)(), KERNEL, saveat=[2.05],
            adaptive=False, dt=dt, engine="julia",
        )  # fmt: skip
        assert sim.stats.naccept == 2 * math.ceil(2.05 / dt)
        return gap(sim.u[:, 0], exact)

    dt = 0.25 if order == 9 else 0.125
    ratio = math.log2(error(dt) / error(dt / 2))
    assert ratio > order - 0.6, (ratio, error(dt))


@pytest.mark.parametrize("name", ["Rodas5P", "Rodas4", "Rosenbrock23", "Kvaerno5"])
def test_rober(main_place, name) -> None:
    # Hairer and Wanner, "Solving Ordinary Differential Equations II", IV.10: at t = 40
    reference = torch.tensor(
        [0.7158270687193941, 9.185534764557338e-6, 0.2841637457458413], dtype=F64
    )
    p = torch.tensor([[0.04, 3e7, 1e4]] * 3, dtype=F64, device=main_place)
    p = (p * torch.tensor([[1.0], [1.1], [0.9]], device=main_place)).requires_grad_()

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        a, b, c = p[0] * u[0], p[1] * u[1] ** 2, p[2] * u[1] * u[2]
        return torch.stack([c - a, a - b - c, b])

    u0 = torch.tensor([1.0, 0.0, 0.0], dtype=F64, device=main_place)
    prob = ps.ODEProblem(f, u0, (0.0, 40.0), p[0].detach())
    tolerance = 1e-7 if name == "Rosenbrock23" else 1e-9
    options: dict[str, Any] = {"abstol": 1e-4 * tolerance, "reltol": tolerance, "engine": "julia"}
    sim = ps.solve(
        ps.EnsembleProblem(prob, p=p), getattr(ps, name)(), KERNEL, saveat=[4.0, 40.0], **options
    )
    assert gap(sim.u[0, 1], reference) < 1e-5
    assert abs(float(sim.u[0, 1, 1].detach()) / float(reference[1]) - 1) < 1e-4
    (got,) = torch.autograd.grad(sim.u[:, 1, 2].sum(), p)
    want = torch.empty(3, 3, dtype=F64)
    h = 1e-3
    with torch.no_grad():
        for j in range(3):
            ends = []
            for sign in (1, -1):
                moved = p.cpu().clone()
                moved[:, j] *= 1 + sign * h
                host = ps.ODEProblem(f, u0.cpu(), (0.0, 40.0), moved[0])
                ends.append(
                    ps.solve(
                        ps.EnsembleProblem(host, p=moved), ps.Rodas5P(), THREADS, saveat=[40.0],
                        abstol=1e-14, reltol=1e-11, engine="julia",
                    ).u[:, 0, 2]
                )  # fmt: skip
            want[:, j] = (ends[0] - ends[1]) / (2 * h * p[:, j].cpu())
    scaled = p.detach().cpu()
    assert gap(got.cpu() * scaled, want * scaled) < 1e-4


def test_a_long_stiff_solve_after_a_short_start(main_place) -> None:
    # steps from 1e-7 to 1e10 in one solve: u is a slow square root after a fast start
    u0 = torch.tensor([[3.0], [0.5]], dtype=F64, device=main_place)
    prob = ps.ODEProblem(lambda u, p, t: -1e6 * (u - (1 + t) ** -0.5), u0[0], (0.0, 1e11))
    sim = ps.solve(
        ps.EnsembleProblem(prob, u0=u0), ps.Rodas5P(), KERNEL, saveat=[1e3, 1e11], **TIGHT
    )
    exact = (1 + sim.t.to(main_place))[None, :, None] ** -0.5
    assert float((sim.u / exact - 1).abs().max()) < 1e-3
    quick = ps.ODEProblem(lambda u, p, t: -1e15 * u, u0[0], (0.0, 1e-15))
    sim = ps.solve(ps.EnsembleProblem(quick, u0=u0), ps.Tsit5(), KERNEL, **TIGHT)
    assert gap(torch.stack([s.u[-1] for s in sim]), u0 * math.exp(-1)) < 1e-9


def test_networks_and_other_arrays(main_place) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 3)).double().to(main_place)

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        chosen = torch.where(p[0] > 1.0, p[0] * u, u.sin())
        matrix = 3 * torch.eye(3, dtype=u.dtype, device=u.device) + torch.outer(u, u)
        return net(u) - chosen.cumsum(0) - torch.linalg.solve(matrix, u) * p[1] - 0.1 * (u @ u)

    u0 = torch.randn(6, 3, dtype=F64).to(main_place).requires_grad_()
    p = (0.5 + torch.rand(6, 2, dtype=F64)).to(main_place).requires_grad_()
    prob = ps.ODEProblem(f, u0[0].detach(), (0.0, 1.0), p[0].detach())
    ensemble = ps.EnsembleProblem(prob, u0=u0, p=p)
    leaves = [u0, p, *net.parameters()]
    found = []
    for where in (THREADS, KERNEL):
        sim = ps.solve(ensemble, ps.Tsit5(), where, saveat=[0.25, 1.0], **TIGHT)
        found.append((sim.u, *torch.autograd.grad(weighted(sim.u), leaves)))
    for want, got in zip(*found, strict=True):
        assert gap(got, want) < 1e-6


def test_a_pytree_and_a_float_among_the_parameters(main_place) -> None:
    def f(u: Any, p: Any, t: Tensor) -> Any:
        return {"x": u["v"], "v": -p["k"] * u["x"] - p["c"] * u["v"]}

    start = {
        key: torch.tensor(value, dtype=F64, device=main_place)
        for key, value in (("x", [1.0, 0.5]), ("v", [0.0, 0.0]))
    }
    k = torch.linspace(1.0, 2.0, 4, dtype=F64).to(main_place).requires_grad_()
    prob = ps.ODEProblem(f, start, (0.0, 2.0), {"k": k[0].detach(), "c": 0.0})
    ensemble = ps.EnsembleProblem(prob, p={"k": k, "c": 0.0})
    sim = ps.solve(ensemble, ps.Vern7(), KERNEL, saveat=[1.0, 2.0], **TIGHT)
    exact = start["x"] * torch.cos(k.sqrt()[:, None, None] * sim.t.to(main_place)[None, :, None])
    assert sim.u["x"].shape == (4, 2, 2) and gap(sim.u["x"], exact) < 1e-8
    (got,) = torch.autograd.grad(sim.u["x"].sum(), k)
    (want,) = torch.autograd.grad(exact.sum(), k)
    assert gap(got, want) < 1e-7


def test_prob_func_that_changes_values(main_place) -> None:
    rates = torch.linspace(0.5, 1.5, 4, dtype=F64, device=main_place).requires_grad_()
    start = torch.ones(1, dtype=F64, device=main_place)
    prob = ps.ODEProblem(lambda u, p, t: -p * u, start, (0.0, 1.0), start)
    ensemble = ps.EnsembleProblem(prob, lambda prob, i: ps.remake(prob, p=rates[i : i + 1]))
    sim = ps.solve(ensemble, ps.Tsit5(), KERNEL, trajectories=4, saveat=[1.0], **TIGHT)
    assert gap(sim.u[:, 0, 0], torch.exp(-rates)) < 1e-9
    (got,) = torch.autograd.grad(sim.u.sum(), rates)
    assert gap(got, -torch.exp(-rates)) < 1e-8
    total = ps.EnsembleProblem(
        prob, lambda prob, i: ps.remake(prob, p=rates[i : i + 1]),
        output_func=lambda sol, i: sol.u[-1, 0], u_init=0.0,
        reduction=lambda u, batch, I: (u + sum(batch), False),  # noqa: E741
    )  # fmt: skip
    sim = ps.solve(total, ps.Tsit5(), KERNEL, trajectories=4, batch_size=2, saveat=[1.0], **TIGHT)
    assert gap(sim.u, torch.exp(-rates).sum()) < 1e-9


def test_members_that_fail_are_said_to_and_do_not_touch_others(main_place) -> None:
    # u' = p u^2 is without bound at 1 / p; sqrt is no number below 0
    p = torch.tensor([[0.5], [2.0], [0.25], [8.0]], dtype=F64, device=main_place)
    one = torch.ones(1, dtype=F64, device=main_place)
    prob = ps.ODEProblem(lambda u, p, t: p * u.square(), one, (0.0, 1.0), one)
    ensemble = ps.EnsembleProblem(prob, p=p)
    for name in METHODS:
        options = {"abstol": 1e-6, "reltol": 1e-6, "engine": "julia", "saveat": [0.0, 0.4, 1.0]}
        sim = ps.solve(ensemble, getattr(ps, name)(), KERNEL, raise_on_failure=False, **options)
        good = [code == "Success" for code in sim.retcodes]
        assert good == [True, False, True, False], (name, sim.retcodes)
        assert set(sim.retcodes) <= {"Success", "DtLessThanMin", "Unstable", "MaxIters"}
        assert isinstance(sim.u, list) and [len(s.t) for s in sim] == [3, 2, 3, 1]
        for i in (0, 2):
            exact = 1 / (1 - p[i] * sim[i].t.to(main_place))
            assert gap(sim[i].u[:, 0], exact) < 1e-3, name
        assert gap(sim[1].u[1], 1 / (1 - 2.0 * 0.4) * one) < 1e-3
    with pytest.raises(ps.SolveError, match="2 of 4 members stopped on their way"):
        ps.solve(ensemble, ps.Tsit5(), KERNEL, **options)
    few = ps.solve(
        ensemble, ps.Tsit5(), KERNEL, raise_on_failure=False, **{**options, "maxiters": 2}
    )
    assert few.retcodes == ["MaxIters"] * 4
    root = ps.ODEProblem(lambda u, p, t: p * torch.sqrt(0.5 - t) - u, one, (0.0, 1.0), one)
    sim = ps.solve(
        ps.EnsembleProblem(root, p=p), ps.Tsit5(), KERNEL, raise_on_failure=False,
        saveat=[0.2, 1.0], engine="julia",
    )  # fmt: skip
    assert all(code in ("Unstable", "DtLessThanMin") for code in sim.retcodes)
    fixed = ps.solve(
        ensemble, ps.Tsit5(), KERNEL, raise_on_failure=False, adaptive=False, dt=0.01,
        saveat=[0.4, 1.0], engine="julia",
    )  # fmt: skip
    assert fixed.retcodes[0] == fixed.retcodes[2] == "Success" and fixed.retcodes[3] == "Unstable"


def test_a_gradient_of_what_members_reached(main_place) -> None:
    p = torch.tensor([[0.5], [2.0]], dtype=F64, device=main_place, requires_grad=True)
    one = torch.ones(1, dtype=F64, device=main_place)
    prob = ps.ODEProblem(lambda u, p, t: p * u.square(), one, (0.0, 1.0), one)
    sim = ps.solve(
        ps.EnsembleProblem(prob, p=p), ps.Vern7(), KERNEL, saveat=[0.4, 1.0],
        raise_on_failure=False, **TIGHT,
    )  # fmt: skip
    # du/dp = t / (1 - p t)^2
    (got,) = torch.autograd.grad(sim[0].u[1, 0] + sim[1].u[0, 0], p)
    want = torch.tensor([[1 / 0.25], [0.4 / 0.04]], dtype=F64)
    assert gap(got, want) < 1e-7


def test_tolerances_of_each_state_and_a_longest_step(main_place) -> None:
    ensemble, _ = batch(3, place=main_place)
    with torch.no_grad():
        loose = ps.solve(ensemble, ps.Tsit5(), KERNEL, saveat=[4.0], engine="julia")
        each = ps.solve(
            ensemble, ps.Tsit5(), KERNEL, saveat=[4.0], engine="julia", reltol=1e-12,
            abstol=torch.tensor([1e-9, 1e-3], dtype=F64),
        )  # fmt: skip
        short = ps.solve(ensemble, ps.Tsit5(), KERNEL, saveat=[4.0], engine="julia", dtmax=0.01)
    assert each.stats.naccept > 2 * loose.stats.naccept
    assert short.stats.naccept >= 3 * 400


def test_the_same_bits_again_and_whoever_stands_beside(main_place) -> None:
    ensemble, _ = batch(40, place=main_place)
    with torch.no_grad():
        first, again = (
            ps.solve(ensemble, ps.Tsit5(), KERNEL, saveat=[1.0, 4.0], engine="julia").u
            for _ in range(2)
        )
        alone = ps.EnsembleProblem(ensemble.prob, u0=ensemble.u0[7:9], p=ensemble.p[7:9])
        few = ps.solve(alone, ps.Tsit5(), KERNEL, saveat=[1.0, 4.0], engine="julia").u
    assert torch.equal(first, again) and torch.equal(first[7:9], few)


def test_members_with_time_spans_of_their_own(main_place) -> None:
    ends = [0.5, 2.0, -1.0]
    rate = torch.tensor([0.7], dtype=F64, device=main_place, requires_grad=True)
    one = torch.ones(1, dtype=F64, device=main_place)
    prob = ps.ODEProblem(lambda u, p, t: -p * u * t, one, (0.0, 1.0), rate)
    drawn: list[int] = []

    def prob_func(prob: Any, i: int) -> Any:
        drawn.append(i)  # a function that draws would draw anew
        return ps.remake(prob, tspan=(0.25 * i, ends[i]), u0=(i + 1) * one)

    ensemble = ps.EnsembleProblem(prob, prob_func)
    sim = ps.solve(ensemble, ps.Vern7(), KERNEL, trajectories=3, **TIGHT)
    assert drawn == [0, 1, 2]
    assert [s.t.tolist() for s in sim] == [[0.25 * i, end] for i, end in enumerate(ends)]
    starts = torch.tensor([0.0, 0.25, 0.5], dtype=F64)
    powers = 0.5 * (torch.tensor(ends, dtype=F64) ** 2 - starts**2)
    exact = torch.tensor([1.0, 2.0, 3.0], dtype=F64) * torch.exp(-0.7 * powers)
    last = torch.cat([s.u[-1] for s in sim])
    assert gap(last, exact) < 1e-9
    assert gap(sim[1](1.0), 2 * torch.exp(torch.tensor([-0.35 * (1 - 0.0625)]))) < 1e-6
    (got,) = torch.autograd.grad(last.sum(), rate)
    assert gap(got, -(powers * exact).sum()[None]) < 1e-8
    with pytest.raises(ps.InputError, match="saveat was given, but members have time spans"):
        ps.solve(ensemble, ps.Vern7(), KERNEL, trajectories=3, saveat=[0.3], **TIGHT)
