"""scalarise: random graphs keep their values; small values become scalars, large ones do not."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import evaluate
from random_graphs import assert_close, random_graph, random_inputs, tame

from pysciml.kernels import emit_numpy
from pysciml.kernels.graph import Graph, Node, const, input_node, make
from pysciml.kernels.scalarise import Costs, scalarise

U = input_node("u", (4,))
T = input_node("t", ())


def array_ops(graph: Graph) -> list[str]:
    quiet = ("input", "const", "pack", "reshape")
    return [n.op for n in graph.nodes() if n.shape != () and n.op not in quiet]


@pytest.mark.parametrize("limit", [0, 4, 12, 64])
@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_random_graphs_keep_their_values(limit: int, rng: random.Random, n: int) -> None:
    graph = random_graph(rng, n, outputs=2)
    values = random_inputs(rng)
    expected = evaluate(graph, **values)
    if not tame(expected):
        return
    for fixed in ((), ("p",)):
        found = scalarise(graph, limit, fixed=fixed)
        assert [o.shape for o in found.outputs] == [o.shape for o in graph.outputs]
        assert_close(evaluate(found, **values), expected)


def test_stacked_scalars_are_one_pack() -> None:
    x, y = (make("take", U, const(i)) for i in (0, 1))
    parts = [make("reshape", p, shape=(1,)) for p in (make("mul", x, y), make("sin", y))]
    found = scalarise(Graph((U,), (make("cat", *parts, dim=0),)))
    assert [n.op for n in found.nodes()] == ["input", "elem", "elem", "mul", "sin", "pack"]


def test_zeros_of_a_jacobian_vanish() -> None:
    """A product of one-hot rows with scalars, as forward mode makes it, is its nonzeros."""
    n = 20
    u = input_node("u", (n,))
    rows = []
    for i in range(n):
        x = make("take", u, const((i + 3) % n))
        left, right = const(np.eye(n)[i]), const(np.eye(n)[(i + 3) % n])
        y = make("take", u, const(i))
        tangent = make("add", make("mul", left, x), make("mul", right, y))
        rows.append(make("reshape", tangent, shape=(1, n)))
    found = scalarise(Graph((u,), (make("cat", *rows, dim=0),)))
    assert array_ops(found) == []
    assert not [m for m in found.nodes() if m.op in ("mul", "add")]
    values = np.arange(1.0, n + 1)
    expected = evaluate(Graph((u,), (make("cat", *rows, dim=0),)), u=values)
    assert_close(evaluate(found, u=values), expected)


def test_limit_of_elementwise() -> None:
    u = input_node("u", (8,))
    graph = Graph((u,), (make("add", make("mul", u, u), const(np.arange(8.0))),))
    assert array_ops(scalarise(graph, 4)) == ["mul", "add"]
    assert array_ops(scalarise(graph, 64)) == []


def test_limit_of_matmul() -> None:
    w = input_node("w", (8, 8))
    u = input_node("u", (8,))
    graph = Graph((u, w), (make("matmul", w, make("reshape", u, shape=(8, 1))),))
    assert "matmul" in array_ops(scalarise(graph, 64))
    assert array_ops(scalarise(graph, 64, fixed=["w", "u"])) == []
    assert array_ops(scalarise(graph, costs=Costs(limit=64, element=0.0))) == []


def test_neighbouring_elements_stay_a_view() -> None:
    u = input_node("u", (100,))
    part = make("slice", u, starts=(10,), stops=(60,), steps=(1,))
    found = scalarise(Graph((u,), (make("reshape", part, shape=(5, 10)),)))
    assert [n.op for n in found.nodes()] == ["input", "slice", "reshape"]


def test_large_graphs_are_quick() -> None:
    n = 1_000_000
    u = input_node("u", (n,))
    node: Node = u
    for _ in range(20):
        node = make("add", make("mul", node, const(np.full(n, 1.5))), T)
    start = time.perf_counter()
    found = scalarise(Graph((u, T), (node,)))
    assert time.perf_counter() - start < 5.0
    assert found.outputs[0].op == "add"


def test_medium_literals_are_quick() -> None:
    n = 60
    u = input_node("u", (n,))
    node: Node = const(np.eye(n))
    wide = make("expand", make("reshape", u, shape=(1, n)), shape=(n, n))
    for _ in range(20):
        node = make("mul", make("sin", node), wide)
    start = time.perf_counter()
    scalarise(Graph((u,), (node,)))
    assert time.perf_counter() - start < 5.0


_TABLE = np.random.default_rng(0).normal(size=2000)


def _few_live_in_a_table() -> Node:
    """Two scalars among 2000 literals."""
    x = make("mul", make("elem", U, index=1), make("elem", U, index=2))
    head = make("reshape", x, shape=(1,))
    tail = make("reshape", make("sin", x), shape=(1,))
    return make("cat", head, const(_TABLE), tail, dim=0)


def _elements_between_literals() -> Node:
    """Many elements of an array that stays one, spread out and in reverse."""
    wide = input_node("v", (300,))
    spread = make("pad", make("flip", wide, dims=(0,)), lo=(1,), hi=(2,), interior=(3,))
    return make("add", spread, make("mul", const(_TABLE[: spread.size]), const(0.0)))


def _moved_through_a_mask() -> Node:
    """A (50, 50) literal to which one scalar is added somewhere."""
    hole = np.zeros((50, 50))
    hole[3, 4] = 1.0
    part = make("mul", const(hole), make("elem", U, index=0))
    return make("matmul", make("add", part, const(_TABLE[:50, None] * _TABLE[None, :50])), make(
        "reshape", make("expand", make("reshape", T, shape=(1,)), shape=(50,)), shape=(50, 1)
    ))  # fmt: skip


@pytest.mark.parametrize(
    "build", [_few_live_in_a_table, _elements_between_literals, _moved_through_a_mask]
)
def test_large_literals_are_not_written_out(build) -> None:  # type: ignore[no-untyped-def]
    out = make("exp", make("mul", build(), const(0.01)))
    inputs = (U, T, input_node("v", (300,)))
    names = {n.attr("name"): n for n in Graph(inputs, (out,)).nodes() if n.op == "input"}
    graph = Graph(tuple(names.values()), (out,))
    rng = np.random.default_rng(1)
    values = {k: rng.normal(size=n.shape) for k, n in names.items()}
    found = scalarise(graph)
    assert max(len(n.args) for n in found.nodes()) <= 16
    np.testing.assert_allclose(
        evaluate(found, **values)[0], evaluate(graph, **values)[0], rtol=1e-14
    )
    kernel = emit_numpy.compile(graph)
    assert len(kernel.source()) < 4000
    result = np.empty(out.shape)
    kernel(*values.values(), result)
    np.testing.assert_allclose(result, evaluate(graph, **values)[0], rtol=1e-14)
