"""Second-order, partitioned, Hamiltonian, split and semilinear equations against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import EngineError, InputError
from pysciml.ordinarydiffeq import WRONG_TIMES
from support import F64, assert_close, central_difference, f64, nonstiff, stiff

TIGHT = {"reltol": 1e-9, "abstol": 1e-9}


def spring(du: Tensor, u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return -p * u


def kepler_energy(p: Tensor, q: Tensor, params: Any, t: Tensor) -> Tensor:
    return 0.5 * p.square().sum() - params / q.square().sum().sqrt()


def kepler(eccentricity: float = 0.6) -> tuple[Tensor, Tensor]:
    e = eccentricity
    return f64(0.0, math.sqrt((1 + e) / (1 - e))), f64(1 - e, 0.0)


def oscillator(omega: Any = 2.0, end: float = 3.0) -> ps.SecondOrderODEProblem:
    return ps.SecondOrderODEProblem(spring, f64([0.5]), f64([1.0]), (0.0, end), f64(omega**2))


def test_the_harmonic_oscillator_as_three_problems(engine) -> None:
    k = f64(4.0)

    def energy(p: Tensor, q: Tensor, params: Tensor, t: Tensor) -> Tensor:
        return 0.5 * (p.square() + params * q.square()).sum()

    start, span = (f64([0.5]), f64([1.0])), (0.0, 3.0)
    problems = [
        oscillator(),
        ps.DynamicalODEProblem(spring, lambda v, u, p, t: v, *start, span, k),
        ps.HamiltonianProblem(energy, *start, span, k),
    ]
    t = torch.linspace(0, 3, 7, dtype=F64)
    u = torch.cos(2 * t) + 0.25 * torch.sin(2 * t)
    v = -2 * torch.sin(2 * t) + 0.5 * torch.cos(2 * t)
    for prob in problems:
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=t, **TIGHT)
        assert_close(sol.u[0][:, 0], v, 1e-7)
        assert_close(sol.u[1][:, 0], u, 1e-7)
        assert sol.prob is prob and type(prob).__name__ in repr(prob)
        assert_close(sol(1.1)[1][0], f64(math.cos(2.2) + 0.25 * math.sin(2.2)), 1e-6)


def test_gradients_of_a_second_order_equation(engine) -> None:
    def solved(du0: Tensor, u0: Tensor, p: Tensor) -> Tensor:
        prob = ps.SecondOrderODEProblem(spring, du0, u0, (0.0, 3.0), p)
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[1.0, 3.0], **TIGHT)
        return (sol.u[0] * 2 + sol.u[1].square()).sum()

    inputs = [f64([0.5], grad=True), f64([1.0], grad=True), f64(4.0, grad=True)]
    w, times = inputs[2].sqrt(), f64([[1.0], [3.0]])
    u = inputs[1] * torch.cos(w * times) + inputs[0] / w * torch.sin(w * times)
    v = -w * inputs[1] * torch.sin(w * times) + inputs[0] * torch.cos(w * times)
    want = torch.autograd.grad((2 * v + u.square()).sum(), inputs)
    got = torch.autograd.grad(solved(*inputs), inputs)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-5)


def test_pytrees_of_positions(engine) -> None:
    def f(du: Any, u: Any, p: Any, t: Tensor) -> Any:
        return {"a": -u["a"], "b": -4 * u["b"]}

    zero = {"a": f64([0.0]), "b": f64([0.0, 0.0])}
    u0 = {"a": f64([1.0]), "b": f64([1.0, 2.0])}
    prob = ps.SecondOrderODEProblem(f, zero, u0, (0.0, 1.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[1.0], **TIGHT)
    assert_close(sol.u[1]["a"][0], u0["a"] * math.cos(1.0), 1e-7)
    assert_close(sol.u[1]["b"][0], u0["b"] * math.cos(2.0), 1e-7)


def test_an_event_of_a_second_order_equation(engine) -> None:
    bounce = ps.ContinuousCallback(
        lambda x, p, t: x[1][0], lambda x, p, t: (-p * x[0], x[1]), direction=-1
    )
    e = f64(0.8, grad=True)
    prob = ps.SecondOrderODEProblem(
        lambda v, u, p, t: torch.full_like(u, -10.0), f64([0.0]), f64([5.0]), (0.0, 1.5), e,
        callback=bounce,
    )  # fmt: skip
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[1.5], **TIGHT)
    assert len(sol.events) == 1 and sol.events[0].t == pytest.approx(1.0, abs=1e-7)
    height = sol.u[1][-1, 0]
    assert_close(height, 10 * e * 0.5 - 5 * 0.25, 1e-6)
    assert_close(torch.autograd.grad(height, e)[0], f64(5.0), 1e-5)


@pytest.mark.julia
@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("SymplecticEuler", 1), ("VelocityVerlet", 2), ("VerletLeapfrog", 2), ("McAte2", 2),
        ("LeapfrogDriftKickDrift", 2), ("Ruth3", 3), ("CandyRoz4", 4),
        ("Nystrom4", 4), ("Nystrom4VelocityIndependent", 4), ("IRKN4", 4),
        ("Nystrom5VelocityIndependent", 5), ("Yoshida6", 6), ("KahanLi6", 6),
    ],
)  # fmt: skip
@pytest.mark.parametrize("driven", [False, True], ids=["alone", "driven"])
def test_orders_of_symplectic_and_nystrom_methods(name: str, order: int, driven: bool) -> None:
    def force(v: Tensor, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return -torch.sin(u) + (torch.cos(2 * t) if driven else 0.0)

    def error(dt: float) -> float:
        prob = ps.SecondOrderODEProblem(force, f64([0.0]), f64([1.0]), (0.0, 2.0))
        sol = ps.solve(
            prob, ps.algorithms.algorithm(name)(), engine="julia", dt=dt, saveat=[2.0],
            adaptive=False,
        )  # fmt: skip
        exact = ps.solve(prob, ps.Vern9(), engine="julia", saveat=[2.0], reltol=1e-13, abstol=1e-13)
        return float((sol.u[1] - exact.u[1]).abs())

    if driven and name in WRONG_TIMES:
        with pytest.raises(EngineError, match=f"{name} is of order one .*VerletLeapfrog"):
            error(0.1)
        return
    if driven and name == "IRKN4":
        order = 3  # as it is in Julia
    dt = {1: 1 / 64, 2: 1 / 32, 3: 1 / 16, 4: 1 / 16, 5: 1 / 32, 6: 1 / 8}[order]
    assert math.log2(error(dt) / error(dt / 2)) == pytest.approx(order, abs=0.35)


@pytest.mark.julia
@pytest.mark.parametrize(("name", "dt", "drift"), [
    ("VelocityVerlet", 0.05, 1e-3), ("KahanLi8", 0.25, 1e-9), ("CalvoSanz4", 0.1, 1e-5),
])  # fmt: skip
def test_harmonic_energy_over_a_long_time(name: str, dt: float, drift: float) -> None:
    end = 5000.0
    prob = ps.SecondOrderODEProblem(spring, f64([0.0]), f64([1.0]), (0.0, end), f64(1.0))
    sol = ps.solve(
        prob, ps.algorithms.algorithm(name)(), engine="julia", dt=dt, saveat=None, maxiters=10**6
    )
    energy = 0.5 * (sol.u[0].square() + sol.u[1].square())[:, 0]
    early, late = energy[: len(energy) // 10], energy[-len(energy) // 10 :]
    assert float((energy - 0.5).abs().max()) < drift
    # bounded, and not growing with time
    assert float((late - 0.5).abs().max()) < 1.1 * float((early - 0.5).abs().max()) + 1e-12


@pytest.mark.julia
def test_kepler_energy_and_momentum_over_a_long_time() -> None:
    p0, q0 = kepler()
    prob = ps.HamiltonianProblem(kepler_energy, p0, q0, (0.0, 200 * 2 * math.pi), f64(1.0))
    sol = ps.solve(prob, ps.KahanLi8(), engine="julia", dt=2 * math.pi / 200, maxiters=10**6)
    p, q = sol.u
    energy = torch.stack([kepler_energy(a, b, f64(1.0), sol.t[0]) for a, b in zip(p, q)])  # noqa: B905
    momentum = q[:, 0] * p[:, 1] - q[:, 1] * p[:, 0]
    assert float((energy + 0.5).abs().max()) < 1e-5
    assert float((momentum - math.sqrt(1 - 0.36)).abs().max()) < 1e-11
    tail = (energy + 0.5).abs()[-1000:].max()
    assert float(tail) < 1.1 * float((energy + 0.5).abs()[:1000].max())


@pytest.mark.julia
@pytest.mark.parametrize("name", ["DPRKN6", "DPRKN8", "ERKN5", "KahanLi8"])
def test_kepler_comes_back_and_its_gradient(name: str) -> None:
    period = 2 * math.pi
    mass = f64(1.0, grad=True)

    def last(mass: Tensor) -> Tensor:
        p0, q0 = kepler(0.3)

        def pull(v: Tensor, u: Tensor, m: Tensor, t: Tensor) -> Tensor:
            return -m * u / u.square().sum() ** 1.5

        prob = ps.SecondOrderODEProblem(pull, p0, q0, (0.0, period), mass)
        fixed = {"dt": period / 400} if name == "KahanLi8" else TIGHT
        sol = ps.solve(
            prob, ps.algorithms.algorithm(name)(), engine="julia", saveat=[period], **fixed
        )
        return sol.u[1][-1]

    assert_close(last(mass), kepler(0.3)[1], 1e-6)
    (got,) = torch.autograd.grad(last(mass)[1], mass)
    want = central_difference(lambda m: last(m)[1], mass.detach(), 1e-4)
    assert_close(got, want, 1e-4)


@pytest.mark.julia
def test_closures_and_events_of_a_symplectic_solve() -> None:
    k = f64(4.0, grad=True)
    kick = ps.PresetTimeCallback([1.0], lambda x, p, t: (x[0] + p, x[1]))
    jump = f64(0.5, grad=True)

    def solved(alg: Any, **options: Any) -> Tensor:
        prob = ps.SecondOrderODEProblem(
            lambda v, u, p, t: -k * u, f64([0.0]), f64([1.0]), (0.0, 2.0), jump, callback=kick
        )
        sol = ps.solve(prob, alg, engine="julia", saveat=[0.5, 2.0], **options)
        return torch.cat([sol.u[0].reshape(-1), sol.u[1].reshape(-1)])

    got = solved(ps.KahanLi8(), dt=0.05)
    want = solved(ps.Vern9(), reltol=1e-10, abstol=1e-10)
    assert_close(got, want, 1e-7)
    for a, b in zip(
        torch.autograd.grad(got.sum(), [k, jump]),
        torch.autograd.grad(want.sum(), [k, jump]), strict=True,
    ):  # fmt: skip
        assert_close(a, b, 1e-6)


# -- split -----------------------------------------------------------------------------------------


def fast(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return -p[0] * (u - torch.cos(t))


def slow(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return -p[1] * torch.sin(u)


def split(p: Tensor) -> ps.SplitODEProblem:
    return ps.SplitODEProblem(fast, slow, f64([0.2, 0.0]), (0.0, 2.0), p)


def whole(p: Tensor) -> ps.ODEProblem:
    return ps.ODEProblem(
        lambda u, p, t: fast(u, p, t) + slow(u, p, t), f64([0.2, 0.0]), (0.0, 2.0), p
    )


def brusselator() -> tuple[Tensor, Any, Tensor]:
    """Diffusion on eight points, and reactions."""
    n = 8
    laplace = -2 * torch.eye(n, dtype=F64)
    laplace = laplace + torch.diag(torch.ones(n - 1, dtype=F64), 1)
    laplace = 5 * (laplace + torch.diag(torch.ones(n - 1, dtype=F64), -1))
    u0 = torch.sin(torch.linspace(0, math.pi, n, dtype=F64))
    return laplace, lambda u, p, t: p * u * (1 - u), u0


def test_a_split_equation_is_its_sum(engine) -> None:
    p = f64(50.0, 1.5, grad=True)
    sol = ps.solve(split(p), stiff(engine), engine=engine, saveat=[1.0, 2.0], **TIGHT)
    want = ps.solve(whole(p), stiff(engine), engine=engine, saveat=[1.0, 2.0], **TIGHT)
    assert_close(sol.u, want.u, 1e-8)
    (got,) = torch.autograd.grad(sol.u.square().sum(), p)
    (ref,) = torch.autograd.grad(want.u.square().sum(), p)
    assert_close(got, ref, 1e-6)
    assert isinstance(sol.prob, ps.SplitODEProblem)


def test_a_semilinear_equation_and_the_gradient_of_its_matrix(engine) -> None:
    A, f, u0 = brusselator()
    A.requires_grad_()

    def solved(A: Tensor, prob: Any = None) -> Tensor:
        prob = ps.SemilinearODEProblem(A, f, u0, (0.0, 0.5), f64(2.0))
        return ps.solve(prob, stiff(engine), engine=engine, saveat=[0.5], **TIGHT).u[-1]

    whole = ps.ODEProblem(lambda u, p, t: A @ u + f(u, p, t), u0, (0.0, 0.5), f64(2.0))
    want = ps.solve(whole, stiff(engine), engine=engine, saveat=[0.5], **TIGHT).u[-1]
    got = solved(A)
    assert_close(got, want, 1e-8)
    assert_close(torch.autograd.grad(got.sum(), A)[0], torch.autograd.grad(want.sum(), A)[0], 1e-6)


@pytest.mark.julia
@pytest.mark.parametrize("name", ["KenCarp3", "KenCarp4", "KenCarp5", "KenCarp47"])
def test_imex_methods(name: str) -> None:
    p = f64(50.0, 1.5, grad=True)
    sol = ps.solve(
        split(p), ps.algorithms.algorithm(name)(), engine="julia", saveat=[1.0, 2.0],
        reltol=1e-10, abstol=1e-10,
    )  # fmt: skip
    want = ps.solve(whole(p), ps.Rodas5P(), engine="julia", saveat=[1.0, 2.0], **TIGHT)
    assert_close(sol.u, want.u, 1e-5)
    (got,) = torch.autograd.grad(sol.u.square().sum(), p)
    (ref,) = torch.autograd.grad(want.u.square().sum(), p)
    assert_close(got, ref, 1e-5)


@pytest.mark.julia
@pytest.mark.parametrize(("name", "order"), [("CNAB2", 2), ("CNLF2", 2), ("ARS343", 3)])
def test_orders_of_imex_methods(name: str, order: int) -> None:
    p = f64(3.0, 1.5)
    exact = ps.solve(whole(p), ps.Vern9(), engine="julia", saveat=[2.0], reltol=1e-12, abstol=1e-12)

    def error(dt: float) -> float:
        sol = ps.solve(
            split(p), ps.algorithms.algorithm(name)(), engine="julia", dt=dt, saveat=[2.0],
            adaptive=False, reltol=1e-11, abstol=1e-11,
        )  # fmt: skip
        return float((sol.u - exact.u).abs().max())

    assert math.log2(error(1 / 32) / error(1 / 64)) == pytest.approx(order, abs=0.3)


@pytest.mark.julia
@pytest.mark.parametrize(
    ("name", "order"),
    [("LawsonEuler", 1), ("NorsettEuler", 1), ("ETDRK2", 2), ("ETDRK3", 3), ("ETDRK4", 4),
     ("HochOst4", 4), ("ETD2", 2)],
)  # fmt: skip
def test_orders_of_exponential_methods(name: str, order: int) -> None:
    A, f, u0 = brusselator()
    prob = ps.SemilinearODEProblem(A, f, u0, (0.0, 0.5), f64(2.0))
    exact = ps.solve(prob, ps.Vern9(), engine="julia", saveat=[0.5], reltol=1e-13, abstol=1e-13)

    def error(dt: float) -> float:
        sol = ps.solve(prob, ps.algorithms.algorithm(name)(), engine="julia", dt=dt, saveat=[0.5])
        return float((sol.u - exact.u).abs().max())

    assert math.log2(error(1 / 32) / error(1 / 64)) == pytest.approx(order, abs=0.4)


@pytest.mark.julia
def test_the_linear_part_alone_is_exact_by_exponentials() -> None:
    A, _, u0 = brusselator()
    prob = ps.SemilinearODEProblem(A, lambda u, p, t: torch.zeros_like(u), u0, (0.0, 0.5))
    sol = ps.solve(prob, ps.ETDRK4(), engine="julia", dt=0.25, saveat=[0.5])
    assert_close(sol.u[-1], torch.linalg.matrix_exp(0.5 * A) @ u0, 1e-12)


@pytest.mark.julia
@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_forces_that_are_called_back_are_asked_whether_they_depend_on_time() -> None:
    def force(u: Tensor, t: Tensor, wave: float) -> Tensor:
        return -u + wave * math.cos(2 * float(t))  # cannot be captured

    def solved(wave: float) -> Tensor:
        prob = ps.SecondOrderODEProblem(
            lambda v, u, p, t: force(u, t, wave), f64([0.0]), f64([1.0]), (0.0, 1.0)
        )
        return ps.solve(prob, ps.KahanLi8(), engine="julia", dt=0.1, saveat=[1.0]).u[1][-1]

    assert_close(solved(0.0), f64([math.cos(1.0)]), 1e-10)
    with pytest.raises(EngineError, match="KahanLi8 is of order one"):
        solved(1.0)


# -- bad input -------------------------------------------------------------------------------------

ONE = f64([1.0])
BAD: dict[str, tuple[Any, str]] = {
    "f": (lambda: ps.SecondOrderODEProblem(3, ONE, ONE, (0.0, 1.0)), "f is a int; give a function"),
    "du0": (
        lambda: ps.SecondOrderODEProblem(spring, f64(1.0, 2.0), ONE, (0.0, 1.0)),
        r"du0 has shape \(2,\), but u0 has shape \(1,\)",
    ),
    "f2": (lambda: ps.DynamicalODEProblem(spring, 3, ONE, ONE, (0.0, 1.0)), "f2 is a int"),
    "tspan": (lambda: ps.DynamicalODEProblem(spring, spring, ONE, ONE, (1.0, 1.0)), "no length"),
    "H": (lambda: ps.HamiltonianProblem(3, ONE, ONE, (0.0, 1.0)), "H is a int; give a function H"),
    "energy": (
        lambda: ps.solve(
            ps.HamiltonianProblem(lambda p, q, m, t: torch.cat([p, q]), ONE, ONE, (0.0, 1.0)),
            engine="sundials",
        ),
        r"H returned \(2,\); return one number",
    ),
    "side": (
        lambda: ps.solve(
            ps.SplitODEProblem(lambda u, p, t: u, lambda u, p, t: u[:0], ONE, (0.0, 1.0)),
            engine="sundials",
        ),
        r"f2 returned shape \(0,\)",
    ),
    "A": (
        lambda: ps.SemilinearODEProblem(f64([[1.0, 2.0]]), spring, ONE, (0.0, 1.0)),
        r"A is \(1, 2\), but the state has 1 entries; give a tensor of shape \(1, 1\)",
    ),
    "dtype of A": (
        lambda: ps.SemilinearODEProblem(torch.ones(1, 1), spring, ONE, (0.0, 1.0)),
        "A is float32.*u0 is float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call()


def test_algorithms_of_another_engine_are_named() -> None:
    with pytest.raises(EngineError, match="KahanLi8 belongs to the julia engine"):
        ps.solve(oscillator(), ps.KahanLi8(), engine="sundials", dt=0.1)


@pytest.mark.julia
def test_methods_that_would_be_wrong_are_refused() -> None:
    damped = ps.SecondOrderODEProblem(lambda v, u, p, t: -u - v, ONE, ONE, (0.0, 1.0))
    with pytest.raises(EngineError, match="VelocityVerlet is for velocities whose rate does not"):
        ps.solve(damped, ps.VelocityVerlet(), engine="julia", dt=0.1)
    sol = ps.solve(damped, ps.FineRKN5(), engine="julia", saveat=[1.0], **TIGHT)
    same = ps.solve(damped, ps.Tsit5(), engine="julia", saveat=[1.0], **TIGHT)
    assert_close(sol.u[1], same.u[1], 1e-6)
    with pytest.raises(EngineError, match="DPRKN6 is for second-order equations.*KahanLi8"):
        ps.solve(
            ps.DynamicalODEProblem(spring, spring, ONE, ONE, (0.0, 1.0), f64(1.0)), ps.DPRKN6(),
            engine="julia",
        )  # fmt: skip
    with pytest.raises(EngineError, match="KahanLi8 is for positions whose rate"):
        ps.solve(
            ps.DynamicalODEProblem(spring, lambda v, u, p, t: v * u, ONE, ONE, (0.0, 1.0), ONE),
            ps.KahanLi8(), engine="julia", dt=0.1,
        )  # fmt: skip
    with pytest.raises(InputError, match="VelocityVerlet takes steps of one size"):
        ps.solve(oscillator(), ps.VelocityVerlet(), engine="julia")
    with pytest.raises(EngineError, match="ETDRK4 is for semilinear equations.*KenCarp4"):
        ps.solve(split(f64(1.0, 1.0)), ps.ETDRK4(), engine="julia", dt=0.1)
    plain = ps.ODEProblem(lambda u, p, t: -u, ONE, (0.0, 1.0))
    with pytest.raises(EngineError, match="CNAB2 is for split equations.*an ODEProblem"):
        ps.solve(plain, ps.CNAB2(), engine="julia", dt=0.1)
