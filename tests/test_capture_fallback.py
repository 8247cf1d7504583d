"""Functions that cannot be captured are called back: one warning, and everything still right."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special
from torch import nn

import pysciml as ps
from support import F64, assert_close, counted_captures, f64, nonstiff, stiff

TOL = {"abstol": 1e-9, "reltol": 1e-9}


def solve(f, engine, p=None, u0=(1.0, 2.0), kind=nonstiff, **options):
    prob = ps.ODEProblem(f, f64(*u0), (0.0, 1.0), p)
    return ps.solve(prob, kind(engine), engine=engine, **{**TOL, **options})


# Functions that are -p * u however they are written, and what the warning must name.


def branches(u, p, t):
    if u.sum() > 0:
        return -p * u
    return 0.0 * u


def reads_out(u, p, t):
    scale = u.sum().item()
    return -p * u * (scale / scale)


def loops(u, p, t):
    out, k = torch.zeros_like(u), 0
    while k < 1 + int(u.sum().detach() * 0):
        out, k = out - p * u, k + 1
    return out


def goes_through_numpy(u, p, t):
    factor = np.sign(u.detach().numpy()).mean()  # one, but only numpy knows
    return -p * u * float(factor)


UNCAPTURABLE = [branches, reads_out, loops]


@pytest.mark.parametrize("f", UNCAPTURABLE, ids=lambda f: f.__name__)
def test_one_warning_names_the_cause_and_the_line(engine, f):
    p = f64(0.7)
    with pytest.warns(ps.CaptureWarning) as caught:
        sol = solve(f, engine, p)
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("f is called back in Python")
    assert "test_capture_fallback.py:" in text and "`" in text
    assert "torch." in text.split("To run it as a kernel:")[1]
    assert_close(sol.u[-1], f64(1.0, 2.0) * math.exp(-0.7), 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(f, engine, p)


def test_the_warning_points_at_the_line_that_called_solve(engine):
    prob = ps.ODEProblem(lambda u, p, t: branches(u, 1.0, t), f64(1.0, 2.0), (0.0, 1.0))
    callback = ps.ContinuousCallback(lambda u, p, t: u[0] - 0.5 if u[1] > 0 else u[0])
    with pytest.warns(ps.CaptureWarning) as caught:
        ps.solve(prob, nonstiff(engine), engine=engine, callback=callback)
    assert [str(w.message).split(" is called")[0] for w in caught] == [
        "f", "condition of callback 0",
    ]  # fmt: skip
    assert all(w.filename == __file__ for w in caught)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
@pytest.mark.parametrize("kind", [nonstiff, stiff], ids=["nonstiff", "stiff"])
@pytest.mark.parametrize("f", [*UNCAPTURABLE, goes_through_numpy], ids=lambda f: f.__name__)
def test_values_and_gradients_are_right(engine, f, kind):
    p, u0 = f64(0.7, grad=True), f64(1.0, 2.0, grad=True)
    prob = ps.ODEProblem(f, u0, (0.0, 1.0), p)
    sol = ps.solve(prob, kind(engine), engine=engine, saveat=[0.5, 1.0], **TOL)
    want = torch.exp(-p * f64(0.5, 1.0))[:, None] * u0
    assert_close(sol.u, want, 1e-7)
    got = torch.autograd.grad(sol.u.square().sum(), (u0, p))
    for a, b in zip(got, torch.autograd.grad(want.square().sum(), (u0, p)), strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_closures_get_their_gradients_too(engine):
    net = nn.Linear(2, 2, bias=False).double()
    factor = f64(0.3, grad=True)
    rate = factor.exp()

    def f(u, p, t):
        return rate * net(u) if t.item() >= 0 else u

    prob = ps.ODEProblem(f, f64(1.0, 2.0), (0.0, 1.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    u0 = f64(1.0, 2.0)
    want = torch.matrix_exp(rate * net.weight) @ u0
    assert_close(sol.u[-1], want, 1e-7)
    got = torch.autograd.grad(sol.u[-1].square().sum(), (factor, net.weight), retain_graph=True)
    expected = torch.autograd.grad(want.square().sum(), (factor, net.weight))
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_a_time_that_is_read_as_a_number_does_not_freeze_closures(engine):
    """torch.full_like refuses a t that requires grad, which the search for closures gave it."""
    gradients = []
    for late in (lambda u, t: torch.full_like(u, t), lambda u, t: t.expand(u.shape)):
        w = f64(-0.7, 0.4, grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ps.CaptureWarning)
            sol = solve(lambda u, p, t, late=late, w=w: w * u + late(u, t), engine)
        assert sol.u.requires_grad
        gradients.append(torch.autograd.grad(sol.u[-1].sum(), w)[0])
    assert_close(*gradients, rtol=1e-7)


def test_training_through_callbacks_follows_the_weights(engine):
    torch.manual_seed(0)
    net = nn.Linear(1, 1, bias=False).double()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)

    def f(u, p, t):
        return net(u) if t.item() >= 0 else u

    for _ in range(60):
        sol = solve(f, engine, u0=[[1.0]], abstol=1e-7, reltol=1e-7)
        loss = (sol.u[-1] - 0.5).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert_close(net.weight.reshape(()), f64(math.log(0.5)), 1e-3)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_a_replaced_closure_gets_the_gradient(engine):
    class Holder:
        k = f64(0.5, grad=True)

    holder = Holder()

    def f(u, p, t):
        return -holder.k * u if t.item() >= 0 else u

    solve(f, engine)
    holder.k = f64(0.9, grad=True)
    solve(f, engine).u[-1].sum().backward()
    assert_close(holder.k.grad, f64(-3.0 * math.exp(-0.9)), 1e-6)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_a_closure_changed_between_solve_and_backward_is_refused(engine):
    k = f64(0.5, grad=True)
    sol = solve(lambda u, p, t: -k * u if t.item() >= 0 else u, engine)
    with torch.no_grad():
        k.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place between solve and backward"):
        sol.u.sum().backward()


def test_a_function_that_reads_a_changing_number_is_not_frozen(engine):
    """What a guard cannot see is found by comparing values, solve by solve."""

    class Odd:
        __slots__ = ("value",)

    odd = Odd()
    odd.value = 1.0

    def f(u, p, t):
        return -odd.value * u

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.CaptureWarning)
        first = float(solve(f, engine).u[-1, 0])
        odd.value = 2.0
        second = float(solve(f, engine).u[-1, 0])
    assert math.isclose(first, math.exp(-1.0), rel_tol=1e-6)
    assert math.isclose(second, math.exp(-2.0), rel_tol=1e-6)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_events_with_functions_that_cannot_be_captured(engine):
    level, kick = f64(0.6, grad=True), f64(0.5, grad=True)
    callback = ps.ContinuousCallback(
        lambda u, p, t: u[0] - level if u[0] > -9 else u[0],
        lambda u, p, t: u + kick if u[0] > -9 else u,
        direction=-1,
    )
    prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 1.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, callback=callback, **TOL)
    want = (level + kick) * torch.exp(-1.0 - torch.log(level))
    assert_close(sol.u[-1], want.reshape(1), 1e-7)
    got = torch.autograd.grad(sol.u[-1].sum(), (level, kick))
    for a, b in zip(got, torch.autograd.grad(want, (level, kick)), strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_daes_with_functions_that_cannot_be_captured(engine):
    p = f64(0.7, grad=True)

    def residual(du, u, p, t):
        first = du[0] + p * u[0] if t.item() >= 0 else u[0]
        return torch.stack([first, u[1] - u[0] ** 2])

    prob = ps.DAEProblem(
        residual, f64(-0.7, 0.0), f64(1.0, 1.0), (0.0, 1.0), p,
        differential_vars=torch.tensor([True, False]),
    )  # fmt: skip
    alg = ps.IDA() if engine == "sundials" else ps.DFBDF()
    sol = ps.solve(prob, alg, engine=engine, saveat=[1.0], **TOL)
    assert_close(sol.u[0], f64(math.exp(-0.7), math.exp(-1.4)), 1e-6)
    (got,) = torch.autograd.grad(sol.u[0].sum(), p)
    assert_close(got, f64(-math.exp(-0.7) - 2 * math.exp(-1.4)), 1e-6)


# -- random functions ------------------------------------------------------------------


def test_random_functions_are_refused_with_a_reason(engine):
    drop = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).double()
    for f, name in (
        (lambda u, p, t: drop(u), "bernoulli|dropout|rand"),  # the last in torch 2.6
        (lambda u, p, t: u + torch.randn_like(u), "randn"),
        (lambda u, p, t: u * float(np.random.rand()), "numpy"),
    ):
        with pytest.raises(ps.InputError, match=rf"draws random numbers.*({name}).*before solving"):
            solve(f, engine)


def test_dropout_in_evaluation_is_no_random_function(engine):
    drop = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).double()
    f = lambda u, p, t: -drop(u) * 0.0 - u
    with pytest.raises(ps.InputError, match=r"eval\(\)"):
        solve(f, engine)
    drop.eval()
    assert_close(solve(f, engine).u[-1], f64(1.0, 2.0) * math.exp(-1.0), 1e-7)
    drop.train()
    with pytest.raises(ps.InputError, match=r"eval\(\)"):
        solve(f, engine)


def test_refused_functions_leave_the_random_state_alone(engine):
    before = torch.get_rng_state()
    with pytest.raises(ps.InputError):
        solve(lambda u, p, t: u + torch.randn_like(u), engine)
    assert torch.equal(torch.get_rng_state(), before)


def test_capturable_functions_are_captured_in_silence(engine):
    """The counterpart: what people write every day needs no callback."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)).double()

    def f(u, p, t):
        x = torch.cat([u, torch.sin(t).reshape(1)])
        return torch.where(u > 0, net(x), -u) + torch.clamp(u, max=0.1) * p["k"][0]

    with counted_captures() as captures, warnings.catch_warnings():
        warnings.simplefilter("error")
        sol = solve(f, engine, {"k": f64([0.3])})
    assert captures == ["f"] and torch.isfinite(sol.u).all()
    assert sol.u.dtype == F64


# -- derivatives without a kernel ------------------------------------------------------------
# digamma has a kernel; its derivative, polygamma, has none.


def falls(u, p, t):
    return -torch.digamma(u + 2.0) * p


def falls_too(u, p, t):
    return -torch.func.grad(lambda x: torch.lgamma(x).sum())(u + 2.0) * p


def reference(u0, p):
    """The end values of ``falls``, by SciPy."""
    rate = lambda t, u: -special.digamma(u + 2.0) * p
    return integrate.solve_ivp(rate, (0.0, 1.0), u0, "DOP853", rtol=1e-13, atol=1e-13).y[:, -1]


@pytest.mark.parametrize("n", [2, 40, 500], ids="dense blocks krylov".split())
@pytest.mark.parametrize("f", [falls, falls_too], ids=lambda f: f.__name__)
def test_a_derivative_without_a_kernel_is_called_back(f, n):
    u0 = torch.linspace(1.0, 2.0, n, dtype=F64)
    fresh = lambda u, p, t: f(u, p, t)
    with pytest.warns(ps.CaptureWarning) as caught:
        sol = solve(fresh, "sundials", f64([0.5]), u0=u0.tolist(), kind=stiff)
        solve(fresh, "sundials", f64([0.6]), u0=u0.tolist(), kind=stiff)
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("f's derivative is called back in Python") and "polygamma" in text
    assert warning.filename == __file__
    assert_close(sol.u[-1], torch.from_numpy(reference(u0.numpy(), 0.5)), 1e-6)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
@pytest.mark.parametrize(
    "how",
    [ps.GaussAdjoint, ps.InterpolatingAdjoint, ps.ForwardSensitivity],
    ids=lambda how: how.__name__,
)
def test_gradients_by_a_derivative_without_a_kernel(how):
    w, u0, h = f64([0.25], grad=True), f64(1.0, 3.0, grad=True), 1e-5
    prob = ps.ODEProblem(lambda u, p, t: falls(u, p * w, t), u0, (0.0, 1.0), 2.0)
    sol = ps.solve(prob, stiff("sundials"), engine="sundials", sensealg=how(), **TOL)
    got = torch.autograd.grad(sol.u[-1].sum(), (w, u0))
    at = u0.detach().numpy()
    by_w = (reference(at, 2 * (0.25 + h)) - reference(at, 2 * (0.25 - h))).sum() / (2 * h)
    by_u0 = (reference(at + h, 0.5) - reference(at - h, 0.5)) / (2 * h)
    assert_close(got[0], f64([by_w]), 1e-6)
    assert_close(got[1], torch.from_numpy(by_u0), 1e-6)


@pytest.mark.julia
@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_a_derivative_that_julia_calls_back_follows_the_parameters():
    fresh = lambda u, p, t: falls(u, p, t)
    prob = ps.ODEProblem(fresh, f64(1.0, 3.0), (0.0, 1.0), f64([0.5], grad=True))
    options = {"engine": "julia", "abstol": 1e-10, "reltol": 1e-10}
    h = 1e-5
    for value in (0.5, 0.8, 1.7):
        p = f64([value], grad=True)
        sol = ps.solve(ps.remake(prob, p=p), ps.Rodas5P(), **options)
        assert_close(sol.u[-1], torch.from_numpy(reference([1.0, 3.0], value)), 1e-7)
        want = (reference([1.0, 3.0], value + h) - reference([1.0, 3.0], value - h)).sum() / (2 * h)
        assert_close(torch.autograd.grad(sol.u[-1].sum(), p)[0], f64([want]), 1e-6)
    # members share no parameters that one solve holds
    p = f64([0.5], [0.8], [1.7], grad=True)
    for alg in (ps.Tsit5(), ps.Rodas5P()):
        sim = ps.solve(ps.EnsembleProblem(prob, p=p), alg, saveat=[1.0], **options)
        got = torch.autograd.grad(sim.u.sum(), p)[0]
        for k, value in enumerate((0.5, 0.8, 1.7)):
            want = reference([1.0, 3.0], value + h) - reference([1.0, 3.0], value - h)
            assert_close(got[k], f64([want.sum() / (2 * h)]), 1e-6)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_an_event_by_a_derivative_without_a_kernel():
    """The condition's derivative is called back: u' = -p u, stopped where digamma(u) = 0."""
    p = f64(0.7, grad=True)
    root = optimize.brentq(special.digamma, 1.0, 2.0, xtol=1e-15)
    event = ps.ContinuousCallback(lambda u, p, t: torch.digamma(u[0]), ps.terminate)
    prob = ps.ODEProblem(lambda u, p, t: -p * u, f64(2.0, 1.0), (0.0, 2.0), p, callback=event)
    sol = ps.solve(prob, stiff("sundials"), engine="sundials", **TOL)
    time = math.log(2.0 / root) / 0.7
    assert_close(sol.t[-1].detach(), f64(time), 1e-6)
    (got,) = torch.autograd.grad(sol.t[-1], p)
    assert_close(got, f64(-time / 0.7), 1e-5)
