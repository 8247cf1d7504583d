"""Decompositions of padding, convolution and pooling into slices and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pysciml.kernels.decomposing import aten, decomposes

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


@decomposes(
    aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default
)
def _reflection_pad(x: Tensor, pad: Sequence[int]) -> Tensor:
    def piece(x: Tensor, dim: int, width: int, low: bool) -> Tensor:
        start = 1 if low else x.shape[dim] - 1 - width
        return x.narrow(dim, start, width).flip([dim])

    return _pad_ends(x, pad, piece)


@decomposes(
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


def _padded(x: Tensor, padding: Sequence[int]) -> Tensor:
    ends = [p for q in reversed(list(padding)) for p in (q, q)]
    return aten.constant_pad_nd.default(x, ends) if any(ends) else x


def _forward_convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    x = _padded(x, padding)
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


@decomposes(aten.convolution.default)
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


@decomposes(aten.convolution_backward.default)
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
    gx = gw = None
    if mask[0] and transposed:
        gx = _forward_convolution(grad, weight, stride, padding, dilation, groups)
    elif mask[0]:
        left_over = [
            (n + 2 * p - d * (k - 1) - 1) % s
            for n, p, d, k, s in zip(
                x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
            )
        ]
        gx = _transposed_convolution(grad, weight, stride, padding, dilation, left_over, groups)
    if mask[1]:
        ends = (grad, x) if transposed else (x, grad)
        gw = _weight_gradient(*ends, weight.shape, stride, padding, dilation, groups)
    gb = grad.sum([0, *range(2, grad.ndim)]) if mask[2] else None
    return gx, gw, gb


def _weight_gradient(
    x: Tensor,
    grad: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The gradient by the weight (of ``shape``) of a plain convolution of ``x``."""
    taps, out = _windows(_padded(x, padding), shape[2:], stride, dilation)
    n, cells = x.shape[0], math.prod(out)
    columns = torch.stack([t.reshape(n, groups, -1, cells) for t in taps], 3)
    columns = columns.permute(1, 0, 4, 2, 3).reshape(groups, n * cells, -1)
    rows = grad.reshape(n, groups, -1, cells).permute(1, 2, 0, 3).reshape(groups, -1, n * cells)
    return torch.bmm(rows, columns).reshape(list(shape))


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


@decomposes(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
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


@decomposes(aten.max_pool2d_with_indices.default)
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


@decomposes(aten._adaptive_avg_pool2d.default)
def _adaptive_avg_pool2d(x: Tensor, size: Sequence[int]) -> Any:
    height, width = x.shape[-2:]
    if height % size[0] or width % size[1]:
        return NotImplemented
    blocks = x.reshape(*x.shape[:-2], size[0], height // size[0], size[1], width // size[1])
    return blocks.mean([-3, -1])
