"""How fast is the reaction within a porous pellet? Found from what the pellet takes up.

python examples/catalyst_pellet.py [--engine julia] [--quick]

u'' = m^2 u exp(g (1 - u)) from the pellet's centre to its surface, where u = 1: a reaction that
heats itself. For a large m it is over within a thin layer, which shooting does not get through.
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps

f64 = torch.float64


def reaction(u, p, x):
    return torch.stack([u[1], p["m"] ** 2 * u[0] * torch.exp(p["g"] * (1 - u[0]))])


def pellet(m, engine):
    conditions = (lambda u, p: u[1], lambda u, p: u[0] - 1)
    guess = torch.tensor([0.0, 0.0], dtype=f64)
    prob = ps.TwoPointBVProblem(reaction, conditions, guess, (0.0, 1.0), {"m": m, "g": 1.0})
    alg = ps.SolveBVP() if engine == "sundials" else ps.MIRK4()
    return ps.solve(prob, alg, dt=0.01, engine=engine)


def main(argv=None):
    args = arguments(__doc__, argv)
    args.engine = args.engine if args.engine == "julia" else "sundials"
    measured = pellet(20.0, args.engine).u[-1, 1].log()
    log_m = torch.tensor(0.0, dtype=f64, requires_grad=True)
    for step in range(4):  # Newton's method: the uptake's slope is the gradient
        off = pellet(log_m.exp(), args.engine).u[-1, 1].log() - measured
        (slope,) = torch.autograd.grad(off, log_m)
        log_m = (log_m - off / slope).detach().requires_grad_()
        print(f"step {step}: m = {log_m.exp().item():.6f}, off by {abs(off.item()):.1e}")
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for m in (1.0, 5.0, 100.0) if args.quick else (1.0, 2.0, 5.0, 20.0, 100.0):
        sol = pellet(m, args.engine)
        axes.plot(sol.t, sol.u[:, 0], ".-", ms=3, lw=0.8, label=f"m = {m:g}")
    axes.set(xlabel="x", ylabel="u", title="what is left of the reactant, at the mesh's points")
    axes.legend()
    save(figure, args, "catalyst_pellet.png")
    return {"m": log_m.exp().item(), "left": sol.u[0, 0].item()}


if __name__ == "__main__":
    main()
