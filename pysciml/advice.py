"""What to try after a solve that failed, by its return code and what was solved."""

from __future__ import annotations

import numpy as np
import torch

from pysciml.engines.base import FlatSolution, SolveOptions
from pysciml.flattened import Flattened

__all__ = ["ADVICE", "advice"]

ADVICE = {
    "MaxIters": "raise maxiters, loosen the tolerances, or use a stiff algorithm",
    "DtLessThanMin": "the solution may blow up or jump there; check the model, loosen the "
    "tolerances, or use a stiff algorithm",
    "ConvergenceFailure": "check the model near that time, tighten reltol, or set a smaller dtmax",
    "DtNaN": "the model gives inf or NaN at the start; check u0 and the model there",
    "Unstable": "the model left its domain (a log or root of a negative number, an overflow); "
    "check it near that time, tighten the tolerances, or set a smaller dtmax",
    "InitialFailure": "no consistent initial values were found; check u0, du0 and "
    "differential_vars",
}

_INDEX = "its index may be above 1: differentiate its constraints until it is"


def advice(flat: FlatSolution, setup: Flattened, options: SolveOptions, start: str = "") -> str:
    """What to try after ``flat``, which failed; ``start``: what is wrong with initial values."""
    if flat.retcode == "DtLessThanMin" and _below_rounding(flat, setup, options):
        return (
            f"abstol and reltol ask for more than {_precision(setup)} holds; raise one of them, "
            "e.g. reltol=1e-10"
        )
    if start:
        return start
    if flat.retcode == "DtLessThanMin" and options.dtmin is not None:
        force = ", or force_dtmin=True to go on with it" if setup.engine.name == "julia" else ""
        return f"the tolerances ask for steps below dtmin = {options.dtmin:g}; lower it{force}"
    if flat.retcode == "DtLessThanMin" and _algebraic(setup):
        unflagged = setup.prob.kind == "dae" and setup.prob.differential_vars is None
        perhaps = (
            "u0 and du0 may not satisfy the equation together: give ones that do, or "
            "differential_vars, with which they are computed; or "
        )
        return (
            f"{perhaps if unflagged else ''}{_INDEX}; or the solution may blow up or jump there: "
            "check the model, or loosen the tolerances"
        )
    if flat.retcode == "MaxIters" and _algebraic(setup):
        return f"raise maxiters or loosen the tolerances; or {_INDEX}"
    return ADVICE.get(flat.retcode, "check the model near that time")


def _precision(setup: Flattened) -> str:
    single = setup.state.dtype is torch.float32 and setup.engine.name == "julia"
    return "float32" if single else "float64"


def _below_rounding(flat: FlatSolution, setup: Flattened, options: SolveOptions) -> bool:
    """Whether the tolerated error of the last state's largest entry is not above its rounding."""
    u = torch.as_tensor(flat.u)[-1:].abs()
    largest = float(u.max()) if u.numel() else 0.0
    allowed = float(np.max(options.abstol)) + options.reltol * largest
    return bool(allowed < 4 * np.finfo(_precision(setup)).eps * largest)


def _algebraic(setup: Flattened) -> bool:
    """Whether there are equations without a derivative, or may be."""
    if setup.prob.kind == "dae":
        return True
    mass = getattr(setup.prob, "mass_matrix", None)
    if mass is None:
        return False
    return int(torch.linalg.matrix_rank(torch.as_tensor(mass).double())) < len(mass)
