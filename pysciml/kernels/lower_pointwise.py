"""Lowerings of elementwise operations."""

from __future__ import annotations

import math
from typing import Any

import torch

from pysciml.kernels.graph import Node, make
from pysciml.kernels.lowering import (
    LoweringError,
    as_node,
    cast,
    elementwise,
    expand,
    full,
    kind_of,
    lowers,
    promote,
    scalar,
)

_SAME = (
    "abs exp expm1 exp2 log log1p log2 log10 sqrt rsqrt reciprocal sin cos tan asin acos atan "
    "sinh cosh tanh asinh acosh atanh erf erfc lgamma digamma sigmoid"
).split()
_ROUNDING = "floor ceil round trunc".split()


def _unary(op: str, kind: str | None) -> None:
    @lowers(op)
    def rule(ctx: Any, x: Node) -> Node:
        if kind is None and x.kind != "f":
            return x
        return make(op, cast(x, "f"))


for _op in _SAME:
    if _op != "abs":
        _unary(_op, "f")
for _op in _ROUNDING:
    _unary(_op, None)


@lowers("abs", "neg", "sign", "sgn")
def _signed(ctx: Any, x: Node) -> Node:
    name = ctx.fx_node.target._schema.name.split("::")[1]
    return make("sign" if name == "sgn" else name, cast(x, promote(x.kind, "i")))


@lowers("positive", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "contiguous")
def _same(ctx: Any, x: Node, **_: Any) -> Node:
    return x


@lowers("relu")
def _relu(ctx: Any, x: Node) -> Node:
    return elementwise("maximum", x, scalar(0, x.kind))


@lowers("softplus")
def _softplus(ctx: Any, x: Node, beta: float = 1, threshold: float = 20) -> Node:
    # The primitive is exact for all arguments, so torch's threshold is not needed.
    if beta == 1:
        return make("softplus", x)
    return elementwise("div", make("softplus", elementwise("mul", x, float(beta))), float(beta))


@lowers("softplus_backward")
def _softplus_backward(
    ctx: Any, grad: Node, x: Node, beta: float = 1, threshold: float = 20
) -> Node:
    z = x if beta == 1 else elementwise("mul", x, float(beta))
    return elementwise("mul", grad, make("sigmoid", z))


@lowers("sigmoid_backward")
def _sigmoid_backward(ctx: Any, grad: Node, y: Node) -> Node:
    return elementwise("mul", grad, elementwise("mul", y, elementwise("sub", 1.0, y)))


@lowers("tanh_backward")
def _tanh_backward(ctx: Any, grad: Node, y: Node) -> Node:
    return elementwise("mul", grad, elementwise("sub", 1.0, elementwise("mul", y, y)))


@lowers("threshold_backward")
def _threshold_backward(ctx: Any, grad: Node, x: Node, threshold: float) -> Node:
    return elementwise("where", elementwise("gt", x, float(threshold)), grad, 0.0, kind="")


@lowers("threshold")
def _threshold(ctx: Any, x: Node, threshold: float, value: float) -> Node:
    return where(elementwise("gt", x, float(threshold)), x, float(value))


def where(condition: Any, a: Any, b: Any) -> Node:
    """``where`` with broadcasting and promotion of the two values."""
    a, b = as_node(a), as_node(b)
    kind = promote(a.kind, b.kind)
    mask = cast(as_node(condition), "b")
    return elementwise("where", mask, cast(a, kind), cast(b, kind), kind="")


@lowers("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(ctx: Any, condition: Node, a: Any, b: Any) -> Node:
    a, b = _numbers_like(a, b)
    return where(condition, a, b)


def _numbers_like(a: Any, b: Any) -> tuple[Node, Node]:
    """Two arguments as nodes; a Python number takes the other's kind where it fits."""
    x, y = as_node(a), as_node(b)
    if x.kind == "f" and not isinstance(b, Node):
        y = cast(y, "f")
    if y.kind == "f" and not isinstance(a, Node):
        x = cast(x, "f")
    return x, y


@lowers("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(ctx: Any, x: Node, mask: Node, value: Any) -> Node:
    return where(mask, cast(as_node(value), x.kind), x)


def _scaled(x: Any, alpha: Any) -> Any:
    return x if alpha == 1 else elementwise("mul", x, alpha)


def _arith(op: str, a: Any, b: Any) -> Node:
    a, b = as_node(a), as_node(b)
    kind = promote(a.kind, b.kind)
    if kind == "b":
        op = {"add": "or", "mul": "and", "maximum": "or", "minimum": "and"}.get(op, op)
    return elementwise(op, a, b)


@lowers("add.Tensor", "add.Scalar")
def _add(ctx: Any, a: Any, b: Any, alpha: Any = 1) -> Node:
    return _arith("add", a, _scaled(b, alpha))


@lowers("sub.Tensor", "sub.Scalar")
def _sub(ctx: Any, a: Any, b: Any, alpha: Any = 1) -> Node:
    return _arith("sub", a, _scaled(b, alpha))


@lowers("rsub.Tensor", "rsub.Scalar")
def _rsub(ctx: Any, a: Any, b: Any, alpha: Any = 1) -> Node:
    return _arith("sub", b, _scaled(a, alpha))


@lowers("mul.Tensor", "mul.Scalar")
def _mul(ctx: Any, a: Any, b: Any) -> Node:
    return _arith("mul", a, b)


@lowers("div.Tensor", "div.Scalar", "true_divide.Tensor")
def _div(ctx: Any, a: Any, b: Any) -> Node:
    return elementwise("div", a, b, kind="f")


@lowers("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(ctx: Any, a: Any, b: Any, rounding_mode: str | None = None) -> Node:
    if rounding_mode is None:
        return elementwise("div", a, b, kind="f")
    if rounding_mode == "floor":
        return elementwise("floordiv", a, b)
    kind = promote(as_node(a).kind, as_node(b).kind)
    return cast(make("trunc", elementwise("div", a, b, kind="f")), kind)


@lowers("floor_divide", "floor_divide.Scalar")
def _floor_divide(ctx: Any, a: Any, b: Any) -> Node:
    return elementwise("floordiv", a, b)


@lowers("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def _remainder(ctx: Any, a: Any, b: Any) -> Node:
    return elementwise("remainder", a, b)


@lowers("fmod.Tensor", "fmod.Scalar")
def _fmod(ctx: Any, a: Any, b: Any) -> Node:
    return elementwise("fmod", a, b)


@lowers("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar")
def _pow(ctx: Any, a: Any, b: Any) -> Node:
    if not isinstance(b, Node) and as_node(a).kind == "f":
        x = as_node(a)
        if b == 0:
            return full(x.shape, 1.0)
        if b == 1:
            return x
        if b == 2:
            return make("mul", x, x)
        if b == 3:
            return make("mul", x, make("mul", x, x))
        if b == -1:
            return make("reciprocal", x)
        if b == 0.5:
            return make("sqrt", x)
        if b == -0.5:
            return make("rsqrt", x)
    return elementwise("pow", a, b)


@lowers("maximum")
def _maximum(ctx: Any, a: Any, b: Any) -> Node:
    return _arith("maximum", a, b)


@lowers("minimum")
def _minimum(ctx: Any, a: Any, b: Any) -> Node:
    return _arith("minimum", a, b)


@lowers("fmax")
def _fmax(ctx: Any, a: Node, b: Node) -> Node:
    return where(make("isnan", a), b, where(make("isnan", b), a, elementwise("maximum", a, b)))


@lowers("fmin")
def _fmin(ctx: Any, a: Node, b: Node) -> Node:
    return where(make("isnan", a), b, where(make("isnan", b), a, elementwise("minimum", a, b)))


@lowers("atan2")
def _atan2(ctx: Any, a: Any, b: Any) -> Node:
    return elementwise("atan2", a, b, kind="f")


@lowers("copysign.Tensor", "copysign.Scalar")
def _copysign(ctx: Any, a: Any, b: Any) -> Node:
    b = cast(as_node(b), "f")
    # 1/b tells the two zeros apart
    zero = scalar(0, "f")
    negative = make("or", make("lt", b, zero), make("lt", make("reciprocal", b), zero))
    size = make("abs", cast(as_node(a), "f"))
    return where(negative, make("neg", size), size)


@lowers("logaddexp")
def _logaddexp(ctx: Any, a: Node, b: Node) -> Node:
    gap = make("neg", make("abs", elementwise("sub", a, b)))
    apart = elementwise("add", elementwise("maximum", a, b), make("softplus", gap))
    equal = elementwise("add", a, math.log(2.0))  # infinities too, whose gap is nan
    return where(elementwise("eq", a, b), equal, apart)


@lowers("hypot")
def _hypot(ctx: Any, a: Node, b: Node) -> Node:
    x, y = make("abs", a), make("abs", b)
    large, small = elementwise("maximum", x, y), elementwise("minimum", x, y)
    zero = elementwise("eq", large, 0.0)
    ratio = elementwise("div", small, where(zero, 1.0, large))
    return elementwise(
        "mul", large, make("sqrt", elementwise("add", elementwise("mul", ratio, ratio), 1.0))
    )


@lowers("xlogy.Tensor", "xlogy.Scalar_Other", "xlogy.Scalar_Self")
def _xlogy(ctx: Any, a: Any, b: Any) -> Node:
    a = cast(as_node(a), "f")
    product = elementwise("mul", a, make("log", cast(as_node(b), "f")))
    return where(elementwise("eq", a, 0.0), 0.0, product)


def _compare(op: str) -> None:
    @lowers(f"{op}.Tensor", f"{op}.Scalar")
    def rule(ctx: Any, a: Any, b: Any) -> Node:
        return elementwise(op, a, b)


for _op in ("eq", "ne", "lt", "le", "gt", "ge"):
    _compare(_op)


def _logical(op: str) -> None:
    @lowers(f"logical_{op}")
    def rule(ctx: Any, a: Node, b: Node) -> Node:
        return elementwise(op, a, b, kind="b")

    @lowers(f"bitwise_{op}.Tensor", f"bitwise_{op}.Scalar")
    def bitwise(ctx: Any, a: Node, b: Any) -> Node:
        if a.kind != "b":
            raise LoweringError("bit operations on integers are not supported")
        return elementwise(op, a, b, kind="b")


for _op in ("and", "or", "xor"):
    _logical(_op)


@lowers("logical_not", "bitwise_not")
def _not(ctx: Any, x: Node) -> Node:
    if x.kind == "i" and ctx.fx_node.target is torch.ops.aten.bitwise_not.default:
        raise LoweringError("bit operations on integers are not supported")
    return make("not", cast(x, "b"))


@lowers("isnan")
def _isnan(ctx: Any, x: Node) -> Node:
    return make("isnan", cast(x, "f"))


@lowers("isinf")
def _isinf(ctx: Any, x: Node) -> Node:
    return make("isinf", cast(x, "f"))


@lowers("isfinite")
def _isfinite(ctx: Any, x: Node) -> Node:
    x = cast(x, "f")
    return make("not", make("or", make("isnan", x), make("isinf", x)))


@lowers("signbit")
def _signbit(ctx: Any, x: Node) -> Node:
    negative = make("lt", x, scalar(0, x.kind))
    if x.kind != "f":
        return negative
    return make("or", negative, make("lt", make("reciprocal", x), scalar(0, "f")))


@lowers("clamp", "clamp.Tensor")
def _clamp(ctx: Any, x: Node, min: Any = None, max: Any = None) -> Node:
    if min is not None:
        x = elementwise("maximum", x, _bound(x, min))
    if max is not None:
        x = elementwise("minimum", x, _bound(x, max))
    return x


def _bound(x: Node, value: Any) -> Any:
    return value if isinstance(value, Node) or x.kind != "f" else float(value)


@lowers("clamp_min", "clamp_min.Tensor")
def _clamp_min(ctx: Any, x: Node, value: Any) -> Node:
    return elementwise("maximum", x, _bound(x, value))


@lowers("clamp_max", "clamp_max.Tensor")
def _clamp_max(ctx: Any, x: Node, value: Any) -> Node:
    return elementwise("minimum", x, _bound(x, value))


@lowers("addcmul")
def _addcmul(ctx: Any, x: Node, a: Node, b: Node, value: float = 1) -> Node:
    return elementwise("add", x, _scaled(elementwise("mul", a, b), value))


@lowers("addcdiv")
def _addcdiv(ctx: Any, x: Node, a: Node, b: Node, value: float = 1) -> Node:
    return elementwise("add", x, _scaled(elementwise("div", a, b), value))


@lowers("lerp.Scalar", "lerp.Tensor")
def _lerp(ctx: Any, a: Node, b: Node, weight: Any) -> Node:
    return elementwise("add", a, elementwise("mul", weight, elementwise("sub", b, a)))


@lowers("nan_to_num")
def _nan_to_num(
    ctx: Any,
    x: Node,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Node:
    limits = torch.finfo(ctx.meta.dtype)
    x = where(make("isnan", x), float(nan or 0.0), x)
    high = float(limits.max if posinf is None else posinf)
    low = float(limits.min if neginf is None else neginf)
    x = where(elementwise("eq", x, math.inf), high, x)
    return where(elementwise("eq", x, -math.inf), low, x)


@lowers("_to_copy")
def _to_copy(ctx: Any, x: Node, dtype: torch.dtype | None = None, **_: Any) -> Node:
    return x if dtype is None else cast(x, kind_of(dtype))


@lowers("prims.convert_element_type.default")
def _convert(ctx: Any, x: Node, dtype: torch.dtype) -> Node:
    return cast(x, kind_of(dtype))


@lowers("fill.Scalar", "fill.Tensor")
def _fill(ctx: Any, x: Node, value: Any) -> Node:
    return expand(cast(as_node(value), x.kind), x.shape)


@lowers("copy")
def _copy(ctx: Any, x: Node, source: Node, non_blocking: bool = False) -> Node:
    return expand(cast(source, x.kind), x.shape)


@lowers("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional")
def _batch_statistics(ctx: Any, *_: Any, **__: Any) -> Node:
    raise LoweringError("batch normalisation in training mode; call eval() on the module")
