"""The methods of DiffEqGPU.jl by name (DiffEqGPU 3.15): each thread of a GPU solves one member.

``GPU_ALGORITHMS`` maps a name to OrdinaryDiffEq's of the same method.
"""

from __future__ import annotations

GPU_ALGORITHMS: dict[str, str] = {
    "GPUTsit5": "Tsit5",
    "GPUVern7": "Vern7",
    "GPUVern9": "Vern9",
    "GPURosenbrock23": "Rosenbrock23",
    "GPURodas4": "Rodas4",
    "GPURodas5P": "Rodas5P",
    "GPUKvaerno3": "Kvaerno3",
    "GPUKvaerno5": "Kvaerno5",
}

#: Those that form a Jacobian, and factor it.
IMPLICIT = frozenset("GPURosenbrock23 GPURodas4 GPURodas5P GPUKvaerno3 GPUKvaerno5".split())
#: Those that ask for f at wrong times within a step: right where f does not depend on the time.
WRONG_TIMES = frozenset({"GPUKvaerno3", "GPUKvaerno5"})
