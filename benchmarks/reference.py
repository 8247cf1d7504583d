"""Tight reference solutions and gradients, by solvers that are not in the table at that setting.

Solutions: SciPy's DOP853, or Radau with torch's Jacobian where the problem is stiff. Gradients:
central differences of those solutions where parameters are few and the problem stiff, else
backpropagation through torchdiffeq's dopri8, checked in a random direction against central
differences. Cached on disk.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from benchmarks.problem import Problem

__all__ = ["Reference", "reference"]


class Reference:
    """Solution (len(saveat), *u0.shape) and gradient of the loss with respect to p, flat."""

    def __init__(self, problem: Problem, u: np.ndarray, gradient: np.ndarray) -> None:
        self.u = u
        self.gradient = gradient
        size = np.abs(u).max(axis=0)
        self._scale = np.where(size > 0, size, 1.0)

    def error(self, u: np.ndarray) -> float:
        """Largest error over outputs and components, relative to each component's largest value."""
        error = np.abs(u - self.u) / self._scale
        return float(error.max()) if np.isfinite(u).all() else float("inf")

    def gradient_error(self, gradient: np.ndarray) -> float:
        """Relative error of the gradient in the 2-norm."""
        difference = np.linalg.norm(gradient - self.gradient)
        return float(difference / np.linalg.norm(self.gradient))


def solve(problem: Problem, p: dict[str, Tensor], reltol: float) -> np.ndarray:
    """The solution at ``saveat`` by SciPy, with the right-hand side in torch."""
    shape = problem.u0.shape

    def torch_rhs(flat: Tensor) -> Tensor:
        return problem.torch_rhs(flat.view(shape), p, 0.0).reshape(-1)

    def f(t: float, y: np.ndarray) -> np.ndarray:
        return torch_rhs(torch.from_numpy(y)).numpy()

    options = {}
    if problem.stiff:
        jacobian = torch.func.jacfwd(torch_rhs)
        options["jac"] = lambda t, y: jacobian(torch.from_numpy(y)).numpy()
    sol = solve_ivp(
        f,
        problem.tspan,
        problem.u0.reshape(-1).numpy(),
        method="Radau" if problem.stiff else "DOP853",
        t_eval=problem.saveat.numpy(),
        rtol=reltol,
        # tighter than the relative tolerance, for components that are small before they grow
        atol=problem.abstol(reltol) * np.ones(shape).reshape(-1) * 1e-2,
        **options,
    )
    if not sol.success:
        raise RuntimeError(f"reference of {problem.name}: {sol.message}")
    return sol.y.T.reshape(-1, *shape)


def shifted(problem: Problem, direction: dict[str, Tensor], step: float) -> dict[str, Tensor]:
    return {key: value + step * direction[key] for key, value in problem.p.items()}


def derivative(problem: Problem, direction: dict[str, Tensor], step: float, reltol: float) -> float:
    """Derivative of the loss along ``direction``, by a five-point central difference."""
    value = {}
    for k in (-2, -1, 1, 2):
        u = torch.from_numpy(solve(problem, shifted(problem, direction, k * step), reltol))
        value[k] = float(problem.loss(u))
    return (value[-2] - 8 * value[-1] + 8 * value[1] - value[2]) / (12 * step)


def gradient_by_differences(problem: Problem) -> np.ndarray:
    parts = []
    for key, values in problem.p.items():
        for i in range(values.numel()):
            direction = {k: torch.zeros_like(v) for k, v in problem.p.items()}
            direction[key].view(-1)[i] = 1.0
            parts.append(derivative(problem, direction, 2e-2, 1e-11))
    return np.array(parts)


def gradient_by_backpropagation(problem: Problem) -> np.ndarray:
    p = {key: value.clone().requires_grad_() for key, value in problem.p.items()}
    u = odeint(
        lambda t, u: problem.torch_rhs(u, p, t),
        problem.u0,
        problem.saveat,
        rtol=1e-10,
        atol=1e-12,
        method="dopri8",
    )
    grads = torch.autograd.grad(problem.loss(u), list(p.values()))
    gradient = torch.cat([g.reshape(-1) for g in grads])

    generator = torch.Generator().manual_seed(11)
    direction = {
        key: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for key, value in problem.p.items()
    }
    flat = torch.cat([d.reshape(-1) for d in direction.values()])
    by_differences = derivative(problem, direction, 1e-3 / problem.n_parameters**0.5, 1e-12)
    by_gradient = float(gradient @ flat)
    if abs(by_differences - by_gradient) > 1e-6 * float(gradient.norm()):
        raise RuntimeError(
            f"reference gradient of {problem.name}: {by_gradient} along a direction, "
            f"but {by_differences} by central differences"
        )
    return gradient.numpy()


def reference(problem: Problem, folder: Path) -> Reference:
    """The reference of ``problem``, from ``folder`` where it has been computed before."""
    digest = hashlib.sha256()
    for tensor in (problem.u0, problem.saveat, problem.loss_weights, *problem.p.values()):
        digest.update(tensor.contiguous().numpy().tobytes())
    for source in ("problems.py", "reference.py"):
        digest.update((Path(__file__).parent / source).read_bytes())
    path = folder / f"reference-{problem.name}-{digest.hexdigest()[:12]}.npz"
    if path.exists():
        stored = np.load(path)
        return Reference(problem, stored["u"], stored["gradient"])
    u = solve(problem, problem.p, 1e-11 if problem.stiff else 1e-12)
    by = gradient_by_differences if problem.stiff else gradient_by_backpropagation
    gradient = by(problem)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, u=u, gradient=gradient)
    return Reference(problem, u, gradient)
