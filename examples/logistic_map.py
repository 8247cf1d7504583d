"""The road to chaos of the logistic map: an ensemble of maps, and how fast neighbours part.

python examples/logistic_map.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps


def main(argv=None):
    args, f64 = arguments(__doc__, argv), torch.float64
    rates = torch.linspace(2.6, 4.0, 60 if args.quick else 400, dtype=f64)
    prob = ps.DiscreteProblem(
        lambda u, p, t: p * u * (1 - u), torch.tensor([0.4], dtype=f64), (0.0, 300.0), rates[0]
    )
    members = ps.EnsembleProblem(prob, lambda prob, i: ps.remake(prob, p=rates[i]))
    sim = ps.solve(members, ps.FunctionMap(), trajectories=len(rates), engine=args.engine)
    late = sim.u[:, 200:, 0]
    # Lyapunov's exponent: the mean of log |f'(u)| along the orbit
    exponent = (rates[:, None] * (1 - 2 * late)).abs().log().mean(1)
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5), sharex=True)
    above.plot(rates, late, "k,")
    below.plot(rates, exponent)
    below.axhline(0, color="0.7")
    above.set(ylabel="u")
    below.set(xlabel="rate", ylabel="Lyapunov exponent")
    save(figure, args, "logistic_map.png")
    print(f"exponent {exponent[0]:.3f} at 2.6, {exponent[-1]:.3f} at 4")
    return {"first": float(exponent[0]), "last": float(exponent[-1])}


if __name__ == "__main__":
    main()
