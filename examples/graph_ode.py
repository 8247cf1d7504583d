"""A graph neural ODE learns how an epidemic spreads over a network, and predicts new outbreaks.

    python examples/graph_ode.py [--engine julia] [--quick]

The truth: infected shares x_i with x_i' = 0.8 (1 - x_i) sum_j A_ij x_j - 0.3 x_i on a random graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor, nn

from pysciml.nn import GraphConv, GraphNeuralODE, NeuralODE, normalised_adjacency

NODES = 16


class Spread(nn.Module):
    """The model: what each node's rate is, from itself and its neighbours' mean."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.around = GraphConv(1, 16, adjacency)
        self.own = nn.Linear(1, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.own(x) + self.around(x)))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns the error (root mean square) on outbreaks that were not seen."""
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    edges = torch.stack([torch.arange(NODES), (torch.arange(NODES) + 1) % NODES])
    extra = torch.randint(NODES, (2, 6))
    edges = torch.cat([edges, extra[:, extra[0] != extra[1]]], 1)
    adjacency = normalised_adjacency(edges, NODES, self_loops=False).double()

    options = {"engine": args.engine, "reltol": 1e-5, "abstol": 1e-6}
    truth = NeuralODE(lambda x: 0.8 * (1.0 - x) * (adjacency @ x) - 0.3 * x, (0.0, 6.0), **options)

    def outbreaks(count: int) -> Tensor:
        x0 = 0.01 * torch.ones(count, NODES, 1, dtype=torch.float64)
        for k in range(count):
            x0[k, torch.randperm(NODES)[: 1 + k % 3]] = 0.6
        return x0

    t = torch.linspace(0.0, 6.0, 13, dtype=torch.float64)
    x0 = outbreaks(8)
    data = truth(x0, t)
    data = data + 0.01 * torch.randn_like(data)
    model = GraphNeuralODE(adjacency, Spread(adjacency), (0.0, 6.0), **options).double()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    steps = 80 if args.quick else 500
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 5e-4)
    for step in range(steps):
        optimiser.zero_grad()
        # the record opens up from its start
        reach = min(len(t), 3 + int(10 * step / (0.5 * steps)))
        loss = (model(x0, t[:reach]) - data[:reach]).square().mean()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % max(1, steps // 5) == 0:
            print(f"step {step + 1:4d}  mean square error {float(loss.detach()):.2e}")

    new = outbreaks(6)
    with torch.no_grad():
        long = torch.linspace(0.0, 12.0, 25, dtype=torch.float64)
        want, got = (m.solve(new, long, (0.0, 12.0)).u for m in (truth, model))
    square = (got - want).square()
    error, later = float(square[:13].mean().sqrt()), float(square[13:].mean().sqrt())
    print(f"error on new outbreaks: {error:.4f} up to t = 6, {later:.4f} beyond")

    figure, axes = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
    angle = 2 * torch.pi * torch.arange(NODES) / NODES
    place = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    for axis, x, title in (
        (axes[0], want[6, 0, :, 0], "truth"),
        (axes[1], got[6, 0, :, 0], "model"),
    ):
        for i, j in edges.T:
            axis.plot(*place[[int(i), int(j)]].T, color="0.8", lw=1, zorder=1)
        dots = axis.scatter(*place.T, c=x, vmin=0, vmax=0.5, cmap="magma_r", s=90, zorder=2)
        axis.set(title=f"infected at t = 3: {title}", aspect="equal")
        axis.axis("off")
    figure.colorbar(dots, ax=axes[:2], shrink=0.7)
    for i in range(0, NODES, 3):
        axes[2].plot(long, want[:, 0, i, 0], "k--", lw=1)
        axes[2].plot(long, got[:, 0, i, 0], lw=1.2)
    axes[2].axvspan(6, 12, color="0.93")
    axes[2].set(xlabel="t", title="some nodes (dashed: truth; grey: forecast)")
    save(figure, args, "graph_ode.png")
    return {"error": error, "later": later}


if __name__ == "__main__":
    main()
