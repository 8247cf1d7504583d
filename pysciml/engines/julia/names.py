"""Algorithms and their options as Julia expressions."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from pysciml.algorithms import Algorithm, algorithm
from pysciml.engines.base import FlatProblem, SolveOptions, Tuning
from pysciml.errors import EngineError, InputError
from pysciml.ordinarydiffeq import (
    BLIND_TO_INTEGRALS,
    BLIND_TO_LINEAR,
    NO_ERROR_CONTROL,
    NO_FIXED_STEPS,
    TRUST_FIRST_STEP,
    WRONG,
    WRONG_TIMES,
)
from pysciml.sensitivity import (
    CollocationAdjoint,
    DiscreteAdjoint,
    GaussAdjoint,
    SensitivityAlgorithm,
)
from pysciml.stochasticdiffeq import BLIND_TO_INTEGRALS as BLIND_TO_DRIFTS
from pysciml.stochasticdiffeq import NO_ERROR_CONTROL as NO_ERROR_CONTROL_OF_NOISE

__all__ = [
    "algorithm_expression",
    "default_sensealg",
    "refuse_error_control",
    "refuse_wrong",
    "require_sensealg",
    "sensealg_expression",
    "tuned_expression",
]

#: Nothing is differentiated inside Julia: derivatives come as kernels. Where an algorithm insists
#: on a method for what has no kernel, it gets differences, which also suit Python callbacks.
_AUTODIFF = "autodiff = AutoFiniteDiff()"
#: Options that Julia wants as a type.
_AS_VAL = {("OrdinaryDiffEqBDF", "max_order")}
#: The implicit extrapolation methods, see ``WithoutPrototype`` in Julia.
_WITHOUT_PROTOTYPE = (
    "ImplicitDeuflhardExtrapolation", "ImplicitEulerBarycentricExtrapolation",
    "ImplicitEulerExtrapolation", "ImplicitHairerWannerExtrapolation",
)  # fmt: skip
_FAULTY = {**NO_ERROR_CONTROL, **NO_ERROR_CONTROL_OF_NOISE}
_BLIND = {**BLIND_TO_INTEGRALS, **BLIND_TO_DRIFTS}
_DEFAULTS = {
    "ode": f"DefaultODEAlgorithm(; {_AUTODIFF})",
    "dae": f"OrdinaryDiffEqBDF.DFBDF(; {_AUTODIFF})",
}


def algorithm_expression(
    alg: Algorithm | None, kind: str, sparse: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Julia source of an algorithm, and the packages whose names it uses."""
    if alg is None and sparse:
        return "PySciML.sparse_default()", ()
    if alg is None:
        return _DEFAULTS[kind], ("OrdinaryDiffEqBDF",) if kind == "dae" else ()
    known: tuple[str, tuple[str, ...]] | None = alg.__dict__.get("_expression")
    if known is None:
        packages: list[str] = []
        text = _call(alg, packages)
        if alg.name in _WITHOUT_PROTOTYPE:
            text = f"PySciML.WithoutPrototype({text})"
        known = text, tuple(dict.fromkeys(packages))
        object.__setattr__(alg, "_expression", known)
    return known


#: Newton's method where none is given: by default its matrix stays while the step changes by less
#: than a fifth, and on equations that are nearly linear the first iterate with it, which is wrong
#: by as much, is taken for the solution (u' = cos t by KenCarp4 at 1e-8 was off by 2e-4, now 2e-7).
_NEWTON = "OrdinaryDiffEqNonlinearSolve.NLNewton(; new_W_dt_cutoff = 0)"
#: The smoothed error estimate of the same methods is solved for with Newton's matrix J - I / (gamma
#: dt) instead of I - gamma dt J: it is too small by gamma dt, and of too high an order (an
#: oscillator by TRBDF2 at 1e-8 was off by 4.5e-5, a stiff linear equation by KenCarp4 at 1e-6 by
#: 1.5e-4; without it by 2e-6 and 6e-7).
_ESTIMATE = "smooth_est = false"


def _call(alg: Algorithm, packages: list[str]) -> str:
    packages.append(alg.package)
    parts = [_call(part, packages) for part in alg.parts]
    positional = [_value(x, key, packages) for key, x in alg.options.items() if key == "split"]
    options = [
        f"{key} = Val({x})"
        if (alg.package, key) in _AS_VAL
        else f"{key} = {_value(x, key, packages)}"
        for key, x in alg.options.items()
        if key != "split"
    ]
    if takes_autodiff(alg):
        options.append(_AUTODIFF)
    if alg.package == "OrdinaryDiffEqSDIRK":
        if "smooth_est" in set(algorithm(alg.name).allowed) - set(alg.options):
            options.append(_ESTIMATE)
        if "nlsolve" not in alg.options:
            packages.append("OrdinaryDiffEqNonlinearSolve")
            options.append(f"nlsolve = {_NEWTON}")
    inside = ", ".join([*parts, *positional]) + ("; " + ", ".join(options) if options else "")
    return f"{alg.package}.{alg.name}({inside})"


def tuned_expression(
    alg: Algorithm | None, text: str, packages: tuple[str, ...], tuning: Tuning, dtype: str
) -> tuple[str, tuple[str, ...]]:
    """An algorithm's Julia source with what a solve says of its steps."""
    used, options = list(packages), []
    controller = tuning.controller
    if controller is not None and controller.name == "PredictiveController":
        if alg is None or not {"nlsolve", "κ"} & set(algorithm(alg.name).allowed):
            raise InputError(
                f"PredictiveController was given with {alg or 'the default algorithm'}, but "
                "goes by Newton's iterations; give it with e.g. pysciml.KenCarp4(), or "
                "pysciml.PIController()."
            )
    if tuning.force_dtmin:
        options.append("force_dtmin = true")
    if tuning.discontinuities:
        times = ", ".join(map(repr, tuning.discontinuities))
        options.append(f"d_discontinuities = [{times}]")
    if tuning.initializealg is not None:
        options.append(f"initializealg = {_call(tuning.initializealg, used)}")
    if tuning.controller is not None:
        used.append("OrdinaryDiffEqCore")
        given = [f"{k} = {_value(x, k, used)}" for k, x in tuning.controller.options.items()]
        number = "Float32" if dtype == "float32" else "Float64"
        name = f"OrdinaryDiffEqCore.{tuning.controller.name}"
        one = f"a -> {name}({number}, a; {', '.join(given)})"
        options.append(f"controller = PySciML.controller({one}, alg)")
    text = f"let alg = {text}; PySciML.Tuned(alg, (; {', '.join(options)})) end"
    return text, tuple(dict.fromkeys(used))


#: Where no sensitivity algorithm is named, systems up to this size get CollocationAdjoint.
_COLLOCATED = 50
_NO_PACKAGE = (
    "CollocationAdjoint", "DiscreteAdjoint", "ForwardSensitivity", "ForwardDiffSensitivity",
)  # fmt: skip


#: Algorithms whose dense output is far from their tolerance: they step onto the output times, and
#: all else comes from another solution (twin.py). A cubic over long steps (Julia's RadauIIA5:
#: 1.4e-3 between steps that are right to 8e-6; KenCarp5 at 1e-8: 4.7e-6 and 2e-8), or one through
#: the wrong slopes: where a method keeps its stages and has no interpolant of its own, Julia takes
#: the second of them for the slope at the end (Stepanov5 at 1e-8: 6e-4 and 1e-10), or the last one
#: of a method whose last stage is not the end (SFSDIRK).
_LONG_STEPS = frozenset(
    "RadauIIA3 RadauIIA5 RadauIIA9 AdaptiveRadau Feagin10 Feagin12 Feagin14 TanYam7 TsitPap8 "
    "PFRK87 QPRK98 AitkenNeville ExtrapolationMidpointDeuflhard "
    "ExtrapolationMidpointHairerWanner ImplicitDeuflhardExtrapolation "
    "ImplicitHairerWannerExtrapolation ImplicitEulerExtrapolation "
    "ImplicitEulerBarycentricExtrapolation Exprb32 Exprb43 KenCarp5 KenCarp58 Kvaerno5 "
    "ESDIRK54I8L2SA ESDIRK547L2SA2 ESDIRK659L2SA DPRKN12 DPRKN5 DPRKN6FM DPRKN8 ERKN5 ERKN7 "
    "FineRKN5 KenCarp47 RDPK3Sp510 RDPK3SpFSAL510 VCABM GaussLegendre ESERK5 ExplicitRK".split()
)
_WRONG_SLOPES = frozenset("Alshina3 FRK65 SIR54 Stepanov5".split())
#: The same, of methods that take steps of one size only.
COARSE_AT_FIXED_STEPS = frozenset(
    "Alshina6 AN5 Anas5 MSRK5 MSRK6 PSRK3p5q4 PSRK3p6q5 PSRK4p7q6 RKM RKO65 SFSDIRK4 SFSDIRK5 "
    "SFSDIRK6 SFSDIRK7 SFSDIRK8".split()
)
COARSE_BETWEEN = _LONG_STEPS | _WRONG_SLOPES | COARSE_AT_FIXED_STEPS
#: Those that are not for delay equations, which read the past between the steps: errors were seen
#: that are a hundred to a billion times those of other methods (u' = -u(t - pi/2) at 1e-9: Feagin14
#: 9e-3, TsitPap8 4e-5, KenCarp5 5e-5, ExplicitRK 9e-7), and implicit extrapolation does not run.
#: Julia's RadauIIA3, 5 and 9 keep their tolerance.
COARSE_BEFORE = COARSE_BETWEEN - {"RadauIIA3", "RadauIIA5", "RadauIIA9"}


def default_sensealg(
    problem: FlatProblem, alg: Algorithm | None, tuning: Tuning
) -> SensitivityAlgorithm:
    """The sensitivity algorithm where none is named."""
    if problem.kind == "dae" or problem.mass_matrix is not None or problem.form == "dde":
        return CollocationAdjoint()
    if _has_stages(alg) and not tuning.discontinuities:
        return DiscreteAdjoint()
    if len(problem.u0) <= _COLLOCATED or fails_on_adjoints(alg):
        return CollocationAdjoint()
    return GaussAdjoint()


def fails_on_adjoints(alg: Algorithm | None) -> bool:
    """Whether SciMLSensitivity would solve the adjoint, which depends on time and to tolerances, by
    a method that cannot. After Newton-based ones it is solved by Rodas5P."""
    if alg is None or alg.package in ("OrdinaryDiffEqSDIRK", "OrdinaryDiffEqBDF"):
        return False
    return alg.name in WRONG_TIMES or alg.name in _FAULTY or any(map(fails_on_adjoints, alg.parts))


def _has_stages(alg: Algorithm | None) -> bool:
    return alg is not None and alg.name == "Tsit5"


def require_sensealg(
    sensealg: SensitivityAlgorithm | None, alg: Algorithm | None, tuning: Tuning
) -> None:
    """Raise InputError for a sensitivity algorithm that cannot follow the solver's algorithm."""
    if sensealg is not None and sensealg.name in _ADJOINTS and fails_on_adjoints(alg):
        raise InputError(
            f"{sensealg.name} was given with {alg!r}, by which the adjoint equation, which depends "
            "on time, cannot be solved to a tolerance in Julia; use "
            "sensealg=pysciml.CollocationAdjoint(), or leave it out."
        )
    if isinstance(sensealg, DiscreteAdjoint) and tuning.discontinuities:
        # it asks for f at the beginning of a step, where f is still what it was before
        raise InputError(
            "DiscreteAdjoint was given with d_discontinuities, which it does not see; use "
            "pysciml.GaussAdjoint(), or leave sensealg out."
        )
    if isinstance(sensealg, DiscreteAdjoint) and not _has_stages(alg):
        given = repr(alg) if alg is not None else "the default algorithm"
        raise InputError(
            f"DiscreteAdjoint was given with {given}, but follows the stages of Tsit5 only; solve "
            "with pysciml.Tsit5(), or use sensealg=pysciml.GaussAdjoint()."
        )


def takes_autodiff(alg: Algorithm) -> bool:
    return "autodiff" in algorithm(alg.name).allowed


def _value(x: Any, key: str, packages: list[str]) -> str:
    if key == "interpretation":
        if x not in ("Ito", "Stratonovich"):
            raise InputError(f'interpretation is {x!r}; give "Ito" or "Stratonovich".')
        packages.append("SciMLBase")
        return f"SciMLBase.AlgorithmInterpretation.{x}"
    if isinstance(x, Algorithm):
        return _call(x, packages)
    if isinstance(x, (bool, np.bool_)):
        return "true" if x else "false"
    if x is None:
        return "nothing"
    if isinstance(x, numbers.Integral):
        return str(int(x))
    if isinstance(x, numbers.Real):
        return repr(float(x)).replace("inf", "Inf").replace("nan", "NaN")
    if isinstance(x, str) and x.isidentifier():
        return f":{x}"
    if isinstance(x, (tuple, list)):
        inside = ", ".join(_value(v, key, packages) for v in x)
        return f"({inside},)" if isinstance(x, tuple) else f"[{inside}]"
    raise InputError(
        f"the option {key} is a {type(x).__name__}; give a number, a bool, a string (a Julia "
        "symbol), an algorithm, or a tuple or list of these."
    )


#: Options of each sensitivity algorithm, beside what stands in the class.
_VJP = "autojacvec = SciMLSensitivity.ZygoteVJP()"
_ADJOINTS = ("GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint")


def sensealg_expression(sensealg: SensitivityAlgorithm) -> tuple[str, tuple[str, ...]]:
    """Julia source of a sensitivity algorithm.

    ``ZygoteVJP`` is what SciMLSensitivity wants named; with ``vjp`` and ``vjp_p`` kernels in the
    function it sets nothing up and is never called.
    """
    packages = ("SciMLSensitivity",)
    name = sensealg.name
    options = [_VJP]
    if name in _NO_PACKAGE:
        return f"PySciML.{name}()", ()
    if name not in _ADJOINTS:
        raise InputError(
            f"sensealg is {name}, which the julia engine does not have; give one of "
            f"{', '.join((*_ADJOINTS, *_NO_PACKAGE))}."
        )
    checkpointing = getattr(sensealg, "checkpointing", None)
    if name == "BacksolveAdjoint":
        options = [*options, f"checkpointing = {str(bool(checkpointing)).lower()}"]
    if name == "QuadratureAdjoint":
        for key in ("abstol", "reltol"):
            value = getattr(sensealg, key)
            if value is not None:
                options = [*options, f"{key} = {float(value)!r}"]
    text = f"SciMLSensitivity.{name}(; {', '.join(options)})"
    if checkpointing and name != "BacksolveAdjoint":
        text = f"PySciML.Checkpointed({text})"
    return text, packages


def refuse_wrong(alg: Algorithm | None, options: SolveOptions, problem: FlatProblem) -> None:
    """Raise for a method that is wrong in Julia, or lacks an option that it cannot do without."""
    if alg is None:
        return
    for part in alg.parts:
        refuse_wrong(part, options, problem)
    instead = WRONG.get(alg.name)
    if alg.name == "SBDF":
        order = alg.options.get("order")
        if order not in (1, 2, 3, 4):
            raise InputError(f"SBDF was given order = {order!r}; give order=1 or order=2.")
        instead = WRONG.get(f"SBDF{order}")
    if instead is not None:
        raise EngineError(f"{alg!r} is wrong in Julia, at any step; use pysciml.{instead}().")
    if alg.name in WRONG_TIMES and _may_depend_on_time(problem):
        raise EngineError(
            f"{alg.name} is of order one where the rate depends on time, as it may here (in Julia "
            f"it asks for it at wrong times within a step); use pysciml.{WRONG_TIMES[alg.name]}()."
        )
    if alg.name in NO_FIXED_STEPS and not options.adaptive:
        raise EngineError(
            f"{alg.name} was given with adaptive=False, but is wrong at steps that it does not "
            f"choose itself in Julia; leave it out, or use pysciml.{NO_FIXED_STEPS[alg.name]}()."
        )
    if alg.package == "OrdinaryDiffEqMultirate" and "m" not in alg.options:
        raise InputError(
            f"{alg.name} takes m steps of the fast part in one of the slow, and m is not given; "
            f"give e.g. pysciml.{alg.name}(m=4)."
        )


def refuse_error_control(
    alg: Algorithm | None, options: SolveOptions, problem: FlatProblem | None = None
) -> None:
    """Raise EngineError where a method's choice of its own steps is known to fail."""
    if alg is None or not options.adaptive:
        return
    if alg.name in _FAULTY:
        why = "its error control in Julia is faulty"
        if alg.name in BLIND_TO_LINEAR:
            why = "its error estimate is zero on linear equations"
        raise EngineError(
            f"{alg.name} does not choose its own steps rightly ({why}); give "
            f"dt= and adaptive=False, or use pysciml.{_FAULTY[alg.name]}()."
        )
    if alg.name in _BLIND and problem is not None and _integrates(problem):
        raise EngineError(
            f"{alg.name} does not choose its own steps rightly here: its error estimate is zero on "
            "states whose rate does not depend on the present state, and there is such a one; use "
            f"pysciml.{_BLIND[alg.name]}()."
        )
    if alg.name in TRUST_FIRST_STEP and options.dt is not None:
        raise EngineError(
            f"{alg.name} was given dt = {options.dt:g}, but in Julia does not control the error of "
            "a first step that is given; leave dt out, or use "
            f"pysciml.{TRUST_FIRST_STEP[alg.name]}()."
        )
    for part in alg.parts:
        refuse_error_control(part, options, problem)


def _may_depend_on_time(problem: FlatProblem) -> bool:
    functions = problem.functions
    if problem.form == "dde":
        return True
    if functions.kernels is not None:
        return functions.kernels.timed
    try:
        value = functions.bind("value", problem.p, problem.c)
    except EngineError:  # written in Julia
        return True
    u, found = 1.1 * problem.u0 + 0.1, []
    for part in (0.0, 0.29, 0.53, 1.0):
        found.append(np.empty_like(u))
        value(u, problem.t0 + part * (problem.t1 - problem.t0), found[-1])
    return any(not np.array_equal(x, found[0], equal_nan=True) for x in found[1:])


def _integrates(problem: FlatProblem) -> bool:
    """Whether a rate is known to depend on time, or the past, and not on the state."""
    if problem.form == "dde":
        return True  # as far as is known: on the past alone
    functions = problem.parts[0] if problem.form == "sde" else problem.functions
    if problem.kind == "dae" or problem.mass_matrix is not None or functions.kernels is None:
        return False
    by_state, by_time = functions.sparsity("u"), functions.sparsity("t")
    if by_state is None or by_time is None:
        return False
    return bool(((np.diff(by_state.indptr) == 0) & (np.diff(by_time.indptr) > 0)).any())
