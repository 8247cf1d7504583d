"""Fit the rates of Lotka-Volterra, and the start, to noisy observations of both species.

    python examples/lotka_volterra_fit.py

Multiple shooting finds the neighbourhood from rates that are far off, and the whole trajectory is
fitted from there. Prints the rates beside those that made the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

import pysciml as ps
from pysciml.fit import MultipleShooting, two_stage

TRUE = torch.tensor([0.55, 0.028, 0.80, 0.024], dtype=torch.float64)
OPTIONS = {"engine": "sundials", "abstol": 1e-7, "reltol": 1e-7}


def lotka_volterra(v: Tensor, log_p: Tensor, t: Tensor) -> Tensor:
    """In logarithms of populations and rates: all of them stay positive."""
    a, b, c, d = log_p.exp()
    prey, predators = v.exp()
    return torch.stack([a - b * predators, d * prey - c])


def main() -> Tensor:
    """Returns the fitted rates, (4,)."""
    t = torch.linspace(0.0, 20.0, 41, dtype=torch.float64)
    v0 = torch.tensor([30.0, 4.0], dtype=torch.float64).log()
    truth = ps.ODEProblem(lotka_volterra, v0, (0.0, 20.0), TRUE.log())
    noise = 0.05 * torch.randn(
        41, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    data = ps.solve(truth, ps.CVODE_BDF(), saveat=t, **OPTIONS).u + noise

    log_p = torch.tensor([1.0, 0.01, 0.3, 0.01], dtype=torch.float64).log().requires_grad_()
    prob = ps.remake(truth, p=log_p)
    shooting = MultipleShooting(prob, t, data, intervals=5, alg=ps.CVODE_BDF(), **OPTIONS)
    two_stage(shooting, [log_p, shooting.starts], adam_steps=200, lr=3e-2, lbfgs_steps=50,
              description="shooting")  # fmt: skip

    start = shooting.starts[0].detach().clone().requires_grad_()

    def loss() -> Tensor:
        u = ps.solve(ps.remake(prob, u0=start), ps.CVODE_BDF(), saveat=t, **OPTIONS).u
        return (u - data).square().mean()

    result = two_stage(loss, [log_p, start], adam_steps=0, lbfgs_steps=50, description="whole")

    rates = log_p.detach().exp()
    print(f"rms error of the logarithms {result.loss**0.5:.4f} (the noise has 0.05)")
    for name, true, found in zip("abcd", TRUE.tolist(), rates.tolist(), strict=True):
        print(f"{name}: fitted {found:.4f}, true {true:.4f}")
    return rates


if __name__ == "__main__":
    main()
