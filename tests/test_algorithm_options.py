"""Algorithms' options: what is refused in our own words, before any solver runs."""

from __future__ import annotations

import pytest

import pysciml as ps
from pysciml.errors import InputError

REFUSED = {
    "a name for an object": (lambda: ps.Rodas5P(linsolve="LUFactorization"), r"pysciml\.LUFac"),
    "no linear solver": (lambda: ps.TRBDF2(linsolve=ps.Tsit5()), "linsolve is Tsit5.*one of"),
    "no nonlinear solver": (lambda: ps.KenCarp4(nlsolve=ps.LUFactorization()), "NLNewton"),
    "autodiff": (lambda: ps.Rodas5P(autodiff=False), "derivatives come from torch"),
    "thread": (lambda: ps.Tsit5(thread=True), "batch dimension"),
    "a limiter": (lambda: ps.SSPRK43(**{"step_limiter!": print}), "isoutofdomain="),
    "precs": (lambda: ps.FBDF(precs=print), "preconditioner"),
    "a controller": (lambda: ps.Tsit5(controller=ps.PIController()), "belongs to solve"),
    "an option as a part": (lambda: ps.AutoTsit5(ps.LUFactorization()), r"takes 1 algorithm\(s\)"),
    "one part of two": (lambda: ps.AutoAlgSwitch(ps.Tsit5()), r"takes 2 algorithm\(s\)"),
    "a mistake": (lambda: ps.FBDF(order=3), "'max_order'"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_an_algorithm_does_not_take(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_class_stands_for_its_object() -> None:
    assert ps.Rodas5P(linsolve=ps.LUFactorization) == ps.Rodas5P(linsolve=ps.LUFactorization())
    assert ps.AutoAlgSwitch(ps.Tsit5, ps.Rodas5P) == ps.AutoAlgSwitch(ps.Tsit5(), ps.Rodas5P())


@pytest.mark.parametrize("name", ["SBDF2", "QBDF", "IMEXEuler", "JVODE_BDF", "ExplicitRK", "MRAB"])
def test_names_that_stand_for_others_in_julia_are_there(name) -> None:
    assert getattr(ps, name)().name == name
