"""Tight reference solutions and gradients, by solvers that are not in the table at that setting.

Solutions: SciPy's DOP853, or Radau with torch's Jacobian where the problem is stiff. Gradients:
central differences of those solutions where parameters are few and the problem stiff, else
backpropagation through torchdiffeq's dopri8, checked in a random direction against central
differences. Cached on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.sparse import block_diag, csc_matrix
from torch import Tensor
from torchdiffeq import odeint

from benchmarks.problem import Problem

__all__ = ["Reference", "reference"]


class Reference:
    """Solution (len(saveat), *u0.shape) and gradient of the loss with respect to p, flat."""

    def __init__(self, problem: Problem, u: np.ndarray, gradient: np.ndarray) -> None:
        self.u = u
        self.gradient = gradient
        axes = (0, 1) if problem.batch else 0
        size = np.abs(u).max(axis=axes, keepdims=True)[0]
        floor = problem.scale.numpy() if isinstance(problem.scale, Tensor) else 0.0
        self._scale = np.maximum(size, floor)

    def error(self, u: np.ndarray) -> float:
        """Largest error over outputs and components, in units of each component's size.

        That is its largest value over time and batch, or the problem's ``scale`` if larger.
        """
        error = np.abs(u - self.u) / self._scale
        return float(error.max()) if np.isfinite(u).all() else float("inf")

    def gradient_error(self, gradient: np.ndarray) -> float:
        """Relative error of the gradient in the 2-norm."""
        difference = np.linalg.norm(gradient - self.gradient)
        return float(difference / np.linalg.norm(self.gradient))


def solve(problem: Problem, ps: Sequence[dict[str, Tensor]], reltol: float) -> np.ndarray:
    """Solutions (len(ps), len(saveat), *u0.shape) by SciPy, the right-hand side in torch.

    All parameters are solved for as one large system, on the same steps: so the solver's error
    is a smooth function of the parameters, and differences of the solutions are worth taking.
    """
    count, shape = len(ps), problem.u0.shape
    stacked = {key: torch.stack([p[key] for p in ps]) for key in problem.p}

    def one(flat: Tensor, p: dict[str, Tensor], t: float) -> Tensor:
        return problem.torch_rhs(flat.view(shape), p, t).reshape(-1)

    rhs = torch.func.vmap(one, (0, 0, None))
    jacobian = torch.func.vmap(torch.func.jacfwd(one), (0, 0, None))

    def states(y: np.ndarray) -> Tensor:
        return torch.from_numpy(y).view(count, -1)

    def f(t: float, y: np.ndarray) -> np.ndarray:
        return rhs(states(y), stacked, t).numpy().ravel()

    def jac(t: float, y: np.ndarray) -> csc_matrix:
        return block_diag(list(jacobian(states(y), stacked, t).numpy()), format="csc")

    sol = solve_ivp(
        f,
        problem.tspan,
        problem.u0.reshape(-1).repeat(count).numpy(),
        method="Radau" if problem.stiff else "DOP853",
        t_eval=problem.saveat.numpy(),
        rtol=reltol,
        atol=np.tile((problem.abstol(reltol) * np.ones(shape)).ravel(), count),
        **({"jac": jac} if problem.stiff else {}),
    )
    if not sol.success:
        raise RuntimeError(f"reference of {problem.name}: {sol.message}")
    return np.moveaxis(sol.y.reshape(count, *shape, -1), -1, 1)


def derivatives(
    problem: Problem, directions: Sequence[dict[str, Tensor]], step: float, reltol: float
) -> np.ndarray:
    """Derivatives of the loss along each direction, by five-point central differences."""
    shifted = [
        {key: value + k * step * direction[key] for key, value in problem.p.items()}
        for direction in directions
        for k in (-2, -1, 1, 2)
    ]
    us = torch.from_numpy(solve(problem, shifted, reltol))
    losses = np.array([float(problem.loss(u)) for u in us]).reshape(-1, 4)
    return losses @ np.array([1.0, -8.0, 8.0, -1.0]) / (12 * step)


def gradient_by_differences(problem: Problem) -> np.ndarray:
    directions = []
    for key, values in problem.p.items():
        for i in range(values.numel()):
            direction = {k: torch.zeros_like(v) for k, v in problem.p.items()}
            direction[key].view(-1)[i] = 1.0
            directions.append(direction)
    return derivatives(problem, directions, 1e-2, 1e-10)


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
    by_differences = derivatives(problem, [direction], 1e-4 / float(flat.norm()), 1e-12)[0]
    by_gradient = float(gradient @ flat)
    if abs(by_differences - by_gradient) > 1e-6 * float(gradient.norm() * flat.norm()):
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
    u = solve(problem, [problem.p], 1e-11 if problem.stiff else 1e-12)[0]
    by = gradient_by_differences if problem.stiff else gradient_by_backpropagation
    gradient = by(problem)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, u=u, gradient=gradient)
    return Reference(problem, u, gradient)
