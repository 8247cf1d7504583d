"""Ensembles of every kind of problem: an executor gives what threads give, gradients too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import InputError
from support import F64, assert_close, f64

WEIGHT = f64(0.7, grad=True)


def pull(v: Any, u: Any, p: Any, t: Any) -> Any:
    return -p * u


def drift(v: Any, u: Any, p: Any, t: Any) -> Any:
    return WEIGHT * v


def energy(p: Any, q: Any, c: Any, t: Any) -> Any:
    return (p**2 + c * q**2).sum() / 2


def decay(u: Any, p: Any, t: Any) -> Any:
    return -p * u


def gain(u: Any, p: Any, t: Any) -> Any:
    return WEIGHT * u.cos()


def noise(u: Any, p: Any, t: Any) -> Any:
    return 0.2 * WEIGHT * u


def rest(u: Any, p: Any, t: Any) -> Any:
    return p - WEIGHT * u


def wave(u: Any, p: Any, t: Any) -> Any:
    return torch.stack([u[1], -p * u[0]])


def ends(u: Any, p: Any, t: Any) -> Any:
    return torch.stack([u(0.0)[0], u(1.0)[0] - WEIGHT])


def residual(du: Any, u: Any, p: Any, t: Any) -> Any:
    return du + p * u


def grow(u: Any, p: Any, t: Any) -> Any:
    return p * WEIGHT * u


U0, SPAN = f64([1.0]), (0.0, 1.0)
GRID: dict[str, Any] = {"saveat": [0.5, 1.0]}
MATRIX = f64([[-0.5]], grad=True)
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "DAE": (ps.DAEProblem(residual, f64([-1.0]), U0, SPAN, f64(1.0)), ps.IDA(), GRID),
    "second order": (
        ps.SecondOrderODEProblem(pull, f64([0.3]), U0, SPAN, f64(1.0)), ps.CVODE_Adams(), GRID,
    ),
    "dynamical": (
        ps.DynamicalODEProblem(pull, drift, f64([0.3]), U0, SPAN, f64(1.0)),
        ps.CVODE_Adams(), GRID,
    ),
    "Hamiltonian": (
        ps.HamiltonianProblem(energy, f64([0.3]), U0, SPAN, f64(1.0)), ps.CVODE_Adams(), GRID,
    ),
    "split": (ps.SplitODEProblem(decay, gain, U0, SPAN, f64(1.0)), ps.CVODE_BDF(), GRID),
    "semilinear": (
        ps.SemilinearODEProblem(MATRIX, decay, U0, SPAN, f64(1.0)), ps.CVODE_BDF(), GRID,
    ),
    "SDE": (
        ps.SDEProblem(decay, noise, U0, SPAN, f64(1.0)), ps.torchsde.srk(),
        {"dt": 0.05, "seed": 5, **GRID},
    ),
    "steady": (ps.SteadyStateProblem(rest, f64([0.0]), f64(1.0)), ps.SSRootfind(), {}),
    "map": (ps.DiscreteProblem(grow, U0, (0.0, 3.0), f64(1.0)), ps.FunctionMap(), {}),
    "boundary": (
        ps.BVProblem(wave, ends, f64(0.0, 1.0), SPAN, f64(1.0)), ps.SolveBVP(), GRID,
    ),
}  # fmt: skip
TIGHT = {"abstol": 1e-9, "reltol": 1e-9}


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


def total(sim: Any) -> Tensor:
    leaves = [x for s in sim for x in torch.utils._pytree.tree_leaves(s.u)]
    weights = torch.linspace(0.5, 1.5, len(leaves)).tolist()
    return sum((w * x.square().sum() for w, x in zip(weights, leaves, strict=True)), f64(0.0))


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize("name", KINDS)
def test_an_executor_gives_what_a_loop_gives(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    prob, alg, options = KINDS[name]
    if name not in ("SDE", "map"):
        options = {**options, **TIGHT}
    p = f64(1.0, 2.0, 0.6, grad=True)
    inputs = [p, WEIGHT, MATRIX]
    ensemble = ps.EnsembleProblem(prob, p=p)
    want = total(ps.solve(ensemble, alg, ps.EnsembleSerial(), engine="sundials", **options))
    if kind == "threads":
        with ThreadPoolExecutor(2) as pool:
            sim = ps.solve(ensemble, alg, ps.EnsembleExecutor(pool), engine="sundials", **options)
            got = torch.autograd.grad(total(sim), inputs, allow_unused=True)
    else:
        where = ps.EnsembleExecutor(request.getfixturevalue("processes"))
        sim = ps.solve(ensemble, alg, where, engine="sundials", **options)
        got = torch.autograd.grad(total(sim), inputs, allow_unused=True)
    expected = torch.autograd.grad(want, inputs, allow_unused=True)
    assert_close(total(sim), want, 1e-12)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_close(a, b, 1e-10)


def test_seeds_of_an_executor(processes: Executor) -> None:
    prob, alg, options = KINDS["SDE"]
    where, options = ps.EnsembleExecutor(processes), {**options, "engine": "sundials"}
    ensemble = ps.EnsembleProblem(prob)
    sim = ps.solve(ensemble, alg, where, trajectories=3, **options)
    each = [ps.solve(prob, alg, **{**options, "seed": 5 + i}) for i in range(3)]
    assert torch.equal(sim.u, torch.stack([s.u for s in each]))
    assert not torch.equal(sim.u[0], sim.u[1]) and [s.seed for s in sim] == [5, 6, 7]
    # in parts, each goes on where the one before ended
    kept = ps.EnsembleProblem(prob, reduction=lambda u, batch, at: ([*u, *batch], False))
    parts = ps.solve(kept, alg, where, trajectories=3, batch_size=2, **options)
    assert torch.equal(torch.stack([s.u for s in parts.u]), sim.u)
    # without one, it is drawn from torch's generator
    del options["seed"]
    torch.manual_seed(1)
    first = ps.solve(ensemble, alg, where, trajectories=2, **options)
    torch.manual_seed(1)
    assert torch.equal(ps.solve(ensemble, alg, where, trajectories=2, **options).u, first.u)


@pytest.mark.julia
@pytest.mark.parametrize("name", ["SDE", "RODE", "jumps"])
def test_noise_by_an_executor_in_julia(name: str) -> None:
    counts = ps.DiscreteProblem(None, torch.tensor([5]), (0.0, 4.0), f64(1.0))
    birth = ps.ConstantRateJump(lambda u, p, t: p, lambda u, p, t: u + 1)
    prob, alg, options = {
        "SDE": (ps.SDEProblem(decay, noise, U0, SPAN, f64(1.0)), ps.EM(), {"dt": 0.05}),
        "RODE": (
            ps.RODEProblem(lambda u, p, t, W: p * W - u, U0, SPAN, f64(1.0)),
            ps.RandomHeun(), {"dt": 0.05},
        ),
        "jumps": (ps.JumpProblem(counts, birth), ps.SSAStepper(), {}),
    }[name]  # fmt: skip
    grad = name != "jumps"
    p = f64(1.0, 2.0, 0.6, grad=grad)
    ensemble = ps.EnsembleProblem(prob, p=p)
    options = {**options, "saveat": [0.5, 1.0], "seed": 3, "engine": "julia"}
    want = ps.solve(ensemble, alg, ps.EnsembleSerial(), **options)
    with ThreadPoolExecutor(2) as pool:
        sim = ps.solve(ensemble, alg, ps.EnsembleExecutor(pool), **options)
        assert torch.equal(sim.u, want.u)
        if grad:
            (got,) = torch.autograd.grad(sim.u.square().sum(), p)
            (expected,) = torch.autograd.grad(want.u.square().sum(), p)
            assert_close(got, expected, 1e-12)


def test_solutions_of_jump_problems_can_be_copied() -> None:
    ode = ps.ODEProblem(decay, (2 * WEIGHT).reshape(1), SPAN, f64(1.0))
    sol = ps.solve(ode, engine="sundials")
    jump = ps.ConstantRateJump(lambda u, p, t: p, lambda u, p, t: u + 1)
    sol.prob = ps.JumpProblem(ode, jump)
    copied = copy.deepcopy(sol)
    assert isinstance(copied.prob, ps.JumpProblem) and not copied.prob.u0.requires_grad


@pytest.mark.parametrize("what", ["p", "u0", "both"])
def test_a_batch_of_a_hamiltonian(what: str) -> None:
    prob = KINDS["Hamiltonian"][0]
    p, p0 = f64(1.0, 2.0, grad=True), f64([[0.3], [0.1]], grad=True)
    q0 = f64([1.0])  # shared
    given: dict[str, Any] = {"p": p} if what == "p" else {"u0": (p0, q0)}
    if what == "both":
        given["p"] = p
    ensemble = ps.EnsembleProblem(prob, **given)
    assert ensemble.members == 2
    sim = ps.solve(ensemble, ps.CVODE_Adams(), engine="sundials", **GRID, **TIGHT)
    t, w = f64(0.5, 1.0)[None], (p if what != "u0" else f64(1.0, 1.0)).sqrt()[:, None]
    start = p0 if what != "p" else f64([[0.3], [0.3]])
    exact_q = torch.cos(w * t) + start / w * torch.sin(w * t)
    exact_p = start * torch.cos(w * t) - w * torch.sin(w * t)
    momenta, positions = sim.u
    assert_close(positions[..., 0], exact_q, 1e-7)
    assert_close(momenta[..., 0], exact_p, 1e-7)
    inputs = [x for x, n in ((p, "p"), (p0, "u0")) if what in (n, "both")]
    got = torch.autograd.grad(positions.sum() + momenta.square().sum(), inputs)
    want = torch.autograd.grad(exact_q.sum() + exact_p.square().sum(), inputs)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-6)


def test_a_batch_of_a_hamiltonian_that_does_not_fit() -> None:
    prob = KINDS["Hamiltonian"][0]
    with pytest.raises(InputError, match="u0 of the ensemble is built like"):
        ps.EnsembleProblem(prob, u0=f64([[0.3], [0.1]]))
    with pytest.raises(InputError, match=r"leaf 1\) has 3 rows, but .*has 2"):
        ps.EnsembleProblem(prob, u0=(torch.ones(2, 1, dtype=F64), torch.ones(3, 1, dtype=F64)))
