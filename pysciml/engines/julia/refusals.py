"""What Julia refuses in its own words, said in ours."""

from __future__ import annotations

import re

from pysciml.algorithms import Algorithm
from pysciml.engines.julia.startup import how_to_add
from pysciml.errors import EngineError, InputError

__all__ = ["refused"]

#: What stands in Julia's message, and what follows the algorithm's name in ours.
_SAID = {
    "Fixed timestep methods require a choice of dt": (
        "takes steps of one size here, which is not given; give dt= (or tstops), or use an "
        "algorithm that chooses its own steps, e.g. pysciml.Tsit5()"
    ),
    "not able to use mass matrices": (
        "does not take a mass_matrix; use an algorithm for it, e.g. pysciml.Rodas5P() or "
        "pysciml.FBDF()"
    ),
    "type Nothing has no field `nzval`": (
        "was given a linear solver for sparse Jacobians, but this problem's is dense (sparse ones "
        "are kept from 64 states up, where most entries are zero); use pysciml.LUFactorization()"
    ),
    "only works with diagonal mass matrices": (
        "takes diagonal mass matrices only; use e.g. pysciml.Rodas5P()"
    ),
}


def refused(error: EngineError, alg: Algorithm | None) -> InputError | EngineError | None:
    """The error that a solve is to raise in place of one that Julia gave, if any."""
    lacking = re.search(r"the Julia package (\w+) is not installed", str(error))
    if lacking:
        name = lacking[1]
        return EngineError(f"The Julia package {name} is not installed; {how_to_add((name,))}.")
    for words, ours in _SAID.items():
        if words in str(error):
            if alg is not None and alg.package == "DelayDiffEq":
                alg = alg.parts[0]
            name = "The default algorithm" if alg is None else alg.name
            return InputError(f"{name} {ours}. ({error})")
    return None
