"""The conditions of boundary value problems as their user writes them: called and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.boundary import BVProblem
from pysciml.errors import InputError
from pysciml.flatten import StateSpec
from pysciml.functions import mistakes_named

__all__ = ["conditions_of", "flat_conditions", "require_conditions"]


def conditions_of(prob: BVProblem, name: str, bc: Any, takes: tuple[str, ...], *given: Any) -> Any:
    """What bc returns. Raises InputError for well-known mistakes in how it is written."""
    with mistakes_named(bc, name, takes, prob.state_spec, prob.p is None):
        try:
            return bc(*given)
        except TypeError as error:
            if f"'{type(given[0]).__name__}' object is not subscriptable" in str(error):
                raise InputError(
                    f"{name} indexes u, which is the solution; call it for the state at a "
                    "time, e.g. u(t[0])[0] and u(t[-1])[0]."
                ) from error
            if "'Tensor' object is not callable" in str(error):
                raise InputError(
                    f"{name} calls a tensor ({error}); u is the state at its end there, e.g. u[0]."
                ) from error
            raise
        except RuntimeError as error:
            if "numpy() on Tensor that requires grad" in str(error):
                raise InputError(
                    f"{name} takes the state to NumPy, through which no derivative comes; "
                    "write it in torch."
                ) from error
            raise


def flat_conditions(given: Any, spec: StateSpec) -> Tensor:
    """What bc returned as a vector. Raises InputError for anything but n numbers in tensors."""
    leaves = pytree.tree_leaves(given)
    if not all(isinstance(x, Tensor) for x in leaves):
        kind = next(type(x).__name__ for x in leaves if not isinstance(x, Tensor))
        raise InputError(f"bc returned a {kind}; return tensors, e.g. torch.stack([...]).")
    other = next((x for x in leaves if x.dtype != spec.dtype), None)
    if other is not None:
        raise InputError(
            f"bc returned {str(other.dtype)[6:]}, but u0 is {str(spec.dtype)[6:]}; compute the "
            "conditions from u without a conversion, or convert u0."
        )
    count = sum(x.numel() for x in leaves)
    if count != spec.size:
        raise InputError(
            f"bc returned {count} numbers, but the state has {spec.size} entries; give one "
            "condition for each entry."
        )
    return torch.cat([x.reshape(-1) for x in leaves]).to(spec.device, spec.dtype)


def require_conditions(residual: Tensor, states: Sequence[Tensor], where: str) -> None:
    """Raise InputError for conditions at the first guess that no search can meet.

    ``states``: what they were computed from; ``where``: how messages call it.
    """
    slopes: Sequence[Tensor | None] = [None]
    if residual.requires_grad:
        slopes = torch.autograd.grad(
            residual.sum(), list(states), retain_graph=True, allow_unused=True
        )
    if all(slope is None for slope in slopes):
        raise InputError(
            "bc returned what does not depend on u; compute it from u in torch, without "
            "detach(), float(), .item() or new tensors of its values."
        )
    if not bool(torch.isfinite(residual).all()):
        bad = residual[~torch.isfinite(residual)][0].item()
        raise InputError(f"bc returned {bad} {where}; mend it, or begin from another u0.")
