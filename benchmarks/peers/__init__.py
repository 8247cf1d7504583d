"""The solvers of the table, one file each; ``ALL`` lists what each offers for a problem."""

from __future__ import annotations

from benchmarks.peers import diffrax, julia_by_hand, pysciml, scipy, torchdiffeq, torchode
from benchmarks.peers.base import Method, Offer

__all__ = ["ALL", "Method", "Offer"]

ALL = (
    pysciml.offer,
    julia_by_hand.offer,
    torchdiffeq.offer,
    torchode.offer,
    scipy.offer,
    diffrax.offer,
)
