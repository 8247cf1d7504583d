"""The algorithms of BoundaryValueDiffEqMIRK.jl by name (version 1.17), with their options."""

from __future__ import annotations

_OPTIONS = ("max_num_subintervals",)

BVP_ALGORITHMS: dict[str, tuple[str, ...]] = {f"MIRK{order}": _OPTIONS for order in range(2, 7)}
