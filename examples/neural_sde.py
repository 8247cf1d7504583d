"""The drift and the noise of time series, as networks, from their transitions.

python examples/neural_sde.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import nn

from pysciml import nn as pn

f64 = torch.float64
GAP = 0.2


def true_drift(u):
    return u - u**3


def true_noise(u):
    return 0.8 + 0.3 * torch.sin(2 * u)


def record(length, engine):
    """Twenty states in two wells, seen every 0.2, solved with short steps: (length + 1, 20, 1)."""
    times = GAP * torch.arange(length + 1, dtype=f64)
    model = pn.NeuralSDE(
        true_drift, true_noise, (0.0, float(times[-1])), dt=GAP / 10, engine=engine
    )
    with torch.no_grad():
        return model(torch.zeros(20, 1, dtype=f64), times, seed=3)


def net(last):
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1), last).double()


def energy_score(samples, seen):
    """Of two samples a transition: least where they are distributed as what is seen."""
    a, b = samples
    return ((a - seen).abs() + (b - seen).abs() - (a - b).abs()).mean() / 2


def main(argv=None):
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    length, steps = (200, 300) if args.quick else (500, 1200)
    series = record(length, args.engine)
    before, after = series[:-1].reshape(-1, 1), series[1:].reshape(-1, 1)
    model = pn.NeuralSDE(
        net(nn.Identity()), net(nn.Softplus()), (0.0, GAP), dt=GAP / 4, engine=args.engine
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        at = torch.randint(len(before), (1024,))
        optimiser.zero_grad()
        samples = model(before[at].repeat(2, 1)).reshape(2, -1, 1)
        energy_score(samples, after[at]).backward()
        optimiser.step()
        schedule.step()

    grid = torch.linspace(
        *before.quantile(torch.tensor([0.02, 0.98], dtype=f64)).tolist(), 100, dtype=f64
    )[:, None]
    with torch.no_grad():
        drift, noise = model.drift(grid), model.diffusion(grid)
    errors = {
        "drift": float((drift - true_drift(grid)).abs().mean()),
        "noise": float((noise - true_noise(grid)).abs().mean()),
    }
    print(", ".join(f"mean error of the {k} {v:.3f}" for k, v in errors.items()))

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6))
    left.plot(GAP * torch.arange(len(series)), series[:, :3, 0], lw=0.7)
    left.set(xlabel="t", ylabel="u", title="three of the twenty series")
    for axes, learned, true, name in (
        (middle, drift, true_drift, "drift"), (right, noise, true_noise, "noise"),
    ):  # fmt: skip
        axes.plot(grid, true(grid), "k--", label="true")
        axes.plot(grid, learned, label="learned")
        axes.set(xlabel="u", title=name)
        axes.legend()
    save(figure, args, "neural_sde.png")
    return errors


if __name__ == "__main__":
    main()
