"""The Julia emitter's text and memory, without a Julia."""

from __future__ import annotations

import numpy as np
import pytest

from pysciml.kernels.emit_julia import emit
from pysciml.kernels.graph import Graph, const, input_node, make
from pysciml.kernels.strided import View, contiguous, merge_axes


def _inputs(n_u: int = 4, n_p: int = 6):
    return (
        input_node("u", (n_u,)),
        input_node("p", (n_p,)),
        input_node("t", ()),
        input_node("c", (0,)),
    )


def test_fused_elementwise_is_one_loop_without_buffers() -> None:
    u, p, t, c = _inputs(4, 4)
    out = make("add", make("mul", u, p), make("sin", t))
    source = emit(Graph((u, p, t, c), (out,)))
    assert source.text.count("@simd") == 1
    assert source.sizes == (0, 0, 0)
    assert source.inputs == ("u", "p", "t", "c")


def test_weights_are_read_in_place_and_products_are_unrolled() -> None:
    u, p, t, c = _inputs(2, 6)
    weight = make("reshape", p, shape=(3, 2))
    column = make("reshape", u, shape=(2, 1))
    out = make("reshape", make("matmul", weight, column), shape=(3,))
    source = emit(Graph((u, p, t, c), (out,)))
    assert "matvec!(out, 1, 1, 1, in_p, 1, 2, 1, in_u, 1, 1, 1, 3, 1, 2)" in source.text
    assert source.sizes == (0, 0, 0)


def test_products_of_few_terms_join_their_users_loop() -> None:
    u, p, t, c = _inputs(8, 32)
    weight = make("permute", make("reshape", p, shape=(16, 2)), perm=(1, 0))
    product = make("matmul", make("reshape", u, shape=(4, 2)), weight)
    out = make("reshape", make("tanh", product), shape=(64,))
    text = emit(Graph((u, p, t, c), (out,))).text
    assert "product!" not in text and "matmul!" not in text
    assert text.count("muladd") == 1
    assert text.count("@simd") == 2  # the weights are laid out by rows, once


def test_parts_of_a_cat_are_computed_in_their_place() -> None:
    u, p, t, c = _inputs(4, 4)
    out = make("cat", make("mul", u, p), make("neg", u), dim=0)
    source = emit(Graph((u, p, t, c), (out,)))
    assert "out[1 + i" in source.text and "out[5 + i" in source.text
    assert source.sizes == (0, 0, 0)


def test_float32_literals() -> None:
    u, p, t, c = _inputs(4, 4)
    out = make("mul", u, const(0.1))
    assert "0.10000000149011612f0" in emit(Graph((u, p, t, c), (out,)), "float32").text


@pytest.mark.parametrize(
    ("shape", "strides", "new"),
    [
        ((2, 3), (3, 1), (6,)),
        ((2, 3), (1, 2), (6,)),
        ((4, 3), (6, 2), (12,)),
        ((2, 3), (0, 1), (6,)),
    ],
)
def test_reshape_of_a_view_is_a_view_or_none(shape, strides, new) -> None:
    memory = np.arange(40)
    view = View("w", 1, shape, strides)
    found = view.reshape(new)
    as_array = np.lib.stride_tricks.as_strided(memory[1:], shape, [8 * s for s in strides])
    if found is None:
        return
    again = np.lib.stride_tricks.as_strided(memory[1:], new, [8 * s for s in found.strides])
    np.testing.assert_array_equal(again, as_array.reshape(new))


def test_axes_that_all_operands_walk_as_one_are_joined() -> None:
    dims, strides = merge_axes((2, 1, 3, 4), [contiguous((2, 1, 3, 4)), (0, 7, 4, 1)])
    assert dims == (2, 12)
    assert strides == [(12, 1), (0, 1)]
