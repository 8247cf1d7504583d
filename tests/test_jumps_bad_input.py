"""Jumps that do not go together: one clear sentence each, before anything is solved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pysciml as ps
from pysciml.errors import EngineError, InputError
from support import F64, f64


def one(u: Any, p: Any, t: Any) -> Any:
    return torch.ones_like(t)


def up(u: Any, p: Any, t: Any) -> Any:
    return u + 1


JUMP, MOVING = ps.ConstantRateJump(one, up), ps.VariableRateJump(one, up)
COUNTS = ps.DiscreteProblem(None, torch.tensor([5, 0]), (0.0, 1.0))
ODE = ps.ODEProblem(lambda u, p, t: -u, f64(5.0, 0.0), (0.0, 1.0))
ALONG = ps.SDEProblem(
    lambda u, p, t: -u, lambda u, p, t: u, f64(5.0, 0.0), (0.0, 1.0),
    noise=ps.NoiseGrid([0.0, 0.5, 1.0], torch.zeros(3, 2, dtype=F64)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ps.ConstantRateJump(1.0, up), r"rate is a float; give a function rate\(u, p, t\)"),
        (lambda: ps.ConstantRateJump(one, None), "affect is a NoneType; give a function"),
        (lambda: ps.ConstantRateJump(lambda u: 1.0, up), r"rate takes \(u\), but it is called"),
        (lambda: ps.ConstantRateJump(one, lambda u, t, p: u), "affect takes .*in this order"),
        (
            lambda: ps.VariableRateJump(one, up, urate=lambda u: one, rateinterval=one),
            r"urate takes \(u\), but it is called with \(u, p, t\)",
        ),
        (lambda: ps.MassActionJump(lambda u, p, t: 1.0, [{0: 1}], [{}]), r"called with \(p\)"),
        (lambda: ps.MassActionJump(True, [{0: 1}], [{}]), "rates is a bool; give one number"),
        (lambda: ps.MassActionJump(torch.ones(1) * 1j, [{0: 1}], [{}]), "a tensor of complex64"),
        (
            lambda: ps.MassActionJump(torch.ones(1, device="meta"), [{0: 1}], [{}]),
            "rates is a tensor on the device meta",
        ),
        (
            lambda: ps.MassActionJump(1.0, torch.tensor([[True]]), [{}]),
            "reactant_stoich is a tensor of bool, of shape",
        ),
        (
            lambda: ps.MassActionJump(1.0, [{0: 1}], torch.ones(1, 1, device="meta")),
            "net_stoich is a tensor on the device meta",
        ),
        (lambda: ps.MassActionJump(1.0, [{0: 1}], [{}], "no"), "scale_rates is 'no'; give True"),
        (
            lambda: ps.MassActionJump(lambda p: p[0], [{0: 1}], [{}]).constants(None),
            "rates uses p, but the problem has none",
        ),
        (lambda: ps.JumpProblem(COUNTS, ps.Direct(), JUMP, dep_graph=3), "dep_graph is 3; give"),
        (lambda: ps.JumpProblem(COUNTS, ps.Direct(), JUMP, dep_graph=[0]), r"dep_graph is \[0\]"),
        (lambda: ps.VariableRateJump(one, up, urate=one), "urate was given without rateinterval"),
        (lambda: ps.VariableRateJump(one, up, lrate=one), "lrate was given without urate"),
        (lambda: ps.MassActionJump([1.0], [{0: 1}, {}], [{}]), "has 2 reactions, but net_stoich"),
        (lambda: ps.MassActionJump([1.0, 2.0], [{0: 1}], [{0: -1}]), "rates has 2 entries, but"),
        (lambda: ps.MassActionJump([-1.0], [{0: 1}], [{0: -1}]), "finite and not negative"),
        (lambda: ps.MassActionJump("k", [{0: 1}], [{0: -1}]), "rates is a str; give one number"),
        (lambda: ps.MassActionJump([1.0], {0: 1}, [{0: -1}]), "reactant_stoich is a dict; give a"),
        (lambda: ps.MassActionJump([1.0], [{0: 0.5}], [{}]), r"reactant_stoich\[0\] is {0: 0.5}"),
        (lambda: ps.MassActionJump([1.0], [{0: -1}], [{}]), "has a count below 1"),
        (
            lambda: ps.JumpProblem(COUNTS, ps.Direct(), ps.MassActionJump(1.0, [{2: 1}], [{0: 1}])),
            r"names entry 2, but the state has 2 entries \(0 to 1\)",
        ),
        (lambda: ps.JumpProblem(COUNTS, ps.Direct()), "was given no jumps"),
        (lambda: ps.JumpProblem(ALONG, ps.Direct(), JUMP), "prob follows a given path"),
        (lambda: ps.JumpProblem(COUNTS, ps.Direct(), up), "a jump is a function; give a"),
        (lambda: ps.JumpProblem(COUNTS, ps.Tsit5(), JUMP), r"aggregator is Tsit5\(\); give one of"),
        (lambda: ps.JumpProblem(COUNTS, "Direct", JUMP), "aggregator is a str; give one of"),
        (lambda: ps.JumpProblem(up, ps.Direct(), JUMP), "prob is a function; give a Discrete"),
        (
            lambda: ps.JumpProblem(COUNTS, ps.Direct(), MOVING),
            "jump 0 is a VariableRateJump on a DiscreteProblem, which goes from jump to jump",
        ),
        (
            lambda: ps.JumpProblem(
                COUNTS, ps.Direct(), ps.VariableRateJump(one, up, urate=one, rateinterval=one)
            ),
            "which Direct does not draw on a DiscreteProblem; use pysciml.Coevolve",
        ),
        (
            lambda: ps.JumpProblem(COUNTS, ps.NRM(), JUMP, dep_graph=[[0], [1]]),
            "dep_graph has 2 rows, but NRM draws 1 jumps",
        ),
        (
            lambda: ps.JumpProblem(COUNTS, ps.Direct(), JUMP, save_positions=True),
            "save_positions is True; give two booleans",
        ),
        (
            lambda: ps.JumpProblem(
                ps.ODEProblem(up, f64(1.0, 2.0), (0.0, 1.0), mass_matrix=torch.eye(2)),
                ps.Direct(), JUMP,
            ),
            "prob has a mass_matrix",
        ),
        (
            lambda: ps.JumpProblem(
                ps.ODEProblem(up, f64(1.0), (1.0, 0.0)), ps.Direct(), JUMP
            ),
            "runs backwards, but a jump process runs forward",
        ),
        (
            lambda: ps.JumpProblem(
                ps.DiscreteProblem(None, torch.ones(1), (0.0, 1.0)), ps.Direct(), JUMP
            ),
            "u0 is float32, in which a count stays where it is",
        ),
        (lambda: ps.DiscreteProblem(up, torch.tensor([5]), (0.0, 1.0)), "int64"),
        (lambda: ps.remake(ps.JumpProblem(ODE, ps.Direct(), JUMP), rates=1), "no field 'rates'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(build: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build()


def test_remake_reaches_the_problem_inside() -> None:
    prob = ps.JumpProblem(ODE, ps.NRM(), JUMP)
    made = ps.remake(prob, u0=f64(1.0, 2.0), tspan=(0.0, 9.0))
    assert made.tspan == (0.0, 9.0) and made.u0[1] == 2.0 and made.aggregator.name == "NRM"
    assert ps.remake(prob, aggregator=ps.FRM()).aggregator.name == "FRM"


def test_the_embedded_engine_says_what_solves_jumps() -> None:
    prob = ps.JumpProblem(COUNTS, ps.Direct(), JUMP)
    with pytest.raises(EngineError, match=r"problems with jumps \(JumpProblem\), which need"):
        ps.solve(prob, ps.SSAStepper(), engine="sundials")
    with pytest.raises(EngineError, match="engine='julia' .*python -m pysciml setup"):
        ps.solve(ps.JumpProblem(ODE, ps.Direct(), JUMP), ps.Tsit5(), engine="sundials")


@pytest.mark.julia
@pytest.mark.parametrize(
    ("prob", "alg", "said"),
    [
        (COUNTS, ps.Tsit5(), "jumps on a DiscreteProblem are stepped by"),
        (ODE, ps.SSAStepper(), "which steps pure jump processes"),
    ],
)
def test_algorithms_for_the_wrong_kind(prob: Any, alg: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ps.solve(ps.JumpProblem(prob, ps.Direct(), JUMP), alg, engine="julia")


@pytest.mark.julia
@pytest.mark.parametrize(
    ("prob", "jump", "said"),
    [
        (COUNTS, ps.ConstantRateJump(lambda u, p, t: -one(u, p, t), up), "rate of jump 0 is -1"),
        (COUNTS, ps.ConstantRateJump(lambda u, p, t: u, up), r"rate of jump 0 returned \(2,\)"),
        (
            COUNTS,
            ps.ConstantRateJump(one, lambda u, p, t: u[0]),
            r"affect of jump 0 .*shape \(\)",
        ),
        (COUNTS, ps.ConstantRateJump(lambda u, p, t: t, up), "depends on t, but that of a Const"),
        (ODE, ps.ConstantRateJump(lambda u, p, t: u[0], up), "depends on entry 0 of the state"),
        (ODE, ps.VariableRateJump(lambda u, p, t: u[1] / u[1], up), "rate of jump 0 is nan"),
    ],
)
def test_rates_and_affects_that_are_none(prob: Any, jump: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ps.solve(ps.JumpProblem(prob, ps.Direct(), jump), seed=1, engine="julia")


@pytest.mark.julia
def test_options_that_do_not_fit_jumps() -> None:
    prob = ps.JumpProblem(COUNTS, ps.Direct(), JUMP)
    with pytest.raises(InputError, match="seed is -1"):
        ps.solve(prob, seed=-1, engine="julia")
    with pytest.raises(InputError, match="a ContinuousCallback was given with a pure jump"):
        root = ps.ContinuousCallback(lambda u, p, t: u[0] - 7, ps.terminate)
        ps.solve(prob, callback=root, engine="julia")
    with pytest.raises(InputError, match="saveat requires grad"):
        ps.solve(prob, saveat=f64([0.5], grad=True), engine="julia")
    with pytest.raises(InputError, match="f is None, but a map needs"):
        ps.solve(COUNTS, ps.FunctionMap(), engine="sundials")
    with pytest.raises(InputError, match="is for ensembles; wrap the problem"):
        ps.solve(prob, trajectories=3, engine="julia")
    with pytest.raises(EngineError, match="SSAStepper"):
        ps.solve(ODE, ps.SSAStepper(), engine="julia")
    with pytest.raises(EngineError, match="Alshina2 does not choose its own steps rightly"):
        ps.solve(ps.JumpProblem(ODE, ps.Direct(), JUMP), ps.Alshina2(), engine="julia")


@pytest.mark.julia
def test_a_rate_that_turns_negative_is_named() -> None:
    sinking = ps.ConstantRateJump(lambda u, p, t: 50.0 * (8 - u[0]), lambda u, p, t: u + 2)
    prob = ps.JumpProblem(COUNTS, ps.Direct(), sinking)
    with pytest.raises(EngineError, match=r"the rate of jump 0 is -50.0 at t = .*not negative"):
        ps.solve(prob, seed=1, engine="julia")


@pytest.mark.julia
def test_a_rate_above_its_bound() -> None:
    """Thinning would cut it off there."""
    jump = ps.VariableRateJump(
        lambda u, p, t: 2 + 2 * torch.sin(3 * t), up, urate=lambda u, p, t: 3 * torch.ones_like(t),
        rateinterval=lambda u, p, t: 0.5 * torch.ones_like(t),
    )  # fmt: skip
    prob = ps.JumpProblem(COUNTS, ps.Coevolve(), jump)
    with pytest.raises(EngineError, match=r"jump 0 is 3.* at t = .*, above its bound urate, which"):
        ps.solve(ps.remake(prob, tspan=(0.0, 50.0)), ps.SSAStepper(), seed=1, engine="julia")


@pytest.mark.julia
def test_too_many_jumps_end_the_solve() -> None:
    growth = ps.ConstantRateJump(lambda u, p, t: u[0] ** 2, up)
    prob = ps.JumpProblem(ps.DiscreteProblem(None, torch.tensor([3]), (0.0, 5.0)), growth)
    with pytest.raises(ps.SolveError) as caught:
        ps.solve(prob, seed=1, maxiters=500, engine="julia")
    sol = caught.value.solution
    assert caught.value.retcode == "MaxIters" and caught.value.t == float(sol.t[-1]) < 5.0
    assert torch.equal(sol.u[:, 0], 3.0 + torch.arange(len(sol.u), dtype=F64))
