"""A second-order neural ODE learns a damped, stiffening spring from positions alone.

    python examples/second_order.py [--engine julia] [--quick]

Only positions are measured. The acceleration is learned, and so are the speeds at the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor, nn

from pysciml.nn import SecondOrderNeuralODE


class Acceleration(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 1)).double()

    def forward(self, u: Tensor) -> Tensor:
        return self.net(u)


def true_acceleration(u: Tensor) -> Tensor:
    """Duffing's oscillator: a spring that stiffens, with friction."""
    x, v = u[..., :1], u[..., 1:]
    return -x - x**3 - 0.2 * v


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns errors (root mean square) of positions where there are data, and beyond."""
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    options = {"engine": args.engine, "reltol": 1e-6, "abstol": 1e-6}
    start = torch.tensor([[1.5, 0.0], [-0.5, 1.5], [0.3, -0.8]], dtype=torch.float64)
    t = torch.linspace(0.0, 6.0, 40, dtype=torch.float64)
    long = torch.linspace(0.0, 15.0, 300, dtype=torch.float64)
    truth = SecondOrderNeuralODE(true_acceleration, (0.0, 6.0), **options)
    measured = truth(start, t)[..., :1]
    measured = measured + 0.03 * torch.randn_like(measured)

    model = SecondOrderNeuralODE(Acceleration(), (0.0, 6.0), saveat=t, **options)
    speeds = nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))
    places = nn.Parameter(measured[0].clone())
    steps = 300 if args.quick else 3000
    optimiser = torch.optim.Adam([*model.parameters(), speeds, places], lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-4)
    for step in range(steps):
        optimiser.zero_grad()
        # the record opens up from its start, so that early errors do not hide late data
        reach = min(len(t), 10 + int(30 * step / (0.4 * steps)))
        u = model(torch.cat([places, speeds], 1), t[:reach])
        loss = (u[..., :1] - measured[:reach]).square().mean()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % max(1, steps // 5) == 0:
            print(f"step {step + 1:4d}  mean square error {float(loss.detach()):.2e}")

    with torch.no_grad():
        u0 = torch.cat([places, speeds], 1)
        fitted = model.solve(u0, long, (0.0, 15.0)).u
        exact = truth.solve(start, long, (0.0, 15.0)).u
    error = (fitted - exact)[..., 0].square().mean(1)
    inside, beyond = float(error[long <= 6].mean().sqrt()), float(error[long > 6].mean().sqrt())
    print(f"error of positions: {inside:.3f} where data are, {beyond:.3f} beyond (noise 0.03)")
    print("speeds at the start: " + ", ".join(f"{v:.2f}" for v in speeds.detach()[:, 0].tolist())
          + "  (true 0.00, 1.50, -0.80)")  # fmt: skip

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8))
    for i in range(3):
        left.plot(t, measured[:, i, 0], f"C{i}.", ms=4)
        left.plot(long, exact[:, i, 0], "k--", lw=0.8)
        left.plot(long, fitted[:, i, 0], f"C{i}", lw=1.2)
        right.plot(*exact[:, i].T, "k--", lw=0.8)
        right.plot(*fitted[:, i].T, f"C{i}", lw=1.2)
    left.axvspan(6, 15, color="0.93")
    left.set(xlabel="t", ylabel="x", title="positions (dashed: truth; grey: forecast)")
    right.set(xlabel="x", ylabel="v", title="phase plane: speeds were not measured")
    save(figure, args, "second_order.png")
    return {"inside": inside, "beyond": beyond}


if __name__ == "__main__":
    main()
