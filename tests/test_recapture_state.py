"""Whatever differs in Python between two functions of the same code, the second is captured anew.

Every right-hand side is ``-rate * u``, where the rate depends on a state that changes from step
to step and on a tensor that is new at each; after each step value and gradient are compared with
the closed form.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from pysciml.compat import torchdiffeq
from recapturing import Steps, check, run
from support import assert_close, counted_captures, f64


@pytest.fixture
def steps():
    return Steps()


class Mode(enum.Enum):
    SLOW = "slow"
    FAST = "fast"


class Pair(NamedTuple):
    a: float
    b: float


class Scaled:
    def __init__(self, k):
        self.k = k

    def __rmul__(self, x):
        return self.k * x


class Named:
    def __init__(self, **values):
        self._values = values

    def __getattr__(self, name):
        return self._values[name]


class Hidden:
    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k


@dataclass
class Config:
    k: float


class Doubling(nn.Module):
    def forward(self, x):
        return 2.0 * x if self.training else 3.0 * x


def with_number(theta, k):
    return lambda u, p, t: -k * theta * u, k * theta


def with_string(theta, word):
    return (
        lambda u, p, t: -theta * u if word == "one" else -2.0 * theta * u,
        theta if word == "one" else 2.0 * theta,
    )


def with_nested_containers(theta, k):
    held = {"rates": [(theta, k)]}
    return lambda u, p, t: -held["rates"][0][0] * held["rates"][0][1] * u, theta * k


def with_default(theta, k):
    def f(u, p, t, k=k):
        return -k * theta * u

    return f, k * theta


def with_partial(theta, k):
    return functools.partial(lambda u, p, t, k: -k * theta * u, k=k), k * theta


def with_helper(theta, k):
    def helper(x):
        return k * x

    return lambda u, p, t: -helper(theta * u), k * theta


def with_function_attribute(theta, k):
    def helper(x):
        return helper.k * x

    helper.k = k
    return lambda u, p, t: -helper(theta * u), k * theta


def with_other_function(theta, k):
    g = torch.neg if k == 1.0 else torch.sin if k == 2.0 else torch.tanh
    return lambda u, p, t: -theta * u + 0.0 * g(u), theta


def with_bound_builtin(theta, k):
    get = {"k": k}.get
    return lambda u, p, t: -get("k") * theta * u, k * theta


def with_operator_of_an_object(theta, k):
    gain = Scaled(k)
    return lambda u, p, t: -(theta * u * gain), k * theta


def with_dynamic_attribute(theta, k):
    c = Named(k=k)
    return lambda u, p, t: -c.k * theta * u, k * theta


def with_slots(theta, k):
    c = Hidden(k)
    return lambda u, p, t: -c.k * theta * u, k * theta


def with_dataclass(theta, k):
    c = Config(k)
    return lambda u, p, t: -c.k * theta * u, k * theta


def with_compared_dataclass(theta, k):
    c, one = Config(k), Config(1.0)
    return (
        lambda u, p, t: -theta * u if c == one else -2.0 * theta * u,
        theta if k == 1.0 else 2.0 * theta,
    )


def with_named_tuple(theta, k):
    c = Pair(k, 1.0)
    return lambda u, p, t: -c.a * theta * u, k * theta


def with_array(theta, k):
    c = np.array([k, 1.0])
    return lambda u, p, t: -float(c[0]) * theta * u, k * theta


def with_numpy_number(theta, k):
    c = np.float64(k)
    return lambda u, p, t: -theta * u * float(c), k * theta


def with_set(theta, k):
    c = {k}
    return lambda u, p, t: -sum(c) * theta * u, k * theta


def with_index_table(theta, k):
    table, values = torch.tensor([int(k)]), theta * f64(0.0, 1.0, 2.0, 3.0)
    return lambda u, p, t: -values[table] * u, k * theta


def with_read_tensor(theta, k):
    c = f64(k)
    return lambda u, p, t: -c.item() * theta * u, k * theta


def with_array_of_a_tensor(theta, k):
    c = f64(k, k)
    return lambda u, p, t: -float(np.sum(np.asarray(c)) / 2) * theta * u, k * theta


def with_listed_tensor(theta, k):
    c = f64(k, k)
    return lambda u, p, t: -c.tolist()[0] * theta * u, k * theta


def with_shape(theta, k):
    c = torch.ones(int(k), dtype=torch.float64)
    return lambda u, p, t: -c.sum() * theta * u, k * theta


def with_slice(theta, k):
    part, values = slice(int(k), int(k) + 1), f64(0.0, 1.0, 2.0, 3.0)
    return lambda u, p, t: -values[part].sum() * theta * u, k * theta


def with_class_made_anew(theta, k):
    class Local:
        rate = k

    return lambda u, p, t: -Local.rate * theta * u, k * theta


def with_dtype(theta, k):
    c = torch.ones((), dtype={1.0: torch.float64, 2.0: torch.float32, 3.0: torch.int64}[k])
    factor = {torch.float64: 1.0, torch.float32: 2.0, torch.int64: 3.0}
    return lambda u, p, t: -factor[c.dtype] * c * theta * u, k * theta


def with_matched_dataclass(theta, k):
    c = Config(k)

    def f(u, p, t):
        match c:
            case Config(k=rate):
                return -rate * theta * u

    return f, k * theta


def with_fields_of_a_dataclass(theta, k):
    c = Config(k)
    return lambda u, p, t: -sum(dataclasses.astuple(c)) * theta * u, k * theta


def with_forward_of_an_instance(theta, k):
    module = Doubling()
    module.forward = lambda x: k * x
    return lambda u, p, t: -module(theta * u), k * theta


DIFFERENT = [v for k, v in list(globals().items()) if k.startswith("with_")]


@pytest.mark.parametrize("make", DIFFERENT, ids=lambda f: f.__name__)
def test_other_python_state_is_captured_anew(steps, make):
    states = ["one", "two", "one"] if make is with_string else [1.0, 2.0, 3.0, 2.0, 1.0]
    count = run(steps, make, states)
    assert count >= len(set(states))


#: Those of them that are seen through, so that a state met before needs no capture.
SEEN_THROUGH = [
    with_number, with_string, with_nested_containers, with_default, with_partial, with_helper,
    with_function_attribute, with_other_function, with_bound_builtin, with_operator_of_an_object,
    with_dynamic_attribute, with_slots, with_dataclass, with_compared_dataclass, with_named_tuple,
    with_array, with_numpy_number, with_set, with_index_table, with_shape, with_slice, with_dtype,
    with_matched_dataclass, with_fields_of_a_dataclass, with_forward_of_an_instance,
]  # fmt: skip


@pytest.mark.parametrize("make", SEEN_THROUGH, ids=lambda f: f.__name__)
def test_equal_python_state_is_not(steps, make):
    states = ["one", "two"] if make is with_string else [1.0, 2.0]
    assert run(steps, make, [s for s in states for _ in range(3)]) == 2


def test_minus_zero_and_true_are_other_numbers(steps):
    def make(theta, k):
        one = torch.copysign(torch.ones(()), torch.tensor(k)) if isinstance(k, float) else 2.0
        return (
            lambda u, p, t: (
                -(2.0 if k is True else 1.0 / k if k else 1.0) * theta * u
                if not isinstance(k, float) or str(k) != "-0.0"
                else -3.0 * theta * u
            )
        ), {"True": 2.0, "1": 1.0, "0.0": 1.0, "-0.0": 3.0}[str(k)] * theta + 0.0 * float(one)

    assert run(steps, make, [1, True, 0.0, -0.0]) == 4


def test_enum_members(steps):
    def make(theta, mode):
        return (
            lambda u, p, t: -theta * u if mode is Mode.SLOW else -2.0 * theta * u,
            theta if mode is Mode.SLOW else 2.0 * theta,
        )

    assert run(steps, make, [Mode.SLOW, Mode.FAST, Mode.SLOW, Mode.FAST]) == 2


def test_training_flag(steps):
    def make(theta, training):
        module = Doubling().train(training)
        return lambda u, p, t: -module(theta * u), (2.0 if training else 3.0) * theta

    assert run(steps, make, [True, True, False, False, True]) == 2


def test_options_of_a_library_module(steps):
    def make(theta, slope):
        act = nn.LeakyReLU(slope)
        return lambda u, p, t: act(-theta * u), slope * theta

    assert run(steps, make, [0.5, 0.5, 0.25, 0.25]) == 2


def test_hooks_of_a_module(steps):
    def make(theta, k):
        module = nn.Identity()
        if k != 1.0:
            module.register_forward_hook(lambda m, x, y: k * y)
        return lambda u, p, t: module(-theta * u), k * theta

    assert run(steps, make, [1.0, 2.0, 3.0]) == 3


def test_whether_a_tensor_requires_grad(steps):
    def make(theta, wanted):
        c = f64(2.0, grad=wanted)
        return lambda u, p, t: -(0.5 if c.requires_grad else 1.0) * c * theta * u, (
            0.5 if wanted else 1.0
        ) * c.detach() * theta

    assert run(steps, make, [False, True, False, True]) == 2


def test_whether_a_tensor_is_a_leaf(steps):
    def make(theta, leaf):
        c = steps.gain if leaf else steps.gain * 1.0
        return lambda u, p, t: -(3.0 if c.is_leaf else 1.0) * c * theta * u, (
            3.0 if leaf else 1.0
        ) * c * theta

    assert run(steps, make, [False, True, False, True]) == 2


def test_attributes_of_a_tensor(steps):
    def make(theta, k):
        theta.k = k
        return lambda u, p, t: -theta.k * theta * u, k * theta

    assert run(steps, make, [1.0, 1.0, 2.0, 2.0]) == 2


def test_a_global_number(steps):
    def make(theta, k):
        global GAIN
        GAIN = k
        return lambda u, p, t: -GAIN * theta * u, k * theta

    assert run(steps, make, [1.0, 1.0, 2.0, 1.0]) == 2


def test_static_parameters(steps):
    def make(theta):
        return lambda u, p, t: -(theta * u * p["gain"]) * p["k"]

    with counted_captures() as captures:
        for k in (1, 2, 1, 2):
            theta = steps.fresh()[0]
            p = {"k": k, "gain": Scaled(float(k))}
            check(make(theta), theta * k * k, steps.leaves, p)
    assert len(captures) == 2


def test_a_fresh_module_as_p(steps):
    def make(theta):
        return lambda u, p, t: -theta * p(u)

    with counted_captures() as captures:
        for i in range(3):
            theta = steps.fresh()[0]
            module = nn.Linear(2, 2, bias=False).double()
            nn.init.eye_(module.weight)
            module.weight.data *= i + 1.0
            check(make(theta), theta * (i + 1.0), steps.leaves, module)
    assert captures == ["f"]


def test_functions_inside_pysciml_s_own_wrappers(steps):
    """Modules and interfaces of the package call the user's function: its state counts."""
    t = f64(0.0, 1.0)

    def field(theta, k):
        return lambda t, y: -k * theta * y

    with counted_captures() as captures:
        for k in (1.0, 1.0, 2.0, 1.0):
            theta = steps.fresh()[0]
            y = torchdiffeq.odeint(field(theta, k), f64(1.0, 2.0), t, rtol=1e-9, atol=1e-9,
                                   options={"engine": "sundials"})  # fmt: skip
            want = torch.exp(-k * theta) * f64(1.0, 2.0)
            assert_close(y[-1], want, 1e-7)
            got = torch.autograd.grad(y[-1].sum(), steps.raw, retain_graph=True)
            assert_close(got[0], torch.autograd.grad(want.sum(), steps.raw)[0], 1e-6)
    assert len(captures) <= 4


def test_an_index_table_changed_in_place_afterwards(steps):
    """The graph holds the values that it was captured with, not the user's tensor."""
    first = torch.tensor([1])

    def make(theta, table):
        values = theta * f64(0.0, 1.0, 2.0, 3.0)
        return lambda u, p, t: -values[table] * u, table.double().sum() * theta

    assert run(steps, make, [first]) == 1
    first[0] = 3
    assert run(steps, make, [torch.tensor([1]), first, torch.tensor([3])]) == 1


@pytest.mark.parametrize("name", ["globals", "deque", "generator", "big array", "lru_cache"])
def test_what_cannot_be_seen_through_is_captured_each_time(steps, name):
    def make(theta, k):
        global GAIN
        GAIN = k
        if name == "globals":
            return lambda u, p, t: -globals()["GAIN"] * theta * u, k * theta
        if name == "deque":
            c = collections.deque([k])
            return lambda u, p, t: -c[0] * theta * u, k * theta
        if name == "generator":
            c = iter(lambda: k, None)
            return lambda u, p, t: -next(c) * theta * u, k * theta
        if name == "big array":
            c = np.full(5000, k)
            return lambda u, p, t: -float(c[17]) * theta * u, k * theta
        c = functools.lru_cache(lambda: k)
        return lambda u, p, t: -c() * theta * u, k * theta

    assert run(steps, make, [1.0, 2.0, 2.0]) >= 2
