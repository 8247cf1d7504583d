"""What ensembles on a GPU refuse, in one sentence and before anything is solved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.engines.julia import members

pytestmark = pytest.mark.julia

F64 = torch.float64
KERNEL = ps.EnsembleGPUKernel()


def decay(**more: Any) -> Any:
    return ps.ODEProblem(
        lambda u, p, t: -p * u,
        torch.ones(1, dtype=F64),
        (0.0, 1.0),
        torch.ones(1, dtype=F64),
        **more,
    )


def wide(n: int) -> Any:
    return ps.ODEProblem(lambda u, p, t: -u.roll(1) * u, torch.ones(n, dtype=F64), (0.0, 1.0))


def called_back(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return -u if float(t) >= 0 else u


def reaching(size: int) -> Any:
    weights = torch.ones(size, dtype=F64, requires_grad=True)
    return ps.ODEProblem(
        lambda u, p, t: -u * weights.square().sum(), torch.ones(1, dtype=F64), (0.0, 1.0)
    )


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "method": (decay, {"alg": ps.DP5()}, "DP5 has no form .* use pysciml.Tsit5\\(\\)"),
    "stiff method": (decay, {"alg": ps.FBDF()}, "FBDF has no form .* use pysciml.Rodas5P\\(\\)"),
    "sdirk": (decay, {"alg": ps.KenCarp4()}, "KenCarp4 has no form .* use pysciml.Kvaerno5\\(\\)"),
    "verner": (decay, {"alg": ps.Vern8()}, "Vern8 has no form .* use pysciml.Vern9\\(\\)"),
    "option": (
        decay, {"alg": ps.Rodas5P(linsolve=ps.LUFactorization())},
        "take no options; leave linsolve",
    ),
    "callback": (
        decay, {"callback": ps.DiscreteCallback(lambda u, p, t: t > 2, ps.terminate)},
        "A callback was given, but EnsembleGPUKernel has no events",
    ),
    "own callback": (
        lambda: decay(callback=ps.DiscreteCallback(lambda u, p, t: t > 2, ps.terminate)), {},
        "A callback was given",
    ),
    "mass matrix": (
        lambda: decay(mass_matrix=torch.eye(1, dtype=F64)), {}, "has a mass_matrix, which",
    ),
    "progress": (decay, {"progress": True}, "progress was given, which EnsembleGPUKernel"),
    "tstops": (decay, {"tstops": [0.5]}, "tstops was given, which EnsembleGPUKernel"),
    "extra": (decay, {"save_everystep": False}, "save_everystep was given, which"),
    "unknown": (decay, {"rtol": 1e-3}, "does not take 'rtol'; give reltol"),
    "sensealg": (
        decay, {"sensealg": ps.GaussAdjoint()}, "gradients through EnsembleGPUKernel are forward",
    ),
    "no step": (decay, {"adaptive": False}, "adaptive is False, and dt is not given"),
    "kvaerno": (
        lambda: ps.ODEProblem(lambda u, p, t: -u * t, torch.ones(1, dtype=F64), (0.0, 1.0)),
        {"alg": ps.Kvaerno3()}, "f depends on t, and GPUKvaerno3 asks for it at wrong times",
    ),
    "engine": (
        decay, {"engine": "sundials"}, "solves on the julia engine, but engine is 'sundials'",
    ),
    "many states": (lambda: wide(65), {}, "A member has 65 states, but by GPUTsit5 .* at most 64"),
    "verner states": (
        lambda: wide(33), {"alg": ps.Vern9()}, "33 states, but by GPUVern9 .* at most 32",
    ),
    "implicit": (
        lambda: wide(17), {"alg": ps.Rodas5P()}, "17 states, but by GPURodas5P .* at most 16",
    ),
    "directions": (lambda: reaching(300), {}, "Gradients by 300 numbers a member .* at most 256"),
    "residual": (
        lambda: ps.DAEProblem(
            lambda du, u, p, t: du + u, -torch.ones(1, dtype=F64), torch.ones(1, dtype=F64),
            (0.0, 1.0),
        ),
        {}, "EnsembleGPUKernel solves ODEs, but the members are DAEProblems",
    ),
    "noise": (
        lambda: ps.SDEProblem(
            lambda u, p, t: -u, lambda u, p, t: u, torch.ones(1, dtype=F64), (0.0, 1.0)
        ),
        {}, "EnsembleGPUKernel solves ODEs, but the members are SDEProblems",
    ),
    "julia_function": (
        lambda: ps.ODEProblem(
            ps.julia_function("(du, u, p, t) -> (du .= -u)"), torch.ones(1, dtype=F64), (0.0, 1.0)
        ),
        {}, "f is a julia_function, which EnsembleGPUKernel does not take",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_what_cannot_be_is_refused(name: str) -> None:
    made, options, said = BAD[name]
    prob = made()
    u0 = prob.u0.expand(3, *prob.u0.shape)
    given = {"alg": None, "engine": "julia", **options}
    with members.standing_in(), pytest.raises((ps.InputError, ps.EngineError), match=said):
        ps.solve(ps.EnsembleProblem(prob, u0=u0), ensemblealg=KERNEL, **given)


def test_what_cannot_be_captured_is_refused() -> None:
    prob = ps.ODEProblem(called_back, torch.ones(1, dtype=F64), (0.0, 1.0))
    ensemble = ps.EnsembleProblem(prob, u0=torch.ones(3, 1, dtype=F64))
    with members.standing_in(), pytest.warns(ps.CaptureWarning):
        with pytest.raises(ps.EngineError, match="f could not be captured"):
            ps.solve(ensemble, ps.Tsit5(), KERNEL, engine="julia")


def test_what_prob_func_may_not_change() -> None:
    changes: dict[str, Any] = {
        "f": {"f": lambda u, p, t: u},
        "the structure of u0": {"u0": torch.ones(2, dtype=F64)},
    }  # fmt: skip
    for what, change in changes.items():
        ensemble = ps.EnsembleProblem(
            decay(), lambda prob, i, change=change: ps.remake(prob, **change) if i else prob
        )
        with (
            members.standing_in(),
            pytest.raises(ps.InputError, match=f"changes {what} for member 1"),
        ):
            ps.solve(ensemble, ps.Tsit5(), KERNEL, trajectories=3, engine="julia")


def test_a_method_of_gpus_by_itself_is_refused() -> None:
    with pytest.raises(ps.EngineError, match=r"GPUTsit5 solves the members .* pysciml.Tsit5\(\)"):
        ps.solve(decay(), ps.GPUTsit5(), engine="julia")
    with pytest.raises(ps.InputError, match="backend is \"?'?metal"):
        ps.EnsembleGPUKernel("metal")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_is_said_what_is_missing() -> None:
    ensemble = ps.EnsembleProblem(decay(), u0=torch.ones(3, 1, dtype=F64))
    with pytest.raises(
        ps.EngineError, match="EnsembleGPUKernel .*(CUDA|DiffEqGPU).*EnsembleThreads"
    ):
        ps.solve(ensemble, ps.Tsit5(), KERNEL, engine="julia")
