"""Complex values in a captured graph as pairs of real ones.

Kernels know real numbers only. A function may still pass through complex ones, as a spectral method
does with ``torch.fft``: here its graph is run once more, each complex value as its real and
imaginary part, and traced again. Discrete Fourier transforms become products with their matrices.
Derivatives are taken of the real graph, so only what functions do needs a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_leaves, tree_map

from pysciml.kernels.reasons import CaptureError
from pysciml.kernels.trace import trace

__all__ = ["ComplexError", "real_form"]

#: Longest transform along one axis: its matrix is written into the kernel.
_LONGEST = 512
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
#: Operations that act on both parts alike.
_LINEAR = frozenset(
    "view reshape _unsafe_view slice select cat stack permute transpose t unsqueeze squeeze expand "
    "flip roll index constant_pad_nd clone alias detach sum mean cumsum diagonal diag_embed split "
    "split_with_sizes unbind index_select gather slice_scatter select_scatter index_put repeat "
    "lift_fresh lift_fresh_copy neg where tril triu _reshape_alias view_copy copy".split()
)
_BILINEAR = frozenset("mm bmm mv dot outer ger matmul".split())

aten = torch.ops.aten


class ComplexError(CaptureError):
    """Complex values that cannot be written as real ones; ``node`` is where, if known."""

    node: FxNode | None = None


@dataclass(frozen=True)
class _Pair:
    re: Tensor
    im: Tensor


def real_form(module: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """The graph with complex values as pairs; itself where it has none.

    Raises:
        ComplexError: it uses a complex operation without a rule, or a complex tensor that
            requires grad.
    """
    values = (node.meta.get("val") for node in module.graph.nodes)
    if not any(isinstance(v, Tensor) and v.is_complex() for v in tree_leaves(list(values))):
        return module
    return trace(_InPairs(module).run, inputs)


class _InPairs(Interpreter):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False  # which would rewrite the error's message
        self._parts = {
            node.target: _parts_of(value)
            for node in module.graph.nodes
            if node.op == "get_attr"
            and isinstance(value := getattr(module, node.target), Tensor)
            and value.is_complex()
        }

    def run_node(self, n: FxNode) -> Any:
        try:
            return super().run_node(n)
        except ComplexError as error:
            error.node = n
            raise

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        found = self._parts.get(target)
        return super().get_attr(target, args, kwargs) if found is None else found

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        dtypes = [x for x in leaves if isinstance(x, torch.dtype) and x in _REAL]
        name = getattr(target, "_opname", getattr(target, "__name__", str(target)))
        if name == "getitem" or not (
            any(isinstance(x, (_Pair, complex)) for x in leaves)
            or dtypes
            or name in ("_fft_r2c", "view_as_complex", "complex", "polar")
        ):
            return super().call_function(target, args, kwargs)
        rule = _RULES.get(name)
        if rule is not None:
            return rule(*args, **kwargs)
        if name in _LINEAR:
            return _linear(target, args, kwargs)
        if name in _BILINEAR:
            return _bilinear(target, *map(_pair, args))
        raise ComplexError(
            f"the operation aten.{name} on complex tensors",
            "write it with real tensors, or accept the slower callbacks",
        )


def _parts_of(value: Tensor) -> _Pair:
    if value.requires_grad:
        raise ComplexError(
            f"the function closes over a complex tensor of shape {tuple(value.shape)} that "
            "requires grad",
            "close over its real and imaginary parts, and join them by torch.complex",
        )
    if value.is_conj():
        raise ComplexError(
            "the function closes over a conjugated view", "close over x.conj().resolve_conj()"
        )
    parts = torch.view_as_real(value)  # shares memory: later values are seen
    return _Pair(parts[..., 0], parts[..., 1])


def _pair(x: Any) -> _Pair:
    if isinstance(x, _Pair):
        return x
    if isinstance(x, Tensor):
        return _Pair(x, torch.zeros_like(x))
    return _Pair(x.real, x.imag)


def _linear(target: Any, args: Any, kwargs: Any) -> Any:
    if kwargs.get("value", 0) or (target is aten.constant_pad_nd.default and any(args[2:])):
        raise ComplexError("a complex tensor is padded with other than zero", "pad with zeros")

    def part(which: str) -> Any:
        def choose(x: Any) -> Any:
            if isinstance(x, _Pair) or isinstance(x, Tensor) and x.is_floating_point():
                return getattr(_pair(x), which)
            return _REAL.get(x, x) if isinstance(x, torch.dtype) else x

        return target(*tree_map(choose, args), **tree_map(choose, kwargs))

    re, im = part("re"), part("im")
    if isinstance(re, (list, tuple)):
        return [_Pair(a, b) for a, b in zip(re, im, strict=True)]
    return _Pair(re, im)


def _bilinear(op: Callable[..., Any], x: _Pair, y: _Pair) -> _Pair:
    return _Pair(op(x.re, y.re) - op(x.im, y.im), op(x.re, y.im) + op(x.im, y.re))


# ---- elementwise


def _add(x: Any, y: Any, *, alpha: Any = 1) -> _Pair:
    if alpha != 1:
        y = _mul(y, alpha)
    x, y = _pair(x), _pair(y)
    return _Pair(x.re + y.re, x.im + y.im)


def _sub(x: Any, y: Any, *, alpha: Any = 1) -> _Pair:
    return _add(x, _mul(y, -alpha))


def _mul(x: Any, y: Any) -> _Pair:
    for a, b in ((x, y), (y, x)):
        if isinstance(b, Tensor) or isinstance(b, (int, float)):
            a = _pair(a)
            return _Pair(a.re * b, a.im * b)
    return _bilinear(torch.mul, _pair(x), _pair(y))


def _div(x: Any, y: Any) -> _Pair:
    if isinstance(y, (Tensor, int, float)):
        x = _pair(x)
        return _Pair(x.re / y, x.im / y)
    return _mul(x, _reciprocal(_pair(y)))


def _reciprocal(x: _Pair) -> _Pair:
    size = x.re * x.re + x.im * x.im
    return _Pair(x.re / size, -x.im / size)


def _pow(x: _Pair, exponent: Any) -> _Pair:
    if not isinstance(exponent, (int, float)) or exponent != int(exponent) or abs(exponent) > 16:
        raise ComplexError(
            f"a complex tensor is raised to {exponent}", "use whole exponents up to 16"
        )
    out = _Pair(torch.ones_like(x.re), torch.zeros_like(x.re))
    for _ in range(abs(int(exponent))):
        out = _mul(out, x)
    return _reciprocal(out) if exponent < 0 else out


def _abs(x: _Pair) -> Tensor:
    size = x.re * x.re + x.im * x.im
    zero = size == 0.0  # whose derivative is zero, as torch has it
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, size)))


def _exp(x: _Pair) -> _Pair:
    return _polar(torch.exp(x.re), x.im)


def _polar(size: Tensor, angle: Tensor) -> _Pair:
    return _Pair(size * torch.cos(angle), size * torch.sin(angle))


def _to_copy(x: Any, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
    if dtype is not None and dtype not in _REAL:
        return x.re.to(dtype)
    x = _pair(x)
    real = x.re.dtype if dtype is None else _REAL[dtype]
    return _Pair(x.re.to(real), x.im.to(real))


def _full(size: Any, value: Any = 0.0, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
    real = None if dtype is None else _REAL[dtype]
    device = options.get("device")
    return _Pair(
        torch.full(size, complex(value).real, dtype=real, device=device),
        torch.full(size, complex(value).imag, dtype=real, device=device),
    )


# ---- transforms


def _matrix(n: int, m: int, like: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of 2 pi j k / n for j < n, k < m."""
    if n > _LONGEST:
        raise ComplexError(
            f"a Fourier transform of length {n}: kernels have them up to {_LONGEST}",
            "use shorter ones, or accept the slower callbacks",
        )
    angle = 2.0 * math.pi / n * (np.outer(np.arange(n), np.arange(m)) % n)
    return np.cos(angle), np.sin(angle)


def _product(x: Tensor, matrix: np.ndarray) -> Tensor:
    return x @ torch.tensor(matrix, dtype=x.dtype, device=x.device)


def _scale(sizes: Sequence[int], norm: int) -> float:
    total = math.prod(sizes)
    return {0: 1.0, 1: total**-0.5, 2: 1.0 / total}[norm]


def _one_axis(x: _Pair, dim: int, sign: float) -> _Pair:
    re, im = x.re.movedim(dim, -1), x.im.movedim(dim, -1)
    n = re.shape[-1]
    c, s = _matrix(n, n, re)
    whole = _product(torch.cat([re, im], -1), np.block([[c, sign * s], [-sign * s, c]]))
    return _Pair(whole[..., :n].movedim(-1, dim), whole[..., n:].movedim(-1, dim))


def _weighted(x: _Pair, by: float) -> _Pair:
    return x if by == 1.0 else _Pair(x.re * by, x.im * by)


def _fft_c2c(x: Any, dims: Sequence[int], norm: int, forward: bool) -> _Pair:
    x = _pair(x)
    for dim in dims:
        x = _one_axis(x, dim, -1.0 if forward else 1.0)
    return _weighted(x, _scale([x.re.shape[d] for d in dims], norm))


def _fft_r2c(x: Tensor, dims: Sequence[int], norm: int, onesided: bool) -> _Pair:
    *others, last = dims
    n = x.shape[last]
    m = n // 2 + 1 if onesided else n
    c, s = _matrix(n, m, x)
    whole = _product(x.movedim(last, -1), np.concatenate([c, -s], 1))
    out = _Pair(whole[..., :m].movedim(-1, last), whole[..., m:].movedim(-1, last))
    for dim in others:
        out = _one_axis(out, dim, -1.0)
    return _weighted(out, _scale([x.shape[d] for d in dims], norm))


def _fft_c2r(x: _Pair, dims: Sequence[int], norm: int, n: int) -> Tensor:
    *others, last = dims
    for dim in others:
        x = _one_axis(x, dim, 1.0)
    m = n // 2 + 1
    c, s = (v[:, :m].T * 2.0 for v in _matrix(n, n, x.re))
    # what has no mirror image counts once
    single = [0, m - 1] if n % 2 == 0 else [0]
    c[single] /= 2.0
    s[single] = 0.0
    parts = torch.cat([v.movedim(last, -1)[..., :m] for v in (x.re, x.im)], -1)
    out = _product(parts, np.concatenate([c, -s], 0)).movedim(-1, last)
    return out * _scale([*(x.re.shape[d] for d in others), n], norm)


_RULES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _sub,
    "rsub": lambda x, y, alpha=1: _sub(y, _mul(x, alpha)),
    "mul": _mul,
    "div": _div,
    "reciprocal": _reciprocal,
    "pow": _pow,
    "abs": _abs,
    "exp": _exp,
    "polar": _polar,
    "complex": _Pair,
    "angle": lambda x: torch.atan2(x.im, x.re),
    "_conj": lambda x: _Pair(x.re, -x.im),
    "_conj_physical": lambda x: _Pair(x.re, -x.im),
    "conj_physical": lambda x: _Pair(x.re, -x.im),
    "resolve_conj": lambda x: x,
    "resolve_neg": lambda x: x,
    "view_as_real": lambda x: torch.stack([x.re, x.im], -1),
    "view_as_complex": lambda x: _Pair(x[..., 0], x[..., 1]),
    "_to_copy": _to_copy,
    "full": _full,
    "scalar_tensor": lambda value, **options: _full((), value, **options),
    "zeros": _full,
    "zeros_like": lambda x, **_: _Pair(torch.zeros_like(x.re), torch.zeros_like(x.im)),
    "ones_like": lambda x, **_: _Pair(torch.ones_like(x.re), torch.zeros_like(x.im)),
    "_fft_c2c": _fft_c2c,
    "_fft_r2c": _fft_r2c,
    "_fft_c2r": _fft_c2r,
}
