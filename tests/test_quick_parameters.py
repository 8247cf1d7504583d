"""Gradients where a rate's derivatives change faster with time than the solution.

A control that is zero so far leaves no trace in the solution, and the solver's steps are as long
as that allows: an adjoint on these steps alone sees nothing of ``f_p`` but chance.
"""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import pysciml as ps
from pysciml.engines.sundials import forward, gauss
from pysciml.engines.sundials.driven_mesh import resolved
from support import F64, f64

QUICK, SLOW = 40.0, 7.0
STEPPED = ps.InterpolatingAdjoint, ps.QuadratureAdjoint, ps.ForwardSensitivity


def controlled(u: Any, p: Any, t: Any) -> Any:
    return -u + p[0] * torch.cos(QUICK * t) + p[1] * torch.cos(SLOW * t)


def by_control(w: float, t: float) -> float:
    """The solution's derivative by the amplitude of ``cos(w t)``."""
    return (math.cos(w * t) + w * math.sin(w * t) - math.exp(-t)) / (1.0 + w * w)


WAYS = [
    pytest.param("sundials", ps.CVODE_BDF(), None, id="sundials-CVODE_BDF"),
    pytest.param("sundials", ps.CVODE_Adams(), None, id="sundials-CVODE_Adams"),
    pytest.param("sundials", ps.CVODE_BDF(), ps.ForwardSensitivity(), id="sundials-forward"),
    *(
        pytest.param(
            "julia", alg, sensealg, marks=pytest.mark.julia,
            id=f"julia-{alg and alg.name}-{sensealg and sensealg.name}",
        )
        for alg, sensealg in (
            (None, None), (ps.Tsit5(), None), (ps.Vern7(), None), (ps.Rodas5P(), None),
            (ps.FBDF(), None), (ps.Tsit5(), ps.CollocationAdjoint()),
            (ps.Tsit5(), ps.GaussAdjoint()), (ps.Tsit5(), ps.ForwardSensitivity()),
            (ps.Tsit5(), ps.InterpolatingAdjoint()), (ps.Tsit5(), ps.QuadratureAdjoint()),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("u0", [0.0, 1.0])
@pytest.mark.parametrize(("engine", "alg", "sensealg"), WAYS)
def test_controls_that_are_zero(engine: str, alg: Any, sensealg: Any, u0: float) -> None:
    p = f64(0.0, 0.0).requires_grad_()
    start = torch.full((1,), u0, dtype=F64, requires_grad=True)
    sol = ps.solve(
        ps.ODEProblem(controlled, start, (0.0, 10.0), p), alg, saveat=[6.0, 10.0], engine=engine,
        sensealg=sensealg, abstol=1e-6, reltol=1e-6,
    )  # fmt: skip
    for i, t in enumerate((6.0, 10.0)):
        got, by_start = torch.autograd.grad(sol.u[i, 0], [p, start], retain_graph=True)
        exact = [by_control(QUICK, t), by_control(SLOW, t)]
        # what Julia's solvers step is held to its own tolerance
        stepped = engine == "julia" and isinstance(sensealg, STEPPED)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=2e-5 * stepped)
        np.testing.assert_allclose(by_start, math.exp(-t), rtol=1e-4, atol=2e-5 * stepped)


@pytest.mark.parametrize(("engine", "alg", "sensealg"), WAYS)
def test_jacobians_that_change_while_the_state_is_at_rest(
    engine: str, alg: Any, sensealg: Any
) -> None:
    p, start = f64([0.0]).requires_grad_(), f64([0.0]).requires_grad_()
    prob = ps.ODEProblem(lambda u, p, t: 3 * torch.cos(5 * t) * u + p, start, (0.0, 10.0), p)
    sol = ps.solve(
        prob, alg, saveat=[10.0], engine=engine, sensealg=sensealg, abstol=1e-7, reltol=1e-7
    )
    got = torch.autograd.grad(sol.u[-1, 0], [p, start])
    grown = lambda s: math.exp(0.6 * (math.sin(50.0) - math.sin(5 * s)))
    exact = quad(grown, 0.0, 10.0, limit=400, epsabs=1e-11)[0], grown(0.0)
    np.testing.assert_allclose([float(g) for g in got], exact, rtol=2e-5)


@pytest.mark.parametrize("states", [2, 60], ids=["few", "many"])
@pytest.mark.parametrize(("engine", "alg", "sensealg"), WAYS)
def test_slow_ones_do_not_hide_the_fast(engine: str, alg: Any, sensealg: Any, states: int) -> None:
    # beside a large slow control, and one coupling, there are a small fast one and another
    def f(u: Any, p: Any, t: Any) -> Any:
        driven = p[0] * torch.cos(t) + p[1] * torch.cos(QUICK * t) + 3 * torch.cos(9 * t) * u[1]
        return torch.cat([(driven - u[0])[None], -u[1:]])

    start = torch.zeros(states, dtype=F64)
    start[0] = 2.0
    start, p = start.requires_grad_(), f64(3.0, 0.0).requires_grad_()
    sol = ps.solve(
        ps.ODEProblem(f, start, (0.0, 4.0), p), alg, saveat=[4.0], engine=engine, sensealg=sensealg,
        abstol=1e-7, reltol=1e-7,
    )  # fmt: skip
    by_start, by_p = torch.autograd.grad(sol.u[-1, 0], [start, p])
    exact = [by_control(1.0, 4.0), by_control(QUICK, 4.0)]
    # what Julia's solvers step is held to its own tolerance
    atol = 5e-6 * (engine == "julia" and isinstance(sensealg, STEPPED))
    np.testing.assert_allclose(by_p, exact, rtol=2e-5, atol=atol)
    coupled = math.exp(-4.0) * math.sin(36.0) / 3.0
    np.testing.assert_allclose(by_start[:2], [math.exp(-4.0), coupled], rtol=2e-5, atol=atol + 1e-7)


@pytest.mark.parametrize(("engine", "alg", "sensealg"), [w for w in WAYS if w.values[2] is None])
def test_a_control_beside_a_large_network(engine: str, alg: Any, sensealg: Any) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Linear(31, 40), torch.nn.Tanh(), torch.nn.Linear(40, 30)
    network = torch.nn.Sequential(*layers).double()
    weights = torch.nn.utils.parameters_to_vector(network.parameters()).detach()

    def f(u: Any, p: Any, t: Any) -> Any:
        parts = p[0] * torch.cos(QUICK * t), torch.zeros(29, dtype=F64)
        return 0.1 * network(torch.cat([u, t[None]])) - u + torch.cat([parts[0][None], parts[1]])

    def final(amplitude: float, tol: float) -> Any:
        p = f64([amplitude]).requires_grad_()
        prob = ps.ODEProblem(f, torch.ones(30, dtype=F64), (0.0, 4.0), p)
        return ps.solve(prob, alg, saveat=[4.0], engine=engine, abstol=tol, reltol=tol).u[-1, 0], p

    assert len(weights) > 400
    u, p = final(0.0, 1e-6)
    (got,) = torch.autograd.grad(u, [p])
    with torch.no_grad():
        by_difference = (final(1e-2, 1e-11)[0] - final(-1e-2, 1e-11)[0]) / 2e-2
    assert float(got) == pytest.approx(float(by_difference), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("engine", "alg"),
    [("sundials", ps.IDA()), pytest.param("julia", ps.Rodas5P(), marks=pytest.mark.julia)],
    ids=["sundials", "julia"],
)
def test_backwards_in_time_beside_a_constraint(engine: str, alg: Any) -> None:
    def f(u: Any, p: Any, t: Any) -> Any:
        return torch.stack([u[0] + p * torch.cos(QUICK * t), u[1] - 2 * u[0]])

    p = torch.zeros((), dtype=F64, requires_grad=True)
    prob = ps.ODEProblem(f, f64(1.0, 2.0), (3.0, 0.0), p, mass_matrix=torch.diag(f64(1.0, 0.0)))
    sol = ps.solve(prob, alg, saveat=[0.0], engine=engine, abstol=1e-7, reltol=1e-7)
    (got,) = torch.autograd.grad(sol.u[-1, 1], [p])
    w, part = QUICK, math.exp(-3.0)
    waves = 1 + part * (w * math.sin(3 * w) - math.cos(3 * w))
    assert float(got) == pytest.approx(-2 * waves / (1 + w * w), rel=1e-4)


@pytest.mark.parametrize(
    ("engine", "alg", "sensealg"),
    [
        pytest.param("sundials", ps.IDA(), None, id="sundials-adjoint"),
        pytest.param("sundials", ps.IDA(), ps.ForwardSensitivity(), id="sundials-forward"),
        pytest.param("julia", ps.DFBDF(), None, id="julia", marks=pytest.mark.julia),
    ],
)
def test_residuals(engine: str, alg: Any, sensealg: Any) -> None:
    def f(du: Any, u: Any, p: Any, t: Any) -> Any:
        rate = 3 * torch.cos(5 * t) * u[0] + p * torch.cos(QUICK * t)
        return torch.stack([du[0] - rate, u[1] - 2 * u[0]])

    p, zero = torch.zeros((), dtype=F64, requires_grad=True), torch.zeros(2, dtype=F64)
    prob = ps.DAEProblem(f, zero, zero, (0.0, 5.0), p, differential_vars=[True, False])
    sol = ps.solve(
        prob, alg, saveat=[5.0], engine=engine, sensealg=sensealg, abstol=1e-7, reltol=1e-7
    )
    (got,) = torch.autograd.grad(sol.u[-1, 1], [p])
    grown = lambda s: math.exp(0.6 * (math.sin(25.0) - math.sin(5 * s))) * math.cos(QUICK * s)
    assert float(got) == pytest.approx(2 * quad(grown, 0.0, 5.0, limit=900, epsabs=1e-12)[0], 1e-5)


@pytest.mark.julia
@pytest.mark.parametrize("alg", [ps.Vern7(), ps.Tsit5()], ids=["Vern7", "Tsit5"])
def test_single_precision_in_julia(alg: Any) -> None:
    p = torch.zeros(2, requires_grad=True)
    sol = ps.solve(
        ps.ODEProblem(controlled, torch.ones(1), (0.0, 3.0), p), alg, saveat=[3.0],
        engine="julia", abstol=1e-4, reltol=1e-4,
    )  # fmt: skip
    (got,) = torch.autograd.grad(sol.u.sum(), [p])
    np.testing.assert_allclose(got, [by_control(QUICK, 3.0), by_control(SLOW, 3.0)], rtol=2e-2)


@pytest.mark.julia
@pytest.mark.parametrize("alg", [ps.Tsit5(), ps.Rodas5P()], ids=["Tsit5", "Rodas5P"])
def test_a_model_that_is_called_back(alg: Any) -> None:
    def f(u: Any, p: Any, t: Any) -> Any:
        return -u + p * math.cos(QUICK * float(t))

    p = torch.zeros(1, dtype=F64, requires_grad=True)
    with warnings.catch_warnings():  # told of once
        warnings.simplefilter("ignore", ps.CaptureWarning)
        sol = ps.solve(
            ps.ODEProblem(f, f64([1.0]), (0.0, 3.0), p), alg, saveat=[3.0], engine="julia",
            abstol=1e-6, reltol=1e-6,
        )  # fmt: skip
        (got,) = torch.autograd.grad(sol.u.sum(), [p])
    assert float(got) == pytest.approx(by_control(QUICK, 3.0), rel=1e-4)


@pytest.mark.julia
def test_beside_a_delay() -> None:
    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        return -h(p, t - 1.0) + p * torch.cos(QUICK * t)

    def final(amplitude: float, tol: float) -> Any:
        p = f64([amplitude]).requires_grad_()
        prob = ps.DDEProblem(
            f, torch.zeros(1, dtype=F64), lambda p, t: torch.zeros(1, dtype=F64), (0.0, 4.0), p,
            constant_lags=[1.0],
        )  # fmt: skip
        return ps.solve(prob, ps.Vern7(), saveat=[4.0], abstol=tol, reltol=tol).u[-1, 0], p

    u, p = final(0.0, 1e-7)
    (got,) = torch.autograd.grad(u, [p])
    exact = final(1.0, 1e-12)[0]  # linear in p
    assert float(got) == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize("sensealg", [None, ps.ForwardSensitivity()], ids=["adjoint", "forward"])
def test_pieces_in_time_are_not_looked_at(sensealg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    def resolved(mesh: Any, segment: Any, alongs: Any, *args: Any) -> Any:
        looked_at.extend(alongs)
        return mesh

    for module in (gauss, forward):
        monkeypatch.setattr(module, "resolved", resolved)

    def f(u: Any, p: Any, t: Any) -> Any:
        return -u + torch.where(t > 1.0, p, -p)

    p = f64([0.5]).requires_grad_()
    sol = ps.solve(
        ps.ODEProblem(f, f64([1.0]), (0.0, 2.0), p), ps.CVODE_BDF(), saveat=[2.0],
        d_discontinuities=[1.0], engine="sundials", sensealg=sensealg, abstol=1e-8, reltol=1e-8,
    )  # fmt: skip
    (got,) = torch.autograd.grad(sol.u.sum(), [p])
    exact = (1 - math.exp(-1)) - (math.exp(-1) - math.exp(-2))
    assert float(got) == pytest.approx(exact, rel=1e-5)
    assert looked_at and all(along is None for along in looked_at)


def test_jumps_in_time_are_not_taken_for_waves() -> None:
    # no mesh resolves them: the first one stays, and so does one over pieces that nobody declared
    mesh = np.linspace(0.0, 10.0, 8)
    out = resolved(mesh, STILL, [lambda u, t, du: np.sign(np.sin(40 * t))[:, None, None]], 1e-9)
    np.testing.assert_array_equal(out, mesh)


STILL: Any = SimpleNamespace(interpolant=lambda t, d=0: np.zeros((len(t), 1)), u=np.zeros((2, 1)))


def mesh_for(w: float, mesh: list[float], rtol: float) -> np.ndarray:
    return resolved(
        np.array(mesh), STILL, [None, lambda u, t, du: np.cos(w * t)[:, None, None]], rtol
    )


def test_meshes() -> None:
    # waves are seen however many the first intervals skip, and to the tolerance's part
    for rtol in (1e-3, 1e-8):
        h = np.diff(mesh_for(40.0, [0.0, 5.0, 10.0], rtol))
        assert h.max() * 40.0 < (rtol / 1.4e-5) ** 0.2
        assert h.min() * 40.0 > (rtol / 1.4e-5) ** 0.2 / 40
    # where the mesh resolves it already, and where there is nothing, it stays
    fine = list(np.linspace(0.0, 1.0, 101))
    assert len(mesh_for(1.0, fine, 1e-8)) == 101
    assert len(mesh_for(0.0, [0.0, 5.0, 10.0], 1e-8)) == 3
    back = mesh_for(40.0, [10.0, 5.0, 0.0], 1e-3)
    assert (np.diff(back) < 0).all() and back[0] == 10.0 and back[-1] == 0.0


def test_what_cannot_be_told_leaves_the_mesh() -> None:
    mesh = np.array([0.0, 1.0])
    out = resolved(mesh, STILL, [lambda u, t, du: np.full((len(t), 1, 1), np.nan)], 1e-6)
    np.testing.assert_array_equal(out, mesh)
