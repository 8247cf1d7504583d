"""Callbacks that cannot be meant are refused in a sentence that helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pysciml as ps
from support import f64
from test_bad_input import problem, refused

ROOTS = {
    "a comparison": lambda u, p, t: u[0] < 5,
    "a constant truth": lambda u, p, t: torch.tensor(True),
    "Python's truth": lambda u, p, t: True,
}
NUMBERS = {
    "a difference": lambda u, p, t: u[0] - 5,
    "a number of one entry": lambda u, p, t: u[:1],
    "Python's number": lambda u, p, t: 1.0,
}


def solved(callback):
    return ps.solve(problem(), engine="sundials", callback=callback)


@pytest.mark.parametrize("condition", ROOTS.values(), ids=ROOTS)
def test_a_truth_has_no_root(condition):
    parts = ["condition of callback 0", "true or false", "u[0] - 5 instead of u[0] < 5"]
    refused(lambda: solved(ps.ContinuousCallback(condition, ps.terminate)), *parts)


def test_truths_of_a_vector_of_conditions_have_no_roots():
    callback = ps.VectorContinuousCallback(lambda u, p, t: u < 5, lambda u, p, t, i: u, 2)
    refused(lambda: solved(callback), "true or false", "u[0] - 5 instead of u[0] < 5")


@pytest.mark.parametrize("condition", NUMBERS.values(), ids=NUMBERS)
def test_a_number_is_no_truth(condition):
    parts = ["condition of callback 0", "a number", "u[0] < 5 instead of u[0] - 5"]
    refused(lambda: solved(ps.DiscreteCallback(condition, ps.terminate)), *parts)


@pytest.mark.parametrize("true", [True, np.True_, torch.tensor(True), torch.tensor([1])], ids=repr)
def test_truths_of_any_kind(true):
    sol = solved(ps.DiscreteCallback(lambda u, p, t: true, ps.terminate))
    assert sol.retcode == "Terminated" and len(sol.events) == 1


@pytest.mark.parametrize("affect", [lambda u, p, t: ps.terminate, lambda u, p, t: ps.terminate(u)])
def test_terminate_is_given_and_neither_returned_nor_called(affect):
    for callback in (
        ps.ContinuousCallback(lambda u, p, t: u[0] - 0.8, affect),
        ps.PresetTimeCallback([0.5], affect),
    ):
        refused(lambda c=callback: solved(c), "pysciml.terminate", "give it as the affect itself")


def test_terminate_is_no_function_anywhere():
    refused(lambda: ps.terminate(f64(1.0)), "pysciml.terminate", "affect itself")
