"""The problems of the table.

Networks are fitted, from a fixed seed, to the term that they stand for, so that the dynamics are
those of a trained model and no file of weights is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from benchmarks.problem import Problem

__all__ = ["NAMES", "make"]

F64 = torch.float64


def times(t1: float, n: int) -> Tensor:
    return torch.linspace(0.0, t1, n, dtype=F64)


def network(x: Any, p: dict[str, Any], layers: int, xp: Any) -> Any:
    """Dense layers with tanh between them, on the last axis of ``x``."""
    for i in range(layers - 1):
        x = xp.tanh(x @ p[f"w{i}"].T + p[f"b{i}"])
    return x @ p[f"w{layers - 1}"].T + p[f"b{layers - 1}"]


def fitted_network(
    sizes: list[int], x: Tensor, target: Tensor, seed: int, iterations: int = 0
) -> dict[str, Tensor]:
    """Weights of ``network`` fitted to ``target`` at ``x``.

    Hidden layers are random and the last is solved for by ridge regression; then all are
    trained by ``iterations`` of L-BFGS.
    """
    generator = torch.Generator().manual_seed(seed)
    p: dict[str, Tensor] = {}
    h = x
    for i, (n_in, n_out) in enumerate(zip(sizes[:-2], sizes[1:-1], strict=True)):
        p[f"w{i}"] = torch.randn(n_out, n_in, generator=generator, dtype=F64) / n_in**0.5
        p[f"b{i}"] = torch.randn(n_out, generator=generator, dtype=F64) / 2
        h = torch.tanh(h @ p[f"w{i}"].T + p[f"b{i}"])
    features = torch.cat([h, torch.ones(len(h), 1, dtype=F64)], 1)
    ridge = 1e-4 * len(h) * torch.eye(features.shape[1], dtype=F64)
    last = torch.linalg.solve(features.T @ features + ridge, features.T @ target).T
    i = len(sizes) - 2
    p[f"w{i}"], p[f"b{i}"] = last[:, :-1].contiguous(), last[:, -1].contiguous()
    if iterations:
        for value in p.values():
            value.requires_grad_()
        optimiser = torch.optim.LBFGS(
            p.values(), max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimiser.zero_grad()
            loss = ((network(x, p, len(sizes) - 1, torch) - target) ** 2).mean()
            loss.backward()
            return float(loss.detach())

        optimiser.step(closure)
    return {key: value.detach() for key, value in p.items()}


def lotka_volterra_ude() -> Problem:
    """Growth and death known, the interaction a network 2-16-16-2 (Rackauckas et al. 2020)."""
    generator = torch.Generator().manual_seed(1)
    x = 5 * torch.rand(1000, 2, generator=generator, dtype=F64) ** 2
    interaction = x[:, :1] * x[:, 1:] * torch.tensor([[-0.9, 0.8]], dtype=F64)
    p = fitted_network([2, 16, 16, 2], x, interaction, 2, iterations=500)
    p["rates"] = torch.tensor([1.3, -1.8], dtype=F64)

    def rhs(u: Any, p: dict[str, Any], t: Any, xp: Any) -> Any:
        return p["rates"] * u + network(u, p, 3, xp)

    return Problem(
        "lotka_volterra_ude",
        "Lotka-Volterra UDE (2-16-16-2)",
        rhs,
        torch.tensor([0.44249296, 4.6280594], dtype=F64),
        p,
        (0.0, 3.0),
        times(3.0, 31),
        stiff=False,
    )


def spiral_node() -> Problem:
    """A cubic spiral as a neural ODE 2-50-2, batch of 32 starts (after Chen et al. 2018)."""
    generator = torch.Generator().manual_seed(3)
    x = 4 * torch.rand(2000, 2, generator=generator, dtype=F64) - 2
    a = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64)
    p = fitted_network([2, 50, 2], x**3 / 4, (x**3 / 4) @ a, 4, iterations=500)

    def rhs(u: Any, p: dict[str, Any], t: Any, xp: Any) -> Any:
        return network(u**3 / 4, p, 2, xp)

    angle = 2 * torch.pi * torch.arange(32, dtype=F64) / 32
    u0 = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return Problem(
        "spiral_node",
        "spiral neural ODE (2-50-2), batch 32",
        rhs,
        u0,
        p,
        (0.0, 5.0),
        times(5.0, 21),
        stiff=False,
        batch=True,
    )


#: ROBER: rates, and the size of the fast species.
ROBER_RATES, FAST_SIZE = (0.04, 1e4, 3e7), 4e-5


def rober() -> Problem:
    """Robertson's reaction to t = 1e5; parameters are the logarithms of the three rates."""

    def rhs(u: Any, p: dict[str, Any], t: Any, xp: Any) -> Any:
        k = xp.exp(p["log_k"])
        slow = ROBER_RATES[0] * k[0] * u[..., 0]
        fast = ROBER_RATES[1] * k[1] * u[..., 1] * u[..., 2]
        fastest = ROBER_RATES[2] * k[2] * u[..., 1] ** 2
        return xp.stack([fast - slow, slow - fast - fastest, fastest], -1)

    saveat = torch.cat([torch.zeros(1, dtype=F64), torch.logspace(-5, 5, 31, dtype=F64)])
    return Problem(
        "rober",
        "ROBER to 1e5",
        rhs,
        torch.tensor([1.0, 0.0, 0.0], dtype=F64),
        {"log_k": torch.zeros(3, dtype=F64)},
        (0.0, 1e5),
        saveat,
        stiff=True,
        scale=torch.tensor([1.0, 1e-4, 1.0], dtype=F64),
    )


def stiff_node() -> Problem:
    """A stiff neural ODE 3-16-16-3 trained on ROBER (after Kim et al. 2021), to 5e-4 of it.

    The slow species' rates and where the fast one relaxes to are a network of the scaled species,
    fitted to those of ROBER's solution over eleven decades of time.
    """
    k, size, base = ROBER_RATES, FAST_SIZE, rober()
    log_k = {"log_k": base.p["log_k"].numpy()}
    t = np.concatenate([[0.0], np.logspace(-6, 5, 400)])
    found = solve_ivp(
        lambda t, u: base.rhs(u, log_k, t, np), base.tspan, base.u0.numpy(), "Radau", t,
        rtol=1e-10, atol=1e-14,
    )  # fmt: skip
    a, b, c = torch.as_tensor(found.y)
    # the fast species where its own rate is zero, and how fast the others are there
    rest = (torch.sqrt((k[1] * c) ** 2 + 4 * k[2] * k[0] * a) - k[1] * c) / (2 * k[2])
    rate = (k[0] * a - k[1] * rest * c).log()
    target = torch.stack([rate, (rest / size).expm1().log(), rate], 1)
    p = fitted_network([3, 16, 16, 3], torch.stack([a, b / size, c], 1), target, 21, iterations=500)
    p["log_rate"] = torch.tensor([7.6], dtype=F64)

    def rhs(u: Any, p: dict[str, Any], t: Any, xp: Any) -> Any:
        scaled = xp.stack([u[..., 0], u[..., 1] / size, u[..., 2]], -1)
        e = xp.exp(network(scaled, p, 3, xp))
        fast = xp.exp(p["log_rate"])[0] * (size * xp.log1p(e[..., 1]) - u[..., 1])
        return xp.stack([-e[..., 0], fast, e[..., 2]], -1)

    return replace(
        base, name="stiff_node", title="stiff neural ODE (3-16-16-3) on ROBER", rhs=rhs, p=p
    )


#: POLLU: rate, and the concentrations (from 1) it is proportional to (Verwer 1994).
REACTIONS: list[tuple[float, tuple[int, ...]]] = [
    (0.35, (1,)), (26.6, (2, 4)), (1.23e4, (5, 2)), (8.6e-4, (7,)), (8.2e-4, (7,)),
    (1.5e4, (7, 6)), (1.3e-4, (9,)), (2.4e4, (9, 6)), (1.65e4, (11, 2)), (9e3, (11, 1)),
    (0.022, (13,)), (1.2e4, (10, 2)), (1.88, (14,)), (1.63e4, (1, 6)), (4.8e6, (3,)),
    (3.5e-4, (4,)), (0.0175, (4,)), (1e8, (16,)), (4.44e11, (16,)), (1.24e3, (17, 6)),
    (2.1, (19,)), (5.78, (19,)), (0.0474, (1, 4)), (1.78e3, (19, 1)), (3.12, (20,)),
]  # fmt: skip
#: POLLU: reactions (from 1) that make each concentration, and those that take it.
BALANCE: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((2, 3, 9, 11, 12, 22, 25), (1, 10, 14, 23, 24)), ((1, 21), (2, 3, 9, 12)),
    ((1, 17, 19, 22), (15,)), ((15,), (2, 16, 17, 23)), ((4, 4, 6, 7, 13, 20), (3,)),
    ((3, 18, 18), (6, 8, 14, 20)), ((13,), (4, 5, 6)), ((4, 5, 6, 7), ()), ((), (7, 8)),
    ((7, 9), (12,)), ((8, 11), (9, 10)), ((9,), ()), ((10,), (11,)), ((12,), (13,)), ((14,), ()),
    ((16,), (18, 19)), ((), (20,)), ((20,), ()), ((23, 25), (21, 22, 24)), ((24,), (25,)),
]  # fmt: skip


def pollu() -> Problem:
    """20 species of air pollution; parameters are the logarithms of the 25 rates."""

    def rhs(u: Any, p: dict[str, Any], t: Any, xp: Any) -> Any:
        k = xp.exp(p["log_k"])
        rates = []
        for i, (rate, species) in enumerate(REACTIONS):
            value = rate * k[i] * u[..., species[0] - 1]
            rates.append(value * u[..., species[1] - 1] if len(species) > 1 else value)
        return xp.stack(
            [
                sum(rates[i - 1] for i in made) - sum(rates[i - 1] for i in taken)
                for made, taken in BALANCE
            ],
            -1,
        )

    u0 = torch.zeros(20, dtype=F64)
    u0[[1, 3, 6, 7, 8, 16]] = torch.tensor([0.2, 0.04, 0.1, 0.3, 0.01, 0.007], dtype=F64)
    # the largest size that each concentration takes, traces counted as 1e-6
    scale = torch.full((20,), 1e-6, dtype=F64)
    scale[[0, 1, 3, 6, 7, 8]] = torch.tensor([0.06, 0.2, 0.04, 0.1, 0.3, 0.01], dtype=F64)
    scale[[11, 12, 13, 14]] = torch.tensor([2e-3, 2e-4, 1e-5, 9e-3], dtype=F64)
    scale[[16, 17, 18, 19]] = torch.tensor([7e-3, 1e-4, 2e-6, 6e-5], dtype=F64)
    return Problem(
        "pollu",
        "POLLU",
        rhs,
        u0,
        {"log_k": torch.zeros(25, dtype=F64)},
        (0.0, 60.0),
        times(60.0, 21),
        stiff=True,
        scale=scale,
    )


def reaction_diffusion_ude() -> Problem:
    """Fisher's equation on 128 periodic cells, the reaction a network 1-8-1."""
    cells = 128
    generator = torch.Generator().manual_seed(5)
    x = 1.2 * torch.rand(2000, 1, generator=generator, dtype=F64) - 0.1
    p = fitted_network([1, 8, 1], x, 5 * x * (1 - x), 6, iterations=200)
    p["diffusion"] = torch.tensor([0.01], dtype=F64)

    def rhs(u: Any, p: dict[str, Any], t: Any, xp: Any) -> Any:
        spread = xp.roll(u, 1, -1) - 2 * u + xp.roll(u, -1, -1)
        return p["diffusion"] * cells**2 * spread + network(u[..., None], p, 2, xp)[..., 0]

    grid = torch.arange(cells, dtype=F64) / cells
    return Problem(
        "reaction_diffusion_ude",
        "1-d reaction-diffusion UDE, 128 cells",
        rhs,
        torch.exp(-100 * (grid - 0.5) ** 2),
        p,
        (0.0, 1.0),
        times(1.0, 21),
        stiff=False,
    )


def large_node() -> Problem:
    """A neural ODE with 100,216 parameters (16-300-300-16)."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(1000, 16, generator=generator, dtype=F64)
    a = torch.randn(16, 16, generator=generator, dtype=F64)
    p = fitted_network([16, 300, 300, 16], x, x @ (a - a.T) / 4 - x / 5, 9)

    def rhs(u: Any, p: dict[str, Any], t: Any, xp: Any) -> Any:
        return network(u, p, 3, xp)

    return Problem(
        "large_node",
        "neural ODE, 100,216 parameters",
        rhs,
        torch.linspace(-1, 1, 16, dtype=F64),
        p,
        (0.0, 5.0),
        times(5.0, 11),
        stiff=False,
    )


def latent_ode() -> Problem:
    """The dynamics of a latent ODE (4-20-20-4), a batch of 100 series at irregular times.

    After the latent ODE of Chen et al. 2018; two damped oscillators stand for what it learned.
    """
    generator = torch.Generator().manual_seed(10)
    x = 3 * torch.randn(2000, 4, generator=generator, dtype=F64)
    a = torch.zeros(4, 4, dtype=F64)
    a[:2, :2] = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64)
    a[2:, 2:] = torch.tensor([[-0.3, -1.0], [1.0, -0.3]], dtype=F64)
    p = fitted_network([4, 20, 20, 4], x, torch.tanh(x) @ a.T, 11, iterations=200)

    def rhs(u: Any, p: dict[str, Any], t: Any, xp: Any) -> Any:
        return network(u, p, 3, xp)

    irregular = 5 * torch.rand(49, generator=generator, dtype=F64).sort().values
    return Problem(
        "latent_ode",
        "latent ODE (4-20-20-4), batch 100",
        rhs,
        torch.randn(100, 4, generator=generator, dtype=F64),
        p,
        (0.0, float(irregular[-1])),
        torch.cat([torch.zeros(1, dtype=F64), irregular]),
        stiff=False,
        batch=True,
    )


def cnf() -> Problem:
    """A continuous normalising flow: 512 samples in the plane, each with its log-density.

    Sums of 64 planar flows whose weights are a network of time (1-32-32-320), as in section 5 of
    Chen et al. 2018; the trace of a planar flow is known.
    """
    samples, width = 512, 64
    generator = torch.Generator().manual_seed(12)
    times_, target = (
        torch.linspace(0, 1, 200, dtype=F64)[:, None],
        torch.randn(3, 5 * width, generator=generator, dtype=F64),
    )
    waves = torch.cat([torch.ones_like(times_), times_, torch.sin(6 * times_)], 1)
    p = fitted_network([1, 32, 32, 5 * width], times_, waves @ target, 13)

    def rhs(u: Any, p: dict[str, Any], t: Any, xp: Any) -> Any:
        weights = xp.tanh(t * p["w0"][:, 0] + p["b0"])  # t may be a number
        weights = xp.tanh(p["w1"] @ weights + p["b1"])
        weights = p["w2"] @ weights + p["b2"]
        w = xp.reshape(weights[: 2 * width], (width, 2))
        v = xp.reshape(weights[2 * width : 4 * width], (width, 2))
        h = xp.tanh(u[..., :2] @ w.T + weights[4 * width :])
        trace = (1 - h**2) @ (w * v).sum(-1) / width
        return xp.concatenate([h @ v / width, -trace[..., None]], -1)

    z = torch.randn(samples, 2, generator=generator, dtype=F64)
    log_density = -(z**2).sum(1, keepdim=True) / 2 - torch.log(torch.tensor(2 * torch.pi))
    return Problem(
        "cnf",
        "continuous normalising flow, 512 samples",
        rhs,
        torch.cat([z, log_density], 1),
        p,
        (0.0, 1.0),
        times(1.0, 2),
        stiff=False,
        batch=True,
    )


_MAKERS: dict[str, Callable[[], Problem]] = {
    maker.__name__: maker
    for maker in (
        lotka_volterra_ude,
        spiral_node,
        rober,
        stiff_node,
        pollu,
        reaction_diffusion_ude,
        large_node,
        latent_ode,
        cnf,
    )
}
NAMES = tuple(_MAKERS)


@cache
def make(name: str) -> Problem:
    """The problem of that name, one of NAMES."""
    return _MAKERS[name]()
