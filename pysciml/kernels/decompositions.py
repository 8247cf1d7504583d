"""Decompositions used while tracing: compound ATen operations written with simpler ones.

They are applied before differentiation, so that the derivative of a convolution or a
normalisation consists of primitive operations too. Each is written so that its derivative stays
finite where the function is: no overflowing branch of a ``where`` reaches autodiff.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

from pysciml.kernels import (  # noqa: F401
    decompose_factor,
    decompose_matrix,
    decompose_nn,
    decompose_space,
)
from pysciml.kernels.decomposing import OWN
from pysciml.kernels.lowering import RULES


@functools.cache
def table() -> dict[Any, Callable[..., Any]]:
    """The decompositions for ``make_fx``: torch's core table less what is lowered as it stands."""
    aten = torch.ops.aten
    extra = get_decompositions(
        [
            aten.upsample_linear1d,
            aten.upsample_bilinear2d,
            aten.upsample_trilinear3d,
            aten.upsample_bicubic2d,
            aten.grid_sampler_2d,
        ]
    )
    chosen = {}
    for op, fn in {**core_aten_decompositions(), **extra}.items():
        name = str(op)
        if not (name.startswith("aten.") and name[5:] in RULES):
            chosen[op] = fn
    return {**chosen, **OWN, aten._efficientzerotensor.default: _zeros}


def _zeros(size: Sequence[int], **options: Any) -> Tensor:
    """Zeros with storage.

    Forward mode makes some without, and torch 2.13 crashes where a trace differentiates through
    them backwards under vmap.
    """
    return torch.zeros(size, **{k: v for k, v in options.items() if v is not None})
