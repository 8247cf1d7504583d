"""What each operation computes, in NumPy: used to fold constants and by emitted code's helpers.

:func:`apply` takes the values of an operation's arguments and returns its value. Every function
here follows IEEE arithmetic; call it under ``np.errstate(all="ignore")``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from pysciml.kernels.graph import REDUCE, Shape

#: NumPy element type of each kind.
DTYPES: dict[str, type] = {"f": np.float64, "i": np.int64, "b": np.bool_}


def softplus(x: Any) -> Any:
    """log(1 + exp(x)), without overflow."""
    return np.logaddexp(0.0, x)


def rsqrt(x: Any) -> Any:
    """1 / sqrt(x)."""
    return 1.0 / np.sqrt(x)


def solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """X with a X = b; nan where ``a`` is singular or not finite."""
    try:
        return np.linalg.solve(a, b)
    except np.linalg.LinAlgError:
        return np.full(b.shape, np.nan)


def argsort(x: np.ndarray, dim: int, descending: bool) -> np.ndarray:
    """Stable order along ``dim``; nan counts as largest."""
    if not descending:
        return np.argsort(x, axis=dim, kind="stable")
    # A stable descending order is the reverse of the stable ascending order of the reverse.
    order = np.argsort(np.flip(x, dim), axis=dim, kind="stable")
    return np.flip(x.shape[dim] - 1 - order, dim)


def sort(x: np.ndarray, dim: int, descending: bool) -> np.ndarray:
    """Sorted values along ``dim``."""
    y = np.sort(x, axis=dim)
    return np.flip(y, dim) if descending else y


def pad_slices(lo: Shape, interior: Shape, shape: Shape) -> tuple[slice, ...]:
    """Where a padded array holds the values of an array of ``shape``."""
    return tuple(
        slice(a, a + (n - 1) * (g + 1) + 1 if n else a, g + 1)
        for a, g, n in zip(lo, interior, shape, strict=True)
    )


def scatter_add(idx: np.ndarray, vals: np.ndarray, size: int) -> np.ndarray:
    """zeros(size) with ``vals`` added at ``idx`` (repeated indices add up)."""
    out = np.zeros(size, dtype=vals.dtype)
    np.add.at(out, idx, vals)
    return out


def scatter_set(base: np.ndarray, idx: np.ndarray, vals: np.ndarray) -> np.ndarray:
    """``base`` with ``base[idx] = vals``."""
    out = base.copy()
    out[idx] = vals
    return out


#: Elementwise functions; all but the last few are ufuncs and so take ``out``.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "neg": np.negative,
    "abs": np.absolute,
    "rsqrt": rsqrt,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "lgamma": special.gammaln,
    "digamma": special.psi,
    "erf": special.erf,
    "erfc": special.erfc,
    "sigmoid": special.expit,
    "softplus": softplus,
    "round": np.rint,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "pow": np.power,
    "atan2": np.arctan2,
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
    "where": np.where,
}
FUNCTIONS.update(
    {
        op: getattr(np, op)
        for op in (
            "sign exp expm1 exp2 log log1p log2 log10 sqrt reciprocal sin cos tan sinh cosh tanh "
            "floor ceil trunc add maximum minimum fmod remainder isnan isinf"
        ).split()
    }
)
#: Reductions as ufuncs.
REDUCERS = {
    "sum": np.add,
    "prod": np.multiply,
    "amax": np.maximum,
    "amin": np.minimum,
    "any": np.logical_or,
    "all": np.logical_and,
}


def shape_op(
    op: str, args: Sequence[np.ndarray], attrs: dict[str, Any], shape: Shape
) -> np.ndarray:
    """An operation that only moves elements: the same for values and for element numbers."""
    x = args[0]
    if op == "reshape":
        return x.reshape(shape)
    if op == "permute":
        return x.transpose(attrs["perm"])
    if op == "expand":
        return np.broadcast_to(x, shape)
    if op == "flip":
        return np.flip(x, attrs["dims"])
    if op == "slice":
        spans = zip(attrs["starts"], attrs["stops"], attrs["steps"], strict=True)
        return x[tuple(slice(a, b, s) for a, b, s in spans)]
    if op == "cat":
        return np.concatenate(args, axis=attrs["dim"])
    if op == "pad":
        out = np.zeros(shape, dtype=x.dtype)
        out[pad_slices(attrs["lo"], attrs["interior"], x.shape)] = x
        return out
    raise ValueError(op)


#: Operations that :func:`shape_op` does.
SHAPE_OPS = frozenset("reshape permute expand flip slice cat pad".split())


def apply(
    op: str, args: Sequence[np.ndarray], attrs: dict[str, Any], shape: Shape, kind: str
) -> np.ndarray:
    """The value of one operation, of the stated shape and kind."""
    dtype = DTYPES[kind]
    if op in FUNCTIONS:
        with np.errstate(all="ignore"):
            value = FUNCTIONS[op](*args)
    elif op in SHAPE_OPS:
        value = shape_op(op, args, attrs, shape)
    elif op == "cast":
        with np.errstate(all="ignore"):
            value = np.asarray(args[0]).astype(dtype)
    elif op in REDUCE:
        with np.errstate(all="ignore"):
            value = REDUCERS[op].reduce(args[0], axis=attrs["dims"], dtype=dtype)
    elif op == "pack":
        value = np.array([np.asarray(a)[()] for a in args], dtype=dtype).reshape(shape)
    elif op == "elem":
        value = args[0].reshape(-1)[attrs["index"]]
    else:
        with np.errstate(all="ignore"):
            value = _OTHER[op](args, attrs)
    return np.asarray(value, dtype=dtype).reshape(shape)


_OTHER: dict[str, Callable[..., Any]] = {
    "matmul": lambda a, at: np.matmul(a[0], a[1]),
    "solve": lambda a, at: solve(a[0], a[1]),
    "argmax": lambda a, at: np.argmax(a[0], axis=at["dim"]),
    "argmin": lambda a, at: np.argmin(a[0], axis=at["dim"]),
    "cumsum": lambda a, at: np.cumsum(a[0], axis=at["dim"]),
    "cumprod": lambda a, at: np.cumprod(a[0], axis=at["dim"]),
    "sort": lambda a, at: sort(a[0], at["dim"], at["descending"]),
    "argsort": lambda a, at: argsort(a[0], at["dim"], at["descending"]),
    "take": lambda a, at: a[0][a[1]],
    "scatter_add": lambda a, at: scatter_add(a[0], a[1], at["size"]),
    "scatter_set": lambda a, at: scatter_set(a[0], a[1], a[2]),
    "searchsorted": lambda a, at: np.searchsorted(
        a[0], a[1], side="right" if at["right"] else "left"
    ),
}
