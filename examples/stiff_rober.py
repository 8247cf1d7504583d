"""A stiff neural ODE learns Robertson's reactions over ten decades of time (Kim et al. 2021).

    python examples/stiff_rober.py [--engine julia] [--quick]

The three species differ by five orders of magnitude, and so do their rates. Following Kim, Ji,
Deng, Ma, Rackauckas, "Stiff neural ordinary differential equations", Chaos 31 (2021), each species
is scaled by its own size in the equation and in the loss, and the times are equidistant in
logarithm. An implicit solver and an adjoint that stiffness does not harm do the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor, nn

import pysciml as ps
from pysciml.engines.choice import engine as chosen_engine
from pysciml.nn import NeuralODE


def robertson(u: Tensor, k: Tensor, t: Tensor) -> Tensor:
    a, b, c = u
    slow, fast, fastest = k[0] * a, k[1] * b * c, k[2] * b**2
    return torch.stack([fast - slow, slow - fast - fastest, fastest])


class Scaled(nn.Module):
    """Rates of the scaled species; the fast one relaxes to a slow manifold that is learned.

    ``u' = scale / duration * net(u / scale)`` for the slow species, so that the network sees and
    gives numbers of size one; ``u_2' = rate (scale_2 manifold(u / scale) - u_2)`` for the fast one.
    """

    scale: Tensor

    def __init__(self, scale: Tensor, duration: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(3, 8), nn.GELU()]
        for _ in range(3):
            layers += [nn.Linear(8, 8), nn.GELU()]
        self.net = nn.Sequential(*layers, nn.Linear(8, 3)).double()
        self.log_rate = nn.Parameter(torch.tensor(5.0, dtype=torch.float64))
        self.register_buffer("scale", scale)
        self.duration = duration

    def forward(self, u: Tensor) -> Tensor:
        out = self.net(u / self.scale)
        slow = self.scale / self.duration * out
        manifold = self.scale[1] * nn.functional.softplus(out[1])
        return torch.stack([slow[0], self.log_rate.exp() * (manifold - u[1]), slow[2]])


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns the mean absolute error, each species relative to its size."""
    args = arguments(__doc__, argv)
    torch.manual_seed(1)
    stiff = ps.CVODE_BDF() if chosen_engine(args.engine).name == "sundials" else ps.Rodas5P()
    u0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    rates = torch.tensor([0.04, 1e4, 3e7], dtype=torch.float64)
    end = 1e5
    t = torch.logspace(-5, 5, 50, dtype=torch.float64)
    truth = ps.ODEProblem(robertson, u0, (0.0, end), rates)
    data = ps.solve(
        truth, stiff, engine=args.engine, saveat=t, reltol=1e-8, abstol=1e-12
    ).u  # fmt: skip
    scale = data.amax(0) - data.amin(0)

    field = Scaled(scale, end)
    model = NeuralODE(
        field, (0.0, end), stiff, saveat=t, engine=args.engine, reltol=1e-5, abstol=1e-9
    )

    steps = 150 if args.quick else 2000
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 5e-4)
    best, error, losses = copy.deepcopy(model.state_dict()), math.inf, []
    for step in range(steps):
        optimiser.zero_grad()
        try:
            loss = ((model(u0) - data) / scale).abs().mean()
            loss.backward()
        except ps.SolveError:  # this step made an equation without a solution: go back
            model.load_state_dict(best)
            continue
        losses.append(float(loss.detach()))
        if losses[-1] < error:
            best, error = copy.deepcopy(model.state_dict()), losses[-1]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % max(1, steps // 5) == 0:
            assert model.stats is not None
            print(f"step {step + 1:5d}  error {losses[-1]:.2e}, {model.stats.nf} evaluations")
    model.load_state_dict(best)

    with torch.no_grad():
        fitted = model(u0)
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4))
    for i, axis in enumerate(axes[:3]):
        axis.semilogx(t, data[:, i], "k.", ms=4, label="data")
        axis.semilogx(t, fitted[:, i], "C0", label="stiff neural ODE")
        axis.set(xlabel="t", title=f"species {i + 1}")
    axes[0].legend()
    axes[3].loglog(range(1, len(losses) + 1), losses, lw=0.7)
    axes[3].set(xlabel="step", title="mean error, species scaled")
    save(figure, args, "stiff_rober.png")
    return {"error": error}


if __name__ == "__main__":
    main()
