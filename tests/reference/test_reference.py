"""Published solutions of the Test Set for IVP Solvers, to the digits that a tolerance promises."""

from __future__ import annotations

from math import log10

import pytest
import torch
from scipy.integrate import solve_ivp

import pysciml as ps
from pysciml.algorithms import Algorithm
from reference.problems import DAES, ODES, Problem, by_name, mescd


def promised(problem: Problem, reltol: float) -> float:
    return -log10(reltol) - problem.slack


def solve(problem: Problem, alg: Algorithm, reltol: float) -> torch.Tensor:
    """The state at the end, at a tolerance of ``reltol`` and an absolute one in proportion."""
    start, u = problem.tspan[0], problem.u0
    for end, p in problem.legs:
        sol = ps.solve(
            ps.ODEProblem(problem.f, u, (start, end), p, mass_matrix=problem.mass_matrix),
            alg,
            saveat=torch.tensor([end], dtype=torch.float64),
            abstol=problem.abstol * reltol / problem.reltol,
            reltol=reltol,
            maxiters=1_000_000,
            engine=alg.engines[0],
        )
        assert sol.retcode == "Success"
        start, u = end, sol.u[-1]
    return u


@pytest.mark.parametrize("problem", ODES, ids=repr)
def test_cvode_bdf_reaches_the_published_solution(problem: Problem) -> None:
    u = solve(problem, ps.CVODE_BDF(), problem.reltol)
    assert mescd(problem, u, problem.abstol, problem.reltol) >= promised(problem, problem.reltol)


@pytest.mark.parametrize("name", ["HIRES", "POLLU", "ROBER", "VDPOL", "CHEMAKZO"])
def test_error_falls_with_the_tolerance(name: str) -> None:
    problem = by_name(name)
    alg = ps.IDA() if problem.mass_matrix is not None else ps.CVODE_BDF()
    digits = []
    for reltol in (1e-5, 1e-9):
        u = solve(problem, alg, reltol)
        # measured on one scale, or a tighter absolute tolerance would be asked for more
        digits.append(mescd(problem, u, problem.abstol, problem.reltol))
    assert digits[1] >= digits[0] + 2, digits


def test_cvode_adams_reaches_the_published_solution() -> None:
    problem = by_name("PLEIADES")
    u = solve(problem, ps.CVODE_Adams(), problem.reltol)
    assert mescd(problem, u, problem.abstol, problem.reltol) >= promised(problem, problem.reltol)


@pytest.mark.parametrize("problem", DAES, ids=repr)
def test_ida_reaches_the_published_solution_with_a_mass_matrix(problem: Problem) -> None:
    u = solve(problem, ps.IDA(), problem.reltol)
    assert mescd(problem, u, problem.abstol, problem.reltol) >= promised(problem, problem.reltol)


@pytest.mark.parametrize("problem", DAES, ids=repr)
def test_ida_reaches_the_published_solution_from_a_residual(problem: Problem) -> None:
    mass = problem.mass_matrix
    assert mass is not None

    def residual(du: torch.Tensor, u: torch.Tensor, p: None, t: torch.Tensor) -> torch.Tensor:
        return mass @ du - problem.f(u, p, t)

    du0 = torch.linalg.lstsq(mass, problem.f(problem.u0, None, torch.tensor(0.0))).solution
    prob = ps.DAEProblem(
        residual,
        du0,
        problem.u0,
        problem.tspan,
        differential_vars=problem.differential_vars,
    )
    sol = ps.solve(
        prob,
        ps.IDA(),
        engine="sundials",
        saveat=[problem.tspan[1]],
        abstol=problem.abstol,
        reltol=problem.reltol,
        maxiters=1_000_000,
    )
    digits = mescd(problem, sol.u[-1], problem.abstol, problem.reltol)
    assert digits >= promised(problem, problem.reltol)


@pytest.mark.julia
@pytest.mark.parametrize("problem", ODES, ids=repr)
def test_rodas5p_reaches_the_published_solution(problem: Problem) -> None:
    u = solve(problem, ps.Rodas5P(), problem.reltol)
    assert mescd(problem, u, problem.abstol, problem.reltol) >= promised(problem, problem.reltol)


@pytest.mark.parametrize("name", ["HIRES", "POLLU", "ROBER", "PLEIADES"])
def test_problem_agrees_with_an_independent_solver(name: str) -> None:
    """Guards the problems themselves: a wrong sign in them would be blamed on the engine."""
    problem = by_name(name)

    def f(t: float, y):
        return problem.f(torch.from_numpy(y), None, torch.tensor(t, dtype=torch.float64)).numpy()

    reltol = 1e-9
    abstol = problem.abstol * reltol / problem.reltol
    method = "DOP853" if name == "PLEIADES" else "LSODA"
    sol = solve_ivp(f, problem.tspan, problem.u0.numpy(), method=method, rtol=reltol, atol=abstol)
    u = torch.from_numpy(sol.y[:, -1].copy())
    assert mescd(problem, u, abstol, reltol) >= promised(problem, reltol)
