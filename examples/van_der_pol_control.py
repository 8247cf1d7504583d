"""A neural controller brings the Van der Pol oscillator to rest, trained through the solver.

python examples/van_der_pol_control.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from _example import arguments, save
from scipy.linalg import solve_continuous_are
from torch import nn

import pysciml as ps

f64 = torch.float64
MU, EFFORT, END = 1.0, 0.5, 10.0


class Neural(nn.Module):
    """The force that a network of position and speed gives, zero at rest."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh())
        self.out = nn.Linear(24, 1, bias=False)

    def forward(self, x):
        return self.out(self.net(x) - self.net(torch.zeros_like(x)))


def linear_regulator():
    """The controller that is best near rest: the Riccati equation of the linearised oscillator."""
    a, b = np.array([[0.0, 1.0], [-1.0, MU]]), np.array([[0.0], [1.0]])
    gain = torch.tensor(b.T @ solve_continuous_are(a, b, np.eye(2), np.eye(1) * EFFORT) / EFFORT)
    return lambda x: -x @ gain.T


def solve(controller, starts, engine, saveat=(END,)):
    """Position, speed, and the cost so far: ``x^2 + v^2 + 0.5 force^2``, integrated."""

    def rate(u, p, t):
        x, v = u[:, :1], u[:, 1:2]
        force = controller(u[:, :2])
        cost = x**2 + v**2 + EFFORT * force**2
        return torch.cat([v, MU * (1 - x**2) * v - x + force, cost], dim=1)

    u0 = torch.cat([starts, torch.zeros_like(starts[:, :1])], dim=1)
    prob = ps.ODEProblem(rate, u0, (0.0, END))
    return ps.solve(prob, saveat=saveat, abstol=1e-6, reltol=1e-6, engine=engine)


def costs(controller, starts, engine):
    with torch.no_grad():
        return solve(controller, starts, engine).u[-1, :, 2].mean().item()


def main(argv=None):
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    steps = 60 if args.quick else 300
    controller = Neural().double()
    with torch.no_grad():
        controller.out.weight.mul_(0.1)
    optimiser = torch.optim.Adam(controller.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        starts = 6 * torch.rand(12, 2, dtype=f64) - 3
        optimiser.zero_grad()
        solve(controller, starts, args.engine).u[-1, :, 2].mean().backward()
        optimiser.step()
        schedule.step()

    torch.manual_seed(1)
    unseen = 6 * torch.rand(40, 2, dtype=f64) - 3
    regulator = linear_regulator()
    result = {
        "linear": costs(regulator, unseen, args.engine),
        "neural": costs(controller, unseen, args.engine),
    }
    print(f"mean cost of 40 unseen starts: linear regulator {result['linear']:.2f}, "
          f"neural controller {result['neural']:.2f}")  # fmt: skip
    draw(args, controller, regulator)
    return result


def draw(args, controller, regulator):
    angles = torch.linspace(0, 2 * torch.pi, 9, dtype=f64)[:8]
    starts = 2.8 * torch.stack([angles.cos(), angles.sin()], dim=1)
    times = torch.linspace(0.0, END, 300, dtype=f64)
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    free = {"no force": lambda x: 0 * x[:, :1], "neural controller": controller}
    for ax, (name, force) in zip(axes, free.items(), strict=False):
        with torch.no_grad():
            u = solve(force, starts, args.engine, times).u
        for k in range(len(starts)):
            ax.plot(u[:, k, 0], u[:, k, 1], lw=1)
        ax.set(xlabel="position", ylabel="speed", title=name, xlim=(-3.2, 3.2), ylim=(-4.5, 4.5))
    for name, force in (("neural", controller), ("linear", regulator)):
        with torch.no_grad():
            u = solve(force, starts[:1], args.engine, times).u[:, 0, :2]
            axes[2].plot(times, force(u)[:, 0], label=name)
    axes[2].set(xlabel="t", title="the force, from (2.8, 0)")
    axes[2].legend()
    save(figure, args, "van_der_pol_control.png")


if __name__ == "__main__":
    main()
