"""Adjoints of states along a line or a ring: Jacobians that are a narrow band in some order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pysciml as ps
from pysciml.engines.sundials import gauss, jacobian
from pysciml.engines.sundials.banded_sweep import Band, sweep_banded
from pysciml.engines.sundials.collocation import Nodes, sweep_dense
from pysciml.engines.sundials.resolution import Resolution
from pysciml.engines.sundials.sparse_sweep import sweep_sparse
from support import F64, assert_close, central_difference, f64
from test_sparse_jacobian import plan_of, solved

N = 72


def ring(u: Any, p: Any, t: Any) -> Any:
    """Carried along a ring (differences to one side), spread, and made."""
    left, right = torch.roll(u, 1), torch.roll(u, -1)
    return 300.0 * p[0] * (left - 2.0 * u + right) + 20.0 * (left - u) + p[1] * u * (1.0 - u)


def line(u: Any, p: Any, t: Any) -> Any:
    """The same on a line, with differences over two cells to the left."""
    zero = u.new_zeros(2)
    left, further = torch.cat([zero[:1], u[:-1]]), torch.cat([zero, u[:-2]])
    right = torch.cat([u[1:], zero[:1]])
    along = 10.0 * (-3.0 * u + 4.0 * left - further)
    return 300.0 * p[0] * (left - 2.0 * u + right) + along + p[1] * u * (1.0 - u)


def sheet(u: Any, p: Any, t: Any) -> Any:
    """On a plane: its band is as wide as the plane, iteration is faster."""
    u = torch.nn.functional.pad(u.reshape(18, 18), (1, 1, 1, 1))
    spread = u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] - 4.0 * u[1:-1, 1:-1]
    return (30.0 * p[0] * spread + p[1] * u[1:-1, 1:-1] * (1.0 - u[1:-1, 1:-1])).reshape(-1)


@pytest.mark.parametrize(
    ("f", "n", "kind", "widths"),
    [(ring, N, "sparse", (2, 2)), (line, N, "banded", (2, 1)), (sheet, 324, "banded", None)],
    ids=["ring", "line", "sheet"],
)
@pytest.mark.parametrize("spread", [0.002, 0.5], ids=["hardly stiff", "stiff"])
def test_gradients_are_those_of_differences(f, n, kind, widths, spread):
    torch.manual_seed(0)
    u0, p = 0.1 + 0.8 * torch.rand(n, dtype=F64), f64(spread, 1.5)
    du0, dp, weights = torch.randn(n, dtype=F64), f64(0.3, -0.4) * p, torch.randn(n, dtype=F64)

    def final(u0, p, tol):
        prob = ps.ODEProblem(f, u0, (0.0, 1.0), p)
        alg = ps.CVODE_BDF()
        return solved(prob, alg, saveat=[0.1, 1.0], abstol=tol, reltol=tol)

    loss = lambda sol: (weights * sol.u).sum()
    start, params = u0.clone().requires_grad_(), p.clone().requires_grad_()
    sol, flat = final(start, params, 1e-8)
    made = plan_of(flat)
    assert made.kind == kind
    assert widths == (made.band and (made.band.lower, made.band.upper))
    g_u, g_p = torch.autograd.grad(loss(sol), [start, params])
    along = lambda s: loss(final(u0 + s * du0, p + s * dp, 1e-12)[0])
    want = central_difference(along, f64(0.0).reshape(1), 1e-4)[0]
    assert_close((g_u * du0).sum() + (g_p * dp).sum(), want, 1e-6)


def dense(rows, cols, values, n):
    out = np.zeros((*values.shape[:-1], n, n))
    out[..., rows, cols] = values
    return out


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_sweep_is_the_dense_one(shuffled):
    n, count = 15, 6
    rng = np.random.default_rng(3)
    cols, rows = np.nonzero(sum(np.eye(n, k=k) for k in (-1, 0, 1, 3)))
    if shuffled:
        to = rng.permutation(n)
        rows, cols = to[rows], to[cols]
        first = np.lexsort((rows, cols))
        rows, cols = rows[first], cols[first]
        band = Band.found(rows, cols, n)
        assert band.width < 10 < Band.of(rows, cols, np.arange(n)).width
    else:
        band = Band.of(rows, cols, np.arange(n))
        assert (band.lower, band.upper) == (3, 1)
    nodes = Nodes.of(np.cumsum(rng.random(count + 1)))
    values = 0.3 * rng.standard_normal((count, 3, len(rows)))
    jumps = {6: rng.standard_normal(n), 3: rng.standard_normal(n), 0: rng.standard_normal(n)}
    want = sweep_dense(nodes, dense(rows, cols, values, n), jumps)
    # `refine` None: no interval is cut
    got = sweep_banded(nodes, values.__getitem__, band, jumps, Resolution(1e-6, None, nodes.h))
    np.testing.assert_allclose(got.mu_start, want.mu_start, rtol=1e-9)
    np.testing.assert_allclose(got.stages, want.stages, rtol=1e-9, atol=1e-12)
    # an interval's product with the transposed Jacobian, as the one who cuts intervals asks for it
    for sweep, given in ((sweep_banded, (band,)), (sweep_sparse, (rows, cols, n))):
        asked = Asked()
        if sweep is sweep_sparse:
            sweep(nodes, values.__getitem__, *given, jumps, 1e-6, asked)
        else:
            sweep(nodes, values.__getitem__, *given, jumps, asked)
        transposed = dense(rows, cols, values, n)[:, 1].transpose(0, 2, 1)
        for k, product in asked.products.items():
            np.testing.assert_allclose(product, transposed[k] @ np.arange(n), atol=1e-12)
        assert sorted(asked.products) == list(range(count))


class Asked(Resolution):
    def __init__(self) -> None:
        super().__init__(1e-6, None)
        self.products: dict[int, Any] = {}

    def after(self, k, h, mu, stages, multiply):
        self.products[k] = multiply(np.arange(float(stages.shape[1])))
        return None


def test_jacobians_of_some_intervals_at_a_time(monkeypatch):
    def gradient():
        start = torch.linspace(0.1, 0.9, N, dtype=F64).requires_grad_()
        prob = ps.ODEProblem(ring, start, (0.0, 1.0), f64(0.01, 1.5))
        sol = ps.solve(prob, ps.CVODE_BDF(), engine="sundials", saveat=[1.0])
        return torch.autograd.grad(sol.u.square().sum(), [start])[0]

    seen = []
    real = jacobian.batched

    def batched(*args):
        inner = real(*args)
        return lambda u, t: seen.append(len(u)) or inner(u, t)

    monkeypatch.setattr(jacobian, "batched", batched)
    whole = gradient()
    all_at_once, seen[:] = seen[:], []
    monkeypatch.setattr(gauss, "HELD", 5 * 3 * 3 * N)
    np.testing.assert_allclose(gradient(), whole, rtol=1e-12)
    assert max(seen) == 15 and sum(seen) == sum(all_at_once) and len(all_at_once) == 1


@pytest.mark.parametrize(("f", "n"), [(ring, N), (sheet, 324)])
def test_what_is_not_finite_stays_so(f, n):
    start = torch.full((n,), 0.5, dtype=F64, requires_grad=True)
    prob = ps.ODEProblem(f, start, (0.0, 0.1), f64(0.01, 1.5))
    sol = ps.solve(prob, ps.CVODE_BDF(), engine="sundials", saveat=[0.1])
    (grad,) = torch.autograd.grad(sol.u.sum() * float("nan"), [start])
    assert torch.isnan(grad).all()
