"""Gradients of solutions at rest: few steps, of any length, through which modes have to be taken.

What is linearised about the rest is a linear equation, whose solution is a matrix exponential.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pysciml as ps
from pysciml.engines.sundials.damping import parts_for_damping
from support import F64, f64

TOL = 1e-8
#: What is cut is right to the tolerance, and nothing is cut that is right to thirty times that.
RTOL = 60 * TOL


def small(u: Any, p: Any, t: Any) -> Any:
    return torch.stack([u[1] - u[0] * u[0], -6.0 * u[0] - 5.0 * u[1]]) + p


def stiff(u: Any, p: Any, t: Any) -> Any:
    return torch.stack([-1e4 * u[0] + u[1], -3.0 * torch.sin(u[1]) + u[0]]) + p


def coupled(u: Any, p: Any, t: Any) -> Any:
    """Dense; more states than eigenvalues are looked at of."""
    return torch.tanh(torch.tanh(u).mean() - 3.0 * u) + p


def ring(u: Any, p: Any, t: Any) -> Any:
    return 100.0 * (torch.roll(u, 1) - 2.0 * u + torch.roll(u, -1)) - u + p


def sheet(u: Any, p: Any, t: Any) -> Any:
    u = torch.nn.functional.pad(u.reshape(18, 18), (1, 1, 1, 1))
    spread = u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] - 4.0 * u[1:-1, 1:-1]
    return (30.0 * spread - u[1:-1, 1:-1]).reshape(-1) + p


def samples(u: Any, p: Any, t: Any) -> Any:
    u = u.reshape(-1, 2)
    return (-3.0 * u - torch.tanh(u).flip(-1)).reshape(-1) + p


def linearised(f: Any, n: int, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The final state's derivatives by the initial one (n, n), and by p (n,)."""
    zero, p, now = torch.zeros(n, dtype=F64), f64([0.0]), f64(0.0).reshape(())
    whole = torch.zeros(n + 1, n + 1, dtype=F64)
    whole[:n, :n] = torch.func.jacrev(lambda u: f(u, p, now))(zero)
    whole[:n, n] = torch.func.jacrev(lambda p: f(zero, p, now))(p)[:, 0]
    out = torch.linalg.matrix_exp(t * whole)
    return out[:n, :n], out[:n, n]


WAYS = [
    ("sundials", ps.CVODE_BDF(), None, f, n)
    for f, n in (
        (small, 2), (stiff, 2), (coupled, 100), (coupled, 450), (ring, 72), (sheet, 324),
        (samples, 64),
    )
] + [
    ("sundials", ps.CVODE_Adams(), None, small, 2),
    ("sundials", ps.CVODE_Adams(), None, samples, 64),
    ("sundials", None, None, stiff, 2),
    ("sundials", ps.CVODE_BDF(), ps.ForwardSensitivity(), small, 2),
    ("sundials", ps.CVODE_BDF(), ps.ForwardSensitivity(), stiff, 2),
    ("julia", None, None, small, 2),
    ("julia", ps.Tsit5(), None, small, 2),
    ("julia", ps.Tsit5(), ps.GaussAdjoint(), small, 2),
    ("julia", ps.Vern7(), None, small, 2),
    ("julia", ps.FBDF(), None, small, 2),
    ("julia", ps.Rodas5P(), None, small, 2),
    ("julia", ps.Rodas5P(), None, stiff, 2),
    ("julia", ps.Rodas5P(), None, samples, 40),
    ("julia", ps.Rodas5P(), None, ring, 72),
]  # fmt: skip


@pytest.mark.parametrize("t", [1.0, 6.0])
@pytest.mark.parametrize(
    ("engine", "alg", "sensealg", "f", "n"),
    [
        pytest.param(
            *way, marks=[pytest.mark.julia] if way[0] == "julia" else [],
            id="-".join(
                str(x if isinstance(x, (str, int)) else getattr(x, "name", None) or x.__name__)
                for x in way if x is not None
            ),
        )
        for way in WAYS
    ],
)  # fmt: skip
def test_gradients(engine: str, alg: Any, sensealg: Any, f: Any, n: int, t: float) -> None:
    torch.manual_seed(0)
    start, p = torch.zeros(n, dtype=F64, requires_grad=True), f64([0.0]).requires_grad_()
    sol = ps.solve(
        ps.ODEProblem(f, start, (0.0, t), p), alg, saveat=[t], engine=engine, sensealg=sensealg,
        abstol=TOL, reltol=TOL,
    )  # fmt: skip
    assert sol.stats.naccept < 30
    weights = torch.randn(n, dtype=F64)
    got_u, got_p = torch.autograd.grad((weights * sol.u[-1]).sum(), [start, p])
    by_start, by_p = linearised(f, n, t)
    # what is left of the weights, and of the parameter's part
    assert float((got_u - by_start.T @ weights).norm()) < RTOL * float(weights.norm())
    scale = float(weights.norm() * by_p.norm())
    assert float((got_p - weights @ by_p).abs()) < RTOL * scale


@pytest.mark.julia
def test_beside_a_delay() -> None:
    # the delayed value comes from before the start: u' = -4 u + p for t < 2
    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        return -4.0 * u + h(p, t - 2.0) + p

    start, p = torch.zeros(1, dtype=F64, requires_grad=True), f64([0.0]).requires_grad_()
    prob = ps.DDEProblem(
        f, start, lambda p, t: torch.zeros(1, dtype=F64), (0.0, 1.5), p, constant_lags=[2.0]
    )
    sol = ps.solve(prob, ps.Tsit5(), saveat=[1.5], abstol=TOL, reltol=TOL)
    got_u, got_p = torch.autograd.grad(sol.u[-1].sum(), [start, p])
    left = np.exp(-6.0)
    assert float(got_u) == pytest.approx(left, abs=RTOL)
    assert float(got_p) == pytest.approx((1.0 - left) / 4.0, abs=RTOL)


@pytest.mark.parametrize("value", [-0.7, -6.0, -1e3, -1e6, -30.0 + 5.0j])
@pytest.mark.parametrize("start", [[], [0.0, 0.001, 0.01]])
def test_meshes(value: complex, start: list[float]) -> None:
    tol, slack = 1e-9, 30.0
    h = np.diff([*start, 1.0, 2.0])
    z = (h * value)[:, None].astype(complex)
    parts = parts_for_damping(z, np.arange(len(h)), h, tol, slack)
    assert parts.sum() < 300

    def through(z: Any) -> Any:
        """R(z), from the rule's nodes and weights alone."""
        s6 = np.sqrt(6.0)
        a = np.array(
            [
                [(88 - 7 * s6) / 360, (296 - 169 * s6) / 1800, (-2 + 3 * s6) / 225],
                [(296 + 169 * s6) / 1800, (88 + 7 * s6) / 360, (-2 - 3 * s6) / 225],
                [(16 - s6) / 36, (16 + s6) / 36, 1 / 9],
            ]
        )
        return np.linalg.solve(np.eye(3) - z * a, np.ones(3))[2]

    total = np.prod([through(x / m) ** m for x, m in zip(z[:, 0], parts, strict=True)])
    assert abs(total - np.exp(z.sum())) < 2 * slack * tol


def test_enough_intervals_damp_by_themselves() -> None:
    def last(count: int) -> int:
        at, h = np.array([count - 1]), np.ones(count)
        return int(parts_for_damping(np.full((1, 1), -10.0 + 0.0j), at, h, 1e-6, 30.0)[0])

    assert last(1) > last(3) > last(30) == 1
    # whatever stands before the nearest ones
    assert last(13) == 1
