"""Lowerings of matrix operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pysciml.kernels.graph import Node, const, make
from pysciml.kernels.lower_shape import select, stack, triangle
from pysciml.kernels.lowering import (
    LoweringError,
    broadcast_shape,
    elementwise,
    expand,
    lowers,
    permute,
    reshape,
)


@dataclass(frozen=True)
class Factors:
    """Stands for the LU factors (or pivots) of ``matrix``, which no kernel ever forms.

    torch's solve returns them for its own backward pass; solving with them is solving with the
    matrix.
    """

    matrix: Node
    pivots: bool = False

    def view(self, rule: Callable[..., Any], ctx: Any, *args: Any, **kwargs: Any) -> Factors:
        """A view of the factors (batch axes added by vmap) is the same view of the matrix."""
        return self if self.pivots else Factors(rule(ctx, self.matrix, *args, **kwargs))


def batched(op: str, a: Node, b: Node) -> Node:
    """``matmul`` or ``solve`` with leading axes broadcast and joined into one."""
    lead = broadcast_shape(a.shape[:-2], b.shape[:-2])
    if not lead:
        return make(op, a, b)
    n = math.prod(lead)
    a3 = reshape(expand(a, lead + a.shape[-2:]), (n, *a.shape[-2:]))
    b3 = reshape(expand(b, lead + b.shape[-2:]), (n, *b.shape[-2:]))
    out = make(op, a3, b3)
    return reshape(out, lead + out.shape[-2:])


def mt(x: Node) -> Node:
    """The matrix transpose: the last two axes swapped."""
    return permute(x, [*range(x.ndim - 2), x.ndim - 1, x.ndim - 2])


def _weighted(value: float, x: Node) -> Node:
    return x if value == 1 else elementwise("mul", x, float(value))


def _plus(bias: Node, product: Node, beta: float, alpha: float) -> Node:
    if beta == 0:
        return _weighted(alpha, product)
    return elementwise("add", _weighted(beta, bias), _weighted(alpha, product))


@lowers("mm", "bmm")
def _mm(ctx: Any, a: Node, b: Node) -> Node:
    return make("matmul", a, b)


@lowers("mv")
def _mv(ctx: Any, a: Node, x: Node) -> Node:
    return reshape(make("matmul", a, reshape(x, (x.size, 1))), (a.shape[0],))


@lowers("dot", "vdot")
def _dot(ctx: Any, a: Node, b: Node) -> Node:
    return make("sum", make("mul", a, b), dims=(0,))


@lowers("addmm")
def _addmm(ctx: Any, bias: Node, a: Node, b: Node, beta: float = 1, alpha: float = 1) -> Node:
    return _plus(bias, make("matmul", a, b), beta, alpha)


@lowers("baddbmm")
def _baddbmm(ctx: Any, bias: Node, a: Node, b: Node, beta: float = 1, alpha: float = 1) -> Node:
    return _plus(bias, make("matmul", a, b), beta, alpha)


@lowers("addmv")
def _addmv(ctx: Any, bias: Node, a: Node, x: Node, beta: float = 1, alpha: float = 1) -> Node:
    return _plus(bias, _mv(ctx, a, x), beta, alpha)


@lowers("addr")
def _addr(ctx: Any, bias: Node, a: Node, b: Node, beta: float = 1, alpha: float = 1) -> Node:
    outer = elementwise("mul", reshape(a, (a.size, 1)), reshape(b, (1, b.size)))
    return _plus(bias, outer, beta, alpha)


@lowers("linalg_cross")
def _cross(ctx: Any, a: Node, b: Node, dim: int = -1) -> Node:
    shape = broadcast_shape(a.shape, b.shape)
    a, b = expand(a, shape), expand(b, shape)
    x, y = ([select(v, dim, i) for i in range(3)] for v in (a, b))
    parts = [
        elementwise("sub", elementwise("mul", x[i], y[j]), elementwise("mul", x[j], y[i]))
        for i, j in ((1, 2), (2, 0), (0, 1))
    ]
    return stack(parts, dim % a.ndim)


# ---- linear systems


def solve(a: Node, b: Node, left: bool = True, transposed: bool = False) -> Node:
    """X with A X = B, or X A = B; A transposed if asked."""
    if transposed:
        a = mt(a)
    return batched("solve", a, b) if left else mt(batched("solve", mt(a), mt(b)))


@lowers("_linalg_solve_ex")
def _solve_ex(
    ctx: Any, a: Node, b: Node, left: bool = True, check_errors: bool = False
) -> tuple[Any, ...]:
    vector = b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    if vector:
        x = solve(a, reshape(b, (*b.shape, 1)))
        out = reshape(x, x.shape[:-1])
    else:
        out = solve(a, b, left)
    return out, Factors(a), Factors(a, pivots=True), None


@lowers("linalg_lu_factor_ex")
def _lu_factor(ctx: Any, a: Node, *_: Any, **__: Any) -> tuple[Any, ...]:
    return Factors(a), Factors(a, pivots=True), None


@lowers("linalg_lu_solve")
def _lu_solve(
    ctx: Any, factors: Any, pivots: Any, b: Node, left: bool = True, adjoint: bool = False
) -> Node:
    if not isinstance(factors, Factors):
        raise LoweringError("LU factors that were not computed in the same function")
    return solve(factors.matrix, b, left, adjoint)


def _identity(a: Node) -> Node:
    n = a.shape[-1]
    return expand(const(np.eye(n)), a.shape)


@lowers("linalg_inv_ex")
def _inv_ex(ctx: Any, a: Node, check_errors: bool = False) -> tuple[Any, ...]:
    return solve(a, _identity(a)), None


def _unit_diagonal(a: Node) -> Node:
    eye = _identity(a)
    return elementwise("add", elementwise("mul", a, elementwise("sub", 1.0, eye)), eye)


@lowers("linalg_solve_triangular")
def _solve_triangular(
    ctx: Any, a: Node, b: Node, upper: bool, left: bool = True, unitriangular: bool = False
) -> Node:
    a = triangle(a, lower=not upper)
    return solve(_unit_diagonal(a) if unitriangular else a, b, left)


@lowers("_linalg_check_errors")
def _check_errors(ctx: Any, *_: Any, **__: Any) -> None:
    return None  # the kernel's own solve reports a singular matrix


@lowers("_linalg_det", "_linalg_slogdet")
def _det(ctx: Any, a: Node) -> Node:
    raise LoweringError(f"the determinant of a matrix of size {a.shape[-1]} (at most 32)")
