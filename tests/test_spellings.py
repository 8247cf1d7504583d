"""What users write in place of the plain form means the same; what cannot be meant is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import sparse

import pysciml as ps
from support import F64, assert_close, dae_solver, f64, mass_matrix_solver, nonstiff
from test_bad_input import dae, decay, problem, refused

TOL = {"abstol": 1e-9, "reltol": 1e-9}

#: Another spelling, and the plain one.
SAME = {
    "a mask": ({"save_idxs": [False, True]}, {"save_idxs": [1]}),
    "a mask in a tensor": ({"save_idxs": torch.tensor([True, True])}, {"save_idxs": [0, 1]}),
    "a mask in an array": ({"save_idxs": np.array([True, False])}, {"save_idxs": [0]}),
    "a slice": ({"save_idxs": slice(1, None)}, {"save_idxs": [1]}),
    "a slice backwards": ({"save_idxs": slice(None, None, -1)}, {"save_idxs": [1, 0]}),
    "one time": ({"tstops": 0.3}, {"tstops": [0.3]}),
    "one time in a tensor": ({"tstops": f64(0.3)}, {"tstops": [0.3]}),
    "times in any order": ({"tstops": [0.7, 0.3, 0.7]}, {"tstops": [0.3, 0.7]}),
    "times in a tensor in any order": ({"tstops": f64(0.7, 0.3)}, {"tstops": f64(0.3, 0.7)}),
    "no times": ({"tstops": []}, {}),
    "no times in a tensor": ({"tstops": f64([])}, {}),
    "no longest step": ({"dtmax": math.inf}, {}),
    "a longest step in a tensor": ({"dtmax": f64(0.01)}, {"dtmax": 0.01}),
    "a first step in an array": ({"dt": np.array(0.01)}, {"dt": 0.01}),
    "tolerances in tensors": (
        {"reltol": f64(1e-5), "abstol": f64(1e-7)}, {"reltol": 1e-5, "abstol": 1e-7},
    ),
    "flags of NumPy": ({"progress": np.False_, "adaptive": np.True_}, {}),
    "flags as numbers": ({"progress": 0, "adaptive": 1, "raise_on_failure": 1}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("spelt", "plain"), SAME.values(), ids=SAME)
def test_another_spelling(engine, spelt, plain):
    prob = problem()
    got = ps.solve(prob, nonstiff(engine), engine=engine, **{**TOL, **spelt})
    want = ps.solve(prob, nonstiff(engine), engine=engine, **{**TOL, **plain})
    assert torch.equal(got.t, want.t) and torch.equal(got.u, want.u)


@pytest.mark.parametrize("name", ["dt", "dtmax"])
def test_a_step_longer_than_the_span_is_cut(engine, name):
    sol = ps.solve(problem(), nonstiff(engine), engine=engine, **{**TOL, name: 100.0})
    assert_close(sol.u[-1], f64(1.0, 2.0) * math.exp(-0.5), 1e-7)


def test_a_mask_is_not_taken_for_equal_indices(engine):
    """[True, False] == [1, 0] in Python, and one problem keeps its plans."""
    prob = problem()
    for chosen, count in (([True, False], 1), ([1, 0], 2), ([True, False], 1)):
        sol = ps.solve(prob, nonstiff(engine), engine=engine, save_idxs=chosen, **TOL)
        assert sol.u.shape == (len(sol), count)


def test_flags_are_taken_at_their_word(engine):
    sol = ps.solve(
        problem(), nonstiff(engine), engine=engine, maxiters=2, raise_on_failure=np.False_, **TOL
    )
    assert not sol.success


@pytest.mark.parametrize(
    "kind", [ps.GaussAdjoint, ps.InterpolatingAdjoint], ids=lambda kind: kind.__name__
)
def test_a_sensitivity_algorithm_by_its_class(engine, kind):
    gradients = []
    for how in (kind, kind()):
        p = f64(0.5, grad=True)
        sol = ps.solve(problem(p=p), nonstiff(engine), engine=engine, sensealg=how, **TOL)
        gradients.append(torch.autograd.grad(sol.u[-1].sum(), p)[0])
    assert torch.equal(*gradients)
    assert_close(gradients[0], f64(-3.0 * math.exp(-0.5)), 1e-6)


def test_spellings_of_a_batch(engine):
    ensemble = ps.EnsembleProblem(problem(), p=f64(0.5, 0.7))
    options = {"tstops": [0.7, 0.3], "reltol": f64(1e-9), "dtmax": math.inf, "saveat": [1.0]}
    sim = ps.solve(ensemble, nonstiff(engine), engine=engine, save_idxs=slice(1, 2), **options)
    assert_close(sim.u[:, 0, 0], 2.0 * torch.exp(-f64(0.5, 0.7)), 1e-5)


TIMES = {
    "in any order": ([0.8, 0.2, 0.8], [0.2, 0.8]),
    "in a tensor": (f64(0.8, 0.2), [0.2, 0.8]),
    "one": (0.2, [0.2]),
    "one in a tensor": (f64(0.2), [0.2]),
    "none": ([], []),
}


@pytest.mark.parametrize(("times", "want"), TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)], ids=["onward", "backward"])
def test_preset_times(engine, times, want, span):
    callback = ps.PresetTimeCallback(times, lambda u, p, t: u + 1.0)
    prob = ps.ODEProblem(lambda u, p, t: 0.0 * u, f64([1.0]), span, callback=callback)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, **TOL)
    assert [event.t for event in sol.events] == sorted(want, reverse=span[0] > span[1])
    assert_close(sol.u[-1], f64([1.0 + len(want)]), 1e-12)


# -- matrices and flags ---------------------------------------------------------------------

MASS = [[2.0, 0.0], [0.0, 0.0]]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize(
    "made",
    [list, np.array, lambda x: f64(*x).to_sparse(), lambda x: f64(*x).to_sparse_csr(),
     sparse.csc_matrix],
    ids=["list", "array", "COO", "CSR", "SciPy"],
)  # fmt: skip
def test_a_mass_matrix_of_any_kind(engine, made):
    """2 u0' = -u0 with u1 = u0."""
    prob = ps.ODEProblem(
        lambda u, p, t: torch.stack([-u[0], u[0] - u[1]]), f64(1.0, 1.0), (0.0, 1.0),
        mass_matrix=made(MASS),
    )  # fmt: skip
    sol = ps.solve(ps.remake(prob), mass_matrix_solver(engine), engine=engine, **TOL)
    assert_close(sol.u[-1], torch.full((2,), math.exp(-0.5), dtype=F64), 1e-6)


MATRICES = {
    "a string": ("x", "mass_matrix is a str"),
    "a function": (decay, "mass_matrix is a function"),
    "without values": (torch.eye(2, device="meta"), "on the device meta"),
    "complex": (torch.eye(2, dtype=torch.complex128), "mass_matrix is complex128"),
    "of another size": (torch.eye(3).to_sparse(), "mass_matrix has shape (3, 3)"),
}


@pytest.mark.parametrize(("matrix", "said"), MATRICES.values(), ids=MATRICES)
def test_what_is_no_mass_matrix(matrix, said):
    refused(lambda: problem(mass_matrix=matrix), said, "matrix of shape (2, 2)", "torch.eye(2)")


FLAGS = {
    "a string": ("x", "differential_vars is 'x'"),
    "a string among them": ([True, "a"], "differential_vars is [True, 'a']"),
    "none": ([], "has 0 entries, but the state has 2"),
    "numbers": ([1, 0], "has 2 entries of int64"),
    "without values": (torch.ones(2, dtype=torch.bool, device="meta"), "on the device meta"),
}


@pytest.mark.parametrize(("flags", "said"), FLAGS.values(), ids=FLAGS)
def test_what_are_no_flags(flags, said):
    refused(lambda: dae(differential_vars=flags), said, "give one boolean for each entry of u0 (2)")


def test_flags_in_a_list(engine):
    sol = ps.solve(dae(differential_vars=[True, True]), dae_solver(engine), engine=engine, **TOL)
    assert_close(sol.u[-1], f64(1.0, 2.0) * math.exp(-1.0), 1e-6)


# -- p and plots ----------------------------------------------------------------------------


@pytest.mark.parametrize("p", ["abc", object(), [1.0, 2.0], {1, 2}], ids=lambda p: type(p).__name__)
def test_p_that_cannot_be_calculated_with(engine, p):
    said = [f"f fails on p, which is of type {type(p).__name__}", "give a tensor or a number"]
    refused(lambda: ps.solve(problem(p=p), engine=engine), *said)


def test_other_errors_of_types_are_the_users_own():
    with pytest.raises(TypeError, match="not subscriptable"):
        ps.solve(problem(f=lambda u, p, t: u * len[0], p={"a": 1.0}), engine="sundials")


PLOTS = {
    "beyond the end": ([2], "idxs is [2], but the solution has 2 entries"),
    "a string": (["x"], "idxs is ['x']"),
    "a fraction": ([0.5], "idxs is [0.5], of float"),
}


@pytest.mark.parametrize(("chosen", "said"), PLOTS.values(), ids=PLOTS)
def test_entries_that_no_plot_has(chosen, said):
    pytest.importorskip("matplotlib")
    sol = ps.solve(problem(), engine="sundials")
    sim = ps.solve(ps.EnsembleProblem(problem()), trajectories=2, engine="sundials")
    for shown in (sol, sim):
        refused(lambda x=shown: x.plot(idxs=chosen), said, "flat indices between 0 and 1")


def test_entries_of_a_plot_in_any_spelling():
    pytest.importorskip("matplotlib")
    sol = ps.solve(problem(), engine="sundials")
    for chosen in (1, [-1], slice(1, 2), [False, True]):
        (line,) = sol.plot(idxs=chosen).lines
        assert line.get_ydata()[0] == 2.0


@pytest.mark.parametrize("value", [torch.tensor([1.0, 2.0]), np.array([1.0, 2.0])], ids=type)
def test_numbers_that_are_several(value):
    with pytest.raises(ps.InputError, match="dtmax is "):
        ps.solve(problem(), dtmax=value, engine="sundials")


@pytest.mark.parametrize("span", [(0.3, 3.0), (3.0, 0.3)])
def test_a_grid_that_misses_the_end_by_rounding(engine, span) -> None:
    """3 - 3 * 0.9 is a little less than 0.3."""
    step = (span[1] - span[0]) / 3
    last = 3.0 - 3 * 0.9 if span[1] == 0.3 else np.nextafter(3.0, 4.0)
    grid = [*(span[0] + k * step for k in range(3)), last]
    prob = ps.ODEProblem(lambda u, p, t: -u, torch.ones(1, dtype=torch.float64), span)
    sol = ps.solve(prob, saveat=grid, engine=engine, abstol=1e-9, reltol=1e-9)
    np.testing.assert_allclose(sol.u[-1, 0], math.exp(span[0] - span[1]), rtol=1e-7)
