"""Jump processes: closed forms, the chemical master equation, seeds, gradients at fixed jumps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.errors import InputError
from pysciml.jumpprocesses import AGGREGATORS
from support import F64, assert_close, central_difference, f64, largest_gap

julia = pytest.mark.julia


def arrival(u: Any, p: Any, t: Any) -> Any:
    return p[0]


def decay(u: Any, p: Any, t: Any) -> Any:
    return p[1] * u[0]


def up(u: Any, p: Any, t: Any) -> Any:
    return u + 1


def down(u: Any, p: Any, t: Any) -> Any:
    return u - 1


def counts(
    u0: Any = (5,), end: float = 4.0, p: Any = (10.0, 0.5), dtype: Any = torch.int64
) -> ps.DiscreteProblem:
    return ps.DiscreteProblem(
        None, torch.tensor(u0, dtype=dtype), (0.0, end), torch.tensor(p, dtype=F64)
    )


BIRTH, DEATH = ps.ConstantRateJump(arrival, up), ps.ConstantRateJump(decay, down)
BIRTH_DEATH = ps.MassActionJump(lambda p: p, [{}, {0: 1}], [{0: 1}, {0: -1}])


#: Beyond it only one sample in a thousand.
KS = 1.95


@julia
@pytest.mark.parametrize("name", AGGREGATORS)
def test_birth_and_death_against_the_master_equation(name: str) -> None:
    # N copies at once. From m molecules the law is that of a Poisson variable of mean
    # b (1 - exp(-d t)) / d and a binomial one of m and exp(-d t).
    copies, b, d, m, t = 500, 8.0, 0.7, 6, 1.5
    reactants = [x for i in range(copies) for x in ({}, {i: 1})]
    change = [x for i in range(copies) for x in ({i: 1}, {i: -1})]
    jump = ps.MassActionJump([b, d] * copies, reactants, change)
    prob = ps.JumpProblem(counts((m,) * copies, t), ps.algorithm(name)(), jump)
    sol = ps.solve(prob, ps.SSAStepper(), seed=3, saveat=[t], engine="julia")
    x, q = sol.u[-1].to(F64), math.exp(-d * t)
    mean, variance = m * q + b * (1 - q) / d, m * q * (1 - q) + b * (1 - q) / d
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / copies)
    assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2.2 / copies)


@julia
@pytest.mark.parametrize("name", AGGREGATORS)
def test_jumps_of_constant_rate_against_the_master_equation(name: str) -> None:
    # stationary: Poisson of mean b / d; independent to 1 percent every 5 / d
    prob = ps.JumpProblem(counts((20,), 5000.0), ps.algorithm(name)(), BIRTH, DEATH)
    sol = ps.solve(prob, ps.SSAStepper(), seed=7, saveat=10.0, engine="julia")
    x = sol.u[1:, 0].to(F64)
    assert abs(float(x.mean()) - 20.0) < 4 * math.sqrt(20.0 / len(x))
    assert abs(float(x.var()) / 20.0 - 1) < 4 * math.sqrt(2.1 / len(x))
    assert sol.u.dtype == torch.int64
    births = int((sol.jump_indices == 0).sum())
    assert int(sol.u[-1, 0]) == 20 + births - (sol.stats.jumps - births)


@julia
def test_counts_of_a_poisson_process() -> None:
    prob = ps.JumpProblem(counts((0,), 2000.0, (3.0,)), ps.Direct(), BIRTH)
    sol = ps.solve(prob, ps.SSAStepper(), seed=2, engine="julia")
    whole = sol(torch.arange(2001.0, dtype=F64))[:, 0].diff()
    assert abs(float(whole.mean()) - 3.0) < 4 * math.sqrt(3 / 2000)
    assert abs(float(whole.var()) / 3.0 - 1) < 4 * math.sqrt(2.4 / 2000)
    assert largest_gap(3.0 * sol.jump_times.diff(prepend=f64([0.0]))) < KS
    # the state is exact, and constant between jumps
    assert torch.equal(sol.u[:-1, 0], torch.arange(len(sol.t) - 1))
    assert torch.equal(sol(sol.jump_times)[:, 0], torch.arange(1.0, len(sol.t) - 1))


@julia
def test_equal_seeds_give_equal_paths() -> None:
    prob = ps.JumpProblem(counts(), ps.Direct(), BIRTH, DEATH)
    first, again, other = (
        ps.solve(prob, ps.SSAStepper(), seed=s, engine="julia") for s in (1, 1, 2)
    )
    assert torch.equal(first.u, again.u) and torch.equal(first.t, again.t)
    assert not torch.equal(first.jump_times[:5], other.jump_times[:5])
    torch.manual_seed(0)
    drawn = ps.solve(prob, ps.SSAStepper(), engine="julia")
    torch.manual_seed(0)
    assert torch.equal(drawn.t, ps.solve(prob, engine="julia").t)
    assert torch.equal(drawn.t, ps.solve(prob, seed=drawn.seed, engine="julia").t)


@julia
def test_outputs_of_a_pure_jump_process() -> None:
    prob = ps.JumpProblem(counts(), ps.Direct(), BIRTH_DEATH)
    every = ps.solve(prob, seed=4, engine="julia")
    assert every.t[0] == 0 and every.t[-1] == 4.0
    assert torch.equal(every.t[1:-1], every.jump_times)
    at = f64(0.0, 0.7, 1.9, 3.2)
    sol = ps.solve(prob, seed=4, saveat=at, engine="julia")
    assert torch.equal(sol.t, at) and torch.equal(sol.u, every(at).to(torch.int64))
    assert torch.equal(sol(2.5), every(2.5)) and sol.stats.jumps == every.stats.jumps
    both = ps.solve(
        ps.remake(prob, save_positions=(False, True)), seed=4, saveat=at, engine="julia"
    )
    assert torch.equal(both.t, torch.cat([at, every.jump_times]).sort().values)
    ends = ps.solve(ps.remake(prob, save_positions=(False, False)), seed=4, engine="julia")
    assert torch.equal(ends.t, f64(0.0, 4.0)) and torch.equal(ends.u[-1], every.u[-1])


@julia
def test_a_state_of_several_leaves_and_second_order_reactions() -> None:
    # 2 A -> B at the rate k a (a - 1) / 2; the rate of the first event is known
    u0 = {"a": torch.tensor([40]), "b": torch.tensor([0])}
    jump = ps.MassActionJump(0.01, [{0: 2}], [{0: -2, 1: 1}])
    firsts = []
    prob = ps.JumpProblem(ps.DiscreteProblem(None, u0, (0.0, 50.0)), ps.Direct(), jump)
    for seed in range(300):
        sol = ps.solve(prob, seed=seed, engine="julia")
        assert torch.equal(sol.u["a"] + 2 * sol.u["b"], torch.full_like(sol.u["a"], 40))
        firsts.append(sol.jump_times[0])
    assert largest_gap(torch.stack(firsts) * 0.01 * 40 * 39 / 2) < KS


@julia
def test_a_callback_on_a_pure_jump_process_moves_its_rates() -> None:
    empty = ps.PresetTimeCallback([2.0], lambda u, p, t: 0 * u)
    prob = ps.JumpProblem(counts((1000,), 4.0, (0.0, 0.1)), ps.Direct(), DEATH)
    sol = ps.solve(prob, seed=1, callback=empty, engine="julia")
    assert sol.stats.jumps > 100 and float(sol.jump_times.max()) < 2.0
    assert int(sol.u[-1, 0]) == 0 and [e.t for e in sol.events] == [2.0]


# -- jumps of a state that moves between them ---------------------------------------------------


def relax(u: Any, p: Any, t: Any) -> Any:
    return -p[0] * u


def kick(u: Any, p: Any, t: Any) -> Any:
    return u + p[1]


def kicked(u0: float, a: float, b: float, end: float, times: Tensor) -> Tensor:
    """u' = -a u, with b added at each of the times."""
    return u0 * math.exp(-a * end) + (b * torch.exp(-a * (end - times))).sum()


def ode(end: float = 3.0, u0: float = 2.0, **options: Any) -> ps.ODEProblem:
    return ps.ODEProblem(relax, f64([u0]), (0.0, end), f64(0.7, 1.5), **options)


@julia
@pytest.mark.parametrize("alg", [ps.Tsit5(), ps.Rodas5P(), None], ids=repr)
def test_jumps_of_an_ode_against_its_closed_form(alg: Any) -> None:
    jump = ps.ConstantRateJump(lambda u, p, t: 1.5 * torch.ones_like(t), kick)
    prob = ps.JumpProblem(ode(), ps.Direct(), jump)
    sol = ps.solve(prob, alg, seed=3, abstol=1e-10, reltol=1e-10, engine="julia")
    assert sol.stats.jumps == len(sol.jump_times) > 0
    assert_close(sol.u[-1, 0], kicked(2.0, 0.7, 1.5, 3.0, sol.jump_times), 1e-8)
    # both sides of a jump are outputs
    k = int((sol.t == sol.jump_times[0]).nonzero()[0])
    assert_close(sol.u[k + 1] - sol.u[k], f64([1.5]), 1e-12)


@julia
def test_reactions_whose_reactants_move_between_jumps_are_refused() -> None:
    # the rate of a reaction is that after the last jump
    decay = ps.MassActionJump([1.0], [{0: 1}], [{0: 1}])
    prob = ps.JumpProblem(ode(), ps.Direct(), decay)
    with pytest.raises(InputError, match="reaction 0 depends on entry 0 .*make it a VariableRateJ"):
        ps.solve(prob, ps.Tsit5(), seed=1, engine="julia")
    birth = ps.JumpProblem(ode(), ps.Direct(), ps.MassActionJump([2.0], [{}], [{0: 1}]))
    sol = ps.solve(birth, ps.Tsit5(), seed=1, abstol=1e-10, reltol=1e-10, engine="julia")
    assert_close(sol.u[-1, 0], kicked(2.0, 0.7, 1.0, 3.0, sol.jump_times), 1e-8)


@julia
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_times_of_jumps_of_an_ode_are_exponential(dtype: Any) -> None:
    jump = ps.ConstantRateJump(lambda u, p, t: 3.0 * torch.ones_like(t), kick)
    inner = ode(300.0)
    inner = ps.remake(inner, u0=inner.u0.to(dtype), p=inner.p.to(dtype))
    sol = ps.solve(ps.JumpProblem(inner, ps.Direct(), jump), ps.Tsit5(), seed=5, engine="julia")
    assert abs(sol.stats.jumps - 900) < 4 * 30
    assert largest_gap(3.0 * sol.jump_times.to(F64).diff(prepend=f64([0.0]))) < KS


@julia
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("start", [0.0, 7.0, -4.0])
def test_variable_rates_against_the_survival_function(start: float, dtype: Any) -> None:
    # lambda(t) = 2 + 2 sin(3 t): its integral from jump to jump is exponential
    def integral(t: Tensor) -> Tensor:
        return 2 * t - 2 / 3 * torch.cos(3 * t)

    jump = ps.VariableRateJump(lambda u, p, t: 2 + 2 * torch.sin(3 * t), kick)
    u0, p = torch.zeros(1, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)
    still = ps.ODEProblem(lambda u, p, t: 0 * u, u0, (start, start + 200.0), p)
    prob = ps.JumpProblem(still, ps.Direct(), jump)
    sol = ps.solve(prob, ps.Tsit5(), seed=9, engine="julia")
    assert sol.u.dtype is dtype
    assert abs(sol.stats.jumps - 400) < 4 * 20 and sol.u[-1, 0] == sol.stats.jumps
    grown = integral(sol.jump_times.to(F64)).diff(prepend=integral(f64([start])))
    assert largest_gap(grown) < KS


@julia
def test_rates_that_go_along_with_the_state() -> None:
    # u' = -a u, rate u, jumps of b: between jumps the rate's integral is (u - u(t)) / a
    prob = ps.JumpProblem(ode(100.0), ps.Direct(), ps.VariableRateJump(lambda u, p, t: u[0], kick))
    prob = ps.remake(prob, p=f64(0.7, 0.65))
    sol = ps.solve(prob, ps.Tsit5(), seed=9, abstol=1e-10, reltol=1e-10, engine="julia")
    assert sol.stats.jumps > 30
    u, last, grown = 2.0, 0.0, []
    for t in sol.jump_times.tolist():
        before = u * math.exp(-0.7 * (t - last))
        grown.append((u - before) / 0.7)
        u, last = before + 0.65, t
    assert largest_gap(f64(*grown)) < KS
    assert_close(sol.u[-1, 0], kicked(2.0, 0.7, 0.65, 100.0, sol.jump_times), 1e-6, 1e-9)


@julia
def test_which_jump_of_variable_rate_it_is() -> None:
    # rates 1 and 3: the second one is three quarters of all
    prob = ps.JumpProblem(
        ode(400.0), ps.Direct(),
        ps.VariableRateJump(lambda u, p, t: torch.ones_like(t), kick),
        ps.VariableRateJump(lambda u, p, t: 3 * torch.ones_like(t), lambda u, p, t: u - p[1]),
    )  # fmt: skip
    sol = ps.solve(prob, ps.Tsit5(), seed=1, engine="julia")
    n, share = sol.stats.jumps, float((sol.jump_indices == 1).double().mean())
    assert abs(n - 1600) < 4 * 40 and abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / n)


@julia
@pytest.mark.parametrize("low", [False, True])
def test_thinning_of_bounded_rates(low: bool) -> None:
    def rate(u: Any, p: Any, t: Any) -> Any:
        return 2 + 2 * torch.sin(3 * t)

    jump = ps.VariableRateJump(
        rate, up, urate=lambda u, p, t: 4 * torch.ones_like(t),
        rateinterval=lambda u, p, t: 0.5 * torch.ones_like(t),
        lrate=(lambda u, p, t: torch.zeros_like(t)) if low else None,
    )  # fmt: skip
    prob = ps.JumpProblem(counts((0,), 300.0), ps.Coevolve(), jump, BIRTH)
    sol = ps.solve(prob, ps.SSAStepper(), seed=4, engine="julia")
    own = sol.jump_times[sol.jump_indices == 0]

    def integral(t: Tensor) -> Tensor:
        return 2 * t - 2 / 3 * torch.cos(3 * t)

    assert abs(len(own) - 600) < 4 * 25
    assert largest_gap(integral(own).diff(prepend=integral(f64([0.0])))) < KS
    assert largest_gap(10.0 * sol.jump_times[sol.jump_indices == 1].diff(prepend=f64([0.0]))) < KS


@julia
def test_events_and_jumps_together() -> None:
    jump = ps.VariableRateJump(lambda u, p, t: 2 * torch.ones_like(t), kick)
    down = ps.ContinuousCallback(lambda u, p, t: u[0] - 3.0, lambda u, p, t: 0 * u, direction=1)
    rise = ps.ODEProblem(lambda u, p, t: 1.0 + 0 * u, f64([0.0]), (0.0, 200.0), f64(0.0, -0.1))
    sol = ps.solve(
        ps.JumpProblem(rise, ps.Direct(), jump), ps.Tsit5(), seed=2, callback=down, engine="julia"
    )
    assert largest_gap(2.0 * sol.jump_times.diff(prepend=f64([0.0]))) < KS
    assert len(sol.events) > 20 and float(sol.u.max()) < 3.0 + 1e-9
    total = 200.0 - 0.1 * sol.stats.jumps - 3.0 * len(sol.events)
    assert_close(sol.u[-1, 0], f64(total), 1e-7)


# -- gradients ----------------------------------------------------------------------------------


@julia
@pytest.mark.parametrize("variable", [False, True])
def test_gradients_at_fixed_jumps_are_those_of_the_closed_form(variable: bool) -> None:
    def rate(u: Any, p: Any, t: Any) -> Any:
        return 1.5 + (0.1 * u[0] if variable else 0 * t)

    kind = ps.VariableRateJump if variable else ps.ConstantRateJump
    u0, p = f64([2.0], grad=True), f64(0.7, 1.5, grad=True)
    prob = ps.JumpProblem(ps.ODEProblem(relax, u0, (0.0, 3.0), p), ps.Direct(), kind(rate, kick))
    sol = ps.solve(prob, ps.Tsit5(), seed=3, abstol=1e-10, reltol=1e-10, engine="julia")
    got = torch.autograd.grad(sol.u[-1, 0], (u0, p))
    times = sol.jump_times

    def of_p(x: Tensor) -> Tensor:
        return kicked(2.0, x[0].item(), x[1].item(), 3.0, times)

    assert_close(got[0], f64([math.exp(-2.1)]), 1e-7)
    assert_close(got[1], central_difference(of_p, p), 1e-6)


def nonlinear(u: Any, p: Any, t: Any) -> Any:
    x, y = u.unbind()
    return torch.stack([p["a"] * x - x * y, x * y - p["b"] * y])


def harvest(u: Any, p: Any, t: Any) -> Any:
    return torch.stack([u[0] * p["keep"], u[1] + 0.1 * u[0] ** 2])


@julia
@pytest.mark.parametrize("alg", [ps.Tsit5(), ps.Rodas5P()], ids=repr)
def test_gradients_against_differences_with_the_jumps_replayed(alg: Any) -> None:
    p = {k: f64(v, grad=True) for k, v in (("a", 1.2), ("b", 0.8), ("keep", 0.6))}
    u0 = f64(1.0, 0.7, grad=True)
    options: dict[str, Any] = {"abstol": 1e-11, "reltol": 1e-11, "engine": "julia"}
    prob = ps.JumpProblem(
        ps.ODEProblem(nonlinear, u0, (0.0, 4.0), p), ps.Direct(),
        ps.VariableRateJump(lambda u, p, t: 0.5 + u[0], harvest),
    )  # fmt: skip
    sol = ps.solve(prob, alg, seed=6, saveat=[1.0, 2.5, 4.0], **options)
    assert 2 <= sol.stats.jumps <= 30
    weights = f64([1.0, -2.0], [0.5, 1.0], [2.0, 0.3])
    leaves = [u0, *p.values()]
    got = torch.autograd.grad((weights * sol.u).sum(), leaves)
    replay = ps.PresetTimeCallback(sol.jump_times, harvest, save_positions=(False, False))

    def loss(x: Tensor) -> Tensor:
        own = dict(zip(p, x[2:], strict=True))
        again = ps.solve(
            ps.ODEProblem(nonlinear, x[:2], (0.0, 4.0), own), alg, saveat=[1.0, 2.5, 4.0],
            callback=replay, **options,
        )  # fmt: skip
        return (weights * again.u).sum()

    at = torch.cat([x.detach().reshape(-1) for x in leaves])
    assert_close(torch.cat([g.reshape(-1) for g in got]), central_difference(loss, at, 1e-4), 1e-6)


@julia
def test_marks_of_a_compound_poisson_process_have_gradients() -> None:
    # u -> g u + c at constant rate: rates depend on nothing that is differentiated
    p, u0 = f64(0.9, 0.3, grad=True), f64([1.0], grad=True)
    prob = ps.JumpProblem(
        ps.DiscreteProblem(None, u0, (0.0, 4.0), p), ps.Direct(),
        ps.ConstantRateJump(lambda u, p, t: torch.ones_like(t), lambda u, p, t: p[0] * u + p[1]),
    )  # fmt: skip
    sol = ps.solve(prob, seed=3, engine="julia")
    k = sol.stats.jumps
    assert k > 0
    got = torch.autograd.grad(sol.u[-1, 0], (u0, p))
    g, c = p.detach().requires_grad_(), None
    x = torch.ones(1, dtype=F64, requires_grad=True)
    c = x
    for _ in range(k):
        c = g[0] * c + g[1]
    want = torch.autograd.grad(c[0], (x, g))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-12)


@julia
def test_derivatives_that_are_none_are_refused() -> None:
    p = f64(10.0, 0.5, grad=True)
    pure = ps.JumpProblem(ps.DiscreteProblem(None, f64([5.0]), (0.0, 4.0), p), ps.Direct(), BIRTH)
    with pytest.raises(InputError, match=r"rate of jump 0 depends on p \(leaf 0\), which requires"):
        ps.solve(pure, seed=1, engine="julia")
    with torch.no_grad():
        assert ps.solve(pure, seed=1, engine="julia").success
    start = ps.DiscreteProblem(None, f64([5.0], grad=True), (0.0, 4.0), p.detach())
    with pytest.raises(InputError, match="depends on the state, and so on what requires grad"):
        ps.solve(ps.JumpProblem(start, ps.Direct(), BIRTH, DEATH), engine="julia")
    constants = f64(1.0, 0.1, grad=True)
    mass = ps.MassActionJump(constants, [{}, {0: 1}], [{0: 1}, {0: -1}])
    with pytest.raises(InputError, match="rates of a MassActionJump require grad"):
        ps.solve(ps.JumpProblem(counts(), ps.Direct(), mass), engine="julia")
    alone = ps.ODEProblem(lambda u, p, t: -u, f64([2.0]), (0.0, 3.0), p)
    jump = ps.ConstantRateJump(arrival, lambda u, p, t: u + 1)
    with pytest.raises(InputError, match="and nothing else does"):
        ps.solve(ps.JumpProblem(alone, ps.Direct(), jump), ps.Tsit5(), engine="julia")
    network = torch.nn.Linear(1, 1, dtype=F64)
    closing = ps.ConstantRateJump(lambda u, p, t: network(0 * u)[0].exp(), up)
    with pytest.raises(InputError, match="closes over"):
        ps.solve(ps.JumpProblem(counts(), ps.Direct(), closing), engine="julia")
