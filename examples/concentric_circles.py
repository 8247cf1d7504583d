"""An augmented neural ODE separates concentric circles; a plain one has to tear the ring apart.

    python examples/concentric_circles.py [--engine julia] [--quick]

Paths of a neural ODE in the plane cannot cross, so a disc inside a ring stays inside it, and can
only be squeezed out through a gap between the ring's points (Dupont, Doucet, Teh 2019). One more
dimension lets the disc be lifted out.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor, nn

from pysciml.nn import AugmentedNeuralODE, ContinuousModule, NeuralODE


def circles(count: int) -> tuple[Tensor, Tensor]:
    """Points of a disc (label 0) and a ring around it (label 1)."""
    label = (torch.arange(count) % 2).double()
    radius = torch.where(label == 0, torch.rand(count) * 0.5, 1.0 + 0.5 * torch.rand(count))
    angle = 6.283 * torch.rand(count)
    x = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1)
    return x.double(), label


def field(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, size)).double()


def train(
    flow: ContinuousModule, size: int, steps: int
) -> tuple[nn.Module, list[float], list[int]]:
    model = nn.Sequential(flow, nn.Linear(size, 1).double())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses, cost = [], []
    for _ in range(steps):
        x, label = circles(128)
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], label)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        assert flow.stats is not None
        cost.append(flow.stats.nf or 0)
    return model, losses, cost


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns the losses of both models on new points."""
    args = arguments(__doc__, argv)
    steps = 100 if args.quick else 400
    options = {"engine": args.engine, "reltol": 1e-4, "abstol": 1e-4}
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6))
    result = {}
    for k, name in enumerate(("plain", "augmented")):
        torch.manual_seed(0)
        if name == "plain":
            flow: ContinuousModule = NeuralODE(field(2), **options)
        else:
            flow = AugmentedNeuralODE(field(3), augment=1, keep=True, **options)
        model, losses, cost = train(flow, 2 if name == "plain" else 3, steps)
        x, label = circles(1000)
        with torch.no_grad():
            score = model(x)[:, 0]
            loss = float(nn.functional.binary_cross_entropy_with_logits(score, label))
            axis = torch.linspace(-1.7, 1.7, 70, dtype=torch.float64)
            grid = torch.cartesian_prod(axis, axis)
            chance = torch.sigmoid(model(grid)[:, 0]).reshape(70, 70)
        right = float(((score > 0) == (label > 0)).double().mean())
        print(
            f"{name:10s} loss {loss:.3f}, {100 * right:.1f} % right, {cost[-1]} evaluations a solve"
        )
        result[name] = loss
        axes[k].contourf(axis, axis, chance.T, levels=20, cmap="RdBu", alpha=0.8)
        for value, color in ((0, "gold"), (1, "white")):
            axes[k].scatter(
                *x[:400][label[:400] == value].T, s=9, color=color, edgecolors="k", lw=0.4
            )
        axes[k].set(title=f"{name}: {100 * right:.1f} % right", aspect="equal")
        axes[2].semilogy(losses, label=name)
        axes[3].plot(cost, label=name)
    axes[2].set(xlabel="step", title="loss")
    axes[3].set(xlabel="step", title="evaluations of the field a solve")
    axes[2].legend()
    save(figure, args, "concentric_circles.png")
    return result


if __name__ == "__main__":
    main()
