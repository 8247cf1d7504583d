"""A wheel on a rough road, a random equation: how a damper calms it, with the slope of that.

python examples/rough_road.py [--quick]

It needs the julia engine, which solves random equations.
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps


def ride(u, p, t, W):
    """Height and speed on a spring, above a road whose height is a Wiener process."""
    return torch.stack([u[1], 4.0 * (W[0] - u[0]) - p * u[1]])


def main(argv=None):
    args, f64 = arguments(__doc__, argv), torch.float64
    u0, one = torch.zeros(2, dtype=f64), torch.zeros(1, dtype=f64)
    prob = ps.RODEProblem(ride, u0, (0.0, 10.0 if args.quick else 60.0), one[0], one)
    dampers = torch.linspace(0.2, 3.0, 8, dtype=f64).requires_grad_()
    how = {"dt": 0.01, "seed": 3, "engine": "julia"}  # a seed is a road
    rides = [ps.solve(ps.remake(prob, p=p), ps.RandomHeun(), **how) for p in dampers]
    shaking = torch.stack([sol.u[:, 1].square().mean() for sol in rides])
    (slopes,) = torch.autograd.grad(shaking.sum(), dampers)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    left.plot(rides[0].t.detach(), rides[0].W.u.detach(), color="0.6", lw=0.7, label="road")
    for sol, p in zip(rides[::7], dampers.tolist()[::7], strict=True):
        left.plot(sol.t.detach(), sol.u.detach()[:, 0], label=f"damper {p:.1f}")
    left.set(xlabel="t", ylabel="height")
    left.legend(fontsize="small")
    for p, y, dy in zip(dampers.tolist(), shaking.tolist(), slopes.tolist(), strict=True):
        right.plot([p - 0.15, p, p + 0.15], [y - 0.15 * dy, y, y + 0.15 * dy], "C0.-")
    right.set(xlabel="damper", ylabel="mean square speed", title="with its slopes")
    save(figure, args, "rough_road.png")
    return {"shaking": shaking.tolist(), "slopes": slopes.tolist(), "dampers": dampers.tolist()}


if __name__ == "__main__":
    main()
