"""Bad input is refused before solving, in a sentence that helps; failures on the way say where."""

from __future__ import annotations

import math
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

import pysciml as ps
from pysciml.engines import choice
from support import F64, assert_close, dae_solver, f64, nonstiff, stiff

NAN, INF = math.nan, math.inf


def decay(u, p, t):
    return -p * u


def problem(**changes):
    fields = {"f": decay, "u0": f64(1.0, 2.0), "tspan": (0.0, 1.0), "p": f64(0.5)}
    return ps.ODEProblem(**{**fields, **changes})


def dae(**changes):
    fields = {
        "f": lambda du, u, p, t: du + u, "du0": f64(-1.0, -2.0), "u0": f64(1.0, 2.0),
        "tspan": (0.0, 1.0), "differential_vars": torch.tensor([True, True]),
    }  # fmt: skip
    return ps.DAEProblem(**{**fields, **changes})


class Watched:
    """A right-hand side that knows how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, u, p, t):
        self.calls += 1
        return -u


def refused(make, *parts, error=ps.InputError):
    """``make()`` raises ``error`` with a message that holds each of ``parts``."""
    with pytest.raises(error) as caught:
        make()
    text = str(caught.value)
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in: {text}"
    assert text[0].isalpha() and text.rstrip()[-1] in ".?)", text


# Each line: what was given, what the message must hold (what was given, expected, how to mend).
PROBLEMS = {
    # u0: dtypes, devices, values
    "u0 a number": ({"u0": 1.0}, ["u0 is a float", "torch tensors", "torch.tensor("]),
    "u0 a list of numbers": ({"u0": [1.0, 2.0]}, ["u0[0] is a float", "torch.tensor("]),
    "u0 an array": ({"u0": np.ones(2)}, ["u0 is a NumPy array", "torch.as_tensor(u0)"]),
    "u0 nothing": ({"u0": {}}, ["u0 holds no tensor", "give a tensor"]),
    "u0 empty": ({"u0": f64([])}, ["u0 has no entries", "(0,)", "at least one"]),
    "u0 integers": ({"u0": torch.tensor([1, 2])}, ["int64", "float64 or float32", ".double()"]),
    "u0 half": ({"u0": torch.ones(2, dtype=torch.float16)}, ["float16", ".double()"]),
    "u0 bfloat16": ({"u0": torch.ones(2, dtype=torch.bfloat16)}, ["bfloat16", ".float()"]),
    "u0 complex": ({"u0": torch.ones(2, dtype=torch.complex128)}, ["complex128", "view_as_real"]),
    "u0 boolean": ({"u0": torch.ones(2, dtype=torch.bool)}, ["bool", "float64 or float32"]),
    "u0 of mixed dtypes": (
        {"u0": (torch.ones(1), f64([1.0]))}, ["u0[1] is float64", "float32", "one dtype"],
    ),
    "arguments in SciPy's order": (
        {"f": lambda t, u, p: -p * u}, ["f takes (t, u, p)", "(u, p, t)", "in this order"],
    ),
    "p and t swapped": (
        {"f": lambda u, t, p: -p * u}, ["f takes (u, t, p)", "(u, p, t)", "in this order"],
    ),
    "u0 without values": (
        {"u0": torch.ones(2, dtype=F64, device="meta")}, ["u0 is on the device meta", "values"],
    ),
    "u0 of mixed devices": (
        {"u0": (f64([1.0]), torch.ones(1, dtype=F64, device="meta"))},
        ["u0[1]", "meta", "cpu", "one device"],
    ),
    "u0 with NaN": ({"u0": f64(1.0, NAN)}, ["u0 holds nan", "(1,)", "finite"]),
    "u0 with inf": ({"u0": {"a": f64([[1.0, INF]])}}, ["u0['a'] holds inf", "(0, 1)", "finite"]),
    # p
    "p of another dtype": ({"p": torch.tensor(0.5)}, ["p is float32", "u0 is float64", "p.to("]),
    "p of another dtype inside": (
        {"p": {"k": torch.tensor(0.5)}}, ["p['k'] is float32", "u0 is float64", "convert"],
    ),
    "p on another device": (
        {"p": torch.ones(2, dtype=F64, device="meta")}, ["p is on meta", "u0 is on cpu", "move"],
    ),
    "p complex": ({"p": torch.tensor(1j)}, ["p is complex", "real and imaginary"]),
    "p an array": ({"p": np.ones(2)}, ["p is a NumPy array", "torch.as_tensor(p)"]),
    "p with NaN": ({"p": [f64(1.0), f64(NAN)]}, ["p[1] holds nan", "finite"]),
    "p a NaN": ({"p": {"k": NAN}}, ["p['k'] is nan", "finite"]),
    "p an inf": ({"p": -INF}, ["p is -inf", "finite"]),
    # tspan
    "tspan empty": ({"tspan": (1.0, 1.0)}, ["(1.0, 1.0)", "no length", "two different times"]),
    "tspan empty tensors": ({"tspan": (f64(1.0), 1)}, ["no length", "two different times"]),
    "tspan NaN": ({"tspan": (0.0, NAN)}, ["tspan[1] is nan", "finite"]),
    "tspan inf": ({"tspan": (-INF, 0.0)}, ["tspan[0] is -inf", "finite"]),
    "tspan meta": (
        {"tspan": (0.0, torch.ones((), device="meta"))}, ["tspan[1]", "meta", "one real number"],
    ),
    "tspan one number": ({"tspan": 1.0}, ["tspan is 1.0", "(t0, t1)"]),
    "tspan three numbers": ({"tspan": (0, 1, 2)}, ["tspan has 3 entries", "(t0, t1)"]),
    "tspan tensor of three": ({"tspan": f64(0, 1, 2)}, ["shape (3,)", "(t0, t1)"]),
    "tspan of strings": ({"tspan": ("0", "1")}, ["tspan[0] is '0'", "real number"]),
    "tspan of vectors": ({"tspan": (f64(0, 1), 2.0)}, ["tspan[0]", "(2,)", "one real number"]),
    # the rest
    "f no function": ({"f": 3}, ["f is a int", "f(u, p, t)"]),
    "mass matrix shape": (
        {"mass_matrix": torch.eye(3)}, ["mass_matrix", "(3, 3)", "2 entries", "(2, 2)"],
    ),
    "mass matrix with grad": (
        {"mass_matrix": torch.eye(2).requires_grad_()}, ["mass_matrix requires grad", "detach"],
    ),
    "mass matrix NaN": ({"mass_matrix": [[1, NAN], [0, 1]]}, ["mass_matrix holds nan", "finite"]),
    "callback no callback": ({"callback": lambda u: u}, ["callback is a function", "in a list"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "parts"), PROBLEMS.values(), ids=PROBLEMS)
def test_problem_refused(changes, parts):
    refused(lambda: problem(**changes), *parts)


DAES = {
    "du0 of another shape": ({"du0": f64([1.0])}, ["du0 has shape (1,)", "(2,)"]),
    "du0 of another dtype": ({"du0": torch.zeros(2)}, ["du0 has float32", "float64"]),
    "du0 with NaN": ({"du0": f64(0.0, NAN)}, ["du0 holds nan", "finite"]),
    "flags too few": ({"differential_vars": [True]}, ["1 entries", "has 2", "boolean"]),
    "flags no booleans": ({"differential_vars": [1, 0]}, ["int64", "one boolean for each"]),
    "f no function": ({"f": None}, ["f is a NoneType", "f(du, u, p, t)"]),
}


@pytest.mark.parametrize(("changes", "parts"), DAES.values(), ids=DAES)
def test_dae_problem_refused(changes, parts):
    refused(lambda: dae(**changes), *parts)


def test_weights_that_are_nan_are_named():
    net = nn.Sequential(nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[0].bias[1] = NAN
    refused(lambda: problem(f=lambda u, p, t: p(u), p=net), "0.bias", "holds nan", "finite")


OPTIONS = {
    # saveat and tstops
    "saveat zero": ({"saveat": 0.0}, ["saveat is 0.0", "positive"]),
    "saveat negative": ({"saveat": -0.1}, ["saveat is -0.1", "positive"]),
    "saveat far too fine": ({"saveat": 1e-13}, ["saveat is 1e-13", "1e+13", "larger step"]),
    "saveat NaN step": ({"saveat": NAN}, ["saveat is nan", "positive"]),
    "saveat after the end": (
        {"saveat": [0.5, 1.5]}, ["saveat[1] = 1.5", "outside tspan (0, 1)", "widen"],
    ),
    "saveat before the start": ({"saveat": f64(-0.5, 0.5)}, ["saveat[0] = -0.5", "outside"]),
    "saveat unsorted": ({"saveat": [0.5, 0.2]}, ["must increase", "0.5", "0.2", "sort"]),
    "saveat repeated": ({"saveat": [0.5, 0.5]}, ["followed by 0.5", "remove repeated"]),
    "saveat NaN": ({"saveat": [0.1, NAN]}, ["saveat[1] is nan", "finite"]),
    "saveat empty": ({"saveat": []}, ["shape (0,)", "at least one"]),
    "saveat a matrix": ({"saveat": torch.rand(2, 2)}, ["shape (2, 2)", "1-d"]),
    "saveat a string": ({"saveat": "all"}, ["saveat is 'all'", "1-d tensor"]),
    "saveat complex": ({"saveat": torch.ones(1, dtype=torch.complex64)}, ["complex", "real"]),
    "tstops outside": ({"tstops": [2.0]}, ["tstops[0] = 2", "outside tspan"]),
    "tstops NaN": ({"tstops": [NAN]}, ["tstops[0] is nan", "finite"]),
    # tolerances
    "reltol negative": ({"reltol": -1e-6}, ["reltol is -1e-06", ">= 0"]),
    "reltol NaN": ({"reltol": NAN}, ["reltol is nan", ">= 0"]),
    "reltol large": ({"reltol": 2.0}, ["reltol is 2.0", "below 1", "1e-6"]),
    "reltol a string": ({"reltol": "tight"}, ["reltol is 'tight'", "number"]),
    "abstol negative": ({"abstol": -1.0}, ["abstol is -1.0", ">= 0"]),
    "abstol inf": ({"abstol": INF}, ["abstol is inf", ">= 0"]),
    "abstol NaN entry": ({"abstol": [1e-6, NAN]}, ["abstol has the entry nan", ">= 0"]),
    "abstol negative tensor": ({"abstol": f64([-1.0])}, ["abstol has the entry -1", ">= 0"]),
    "abstol too long": ({"abstol": [1e-6] * 3}, ["abstol has 3 entries", "has 2"]),
    "abstol a string": ({"abstol": "small"}, ["abstol is 'small'", "number"]),
    "both zero": ({"abstol": 0.0, "reltol": 0.0}, ["both 0", "positive"]),
    "abstol of another structure": ({"abstol": {"a": 1e-6}}, ["abstol is {'a'", "like u0"]),
    "reltol a vector": ({"reltol": f64([1e-3])}, ["reltol is tensor", "number"]),
    "reltol with a gradient": ({"reltol": f64(1e-3, grad=True)}, ["reltol requires grad"]),
    # steps
    "dt zero": ({"dt": 0.0}, ["dt is 0.0", "> 0"]),
    "dt infinite": ({"dt": INF}, ["dt is inf", "> 0"]),
    "dtmax minus infinity": ({"dtmax": -INF}, ["dtmax is -inf", "> 0"]),
    "dtmax negative": ({"dtmax": -1.0}, ["dtmax is -1.0", "> 0"]),
    "dtmin a string": ({"dtmin": "0"}, ["dtmin is '0'", "number"]),
    "dtmin above dt": ({"dtmin": 0.1, "dt": 0.01}, ["dt is 0.01", "dtmin = 0.1"]),
    "dtmin beyond the span": ({"dtmin": 1e30}, ["dtmin is 1e+30", "longer than tspan"]),
    "dtmin above dtmax": ({"dtmin": 1.0, "dtmax": 0.1}, ["dtmin is 1.0", "dtmax = 0.1"]),
    "maxiters zero": ({"maxiters": 0}, ["maxiters is 0", "positive whole"]),
    "maxiters a fraction": ({"maxiters": 10.5}, ["maxiters is 10.5", "whole"]),
    "maxiters NaN": ({"maxiters": NAN}, ["maxiters is nan", "whole"]),
    # the rest
    **{
        f"{name} {value!r}": ({name: value}, [f"{name} is {value!r}", "True or False"])
        for name in ("adaptive", "progress", "raise_on_failure")
        for value in ("yes", None, 2, 1.0)
    },
    "sensealg of another kind": ({"sensealg": ps.Tsit5}, ["Tsit5", "pysciml.GaussAdjoint()"]),
    "save_idxs too large": ({"save_idxs": [2]}, ["save_idxs is [2]", "2 entries", "0 and 1"]),
    "save_idxs a short mask": ({"save_idxs": [True]}, ["a mask of 1", "a mask of 2"]),
    "save_idxs a mask of none": ({"save_idxs": [False, False]}, ["2 entries", "flat indices"]),
    "save_idxs a slice of none": ({"save_idxs": slice(5, 9)}, ["slice(5, 9", "2 entries"]),
    "save_idxs fractions": ({"save_idxs": [0.5]}, ["[0.5]", "flat indices"]),
    "save_idxs a string": ({"save_idxs": "first"}, ["'first'", "flat indices"]),
    "save_idxs empty": ({"save_idxs": []}, ["[]", "flat indices"]),
    "sensealg's tolerance nan": (
        {"sensealg": ps.GaussAdjoint(reltol=float("nan"))}, ["reltol of GaussAdjoint is nan"],
    ),
    "sensealg's tolerance negative": (
        {"sensealg": ps.GaussAdjoint(abstol=-1.0)}, ["abstol of GaussAdjoint is -1.0"],
    ),
    "sensealg's tolerance a string": (
        {"sensealg": ps.GaussAdjoint(reltol="a")}, ["reltol of GaussAdjoint is 'a'"],
    ),
    "sensealg a string": ({"sensealg": "adjoint"}, ["'adjoint'", "pysciml.GaussAdjoint()"]),
    "callback a number": ({"callback": 3}, ["callback is a int", "ContinuousCallback"]),
    "preset outside": (
        {"callback": ps.PresetTimeCallback([2.0], decay)}, ["times[0] = 2", "outside tspan"],
    ),
    "unknown keyword": ({"savat": 0.1}, ["'savat'", "Did you mean 'saveat'?"]),
    "SciPy's keyword": ({"rtol": 1e-6}, ["'rtol'", "reltol"]),
    "torchdiffeq's keyword": ({"method": "dopri5"}, ["'method'", "alg"]),
    "nonsense keyword": ({"colour": "red"}, ["does not take 'colour'"]),
}  # fmt: skip


@pytest.mark.parametrize(("options", "parts"), OPTIONS.values(), ids=OPTIONS)
def test_option_refused_before_anything_is_solved(options, parts):
    f = Watched()
    prob = problem(f=f)
    refused(lambda: ps.solve(prob, engine="sundials", **options), *parts)
    assert f.calls < 10, "f was solved with"


def test_saveat_must_fall_in_backward_time():
    prob = problem(tspan=(1.0, 0.0))
    refused(
        lambda: ps.solve(prob, engine="sundials", saveat=[0.2, 0.5]),
        "must decrease", "runs backwards", "sort",
    )  # fmt: skip


def test_no_scale_for_the_error_of_a_zero():
    refused(
        lambda: ps.solve(problem(u0=f64(0.0, 1.0)), engine="sundials", abstol=0.0),
        "abstol is 0", "u0", "positive abstol",
    )  # fmt: skip
    relative = {"abstol": 0.0, "reltol": 1e-6}
    assert ps.solve(problem(), engine="sundials", **relative).success


@pytest.mark.parametrize("what", [decay, None, "problem", f64(1.0)], ids=str)
def test_something_else_than_a_problem(what):
    refused(lambda: ps.solve(what), f"a {type(what).__name__}", "pysciml.ODEProblem(")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"direction": 2}, ["direction is 2", "1 (upward)"]),
        ({"affect": 3}, ["affect is a int", "affect(u, p, t)", "pysciml.terminate"]),
        ({"condition": 0.5}, ["condition is a float", "condition(u, p, t)"]),
    ],
)
def test_callback_refused(options, parts):
    fields = {"condition": lambda u, p, t: u[0], "affect": None, **options}
    refused(lambda: ps.ContinuousCallback(**fields), *parts)


# -- what f returns ------------------------------------------------------------------

RETURNS = {
    "another shape": (lambda u, p, t: u[:1], ["shape (1,)", "(2,)", "one value for each"]),
    "a matrix": (lambda u, p, t: u[:, None] * u, ["f returned shape (2, 2)", "(2,)"]),
    "another dtype": (lambda u, p, t: u.float(), ["f returned float32", "float64", ".to(torch"]),
    "integers": (lambda u, p, t: u.long(), ["f returned int64", "float64"]),
    "another structure": (lambda u, p, t: {"u": u}, ["structure {'u': (2,)}", "built like u0"]),
    "a tuple": (lambda u, p, t: (u,), ["structure ((2,),)", "(2,)", "built like u0"]),
    "nothing": (lambda u, p, t: None, ["a NoneType", "tensor of shape (2,)", "torch.stack"]),
    "numbers": (lambda u, p, t: [1.0, 2.0], ["structure [1.0, 2.0]", "built like u0"]),
    "an array": (lambda u, p, t: np.ones(2), ["a ndarray", "tensor of shape (2,)"]),
    "another device": (lambda u, p, t: u.to("meta"), ["on meta", "on cpu", "move"]),
}  # fmt: skip


@pytest.mark.parametrize(("f", "parts"), RETURNS.values(), ids=RETURNS)
def test_what_f_returns_is_checked(engine, f, parts):
    refused(lambda: ps.solve(problem(f=f), engine=engine), *parts)


def test_leaf_of_a_structure_is_named(engine):
    u0 = {"a": f64([1.0]), "b": f64(1.0, 2.0)}
    prob = ps.ODEProblem(lambda u, p, t: {"a": -u["a"], "b": u["b"][:1]}, u0, (0.0, 1.0))
    refused(lambda: ps.solve(prob, engine=engine), "shape (1,)", "leaf 1", "(2,)")


def test_residual_condition_and_affect_are_checked_too(engine):
    refused(
        lambda: ps.solve(dae(f=lambda du, u, p, t: du[:1]), engine=engine), "shape (1,)", "(2,)"
    )
    for condition, affect, parts in (
        (lambda u, p, t: u, None, ["condition of callback 0 returned (2,)", "one number"]),
        (lambda u, p, t: "up", None, ["condition of callback 0 returned str", "one number"]),
        (lambda u, p, t: u[0], lambda u, p, t: u[:1], ["affect of callback 0", "(1,)", "(2,)"]),
        (lambda u, p, t: u[0], lambda u, p, t: None, ["affect of callback 0", "NoneType"]),
    ):
        callback = ps.ContinuousCallback(condition, affect)
        refused(lambda c=callback: ps.solve(problem(), engine=engine, callback=c), *parts)


def test_missing_p_is_named(engine):
    for f in (decay, lambda u, p, t: p["k"] * u, lambda u, p, t: p.k * u):
        refused(
            lambda f=f: ps.solve(problem(f=f, p=None), engine=engine),
            "f uses p", "has none", "remake(prob, p=...)",
        )  # fmt: skip


def test_wrong_arguments_of_f_are_named(engine):
    refused(
        lambda: ps.solve(problem(f=lambda t, u: -u), engine=engine), "(t, u)", "(u, p, t)", "order"
    )
    refused(lambda: ps.solve(dae(f=decay), engine=engine), "(u, p, t)", "(du, u, p, t)")


def test_a_model_of_another_dtype_is_named(engine):
    net = nn.Linear(2, 2)
    for p, f in ((None, lambda u, p, t: net(u)), (net, lambda u, p, t: p(u))):
        refused(
            lambda p=p, f=f: ps.solve(problem(f=f, p=p), engine=engine),
            "dtype", "float64", "model.to(torch.float64)",
        )  # fmt: skip


def test_errors_of_the_users_own_pass_through(engine):
    def f(u, p, t):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ps.solve(problem(f=f), engine=engine)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_f_that_torch_cannot_differentiate(engine):
    def f(u, p, t):
        return torch.as_tensor(-u.detach().numpy())

    plain = ps.solve(problem(f=f), nonstiff(engine), engine=engine, abstol=1e-9, reltol=1e-9)
    assert_close(plain.u[-1], f64(1.0, 2.0) * math.exp(-1.0), 1e-6)
    prob = problem(f=f, u0=f64(1.0, 2.0, grad=True))
    refused(
        lambda: ps.solve(prob, nonstiff(engine), engine=engine),
        "f cannot be differentiated", "requires grad", "torch operations only", "torch.no_grad()",
    )  # fmt: skip
    with torch.no_grad():
        assert torch.equal(
            ps.solve(prob, nonstiff(engine), engine=engine, abstol=1e-9, reltol=1e-9).u, plain.u
        )


# -- engines and algorithms ------------------------------------------------------------------


def test_unknown_engine():
    refused(
        lambda: ps.solve(problem(), engine="sundails"), "'sundails'", "'julia'", "mean 'sundials'"
    )


@pytest.mark.parametrize(
    "alg", [ps.Tsit5(), ps.Rodas5P(), ps.AutoTsit5(ps.Rosenbrock23())], ids=repr
)
def test_an_algorithm_of_the_other_engine(alg):
    refused(
        lambda: ps.solve(problem(), alg, engine="sundials"),
        alg.name, "julia", "python -m pysciml setup", "CVODE_BDF", error=ps.EngineError,
    )  # fmt: skip


def test_an_algorithm_for_another_kind_of_problem():
    mass = problem(mass_matrix=torch.eye(2))
    for prob, alg, use in (
        (problem(), ps.IDA(), "CVODE_BDF"),
        (mass, ps.CVODE_BDF(), "pysciml.IDA()"),
        (dae(), ps.CVODE_Adams(), "pysciml.IDA()"),
    ):
        refused(
            lambda prob=prob, alg=alg: ps.solve(prob, alg, engine="sundials"),
            alg.name, use, error=ps.EngineError,
        )  # fmt: skip


def test_fixed_steps_are_not_promised_where_there_are_none():
    refused(
        lambda: ps.solve(problem(), engine="sundials", adaptive=False, dt=0.1),
        "adaptive=False", "dtmax", "julia", error=ps.EngineError,
    )  # fmt: skip


def test_something_else_than_an_algorithm():
    refused(lambda: ps.solve(problem(), "BDF", engine="sundials"), "alg is a str", "CVODE_BDF()")


def test_unknown_algorithm_and_option_names():
    with pytest.raises(AttributeError, match="Tsit6"):
        _ = ps.Tsit6
    refused(lambda: ps.algorithm("Tsit55"), "'Tsit55'", "Did you mean 'Tsit5'")
    refused(lambda: ps.CVODE_BDF(linear_solvr="Dense"), "'linear_solvr'", "mean 'linear_solver'")
    refused(
        lambda: ps.solve(problem(), ps.CVODE_BDF(linear_solver="QR"), engine="sundials"),
        "'QR'", "Dense", "GMRES",
    )  # fmt: skip
    refused(
        lambda: ps.solve(problem(), ps.CVODE_BDF(linear_solver="Band"), engine="sundials"),
        "Band", "jac_lower",
    )  # fmt: skip


# -- solves that fail on their way ------------------------------------------------------------


def failed(prob, alg, engine, retcodes, **options):
    with pytest.raises(ps.SolveError) as caught:
        ps.solve(prob, alg, engine=engine, **options)
    error = caught.value
    assert error.retcode in retcodes, str(error)
    assert error.retcode in str(error) and f"t = {error.t:g}" in str(error)
    assert error.solution.retcode == error.retcode and not error.solution.success
    return error


def test_blow_up(engine):
    """u' = u^2 has a pole at t = 1: a solver must stop there and not step over it."""
    for kind in (stiff, nonstiff):
        prob = problem(f=lambda u, p, t: u * u, u0=f64([1.0]), tspan=(0.0, 3.0))
        error = failed(
            prob, kind(engine), engine, ("DtLessThanMin", "Unstable"), abstol=1e-8, reltol=1e-8
        )
        assert abs(error.t - 1.0) < 1e-4
        sol = error.solution
        early = sol.t < 0.99
        assert early.sum() > 10
        assert_close(
            (sol.u[:, 0] * (1 - sol.t))[early], torch.ones(int(early.sum()), dtype=F64), 1e-4
        )
        assert "blow up" in str(error) or "domain" in str(error)


def test_nan_on_the_way(engine):
    prob = problem(f=lambda u, p, t: -torch.sqrt(0.5 - t) * u, u0=f64([1.0]))
    for saveat in (None, [0.1, 0.25, 0.75]):
        error = failed(
            prob, nonstiff(engine), engine, ("Unstable", "DtLessThanMin"),
            abstol=1e-8, reltol=1e-8, saveat=saveat,
        )  # fmt: skip
        assert 0.45 < error.t <= 0.5 + 1e-6
        sol = error.solution
        want = torch.exp((2 / 3) * ((0.5 - sol.t).clamp(min=0) ** 1.5 - 0.5**1.5))
        assert_close(sol.u[:, 0], want, 1e-5)
        assert (sol.t.tolist() == [0.1, 0.25]) if saveat else len(sol) > 10
        assert_close(sol(0.2), torch.exp(f64([(2 / 3) * (0.3**1.5 - 0.5**1.5)])), 1e-5)


def test_nan_at_the_start(engine):
    prob = problem(f=lambda u, p, t: torch.log(-u))
    error = failed(prob, nonstiff(engine), engine, ("Unstable",))
    assert error.t == 0.0 and torch.isfinite(error.solution.u).all()


def test_nan_that_only_a_trial_step_meets_is_overcome(engine):
    """A root of a negative number, met where a step goes too far, shortens the step."""
    prob = problem(
        f=lambda u, p, t: -torch.sqrt(u) * (1 - torch.exp(-1e3 * u)),
        u0=f64([1.0]),
        tspan=(0.0, 4.0),
    )
    sol = ps.solve(prob, nonstiff(engine), engine=engine, abstol=1e-9, reltol=1e-9)
    assert sol.retcode == "Success" and 0.0 < sol.u[-1, 0] < 1e-2


def test_maxiters(engine):
    prob = problem(tspan=(0.0, 10.0))
    error = failed(
        prob, nonstiff(engine), engine, ("MaxIters",), maxiters=5, abstol=1e-9, reltol=1e-9
    )
    assert 0.0 < error.t < 10.0 and "raise maxiters" in str(error)
    sol = error.solution
    assert 2 <= len(sol) <= 6 and sol.t[-1] == error.t
    assert_close(sol.u, torch.exp(-0.5 * sol.t)[:, None] * f64(1.0, 2.0), 1e-6)


def test_failure_may_be_returned_and_has_its_retcode(engine):
    prob = problem(tspan=(0.0, 10.0), u0=f64(1.0, 2.0, grad=True))
    sol = ps.solve(
        prob, nonstiff(engine), engine=engine, maxiters=5, raise_on_failure=False,
        abstol=1e-9, reltol=1e-9,
    )  # fmt: skip
    assert sol.retcode == "MaxIters" and not sol.success and "MaxIters" in repr(sol)
    (g,) = torch.autograd.grad(sol.u[-1].sum(), prob.u0)
    assert_close(g, torch.exp(-0.5 * sol.t[-1].detach()).expand(2), 1e-6)


def test_no_consistent_initial_values(engine):
    prob = dae(
        f=lambda du, u, p, t: torch.stack([du[0] + u[0], u[1] ** 2 + 1.0 + 0.0 * u[0]]),
        differential_vars=torch.tensor([True, False]),
    )
    error = failed(
        prob, dae_solver(engine), engine, ("InitialFailure", "ConvergenceFailure", "Unstable")
    )
    assert error.t == 0.0
    start = float(prob.u0[1]) ** 2 + 1.0
    assert f"equation 1 is off by {start:.3g}" in str(error)
    assert "check that this can be satisfied" in str(error)


def test_the_equation_that_initial_values_miss_is_named():
    constraint = ps.DAEProblem(
        lambda du, u, p, t: torch.stack([du[0] + u[0], 1e3 * (u[0] + u[1] - 1)]),
        f64(-1.0, 0.0), f64(1.0, 5.0), (0.0, 1.0),
    )  # fmt: skip
    with pytest.raises(ps.InputError, match=r"equation 1 is off by 5e\+03 .*differential_vars="):
        ps.solve(constraint, ps.IDA(), engine="sundials")
    near = ps.remake(constraint, u0=f64(1.0, 1e-7))  # within the tolerances
    assert ps.solve(near, ps.IDA(), engine="sundials").success
    flags = torch.tensor([True, False])
    told = ps.solve(ps.remake(constraint, differential_vars=flags), ps.IDA(), engine="sundials")
    assert_close(told.u[0], f64(1.0, 0.0), 0.0, 1e-9)
    # a wrong du0 alone is what the first step mends
    rates = ps.remake(constraint, u0=f64(1.0, 0.0), du0=f64(3.0, 0.0))
    assert ps.solve(rates, ps.IDA(), engine="sundials").success
    hidden = ps.remake(  # the constraint is a combination of rows, each with a rate in it
        constraint, f=lambda du, u, p, t: torch.stack([du[0] + u[0], du[0] + 2 * u[0] + u[1] - 1])
    )
    with pytest.raises(ps.SolveError, match="equation 1 is off by 5 .*give differential_vars="):
        ps.solve(hidden, ps.IDA(), engine="sundials")


def test_what_is_not_finite_is_not_called_inconsistent():
    for flags in (None, torch.tensor([True, False])):
        prob = ps.DAEProblem(
            lambda du, u, p, t: torch.stack([du[0] + u[0], torch.log(u[0] - 2.0) + u[1]]),
            f64(0.0, 0.0), f64(1.0, 5.0), (0.0, 1.0), differential_vars=flags,
        )  # fmt: skip
        error = failed(prob, ps.IDA(), "sundials", ("Unstable",))
        assert "is off by" not in str(error) and "inf or NaN" in str(error)


def test_the_constraint_of_a_mass_matrix_that_cannot_hold_is_named():
    for mass, rows, off in (
        (f64([[1.0, 0.0], [0.0, 0.0]]), (lambda a, b: (a, b)), "equation 1 is off by 3"),
        (f64([[1.0, 0.0], [1.0, 0.0]]), (lambda a, b: (a, a + b)), "is off by 1.5"),
    ):
        prob = ps.ODEProblem(
            lambda u, p, t, rows=rows: torch.stack(rows(-u[0], u[1] ** 2 + 1 + u[0] ** 2)),
            f64(1.0, 1.0), (0.0, 1.0), mass_matrix=mass,
        )  # fmt: skip
        error = failed(prob, ps.IDA(), "sundials", ("InitialFailure",))
        assert off in str(error) and "check that this can be satisfied" in str(error)


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
def test_an_error_of_f_in_the_middle_of_a_solve(engine):
    class Mine(Exception):
        pass

    def f(u, p, t):
        if t.item() > 0.5:
            raise Mine("at half time")
        return -u

    for prob, alg in (
        (problem(f=f), nonstiff(engine)),
        (problem(f=f), stiff(engine)),
        (dae(f=lambda du, u, p, t: du - f(u, p, t)), dae_solver(engine)),
    ):
        with pytest.raises(Mine, match="at half time"):
            ps.solve(prob, alg, engine=engine)
    assert ps.solve(problem(), engine=engine).success


@pytest.mark.filterwarnings("ignore::pysciml.CaptureWarning")
@pytest.mark.parametrize("when", [2, 15], ids=["at the start", "on the way"])
def test_an_error_of_torch_in_a_residual_is_not_taken_for_the_solvers(when):
    calls = [-1000]

    def f(du, u, p, t):
        calls[0] += 1
        if calls[0] >= when:
            torch.ones(2) @ torch.ones(3)
        return du + torch.as_tensor(u.detach().numpy().copy())

    prob = dae(f=f)
    assert ps.solve(prob, engine="sundials").success
    calls[0] = 0
    with pytest.raises(RuntimeError, match="size") as caught:
        ps.solve(prob, engine="sundials")
    assert not isinstance(caught.value, ps.PyscimlError)


# -- the screen and the keyboard ------------------------------------------------------------


def test_nothing_is_printed_by_failing_solves(capfd):
    prob = problem(f=lambda u, p, t: u * u, tspan=(0.0, 3.0))
    for alg in (ps.CVODE_BDF(), ps.CVODE_Adams()):
        with pytest.raises(ps.SolveError):
            ps.solve(prob, alg, engine="sundials", abstol=1e-9, reltol=1e-9)
    with pytest.raises(ps.SolveError):
        ps.solve(problem(), engine="sundials", maxiters=3)
    with pytest.raises(ps.SolveError):
        bad = dae(
            f=lambda du, u, p, t: torch.stack([du[0] + u[0], u[1] ** 2 + 1.0]),
            differential_vars=torch.tensor([True, False]),
        )
        ps.solve(bad, engine="sundials")
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == ""


def test_what_f_prints_is_shown(capsys):
    def f(u, p, t):
        if t.item() >= 0.0:
            print("[here, Error: mine]")
        return -u

    with pytest.warns(ps.CaptureWarning):
        ps.solve(problem(f=f), engine="sundials")
    assert capsys.readouterr().out.count("[here, Error: mine]\n") > 10


def interrupted(prob, alg, engine):
    """Solve in the main thread while another presses Ctrl-C after the solve has begun."""
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ps.solve(prob, alg, engine=engine, abstol=1e-12, reltol=1e-12, maxiters=10**9)
    finally:
        timer.cancel()
        timer.join()


@pytest.mark.timeout(60)
def test_ctrl_c_stops_a_solve_and_the_next_one_works(engine):
    """Without it the solve would take hours."""
    prob = ps.ODEProblem(
        lambda u, p, t: torch.stack([u[1], -1e4 * u[0]]), f64(1.0, 0.0), (0.0, 1e6)
    )
    before = ps.solve(problem(), engine=engine).u
    interrupted(prob, nonstiff(engine), engine)
    interrupted(prob, stiff(engine), engine)
    assert torch.equal(ps.solve(problem(), engine=engine).u, before)
    assert ps.solve(ps.remake(prob, tspan=(0.0, 0.1)), engine=engine).success


@pytest.mark.timeout(60)
def test_ctrl_c_stops_a_solve_of_a_function_that_is_called_back():
    def f(u, p, t):
        return torch.stack([u[1], -1e4 * u[0]]) * float(t >= 0.0)

    prob = ps.ODEProblem(f, f64(1.0, 0.0), (0.0, 1e6))
    with pytest.warns(ps.CaptureWarning):
        interrupted(prob, ps.CVODE_BDF(), "sundials")
    assert ps.solve(problem(), engine="sundials").success


# -- what every message holds ------------------------------------------------------------------


def test_names_of_the_package_that_are_not_there():
    with pytest.raises(AttributeError, match="Did you mean 'CVODE_BDF'"):
        ps.CVODE_BDFF  # noqa: B018


def test_messages_of_the_julia_engine_that_need_no_julia():
    """What it refuses before Julia starts, each with what to use in its place."""
    engine = choice.engine("julia")
    for kind, alg, parts in (
        ("pde", None, ["'pde'", "ODEProblem or a DAEProblem"]),
        (
            "ode",
            ps.NLNewton(),
            ["option of algorithms", "KenCarp4(nlsolve=pysciml.NLNewton"],
        ),
        ("ode", ps.KLUFactorization(), ["pysciml.Rodas5P(linsolve=pysciml.KLUFactorization())"]),
        ("ode", ps.DFBDF(), ["residuals", "an ODEProblem", "Tsit5"]),
        ("dae", ps.Tsit5(), ["does not solve residuals", "pysciml.DFBDF()"]),
        ("dae", ps.KahanLi6(), ["partitioned", "a DAEProblem", "DFBDF"]),
        ("ode", ps.CVODE_BDF(), ["sundials engine", "FBDF"]),
    ):
        with pytest.raises(ps.EngineError) as caught:
            engine.check(kind, alg, False)
        for part in parts:
            assert part in str(caught.value)
