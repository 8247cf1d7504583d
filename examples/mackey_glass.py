"""Blood cells by the Mackey-Glass equation: its delay is found from noisy counts.

python examples/mackey_glass.py [--quick]

It needs the julia engine, which solves delay equations.
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps


def rate(u, h, p, t):
    # production by how many there were a delay p[2] ago, and decay
    late = h(p, t - p[2])
    return p[0] * late / (1 + late**10) - p[1] * u


def main(argv=None):
    args, f64 = arguments(__doc__, argv), torch.float64
    u0, p = torch.tensor([1.2], dtype=f64), torch.tensor([0.2, 0.1, 17.0], dtype=f64)
    prob = ps.DDEProblem(rate, u0, lambda p, t: u0, (0.0, 100.0), p)
    how = {"alg": ps.MethodOfSteps(ps.Tsit5()), "reltol": 1e-7, "engine": "julia"}
    true = ps.solve(prob, saveat=2.0, **how)
    counts = true.u + 0.03 * torch.randn(true.u.shape, dtype=f64, generator=torch.manual_seed(0))
    log_p = torch.tensor([0.15, 0.08, 15.0], dtype=f64).log().requires_grad_()
    optimiser = torch.optim.Adam([log_p], lr=0.03)
    for _ in range(150 if args.quick else 300):
        optimiser.zero_grad()
        u = ps.solve(ps.remake(prob, p=log_p.exp()), saveat=2.0, **how).u
        (u - counts).square().mean().backward()
        optimiser.step()
    fit = ps.solve(ps.remake(prob, p=log_p.exp().detach()), saveat=0.2, **how)
    figure, ax = plt.subplots(figsize=(7, 3.8))
    ax.plot(true.t, counts, ".", fit.t, fit.u)
    ax.set(xlabel="days", ylabel="cells", title="counts, and the fitted equation")
    save(figure, args, "mackey_glass.png")
    return dict(zip(("production", "decay", "delay"), log_p.exp().tolist(), strict=True))


if __name__ == "__main__":
    print(main())
