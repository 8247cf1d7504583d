"""A front runs into a medium: stiff diffusion, implicit, beside a reaction, explicit.

python examples/reaction_diffusion.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps


def main(argv=None):
    args, f64 = arguments(__doc__, argv), torch.float64
    n = 60 if args.quick else 100
    x = torch.linspace(0, 20, n, dtype=f64)
    side = torch.ones(n - 1, dtype=f64)
    laplace = torch.diag(side, 1) + torch.diag(side, -1) - 2 * torch.eye(n, dtype=f64)
    laplace[0, 1] = laplace[-1, -2] = 2.0  # no flow across the ends
    A = laplace / (x[1] - x[0]) ** 2
    rate = torch.tensor(1.0, dtype=f64, requires_grad=True)
    u0 = torch.exp(-(x**2))
    prob = ps.SemilinearODEProblem(A, lambda u, p, t: p * u * (1 - u), u0, (0.0, 8.0), rate)
    alg = ps.ETDRK4() if args.engine == "julia" else None
    options = {"dt": 0.02} if alg is not None else {}
    sol = ps.solve(prob, alg, engine=args.engine, saveat=1.0, reltol=1e-6, abstol=1e-8, **options)
    covered = sol.u[-1].mean() * 20
    (slope,) = torch.autograd.grad(covered, rate)
    covered = covered.detach()
    print(f"covered {float(covered):.3f}; by the rate {float(slope):.3f} ({sol.algorithm})")
    figure, ax = plt.subplots(figsize=(7, 3.8))
    for t, u in zip(sol.t.tolist(), sol.u.detach(), strict=True):
        ax.plot(x, u, color=plt.cm.viridis(t / 8))
    ax.set(xlabel="x", ylabel="u", title="Fisher's equation at t = 0, 1, ..., 8")
    save(figure, args, "reaction_diffusion.png")
    return {"covered": float(covered), "slope": float(slope)}


if __name__ == "__main__":
    main()
