"""simplify: random graphs keep their values, and the rules that kernels rely on do fire."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import evaluate
from random_graphs import assert_close, random_graph, random_inputs, tame

from pysciml.kernels.graph import Graph, Node, const, input_node, make
from pysciml.kernels.simplify import Builder, simplify

U = input_node("u", (4,))
P = input_node("p", (6,))
T = input_node("t", ())


def simplified(node: Node, **options: bool) -> Node:
    return simplify(Graph((U, P, T), (node,)), **options).outputs[0]


def ops(node: Node) -> list[str]:
    return [n.op for n in Graph((), (node,)).nodes()]


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_random_graphs_keep_their_values(rng: random.Random, n: int) -> None:
    graph = random_graph(rng, n, outputs=2)
    values = random_inputs(rng)
    expected = evaluate(graph, **values)
    if not tame(expected):
        return
    once = simplify(graph)
    assert_close(evaluate(once, **values), expected)
    assert [o.shape for o in once.outputs] == [o.shape for o in graph.outputs]
    assert len(once.nodes()) <= len(graph.nodes()) + 12
    assert_close(evaluate(simplify(graph, strong_zeros=False), **values), expected)


def _pad(x: Node, lo: int, hi: int) -> Node:
    return make("pad", x, lo=(lo,), hi=(hi,), interior=(0,))


def _slice(x: Node, start: int, stop: int, step: int = 1) -> Node:
    return make("slice", x, starts=(start,), stops=(stop,), steps=(step,))


ZERO, ONE = const(0.0), const(1.0)
EYE = const(np.eye(4))
COLUMN = make("reshape", U, shape=(4, 1))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (make("add", U, ZERO), "u"),
        (make("add", ZERO, U), "u"),
        (make("sub", U, ZERO), "u"),
        (make("mul", U, ONE), "u"),
        (make("mul", const(np.ones(4)), U), "u"),
        (make("div", U, ONE), "u"),
        (make("neg", make("neg", U)), "u"),
        (make("pow", U, ONE), "u"),
        (make("where", const(True), U, T), "u"),
        (make("where", make("gt", U, T), U, U), "u"),
        (make("maximum", U, U), "u"),
        (make("cast", U, kind="f"), "u"),
        (make("reshape", make("reshape", U, shape=(2, 2)), shape=(4,)), "u"),
        (make("flip", make("flip", U, dims=(0,)), dims=(0,)), "u"),
        (make("cat", _slice(U, 0, 1), _slice(U, 1, 4), dim=0), "u"),
        (_slice(make("cat", P, U, dim=0), 6, 10), "u"),
        (_slice(_pad(U, 2, 3), 2, 6), "u"),
        (make("take", U, const(np.arange(4))), "u"),
        (make("scatter_set", P, const(np.arange(6)), P), "p"),
        (make("reshape", make("matmul", EYE, COLUMN), shape=(4,)), "u"),
        (make("solve", EYE, COLUMN), COLUMN),
        (make("sum", make("reshape", U, shape=(1, 4)), dims=(0,)), "u"),
        (make("pack", *(make("elem", U, index=i) for i in range(4)), shape=(4,)), "u"),
        (make("add", T, make("sub", T, T)), "t"),
    ],
)
def test_identities(node: Node, expected: str | Node) -> None:
    found = simplified(node)
    if isinstance(expected, str):
        assert found.op == "input" and found.attr("name") == expected
    else:
        assert (found.op, found.shape) == (expected.op, expected.shape)


@pytest.mark.parametrize(
    "node",
    [
        make("mul", U, ZERO),
        make("mul", const(np.zeros(4)), make("exp", U)),
        make("sub", U, U),
        make("div", ZERO, U),
        make("reshape", make("matmul", const(np.zeros((4, 4))), COLUMN), shape=(4,)),
        make("expand", make("reshape", make("mul", T, ZERO), shape=(1,)), shape=(4,)),
    ],
)
def test_strong_zeros(node: Node) -> None:
    found = simplified(node)
    assert found.is_const and found.shape == (4,) and not found.value.any()


def test_weak_zeros_keep_nan() -> None:
    weak = simplified(make("mul", U, ZERO), strong_zeros=False)
    assert not weak.is_const
    assert simplified(make("sub", U, U), strong_zeros=False).op == "sub"


def test_power_as_products() -> None:
    assert ops(simplified(make("pow", U, const(2.0)))) == ["input", "mul"]
    assert ops(simplified(make("pow", U, const(0.5)))) == ["input", "sqrt"]
    assert "pow" in ops(simplified(make("pow", U, const(2.5))))


def test_gradients_of_slices_concatenate() -> None:
    parts = [_pad(make("sin", _slice(P, i, i + 2)), i, 4 - i) for i in (0, 2, 4)]
    total = make("add", make("add", parts[0], parts[2]), parts[1])
    found = simplified(total)
    assert found.op == "cat" and "add" not in ops(found) and "pad" not in ops(found)


def test_duplicates_are_shared() -> None:
    twice = make("add", make("mul", make("sin", U), T), make("mul", T, make("sin", U)))
    assert ops(simplified(twice)).count("sin") == 1
    assert ops(simplified(twice)).count("mul") == 1


def test_repeated_scalars_stay_scalars() -> None:
    wide = make("expand", make("reshape", T, shape=(1,)), shape=(4,))
    found = simplified(make("add", make("sin", wide), U))
    (sine,) = [n for n in Graph((), (found,)).nodes() if n.op == "sin"]
    assert sine.shape == ()


def test_repeated_matrix_is_one_product() -> None:
    w = make("reshape", make("cat", P, P, P, P, dim=0), shape=(1, 4, 6))
    batch = make("expand", w, shape=(5, 4, 6))
    x = make("sin", make("expand", make("reshape", P, shape=(1, 6, 1)), shape=(5, 6, 1)))
    x = make("mul", x, const(np.random.default_rng(0).random((5, 6, 1))))
    found = simplified(make("matmul", batch, x))
    (product,) = [n for n in Graph((), (found,)).nodes() if n.op == "matmul"]
    assert product.ndim == 2


def test_large_uniform_literals_are_not_spelled_out() -> None:
    zeros = make("mul", make("expand", make("reshape", T, shape=(1, 1)), shape=(900, 900)), ZERO)
    found = simplified(zeros)
    assert found.op == "expand" and found.args[0].size == 1


def test_inputs_are_kept_though_unused() -> None:
    graph = simplify(Graph((U, P, T), (make("mul", P, ONE),)))
    assert [n.attr("name") for n in graph.inputs] == ["u", "p", "t"]


def test_deep_graphs() -> None:
    node: Node = U
    for _ in range(5000):
        node = make("add", make("sin", node), T)
    assert len(simplify(Graph((U, T), (node,))).nodes()) == 10002


def test_builder_shares_nodes() -> None:
    builder = Builder()
    u = builder.intern(U)
    assert builder.build("sin", u) is builder.build("sin", u)


X = input_node("x", (40, 16))
W = input_node("w", (3, 16))
Y = input_node("y", (16, 2))


def same(node: Node) -> Node:
    """The simplified node, after a check that it has kept its values."""
    graph = Graph((X, W, Y), (node,))
    rng = np.random.default_rng(0)
    values = {k: rng.standard_normal(v.shape) for k, v in (("x", X), ("w", W), ("y", Y))}
    found = simplify(graph)
    (expected,), (got,) = evaluate(graph, **values), evaluate(found, **values)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    return found.outputs[0]


def largest(node: Node, op: str) -> int:
    return max((n.size for n in Graph((), (node,)).nodes() if n.op == op), default=0)


@pytest.mark.parametrize("order", ["runs", "turns", "neither"])
def test_repeated_rows_of_a_literal_are_multiplied_once(order: str) -> None:
    some = np.arange(32.0).reshape(2, 16) ** 2
    rows = {
        "runs": np.repeat(some, 50, axis=0),
        "turns": np.tile(some, (50, 1)),
        "neither": np.tile(some, (50, 1)) + np.eye(100, 16),
    }[order]
    wide = make("matmul", Y, make("matmul", const(np.ones((2, 3))), W))  # (16, 16)
    product = same(make("matmul", const(rows), wide))
    assert largest(product, "matmul") == (rows.size if order == "neither" else wide.size)


def _three(x: Node, shape: tuple[int, ...]) -> Node:
    return make("expand", make("reshape", x, shape=shape), shape=(3, 40, 16))


@pytest.mark.parametrize("more", [False, True])
def test_scaled_rows_are_multiplied_unscaled(more: bool) -> None:
    scaled = make("mul", _three(X, (1, 40, 16)), _three(W, (3, 1, 16)))
    if more:
        scaled = make("mul", make("mul", scaled, const(2.0)), _three(X, (1, 40, 16)))
    rows = make("reshape", scaled, shape=(120, 16))
    product = same(make("matmul", rows, Y))
    assert largest(product, "mul") <= X.size  # not three of it


def test_a_sum_over_products_of_rows_is_a_product_of_matrices() -> None:
    product = make("mul", _three(X, (1, 40, 16)), _three(W, (3, 1, 16)))
    found = same(make("sum", make("mul", product, _three(X, (1, 40, 16))), dims=(2,)))
    assert "sum" not in ops(found)
    assert "matmul" in ops(found)
    # what belongs to one row of both cannot be taken apart
    own = make(
        "reshape", make("matmul", make("matmul", W, Y), const(np.ones((2, 640)))), shape=(3, 40, 16)
    )
    kept = same(make("sum", make("mul", product, own), dims=(2,)))
    assert "sum" in ops(kept)
