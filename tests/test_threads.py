"""Solves from several Python threads at once give what they give alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import pysciml as ps
from pysciml.engines.julia.startup import julia
from support import LV_U0, ROBER_U0, counted_captures, f64, lotka_volterra, nonstiff, rober, stiff


@pytest.fixture(autouse=True)
def switch_often():
    """Change threads every few bytecodes, to meet more of the orders they can run in."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(work, arguments, threads=4):
    """``work`` of each argument, in threads that begin together."""
    barrier = threading.Barrier(threads)

    def first(argument):
        return work(argument)

    with ThreadPoolExecutor(threads, initializer=barrier.wait) as pool:
        return list(pool.map(first, arguments))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_one_problem_with_many_parameters(engine):
    prob = ps.ODEProblem(lotka_volterra, f64(*LV_U0), (0.0, 5.0), None)

    def work(a):
        p = f64(a, 1.0, 3.0, 1.0, grad=True)
        sol = ps.solve(ps.remake(prob, p=p), stiff(engine), engine=engine, saveat=0.5)
        (g,) = torch.autograd.grad(sol.u.square().sum(), p)
        return sol.u.detach(), g, sol(1.23).detach()

    values = [1.0 + 0.05 * i for i in range(24)]
    serial = [work(a) for a in values]
    assert all(same(a, b) for a, b in zip(at_once(work, values), serial, strict=True))


def test_different_problems_at_once(engine):
    def lv(k):
        return ps.ODEProblem(lotka_volterra, f64(*LV_U0), (0.0, 3.0), f64(1.5 + k, 1.0, 3.0, 1.0))

    def stiff_one(k):
        return ps.ODEProblem(rober, f64(*ROBER_U0), (0.0, 10.0), f64(0.04 + 0.01 * k, 3e7, 1e4))

    def events(k):
        callback = ps.ContinuousCallback(
            lambda u, p, t: u[0],
            lambda u, p, t: torch.stack([0.0 * u[0], -0.8 * u[1]]),
            direction=-1,
        )
        return ps.ODEProblem(
            lambda u, p, t: torch.stack([u[1], -p]), f64(10.0 + k, 0.0), (0.0, 4.0), f64(9.81),
            callback=callback,
        )  # fmt: skip

    jobs = [(make, k) for k in range(6) for make in (lv, stiff_one, events)]

    def work(job):
        make, k = job
        sol = ps.solve(make(k), stiff(engine), engine=engine, abstol=1e-8, reltol=1e-6)
        return sol.t, sol.u

    serial = [work(j) for j in jobs]
    assert all(same(a, b) for a, b in zip(at_once(work, jobs), serial, strict=True))


def test_the_first_solve_of_a_function_may_come_from_several_threads(engine):
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    prob = ps.ODEProblem(lambda u, p, t: net(u), f64(1.0, 0.0), (0.0, 1.0))

    def work(_):
        sol = ps.solve(prob, nonstiff(engine), engine=engine)
        return (sol.u.detach(), *torch.autograd.grad(sol.u.sum(), list(net.parameters())))

    with counted_captures() as captures:
        results = at_once(work, range(8), threads=8)
    assert len(captures) == 1
    assert all(same(r, results[0]) for r in results)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_functions_that_are_called_back(engine):
    def f(u, p, t):
        return -p * u if t.item() >= 0 else u

    def work(k):
        p = f64(k, grad=True)
        sol = ps.solve(
            ps.ODEProblem(f, f64(1.0, 2.0), (0.0, 1.0), p), nonstiff(engine), engine=engine
        )
        return sol.u.detach(), *torch.autograd.grad(sol.u.sum(), p)

    values = [0.1 * i for i in range(1, 9)]
    serial = [work(k) for k in values]
    assert all(same(a, b) for a, b in zip(at_once(work, values), serial, strict=True))


def test_a_failing_thread_does_not_disturb_the_others(engine, capfd):
    def work(k):
        if k % 2:
            prob = ps.ODEProblem(lambda u, p, t: u * u, f64([1.0]), (0.0, 2.0))
            with pytest.raises(ps.SolveError):
                ps.solve(prob, nonstiff(engine), engine=engine)
            return (f64(0.0),)
        prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 2.0))
        return (ps.solve(prob, nonstiff(engine), engine=engine).u,)

    out = sys.stdout
    serial = [work(k) for k in range(12)]
    assert all(same(a, b) for a, b in zip(at_once(work, range(12)), serial, strict=True))
    assert sys.stdout is out
    assert capfd.readouterr().out == ""


@pytest.mark.julia
def test_split_equations_with_constants_at_once():
    rates = torch.linspace(1.0, 40.0, 12, dtype=torch.float64)

    def stiff_part(u, p, t):
        return -rates * u

    prob = ps.SplitODEProblem(
        stiff_part, lambda u, p, t: p * torch.cos(t + rates), torch.ones(12).double(), (0.0, 20.0),
        f64(1.0),
    )  # fmt: skip

    def work(a):
        options = {"engine": "julia", "saveat": 5.0, "reltol": 1e-8, "abstol": 1e-8}
        return (ps.solve(ps.remake(prob, p=f64(a)), ps.KenCarp4(), **options).u,)

    values = [1.0 + 0.05 * i for i in range(16)]
    serial = [work(a) for a in values]
    assert all(same(a, b) for a, b in zip(at_once(work, values), serial, strict=True))


_IN_A_THREAD = """
import threading, torch, pysciml as ps

def solve():
    try:
        prob = ps.ODEProblem(lambda u, p, t: -u, torch.ones(2).double(), (0.0, 1.0))
        ps.solve(prob, ps.Tsit5(), engine="julia")
    except ps.EngineError as error:
        print(error)

thread = threading.Thread(target=solve, name="background")
thread.start()
thread.join()
"""


@pytest.mark.julia
def test_julia_is_not_started_by_a_thread_that_may_end():
    ran = subprocess.run(
        [sys.executable, "-c", _IN_A_THREAD],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "must be by the main thread" in ran.stdout and "'background'" in ran.stdout


@pytest.mark.julia
def test_a_collection_of_garbage_does_not_wait_for_the_main_thread() -> None:
    # which is in Python meanwhile: it waited for ever
    ps.solve(ps.ODEProblem(lambda u, p, t: -u, torch.ones(1), (0.0, 1.0)), engine="julia")
    done = threading.Event()

    def collect() -> None:
        julia().main.seval("GC.gc()")
        done.set()

    threading.Thread(target=collect, daemon=True).start()
    assert done.wait(120)


@pytest.mark.julia
def test_stochastic_equations_and_jumps_in_threads() -> None:
    p = torch.tensor([0.5, 0.4], dtype=torch.float64)
    noisy = ps.SDEProblem(
        lambda u, p, t: p[0] * u, lambda u, p, t: p[1] * u, torch.ones(3, dtype=torch.float64),
        (0.0, 1.0), p,
    )  # fmt: skip
    kick = ps.VariableRateJump(lambda u, p, t: 2 + u[0], lambda u, p, t: 0.9 * u)
    jumping = ps.JumpProblem(noisy, ps.Direct(), kick)

    def one(seed: int) -> torch.Tensor:
        prob = jumping if seed % 2 else noisy
        sol = ps.solve(prob, ps.EM(), dt=0.01, seed=seed, saveat=[1.0], engine="julia")
        return sol.u

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, range(60)))
    for seed in range(0, 60, 7):
        assert torch.equal(one(seed), together[seed])
