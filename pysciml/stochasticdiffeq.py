"""The algorithms of StochasticDiffEq.jl by name: a plain table (StochasticDiffEq 7.1).

``SDE_ALGORITHMS`` maps a name to the options of its own; the sets say what an algorithm takes.
"""

from __future__ import annotations

from typing import Any

_IMPLICIT = (
    "autodiff", "concrete_jac", "linsolve", "nlsolve", "extrapolant", "theta", "symplectic",
    "new_jac_conv_bound",
)  # fmt: skip

SDE_ALGORITHMS: dict[str, tuple[str, ...]] = {
    # of low order
    "EM": ("split",),
    "EulerHeun": (),
    "LambaEM": ("split",),
    "LambaEulerHeun": (),
    "RKMil": ("interpretation",),
    "RKMilCommute": ("interpretation",),
    "SimplifiedEM": (),
    "WangLi3SMil_A": (),
    # of high order
    "SOSRA": (),
    "SOSRA2": (),
    "SOSRI": (),
    "SOSRI2": (),
    "SRA1": (),
    "SRA2": (),
    "SRA3": (),
    "SRIW1": (),
    "SRIW2": (),
    # implicit
    "ISSEM": _IMPLICIT,
    "ISSEulerHeun": _IMPLICIT,
    "ImplicitEM": _IMPLICIT,
    "ImplicitEulerHeun": _IMPLICIT,
    "ImplicitRKMil": (*_IMPLICIT, "interpretation"),
    "SKenCarp": (
        "autodiff", "concrete_jac", "linsolve", "nlsolve", "extrapolant", "smooth_est",
        "new_jac_conv_bound", "ode_error_est",
    ),
    # weak
    "DRI1": (),
    "RI1": (),
}  # fmt: skip

#: Of random equations.
RODE_ALGORITHMS: tuple[str, ...] = ("RandomEM", "RandomHeun", "RandomTamedEM")

#: Fixed steps only.
FIXED_STEP: frozenset[str] = frozenset(
    (*"EM EulerHeun SimplifiedEM WangLi3SMil_A".split(), *RODE_ALGORITHMS)
)

#: Methods whose error estimate overwrites the noise that the step then adds (tried on geometric
#: Brownian motion, which ended at 1e16; steps of one size are right), each with one to use instead.
NO_ERROR_CONTROL: dict[str, str] = {"ISSEM": "ImplicitEM", "ISSEulerHeun": "ImplicitEulerHeun"}

#: Methods whose error estimate leaves out how the drift depends on time (du = 2 cos(3t) dt with
#: additive noise, from dt = 0.5 at 1e-3: off by 0.5 in two steps), each with one that sees it.
BLIND_TO_INTEGRALS: dict[str, str] = {
    "ImplicitEM": "LambaEM", "ImplicitEulerHeun": "LambaEulerHeun", "ImplicitRKMil": "RKMil",
}  # fmt: skip

#: Diagonal and scalar noise only.
DIAGONAL: frozenset[str] = frozenset(
    "RKMil SRIW1 SRIW2 SOSRI SOSRI2 ImplicitRKMil WangLi3SMil_A".split()
)

#: Not scalar noise.
NOT_SCALAR: frozenset[str] = frozenset(("RKMilCommute",))

#: Additive noise only: the diffusion must not depend on the state.
ADDITIVE: frozenset[str] = frozenset("SRA1 SRA2 SRA3 SOSRA SOSRA2 SKenCarp".split())

#: Algorithms that can follow a given path of the noise: they ask for its increments alone.
ALONG_PATHS: tuple[str, ...] = (
    "EM", "LambaEM", "EulerHeun", "LambaEulerHeun", "RKMil", "RKMilCommute", "ImplicitEM",
    "ImplicitEulerHeun", "ImplicitRKMil", "ISSEM", "ISSEulerHeun", *RODE_ALGORITHMS,
)  # fmt: skip

#: Algorithms whose steps can be run backwards.
PATHWISE: tuple[str, ...] = (
    *ALONG_PATHS, "SOSRI", "SOSRI2", "SRIW1", "SRIW2", "SOSRA", "SOSRA2", "SRA1", "SRA2", "SRA3",
    "SKenCarp",
)  # fmt: skip

_STRATONOVICH = frozenset("EulerHeun LambaEulerHeun ImplicitEulerHeun ISSEulerHeun".split())


def interpretation(name: str, options: dict[str, Any]) -> str:
    """``"Ito"`` or ``"Stratonovich"``: whose equation an algorithm solves."""
    if "interpretation" in SDE_ALGORITHMS.get(name, ()):
        return str(options.get("interpretation", "Ito"))
    return "Stratonovich" if name in _STRATONOVICH else "Ito"
