"""How operations on scalars are written: the fast way, and the way that never raises.

Fast code computes with Python floats and ``math``. Where IEEE arithmetic has an infinity or a nan,
``math`` raises instead; the kernel then runs again in careful code, which calls NumPy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

from pysciml.kernels import fold

#: Fast text of each operation; arguments are named or parenthesised.
FAST: dict[str, str] = {
    "neg": "-{0}",
    "abs": "abs({0})",
    "sign": "(1.0 if {0} > 0.0 else -1.0 if {0} < 0.0 else {0})",
    "exp2": "pow(2.0, {0})",
    "rsqrt": "1.0 / sqrt({0})",
    "reciprocal": "1.0 / {0}",
    "sigmoid": "1.0 / (1.0 + exp(-{0}))",
    "softplus": "log1p(exp(-abs({0}))) + ({0} if {0} > 0.0 else 0.0)",
    "floor": "float(floor({0}))",
    "ceil": "float(ceil({0}))",
    "round": "float(round({0}))",
    "trunc": "float(trunc({0}))",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "maximum": "({0} if {0} > {1} or {0} != {0} else {1})",
    "minimum": "({0} if {0} < {1} or {0} != {0} else {1})",
    "remainder": "{0} % {1}",
    "floordiv": "{0} // {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "and": "(bool({0}) and bool({1}))",
    "or": "(bool({0}) or bool({1}))",
    "xor": "(bool({0}) != bool({1}))",
    "not": "(not {0})",
    "isnan": "({0} != {0})",
    "where": "({1} if {0} else {2})",
    "cast_f": "float({0})",
    "cast_i": "int({0})",
    "cast_b": "({0} != 0)",
}
FAST.update(
    {
        op: op + "({0})"
        for op in (
            "exp expm1 log log1p log2 log10 sqrt sin cos tan asin acos atan sinh cosh tanh "
            "asinh acosh atanh erf erfc lgamma digamma isinf"
        ).split()
    }
)
FAST.update({op: op + "({0}, {1})" for op in ("pow", "atan2", "fmod")})
#: Integers: what differs.
FAST_INTEGER = {
    "sign": "(({0} > 0) - ({0} < 0))",
    "pow": "{0} ** {1}",
    "fmod": "int(fmod({0}, {1}))",
    **{op: "{0}" for op in ("floor", "ceil", "round", "trunc")},
}


def _digamma(x: float) -> float:
    return float(special.psi(x))


def _cast_i(x: Any) -> Any:
    return np.asarray(x).astype(np.int64)[()]


#: Names that emitted code uses.
NAMESPACE: dict[str, Any] = {
    "inf": math.inf,
    "nan": math.nan,
    "digamma": _digamma,
    **{
        name: getattr(math, name)
        for name in (
            "exp expm1 log log1p log2 log10 sqrt sin cos tan asin acos atan sinh cosh tanh asinh "
            "acosh atanh erf erfc lgamma floor ceil trunc isinf pow atan2 fmod"
        ).split()
    },
    **{f"np_{op}": function for op, function in fold.FUNCTIONS.items()},
    "np_cast_f": np.float64,
    "np_cast_i": _cast_i,
    "np_cast_b": np.bool_,
}


def template(op: str, kind: str) -> str:
    """The fast text of an elementwise operation on scalars of this kind (of the arguments)."""
    if kind == "i" and op in FAST_INTEGER:
        return FAST_INTEGER[op]
    return FAST[op]


def careful(op: str, arity: int) -> str:
    """The careful text of an elementwise operation on scalars."""
    return f"np_{op}(" + ", ".join(f"{{{i}}}" for i in range(arity)) + ")"


def literal(value: Any) -> str:
    """A scalar literal; safe as an operand."""
    text = repr(value.item() if isinstance(value, np.generic | np.ndarray) else value)
    return f"({text})" if text.startswith("-") else text
