"""Gradients by tensors of which one may be computed from another: ``a``, and ``b = a.exp()``.

Autograd follows a graph to its end: it gives the total derivative by ``a``, that through ``b``
included. A kernel takes both as inputs of their own, and wants each held while the other moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["partial_from_total"]


def partial_from_total(totals: Sequence[Tensor], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients by ``tensors`` with the others held, from autograd's. Keeps their graph."""
    if all(x.is_leaf for x in tensors):
        return totals
    partials = totals
    for _ in tensors:  # each round settles those one link further up the chain
        own = [g.to(x.dtype).reshape(x.shape) for g, x in zip(partials, tensors, strict=True)]
        through = torch.autograd.grad(tensors, tensors, own, retain_graph=True)
        partials = [
            total - (whole - part)
            for total, whole, part in zip(totals, through, partials, strict=True)
        ]
    return partials
