"""Memory stays flat where people solve again and again."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import pytest
import torch
from torch import nn

import pysciml as ps
from pysciml.engines.julia.startup import julia
from support import F64, f64, nonstiff


def growth(step, warm, count):
    """Bytes that Python and NumPy hold more after ``count`` further calls of ``step``."""
    for _ in range(warm):
        step()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(count):
            step()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(120)
def test_a_thousand_training_steps(engine):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    u0, grid = f64(1.0, 0.0), torch.linspace(0, 0.5, 4, dtype=torch.float64)
    alg = nonstiff(engine)
    live = weakref.WeakSet()

    def step():
        prob = ps.ODEProblem(lambda u, p, t: net(u), u0, (0.0, 0.5))
        sol = ps.solve(prob, alg, engine=engine, saveat=grid, abstol=1e-4, reltol=1e-4)
        live.add(sol)
        optimiser.zero_grad()
        (sol.u.square().mean() + sol(0.3).square().sum()).backward()
        optimiser.step()

    # tensors are not traced, but each stands in a Python object that is, and in a solution
    grown = growth(step, 50, 950)
    assert grown < 200_000, f"{grown} bytes in 950 steps"
    assert len(live) <= 1, f"{len(live)} solutions are still alive"


@pytest.mark.timeout(120)
def test_training_with_functions_and_tensors_made_anew(engine):
    """No step's tensors, nor the graph they come from, outlive it."""
    raw = f64(0.1, -0.2, grad=True)
    alg, live = nonstiff(engine), weakref.WeakSet()

    def step():
        theta = raw.exp()
        live.add(theta)
        prob = ps.ODEProblem(lambda u, p, t: -theta * u, f64(1.0, 2.0), (0.0, 0.5))
        sol = ps.solve(prob, alg, engine=engine, abstol=1e-4, reltol=1e-4)
        (g,) = torch.autograd.grad(sol.u[-1].sum(), raw)
        with torch.no_grad():
            raw.sub_(0.001 * g)

    grown = growth(step, 50, 450)
    assert grown < 200_000, f"{grown} bytes in 450 steps"
    assert len(live) <= 1, f"the tensors of {len(live)} steps are still alive"


def test_solutions_are_freed_without_the_garbage_collector(engine):
    """A reference cycle would keep every solution, with its graph, until the collector runs."""
    p = f64(0.5, grad=True)
    prob = ps.ODEProblem(lambda u, p, t: -p * u, f64([1.0]), (0.0, 1.0), p)
    ps.solve(prob, nonstiff(engine), engine=engine).u.sum().backward()
    gc.collect()
    gc.disable()
    try:
        sol = ps.solve(prob, nonstiff(engine), engine=engine)
        sol(0.5).sum().backward()
        gone = weakref.ref(sol)
        del sol
        assert gone() is None
    finally:
        gc.enable()


def test_failed_solves(engine):
    prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 1.0))

    def step():
        with pytest.raises(ps.SolveError):
            ps.solve(prob, nonstiff(engine), engine=engine, maxiters=3)

    assert growth(step, 20, 300) < 150_000


def test_functions_made_anew_do_not_pile_up(engine):
    """Each captured anew; only so many captures are kept, and with them what they close over."""
    alive = weakref.WeakSet()

    def step(k):
        net = nn.Linear(1, 1).double()
        alive.add(net)
        prob = ps.ODEProblem(lambda u, p, t: k * net(u), f64([1.0]), (0.0, 0.1))
        ps.solve(prob, nonstiff(engine), engine=engine)

    for i in range(160):
        step(1.0 + 0.001 * i)
    gc.collect()
    assert len(alive) < 140


def decay(u, p):
    """A full Jacobian; each of its own function, so that none is solved by another's model."""
    return ps.ODEProblem(lambda u, p, t: u.mean() - p * u, u, (0.0, 1.0), p)


#: Solves that form no Jacobian: problems by state and parameter, and how they are solved.
WITHOUT_JACOBIAN = {
    "Tsit5": (decay, {"alg": ps.Tsit5()}),
    "default": (decay, {}),
    "Krylov": (decay, {"alg": ps.FBDF(linsolve=ps.KrylovJL_GMRES())}),
    "EM": (
        lambda u, p: ps.SDEProblem(
            lambda u, p, t: -p * u, lambda u, p, t: 0.1 * u, u, (0.0, 1.0), p
        ),
        {"alg": ps.EM(), "dt": 0.1},
    ),
    "MethodOfSteps": (
        lambda u, p: ps.DDEProblem(
            lambda u, h, p, t: -p * h(p, t - 1.0), u, lambda p, t: torch.ones_like(u), (0.0, 1.0), p
        ),
        {"alg": ps.MethodOfSteps(ps.Tsit5())},
    ),
}


@pytest.mark.julia
@pytest.mark.parametrize("name", WITHOUT_JACOBIAN)
def test_a_large_state_takes_no_memory_of_its_square(name):
    """A batch of thousands of points is one state; its Jacobian was laid out, and never read."""
    make, options = WITHOUT_JACOBIAN[name]
    gradient, n = name in ("Tsit5", "EM"), 8000
    p = f64(0.5, grad=gradient)

    def allocated():
        return julia().main.seval("Base.gc_total_bytes(Base.gc_num())")

    def solve(size):
        prob = make(torch.ones(size, dtype=F64), p)
        sol = ps.solve(prob, engine="julia", saveat=[0.0, 1.0], **options)
        if gradient:
            sol.u.sum().backward()

    solve(600)  # compiles
    before = allocated()
    solve(n)
    assert allocated() - before < n * n * 8 / 2
