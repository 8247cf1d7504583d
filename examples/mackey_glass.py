"""Blood cells by the Mackey-Glass equation: its delay is found from noisy counts.

python examples/mackey_glass.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps

f64 = torch.float64


def rate(u, h, p, t):
    """Production by how many there were a delay p[2] ago, and decay."""
    late = h(p, t - p[2])
    return p[0] * late / (1 + late**10) - p[1] * u


def solve(p, times):
    u0 = torch.tensor([1.2], dtype=f64)
    prob = ps.DDEProblem(rate, u0, lambda p, t: torch.full((1,), 1.2, dtype=f64), (0.0, 300.0), p)
    alg = ps.MethodOfSteps(ps.Tsit5())
    return ps.solve(prob, alg, saveat=times, abstol=1e-7, reltol=1e-7, engine="julia").u[:, 0]


def main(argv=None):
    args = arguments(__doc__, argv)
    torch.manual_seed(0)
    times, truth = (
        torch.arange(0.0, 101.0, 2.0, dtype=f64),
        torch.tensor([0.2, 0.1, 17.0], dtype=f64),
    )
    data = solve(truth, times) + 0.03 * torch.randn(len(times), dtype=f64)
    scale = torch.tensor([0.15, 0.08, 15.0], dtype=f64)
    logs = torch.zeros(3, dtype=f64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logs], max_iter=15 if args.quick else 60, line_search_fn="strong_wolfe"
    )

    def loss():
        optimiser.zero_grad()
        value = (solve(scale * logs.exp(), times) - data).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    p = (scale * logs.exp()).detach()
    print(f"production {p[0]:.3f} (true 0.2), decay {p[1]:.3f} (0.1), delay {p[2]:.2f} (17)")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    fine = torch.linspace(0.0, 100.0, 501, dtype=f64)
    left.plot(times, data, ".", label="counts")
    left.plot(fine, solve(scale, fine), ":", label="before the fit")
    left.plot(fine, solve(p, fine), label="after it")
    left.set(xlabel="t", ylabel="cells")
    left.legend(fontsize="small")
    long = torch.linspace(40.0, 300.0, 2601, dtype=f64)
    right.plot(solve(p, long), solve(p, long - p[2]), lw=0.7)
    right.set(xlabel="now", ylabel="a delay ago", title="the fitted equation, to t = 300")
    save(figure, args, "mackey_glass.png")
    return {"production": p[0].item(), "decay": p[1].item(), "delay": p[2].item()}


if __name__ == "__main__":
    main()
