"""The embedded engine's adjoint on intervals of many steps, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.engines.sundials import lengths, long_intervals, long_products

F64 = torch.float64


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """Of each stretch: the solver's steps, and the nodes of the adjoint's long intervals."""
    seen: list[tuple[int, int | None]] = []
    for kind in (long_intervals.LongIntervals, long_products.LongProducts):

        def call(self, *args, original=kind.__call__):
            out, segment = original(self, *args), args[0]
            seen.append((len(segment.t) - 1, None if out is None else len(out[3])))
            return out

        monkeypatch.setattr(kind, "__call__", call)
    return seen


def oscillators(p: Tensor) -> Tensor:
    rate, damping = p
    return torch.stack([torch.stack([-damping, rate]), torch.stack([-rate, -damping])])


def gradients(u: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.cos(torch.arange(u.numel(), dtype=F64) ** 2).reshape(u.shape)
    return torch.autograd.grad((weights * u + 0.1 * u**2).sum(), inputs)


@pytest.mark.parametrize("batch", [1, 3, 40])  # one block solved for at once; iteration
@pytest.mark.parametrize("tspan", [(0.0, 6.0), (1.0, -5.0)])
def test_outputs_inside_intervals(batch, tspan, found):
    p = torch.tensor([1.3, 0.1], dtype=F64, requires_grad=True)
    u0 = torch.randn(batch, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    u0.requires_grad_()
    saveat = torch.linspace(tspan[0], tspan[1], 37, dtype=F64)  # both ends among them
    prob = ps.ODEProblem(lambda u, p, t: u @ oscillators(p).T, u0, tspan, p)
    sol = ps.solve(prob, ps.CVODE_Adams(), saveat=saveat, reltol=1e-9, abstol=1e-11,
                   engine="sundials")  # fmt: skip
    got = gradients(sol.u, u0, p)
    exact = torch.stack(
        [u0 @ torch.linalg.matrix_exp((t - tspan[0]) * oscillators(p)).T for t in saveat]
    )
    for a, b in zip(got, gradients(exact, u0, p), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-7, atol=2e-7 * float(b.abs().max()))
    steps, nodes = found[-1]
    assert nodes is not None and nodes < 1.5 * steps


def test_parameters_whose_part_changes_faster_than_the_solution(found):
    # The solution is exp(-t): f_p = cos(40 t) is seen by none of its steps.
    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return -u + p * torch.cos(40 * t)

    p = torch.zeros(1, dtype=F64, requires_grad=True)
    u0 = torch.ones(1, dtype=F64)
    sol = ps.solve(ps.ODEProblem(f, u0, (0.0, 3.0), p), ps.CVODE_Adams(), saveat=[3.0],
                   reltol=1e-8, abstol=1e-10, engine="sundials")  # fmt: skip
    (got,) = torch.autograd.grad(sol.u.sum(), p)
    exact = (math.cos(120.0) + 40 * math.sin(120.0) - math.exp(-3.0)) / 1601.0
    assert float(got) == pytest.approx(exact, rel=1e-4)
    steps, nodes = found[-1]
    assert nodes is not None and nodes > 3 * steps


@pytest.mark.parametrize("saveat", [[3.0], [0.4, 1.1, 2.3, 3.0]])  # at the end; inside intervals
@pytest.mark.parametrize("others", [0.0, 2.0])
def test_many_parameters_whose_part_changes_faster(others, saveat, found):
    """u' = -u + P phi(t): beside the waves that make the solution, those that are zero so far."""
    k = torch.arange(0.5, 60.0, 0.1, dtype=F64)

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return -u + p @ torch.cos(k * t)

    p = torch.zeros(2, len(k), dtype=F64)
    p[:, :10] = others
    p.requires_grad_()
    sol = ps.solve(ps.ODEProblem(f, torch.ones(2, dtype=F64), (0.0, 3.0), p), ps.CVODE_Adams(),
                   saveat=saveat, reltol=1e-8, abstol=1e-10, engine="sundials")  # fmt: skip
    (got,) = torch.autograd.grad((torch.tensor([1.0, -0.5], dtype=F64) * sol.u).sum(), p)
    exact = sum(((k * t).cos() + k * (k * t).sin() - math.exp(-t)) / (1.0 + k**2) for t in saveat)
    for row, weight in zip(got, (1.0, -0.5), strict=True):
        torch.testing.assert_close(row, weight * exact, rtol=1e-5, atol=1e-6)
    steps, nodes = found[-1]
    assert nodes is not None and nodes > steps


def lotka_volterra(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    x, y = u
    return torch.stack([p[0] * x - p[1] * x * y, p[2] * x * y - p[3] * y])


def driven_pendulum(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    up = 1 + p[0] * torch.sin(p[1] * t)
    return torch.stack([u[1], -torch.sin(p[3] * u[0]) * up - p[2] * u[1]])


@pytest.mark.parametrize("times", [[0.37], [0.55, 0.9], [*np.linspace(0.02, 1.0, 49)]], ids=len)
@pytest.mark.parametrize("rtol", [1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("f", [lotka_volterra, driven_pendulum])
def test_outputs_inside_are_as_good_as_on_a_fine_mesh(f, rtol, times, monkeypatch, found):
    """Between an interval's ends the polynomial is of half the order: gradients were 24 rtol off.

    Both are of the same solution, whose own error does not enter.
    """
    p = torch.tensor([1.5, 1.0, 1.0, 3.0], dtype=F64, requires_grad=True)
    weights = torch.rand(len(times), 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    if len(times) > 2:
        weights -= 0.5

    def gradient() -> Tensor:
        prob = ps.ODEProblem(f, torch.ones(2, dtype=F64), (0.0, 6.0), p)
        sol = ps.solve(prob, ps.CVODE_Adams(), saveat=6.0 * torch.tensor(times, dtype=F64),
                       reltol=rtol, abstol=rtol, engine="sundials")  # fmt: skip
        return torch.autograd.grad((sol.u * weights).sum(), p)[0]

    got = gradient()
    with monkeypatch.context() as fine:
        for limit in ("_NODES", "_NODES_TIMED", "_NODES_PARAMETERS"):
            fine.setattr(lengths, limit, 1e9)
        fine.setattr(lengths, "grouped", lambda t, _: np.linspace(t[0], t[-1], 81))
        want = gradient()
    coarse, fine_nodes = found[0][1], found[1][1]
    assert coarse is not None and fine_nodes is not None and fine_nodes >= 800
    assert float((got - want).norm() / want.norm()) < 4 * rtol


def test_rates_with_a_kink(found):
    # u' = p |u - 1/2| has no derivative at the kink: the last coefficients tell, and cuts follow.
    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return -p * (u - 0.5).abs() - p * 0.1

    p = torch.tensor([1.0], dtype=F64, requires_grad=True)
    u0 = torch.linspace(1.0, 1.4, 20, dtype=F64)
    sol = ps.solve(ps.ODEProblem(f, u0, (0.0, 3.0), p), ps.CVODE_Adams(), saveat=[3.0],
                   reltol=1e-9, abstol=1e-11, engine="sundials")  # fmt: skip
    (got,) = torch.autograd.grad(sol.u.sum(), p)
    # v = u - 1/2 falls by v' = -p (v + 1/10) to the kink, then by v' = p (v - 1/10)
    v0 = u0 - 0.5
    kink = torch.log1p(10 * v0)
    s = p * 3.0 - kink
    (exact,) = torch.autograd.grad((0.1 - 0.1 * torch.exp(s)).sum(), p)
    assert float(got) == pytest.approx(float(exact), rel=1e-4)


def test_stiff_solutions_are_left_to_the_solvers_own_mesh(found):
    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return -p * (u - torch.cos(t))

    p = torch.tensor([2000.0], dtype=F64, requires_grad=True)
    sol = ps.solve(ps.ODEProblem(f, torch.ones(1, dtype=F64), (0.0, 3.0), p), ps.CVODE_Adams(),
                   saveat=[3.0], reltol=1e-8, abstol=1e-10, engine="sundials")  # fmt: skip
    (got,) = torch.autograd.grad(sol.u.sum(), p)
    # u = (p^2 cos t + p sin t) / (p^2 + 1), beyond the first moment
    q = p.detach().clone().requires_grad_()
    exact_u = (q**2 * math.cos(3.0) + q * math.sin(3.0)) / (q**2 + 1)
    (exact,) = torch.autograd.grad(exact_u.sum(), q)
    assert float(got) == pytest.approx(float(exact), rel=1e-3)
    assert found[-1][1] is None


def test_a_mode_that_only_the_cotangent_excites(found):
    # The state rests at zero; its linearisation turns 80 times a unit of time.
    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return u @ torch.tensor([[0.0, 80.0], [-80.0, 0.0]], dtype=F64) * p

    p = torch.ones(1, dtype=F64)
    u0 = torch.zeros(1, 2, dtype=F64, requires_grad=True)
    sol = ps.solve(ps.ODEProblem(f, u0, (0.0, 1.0), p), ps.CVODE_Adams(), saveat=[1.0],
                   reltol=1e-8, abstol=1e-10, engine="sundials")  # fmt: skip
    (got,) = torch.autograd.grad(sol.u[-1, 0, 0], u0)
    torch.testing.assert_close(
        got[0], torch.tensor([math.cos(80.0), -math.sin(80.0)], dtype=F64), rtol=1e-5, atol=1e-5
    )


def test_events_between_intervals(found):
    # Kicked at t = 2: both stretches have long intervals of their own.
    p = torch.tensor([1.3, 0.1], dtype=F64, requires_grad=True)
    kick = ps.PresetTimeCallback([2.0], lambda u, p, t: 2.0 * u)
    u0 = torch.tensor([[1.0, 0.5]], dtype=F64)
    saveat = torch.linspace(0.0, 4.0, 9, dtype=F64)
    prob = ps.ODEProblem(lambda u, p, t: u @ oscillators(p).T, u0, (0.0, 4.0), p)
    sol = ps.solve(prob, ps.CVODE_Adams(), saveat=saveat[1::2], reltol=1e-9, abstol=1e-11,
                   callback=kick, engine="sundials")  # fmt: skip
    at = torch.tensor([1, 3, 5, 7]) / 2
    mask = torch.isin(sol.t, at.to(F64))
    (got,) = gradients(sol.u[mask], p)
    exact = torch.stack(
        [(1.0 if t < 2 else 2.0) * u0 @ torch.linalg.matrix_exp(t * oscillators(p)).T for t in at]
    )
    (wanted,) = gradients(exact, p)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    assert [nodes is not None for _, nodes in found] == [True, True]


@pytest.mark.parametrize(("n", "batch"), [(40, 1), (24, 12), (30, 20)])  # dense, a band, too large
@pytest.mark.parametrize("tspan", [(0.0, 2.0), (1.0, -1.0)])
def test_wide_states_by_products(n, batch, tspan, found):
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(n, n, dtype=F64, generator=generator) / n**0.5
    a = (a - a.T - 0.2 * torch.eye(n)).requires_grad_()
    u0 = torch.randn(batch, n, dtype=F64, generator=generator, requires_grad=True)
    saveat = torch.linspace(tspan[0], tspan[1], 9, dtype=F64)
    prob = ps.ODEProblem(lambda u, p, t: u @ p.T, u0, tspan, a)
    sol = ps.solve(prob, ps.CVODE_Adams(), saveat=saveat, reltol=1e-9, abstol=1e-10,
                   engine="sundials")  # fmt: skip
    got = gradients(sol.u, u0, a)
    exact = torch.stack([u0 @ torch.linalg.matrix_exp((t - tspan[0]) * a).T for t in saveat])
    for x, y in zip(got, gradients(exact, u0, a), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6 * float(y.abs().max()))
    steps, nodes = found[-1]
    assert nodes is not None and nodes < 1.5 * steps


def test_modes_of_wide_states_have_intervals_cut(found):
    # All states rest at zero, and turn at rates up to 60: what the cotangent excites.
    rates = torch.linspace(1.0, 60.0, 60, dtype=F64)
    u0 = torch.zeros(120, dtype=F64, requires_grad=True)

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        x, y = u[:60], u[60:]
        return torch.cat([rates * y, -rates * x]) + p * u.sum() ** 2

    sol = ps.solve(ps.ODEProblem(f, u0, (0.0, 1.0), torch.zeros(1, dtype=F64)), ps.CVODE_Adams(),
                   saveat=[1.0], reltol=1e-8, abstol=1e-10, engine="sundials")  # fmt: skip
    (got,) = torch.autograd.grad(sol.u[-1, :60].sum(), u0)
    torch.testing.assert_close(got, torch.cat([rates.cos(), rates.sin()]), rtol=1e-5, atol=1e-5)


def test_parameters_of_wide_states_whose_part_changes_faster(found):
    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return -u + 0.0 * u.sum() + p * torch.cos(40 * t)

    p = torch.zeros(50, dtype=F64, requires_grad=True)
    sol = ps.solve(ps.ODEProblem(f, torch.ones(50, dtype=F64), (0.0, 3.0), p), ps.CVODE_Adams(),
                   saveat=[3.0], reltol=1e-8, abstol=1e-10, engine="sundials")  # fmt: skip
    (got,) = torch.autograd.grad(sol.u.sum(), p)
    exact = (math.cos(120.0) + 40 * math.sin(120.0) - math.exp(-3.0)) / 1601.0
    torch.testing.assert_close(got, torch.full_like(got, exact), rtol=1e-4, atol=0.0)
