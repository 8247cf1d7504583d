"""A state that jumps between two wells by noise, the noise fitted through its paths.

python examples/double_well.py [--quick]

It needs the julia engine: the slopes follow each path of the Euler-Maruyama method.
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps


def moments(u):
    return torch.stack([u.pow(2).mean(), u.pow(4).mean(), u.diff(dim=0).pow(2).mean()])


def main(argv=None):
    args, f64 = arguments(__doc__, argv), torch.float64
    p = torch.tensor([0.6, 0.9], dtype=f64, requires_grad=True)
    # many particles at once: each entry of the state has a Wiener process of its own
    prob = ps.SDEProblem(
        lambda u, p, t: u - p[0] * u**3, lambda u, p, t: p[1] * torch.ones_like(u),
        torch.zeros(500 if args.quick else 4000, dtype=f64), (0.0, 20.0), p,
    )  # fmt: skip
    truth = ps.remake(prob, p=torch.tensor([1.0, 0.5], dtype=f64))
    data = ps.solve(truth, ps.EM(), dt=0.05, saveat=0.5, seed=0, engine="julia").u[10:]
    optimiser = torch.optim.Adam([p], lr=0.05)
    for seed in range(1, 81 if args.quick else 201):
        optimiser.zero_grad()
        u = ps.solve(prob, ps.EM(), dt=0.05, saveat=0.5, seed=seed, engine="julia").u[10:]
        (moments(u) / moments(data) - 1).square().sum().backward()
        optimiser.step()
    figure, ax = plt.subplots(figsize=(7, 3.8))
    ax.hist([data.flatten(), u.detach().flatten()], 60, label=["data", "fitted"], density=True)
    ax.set(xlabel="u", title="where the particles are")
    ax.legend()
    save(figure, args, "double_well.png")
    return {"well": p[0].item(), "noise": p[1].item()}


if __name__ == "__main__":
    print(main())
