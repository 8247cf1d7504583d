"""Two phases part (Allen and Cahn's equation): stiff diffusion and reaction, the sides of a split.

python examples/two_phases.py [--engine julia] [--quick]

KenCarp4 (julia engine) takes the diffusion implicitly and the reaction explicitly; the sundials
engine solves for their sum.
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps
from pysciml.engines.choice import engine as chosen_engine


def diffusion(u, width, t):
    # nothing flows out at the ends
    return (width * len(u)) ** 2 * torch.cat([u[:1], u, u[-1:]]).diff(n=2)


def energy(u, width):
    # of states (..., n): that of the fronts, and of what is not in either phase
    n = u.shape[-1]
    return ((width * n * u.diff()) ** 2).sum(-1) / (2 * n) + ((1 - u**2) ** 2).mean(-1) / 4


def main(argv=None):
    args, f64 = arguments(__doc__, argv), torch.float64
    width = torch.tensor(0.03, dtype=f64, requires_grad=True)
    x = torch.linspace(0.0, 1.0, 120 if args.quick else 240, dtype=f64)
    sides = (diffusion, lambda u, p, t: u - u**3)
    prob = ps.SplitODEProblem(*sides, 0.1 * torch.cos(9 * x), (0.0, 12.0), width)
    alg = ps.CVODE_BDF() if chosen_engine(args.engine).name == "sundials" else ps.KenCarp4()
    sol = ps.solve(prob, alg, saveat=0.1, engine=args.engine, reltol=1e-6, abstol=1e-6)
    total = energy(sol.u, width)
    (slope,) = torch.autograd.grad(total[-1], width)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    left.pcolormesh(sol.t, x, sol.u.detach().T, cmap="RdBu", shading="nearest")
    left.set(xlabel="t", ylabel="x")
    right.plot(sol.t, total.detach(), sol.t, 8**0.5 * width.item() + 0 * sol.t, ":")
    right.set(xlabel="t", title="energy, and that of three fronts (dotted)")
    save(figure, args, "two_phases.png")
    return {"energy": float((total[-1] / width).detach()), "slope": float(slope)}


if __name__ == "__main__":
    main()
