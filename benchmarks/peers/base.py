"""What a peer offers the harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.problem import Problem

__all__ = ["Method", "Offer", "flat", "trainable"]


@dataclass(frozen=True)
class Method:
    """One solver, bound to a problem.

    Attributes
    ----------
    peer, name : who, and which algorithm and way of differentiating
    forward : from a relative tolerance to a function that solves and returns u at ``saveat``
    gradient : from a relative tolerance to a function that solves, differentiates the loss with
        respect to ``p`` and returns that, flat; None where the peer has no gradients
    """

    peer: str
    name: str
    forward: Callable[[float], Callable[[], np.ndarray]] | None
    gradient: Callable[[float], Callable[[], np.ndarray]] | None = None

    @property
    def label(self) -> str:
        return f"{self.peer} {self.name}"


#: From a problem to the methods of a peer that fit it: an empty list where the peer is not
#: installed or has nothing for the problem.
Offer = Callable[[Problem], list[Method]]


def trainable(problem: Problem) -> dict[str, Tensor]:
    """A copy of the parameters that requires gradients."""
    return {key: value.clone().requires_grad_() for key, value in problem.p.items()}


def flat(problem: Problem, u: Tensor, p: dict[str, Tensor]) -> np.ndarray:
    """Gradient of the loss of ``u`` with respect to ``p``, by torch's autograd, as one vector."""
    grads = torch.autograd.grad(problem.loss(u), list(p.values()))
    return torch.cat([g.reshape(-1) for g in grads]).numpy()
