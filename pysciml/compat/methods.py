"""torchdiffeq's names of adaptive methods as algorithms of the engine that runs them."""

from __future__ import annotations

from typing import Any

from pysciml.algorithms import Algorithm, AlgorithmName, algorithm, algorithm_names
from pysciml.compat.fixed_grid import FIXED_METHODS
from pysciml.errors import InputError, did_you_mean

__all__ = ["ADAPTIVE_METHODS", "adaptive_algorithm", "check_method"]

#: On the julia engine: the same Runge-Kutta pair where OrdinaryDiffEq has it (DP5, BS3, Tsit5),
#: else the pair of the same order (DP8 for Prince and Dormand's 8(7), Heun for the orders 1 and 2).
#: On the embedded engine all of them are its default, variable-order Adams with a change to BDF
#: where the equation turns out stiff.
_JULIA = {
    "dopri5": "DP5",
    "dopri8": "DP8",
    "bosh3": "BS3",
    "tsit5": "Tsit5",
    "adaptive_heun": "Heun",
    "fehlberg2": "Heun",
}

#: ``options={"solver": ...}`` of method "scipy_solver": (julia, embedded).
_SCIPY: dict[str, tuple[str | None, str | None]] = {
    "LSODA": (None, None),
    "RK45": ("DP5", None),
    "RK23": ("BS3", None),
    "DOP853": ("DP8", None),
    "Radau": ("RadauIIA5", "CVODE_BDF"),
    "BDF": ("QNDF", "CVODE_BDF"),
}

ADAPTIVE_METHODS = (*_JULIA, "scipy_solver")


def check_method(method: Any) -> None:
    """Raise InputError for what is no method: neither torchdiffeq's name nor one of pysciml's."""
    if method is None or isinstance(method, (Algorithm, AlgorithmName)):
        return
    names = (*ADAPTIVE_METHODS, *FIXED_METHODS)
    if not isinstance(method, str) or method not in (*names, *algorithm_names()):
        hint = did_you_mean(str(method), (*names, *algorithm_names()))
        raise InputError(
            f"There is no method {method!r}.{hint} Give one of {', '.join(names)}, or an "
            "algorithm of pysciml by name, e.g. 'CVODE_BDF'."
        )


def adaptive_algorithm(method: Any, options: dict[str, Any], engine: str) -> Any:
    """The algorithm for :func:`pysciml.solve`, or None for the engine's default."""
    if method is None:
        method = "dopri5"
    if isinstance(method, (Algorithm, AlgorithmName)):
        return method
    if method == "scipy_solver":
        solver = options.get("solver", "LSODA")
        if solver not in _SCIPY:
            raise InputError(
                f"options['solver'] is {solver!r}; give one of {', '.join(_SCIPY)}."
                f"{did_you_mean(str(solver), _SCIPY)}"
            )
        name = _SCIPY[solver][0 if engine == "julia" else 1]
    elif method in _JULIA:
        name = _JULIA[method] if engine == "julia" else None
    else:
        name = method
    return None if name is None else algorithm(name)()
