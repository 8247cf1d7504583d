"""The Hudson Bay record of hare and lynx pelts, shipped with the package."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor

from pysciml.errors import InputError

__all__ = ["Record", "hudson_bay"]


@dataclass(frozen=True)
class Record:
    """Yearly pelts of two species, the last years held out.

    Attributes
    ----------
    year : int64 tensor (m,)
    pelts : float64 tensor (m, 2)
        Thousands of pelts of hare and of lynx.
    training : int
        How many years, from the first, a fit may use.
    """

    year: Tensor
    pelts: Tensor
    training: int

    @property
    def t(self) -> Tensor:
        """Years since the first, float64 (m,)."""
        return (self.year - self.year[0]).to(torch.float64)

    @property
    def log(self) -> Tensor:
        """Logarithms of the pelts (m, 2)."""
        return self.pelts.log()


def hudson_bay(held_out: int = 5) -> Record:
    """Hare and lynx pelts, 1900-1920, after the Hudson's Bay Company (Odum 1953).

    The last ``held_out`` years are kept from the fit. Raises InputError where that leaves fewer
    than 8 years to fit.
    """
    file = resources.files("pysciml").joinpath("data").joinpath("hudson_bay.csv")
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    if not 0 <= held_out <= len(rows) - 8:
        raise InputError(
            f"held_out is {held_out}, but the record has {len(rows)} years and a fit needs 8 of "
            f"them; give a number from 0 to {len(rows) - 8}."
        )
    year = torch.tensor([int(row["year"]) for row in rows])
    pelts = [[float(row["hare"]), float(row["lynx"])] for row in rows]
    return Record(year, torch.tensor(pelts, dtype=torch.float64), len(rows) - held_out)
