"""Ensembles on a GPU: what is asked of them, and which problem their members are of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.algorithms import Algorithm, algorithm, as_algorithm
from pysciml.callbacks import as_callbacks
from pysciml.diffeqgpu import GPU_ALGORITHMS
from pysciml.engines.base import Engine
from pysciml.ensemble import EnsembleProblem
from pysciml.errors import EngineError, InputError
from pysciml.extra_options import EXTRA
from pysciml.julia_function import JuliaFunction
from pysciml.problems import ODEProblem, number

__all__ = [
    "MOST_DIRECTIONS",
    "batched",
    "gpu_algorithm",
    "made_by",
    "plain_algorithm",
    "require_for_gpu",
    "require_for_kernel",
    "require_julia",
    "spans_of",
]

#: The most numbers by which a member's outputs are differentiated.
MOST_DIRECTIONS = 256
_OF_CPU = {plain: name for name, plain in GPU_ALGORITHMS.items()}
#: By package of OrdinaryDiffEq: the method of a GPU that is near to its methods.
_NEAR = {
    **dict.fromkeys(
        ("OrdinaryDiffEqVerner", "OrdinaryDiffEqFeagin", "OrdinaryDiffEqHighOrderRK",
         "OrdinaryDiffEqAdamsBashforthMoulton", "OrdinaryDiffEqExtrapolation"), "Vern9",
    ),
    **dict.fromkeys(
        ("OrdinaryDiffEqRosenbrock", "OrdinaryDiffEqBDF", "OrdinaryDiffEqFIRK", "Sundials",
         "OrdinaryDiffEqDefault"), "Rodas5P",
    ),
    "OrdinaryDiffEqSDIRK": "Kvaerno5",
}  # fmt: skip


def gpu_algorithm(given: Any, name: str) -> Algorithm:
    """The method of DiffEqGPU for the algorithm that a user gave; GPUTsit5 where None.

    Raises InputError where there is none, with the one that is near.
    """
    alg = as_algorithm(given, "Tsit5")
    if alg is None:
        return algorithm("GPUTsit5")()
    if alg.options:
        option = next(iter(alg.options))
        raise InputError(
            f"alg is {alg!r}, but the methods of {name} take no options; leave {option} out."
        )
    if alg.name in GPU_ALGORITHMS:
        return alg
    if alg.name not in _OF_CPU:
        near = _NEAR.get(alg.package, "Tsit5")
        raise InputError(
            f"{alg.name} has no form that a thread of a GPU runs; {name} takes "
            f"{', '.join(_OF_CPU)}: use pysciml.{near}(), or EnsembleThreads()."
        )
    return algorithm(_OF_CPU[alg.name])()


def plain_algorithm(alg: Algorithm | None) -> Algorithm | None:
    """The algorithm that solves a member by itself as ``alg`` does on a GPU."""
    if alg is None or alg.name not in GPU_ALGORITHMS:
        return alg
    return algorithm(GPU_ALGORITHMS[alg.name])()


def require_for_gpu(prob: Any, name: str, given: dict[str, Any], unknown: dict[str, Any]) -> None:
    """Raise InputError for a problem or options that no ensemble on a GPU takes."""
    form: Any = getattr(prob, "form", None)
    if not isinstance(prob, ODEProblem) or form:
        raise InputError(
            f"{name} solves ODEs, but the members are {type(prob).__name__}s; use "
            "EnsembleThreads()."
        )
    if prob.mass_matrix is not None:
        raise InputError(
            f"The problem has a mass_matrix, which {name} does not take; use EnsembleThreads()."
        )
    if prob.callback or as_callbacks(given.get("callback")):
        raise InputError(f"A callback was given, but {name} has no events; use EnsembleThreads().")
    if isinstance(prob.f, JuliaFunction):
        raise InputError(
            f"f is a julia_function, which {name} does not take; write f in torch, or use "
            "EnsembleThreads()."
        )
    for option in ("progress", "tstops", "seed"):
        if given.get(option) not in (None, False):
            raise InputError(
                f"{option} was given, which {name} does not take; leave it out, or use "
                "EnsembleThreads()."
            )
    extra = sorted(EXTRA.intersection(unknown))
    if extra:
        raise InputError(
            f"{extra[0]} was given, which {name} does not take; leave it out, or use "
            "EnsembleThreads()."
        )


def require_julia(engine: Engine, name: str) -> None:
    """Raise EngineError for an engine that does not solve on a GPU."""
    if engine.name != "julia":
        raise EngineError(
            f"{name} solves on the julia engine, but engine is {engine.name!r}; install it with "
            "'python -m pysciml setup --gpu', or use EnsembleThreads()."
        )


def require_for_kernel(given: dict[str, Any]) -> None:
    """Raise InputError for options that a thread of a GPU does not take."""
    if given["sensealg"] is not None:
        raise InputError(
            f"sensealg is {given['sensealg']!r}, but gradients through EnsembleGPUKernel are "
            "forward sensitivities; leave it out, or use EnsembleThreads()."
        )
    if given["adaptive"] is False and given["dt"] is None:
        raise InputError("adaptive is False, and dt is not given; give the step, e.g. dt=0.01.")


def _span(prob: Any) -> tuple[float, ...]:
    return tuple(map(number, prob.tspan))


def made_by(ensemble: EnsembleProblem, numbers: range) -> list[Any]:
    """The problems that prob_func makes, each once: it may draw. None of them for a batch."""
    return [] if ensemble.members is not None else [ensemble.member(i) for i in numbers]


def spans_of(problems: list[Any], saveat: Any) -> np.ndarray | None:
    """Time spans (N, 2) of members that prob_func gives their own; None where all have one.

    Raises InputError where they have, and what is asked for needs one.
    """
    spans = [_span(prob) for prob in problems]
    if len(set(spans)) <= 1:
        return None
    if saveat is not None:
        raise InputError(
            "saveat was given, but members have time spans of their own; leave it out, for the "
            "states at both ends of each, or use EnsembleThreads()."
        )
    if any(isinstance(t, Tensor) and t.requires_grad for prob in problems for t in prob.tspan):
        raise InputError(
            "tspan requires grad, but members have time spans of their own; detach it, or use "
            "EnsembleThreads()."
        )
    return np.array(spans)


def batched(
    ensemble: EnsembleProblem, numbers: range, problems: list[Any], name: str, spans: bool = False
) -> tuple[EnsembleProblem, range]:
    """The members as a batch, and their numbers in it; ``problems`` are those of ``made_by``.

    Raises InputError where prob_func changes more than the values of u0 and p, and with ``spans``
    tspan.
    """
    if ensemble.members is not None:
        return ensemble, numbers
    first = problems[0]
    require_for_gpu(first, name, {}, {})
    for i, prob in zip(numbers, problems, strict=True):
        changed = (
            "the kind of problem" if type(prob) is not type(first)
            else "f" if prob.f is not first.f
            else "tspan" if not spans and _span(prob) != _span(first)
            else "callback" if prob.callback
            else "the structure of u0" if prob.state_spec != first.state_spec
            else "the structure of p" if prob.params_spec.layout != first.params_spec.layout
            else None
        )  # fmt: skip
        if changed is not None:
            raise InputError(
                f"prob_func changes {changed} for member {i}, but by {name} members differ in the "
                "values of u0 and p alone; use EnsembleThreads()."
            )
    u0 = _stacked([prob.u0 for prob in problems])
    p = _stacked([prob.p for prob in problems])
    return EnsembleProblem(first, u0=u0, p=p), range(len(problems))


def _stacked(trees: list[Any]) -> Any:
    def together(*leaves: Any) -> Any:
        if isinstance(leaves[0], Tensor) and leaves[0].is_floating_point():
            return torch.stack(leaves)
        if isinstance(leaves[0], float):
            return torch.tensor(leaves, dtype=torch.float64)
        return leaves[0]

    return pytree.tree_map(together, *trees)
