"""A pendulum on a rod as a DAE of index 1: how hard the rod pulls, and what gravity does to that.

python examples/rod_pendulum.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps
from pysciml.engines.choice import engine as chosen_engine


def residual(du, u, g, t):
    # position, speed, and the pull that keeps the rod's length (its constraint, derived twice)
    x, y, vx, vy, pull = u
    rates = torch.stack([vx, vy, -pull * x, -pull * y - g])
    length = vx**2 + vy**2 - pull * (x**2 + y**2) - g * y
    return torch.cat([du[:4] - rates, length.reshape(1)])


def main(argv=None):
    args, f64 = arguments(__doc__, argv), torch.float64
    g = torch.tensor(9.81, dtype=f64, requires_grad=True)
    u0, span = torch.tensor([1.0, 0, 0, 0, 0], dtype=f64), (0.0, 1.5 if args.quick else 4.0)
    prob = ps.DAEProblem(residual, 0 * u0, u0, span, g, differential_vars=torch.arange(5) < 4)
    alg = ps.IDA() if chosen_engine(args.engine).name == "sundials" else ps.DFBDF()
    sol = ps.solve(prob, alg, saveat=0.002, engine=args.engine, reltol=1e-8, abstol=1e-8)
    pull = sol.u[:, 4]
    (slope,) = torch.autograd.grad(pull.max(), g)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=[1, 2])
    left.plot(*sol.u.detach()[:, :2].T)
    left.set(xlabel="x", ylabel="y", aspect="equal")
    right.plot(sol.t, pull.detach())
    right.set(xlabel="t", ylabel="pull", title=f"the greatest pull grows {slope:.4f} times as g")
    save(figure, args, "rod_pendulum.png")
    print(f"greatest pull {pull.max():.3f} (3 g is {3 * g:.3f}), its derivative {slope:.4f} (3)")
    return {"ratio": float(pull.detach().max() / g.detach()), "slope": float(slope)}


if __name__ == "__main__":
    main()
