"""``python -m benchmarks.van_der_pol``: gradients through the jumps of a relaxation oscillation.

How the error of the continuous adjoint follows the tolerance of the forward solve, for the Van der
Pol oscillator ``y'' = mu (1 - y^2) y' - y`` past the first of its jumps (at 0.81 mu). The
gradient by mu is held against the forward sensitivity equations, written out with the state and
solved by SciPy's Radau.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.integrate import solve_ivp

import pysciml as ps

F64 = torch.float64


def f(u: torch.Tensor, p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Time in units of mu (so that a period is about 1.6), with the rate scaled to match."""
    y, z = u
    return torch.stack([z, p**2 * ((1 - y**2) * z - y)])


def reference(mu: float, t1: float) -> float:
    """d y(t1) / d mu."""

    def rhs(t: float, x: np.ndarray) -> np.ndarray:
        y, z, sy, sz = x
        slope = (1 - y**2) * z - y
        by_mu = 2 * mu * slope + mu**2 * ((-2 * y * z - 1) * sy + (1 - y**2) * sz)
        return np.array([z, mu**2 * slope, sz, by_mu])

    done = solve_ivp(rhs, (0.0, t1), [2.0, -0.66, 0.0, 0.0], method="Radau", rtol=1e-11, atol=1e-13)
    return float(done.y[2, -1])


def error(mu: float, t1: float, tol: float, want: float) -> float:
    """Relative error of the adjoint's d y(t1) / d mu at a forward tolerance."""
    p = torch.tensor(mu, dtype=F64, requires_grad=True)
    prob = ps.ODEProblem(f, torch.tensor([2.0, -0.66], dtype=F64), (0.0, t1), p)
    sol = ps.solve(prob, ps.CVODE_BDF(), engine="sundials", saveat=[t1], abstol=tol, reltol=tol)
    (got,) = torch.autograd.grad(sol.u[-1, 0], p)
    return abs(float(got) - want) / abs(want)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.van_der_pol", description=__doc__)
    parser.add_argument("--mu", type=float, default=1000.0)
    parser.add_argument("--t1", type=float, default=1.0, help="in units of mu")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-6, 1e-8, 1e-10, 1e-12])
    arguments = parser.parse_args()
    want = reference(arguments.mu, arguments.t1)
    print(f"Van der Pol, mu = {arguments.mu:g}: d y({arguments.t1:g} mu) / d mu = {want:.10g}\n")
    print("| tolerance of the forward solve | relative error of the gradient |")
    print("|---:|---:|")
    for tol in arguments.tolerances:
        print(f"| {tol:.0e} | {error(arguments.mu, arguments.t1, tol, want):.1e} |")


if __name__ == "__main__":
    main()
