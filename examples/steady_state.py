"""A chemical reactor is tuned at its steady state, by the implicit function theorem.

python examples/steady_state.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps


def reactor(u, p, t):
    # A -> B -> C in a stirred tank: temperature p speeds the second reaction up more
    a, b = u.unbind()
    first, second = torch.exp(0.5 * p), torch.exp(2.0 * p - 1.5)
    return torch.stack([1.0 - a - first * a, first * a - b - second * b])


def main(argv=None):
    args, f64 = arguments(__doc__, argv), torch.float64
    u0, p = torch.tensor([1.0, 0.0], dtype=f64), torch.tensor(-1.5, dtype=f64, requires_grad=True)
    prob, path = ps.SteadyStateProblem(reactor, u0, p), []
    for _ in range(60 if args.quick else 200):
        b = ps.solve(ps.remake(prob, p=p), ps.SSRootfind(), engine=args.engine).u[1]
        (slope,) = torch.autograd.grad(b, p)
        path.append((p.item(), b.item()))
        p = (p + slope).detach().requires_grad_()
    grid = torch.linspace(-2, 2, 80, dtype=f64)
    all_b = [ps.solve(ps.remake(prob, p=x), engine=args.engine).u[1] for x in grid]
    figure, ax = plt.subplots(figsize=(7, 3.8))
    ax.plot(grid, torch.stack(all_b), "k", lw=0.8, label="steady yield of B")
    ax.plot(*zip(*path, strict=True), "C1.", label="gradient ascent")
    ax.set(xlabel="temperature", ylabel="B")
    ax.legend()
    save(figure, args, "steady_state.png")
    print(f"best temperature {path[-1][0]:.3f}, yield {path[-1][1]:.4f}")
    return {"temperature": path[-1][0], "yield": path[-1][1], "best": float(max(all_b))}


if __name__ == "__main__":
    main()
