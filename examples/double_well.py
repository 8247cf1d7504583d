"""A state that jumps between two wells by noise, the noise fitted through its paths.

python examples/double_well.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps

f64 = torch.float64


def paths(p, seed, count, end=20.0):
    """Many particles at once: each entry of the state has a Wiener process of its own."""
    prob = ps.SDEProblem(
        lambda u, p, t: u - p[0] * u**3, lambda u, p, t: p[1] * torch.ones_like(u),
        torch.zeros(count, dtype=f64), (0.0, end), p,
    )  # fmt: skip
    return ps.solve(prob, ps.EM(), dt=0.05, saveat=0.5, seed=seed, engine="julia")


def features(u):
    return torch.stack([u.pow(2).mean(), u.pow(4).mean(), u.diff(dim=0).pow(2).mean()])


def main(argv=None):
    args = arguments(__doc__, argv)
    count, steps = (500, 80) if args.quick else (4000, 200)
    data = paths(torch.tensor([1.0, 0.5], dtype=f64), 0, count).u[10:]
    p = torch.tensor([0.6, 0.9], dtype=f64, requires_grad=True)
    optimiser = torch.optim.Adam([p], lr=0.05)
    for step in range(steps):
        optimiser.zero_grad()
        u = paths(p, step + 1, count).u[10:]
        (features(u) / features(data) - 1).square().sum().backward()
        optimiser.step()
    print(f"well {p[0].item():.3f} (true 1), noise {p[1].item():.3f} (true 0.5)")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    sol = paths(p.detach(), 1000, 4, 100.0)
    left.plot(sol.t, sol.u, lw=0.7)
    left.set(xlabel="t", ylabel="u", title="four paths of the fitted equation")
    right.hist([data.flatten(), u.detach().flatten()], 60, label=["data", "fitted"], density=True)
    right.set(xlabel="u", title="where particles are")
    right.legend()
    save(figure, args, "double_well.png")
    return {"well": p[0].item(), "noise": p[1].item()}


if __name__ == "__main__":
    main()
