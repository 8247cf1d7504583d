"""Recover the rates of Robertson's stiff reactions from concentrations over nine decades of time.

    python examples/stiff_rates.py

The rates span nine orders of magnitude, and so do the time scales: an explicit solver would need
some billions of steps. Gradients go through CVODE_BDF by the adjoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

import pysciml as ps
from pysciml.fit import two_stage

TRUE = torch.tensor([0.04, 1e4, 3e7], dtype=torch.float64)
OPTIONS = {"engine": "sundials", "abstol": 1e-12, "reltol": 1e-8}


def robertson(u: Tensor, log_k: Tensor, t: Tensor) -> Tensor:
    """Reactions a -> b, b + c -> a + c, 2 b -> b + c."""
    k = log_k.exp()
    a, b, c = u
    slow, fast, fastest = k[0] * a, k[1] * b * c, k[2] * b**2
    return torch.stack([fast - slow, slow - fast - fastest, fastest])


def main() -> Tensor:
    """Returns the fitted rates, (3,)."""
    u0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    t = torch.logspace(-4, 5, 40, dtype=torch.float64)
    truth = ps.ODEProblem(robertson, u0, (0.0, 1e5), TRUE.log())
    data = ps.solve(truth, ps.CVODE_BDF(), saveat=t, **OPTIONS).u
    size = data.abs().amax(0)

    wrong = torch.tensor([2.0, 0.4, 3.0], dtype=torch.float64)
    log_k = (TRUE * wrong).log().requires_grad_()
    prob = ps.remake(truth, p=log_k)

    def loss() -> Tensor:
        u = ps.solve(prob, ps.CVODE_BDF(), saveat=t, **OPTIONS).u
        return ((u - data) / size).square().mean()

    two_stage(loss, [log_k], adam_steps=100, lr=5e-2, lbfgs_steps=60)
    rates = log_k.detach().exp()
    for i, (true, start, found) in enumerate(zip(TRUE, TRUE * wrong, rates, strict=True)):
        print(f"k{i + 1}: started at {start:.4g}, fitted {found:.6g}, true {true:.6g}")
    return rates


if __name__ == "__main__":
    main()
