"""Functions that between them use every operation a right-hand side is written with.

Each :class:`Case` is ``fn(u, p, t)`` with flat ``u`` (n_u,), flat ``p`` (n_p,) and 0-d ``t``. Tests
take values and derivatives of each through a kernel backend and compare with torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A function to compare, and where: ``u`` and ``p`` are drawn from ``domain``."""

    name: str
    fn: Callable[[Tensor, Tensor, Tensor], Tensor]
    n_u: int = 4
    n_p: int = 4
    domain: tuple[float, float] = (-1.5, 1.5)
    #: which derivatives torch itself offers and agrees on
    derivatives: bool = True
    rtol: float = 1e-9

    def inputs(self, seed: int = 0) -> dict[str, Tensor]:
        """Float64 values in the domain, the same for the same seed."""
        g = torch.Generator().manual_seed(seed)
        lo, hi = self.domain

        def draw(n: int) -> Tensor:
            return lo + (hi - lo) * torch.rand(n, generator=g, dtype=torch.float64)

        return {"u": draw(self.n_u), "p": draw(self.n_p), "t": torch.tensor(0.37 + seed).double()}


def _module(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    module = build().double()
    torch.set_rng_state(state)
    return module


CASES: list[Case] = []


def _add(name: str, fn: Callable[..., Tensor], **options: object) -> None:
    CASES.append(Case(name, fn, **options))  # type: ignore[arg-type]


def _mixed(op: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """An elementwise function applied where u, p and t all matter."""
    return lambda u, p, t: op(u * p + 0.1 * t)


# ---- elementwise, one argument

ANYWHERE = (
    "neg abs sign exp expm1 exp2 sin cos tan atan sinh cosh tanh asinh erf erfc sigmoid square "
    "relu floor ceil round trunc positive frac sgn arctan arcsinh special.expit"
).split()
INSIDE = "asin acos atanh arccos".split()


def _torch_fn(name: str) -> Callable[[Tensor], Tensor]:
    fn = torch
    for part in name.split("."):
        fn = getattr(fn, part)
    return fn  # type: ignore[return-value]


for _name in ANYWHERE:
    _add(_name, _mixed(_torch_fn(_name)))
for _name in "log log1p log2 log10 sqrt rsqrt reciprocal lgamma".split():
    _add(_name, _mixed(_torch_fn(_name)), domain=(0.3, 2.0))
_add("acosh", lambda u, p, t: torch.acosh(1.2 + u * p + 0.1 * t), domain=(0.1, 1.0))
_add("xlogy", lambda u, p, t: torch.xlogy(p, u) + t, domain=(0.2, 2.0))
_add("digamma", lambda u, p, t: torch.digamma(u), domain=(0.3, 2.0), derivatives=False)
for _name in INSIDE:
    _add(_name, _mixed(_torch_fn(_name)), domain=(-0.8, 0.8))

# ---- elementwise, two arguments

_add("add_alpha", lambda u, p, t: torch.add(u, p, alpha=2.5) + t)
_add("sub_alpha", lambda u, p, t: torch.sub(u, p, alpha=0.5) - t * u)
_add("rsub", lambda u, p, t: 1.0 - u * p + (2 - t))
_add("mul", lambda u, p, t: u * p * t)
_add("div", lambda u, p, t: u / p + t / u, domain=(0.5, 2.0))
_add("rdiv", lambda u, p, t: 2.0 / u + p / 3, domain=(0.5, 2.0))
_add("pow_scalars", lambda u, p, t: u**0 + u + u**2 + u**3 + u**4 + p**5 + t)
_add("pow_real", lambda u, p, t: u**0.5 + u**1.7 + p**-1 + p**-0.5 + u**-2 + t**2, domain=(0.3, 2))
_add("pow_tensor", lambda u, p, t: u**p + 2.0**u + u**t, domain=(0.3, 2.0))
_add("float_power", lambda u, p, t: torch.float_power(u, 2.5) + p, domain=(0.3, 2.0))
_add("maximum", lambda u, p, t: torch.maximum(u, p) + torch.minimum(u, 0.5 * p) * t)
_add("max_other", lambda u, p, t: torch.max(u, p) - torch.min(u, t * p))
_add("fmax", lambda u, p, t: torch.fmax(u, p) + torch.fmin(u, t * p))
_add("atan2", lambda u, p, t: torch.atan2(u, p + t))
_add("hypot", lambda u, p, t: torch.hypot(u, p + t))
_add("fmod", lambda u, p, t: torch.fmod(u, 0.4) + p * t)
_add("remainder", lambda u, p, t: torch.remainder(u, 0.4) + p * t + u % 0.3)
_add("remainder_tensor", lambda u, p, t: torch.remainder(u, p) * t, domain=(0.3, 2.0))
_add("floor_div", lambda u, p, t: torch.div(u, 0.3, rounding_mode="floor") + p)
_add("floor_divide", lambda u, p, t: u // 0.7 + p // t, derivatives=False)
_add("trunc_div", lambda u, p, t: torch.div(u, 0.3, rounding_mode="trunc") * u + p)
_add("logaddexp", lambda u, p, t: torch.logaddexp(u, p) + t)
_add("copysign", lambda u, p, t: torch.copysign(u, p) + t)
_add("lerp", lambda u, p, t: torch.lerp(u, p, 0.3) + torch.lerp(u, p, t * u))
_add("addcmul", lambda u, p, t: torch.addcmul(u, p, p, value=0.5) + t)
_add("addcdiv", lambda u, p, t: torch.addcdiv(u, u, p, value=0.5) + t, domain=(0.4, 2.0))
_add("sinc", lambda u, p, t: torch.sinc(u + 2.0) + p * t)
_add("logit", lambda u, p, t: torch.logit(u) + p * t, domain=(0.1, 0.9))

# ---- comparison and choice

_add("where", lambda u, p, t: torch.where(u > p, u * t, p**2))
_add("where_scalar", lambda u, p, t: torch.where(u > 0.1, u, 0.0) + torch.where(p < 0, 1.0, p) * t)
_add("where_t", lambda u, p, t: torch.where(t > 0.2, u, -u) * p)
_add("where_both", lambda u, p, t: torch.where((u > 0) & (p < 1) | ~(u < t), u * p, u - p))
_add(
    "logical",
    lambda u, p, t: u * torch.logical_and(u > 0, p > 0) + torch.logical_xor(u > 0, p > 0) * p,
)
_add("mask_product", lambda u, p, t: u * (u > 0.2) + p * (p <= 0.5).double() + t)
_add("comparisons", lambda u, p, t: u * ((u >= 0) == (p != 0)).to(u.dtype) + (u < p) * t)
_add("isfinite", lambda u, p, t: torch.where(torch.isfinite(u) & ~torch.isnan(p), u * p, t))
_add("clamp", lambda u, p, t: torch.clamp(u, -0.5, 0.7) * p + u.clamp(min=0) + t)
_add("clamp_tensor", lambda u, p, t: torch.clamp(u, min=p - 0.5, max=p + 0.5) + t)
_add("clip_t", lambda u, p, t: torch.clip(u, max=0.3) + torch.clamp(p, min=t))
_add("masked_fill", lambda u, p, t: u.masked_fill(p > 0, 0.5) * p + t)
_add(
    "heaviside",
    lambda u, p, t: u * torch.heaviside(p, torch.tensor(0.5).double()),
    derivatives=False,
)
_add("nan_to_num", lambda u, p, t: torch.nan_to_num(u * p) + t)
_add("threshold", lambda u, p, t: F.threshold(u, 0.1, 0.5) * p + t)

# ---- joining and taking apart

_add(
    "lotka_volterra",
    lambda u, p, t: torch.stack(
        [p[0] * u[0] - p[1] * u[0] * u[1], -p[2] * u[1] + p[3] * u[0] * u[1]]
    ),
    n_u=2,
)
_add(
    "robertson",
    lambda u, p, t: torch.stack(
        [
            -p[0] * u[0] + p[1] * u[1] * u[2],
            p[0] * u[0] - p[1] * u[1] * u[2] - p[2] * u[1] ** 2,
            p[2] * u[1] ** 2,
        ]
    ),
    n_u=3,
    n_p=3,
)
_add("unbind", lambda u, p, t: torch.stack([x * y for x, y in zip(u, p.unbind(), strict=True)]) + t)
_add("unpack", lambda u, p, t: _unpacked(u, p, t), n_u=3, n_p=3)
_add("split", lambda u, p, t: torch.cat([b * t for b in u.split(3)][::-1]) * p)
_add("split_sizes", lambda u, p, t: torch.cat(u.split([1, 3])[::-1]) * p + t)
_add("chunk", lambda u, p, t: torch.cat([u.chunk(2)[1], p.chunk(2)[0]]) * t)
_add("tensor_split", lambda u, p, t: torch.cat(torch.tensor_split(u, 3)[::-1]) * p + t)
_add("cat", lambda u, p, t: torch.cat([u[1:], p[:2], t.reshape(1) * u[:1]]))
_add("hstack", lambda u, p, t: torch.hstack([u[2:], p[:2] * t]))
_add("vstack", lambda u, p, t: torch.vstack([u, p * t]).sum(0) * u)
_add("concat_scalars", lambda u, p, t: torch.stack((u[0] * t, p[-1], u.sum(), t)))
_add("slices", lambda u, p, t: u[1:-1] * p[::2] + u[-2:] + t, n_u=4, n_p=4)
_add("ellipsis", lambda u, p, t: (u.reshape(2, 2)[..., 0] * p.view(2, 2)[1]) + t)
_add("newaxis", lambda u, p, t: (u[:, None] * p[None, :]).sum(1) + t)
_add("narrow", lambda u, p, t: u.narrow(0, 1, 3) * p.narrow(0, 0, 3) + t)
_add("expand", lambda u, p, t: u[:1].expand(4) * p + t)
_add("repeat", lambda u, p, t: u[:2].repeat(2) * p + u[2:].repeat_interleave(2) * t)
_add("tile", lambda u, p, t: torch.tile(u[:2], (2,)) * p + t)
_add("broadcast_to", lambda u, p, t: torch.broadcast_to(t, (4,)) * u + p)
_add("permute", lambda u, p, t: u.reshape(2, 3).T.reshape(-1) * p[:6] + t, n_u=6, n_p=6)
_add(
    "movedim",
    lambda u, p, t: u.reshape(1, 2, 3).movedim(0, 2).transpose(0, 1).flatten() * p,
    n_u=6,
    n_p=6,
)
_add("flip", lambda u, p, t: u.flip(0) * p + torch.flipud(p) * t)
_add("roll", lambda u, p, t: torch.roll(u, 1) - 2 * u + torch.roll(u, -1) + p * t)
_add(
    "roll2d",
    lambda u, p, t: torch.roll(u.reshape(2, 3), (1, -1), (0, 1)).reshape(-1) * p + t,
    n_u=6,
    n_p=6,
)
_add("rot90", lambda u, p, t: torch.rot90(u.reshape(2, 3)).reshape(-1) * p + t, n_u=6, n_p=6)
_add("diag", lambda u, p, t: torch.diag(u) @ p + torch.diag(torch.outer(u, p)) * t)
_add("diagonal", lambda u, p, t: torch.outer(u, p).diagonal(1) + torch.outer(u, p).diagonal(-1) * t)
_add("diag_embed", lambda u, p, t: torch.diag_embed(u, 1)[:-1, 1:] @ p + t)
_add("block_diag", lambda u, p, t: torch.block_diag(u[:2], p[:2]).sum(0) * u + t)
_add("tril", lambda u, p, t: (torch.outer(u, p).tril() + torch.outer(p, u).triu(1)).sum(1) + t)
_add("unfold", lambda u, p, t: (u.unfold(0, 3, 1) * p[:3]).sum(-1) * t, n_u=6)
_add("meshgrid", lambda u, p, t: (torch.meshgrid(u, p, indexing="ij")[0] * p).sum(1) + t)
_add("diff", lambda u, p, t: torch.diff(u) * p[1:] + t)
_add("gradient", lambda u, p, t: torch.gradient(u, spacing=0.1)[0] * p + t)
_add("kron", lambda u, p, t: torch.kron(u[:2], p[:2]) + t)
_add("vander", lambda u, p, t: torch.vander(u, 3) @ p[:3] + t, derivatives=False)
_add("trapezoid", lambda u, p, t: torch.trapezoid(u, dx=0.1) * p + t * torch.trapezoid(u, p))

# ---- writing into fresh tensors


def _unpacked(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    x, y, z = u
    a, b, c = p
    return torch.stack([a * (y - x), x * (b - z) - y, x * y - c * z * t])


def _lorenz_in_place(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    du = torch.zeros_like(u)
    du[0] = p[0] * (u[1] - u[0])
    du[1] = u[0] * (p[1] - u[2]) - u[1]
    du[2] = u[0] * u[1] - p[2] * u[2] * t
    return du


def _stencil_in_place(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    du = torch.empty_like(u)
    du[1:-1] = p[0] * (u[2:] - 2 * u[1:-1] + u[:-2])
    du[0] = 0
    du[-1] = t
    du *= 2.0
    du += u
    return du


def _strided_in_place(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    du = u.clone()
    du[::2] = p[::2] * t
    du[torch.tensor([1, 3])] += u[:2]
    return du


def _masked_in_place(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    du = u * p
    du[u < 0] = 0.0
    du[u > 0.5] = t
    return du


def _loop(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    total = torch.zeros(4, dtype=u.dtype)
    for i in range(3):
        total = total + torch.sin(u * (i + 1)) * p[i]
    return total * t


_add("in_place", _lorenz_in_place, n_u=3, n_p=3)
_add("in_place_slices", _stencil_in_place, n_u=6, n_p=1)
_add("in_place_strided", _strided_in_place)
_add("in_place_mask", _masked_in_place)
_add("python_loop", _loop)
_add(
    "fill",
    lambda u, p, t: (
        torch.full_like(u, 0.5) * u + torch.ones_like(p) * t + torch.eye(4, dtype=p.dtype) @ p
    ),
)
_add(
    "scatter_ops",
    lambda u, p, t: torch.zeros(5).double().index_add(0, torch.tensor([0, 2, 2, 4]), u * p) + t,
)
_add("select_scatter", lambda u, p, t: torch.select_scatter(u, p[0] * t, 0, 2) * p)
_add("slice_scatter", lambda u, p, t: torch.slice_scatter(u, p[:2] * t, 0, 0, 4, 2) * p)

# ---- indexing

_TABLE = torch.tensor([2, 0, 3, 3])
_MASK = torch.tensor([True, False, True, True])
_add("index", lambda u, p, t: u[_TABLE] * p + t)
_add("index_list", lambda u, p, t: u[[0, -1, 1]] * p[:3] + t)
_add(
    "index_2d",
    lambda u, p, t: u.reshape(2, 3)[torch.tensor([1, 0, 1]), torch.tensor([2, 0, 0])] * p[:3],
    n_u=6,
)
_add(
    "index_mixed",
    lambda u, p, t: u.reshape(2, 3)[:, torch.tensor([2, 0])].reshape(-1) * p + t,
    n_u=6,
)
_add(
    "index_apart",
    lambda u, p, t: (
        u.reshape(2, 2, 2)[torch.tensor([1, 0]), :, torch.tensor([0, 1])].reshape(-1) * p
    ),
    n_u=8,
)
_add("mask_fixed", lambda u, p, t: u[_MASK] * p[:3] + t)
_add("index_select", lambda u, p, t: u.index_select(0, _TABLE) * p + t)
_add(
    "gather",
    lambda u, p, t: u.reshape(2, 3).gather(1, torch.tensor([[0, 2], [1, 1]])).reshape(-1) * p + t,
    n_u=6,
)
_add(
    "scatter",
    lambda u, p, t: torch.zeros(6).double().scatter(0, torch.tensor([5, 0, 2, 1]), u) * t + p.sum(),
)
_add(
    "scatter_add",
    lambda u, p, t: torch.zeros(3).double().scatter_add(0, torch.tensor([0, 2, 2, 1]), u * p) + t,
)
_add("take", lambda u, p, t: torch.take(u, _TABLE) * p + t)
_add("take_along_dim", lambda u, p, t: torch.take_along_dim(u, torch.argsort(u), 0) * p + t)
_add(
    "embedding", lambda u, p, t: F.embedding(torch.tensor([1, 0]), u.reshape(2, 2)).reshape(-1) * p
)
_add("one_hot", lambda u, p, t: F.one_hot(torch.tensor([1, 0]), 4).double() @ u + p[:2] * t)

_GRID = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
_VALUES = torch.sin(_GRID)


def _interpolate(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    k = (torch.searchsorted(_GRID, u) - 1).clamp(0, 7)
    w = (u - _GRID[k]) / (_GRID[k + 1] - _GRID[k])
    return (_VALUES[k] * (1 - w) + _VALUES[k + 1] * w) * p + t


def _interpolate_time(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    k = torch.bucketize(t, _GRID) - 1
    w = (t - _GRID[k]) / (_GRID[k + 1] - _GRID[k])
    return u * torch.lerp(_VALUES[k], _VALUES[k + 1], w) + p


_add("searchsorted", _interpolate)
_add("bucketize_time", _interpolate_time)
_add(
    "index_scalar",
    lambda u, p, t: p.reshape(2, 2)[..., torch.argmax(u[:2])] + u[torch.argmin(u)] * t,
)
_add(
    "interpolate_p",
    lambda u, p, t: p[torch.searchsorted(_GRID[2:5], u, right=True).clamp(max=3)] * u + t,
)

# ---- reductions, scans, order

_add("sum", lambda u, p, t: u.sum() * p + (u * p).sum(0, keepdim=True) + t)
_add("mean", lambda u, p, t: u - u.mean() + p.reshape(2, 2).mean(0).repeat(2) * t)
_add("prod", lambda u, p, t: u.prod() * p + u.reshape(2, 2).prod(1).repeat(2) + t)
_add("var_std", lambda u, p, t: u.var() * p + u.std(correction=0) * t + torch.var_mean(p)[0])
_add("amax", lambda u, p, t: u.amax() * p + u.reshape(2, 2).amin(1).repeat(2) * t)
_add("max", lambda u, p, t: u.max() * p + p.min() * t)
_add(
    "max_dim",
    lambda u, p, t: (
        u.reshape(2, 2).max(1).values.repeat(2) * p + p.reshape(2, 2).min(0)[0].repeat(2) * t
    ),
)
_add("argmax", lambda u, p, t: p * u[torch.argmax(u)] + t)
_add("median", lambda u, p, t: u.median() * p + u.reshape(2, 2).median(1).values.repeat(2) + t)
_add("sort", lambda u, p, t: u.sort().values * p + p.sort(descending=True)[0] * t)
_add("topk", lambda u, p, t: u.topk(2).values * p[:2] + t)
_add("cumsum", lambda u, p, t: torch.cumsum(u * p, 0) + t)
_add("cumprod", lambda u, p, t: torch.cumprod(u, 0) * p + t, domain=(0.3, 1.5))
_add("logcumsumexp", lambda u, p, t: torch.logcumsumexp(u, 0) * p + t)
_add("logsumexp", lambda u, p, t: torch.logsumexp(u, 0) * p + torch.logsumexp(u * p, 0) * t)
_add("norm", lambda u, p, t: u.norm() * p + torch.linalg.norm(p) * u + t)
_add(
    "norms",
    lambda u, p, t: u / torch.linalg.vector_norm(u, 1) + p.norm(p=3) * t + u.norm(p=math.inf),
)
_add(
    "norm_dim",
    lambda u, p, t: u / u.reshape(2, 2).norm(dim=1, keepdim=True).expand(2, 2).reshape(-1) + p * t,
)
_add("normalize", lambda u, p, t: F.normalize(u, dim=0) * p + t)
_add("any_all", lambda u, p, t: u * (u > 0).any() + p * (p > 5).all() + t)
_add("count", lambda u, p, t: u * (u > 0).sum() + p * torch.count_nonzero(u > 0) + t)

# ---- products of matrices

_W = torch.tensor(
    [[0.3, -0.2, 0.5, 0.1], [0.7, 0.4, -0.6, 0.2], [0.1, 0.9, 0.3, -0.4], [0.5, -0.1, 0.2, 0.8]]
)
_W = _W.double()
_add("matvec", lambda u, p, t: _W @ u + p * t)
_add("vecmat", lambda u, p, t: u @ _W * p + t)
_add("matmul_p", lambda u, p, t: p.reshape(4, 4) @ u + t, n_p=16)
_add(
    "matmul_chain",
    lambda u, p, t: (u.reshape(2, 2) @ p.reshape(2, 2) @ u.reshape(2, 2)).reshape(-1) * t,
)
_add(
    "bmm",
    lambda u, p, t: torch.bmm(u.reshape(2, 2, 2), p.reshape(2, 2, 2)).reshape(-1) + t,
    n_u=8,
    n_p=8,
)
_add(
    "matmul_broadcast",
    lambda u, p, t: (u.reshape(2, 1, 2, 2) @ p.reshape(2, 2)).reshape(-1) * t,
    n_u=8,
)
# a few terms to a sum, in whatever order the factors lie: see _is_small_product in emit_julia
_add(
    "matmul_few_terms",
    lambda u, p, t: torch.tanh(u.reshape(4, 3) @ p.reshape(3, 16) + t).reshape(-1),
    n_u=12,
    n_p=48,
)
_add(
    "matmul_few_terms_transposed",
    lambda u, p, t: torch.tanh(u.reshape(2, 4).T @ p.reshape(16, 2).T * t).sum(0),
    n_u=8,
    n_p=32,
)
_add(
    "matmul_few_terms_summed",
    lambda u, p, t: ((u.reshape(6, 1) @ p.reshape(1, 16)).sin() + p).sum(1) * t,
    n_u=6,
    n_p=16,
)
_add("dot", lambda u, p, t: torch.dot(u, p) * u + torch.inner(u, p) * t)
_add("outer", lambda u, p, t: torch.outer(u, p).sum(0) + t)
_add("einsum", lambda u, p, t: torch.einsum("i,j,ij->j", u, p, _W) + t)
_add(
    "einsum_batch",
    lambda u, p, t: torch.einsum("bi,bij->bj", u.reshape(2, 2), p.reshape(2, 2, 2)).reshape(-1) * t,
    n_p=8,
)
_add("tensordot", lambda u, p, t: torch.tensordot(u.reshape(2, 2), p.reshape(2, 2), dims=2) * u + t)
_add(
    "addmm",
    lambda u, p, t: torch.addmm(
        u.reshape(2, 2), p.reshape(2, 2), u.reshape(2, 2), beta=0.5, alpha=2
    ).reshape(-1),
)
_add("addmv", lambda u, p, t: torch.addmv(u, _W, p, beta=0.5, alpha=2.0) * t)
_add(
    "baddbmm",
    lambda u, p, t: torch.baddbmm(
        u.reshape(1, 2, 2), p.reshape(1, 2, 2), p.reshape(1, 2, 2)
    ).reshape(-1),
)
_add("trace", lambda u, p, t: torch.trace(torch.outer(u, p)) * u + t)
_add("cross", lambda u, p, t: torch.linalg.cross(u, p) * t, n_u=3, n_p=3)
_add(
    "solve",
    lambda u, p, t: torch.linalg.solve(_W + torch.diag(p) * 0.1 + 2 * torch.eye(4).double(), u) + t,
)
_add(
    "solve_matrix",
    lambda u, p, t: torch.linalg.solve(_W + 3 * torch.eye(4), torch.outer(u, p)).sum(1) * t,
)


def _spread(u: Tensor, p: Tensor, n: int) -> Tensor:
    """A regular matrix (n, n) of u and p that elimination exchanges rows of."""
    k = torch.arange(n * n, dtype=torch.float64).reshape(n, n)
    wave = torch.sin(k * u[0] + k**2 * 0.3) + torch.cos(k * p[1]) * u[2]
    return wave + torch.diag(p[3] * torch.arange(n)).flip(0)


def _definite(u: Tensor, p: Tensor, n: int) -> Tensor:
    """A symmetric positive definite matrix (n, n) with eigenvalues apart."""
    x = _spread(u, p, n)
    return 0.1 * x @ x.mT / n + torch.diag(1.0 + torch.arange(n) / n)


def _of_symmetric(fn: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
    """A function of a symmetric matrix by its eigenvalues."""
    values, vectors = torch.linalg.eigh(a)
    return (vectors * fn(values)) @ vectors.mT


_A6 = torch.sin(torch.arange(36.0, dtype=torch.float64) ** 2).reshape(6, 6)

# ---- complex values

_K = torch.arange(4, dtype=torch.float64)
_IK = 1j * _K


def _spectral(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    """A derivative, a filter and a product in Fourier space."""
    h = torch.fft.rfft(torch.cat([u, p]) + t)[:4]
    wave = _IK * h * torch.exp(-0.1 * _K**2 * t) + 1j * _K * h.abs() ** 2 - h.conj() / (2.0 + 1j)
    return torch.fft.irfft(wave, n=8)[:4] * u


def _complex_arithmetic(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    z, w = torch.complex(u, p), torch.polar(1.5 + torch.tanh(u), p)
    out = z * w - (1.0 - z) / w + z**2 * t + torch.exp(0.3j * z) + (2 + 1j) * w**-1
    joined = torch.cat([out.reshape(2, 2), z.reshape(2, 2).T, torch.ones(1, 2).double()])
    out = joined[:2] @ torch.conj(joined[2:4]) + torch.where(u.reshape(2, 2) > 0, joined[:2], 1.0)
    return (out.real - out.imag * out.abs() + torch.angle(out)).reshape(-1)


_add("fft_spectral", _spectral)
_add("complex_arithmetic", _complex_arithmetic)
_add(
    "fft_pairs",
    lambda u, p, t: (
        torch.fft.fft(u).real * torch.fft.ifft(p + 1j * u).imag
        + torch.fft.hfft(torch.complex(u, p), n=7, norm="ortho")[:4] * t
        + torch.view_as_real(torch.fft.fft(u.to(torch.complex128), norm="forward")).sum(-1)
    ),
)
_add(
    "fft_two_axes",
    lambda u, p, t: (
        torch.fft.irfft2(
            torch.fft.rfft2(u.reshape(2, 2)) * torch.fft.fft2(p.reshape(2, 2)), s=(2, 2)
        ).reshape(-1)
        + torch.fft.ifftn(torch.fft.fftshift(torch.fft.fftn(u.reshape(2, 2)))).real.reshape(-1) * t
    ),
)
_add("irfft_odd", lambda u, p, t: torch.fft.irfft(torch.complex(u, p), n=7)[:4] * t)
_add("inv", lambda u, p, t: torch.linalg.inv(_W + torch.diag(3 + p)) @ u * t)
_add("det", lambda u, p, t: torch.linalg.det(u.reshape(2, 2) + 3 * torch.eye(2)) * p + t)
_add("det3", lambda u, p, t: torch.linalg.det(u.reshape(3, 3) + 3 * torch.eye(3)) * p + t, n_u=9)
_add(
    "det_large",
    lambda u, p, t: torch.linalg.det(_spread(u, p, 6)) * u + torch.linalg.det(_A6 * (1 + t)) * p,
)
_add(
    "slogdet_large",
    lambda u, p, t: (
        torch.linalg.slogdet(_spread(u, p, 9))[1] * u
        + torch.linalg.slogdet(_spread(p, u, 5)[None].expand(2, 5, 5)).sign.sum() * p * t
    ),
)
_add("slogdet", lambda u, p, t: torch.linalg.slogdet(u.reshape(2, 2) + 3 * torch.eye(2))[1] * p + t)
_add(
    "solve_triangular",
    lambda u, p, t: (
        torch.linalg.solve_triangular((_W + 2 * torch.eye(4)).triu(), (u * p)[:, None], upper=True)[
            :, 0
        ]
        + t
    ),
)
_add(
    "cholesky_large",
    lambda u, p, t: (
        torch.linalg.cholesky(_definite(u, p, 12)).sum(0)[:4] * t
        + torch.linalg.cholesky(_definite(p, u, 9), upper=True)[:4, 4]
    ),
)
_add(
    "cholesky_solve",
    lambda u, p, t: (
        torch.cholesky_solve(u[:, None], torch.linalg.cholesky(_definite(p, u, 4))).reshape(-1)
        + torch.cholesky_inverse(torch.linalg.cholesky(_definite(u, p, 4))) @ p * t
    ),
)
_add("inv_large", lambda u, p, t: torch.linalg.inv(_definite(u, p, 16))[:4, 1] * p * t)
_add(
    "matrix_exp",
    lambda u, p, t: torch.linalg.matrix_exp(u.reshape(2, 2) * t) @ p[:2].repeat(1),
    n_p=2,
)
_add(
    "matrix_exp_large",
    lambda u, p, t: (
        torch.matrix_exp(_spread(u, p, 5))[:4, 0] * t
        + torch.matrix_exp(-30.0 * _definite(p, u, 4)).sum(0)
    ),
)
_add(
    "of_one_triangle",
    lambda u, p, t: (
        torch.linalg.eigvalsh(u.reshape(2, 2))
        + torch.linalg.eigvalsh(u.reshape(2, 2), UPLO="U") * p[:2]
        + torch.linalg.cholesky(u.reshape(2, 2) + 4 * torch.eye(2)) @ p[2:] * t
    ),
)
_add("eigvalsh", lambda u, p, t: torch.linalg.eigvalsh(_definite(u, p, 4)) * u * t)
_add(
    "eigh",
    lambda u, p, t: (
        _of_symmetric(torch.sqrt, _definite(u, p, 4)) @ p
        + torch.linalg.eigh(_definite(p, u, 3), UPLO="U").eigenvalues.sum() * t
    ),
)
_add(
    "cholesky", lambda u, p, t: torch.linalg.cholesky(torch.outer(u, u) + 2 * torch.eye(4)) @ p + t
)
_add("cdist", lambda u, p, t: torch.cdist(u.reshape(2, 2), p.reshape(2, 2)).reshape(-1) * t)
_add(
    "matrix_power",
    lambda u, p, t: torch.linalg.matrix_power(u.reshape(2, 2), 3).reshape(-1) * p + t,
)

# ---- networks

for _name, _fn in {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "softplus_beta": lambda x: F.softplus(x, beta=2.0),
    "mish": F.mish,
    "hardtanh": F.hardtanh,
    "relu6": lambda x: F.relu6(5 * x),
    "hardswish": lambda x: F.hardswish(3 * x),
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x),
    "softmax": lambda x: F.softmax(x, 0),
    "log_softmax": lambda x: F.log_softmax(x, 0),
    "softmin": lambda x: F.softmin(x, 0),
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "softsign": F.softsign,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "glu": lambda x: torch.cat([F.glu(x), F.glu(-x)]),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
}.items():
    # torch rounds celu's coefficient to single precision in its derivative
    _add(_name, _mixed(_fn), rtol=1e-7 if _name in ("celu", "hardsigmoid") else 1e-9)
# far from zero, where naive forms overflow
for _name, _fn in {
    "softplus": F.softplus,
    "elu": F.elu,
    "selu": F.selu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "log_softmax": lambda x: F.log_softmax(x, 0),
    "logsumexp": lambda x: torch.logsumexp(x, 0).expand(4),
}.items():
    _add(f"{_name}_far", lambda u, p, t, f=_fn: f(u * 1.0) + p * t, domain=(-900.0, 900.0))

_add("prelu", lambda u, p, t: F.prelu(u, p[:1]) * t)
_add("linear_p", lambda u, p, t: torch.tanh(F.linear(u, p[:16].reshape(4, 4), p[16:])) * t, n_p=20)


def _network(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable[..., Tensor]:
    module = _module(build)

    def fn(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return module(u.reshape(shape)).reshape(-1) * p[0] + p[1] * t

    return fn


_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), (4,)),
    "mlp_batch": (lambda: nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 2)), (2, 2)),
    "mlp_batch3": (lambda: nn.Sequential(nn.Linear(2, 3), nn.SiLU(), nn.Linear(3, 2)), (2, 1, 2)),
    "bilinear": (lambda: _Bilinear(), (4,)),
    "layer_norm_net": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4)),
        (4,),
    ),
    "rms_norm": (lambda: nn.RMSNorm(4), (4,)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (1, 4, 3)),
    "batch_norm_eval": (lambda: nn.BatchNorm1d(4).eval(), (3, 4)),
    "instance_norm": (lambda: nn.InstanceNorm1d(2, affine=True), (1, 2, 4)),
    "dropout_eval": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval(), (4,)),
    "conv1d": (lambda: nn.Conv1d(1, 2, 3, padding=1), (1, 1, 6)),
    "conv1d_unbatched": (lambda: nn.Conv1d(2, 3, 3), (2, 5)),
    "conv1d_stride": (
        lambda: nn.Conv1d(2, 4, 3, stride=2, dilation=2, padding=2, groups=2),
        (2, 2, 7),
    ),
    "conv1d_circular": (lambda: nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), (1, 1, 6)),
    "conv1d_reflect": (lambda: nn.Conv1d(1, 1, 3, padding=2, padding_mode="reflect"), (1, 1, 6)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (1, 2, 4, 3)),
    "conv2d_net": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Tanh(), nn.Conv2d(2, 1, 1)),
        (1, 1, 4, 4),
    ),
    "conv3d": (lambda: nn.Conv3d(1, 1, 2), (1, 1, 3, 2, 3)),
    "conv_transpose1d": (
        lambda: nn.ConvTranspose1d(2, 2, 3, stride=2, padding=1, output_padding=1),
        (1, 2, 4),
    ),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 2, 2, stride=2, groups=2), (1, 2, 2, 2)),
    "avg_pool1d": (lambda: nn.AvgPool1d(2), (1, 1, 6)),
    "avg_pool2d": (lambda: nn.AvgPool2d(2), (1, 1, 4, 4)),
    "max_pool1d": (lambda: nn.MaxPool1d(2), (1, 1, 6)),
    "max_pool2d": (lambda: nn.MaxPool2d(2), (1, 1, 4, 4)),
    "adaptive_pool": (lambda: nn.AdaptiveAvgPool2d(2), (1, 1, 4, 4)),
    "flatten_net": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), (1, 2, 2)),
    "attention": (lambda: _Attention(), (3, 4)),
    "gru": (lambda: _First(nn.GRU(2, 2)), (3, 2)),
    "lstm": (lambda: _First(nn.LSTM(2, 2)), (3, 2)),
    "multihead": (lambda: _Multihead(), (1, 2, 4)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 5, batch_first=True).eval(),
        (1, 2, 4),
    ),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), (4,)),
    "gru_cell": (lambda: _Cell(nn.GRUCell(2, 2)), (4,)),
    "lstm_cell": (lambda: _Cell(nn.LSTMCell(2, 2)), (6,)),
}


class _Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(2, 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:2], x[2:])


class _First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class _Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x)[0]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).mT / 2.0
        return torch.softmax(scores, -1) @ self.v(x)


class _Cell(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.cell, nn.LSTMCell):
            return torch.cat(self.cell(x[:2], (x[2:4], x[4:])))
        return self.cell(x[:2], x[2:])


for _name, (_build, _shape) in _NETWORKS.items():
    _add(_name, _network(_build, _shape), n_u=math.prod(_shape), n_p=2)

# ---- padding and stencils

for _mode in ("constant", "circular", "reflect", "replicate"):
    _add(
        f"pad_{_mode}",
        lambda u, p, t, m=_mode: F.pad(u[None, None] * p, (2, 1), mode=m)[0, 0] + t,
    )
    _add(
        f"pad2d_{_mode}",
        lambda u, p, t, m=_mode: (
            F.pad(u.reshape(1, 1, 3, 3), (1, 1, 2, 1), mode=m).reshape(-1) * p[0] + t
        ),
        n_u=9,
    )
_add("pad_value", lambda u, p, t: F.pad(u * p, (1, 2), value=1.5) + t)
_add("pad_crop", lambda u, p, t: F.pad(u * p, (-1, 2)) + t)


def _diffusion(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    padded = F.pad(u, (1, 1))
    return p[0] * (padded[2:] - 2 * u + padded[:-2]) + p[1] * u * (1 - u) + 0 * t


def _brusselator(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    x, y = u.reshape(2, 3, 3)
    lap = [sum(torch.roll(z, s, d) for s in (1, -1) for d in (0, 1)) - 4 * z for z in (x, y)]
    dx = p[0] + x**2 * y - (p[1] + 1) * x + p[2] * lap[0]
    dy = p[1] * x - x**2 * y + p[3] * lap[1]
    return torch.stack([dx, dy]).reshape(-1)


_add("diffusion", _diffusion, n_u=8)
_add("brusselator", _brusselator, n_u=18)
_add(
    "conv_stencil",
    lambda u, p, t: F.conv1d(u[None, None], p[:3][None, None], padding=1)[0, 0] + t,
    n_u=6,
)

# ---- derivatives inside the function


def _hamiltonian(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    def energy(z: Tensor) -> Tensor:
        return (z[2:] ** 2).sum() / 2 + p[0] * torch.cos(z[:2]).sum() + p[1] * z[0] * z[1] ** 2

    g = torch.func.grad(energy)(u)
    return torch.cat([g[2:], -g[:2]])


_NET = _module(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)))


def _cnf_trace(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    x = u[:3]
    jacobian = torch.func.jacrev(_NET)(x)
    return torch.cat([_NET(x) * p[0], -torch.trace(jacobian).reshape(1) + 0 * t])


def _hutchinson(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    out, pull = torch.func.vjp(_NET, u[:3])
    return torch.cat([out, -(pull(p[:3])[0] * p[:3]).sum().reshape(1)])


def _autograd_grad(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    with torch.enable_grad():
        x = u if u.requires_grad else u.detach().requires_grad_(True)
        energy = (torch.sin(x) * x**2).sum()
        (g,) = torch.autograd.grad(energy, x, create_graph=True)
    return g


_add("hamiltonian", _hamiltonian)
_add("cnf_trace", _cnf_trace, n_p=1)
_add("hutchinson", _hutchinson, n_p=3)
_CONV = _module(
    lambda: nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2),
        nn.Tanh(),
        nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.SiLU(),
        nn.Conv1d(2, 1, 3, padding=1),
    )
)


def _conv_energy(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    return torch.func.grad(lambda z: (_CONV(z.reshape(1, 2, 7)) ** 2).sum() * p[0])(u)


def _conv_weights(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    def energy(w: Tensor, v: Tensor) -> Tensor:
        x = F.conv2d(u.reshape(1, 2, 3, 2), w.reshape(2, 1, 2, 2), stride=2, padding=1, groups=2)
        x = F.conv_transpose2d(x, v.reshape(2, 1, 2, 2), stride=2)
        return (x**3).sum()

    return torch.cat(torch.func.grad(energy, (0, 1))(p[:8], p[8:])) * t


_add("conv_energy", _conv_energy, n_u=14, n_p=1)
_add("conv_weights", _conv_weights, n_u=12, n_p=16)
for _name, _act in {
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
    "log_softmax": lambda x: F.log_softmax(x, 0)[:2],
    "softmax": lambda x: F.softmax(x, 0)[:2],
    "layer_norm": lambda x: F.layer_norm(x, (4,))[:3],
    "leaky_relu": F.leaky_relu,
    "logsigmoid": F.logsigmoid,
    "relu": F.relu,
    "hardtanh": F.hardtanh,
    "norm": torch.linalg.norm,
    "solve": lambda x: torch.linalg.solve(_W + torch.diag(x + 3), x),
    "logsumexp": lambda x: torch.logsumexp(x, 0),
    "cumsum": lambda x: torch.cumsum(x, 0) ** 2,
    "pad": lambda x: F.pad(x[None, None], (1, 1), mode="reflect") ** 2,
    "amax": torch.amax,
    "sort": lambda x: x.sort().values ** 2 * torch.arange(4),
    "prod": torch.prod,
}.items():
    _add(
        f"grad_of_{_name}",
        lambda u, p, t, f=_act: torch.func.grad(lambda x: f(x * p).sum())(u) + t,
    )


def _ffjord(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    with torch.set_grad_enabled(True):
        z = u[:3] if u.requires_grad else u[:3].clone().requires_grad_(True)
        dz = _NET(z) * p[0]
        divergence = sum(torch.autograd.grad(dz[i], z, create_graph=True)[0][i] for i in range(3))
    return torch.cat([dz, -divergence.reshape(1)])


_add("ffjord", _ffjord)
_add("jvp_inside", lambda u, p, t: torch.func.jvp(lambda x: torch.sin(x) * p, (u,), (p,))[1] + t)
_add("vmap", lambda u, p, t: torch.vmap(lambda a, b: torch.sin(a * b) + t)(u, p))
_add(
    "vmap_rows",
    lambda u, p, t: torch.vmap(lambda x: torch.tanh(x @ p.reshape(2, 2)))(u.reshape(2, 2)).reshape(
        -1
    ),
)
_add("hessian", lambda u, p, t: torch.func.hessian(lambda x: (x**4 * p).sum())(u) @ u + t)

# ---- constants and types

_add("tensor_literal", lambda u, p, t: u * torch.tensor([1.0, 2.0, 3.0, 4.0]) + p * t)
_add("as_tensor", lambda u, p, t: u * torch.as_tensor([0.5, 1.5, 2.5, 3.5], dtype=u.dtype) + p * t)
_add(
    "linspace", lambda u, p, t: u * torch.linspace(0, 1, 4, dtype=u.dtype) + p * torch.arange(4) + t
)
_add("casts", lambda u, p, t: u.double() * p.to(torch.float64) + t.type_as(u))
_add("int_cast", lambda u, p, t: u * (2 * p).long() + (u > 0).int() * t + u.int())
_add("math_constants", lambda u, p, t: torch.sin(2 * math.pi * t) * u + math.exp(0.5) * p)
_add(
    "forcing", lambda u, p, t: torch.stack([u[1], p[0] * torch.cos(p[1] * t) - u[0]]), n_u=2, n_p=2
)
_add("t_reshape", lambda u, p, t: torch.cat([u, t.view(1)])[:4] * p + t.unsqueeze(0).expand(4) * u)
_add("time_copied", lambda u, p, t: torch.tensor(t) * u + torch.as_tensor(t) * p)
_add("ldexp", lambda u, p, t: torch.ldexp(u, torch.tensor([1, 2, 0, 3])) * p + t)
_add("losses", lambda u, p, t: F.huber_loss(u, p, reduction="none") + F.mse_loss(u, p) * t)
_add("similarity", lambda u, p, t: F.cosine_similarity(u[None], p[None]) * u + t)
_add(
    "resize",
    lambda u, p, t: (
        F.interpolate(u.view(1, 1, 2, 2), scale_factor=2, mode="bilinear").view(-1)[:4] * p
    ),
)
_add(
    "attention_fn",
    lambda u, p, t: F.scaled_dot_product_attention(*[x.view(1, 2, 2) for x in (u, p, u)]).view(-1),
)
_add("detach", lambda u, p, t: u.detach() * p + t)
_add("identity", lambda u, p, t: u)
_add("zeros", lambda u, p, t: torch.zeros_like(u))
_add("no_u", lambda u, p, t: p * t)
