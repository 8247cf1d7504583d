"""Decompositions of activations, statistics, normalisation and updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pysciml.kernels.decomposing import aten, decomposes

# ---- activations


@decomposes(aten.silu.default)
def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@decomposes(aten.mish.default)
def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


@decomposes(aten.gelu.default)
def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + torch.tanh(inner))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


@decomposes(aten.elu.default)
def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    # the clamp keeps expm1 from overflowing in the branch that is not taken
    low = alpha * scale * torch.expm1(torch.clamp(x, max=0) * input_scale)
    return torch.where(x > 0, x * scale, low)


@decomposes(aten.leaky_relu.default)
def _leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, x, x * slope)


@decomposes(aten._prelu_kernel.default)
def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * weight)


@decomposes(aten.hardtanh.default)
def _hardtanh(x: Tensor, low: float = -1, high: float = 1) -> Tensor:
    inner = torch.where(x > low, x, torch.full_like(x, low))
    return torch.where(x < high, inner, torch.full_like(x, high))


@decomposes(aten.hardsigmoid.default)
def _hardsigmoid(x: Tensor) -> Tensor:
    return _hardtanh(x / 6 + 0.5, 0.0, 1.0)


@decomposes(aten.hardswish.default)
def _hardswish(x: Tensor) -> Tensor:
    middle = x * (x + 3) / 6
    return torch.where(x >= 3, x, torch.where(x <= -3, torch.zeros_like(x), middle))


@decomposes(aten.hardshrink.default)
def _hardshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    return torch.where((x <= lambd) & (x >= -lambd), torch.zeros_like(x), x)


@decomposes(aten.softshrink.default)
def _softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    low = torch.where(x < -lambd, x + lambd, torch.zeros_like(x))
    return torch.where(x > lambd, x - lambd, low)


@decomposes(aten.log_sigmoid_forward.default)
def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    return -F.softplus(-x), torch.zeros_like(x)


@decomposes(aten.log_sigmoid_backward.default)
def _log_sigmoid_backward(grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    return grad * torch.sigmoid(-x)


@decomposes(aten.glu.default)
def _glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


@decomposes(aten._softmax.default)
def _softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    if x.ndim == 0:
        return torch.ones_like(x)
    e = torch.exp(x - torch.amax(x, dim, keepdim=True).detach())
    return e / e.sum(dim, keepdim=True)


@decomposes(aten._log_softmax.default)
def _log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    if x.ndim == 0:
        return torch.zeros_like(x)
    shifted = x - torch.amax(x, dim, keepdim=True).detach()
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


@decomposes(aten.logsumexp.default)
def _logsumexp(x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    dims = list(dim) or list(range(x.ndim))
    top = torch.amax(x, dims, keepdim=True).detach()
    top = torch.where(torch.isinf(top), torch.zeros_like(top), top)
    out = torch.log(torch.exp(x - top).sum(dims, keepdim=True)) + top
    return out if keepdim else out.sum(dims) if x.ndim else out


# ---- updates and rounding


@decomposes(aten.copy.default)
def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(x.dtype).expand(x.shape)


@decomposes(aten.ldexp.Tensor)
def _ldexp(x: Tensor, power: Tensor) -> Tensor:
    return x * torch.exp2(power.to(x.dtype))


@decomposes(aten.floor_divide.default)
def _floor_divide(a: Tensor, b: Any) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


@decomposes(aten.index_put.default)
def _index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    mask = indices[0]
    if len(indices) > 1 or mask is None or mask.dtype != torch.bool or values.numel() != 1:
        return NotImplemented
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    value = values.reshape(()).to(x.dtype)
    return torch.where(mask, x + value if accumulate else value, x)


# ---- statistics and normalisation


@decomposes(aten.var.correction)
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


@decomposes(aten.std.correction)
def _std(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> Tensor:
    return torch.sqrt(_var(x, dim, **options))


@decomposes(aten.var_mean.correction)
def _var_mean(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    dims = list(range(x.ndim)) if not dim else list(dim)
    return _var(x, dim, **options), x.mean(dims, keepdim=options.get("keepdim", False))


def _normalise(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    scale = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    return centred * scale, mean, scale


@decomposes(aten.native_layer_norm.default)
def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    out, mean, scale = _normalise(x, list(range(x.ndim - len(shape), x.ndim)), eps)
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias), mean, scale


@decomposes(aten.native_group_norm.default)
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


decomposes(aten._native_batch_norm_legit_no_training.default)(_fixed_batch_norm)


@decomposes(aten.native_batch_norm.default)
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


@decomposes(aten._trilinear.default)
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
