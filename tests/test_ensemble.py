"""Ensembles: every way of solving the members agrees with solving them one by one."""

from __future__ import annotations

import math
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import InputError, PyscimlError, SolveError
from support import F64, assert_close, f64, nonstiff, stiff

TIGHT = {"reltol": 1e-8, "abstol": 1e-8}
BATCH = torch.Generator().manual_seed(5)
SERIAL, THREADS = ps.EnsembleSerial(), ps.EnsembleThreads(2)


def sir(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    s, i, _ = u.unbind()
    infections, recoveries = p[0] * s * i, p[1] * i
    return torch.stack([-infections, infections - recoveries, recoveries])


def decay(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return -p * u


def problem() -> ps.ODEProblem:
    return ps.ODEProblem(sir, f64(0.99, 0.01, 0.0), (0.0, 10.0), f64(1.5, 0.3))


def noise() -> ps.SDEProblem:
    return ps.SDEProblem(decay, decay, f64([1.0]), (0.0, 1.0), f64([0.5]))


def batches(count: int) -> tuple[Tensor, Tensor]:
    u0 = f64(0.99, 0.01, 0.0) + 0.005 * torch.rand(count, 3, generator=BATCH, dtype=F64)
    p = f64(1.5, 0.3) * (1 + 0.2 * torch.rand(count, 2, generator=BATCH, dtype=F64))
    return u0.requires_grad_(), p.requires_grad_()


def one_by_one(prob: Any, u0: Tensor, p: Tensor, alg: Any, **options: Any) -> Tensor:
    made = [ps.remake(prob, u0=a, p=b) for a, b in zip(u0, p, strict=True)]
    return torch.stack([ps.solve(m, alg, **TIGHT, **options).u for m in made])


def gradients(u: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.linspace(0.5, 1.5, u.numel(), dtype=F64).reshape(u.shape)
    return torch.autograd.grad((weights * u.square()).sum(), inputs)


def test_whole_numbers_of_numpy_are_whole_numbers(engine) -> None:
    ensemble = ps.EnsembleProblem(noise())
    alg = ps.EM() if engine == "julia" else ps.torchsde.euler()
    options: dict[str, Any] = {"engine": engine, "saveat": [1.0], "dt": 0.1}
    want = ps.solve(ensemble, alg, trajectories=3, seed=4, **options)
    sim = ps.solve(ensemble, alg, trajectories=np.int64(3), seed=np.int32(4), **options)
    assert torch.equal(sim.u, want.u)


def test_a_batch_of_a_stochastic_equation_is_its_members(engine) -> None:
    p = f64([0.5, -0.2, 1.0])[:, None].requires_grad_()
    options: dict[str, Any] = {"engine": engine, "saveat": [0.5, 1.0], "dt": 0.1}
    alg = ps.EM() if engine == "julia" else ps.torchsde.euler()
    sim = ps.solve(ps.EnsembleProblem(noise(), p=p), alg, THREADS, seed=3, **options)
    each = [
        ps.solve(ps.remake(noise(), p=row), alg, seed=3 + i, **options).u for i, row in enumerate(p)
    ]
    assert_close(sim.u, torch.stack(each), 1e-14)
    (got,), (want,) = gradients(sim.u, p), gradients(torch.stack(each), p)
    assert_close(got, want, 1e-13)


@pytest.mark.parametrize("engine", [pytest.param("julia", marks=pytest.mark.julia)])
def test_a_batch_of_a_jump_process_is_its_members(engine) -> None:
    jump = ps.ConstantRateJump(lambda u, p, t: p[0], lambda u, p, t: u + 1)
    inner = ps.DiscreteProblem(None, torch.tensor([3]), (0.0, 2.0), f64([1.0]))
    prob = ps.JumpProblem(inner, ps.Direct(), jump)
    p = f64([5.0, 20.0])[:, None]
    sim = ps.solve(ps.EnsembleProblem(prob, p=p), seed=1, saveat=[1.0, 2.0], engine=engine)
    for i in range(2):
        one = ps.solve(ps.remake(prob, p=p[i]), seed=1 + i, saveat=[1.0, 2.0], engine=engine)
        assert torch.equal(sim.u[i], one.u)


@pytest.mark.parametrize("where", [SERIAL, THREADS, None], ids=["serial", "threads", "default"])
def test_a_batch_is_its_members(engine, where) -> None:
    prob, (u0, p) = problem(), batches(9)
    options = {"engine": engine, "saveat": [2.0, 5.0, 10.0]}
    sim = ps.solve(
        ps.EnsembleProblem(prob, u0=u0, p=p), nonstiff(engine), where, **TIGHT, **options
    )
    want = one_by_one(prob, u0, p, nonstiff(engine), **options)
    assert sim.u.shape == (9, 3, 3) and sim.converged and len(sim) == 9
    assert_close(sim.u, want, 1e-13)
    assert sim.t.tolist() == [2.0, 5.0, 10.0]
    for got, expected in zip(gradients(sim.u, u0, p), gradients(want, u0, p), strict=True):
        assert_close(got, expected, 1e-12)
    assert sim.stats.nf == sum(s.stats.nf for s in sim)
    assert torch.equal(sim[4].u, sim.u[4]) and sim[-1].prob.p.tolist() == p[8].tolist()


def test_steps_of_their_own(engine) -> None:
    prob, (u0, p) = problem(), batches(4)
    sim = ps.solve(ps.EnsembleProblem(prob, u0=u0, p=p), nonstiff(engine), engine=engine)
    alone = ps.solve(ps.remake(prob, u0=u0[2], p=p[2]), nonstiff(engine), engine=engine)
    assert isinstance(sim.u, list) and sim.t is None
    assert torch.equal(sim[2].t, alone.t) and torch.equal(sim[2].u, alone.u)
    got = torch.autograd.grad(sum(s.u[-1].sum() for s in sim), [u0, p])
    want = torch.autograd.grad(alone.u[-1].sum(), [u0, p])
    for a, b in zip(got, want, strict=True):
        assert_close(a[2], b[2], 1e-9, 1e-12)


def test_a_member_between_the_outputs_and_its_gradient(engine) -> None:
    prob, (u0, p) = problem(), batches(3)
    options = {"engine": engine, "saveat": [5.0, 10.0], **TIGHT}
    sim = ps.solve(ps.EnsembleProblem(prob, u0=u0, p=p), nonstiff(engine), **options)
    alone = ps.solve(ps.remake(prob, u0=u0[1], p=p[1]), nonstiff(engine), **options)
    assert torch.equal(sim[1](3.3), alone(3.3))
    (got,) = torch.autograd.grad(sim[1](3.3).sum(), [p])
    (want,) = torch.autograd.grad(alone(3.3).sum(), [p])
    assert_close(got, want, 1e-12)


def test_shared_parameters_and_closures(engine) -> None:
    weight = f64(0.7, grad=True)

    def f(u: Tensor, p: dict[str, Any], t: Tensor) -> Tensor:
        return -p["rate"] * weight * u + p["source"]

    rates = f64(1.0, 2.0, 3.0, grad=True)
    source = f64(0.5, grad=True)
    u0 = f64(1.0, 2.0, grad=True)
    prob = ps.ODEProblem(f, u0, (0.0, 1.0), {"rate": 1.0, "source": source})
    ensemble = ps.EnsembleProblem(prob, p={"rate": rates, "source": source})
    sim = ps.solve(ensemble, nonstiff(engine), engine=engine, saveat=[1.0], **TIGHT)
    k = rates * weight
    exact = (u0 * torch.exp(-k)[:, None]) + (source / k * (1 - torch.exp(-k)))[:, None]
    inputs = (u0, rates, source, weight)
    assert_close(sim.u[:, 0], exact, 1e-6)
    got = torch.autograd.grad(sim.u.square().sum(), inputs)
    want = torch.autograd.grad(exact.square().sum(), inputs)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-5)


def test_pytrees_of_states(engine) -> None:
    def f(u: dict[str, Tensor], p: Any, t: Tensor) -> dict[str, Tensor]:
        return {"x": u["v"], "v": -u["x"]}

    x, v = f64([[1.0], [2.0]]), f64([[0.0], [1.0]])
    prob = ps.ODEProblem(f, {"x": x[0], "v": v[0]}, (0.0, math.pi / 2))
    ensemble = ps.EnsembleProblem(prob, u0={"x": x, "v": v})
    sim = ps.solve(ensemble, nonstiff(engine), engine=engine, saveat=[math.pi / 2], **TIGHT)
    assert_close(sim.u["x"][:, 0], v, 1e-6, 1e-6)
    assert_close(sim[1].u["v"][0], -x[1], 1e-6, 1e-6)


def test_gradients_of_times(engine) -> None:
    start, end = f64(0.0, grad=True), f64(1.0, grad=True)
    times = f64(0.25, 0.75, grad=True)
    u0, p = f64([1.0], [2.0]), f64([1.0], [0.5])
    prob = ps.ODEProblem(decay, u0[0], (start, end), p[0])
    ensemble = ps.EnsembleProblem(prob, u0=u0, p=p)
    sim = ps.solve(ensemble, nonstiff(engine), engine=engine, saveat=times, **TIGHT)
    exact = u0 * torch.exp(-p * (times - start))
    got = torch.autograd.grad(sim.u.sum(), [start, times])
    want = torch.autograd.grad(exact.sum(), [start, times])
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-5)


def test_prob_func_output_func_and_reduction(engine) -> None:
    prob = ps.ODEProblem(decay, f64(1.0), (0.0, 1.0), f64(1.0, grad=True))

    def members(prob: Any, i: int) -> Any:
        return ps.remake(prob, u0=f64(i + 1.0))

    options = {"engine": engine, "saveat": [1.0], **TIGHT}
    ensemble = ps.EnsembleProblem(prob, members, lambda sol, i: sol.u[-1] * i)
    sim = ps.solve(ensemble, nonstiff(engine), trajectories=4, **options)
    want = torch.stack([i * (i + 1) * torch.exp(-prob.p) for i in range(4)])
    assert_close(torch.stack(sim.u), want, 1e-6)
    (gradient,) = torch.autograd.grad(sum(sim.u), prob.p)
    assert_close(gradient, -want.sum(), 1e-5)

    seen: list[range] = []

    def reduction(u: Tensor, batch: list[Tensor], numbers: range) -> tuple[Tensor, bool]:
        seen.append(numbers)
        return u + sum(batch), len(seen) == 2

    reduced = ps.EnsembleProblem(
        prob, members, lambda sol, i: sol.u[-1], reduction, u_init=f64(0.0)
    )
    sim = ps.solve(reduced, nonstiff(engine), SERIAL, trajectories=9, batch_size=3, **options)
    assert seen == [range(3), range(3, 6)] and len(sim) == 6
    assert_close(sim.u, 21 * torch.exp(-prob.p), 1e-6)


def test_a_batch_in_parts(engine) -> None:
    u0, p = batches(10)

    def reduction(u: list[Any], batch: list[Any], numbers: range) -> tuple[list[Any], bool]:
        return [*u, *(s.u[-1] for s in batch)], False

    ensemble = ps.EnsembleProblem(problem(), u0=u0, p=p, reduction=reduction)
    options = {"engine": engine, "saveat": [10.0]}
    sim = ps.solve(ensemble, nonstiff(engine), batch_size=4, **TIGHT, **options)
    want = one_by_one(problem(), u0, p, nonstiff(engine), **options)[:, 0]
    got = torch.stack(sim.u)
    assert_close(got, want, 1e-13)
    for a, b in zip(gradients(got, u0, p), gradients(want, u0, p), strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_executors(kind: str) -> None:
    prob, (u0, p) = problem(), batches(3)
    options = {"engine": "sundials", "saveat": [5.0, 10.0]}
    pool: Executor = (
        ThreadPoolExecutor(2) if kind == "threads"
        else ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    )  # fmt: skip
    with pool:
        ensemble = ps.EnsembleProblem(prob, u0=u0, p=p)
        where = ps.EnsembleExecutor(pool)
        sim = ps.solve(ensemble, ps.CVODE_Adams(), where, **TIGHT, **options)
        got = gradients(sim.u, u0, p)
    want = one_by_one(prob, u0, p, ps.CVODE_Adams(), **options)
    assert torch.equal(sim.u, want)
    for a, b in zip(got, gradients(want, u0, p), strict=True):
        assert_close(a, b, 1e-12)


class Dying(Executor):
    """Does the first tasks, and dies: in the task's future, or already in ``submit``."""

    def __init__(self, error: Exception, left: int = 2, submits: bool = True) -> None:
        self.error, self.left, self.submits = error, left, submits

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.left -= 1
        if self.left >= 0:
            future.set_result(function(*args, **kwargs))
        elif self.submits:
            future.set_exception(self.error)
        else:
            raise self.error
        return future


DEATHS = {
    "broken": BrokenProcessPool("a worker was killed"),
    "lost": OSError("connection reset"),
    "gone": ConnectionError("scheduler gone"),
    "shut": RuntimeError("cannot schedule new futures after shutdown"),
    "own": type("KilledWorker", (Exception,), {})("3 workers died"),
}


@pytest.mark.parametrize("submits", [True, False])
@pytest.mark.parametrize("name", DEATHS)
def test_an_executor_that_dies_loses_nothing(name: str, submits: bool) -> None:
    u0, p = (x.detach() for x in batches(4))
    ensemble = ps.EnsembleProblem(problem(), u0=u0, p=p)
    where = ps.EnsembleExecutor(Dying(DEATHS[name], submits=submits))
    with pytest.raises(SolveError, match=f"2 of 4 members left.*{DEATHS[name]}") as caught:
        ps.solve(ensemble, None, where, engine="sundials")
    sim: Any = caught.value.solution
    assert sim[0].success and sim[1].success and sim[2] is None and sim[3] is None
    assert caught.value.__cause__ is DEATHS[name]


@pytest.mark.parametrize("submits", [True, False])
def test_an_executor_that_dies_before_the_gradient(submits: bool) -> None:
    u0, p = batches(2)
    ensemble = ps.EnsembleProblem(problem(), u0=u0, p=p)
    where = ps.EnsembleExecutor(Dying(DEATHS["lost"], 3, submits))
    sim = ps.solve(ensemble, None, where, engine="sundials", saveat=[1.0])
    with pytest.raises(SolveError, match="before the gradient of a member.*reset") as caught:
        sim.u.sum().backward()
    member: Any = caught.value.solution
    assert any(torch.equal(member.u, sim.u[i]) for i in (0, 1)) and not member.u.requires_grad


class Unsent(Exception):
    """Cannot be made again from its message."""

    def __init__(self, one: Any, two: Any) -> None:
        super().__init__(f"{one} and {two}")


def raises(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    raise ValueError("of the model") if float(p) < 1 else Unsent("this", "that")


def test_errors_of_members_are_not_of_the_executor() -> None:
    prob = ps.ODEProblem(raises, f64([1.0]), (0.0, 1.0), f64(0.5))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        where, options = ps.EnsembleExecutor(pool), {"engine": "sundials", "trajectories": 2}
        with pytest.raises(ValueError, match="of the model"):
            ps.solve(ps.EnsembleProblem(prob), None, where, **options)
        with pytest.raises(PyscimlError, match="Unsent: this and that"):
            ps.solve(ps.EnsembleProblem(ps.remake(prob, p=f64(1.5))), None, where, **options)
        local = ps.remake(prob, f=lambda u, p, t: -u)
        with pytest.raises(InputError, match="cannot be sent to another process.*top of a module"):
            ps.solve(ps.EnsembleProblem(local), None, where, **options)


def test_members_that_fail_are_named(engine) -> None:
    def blow_up(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return p * u * u

    prob = ps.ODEProblem(blow_up, f64([1.0]), (0.0, 2.0), f64(0.1))
    ensemble = ps.EnsembleProblem(prob, p=f64(0.1, 1.0, 0.2))
    options = {"engine": engine, "saveat": [1.0, 2.0]}
    with pytest.raises(SolveError, match="1 of 3 members stopped.*member 1") as caught:
        ps.solve(ensemble, nonstiff(engine), **options)
    sim = ps.solve(ensemble, nonstiff(engine), raise_on_failure=False, **options)
    assert not sim.converged and [r == "Success" for r in sim.retcodes] == [True, False, True]
    exact = 1 / (1 - 0.2 * 2.0)
    for found in (sim, caught.value.solution):
        assert_close(found[2].u[-1], f64([exact]), 1e-2)


@pytest.mark.parametrize("saveat", [None, [0.0, 0.5, 1.0]])
@pytest.mark.parametrize("name", ["Tsit5", "Vern7"])
@pytest.mark.julia
def test_members_are_not_moved_by_those_before_them(name: str, saveat: Any) -> None:
    # u' = p u^2 is without bound at 1 / (p u0): every third member stops there
    p = torch.linspace(0.1, 0.7, 12, dtype=F64)
    p[::3] = torch.linspace(1.5, 40.0, 4, dtype=F64)
    prob = ps.ODEProblem(lambda u, p, t: p * u.square(), f64([1.0]), (0.0, 1.0), f64([0.1]))
    options: dict[str, Any] = {"engine": "julia", "saveat": saveat, "raise_on_failure": False}
    u0 = 1 + torch.arange(12, dtype=F64)[:, None] / 100
    alg = getattr(ps, name)()
    batch = ps.EnsembleProblem(prob, u0=u0, p=p[:, None])
    sim = ps.solve(batch, alg, ps.EnsembleThreads(1), **options)
    for i in range(12):
        want = ps.solve(ps.remake(prob, u0=u0[i], p=p[i : i + 1]), alg, **options)
        assert sim.retcodes[i] == want.retcode
        assert sim[i].stats == want.stats
        assert bool(want.t[-1] < 1.0) == (i % 3 == 0)
        count = len(want.t) if saveat is None else sum(map(saveat.__contains__, want.t.tolist()))
        assert torch.equal(sim[i].t, want.t[:count]) and torch.equal(sim[i].u, want.u[:count])
    assert [code == "Success" for code in sim.retcodes] == [i % 3 != 0 for i in range(12)]


def test_callbacks_in_members(engine) -> None:
    bounce = ps.ContinuousCallback(lambda u, p, t: u[0] - 0.5, lambda u, p, t: u + 1.0)
    prob = ps.ODEProblem(decay, f64([1.0]), (0.0, 1.0), f64(1.0), callback=bounce)
    ensemble = ps.EnsembleProblem(prob, u0=f64([[0.8], [1.0]]))
    sim = ps.solve(ensemble, nonstiff(engine), engine=engine, saveat=[1.0], **TIGHT)
    exact = f64([1.5]) * torch.exp(-1.0 - torch.log(0.5 / f64([[0.8], [1.0]])))
    assert_close(torch.stack([s.u[-1] for s in sim]), exact, 1e-6)


@pytest.mark.parametrize("kind", [nonstiff, stiff])
def test_a_loss_that_is_no_number_is_one_of_the_others(engine, kind) -> None:
    p, shared = f64([[1.0], [2.0]], grad=True), f64(0.5, grad=True)
    prob = ps.ODEProblem(lambda u, p, t: -p * shared * u, f64([1.0]), (0.0, 1.0), f64([1.0]))
    sim = ps.solve(
        ps.EnsembleProblem(prob, p=p), kind(engine), engine=engine, saveat=[0.5, 1.0], **TIGHT
    )
    of_p, of_shared = torch.autograd.grad(
        sim.u[0].sum() * math.nan + sim.u[1, -1].sum(), [p, shared]
    )
    assert torch.isnan(of_p[0]).all() and torch.isnan(of_shared)
    assert_close(of_p[1], -0.5 * torch.exp(-0.5 * p[1]), 1e-5)


def test_a_function_that_is_called_back(engine) -> None:
    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return -p * u if float(t) >= 0 else u

    prob = ps.ODEProblem(f, f64([1.0]), (0.0, 1.0), f64([1.0]))
    p = f64([[1.0], [2.0]], grad=True)
    with pytest.warns(ps.CaptureWarning):
        sim = ps.solve(
            ps.EnsembleProblem(prob, p=p), nonstiff(engine), engine=engine, saveat=[1.0], **TIGHT
        )
    assert_close(sim.u[:, 0], torch.exp(-p), 1e-6)
    assert_close(torch.autograd.grad(sim.u.sum(), p)[0], -torch.exp(-p), 1e-5)


@pytest.mark.julia
def test_the_same_bits_on_any_number_of_threads() -> None:
    u0, p = batches(200)
    ensemble = ps.EnsembleProblem(problem(), u0=u0, p=p)
    found = []
    for where in (SERIAL, ps.EnsembleThreads(2), ps.EnsembleThreads()):
        sim = ps.solve(ensemble, ps.Tsit5(), where, engine="julia", saveat=[5.0, 10.0])
        found.append((sim.u, *gradients(sim.u, u0, p)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.julia
@pytest.mark.parametrize("name", ["default", "Rodas5P", "Vern7", "Feagin12"])
def test_other_algorithms_and_sensitivities(name: str) -> None:
    u0, p = batches(6)
    alg = None if name == "default" else getattr(ps, name)()
    options = {"engine": "julia", "saveat": [5.0, 10.0]}
    sim = ps.solve(ps.EnsembleProblem(problem(), u0=u0, p=p), alg, THREADS, **TIGHT, **options)
    want = one_by_one(problem(), u0, p, alg, **options)
    assert_close(sim.u, want, 1e-13)
    for a, b in zip(gradients(sim.u, u0, p), gradients(want, u0, p), strict=True):
        assert_close(a, b, 1e-12)


BAD: dict[str, tuple[Any, str]] = {
    "rows": (
        lambda: ps.EnsembleProblem(problem(), u0=torch.ones(3, 3, dtype=F64), p=f64([[1.0, 2.0]])),
        r"p has 1 rows, but u0 has 3",
    ),
    "one member": (
        lambda: ps.EnsembleProblem(problem(), u0=f64(1.0, 2.0, 3.0)),
        "shapes of one member",
    ),
    "shape": (
        lambda: ps.EnsembleProblem(problem(), u0=torch.ones(3, 2, dtype=F64)),
        r"u0 of the ensemble has shape \(3, 2\).*\('N', 3\)",
    ),
    "structure": (
        lambda: ps.EnsembleProblem(problem(), p={"a": f64([[1.0, 2.0]])}),
        "p of the ensemble is built like",
    ),
    "nan": (
        lambda: ps.EnsembleProblem(problem(), p=f64([[1.0, math.nan]])),
        "p holds nan",
    ),
    "both": (
        lambda: ps.EnsembleProblem(problem(), lambda prob, i: prob, p=f64([[1.0, 2.0]])),
        "prob_func was given beside a batch",
    ),
    "prob": (lambda: ps.EnsembleProblem(3), "prob is a int; give the problem"),
    "prob_func": (lambda: ps.EnsembleProblem(problem(), 3), "prob_func is a int; give a function"),
    "executor": (lambda: ps.EnsembleExecutor(3), "executor is a int; give an executor"),
    "threads": (lambda: ps.EnsembleThreads(0), "threads is 0; give a positive whole number"),
    "not a problem": (
        lambda: ps.solve(ps.EnsembleProblem(problem(), lambda p, i: i), trajectories=2),
        "prob_func returned a int for member 0",
    ),
    "trajectories": (
        lambda: ps.solve(ps.EnsembleProblem(problem(), lambda p, i: p)),
        "trajectories is not given",
    ),
    "too many": (
        lambda: ps.solve(ps.EnsembleProblem(problem(), p=f64([[1.0, 2.0]])), trajectories=2),
        "trajectories is 2, but the batch has 1 rows",
    ),
    "negative": (
        lambda: ps.solve(ps.EnsembleProblem(problem(), lambda p, i: p), trajectories=-1),
        "trajectories is -1; give a positive whole number",
    ),
    "ensemblealg": (
        lambda: ps.solve(ps.EnsembleProblem(problem()), None, 3, trajectories=2),
        "ensemblealg is 3; give EnsembleThreads",
    ),
    "arguments of prob_func": (
        lambda: ps.EnsembleProblem(problem(), lambda prob, i, repeat: prob),
        r"prob_func takes \(prob, i, repeat\), but it is called with \(prob, i\); give it",
    ),
    "swapped arguments": (
        lambda: ps.EnsembleProblem(problem(), lambda i, prob: prob),
        r"prob_func takes \(i, prob\), but .*put them in this order",
    ),
    "arguments of output_func": (
        lambda: ps.EnsembleProblem(problem(), output_func=lambda sol: sol),
        r"output_func takes \(sol\), but it is called with \(sol, i\)",
    ),
    "arguments of reduction": (
        lambda: ps.EnsembleProblem(problem(), reduction=lambda u, batch: (u, False)),
        r"reduction takes \(u, batch\), but it is called with \(u, batch, I\)",
    ),
    "batch in a list": (
        lambda: ps.EnsembleProblem(problem(), p=[f64(1.0, 2.0), f64(1.0, 2.0)]),
        r"p of the ensemble is built like \[tensor, tensor\], but p of its problem like tensor",
    ),
    "no p": (
        lambda: ps.EnsembleProblem(
            ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 1.0)), p=f64([[1.0], [2.0]])
        ),
        "p of the ensemble was given .*but its problem has none",
    ),
    "ensemblealg in NumPy": (
        lambda: ps.solve(ps.EnsembleProblem(problem()), None, np.zeros(2), trajectories=2),
        "ensemblealg is array",
    ),
    "class of executors": (
        lambda: ps.EnsembleExecutor(ThreadPoolExecutor), "executor is a class; give an executor"
    ),
    "last seed": (
        lambda: ps.solve(
            ps.EnsembleProblem(noise()), trajectories=3, seed=2**63 - 1, engine="sundials"
        ),
        "seed is 9223372036854775807, and members take those after it",
    ),
    "single": (
        lambda: ps.solve(problem(), None, ps.EnsembleSerial()),
        "was given with an ODEProblem, but is for ensembles",
    ),
    "single, stochastic": (
        lambda: ps.solve(noise(), trajectories=2, engine="sundials"),
        "trajectories was given with an SDEProblem, but is for ensembles",
    ),
    "single, random": (
        lambda: ps.solve(
            ps.RODEProblem(lambda u, p, t, W: W, f64(1.0), (0.0, 1.0)), trajectories=2
        ),
        "trajectories was given with a RODEProblem, but is for ensembles",
    ),
    "single, a map": (
        lambda: ps.solve(
            ps.DiscreteProblem(lambda u, p, t: u, f64([1.0]), (0, 3)), None, ps.EnsembleSerial()
        ),
        "was given with a DiscreteProblem, but is for ensembles",
    ),
    "single, split": (
        lambda: ps.solve(
            ps.SplitODEProblem(decay, decay, f64([1.0]), (0.0, 1.0), f64(0.5)), trajectories=2
        ),
        "trajectories was given with a SplitODEProblem, but is for ensembles",
    ),
    "single, delayed": (
        lambda: ps.solve(
            ps.DDEProblem(
                lambda u, h, p, t: -h(p, t - 1), f64(1.0), lambda p, t: f64(1.0), (0.0, 1.0)
            ),
            None,
            ps.EnsembleSerial(),
        ),
        r"ensemblealg \(.*\) was given with a DDEProblem, but is for ensembles",
    ),
    "batch_size": (
        lambda: ps.solve(ps.EnsembleProblem(problem()), trajectories=2, batch_size=1),
        "batch_size was given without a reduction",
    ),
    "option": (
        lambda: ps.solve(ps.EnsembleProblem(problem(), p=f64([[1.0, 2.0]])), rtol=1e-3),
        "solve does not take 'rtol'; give reltol instead",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call()


def test_reduction_must_say_whether_to_stop() -> None:
    ensemble = ps.EnsembleProblem(problem(), reduction=lambda u, batch, numbers: u)
    with pytest.raises(InputError, match="reduction returned a list; return"):
        ps.solve(ensemble, trajectories=2, engine="sundials")
    several = ps.EnsembleProblem(problem(), reduction=lambda u, batch, at: (u, torch.ones(2) > 0))
    with pytest.raises(InputError, match="reduction returned converged = .*; return one boolean"):
        ps.solve(several, trajectories=2, engine="sundials")


def test_times_have_no_gradient_through_an_executor() -> None:
    prob = ps.ODEProblem(decay, f64([1.0]), (0.0, f64(1.0, grad=True)), f64(1.0))
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="through an executor"):
        ps.solve(
            ps.EnsembleProblem(prob), None, ps.EnsembleExecutor(pool), trajectories=1,
            engine="sundials",
        )  # fmt: skip


def test_plot() -> None:
    pytest.importorskip("matplotlib")
    ensemble = ps.EnsembleProblem(problem(), u0=batches(3)[0].detach())
    sim = ps.solve(ensemble, engine="sundials", saveat=1.0)
    assert len(sim.plot(idxs=[1]).lines) == 3
    outputs = ps.EnsembleProblem(problem(), output_func=lambda sol, i: i)
    with pytest.raises(PyscimlError, match="not solutions"):
        ps.solve(outputs, trajectories=2, engine="sundials").plot()
