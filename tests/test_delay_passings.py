"""Lags that time or the state moves, where they bring jumps back: exact polynomials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

import pysciml as ps
from delayed import check
from support import F64, f64

pytestmark = pytest.mark.julia

TIMES = [0.2, 0.7, 1.1, 1.63, 2.2, 2.9, 3.0]
#: Delayed times: one that goes ahead, and one that turns and passes the jumps a second time.
AHEAD, TURNING = [-0.3, 0.8], [-0.1, 0.9, -0.3]
KICKS = [{}, {0.5: 1.0}, {0.5: 1.0, 0.9: -0.4}]


def exactly(
    a: float, delayed: list[float], u0: float, before: float, kicks: dict[float, float]
) -> np.ndarray:
    """``u' = -a u(s(t))`` with a polynomial s and u = ``before`` before 0, by polynomials."""
    s = Polynomial(delayed)
    starts, pieces = [-np.inf], [Polynomial([before])]
    t, u = 0.0, u0
    while t < 3.0:
        # what s sees just after t, and up to when it sees the same
        i = int(np.searchsorted(starts, s(t + 1e-9), side="right")) - 1
        ends = [*starts[i : i + 2], t][:2]
        crossings = [x.real for e in ends if np.isfinite(e) for x in (s - e).roots() if x.imag == 0]
        later = [x for x in (*crossings, *kicks, 3.0) if x > t + 1e-9]
        piece = (-a * pieces[i](s)).integ()
        piece = piece - piece(t) + u
        starts.append(t)
        pieces.append(piece)
        t = min(later)
        u = piece(t) + sum(size for at, size in kicks.items() if abs(at - t) < 1e-12)

    def at(x: float) -> float:
        return float(pieces[int(np.searchsorted(starts, x, side="right")) - 1](x))

    return np.array([at(x) for x in TIMES])


def moved_by_time(a: Tensor, s: Tensor, u0: Tensor, before: Tensor) -> Any:
    def f(u: Tensor, h: Any, p: Any, t: Tensor) -> Tensor:
        return -p[0] * h(p, sum(c * t**k for k, c in enumerate(p[2:])))

    p = torch.cat([torch.stack([a, before]), s])
    return ps.DDEProblem(f, u0.reshape(1), lambda p, t: p[1].reshape(1), (0.0, 3.0), p)


def moved_by_state(a: Tensor, s: Tensor, u0: Tensor, before: Tensor) -> Any:
    """The lag is the second state."""

    def f(u: Tensor, h: Any, p: Any, t: Tensor) -> Tensor:
        rate = 1.0 - sum(k * c * t ** (k - 1) for k, c in enumerate(p[2:]) if k)
        return torch.stack([-p[0] * h(p, t - u[1])[0], rate + 0.0 * u[1]])

    p = torch.cat([torch.stack([a, before]), s])
    start = torch.stack([u0, -s[0]])
    return ps.DDEProblem(f, start, lambda p, t: torch.stack([p[1], -p[2]]), (0.0, 3.0), p)


def solved(made: Any, alg: Any, x: Tensor, kicks: dict[float, Any], tolerance: float) -> Tensor:
    """u at TIMES; x: a, u0, the state before, and the coefficients of s."""
    prob = made(x[0], x[3:], x[1], x[2])

    def kick(size: Any) -> Any:
        return lambda u, p, t: torch.cat([u[:1] + size, u[1:]])

    callbacks = [
        ps.PresetTimeCallback([at], kick(size), save_positions=(False, False))
        for at, size in kicks.items()
    ]
    sol = ps.solve(
        prob, ps.MethodOfSteps(alg) if alg else None, callback=callbacks, engine="julia",
        abstol=tolerance, reltol=tolerance,
    )  # fmt: skip
    return torch.stack([sol(t)[0] for t in TIMES])


@pytest.mark.parametrize("kicks", KICKS, ids=["no kick", "a kick", "two kicks"])
@pytest.mark.parametrize("delayed", [AHEAD, TURNING], ids=["ahead", "turning"])
@pytest.mark.parametrize("made", [moved_by_time, moved_by_state])
@pytest.mark.parametrize(
    ("alg", "bound"),
    [
        (ps.Tsit5(), 1e-7), (ps.Vern9(), 1e-7), (ps.Rodas5P(), 1e-7), (ps.FBDF(), 1e-7),
        (None, 1e-7),
    ],
    ids=lambda x: x.name if hasattr(x, "name") else "",
)  # fmt: skip
def test_solutions_are_the_exact_ones(made, delayed, kicks, alg, bound) -> None:
    want = exactly(1.3, delayed, 1.0, 0.4, kicks)
    got = solved(made, alg, f64(1.3, 1.0, 0.4, *delayed), kicks, 1e-9)
    np.testing.assert_allclose(got, want, rtol=0, atol=bound)
    coarse = solved(made, alg, f64(1.3, 1.0, 0.4, *delayed), kicks, 1e-6)
    np.testing.assert_allclose(coarse, want, rtol=0, atol=3e-4)


@pytest.mark.parametrize("made", [moved_by_time, moved_by_state])
def test_float32(made) -> None:
    x = torch.tensor([1.3, 1.0, 0.4, *TURNING])
    got = solved(made, ps.Tsit5(), x, KICKS[1], 1e-5)
    assert got.dtype is torch.float32
    np.testing.assert_allclose(got, exactly(1.3, TURNING, 1.0, 0.4, KICKS[1]), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "alg", [ps.Tsit5(), ps.Vern7(), ps.Rodas5P(), ps.FBDF(), None], ids=lambda a: a and a.name
)
def test_the_equation_of_feldstein_and_neves(alg) -> None:
    """``y' = y(y(t))`` from y(2) = 1, 0.5 before: y passes the jump at 2, and what it brings back.

    Paul, "A test set of functional differential equations" (Manchester, 1994); the closed form is
    by steps, with 4 + 2 log(2) where y = 4.
    """
    prob = ps.DDEProblem(
        lambda u, h, p, t: h(p, u[0]), f64(1.0).reshape(1), lambda p, t: f64(0.5).reshape(1),
        (2.0, 5.8),
    )  # fmt: skip
    alg = None if alg is None else ps.MethodOfSteps(alg)
    sol = ps.solve(prob, alg, engine="julia", abstol=1e-10, reltol=1e-10)
    t = torch.linspace(2.0, 5.8, 60, dtype=F64)
    second = 4.0 + 2.0 * np.log(2.0)
    want = torch.where(t < 4.0, t / 2.0, 2.0 * torch.exp(t / 2.0 - 2.0))
    want = torch.where(t < second, want, 4.0 - 2.0 * torch.log(1.0 + second - t))
    np.testing.assert_allclose(sol(t)[:, 0], want, rtol=0, atol=1e-7)


def test_a_history_that_ends_at_t0_is_not_asked_beyond() -> None:
    """The square root is none past t0: what continues the history is its last value."""

    def f(u: Tensor, h: Any, p: Any, t: Tensor) -> Tensor:
        return -h(p, 0.8 * t - 0.3)

    prob = ps.DDEProblem(f, f64(1.0).reshape(1), lambda p, t: torch.sqrt(-t).reshape(1), (0.0, 1.0))
    sol = ps.solve(prob, ps.MethodOfSteps(ps.Vern7()), engine="julia", abstol=1e-9, reltol=1e-9)
    # until s reaches t0 at 0.375: 1 - (2 / 3) (0.3^1.5 - (0.3 - 0.8 t)^1.5) / 0.8
    at_passing = 1.0 - 0.3**1.5 / 1.2
    assert abs(float(sol(0.375)[0]) - at_passing) < 1e-6


@pytest.mark.parametrize("delayed", [AHEAD, TURNING], ids=["ahead", "turning"])
@pytest.mark.parametrize("made", [moved_by_time, moved_by_state])
@pytest.mark.parametrize("alg", [ps.Vern9(), ps.Rodas5P()], ids=lambda a: a.name)
def test_gradients_are_those_of_differences(made, delayed, alg) -> None:
    """x: a, u0, the state before, s, and the size of the kick."""
    weights = torch.linspace(0.5, 1.5, len(TIMES), dtype=F64)

    def loss(x: Tensor) -> Tensor:
        return (weights * solved(made, alg, x[:-1], {0.5: x[-1]}, 1e-11)).sum()

    check(loss, f64(1.3, 1.0, 0.4, *delayed, 1.0), rtol=1e-6)
