"""A plain interpreter of the kernel graph in NumPy: one node at a time, nothing clever.

It is the oracle for the lowering (against torch) and for the emitters (against this), so it says
each operation in the most direct way and shares no code with the emitters.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from scipy import special

from pysciml.kernels.graph import Graph, Node

DTYPE = {"f": np.float64, "i": np.int64, "b": np.bool_}


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


FUNCTIONS: dict[str, Any] = {
    "neg": operator.neg,
    "abs": np.abs,
    "sign": np.sign,
    "exp": np.exp,
    "expm1": np.expm1,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "log10": np.log10,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "reciprocal": lambda x: 1.0 / x,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": special.erf,
    "erfc": special.erfc,
    "lgamma": special.gammaln,
    "digamma": special.digamma,
    "sigmoid": special.expit,
    "softplus": _softplus,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "trunc": np.trunc,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": lambda a, b: np.true_divide(a, b),
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "atan2": np.arctan2,
    "fmod": np.fmod,
    "remainder": np.remainder,
    "floordiv": np.floor_divide,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "where": np.where,
    "matmul": np.matmul,
    "solve": np.linalg.solve,
}
REDUCTIONS = {
    "sum": np.sum,
    "prod": np.prod,
    "amax": np.max,
    "amin": np.min,
    "any": np.any,
    "all": np.all,
}


def _pad(node: Node, x: np.ndarray) -> np.ndarray:
    out = np.zeros(node.shape, x.dtype)
    where = tuple(
        slice(lo, lo + (d - 1) * (gap + 1) + 1 if d else lo, gap + 1)
        for lo, gap, d in zip(node.attr("lo"), node.attr("interior"), x.shape, strict=True)
    )
    out[where] = x
    return out


def apply(node: Node, args: list[np.ndarray]) -> np.ndarray:
    """The value of one node from its arguments' values."""
    op = node.op
    if op == "const":
        return node.value
    if op in FUNCTIONS:
        return FUNCTIONS[op](*args)
    if op in REDUCTIONS:
        return REDUCTIONS[op](args[0], axis=tuple(node.attr("dims")))
    x = args[0]
    if op == "cast":
        return x.astype(DTYPE[node.attr("kind")])
    if op in ("argmax", "argmin"):
        return getattr(np, op)(x, axis=node.attr("dim"))
    if op in ("cumsum", "cumprod"):
        return getattr(np, op)(x, axis=node.attr("dim"))
    if op in ("sort", "argsort"):
        key = -x if node.attr("descending") else x
        order = np.argsort(key, axis=node.attr("dim"), kind="stable")
        return order if op == "argsort" else np.take_along_axis(x, order, node.attr("dim"))
    if op == "reshape":
        return x.reshape(node.shape)
    if op == "permute":
        return x.transpose(node.attr("perm"))
    if op == "expand":
        return np.broadcast_to(x, node.shape)
    if op == "flip":
        return np.flip(x, node.attr("dims"))
    if op == "slice":
        spans = zip(node.attr("starts"), node.attr("stops"), node.attr("steps"), strict=True)
        return x[tuple(slice(*s) for s in spans)]
    if op == "cat":
        return np.concatenate(args, axis=node.attr("dim"))
    if op == "pad":
        return _pad(node, x)
    if op == "take":
        assert args[1].size == 0 or (args[1].min() >= 0 and args[1].max() < x.size)
        return x[args[1]]
    if op == "scatter_add":
        out = np.zeros(node.shape, args[1].dtype)
        np.add.at(out, x, args[1])
        return out
    if op == "scatter_set":
        out = x.copy()
        out[args[1]] = args[2]
        return out
    if op == "searchsorted":
        side = "right" if node.attr("right") else "left"
        return np.asarray(np.searchsorted(x, args[1], side=side))
    if op == "pack":
        return np.array(args).reshape(node.shape)
    if op == "elem":
        return x.reshape(-1)[node.attr("index")]
    raise NotImplementedError(op)


def evaluate(graph: Graph, **inputs: Any) -> tuple[np.ndarray, ...]:
    """The graph's outputs at the named inputs (arrays or numbers).

    Every intermediate value is checked against the shape and kind that its node states.
    """
    values: dict[int, np.ndarray] = {}
    with np.errstate(all="ignore"):
        for node in graph.nodes():
            if node.op == "input":
                value = np.asarray(inputs[node.attr("name")], DTYPE[node.kind])
            else:
                value = np.asarray(apply(node, [values[id(a)] for a in node.args]))
            if value.shape != node.shape:
                raise AssertionError(f"{node!r}: the value has shape {value.shape}")
            if value.dtype != DTYPE[node.kind]:
                raise AssertionError(f"{node!r}: the value has dtype {value.dtype}")
            values[id(node)] = value
    return tuple(values[id(o)] for o in graph.outputs)
