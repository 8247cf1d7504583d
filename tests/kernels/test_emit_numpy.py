"""The NumPy emitters against the plain interpreter, and what they promise beside values."""

from __future__ import annotations

import math
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import evaluate
from random_graphs import assert_close, random_graph, random_inputs, tame

from pysciml.kernels import emit_numpy, numpy_reuse
from pysciml.kernels.graph import COMPARE, LOGICAL, UNARY, Graph, Node, const, input_node, make
from pysciml.kernels.scalarise import Costs

U = input_node("u", (3,))
T = input_node("t", ())
BATCH = 3


def run(graph: Graph, *inputs: object, limit: float = 12.0) -> list[np.ndarray]:
    kernel = emit_numpy.compile(graph, costs=Costs(limit=limit))
    outs = [np.full(o.shape, np.nan) for o in graph.outputs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel(*inputs, *outs)
    return outs


@pytest.mark.parametrize("limit", [0, 12])
@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_scalar_mode(limit: float, rng: random.Random, n: int) -> None:
    graph = random_graph(rng, n, outputs=2)
    values = random_inputs(rng)
    expected = evaluate(graph, **values)
    if not tame(expected):
        return
    kernel = emit_numpy.compile(graph, costs=Costs(limit=limit))
    for fixed in ((), ("p",), ("u", "t"), ("u", "p", "t")):
        bound = kernel.bind(**{name: values[name] for name in fixed})
        rest = [values[name] for name in values if name not in fixed]
        for _ in range(2):  # what a call leaves in the kernel's memory must not show in the next
            outs = [np.full(o.shape[::-1], np.nan).T for o in graph.outputs]
            bound(*rest, *outs)
            assert_close(outs, expected)


@pytest.mark.parametrize("limit", [0, 4])
@pytest.mark.parametrize("batched", [("u", "t"), ("u",), ("p",), ("t",)])
@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_batched_mode(batched: tuple[str, ...], limit: float, rng: random.Random, n: int) -> None:
    graph = random_graph(rng, n, outputs=2)
    points = [random_inputs(rng) for _ in range(BATCH)]
    one = points[0]
    rows = [evaluate(graph, **{k: (q if k in batched else one)[k] for k in one}) for q in points]
    if not all(tame(row) for row in rows):
        return
    expected = [np.stack(column) for column in zip(*rows, strict=True)]
    values = {k: np.stack([q[k] for q in points]) if k in batched else one[k] for k in one}
    costs = Costs(limit=limit)
    kernel = emit_numpy.compile_batched(graph, batched, costs=costs)
    assert_close(kernel(*values.values()), expected)
    with pytest.MonkeyPatch.context() as patch:  # every value in a slot, entry by entry
        patch.setattr(numpy_reuse, "_SLOT", 1)
        patch.setattr(emit_numpy, "_PART", 1)
        for reduce in (False, True):
            parts = emit_numpy.compile_batched(graph, batched, reduce, costs=costs)
            assert_close(parts(*values.values()), [e.sum(0) if reduce else e for e in expected])
    reduced = emit_numpy.compile_batched(graph, batched, reduce=True, costs=costs)
    assert_close(reduced(*values.values()), [e.sum(0) for e in expected])
    fixed = [name for name in values if name not in batched]
    bound = reduced.bind(**{name: values[name] for name in fixed})
    assert_close(bound(*(values[name] for name in batched)), [e.sum(0) for e in expected])


SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.5,
    1e300,
    -1e300,
    800.0,
    -800.0,
    math.inf,
    -math.inf,
    math.nan,
]


@pytest.mark.parametrize("op", sorted(UNARY | {"isnan", "isinf"}))
@pytest.mark.parametrize("limit", [0, 12])
def test_ieee_results_of_functions(op: str, limit: float) -> None:
    """The interpreter's results everywhere, infinities and nans too, and no warning."""
    node = make("cast", make(op, U), kind="f") if op in LOGICAL else make(op, U)
    graph = Graph((U,), (node,))
    for x in SPECIAL:
        if op == "lgamma" and x == -math.inf:
            continue  # SciPy says -inf; math and torch say inf
        u = np.array([0.3, x, 0.7])
        (found,) = run(graph, u, limit=limit)
        np.testing.assert_allclose(found, evaluate(graph, u=u)[0], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(
    "op", ["add", "sub", "mul", "div", "pow", "maximum", "minimum", "atan2", *sorted(COMPARE)]
)
@pytest.mark.parametrize("limit", [0, 12])
def test_ieee_results_of_two(op: str, limit: float) -> None:
    node = make(op, U, T)
    graph = Graph((U, T), (make("cast", node, kind="f") if op in COMPARE else node,))
    for x in SPECIAL:
        for y in SPECIAL:
            u = np.array([0.3, x, -0.7])
            (found,) = run(graph, u, y, limit=limit)
            expected = evaluate(graph, u=u, t=y)[0]
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("op", ["fmod", "remainder", "floordiv"])
def test_ieee_results_of_modulo(op: str) -> None:
    graph = Graph((U, T), (make(op, U, T),))
    for x in (5.5, -5.5, 0.0, 7.0):
        for y in (2.0, -2.0, 0.0, 0.7):
            u = np.array([0.3, x, -0.7])
            (found,) = run(graph, u, y)
            np.testing.assert_allclose(found, evaluate(graph, u=u, t=y)[0], rtol=1e-12)


def test_negative_base_is_nan_not_complex() -> None:
    graph = Graph((T,), (make("pow", T, const(0.3)),))
    assert np.isnan(run(graph, -2.0)[0])


def test_fixed_values_follow_ieee() -> None:
    """What is computed at binding must not raise either."""
    p = input_node("p", (2,))
    a, b = (make("elem", p, index=i) for i in (0, 1))
    graph = Graph((T, p), (make("add", make("div", a, b), make("mul", T, make("log", b))),))
    out = np.empty(())
    emit_numpy.compile(graph).bind(p=np.array([1.0, 0.0]))(2.0, out)
    assert np.isnan(out)


def test_singular_solve_is_nan() -> None:
    a = input_node("a", (3, 3))
    graph = Graph((a,), (make("solve", a, const(np.ones((3, 1)))),))
    assert np.isnan(run(graph, np.ones((3, 3)))[0]).all()


def test_guarded_branch_runs_fast() -> None:
    """where(x > 0, log(x), 0) needs no careful rerun: the untaken branch is not evaluated."""
    x = make("elem", U, index=0)
    node = make("where", make("gt", x, const(0.0)), make("log", x), const(0.0))
    kernel = emit_numpy.compile(Graph((U,), (node,)))
    out = np.empty(())
    kernel(np.array([-1.0, 0.0, 0.0]), out)
    assert out == 0.0


def _mlp(rng: np.random.Generator) -> tuple[Graph, np.ndarray]:
    p = input_node("p", (6 * 3 + 6,))
    w = make("slice", p, starts=(0,), stops=(18,), steps=(1,))
    b = make("slice", p, starts=(18,), stops=(24,), steps=(1,))
    product = make("matmul", make("reshape", w, shape=(6, 3)), make("reshape", U, shape=(3, 1)))
    h = make("tanh", make("add", make("reshape", product, shape=(6,)), b))
    return Graph((U, p, T), (make("mul", h, T),)), rng.random(24)


def test_weights_are_views_of_the_fixed_vector() -> None:
    graph, p = _mlp(np.random.default_rng(0))
    source = emit_numpy.compile(graph).source("p")
    body = source[source.index("def fast") :]
    assert "reshape" not in body and "x_p" not in body and ".dot(" in body


def test_each_binding_has_its_own_memory() -> None:
    graph, p = _mlp(np.random.default_rng(0))
    kernel = emit_numpy.compile(graph)
    points = np.random.default_rng(1).random((40, 3))
    expected = [evaluate(graph, u=u, p=p, t=0.5)[0] for u in points]

    def work(u: np.ndarray) -> list[np.ndarray]:
        mine = kernel.copy()
        out = np.empty(6)
        results = []
        for _ in range(50):
            mine(u, p, 0.5, out)
            results.append(out.copy())
        return results

    with ThreadPoolExecutor(4) as pool:
        for results, value in zip(pool.map(work, points), expected, strict=True):
            assert_close(results, [value] * 50)


def test_outputs_of_any_strides() -> None:
    graph, p = _mlp(np.random.default_rng(0))
    wide = np.zeros((6, 3))
    emit_numpy.compile(graph)(np.ones(3), p, 0.5, wide[:, 1])
    assert_close([wide[:, 1]], evaluate(graph, u=np.ones(3), p=p, t=0.5))
    assert not wide[:, [0, 2]].any()


def test_unknown_names_are_refused() -> None:
    graph, _ = _mlp(np.random.default_rng(0))
    with pytest.raises(TypeError, match="no inputs"):
        emit_numpy.compile(graph).bind(q=np.ones(3))
    with pytest.raises(ValueError, match="batched"):
        emit_numpy.compile_batched(graph, {"q"})
    with pytest.raises(ValueError, match="batched"):
        emit_numpy.compile_batched(graph, ())


def test_weight_gradient_is_one_product() -> None:
    """sum_b outer(w_b, x_b) makes no (B, n_p) array."""
    w, x = input_node("w", (8,)), input_node("x", (9,))
    outer = make("matmul", make("reshape", w, shape=(8, 1)), make("reshape", x, shape=(1, 9)))
    spread = make(
        "mul",
        make("expand", make("reshape", w, shape=(8, 1)), shape=(8, 9)),
        make("expand", make("reshape", x, shape=(1, 9)), shape=(8, 9)),
    )
    for product in (outer, spread):
        flat = make("reshape", product, shape=(72,))
        graph = Graph((w, x), (make("cat", flat, w, dim=0),))
        kernel = emit_numpy.compile_batched(graph, {"w", "x"}, reduce=True)
        assert ".T @" in kernel.source() and "sum(0)" in kernel.source()
        rng = np.random.default_rng(0)
        ws, xs = rng.random((50, 8)), rng.random((50, 9))
        expected = np.concatenate([(ws.T @ xs).reshape(-1), ws.sum(0)])
        assert_close(kernel(ws, xs), [expected])


def test_batched_results_are_the_callers_own() -> None:
    graph = Graph(
        (U, T), (U, make("slice", U, starts=(0,), stops=(2,), steps=(1,)), const(np.ones(2)))
    )
    us, ts = np.random.default_rng(0).random((4, 3)), np.zeros(4)
    same, part, ones = emit_numpy.compile_batched(graph, {"u", "t"})(us, ts)
    for out in (same, part, ones):
        out[...] = -1.0
    assert (us > 0).all()


def test_batch_of_one_and_none() -> None:
    graph, p = _mlp(np.random.default_rng(0))
    kernel = emit_numpy.compile_batched(graph, {"u"})
    for n in (0, 1, 7):
        (out,) = kernel(np.ones((n, 3)), p, 0.5)
        assert out.shape == (n, 6)


@pytest.mark.parametrize("reduce", [False, True])
def test_parts_of_a_large_batch(reduce: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, p = _mlp(np.random.default_rng(0))
    us = np.random.default_rng(1).random((103, 3))
    (whole,) = emit_numpy.compile_batched(graph, {"u"}, reduce)(us, p, 0.5)
    calls = []
    factory = emit_numpy._factory
    monkeypatch.setattr(emit_numpy, "_PART", 200)
    monkeypatch.setattr(
        emit_numpy,
        "_factory",
        lambda *x: lambda *y: lambda *z: (calls.append(len(z[1])), factory(*x)(*y)(*z))[1],
    )
    (parts,) = emit_numpy.compile_batched(graph, {"u"}, reduce)(us, p, 0.5)
    assert calls == [33, 33, 33, 4]  # 6 numbers an entry
    assert_close([parts], [whole])


def test_values_are_written_over_what_nothing_reads_again() -> None:
    u = input_node("u", (8, 8))
    x = make("exp", u)  # anew: u is the caller's
    y = make("tanh", make("sin", x))  # sin has a slot of its own, as x is read below; tanh its
    z = make("add", make("matmul", x, y), x)
    kernel = emit_numpy.compile_batched(Graph((u,), (make("sum", z, dims=(0, 1)),)), {"u"})
    lines = kernel.source().splitlines()
    assert len({line.split("[")[0] for line in lines if "= W[" in line}) == 3
    assert sum("out=" in line for line in lines) == 5
    us = np.random.default_rng(0).random((3, 8, 8))
    x_, y_ = np.exp(us), np.tanh(np.sin(np.exp(us)))
    assert_close(kernel(us), [(x_ @ y_ + x_).sum((1, 2))])


def test_batched_keeps_quiet() -> None:
    node: Node = make("log", U)
    kernel = emit_numpy.compile_batched(Graph((U,), (node,)), {"u"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (out,) = kernel(np.zeros((2, 3)))
    assert (out == -np.inf).all()


def test_source_is_python() -> None:
    graph, _ = _mlp(np.random.default_rng(0))
    compile(emit_numpy.source(graph), "kernel", "exec")
