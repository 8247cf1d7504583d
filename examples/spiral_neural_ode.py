"""A neural ODE learns a spiral's vector field from short pieces of one trajectory.

    python examples/spiral_neural_ode.py [--engine julia] [--quick]

The truth is u' = A u^3 (componentwise cube). Batches of 32 short pieces are solved together.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor, nn

import pysciml as ps
from pysciml.nn import NeuralODE

A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)


class Cubed(nn.Module):
    """A network of the cubes: near the origin the motion slows down, as the spiral's does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2)).double()

    def forward(self, u: Tensor) -> Tensor:
        return self.net(u**3)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns the root mean square error of the whole learned trajectory."""
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    u0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    t = torch.linspace(0.0, 25.0, 1000, dtype=torch.float64)
    truth = ps.ODEProblem(lambda u, p, t: (u**3) @ p, u0, (0.0, 25.0), A)
    data = ps.solve(truth, engine=args.engine, saveat=t, reltol=1e-8, abstol=1e-8).u

    piece = 40
    window = t[:piece] - t[0]
    model = NeuralODE(
        Cubed(), (0.0, float(window[-1])), saveat=window, engine=args.engine, reltol=1e-5,
        abstol=1e-6,
    )  # fmt: skip
    steps = 150 if args.quick else 2000
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-5)
    losses = []
    for step in range(steps):
        start = torch.randint(len(t) - piece, (32,))
        want = data[start[None, :] + torch.arange(piece)[:, None]]
        optimiser.zero_grad()
        loss = (model(want[0]) - want).square().mean()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % max(1, steps // 5) == 0:
            print(f"step {step + 1:5d}  loss {losses[-1]:.2e}")

    with torch.no_grad():
        fitted = model.solve(u0, t, (0.0, 25.0)).u
        axis = torch.linspace(-2.2, 2.2, 23, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        arrows = model.vector_field(grid)
    error = float((fitted - data).square().mean().sqrt())
    print(f"root mean square error over the whole trajectory: {error:.3f}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2))
    length = arrows.norm(dim=1, keepdim=True)
    unit = arrows / length.clamp(min=1e-9)
    left.quiver(*grid.T, *unit.T, color="0.75", scale=35)
    left.plot(*data.T, "k--", lw=1, label="truth")
    left.plot(*fitted.T, "C0", lw=1.2, label="neural ODE")
    left.set(xlabel="$u_1$", ylabel="$u_2$", title="learned field and trajectory", aspect="equal")
    left.legend(loc="upper right")
    right.semilogy(losses, lw=0.8)
    right.set(xlabel="step", ylabel="mean square error", title="training")
    save(figure, args, "spiral_neural_ode.png")
    return {"error": error}


if __name__ == "__main__":
    main()
