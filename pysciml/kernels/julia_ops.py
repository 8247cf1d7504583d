"""How the graph's elementwise operations are spelt in Julia.

The functions with a trailing underscore, and the others that Base does not have, are those of
``PySciML.Runtime``: where Base throws outside a function's domain they give NaN, as torch does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pysciml.kernels.graph import Node

#: The parts of a workspace, by kind of value: buffers and constants.
BUFFERS = {"f": "w", "i": "wi", "b": "wb"}
CONSTANTS = {"f": "k", "i": "ki", "b": "kb"}

_CALLS = {
    "abs": "abs", "sign": "sign", "exp": "exp_", "expm1": "expm1_", "exp2": "exp2", "log": "log_",
    "log1p": "log1p_", "log2": "log2_", "log10": "log10_", "sqrt": "sqrt_", "sin": "sin_",
    "cos": "cos_", "tan": "tan_", "asin": "asin_", "acos": "acos_", "atan": "atan",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh_", "asinh": "asinh", "acosh": "acosh_",
    "atanh": "atanh_", "erf": "erf", "erfc": "erfc", "lgamma": "lgamma_", "digamma": "digamma",
    "sigmoid": "sigmoid", "softplus": "softplus", "floor": "floor", "ceil": "ceil",
    "round": "round", "trunc": "trunc", "maximum": "max", "minimum": "min", "atan2": "atan",
    "isnan": "isnan", "isinf": "isinf", "where": "ifelse", "xor": "xor", "pow": "pow_",
    "fmod": "fmod_", "remainder": "remainder_", "floordiv": "floordiv_",
}  # fmt: skip
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<",
    "le": "<=", "gt": ">", "ge": ">=", "and": "&", "or": "|",
}  # fmt: skip


def literal(value: object, kind: str, dtype: str) -> str:
    """A number as Julia source, in the kernel's real type where it is real."""
    if kind == "b":
        return "true" if value else "false"
    if kind == "i":
        return str(int(value))  # type: ignore[call-overload]
    real = float(value)  # type: ignore[arg-type]
    suffix = "32" if dtype == "float32" else ""
    if math.isnan(real):
        return f"NaN{suffix}"
    if math.isinf(real):
        return f"{'-' if real < 0 else ''}Inf{suffix}"
    if dtype == "float32":
        text = repr(float(np.float32(real)))
        mantissa, _, exponent = text.partition("e")
        text = f"{mantissa}f{int(exponent or 0)}"
    else:
        text = repr(real)
    return f"({text})" if text.startswith("-") else text


def real_type(dtype: str) -> str:
    return "Float32" if dtype == "float32" else "Float64"


def _power(x: str, exponent: Node, y: str) -> str:
    """``x^y``, by multiplication or a root where the exponent is a small constant."""
    if exponent.is_const and exponent.shape == () and exponent.kind == "f":
        value = float(exponent.value)
        if value == 0.5:
            return f"sqrt_({x})"
        if value == -0.5:
            return f"inv(sqrt_({x}))"
        if value.is_integer() and 0 < abs(value) <= 4:
            return f"{x}^{int(value)}" if value > 0 else f"inv({x}^{int(-value)})"
    return f"pow_({x}, {y})"


def expression(node: Node, args: Sequence[str], dtype: str) -> str:
    """One elementwise operation applied to the spelt arguments (names or literals)."""
    op = node.op
    if op in _INFIX:
        if op == "div" and node.kind == "i":
            return f"div({args[0]}, {args[1]})"
        return f"{args[0]} {_INFIX[op]} {args[1]}"
    if op == "pow" and node.kind == "f":
        return _power(args[0], node.args[1], args[1])
    if op in _CALLS:
        return f"{_CALLS[op]}({', '.join(args)})"
    if op == "neg":
        return f"-{args[0]}"
    if op == "not":
        return f"!{args[0]}"
    if op == "rsqrt":
        return f"inv(sqrt_({args[0]}))"
    if op == "reciprocal":
        return f"inv({args[0]})"
    if op == "cast":
        return _cast(node, args[0], dtype)
    raise NotImplementedError(f"{op} has no Julia spelling")


def _cast(node: Node, x: str, dtype: str) -> str:
    source, target = node.args[0].kind, node.attr("kind")
    if source == target:
        return x
    if target == "b":
        return f"{x} != 0"
    if target == "f":
        return f"{real_type(dtype)}({x})"
    return f"to_integer({x})"
