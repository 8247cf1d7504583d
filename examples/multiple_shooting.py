"""A neural ODE on a long, noisy record of a relaxation oscillation, by multiple shooting.

python examples/multiple_shooting.py [--engine julia] [--quick]
"""

import copy

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import nn

import pysciml as ps
from pysciml import nn as pn

f64 = torch.float64
END, NOISE = 160.0, 0.1


def fitzhugh_nagumo(u, p, t):
    v, w = u
    return torch.stack([v - v**3 / 3 - w + 0.5, 0.08 * (v + 0.7 - 0.8 * w)])


def record(engine):
    """Four and more periods, seen every 0.8 with noise."""
    times = torch.linspace(0.0, END, 201, dtype=f64)
    prob = ps.ODEProblem(fitzhugh_nagumo, torch.tensor([0.0, 0.0], dtype=f64), (0.0, END))
    true = ps.solve(prob, saveat=times, abstol=1e-8, reltol=1e-8, engine=engine).u
    return times, true, true + NOISE * torch.randn_like(true)


def train(parameters, loss, steps, each=None):
    optimiser = torch.optim.Adam(parameters, lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        if each is not None:
            each(step / steps)
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()


def main(argv=None):
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    steps = 300 if args.quick else 1500
    times, true, data = record(args.engine)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)).double()
    options = {"engine": args.engine, "abstol": 1e-5, "reltol": 1e-5}
    shot = pn.NeuralODE(net, (0.0, END), **options)
    whole = copy.deepcopy(shot)

    # segments of 8 s with starts of their own, drawn together more and more
    pieces = pn.MultipleShooting(shot, times, data, intervals=10, continuity=0.1)

    def tighten(part):
        pieces.continuity = 0.1 * 100**part

    train(pieces.parameters(), pieces, steps, tighten)

    # the whole record at once, from its first point
    def single():
        return (whole(data[0], times) - data).square().mean()

    train(whole.parameters(), single, steps // 3)

    found, errors = {}, {}
    with torch.no_grad():
        for name, model, start in (
            ("multiple shooting", shot, pieces.starts[0]), ("single shooting", whole, data[0]),
        ):  # fmt: skip
            found[name] = model(start, times)
            errors[name] = float((found[name] - true).square().mean().sqrt())
    print(", ".join(f"{name}: error {e:.3f}" for name, e in errors.items()))

    figure, axes = plt.subplots(2, 1, figsize=(11, 5), sharex=True)
    for ax, (name, u) in zip(axes, found.items(), strict=True):
        ax.plot(times, data[:, 0], "k.", ms=3, label="record")
        ax.plot(times, u[:, 0], label=name)
        ax.set(ylabel="v", title=f"{name}: one solution from the first point on")
        ax.legend(loc="upper right")
    axes[1].set_xlabel("t")
    save(figure, args, "multiple_shooting.png")
    return {"multiple": errors["multiple shooting"], "single": errors["single shooting"]}


if __name__ == "__main__":
    main()
