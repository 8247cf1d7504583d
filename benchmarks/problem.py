"""What a benchmark problem is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    """An initial value problem that every peer can be given.

    Attributes
    ----------
    rhs : function (u, p, t, xp) to du
        ``xp`` is the array module, torch or jax.numpy: one text serves all peers. It works on
        the last axes of ``u``, so that a batch axis may stand before them.
    u0 : float64 tensor
    p : dict of float64 tensors, what gradients are asked for
    tspan, saveat : span and output times (the first is t0, the last t1)
    stiff : explicit methods are not tried
    batch : first axis of ``u`` is a batch of independent systems
    scale : per component, the size below which it does not matter: absolute tolerances are
        relative ones times this, and errors are measured in it where a component stays smaller
    loss_weights : shape (len(saveat), *u0.shape); the loss is ``sum(loss_weights * u)``
    equal_error, equal_grad_error : where times are compared
    """

    name: str
    title: str
    rhs: Callable[[Any, dict[str, Any], Any, Any], Any]
    u0: Tensor
    p: dict[str, Tensor]
    tspan: tuple[float, float]
    saveat: Tensor
    stiff: bool
    batch: bool = False
    scale: Tensor | float = 1.0
    equal_error: float = 1e-5
    equal_grad_error: float = 1e-4
    loss_weights: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        shape = (len(self.saveat), *self.u0.shape)
        weights = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
        object.__setattr__(self, "loss_weights", weights / (weights.numel() * self.scale))

    def torch_rhs(self, u: Tensor, p: dict[str, Tensor], t: Any) -> Tensor:
        return self.rhs(u, p, t, torch)

    def loss(self, u: Tensor) -> Tensor:
        return (self.loss_weights * u).sum()

    def abstol(self, reltol: float) -> float | np.ndarray:
        """The absolute tolerance that goes with ``reltol``: one number where ``scale`` is."""
        if isinstance(self.scale, Tensor):
            return reltol * self.scale.numpy()
        return reltol * self.scale

    @property
    def n_parameters(self) -> int:
        return sum(value.numel() for value in self.p.values())
