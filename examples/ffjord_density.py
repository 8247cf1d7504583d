"""A continuous normalising flow learns a density of two moons, and samples from it.

    python examples/ffjord_density.py [--engine julia] [--quick]

Kinetic regularisation keeps the paths straight and the solver's cost low.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor, nn

from pysciml.nn import FFJORD, Kinetic


def moons(count: int) -> Tensor:
    """Points on two half circles that reach into each other, with some noise."""
    angle, which = math.pi * torch.rand(count), torch.rand(count) < 0.5
    upper = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    lower = torch.stack([1.0 - torch.cos(angle), 0.5 - torch.sin(angle)], 1)
    x = torch.where(which[:, None], upper, lower) - torch.tensor([0.5, 0.25])
    return (1.5 * x + 0.1 * torch.randn(count, 2)).double()


class TimeField(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        ).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, t.expand(len(x), 1)], 1))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns the mean log-density of new points, and the density's integral."""
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    steps, batch = (60, 64) if args.quick else (500, 128)
    model = FFJORD(
        TimeField(), 2, regularise=Kinetic(0.01), engine=args.engine, reltol=1e-4, abstol=1e-4
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 5e-4)
    history = []
    for step in range(steps):
        optimiser.zero_grad()
        likelihood = model.log_prob(moons(batch)).mean()
        (model.penalty - likelihood).backward()
        optimiser.step()
        schedule.step()
        history.append(float(likelihood.detach()))
        if (step + 1) % max(1, steps // 5) == 0:
            assert model.stats is not None
            print(
                f"step {step + 1:4d}  log-density {history[-1]:.3f}, {model.stats.nf} evaluations"
            )

    model.eval()
    axis = torch.linspace(-4.0, 4.0, 100, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        fresh = float(model.log_prob(moons(500)).mean())
        density = model.log_prob(grid).exp().reshape(100, 100)
        samples = model.sample(1000)
        z = torch.randn(60, 2, dtype=torch.float64)
        flow = model.solve(z, torch.linspace(0, 1, 30).double()).u
    whole = float(density.sum() * (axis[1] - axis[0]) ** 2)
    print(f"log-density of new points {fresh:.3f}; the density integrates to {whole:.3f}")

    figure, axes = plt.subplots(
        1, 4, figsize=(14, 3.6), sharex=True, sharey=True, layout="constrained"
    )
    axes[0].scatter(*moons(1000).T, s=3)
    axes[0].set_title("data")
    axes[1].imshow(density.T, origin="lower", extent=(-4, 4, -4, 4), cmap="viridis")
    axes[1].set_title("learned density")
    axes[2].scatter(*samples.T, s=3, color="C1")
    axes[2].set_title("samples of the model")
    for i in range(60):
        axes[3].plot(*flow[:, i].T, "0.6", lw=0.5)
    axes[3].scatter(*flow[0].T, s=6, label="t = 0")
    axes[3].scatter(*flow[-1].T, s=6, label="t = 1")
    axes[3].set(title="paths of the flow", xlim=(-3, 3), ylim=(-3, 3))
    for axis in axes:
        axis.set_aspect("equal")
    axes[3].legend(loc="upper right")
    save(figure, args, "ffjord_density.png")
    return {"log_density": fresh, "integral": whole}


if __name__ == "__main__":
    main()
