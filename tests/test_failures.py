"""Solves that fail on their way: their error travels, keeps what was asked for, and advises."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

import pysciml as ps
from support import F64, assert_close, dae_solver, f64, mass_matrix_solver, nonstiff


def blow_up(u, p, t):
    return p * u * u


def problem(**fields):
    return ps.ODEProblem(blow_up, f64(1.0, 0.5), (0.0, 3.0), f64(1.0), **fields)


def failed(prob, alg, engine, **options):
    with pytest.raises(ps.SolveError) as caught:
        ps.solve(prob, alg, engine=engine, **options)
    return caught.value


# -- errors that travel ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied",
    [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_copies_of_an_error(engine, copied):
    error = failed(problem(), nonstiff(engine), engine)
    error.add_note("the third of them")
    other = copied(error)
    assert type(other) is ps.SolveError and str(other) == str(error)
    assert (other.retcode, other.t, other.__notes__) == (error.retcode, error.t, error.__notes__)
    assert torch.equal(other.solution.u, error.solution.u) and not other.solution.success


def test_errors_of_other_kinds_are_copied_too():
    for kind in (ps.InputError, ps.EngineError, ps.PyscimlError):
        assert repr(pickle.loads(pickle.dumps(kind("x is 3; give 4.")))) == repr(
            kind("x is 3; give 4.")
        )


def test_an_error_comes_back_from_another_process():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(ps.solve, problem(), engine="sundials")
        with pytest.raises(ps.SolveError, match="stopped at t = ") as caught:
            future.result()
        assert abs(caught.value.t - 1.0) < 1e-2 and len(caught.value.solution) > 10
        ensemble = ps.EnsembleProblem(problem(), p=f64(0.1, 1.0))
        with pytest.raises(ps.SolveError, match="1 of 2 members stopped.*member 1") as caught:
            ps.solve(ensemble, None, ps.EnsembleExecutor(pool), engine="sundials")
        sim = caught.value.solution
        assert sim[0].success and not sim[1].success
        assert pickle.loads(pickle.dumps(caught.value)).solution.retcodes == sim.retcodes


# -- what was computed ----------------------------------------------------------------------


def test_a_partial_solution_keeps_the_entries_asked_for(engine):
    error = failed(problem(), nonstiff(engine), engine, save_idxs=[1], abstol=1e-9, reltol=1e-9)
    sol = error.solution
    early = sol.t < 0.9
    assert sol.u.shape == (len(sol), 1) and sol(0.5).shape == (1,)
    assert_close(sol.u[early, 0], 1 / (2 - sol.t[early]), 1e-6)


# -- advice ---------------------------------------------------------------------------------


def inconsistent(du, u, p, t):
    return torch.stack([du[0] + u[0] - u[1], u[0] + u[1] - 1.0])


def pendulum(u, p, t):
    """In Cartesian coordinates with the length as a constraint: of index 3."""
    x, y, vx, vy, tension = u.unbind()
    return torch.stack([vx, vy, -tension * x, -tension * y - 9.8, x * x + y * y - 1.0])


START = f64(1.0, 0.0, 0.0, 0.0, 0.0)
DIFFERENTIAL = torch.tensor([True, True, True, True, False])


def test_initial_values_that_may_not_fit_together():
    prob = ps.DAEProblem(inconsistent, f64(0.0, 0.0), f64(1.0, 5.0), (0.0, 1.0))
    with pytest.raises(ps.InputError, match="equation 1 is off by 5 .* or give differential_vars="):
        ps.solve(prob, dae_solver("sundials"), engine="sundials")
    mended = ps.remake(prob, differential_vars=torch.tensor([True, False]))
    assert ps.solve(mended, dae_solver("sundials"), engine="sundials").success


def test_an_index_above_one():
    mass = torch.diag(DIFFERENTIAL.to(F64))
    residual = ps.DAEProblem(
        lambda du, u, p, t: mass @ du - pendulum(u, p, t), f64(0.0, 0.0, 0.0, -9.8, 0.0), START,
        (0.0, 1.0), differential_vars=DIFFERENTIAL,
    )  # fmt: skip
    form = ps.ODEProblem(pendulum, START, (0.0, 1.0), mass_matrix=mass)
    for prob, alg in (
        (residual, dae_solver("sundials")),
        (form, mass_matrix_solver("sundials")),
    ):
        error = failed(prob, alg, "sundials")
        assert error.retcode == "DtLessThanMin"
        assert "index may be above 1: differentiate its constraints" in str(error)
        assert "stiff algorithm" not in str(error) and "differential_vars" not in str(error)


@pytest.mark.parametrize("kind", ["ode", "dae"])
def test_tolerances_below_rounding(kind):
    prob = ps.ODEProblem(lambda u, p, t: -u, f64(1.0, 2.0), (0.0, 1.0))
    if kind == "dae":
        prob = ps.DAEProblem(inconsistent, f64(0.0, 0.0), f64(1.0, 0.0), (0.0, 1.0))
    error = failed(prob, None, "sundials", abstol=1e-30, reltol=1e-20)
    assert "abstol and reltol ask for more than float64 holds; raise one" in str(error)


def test_a_blow_up_is_not_the_tolerances_fault():
    error = failed(problem(), nonstiff("sundials"), "sundials", abstol=1e-10, reltol=1e-10)
    assert "blow up" in str(error) and "float64" not in str(error)
