"""A hybrid model learns a bouncing ball from data: gravity, drag, and what a bounce does.

    python examples/bouncing_ball.py [--engine julia] [--quick]

Gradients pass through the bounces, the motion of their times included.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor, nn

from pysciml.nn import HybridODE, Transition

TRUE = {"gravity": 9.8, "drag": 0.2, "restitution": 0.85}


class Flight(nn.Module):
    """Height and speed ``u``: ``h' = v``, ``v' = -gravity - drag v``."""

    def __init__(self, gravity: float, drag: float) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(gravity, dtype=torch.float64))
        self.drag = nn.Parameter(torch.tensor(drag, dtype=torch.float64))

    def forward(self, u: Tensor) -> Tensor:
        return torch.stack([u[1], -self.gravity - self.drag * u[1]])


class Bounce(nn.Module):
    def __init__(self, restitution: float) -> None:
        super().__init__()
        self.restitution = nn.Parameter(torch.tensor(restitution, dtype=torch.float64))

    def forward(self, u: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(u[0]), -self.restitution * u[1]])


def height(u: Tensor) -> Tensor:
    return u[0]


def ball(gravity: float, drag: float, restitution: float, engine: str) -> HybridODE:
    return HybridODE(
        Flight(gravity, drag), Transition(height, Bounce(restitution), direction=-1), (0.0, 2.5),
        engine=engine, reltol=1e-7, abstol=1e-8,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns the learned parameters."""
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    start = torch.tensor([[1.0, 0.0], [1.6, 1.0]], dtype=torch.float64)
    t = torch.linspace(0.05, 2.5, 60, dtype=torch.float64)
    with torch.no_grad():
        truth = ball(**TRUE, engine=args.engine)
        clean = truth(start, t)[..., 0]
    data = clean + 0.02 * torch.randn_like(clean)

    model = ball(8.0, 0.0, 0.7, args.engine)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-2)
    steps = 200 if args.quick else 300
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-4)
    losses = []
    for step in range(steps):
        optimiser.zero_grad()
        # later bounces depend on all before: the record opens up from its start
        reach = min(len(t), 12 + int(48 * step / (0.5 * steps)))
        loss = (model(start, t[:reach])[..., 0] - data[:reach]).square().mean()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    found = {
        "gravity": float(model.vector_field[0].gravity.detach()),
        "drag": float(model.vector_field[0].drag.detach()),
        "restitution": float(model.transitions[0].reset.restitution.detach()),
    }
    for name, value in found.items():
        print(f"{name:12s} true {TRUE[name]:.3f}, learned {value:.3f}")

    fine = torch.linspace(0.0, 2.5, 600, dtype=torch.float64)
    with torch.no_grad():
        fitted = model(start, fine)[..., 0]
        first = ball(8.0, 0.0, 0.7, args.engine)(start, fine)[..., 0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8), width_ratios=(2, 1))
    for i in range(2):
        left.plot(t, data[:, i], f"C{i}.", ms=5)
        left.plot(fine, fitted[:, i], f"C{i}", label=f"learned, ball {i + 1}")
        left.plot(fine, first[:, i], f"C{i}:", lw=0.8, label="before training")
    left.set(xlabel="t", ylabel="height")
    left.legend(loc="upper right")
    right.semilogy(losses)
    right.set(xlabel="step", title="mean square error (record opening up)")
    save(figure, args, "bouncing_ball.png")
    return found


if __name__ == "__main__":
    main()
