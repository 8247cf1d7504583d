"""Gradients by parameters whose part in the rate changes faster than the solution.

A control that is zero so far leaves no trace in the solution, and the solver's steps are as long
as that allows: an adjoint on these steps alone sees nothing of ``f_p`` but chance.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pysciml as ps
from pysciml.engines.sundials import forward, gauss
from pysciml.engines.sundials.parameters_mesh import resolved
from support import F64, f64

QUICK, SLOW = 40.0, 7.0


def controlled(u: Any, p: Any, t: Any) -> Any:
    return -u + p[0] * torch.cos(QUICK * t) + p[1] * torch.cos(SLOW * t)


def by_control(w: float, t: float) -> float:
    """The solution's derivative by the amplitude of ``cos(w t)``."""
    return (math.cos(w * t) + w * math.sin(w * t) - math.exp(-t)) / (1.0 + w * w)


WAYS = [
    pytest.param(ps.CVODE_BDF(), None, id="CVODE_BDF"),
    pytest.param(ps.CVODE_Adams(), None, id="CVODE_Adams"),
    pytest.param(ps.CVODE_BDF(), ps.ForwardSensitivity(), id="forward"),
]


@pytest.mark.parametrize("u0", [0.0, 1.0])
@pytest.mark.parametrize(("alg", "sensealg"), WAYS)
def test_controls_that_are_zero(alg: Any, sensealg: Any, u0: float) -> None:
    p = f64(0.0, 0.0).requires_grad_()
    start = torch.full((1,), u0, dtype=F64, requires_grad=True)
    sol = ps.solve(
        ps.ODEProblem(controlled, start, (0.0, 10.0), p), alg, saveat=[6.0, 10.0],
        engine="sundials", sensealg=sensealg, abstol=1e-6, reltol=1e-6,
    )  # fmt: skip
    for i, t in enumerate((6.0, 10.0)):
        got, by_start = torch.autograd.grad(sol.u[i, 0], [p, start], retain_graph=True)
        exact = [by_control(QUICK, t), by_control(SLOW, t)]
        np.testing.assert_allclose(got, exact, rtol=1e-5)
        np.testing.assert_allclose(by_start, math.exp(-t), rtol=1e-4)


def test_backwards_in_time_beside_a_constraint() -> None:
    def f(u: Any, p: Any, t: Any) -> Any:
        return torch.stack([u[0] + p * torch.cos(QUICK * t), u[1] - 2 * u[0]])

    p = torch.zeros((), dtype=F64, requires_grad=True)
    prob = ps.ODEProblem(f, f64(1.0, 2.0), (3.0, 0.0), p, mass_matrix=torch.diag(f64(1.0, 0.0)))
    sol = ps.solve(prob, ps.IDA(), saveat=[0.0], engine="sundials", abstol=1e-7, reltol=1e-7)
    (got,) = torch.autograd.grad(sol.u[-1, 1], [p])
    w, part = QUICK, math.exp(-3.0)
    waves = 1 + part * (w * math.sin(3 * w) - math.cos(3 * w))
    assert float(got) == pytest.approx(-2 * waves / (1 + w * w), rel=1e-4)


@pytest.mark.parametrize("sensealg", [None, ps.ForwardSensitivity()], ids=["adjoint", "forward"])
def test_pieces_in_time_are_not_looked_at(sensealg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gauss, forward):
        monkeypatch.setattr(module, "resolved", None)

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


def test_jumps_in_time_are_not_taken_for_waves() -> None:
    # no mesh resolves them: the first one stays, and so does one over pieces that nobody declared
    mesh = np.linspace(0.0, 10.0, 8)
    out = resolved(mesh, STILL, lambda u, t: np.sign(np.sin(40 * t))[:, None], 1e-9)
    np.testing.assert_array_equal(out, mesh)


STILL: Any = SimpleNamespace(interpolant=lambda t: np.zeros((len(t), 1)), u=np.zeros((2, 1)))


def mesh_for(w: float, mesh: list[float], rtol: float) -> np.ndarray:
    return resolved(np.array(mesh), STILL, lambda u, t: np.cos(w * t)[:, None], rtol)


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
    out = resolved(mesh, STILL, lambda u, t: np.full((len(t), 1), np.nan), 1e-6)
    np.testing.assert_array_equal(out, mesh)
