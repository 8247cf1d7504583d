"""``python -m benchmarks.ensemble``: 10,000 trajectories of one model, with gradients.

Each member of the ensemble has initial values and parameters of its own. pysciml solves them by one
call (``EnsembleProblem`` on Julia's threads), diffrax under ``jax.vmap``, torchdiffeq one after the
other (a few members, scaled up). Errors are those of the first members against SciPy's DOP853 at
1e-12, gradients (of the sum of squares of the last states, by the parameters) against central
differences of it; times are compared at equal error.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp

from benchmarks import report
from benchmarks.measure import Budget, at_equal_error, sweep
from benchmarks.peers.base import Method
from benchmarks.peers.pysciml import julia_is_set_up

RELTOLS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
#: Members whose errors are measured, and members that torchdiffeq is timed on.
CHECKED, LOOPED = 8, 20


@dataclass(frozen=True)
class Case:
    """A model for torch and JAX alike (``xp``), and the middle of its ensemble."""

    title: str
    rhs: Callable[[Any, Any, Any], list[Any]]
    u0: tuple[float, ...]
    p: tuple[float, ...]
    end: float
    scale: float


def sir(u: Any, p: Any, xp: Any) -> list[Any]:
    infections, recoveries = p[0] * u[0] * u[1], p[1] * u[1]
    return [-infections, infections - recoveries, recoveries]


def lorenz(u: Any, p: Any, xp: Any) -> list[Any]:
    x, y, z = u[0], u[1], u[2]
    return [p[0] * (y - x), x * (p[1] - z) - y, x * y - p[2] * z]


CASES = {
    "sir": Case("SIR", sir, (0.99, 0.01, 0.0), (0.5, 0.15), 80.0, 1.0),
    "lorenz": Case("Lorenz", lorenz, (1.0, 0.0, 0.0), (10.0, 28.0, 8.0 / 3.0), 3.0, 10.0),
}


class Ensemble:
    """The members of a case, and what is measured on them."""

    def __init__(self, case: Case, count: int) -> None:
        rng = np.random.default_rng(0)
        self.case, self.count = case, count
        self.u0 = np.array(case.u0) * (1 + 0.05 * rng.standard_normal((count, len(case.u0))))
        self.p = np.array(case.p) * (1 + 0.05 * rng.standard_normal((count, len(case.p))))
        self.ts = np.linspace(0.0, case.end, 21)
        self.u = np.stack([self.exact(i, self.p[i]) for i in range(CHECKED)])
        self.grad = np.stack([self.exact_gradient(i) for i in range(CHECKED)])

    def exact(self, i: int, p: np.ndarray) -> np.ndarray:
        out = solve_ivp(
            lambda t, u: self.case.rhs(u, p, np), (0.0, self.case.end), self.u0[i], "DOP853",
            self.ts, rtol=1e-12, atol=1e-13,
        )  # fmt: skip
        values: np.ndarray = out.y.T
        return values

    def exact_gradient(self, i: int) -> np.ndarray:
        def loss(p: np.ndarray) -> float:
            return float((self.exact(i, p)[-1] ** 2).sum())

        out = np.empty(len(self.case.p))
        for k in range(len(out)):
            step = np.zeros(len(out))
            step[k] = 1e-4 * self.p[i, k]
            near = loss(self.p[i] + step) - loss(self.p[i] - step)
            far = loss(self.p[i] + 2 * step) - loss(self.p[i] - 2 * step)
            out[k] = (8 * near - far) / (12 * step[k])
        return out

    def error(self, u: np.ndarray) -> float:
        return float(np.abs(u[:CHECKED] - self.u).max() / self.case.scale)

    def gradient_error(self, grad: np.ndarray) -> float:
        return float(np.linalg.norm(grad[:CHECKED] - self.grad) / np.linalg.norm(self.grad))


def by_pysciml(e: Ensemble, threads: int) -> Method:
    import pysciml as ps

    def f(u: Any, p: Any, t: Any) -> Any:
        return torch.stack(e.case.rhs(u, p, torch))

    u0, p = torch.as_tensor(e.u0), torch.as_tensor(e.p).requires_grad_()
    prob = ps.ODEProblem(f, u0[0], (0.0, e.case.end), p[0].detach())
    ensemble = ps.EnsembleProblem(prob, u0=u0, p=p)

    def solve(reltol: float) -> torch.Tensor:
        u: torch.Tensor = ps.solve(
            ensemble, ps.Tsit5(), ps.EnsembleThreads(threads), engine="julia",
            saveat=torch.as_tensor(e.ts), reltol=reltol, abstol=reltol * e.case.scale,
        ).u  # fmt: skip
        return u

    def forward(reltol: float) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            with torch.no_grad():
                return solve(reltol).numpy()

        return run

    def gradient(reltol: float) -> Callable[[], np.ndarray]:
        return lambda: torch.autograd.grad(solve(reltol)[:, -1].square().sum(), p)[0].numpy()

    return Method("pysciml[julia]", f"Tsit5, {threads} threads", forward, gradient)


def by_diffrax(e: Ensemble) -> Method | None:
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    jax.config.update("jax_enable_x64", True)
    term = diffrax.ODETerm(lambda t, u, p: jnp.stack(e.case.rhs(u, p, jnp)))
    ts, u0, p = (jnp.asarray(x) for x in (e.ts, e.u0, e.p))

    def one(u0: Any, p: Any, reltol: Any) -> Any:
        return diffrax.diffeqsolve(
            term, diffrax.Tsit5(), t0=0.0, t1=e.case.end, dt0=None, y0=u0, args=p,
            saveat=diffrax.SaveAt(ts=ts), max_steps=100_000,
            stepsize_controller=diffrax.PIDController(rtol=reltol, atol=reltol * e.case.scale),
        ).ys  # fmt: skip

    many = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))
    pulled = jax.jit(jax.grad(lambda p, reltol: (many(u0, p, reltol)[:, -1] ** 2).sum()))
    return Method(
        "diffrax", "Tsit5, jit and vmap",
        lambda reltol: lambda: np.asarray(many(u0, p, reltol)),
        lambda reltol: lambda: np.asarray(pulled(p, reltol)),
    )  # fmt: skip


def by_torchdiffeq(e: Ensemble) -> Method | None:
    try:
        from torchdiffeq import odeint
    except ImportError:
        return None
    ts = torch.as_tensor(e.ts)

    def solve(i: int, p: torch.Tensor, reltol: float) -> torch.Tensor:
        out: torch.Tensor = odeint(
            lambda t, u: torch.stack(e.case.rhs(u, p, torch)), torch.as_tensor(e.u0[i]), ts,
            rtol=reltol, atol=reltol * e.case.scale, method="dopri5",
        )  # fmt: skip
        return out

    def forward(reltol: float) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            with torch.no_grad():
                p = torch.as_tensor(e.p)
                return torch.stack([solve(i, p[i], reltol) for i in range(LOOPED)]).numpy()

        return run

    def gradient(reltol: float) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            rows = []
            for i in range(LOOPED):
                p = torch.as_tensor(e.p[i]).requires_grad_()
                loss = solve(i, p, reltol)[-1].square().sum()
                rows.append(torch.autograd.grad(loss, p)[0])
            return torch.stack(rows).numpy()

        return run

    return Method("torchdiffeq", f"dopri5, loop ({LOOPED} members, scaled)", forward, gradient)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ensemble", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only methods that contain NAME")
    parser.add_argument("--quick", action="store_true", help="one run of two tolerances")
    parser.add_argument("--error", type=float, default=1e-5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # runs of seconds are their own average
    budget = Budget(runs=1 if arguments.quick else 2, seconds=0.0, longest=30.0)
    reltols = RELTOLS[2:4] if arguments.quick else RELTOLS
    wanted_errors = {"forward": arguments.error, "gradient": 10 * arguments.error}
    page = report.Page(arguments.out / "ensemble.md", "Ensembles")
    page.say(
        f"Seconds for {arguments.members} members at errors of {arguments.error:g} (solution) and "
        f"{10 * arguments.error:g} (gradient). {report.machine()}\n\n"
        "| model | method | forward | forward + gradient |\n|---|---|---:|---:|"
    )
    for name in arguments.cases:
        e = Ensemble(CASES[name], arguments.members)
        found = [by_diffrax(e), by_torchdiffeq(e)]
        if julia_is_set_up():
            found = [by_pysciml(e, 1), by_pysciml(e, arguments.threads), *found]
        for method in found:
            wanted = arguments.peers or [""]
            if method is None or not any(word in method.label for word in wanted):
                continue
            points = sweep(method, e, reltols, budget, wanted_errors)  # type: ignore[arg-type]
            factor = arguments.members / LOOPED if method.peer == "torchdiffeq" else 1.0
            cells = []
            for what, error in wanted_errors.items():
                these = [p for p in points if p.what == what and not p.note]
                at = at_equal_error(these, error)
                cells.append(f"{at.how}{factor * at.ms / 1e3:.3g}")
            notes = {p.note for p in points if p.note}
            page.say(f"| {e.case.title} | {method.label} | {cells[0]} | {cells[1]} |")
            for note in notes:
                print(f"{method.label}: {note}")


if __name__ == "__main__":
    main()
