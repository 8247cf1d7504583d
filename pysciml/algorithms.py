"""Solver algorithms as data: DifferentialEquations.jl's names, and the options each takes.

An algorithm object says what to run; the engines know how. ``Tsit5()``, ``CVODE_BDF()`` and the
rest are instances of :class:`Algorithm` made by calling an :class:`AlgorithmName`.
The names of OrdinaryDiffEq stand in :mod:`pysciml.ordinarydiffeq`, a plain table, those of
StochasticDiffEq in :mod:`pysciml.stochasticdiffeq`, those of DelayDiffEq in
:mod:`pysciml.delaydiffeq`, those of BoundaryValueDiffEqMIRK in
:mod:`pysciml.boundaryvaluediffeq`, the aggregators of JumpProcesses in
:mod:`pysciml.jumpprocesses`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pysciml.boundaryvaluediffeq import BVP_ALGORITHMS
from pysciml.delaydiffeq import DDE_ALGORITHMS
from pysciml.errors import InputError, did_you_mean
from pysciml.jumpprocesses import AGGREGATORS, STEPPER
from pysciml.ordinarydiffeq import ALGORITHMS, COMMON_OPTIONS, COMPOSITES
from pysciml.stochasticdiffeq import RODE_ALGORITHMS, SDE_ALGORITHMS

__all__ = ["Algorithm", "AlgorithmName", "algorithm", "algorithm_names"]


@dataclass(frozen=True)
class Algorithm:
    """An algorithm with its options.

    name
        DifferentialEquations.jl's name, e.g. ``"Rodas5P"``.
    package
        The Julia package that holds it; ``"Sundials"`` or ``"torchsde"`` for the embedded
        engine's.
    options
        Keyword arguments, as Julia takes them.
    parts
        The algorithms it is composed of (``AutoTsit5(Rosenbrock23())``).
    """

    name: str
    package: str
    options: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Algorithm, ...] = ()

    def __repr__(self) -> str:
        inner = [repr(a) for a in self.parts]
        inner += [f"{k}={v!r}" for k, v in self.options.items()]
        return f"{self.name}({', '.join(inner)})"

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that have it."""
        return ("sundials",) if self.package in ("Sundials", "torchsde") else ("julia",)


@dataclass(frozen=True)
class AlgorithmName:
    """Callable that makes an :class:`Algorithm`; checks its options by name."""

    name: str
    package: str
    allowed: tuple[str, ...] = ()
    arity: int = 0

    def __call__(self, *parts: Algorithm, **options: Any) -> Algorithm:
        """Raises InputError for an option the algorithm does not take, or a wrong part."""
        parts = tuple(p() if isinstance(p, AlgorithmName) else p for p in parts)
        if len(parts) != self.arity or not all(isinstance(p, Algorithm) for p in parts):
            what = f"{self.arity} algorithm(s)" if self.arity else "no positional argument"
            given = ", ".join(repr(p) for p in parts) or "none"
            raise InputError(
                f"{self.name} takes {what}, but was given {given}; give options by keyword, "
                f"e.g. {self!r}({_example(self)})."
            )
        for key in options:
            if key not in self.allowed:
                hint = did_you_mean(key, self.allowed)
                takes = ", ".join(self.allowed)
                raise InputError(
                    f"{self.name} does not take {key!r}; it takes {takes}: leave it out or give "
                    f"one of these.{hint}"
                    if self.allowed
                    else f"{self.name} does not take {key!r}, nor any other option; leave it out."
                )
        return Algorithm(self.name, self.package, dict(options), parts)

    def __repr__(self) -> str:
        return (
            f"pysciml.torchsde.{self.name}"
            if self.package == "torchsde"
            else f"pysciml.{self.name}"
        )


def _example(name: AlgorithmName) -> str:
    parts = ["pysciml.Tsit5()", "pysciml.Rodas5P()"][: name.arity]
    return ", ".join([*parts, *(f"{key}=..." for key in name.allowed[:1])])


#: Options of the embedded engine's algorithms (Sundials.jl's names where it has one).
_SUNDIALS = ("linear_solver", "jac_upper", "jac_lower", "krylov_dim", "max_order",
             "max_nonlinear_iters", "max_convergence_failures")  # fmt: skip

CVODE_BDF = AlgorithmName("CVODE_BDF", "Sundials", _SUNDIALS)
CVODE_Adams = AlgorithmName("CVODE_Adams", "Sundials", _SUNDIALS)
IDA = AlgorithmName("IDA", "Sundials", _SUNDIALS)

_NAMES: dict[str, AlgorithmName] = {"CVODE_BDF": CVODE_BDF, "CVODE_Adams": CVODE_Adams, "IDA": IDA}
for _name, (_package, _options) in ALGORITHMS.items():
    _NAMES[_name] = AlgorithmName(_name, _package, (*COMMON_OPTIONS.get(_package, ()), *_options))
for _name, (_package, _options, _arity) in COMPOSITES.items():
    _NAMES[_name] = AlgorithmName(_name, _package, _options, _arity)
for _name, _options in SDE_ALGORITHMS.items():
    _NAMES[_name] = AlgorithmName(_name, "StochasticDiffEq", _options)
for _name, (_options, _arity) in DDE_ALGORITHMS.items():
    _NAMES[_name] = AlgorithmName(_name, "DelayDiffEq", _options, _arity)
for _name, _options in BVP_ALGORITHMS.items():
    _NAMES[_name] = AlgorithmName(_name, "BoundaryValueDiffEqMIRK", _options)
for _name in RODE_ALGORITHMS:
    _NAMES[_name] = AlgorithmName(_name, "StochasticDiffEq")
for _name in (*AGGREGATORS, STEPPER):
    _NAMES[_name] = AlgorithmName(_name, "JumpProcesses")


def as_algorithm(given: Any, example: str) -> Algorithm | None:
    """What a user gave for an algorithm as one; None stays. Raises InputError, with ``example``."""
    if isinstance(given, AlgorithmName):
        given = given()
    if given is not None and not isinstance(given, Algorithm):
        raise InputError(
            f"alg is a {type(given).__name__}; give an algorithm such as pysciml.{example}()."
        )
    return given


def algorithm_names() -> tuple[str, ...]:
    """Every algorithm name there is, sorted."""
    return tuple(sorted(_NAMES))


def algorithm(name: str) -> AlgorithmName:
    """The algorithm of that name. Raises InputError, with the nearest name, for an unknown one."""
    try:
        return _NAMES[name]
    except KeyError:
        raise InputError(
            f"There is no algorithm {name!r}; give one of pysciml.algorithm_names()."
            f"{did_you_mean(name, _NAMES)}"
        ) from None
