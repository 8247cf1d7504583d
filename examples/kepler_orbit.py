"""A planet for 200 years: a symplectic method keeps its energy, another one loses it.

python examples/kepler_orbit.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps


def energy(p, q, mass, t):
    return 0.5 * p.square().sum(-1) - mass / q.square().sum(-1).sqrt()


def main(argv=None):
    args, f64, year = arguments(__doc__, argv), torch.float64, 2 * torch.pi
    years, mass = 20 if args.quick else 200, torch.tensor(1.0, dtype=f64)
    # at its nearest to the sun, on an ellipse of eccentricity 1/2
    p0, q0 = torch.tensor([0.0, 3**0.5], dtype=f64), torch.tensor([0.5, 0.0], dtype=f64)
    prob = ps.HamiltonianProblem(energy, p0, q0, (0.0, years * year), mass)
    runs = {"adaptive": ps.solve(prob, engine=args.engine, saveat=0.1, reltol=1e-5)}
    if runs["adaptive"].engine == "julia":
        runs["KahanLi8"] = ps.solve(prob, ps.KahanLi8(), engine="julia", dt=year / 150)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    drift = {}
    for name, sol in runs.items():
        error = (energy(*sol.u, mass, sol.t) + 0.5).abs()
        drift[name] = float(error[-100:].max())
        left.plot(*sol.u[1].T, lw=0.3)
        right.semilogy(sol.t / year, error + 1e-16, lw=0.5, label=name)
    left.set(xlabel="x", ylabel="y", title=f"{years} orbits", aspect="equal")
    right.set(xlabel="years", title="error of the energy")
    right.legend()
    save(figure, args, "kepler_orbit.png")
    return drift


if __name__ == "__main__":
    print(main())
