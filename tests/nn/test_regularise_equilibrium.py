"""The Jacobian of a deep equilibrium, kept small: closed form, and what it saves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pysciml as ps
from pysciml import nn as pn
from support import F64, assert_close, descend, net


def test_value_and_gradient_in_closed_form() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(0.2 * torch.randn(3, 3, dtype=F64))
    model = pn.DeepEquilibrium(lambda z, x: z @ w + x, regularise=pn.JacobianFrobenius(2.0))
    x = torch.randn(4, 3, dtype=F64)
    torch.manual_seed(1)
    y = model(x)
    torch.manual_seed(1)
    want = 2.0 * (torch.randn(4, 3, dtype=F64) @ w.T).square().sum(1).mean()
    assert_close(model.penalty, want, 1e-12)
    (got,) = torch.autograd.grad(model.penalty, w)
    assert_close(got, torch.autograd.grad(want, w)[0], 1e-12)
    assert_close(y, torch.linalg.solve(torch.eye(3, dtype=F64) - w.T, x.T).T, 1e-5)
    model.eval()
    model(x)
    assert model.penalty == 0.0


def test_training_with_it_saves_iterations() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 2, dtype=F64)
    want = torch.stack([x[:, 0] * x[:, 1], x[:, 0].sign()], 1)
    cost = {}
    for name, regularise in (("plain", None), ("jacobian", pn.JacobianFrobenius(0.5))):
        torch.manual_seed(0)
        cell, read = net(4, 2, 16), net(2)
        model = pn.DeepEquilibrium(
            lambda z, x, cell=cell: cell(torch.cat([z, x], dim=1)), regularise=regularise
        )
        descend(
            [*cell.parameters(), *read.parameters()],
            lambda model=model, read=read: (read(model(x)) - want).square().mean() + model.penalty,
            80,
            1e-2,
        )
        model.eval()
        model(x)
        cost[name] = model.iterations
    assert cost["jacobian"] < cost["plain"], cost


@pytest.mark.parametrize(
    "regularise",
    [pn.Kinetic(), pn.ErrorEstimate(), pn.StiffnessEstimate(), pn.RandomEndTime()],
)
def test_what_is_of_paths_is_refused(regularise: pn.Kinetic) -> None:
    with pytest.raises(ps.InputError, match="of a path in time, and a fixed point has none"):
        pn.DeepEquilibrium(lambda z, x: z, regularise=regularise)
