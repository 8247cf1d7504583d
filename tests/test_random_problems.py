"""Gradients of problems drawn at random, against their variational equations solved by SciPy.

Spectra over several decades, swinging and decaying modes, nonlinear terms, drives of any rate of
which some are zero, Jacobians that change with time, states at rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import pysciml as ps
from support import F64

TOL = 1e-7
DRIVES: list[Callable[..., Any]] = [
    lambda x, p, w, t: p * x.cos(w * t),
    lambda x, p, w, t: p * x.exp(-w * t),
    lambda x, p, w, t: p,
    lambda x, p, w, t: p * x.tanh(w * (t - 1.0)),
    lambda x, p, w, t: p * p + p * x.sin(w * t) ** 2,
]


class Drawn:
    """``u' = (1 + s sin(r t)) M u + a sin(u_j-1) u_j + B drive(p, w, t)``."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.n = n = int(rng.choice([1, 2, 3, 5, 8, 20, 72]))
        m = int(rng.integers(1, 5))
        rates = -(10.0 ** (rng.random(n) * rng.choice([1, 2, 4]) - 1.0))
        q = np.linalg.qr(rng.standard_normal((n, n)))[0]
        self.matrix = q @ np.diag(rates) @ q.T
        if rng.random() < 0.4:
            swing = rng.standard_normal((n, n))
            self.matrix += (swing - swing.T) * 10.0 ** (2.0 * rng.random() - 1.0)
        self.by_drive = rng.standard_normal((n, m))
        self.w = 10.0 ** (3.0 * rng.random(m) - 1.0)
        self.drive = DRIVES[int(rng.integers(len(DRIVES)))]
        self.bend = rng.random() * (rng.random() < 0.6)
        self.moves = 10.0 ** (2.0 * rng.random() - 1.0) * (rng.random() < 0.3)
        self.p = rng.standard_normal(m) * (rng.random(m) < 0.5)
        self.u0 = rng.standard_normal(n) * (rng.random(n) < 0.7) * (rng.random() < 0.5)
        final = 10.0 ** (2.0 * rng.random() - 1.0)
        self.t = np.append(np.sort(rng.random(int(rng.integers(0, 4)))), 1.0) * final
        self.weights = rng.standard_normal((len(self.t), n))
        self.along = rng.standard_normal(n), rng.standard_normal(m)

    def rate(self, x: Any, u: Any, p: Any, t: Any) -> Any:
        matrix, by_drive, w = self.matrix, self.by_drive, self.w
        if x is torch:
            matrix, by_drive, w = map(torch.as_tensor, (matrix, by_drive, w))
        out = matrix @ u * (1.0 + 0.5 * x.sin(self.moves * t))
        return out + self.bend * x.sin(x.roll(u, 1)) * u + by_drive @ self.drive(x, p, w, t)

    def directional(self) -> tuple[float, float]:
        """The loss's derivative along a direction, and what it may be measured by."""
        n, (du, dp), tiny = self.n, self.along, 1e-30

        def both(t: float, y: Any) -> Any:
            out = self.rate(np, y[:n] + 1j * tiny * y[n:], self.p + 1j * tiny * dp, t)
            return np.concatenate([out.real, out.imag / tiny])

        options: dict[str, Any] = {"method": "DOP853"}
        if np.abs(self.matrix).max() * self.t[-1] > 50.0:
            options = {"method": "Radau", "jac": np.kron(np.eye(2), self.matrix)}
        # steps that no drive is skipped by
        options["max_step"] = self.t[-1] / 40
        span, start = (0.0, self.t[-1]), np.concatenate([self.u0, du])
        out = solve_ivp(both, span, start, t_eval=self.t, rtol=1e-8, atol=1e-10, **options)
        scale = float(np.linalg.norm(self.weights) * (np.linalg.norm(du) + np.linalg.norm(dp)))
        want = float((self.weights * out.y[n:].T).sum())
        return want, max(abs(want), 0.02 * scale)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize(
    ("engine", "alg"),
    [
        pytest.param("sundials", None, id="sundials"),
        pytest.param("sundials", ps.CVODE_BDF(), id="sundials-CVODE_BDF"),
        pytest.param("julia", None, id="julia", marks=pytest.mark.julia),
        pytest.param("julia", ps.Tsit5(), id="julia-Tsit5", marks=pytest.mark.julia),
        pytest.param("julia", ps.Rodas5P(), id="julia-Rodas5P", marks=pytest.mark.julia),
    ],
)
def test_gradients(engine: str, alg: Any, seed: int) -> None:
    drawn = Drawn(seed)
    if alg == ps.Tsit5() and np.abs(drawn.matrix).max() * drawn.t[-1] > 3e3:
        pytest.skip("too stiff for an explicit method")
    u0, p = (torch.as_tensor(x).requires_grad_() for x in (drawn.u0, drawn.p))
    prob = ps.ODEProblem(lambda u, p, t: drawn.rate(torch, u, p, t), u0, (0.0, drawn.t[-1]), p)
    sol = ps.solve(prob, alg, saveat=drawn.t.tolist(), engine=engine, abstol=TOL, reltol=TOL)
    loss = (torch.as_tensor(drawn.weights, dtype=F64) * sol.u).sum()
    by_start, by_p = torch.autograd.grad(loss, [u0, p])
    du, dp = map(torch.as_tensor, drawn.along)
    got = float((by_start * du).sum() + (by_p * dp).sum())
    want, scale = drawn.directional()
    assert abs(got - want) < 1e3 * TOL * scale
