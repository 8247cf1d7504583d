"""``python -m benchmarks.latent_sde``: a latent SDE's training step, beside torchsde.

The equation is that of a latent SDE (Li et al., AISTATS 2020) as torchsde trains it: a network
with two hidden layers of ``width`` for the posterior's drift, fed with y and the sine and cosine of
time, a constant diffusion, the drift of an Ornstein-Uhlenbeck process as the prior, and the
log-ratio of the two beside the state. Both libraries take the same Euler-Maruyama steps through
the same interface (``sdeint(..., logqp=True)``). On the same noise states and gradients are
compared first; then each draws its own, and runs of the two take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

from benchmarks import report
from pysciml.compat import torchsde as ours

STEPS, OUTPUTS = 128, 9


class LatentSDE(nn.Module):
    """Posterior and prior of one latent dimension."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )
        self.register_buffer("sigma", torch.tensor(0.5))

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        t = t.expand(y.shape[0], 1)
        return self.net(torch.cat([torch.sin(t), torch.cos(t), y], dim=1))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self.sigma.expand(y.shape[0], 1)

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return -y


def results(library: Any, sde: LatentSDE, y0: Tensor, bm: Any, gradient: bool) -> list[Tensor]:
    """States, log-ratios, and the gradient of a training step's loss by all weights."""
    options = {"options": {"engine": "julia"}} if library is ours else {}
    ts = torch.linspace(0.0, 1.0, OUTPUTS)
    given = {"bm": bm, "method": "euler", "dt": 1.0 / STEPS, "logqp": True, **options}
    with torch.set_grad_enabled(gradient):
        ys, ratio = library.sdeint(sde, y0, ts, **given)
        if not gradient:
            return [ys, ratio]
        loss = (ys - torch.sin(3 * ts)[:, None, None]).square().mean() + ratio.sum(0).mean()
    return [ys, ratio, *torch.autograd.grad(loss, list(sde.parameters()))]


def motion(y0: Tensor, **options: Any) -> torchsde.BrownianInterval:
    """torchsde's noise, told the step: without that a short last step costs it a second."""
    return torchsde.BrownianInterval(0.0, 1.0, size=(len(y0), 2), dt=1.0 / STEPS, **options)


def difference(sde: LatentSDE, y0: Tensor) -> tuple[float, float]:
    """How far apart states and gradients are on the same noise, relative to the largest."""
    bm = motion(y0, entropy=1)
    mine, theirs = (results(x, sde, y0, bm, True) for x in (ours, torchsde))
    gaps = [
        float((a - b).detach().abs().max() / b.detach().abs().max())
        for a, b in zip(mine, theirs, strict=True)
    ]
    return max(gaps[:2]), max(gaps[2:])


def timed(runs: dict[str, Callable[[], Any]], count: int) -> dict[str, list[float]]:
    """Milliseconds of runs that take turns, after two of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(count + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def measure(batch: int, width: int, count: int, page: report.Page) -> None:
    torch.manual_seed(0)
    sde, y0 = LatentSDE(width), torch.randn(batch, 1)
    states, gradients = difference(sde, y0)
    print(f"batch {batch}: on the same noise states differ by {states:.1e}, gradients by "
          f"{gradients:.1e}")  # fmt: skip
    for what, gradient in (("forward", False), ("forward + gradient", True)):
        runs = {
            "pysciml, julia": lambda g=gradient: results(ours, sde, y0, None, g),
            "torchsde": lambda g=gradient: results(torchsde, sde, y0, motion(y0), g),
        }
        times = timed(runs, count)
        a, b = (statistics.median(times[name]) for name in runs)
        best = [min(times[name]) for name in runs]
        cells = [f"{a:.1f} ({best[0]:.1f})", f"{b:.1f} ({best[1]:.1f})", f"{b / a:.2f}"]
        page.say(f"| {batch} | {what} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latent_sde", description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 512])
    parser.add_argument("--width", type=int, default=200)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    page = report.Page(args.out / "latent_sde.md", "A latent SDE")
    page.say(
        f"Milliseconds of a training step beside torchsde {torchsde.__version__}, medians (and the "
        f"least) of {args.runs} runs in turns: two layers of {args.width}, {STEPS} steps of "
        f"Euler-Maruyama, the log-ratio beside the state, float32. {report.machine()}\n\n"
        "| batch | what | pysciml, julia | torchsde | ratio |\n|---:|---|---:|---:|---:|"
    )
    for batch in args.batches:
        measure(batch, args.width, args.runs, page)


if __name__ == "__main__":
    main()
