"""Simplifying rules for arithmetic: elementwise operations, reductions and matrix products."""

from __future__ import annotations

import numpy as np

from pysciml.kernels.graph import Node
from pysciml.kernels.rules import Maker, Rule, uniform
from pysciml.kernels.rules_products import repeated_rows, scaled_rows, summed_product
from pysciml.kernels.rules_shape import add_pieces


def _add(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x, y = args
    if uniform(y) == 0:
        return b.broadcast(x, node.shape, node.kind)
    if uniform(x) == 0:
        return b.broadcast(y, node.shape, node.kind)
    if y.op == "neg":
        return b.build("sub", x, y.args[0])
    if x.op == "neg":
        return b.build("sub", y, x.args[0])
    return add_pieces(b, x, y)


def _sub(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x, y = args
    if uniform(y) == 0:
        return b.broadcast(x, node.shape, node.kind)
    if uniform(x) == 0:
        return b.broadcast(b.build("neg", y), node.shape, node.kind)
    if x is y and b.strong_zeros:
        return b.full(0, node.shape, node.kind)
    if y.op == "neg":
        return b.build("add", x, y.args[0])
    if x.op == "neg" and not y.is_const:
        return b.build("neg", b.build("add", x.args[0], y))
    return None


def _mul(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x, y = args  # a literal comes second
    value = uniform(y)
    if value is not None and node.kind != "b":
        if value == 0 and b.strong_zeros:
            return b.full(0, node.shape, node.kind)
        if value == 1:
            return b.broadcast(x, node.shape, node.kind)
        if value == -1 and node.kind == "f":
            return b.broadcast(b.build("neg", x), node.shape, node.kind)
        if x.op == "neg":
            return b.build("mul", x.args[0], b.scalar(-value, y.kind), kind=node.kind)
    if uniform(x) == 0 and b.strong_zeros:
        return b.full(0, node.shape, node.kind)
    if y.op == "neg" and x.op == "neg":
        return b.build("mul", x.args[0], y.args[0])
    if y.op == "neg":
        return b.build("neg", b.build("mul", x, y.args[0]))
    if x.op == "neg":
        return b.build("neg", b.build("mul", x.args[0], y))
    return None


def _div(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x, y = args
    if node.kind != "f":
        return None
    value = uniform(y)
    if value == 1:
        return b.broadcast(x, node.shape, node.kind)
    if value == -1:
        return b.broadcast(b.build("neg", x), node.shape, node.kind)
    if value not in (None, 0) and np.frexp(value)[0] in (0.5, -0.5) and np.isfinite(1.0 / value):
        return b.build("mul", x, b.scalar(1.0 / value))  # a power of two: exact
    if uniform(x) == 0 and b.strong_zeros:
        return b.full(0, node.shape, node.kind)
    if uniform(x) == 1:
        return b.broadcast(b.build("reciprocal", y), node.shape, node.kind)
    if x.op == "neg" and y.op == "neg":
        return b.build("div", x.args[0], y.args[0])
    if x.op == "neg":
        return b.build("neg", b.build("div", x.args[0], y))
    if y.op == "neg":
        return b.build("neg", b.build("div", x, y.args[0]))
    return None


def _neg(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    (x,) = args
    if x.op == "neg":
        return x.args[0]
    if x.op == "sub" and x.args[0].shape == x.args[1].shape:
        return b.build("sub", x.args[1], x.args[0])
    if x.op == "mul" and (value := uniform(x.args[1])) is not None and x.kind == "f":
        return b.build("mul", x.args[0], b.scalar(-value, x.args[1].kind))
    return None


def _pow(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    """Small literal exponents as products and roots, as torch computes them."""
    x, y = args
    if node.kind != "f" or x.kind != "f":
        return None
    value = uniform(y)
    if value is None:
        return None
    if value == 0:
        return b.full(1, node.shape, node.kind)
    if value == 1:
        return b.broadcast(x, node.shape)
    out: Node | None = None
    if value == 0.5:
        out = b.build("sqrt", x)
    elif value == -0.5:
        out = b.build("rsqrt", x)
    elif value == -1:
        out = b.build("reciprocal", x)
    elif value in (2, 3, 4, -2):
        out = b.build("mul", x, x)
        if value == 3:
            out = b.build("mul", out, x)
        elif value == 4:
            out = b.build("mul", out, out)
        elif value == -2:
            out = b.build("reciprocal", out)
    return None if out is None else b.broadcast(out, node.shape)


def _where(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    condition, x, y = args
    value = uniform(condition)
    if value is not None:
        return b.broadcast(x if value else y, node.shape, node.kind)
    if x is y:
        return b.broadcast(x, node.shape, node.kind)
    if condition.op == "not":
        return b.build("where", condition.args[0], y, x)
    return None


def _idempotent(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    if args[0] is args[1]:
        return b.broadcast(args[0], node.shape, node.kind)
    return None


def _and(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x, y = args
    value = uniform(y)
    if value is None or x.kind != "b" or y.kind != "b":
        return None
    return b.broadcast(x, node.shape) if value else b.full(False, node.shape, "b")


def _or(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x, y = args
    value = uniform(y)
    if value is None or x.kind != "b" or y.kind != "b":
        return None
    return b.full(True, node.shape, "b") if value else b.broadcast(x, node.shape)


def _not(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x = args[0]
    return x.args[0] if x.op == "not" and x.args[0].kind == "b" else None


def _cast(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    return args[0] if args[0].kind == node.kind else None


def _integral(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    """Rounding an integer does nothing."""
    return args[0] if args[0].kind == "i" else None


def _reduce(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    (x,) = args
    dims = node.attr("dims")
    if x.kind == node.kind and all(x.shape[d] == 1 for d in dims):
        return b.build("reshape", x, shape=node.shape)
    return None


def _sum(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    (x,) = args
    dims = node.attr("dims")
    found = _reduce(b, node, args)
    if found is not None or x.kind != node.kind:
        return found
    if uniform(x) == 0:
        return b.full(0, node.shape, node.kind)
    if x.op == "neg":
        return b.build("neg", b.build("sum", x.args[0], dims=dims))
    if x.op == "expand" and node.kind == "f":
        source = x.args[0]
        times = int(np.prod([x.shape[d] for d in dims if source.shape[d] != x.shape[d]]))
        if times != 1:
            # Shrink the summed, repeated axes to length 1 and count them instead.
            shape = tuple(
                s if d in dims else n
                for d, (s, n) in enumerate(zip(source.shape, x.shape, strict=True))
            )
            inner = b.build("sum", b.build("expand", source, shape=shape), dims=dims)
            return b.build("mul", inner, b.scalar(float(times)))
    if x.op == "sum":
        inner_dims = x.attr("dims")
        kept = [d for d in range(x.args[0].ndim) if d not in inner_dims]
        both = sorted({*inner_dims, *(kept[d] for d in dims)})
        return b.build("sum", x.args[0], dims=tuple(both))
    return summed_product(b, node, x)


def _is_identity(x: Node) -> bool:
    return (
        x.is_const
        and x.ndim == 2
        and x.shape[0] == x.shape[1]
        and bool(np.array_equal(x.value, np.eye(x.shape[0])))
    )


def _matmul(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x, y = args
    if b.strong_zeros and (uniform(x) == 0 or uniform(y) == 0) or x.shape[-1] == 0:
        return b.full(0, node.shape, node.kind)
    if x.op == "neg":
        return b.build("neg", b.build("matmul", x.args[0], y))
    if y.op == "neg":
        return b.build("neg", b.build("matmul", x, y.args[0]))
    if node.ndim == 2:
        if _is_identity(x) and y.kind == "f":
            return y
        if _is_identity(y) and x.kind == "f":
            return x
        found = repeated_rows(b, node, x, y)
        return scaled_rows(b, node, x, y) if found is None else found
    batch, m, k = x.shape
    n = y.shape[2]
    if batch == 1:
        flat = b.build(
            "matmul",
            b.build("reshape", x, shape=(m, k)),
            b.build("reshape", y, shape=(k, n)),
        )
        return b.build("reshape", flat, shape=node.shape)
    # One operand repeated over the batch: a single product of matrices does.
    if y.op == "expand" and y.args[0].shape == (1, k, n):
        matrix = b.build("reshape", y.args[0], shape=(k, n))
        rows = b.build("reshape", x, shape=(batch * m, k))
        return b.build("reshape", b.build("matmul", rows, matrix), shape=node.shape)
    if x.op == "expand" and x.args[0].shape == (1, m, k):
        matrix = b.build("permute", b.build("reshape", x.args[0], shape=(m, k)), perm=(1, 0))
        columns = b.build("permute", y, perm=(0, 2, 1))
        rows = b.build("reshape", columns, shape=(batch * n, k))
        product = b.build("reshape", b.build("matmul", rows, matrix), shape=(batch, n, m))
        return b.build("permute", product, perm=(0, 2, 1))
    return None


def _along(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    """cumsum, cumprod, sort along an axis of length 1 do nothing."""
    x = args[0]
    return x if x.shape[node.attr("dim")] == 1 and x.kind == node.kind else None


def _order(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    """argmax, argmin, argsort along an axis of length 1 are zero."""
    return b.full(0, node.shape, "i") if args[0].shape[node.attr("dim")] == 1 else None


def _solve(b: Maker, node: Node, args: tuple[Node, ...]) -> Node | None:
    x, y = args
    if x.shape == (1, 1):
        return b.build("div", y, b.build("reshape", x, shape=()))
    return y if _is_identity(x) and y.kind == "f" else None


RULES: dict[str, Rule] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "pow": _pow,
    "where": _where,
    "maximum": _idempotent,
    "minimum": _idempotent,
    "and": _and,
    "or": _or,
    "not": _not,
    "cast": _cast,
    "floor": _integral,
    "ceil": _integral,
    "round": _integral,
    "trunc": _integral,
    "sum": _sum,
    "prod": _reduce,
    "amax": _reduce,
    "amin": _reduce,
    "any": _reduce,
    "all": _reduce,
    "matmul": _matmul,
    "cumsum": _along,
    "cumprod": _along,
    "sort": _along,
    "argmax": _order,
    "argmin": _order,
    "argsort": _order,
    "solve": _solve,
}
