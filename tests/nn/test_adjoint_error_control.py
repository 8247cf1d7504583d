"""Which adjoints control the error of the parameters' gradient (their steps do, or do not)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml import nn as pn
from pysciml.engines.sundials.stepping import _Stepping
from support import F64, assert_close, f64

_SPEED = 60.0


class Driven(torch.nn.Module):
    """``u' = -u + mean(p) cos(60 t)``: a smooth cotangent exp(t - 1), and an integrand that is not.

    ``dL/dp_i`` of ``L = u(1)`` is the integral of ``exp(t - 1) cos(60 t) / count``.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.ones(count, dtype=F64))

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        return -u + self.p.mean() * torch.cos(_SPEED * t)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Evaluations of what adjoints step backwards."""
    count, run = [0], _Stepping.run

    def counting(self: Any, value: Any, *args: Any) -> Any:
        def one(*given: Any) -> None:
            count[0] += 1
            value(*given)

        return run(self, one, *args)

    with mock.patch.object(_Stepping, "run", counting):
        yield count


def evaluations(sensealg: Any, count: int) -> int:
    model = pn.NeuralODE(Driven(count), engine="sundials", sensealg=sensealg, abstol=1e-8,
                         reltol=1e-8)  # fmt: skip
    out = model(f64([1.0]))
    with counted() as number:
        out.sum().backward()
    w, e = _SPEED, math.exp(-1.0)
    want = (math.cos(w) + w * math.sin(w) - e) / (1 + w * w) / count
    assert_close(model.vector_field.p.grad, torch.full((count,), want, dtype=F64), 1e-5)
    return number[0]


def test_the_parameters_gradient_is_outside_of_the_error_test() -> None:
    """Kidger et al. 2021: the adjoint's steps follow the cotangent alone, however many p."""
    quadrature = {n: evaluations(ps.QuadratureAdjoint(), n) for n in (1, 50)}
    inside = evaluations(ps.InterpolatingAdjoint(), 1)
    assert 0 < quadrature[1] == quadrature[50]
    assert inside > 4 * quadrature[1]


@pytest.mark.parametrize("sensealg", [None, ps.GaussAdjoint(), ps.BacksolveAdjoint()])
def test_other_adjoints_of_the_same_equation(engine: str, sensealg: Any) -> None:
    model = pn.NeuralODE(Driven(2), engine=engine, sensealg=sensealg, abstol=1e-9, reltol=1e-9)
    model(f64([1.0])).sum().backward()
    w, e = _SPEED, math.exp(-1.0)
    want = (math.cos(w) + w * math.sin(w) - e) / (1 + w * w) / 2
    assert_close(model.vector_field.p.grad, f64(want, want), 1e-5)
