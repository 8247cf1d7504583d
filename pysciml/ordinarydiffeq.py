"""The algorithms of OrdinaryDiffEq.jl by name: a plain table.

``ALGORITHMS`` maps a name to (Julia package, options of its own); ``COMMON_OPTIONS`` a package
to the options that all of its algorithms take; ``COMPOSITES`` the algorithms made of others, to
(package, options, number of parts).
"""

from __future__ import annotations

ALGORITHMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Tsit5": ("OrdinaryDiffEqTsit5", ()),
    "Vern7": ("OrdinaryDiffEqVerner", ("lazy",)),
    "Vern9": ("OrdinaryDiffEqVerner", ("lazy",)),
    "Rosenbrock23": ("OrdinaryDiffEqRosenbrock", ()),
    "Rodas5P": ("OrdinaryDiffEqRosenbrock", ()),
    "FBDF": ("OrdinaryDiffEqBDF", ()),
}

COMMON_OPTIONS: dict[str, tuple[str, ...]] = {
    "OrdinaryDiffEqRosenbrock": ("linsolve", "precs"),
    "OrdinaryDiffEqBDF": ("linsolve", "precs", "nlsolve", "max_order"),
}

COMPOSITES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "AutoTsit5": ("OrdinaryDiffEqDefault", (), 1),
}
