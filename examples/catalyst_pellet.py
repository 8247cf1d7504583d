"""How fast is the reaction within a porous pellet? Found from what the pellet takes up.

python examples/catalyst_pellet.py [--engine julia] [--quick]

u'' = m^2 u exp(1 - u) from the pellet's centre to its surface, where u = 1: a reaction that
heats itself. For a large m it is over within a thin layer, which shooting does not get through.
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps


def reaction(u, m, x):
    return torch.stack([u[1], m**2 * u[0] * torch.exp(1 - u[0])])


def pellet(m, engine):
    conditions = (lambda u, m: u[1], lambda u, m: u[0] - 1)
    guess = torch.zeros(2, dtype=torch.float64)
    prob = ps.TwoPointBVProblem(reaction, conditions, guess, (0.0, 1.0), m)
    alg = ps.MIRK4() if engine == "julia" else ps.SolveBVP()
    return ps.solve(prob, alg, dt=0.01, engine=engine)


def main(argv=None):
    args, m = arguments(__doc__, argv), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    measured = pellet(20.0, args.engine).u[-1, 1]
    for _ in range(5):  # Newton's method: the uptake's slope is the gradient
        uptake = pellet(m, args.engine).u[-1, 1]
        (slope,) = torch.autograd.grad(uptake, m)
        m = (m - (uptake - measured) / slope).detach().requires_grad_()
    figure, ax = plt.subplots(figsize=(7, 3.6))
    for rate in (1.0, 5.0, 100.0) if args.quick else (1.0, 2.0, 5.0, 20.0, 100.0):
        sol = pellet(rate, args.engine)
        ax.plot(sol.t, sol.u[:, 0], ".-", ms=3, lw=0.8, label=f"m = {rate:g}")
    ax.set(xlabel="x", ylabel="u", title="what is left of the reactant, at the mesh's points")
    ax.legend()
    save(figure, args, "catalyst_pellet.png")
    return {"m": m.item(), "left": sol.u[0, 0].item()}


if __name__ == "__main__":
    print(main())
