"""Ensembles as one state on a device: on JLArrays, and on a card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from devices import load
from test_ensemble_gpu import gap
from torch import Tensor, nn

import pysciml as ps
from pysciml.engines.julia import device

pytestmark = pytest.mark.julia

F64 = torch.float64
ARRAY, THREADS = ps.EnsembleGPUArray(), ps.EnsembleThreads(1)
TIGHT: dict[str, Any] = {"abstol": 1e-9, "reltol": 1e-9, "engine": "julia"}


@pytest.fixture(params=["jlarrays", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: Any) -> Iterator[str]:
    """The device of the tensors, as solves run on JLArrays or a card."""
    inside: Any = contextlib.nullcontext()
    if request.param == "jlarrays":
        load("JLArrays")
        inside = device.standing_in("jlarrays")
    with inside:
        yield "cuda" if request.param == "cuda" else "cpu"


def oscillators(place: str) -> tuple[Any, list[Tensor]]:
    """Members with their own states and stiffness, and what all share."""
    torch.manual_seed(0)
    x = torch.randn(6, 2, dtype=F64).to(place).requires_grad_()
    k = (1 + torch.rand(6, dtype=F64)).to(place).requires_grad_()
    damping = torch.tensor(0.1, dtype=F64, device=place, requires_grad=True)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double().to(place)

    def f(u: Any, p: Any, t: Tensor) -> Any:
        force = net(u["x"]) * torch.cos(t)
        return {"x": u["v"], "v": force - p["k"] * u["x"] - p["c"] * u["v"]}

    start = {"x": x[0].detach(), "v": torch.zeros(2, dtype=F64, device=place)}
    prob = ps.ODEProblem(f, start, (0.0, 2.0), {"k": k[0].detach(), "c": damping})
    ensemble = ps.EnsembleProblem(prob, u0={"x": x, "v": start["v"]}, p={"k": k, "c": damping})
    return ensemble, [x, k, damping, *net.parameters()]


def outcome(where: Any, place: str, alg: Any, **options: Any) -> tuple[Any, list[Tensor]]:
    ensemble, leaves = oscillators(place)
    sim = ps.solve(ensemble, alg, where, saveat=[0.5, 2.0], **TIGHT, **options)
    loss = (sim.u["x"].square() + 0.3 * sim.u["v"]).sum() + sim[2](1.3)["x"].sum()
    return sim, list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("alg", [None, ps.Vern7(), ps.Rodas5P()], ids=str)
def test_values_and_gradients_are_those_of_threads(place, alg) -> None:
    want, grads = outcome(THREADS, "cpu", ps.Vern7())
    sim, found = outcome(ARRAY, place, alg)
    assert sim.u["x"].shape == (6, 2, 2) and sim.u["x"].device.type == place
    assert sim.t.tolist() == [0.5, 2.0] and sim.converged and len(sim) == 6
    assert sim.algorithm == (alg.name if alg else "Tsit5")
    for key in ("x", "v"):
        assert gap(sim.u[key], want.u[key]) < 1e-7
        assert torch.equal(sim[4].u[key], sim.u[key][4])
    assert gap(sim[2](1.3)["x"], want[2](1.3)["x"]) < 1e-6
    for got, expected in zip(found, grads, strict=True):
        assert gap(got, expected) < 1e-5


def test_steps_and_entries(place) -> None:
    ensemble, _ = oscillators(place)
    with torch.no_grad():
        sim = ps.solve(ensemble, ps.Tsit5(), ARRAY, engine="julia")
        some = ps.solve(
            ensemble, ps.Tsit5(), ARRAY, engine="julia", save_idxs=[0, 3],
            abstol={"x": torch.full((2,), 1e-9), "v": torch.full((2,), 1e-3)},
        )  # fmt: skip
    assert sim.t[0] == 0.0 and sim.t[-1] == 2.0 and sim.u["x"].shape == (6, len(sim.t), 2)
    assert some.u.shape == (6, len(some.t), 2)
    last = torch.stack([sim.u["x"][:, -1, 0], sim.u["v"][:, -1, 1]], -1)
    assert gap(some.u[:, -1], last) < 1e-2
    assert torch.equal(some[1].u, some.u[1])


def test_a_member_without_bound_ends_all(place) -> None:
    one = torch.ones(1, dtype=F64, device=place)
    prob = ps.ODEProblem(lambda u, p, t: p * u.square(), one, (0.0, 1.0), one)
    ensemble = ps.EnsembleProblem(prob, p=torch.tensor([[0.5], [2.0]], dtype=F64, device=place))
    sim = ps.solve(ensemble, ps.Tsit5(), ARRAY, engine="julia", raise_on_failure=False)
    assert sim.retcodes[0] == sim.retcodes[1] and not sim.converged
    with pytest.raises(ps.SolveError, match="2 of 2 members stopped"):
        ps.solve(ensemble, ps.Tsit5(), ARRAY, engine="julia")


def decay() -> Any:
    return ps.ODEProblem(
        lambda u, p, t: -p * u, torch.ones(1, dtype=F64), (0.0, 1.0), torch.ones(1, dtype=F64)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"alg": ps.Feagin12()},
            "Feagin12.* does not run on a GPU's arrays; give EnsembleGPUArray",
        ),
        ({"alg": ps.AutoTsit5(ps.Rodas5P())}, "does not run on a GPU's arrays"),
        ({"sensealg": ps.QuadratureAdjoint()}, "QuadratureAdjoint.*EnsembleGPUArray has GaussAdj"),
        ({"engine": "sundials"}, "solves on the julia engine, but engine is 'sundials'"),
        ({"tstops": [0.5]}, "tstops was given, which EnsembleGPUArray does not take"),
    ],
    ids=["alg", "composite", "sensealg", "engine", "tstops"],
)
def test_what_cannot_be_is_refused(options: Any, said: str) -> None:
    load("JLArrays")
    ensemble = ps.EnsembleProblem(decay(), u0=torch.ones(3, 1, dtype=F64))
    given = {"alg": None, "engine": "julia", **options}
    with device.standing_in("jlarrays"), pytest.raises((ps.InputError, ps.EngineError), match=said):
        ps.solve(ensemble, ensemblealg=ARRAY, **given)


def test_one_jacobian_of_many_members_is_refused() -> None:
    load("JLArrays")
    ensemble = ps.EnsembleProblem(decay(), u0=torch.ones(5000, 1, dtype=F64))
    said = r"Rodas5P forms the Jacobian of all members together, \(5000, 5000\)"
    with device.standing_in("jlarrays"), pytest.raises(ps.EngineError, match=said):
        ps.solve(ensemble, ps.Rodas5P(), ARRAY, engine="julia")


def test_what_cannot_be_captured_is_refused() -> None:
    load("JLArrays")

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return -u if float(t) >= 0 else u

    prob = ps.ODEProblem(f, torch.ones(1, dtype=F64), (0.0, 1.0))
    ensemble = ps.EnsembleProblem(prob, u0=torch.ones(3, 1, dtype=F64))
    with device.standing_in("jlarrays"), pytest.warns(ps.CaptureWarning):
        with pytest.raises(ps.EngineError, match="f could not be captured as one function"):
            ps.solve(ensemble, ps.Tsit5(), ARRAY, engine="julia")


def test_tensors_on_the_cpu_are_left_there() -> None:
    ensemble = ps.EnsembleProblem(decay(), u0=torch.ones(3, 1, dtype=F64))
    with pytest.raises(ps.EngineError, match="u0 is on the CPU, but EnsembleGPUArray solves where"):
        ps.solve(ensemble, ps.Tsit5(), ARRAY, engine="julia")
