"""Unusual but legitimate uses, each against a closed form."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pysciml as ps
from support import F64, assert_close, f64, nonstiff

TOL = {"abstol": 1e-10, "reltol": 1e-10}


def decay(u, p, t):
    return -p * u


def half(u, p, t):
    return u[0] - 0.5


def double(u, p, t):
    return 2.0 * u


def problem(p=1.0, tspan=(0.0, 1.0), **fields):
    return ps.ODEProblem(decay, f64([1.0]), tspan, torch.as_tensor(p, dtype=F64), **fields)


# -- times ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [torch.tensor(0.25), np.float32(0.25), np.array(0.25)], ids=repr)
def test_saveat_as_a_step_of_any_kind(engine, step):
    sol = ps.solve(problem(), nonstiff(engine), engine=engine, saveat=step, **TOL)
    assert_close(sol.t, f64(0.0, 0.25, 0.5, 0.75, 1.0), 1e-15)


def test_a_step_that_requires_grad_is_refused(engine):
    with pytest.raises(ps.InputError, match="the times themselves"):
        ps.solve(problem(), engine=engine, saveat=f64(0.25, grad=True))


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.0, 1.1), (1.0, 0.0)], ids=repr)
def test_the_times_of_a_step_move_with_tspan(engine, span):
    """u' = cos(t): every output but the last stays a multiple of the step from the start."""
    t0, t1 = (f64(t, grad=True) for t in span)
    prob = ps.ODEProblem(lambda u, p, t: torch.cos(t) + 0.0 * u, f64([0.0]), (t0, t1))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=0.25, **TOL)
    inner = t0 + (sol.t.detach() - t0.detach())[1:-1]
    times = torch.cat([t0.reshape(1), inner, t1.reshape(1)])
    weights = torch.linspace(1.0, 2.0, len(times), dtype=F64)
    want = (weights * (torch.sin(times) - torch.sin(t0) + times**2)).sum()
    got = (weights * (sol.u[:, 0] + sol.t**2)).sum()
    assert_close(got, want, 1e-8)
    for a, b in zip(
        torch.autograd.grad(got, (t0, t1)), torch.autograd.grad(want, (t0, t1)), strict=True
    ):
        assert_close(a, b, 1e-7)


@pytest.mark.parametrize("alg", [ps.CVODE_BDF(), ps.CVODE_Adams(), ps.IDA(), None], ids=repr)
def test_a_first_step_in_backward_time(alg):
    mass = torch.eye(1, dtype=F64) if alg is not None and alg.name == "IDA" else None
    prob = problem(tspan=(1.0, 0.0), mass_matrix=mass)
    sol = ps.solve(prob, alg, engine="sundials", dt=1e-7, **TOL)
    assert_close(sol.u[-1], f64([math.e]), 1e-7)
    assert 0.0 < float(sol.t[0] - sol.t[1]) <= 1e-7


def test_preset_times_that_require_grad_are_refused_with_the_way_to_write_it():
    for times in (f64([0.5], grad=True), [f64(0.5, grad=True)]):
        with pytest.raises(ps.InputError, match="ContinuousCallback"):
            ps.PresetTimeCallback(times, double)


# -- copies ---------------------------------------------------------------------------------


def through_torch(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "torch.save": through_torch,
    "twice": lambda x: pickle.loads(pickle.dumps(copy.deepcopy(x))),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("grad", [False, True])
def test_a_solution_can_be_copied(how, grad):
    """Values, events and interpolant survive, without a word; the graph does not."""
    leaf = f64(1.0, grad=grad)
    prob = problem(leaf * 1.0, callback=ps.ContinuousCallback(half, double))
    sol = ps.solve(prob, engine="sundials", **TOL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = COPIES[how](sol)
    assert torch.equal(other.t, sol.t) and torch.equal(other.u, sol.u)
    assert not other.u.requires_grad and other.events == sol.events
    at = f64(0.2, math.log(2.0) + 0.1, 0.9)
    assert_close(other(at), sol(at), 0.0)
    assert_close(other(at)[:, 0], torch.exp(-at) * f64(1.0, 2.0, 2.0), 1e-7)
    again = ps.solve(other.prob, engine="sundials", **TOL)
    assert_close(again.u, sol.u, 0.0)
    if grad:
        sol.u[-1].sum().backward()
        assert_close(leaf.grad, f64(-2.0 * math.exp(-1.0)), 1e-6)


def test_copies_of_a_structured_solution():
    prob = ps.ODEProblem(structured, {"a": f64([1.0, 2.0]), "b": [f64(3.0)]}, (0.0, 1.0), f64(1.0))
    sol = pickle.loads(pickle.dumps(ps.solve(prob, engine="sundials", save_idxs=None, **TOL)))
    assert_close(sol(0.5)["a"], f64(1.0, 2.0) * math.exp(-0.5), 1e-8)
    assert_close(sol.u["b"][0][-1], f64(4.0), 1e-8)


def structured(u, p, t):
    return {"a": -p * u["a"], "b": [torch.ones_like(u["b"][0])]}


# -- torch's own modes -------------------------------------------------------------------------


def test_autocast_does_not_reach_the_model(engine):
    net = torch.nn.Linear(2, 2)
    prob = ps.ODEProblem(lambda u, p, t: net(u), torch.ones(2), (0.0, 1.0))
    options = {"engine": engine, "abstol": 1e-6, "reltol": 1e-6}
    plain = ps.solve(prob, nonstiff(engine), **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ps.solve(prob, nonstiff(engine), **options)
        assert torch.is_autocast_enabled("cpu")
        cast.u[-1].sum().backward()
    assert torch.equal(plain.u, cast.u)
    assert net.weight.grad is not None and net.weight.grad.dtype == torch.float32


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="torch 2.6 does not tell of hooks on saved tensors, so they cannot be left",
)
def test_activation_checkpointing(engine):
    p = f64(1.3, grad=True)

    def loss(p):
        def fresh(u, p, t):
            return -p * u + 0.0 * t

        prob = ps.ODEProblem(fresh, f64([1.0]), (0.0, 1.0), 1.0 * p)
        return ps.solve(prob, nonstiff(engine), engine=engine, **TOL).u[-1].sum()

    value = checkpoint(loss, p, use_reentrant=False)
    assert_close(value, f64(math.exp(-1.3)), 1e-7)
    value.backward()
    assert_close(p.grad, f64(-math.exp(-1.3)), 1e-6)


def test_hooks_on_saved_tensors_around_solve_and_backward(engine):
    p = f64(1.3, grad=True)
    with torch.autograd.graph.save_on_cpu():
        prob = ps.ODEProblem(lambda u, p, t: -p * u + 0.0 * t, f64([1.0]), (0.0, 1.0), p)
        sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
        sol.u[-1].square().sum().backward()
    assert_close(p.grad, f64(-2.0 * math.exp(-2.6)), 1e-6)


def test_a_compiled_function_may_solve(engine):
    prob = problem()

    def loss(p):
        sol = ps.solve(ps.remake(prob, p=2.0 * p), nonstiff(engine), engine=engine, **TOL)
        return sol.u[-1].sum() + sol(0.5).sum()

    p = f64(0.5, grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what it leaves uncompiled
        value = torch.compile(loss, backend="eager")(p)
    assert_close(value, f64(math.exp(-1.0) + math.exp(-0.5)), 1e-7)
    value.backward()
    assert_close(p.grad, f64(-2.0 * math.exp(-1.0) - math.exp(-0.5)), 1e-6)


# -- structures ---------------------------------------------------------------------------------


def test_dicts_in_another_order(engine):
    """The keys count, not the order they were written in: of f, affect and abstol."""
    callback = ps.PresetTimeCallback([0.5], lambda u, p, t: {"b": u["b"] + 1.0, "a": u["a"]})
    prob = ps.ODEProblem(
        lambda u, p, t: {"b": 0.0 * u["b"], "a": -u["a"]},
        {"a": f64([1.0, 1.0]), "b": f64([2.0])}, (0.0, 1.0), callback=callback,
    )  # fmt: skip
    abstol = {"b": f64([1.0]), "a": f64([1e-10, 1e-10])}
    sol = ps.solve(prob, nonstiff(engine), engine=engine, abstol=abstol, reltol=1e-10)
    assert_close(sol.u["b"][-1], f64([3.0]), 1e-8)
    assert_close(sol.u["a"][-1], f64(1.0, 1.0) * math.exp(-1.0), 1e-7)


def test_differential_vars_and_du0_in_another_order():
    prob = ps.DAEProblem(
        lambda du, u, p, t: {"y": u["y"] - 2.0 * u["x"], "x": du["x"] + u["x"]},
        {"y": f64([0.0, 0.0]), "x": f64([-1.0, -1.0])},
        {"x": f64([1.0, 1.0]), "y": f64([2.0, 2.0])}, (0.0, 1.0),
        differential_vars={"y": torch.zeros(2) > 0, "x": torch.zeros(2) == 0},
    )  # fmt: skip
    sol = ps.solve(prob, engine="sundials", **TOL)
    assert_close(sol.u["y"][-1], f64(2.0, 2.0) * math.exp(-1.0), 1e-7)


def test_sparse_matrices(engine):
    """A function may close over one and is called back; as p it is refused."""
    matrix = torch.eye(3, dtype=F64).to_sparse()
    prob = ps.ODEProblem(lambda u, p, t: -(matrix @ u), torch.ones(3, dtype=F64), (0.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.CaptureWarning)
        sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    assert_close(sol.u[-1], torch.ones(3, dtype=F64) * math.exp(-1.0), 1e-8)
    with pytest.raises(ps.InputError, match="to_dense"):
        ps.ODEProblem(lambda u, p, t: -(p @ u), torch.ones(3, dtype=F64), (0.0, 1.0), matrix)


def test_an_attribute_that_comes_to_hide_one_of_the_class_is_noticed(engine):
    class Model:
        rate = 2.0

        def __call__(self, u, p, t):
            return -self.rate * u

    model = Model()
    for rate in (2.0, 3.0, 4.0):
        if rate != Model.rate:
            model.rate = rate
        prob = ps.ODEProblem(model, f64([1.0]), (0.0, 1.0))
        sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
        assert_close(sol.u[-1], f64([math.exp(-rate)]), 1e-8)


def test_a_condition_that_becomes_nan_is_not_passed_over():
    """sqrt(u - 1/2) is zero at the event and NaN behind it: its sign never changes."""
    callback = ps.ContinuousCallback(lambda u, p, t: torch.sqrt(u[0] - 0.5), double)
    with pytest.raises(ps.SolveError, match="condition of callback 0 became NaN"):
        ps.solve(problem(callback=callback), engine="sundials", **TOL)


def test_first_solves_of_many_functions_by_many_threads():
    def run(k):
        p = f64(1.0, grad=True)
        prob = ps.ODEProblem(lambda u, p, t: -p * u + 0.0 * k, f64([1.0]), (0.0, 1.0), p)
        ps.solve(prob, engine="sundials", **TOL).u[-1].sum().backward()
        return float(p.grad)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, range(12)))
    assert_close(f64(found), torch.full((12,), -math.exp(-1.0), dtype=F64), 1e-6)
