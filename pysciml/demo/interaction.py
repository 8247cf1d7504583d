"""What the network learned, beside the product term it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pysciml.demo.hare_lynx import Demo

__all__ = ["Comparison", "PowerLaw", "compare", "near_data", "orbit", "power_law"]


@dataclass(frozen=True)
class PowerLaw:
    """The power law ``k x^hare y^lynx`` nearest to the learned interaction.

    ``unexplained`` is the part of the variance of ``log N`` that it leaves, ``by_product`` the part
    that the product, with exponents 1 and 1 and a factor of its own, leaves.
    """

    hare: float
    lynx: float
    unexplained: float
    by_product: float


@dataclass(frozen=True)
class Comparison:
    """Learned and product interaction on a grid along the data's range.

    Attributes
    ----------
    hare, lynx : tensors (n,), (m,)
        Thousands of pelts, in geometric progression from the least to the most of the training
        years.
    learned, product : tensors (m, n)
        ``N(x, y)`` of the universal equation and ``b x y`` of the baseline, thousands a year.
    near : bool tensor (m, n)
        Where the training years have been; elsewhere the network extrapolates.
    """

    hare: Tensor
    lynx: Tensor
    learned: Tensor
    product: Tensor
    near: Tensor


def compare(demo: Demo, columns: int = 5, rows: int = 5) -> Comparison:
    """Both interactions on a grid of ``rows`` lynx and ``columns`` hare populations."""
    known = demo.record.log[: demo.record.training]
    low, high = known.amin(0), known.amax(0)
    hare = torch.linspace(float(low[0]), float(high[0]), columns, dtype=known.dtype)
    lynx = torch.linspace(float(low[1]), float(high[1]), rows, dtype=known.dtype)
    y, x = torch.meshgrid(lynx, hare, indexing="ij")
    v = torch.stack([x, y], -1)
    with torch.no_grad():
        learned = demo.ude.model.interaction(v)
        product = demo.baseline.model.interaction(v)
    return Comparison(hare.exp(), lynx.exp(), learned, product, near_data(demo, v))


def orbit(demo: Demo, points: int = 500) -> Tensor:
    """Logarithms of the universal equation's solution over the training years, (points, 2)."""
    end = float(demo.record.t[demo.record.training - 1])
    with torch.no_grad():
        return demo.ude.solution(torch.linspace(0.0, end, points, dtype=torch.float64))


def near_data(demo: Demo, v: Tensor, within: float = 0.5) -> Tensor:
    """Whether states ``v`` (..., 2) lie within half a standard deviation of the fitted orbit.

    The orbit is the universal equation's over the training years, distances are of logarithms.
    """
    scale = demo.record.log[: demo.record.training].std(0)
    gaps = torch.cdist((v / scale).reshape(-1, 2), orbit(demo) / scale)
    return (gaps.amin(1) <= within).reshape(v.shape[:-1])


def power_law(demo: Demo) -> PowerLaw:
    """Fit a power law to the learned interaction along the fitted orbit of the training years."""
    v = orbit(demo)
    with torch.no_grad():
        n = demo.ude.model.interaction(v).log()
    design = torch.cat([v, torch.ones_like(v[:, :1])], 1)
    fitted = torch.linalg.lstsq(design, n[:, None]).solution[:, 0]
    variance = n.var(correction=0)
    left = (n - design @ fitted).var(correction=0)
    product = (n - v.sum(1)).var(correction=0)
    return PowerLaw(
        float(fitted[0]), float(fitted[1]), float(left / variance), float(product / variance)
    )
