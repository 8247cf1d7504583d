"""What of torch's function transforms a solve can be inside of: none."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from pysciml.errors import InputError

__all__ = ["refuse_transforms"]


def refuse_transforms(*trees: Any) -> None:
    """Raise InputError inside ``torch.func``'s transforms, and for tensors of forward-mode AD.

    A solve would see the values only: its derivative would be lost without a word.
    """
    if torch._C._functorch.maybe_current_level() is not None:
        raise InputError(
            "A problem was given to pysciml inside a transform of torch.func (vmap, grad, jacrev, "
            "jvp, ...), but a solve cannot be transformed: for many solutions at once give u0 a "
            "batch dimension, and for gradients use backward() or torch.autograd.grad."
        )
    if forward_ad._current_level >= 0 and any(
        isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None
        for x in pytree.tree_leaves(trees)
    ):
        raise InputError(
            "A tensor with a forward-mode tangent (torch.autograd.forward_ad) was given to "
            "pysciml, but a solve has gradients in reverse mode only: use torch.autograd.grad "
            "(with sensealg=pysciml.ForwardSensitivity() for few parameters)."
        )
