"""A ball that is to hit a mark at the end of its flight: the flight that takes the least speed.

python examples/easiest_throw.py [--engine julia] [--quick]
"""

import matplotlib.pyplot as plt
import torch
from _example import arguments, save

import pysciml as ps

f64 = torch.float64
MARK = torch.tensor([30.0, 2.0], dtype=f64)


def flight(u, p, t):
    """Position and velocity under gravity and air drag."""
    v = u[2:]
    return torch.cat([v, torch.tensor([0.0, -9.81], dtype=f64) - p["drag"] * v.norm() * v])


def throw(time, engine):
    """From the origin to the mark in that time; Newton begins with the throw without air."""
    v0 = (MARK / time + torch.tensor([0.0, 4.905], dtype=f64) * time).detach()
    hits = (lambda u, p: u[:2], lambda u, p: u[:2] - MARK)
    u0 = torch.cat([torch.zeros(2, dtype=f64), v0])
    prob = ps.TwoPointBVProblem(
        flight, hits, u0, (torch.tensor(0.0, dtype=f64), time), {"drag": 0.01}
    )
    return ps.solve(prob, saveat=time.detach() / 50, engine=engine)


def main(argv=None):
    args = arguments(__doc__, argv)
    time = torch.tensor(4.0, dtype=f64, requires_grad=True)
    optimiser = torch.optim.LBFGS([time], max_iter=20, line_search_fn="strong_wolfe")

    def speed():
        optimiser.zero_grad()
        value = throw(time, args.engine).u[0, 2:].norm()
        value.backward()
        return value

    optimiser.step(speed)
    least, slope = speed().item(), time.grad.item()
    print(f"least speed {least:.3f} m/s, in a flight of {time.item():.3f} s")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    times = torch.linspace(1.4, 4.0, 5 if args.quick else 9, dtype=f64)
    sols = [throw(t, args.engine) for t in times]
    for sol in sols:
        left.plot(sol.u[:, 0], sol.u[:, 1], color="0.7", lw=0.8)
    best = throw(time.detach(), args.engine)
    left.plot(best.u[:, 0], best.u[:, 1], label="the easiest")
    left.plot(*MARK, "kx")
    left.set(xlabel="x [m]", ylabel="y [m]")
    left.legend()
    right.plot(times, [s.u[0, 2:].norm() for s in sols], "o-", color="0.7")
    right.plot(time.item(), least, "o")
    right.set(xlabel="time of flight [s]", ylabel="speed of the throw [m/s]")
    save(figure, args, "easiest_throw.png")
    return {"time": time.item(), "speed": least, "slope": slope}


if __name__ == "__main__":
    main()
