"""Simplifying rules for products of matrices whose rows repeat, or are scaled by another's.

The derivative of a layer over a batch by a few directions is full of them: a direction is the same
for every entry of the batch, so its product with the weights is a row that repeats, and what comes
after scales it by the batch's own values.
"""

from __future__ import annotations

import numpy as np

from pysciml.kernels.graph import Node
from pysciml.kernels.rules import Maker

#: Numbers in a product from which on it is worth taking apart.
_LARGE = 512
#: Factors of a product that are looked at.
_FACTORS = 8


def repeated_rows(b: Maker, node: Node, x: Node, y: Node) -> Node | None:
    """x @ y of a literal ``x`` whose rows repeat, in runs or in turns: each row once."""
    if not x.is_const or node.ndim != 2 or node.size < _LARGE or y.is_const:
        return None
    value = x.value
    rows = len(value)
    changes = np.nonzero((value[1:] != value[:-1]).any(axis=1))[0] + 1
    run = int(np.gcd.reduce(np.append(changes, rows)))
    if run > 1:
        some, between, whole = value[::run], (rows // run, 1), (rows // run, run)
    else:
        again = np.nonzero((value[1:] == value[0]).all(axis=1))[0]
        turn = int(again[0]) + 1 if len(again) else rows
        if (
            turn == rows
            or rows % turn
            or (value.reshape(-1, turn, value.shape[1]) != value[:turn]).any()
        ):
            return None
        some, between, whole = value[:turn], (1, turn), (rows // turn, turn)
    n = node.shape[1]
    product = b.build("matmul", b.literal(some), y)
    once = b.build("reshape", product, shape=(*between, n))
    return b.build("reshape", b.build("expand", once, shape=(*whole, n)), shape=node.shape)


def scaled_rows(b: Maker, node: Node, x: Node, y: Node) -> Node | None:
    """reshape(A * X) @ y, A (c, 1, k) and X (1, s, k) expanded: X @ (A * y), c times narrower."""
    if x.op != "reshape" or node.ndim != 2:
        return None
    inner = x.args[0]
    if inner.op != "mul" or inner.ndim != 3 or inner.shape[2] != x.shape[1] or x.size < _LARGE:
        return None
    apart = _apart(b, inner)
    if apart is None:
        return None
    a, rows = apart
    c, s, k = inner.shape
    n = y.shape[1]
    if c * n > s:
        return None
    shape = (c, k, n)
    left = b.build("expand", b.build("reshape", a, shape=(c, k, 1)), shape=shape)
    right = b.build("expand", b.build("reshape", y, shape=(1, k, n)), shape=shape)
    scaled = b.build("permute", b.build("mul", left, right), perm=(1, 0, 2))
    product = b.build("matmul", rows, b.build("reshape", scaled, shape=(k, c * n)))
    by_column = b.build("reshape", product, shape=(s, c, n))
    return b.build("reshape", b.build("permute", by_column, perm=(1, 0, 2)), shape=node.shape)


def summed_product(b: Maker, node: Node, x: Node) -> Node | None:
    """sum_k A[c, k] X[s, k], A and X expanded to (c, s, k): a product of matrices."""
    if x.op != "mul" or x.ndim != 3 or node.attr("dims") != (2,) or x.size < _LARGE:
        return None
    apart = _apart(b, x)
    if apart is None:
        return None
    a, rows = apart
    return b.build("matmul", a, b.build("permute", rows, perm=(1, 0)))


def _apart(b: Maker, x: Node) -> tuple[Node, Node] | None:
    """A product (c, s, k) of expanded factors as one of A (c, k) and X (s, k)."""
    c, s, k = x.shape
    if c == 1 or s == 1:
        return None
    factors, pending = [], [x]
    while pending:
        node = pending.pop()
        if node.op == "mul" and node.shape == x.shape:
            pending.extend(node.args)
        else:
            factors.append(node)
        if len(factors) + len(pending) > _FACTORS:
            return None
    left: Node | None = None
    right: Node | None = None
    for factor in factors:
        inner = factor.args[0] if factor.op == "expand" else factor
        if factor.shape == ():
            right = factor if right is None else b.build("mul", right, factor)
        elif factor.op == "expand" and inner.shape[1] == 1 and factor.shape == x.shape:
            part = _flat(b, inner, c, k)
            left = part if left is None else b.build("mul", left, part)
        elif factor.op == "expand" and inner.shape[0] == 1 and factor.shape == x.shape:
            part = _flat(b, inner, s, k)
            right = part if right is None else b.build("mul", right, part)
        else:
            return None
    if left is None or right is None or right.shape == ():
        return None
    return left, right


def _flat(b: Maker, x: Node, rows: int, k: int) -> Node:
    """``x`` (rows or 1, 1, k or 1) or (1, rows or 1, k or 1) as (rows, k)."""
    many = x.shape[0] * x.shape[1]
    return b.build("expand", b.build("reshape", x, shape=(many, x.shape[2])), shape=(rows, k))
