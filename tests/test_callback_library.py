"""The callbacks that are made of the basic ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import InputError
from support import (
    F64,
    assert_close,
    dae_solver,
    f64,
    mass_matrix_solver,
    nonstiff,
    stiff,
)

TIGHT = {"reltol": 1e-9, "abstol": 1e-9}


def fall(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    x, y, vx, vy = u.unbind()
    return torch.stack([vx, vy, torch.zeros_like(x), torch.full_like(y, -10.0)])


def decay(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return -p * u


def spring(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return torch.stack([u[1], -u[0]])


def test_walls_and_floor_by_one_callback(engine) -> None:
    def condition(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return torch.stack([u[1], 2.0 - u[0]])

    def affect(u: Tensor, p: Tensor, t: Tensor, i: int) -> Tensor:
        sign = [1.0, 1.0, 1.0, -p] if i == 0 else [1.0, 1.0, -p, 1.0]
        return u * torch.stack([torch.as_tensor(s, dtype=F64) for s in sign])

    p = f64(0.8, grad=True)
    first = ps.PresetTimeCallback([0.1])
    both = ps.VectorContinuousCallback(condition, affect, 2, direction=-1)
    prob = ps.ODEProblem(fall, f64(0.0, 5.0, 1.5, 0.0), (0.0, 1.5), p, callback=[first, both])
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[1.5], **TIGHT)
    found = [(e.callback, e.component, round(e.t, 6)) for e in sol.events]
    assert found == [(0, 0, 0.1), (1, 0, 1.0), (1, 1, round(4 / 3, 6))]
    u = sol.u[-1]
    rest = 1.5 - 4 / 3
    exact = torch.stack([2 - 1.5 * p * rest, 10 * p * 0.5 - 5 * 0.25, -1.5 * p, 10 * p - 5])
    assert_close(u, exact, 1e-6)
    (got,) = torch.autograd.grad(u.sum(), p)
    (want,) = torch.autograd.grad(exact.sum(), p)
    assert_close(got, want, 1e-5)


def test_a_vector_of_conditions_that_ends_the_solve(engine) -> None:
    ends = ps.VectorContinuousCallback(
        lambda u, p, t: torch.stack([u[0] - 0.1, u[0] - 0.5]), ps.terminate, 2
    )
    prob = ps.ODEProblem(decay, f64([1.0]), (0.0, 5.0), f64(1.0), callback=ends)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TIGHT)
    assert sol.retcode == "Terminated" and sol.events[-1].component == 1
    assert float(sol.t[-1]) == pytest.approx(math.log(2), abs=1e-7)


def test_doses_at_equal_times(engine) -> None:
    dose = f64(1.0, grad=True)
    doses = ps.PeriodicCallback(lambda u, p, t: u + p["dose"], 1.0)
    p = {"rate": 0.5, "dose": dose}
    prob = ps.ODEProblem(lambda u, p, t: -p["rate"] * u, f64([1.0]), (0.0, 4.0), p, callback=doses)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[4.0], **TIGHT)
    assert [e.t for e in sol.events] == [1.0, 2.0, 3.0]
    exact = math.exp(-2.0) + sum(dose * math.exp(-0.5 * k) for k in (1, 2, 3))
    assert_close(sol.u[-1, 0], exact, 1e-7)
    (got,) = torch.autograd.grad(sol.u[-1, 0], dose)
    assert_close(got, f64(sum(math.exp(-0.5 * k) for k in (1, 2, 3))), 1e-6)


@pytest.mark.parametrize(
    ("options", "span", "times"),
    [
        ({}, (0.0, 1.0), [0.25, 0.5, 0.75]),
        ({"initial_affect": True}, (0.0, 1.0), [0.0, 0.25, 0.5, 0.75]),
        ({"final_affect": True}, (0.0, 1.0), [0.25, 0.5, 0.75, 1.0]),
        ({"phase": 0.1}, (0.0, 1.0), [0.1, 0.35, 0.6, 0.85]),
        ({}, (1.0, 0.0), [0.75, 0.5, 0.25]),
        ({"phase": 2.0}, (0.0, 1.0), []),
    ],
)
def test_times_of_a_periodic_callback(options, span, times) -> None:
    counted = ps.PeriodicCallback(None, 0.25, **options)
    prob = ps.ODEProblem(decay, f64([1.0]), span, f64(1.0), callback=counted)
    sol = ps.solve(prob, engine="sundials")
    assert [e.t for e in sol.events] == pytest.approx(times, abs=1e-14)


def test_saved_values_and_their_gradient(engine) -> None:
    at_outputs, dense = ps.SavedValues(), ps.SavedValues()
    p = f64(0.7, grad=True)
    callbacks = [
        ps.SavingCallback(lambda u, p, t: p * u.square().sum() + t, at_outputs),
        ps.SavingCallback(lambda u, p, t: u[0], dense, saveat=[0.25, 0.5]),
    ]
    prob = ps.ODEProblem(decay, f64(1.0, 2.0), (0.0, 1.0), p, callback=callbacks)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[0.5, 1.0], **TIGHT)
    assert sol.events == [] and at_outputs.t.tolist() == [0.5, 1.0]
    t = f64(0.5, 1.0)
    exact = 5 * p * torch.exp(-2 * p * t) + t
    assert_close(at_outputs.saveval, exact, 1e-7)
    assert_close(dense.saveval, torch.exp(-p * f64(0.25, 0.5)), 1e-6)
    (got,) = torch.autograd.grad(at_outputs.saveval.sum(), p, retain_graph=True)
    (want,) = torch.autograd.grad(exact.sum(), p)
    assert_close(got, want, 1e-6)
    (got,) = torch.autograd.grad(dense.saveval.sum(), p)
    assert_close(got, -(f64(0.25, 0.5) * torch.exp(-p * f64(0.25, 0.5))).sum(), 1e-5)


def test_saved_values_of_any_kind() -> None:
    saving = ps.SavingCallback(lambda u, p, t: {"u": float(u[0])})
    prob = ps.ODEProblem(decay, f64([1.0]), (0.0, 1.0), f64(1.0), callback=saving)
    ps.solve(prob, engine="sundials", saveat=[0.0, 1.0])
    assert saving.saved_values.saveval[0] == {"u": 1.0}


def test_projection_onto_the_energy(engine) -> None:
    def energy(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return u.square().sum() - 1.0

    options = {"engine": engine, "saveat": [100.0], "reltol": 1e-4, "abstol": 1e-4}
    prob = ps.ODEProblem(spring, f64(1.0, 0.0), (0.0, 100.0))
    plain = ps.solve(prob, nonstiff(engine), **options)
    held = ps.solve(prob, nonstiff(engine), callback=ps.ManifoldProjection(energy), **options)
    drift = abs(float(energy(plain.u[-1], None, plain.t)))
    kept = abs(float(energy(held.u[-1], None, held.t)))
    assert drift > 1e-4 and kept < 0.2 * drift and held.events


def test_projection_onto_two_invariants(engine) -> None:
    def rotation(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.linalg.cross(p, u)

    axis, u0 = f64(0.0, 0.6, 0.8), f64(1.0, 0.5, -0.3)

    def invariants(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.stack([u.square().sum() - u0.square().sum(), torch.dot(p, u - u0)])

    projection = ps.ManifoldProjection(invariants, abstol=1e-4)
    prob = ps.ODEProblem(rotation, u0, (0.0, 20.0), axis, callback=projection)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, reltol=1e-4, abstol=1e-4)
    final = invariants(sol.u[-1], axis, sol.t[-1])
    assert float(final.abs().max()) < 1.1e-4 and sol.events, (final, len(sol.events))


def test_the_positive_domain(engine) -> None:
    def shrink(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return -u.abs()

    prob = ps.ODEProblem(shrink, f64(1.0, 1e-6), (0.0, 30.0))
    loose = {"engine": engine, "reltol": 1e-2, "abstol": 1e-2, "raise_on_failure": False}
    plain = ps.solve(prob, nonstiff(engine), **loose)
    held = ps.solve(prob, nonstiff(engine), callback=ps.PositiveDomain(), **loose)
    # below zero there is no way back: the exact solution never goes there
    assert float(plain.u.min()) < -1.0
    assert held.success and held.events and float(held.u[-1].min()) >= 0.0
    assert_close(held.u[-1], f64(0.0, 0.0), 0.0, 1e-2)


def test_a_solve_ends_at_rest(engine) -> None:
    def relax(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return p * (1.0 - u)

    rest = ps.TerminateSteadyState(abstol=1e-6, reltol=1e-6)
    p = f64(2.0)
    prob = ps.ODEProblem(relax, f64(0.0, 3.0), (0.0, 1e5), p, callback=rest)
    sol = ps.solve(prob, stiff(engine), engine=engine, **TIGHT)
    assert sol.retcode == "Terminated" and 5.0 < float(sol.t[-1]) < 100.0
    assert_close(sol.u[-1], f64(1.0, 1.0), 1e-6)
    late = ps.TerminateSteadyState(1e-6, 1e-6, min_t=200.0)
    sol = ps.solve(ps.remake(prob, callback=late), stiff(engine), engine=engine, **TIGHT)
    assert float(sol.t[-1]) >= 200.0
    two = ps.SplitODEProblem(relax, lambda u, p, t: 0 * u, f64([0.0]), (0.0, 1e5), p, rest)
    assert ps.solve(two, stiff(engine), engine=engine, **TIGHT).retcode == "Terminated"


def test_equations_with_constraints_end_at_rest(engine: str) -> None:
    # x relaxes to p, y = x^2 holds; as a mass matrix that mixes rows, and as a residual
    mix = f64([[2.0, 1.0], [0.5, -1.0]])

    def parts(u: Tensor, p: Tensor) -> Tensor:
        return torch.stack([p - u[0], u[0] ** 2 - u[1]])

    def residual(du: Tensor, u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return parts(u, p) - torch.stack([du[0], 0.0 * du[1]])

    rest, span = ps.TerminateSteadyState(1e-6, 1e-6), (0.0, 1e5)
    mass = mix @ torch.diag(f64(1.0, 0.0))
    ode = ps.ODEProblem(
        lambda u, p, t: mix @ parts(u, p), f64(0.0, 0.0), span, f64(2.0), mass, rest
    )
    flags = torch.tensor([True, False])
    dae = ps.DAEProblem(
        residual, f64(2.0, 0.0), f64(0.0, 0.0), span, f64(2.0), flags, callback=rest
    )
    for prob, alg in ((ode, mass_matrix_solver(engine)), (dae, dae_solver(engine))):
        for tolerances in (TIGHT, {}):
            sol = ps.solve(prob, alg, engine=engine, **tolerances)
            assert sol.retcode == "Terminated"
            # the rate is 2 exp(-t): 1e-6 of u at t = 13.8
            assert 10.0 < float(sol.t[-1]) < 1e3
            assert_close(sol.u[-1], f64(2.0, 4.0), 1e-5)
    scaled = ps.ODEProblem(
        lambda u, p, t: -(u - p), f64([0.0]), span, f64(2.0), f64([[1e-3]]), rest
    )
    sol = ps.solve(scaled, mass_matrix_solver(engine), engine=engine, **TIGHT)
    assert sol.retcode == "Terminated"
    assert_close(sol.u[-1], f64([2.0]), 1e-8)


def test_a_solve_that_ends_early_saves_what_it_reached(engine: str) -> None:
    saved = ps.SavedValues()
    save = ps.SavingCallback(lambda u, p, t: u[0], saved, saveat=[0.25, 0.5, 0.75])
    stop = ps.ContinuousCallback(lambda u, p, t: u[0] - 0.55, ps.terminate)  # at t = 0.598
    ps.solve(ODE, stiff(engine), engine=engine, callback=[save, stop], **TIGHT)
    assert saved.t.tolist() == [0.25, 0.5]
    assert_close(saved.saveval, torch.exp(-saved.t), 1e-6)


ODE = ps.ODEProblem(decay, f64([1.0]), (0.0, 1.0), f64(1.0))


def solved(callback: Any, **options: Any) -> Any:
    return lambda: ps.solve(ODE, engine="sundials", callback=callback, **options)


def projection(g: Any) -> Any:
    return solved(ps.ManifoldProjection(g))


BAD: dict[str, tuple[Any, str]] = {
    "arguments of condition": (
        lambda: ps.VectorContinuousCallback(lambda out, u, t, i: u, None, 1),
        r"condition takes \(out, u, t, i\), but it is called with \(u, p, t\)",
    ),
    "arguments of affect": (
        lambda: ps.VectorContinuousCallback(decay, lambda u, p, t: u, 1),
        r"affect takes \(u, p, t\), but it is called with \(u, p, t, i\)",
    ),
    "affect of SciML": (
        lambda: ps.PeriodicCallback(lambda integrator: None, 1.0), r"affect takes \(integrator\)",
    ),
    "save_func of SciML": (
        lambda: ps.SavingCallback(lambda u, t, integrator: u), "save_func takes .*in this order",
    ),
    "arguments of save_func": (lambda: ps.SavingCallback(lambda u, t: u), r"takes \(u, t\), but"),
    "arguments of g": (lambda: ps.ManifoldProjection(lambda u: u), r"g takes \(u\), but"),
    "number of g": (projection(lambda u, p, t: 0.0), "returned float; return a tensor of float64"),
    "nothing of g": (projection(lambda u, p, t: None), "returned NoneType; return a tensor"),
    "dtype of g": (projection(lambda u, p, t: u.float()), "returned float32; return a tensor"),
    "residuals": (
        projection(lambda u, p, t: torch.cat([u, u])), "2 residuals, but the state has 1 entries"
    ),
    "no residuals": (projection(lambda u, p, t: u[:0]), "returned 0 residuals"),
    "tiny period": (solved(ps.PeriodicCallback(None, 1e-14)), "dt is 1e-14 in a PeriodicCallback"),
    "word for a flag": (
        lambda: ps.PeriodicCallback(None, 1.0, initial_affect="yes"), "initial_affect is 'yes'",
    ),
    "flag for a phase": (lambda: ps.PeriodicCallback(None, 1.0, True), "phase is True; give a"),
    "min_t nan": (lambda: ps.TerminateSteadyState(min_t=math.nan), "min_t is nan; give a number"),
    "times without values": (
        solved(ps.SavingCallback(decay, saveat=torch.ones(1, device="meta"))),
        "saveat is on the device meta",
    ),
    "complex times": (
        solved(ps.SavingCallback(decay, saveat=torch.tensor([0.5 + 0j]))),
        r"saveat is tensor\(\[0.5000\+0.j\]\); give a 1-d tensor",
    ),
    "len": (lambda: ps.VectorContinuousCallback(decay, None, 0), "len is 0; give the number"),
    "condition": (lambda: ps.VectorContinuousCallback(3, None, 1), "condition is a int"),
    "affect": (lambda: ps.VectorContinuousCallback(decay, 3, 1), "affect is a int"),
    "shape": (
        lambda: ps.solve(
            ODE, engine="sundials",
            callback=ps.VectorContinuousCallback(lambda u, p, t: u, None, 2),
        ),
        r"returned \(1,\); return a tensor of shape \(2,\)",
    ),
    "times outside": (
        lambda: ps.solve(
            ODE, engine="sundials", callback=ps.SavingCallback(decay, saveat=[0.5, 50.0])
        ),
        r"saveat\[1\] = 50",
    ),
    "time nan": (
        lambda: ps.solve(
            ODE, engine="sundials", callback=ps.SavingCallback(decay, saveat=[float("nan")])
        ),
        r"saveat\[0\] is nan; give finite times",
    ),
    "min_t": (lambda: ps.TerminateSteadyState(min_t="x"), "min_t is 'x'; give a number"),
    "period": (lambda: ps.PeriodicCallback(None, 0.0), "dt is 0.0; give a positive number"),
    "phase": (lambda: ps.PeriodicCallback(None, 1.0, phase=-1.0), "phase is -1.0; give a number"),
    "start": (
        lambda: ps.solve(
            ps.ODEProblem(decay, f64([1.0]), (f64(0.0, grad=True), 1.0), f64(1.0)),
            engine="sundials", callback=ps.PeriodicCallback(None, 0.3),
        ),
        r"tspan\[0\] requires grad",
    ),
    "save_func": (lambda: ps.SavingCallback(3), "save_func is a int"),
    "saved_values": (lambda: ps.SavingCallback(decay, []), "saved_values is a list"),
    "save_idxs": (
        lambda: ps.solve(ODE, engine="sundials", callback=ps.SavingCallback(decay), save_idxs=[0]),
        "leave save_idxs out",
    ),
    "g": (lambda: ps.ManifoldProjection(3), "g is a int"),
    "abstol": (lambda: ps.ManifoldProjection(decay, 0.0), "abstol is 0.0; give a positive"),
    "rest": (lambda: ps.TerminateSteadyState(reltol=-1), "reltol is -1; give a positive"),
    "rest of noise": (
        lambda: REST.for_problem(ps.SDEProblem(*(2 * [decay]), *ARGUMENTS).as_pair(), 0.0, 1.0),
        "TerminateSteadyState was given, but noise moves the state on where its rate is zero",
    ),
    "rest of random": (
        lambda: REST.for_problem(
            ps.RODEProblem(lambda u, p, t, W: W - u, *ARGUMENTS).as_flat(), 0.0, 1.0
        ),
        "noise moves the state on",
    ),
    "rest of delays": (
        lambda: REST.for_problem(
            ps.DDEProblem(
                lambda u, h, p, t: -h(p, t - 1.0), f64([1.0]), lambda p, t: f64([1.0]), (0.0, 1.0)
            ).as_whole(),
            0.0, 1.0,
        ),
        "earlier states move the state on",
    ),
}  # fmt: skip

REST = ps.TerminateSteadyState()
ARGUMENTS = (f64([1.0]), (0.0, 1.0), f64(1.0))


@pytest.mark.julia
def test_rest_is_not_asked_of_noise_jumps_and_delays() -> None:
    jump = ps.ConstantRateJump(lambda u, p, t: p, lambda u, p, t: u + 1)
    counts = ps.DiscreteProblem(None, f64([0.0]), (0.0, 100.0), f64(1.0))
    sde = ps.SDEProblem(decay, decay, *ARGUMENTS)
    delayed = ps.DDEProblem(
        lambda u, h, p, t: -h(p, t - 1.0), f64([1.0]), lambda p, t: f64([1.0]), (0.0, 1.0)
    )
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (ps.JumpProblem(counts, jump), ps.SSAStepper(), {}, "jumps move"),
        (ps.JumpProblem(ODE, jump), ps.Tsit5(), {}, "jumps move"),
        (ps.JumpProblem(sde, jump), ps.EM(), {"dt": 0.1}, "jumps move"),
        (sde, ps.EM(), {"dt": 0.1}, "noise moves"),
        (delayed, ps.MethodOfSteps(ps.Tsit5()), {}, "earlier states move"),
    ]
    for prob, alg, options, message in cases:
        with pytest.raises(InputError, match=message):
            ps.solve(prob, alg, engine="julia", callback=REST, **options)


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call()
