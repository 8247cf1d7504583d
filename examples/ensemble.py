"""An epidemic 10,000 times over: what uncertain rates leave certain.

python examples/ensemble.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps


def sir(u, p, t):
    s, i, r = u.unbind()
    return torch.stack([-p[0] * s * i, p[0] * s * i - p[1] * i, p[1] * i])


def main(argv=None):
    args, f64 = arguments(__doc__, argv), torch.float64
    torch.manual_seed(0)
    u0, p = torch.tensor([0.99, 0.01, 0.0], dtype=f64), torch.tensor([0.5, 0.15], dtype=f64)
    prob = ps.ODEProblem(sir, u0, (0.0, 80.0), p)
    rates = p * torch.exp(0.15 * torch.randn(200 if args.quick else 10_000, 2, dtype=f64))
    ensemble = ps.EnsembleProblem(prob, p=rates.requires_grad_())
    sim = ps.solve(ensemble, engine=args.engine, saveat=1.0, reltol=1e-6)
    infected = sim.u[:, :, 1]
    peak = infected.amax(1)
    (slope,) = torch.autograd.grad(peak.mean(), rates)  # through every member
    print(f"peak {peak.mean():.3f} +- {peak.std():.3f}; by the rates {slope.sum(0).tolist()}")
    low, middle, high = infected.detach().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=f64), 0)
    figure, ax = plt.subplots(figsize=(7, 3.8))
    ax.fill_between(sim.t, low, high, alpha=0.3, label="90 % of the members")
    ax.plot(sim.t, middle, label="median")
    ax.set(xlabel="days", ylabel="infected", title=f"{len(sim)} epidemics")
    ax.legend()
    save(figure, args, "ensemble.png")
    return {"peak": float(peak.mean().detach()), "slope": slope.sum(0).tolist()}


if __name__ == "__main__":
    main()
