"""What is saved, and how steps are chosen: the options of ``solve`` that few solves have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pysciml as ps
from pysciml.errors import EngineError, InputError, PyscimlError
from support import f64, nonstiff

TIGHT = {"abstol": 1e-9, "reltol": 1e-9}


def decay(u, p, t):
    return -p * u


def solved(engine, tspan=(0.0, 2.0), p=0.7, **options):
    prob = ps.ODEProblem(decay, f64([1.0]), tspan, f64([p]) if isinstance(p, float) else p)
    return ps.solve(prob, nonstiff(engine), engine=engine, **TIGHT, **options)


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"save_everystep": False}, [0.0, 2.0]),
        ({"save_everystep": False, "save_start": False}, [2.0]),
        ({"save_everystep": False, "save_end": False}, [0.0]),
        ({"saveat": [0.5], "save_start": True}, [0.0, 0.5]),
        ({"saveat": [0.5], "save_end": True}, [0.5, 2.0]),
        ({"saveat": 1.0, "save_start": False}, [1.0, 2.0]),
        ({"saveat": [0.0, 0.5, 2.0], "save_start": False, "save_end": False}, [0.5]),
        ({"saveat": [0.0, 0.5], "save_start": True, "save_end": False}, [0.0, 0.5]),
    ],
    ids=str,
)
def test_which_times_are_saved(engine, options, times) -> None:
    sol = solved(engine, **options)
    assert sol.t.tolist() == times
    np.testing.assert_allclose(sol.u[:, 0], np.exp(-0.7 * np.array(times)), rtol=1e-7)


def test_every_step_without_the_ends(engine) -> None:
    whole, inner = solved(engine), solved(engine, save_start=False, save_end=False)
    assert torch.equal(inner.t, whole.t[1:-1]) and torch.equal(inner.u, whole.u[1:-1])
    np.testing.assert_allclose(inner(0.0)[0], 1.0)


def test_gradients_of_what_is_saved(engine) -> None:
    """By the parameters and by both ends of the time span, which move the times."""
    for options in ({"save_everystep": False}, {"saveat": [1.0], "save_start": True,
                    "save_end": True}, {"save_start": False}):  # fmt: skip
        p = f64([0.7]).requires_grad_()
        t0, t1 = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.2, 2.0))
        sol = solved(engine, (t0, t1), p, **options)
        got = torch.autograd.grad(sol.u[-1].sum() + sol.t[-1], [p, t0, t1])
        last = math.exp(-0.7 * 1.8)
        want = (-1.8 * last, 0.7 * last, -0.7 * last + 1.0)
        np.testing.assert_allclose([float(x) for x in got], want, rtol=1e-6)


def test_dense_false_gives_up_the_interpolant(engine) -> None:
    sol = solved(engine, dense=False)
    assert sol.dense is False
    with pytest.raises(PyscimlError, match="dense=False"):
        sol(1.0)
    assert solved(engine, dense=True)(1.0).shape == (1,)


def drive(u, p, t):
    """A rate that jumps at t = 1."""
    return p[0] * (t > 1.0) - p[1] * u


@pytest.mark.parametrize("where", [1.0, [1.0], f64(1.0, 0.4)], ids=["one", "list", "tensor"])
def test_discontinuities(engine, where) -> None:
    p = f64(1.0, 0.5).requires_grad_()
    prob = ps.ODEProblem(drive, f64([0.0]), (0.0, 2.0), p)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, d_discontinuities=where, **TIGHT)
    grown = 1.0 - math.exp(-0.5)
    np.testing.assert_allclose(sol.u.detach()[-1, 0], grown / 0.5, rtol=1e-6)
    assert 1.0 in sol.t.tolist() and not sol.events
    (got,) = torch.autograd.grad(sol.u[-1].sum(), p)
    want = [grown / 0.5, (0.5 * math.exp(-0.5) - grown) / 0.25]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_values_at_some_entries(engine) -> None:
    prob = ps.ODEProblem(
        lambda u, p, t: torch.stack([u[1], -u[0]]), f64(0.0, 1.0), (0.0, 3.0)
    )  # fmt: skip
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TIGHT)
    times = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(sol(times, idxs=1), torch.cos(times), rtol=1e-6, atol=1e-7)
    assert sol(times, idxs=[1, 0]).shape == (2, 2, 2)
    np.testing.assert_allclose(sol(1.2, 1, idxs=0), math.cos(1.2), rtol=1e-4)
    with pytest.raises(InputError, match="idxs is 2, but the solution has 2 entries"):
        sol(0.5, idxs=2)
    some = ps.solve(prob, nonstiff(engine), engine=engine, save_idxs=[1], **TIGHT)
    np.testing.assert_allclose(some(1.2, idxs=0), math.cos(1.2), rtol=1e-6)


BAD = [
    ({"save_start": "no"}, "save_start is 'no'; give True or False"),
    ({"save_everystep": True, "saveat": 0.5}, "save_everystep=True was given with saveat"),
    ({"saveat": [0.0], "save_start": False}, "leave nothing to save"),
    ({"d_discontinuities": 5.0}, r"d_discontinuities\[0\] = 5 lies outside tspan"),
    ({"isoutofdomain": True}, "isoutofdomain is a bool; give a function"),
    ({"controller": "PI"}, "controller is 'PI'; give one of pysciml.IController"),
    ({"controller": ps.Tsit5()}, "controller is Tsit5"),
    ({"controller": ps.PIController(qmax="5")}, "qmax of PIController is '5'; give a number"),
    ({"controller": ps.PIController(beta1=math.nan)}, "beta1 of PIController is nan"),
    ({"d_discontinuities": "0.5"}, "d_discontinuities is '0.5'; give a 1-d tensor or sequence"),
    ({"initializealg": "NoInit"}, r"initializealg is 'NoInit'; give pysciml.NoInit\(\)"),
    ({"verbose": True}, "verbose is True"),
    ({"qmax": 5}, r"does not take 'qmax'.*controller=pysciml.PIController\(qmax="),
    ({"alg_hints": ["stiff"]}, "does not take 'alg_hints'.*name an algorithm"),
    ({"unstable_check": None}, "does not take 'unstable_check'.*isoutofdomain"),
    ({"internalnorm": max}, "does not take 'internalnorm'.*abstol"),
    ({"save_strat": True}, "does not take 'save_strat'.*'save_start'"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[next(iter(o)) for o, _ in BAD])
def test_what_cannot_be_meant(options, message) -> None:
    with pytest.raises(InputError, match=message):
        solved("sundials", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"isoutofdomain": lambda u, p, t: (u < 0).any()}, {"force_dtmin": True},
        {"controller": ps.PIController()}, {"initializealg": ps.NoInit()},
    ],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_the_embedded_engine_says_what_it_does_not_have(options) -> None:
    with pytest.raises(EngineError, match=f"{next(iter(options))} was given.*engine='julia'"):
        solved("sundials", **options)


# -- how steps are chosen in Julia -------------------------------------------------------------


def fast(u, p, t):
    return -p * u


LOOSE = {"engine": "julia", "abstol": 10.0, "reltol": 0.5}


@pytest.mark.julia
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_steps_out_of_the_domain_are_rejected(dtype) -> None:
    """At such tolerances explicit steps are as long as they can be, and overshoot."""
    p = torch.tensor([50.0], dtype=dtype, requires_grad=True)
    limit = torch.ones(1, dtype=dtype)  # a closure of the condition
    prob = ps.ODEProblem(fast, torch.ones(1, dtype=dtype), (0.0, 1.0), p)
    free = ps.solve(prob, ps.Tsit5(), **LOOSE)
    held = ps.solve(prob, ps.Tsit5(), isoutofdomain=lambda u, p, t: (u > limit).any(), **LOOSE)
    assert float(free.u.detach().max()) > 2.0 and float(held.u.detach().max()) == 1.0
    assert held.stats.nreject > 0
    # the solve's own derivative, by the steps that it took
    (got,) = torch.autograd.grad(held.u[1:].sum(), p)
    assert bool(torch.isfinite(got).all())
    at = torch.tensor([0.05], dtype=torch.float64)
    fine = ps.solve(
        prob, ps.Tsit5(), saveat=at, isoutofdomain=lambda u, p, t: u[0] < 0, engine="julia",
        abstol=1e-7, reltol=1e-5,
    )  # fmt: skip
    (got,) = torch.autograd.grad(fine.u.sum(), p)
    np.testing.assert_allclose(got, [-0.05 * math.exp(-2.5)], rtol=1e-3)


@pytest.mark.julia
def test_steps_of_the_least_length_are_forced() -> None:
    prob = ps.ODEProblem(
        lambda u, p, t: -1000.0 * (u - torch.cos(t)), f64([0.0]), (0.0, 0.1)
    )  # fmt: skip
    options = {"engine": "julia", "dtmin": 1e-3, "abstol": 1e-10, "reltol": 1e-10}
    with pytest.raises(ps.SolveError, match="steps below dtmin = 0.001; lower it, or force_dtmin"):
        ps.solve(prob, ps.Tsit5(), **options)
    sol = ps.solve(prob, ps.Tsit5(), force_dtmin=True, **options)
    assert sol.success and float(sol.t.diff()[:-1].min()) > 0.999e-3
    assert abs(float(sol.u[-1, 0]) - math.cos(0.1)) < 1e-2


@pytest.mark.julia
@pytest.mark.parametrize(
    "controller",
    [
        ps.IController(qmax=1.3, qmax_first_step=1.3),
        ps.PIController(beta1=0.14, beta2=0.08, qmax=1.3, qmax_first_step=1.3),
    ],
    ids=lambda c: c.name,
)
@pytest.mark.parametrize("alg", [ps.Tsit5(), ps.AutoTsit5(ps.Rosenbrock23())], ids=str)
def test_a_controller_bounds_the_growth_of_steps(alg, controller) -> None:
    prob = ps.ODEProblem(decay, f64([1.0]), (0.0, 5.0), f64([0.7]))
    options = {"engine": "julia", "abstol": 1e-6, "reltol": 1e-6}
    free, held = (ps.solve(prob, alg, controller=c, **options) for c in (None, controller))

    def growth(sol):
        steps = sol.t.diff()[:-1]
        return float((steps[1:] / steps[:-1]).max())

    assert growth(free) > 1.4 and growth(held) < 1.31
    np.testing.assert_allclose(held.u[-1, 0], math.exp(-3.5), rtol=1e-4)


@pytest.mark.julia
def test_controllers_that_have_no_such_bound() -> None:
    prob = ps.ODEProblem(decay, f64([1.0]), (0.0, 5.0), f64([0.7]))
    options = {"engine": "julia", "abstol": 1e-6, "reltol": 1e-6}
    free = ps.solve(prob, ps.Tsit5(), **options)
    pid = ps.solve(prob, ps.Tsit5(), controller=ps.PIDController(beta=(0.7, -0.4, 0)), **options)
    assert pid.stats.naccept != free.stats.naccept
    np.testing.assert_allclose(pid.u[-1, 0], math.exp(-3.5), rtol=1e-4)
    with pytest.raises(InputError, match=r"PredictiveController was given with Tsit5.*KenCarp4"):
        ps.solve(prob, ps.Tsit5(), controller=ps.PredictiveController(), **options)


@pytest.mark.julia
def test_how_initial_values_are_made_to_fit() -> None:
    def constrained(u, p, t):
        return torch.stack([-u[0], u[1] - 2.0 * u[0]])

    prob = ps.ODEProblem(
        constrained, f64(1.0, 5.0), (0.0, 1.0), mass_matrix=torch.diag(f64(1.0, 0.0))
    )
    options = {"engine": "julia", "abstol": 1e-8, "reltol": 1e-8}
    for alg, first in ((None, 2.0), (ps.BrownFullBasicInit(), 2.0), (ps.NoInit, 5.0)):
        sol = ps.solve(prob, ps.Rodas5P(), initializealg=alg, **options)
        np.testing.assert_allclose(sol.u[0], [1.0, first], rtol=1e-6)
        np.testing.assert_allclose(sol.u[-1], [math.exp(-1), 2 * math.exp(-1)], rtol=1e-5)
    with pytest.raises((EngineError, ps.SolveError), match="(?i)initial|consistent|fit"):
        ps.solve(prob, ps.Rodas5P(), initializealg=ps.CheckInit(), **options)


@pytest.mark.julia
def test_for_equations_with_noise_or_delays_they_are_refused() -> None:
    prob = ps.SDEProblem(decay, lambda u, p, t: 0.1 * u, f64([1.0]), (0.0, 1.0), f64([1.0]))
    with pytest.raises(EngineError, match="force_dtmin is for ODEs and DAEs"):
        ps.solve(prob, ps.SOSRI(), force_dtmin=True, engine="julia")
    late = ps.DDEProblem(
        lambda u, h, p, t: -h(p, t - 1), f64([1.0]), lambda p, t: f64([1.0]), (0, 1)
    )
    with pytest.raises(EngineError, match="force_dtmin is for ODEs and DAEs"):
        ps.solve(late, ps.MethodOfSteps(ps.Tsit5()), force_dtmin=True, engine="julia")


@pytest.mark.julia
def test_members_of_an_ensemble_take_them_too() -> None:
    prob = ps.ODEProblem(decay, f64([1.0]), (0.0, 2.0), f64([0.7]))
    sim = ps.solve(
        ps.EnsembleProblem(prob, p=torch.tensor([[0.5], [1.0]], dtype=torch.float64)),
        ps.Tsit5(), engine="julia", save_everystep=False, **TIGHT,
    )  # fmt: skip
    assert sim.u.shape == (2, 2, 1)
    np.testing.assert_allclose(sim.u[:, -1, 0], [math.exp(-1), math.exp(-2)], rtol=1e-7)
