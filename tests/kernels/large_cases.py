"""Models of the sizes that are trained: products go to BLAS there, loops run by vectors.

As :mod:`op_table`, whose cases are too small for either: dozens to hundreds of states, networks
with batches, and operands that are expanded, transposed, flipped, strided and overlapping views.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from op_table import Case, _module
from torch import Tensor, nn

LARGE: list[Case] = []


def _add(name: str, fn: Callable[..., Tensor], n_u: int, n_p: int) -> None:
    LARGE.append(Case(f"large_{name}", fn, n_u=n_u, n_p=n_p, domain=(-1.0, 1.0), rtol=1e-8))


def _sequential(*layers: nn.Module) -> nn.Module:
    return _module(lambda: nn.Sequential(*layers))


# ---- networks over batches; the weights are closed over, p scales

_MLP = _sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Softplus(), nn.Linear(24, 2))
_WIDE = _sequential(nn.Linear(3, 40), nn.SiLU(), nn.Linear(40, 3))
_ENERGY = _sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
_CONV = _module(lambda: nn.Conv1d(2, 6, 5, padding=2, padding_mode="circular"))
_BACK = _module(lambda: nn.Conv1d(6, 2, 3, padding=1))
_PLANE = _module(lambda: nn.Conv2d(3, 4, 3, padding=1))
_PLANE_BACK = _module(lambda: nn.Conv2d(4, 3, 3, padding=1, stride=1))
_NORM = _module(lambda: nn.LayerNorm(16))
_CELL = _module(lambda: nn.GRUCell(6, 8))
_ATTENTION = _module(lambda: nn.MultiheadAttention(8, 2, batch_first=True))

_add("mlp_batch", lambda u, p, t: (_MLP(u.view(40, 2)) * p[0] + t).reshape(-1), 80, 1)
_add("mlp_wide", lambda u, p, t: (_WIDE(u.view(30, 3)) * p + t).reshape(-1), 90, 3)
_add(
    "mlp_time_column",
    lambda u, p, t: _MLP(torch.stack([u, t.expand(50)], 1)).sum(1) * p[0],
    50,
    1,
)


def _symplectic(x: Tensor) -> Tensor:
    q, p = x.chunk(2, 1)
    return torch.cat([p, -q], 1)


def _hamiltonian(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    x = u.view(40, 2)
    return (_symplectic(torch.func.grad(lambda x: _ENERGY(x).sum())(x)) * p[0] + t).reshape(-1)


def _hamiltonian_vmap(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    rows = torch.vmap(torch.func.grad(lambda x: _ENERGY(x).sum()))(u.view(20, 2))
    return (_symplectic(rows) * p[0]).reshape(-1)


def _exact_trace(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    x = u.view(20, 4)[:, :3]
    jacobian = torch.vmap(torch.func.jacrev(_WIDE))(x)
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    return torch.cat([_WIDE(x) * p[0], -trace], 1).reshape(-1)


_add("hamiltonian", _hamiltonian, 80, 1)
_add("hamiltonian_vmap", _hamiltonian_vmap, 40, 1)
_add("exact_trace", _exact_trace, 80, 1)
_add(
    "conv1d",
    lambda u, p, t: (_BACK(torch.tanh(_CONV(u.view(1, 2, 48)))) * p[0] + t).reshape(-1),
    96,
    1,
)
_add(
    "conv2d_batch",
    lambda u, p, t: (_PLANE_BACK(F.gelu(_PLANE(u.view(2, 3, 6, 6)))) * p[0]).reshape(-1),
    216,
    1,
)
_add("layer_norm", lambda u, p, t: (_NORM(u.view(12, 16)) * p + t).reshape(-1), 192, 16)
_add(
    "group_norm",
    lambda u, p, t: (F.group_norm(u.view(4, 8, 6), 4) * p[:, None] + t).reshape(-1),
    192,
    8,
)
_add(
    "gru_cell",
    lambda u, p, t: (_CELL(p.view(12, 6), u.view(12, 8)) - u.view(12, 8)).reshape(-1) + t,
    96,
    72,
)
_add(
    "attention",
    lambda u, p, t: (_ATTENTION(*(u.view(2, 10, 8),) * 3)[0] * p[0] + t).reshape(-1),
    160,
    1,
)
_add(
    "softmax_pairs",
    lambda u, p, t: (torch.softmax(u.view(10, 10) @ p.view(10, 10), 1) @ u.view(10, 10)).view(-1),
    100,
    100,
)

# ---- products of views

_add("weights_are_p", lambda u, p, t: (u.view(20, 8) @ p.view(8, 8) + t).view(-1), 160, 64)
_add(
    "weights_are_p_turned", lambda u, p, t: (u.view(8, 20).T @ p.view(8, 8).T).reshape(-1), 160, 64
)
_add("left_is_p", lambda u, p, t: (p.view(12, 8) @ u.view(8, 12)).reshape(-1)[:96] + t, 96, 96)
_add(
    "left_expanded",
    lambda u, p, t: (u[:10].expand(10, 10) @ p.view(10, 10)).reshape(-1) * u,
    100,
    100,
)
_add(
    "left_column_expanded",
    lambda u, p, t: (u[:10, None].expand(10, 10) @ p.view(10, 10)).reshape(-1) * u,
    100,
    100,
)
_add(
    "right_expanded",
    lambda u, p, t: (p.view(10, 10) @ u[:10, None].expand(10, 10)).reshape(-1) + u,
    100,
    100,
)
_add(
    "right_row_expanded",
    lambda u, p, t: (p.view(10, 10) @ u[:10].expand(10, 10)).reshape(-1) + u,
    100,
    100,
)
_add(
    "all_expanded",
    lambda u, p, t: (u[0].expand(10, 10) @ p[1].expand(10, 10)).reshape(-1) * u + p[0],
    100,
    2,
)
_add(
    "windows",
    lambda u, p, t: (u.unfold(0, 9, 1) @ p.view(9, 10)).sum(1).repeat(2)[:100] + u,
    100,
    90,
)
_add(
    "overlapping_both",
    lambda u, p, t: F.pad(u.unfold(0, 9, 1) @ p.unfold(0, 9, 1).T, (0, 1)).sum(1).repeat(2)[:100],
    100,
    40,
)
_add(
    "strided_rows",
    lambda u, p, t: (u.view(20, 10)[::2] @ p.view(10, 20)[:, ::2]).reshape(-1).repeat(2) + t,
    200,
    200,
)
_add(
    "strided_columns",
    lambda u, p, t: (u.view(10, 20)[:, 1::2] @ p.view(20, 10)[::2]).reshape(-1).repeat(2) + t,
    200,
    200,
)
_add(
    "flipped",
    lambda u, p, t: (u.view(10, 10).flip(0) @ p.view(10, 10).flip(1)).reshape(-1) + u.flip(0),
    100,
    100,
)
_add("gram", lambda u, p, t: (u.view(10, 10).T @ u.view(10, 10)).reshape(-1) * p[0] + t, 100, 1)
_add("outer", lambda u, p, t: torch.outer(u, p) @ u[:20], 50, 20)
_add("matrix_vector", lambda u, p, t: p.view(40, 40) @ u + t * u, 40, 1600)
_add("vector_matrix", lambda u, p, t: u @ p.view(40, 40) + t * u, 40, 1600)
_add(
    "bmm",
    lambda u, p, t: torch.bmm(u.view(3, 8, 6), p.view(3, 6, 6)).reshape(-1) + t,
    144,
    108,
)
_add(
    "bmm_shared",
    lambda u, p, t: (u.view(3, 8, 6) @ p.view(6, 6)).reshape(-1) + t * u,
    144,
    36,
)
_add(
    "bmm_turned",
    lambda u, p, t: (u.view(3, 6, 8).transpose(1, 2) @ p.view(3, 6, 6).mT).reshape(-1),
    144,
    108,
)
_add(
    "bmm_left_shared",
    lambda u, p, t: (p.view(8, 8) @ u.view(3, 8, 8)).reshape(-1) + t,
    192,
    64,
)
_add(
    "einsum",
    lambda u, p, t: (
        torch.einsum("bij,jkl,bkl->bi", u.view(6, 4, 6), p.view(6, 4, 6), u.view(6, 4, 6))
        .reshape(-1)
        .repeat(6)
        + t
    ),
    144,
    144,
)
_add(
    "bilinear",
    lambda u, p, t: F.bilinear(u.view(8, 5), u.view(8, 5), p.view(5, 5, 5)).reshape(-1) + t,
    40,
    125,
)
_add(
    "cdist", lambda u, p, t: torch.cdist(u.view(20, 3), p.view(10, 3)).sum(1).repeat(3) + t, 60, 30
)
_add(
    "gravity",
    lambda u, p, t: (
        (
            (u.view(12, 1, 3) - u.view(1, 12, 3))
            * p[:, None]
            / ((u.view(12, 1, 3) - u.view(1, 12, 3)).square().sum(-1, keepdim=True) + 0.1) ** 1.5
        )
        .sum(0)
        .reshape(-1)
    ),
    36,
    12,
)

# ---- stencils, gathers, scans, reductions

_add(
    "laplacian",
    lambda u, p, t: (
        (
            torch.stack([torch.roll(u.view(12, 12), s, d) for s in (1, -1) for d in (0, 1)]).sum(0)
            - 4 * u.view(12, 12)
        ).reshape(-1)
        * p[0]
        + t
    ),
    144,
    1,
)
_add(
    "padded_stencil",
    lambda u, p, t: (
        p[0]
        * F.conv2d(
            F.pad(u.view(1, 1, 12, 12), (1, 1, 1, 1), mode="circular"),
            torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]], dtype=torch.float64),
        ).reshape(-1)
    ),
    144,
    1,
)
_add(
    "slice_assignment",
    lambda u, p, t: torch.cat([u[:1] * 0, p[0] * (u[2:] - 2 * u[1:-1] + u[:-2]), u[-1:] * t]),
    100,
    1,
)
_EDGES = torch.randint(0, 30, (2, 90), generator=torch.Generator().manual_seed(1))
_add(
    "messages",
    lambda u, p, t: (
        torch.zeros(30, 4, dtype=u.dtype)
        .index_add(0, _EDGES[1], torch.tanh(u.view(30, 4)[_EDGES[0]] @ p.view(4, 4)))
        .reshape(-1)
    ),
    120,
    16,
)
_add("gathered", lambda u, p, t: u[_EDGES[0]] * p[_EDGES[1]] + t, 90, 30)
_add("cumulative", lambda u, p, t: torch.cumsum(u.view(10, 10), 0).reshape(-1) * p[0] + t, 100, 1)
_add("moments", lambda u, p, t: (u - u.mean()) / (u.var() + 1) + p[0] * u.logsumexp(0) + t, 100, 1)
_add(
    "extremes",
    lambda u, p, t: u.view(10, 10).amax(1).repeat(10) + u.view(10, 10).amin(0).repeat(10) * p[0],
    100,
    1,
)
_add(
    "systems",
    lambda u, p, t: (
        torch.linalg.solve(
            p.view(6, 4, 4) + 5 * torch.eye(4, dtype=u.dtype), u.view(6, 4, 4)
        ).reshape(-1)
        + t
    ),
    96,
    96,
)
_add(
    "activations",
    lambda u, p, t: (
        F.elu(u) + F.gelu(u) * F.softplus(u) + torch.sigmoid(u) * torch.exp(u) + p[0] * t
    ),
    100,
    1,
)
