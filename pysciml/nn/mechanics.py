"""Networks that learn an energy and get their equations of motion from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysciml.errors import InputError
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import Field, require_tensor, takes_time
from pysciml.options import positive, require_count

__all__ = ["HamiltonianNN", "LagrangianNN", "StableNeuralFlow"]


def _energies(function: Callable[..., Any], u: Tensor, name: str) -> Tensor:
    """The energies of samples ``u`` (..., d), as (...)."""
    value = function(u)
    require_tensor(value, f"What {name} gave", f"{tuple(u.shape[:-1])}", 0)
    if value.shape == (*u.shape[:-1], 1):
        value = value.squeeze(-1)
    if value.shape != u.shape[:-1]:
        raise InputError(
            f"{name} gave shape {tuple(value.shape)} for states of shape {tuple(u.shape)}; it must "
            f"give one number a sample, {tuple(u.shape[:-1])} or {(*u.shape[:-1], 1)}."
        )
    return value


class _OfEnergy(ContinuousModule):
    """Base: ``function`` gives one number for each state on the last axis."""

    def __init__(
        self, function: Callable[..., Any], tspan: Any, alg: Any, name: str, **options: Any
    ) -> None:
        if takes_time(function):
            raise InputError(f"{name} takes a time; write it as a function of the state alone.")
        super().__init__(function, tspan, alg, **options)

    def forward(self, u0: Tensor, saveat: Any = None) -> Tensor:
        """From the state (..., d) at ``t0`` to that at ``t1``, or at ``saveat``, (m, ..., d)."""
        self._check_state(u0)
        given = self._outputs(saveat)
        return self._states(u0, given)

    def field(self, u: Tensor) -> Tensor:
        """The time derivative at states ``u`` (..., d): to be fitted to measured derivatives."""
        self._check_state(u)
        self._field.vector_field = self.vector_field
        return self._field(u, None, u.new_zeros(()))

    def _check_state(self, u: Tensor) -> None:
        require_tensor(u, "u0", "(..., 2 n)")
        if u.shape[-1] % 2:
            raise InputError(
                f"u0 has shape {tuple(u.shape)}; its last axis is [q, p], of even length."
            )


class _Hamiltonian(Field):
    def __call__(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        def total(x: Tensor) -> Tensor:
            return _energies(self.vector_field, x, "hamiltonian").sum()

        h_q, h_p = torch.func.grad(total)(u).chunk(2, dim=-1)
        return torch.cat([h_p, -h_q], dim=-1)


class HamiltonianNN(_OfEnergy):
    """``q' = dH/dp, p' = -dH/dq`` with ``H`` a network: its energy is kept, to the tolerance.

    Parameters
    ----------
    hamiltonian : nn.Module or callable
        ``H(u)`` of ``u = [q, p]``, (..., 2 n), to (...) or (..., 1); smooth (tanh, softplus).

    Other parameters as :class:`ContinuousModule`. Source: Greydanus, Dzamba, Yosinski,
    "Hamiltonian neural networks", NeurIPS 2019.
    """

    def __init__(
        self,
        hamiltonian: Callable[..., Any],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(hamiltonian, tspan, alg, "hamiltonian", **options)

    def _make_field(self, timed: bool) -> Field:
        return _Hamiltonian(self.vector_field, timed)

    def energy(self, u: Tensor) -> Tensor:
        """H at states (..., 2 n), (...)."""
        return _energies(self.vector_field, u, "hamiltonian")


class _Lagrangian(Field):
    def __call__(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        n = u.shape[-1] // 2
        rows = u.reshape(-1, 2 * n)
        acceleration = torch.vmap(self._one)(rows)
        return torch.cat([rows[:, n:], acceleration], dim=1).reshape(u.shape)

    def _one(self, row: Tensor) -> Tensor:
        """Euler and Lagrange: ``L_vv a + L_vq v = L_q``."""
        n = len(row) // 2

        def gradient(x: Tensor) -> Tensor:
            def value(y: Tensor) -> Tensor:
                return _energies(self.vector_field, y[None], "lagrangian")[0]

            return torch.func.grad(value)(x)

        hessian = torch.func.jacfwd(gradient)(row)
        force = gradient(row)[:n] - hessian[n:, :n] @ row[n:]
        return torch.linalg.solve(hessian[n:, n:], force)


class LagrangianNN(_OfEnergy):
    """Motion by the Lagrangian ``L(q, v)``, a network; states are ``[q, v]`` on the last axis.

    Parameters
    ----------
    lagrangian : nn.Module or callable
        ``L(u)`` of ``u = [q, v]``, (..., 2 n), to (...) or (..., 1); twice differentiable, with a
        regular second derivative in ``v`` (softplus or tanh, not relu).

    Other parameters as :class:`ContinuousModule`. Source: Cranmer et al., "Lagrangian neural
    networks", ICLR 2020 workshop.
    """

    def __init__(
        self,
        lagrangian: Callable[..., Any],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(lagrangian, tspan, alg, "lagrangian", **options)

    def _make_field(self, timed: bool) -> Field:
        return _Lagrangian(self.vector_field, timed)

    def energy(self, u: Tensor) -> Tensor:
        """``v . dL/dv - L`` at states (..., 2 n), (...): constant along solutions."""
        with torch.enable_grad():
            x = u if u.requires_grad else u.detach().requires_grad_()
            value = _energies(self.vector_field, x, "lagrangian")
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=u.requires_grad)
        n = u.shape[-1] // 2
        out = (u[..., n:] * gradient[..., n:]).sum(-1) - value
        return out if u.requires_grad else out.detach()


class _EnergyFlow(Field):
    def __init__(self, energy: Callable[..., Any], skew: Tensor | None, friction: float) -> None:
        super().__init__(energy, False)
        self.skew, self.friction = skew, friction

    def __call__(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        def total(x: Tensor) -> Tensor:
            return _energies(self.vector_field, x, "energy").sum()

        gradient = torch.func.grad(total)(u)
        out = -self.friction * gradient
        if self.skew is not None:
            out = out + gradient @ (self.skew - self.skew.T)
        return out


class StableNeuralFlow(_OfEnergy):
    """``du/dt = (S - friction I) grad E(u)``: a flow that never climbs its learned energy ``E``.

    ``dE/dt = -friction |grad E|^2 <= 0`` whatever the network, so with ``E`` bounded below (a
    softplus, a sum of squares) solutions settle and perturbations do not grow without bound.

    Parameters
    ----------
    energy : nn.Module or callable
        ``E(u)`` of (..., d), to (...) or (..., 1).
    size : int, optional
        ``d``; with it the skew matrix ``S`` is a parameter, which lets the flow turn. None: S = 0.
    friction : float

    Other parameters as :class:`ContinuousModule`. Source: Massaroli et al., "Stable neural
    flows", 2020 (port-Hamiltonian form).
    """

    def __init__(
        self,
        energy: Callable[..., Any],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        *,
        size: int | None = None,
        friction: float = 1.0,
        **options: Any,
    ) -> None:
        positive("friction", friction, zero=True)
        if size is not None:
            require_count("size", size)
        super().__init__(energy, tspan, alg, "energy", **options)
        self.friction = float(friction)
        self.skew = None if size is None else torch.nn.Parameter(0.1 * torch.randn(size, size))
        self._field = _EnergyFlow(self.vector_field, self.skew, self.friction)

    def _check_state(self, u: Tensor) -> None:
        require_tensor(u, "u0", "(..., d)")
        if self.skew is not None and u.shape[-1] != len(self.skew):
            raise InputError(
                f"u0 has shape {tuple(u.shape)}, but size is {len(self.skew)}; its last axis must "
                "have that length."
            )
        assert isinstance(self._field, _EnergyFlow)
        self._field.skew = self.skew  # it may have been replaced, e.g. by loading or .to()

    def energy(self, u: Tensor) -> Tensor:
        """E at states (..., d), (...)."""
        return _energies(self.vector_field, u, "energy")
