"""Stochastic equations: closed forms on the same noise, orders, moments, pathwise gradients."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml.errors import EngineError, InputError
from pysciml.stochasticdiffeq import (
    ADDITIVE,
    BLIND_TO_INTEGRALS,
    DIAGONAL,
    FIXED_STEP,
    NO_ERROR_CONTROL,
    NOT_SCALAR,
    SDE_ALGORITHMS,
)
from support import F64, assert_close, central_difference, f64

julia = pytest.mark.julia
WEAK = ("SimplifiedEM", "DRI1", "RI1")
STRATONOVICH = ("EulerHeun", "LambaEulerHeun", "ImplicitEulerHeun", "ISSEulerHeun")
A, B = 0.5, 0.4


def drift(u: Any, p: Any, t: Any) -> Any:
    return p[0] * u


def diffusion(u: Any, p: Any, t: Any) -> Any:
    return p[1] * u


def gbm(paths: int = 400, **options: Any) -> ps.SDEProblem:
    """Geometric Brownian motion, independent paths as entries of one state."""
    u0 = torch.ones(paths, dtype=F64)
    return ps.SDEProblem(drift, diffusion, u0, (0.0, 1.0), f64(A, B), **options)


def exact(w: Tensor, stratonovich: bool = False) -> Tensor:
    return torch.exp(A - (0.0 if stratonovich else B**2 / 2) + B * w)


def strong_error(alg: Any, dt: float, prob: Any = None, stratonovich: bool = False) -> float:
    sol = ps.solve(prob or gbm(), alg, dt=dt, adaptive=False, seed=11, engine="julia")
    assert sol.t[-1] == 1.0 and len(sol.t) == round(1 / dt) + 1
    return float((sol.u[-1] - exact(sol.W.u[-1], stratonovich)).abs().mean())


@julia
@pytest.mark.parametrize(
    ("alg", "order"),
    [
        (ps.EM(), 0.5),
        (ps.RKMil(), 1.0),
        (ps.SRIW1(), 1.5),
        (ps.SOSRI(), 1.5),
        (ps.ImplicitEM(), 0.5),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_strong_order_on_the_same_noise(alg: Any, order: float) -> None:
    coarse, fine = strong_error(alg, 2.0**-4), strong_error(alg, 2.0**-8)
    assert abs(math.log2(coarse / fine) / 4 - order) < 0.15


@julia
@pytest.mark.parametrize("alg", [ps.EulerHeun(), ps.RKMil(interpretation="Stratonovich")], ids=repr)
def test_stratonovich_equation(alg: Any) -> None:
    coarse, fine = (strong_error(alg, dt, stratonovich=True) for dt in (2.0**-4, 2.0**-8))
    assert abs(math.log2(coarse / fine) / 4 - 1.0) < 0.15


@julia
@pytest.mark.parametrize("name", sorted(SDE_ALGORITHMS))
def test_every_algorithm(name: str) -> None:
    alg = ps.algorithm(name)()
    if name in ADDITIVE:
        # du = -2 u dt + 0.3 dW, whose mean is known whatever the noise
        prob = ps.SDEProblem(
            lambda u, p, t: -2.0 * u, lambda u, p, t: 0.3 * torch.ones_like(u),
            torch.ones(400, dtype=F64), (0.0, 1.0),
        )  # fmt: skip
        sol = ps.solve(prob, alg, dt=0.05, seed=3, engine="julia")
        variance = 0.09 * (1 - math.exp(-4)) / 4
        assert abs(float(sol.u[-1].mean()) - math.exp(-2)) < 4 * math.sqrt(variance / 400)
        return
    scalar = name.startswith("WangLi3SMil")
    options: dict[str, Any] = {"noise": "scalar"} if scalar else {}
    prob = gbm(1 if scalar else 400, **options)
    sol = ps.solve(prob, alg, dt=2.0**-7, adaptive=False, seed=3, engine="julia")
    assert sol.retcode == "Success" and (name not in FIXED_STEP or sol.stats.nreject in (0, None))
    if name in WEAK:
        mean = math.exp(A + (B**2 / 2 if name in STRATONOVICH else 0.0))
        deviation = mean * math.sqrt(math.exp(B**2) - 1) / 20
        assert abs(float(sol.u[-1].mean()) - mean) < 4 * deviation
    else:
        error = (sol.u[-1] - exact(sol.W.u[-1], name in STRATONOVICH)).abs().mean()
        assert float(error) < 0.05


KINDS: dict[str, dict[str, Any]] = {
    "diagonal": {"g": diffusion},
    "scalar": {"g": diffusion, "noise": "scalar"},
    "general": {
        "g": lambda u, p, t: torch.diag(p[1] * u), "noise_rate_prototype": torch.zeros(2, 2),
    },
    "additive": {"g": lambda u, p, t: p[1] * torch.ones_like(u), "noise": "additive"},
    "additive, general": {
        "g": lambda u, p, t: p[1] * torch.eye(2, dtype=F64), "noise": "additive",
        "noise_rate_prototype": torch.zeros(2, 2),
    },
}  # fmt: skip


@julia
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(SDE_ALGORITHMS.keys() - {*WEAK, *FIXED_STEP}))
def test_every_algorithm_at_steps_of_its_own(name: str, kind: str) -> None:
    additive = kind.startswith("additive")
    u0 = f64(1.0, 0.7)
    prob = ps.SDEProblem(f=drift, u0=u0, tspan=(0.0, 1.0), p=f64(-1.0, 0.5), **KINDS[kind])
    fits = {
        "diagonal": name not in ADDITIVE,
        "scalar": name not in ADDITIVE | NOT_SCALAR,
        "general": name not in ADDITIVE | DIAGONAL,
        "additive": True,
        "additive, general": name not in DIAGONAL,
    }[kind]
    alone = name in NO_ERROR_CONTROL or (name == "SKenCarp" and "general" in kind)
    for seed in range(1, 4):
        call = functools.partial(
            ps.solve, prob, ps.algorithm(name)(), seed=seed, abstol=1e-3, reltol=1e-3,
            engine="julia",
        )  # fmt: skip
        if not fits or alone:
            reason = "noise only|scalar noise" if not fits else "does not choose its own steps"
            with pytest.raises(EngineError, match=reason):
                call()
            return
        sol = call()
        w, t = sol.W.u, sol.W.t
        if additive:  # by parts: int e^(s-T) dW = W(T) - int e^(s-T) W ds
            kept = torch.exp(t - t[-1])[:, None] * w
            want = u0 * math.exp(-1) + 0.5 * (w[-1] - torch.trapezoid(kept, t, dim=0))
        else:
            want = u0 * torch.exp(-1 - (0.0 if name in STRATONOVICH else 0.125) + 0.5 * w[-1])
        assert_close(sol.u[-1], want, rtol=0.1, atol=0.05)


def sudden(u: Any, p: Any, t: Any) -> Any:
    return torch.where((t > 0.4) & (t < 0.5), 6.0, 0.05) * u


@julia
@pytest.mark.parametrize(
    ("name", "general"),
    [("LambaEM", False), ("LambaEM", True), ("RKMil", False), ("SOSRI", False), ("SRIW1", False)],
)
def test_noise_of_steps_rejected_many_times_is_that_of_a_wiener_process(
    name: str, general: bool
) -> None:
    # where the diffusion rises a hundredfold, steps are rejected time after time
    def g(u: Any, p: Any, t: Any) -> Any:
        return torch.diag(sudden(u, p, t)) if general else sudden(u, p, t)

    more: dict[str, Any] = {"noise_rate_prototype": torch.zeros(2, 2)} if general else {}
    prob = ps.SDEProblem(drift, g, f64(1.0, 0.7), (0.0, 1.0), f64(-1.0, 0.0), **more)
    ends, halves, standard = [], [], []
    rejected = 0
    for seed in range(1, 151):
        sol = ps.solve(prob, ps.algorithm(name)(), seed=seed, engine="julia")
        w, t = sol.W.u, sol.W.t
        ends.append(w[-1])
        k = int(torch.searchsorted(t, 0.45))  # the increments there, of both entries
        halves.append(w[k])
        standard.append(w.diff(dim=0) / t.diff().sqrt()[:, None])
        rejected += sol.stats.nreject
    assert rejected > 300
    assert float(torch.cat(standard).abs().max()) < 6.0
    w = torch.stack(ends).reshape(-1)
    early, late = torch.stack(halves).reshape(-1), w - torch.stack(halves).reshape(-1)
    deviation = math.sqrt(2 / len(w))
    assert abs(float(w.square().mean()) - 1.0) < 4 * deviation
    assert abs(float((early * late).mean())) < 4 * math.sqrt(0.45 * 0.55 / len(w))


@julia
@pytest.mark.parametrize("name", sorted(BLIND_TO_INTEGRALS))
def test_drifts_of_time_alone_that_an_error_estimate_does_not_see(name: str) -> None:
    def g(u: Any, p: Any, t: Any) -> Any:
        return 0.01 * torch.ones_like(u)

    def solved(alg: Any, **options: Any) -> torch.Tensor:
        def pushed(u: Any, p: Any, t: Any) -> Any:
            return 2 * torch.cos(3 * t) + 0 * u

        prob = ps.SDEProblem(pushed, g, torch.zeros(2, dtype=F64), (0.0, 1.0))
        return ps.solve(prob, alg, seed=1, engine="julia", **options).u[-1]

    alg, instead = ps.algorithm(name)(), BLIND_TO_INTEGRALS[name]
    with pytest.raises(EngineError, match=f"zero on states whose rate.*use pysciml.{instead}"):
        solved(alg)
    want = 2 / 3 * math.sin(3.0)
    assert (solved(alg, dt=1e-3, adaptive=False) - want).abs().max() < 0.05
    assert (solved(ps.algorithm(instead)(), abstol=1e-4, dt=0.5) - want).abs().max() < 0.15


@julia
def test_tight_tolerances_are_reached_by_methods_of_low_order() -> None:
    prob = ps.SDEProblem(drift, diffusion, f64(1.0, 0.7), (0.0, 1.0), f64(-1.0, 0.5))
    for seed in range(1, 13):
        sol = ps.solve(prob, ps.LambaEM(), seed=seed, abstol=1e-4, reltol=1e-4, engine="julia")
        want = f64(1.0, 0.7) * torch.exp(-1.125 + 0.5 * sol.W.u[-1])
        assert_close(sol.u[-1], want, rtol=0.05)


@julia
def test_moments_of_ornstein_uhlenbeck() -> None:
    theta, sigma, n = 1.5, 0.6, 4000
    prob = ps.SDEProblem(
        lambda u, p, t: -p[0] * u,
        lambda u, p, t: p[1] * torch.ones_like(u),
        torch.full((n,), 2.0, dtype=F64),
        (0.0, 2.0),
        f64(theta, sigma),
    )
    sol = ps.solve(prob, ps.SOSRA(), seed=5, saveat=[0.5, 1.0, 2.0], engine="julia")
    for t, u in zip(sol.t.tolist(), sol.u, strict=True):
        mean = 2.0 * math.exp(-theta * t)
        variance = sigma**2 * (1 - math.exp(-2 * theta * t)) / (2 * theta)
        assert abs(float(u.mean()) - mean) < 4 * math.sqrt(variance / n)
        assert abs(float(u.var()) / variance - 1) < 4 * math.sqrt(2 / n)


@julia
def test_general_noise_is_a_matrix_times_the_processes() -> None:
    G = f64([1.0, 2.0, 0.5], [0.0, -1.0, 3.0])
    prob = ps.SDEProblem(
        lambda u, p, t: torch.zeros_like(u), lambda u, p, t: G, f64(1.0, 2.0), (0.0, 1.0),
        noise_rate_prototype=torch.zeros(2, 3),
    )  # fmt: skip
    for alg in (ps.EM(), ps.EulerHeun(), ps.LambaEM()):
        sol = ps.solve(prob, alg, dt=0.125, seed=1, engine="julia")
        assert sol.W.u.shape == (len(sol.t), 3)
        assert_close(sol.u, f64(1.0, 2.0) + sol.W.u @ G.T, rtol=1e-12)


@julia
def test_scalar_noise_moves_all_entries_alike() -> None:
    sol = ps.solve(gbm(3, noise="scalar"), ps.SRIW1(), dt=2.0**-8, seed=2, engine="julia")
    assert sol.W.u.shape == (len(sol.t), 1)
    assert_close(sol.u[-1], exact(sol.W.u[-1]).expand(3), rtol=1e-3)


@julia
def test_a_seed_gives_equal_bits_and_torchs_generator_gives_the_seed() -> None:
    def run(**options: Any) -> Any:
        return ps.solve(gbm(3), ps.SOSRI(), saveat=0.25, engine="julia", **options)

    first, again, other = run(seed=0), run(seed=0), run(seed=1)
    assert torch.equal(first.u, again.u) and not torch.equal(first.u[1:], other.u[1:])
    assert first.seed == 0
    torch.manual_seed(4)
    drawn = run()
    torch.manual_seed(4)
    assert torch.equal(drawn.u, run().u) and torch.equal(drawn.u, run(seed=drawn.seed).u)
    assert not torch.equal(drawn.u[1:], run().u[1:])


@julia
def test_members_of_an_ensemble_have_noise_of_their_own() -> None:
    def run(where: Any, **options: Any) -> Any:
        prob = ps.EnsembleProblem(gbm(1), prob_func=lambda prob, i: prob)
        given = {"dt": 2.0**-6, "saveat": [0.5, 1.0], "engine": "julia", **options}
        return ps.solve(prob, ps.EM(), where, trajectories=4, **given)

    first, again = run(ps.EnsembleThreads(2), seed=1), run(ps.EnsembleSerial(), seed=1)
    assert torch.equal(first.u, again.u) and len(first.u[:, -1].unique()) == 4
    torch.manual_seed(0)
    drawn = run(ps.EnsembleThreads(2))
    torch.manual_seed(0)
    assert torch.equal(drawn.u, run(ps.EnsembleThreads(2)).u)


@julia
def test_states_in_any_shape_and_float32() -> None:
    u0 = {"x": torch.ones(2, 3), "y": torch.tensor(2.0)}
    prob = ps.SDEProblem(
        lambda u, p, t: {k: -v for k, v in u.items()},
        lambda u, p, t: {"x": 0.1 * torch.ones_like(u["x"]), "y": 0.0 * u["y"]},
        u0, (0.0, 1.0),
    )  # fmt: skip
    sol = ps.solve(prob, ps.EM(), dt=0.01, saveat=[0.5, 1.0], seed=1, engine="julia")
    assert sol.u["x"].shape == (2, 2, 3) and sol.u["x"].dtype == torch.float32
    assert_close(sol.u["y"], 2 * torch.tensor([0.99**50, 0.99**100]), rtol=1e-5)


@julia
def test_between_steps_a_path_is_a_line() -> None:
    sol = ps.solve(gbm(2), ps.EM(), dt=0.25, seed=1, engine="julia")
    assert_close(sol(0.6), 0.6 * sol.u[2] + 0.4 * sol.u[3], rtol=1e-12)
    thin = ps.solve(gbm(2), ps.EM(), dt=0.25, seed=1, saveat=[0.6, 1.0], engine="julia")
    assert_close(thin.u[0], sol(0.6), rtol=1e-12)
    assert torch.equal(thin.W.u, sol.W.u) and torch.equal(thin.W.t, sol.t)
    with pytest.raises(EngineError, match="no derivative by time"):
        sol(0.6, deriv=1)


# -- gradients -------------------------------------------------------------------------------------

SHIFT = f64(0.3, -0.2)


def wave(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return torch.stack([torch.sin(p[0] * u[1]) + t, -u[0] * u[1] + p[1] * u[0]])


def spread(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return p[2] * torch.cos(u * p[0] + t)


def mixing(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return torch.stack(
        [torch.stack([p[2] * u[1], u[0], t * p[1]]), torch.stack([u[0] * u[1], p[0] + t, u[1]])]
    )


def by_itself(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return p[2] * torch.cos(torch.stack([p[0] + t, 2 * t - p[1]]))


def mixing_by_itself(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return torch.stack(
        [torch.stack([p[2], p[0] * t, t * p[1]]), torch.stack([p[1] ** 2, p[0] + t, p[2] * t**2])]
    )


DIFFUSIONS: dict[str, Any] = {
    "general": mixing,
    "additive": by_itself,
    "additive, general": mixing_by_itself,
}


def check_gradient_on_the_same_noise(alg: Any, noise: str, **options: Any) -> None:
    """By u0, p and a closure, of outputs at steps and between them."""
    more: dict[str, Any] = {"noise": noise.split(",")[0]}
    if "general" in noise:
        more = {"noise_rate_prototype": torch.zeros(2, 3)}

    def loss(x: Tensor) -> Tensor:
        u0, p, shift = x[:2], x[2:5], x[5:]
        prob = ps.SDEProblem(
            lambda u, p, t: wave(u, p, t) + shift, DIFFUSIONS.get(noise, spread),
            u0, (0.0, 1.0), p, **more,
        )  # fmt: skip
        sol = ps.solve(prob, alg, adaptive=False, saveat=[0.25, 0.6, 1.0], **options)
        weights = f64([1.0, -2.0], [0.5, 1.0], [2.0, 1.5])
        return (weights * sol.u).square().sum() + sol(0.33).sum()

    x = f64(0.5, -0.4, 1.2, 0.7, 0.3, 0.3, -0.2, grad=True)
    loss(x).backward()
    assert_close(x.grad, central_difference(loss, x, h=1e-4), rtol=1e-7)


METHODS = [
    ps.EM(),
    ps.EM(split=False),
    ps.LambaEM(),
    ps.LambaEM(split=False),
    ps.EulerHeun(),
    ps.LambaEulerHeun(),
    ps.RKMil(),
    ps.RKMil(interpretation="Stratonovich"),
    ps.RKMilCommute(),
    ps.RKMilCommute(interpretation="Stratonovich"),
    ps.SRIW1(),
    ps.SRIW2(),
    ps.SOSRI(),
    ps.SOSRI2(),
]
IMPLICIT = [
    ps.ImplicitEM(),
    ps.ImplicitEM(theta=0.5),
    ps.ImplicitEM(symplectic=True),
    ps.ImplicitEulerHeun(),
    ps.ImplicitEulerHeun(symplectic=True),
    ps.ImplicitRKMil(theta=0.5),
    ps.ImplicitRKMil(interpretation="Stratonovich"),
    ps.ISSEM(),
    ps.ISSEM(symplectic=True),
    ps.ISSEulerHeun(),
    ps.ISSEulerHeun(symplectic=True),
]


@julia
@pytest.mark.parametrize(
    ("alg", "noise"),
    [
        *(
            (alg, noise) for alg in METHODS for noise in ("diagonal", "scalar", "general")
            if alg.name not in {"general": DIAGONAL, "scalar": NOT_SCALAR}.get(noise, ())
        ),
        *(
            (ps.algorithm(name)(), noise) for name in sorted(ADDITIVE - {"SKenCarp"})
            for noise in ("additive", "additive, general")
        ),
    ],
    ids=repr,
)  # fmt: skip
def test_gradients_against_differences_on_the_same_noise(alg: Any, noise: str) -> None:
    options: dict[str, Any] = {"dt": 0.0625, "seed": 6, "engine": "julia"}
    check_gradient_on_the_same_noise(alg, noise, **options)


def turning(u: Any, p: Any, t: Any) -> Any:
    """Growth and rotation, which commute."""
    return torch.stack([p[1] * u, p[2] * torch.stack([-u[1], u[0]])], 1)


@julia
@pytest.mark.parametrize(("interpretation", "order"), [("Ito", 1.0), ("Stratonovich", 0.5)])
def test_gradients_of_commuting_noise_in_closed_form(interpretation: str, order: float) -> None:
    """The path is ``exp(a t + (c^2 - b^2) t / 2 + b W_1) u0``, turned by the angle ``c W_2``.

    The order is that of the solution: of Stratonovich's equation with general noise RKMilCommute
    starts its differences from ``u + dt f`` (StochasticDiffEq 7), which costs half an order.
    """
    u0 = f64(1.0, 0.5, grad=True)
    p = f64(0.3, 0.4, 0.7, grad=True)

    def error(dt: float, seed: int) -> float:
        prob = ps.SDEProblem(
            lambda u, p, t: p[0] * u, turning, u0, (0.0, 1.0), p,
            noise_rate_prototype=torch.zeros(2, 2),
        )  # fmt: skip
        alg = ps.RKMilCommute(interpretation=interpretation)
        sol = ps.solve(prob, alg, dt=dt, adaptive=False, saveat=[1.0], seed=seed, engine="julia")
        w = sol.W.u[-1]
        drift = p[0] + ((p[2] ** 2 - p[1] ** 2) / 2 if interpretation == "Ito" else 0.0)
        growth, angle = torch.exp(drift + p[1] * w[0]), p[2] * w[1]
        x = growth * (u0[0] * torch.cos(angle) - u0[1] * torch.sin(angle))
        y = growth * (u0[0] * torch.sin(angle) + u0[1] * torch.cos(angle))
        got, want = (
            torch.cat(torch.autograd.grad((f64(1.0, -2.0) * u).sum(), (u0, p)))
            for u in (sol.u[0], torch.stack([x, y]))
        )
        return float((got - want).norm() / want.norm())

    coarse, fine = (sum(error(2.0**-k, seed) for seed in range(12)) / 12 for k in (4, 9))
    assert abs(math.log2(coarse / fine) / 5 - order) < 0.25
    assert fine < (0.01 if interpretation == "Ito" else 0.05)


@julia
def test_commuting_noise_along_a_given_path() -> None:
    def solve(u0: Tensor, noise: Any, **options: Any) -> Any:
        prob = ps.SDEProblem(
            lambda u, p, t: p[0] * u, turning, u0, (0.0, 1.0), f64(0.3, 0.4, 0.7), noise=noise,
            noise_rate_prototype=torch.zeros(2, 2),
        )  # fmt: skip
        return ps.solve(prob, ps.RKMilCommute(), engine="julia", **options)

    u0 = f64(1.0, 0.5, grad=True)
    drawn = solve(u0, "diagonal", dt=2.0**-6, adaptive=False, seed=8)
    given = solve(u0, ps.NoiseGrid(drawn.W.t, drawn.W.u))
    assert_close(given.u, drawn.u, rtol=1e-12)
    slopes = [torch.autograd.grad(sol.u[-1].sum(), u0)[0] for sol in (drawn, given)]
    assert_close(slopes[1], slopes[0], rtol=1e-12)


@julia
@pytest.mark.parametrize(
    ("alg", "noise"),
    [
        *(
            (alg, noise) for alg in IMPLICIT for noise in ("diagonal", "scalar", "general")
            if alg.name not in DIAGONAL or noise != "general"
        ),
        (ps.SKenCarp(), "additive"),
        (ps.SKenCarp(), "additive, general"),
    ],
    ids=repr,
)  # fmt: skip
def test_gradients_of_implicit_methods_against_differences(alg: Any, noise: str) -> None:
    # tolerances: of the equations that a step solves; SKenCarp's stages lie 12 dW off the state,
    # where Newton's method does not always converge at longer steps
    dt = 0.015625 if alg.name == "SKenCarp" else 0.0625
    options: dict[str, Any] = {"dt": dt, "seed": 6, "engine": "julia"}
    check_gradient_on_the_same_noise(alg, noise, abstol=1e-11, reltol=1e-11, **options)


@julia
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("alg", [ps.RKMil(), None], ids=["RKMil", "default"])
def test_gradients_of_geometric_brownian_motion(alg: Any, adaptive: bool) -> None:
    u0, p = torch.ones(5, dtype=F64, requires_grad=True), f64(A, B, grad=True)
    prob = ps.SDEProblem(drift, diffusion, u0, (0.0, 1.0), p)
    options: dict[str, Any] = {"abstol": 1e-4, "reltol": 1e-4} if adaptive else {"dt": 2.0**-11}
    sol = ps.solve(prob, alg, adaptive=adaptive, seed=3, engine="julia", **options)
    end, w = sol.u[-1], sol.W.u[-1]
    end.sum().backward()
    known = exact(w)
    assert_close(u0.grad, known, rtol=2e-2)
    assert_close(p.grad, torch.stack([known.sum(), ((w - B) * known).sum()]), rtol=2e-2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 40), nn.Linear(40, 3))
        self.g = nn.Sequential(nn.Linear(3, 40), nn.Sigmoid(), nn.Linear(40, 3))


@julia
@pytest.mark.parametrize("batch", [4, 16])  # points are gathered for the former, not the latter
@pytest.mark.parametrize("split", [True, False])
def test_gradients_of_networks_against_torchs_own_through_the_steps(
    split: bool, batch: int
) -> None:
    torch.manual_seed(0)
    net = Net().double()
    u0 = torch.randn(batch, 3, dtype=F64, requires_grad=True)
    prob = ps.SDEProblem(
        lambda u, p, t: p.f(u), lambda u, p, t: p.g(u), u0, (0.0, 1.0), net
    )  # fmt: skip
    sol = ps.solve(prob, ps.EM(split=split), dt=0.05, seed=9, engine="julia")
    inputs = [u0, *net.parameters()]
    got = torch.autograd.grad(sol.u.square().sum(), inputs)

    u, states, w = u0, [u0], sol.W.u.reshape(-1, batch, 3)
    for i, dt in enumerate(sol.t.diff().tolist()):
        moved = u + dt * net.f(u)
        u = moved + net.g(moved if split else u) * (w[i + 1] - w[i])
        states.append(u)
    want = torch.autograd.grad(torch.stack(states).square().sum(), inputs)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, rtol=1e-9)


@julia
@pytest.mark.parametrize("batch", [4, 16])
def test_gradients_of_networks_through_implicit_steps(batch: int) -> None:
    torch.manual_seed(0)
    net = Net().double()
    u0 = torch.randn(batch, 3, dtype=F64, requires_grad=True)
    prob = ps.SDEProblem(lambda u, p, t: p.f(u), lambda u, p, t: p.g(u), u0, (0.0, 0.5), net)
    options: dict[str, Any] = {"dt": 0.05, "adaptive": False, "abstol": 1e-12, "reltol": 1e-12}
    sol = ps.solve(prob, ps.ImplicitEM(), seed=9, engine="julia", **options)
    inputs = [u0, *net.parameters()]
    got = torch.autograd.grad(sol.u.square().sum(), inputs)

    u, states, w = u0, [u0], sol.W.u.reshape(-1, batch, 3)
    for i, dt in enumerate(sol.t.diff().tolist()):
        base = u + net.g(u) * (w[i + 1] - w[i])
        u = base
        for _ in range(40):
            u = base + dt * net.f(u)
        states.append(u)
    want = torch.autograd.grad(torch.stack(states).square().sum(), inputs)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, rtol=1e-8)


@julia
def test_functions_that_are_called_back() -> None:
    def called(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return p[0] * u if float(u.detach().sum()) > -1e9 else -u

    p = f64(A, B, grad=True)
    results = []
    for f in (drift, called):
        prob = ps.SDEProblem(f, diffusion, torch.ones(2, dtype=F64), (0.0, 1.0), p)
        if f is called:
            with pytest.warns(ps.CaptureWarning):
                sol = ps.solve(prob, ps.EM(), dt=0.1, seed=1, engine="julia")
        else:
            sol = ps.solve(prob, ps.EM(), dt=0.1, seed=1, engine="julia")
        results.append((sol.u.detach(), torch.autograd.grad(sol.u[-1].sum(), p)[0]))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, rtol=1e-10)


# -- bad input -------------------------------------------------------------------------------------


def refused(error: type[Exception], match: str, call: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"g": 1.0}, "g is a float; give a function"),
        ({"g": lambda u, p: u}, r"g takes \(u, p\), but it is called with \(u, p, t\)"),
        ({"noise_rate_prototype": torch.zeros(3, 2)}, r"shape \(3, 2\), but the state has 2"),
        ({"noise_rate_prototype": 3}, "noise_rate_prototype is a int"),
        ({"noise": "white"}, "noise is 'white'; give"),
        ({"noise": np.zeros(2)}, r"noise is array\(\[0., 0.\]\); give"),
        ({"f": lambda t, u, p: u}, r"f takes \(t, u, p\), but .*put them in this order"),
        ({"g": lambda p, u, t: u}, r"g takes \(p, u, t\), but .*put them in this order"),
        ({"f": lambda t, y, args: y}, r"f takes \(t, y, args\), but .*put them in this order"),
        ({"g": torch.nn.Linear(2, 2)}, r"g takes \(input.*called with \(u, p, t\)"),
        ({"g": lambda u, p, t: 0.1, "noise": "additive"}, "g returned a float"),
        ({"g": lambda u, p, t: f64([1.0]), "noise": "additive"}, r"g returned shape \(1,\)"),
        ({"g": lambda u, p, t: u / 0, "noise": "additive"}, "g gives numbers that are not finite"),
        ({"g": lambda u, p, t: torch.relu(-u), "noise": "additive"}, "on the state, but it does"),
        ({"u0": torch.ones(2, dtype=F64, device="meta")}, "u0 is on the device meta"),
        ({"noise": "scalar", "noise_rate_prototype": torch.zeros(2, 2)}, "leave one of them out"),
        ({"tspan": (1.0, 0.0)}, "runs backwards"),
        ({"tspan": (0.0, f64(1.0, grad=True))}, "no derivative by time"),
    ],
)
def test_problems_that_cannot_be(options: dict[str, Any], match: str) -> None:
    given = {"f": drift, "g": diffusion, "u0": f64(1.0, 2.0), "tspan": (0.0, 1.0), **options}
    refused(InputError, match, lambda: ps.SDEProblem(**given, p=f64(A, B)))


def test_without_julia_the_engine_and_torchsde_are_named() -> None:
    match = "engine='julia'.*torchsde"
    refused(EngineError, match, lambda: ps.solve(gbm(2), ps.EM(), dt=0.1, engine="sundials"))


@julia
@pytest.mark.parametrize(
    ("change", "alg", "options", "error", "match"),
    [
        ({"g": lambda u, p, t: u[:1]}, ps.EM(), {}, InputError, r"g returned shape \(1,\)"),
        (
            {"noise_rate_prototype": torch.zeros(2, 3)}, ps.EM(), {}, InputError,
            r"g returned shape \(2,\), but noise_rate_prototype has shape \(2, 3\)",
        ),
        ({}, ps.Tsit5(), {}, EngineError, "Tsit5 does not solve stochastic equations"),
        ({}, ps.SOSRA(), {}, EngineError, "SOSRA takes additive noise only"),
        ({}, ps.EM(), {"dt": None}, InputError, "steps of one size, which is not given; give dt="),
        ({}, ps.EM(), {"seed": -1}, InputError, "seed is -1"),
        ({}, ps.EM(), {"sensealg": ps.GaussAdjoint()}, InputError, "pathwise"),
        ({}, ps.EM(), {"saveat": f64(0.5, 1.0, grad=True)}, InputError, "derivative by time"),
        (
            {"p": f64(A, B, grad=True)}, ps.DRI1(), {}, EngineError,
            "DRI1 has no gradients.*SOSRI",
        ),
        ({"noise": "scalar"}, ps.RKMilCommute(), {}, EngineError, "does not take scalar noise"),
        ({}, ps.ISSEM(), {}, EngineError, r"give dt= and adaptive=False, or .*ImplicitEM\(\)"),
        (
            {
                "g": lambda u, p, t: torch.eye(2, dtype=F64),
                "noise_rate_prototype": torch.zeros(2, 2),
            },
            ps.SKenCarp(), {}, EngineError, "SKenCarp does not choose its own steps where",
        ),
        ({}, ps.RKMil(interpretation="ito"), {}, InputError, 'give "Ito" or "Stratonovich"'),
    ],
    ids=lambda x: x.name if hasattr(x, "name") else None,
)  # fmt: skip
def test_solves_that_cannot_be(
    change: Any, alg: Any, options: Any, error: type[Exception], match: str
) -> None:
    given = {"f": drift, "g": diffusion, "u0": f64(1.0, 2.0), "tspan": (0.0, 1.0), "p": f64(A, B)}
    prob = ps.SDEProblem(**(given | change))
    options = {"dt": 0.1, "engine": "julia", **options}
    refused(error, match, lambda: ps.solve(prob, alg, **options))


@julia
def test_noise_and_problems_that_an_algorithm_does_not_take() -> None:
    general = ps.SDEProblem(
        drift, lambda u, p, t: u[:, None] * torch.ones(2, 3, dtype=F64), f64(1.0, 2.0), (0.0, 1.0),
        f64(A, B), noise_rate_prototype=torch.zeros(2, 3),
    )  # fmt: skip
    for alg in (ps.SRIW1(), ps.RKMil()):
        refused(
            EngineError, "diagonal and scalar noise only",
            lambda alg=alg: ps.solve(general, alg, dt=0.1, engine="julia"),
        )  # fmt: skip
    ode = ps.ODEProblem(drift, f64(1.0, 2.0), (0.0, 1.0), f64(A, B))
    refused(EngineError, "has no noise", lambda: ps.solve(ode, ps.EM(), dt=0.1, engine="julia"))
    refused(InputError, "draws no noise", lambda: ps.solve(ode, seed=1, engine="julia"))


# -- a given path of the noise ---------------------------------------------------------------------

ALONG = {
    "EM": (ps.EM(split=False), ps.torchsde.euler()),
    "RKMil": (ps.RKMil(), ps.torchsde.milstein(grad_free=True)),
    "EulerHeun": (ps.EulerHeun(), ps.torchsde.heun()),
}


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        (name, noise) for name in sorted(ALONG) for noise in ("diagonal", "scalar", "general")
        if name != "RKMil" or noise != "general"
    ],
)  # fmt: skip
def test_a_given_path_is_followed(name: str, noise: str, engine: str) -> None:
    torch.manual_seed(0)
    times = torch.linspace(0.0, 1.0, 9, dtype=F64)
    w = 0.3 * torch.randn(9, {"diagonal": 2, "scalar": 1, "general": 3}[noise], dtype=F64).cumsum(0)
    u0, p = f64(0.5, -0.4, grad=True), f64(1.2, 0.7, 0.3, grad=True)
    g = mixing if noise == "general" else spread
    more = {"noise_rate_prototype": torch.zeros(2, 3)} if noise == "general" else {}
    prob = ps.SDEProblem(wave, g, u0, (0.0, 1.0), p, noise=ps.NoiseGrid(times, w), **more)
    sol = ps.solve(prob, ALONG[name][engine == "sundials"], engine=engine)
    assert_close(sol.t, times, 1e-12)
    assert_close(sol.W.u - sol.W.u[0], w - w[0], 1e-9)

    def step(u: Tensor, t: Tensor, dt: Tensor, dw: Tensor) -> Tensor:
        def noisy(u: Tensor, t: Tensor, dw: Tensor) -> Tensor:
            return g(u, p, t) @ dw if noise == "general" else g(u, p, t) * dw

        moved = dt * wave(u, p, t) + noisy(u, t, dw)
        if name == "EM":
            return u + moved
        if name == "EulerHeun":
            return u + (moved + dt * wave(u + moved, p, t + dt) + noisy(u + moved, t + dt, dw)) / 2
        high = u + dt * wave(u, p, t) + dt.sqrt() * g(u, p, t)
        return u + moved + (g(high, p, t) - g(u, p, t)) * (dw**2 - dt) / (2 * dt.sqrt())

    u, states = u0, [u0]
    for k in range(8):
        u = step(u, times[k], times[k + 1] - times[k], w[k + 1] - w[k])
        states.append(u)
    want = torch.stack(states)
    assert_close(sol.u, want, 1e-9)
    got = torch.autograd.grad(sol.u.square().sum() + sol(0.3).sum(), (u0, p))
    between = want[2] + 0.4 * (want[3] - want[2])
    for a, b in zip(got, torch.autograd.grad(want.square().sum() + between.sum(), (u0, p)),
                    strict=True):  # fmt: skip
        assert_close(a, b, 1e-8)


@julia
@pytest.mark.parametrize("theta", [0.5, 1.0])
@pytest.mark.parametrize("name", ["ImplicitEM", "ImplicitEulerHeun", "ImplicitRKMil", "ISSEM"])
def test_implicit_methods_follow_a_path_as_torch_does(name: str, theta: float) -> None:
    torch.manual_seed(0)
    times = torch.linspace(0.0, 1.0, 9, dtype=F64)
    w = 0.3 * torch.randn(9, 2, dtype=F64).cumsum(0)
    u0, p = f64(0.5, -0.4, grad=True), f64(1.2, 0.7, 0.3, grad=True)
    prob = ps.SDEProblem(wave, spread, u0, (0.0, 1.0), p, noise=ps.NoiseGrid(times, w))
    alg = ps.algorithm(name)(theta=theta)
    sol = ps.solve(prob, alg, adaptive=False, abstol=1e-12, reltol=1e-12, engine="julia")

    def step(u: Tensor, t: Tensor, dt: Tensor, dw: Tensor) -> Tensor:
        noise = spread(u, p, t) * dw
        if name == "ImplicitEulerHeun":
            noise = (noise + spread(u + noise, p, t) * dw) / 2
        if name == "ImplicitRKMil":
            high = u + dt * wave(u, p, t) + dt.sqrt() * spread(u, p, t)
            change = spread(high, p, t) - spread(u, p, t)
            noise = noise + change * (dw**2 - dt) / (2 * dt.sqrt())
        base = u + (1 - theta) * dt * wave(u, p, t) + (0.0 if name == "ISSEM" else noise)
        x = base
        for _ in range(60):  # contracts by about a tenth
            x = base + theta * dt * wave(x, p, t + theta * dt)
        return x + noise if name == "ISSEM" else x

    states = [u0]
    for k in range(8):
        states.append(step(states[-1], times[k], times[k + 1] - times[k], w[k + 1] - w[k]))
    want = torch.stack(states)
    assert_close(sol.u, want, 1e-9)
    got = torch.autograd.grad(sol.u.square().sum(), (u0, p))
    for a, b in zip(got, torch.autograd.grad(want.square().sum(), (u0, p)), strict=True):
        assert_close(a, b, 1e-8)


@julia
def test_steps_of_a_path_may_differ_and_its_outputs_be_chosen() -> None:
    first = ps.solve(gbm(3), ps.RKMil(), seed=5, abstol=1e-4, reltol=1e-4, engine="julia")
    assert first.t.diff().max() > 1.5 * first.t.diff().min()
    again = gbm(3, noise=ps.NoiseGrid(first.W.t, first.W.u))
    assert_close(ps.solve(again, ps.RKMil(), engine="julia").u, first.u, 1e-9)
    thin = ps.solve(again, ps.RKMil(), saveat=[0.3, 1.0], engine="julia")
    assert_close(thin.u, torch.stack([first(0.3), first.u[-1]]), 1e-9)


def grid(t: Any = (0.0, 0.5, 1.0), w: Any = torch.zeros(3, 2)) -> ps.NoiseGrid:  # noqa: B008
    return ps.NoiseGrid(torch.tensor(t), w)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: grid((0.0, 1.0, 0.5)), r"must increase, but t\[1\] = 1 is followed by 0.5"),
        (lambda: grid((0.0,)), "two increasing times or more"),
        (lambda: grid((0.0, 0.5, math.inf)), "t of a NoiseGrid holds numbers that are not finite"),
        (lambda: ps.NoiseGrid("abc", torch.zeros(3, 2)), "t of a NoiseGrid is 'abc'"),
        (lambda: ps.NoiseGrid([0.0, [1.0]], torch.zeros(2, 1)), "two increasing times or more"),
        (lambda: grid(t=(0j, 1, 2)), "two increasing times or more"),
        (lambda: grid(w=torch.zeros(3, 2, dtype=torch.bool)), "W of a NoiseGrid is bool"),
        (lambda: grid(w=torch.zeros(3, 2, device="meta")), "W of a NoiseGrid is on the device"),
        (lambda: grid(w=torch.zeros(2, 2)), r"has shape \(2, 2\), but t has 3 times"),
        (lambda: grid(w=torch.full((3, 2), math.nan)), "not finite"),
        (lambda: grid(w=torch.zeros(3, 2, requires_grad=True)), "W of a NoiseGrid requires grad"),
        (
            lambda: ps.NoiseGrid(torch.tensor([0.0, 1.0], requires_grad=True), torch.zeros(2, 1)),
            "t of a NoiseGrid requires grad, .*detach it",
        ),
        (lambda: gbm(2, noise=grid((0.0, 0.5, 0.9))), r"tspan is \(0, 1\)"),
        (lambda: gbm(3, noise=grid()), "has 1 or 3 processes"),
    ],
)
def test_paths_that_cannot_be(make: Any, match: str) -> None:
    refused(InputError, match, make)


def test_an_ensemble_along_one_path(engine: str) -> None:
    times = torch.linspace(0, 1, 33, dtype=F64)
    w = torch.randn(33, 2, dtype=F64, generator=torch.Generator().manual_seed(2)).cumsum(0) / 8
    prob = ps.SDEProblem(
        drift, diffusion, f64(1.0, 1.0), (0.0, 1.0), f64(A, B), noise=ps.NoiseGrid(times, w)
    )
    p = f64([[A, B], [0.1, 0.2]])
    sim = ps.solve(ps.EnsembleProblem(prob, p=p), engine=engine, saveat=[1.0])
    each = [ps.solve(ps.remake(prob, p=row), engine=engine, saveat=[1.0]).u for row in p]
    assert_close(sim.u, torch.stack(each), 1e-14)


def test_paths_that_an_algorithm_cannot_follow() -> None:
    prob = gbm(2, noise=grid())
    refused(
        InputError, "whose times are the steps", lambda: ps.solve(prob, dt=0.1, engine="sundials")
    )
    for alg, noise in ((ps.torchsde.srk(), grid()), (None, grid((0.0, 0.7, 1.0)))):
        prob = gbm(2, noise=noise)
        match = "cannot follow this NoiseGrid"
        refused(EngineError, match, lambda p=prob, a=alg: ps.solve(p, a, engine="sundials"))


@julia
def test_paths_that_an_algorithm_cannot_follow_in_julia() -> None:
    match = "SOSRI cannot follow a NoiseGrid"
    refused(EngineError, match, lambda: ps.solve(gbm(2, noise=grid()), ps.SOSRI(), engine="julia"))
