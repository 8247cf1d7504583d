"""Solving one problem again: what was found out is kept, and let go where anything changed."""

from __future__ import annotations

import copy
import pickle
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

import pysciml as ps
from pysciml import flattened
from pysciml.nn import NeuralODE
from support import assert_close, f64, mass_matrix_solver, nonstiff

ENGINES = ["sundials", pytest.param("julia", marks=pytest.mark.julia)]
pytestmark = pytest.mark.parametrize("engine", ENGINES)
TOLERANCES = {"abstol": 1e-9, "reltol": 1e-9}


def decay(u, p, t):
    return -p["rate"] * u


def problem(f=decay, rate=0.7):
    return ps.ODEProblem(f, f64(1.0, 2.0), (0.0, 1.0), {"rate": f64(rate, grad=True)})


def solve(prob, engine, **options):
    return ps.solve(prob, nonstiff(engine), engine=engine, **{**TOLERANCES, **options})


@contextmanager
def flattenings():
    """Counts the problems that are taken apart from the start."""
    count = []
    init = flattened.Flattened.__init__

    def counted(self, *args, **kwargs):
        count.append(1)
        init(self, *args, **kwargs)

    with mock.patch.object(flattened.Flattened, "__init__", counted):
        yield count


def check(prob, engine, rate, u0=(1.0, 2.0), **options):
    """The end state and its gradient by p against the closed form."""
    sol = solve(prob, engine, **options)
    rate = torch.as_tensor(rate, dtype=torch.float64)
    want = f64(*u0) * torch.exp(-rate)
    assert_close(sol.u[-1], want, 1e-7)
    (got,) = torch.autograd.grad(sol.u[-1].sum(), prob.p["rate"])
    assert_close(got, -want.sum(), 1e-6)
    return sol


def test_the_second_solve_is_planned(engine):
    prob = problem()
    with flattenings() as count:
        for _ in range(3):
            check(prob, engine, 0.7)
        assert len(count) == 1
        solve(prob, engine, saveat=[0.5, 1.0])
        solve(prob, engine, saveat=[0.5, 1.0])
        assert len(count) == 2
        check(prob, engine, 0.7)
    assert len(count) == 2


def test_values_are_read_at_each_solve(engine):
    prob = problem()
    check(prob, engine, 0.7)
    with torch.no_grad():
        prob.p["rate"].fill_(1.1)
        prob.u0.copy_(f64(3.0, -1.0))
    check(prob, engine, 1.1, u0=(3.0, -1.0))
    prob.p["rate"] = f64(0.2, grad=True)
    check(prob, engine, 0.2, u0=(3.0, -1.0))
    prob.p["rate"] = f64(0.3)
    assert not solve(prob, engine).u.requires_grad
    prob.p["rate"] = torch.ones(2, dtype=torch.float64, requires_grad=True)
    assert_close(solve(prob, engine).u[-1], prob.u0 * torch.exp(-f64(1.0)), 1e-7)


def test_solutions_keep_their_own_values(engine):
    prob = problem()
    check(prob, engine, 0.7)
    first = solve(prob, engine)
    early = first(0.5).detach().clone()
    prob.p["rate"] = f64(2.0, grad=True)
    second = solve(prob, engine)
    assert_close(first(0.5), early, 1e-12)
    (g,) = torch.autograd.grad(second.u[-1].sum(), prob.p["rate"])
    assert_close(g, -3.0 * torch.exp(f64(-2.0)), 1e-6)


def test_remake_hands_it_on(engine):
    prob = problem()
    check(prob, engine, 0.7)
    with flattenings() as count:
        check(ps.remake(prob, p={"rate": f64(0.4, grad=True)}), engine, 0.4)
        again = ps.remake(prob, u0=f64(5.0, 6.0))
        check(again, engine, 0.7, u0=(5.0, 6.0))
        assert not count
        longer = ps.remake(prob, u0=f64(5.0, 6.0, 7.0))
        assert_close(solve(longer, engine).u[-1], longer.u0 * torch.exp(f64(-0.7)), 1e-7)
        later = ps.remake(prob, tspan=(0.0, 2.0))
        assert_close(solve(later, engine).u[-1], prob.u0 * torch.exp(f64(-1.4)), 1e-7)
        grows = ps.remake(prob, f=lambda u, p, t: p["rate"] * u)
        assert_close(solve(grows, engine).u[-1], prob.u0 * torch.exp(f64(0.7)), 1e-7)
    assert len(count) == 3


def test_other_options_are_another_plan(engine):
    prob = problem()
    with flattenings() as count:
        for _ in range(2):
            coarse, fine = solve(prob, engine, reltol=1e-3, abstol=1e-3), solve(prob, engine)
            one = solve(prob, engine, save_idxs=[1])
            bad = solve(prob, engine, maxiters=2, raise_on_failure=False)
            assert coarse.stats.naccept < fine.stats.naccept
            assert one.u.shape[1:] == (1,)
            assert not bad.success
        assert len(count) == 4
    with pytest.raises(ps.SolveError):
        solve(prob, engine, maxiters=2)
    with pytest.raises(ps.InputError, match="reltol"):
        solve(prob, engine, reltol=-1.0)
    with pytest.raises(ps.InputError, match="retol"):
        solve(prob, engine, retol=1e-3)


def test_output_times_that_are_written_to(engine):
    prob, grid, times = problem(), f64(0.25, 1.0), [0.5, 1.0]
    for _ in range(2):
        assert solve(prob, engine, saveat=grid).t.tolist() == [0.25, 1.0]
        assert solve(prob, engine, saveat=times).t.tolist() == [0.5, 1.0]
    grid[0], times[0] = 0.75, 0.125
    moved = solve(prob, engine, saveat=grid)
    assert moved.t.tolist() == [0.75, 1.0]
    assert_close(moved.u[0], prob.u0 * torch.exp(f64(-0.75 * 0.7)), 1e-7)
    assert solve(prob, engine, saveat=times).t.tolist() == [0.125, 1.0]
    grid[0] = -3.0
    with pytest.raises(ps.InputError, match="outside tspan"):
        solve(prob, engine, saveat=grid)


def test_times_given_out_are_not_those_kept(engine):
    prob = problem()
    for _ in range(2):
        sol = solve(prob, engine, saveat=[0.5, 1.0])
        assert sol.t.tolist() == [0.5, 1.0]
        with torch.no_grad():
            sol.t.fill_(7.0)


def test_output_times_with_gradients(engine):
    prob = problem()
    for _ in range(2):
        grid = f64(0.25, 1.0, grad=True)
        for _ in range(2):
            sol = solve(prob, engine, saveat=grid)
            (got,) = torch.autograd.grad(sol.u[0].sum(), grid)
            assert_close(got[0], -0.7 * 3.0 * torch.exp(f64(-0.7 * 0.25)), 1e-6)


def test_python_state_that_changes(engine):
    factor = 1.0
    scale = {"by": 1.0}

    def f(u, p, t):
        return -factor * scale["by"] * p["rate"] * u

    prob = problem(f)
    check(prob, engine, 0.7)
    factor = 2.0
    sol = solve(prob, engine)
    assert_close(sol.u[-1], prob.u0 * torch.exp(f64(-1.4)), 1e-7)
    scale["by"] = 0.5
    check(prob, engine, 0.7)


def test_modules_and_closed_over_tensors(engine):
    gain = f64(1.0, grad=True)
    layer = torch.nn.Linear(2, 2, bias=False, dtype=torch.float64)

    def f(u, p, t):
        return gain * layer(u)

    prob = ps.ODEProblem(f, f64(1.0, 2.0), (0.0, 1.0))

    def compare():
        sol = solve(prob, engine)
        want = torch.linalg.matrix_exp(gain * layer.weight) @ prob.u0
        assert_close(sol.u[-1], want, 1e-7)
        leaves = [x for x in (gain, layer.weight) if x.requires_grad]
        got = torch.autograd.grad(sol.u[-1].sum(), leaves)
        for a, b in zip(got, torch.autograd.grad(want.sum(), leaves), strict=True):
            assert_close(a, b, 1e-6)

    compare()
    compare()
    with torch.no_grad():
        gain.mul_(0.5)
        layer.weight.add_(0.1)
    compare()
    gain = f64(0.3, grad=True)
    compare()
    gain.requires_grad_(False)
    compare()
    layer = torch.nn.Linear(2, 2, bias=False, dtype=torch.float64)
    compare()
    layer.weight = torch.nn.Parameter(torch.eye(2, dtype=torch.float64))
    compare()


def test_grad_mode_of_each_solve(engine):
    prob = problem()
    for _ in range(2):
        with torch.no_grad():
            assert not solve(prob, engine).u.requires_grad
        check(prob, engine, 0.7)


def test_a_mass_matrix_that_is_written_to(engine):
    mass = torch.diag(f64(1.0, 2.0))
    prob = ps.ODEProblem(lambda u, p, t: -u, f64(1.0, 1.0), (0.0, 1.0), mass_matrix=mass)
    alg = mass_matrix_solver(engine)
    with flattenings() as count:
        for _ in range(3):
            sol = ps.solve(prob, alg, engine=engine, **TOLERANCES)
            assert_close(sol.u[-1], torch.exp(-1.0 / mass.diagonal()), 1e-6)
        assert len(count) == 1
        mass[0, 0] = 4.0
        sol = ps.solve(prob, alg, engine=engine, **TOLERANCES)
    assert len(count) == 2
    assert_close(sol.u[-1], torch.exp(-1.0 / mass.diagonal()), 1e-6)


def test_copies_leave_it_behind(engine):
    prob = problem()
    check(prob, engine, 0.7)
    for other in (copy.deepcopy(prob), copy.copy(prob), pickle.loads(pickle.dumps(prob))):
        assert "_plans" not in vars(other)
        check(other, engine, 0.7)


def test_problems_are_freed(engine):
    import gc
    import weakref

    prob = problem()
    for _ in range(3):
        solve(prob, engine)
    gone = weakref.ref(prob)
    gc.disable()
    try:
        del prob
        assert gone() is None
    finally:
        gc.enable()


def test_modules_that_solve(engine):
    field = torch.nn.Linear(2, 2, bias=False, dtype=torch.float64)
    options = {"alg": nonstiff(engine), "engine": engine, **TOLERANCES}
    model = NeuralODE(field, (0.0, 1.0), **options)
    with flattenings() as count:
        for k in range(3):
            u0 = f64(1.0, 2.0 + k)
            out = model(u0)
            want = torch.linalg.matrix_exp(field.weight) @ u0
            assert_close(out, want, 1e-7)
            (got,) = torch.autograd.grad(out.sum(), field.weight)
            (expected,) = torch.autograd.grad(want.sum(), field.weight)
            assert_close(got, expected, 1e-6)
            with torch.no_grad():
                field.weight.mul_(1.1)
        assert len(count) == 1
        second = NeuralODE(copy.deepcopy(field), (0.0, 1.0), **options)
        for _ in range(2):  # another module by the same kernels
            assert_close(second(u0), torch.linalg.matrix_exp(second.vector_field.weight) @ u0, 1e-7)
        assert len(count) == 2
        model.vector_field = torch.nn.Linear(2, 2, dtype=torch.float64)
        zero = model(torch.zeros(2, dtype=torch.float64))
        assert zero.abs().max() > 0


def test_an_end_that_comes_to_require_grad(engine: str) -> None:
    u0, t1 = torch.ones(1, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    prob = ps.ODEProblem(lambda u, p, t: -u, u0, (0.0, t1))
    options = {"engine": engine, "saveat": 0.25, "abstol": 1e-9, "reltol": 1e-9}
    ps.solve(prob, **options)
    t1.requires_grad_()
    (got,) = torch.autograd.grad(ps.solve(prob, **options).u[-1, 0], t1)
    (want,) = torch.autograd.grad(
        ps.solve(ps.ODEProblem(prob.f, u0, (0.0, t1)), **options).u[-1, 0], t1
    )
    assert got != 0.0 and abs(float(got - want)) < 1e-12
