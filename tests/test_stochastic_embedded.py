"""Stochastic equations by torchsde: closed forms, orders, seeds, gradients, what is refused."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml import torchsde as t
from pysciml.errors import EngineError, InputError, PyscimlError, SolveError
from support import F64, assert_close, central_difference, f64
from test_stochastic import (
    A,
    B,
    check_gradient_on_the_same_noise,
    diffusion,
    drift,
    exact,
    gbm,
    mixing,
    refused,
)

ITO = [(t.euler(), 0.5), (t.milstein(), 1.0), (t.milstein(grad_free=True), 1.0), (t.srk(), 1.5)]
STRATONOVICH = [
    t.milstein(interpretation="Stratonovich"),
    t.midpoint(),
    t.heun(),
    t.euler_heun(),
    t.log_ode(),
    t.reversible_heun(),
]
EVERY = [alg for alg, _ in ITO] + STRATONOVICH


def run(prob: Any, alg: Any = None, **options: Any) -> Any:
    return ps.solve(prob, alg, engine="sundials", **{"seed": 11, **options})


def strong_error(alg: Any, dt: float, stratonovich: bool) -> float:
    sol = run(gbm(), alg, dt=dt, adaptive=False)
    assert sol.t[-1] == 1.0 and len(sol.t) == len(sol.W.t) == round(1 / dt) + 1
    assert sol.stats.naccept == round(1 / dt) and sol.stats.nreject == 0
    return float((sol.u[-1] - exact(sol.W.u[-1], stratonovich)).abs().mean())


@pytest.mark.parametrize(("alg", "order"), [*ITO, *((x, 1.0) for x in STRATONOVICH)], ids=repr)
def test_strong_order_on_the_same_noise(alg: Any, order: float) -> None:
    steps = (2.0**-3, 2.0**-6) if alg.name == "log_ode" else (2.0**-4, 2.0**-8)
    coarse, fine = (strong_error(alg, dt, alg in STRATONOVICH) for dt in steps)
    assert abs(math.log2(coarse / fine) / math.log2(steps[0] / steps[1]) - order) < 0.2


@pytest.mark.parametrize("alg", [None, t.srk(), t.midpoint()], ids=repr)
def test_step_control_follows_the_tolerance(alg: Any) -> None:
    errors, steps = [], []
    for tolerance in (1e-2, 1e-5):
        sol = run(gbm(50), alg, abstol=tolerance, reltol=tolerance)
        assert len(sol.t) == len(sol.W.t) == sol.stats.naccept + 1 and sol.t[-1] == 1.0
        errors.append(float((sol.u[-1] - exact(sol.W.u[-1], alg == t.midpoint())).abs().mean()))
        steps.append(sol.stats.naccept)
    assert errors[1] < errors[0] / 3 and steps[1] > 2 * steps[0]


@pytest.mark.parametrize("noise", ["diagonal", "additive"])
def test_moments_of_ornstein_uhlenbeck(noise: str) -> None:
    theta, sigma, n = 1.5, 0.6, 4000
    prob = ps.SDEProblem(
        lambda u, p, t: -p[0] * u, lambda u, p, t: p[1] * torch.ones_like(u),
        torch.full((n,), 2.0, dtype=F64), (0.0, 2.0), f64(theta, sigma), noise=noise,
    )  # fmt: skip
    sol = run(prob, t.srk(), saveat=[0.5, 1.0, 2.0], dt=0.05, adaptive=False)
    for at, u in zip(sol.t.tolist(), sol.u, strict=True):
        mean = 2.0 * math.exp(-theta * at)
        variance = sigma**2 * (1 - math.exp(-2 * theta * at)) / (2 * theta)
        assert abs(float(u.mean()) - mean) < 4 * math.sqrt(variance / n)
        assert abs(float(u.var()) / variance - 1) < 4 * math.sqrt(2 / n)


G = f64([1.0, 2.0, 0.5], [0.0, -1.0, 3.0])


@pytest.mark.parametrize("noise", ["diagonal", "additive"])  # the former: not said to be additive
def test_general_noise_is_a_matrix_times_the_processes(noise: str) -> None:
    prob = ps.SDEProblem(
        lambda u, p, t: torch.zeros_like(u), lambda u, p, t: G, f64(1.0, 2.0), (0.0, 1.0),
        noise_rate_prototype=torch.zeros(2, 3), noise=noise,
    )  # fmt: skip
    algorithms = [t.euler(), t.heun(), t.log_ode()]
    for alg in [*algorithms, t.srk(), t.milstein()] if noise == "additive" else algorithms:
        sol = run(prob, alg, dt=0.125, adaptive=False)
        assert sol.W.u.shape == (len(sol.t), 3)
        assert_close(sol.u, f64(1.0, 2.0) + sol.W.u @ G.T, rtol=1e-11)


def batch_of_equations(engine: str, alg: Any) -> Any:
    prob = ps.SDEProblem(
        lambda u, p, t: -u, lambda u, p, t: u[:, :, None] * G, torch.ones(4, 2, dtype=F64),
        (0.0, 1.0), noise_rate_prototype=torch.zeros(4, 2, 3),
    )  # fmt: skip
    return ps.solve(prob, alg, dt=0.125, seed=3, engine=engine)


@pytest.mark.parametrize(
    ("engine", "alg"),
    [
        ("sundials", t.euler()),
        pytest.param("julia", ps.EM(split=False), marks=pytest.mark.julia),
    ],
)
def test_a_batch_of_equations_with_processes_of_their_own(engine: str, alg: Any) -> None:
    sol = batch_of_equations(engine, alg)
    w, u = sol.W.u.reshape(len(sol.t), 4, 3), torch.ones(4, 2, dtype=F64)
    assert len(w[-1].unique()) == 12
    for k in range(8):
        u = u - 0.125 * u + ((u[:, :, None] * G) @ (w[k + 1] - w[k])[:, :, None])[:, :, 0]
    assert_close(sol.u[-1], u, rtol=1e-11)


def test_scalar_noise_moves_all_entries_alike() -> None:
    for alg in (t.srk(), t.milstein(), t.milstein(grad_free=True)):
        sol = run(gbm(3, noise="scalar"), alg, dt=2.0**-9, adaptive=False)
        assert sol.W.u.shape == (len(sol.t), 1)
        assert_close(sol.u[-1], exact(sol.W.u[-1]).expand(3), rtol=3e-3)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_seed_gives_equal_bits_and_torchs_generator_gives_the_seed(adaptive: bool) -> None:
    def solve(**options: Any) -> Any:
        prob = gbm(3)
        options = {"dt": 0.0625, "adaptive": adaptive, "saveat": 0.25, **options}
        return ps.solve(prob, t.srk(), engine="sundials", **options)

    first, again, other = solve(seed=0), solve(seed=0), solve(seed=1)
    assert torch.equal(first.u, again.u) and not torch.equal(first.u[1:], other.u[1:])
    assert torch.equal(first.W.u, again.W.u) and first.seed == 0
    torch.manual_seed(4)
    drawn = solve()
    torch.manual_seed(4)
    assert torch.equal(drawn.u, solve().u) and torch.equal(drawn.u, solve(seed=drawn.seed).u)
    assert not torch.equal(drawn.u[1:], solve().u[1:])


def test_members_of_an_ensemble_have_noise_of_their_own() -> None:
    def solve(where: Any) -> Any:
        prob = ps.EnsembleProblem(gbm(1), prob_func=lambda prob, i: prob)
        given = {"dt": 2.0**-6, "saveat": [0.5, 1.0], "engine": "sundials", "seed": 1}
        return ps.solve(prob, t.euler(), where, trajectories=4, **given)

    first, again = solve(ps.EnsembleThreads(2)), solve(ps.EnsembleSerial())
    assert torch.equal(first.u, again.u) and len(first.u[:, -1].unique()) == 4


def test_states_in_any_shape_and_float32() -> None:
    u0 = {"x": torch.ones(2, 3), "y": torch.tensor(2.0)}
    prob = ps.SDEProblem(
        lambda u, p, t: {k: -v for k, v in u.items()},
        lambda u, p, t: {"x": 0.1 * torch.ones_like(u["x"]), "y": 0.0 * u["y"]},
        u0, (0.0, 1.0),
    )  # fmt: skip
    sol = run(prob, t.euler(), dt=0.01, saveat=[0.5, 1.0])
    assert sol.u["x"].shape == (2, 2, 3) and sol.u["x"].dtype == torch.float32
    assert_close(sol.u["y"], 2 * torch.tensor([0.99**50, 0.99**100]), rtol=1e-5)
    assert run(prob, t.euler(), dt=0.01, saveat=[0.5, 1.0], save_idxs=[6]).u.shape == (2, 1)


def test_between_steps_a_path_is_a_line() -> None:
    sol = run(gbm(2), t.euler(), dt=0.25)
    assert_close(sol(0.6), 0.6 * sol.u[2] + 0.4 * sol.u[3], rtol=1e-12)
    thin = run(gbm(2), t.euler(), dt=0.25, saveat=[0.6, 1.0])
    assert torch.equal(thin.u[0], sol(0.6)) and torch.equal(thin.W.u, sol.W.u)
    free = run(gbm(2), t.srk(), saveat=[0.6, 1.0])  # its steps are found again
    assert_close(free(0.6), free.u[0], rtol=1e-12)
    assert_close(free.W.u, run(gbm(2), t.srk()).W.u, rtol=1e-12)
    for copied in (copy.deepcopy(sol), pickle.loads(pickle.dumps(free))):
        assert_close(copied(0.6), sol(0.6) if len(copied.t) > 2 else free.u[0], rtol=1e-12)
    refused(EngineError, "no derivative by time", lambda: sol(0.6, deriv=1))
    refused(EngineError, "no derivative by time", lambda: sol(f64(0.6, 0.7, grad=True)))


def test_a_path_is_not_solved_again_for_other_parameters() -> None:
    p = f64(A, B)
    prob = ps.SDEProblem(drift, diffusion, f64(1.0, 2.0), (0.0, 1.0), p)
    sol = run(prob, t.srk(), saveat=[0.5, 1.0])
    p.mul_(2.0)
    refused(PyscimlError, "has changed since the solve", lambda: sol(0.25))


# -- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alg", "noise"),
    [
        (alg, noise) for alg in EVERY for noise in ("diagonal", "scalar", "general")
        if alg.name not in ("milstein", "srk") or noise != "general"
    ],
    ids=repr,
)  # fmt: skip
def test_gradients_against_differences_on_the_same_noise(alg: Any, noise: str) -> None:
    check_gradient_on_the_same_noise(alg, noise, dt=0.125, seed=11, engine="sundials")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(2, 2), nn.Linear(2, 2)


@pytest.mark.parametrize("where", ["p", "closure", "module"])
@pytest.mark.parametrize(
    ("alg", "rtol"), [(t.reversible_heun(), 1e-9), (t.midpoint(), 2e-3), (t.milstein(), 2e-2)],
    ids=lambda x: getattr(x, "name", None),
)  # fmt: skip
def test_torchsdes_adjoint_gives_the_gradient_through_the_steps(
    alg: Any, rtol: float, where: str
) -> None:
    torch.manual_seed(0)
    net = Net().double()
    scale = f64(0.3, 0.2, grad=True)
    u0 = f64([1.0, 0.5], [-0.5, 0.2], grad=True)

    def equation() -> ps.SDEProblem:
        if where == "p":
            return ps.SDEProblem(
                lambda u, p, t: -p["s"][0] * u, lambda u, p, t: p["s"][1] * torch.sin(u),
                u0, (0.0, 1.0), {"s": 2 * scale},
            )  # fmt: skip
        if where == "closure":
            return ps.SDEProblem(
                lambda u, p, t: -scale[0] * u, lambda u, p, t: scale[1] * torch.sin(u),
                u0, (0.0, 1.0),
            )  # fmt: skip
        return ps.SDEProblem(
            lambda u, p, t: torch.tanh(p.f(u)), lambda u, p, t: 0.2 * torch.sin(u),
            u0, (0.0, 1.0), net,
        )  # fmt: skip

    inputs = [u0, *(net.f.parameters() if where == "module" else [scale])]
    gradients = []
    for sensealg in (None, ps.BacksolveAdjoint()):
        sol = run(equation(), alg, dt=2.0**-9, adaptive=False, saveat=[0.5, 1.0], sensealg=sensealg)
        gradients.append(torch.autograd.grad(sol.u.square().sum(), inputs))
    for got, want in zip(*gradients, strict=True):
        assert_close(got, want, rtol=rtol)


def test_a_gradient_can_be_differentiated_again() -> None:
    p = f64(A, B, grad=True)
    sol = run(ps.SDEProblem(drift, diffusion, f64(1.0), (0.0, 1.0), p), t.euler(), dt=0.1)
    first = torch.autograd.grad(sol.u[-1].sum(), p, create_graph=True)[0]
    got = torch.autograd.grad(first[0], p)[0]

    def slope(p: Tensor) -> Tensor:
        p = p.detach().requires_grad_()
        with torch.enable_grad():
            prob = ps.SDEProblem(drift, diffusion, f64(1.0), (0.0, 1.0), p)
            end = run(prob, t.euler(), dt=0.1).u[-1].sum()
        return torch.autograd.grad(end, p)[0][0]

    assert_close(got, central_difference(slope, p, h=1e-3), rtol=1e-7)


# -- solves that fail, and what is refused ---------------------------------------------------------


def test_a_path_that_blows_up_ends_there() -> None:
    prob = ps.SDEProblem(lambda u, p, t: u**3, lambda u, p, t: 0.1 * u, f64(3.0, 1.0), (0.0, 2.0))
    for alg, options in ((t.euler(), {}), (t.midpoint(), {"adaptive": False})):
        with pytest.raises(SolveError) as caught:
            run(prob, alg, dt=0.02, saveat=[0.02, 1.9], **options)
        error = caught.value
        assert error.retcode == "Unstable" and 0.04 < error.t < 1.9
        assert error.solution.t.tolist() == [0.02]
        assert bool(torch.isfinite(error.solution(error.t)).all())
    sol = run(prob, t.euler(), dt=0.02, raise_on_failure=False)
    assert not sol.success and bool(torch.isfinite(sol.u).all()) and len(sol.t) > 3


def test_too_many_steps_and_too_short_ones() -> None:
    sol = run(gbm(2), t.srk(), abstol=1e-6, reltol=1e-6, maxiters=5, raise_on_failure=False)
    assert sol.retcode == "MaxIters" and 0 < len(sol.t) <= 6
    rough = ps.SDEProblem(drift, diffusion, f64(1.0), (0.0, 1.0), f64(A, 3.0))
    with pytest.warns(UserWarning, match="minimum allowed step"):
        sol = run(rough, t.srk(), abstol=1e-9, reltol=1e-9, dtmin=1e-3, raise_on_failure=False)
    assert sol.retcode == "DtLessThanMin"


def test_without_torchsde_its_install_command_is_named() -> None:
    real = importlib.import_module

    def missing(name: str, *args: Any) -> Any:
        if name == "torchsde":
            raise ImportError(name)
        return real(name, *args)

    with mock.patch.object(importlib, "import_module", missing):
        match = r"pip install 'pysciml\[sde\]'"
        refused(EngineError, match, lambda: run(gbm(2), t.euler(), dt=0.1))


@pytest.mark.parametrize(
    ("alg", "options"),
    [
        (t.euler(), {"dt": 0.01}),
        (t.srk(), {"abstol": 1e-3, "reltol": 1e-3}),
        (t.milstein(), {"dt": 2.0**-8, "adaptive": False, "sensealg": ps.BacksolveAdjoint()}),
    ],
    ids=["fixed steps", "chosen steps", "adjoint"],
)
def test_values_saved_along_a_path(alg: Any, options: Any) -> None:
    """At times of their own and at the outputs, and gradients by what they are made of."""
    along, own = ps.SavedValues(), ps.SavedValues()

    def loss(x: Tensor) -> tuple[Tensor, Any]:
        prob = ps.SDEProblem(
            drift, diffusion, x[:2], (0.0, 1.0), x[2:],
            callback=ps.SavingCallback(lambda u, p, t: (u / p[0]).sum() + t, along),
        )  # fmt: skip
        saving = ps.SavingCallback(lambda u, p, t: u**2, own, saveat=[0.333, 0.8])
        sol = run(prob, alg, callback=saving, saveat=0.5, **options)
        return along.saveval.sum() + own.saveval.sum(), sol

    x = f64(1.0, 2.0, A, B, grad=True)
    value, sol = loss(x)
    assert own.t.tolist() == [0.333, 0.8] and along.t.tolist() == [0.0, 0.5, 1.0]
    assert_close(own.saveval, sol(own.t) ** 2, rtol=1e-12)
    assert_close(along.saveval, sol.u.sum(1) / A + sol.t, rtol=1e-12)
    if "abstol" not in options:
        (gradient,) = torch.autograd.grad(value, x)
        difference = central_difference(lambda y: loss(y)[0], x.detach(), 1e-5)
        assert_close(gradient, difference, rtol=2e-2 if "sensealg" in options else 1e-6)


def test_a_whole_state_is_saved_or_none() -> None:
    saving = ps.SavingCallback(lambda u, p, t: u.sum())
    match = "needs the whole state, but save_idxs keeps a part"
    refused(InputError, match, lambda: run(gbm(3), dt=0.1, callback=saving, save_idxs=[0]))
    late = ps.SavingCallback(lambda u, p, t: u.sum(), saveat=[0.5, 2.0])
    refused(InputError, "saveat", lambda: run(gbm(3), dt=0.1, callback=late))
    kick = ps.PresetTimeCallback([0.5], lambda u, p, t: u)
    match = "PresetTimeCallback was given.*have no events.*engine='julia'"
    refused(InputError, match, lambda: run(gbm(3), dt=0.1, callback=[saving, kick]))


def noisy_dropout(u: Any, p: Any, t: Any) -> Any:
    return nn.functional.dropout(u)


@pytest.mark.parametrize(
    ("change", "alg", "options", "error", "match"),
    [
        ({}, ps.EM(), {}, EngineError, "EM belongs to the julia engine.*pysciml.torchsde.srk"),
        ({}, ps.CVODE_BDF(), {}, EngineError, "CVODE_BDF does not solve stochastic"),
        ({}, t.euler(), {"dt": None}, InputError, "steps of one size, which is not given"),
        ({}, t.srk(), {"dt": None, "adaptive": False}, InputError, "steps of one size"),
        ({}, t.srk(), {"tstops": [0.5]}, EngineError, "tstops was given with torchsde's"),
        ({}, t.srk(), {"abstol": f64(1e-3, 1e-4)}, EngineError, "take one number"),
        ({}, t.srk(), {"sensealg": ps.GaussAdjoint()}, InputError, "back through the steps"),
        ({}, t.srk(), {"rtol": 1e-3}, InputError, "give reltol instead"),
        ({}, t.srk(), {"trajectories": 3}, InputError, "is for ensembles"),
        ({}, t.milstein(interpretation="ito!"), {}, InputError, 'give "Ito" or "Stratonovich"'),
        ({}, t.milstein(grad_free="no"), {}, InputError, "grad_free is 'no'; give True or False"),
        ({}, t.euler(), {"dt": 1e-12}, InputError, r"dt is 1e-12, of which tspan \(0, 1\) holds"),
        (
            {"f": lambda u, p, t: u @ torch.ones(3, 2, dtype=F64)}, t.euler(), {}, InputError,
            r"f fails on a state of shape \(2,\) .*give a state of the shape that f takes",
        ),
        (
            {"g": lambda u, p, t: u @ torch.eye(2)}, t.euler(), {}, InputError,
            "g mixes dtypes or devices .*the state is float64 on cpu",
        ),
        ({"p": None}, t.euler(), {}, InputError, "f uses p, but the problem has none"),
        (
            {
                "g": lambda u, p, t: torch.ones(2, 3, dtype=F64, device="meta"),
                "noise_rate_prototype": torch.zeros(2, 3),
            },
            t.euler(), {}, InputError, "g returned a tensor on meta, but u0 is on cpu",
        ),
        ({"f": noisy_dropout}, t.srk(), {}, InputError, "f draws random numbers"),
        ({"g": lambda u, p, t: u[:1]}, t.srk(), {}, InputError, r"g returned shape \(1,\)"),
        (
            {"g": mixing, "noise_rate_prototype": torch.zeros(2, 3), "p": f64(1.0, 2.0, 3.0)},
            t.srk(), {}, EngineError, "srk takes diagonal, scalar and additive noise only",
        ),
    ],
    ids=lambda x: x.name if hasattr(x, "name") else None,
)  # fmt: skip
def test_solves_that_cannot_be(
    change: Any, alg: Any, options: Any, error: type[Exception], match: str
) -> None:
    given = {"f": drift, "g": diffusion, "u0": f64(1.0, 2.0), "tspan": (0.0, 1.0), "p": f64(A, B)}
    prob = ps.SDEProblem(**(given | change))
    refused(error, match, lambda: run(prob, alg, **{"dt": 0.1, **options}))


def test_noise_that_is_not_additive() -> None:
    refused(InputError, "does not depend on the state, but it does", lambda: gbm(noise="additive"))


def test_algorithms_and_problems_that_do_not_go_together() -> None:
    ode = ps.ODEProblem(drift, f64(1.0, 2.0), (0.0, 1.0), f64(A, B))
    refused(
        EngineError, "this problem has no noise", lambda: ps.solve(ode, t.heun(), engine="sundials")
    )
    assert repr(t.euler) == "pysciml.torchsde.euler"
    refused(InputError, "euler does not take 'order'", lambda: t.euler(order=2))
    refused(AttributeError, "'midpont'. Did you mean 'midpoint'", lambda: t.midpont())


@pytest.mark.julia
def test_on_the_julia_engine_they_are_refused() -> None:
    match = "torchsde's, and belongs to the sundials engine"
    refused(EngineError, match, lambda: ps.solve(gbm(2), t.euler(), dt=0.1, engine="julia"))
