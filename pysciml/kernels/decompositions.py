"""Decompositions used while tracing: compound ATen operations written with simpler ones.

They are applied before differentiation, so that the derivative of a convolution or a
normalisation consists of primitive operations too. Each is written so that its derivative stays
finite where the function is: no overflowing branch of a ``where`` reaches autodiff.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import core_aten_decompositions

from pysciml.kernels.lowering import RULES

aten = torch.ops.aten
_OWN: dict[Any, Callable[..., Any]] = {}


def _decomposes(*ops: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            _OWN[op] = fn
        return fn

    return register


@functools.cache
def table() -> dict[Any, Callable[..., Any]]:
    """The decompositions for ``make_fx``: torch's core table less what is lowered as it stands."""
    chosen = {}
    for op, fn in core_aten_decompositions().items():
        name = str(op)
        if not (name.startswith("aten.") and name[5:] in RULES):
            chosen[op] = fn
    return {**chosen, **_OWN}


# ---- activations


@_decomposes(aten.silu.default)
def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@_decomposes(aten.mish.default)
def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


@_decomposes(aten.gelu.default)
def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + torch.tanh(inner))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


@_decomposes(aten.elu.default)
def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    # the clamp keeps expm1 from overflowing in the branch that is not taken
    low = alpha * scale * torch.expm1(torch.clamp(x, max=0) * input_scale)
    return torch.where(x > 0, x * scale, low)


@_decomposes(aten.leaky_relu.default)
def _leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, x, x * slope)


@_decomposes(aten._prelu_kernel.default)
def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * weight)


@_decomposes(aten.hardtanh.default)
def _hardtanh(x: Tensor, low: float = -1, high: float = 1) -> Tensor:
    inner = torch.where(x > low, x, torch.full_like(x, low))
    return torch.where(x < high, inner, torch.full_like(x, high))


@_decomposes(aten.hardsigmoid.default)
def _hardsigmoid(x: Tensor) -> Tensor:
    return _hardtanh(x / 6 + 0.5, 0.0, 1.0)


@_decomposes(aten.hardswish.default)
def _hardswish(x: Tensor) -> Tensor:
    middle = x * (x + 3) / 6
    return torch.where(x >= 3, x, torch.where(x <= -3, torch.zeros_like(x), middle))


@_decomposes(aten.hardshrink.default)
def _hardshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    return torch.where((x <= lambd) & (x >= -lambd), torch.zeros_like(x), x)


@_decomposes(aten.softshrink.default)
def _softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    low = torch.where(x < -lambd, x + lambd, torch.zeros_like(x))
    return torch.where(x > lambd, x - lambd, low)


@_decomposes(aten.log_sigmoid_forward.default)
def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    return -F.softplus(-x), torch.zeros_like(x)


@_decomposes(aten.glu.default)
def _glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


@_decomposes(aten._softmax.default)
def _softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    if x.ndim == 0:
        return torch.ones_like(x)
    e = torch.exp(x - torch.amax(x, dim, keepdim=True).detach())
    return e / e.sum(dim, keepdim=True)


@_decomposes(aten._log_softmax.default)
def _log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    if x.ndim == 0:
        return torch.zeros_like(x)
    shifted = x - torch.amax(x, dim, keepdim=True).detach()
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


@_decomposes(aten.logsumexp.default)
def _logsumexp(x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    dims = list(dim) or list(range(x.ndim))
    top = torch.amax(x, dims, keepdim=True).detach()
    top = torch.where(torch.isinf(top), torch.zeros_like(top), top)
    out = torch.log(torch.exp(x - top).sum(dims, keepdim=True)) + top
    return out if keepdim else out.sum(dims) if x.ndim else out


# ---- updates and rounding


@_decomposes(aten.copy.default)
def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(x.dtype).expand(x.shape)


@_decomposes(aten.floor_divide.default)
def _floor_divide(a: Tensor, b: Any) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


@_decomposes(aten.index_put.default)
def _index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    mask = indices[0]
    if len(indices) > 1 or mask is None or mask.dtype != torch.bool or values.numel() != 1:
        return NotImplemented
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    value = values.reshape(()).to(x.dtype)
    return torch.where(mask, x + value if accumulate else value, x)


# ---- products


def _tree_product(x: Tensor, dim: int) -> Tensor:
    """The product over an axis, pairwise: its derivative holds at zeros too."""
    n = x.shape[dim]
    if n == 0:
        return torch.ones_like(x.sum(dim))
    while n > 1:
        half = n // 2
        pairs = x.narrow(dim, 0, half) * x.narrow(dim, half, half)
        x = torch.cat([pairs, x.narrow(dim, 2 * half, n - 2 * half)], dim) if n % 2 else pairs
        n = x.shape[dim]
    return x.squeeze(dim)


@_decomposes(aten.prod.default)
def _prod(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    if not x.is_floating_point():
        return NotImplemented
    return _tree_product(x.reshape(-1), 0)


@_decomposes(aten.prod.dim_int)
def _prod_dim(
    x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if not x.is_floating_point() or x.ndim == 0:
        return NotImplemented
    out = _tree_product(x, dim % x.ndim)
    return out.unsqueeze(dim) if keepdim else out


@_decomposes(aten.cumprod.default)
def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    if not x.is_floating_point() or x.ndim == 0:
        return NotImplemented
    # a doubling scan
    dim %= x.ndim
    shift = 1
    while shift < x.shape[dim]:
        rest = x.shape[dim] - shift
        x = torch.cat(
            [x.narrow(dim, 0, shift), x.narrow(dim, shift, rest) * x.narrow(dim, 0, rest)], dim
        )
        shift *= 2
    return x


@_decomposes(aten.logcumsumexp.default)
def _logcumsumexp(x: Tensor, dim: int) -> Tensor:
    top = torch.amax(x, dim, keepdim=True).detach()
    return torch.log(torch.cumsum(torch.exp(x - top), dim)) + top


# ---- statistics and normalisation


@_decomposes(aten.var.correction)
def _var(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Tensor:
    dims = list(range(x.ndim)) if not dim else [d % x.ndim for d in dim]
    count = math.prod(x.shape[d] for d in dims)
    centred = x - x.mean(dims, keepdim=True)
    total = (centred * centred).sum(dims, keepdim=keepdim)
    return total / max(0.0, count - (1.0 if correction is None else correction))


@_decomposes(aten.std.correction)
def _std(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> Tensor:
    return torch.sqrt(_var(x, dim, **options))


@_decomposes(aten.var_mean.correction)
def _var_mean(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    dims = list(range(x.ndim)) if not dim else list(dim)
    return _var(x, dim, **options), x.mean(dims, keepdim=options.get("keepdim", False))


def _normalise(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    scale = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    return centred * scale, mean, scale


@_decomposes(aten.native_layer_norm.default)
def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    out, mean, scale = _normalise(x, list(range(x.ndim - len(shape), x.ndim)), eps)
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias), mean, scale


@_decomposes(aten.native_group_norm.default)
def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    channels: int,
    inner: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    out, mean, scale = _normalise(x.reshape(n, groups, -1), [2], eps)
    out = out.reshape(x.shape)
    shape = (1, channels) + (1,) * (x.ndim - 2)
    out = out if weight is None else out * weight.reshape(shape)
    out = out if bias is None else out + bias.reshape(shape)
    return out, mean.reshape(n, groups), scale.reshape(n, groups)


def _fixed_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    out = (x - mean.reshape(shape)) * torch.rsqrt(var + eps).reshape(shape)
    out = out if weight is None else out * weight.reshape(shape)
    out = out if bias is None else out + bias.reshape(shape)
    empty = x.new_zeros(0)
    return out, empty, empty


_decomposes(aten._native_batch_norm_legit_no_training.default)(_fixed_batch_norm)


@_decomposes(aten.native_batch_norm.default)
def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    if training and mean is None:  # statistics of the batch that nothing keeps
        out, mean, scale = _normalise(x, [0, *range(2, x.ndim)], eps)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        out = out if weight is None else out * weight.reshape(shape)
        out = out if bias is None else out + bias.reshape(shape)
        return out, mean.reshape(-1), scale.reshape(-1)
    if training or mean is None or var is None:
        return NotImplemented
    return _fixed_batch_norm(x, weight, bias, mean, var, momentum, eps)


@_decomposes(aten._trilinear.default)
def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:
    factors = []
    for x, dims in ((a, expand1), (b, expand2), (c, expand3)):
        for dim in sorted(dims):
            x = x.unsqueeze(dim)
        factors.append(x)
    product = factors[0] * factors[1] * factors[2]
    return product.sum(list(sumdim)) if sumdim else product


# ---- padding


def _pad_ends(x: Tensor, pad: Sequence[int], piece: Callable[[Tensor, int, int, bool], Tensor]):  # type: ignore[no-untyped-def]
    for i in range(len(pad) // 2):
        dim = x.ndim - 1 - i
        lo, hi = pad[2 * i], pad[2 * i + 1]
        if lo < 0 or hi < 0:
            x = x.narrow(dim, max(0, -lo), x.shape[dim] - max(0, -lo) - max(0, -hi))
        parts = [x]
        if lo > 0:
            parts.insert(0, piece(x, dim, lo, True))
        if hi > 0:
            parts.append(piece(x, dim, hi, False))
        x = torch.cat(parts, dim) if len(parts) > 1 else x
    return x


@_decomposes(
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default
)
def _reflection_pad(x: Tensor, pad: Sequence[int]) -> Tensor:
    def piece(x: Tensor, dim: int, width: int, low: bool) -> Tensor:
        start = 1 if low else x.shape[dim] - 1 - width
        return x.narrow(dim, start, width).flip([dim])

    return _pad_ends(x, pad, piece)


@_decomposes(
    aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default
)
def _replication_pad(x: Tensor, pad: Sequence[int]) -> Tensor:
    def piece(x: Tensor, dim: int, width: int, low: bool) -> Tensor:
        edge = x.narrow(dim, 0 if low else x.shape[dim] - 1, 1)
        return edge.expand([width if i == dim else -1 for i in range(x.ndim)])

    return _pad_ends(x, pad, piece)


# ---- convolution and pooling


def _windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[Tensor], list[int]]:
    """For each kernel tap, the entries of ``x`` (N, C, *space) that it meets; and the out space."""
    space = x.shape[2:]
    out = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(space, kernel, stride, dilation, strict=True)
    ]
    taps = [x]
    for axis, (k, s, d, m) in enumerate(zip(kernel, stride, dilation, out, strict=True)):
        dim = axis + 2
        taps = [
            aten.slice.Tensor(tap, dim, i * d, i * d + (m - 1) * s + 1, s)
            for tap in taps
            for i in range(k)
        ]
    return taps, out


def _forward_convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    ends = [p for q in reversed(list(padding)) for p in (q, q)]
    x = F.pad(x, ends) if any(ends) else x
    kernel = weight.shape[2:]
    taps, out = _windows(x, kernel, stride, dilation)
    n, channels = x.shape[:2]
    inner, cells = channels // groups, math.prod(out)
    # (n, groups, taps * inner, cells)
    columns = torch.cat([t.reshape(n, groups, inner, cells) for t in taps], 2)
    rows = weight.reshape(groups, -1, inner, len(taps)).transpose(2, 3)
    rows = rows.reshape(groups, -1, len(taps) * inner)
    if groups == 1:
        # one matrix product for the whole batch
        wide = columns.squeeze(1).transpose(0, 1).reshape(-1, n * cells)
        y = torch.mm(rows.squeeze(0), wide).reshape(-1, n, cells).transpose(0, 1)
    else:
        wide = columns.permute(1, 2, 0, 3).reshape(groups, -1, n * cells)
        y = torch.bmm(rows, wide).reshape(groups, -1, n, cells).permute(2, 0, 1, 3)
    return y.reshape(n, -1, *out)


def _transposed_convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    # a plain convolution of the stretched input with the flipped kernel
    for axis, s in enumerate(stride):
        if s > 1:
            dim = axis + 2
            shape = list(x.shape)
            shape[dim] = (shape[dim] - 1) * s + 1
            x = aten.slice_scatter.default(x.new_zeros(shape), x, dim, 0, shape[dim], s)
    kernel = weight.shape[2:]
    ends: list[int] = []
    for k, p, d, extra in reversed(
        list(zip(kernel, padding, dilation, output_padding, strict=True))
    ):
        full = d * (k - 1) - p
        ends += [full, full + extra]
    x = aten.constant_pad_nd.default(x, ends)
    inner = weight.shape[1]
    flipped = weight.flip(list(range(2, weight.ndim)))
    flipped = flipped.reshape(groups, -1, inner, *kernel).transpose(1, 2)
    flipped = flipped.reshape(groups * inner, -1, *kernel)
    ones = [1] * len(kernel)
    return _forward_convolution(x, flipped, ones, [0] * len(kernel), dilation, groups)


@_decomposes(aten.convolution.default)
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    if transposed:
        y = _transposed_convolution(x, weight, stride, padding, dilation, output_padding, groups)
    else:
        y = _forward_convolution(x, weight, stride, padding, dilation, groups)
    return y if bias is None else y + bias.reshape(1, -1, *[1] * (y.ndim - 2))


@_decomposes(aten.convolution_backward.default)
def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    # convolution is linear in each argument: torch's own autodiff of the decomposition
    options = (stride, padding, dilation, transposed, output_padding, groups)
    _, pull = torch.func.vjp(lambda a, b: _convolution(a, b, None, *options), x, weight)
    gx, gw = pull(grad)
    gb = grad.sum([0, *range(2, grad.ndim)]) if mask[2] else None
    return (gx if mask[0] else None), (gw if mask[1] else None), gb


def _pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    fill: float,
) -> Tensor:
    """The taps of each window on a new last axis; x (N, C, *space) or (C, *space)."""
    rank = len(kernel)
    single = x.ndim == rank + 1
    x = x.unsqueeze(0) if single else x
    ends = [p for q in reversed(list(padding)) for p in (q, q)]
    x = F.pad(x, ends, value=fill) if any(ends) else x
    taps = torch.stack(_windows(x, kernel, stride, dilation)[0], -1)
    return taps.squeeze(0) if single else taps


def _each(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


@_decomposes(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def _avg_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    rank = len(kernel) if len(kernel) > 1 else max(1, x.ndim - 2)
    kernel = _each(kernel, rank)
    padding = _each(padding, rank)
    if ceil_mode or (any(padding) and not count_include_pad):
        return NotImplemented
    step = _each(stride, rank) if stride else kernel
    taps = _pool(x, kernel, step, padding, [1] * rank, 0.0)
    return taps.sum(-1) / (divisor_override or math.prod(kernel))


@_decomposes(aten.max_pool2d_with_indices.default)
def _max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    if ceil_mode:
        return NotImplemented
    kernel = _each(kernel, 2)
    step = _each(stride, 2) if stride else kernel
    taps = _pool(x, kernel, step, _each(padding, 2), _each(dilation, 2), -math.inf)
    return torch.max(taps, -1)


@_decomposes(aten._adaptive_avg_pool2d.default)
def _adaptive_avg_pool2d(x: Tensor, size: Sequence[int]) -> Any:
    height, width = x.shape[-2:]
    if height % size[0] or width % size[1]:
        return NotImplemented
    blocks = x.reshape(*x.shape[:-2], size[0], height // size[0], size[1], width // size[1])
    return blocks.mean([-3, -1])


# ---- distances and factorisations


@_decomposes(aten._cdist_forward.default)
def _cdist(a: Tensor, b: Tensor, p: float, mode: int | None) -> Tensor:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, dim=-1)


@_decomposes(aten._euclidean_dist.default)
def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), 2, dim=-1)


def _determinant(a: Tensor) -> Tensor:
    """By cofactors."""

    def minor(top: int, columns: tuple[int, ...]) -> Tensor:
        if not columns:
            return torch.ones_like(a.sum((-2, -1)))
        total: Tensor | None = None
        for k, column in enumerate(columns):
            term = a[..., top, column]
            if len(columns) > 1:
                term = term * minor(top + 1, columns[:k] + columns[k + 1 :])
            total = term if total is None else total - term if k % 2 else total + term
        assert total is not None
        return total

    return minor(0, tuple(range(a.shape[-1])))


@_decomposes(aten._linalg_det.default)
def _linalg_det(a: Tensor) -> Any:
    if a.shape[-1] > 4:
        return NotImplemented
    return _determinant(a), a, torch.zeros(a.shape[:-1], dtype=torch.int32, device=a.device)


@_decomposes(aten._linalg_slogdet.default)
def _linalg_slogdet(a: Tensor) -> Any:
    if a.shape[-1] > 4:
        return NotImplemented
    det = _determinant(a)
    pivots = torch.zeros(a.shape[:-1], dtype=torch.int32, device=a.device)
    return torch.sign(det), torch.log(torch.abs(det)), a, pivots


@_decomposes(aten.linalg_cholesky_ex.default)
def _cholesky(a: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    n = a.shape[-1]
    if n > 8:
        return NotImplemented
    rows: list[list[Tensor]] = []
    for i in range(n):
        row: list[Tensor] = []
        for j in range(i + 1):
            other = row if j == i else rows[j]
            rest = a[..., i, j]
            for k in range(j):
                rest = rest - row[k] * other[k]
            row.append(torch.sqrt(rest) if i == j else rest / rows[j][j])
        rows.append(row)
    zero = torch.zeros_like(a[..., 0, 0])
    lower = torch.stack([torch.stack(row + [zero] * (n - len(row)), -1) for row in rows], -2)
    info = torch.zeros(a.shape[:-2], dtype=torch.int32, device=a.device)
    return (lower.mT if upper else lower), info
