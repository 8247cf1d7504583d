"""Between trees and vectors and back: nothing is lost, moved or mixed up, whatever the tree."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import pysciml as ps
from pysciml.flatten import ParameterSpec, joined, state_spec

CPU = torch.device("cpu")


class Point(NamedTuple):
    x: object
    y: object


shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
keys = st.text("abcxyz_0", min_size=1, max_size=4)


def containers(children):
    """Every kind of node that a tree may have, around leaves from ``children``."""
    return (
        st.lists(children, min_size=1, max_size=3)
        | st.lists(children, min_size=1, max_size=3).map(tuple)
        | st.dictionaries(keys, children, min_size=1, max_size=3)
        | st.dictionaries(keys, children, min_size=1, max_size=3).map(OrderedDict)
        | st.tuples(children, children).map(lambda pair: Point(*pair))
    )


@st.composite
def states(draw):
    """A tree of tensors of one dtype, each holding numbers that occur nowhere else in it."""
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    tree = draw(st.recursive(shapes.map(Shape), containers, max_leaves=6))
    count = 0

    def fill(shape):
        nonlocal count
        size = math.prod(shape.shape)
        values = torch.arange(count, count + size, dtype=dtype).reshape(shape.shape)
        count += size
        return values

    return pytree.tree_map(fill, tree)


class Shape:
    """A leaf to be (a bare tuple would be taken for a node)."""

    def __init__(self, shape):
        self.shape = shape


def assert_same(a, b):
    leaves_a, spec_a = pytree.tree_flatten(a)
    leaves_b, spec_b = pytree.tree_flatten(b)
    assert spec_a == spec_b
    for x, y in zip(leaves_a, leaves_b, strict=True):
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y) and x.dtype == y.dtype and x.shape == y.shape
        else:
            assert type(x) is type(y) and x == y


@given(states())
def test_state_comes_back_as_it_was(tree):
    spec = state_spec(tree)
    flat = spec.flatten(tree)
    assert flat.shape == (spec.size,) == (sum(x.numel() for x in pytree.tree_leaves(tree)),)
    assert_same(spec.unflatten(flat), tree)


@given(states(), st.lists(st.integers(1, 3), max_size=2))
def test_state_with_leading_axes_comes_back(tree, lead):
    """As the times of a solution stand in front."""
    spec = state_spec(tree)
    flat = spec.flatten(tree)
    many = flat.expand(*lead, spec.size) + torch.arange(math.prod(lead)).reshape(*lead, 1)
    out = spec.unflatten(many)
    for x, y in zip(pytree.tree_leaves(out), pytree.tree_leaves(tree), strict=True):
        assert x.shape == (*lead, *y.shape)
    if len(lead) == 1:
        assert torch.equal(spec.flatten_series(out), many)
        assert_same(pytree.tree_map(lambda x: x[0], out), tree)


@given(states())
def test_state_flattens_differentiably(tree):
    spec = state_spec(tree)
    leaves = [x.requires_grad_() for x in pytree.tree_leaves(tree)]
    weights = torch.arange(1.0, spec.size + 1, dtype=spec.dtype)
    grads = torch.autograd.grad((spec.flatten(tree) * weights).sum(), leaves)
    assert torch.equal(torch.cat([g.reshape(-1) for g in grads]), weights)


@given(states())
def test_what_f_returns_is_flattened_like_the_state_and_checked(tree):
    spec = state_spec(tree)
    assert torch.equal(spec.flatten_like(tree, "f"), spec.flatten(tree))
    with pytest.raises(ps.InputError, match="structure"):
        spec.flatten_like([tree], "f")
    with pytest.raises(ps.InputError, match="shape"):
        spec.flatten_like(pytree.tree_map(lambda x: x[None], tree), "f")
    other = torch.float32 if spec.dtype == torch.float64 else torch.float64
    with pytest.raises(ps.InputError, match="float"):
        spec.flatten_like(pytree.tree_map(lambda x: x.to(other), tree), "f")


static = (
    st.integers(-3, 3) | st.booleans() | st.text("abc", max_size=2)
    | st.lists(st.integers(0, 5), min_size=1, max_size=3).map(torch.tensor)
)  # fmt: skip
numbers = st.floats(-9, 9)
tensors = shapes.map(
    lambda s: torch.linspace(-1.0, 2.0, math.prod(s), dtype=torch.float64).reshape(s)
)
parameters = st.recursive(static | numbers | tensors, containers, max_leaves=8)


@given(parameters)
def test_parameters_come_back_as_they_were(p):
    spec, leaves = ParameterSpec.of(p, torch.float64, CPU)
    flat = joined(leaves, torch.float64, CPU)
    assert flat.ndim == 1 and flat.numel() == spec.size and flat.dtype == torch.float64
    back = spec.unflatten(flat)
    # numbers come back as tensors, so that they can be differentiated; all else as it was
    expected = pytree.tree_map(
        lambda x: torch.tensor(x, dtype=torch.float64) if isinstance(x, float) else x, p
    )
    assert_same(back, expected)


@given(parameters, parameters)
def test_parameters_are_told_apart_by_their_key(a, b):
    """Equal keys promise that one capture serves both."""
    one, _ = ParameterSpec.of(a, torch.float64, CPU)
    two, _ = ParameterSpec.of(b, torch.float64, CPU)
    again, _ = ParameterSpec.of(a, torch.float64, CPU)
    assert one.key == again.key and hash(one.key) == hash(again.key)
    if one.key == two.key:
        assert pytree.tree_structure(a) == pytree.tree_structure(b)
        for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
            if isinstance(x, (int, str)):
                assert type(x) is type(y) and x == y
            elif isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
                assert x.shape == y.shape and x.dtype == y.dtype
            else:  # a number and a 0-d tensor are the same thing to f
                assert torch.as_tensor(x).shape == torch.as_tensor(y).shape == ()


@settings(max_examples=25, deadline=None)
@given(states())
def test_solving_keeps_the_structure(tree):
    """u' = -u, whatever u is."""
    tree = pytree.tree_map(lambda x: x.double() / 10, tree)
    prob = ps.ODEProblem(lambda u, p, t: pytree.tree_map(torch.neg, u), tree, (0.0, 1.0))
    sol = ps.solve(prob, ps.CVODE_Adams(), engine="sundials", saveat=[0.0, 1.0], reltol=1e-6)
    assert_same(pytree.tree_map(lambda x: x[0], sol.u), tree)
    for x, y in zip(pytree.tree_leaves(sol.u), pytree.tree_leaves(tree), strict=True):
        assert torch.allclose(x[1], y * math.exp(-1.0), atol=1e-3)
