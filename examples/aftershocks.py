"""Events that call forth further ones: their rate is learned from when they came.

python examples/aftershocks.py [--engine julia] [--quick]
"""

import math

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import nn

from pysciml import nn as pn

f64 = torch.float64
REST, KICK, DECAY, END = 0.4, 1.2, 2.0, 30.0


def record(end, seed):
    """The times of the events of a self-exciting process, by thinning (Ogata 1981)."""
    generator = torch.Generator().manual_seed(seed)
    t, excited, times = 0.0, 0.0, []
    while True:
        bound = REST + excited
        wait = float(torch.empty((), dtype=f64).exponential_(bound, generator=generator))
        t, excited = t + wait, excited * math.exp(-DECAY * wait)
        if t > end:
            return torch.tensor(times, dtype=f64)
        if float(torch.rand((), generator=generator)) * bound < REST + excited:
            times.append(t)
            excited += KICK


def true_rate(at, times):
    """A rate at rest; each event adds to it, and what it has added decays."""
    gaps = at[:, None] - times
    return REST + KICK * torch.where(gaps > 0, torch.exp(-DECAY * gaps.clamp(min=0)), 0.0).sum(1)


def true_log_likelihood(times, grid):
    return true_rate(times, times).log().sum() - torch.trapezoid(true_rate(grid, times), grid)


class Jump(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, u, mark):
        return self.net(torch.cat([u, mark]))


def main(argv=None):
    args = arguments(__doc__, argv)
    torch.manual_seed(1)
    steps = 100 if args.quick else 400
    records, fresh = [record(END, seed) for seed in range(40)], record(END, 104)
    model = pn.NeuralJumpSDE(
        nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)),
        nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1), nn.Softplus()),
        Jump(), tspan=(0.0, END), engine=args.engine, abstol=1e-4, reltol=1e-4,
    ).double()  # fmt: skip
    start = torch.zeros(2, dtype=f64)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for i in range(steps):
        optimiser.zero_grad()
        loss = -model(start, records[i % len(records)]) / 20
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()

    # records that were not trained on: the log-likelihood above that of the best constant rate
    others = [record(END, seed) for seed in range(100, 110)]
    count, grid = sum(map(len, others)), torch.linspace(0.0, END, 5001, dtype=f64)
    level = sum(map(len, records)) / (END * len(records))
    constant = count * math.log(level) - level * END * len(others)
    with torch.no_grad():
        learned = sum(float(model(start, times)) for times in others)
        hidden = model.solve(start, fresh, saveat=grid).u[:, :2]
    true = sum(float(true_log_likelihood(times, grid)) for times in others)
    gains = {"learned": (learned - constant) / count, "true": (true - constant) / count}
    print("gained on a constant rate, nats an event: {learned:.3f}, of {true:.3f}".format(**gains))

    figure, axes = plt.subplots(figsize=(10, 3.2))
    axes.plot(grid, true_rate(grid, fresh), "k--", lw=1, label="true")
    axes.plot(grid, model.intensity(hidden)[:, 0].detach(), label="learned")
    axes.plot(fresh, 0 * fresh, "|", ms=12, color="C3", label="events")
    axes.set(xlabel="t", title="the rate of events in a record that was not trained on")
    axes.legend()
    save(figure, args, "aftershocks.png")
    return gains


if __name__ == "__main__":
    main()
