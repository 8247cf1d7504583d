"""``python -m benchmarks.gpu``: what a GPU gains, on wide neural ODEs and on a PDE's grid.

A neural ODE with two hidden layers of 64 at growing batches, and the Gray-Scott equations on a
grid of 256 x 256: forward, and forward with the gradient of the last state's mean square by all
parameters. pysciml's Julia engine on the GPU and on one thread of the CPU; torchdiffeq (by
backpropagation) and diffrax (compiled, in full precision rather than TF32) on the GPU. Errors are
those of the last state and of the gradient against torchdiffeq's dopri8 at 1e-10 in double
precision; times are compared at equal error, results brought to the host.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import report
from benchmarks.measure import Budget, Point, at_equal_error, sweep
from benchmarks.peers.base import Method
from benchmarks.peers.pysciml import julia_is_set_up

# the other benchmarks keep JAX on the CPU; and it would take most of the card's memory for itself
os.environ["JAX_PLATFORMS"] = ""
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

#: Errors at which times are compared, of the solution and of the gradient, and the tolerances.
ERRORS = {"float64": (1e-6, 1e-5), "float32": (1e-4, 1e-3)}
RELTOLS = {
    "float64": (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9),
    "float32": (1e-2, 1e-3, 1e-4, 1e-5),
}


@dataclass(frozen=True)
class Case:
    """A problem for torch and JAX alike (``xp``), its arrays in double precision."""

    title: str
    rhs: Callable[[Any, dict[str, Any], Any], Any]
    u0: np.ndarray
    p: dict[str, np.ndarray]
    end: float
    on_cpu: bool = True
    parts: int = 1  # of u0, along its first axis, that do not know of each other

    def tensors(self, device: str, dtype: str, grad: bool = False) -> tuple[Any, dict[str, Any]]:
        def made(x: np.ndarray) -> Tensor:
            return torch.as_tensor(x, dtype=getattr(torch, dtype), device=device)

        return made(self.u0), {k: made(x).requires_grad_(grad) for k, x in self.p.items()}


def net(u: Any, p: dict[str, Any], xp: Any) -> Any:
    h = xp.tanh(u @ p["w1"] + p["b1"])
    return xp.tanh(h @ p["w2"] + p["b2"]) @ p["w3"] + p["b3"]


def neural_ode(batch: int, on_cpu: bool = True, parts: int = 1) -> Case:
    rng = np.random.default_rng(0)
    p = {}
    for i, (m, n) in enumerate(((2, 64), (64, 64), (64, 2)), 1):
        p[f"w{i}"] = 1.5 * rng.standard_normal((m, n)) / np.sqrt(m)
        p[f"b{i}"] = 0.1 * rng.standard_normal(n)
    u0 = rng.standard_normal((batch, 2))
    return Case(f"neural ODE 2-64-64-2, batch {batch}", net, u0, p, 5.0, on_cpu, parts)


def gray_scott(u: Any, p: dict[str, Any], xp: Any) -> Any:
    around = sum(xp.roll(u, s, k) for s in (1, -1) for k in (1, 2))
    spread = p["diffusion"][:, None, None] * (around - 4.0 * u)
    a, b = u[0], u[1]
    feed, kill = p["rates"][0], p["rates"][1]
    eaten = a * b * b
    return spread + xp.stack([feed * (1.0 - a) - eaten, eaten - (feed + kill) * b])


def reaction_diffusion(n: int) -> Case:
    u0 = np.stack([np.ones((n, n)), np.zeros((n, n))])
    x, y = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    spot = np.exp(-((x - n / 2) ** 2 + (y - n / 2) ** 2) / (n / 16) ** 2)
    u0 += np.stack([-0.5 * spot, 0.25 * spot])
    p = {"diffusion": np.array([0.16, 0.08]), "rates": np.array([0.035, 0.065])}
    return Case(f"Gray-Scott on {n} x {n}", gray_scott, u0, p, 100.0)


CASES = {
    "net-16384": lambda: neural_ode(16384),
    "net-131072": lambda: neural_ode(131072, on_cpu=False, parts=8),
    "net-1024": lambda: neural_ode(1024),
    "gray-scott": lambda: reaction_diffusion(256),
}


class Exact:
    """The solution at the end and the loss's gradient, and how far from them others are."""

    def __init__(self, case: Case) -> None:
        from torchdiffeq import odeint

        u0, p = case.tensors("cuda", "float64", grad=True)
        ts = torch.tensor([0.0, case.end]).to(u0)
        states, grads = [], []
        for part in u0.chunk(case.parts):
            u = odeint(
                lambda t, u: case.rhs(u, p, torch), part, ts, rtol=1e-10, atol=1e-10,
                method="dopri8",
            )[-1]  # fmt: skip
            states.append(u.detach().cpu())
            grads.append(gradient(u, p))
        self.u, self.grad = torch.cat(states).numpy(), np.mean(grads, axis=0)

    def error(self, u: np.ndarray) -> float:
        return float(np.abs(u - self.u).max() / np.abs(self.u).max())

    def gradient_error(self, grad: np.ndarray) -> float:
        return float(np.linalg.norm(grad - self.grad) / np.linalg.norm(self.grad))


def gradient(u: Tensor, p: dict[str, Tensor]) -> np.ndarray:
    grads = torch.autograd.grad(u.square().mean(), list(p.values()))
    out: np.ndarray = torch.cat([g.reshape(-1) for g in grads]).double().cpu().numpy()
    return out


def by_torch(
    case: Case, device: str, dtype: str, peer: str, name: str, solve: Callable[..., Tensor]
) -> Method:
    """Runs of ``solve(u0, p, reltol)``, which returns the state at the end."""

    def forward(reltol: float) -> Callable[[], np.ndarray]:
        u0, p = case.tensors(device, dtype)

        def run() -> np.ndarray:
            with torch.no_grad():
                return solve(u0, p, reltol).cpu().numpy()

        return run

    def with_gradient(reltol: float) -> Callable[[], np.ndarray]:
        u0, p = case.tensors(device, dtype, grad=True)
        return lambda: gradient(solve(u0, p, reltol), p)

    return Method(peer, name, forward, with_gradient)


def by_pysciml(case: Case, device: str, dtype: str) -> Method:
    import pysciml as ps

    def f(u: Tensor, p: dict[str, Tensor], t: Tensor) -> Tensor:
        out: Tensor = case.rhs(u, p, torch)
        return out

    def solve(u0: Tensor, p: dict[str, Tensor], reltol: float) -> Tensor:
        sol = ps.solve(
            ps.ODEProblem(f, u0, (0.0, case.end), p), ps.Tsit5(), engine="julia",
            saveat=[case.end], reltol=reltol, abstol=reltol,
        )  # fmt: skip
        return sol.u[-1]

    where = "GPU" if device == "cuda" else "CPU"
    return by_torch(case, device, dtype, "pysciml[julia]", f"Tsit5, {where}", solve)


def by_torchdiffeq(case: Case, dtype: str) -> Method:
    from torchdiffeq import odeint

    def solve(u0: Tensor, p: dict[str, Tensor], reltol: float) -> Tensor:
        ts = torch.tensor([0.0, case.end]).to(u0)
        out: Tensor = odeint(
            lambda t, u: case.rhs(u, p, torch), u0, ts, rtol=reltol, atol=reltol, method="dopri5"
        )
        return out[-1]

    return by_torch(case, "cuda", dtype, "torchdiffeq", "dopri5, GPU", solve)


def by_diffrax(case: Case, dtype: str) -> Method | None:
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError as failure:
        print(f"diffrax is left out: {failure}", flush=True)
        return None
    if jax.default_backend() == "cpu":
        print("diffrax is left out: JAX finds no GPU", flush=True)
        return None
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    term = diffrax.ODETerm(lambda t, u, p: case.rhs(u, p, jnp))
    u0, p = jnp.asarray(case.u0, dtype), {k: jnp.asarray(x, dtype) for k, x in case.p.items()}

    def solve(p: dict[str, Any], reltol: Any) -> Any:
        return diffrax.diffeqsolve(
            term, diffrax.Tsit5(), t0=0.0, t1=case.end, dt0=None, y0=u0, args=p, max_steps=4096,
            stepsize_controller=diffrax.PIDController(rtol=reltol, atol=reltol),
        ).ys[-1]  # fmt: skip

    solution = jax.jit(solve)
    pulled = jax.jit(jax.grad(lambda p, reltol: (solve(p, reltol) ** 2).mean()))

    def with_gradient(reltol: float) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            # a dict comes back from JAX with its keys sorted
            grads = pulled(p, reltol)
            return np.concatenate([np.asarray(grads[k], np.float64).ravel() for k in p])

        return run

    return Method(
        "diffrax", "Tsit5, jit, GPU", lambda reltol: lambda: np.asarray(solution(p, reltol)),
        with_gradient,
    )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One problem in one precision: its methods, and their rows of the table."""

    case: Case
    dtype: str
    peers: list[str]
    budget: Budget

    @cached_property
    def methods(self) -> list[Method]:
        case, dtype = self.case, self.dtype
        found = [by_torchdiffeq(case, dtype), by_diffrax(case, dtype)]
        if julia_is_set_up():
            places = ["cuda", "cpu"] if case.on_cpu else ["cuda"]
            found = [*(by_pysciml(case, device, dtype) for device in places), *found]
        return [m for m in found if m and any(word in m.label for word in self.peers)]

    def rows(self, exact: Exact) -> Iterator[str]:
        wanted = dict(zip(("forward", "gradient"), ERRORS[self.dtype], strict=True))
        for method in self.methods:
            points = sweep(method, exact, RELTOLS[self.dtype], self.budget, wanted)  # type: ignore[arg-type]
            cells = [cell(points, what, error) for what, error in wanted.items()]
            torch.cuda.empty_cache()
            yield f"| {self.case.title} | {self.dtype} | {method.label} | {' | '.join(cells)} |"


def cell(points: list[Point], what: str, error: float) -> str:
    """Time at equal error, and the first call."""
    these = [p for p in points if p.what == what]
    good = [p for p in these if not p.note]
    if not good:
        return f"{these[0].note} | "
    return f"{report.milliseconds(at_equal_error(good, error))} | {good[0].first_ms / 1e3:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=list(ERRORS), default=list(ERRORS))
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only methods that contain NAME")
    parser.add_argument("--runs", type=int, default=2, help="runs of each point, at least")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "benchmarks.gpu: torch finds no CUDA device here, nothing to measure\n")
    page = report.Page(arguments.out / "gpu.md", "GPUs")
    page.say(
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}. {report.machine()}\n\n"
        "Milliseconds at equal error (solution, gradient: "
        + "; ".join(f"{k} {a:g}, {b:g}" for k, (a, b) in ERRORS.items())
        + "), and seconds of the first call, compilation included.\n\n"
        "| problem | | method | forward, ms | first, s | with gradient, ms | first, s |\n"
        "|---|---|---|---:|---:|---:|---:|"
    )
    budget = Budget(runs=arguments.runs, seconds=0.2, longest=20.0)
    cases = {name: CASES[name]() for name in arguments.cases}
    exact = {name: Exact(case) for name, case in cases.items()}
    for dtype in arguments.dtypes:
        for name, case in cases.items():
            for row in Bench(case, dtype, arguments.peers or [""], budget).rows(exact[name]):
                page.say(row)


if __name__ == "__main__":
    main()
