"""Steady states against closed forms, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import InputError, PyscimlError, SolveError
from support import F64, assert_close, f64, stiff


def reactor(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    """Feed, dimerisation and outflow: ``feed = k x + 2 r x^2``."""
    feed, k, r = p.unbind()
    x, y = u.unbind()
    return torch.stack([feed - k * x - 2 * r * x * x, r * x * x - k * y])


def exact(p: Tensor) -> Tensor:
    feed, k, r = p.unbind()
    x = (-k + torch.sqrt(k * k + 8 * r * feed)) / (4 * r)
    return torch.stack([x, r * x * x / k])


def algorithms(engine: str) -> list[Any]:
    return [None, ps.SSRootfind(), ps.DynamicSS(stiff(engine)), ps.DynamicSS()]


@pytest.mark.parametrize("which", range(4))
def test_a_reactor_and_its_gradient(engine, which) -> None:
    p = f64(2.0, 0.5, 3.0, grad=True)
    prob = ps.SteadyStateProblem(reactor, f64(1.0, 1.0), p)
    tolerances = {"abstol": 1e-10, "reltol": 1e-10}
    sol = ps.solve(prob, algorithms(engine)[which], engine=engine, **tolerances)
    assert sol.success and "Success" in repr(sol)
    assert_close(sol.u, exact(p), 1e-8)
    assert float(sol.resid.abs().max()) < 1e-7
    (got,) = torch.autograd.grad((sol.u * f64(1.0, 2.0)).sum(), p)
    (want,) = torch.autograd.grad((exact(p) * f64(1.0, 2.0)).sum(), p)
    assert_close(got, want, 1e-7)


def test_pytrees_closures_and_an_ode(engine) -> None:
    W = torch.tensor([[0.2, -0.4], [0.3, 0.1]], dtype=F64, requires_grad=True)

    def f(u: Any, p: Any, t: Tensor) -> Any:
        return {"x": torch.tanh(W @ u["x"] + p["b"]) - u["x"]}

    b = f64(0.5, -0.3, grad=True)
    u0 = {"x": f64(0.0, 0.0)}
    prob = ps.SteadyStateProblem(ps.ODEProblem(f, u0, (0.0, 1.0), {"b": b}))
    x = ps.solve(prob, engine=engine).u["x"]
    assert_close(torch.tanh(W @ x + b), x, 1e-9)
    got = torch.autograd.grad(x.sum(), [W, b])
    # by a long fixed-point iteration, differentiated step by step
    z = f64(0.0, 0.0)
    for _ in range(200):
        z = torch.tanh(W @ z + b)
    for a, w in zip(got, torch.autograd.grad(z.sum(), [W, b]), strict=True):
        assert_close(a, w, 1e-8)


def test_the_start_has_no_influence() -> None:
    u0 = f64(1.0, 1.0, grad=True)
    sol = ps.solve(ps.SteadyStateProblem(reactor, u0, f64(2.0, 0.5, 3.0)), engine="sundials")
    assert torch.equal(torch.autograd.grad(sol.u.sum(), u0)[0], f64(0.0, 0.0))


def test_only_rootfinding_finds_unstable_states(engine) -> None:
    def pitchfork(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return p * u - u**3

    prob = ps.SteadyStateProblem(pitchfork, f64([0.1]), f64(1.0))
    assert_close(ps.solve(prob, ps.SSRootfind(), engine=engine).u, f64([0.0]), 0.0, 1e-8)
    rest = ps.solve(prob, ps.DynamicSS(stiff(engine)), engine=engine)
    assert_close(rest.u, f64([1.0]), 1e-6)
    assert rest.original.retcode == "Terminated"


def test_terms_that_fade_with_time() -> None:
    prob = ps.SteadyStateProblem(lambda u, p, t: p - u + torch.exp(-t), f64([0.0]), f64(3.0))
    assert_close(ps.solve(prob, engine="sundials").u, f64([3.0]), 1e-12)


def test_a_conserved_quantity_has_no_gradient_but_others_have() -> None:
    def exchange(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        flow = p[0] * u[0] - p[1] * u[1]
        return torch.stack([-flow, flow])

    p = f64(2.0, 1.0, grad=True)
    prob = ps.SteadyStateProblem(exchange, f64(1.0, 0.5), p)
    sol = ps.solve(prob, ps.DynamicSS(), engine="sundials", abstol=1e-10, reltol=1e-10)
    assert_close(sol.u, f64(0.5, 1.0), 1e-6)
    with pytest.raises(PyscimlError, match="singular in a direction.*conserves"):
        torch.autograd.grad(sol.u[0], p)


def test_ensembles_of_steady_states(engine) -> None:
    p = f64([2.0, 0.5, 3.0], [1.0, 0.7, 2.0], grad=True)
    prob = ps.SteadyStateProblem(reactor, f64(1.0, 1.0), p[0])
    ensemble = ps.EnsembleProblem(
        prob, lambda prob, i: ps.remake(prob, p=p[i]), lambda sol, i: sol.u
    )
    sim = ps.solve(ensemble, ps.SSRootfind(), trajectories=2, engine=engine)
    want = torch.stack([exact(row) for row in p])
    assert_close(torch.stack(sim.u), want, 1e-8)
    (got,) = torch.autograd.grad(torch.stack(sim.u).sum(), p)
    assert_close(got, torch.autograd.grad(want.sum(), p)[0], 1e-7)


def test_many_states_go_matrix_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pysciml.steady_solve._DENSE", 10)
    n = 40
    p = f64(2.0, grad=True)

    def chain(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        left = torch.cat([torch.ones(1, dtype=F64), u[:-1]])
        right = torch.cat([u[1:], torch.zeros(1, dtype=F64)])
        return left - 2 * u + right - p * u / n**2

    sol = ps.solve(ps.SteadyStateProblem(chain, torch.zeros(n, dtype=F64), p), engine="sundials")
    (got,) = torch.autograd.grad(sol.u.sum(), p)

    def total(p: float) -> float:
        prob = ps.SteadyStateProblem(chain, torch.zeros(n, dtype=F64), f64(p))
        return float(ps.solve(prob, engine="sundials").u.sum())

    assert_close(got, f64((total(2.001) - total(1.999)) / 0.002), 1e-6)


def on_a_grid(u: Tensor) -> Tensor:
    """The Laplacian with zeros around, of the unit square."""
    padded = torch.nn.functional.pad(u[None, None], (1, 1, 1, 1))[0, 0]
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return (around - 4 * u) * (len(u) + 1) ** 2


def test_a_plate_of_more_states_than_a_factored_jacobian_has() -> None:
    """A state that is known, of the equations on the grid themselves, and its gradient."""
    line = torch.linspace(0.0, math.pi, 50, dtype=F64)
    hill = torch.sin(line)[:, None] * torch.sin(2 * line) + 0.3
    weights = torch.cos(torch.arange(2500.0, dtype=F64)).reshape(50, 50)

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        rest = p * hill
        return on_a_grid(u) - u**3 - (on_a_grid(rest) - rest**3)

    p = f64(1.2, grad=True)
    prob = ps.SteadyStateProblem(f, torch.zeros(50, 50, dtype=F64), p)
    sol = ps.solve(prob, ps.DynamicSS(), engine="sundials", abstol=1e-4, reltol=1e-4)
    # Newton's method goes on to the root from where the solve has ended
    assert_close(sol.u, 1.2 * hill, 1e-9)
    (got,) = torch.autograd.grad((weights * sol.u).sum(), p)
    assert_close(got, (weights * hill).sum(), 1e-8)


def test_many_states_that_conserve_a_quantity() -> None:
    """Diffusion around a ring comes to rest at the mean: a singular Jacobian."""
    place = torch.linspace(0.0, 2 * math.pi, 2101, dtype=F64)[:-1]
    source, rate = torch.cos(place), 1e5

    def ring(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return rate * (u.roll(1) - 2 * u + u.roll(-1)) + p * source

    p = f64(0.5, grad=True)
    prob = ps.SteadyStateProblem(ring, 1.0 + torch.sin(3 * place), p)
    sol = ps.solve(prob, ps.DynamicSS(), engine="sundials", abstol=1e-8, reltol=1e-8)
    wave = source / (rate * (2 - 2 * math.cos(2 * math.pi / 2100)))
    assert_close(sol.u, 1.0 + 0.5 * wave, 1e-5)
    (got,) = torch.autograd.grad(sol.u[0] - sol.u[1050], p)
    assert_close(got, wave[0] - wave[1050], 1e-6)
    sol = ps.solve(prob, ps.DynamicSS(), engine="sundials", abstol=1e-8, reltol=1e-8)
    with pytest.raises(PyscimlError, match="singular in a direction.*conserves"):
        torch.autograd.grad(sol.u[0], p)


def test_many_states_that_do_not_rest() -> None:
    u0 = torch.linspace(1.0, 2.0, 2001, dtype=F64)
    prob = ps.SteadyStateProblem(lambda u, p, t: 1e-7 * (u - 0.1 * u.roll(1)), u0)
    with pytest.raises(SolveError, match="not reached: rates became small.*no root is near"):
        ps.solve(prob, ps.DynamicSS(), engine="sundials", abstol=1e-10)


def test_what_products_cannot_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full Jacobian of many states whose sizes are far apart, and too few products."""
    monkeypatch.setattr("pysciml.steady_solve._DENSE", 10)
    monkeypatch.setattr("pysciml.steady_linear._FREE", (4, 1))
    torch.manual_seed(1)
    turn = torch.linalg.qr(torch.randn(40, 40, dtype=F64))[0]
    A = turn @ torch.diag(torch.logspace(-2, 2, 40, dtype=F64)) @ turn.T
    p = f64(1.0, grad=True)
    prob = ps.SteadyStateProblem(lambda u, p, t: p - A @ u, torch.zeros(40, dtype=F64), p)
    with pytest.raises(SolveError, match="cannot be told of 40 states whose Jacobian is not"):
        ps.solve(prob, ps.DynamicSS(), engine="sundials", abstol=1e-3, reltol=1e-3)
    monkeypatch.setattr("pysciml.steady_linear._FREE", (200, 10))
    sol = ps.solve(prob, ps.DynamicSS(), engine="sundials", abstol=1e-10, reltol=1e-10)
    assert_close(sol.u, torch.linalg.solve(A, torch.ones(40, dtype=F64)), 1e-8)
    monkeypatch.setattr("pysciml.steady_linear._FREE", (4, 1))
    with pytest.raises(PyscimlError, match="gradient of a steady state of 40 states was not found"):
        torch.autograd.grad(sol.u.sum(), p)


#: Solutions without a steady state, whose rates become small beside them, or which overflow.
RESTLESS: dict[str, Any] = {
    "constant": lambda u, p, t: p.expand(1),
    "root": lambda u, p, t: p * u.sqrt(),
    "inverse": lambda u, p, t: p / u,
    "growth": lambda u, p, t: p * u,
    "slow growth": lambda u, p, t: 1e-7 * p * u,  # "at rest" from the start
    "slow decay": lambda u, p, t: -1e-7 * p * u,  # to 0, but far from it
    "decay of rates": lambda u, p, t: p * torch.exp(-u),
}


@pytest.mark.parametrize("name", RESTLESS)
@pytest.mark.parametrize("alg", ["chosen", "CVODE_BDF", "CVODE_Adams"])
@pytest.mark.parametrize("dense", [True, False])
def test_slow_is_not_steady(
    name: str, alg: str, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not dense:
        monkeypatch.setattr("pysciml.steady_solve._DENSE", 0)
    how = None if alg == "chosen" else getattr(ps, alg)()
    prob = ps.SteadyStateProblem(RESTLESS[name], f64([1.0]), f64(1.0, grad=True))
    options = {"engine": "sundials", "abstol": 1e-10}
    with pytest.raises(SolveError, match="steady state was not reached"):
        ps.solve(prob, ps.DynamicSS(how), **options)
    assert not ps.solve(prob, ps.DynamicSS(how), raise_on_failure=False, **options).success


@pytest.mark.julia
@pytest.mark.parametrize("name", RESTLESS)
def test_slow_is_not_steady_in_julia(name: str) -> None:
    prob = ps.SteadyStateProblem(RESTLESS[name], f64([1.0]), f64(1.0))
    for alg in (None, ps.Tsit5(), ps.Rodas5P()):
        with pytest.raises(SolveError, match="steady state was not reached"):
            ps.solve(prob, ps.DynamicSS(alg), engine="julia", abstol=1e-10)


@pytest.mark.parametrize("dense", [True, False])
def test_states_that_are_steady_though_hard_to_judge(
    dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not dense:
        monkeypatch.setattr("pysciml.steady_solve._DENSE", 0)
    cases: list[tuple[Any, Any, Any]] = [
        (lambda u, p, t: -(u**3), f64([1.0]), f64([0.0])),  # a triple root
        (lambda u, p, t: -u, f64([1.0]), f64([0.0])),
        (lambda u, p, t: p - u, torch.zeros(2), torch.tensor([2.0, 2.0])),  # single precision
        (lambda u, p, t: p * t / (1 + t) - u, f64([0.0]), f64([2.0])),  # no value at t = inf
        (lambda u, p, t: torch.relu(p - u), f64([0.0]), f64([2.0])),  # a half-line of states
    ]
    for f, u0, want in cases:
        p = torch.tensor(2.0, dtype=u0.dtype, requires_grad=True)
        sol = ps.solve(ps.SteadyStateProblem(f, u0, p), ps.DynamicSS(), engine="sundials")
        assert sol.success
        assert_close(sol.u, want, 1e-5, 5e-3)


def no_root(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return 1.0 + u * u


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "f": (lambda: ps.SteadyStateProblem(3, f64([1.0])), InputError, "f is a int; give a function"),
    "alg": (
        lambda: ps.solve(ps.SteadyStateProblem(no_root, f64([1.0])), ps.CVODE_BDF()),
        InputError, r"solved by pysciml.SSRootfind\(\) or pysciml.DynamicSS",
    ),
    "option": (
        lambda: ps.solve(ps.SteadyStateProblem(no_root, f64([1.0])), saveat=[1.0]),
        InputError, "does not take 'saveat' for a SteadyStateProblem",
    ),
    "ensemblealg": (
        lambda: ps.solve(
            ps.SteadyStateProblem(no_root, f64([1.0])), None, ps.EnsembleSerial()
        ),
        InputError, "was given with a SteadyStateProblem, but is for ensembles",
    ),
    "maxiters": (
        lambda: ps.solve(ps.SteadyStateProblem(no_root, f64([1.0])), maxiters=2.5),
        InputError, "maxiters is 2.5; give a positive whole number",
    ),
    "order": (
        lambda: ps.SteadyStateProblem(lambda t, u, p: u, f64([1.0])),
        InputError, r"f takes \(t, u, p\), but .*put them in this order",
    ),
    "u0 twice": (
        lambda: ps.SteadyStateProblem(
            ps.ODEProblem(no_root, f64([1.0]), (0.0, 1.0)), f64([2.0])
        ),
        InputError, r"u0 was given beside an ODEProblem.*pysciml.remake\(prob, u0=...\)",
    ),
    "inner": (lambda: ps.DynamicSS(3), InputError, "alg is a int; give an algorithm"),
    "tspan": (lambda: ps.DynamicSS(tspan=-1.0), InputError, "tspan is -1.0; give a number > 0"),
    "mass": (
        lambda: ps.SteadyStateProblem(
            ps.ODEProblem(no_root, f64([1.0]), (0.0, 1.0), mass_matrix=f64([[2.0]]))
        ),
        InputError, "with a mass matrix",
    ),
    "start": (
        lambda: ps.solve(
            ps.SteadyStateProblem(lambda u, p, t: torch.log(u), f64([-1.0])), engine="sundials"
        ),
        InputError, "inf or NaN at u0",
    ),
    "no root": (
        lambda: ps.solve(ps.SteadyStateProblem(no_root, f64([1.0])), engine="sundials"),
        SolveError, "not reached: no root was found from u0.*DynamicSS",
    ),
    "no rest": (
        lambda: ps.solve(
            ps.SteadyStateProblem(
                lambda u, p, t: torch.stack([u[1], -u[0]]), f64(1.0, 0.0)
            ),
            ps.DynamicSS(tspan=10.0), engine="sundials",
        ),
        SolveError, "not reached: the solve did not come to rest before t = 10",
    ),
    "blow up": (
        lambda: ps.solve(
            ps.SteadyStateProblem(no_root, f64([1.0])), ps.DynamicSS(), engine="sundials"
        ),
        SolveError, "not reached: the solve towards it stopped with retcode",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_a_failure_can_be_looked_at() -> None:
    prob = ps.SteadyStateProblem(no_root, f64([1.0]))
    sol = ps.solve(prob, engine="sundials", raise_on_failure=False)
    assert not sol.success and math.isfinite(float(sol.u))
