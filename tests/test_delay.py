"""Delay equations: closed forms, an independent computation, and what is asked of f and h."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import pysciml as ps
from pysciml.errors import EngineError, InputError
from support import F64, assert_close, central_difference, f64

julia = pytest.mark.julia
TIGHT = {"abstol": 1e-11, "reltol": 1e-11, "engine": "julia"}


def decay(u: Any, h: Any, p: Any, t: Any) -> Any:
    return -p["a"] * h(p, t - p["tau"])


def constant(p: Any, t: Any) -> Any:
    return p["c"].reshape(1)


def linear(
    u0: float = 1.0, c: float = 1.0, a: float = 1.3, tau: float = 0.7, **options: Any
) -> Any:
    p = {"a": f64(a), "tau": f64(tau), "c": f64(c)}
    return ps.DDEProblem(decay, torch.full((1,), u0, dtype=F64), constant, (0.0, 4.0), p, **options)


def by_steps(t: Any, u0: float = 1.0, c: float = 1.0, a: float = 1.3, tau: float = 0.7) -> Any:
    """``u' = -a u(t - tau)`` with u = c before 0, by the method of steps done in closed form."""

    def term(z: Any, k: int) -> Any:
        return (-a) ** k * np.maximum(z, 0.0) ** k / math.factorial(k)

    t = np.asarray(t)
    u = u0 * np.ones_like(t)
    for k in range(1, 12):
        u += u0 * term(t - k * tau, k) + c * (term(t - (k - 1) * tau, k) - term(t - k * tau, k))
    return u


ALGORITHMS = [
    ps.MethodOfSteps(ps.Tsit5()),
    ps.MethodOfSteps(ps.Tsit5(), constrained=True),
    ps.MethodOfSteps(ps.Vern9(), fpsolve=ps.NLAnderson()),
    ps.MethodOfSteps(ps.Rodas5P()),
    ps.MethodOfSteps(ps.FBDF()),
    ps.Tsit5(),
    None,
]


@julia
@pytest.mark.parametrize("u0", [1.0, 2.0], ids=["no jump", "jump at t0"])
@pytest.mark.parametrize("alg", ALGORITHMS, ids=repr)
def test_closed_form_by_steps(alg: Any, u0: float) -> None:
    sol = ps.solve(linear(u0), alg, saveat=0.25, abstol=1e-10, reltol=1e-10, engine="julia")
    assert sol.retcode == "Success" and len(sol.t) == 17
    bound = 1e-6 if alg is not None and alg.parts and alg.parts[0].name == "FBDF" else 3e-9
    assert np.abs(sol.u[:, 0].numpy() - by_steps(sol.t.numpy(), u0)).max() < bound


@julia
@pytest.mark.parametrize("alg", [ps.RadauIIA5(), ps.Tsit5(), ps.Rodas5P()], ids=repr)
def test_between_the_steps_a_solution_is_of_the_delay_equation(alg: Any) -> None:
    """RadauIIA5's is read from elsewhere where the equation has no delay."""
    p = {"a": f64(1.3, grad=True), "tau": f64(0.7), "c": f64(1.0)}
    prob = ps.DDEProblem(decay, torch.ones(1, dtype=F64), constant, (0.0, 4.0), p)
    sol = ps.solve(prob, ps.MethodOfSteps(alg), engine="julia", abstol=1e-9, reltol=1e-9)
    at = [0.65, 1.11, 2.3]
    values = sol(at)[:, 0]
    np.testing.assert_allclose(values.detach(), by_steps(at), rtol=0, atol=1e-5)
    (got,) = torch.autograd.grad(values.sum(), p["a"])
    want = central_difference(lambda a: torch.tensor(by_steps(at, a=float(a)).sum()), p["a"])
    assert_close(got, want, rtol=0, atol=1e-3)


@julia
@pytest.mark.parametrize("alg", [ps.KenCarp5(), ps.AutoTsit5(ps.KenCarp58()), ps.VCABM()], ids=repr)
def test_methods_that_are_coarse_where_the_past_is_read_are_refused(alg: Any) -> None:
    with pytest.raises(EngineError, match="does not solve delay equations to its tolerance"):
        ps.solve(linear(), ps.MethodOfSteps(alg), engine="julia")


@julia
def test_steps_stop_where_the_lag_carries_the_jump() -> None:
    sol = ps.solve(linear(2.0), ps.MethodOfSteps(ps.Tsit5()), **TIGHT)
    for k in range(1, 5):
        assert (sol.t - 0.7 * k).abs().min() < 1e-12
    at = torch.linspace(0.0, 4.0, 101, dtype=F64)
    assert np.abs(sol(at)[:, 0].numpy() - by_steps(at.numpy(), 2.0)).max() < 1e-9


@julia
def test_steps_longer_than_the_lag_are_iterated() -> None:
    prob = linear(1.0, a=0.5, tau=0.02)
    sol = ps.solve(prob, ps.MethodOfSteps(ps.Tsit5()), saveat=[0.02], **TIGHT)
    assert_close(sol.u[0, 0], f64(1 - 0.5 * 0.02), rtol=1e-10)
    with torch.no_grad():
        loose = ps.solve(prob, ps.MethodOfSteps(ps.Tsit5()), engine="julia")
    assert max(loose.t.diff()) > 0.02


@julia
def test_order_of_convergence() -> None:
    errors = []
    for dt in (0.7 / 2, 0.7 / 4):
        sol = ps.solve(
            linear(a=-1.3), ps.MethodOfSteps(ps.Tsit5()), dt=dt, adaptive=False, engine="julia"
        )
        errors.append(abs(sol.u[-1, 0].item() - by_steps(4.0, a=-1.3)))
    assert math.log2(errors[0] / errors[1]) > 4.5


def neves(u: Any, h: Any, p: Any, t: Any) -> Any:
    return u * h(p, torch.log(u[0])) / t


@julia
@pytest.mark.parametrize("alg", [ps.Tsit5(), ps.Rodas5P()], ids=repr)
def test_lag_that_depends_on_the_state(alg: Any) -> None:
    """Neves (1975): t up to e, and exp(t / e) up to e squared."""
    e = math.e
    prob = ps.DDEProblem(neves, f64([1.0]), lambda p, t: torch.ones(1, dtype=F64), (1.0, e**2))
    sol = ps.solve(prob, ps.MethodOfSteps(alg), saveat=[2.0, e, 4.0, e**2], **TIGHT)
    assert_close(sol.u[:, 0], f64(2.0, e, math.exp(4 / e), math.exp(e)), rtol=1e-8)


@julia
def test_lag_that_begins_at_zero() -> None:
    """The pantograph equation u' = -u(t / 2), by its power series."""
    prob = ps.DDEProblem(
        lambda u, h, p, t: -h(p, t / 2), f64([1.0]), lambda p, t: f64([1.0]), (0.0, 2.0)
    )
    sol = ps.solve(prob, ps.MethodOfSteps(ps.Tsit5()), saveat=[0.5, 2.0], **TIGHT)
    for t, u in zip((0.5, 2.0), sol.u[:, 0].tolist(), strict=True):
        terms = [(-t) ** k / math.factorial(k) / 2 ** (k * (k - 1) // 2) for k in range(20)]
        assert abs(u - sum(terms)) < 1e-8


@julia
def test_lag_that_turns_negative() -> None:
    u0 = f64([1.0])
    prob = ps.DDEProblem(
        lambda u, h, p, t: 0.01 * h(p, t - u[0]) - 1, u0, lambda p, t: u0, (0.0, 2.0)
    )
    with pytest.raises(ps.SolveError, match="one that turns negative"):
        ps.solve(prob, ps.MethodOfSteps(ps.Tsit5()), engine="julia")


def mackey_glass_by_rk4(n: int) -> float:
    """x' = 0.2 x(t-17) / (1 + x(t-17)^10) - 0.1 x with x = 1.2 before 0, at t = 102.

    RK4 with ``n`` steps a lag; halfway between steps the past is the cubic through values and
    slopes at the ends.
    """
    dt, past = 17.0 / n, 0.0

    def rate(x: float, late: float) -> float:
        return 0.2 * late / (1 + late**10) - 0.1 * x

    xs, slopes = [1.2] * (n + 1), [0.0] * (n + 1)
    slopes[-1] = rate(1.2, 1.2)
    before = [0.0] * n + [0.0]  # slopes of the history, for its cubic
    for i in range(6 * n):
        a, b = xs[i], xs[i + 1]
        da, db = (before[i], before[i + 1]) if i < n else (slopes[i], slopes[i + 1])
        past = (a + b) / 2 + dt * (da - db) / 8
        x = xs[-1]
        k1 = rate(x, a)
        k2 = rate(x + dt / 2 * k1, past)
        k3 = rate(x + dt / 2 * k2, past)
        k4 = rate(x + dt * k3, b)
        xs.append(x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        slopes.append(rate(xs[-1], xs[len(xs) - 1 - n]))
    return xs[-1]


def mackey_glass(u: Any, h: Any, p: Any, t: Any) -> Any:
    late = h(p, t - 17.0)
    return 0.2 * late / (1 + late**10) - 0.1 * u


@julia
def test_mackey_glass() -> None:
    reference = mackey_glass_by_rk4(4000)
    assert abs(reference - mackey_glass_by_rk4(2000)) < 1e-9
    prob = ps.DDEProblem(
        mackey_glass, f64([1.2]), lambda p, t: f64([1.2]), (0.0, 102.0), constant_lags=17.0
    )
    for alg in (ps.MethodOfSteps(ps.Tsit5()), ps.MethodOfSteps(ps.Rodas5P())):
        sol = ps.solve(prob, alg, saveat=[102.0], **TIGHT)
        assert abs(sol.u[0, 0].item() - reference) < 2e-8


def two_lags(u: Any, h: Any, p: Any, t: Any) -> Any:
    early, late = h(p, t - 0.4), h(p, t - 1.0)
    return {"x": -early["x"] + late["y"].sum(), "y": -0.5 * u["y"] * late["x"]}


def waves(p: Any, t: Any) -> Any:
    return {"x": torch.cos(t), "y": torch.stack([torch.sin(t), 1.0 + 0.0 * t])}


def trees(dtype: torch.dtype = F64, **options: Any) -> Any:
    u0 = {"x": torch.tensor(1.0, dtype=dtype), "y": torch.tensor([0.0, 1.0], dtype=dtype)}
    return ps.DDEProblem(two_lags, u0, waves, (0.0, 3.0), **options)


def flat_two_lags(u: Any, h: Any, p: Any, t: Any) -> Any:
    early, late = h(p, t - 0.4), h(p, t - 1.0)
    x = -early[:1] + late[1:].sum()
    return torch.cat([x, -0.5 * u[1:] * late[:1]])


@julia
def test_states_as_trees_with_several_lags() -> None:
    prob = ps.DDEProblem(
        flat_two_lags, f64(1.0, 0.0, 1.0),
        lambda p, t: torch.stack([torch.cos(t), torch.sin(t), 1.0 + 0.0 * t]), (0.0, 3.0),
        constant_lags=f64(0.4, 1.0),
    )  # fmt: skip
    alg = ps.MethodOfSteps(ps.Tsit5())
    flat = ps.solve(prob, alg, saveat=0.5, **TIGHT)
    sol = ps.solve(trees(constant_lags=[1.0, 0.4]), alg, saveat=0.5, **TIGHT)
    assert_close(torch.cat([sol.u["x"][:, None], sol.u["y"]], 1), flat.u, rtol=1e-9, atol=1e-9)
    some = ps.solve(prob, alg, saveat=0.5, save_idxs=[2], **TIGHT)
    assert_close(some.u, flat.u[:, [2]], rtol=1e-12)


@julia
def test_float32() -> None:
    sol = ps.solve(trees(torch.float32), ps.MethodOfSteps(ps.Tsit5()), saveat=1.0, engine="julia")
    exact = ps.solve(trees(), ps.MethodOfSteps(ps.Tsit5()), saveat=1.0, **TIGHT)
    assert sol.u["y"].dtype is torch.float32
    assert_close(sol.u["y"].double(), exact.u["y"], rtol=5e-3, atol=5e-3)


@julia
@pytest.mark.parametrize("alg", [ps.Tsit5(), ps.Rodas5P()], ids=repr)
def test_callbacks(alg: Any) -> None:
    stop = ps.ContinuousCallback(lambda u, p, t: u[0] - 0.5, ps.terminate)
    sol = ps.solve(linear(tau=0.7, a=1.0), ps.MethodOfSteps(alg), callback=stop, **TIGHT)
    assert sol.retcode == "Terminated" and abs(sol.t[-1].item() - 0.5) < 1e-9
    kick = ps.PresetTimeCallback([0.5], lambda u, p, t: u + 1.0)
    sol = ps.solve(linear(a=1.0), ps.MethodOfSteps(alg), callback=kick, saveat=[1.0, 1.4], **TIGHT)
    # 1 - t to 0.7, then minus the integral of 1 - s, and of the kick from 1.2 on
    plain = by_steps([1.0, 1.4], a=1.0) + 1.0
    fixed = [
        u for t, u in zip(sol.t.tolist(), sol.u[:, 0].tolist(), strict=True) if t in (1.0, 1.4)
    ]
    np.testing.assert_allclose(fixed, [plain[0], plain[1] - 0.2], atol=1e-8)


@julia
def test_called_back_functions_give_the_same() -> None:
    def in_python(u: Any, h: Any, p: Any, t: Any) -> Any:
        late = h(p, t - p["tau"])
        return -p["a"] * torch.from_numpy(np.array(late.detach().numpy()))

    prob = linear()
    with pytest.warns(ps.CaptureWarning, match="f is called back"):
        sol = ps.solve(
            ps.DDEProblem(in_python, prob.u0, prob.h, prob.tspan, prob.p),
            ps.MethodOfSteps(ps.Tsit5()), saveat=1.0, **TIGHT,
        )  # fmt: skip
    assert np.abs(sol.u[:, 0].numpy() - by_steps(sol.t.numpy())).max() < 1e-9


def problem(f: Any = decay, h: Any = constant, tau: float = 0.7, **options: Any) -> ps.DDEProblem:
    p = {"a": f64(1.3), "tau": f64(tau), "c": f64(1.0)}
    return ps.DDEProblem(f, f64([1.0]), h, options.pop("tspan", (0.0, 4.0)), p, **options)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("negative lag", {"tau": -0.5}, r"a lag of -0\.5"),
    ("no lag", {"f": lambda u, h, p, t: -u}, "never calls h"),
    ("order of arguments", {"f": lambda u, p, t: -u}, r"called with \(u, h, p, t\)"),
    ("swapped arguments", {"f": lambda u, p, h, t: u}, "put them in this order"),
    ("swapped arguments of h", {"h": lambda t, p: f64([1.0])}, "put them in this order"),
    ("module as h", {"h": torch.nn.Linear(1, 1)}, r"called with \(p, t\)"),
    ("swapped call of h", {"f": lambda u, h, p, t: h(t - 1, p)}, r"f calls h\(s, p\)"),
    ("time alone", {"f": lambda u, h, p, t: h(t - 1)}, "calls h with one argument"),
    ("dtypes in f", {"f": lambda u, h, p, t: h(p, t - 1) @ torch.ones(1)}, "f mixes dtypes"),
    ("shapes in f", {"f": lambda u, h, p, t: h(p, t - 1) + f64(1, 2) * f64(1, 2, 3)}, "f fails on"),
    ("arguments of a lag", {"dependent_lags": lambda u: u[0]}, r"dependent_lags\[0\] takes \(u\)"),
    ("lag in words", {"constant_lags": "1"}, "constant_lags is '1'"),
    ("lag that is true", {"constant_lags": True}, "constant_lags is"),
    ("arguments of h", {"h": lambda t: f64([1.0])}, r"called with \(p, t\)"),
    ("shape of h", {"h": lambda p, t: f64(1.0, 2.0)}, r"h returned shape \(2,\)"),
    ("structure of h", {"h": lambda p, t: {"x": f64([1.0])}}, "h returned the structure"),
    ("dtype of h", {"h": lambda p, t: torch.ones(1)}, "h returned float32"),
    ("past the history", {"h": lambda p, t: torch.sqrt(t + 0.5).reshape(1)}, "looks back"),
    ("undeclared", {"constant_lags": (0.5,)}, r"a lag of 0\.7 at t0.*accuracy would be lost"),
    ("none declared", {"constant_lags": ()}, "not among the declared"),
    ("wrong dependent lag", {"dependent_lags": lambda u, p, t: u[0]}, r"\(1\)"),
    ("lag of a vector", {"dependent_lags": lambda u, p, t: f64(1.0, 2.0)}, r"dependent_lags\[0\]"),
    ("negative declared lag", {"constant_lags": -1.0}, "lags above 0"),
    ("declared lag that is none", {"constant_lags": "one"}, "constant_lags is 'one'"),
    ("backwards", {"tspan": (4.0, 0.0)}, "runs backwards"),
    ("two times", {"f": lambda u, h, p, t: h(p, t - f64(1.0, 2.0))}, r"s of shape \(2,\)"),
]


@pytest.mark.parametrize(("given", "said"), [(g, s) for _, g, s in BAD], ids=[b[0] for b in BAD])
def test_bad_input(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        problem(**given).as_whole()


def test_what_f_or_h_lacks_is_named() -> None:
    one = f64([1.0])
    prob = ps.DDEProblem(lambda u, h, p, t: -h(p, t - 1), one, lambda p, t: p["a"], (0.0, 1.0))
    with pytest.raises(InputError, match="h uses p, but the problem has none"):
        ps.solve(prob, engine="sundials")
    with pytest.raises(InputError, match="seed was given with a DDEProblem, which draws"):
        ps.solve(problem(), engine="sundials", seed=1)


@julia
def test_times_that_depend_on_delayed_states_are_refused() -> None:
    def f(u: Any, h: Any, p: Any, t: Any) -> Any:
        return -h(p, t - h(p, t - 1.0)[0])

    with pytest.raises(InputError, match="call 2 of h.*depends on another delayed state"):
        ps.solve(problem(f), ps.Tsit5(), engine="julia")


@julia
def test_lags_that_are_or_become_zero_or_negative_are_refused() -> None:
    with pytest.raises(InputError, match="a lag of 0, but"):
        ps.solve(problem(tau=0.0), ps.Tsit5(), engine="julia")
    with pytest.raises(InputError, match=r"at t = 4, a lag of -3,"):
        ps.solve(problem(lambda u, h, p, t: -h(p, 2 * t - 1)), ps.Tsit5(), engine="julia")


def test_declared_lags_are_accepted() -> None:
    tau = f64(0.7)
    for given in (0.7, tau, (tau,), [0.7, 2.0]):
        assert problem(constant_lags=given).as_whole().asks == 1
    assert problem(dependent_lags=lambda u, p, t: p["tau"]).as_whole().asks == 1


def test_the_embedded_engine_names_the_other() -> None:
    with pytest.raises(EngineError, match="engine='julia'.*pysciml setup"):
        ps.solve(problem(), engine="sundials")


@julia
@pytest.mark.parametrize(
    ("solve", "said"),
    [
        (lambda: ps.solve(problem(), ps.EM(), engine="julia"), "no noise"),
        (lambda: ps.solve(problem(), ps.DPRKN6(), engine="julia"), "a DDEProblem"),
        (
            lambda: ps.solve(problem(), ps.MethodOfSteps(ps.FRK65()), engine="julia"),
            "does not choose its own steps",
        ),
        (
            lambda: ps.solve(
                ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 1.0)),
                ps.MethodOfSteps(ps.Tsit5()), engine="julia",
            ),
            "for delay equations",
        ),
        (
            lambda: ps.solve(linear(), ps.MethodOfSteps(ps.Feagin12()), engine="julia"),
            r"Feagin12 does not solve delay equations.*use pysciml\.Vern9\(\)",
        ),
        (lambda: ps.solve(linear(), ps.GaussLegendre(), engine="julia"), "GaussLegendre does not"),
    ],
)  # fmt: skip
def test_algorithms_that_do_not_fit(solve: Any, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        solve()


@julia
@pytest.mark.parametrize(
    ("alg", "options"),
    [(ps.MethodOfSteps(ps.AB3()), {}), (ps.AB3(), {}), (ps.Tsit5(), {"adaptive": False})],
    ids=["of steps", "by itself", "not adaptive"],
)
def test_steps_of_one_size_have_to_be_given(alg: Any, options: dict[str, Any]) -> None:
    """Of themselves they would be as long as the lags."""
    name = alg.parts[0].name if alg.parts else alg.name
    with pytest.raises(InputError, match=f"{name} takes steps of one size.*give dt="):
        ps.solve(linear(), alg, engine="julia", **options)
    sol = ps.solve(linear(), alg, dt=0.01, saveat=[4.0], engine="julia", **options)
    np.testing.assert_allclose(sol.u[-1], by_steps([4.0]), atol=1e-4)


@julia
def test_other_sensitivity_algorithms_are_refused() -> None:
    with pytest.raises(InputError, match="CollocationAdjoint"):
        ps.solve(linear(), ps.Tsit5(), sensealg=ps.GaussAdjoint(), engine="julia")
