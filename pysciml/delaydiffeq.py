"""The algorithms of DelayDiffEq.jl by name (DelayDiffEq 6.0): the method of steps around another.

``DDE_ALGORITHMS`` maps a name to its options and the number of algorithms it is made of.
"""

from __future__ import annotations

DDE_ALGORITHMS: dict[str, tuple[tuple[str, ...], int]] = {
    "MethodOfSteps": (("constrained", "fpsolve"), 1),
}
