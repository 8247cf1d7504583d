"""An epidemic as a jump process: single outbreaks by Gillespie's method, and their mean equation.

python examples/epidemic.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps

f64 = torch.float64


def main(argv=None):
    args = arguments(__doc__, argv)
    start, p = torch.tensor([495, 5, 0]), torch.tensor([0.4 / 500, 0.1], dtype=f64)
    # susceptible + infected -> 2 infected; infected -> recovered
    jumps = ps.MassActionJump(lambda p: p, [{0: 1, 1: 1}, {1: 1}], [{0: -1, 1: 1}, {1: -1, 2: 1}])
    prob = ps.JumpProblem(ps.DiscreteProblem(None, start, (0.0, 100.0), p), ps.Direct(), jumps)
    sim = ps.solve(
        ps.EnsembleProblem(prob), ps.SSAStepper(), trajectories=20 if args.quick else 100,
        saveat=1.0, seed=1, engine="julia",
    )  # fmt: skip
    mean = ps.ODEProblem(
        lambda u, p, t: u[1] * torch.stack([-p[0] * u[0], p[0] * u[0] - p[1], p[1] + 0 * u[0]]),
        start.to(f64), (0.0, 100.0), p,
    )  # fmt: skip
    sol = ps.solve(mean, ps.Tsit5(), saveat=1.0, engine="julia")
    figure, ax = plt.subplots(figsize=(7, 4))
    ax.plot(sim.t, sim.u[:, :, 1].T, color="C1", lw=0.5, alpha=0.4)
    ax.plot(sim.t, sim.u[:, :, 1].double().mean(0), color="C3", label="mean of the outbreaks")
    ax.plot(sol.t, sol.u[:, 1], "k--", label="rate equation")
    ax.set(xlabel="t (days)", ylabel="infected", title="outbreaks from five infected among 500")
    ax.legend()
    save(figure, args, "epidemic.png")
    return {"recovered": sim.u[:, -1, 2].double().mean().item(), "rates": sol.u[-1, 2].item()}


if __name__ == "__main__":
    main()
