"""A latent ODE reconstructs and extrapolates noisy oscillations seen at irregular times.

python examples/latent_ode.py [--engine julia] [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from _example import arguments, save
from torch import Tensor

from pysciml.nn import LatentODE


def series(count: int, t: Tensor) -> Tensor:
    """Oscillations of many phases and sizes that slowly die out, (count, len(t), 1)."""
    phase, size = 6.283 * torch.rand(count, 1), 0.6 + 0.8 * torch.rand(count, 1)
    return (size * torch.exp(-0.1 * t) * torch.sin(1.5 * t + phase)).unsqueeze(-1).to(t)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Returns errors (root mean square) where there were data, and beyond."""
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    t = torch.cat([torch.zeros(1), torch.rand(39).sort().values * 6.0]).double()
    steps, count = (150, 64) if args.quick else (800, 200)
    clean = series(count, t)
    noisy = clean + 0.1 * torch.randn_like(clean)
    seen = torch.where(torch.rand_like(clean) < 0.5, noisy, torch.nan)  # half is missing

    model = LatentODE(
        1, 4, hidden=32, noise=0.1, engine=args.engine, reltol=1e-4, abstol=1e-4
    ).double()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-4)
    for step in range(steps):
        batch = seen[torch.randperm(count)[:32]]
        optimiser.zero_grad()
        loss = -model.elbo(t, batch, kl_weight=min(1.0, step / (0.5 * steps)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % max(1, steps // 5) == 0:
            print(f"step {step + 1:4d}  evidence lower bound {-float(loss.detach()):.1f}")

    torch.manual_seed(1)
    fine = torch.linspace(0.0, 10.0, 201, dtype=torch.float64)
    both = torch.cat([t, fine])
    new = series(200, both)
    measured = new[:, : len(t)] + 0.1 * torch.randn(200, len(t), 1)
    measured = torch.where(torch.rand_like(measured) < 0.5, measured, torch.nan)
    with torch.no_grad():
        prediction = model(t, measured, t_out=fine)
        posterior = model.encode(t, measured[:3])
        draws = [model.decode(posterior.sample(), 0.0, fine) for _ in range(20)]
    error = (prediction - new[:, len(t) :]).square().mean((0, 2))
    inside, beyond = float(error[fine <= 6].mean().sqrt()), float(error[fine > 6].mean().sqrt())
    print(f"error on new series: {inside:.3f} where data are, {beyond:.3f} beyond them")

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), sharey=True)
    for i, axis in enumerate(axes):
        for draw in draws:
            axis.plot(fine, draw[i, :, 0], "C0", lw=0.5, alpha=0.3)
        axis.plot(fine, new[i, len(t) :, 0], "k--", lw=1, label="truth")
        axis.plot(fine, prediction[i, :, 0], "C0", lw=1.5, label="latent ODE")
        axis.plot(t, measured[i, :, 0], "C3.", label="data")
        axis.axvspan(6, 10, color="0.93")
        axis.set(xlabel="t")
    axes[0].legend(loc="lower right")
    axes[1].set_title("new series; grey: extrapolation; thin lines: samples of the posterior")
    save(figure, args, "latent_ode.png")
    return {"inside": inside, "beyond": beyond}


if __name__ == "__main__":
    main()
