"""Solver algorithms as data: DifferentialEquations.jl's names, and the options each takes.

An algorithm object says what to run; the engines know how. ``Tsit5()``, ``CVODE_BDF()`` and the
rest are instances of :class:`Algorithm` made by calling an :class:`AlgorithmName`.
The names of OrdinaryDiffEq stand in :mod:`pysciml.ordinarydiffeq`, a plain table, those of
StochasticDiffEq in :mod:`pysciml.stochasticdiffeq`, those of DelayDiffEq in
:mod:`pysciml.delaydiffeq`, those of DiffEqGPU in :mod:`pysciml.diffeqgpu`, those of
BoundaryValueDiffEqMIRK in :mod:`pysciml.boundaryvaluediffeq`, the aggregators of JumpProcesses in
:mod:`pysciml.jumpprocesses`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pysciml.boundaryvaluediffeq import BVP_ALGORITHMS
from pysciml.delaydiffeq import DDE_ALGORITHMS
from pysciml.diffeqgpu import GPU_ALGORITHMS
from pysciml.errors import InputError, did_you_mean
from pysciml.jumpprocesses import AGGREGATORS, STEPPER
from pysciml.ordinarydiffeq import ALGORITHMS, COMMON_OPTIONS, COMPOSITES, OPTION_VALUES, PARTS
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
        solvers = [isinstance(p, Algorithm) and p.name not in PARTS for p in parts]
        if len(parts) != self.arity or not all(solvers):
            what = f"{self.arity} algorithm(s)" if self.arity else "no positional argument"
            given = ", ".join(repr(p) for p in parts) or "none"
            raise InputError(
                f"{self.name} takes {what}, but was given {given}; give options by keyword, "
                f"e.g. {self!r}({_example(self)})."
            )
        # LUFactorization stands for LUFactorization()
        options = {k: v() if isinstance(v, AlgorithmName) else v for k, v in options.items()}
        for key, value in options.items():
            reason = _NOT_TAKEN.get(key.rstrip("!"))
            if reason is not None:
                raise InputError(f"{self.name} does not take {key!r}: {reason}.")
            if key not in self.takes:
                hint = did_you_mean(key, self.takes)
                takes = ", ".join(self.takes)
                raise InputError(
                    f"{self.name} does not take {key!r}; it takes {takes}: leave it out or give "
                    f"one of these.{hint}"
                    if self.takes
                    else f"{self.name} does not take {key!r}, nor any other option; leave it out."
                )
            require_value(key, value)
        return Algorithm(self.name, self.package, options, parts)

    @property
    def takes(self) -> tuple[str, ...]:
        """The options that a user may give."""
        return tuple(key for key in self.allowed if key not in _NOT_TAKEN)

    def __repr__(self) -> str:
        return (
            f"pysciml.torchsde.{self.name}"
            if self.package == "torchsde"
            else f"pysciml.{self.name}"
        )


def _example(name: AlgorithmName) -> str:
    parts = ["pysciml.Tsit5()", "pysciml.Rodas5P()"][2 - name.arity :]
    return ", ".join([*parts, *(f"{key}=..." for key in name.takes[:1])])


_DERIVATIVES = "Jacobians and other derivatives come from torch here, exact ones; leave it out"
_LIMITED = (
    "no gradient would see how it changes the state; use isoutofdomain= of solve, "
    "PositiveDomain(), or a DiscreteCallback, whose affect changes the state after a step"
)
#: Options of Julia's constructors (there some end in "!") that have no place here, and why.
_NOT_TAKEN = {
    "autodiff": _DERIVATIVES,
    "chunk_size": _DERIVATIVES,
    "diff_type": _DERIVATIVES,
    "standardtag": _DERIVATIVES,
    "thread": "the stages of one solve run on one thread; for many solutions at once give u0 a "
    "batch dimension, or solve an EnsembleProblem with EnsembleThreads()",
    "stage_limiter": _LIMITED,
    "step_limiter": _LIMITED,
    "precs": "a preconditioner is a Julia function of Julia's matrices; leave it out",
    "controller": "the controller of the steps belongs to solve; give it there, e.g. "
    "controller=pysciml.PIController()",
}


def require_value(key: str, value: Any) -> None:
    """Raise InputError where an option that takes such objects as LUFactorization() got another."""
    taken = OPTION_VALUES.get(key)
    if taken is None or value is None:
        return
    if not isinstance(value, Algorithm) or value.name not in taken:
        named = isinstance(value, str) and value in taken
        few = [value] if named else sorted(taken)
        example = ", ".join(f"pysciml.{name}()" for name in few)
        raise InputError(f"{key} is {value!r}; give {'' if named else 'one of '}{example}.")


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
for _name in GPU_ALGORITHMS:
    _NAMES[_name] = AlgorithmName(_name, "DiffEqGPU")
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
