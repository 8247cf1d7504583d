"""Write a differential equation as a PyTorch function; solve it, with gradients.

>>> import torch, pysciml as ps
>>> prob = ps.ODEProblem(lambda u, p, t: -p * u, torch.tensor([1.0]), (0.0, 1.0), 0.5)
>>> sol = ps.solve(prob, ps.CVODE_BDF(), engine="sundials", reltol=1e-6)
"""

from __future__ import annotations

from typing import Any

from pysciml import torchsde
from pysciml.algorithms import Algorithm, algorithm, algorithm_names
from pysciml.boundary import BVProblem, Shooting, SolveBVP, TwoPointBVProblem
from pysciml.callback_library import (
    ManifoldProjection,
    PeriodicCallback,
    PositiveDomain,
    SavedValues,
    SavingCallback,
    TerminateSteadyState,
    VectorContinuousCallback,
)
from pysciml.callbacks import (
    CallbackSet,
    ContinuousCallback,
    DiscreteCallback,
    PresetTimeCallback,
    terminate,
)
from pysciml.delay import DDEProblem
from pysciml.discrete import DiscreteProblem
from pysciml.ensemble import (
    EnsembleExecutor,
    EnsembleGPUArray,
    EnsembleGPUKernel,
    EnsembleProblem,
    EnsembleSerial,
    EnsembleSolution,
    EnsembleThreads,
)
from pysciml.errors import (
    CaptureWarning,
    EngineError,
    InputError,
    PyscimlError,
    SolveError,
    did_you_mean,
)
from pysciml.julia_function import julia_function
from pysciml.jumps import (
    ConstantRateJump,
    JumpProblem,
    JumpSet,
    MassActionJump,
    VariableRateJump,
)
from pysciml.noise import NoiseGrid
from pysciml.partitioned import DynamicalODEProblem, HamiltonianProblem, SecondOrderODEProblem
from pysciml.problems import DAEProblem, ODEProblem, remake
from pysciml.random_ode import RODEProblem
from pysciml.sensitivity import (
    BacksolveAdjoint,
    CollocationAdjoint,
    DiscreteAdjoint,
    ForwardDiffSensitivity,
    ForwardSensitivity,
    GaussAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
)
from pysciml.solution import Event, Solution
from pysciml.solve import solve
from pysciml.split import SemilinearODEProblem, SplitODEProblem
from pysciml.steady import DynamicSS, SSRootfind, SteadyStateProblem, SteadyStateSolution
from pysciml.stochastic import SDEProblem

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "BVProblem",
    "BacksolveAdjoint",
    "CallbackSet",
    "CaptureWarning",
    "CollocationAdjoint",
    "ConstantRateJump",
    "ContinuousCallback",
    "DAEProblem",
    "DDEProblem",
    "DiscreteAdjoint",
    "DiscreteCallback",
    "DiscreteProblem",
    "DynamicSS",
    "DynamicalODEProblem",
    "EngineError",
    "EnsembleExecutor",
    "EnsembleGPUArray",
    "EnsembleGPUKernel",
    "EnsembleProblem",
    "EnsembleSerial",
    "EnsembleSolution",
    "EnsembleThreads",
    "Event",
    "ForwardDiffSensitivity",
    "ForwardSensitivity",
    "GaussAdjoint",
    "HamiltonianProblem",
    "InputError",
    "InterpolatingAdjoint",
    "JumpProblem",
    "JumpSet",
    "ManifoldProjection",
    "MassActionJump",
    "NoiseGrid",
    "ODEProblem",
    "PeriodicCallback",
    "PositiveDomain",
    "PresetTimeCallback",
    "PyscimlError",
    "QuadratureAdjoint",
    "RODEProblem",
    "SDEProblem",
    "SSRootfind",
    "SavedValues",
    "SavingCallback",
    "SecondOrderODEProblem",
    "SemilinearODEProblem",
    "Shooting",
    "Solution",
    "SolveBVP",
    "SolveError",
    "SplitODEProblem",
    "SteadyStateProblem",
    "SteadyStateSolution",
    "TerminateSteadyState",
    "TwoPointBVProblem",
    "VariableRateJump",
    "VectorContinuousCallback",
    "algorithm",
    "algorithm_names",
    "julia_function",
    "remake",
    "solve",
    "terminate",
    "torchsde",
]


def __getattr__(name: str) -> Any:
    # Every algorithm is an attribute of the package: pysciml.Tsit5, pysciml.CVODE_BDF, ...
    if name in algorithm_names():
        # kept: the next use is an attribute like any other
        found = globals()[name] = algorithm(name)
        return found
    hint = "" if name.startswith("__") else did_you_mean(name, (*__all__, *algorithm_names()))
    raise AttributeError(f"module 'pysciml' has no attribute {name!r}.{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *algorithm_names()})
