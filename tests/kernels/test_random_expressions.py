"""Random expressions: capture, derivatives and simplification against torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreter import evaluate
from torch import Tensor

from pysciml.kernels.capture import capture
from pysciml.kernels.kernels import Kernels

Expression = Callable[[Tensor, Tensor, Tensor], Tensor]

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "tanh": torch.tanh,
    "neg": torch.neg,
    "square": torch.square,
    "softplus": torch.nn.functional.softplus,
    "sigmoid": torch.sigmoid,
    "roll": lambda x: torch.roll(x, 1, 0),
    "flip": lambda x: x.flip(0),
    "cumsum": lambda x: torch.cumsum(x, 0),
    "reverse_half": lambda x: torch.cat([x[2:], x[:2]]),
    "mean": lambda x: x - x.mean(),
    "pick": lambda x: x[torch.tensor([1, 0, 3, 3])],
    "pad": lambda x: torch.nn.functional.pad(x, (1, 0))[:-1],
    "matrix": lambda x: (x.reshape(2, 2) @ x.reshape(2, 2).T).reshape(-1),
    "zero": torch.zeros_like,
    "first": lambda x: x[0] * torch.ones(4, dtype=x.dtype),
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda a, b: a / (2 + b**2),
    "where": lambda a, b: torch.where(a > b, a, 2 * b),
    "stack": lambda a, b: torch.stack([a[0], b[1], a[2] * b[3], b.sum()]),
    "outer": lambda a, b: torch.outer(a, b).sum(0),
    "max": torch.maximum,
}


def _leaf(name: str) -> Expression:
    return {
        "u": lambda u, p, t: u,
        "p": lambda u, p, t: p,
        "t": lambda u, p, t: t.expand(4),
        "one": lambda u, p, t: torch.ones_like(u),
    }[name]


def _apply(name: str, a: Expression) -> Expression:
    return lambda u, p, t: _UNARY[name](a(u, p, t))


def _combine(name: str, a: Expression, b: Expression) -> Expression:
    return lambda u, p, t: _BINARY[name](a(u, p, t), b(u, p, t))


EXPRESSIONS = st.recursive(
    st.sampled_from(["u", "u", "p", "t", "one"]).map(_leaf),
    lambda inner: st.one_of(
        st.builds(_apply, st.sampled_from(sorted(_UNARY)), inner),
        st.builds(_combine, st.sampled_from(sorted(_BINARY)), inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(EXPRESSIONS)
def test_random_expression(fn: Expression) -> None:
    at = {
        "u": torch.tensor([0.31, -0.52, 0.73, 0.94], dtype=torch.float64),
        "p": torch.tensor([-0.35, 0.66, 0.27, 0.88], dtype=torch.float64),
        "t": torch.tensor(0.41, dtype=torch.float64),
    }
    kernels = Kernels(capture(fn, at))
    found = kernels.capture
    args = {k: v.numpy() for k, v in zip(found.names, found.example(at), strict=True)}
    args["w"] = np.array([1.0, -0.5, 0.25, 2.0])
    leaves = [x.clone().requires_grad_(True) for x in at.values()]
    out = fn(*leaves)
    grads = (
        torch.autograd.grad(out, leaves, torch.as_tensor(args["w"]), allow_unused=True)
        if out.requires_grad
        else [None] * 3
    )
    jacobian = torch.autograd.functional.jacobian(lambda u: fn(u, at["p"], at["t"]), at["u"])
    wanted = {
        "value": out.detach(),
        "jac:u": jacobian,
        **{
            f"vjp:{name}": torch.zeros_like(x) if g is None else g
            for (name, x), g in zip(at.items(), grads, strict=True)
        },
    }
    for role, want in wanted.items():
        got = evaluate(kernels.graph(role), **args)[0]
        size = max(1.0, float(want.abs().max()))
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-9, atol=1e-12 * size, err_msg=role)
