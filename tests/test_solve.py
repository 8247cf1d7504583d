"""The front door: what is asked of ``solve``, and what it gives back."""

from __future__ import annotations

import math
import re
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import nn

import pysciml as ps
from pysciml.engines import choice
from support import (
    F64,
    LV_P,
    LV_U0,
    ROBER_P,
    ROBER_U0,
    assert_close,
    dae_solver,
    f64,
    lotka_volterra,
    mass_matrix_solver,
    nonstiff,
    rober,
    stiff,
)

TIGHT = {"abstol": 1e-10, "reltol": 1e-10}


def decay(u, p, t):
    return -p * u


def decay_problem(u0=(1.0, 2.0), tspan=(0.0, 2.0), p=0.7):
    return ps.ODEProblem(decay, f64(*u0), tspan, p)


def exact_decay(t, u0=(1.0, 2.0), p=0.7, t0=0.0):
    return torch.exp(-p * (t[:, None] - t0)) * f64(*u0)


# -- output times ------------------------------------------------------------------


def test_own_steps_are_kept_without_saveat(engine):
    sol = ps.solve(decay_problem(), nonstiff(engine), engine=engine, **TIGHT)
    assert sol.t[0] == 0.0 and sol.t[-1] == 2.0
    assert (sol.t.diff() > 0).all()
    assert len(sol) == len(sol.u) == sol.stats.naccept + 1 > 5
    assert_close(sol.u, exact_decay(sol.t), 1e-7)


def test_saveat_as_a_step(engine):
    sol = ps.solve(decay_problem(), nonstiff(engine), engine=engine, saveat=0.5, **TIGHT)
    assert sol.t.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert_close(sol.u, exact_decay(sol.t), 1e-7)


def test_saveat_as_a_step_that_does_not_divide_the_span_ends_at_its_end(engine):
    sol = ps.solve(decay_problem(), nonstiff(engine), engine=engine, saveat=0.75, **TIGHT)
    assert sol.t.tolist() == [0.0, 0.75, 1.5, 2.0]


@pytest.mark.parametrize(
    "grid", [[0.3, 0.9, 1.7], (0.3, 0.9, 1.7), f64(0.3, 0.9, 1.7)], ids=["list", "tuple", "tensor"]
)
def test_saveat_as_a_grid_gives_exactly_these_times(engine, grid):
    sol = ps.solve(decay_problem(), nonstiff(engine), engine=engine, saveat=grid, **TIGHT)
    assert sol.t.tolist() == [0.3, 0.9, 1.7]
    assert_close(sol.u, exact_decay(sol.t), 1e-7)


def test_saveat_of_integers_gives_real_times(engine):
    sol = ps.solve(decay_problem(), engine=engine, saveat=torch.arange(3), **TIGHT)
    assert sol.t.dtype == F64 and sol.t.tolist() == [0.0, 1.0, 2.0]


def test_outputs_do_not_depend_on_the_other_outputs_asked_for(engine):
    one = ps.solve(decay_problem(), nonstiff(engine), engine=engine, saveat=[1.3], **TIGHT)
    grid = torch.linspace(0, 2, 201, dtype=F64)
    many = ps.solve(decay_problem(), nonstiff(engine), engine=engine, saveat=grid, **TIGHT)
    assert_close(many.u[130], one.u[0], 1e-12)


def test_backward_time(engine):
    prob = ps.ODEProblem(decay, f64(1.0, 2.0), (2.0, 0.0), 0.7)
    for saveat in (None, 0.5, [1.9, 1.0, 0.0]):
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=saveat, **TIGHT)
        assert (sol.t.diff() < 0).all() and sol.t[-1] == 0.0
        assert_close(sol.u, exact_decay(sol.t, t0=2.0), 1e-7)
    assert_close(sol(1.234), exact_decay(f64([1.234]), t0=2.0)[0], 1e-6)


def test_first_step_in_backward_time(engine):
    prob = ps.ODEProblem(decay, f64(1.0, 2.0), (2.0, 0.0), 0.7)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, dt=1e-3, **TIGHT)
    assert_close(sol.u, exact_decay(sol.t, t0=2.0), 1e-7)


def test_backward_undoes_forward(engine):
    prob = ps.ODEProblem(lotka_volterra, f64(*LV_U0), (0.0, 3.0), f64(*LV_P))
    there = ps.solve(prob, nonstiff(engine), engine=engine, **TIGHT).u[-1]
    back = ps.remake(prob, u0=there, tspan=(3.0, 0.0))
    assert_close(ps.solve(back, nonstiff(engine), engine=engine, **TIGHT).u[-1], prob.u0, 1e-6)


# -- which entries ------------------------------------------------------------------


def test_save_idxs_keeps_the_entries_named(engine):
    prob = ps.ODEProblem(lotka_volterra, f64(*LV_U0), (0.0, 3.0), f64(*LV_P))
    options = {"engine": engine, "saveat": 0.5, **TIGHT}
    whole = ps.solve(prob, nonstiff(engine), **options)
    for idxs, shape in (([1], (7, 1)), ([1, 0], (7, 2)), ([-1], (7, 1)), (0, (7, 1))):
        some = ps.solve(prob, nonstiff(engine), save_idxs=idxs, **options)
        assert some.u.shape == shape
        assert torch.equal(some.u, whole.u[:, torch.as_tensor(idxs).reshape(-1)])
        assert some(0.7).shape == shape[1:]


def test_save_idxs_counts_entries_of_a_structure_in_its_order(engine):
    u0 = {"a": f64([[1.0, 2.0]]), "b": f64(3.0)}
    prob = ps.ODEProblem(lambda u, p, t: {"a": -u["a"], "b": -u["b"]}, u0, (0.0, 1.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, save_idxs=[2, 1], saveat=[0.0], **TIGHT)
    assert sol.u.tolist() == [[3.0, 2.0]]


# -- the steps ------------------------------------------------------------------


def test_tstops_are_stepped_on(engine):
    stops = [0.321, 1.234]
    sol = ps.solve(decay_problem(), nonstiff(engine), engine=engine, tstops=stops, **TIGHT)
    assert set(stops) <= set(sol.t.tolist())


def test_tstops_make_a_jump_in_f_harmless(engine):
    prob = ps.ODEProblem(
        lambda u, p, t: torch.where(t < 1.0, 1.0, -3.0) * torch.ones_like(u), f64([0.0]), (0.0, 2.0)
    )
    sol = ps.solve(prob, nonstiff(engine), engine=engine, tstops=[1.0], **TIGHT)
    assert_close(sol.u[-1], f64([-2.0]), 1e-7)


def test_dtmax_bounds_every_step(engine):
    sol = ps.solve(decay_problem(), nonstiff(engine), engine=engine, dtmax=0.03, **TIGHT)
    assert sol.t.diff().max() <= 0.03 * (1 + 1e-12)
    free = ps.solve(decay_problem(), nonstiff(engine), engine=engine, **TIGHT)
    assert free.t.diff().max() > 0.03


def test_dt_is_the_first_step(engine):
    sol = ps.solve(decay_problem(), nonstiff(engine), engine=engine, dt=1e-5, **TIGHT)
    assert math.isclose(float(sol.t[1]), 1e-5, rel_tol=1e-6)


def test_tighter_tolerances_take_more_steps_and_err_less(engine):
    prob = ps.ODEProblem(lotka_volterra, f64(*LV_U0), (0.0, 10.0), f64(*LV_P))
    alg = nonstiff(engine)
    reference = ps.solve(prob, alg, engine=engine, abstol=1e-13, reltol=1e-13).u[-1]
    errors, steps = [], []
    for tol in (1e-4, 1e-7, 1e-10):
        sol = ps.solve(prob, alg, engine=engine, abstol=tol, reltol=tol)
        errors.append(float((sol.u[-1] - reference).abs().max()))
        steps.append(sol.stats.naccept)
    assert steps[0] < steps[1] < steps[2]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_abstol_by_entry(engine):
    # the second entry is tiny: with an absolute tolerance above it, it is not resolved
    prob = ps.ODEProblem(
        lambda u, p, t: torch.stack([-u[0], -50.0 * torch.sin(20.0 * t) * u[1]]),
        f64(1.0, 1e-8), (0.0, 3.0),
    )  # fmt: skip
    want = 1e-8 * math.exp(50.0 / 20.0 * (math.cos(60.0) - 1.0))

    def error(abstol):
        sol = ps.solve(prob, stiff(engine), engine=engine, abstol=abstol, reltol=1e-8)
        return abs(float(sol.u[-1, 1]) / want - 1.0)

    loose = error(1e-4)
    for abstol in ([1e-4, 1e-16], f64(1e-4, 1e-16), (1e-4, 1e-16)):
        assert error(abstol) < 1e-3 * loose


def test_abstol_in_the_structure_of_the_state(engine):
    u0 = {"a": f64([1.0, 2.0]), "b": f64(3.0)}
    prob = ps.ODEProblem(lambda u, p, t: {k: -x for k, x in u.items()}, u0, (0.0, 1.0))
    options = {"engine": engine, "reltol": 1e-8, "saveat": [1.0]}
    by_tree = ps.solve(
        prob, nonstiff(engine), abstol={"a": f64([1e-6, 1e-7]), "b": f64(1e-8)}, **options
    )
    by_list = ps.solve(prob, nonstiff(engine), abstol=[1e-6, 1e-7, 1e-8], **options)
    assert torch.equal(by_tree.u["a"], by_list.u["a"])


# -- structures ------------------------------------------------------------------


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_dict_state(engine):
    u0 = {"pos": f64([[1.0, 2.0], [3.0, 4.0]]), "vel": f64([[0.0, 0.0], [0.0, 0.0]])}
    prob = ps.ODEProblem(
        lambda u, p, t: {"pos": u["vel"], "vel": -p * u["pos"]}, u0, (0.0, 1.0), 4.0
    )
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=0.25, **TIGHT)
    assert sol.u["pos"].shape == (5, 2, 2)
    for k, t in enumerate(sol.t):
        assert_close(sol.u["pos"][k], u0["pos"] * torch.cos(2 * t), 0.0, 1e-7)
    at = sol(torch.tensor([[0.1, 0.2, 0.3]], dtype=F64))
    assert at["vel"].shape == (1, 3, 2, 2)
    assert_close(at["pos"][0, 1], u0["pos"] * math.cos(0.4), 1e-7)


def test_list_and_namedtuple_states(engine):
    for make in (list, tuple, lambda x: Pair(*x)):
        u0 = make([f64(1.0), f64([[2.0, 3.0]])])
        prob = ps.ODEProblem(lambda u, p, t, make=make: make([-u[0], u[1] * 0.5]), u0, (0.0, 1.0))
        sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[1.0], **TIGHT)
        assert type(sol.u) is type(u0)
        assert sol.u[0].shape == (1,) and sol.u[1].shape == (1, 1, 2)
        assert_close(sol.u[1][0], u0[1] * math.exp(0.5), 1e-7)


def test_nested_state_with_batch_dimensions(engine):
    torch.manual_seed(0)
    u0 = [torch.rand(3, 2, 4, dtype=F64), {"z": torch.rand(3, 1, dtype=F64)}]
    prob = ps.ODEProblem(
        lambda u, p, t: [-u[0] * u[1]["z"][:, :, None], {"z": torch.zeros_like(u[1]["z"])}],
        u0, (0.0, 1.0),
    )  # fmt: skip
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=0.5, **TIGHT)
    want = u0[0] * torch.exp(-u0[1]["z"])[:, :, None]
    assert_close(sol.u[0][-1], want, 1e-7)


def test_scalar_state(engine):
    prob = ps.ODEProblem(lambda u, p, t: -u, f64(2.0), (0.0, 1.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=[1.0], **TIGHT)
    assert sol.u.shape == (1,) and sol(0.5).shape == ()
    assert_close(sol.u[0], f64(2.0 * math.exp(-1.0)), 1e-7)


def test_batch_of_solutions_equals_each_alone(engine):
    u0 = torch.stack([f64(1.0, 1.0), f64(2.0, 0.5), f64(0.7, 1.6)])
    options = {"engine": engine, "saveat": [2.0], "abstol": 1e-11, "reltol": 1e-11}
    alg = nonstiff(engine)
    batch = ps.ODEProblem(lotka_volterra, u0, (0.0, 2.0), f64(*LV_P))
    together = ps.solve(batch, alg, **options).u[0]
    for i in range(3):
        alone = ps.solve(ps.remake(batch, u0=u0[i]), alg, **options).u[0]
        assert_close(together[i], alone, 1e-8)


def test_float32_state_gives_float32_back(engine):
    prob = ps.ODEProblem(decay, torch.tensor([1.0, 2.0]), (0.0, 2.0), torch.tensor(0.7))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=0.5, abstol=1e-6, reltol=1e-6)
    assert sol.u.dtype == torch.float32
    assert_close(sol.u, exact_decay(sol.t.double()).float(), 1e-5)
    assert sol(0.3).dtype == torch.float32


def test_float32_grid_that_rounds_past_the_end_is_taken_as_the_end(engine):
    prob = ps.ODEProblem(decay, torch.tensor([1.0]), (0.0, 0.1), torch.tensor(0.7))
    grid = torch.linspace(0, 0.1, 4)
    assert float(grid[-1]) > 0.1
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=grid)
    assert len(sol) == 4 and sol(grid).shape == (4, 1)


# -- parameters ------------------------------------------------------------------


class Rate(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.rate = nn.Parameter(f64(value))

    def forward(self, u):
        return -self.rate * u


@pytest.mark.parametrize(
    ("f", "p"),
    [
        (lambda u, p, t: -0.7 * u, None),
        (lambda u, p, t: -p * u, 0.7),
        (lambda u, p, t: -p * u, f64(0.7)),
        (lambda u, p, t: -p["k"] * u, {"k": f64(0.7)}),
        (lambda u, p, t: -p["a"]["k"][1] * u / p["n"], {"a": {"k": f64(1.0, 1.4)}, "n": 2}),
        (lambda u, p, t: -p[1] * u if p[0] == "decay" else p[1] * u, ("decay", 0.7)),
        (lambda u, p, t: p(u), Rate(0.7)),
        (lambda u, p, t: p["net"](u) * p["scale"], {"net": Rate(0.35), "scale": f64(2.0)}),
        (lambda u, p, t: -p[1].reshape(2, 2)[p[0]][1] * u, (torch.tensor(0), f64(9.0, 0.7, 9, 9))),
    ],
    ids=["none", "float", "tensor", "dict", "nested", "string", "module", "both", "index"],
)  # fmt: skip
def test_parameters_of_any_kind(engine, f, p):
    prob = ps.ODEProblem(f, f64(1.0, 2.0), (0.0, 2.0), p)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=1.0, **TIGHT)
    assert_close(sol.u, exact_decay(sol.t), 1e-7)


def test_integers_and_strings_in_p_are_read_anew(engine):
    def f(u, p, t):
        if p["n"] is True:
            return 3.0 * u
        return {"grow": 1.0, "decay": -1.0}[p["kind"]] * p["n"] * u

    prob = ps.ODEProblem(f, f64([1.0]), (0.0, 1.0), {"kind": "decay", "n": 1})
    for kind, n, want in (
        ("decay", 1, -1.0),
        ("grow", 1, 1.0),
        ("grow", 2, 2.0),
        ("grow", True, 3.0),
    ):
        sol = ps.solve(
            ps.remake(prob, p={"kind": kind, "n": n}), nonstiff(engine), engine=engine, **TIGHT
        )
        assert_close(sol.u[-1], f64([math.exp(want)]), 1e-7)


def test_time_dependence(engine):
    prob = ps.ODEProblem(lambda u, p, t: torch.cos(t) * torch.ones_like(u), f64([0.0]), (0.0, 3.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, saveat=0.5, **TIGHT)
    assert_close(sol.u[:, 0], torch.sin(sol.t), 0.0, 1e-8)


# -- problems ------------------------------------------------------------------


def test_remake_replaces_fields_and_keeps_the_rest(engine):
    prob = decay_problem()
    other = ps.remake(prob, p=1.4, tspan=(0.0, 1.0))
    assert other.p == 1.4 and other.tspan == (0.0, 1.0) and other.f is prob.f
    assert prob.p == 0.7 and prob.tspan == (0.0, 2.0)
    sol = ps.solve(other, nonstiff(engine), engine=engine, saveat=[1.0], **TIGHT)
    assert_close(sol.u, exact_decay(sol.t, p=1.4), 1e-7)


def test_remake_checks_what_it_is_given():
    with pytest.raises(ps.InputError, match=r"no field 'u_0'.*Did you mean 'u0'"):
        ps.remake(decay_problem(), u_0=f64([1.0]))
    with pytest.raises(ps.InputError, match="holds nan"):
        ps.remake(decay_problem(), u0=f64([math.nan]))


def test_mass_matrix_solves_the_robertson_dae(engine):
    def f(u, p, t):
        a, b, c = u.unbind()
        r = -p[0] * a + p[2] * b * c
        return torch.stack([r, -r - p[1] * b * b, a + b + c - 1.0])

    mass = torch.diag(f64(1.0, 1.0, 0.0))
    prob = ps.ODEProblem(f, f64(*ROBER_U0), (0.0, 40.0), f64(*ROBER_P), mass_matrix=mass)
    sol = ps.solve(prob, mass_matrix_solver(engine), engine=engine, abstol=1e-10, reltol=1e-8)
    # Hairer and Wanner: the state at t = 40
    want = f64(0.7158270688, 0.9185534765e-5, 0.2841637457)
    assert_close(sol.u[-1], want, 2e-6)
    assert_close(sol.u.sum(1), torch.ones(len(sol), dtype=F64), 1e-8)


def test_invertible_mass_matrix_scales_the_rate(engine):
    mass = f64([[2.0, 0.0], [1.0, 4.0]])
    prob = ps.ODEProblem(decay, f64(1.0, 2.0), (0.0, 1.0), 0.7, mass_matrix=mass)
    sol = ps.solve(
        prob, mass_matrix_solver(engine), engine=engine, saveat=[1.0], abstol=1e-9, reltol=1e-9
    )
    want = torch.matrix_exp(-0.7 * torch.linalg.inv(mass)) @ prob.u0
    assert_close(sol.u[0], want, 1e-6)


def robertson_residual(du, u, p, t):
    a, b, c = u.unbind()
    r = -p[0] * a + p[2] * b * c
    return torch.stack([r - du[0], -r - p[1] * b * b - du[1], a + b + c - 1.0])


def test_dae_problem_solves_robertson(engine):
    prob = ps.DAEProblem(
        robertson_residual, f64(-0.04, 0.04, 0.0), f64(*ROBER_U0), (0.0, 40.0), f64(*ROBER_P),
        differential_vars=torch.tensor([True, True, False]),
    )  # fmt: skip
    sol = ps.solve(prob, dae_solver(engine), engine=engine, abstol=1e-10, reltol=1e-8)
    assert_close(sol.u[-1], f64(0.7158270688, 0.9185534765e-5, 0.2841637457), 2e-6)


def test_dae_problem_finds_consistent_initial_values(engine):
    prob = ps.DAEProblem(
        robertson_residual, f64(0.0, 0.0, 0.0), f64(1.0, 0.0, 0.3), (0.0, 1.0), f64(*ROBER_P),
        differential_vars=[True, True, False],
    )  # fmt: skip
    sol = ps.solve(prob, dae_solver(engine), engine=engine, abstol=1e-10, reltol=1e-8)
    assert_close(sol.u[0], f64(1.0, 0.0, 0.0), 1e-8)


# -- what comes back ------------------------------------------------------------------


def test_solution_interpolates_its_derivatives(engine):
    prob = ps.ODEProblem(lambda u, p, t: torch.stack([u[1], -u[0]]), f64(0.0, 1.0), (0.0, 6.0))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TIGHT)
    t = torch.linspace(0, 6, 50, dtype=F64)
    assert_close(sol(t)[:, 0], torch.sin(t), 0.0, 1e-7)
    assert_close(sol(t, 1)[:, 0], torch.cos(t), 0.0, 1e-5)
    assert_close(sol(t, deriv=2)[:, 0], -torch.sin(t), 0.0, 1e-3)
    assert sol(1.0).shape == (2,) and sol([1.0, 2.0]).shape == (2, 2)
    assert sol(t.reshape(5, 10)).shape == (5, 10, 2)


def test_solution_agrees_with_its_interpolant_at_its_own_times(engine):
    prob = ps.ODEProblem(lotka_volterra, f64(*LV_U0), (0.0, 5.0), f64(*LV_P))
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TIGHT)
    assert_close(sol(sol.t), sol.u, 1e-12)


def test_stats_and_retcode(engine):
    calls = [0]

    def f(u, p, t):
        calls[0] += 1
        return -u

    sol = ps.solve(ps.ODEProblem(f, f64([1.0]), (0.0, 1.0)), stiff(engine), engine=engine, **TIGHT)
    assert sol.retcode == "Success" and sol.success
    assert sol.engine == engine and sol.algorithm.startswith(stiff(engine).name)
    assert sol.stats.nf > sol.stats.naccept > 5 and sol.stats.njacs >= 1
    assert calls[0] < 20, "the solver called back into Python although f can be captured"


def test_displays(engine):
    prob = ps.ODEProblem(
        lotka_volterra, f64(*LV_U0), (0.0, 5.0), f64(*LV_P),
        callback=ps.PresetTimeCallback([1.0], lambda u, p, t: u),
    )  # fmt: skip
    text = repr(prob)
    assert all(x in text for x in ("ODEProblem", "lotka_volterra", "(2,)", "float64", "(0, 5)"))
    html = prob._repr_html_()
    assert html.startswith("<table>") and "lotka_volterra" in html and html.endswith("</table>")
    sol = ps.solve(prob, nonstiff(engine), engine=engine)
    assert re.search(rf"Success, {len(sol)} times in \[0, 5\]", repr(sol)) and engine in repr(sol)
    html = sol._repr_html_()
    assert "Success" in html and html.count("<tr>") == html.count("</tr>") >= 5
    dae = ps.DAEProblem(lambda du, u, p, t: du + u, f64([0.0]), f64([1.0]), (0, 1), {"a": 1.0})
    assert "DAEProblem" in repr(dae) and "1 value in dict" in repr(dae)


def test_displays_escape_what_html_would_swallow():
    prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 1.0))
    assert "<lambda>" in repr(prob)
    assert "<lambda>" not in prob._repr_html_() and "&lt;lambda&gt;" in prob._repr_html_()


def test_progress_shows_the_time_reached(engine, capsys):
    ps.solve(decay_problem(), nonstiff(engine), engine=engine, progress=True)
    shown = capsys.readouterr()
    assert "t = 2" in shown.err and "100%" in shown.err
    assert shown.out == ""
    ps.solve(decay_problem(), nonstiff(engine), engine=engine)
    assert capsys.readouterr().err == ""


def test_plot_draws_a_line_for_each_entry(engine):
    plt = pytest.importorskip("matplotlib.pyplot")
    prob = ps.ODEProblem(lotka_volterra, f64(*LV_U0), (0.0, 5.0), f64(*LV_P, grad=True))
    ax = ps.solve(prob, nonstiff(engine), engine=engine).plot(labels=["prey", "predators"])
    assert [line.get_label() for line in ax.lines] == ["prey", "predators"]
    assert ax.get_xlabel() == "t"
    one = ps.solve(prob, nonstiff(engine), engine=engine).plot(idxs=[1])
    assert len(one.lines) == 1
    plt.close("all")


# -- algorithms ------------------------------------------------------------------


def test_default_algorithm_on_a_nonstiff_problem():
    prob = ps.ODEProblem(lotka_volterra, f64(*LV_U0), (0.0, 10.0), f64(*LV_P))
    sol = ps.solve(prob, engine="sundials", **TIGHT)
    assert sol.algorithm == "CVODE_Adams"


def test_default_algorithm_on_a_stiff_problem():
    prob = ps.ODEProblem(rober, f64(*ROBER_U0), (0.0, 1e5), f64(*ROBER_P))
    sol = ps.solve(prob, engine="sundials", abstol=1e-10, reltol=1e-6)
    assert sol.algorithm == "CVODE_BDF" and sol.stats.naccept < 2000
    with pytest.raises(ps.SolveError):  # what the test is there to avoid
        ps.solve(
            prob, ps.CVODE_Adams(), engine="sundials", abstol=1e-10, reltol=1e-6, maxiters=2000
        )


def test_default_algorithm_gets_through_a_problem_that_turns_stiff():
    # harmless at the start, decaying at a rate of 1e5 from t = 5 on
    def f(u, p, t):
        rate = 1.0 + 1e5 * torch.sigmoid(20.0 * (t - 5.0))
        return -rate * (u - torch.cos(t))

    prob = ps.ODEProblem(f, f64([0.0]), (0.0, 20.0))
    sol = ps.solve(prob, engine="sundials", abstol=1e-8, reltol=1e-6)
    assert sol.stats.naccept < 5000
    assert_close(sol.u[-1, 0], f64(math.cos(20.0)), 1e-3)


def test_default_algorithm_solves_both_kinds(engine):
    for f, u0, p, span in (
        (lotka_volterra, LV_U0, LV_P, 10.0),
        (rober, ROBER_U0, ROBER_P, 40.0),
    ):
        prob = ps.ODEProblem(f, f64(*u0), (0.0, span), f64(*p))
        options = {"engine": engine, "abstol": 1e-10, "reltol": 1e-8}
        got = ps.solve(prob, **options).u[-1]
        assert_close(got, ps.solve(prob, stiff(engine), **options).u[-1], 1e-5)


@pytest.mark.parametrize("alg", [ps.CVODE_BDF, ps.CVODE_BDF()], ids=["name", "instance"])
def test_an_algorithm_may_be_given_by_name_or_instance(alg):
    assert ps.solve(decay_problem(), alg, engine="sundials").algorithm == "CVODE_BDF"


@pytest.mark.parametrize("solver", ["Dense", "LapackDense", "GMRES", "BCG", "TFQMR"])
def test_linear_solvers_agree(solver):
    prob = ps.ODEProblem(rober, f64(*ROBER_U0), (0.0, 1.0), f64(*ROBER_P))
    options = {"engine": "sundials", "abstol": 1e-10, "reltol": 1e-8}
    got = ps.solve(prob, ps.CVODE_BDF(linear_solver=solver), **options).u[-1]
    assert_close(got, ps.solve(prob, ps.CVODE_BDF(), **options).u[-1], 1e-6)


def test_auto_engine_says_once_which_it_took(monkeypatch):
    monkeypatch.delenv("PYSCIML_ENGINE", raising=False)
    choice._auto.cache_clear()
    with pytest.warns(choice.EngineChoiceWarning, match="takes '(sundials|julia)'"):
        first = ps.solve(decay_problem())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ps.solve(decay_problem()).engine == first.engine


def test_engine_of_the_environment(monkeypatch):
    monkeypatch.setenv("PYSCIML_ENGINE", "sundials")
    assert ps.solve(decay_problem()).engine == "sundials"


# -- determinism ------------------------------------------------------------------


def test_two_equal_calls_give_equal_bits(engine):
    p = f64(*LV_P, grad=True)
    prob = ps.ODEProblem(lotka_volterra, f64(*LV_U0), (0.0, 10.0), p)
    runs = []
    for _ in range(2):
        sol = ps.solve(prob, stiff(engine), engine=engine, saveat=0.1)
        runs.append((sol.u.detach(), torch.autograd.grad(sol.u.square().sum(), p)[0]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_solving_leaves_random_state_inputs_and_grad_mode_alone(engine):
    torch.manual_seed(3)
    net = nn.Linear(2, 2).double()
    u0, p = f64(1.0, 2.0), f64(0.5, grad=True)
    prob = ps.ODEProblem(lambda u, p, t: -p * torch.tanh(net(u)), u0, (0.0, 1.0), p)
    before = torch.get_rng_state()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    sol = ps.solve(prob, nonstiff(engine), engine=engine)
    sol.u.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert u0.tolist() == [1.0, 2.0] and torch.is_grad_enabled()
    assert not u0.requires_grad


def test_no_grad_gives_plain_tensors(engine):
    p = f64(0.7, grad=True)
    prob = ps.ODEProblem(decay, f64(1.0, 2.0), (0.0, 1.0), p)
    with torch.no_grad():
        sol = ps.solve(prob, nonstiff(engine), engine=engine)
    assert not sol.u.requires_grad
    assert not ps.solve(decay_problem(), nonstiff(engine), engine=engine).u.requires_grad
    assert ps.solve(prob, nonstiff(engine), engine=engine).u.requires_grad


def test_the_least_step_alone(engine: str) -> None:
    prob = ps.ODEProblem(lambda u, p, t: -u, f64([1.0]), (0.0, 1.0))
    sol = ps.solve(prob, nonstiff(engine), dtmin=1e-9, abstol=1e-8, reltol=1e-8, engine=engine)
    assert abs(float(sol.u[-1, 0]) - math.exp(-1.0)) < 1e-6
    with pytest.raises(ps.SolveError):
        rough = ps.remake(prob, tspan=(0.0, 0.1))
        ps.solve(rough, nonstiff(engine), dtmin=0.09, abstol=1e-12, reltol=1e-12, engine=engine)
