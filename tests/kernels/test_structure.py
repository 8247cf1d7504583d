"""Sparsity patterns against difference quotients, and what analyse makes of known patterns."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import evaluate
from random_graphs import random_graph, random_inputs, tame

from pysciml.kernels import structure
from pysciml.kernels.capture import capture
from pysciml.kernels.graph import Graph, Node, const, input_node, make
from pysciml.kernels.kernels import Kernels
from pysciml.kernels.scalarise import scalarise
from pysciml.kernels.structure import analyse, color_columns, dependencies

U = input_node("u", (6,))


def sparsity(graph: Graph, wrt: str) -> np.ndarray:
    """The pattern as an array, full where it is too large to follow."""
    found = dependencies(graph, wrt)
    if found is None:
        return np.ones((graph.outputs[0].size, graph.input(wrt).size), dtype=bool)
    return found.toarray().astype(bool)


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_no_dependency_is_missed(rng: random.Random, n: int) -> None:
    graph = random_graph(rng, n)
    values = random_inputs(rng)
    (base,) = evaluate(graph, **values)
    if not tame((base,)):
        return
    patterns = [sparsity(graph, "u"), sparsity(scalarise(graph, 64), "u")]
    for j in range(4):
        moved = {**values, "u": values["u"].copy()}
        moved["u"][j] += 1e-5
        (there,) = evaluate(graph, **moved)
        if not tame((there,)):
            return
        # A jump is not a derivative: piecewise constant operations do not count.
        change = np.abs(there - base).reshape(-1)
        depends = (change > 1e-10) & (change < 1e-3)
        for pattern in patterns:
            assert pattern.shape == (base.size, 4)
            assert not (depends & ~pattern[:, j]).any()


def _slice(x: Node, start: int, stop: int) -> Node:
    return make("slice", x, starts=(start,), stops=(stop,), steps=(1,))


def _diffusion(n: int) -> Graph:
    """A chain: u[i+1] - 2 u[i] + u[i-1], zero beyond the ends."""
    u = input_node("u", (n,))
    left = make("pad", _slice(u, 0, n - 1), lo=(1,), hi=(0,), interior=(0,))
    right = make("pad", _slice(u, 1, n), lo=(0,), hi=(1,), interior=(0,))
    return Graph((u,), (make("add", make("sub", left, make("mul", u, const(2.0))), right),))


def test_diffusion_is_banded() -> None:
    pattern = sparsity(_diffusion(30), "u")
    band = np.abs(np.subtract.outer(np.arange(30), np.arange(30))) <= 1
    np.testing.assert_array_equal(pattern, band)
    found = analyse(pattern)
    assert (found.kind, found.lband, found.uband, found.ncolors) == ("banded", 1, 1, 3)
    assert found.nnz == 88 and len(found.blocks) == 1


def test_large_patterns_are_followed() -> None:
    pattern = sparsity(_diffusion(3000), "u")
    assert pattern.sum() == 3 * 3000 - 2


def test_beyond_the_limit_everything_depends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "LIMIT", 50)
    assert sparsity(_diffusion(30), "u").all()


def test_literal_zeros_cut_dependencies() -> None:
    mask = const(np.array([1.0, 0, 1, 0, 0, 1]))
    np.testing.assert_array_equal(
        sparsity(Graph((U,), (make("mul", U, mask),)), "u"), np.diag(mask.value != 0)
    )
    matrix = np.triu(np.ones((6, 6)))
    node = make("matmul", const(matrix), make("reshape", U, shape=(6, 1)))
    np.testing.assert_array_equal(sparsity(Graph((U,), (node,)), "u"), matrix != 0)
    chosen = make("where", const(mask.value > 0), U, make("flip", U, dims=(0,)))
    pattern = sparsity(Graph((U,), (chosen,)), "u")
    assert pattern.sum() == 6 and pattern[0, 0] and pattern[1, 4]


def test_indexing_is_exact() -> None:
    idx = const(np.array([3, 3, 0]))
    took = sparsity(Graph((U,), (make("take", U, idx),)), "u")
    assert [np.flatnonzero(r).tolist() for r in took] == [[3], [3], [0]]
    added = make("scatter_add", const(np.array([1, 1, 0])), _slice(U, 0, 3), size=4)
    pattern = sparsity(Graph((U,), (added,)), "u")
    assert [np.flatnonzero(r).tolist() for r in pattern] == [[2], [0, 1], [], []]


def test_steps_depend_on_nothing() -> None:
    node = make("add", make("floor", U), make("cast", make("gt", U, const(0.0)), kind="f"))
    assert not sparsity(Graph((U,), (node,)), "u").any()


def test_other_inputs_do_not_count() -> None:
    p = input_node("p", (2,))
    graph = Graph((U, p), (make("mul", U, make("elem", p, index=1)),))
    assert sparsity(graph, "p").tolist() == [[False, True]] * 6
    assert sparsity(graph, "u").sum() == 6


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        (np.eye(5), "diagonal"),
        (np.zeros((4, 4)), "diagonal"),
        (np.kron(np.eye(4), np.ones((2, 2))), "blocks"),
        (np.kron(np.ones((2, 2)), np.eye(6)), "blocks"),
        (np.ones((6, 6)), "dense"),
        (np.ones((1, 1)), "diagonal"),
    ],
)
def test_kinds(pattern: np.ndarray, kind: str) -> None:
    assert analyse(pattern).kind == kind


def test_blocks_are_components() -> None:
    found = analyse(np.kron(np.ones((2, 2)), np.eye(3)))
    assert [b.tolist() for b in found.blocks] == [[0, 3], [1, 4], [2, 5]]
    assert (found.lband, found.uband) == (3, 3)


def test_sparse_kind() -> None:
    rng = np.random.default_rng(0)
    pattern = (rng.random((100, 100)) < 0.03) | np.eye(100, dtype=bool)
    found = analyse(pattern)
    assert found.kind == "sparse" and found.ncolors < 30
    assert found.seed().shape == (100, found.ncolors) and (found.seed().sum(axis=1) == 1).all()


def test_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match="not square"):
        analyse(np.ones((3, 4)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 15), st.integers(1, 15), st.floats(0, 1))
def test_coloured_columns_share_no_row(seed: int, m: int, n: int, density: float) -> None:
    pattern = np.random.default_rng(seed).random((m, n)) < density
    colors = color_columns(pattern)
    assert colors.shape == (n,) and (colors >= 0).all()
    for c in range(colors.max() + 1):
        assert pattern[:, colors == c].sum(axis=1).max() <= 1


@pytest.mark.parametrize(
    ("f", "pieces"),
    [
        (lambda u, t: u * torch.tanh(3 * t), False),
        (lambda u, t: torch.nn.functional.softplus(u * t), False),
        (lambda u, t: torch.where(u > 0, u, 2 * u) * torch.sin(t), False),  # of u, not of t
        (lambda u, t: torch.where(t > 0.5, u, 2 * u), True),
        (lambda u, t: u * (t - 0.5).abs(), True),
        (lambda u, t: u * torch.relu(t - 0.5), True),
        (lambda u, t: u * torch.floor(t), True),
        (lambda u, t: u * torch.remainder(t, 0.5), True),
        (
            lambda u, t: u * torch.arange(4.0)[torch.searchsorted(torch.arange(3.0), t[None])],
            True,
        ),
    ],
)
def test_functions_of_pieces(f, pieces):
    u, p, t = torch.ones(2), torch.zeros(0), torch.tensor(0.3)
    found = capture(lambda u, p, t: f(u, t), {"u": u, "p": p, "t": t})
    assert Kernels(found).piecewise("t") == pieces
    assert Kernels(found).driven == (not pieces)


def test_what_does_not_read_the_time_is_not_driven():
    u, p, t = torch.ones(2), torch.ones(1), torch.tensor(0.3)
    found = capture(lambda u, p, t: p * torch.tanh(u), {"u": u, "p": p, "t": t})
    assert not Kernels(found).driven
