"""Hamiltonian and Lagrangian networks learn a pendulum and keep its energy; a plain one does not.

python examples/pendulum_energy.py [--engine julia] [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor, nn

from pysciml.nn import ContinuousModule, HamiltonianNN, LagrangianNN, NeuralODE


def energy(u: Tensor) -> Tensor:
    """Of a pendulum of unit mass and length, its angle and speed on the last axis."""
    return 0.5 * u[..., 1].square() + 1.0 - torch.cos(u[..., 0])


def pendulum(u: Tensor) -> Tensor:
    return torch.stack([u[..., 1], -torch.sin(u[..., 0])], -1)


def net(outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, outputs)
    ).double()  # fmt: skip


class Lagrangian(nn.Module):
    """A kinetic energy to start from, so that the acceleration is defined from the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(1)

    def forward(self, u: Tensor) -> Tensor:
        return 0.5 * u[..., 1].square() + self.net(u)[..., 0]


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns each model's largest error in energy over a long time."""
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    options = {"engine": args.engine, "reltol": 1e-6, "abstol": 1e-6}
    t = torch.linspace(0.0, 1.5, 8, dtype=torch.float64)
    start = torch.stack([4.0 * torch.rand(40) - 2.0, 2.0 * torch.rand(40) - 1.0], 1).double()
    truth = NeuralODE(pendulum, (0.0, 1.5), **options)
    data = truth(start, t)
    data = data + 0.02 * torch.randn_like(data)  # measured with noise

    models: dict[str, ContinuousModule] = {
        "plain": NeuralODE(net(2), (0.0, 1.5), saveat=t, **options),
        "Hamiltonian": HamiltonianNN(net(1), (0.0, 1.5), saveat=t, **options),
        "Lagrangian": LagrangianNN(Lagrangian(), (0.0, 1.5), saveat=t, **options),
    }
    steps = 30 if args.quick else 400
    for name, model in models.items():
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-4)
        for _ in range(steps):
            optimiser.zero_grad()
            loss = (model(data[0]) - data).square().mean()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"{name:12s} mean square error {float(loss.detach()):.2e} (noise 4e-04)")

    u0 = torch.tensor([1.5, 0.0], dtype=torch.float64)
    long = torch.linspace(0.0, 60.0, 600, dtype=torch.float64)
    exact = truth.solve(u0, long, (0.0, 60.0)).u
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6))
    left.plot(*exact.T, "k--", lw=1, label="truth")
    middle.plot(long, exact[:, 0], "k--", lw=1)
    right.axhline(float(energy(u0)), color="k", ls="--", lw=1)
    result = {}
    for name, model in models.items():
        with torch.no_grad():
            path = model.solve(u0, long, (0.0, 60.0)).u
        drift = float((energy(path) - energy(u0)).abs().max())
        result[name] = drift
        print(f"{name:12s} largest error of the energy in 60 time units: {drift:.3f}")
        left.plot(*path.T, lw=0.8, label=name)
        middle.plot(long, path[:, 0], lw=0.8)
        right.plot(long, energy(path), lw=1, label=name)
    left.set(xlabel="angle", ylabel="speed", title="phase plane")
    middle.set(xlabel="t", ylabel="angle", xlim=(0, 30), title="trained on pieces of 1.5")
    right.set(xlabel="t", title="energy (true formula) along the solution")
    right.legend()
    save(figure, args, "pendulum_energy.png")
    return result


if __name__ == "__main__":
    main()
