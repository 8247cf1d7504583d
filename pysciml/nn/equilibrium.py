"""Deep equilibrium models: a layer whose output is a fixed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysciml.callbacks import DiscreteCallback, terminate
from pysciml.engines.base import Stats
from pysciml.errors import InputError, SolveError
from pysciml.nn.field import check_field, require_tensor
from pysciml.nn.record import Recorded, last_of
from pysciml.nn.regularise import JacobianFrobenius, as_regularisers
from pysciml.options import positive, require_count
from pysciml.problems import ODEProblem
from pysciml.signatures import require_function
from pysciml.solve import solve

__all__ = ["DeepEquilibrium"]


class DeepEquilibrium(Recorded):
    """``z* = f(z*, x)``, with gradients by the implicit function theorem: memory of one layer.

    Parameters
    ----------
    f : nn.Module or callable
        ``f(z, x)``, giving the shape of ``z``.
    size : int, optional
        Entries of ``z`` on the last axis, which starts at zero; like ``x`` where None.
    solver : "anderson" or "ode"
        Anderson's accelerated iteration, or the steady state of ``dz/dt = f(z, x) - z`` by
        :func:`pysciml.solve`, which also finds fixed points that the iteration runs away from.
    tol : float
        Of ``|f(z, x) - z| / |z|``, forward and backward.
    max_iters, memory : int
        Most iterations, and how many of them Anderson's method combines.
    alg, engine : of solver="ode"
    regularise : JacobianFrobenius, optional
        In training: ``weight * mean over the batch of |e^T df/dz|^2`` at the fixed point, which is
        held, e normal; where it is small iterations are few. The others are of paths in time, and a
        fixed point has none. See :attr:`penalty`.

    Attributes
    ----------
    iterations : int
        Evaluations of ``f`` in the last forward pass.

    Raises
    ------
    SolveError
        Where no fixed point is found.

    Sources: Bai, Kolter, Koltun, "Deep equilibrium models", NeurIPS 2019;
    "Stabilizing equilibrium models by Jacobian regularization", ICML 2021; Walker and Ni, "Anderson
    acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49, 2011.
    """

    def __init__(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        size: int | None = None,
        *,
        solver: str = "anderson",
        tol: float = 1e-6,
        max_iters: int = 200,
        memory: int = 6,
        alg: Any = None,
        engine: str = "auto",
        regularise: Any = None,
    ) -> None:
        super().__init__()
        self.regularise = as_regularisers(regularise)
        for r in self.regularise:
            if not isinstance(r, JacobianFrobenius):
                raise InputError(
                    f"DeepEquilibrium does not take {type(r).__name__}: it is of a path in time, "
                    "and a fixed point has none; give JacobianFrobenius, or leave it out."
                )
        if solver not in ("anderson", "ode"):
            raise InputError(f"solver is {solver!r}; give 'anderson' or 'ode'.")
        positive("tol", tol)
        if tol >= 1:
            raise InputError(f"tol is {tol!r}; give a number between 0 and 1.")
        require_count("max_iters", max_iters)
        require_count("memory", memory)
        if size is not None:
            require_count("size", size)
        require_function(f, "f", ("z", "x"))
        self.f, self.size, self.solver, self.tol = f, size, solver, tol
        self.max_iters, self.memory, self.alg, self.engine = max_iters, memory, alg, engine
        self._flow, self._settled = _Relaxation(f), _Settled(f, tol)

    @property
    def iterations(self) -> int:
        stats = last_of(self).stats
        return 0 if stats is None else stats.nf or 0

    def forward(self, x: Tensor, z0: Tensor | None = None) -> Tensor:
        """The fixed point for inputs ``x`` (..., features), from ``z0`` where given."""
        check_field(self.f)
        require_tensor(x, "x", "(..., features)", 0 if self.size is None else 1)
        if z0 is None:
            z0 = x.new_zeros(x.shape if self.size is None else (*x.shape[:-1], self.size))
        else:
            require_tensor(z0, "z0", "the fixed point's", 0)
        with torch.no_grad():
            value = self._first(z0, x)
            if not isinstance(value, Tensor) or value.shape != z0.shape:
                given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"f gave {given} for z of shape {tuple(z0.shape)}; it must give that shape "
                    "(see size)."
                )
            if not bool(torch.isfinite(value).all()):
                raise InputError(
                    "f gave inf or NaN at the start of the iteration; check x, z0 and the weights."
                )
            z = self._steady(z0, x) if self.solver == "ode" else self._forward(z0, x)
        last_of(self).penalty = self._jacobian(z.detach(), x) if self.training else None
        out = self.f(z, x)
        if not (torch.is_grad_enabled() and out.requires_grad):
            return out
        at = z.detach().requires_grad_()
        value = self.f(at, x)

        def backward(grad: Tensor | None) -> Tensor | None:
            if grad is None:
                return None

            def step(g: Tensor) -> Tensor:
                (pulled,) = torch.autograd.grad(value, at, g, retain_graph=True)
                return pulled + grad

            return self._iterate(step, grad, "The backward iteration")

        out.register_hook(backward)
        return out

    def _jacobian(self, z: Tensor, x: Tensor) -> Tensor | None:
        """The penalty at a fixed point, which is held, 0-d."""
        if not self.regularise:
            return None
        (r,) = self.regularise
        assert isinstance(r, JacobianFrobenius)
        pull = torch.func.vjp(lambda z: self.f(z, x), z)[1]
        rows = pull(torch.randn_like(z))[0].reshape(len(z) if z.ndim > 1 else 1, -1)
        return r.weight * rows.square().sum(1).mean()

    def _first(self, z0: Tensor, x: Tensor) -> Any:
        """``f`` once; InputError where it cannot be called with these."""
        try:
            return self.f(z0, x)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            raise InputError(
                f"f fails on z of shape {tuple(z0.shape)} and x of shape {tuple(x.shape)} "
                f"({str(error).splitlines()[0]}); give a z0 or size that fits x."
            ) from error

    def _forward(self, z0: Tensor, x: Tensor) -> Tensor:
        try:
            return self._iterate(lambda z: self.f(z, x), z0, "The forward iteration")
        except SolveError:
            one, other = self.f(z0, x), self.f(z0, x)
            if float((one - other).norm()) <= self.tol * float(one.norm()):
                raise
        raise InputError(
            "f gives another value each time at the same z and x, as dropout in training mode "
            "does, so it has no fixed point: draw what is random before the call, or leave it out."
        )

    def _iterate(self, step: Callable[[Tensor], Tensor], z: Tensor, name: str) -> Tensor:
        """Anderson's iteration with the last ``memory`` residuals."""
        count = 0
        points: list[Tensor] = []
        residuals: list[Tensor] = []
        while count < self.max_iters:
            value = step(z)
            count += 1
            residual = value - z
            size = float(residual.norm())
            if size <= self.tol * (1e-8 + float(value.norm())):
                self._note(count)
                return value
            if size != size:
                break
            points, residuals = (
                [*points, value][-self.memory :],
                [*residuals, residual][-self.memory :],
            )
            z = _mixed(points, residuals)
        raise SolveError(
            f"{name} did not reach tol = {self.tol:g} in {count} evaluations; raise max_iters, use "
            "solver='ode', or make f contract (smaller weights, spectral normalisation).",
            retcode="MaxIters", t=float(count), solution=None,
        )  # fmt: skip

    def _steady(self, z0: Tensor, x: Tensor) -> Tensor:
        flow, settled = self._flow, self._settled
        flow.f, settled.f = self.f, self.f
        sol = solve(
            ODEProblem(flow, z0, (0.0, 1e4), x.detach()), self.alg, engine=self.engine,
            callback=DiscreteCallback(settled, terminate), abstol=0.1 * self.tol,
            reltol=self.tol, saveat=[1e4],
        )  # fmt: skip
        last_of(self).stats = sol.stats
        return sol.u[-1]

    def _note(self, count: int) -> None:
        last_of(self).stats = Stats(nf=count)


class _Relaxation:
    """``dz/dt = f(z, x) - z``."""

    def __init__(self, f: Any) -> None:
        self.f = f

    def __call__(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.f(z, x) - z


class _Settled:
    """Whether that is small."""

    def __init__(self, f: Any, tol: float) -> None:
        self.f, self.tol = f, tol

    def __call__(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        value = self.f(z, x)
        return (value - z).square().sum() < self.tol**2 * value.square().sum()


def _mixed(points: list[Tensor], residuals: list[Tensor]) -> Tensor:
    """The combination of past values whose residuals together are smallest, weights of sum one."""
    if len(points) == 1:
        return points[0]
    last = residuals[-1].reshape(-1)
    steps = torch.stack([last - r.reshape(-1) for r in residuals[:-1]], dim=1)
    gram = steps.T @ steps
    ridge = 1e-10 * gram.diagonal().max().clamp(min=1e-30)
    weights = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), steps.T @ last
    )
    z = points[-1]
    for w, p in zip(weights, points[:-1], strict=True):
        z = z - w * (points[-1] - p)
    return z
