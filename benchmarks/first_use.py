"""``python -m benchmarks.first_use``: the first solve of each kind, in fresh processes, in Julia.

For each kind: the time of a plain first solve, which also starts Julia (``start``), of the first
solve of the kind after it (``first``), and of the next one (``next``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys

_BEFORE = """
import time, warnings
warnings.simplefilter("ignore")
import torch, pysciml as ps
torch.set_default_dtype(torch.float64)
p = torch.tensor([1.0, 0.5], requires_grad=KIND == "ForwardSensitivity")
def f(u, p, t):
    return torch.stack([p[0] * u[1], -p[0] * u[0] - p[1] * u[1]])
def timed(prob, alg, **options):
    begun = time.perf_counter()
    sol = ps.solve(prob, alg, engine="julia", saveat=[1.0], **options)
    if "sensealg" in options:
        sol.u.sum().backward()
    return time.perf_counter() - begun
plain = lambda **o: ps.ODEProblem(f, torch.ones(2), (0.0, 1.0), p, **o)
start = timed(ps.ODEProblem(f, torch.ones(2), (0.0, 1.0), p.detach()), ps.Tsit5())
alg, options = ps.Rodas5P(), {}
"""
_AFTER = """
first, again = timed(prob, alg, **options), timed(prob, alg, **options)
print(f"{KIND:20} start {start:6.2f} s   first {first:6.2f} s   next {1e3 * again:8.2f} ms")
"""
KINDS = {
    "Rodas5P": "prob = plain()",
    "default": "prob, alg = plain(), None",
    "QNDF": "prob, alg = plain(), ps.QNDF()",
    "AutoTsit5": "prob, alg = plain(), ps.AutoTsit5(ps.Rosenbrock23())",
    "mass matrix": "prob = plain(mass_matrix=torch.diag(torch.tensor([1.0, 0.0])))",
    "Float32": (
        "prob = ps.ODEProblem(f, torch.ones(2, dtype=torch.float32), (0.0, 1.0), p.float())"
        "; alg = ps.Tsit5()"
    ),
    "sparse": (
        "prob = ps.ODEProblem(lambda u, p, t: p[0] * (torch.cat([u[1:], u[:1]]) - u), "
        "torch.linspace(0, 1, 128), (0.0, 1.0), p)"
    ),
    "continuous event": (
        "prob, alg = plain(callback=ps.ContinuousCallback(lambda u, p, t: u[1] - 0.5, "
        "lambda u, p, t: 0.9 * u)), ps.Tsit5()"
    ),
    "discrete event": (
        "prob, alg = plain(callback=ps.DiscreteCallback(lambda u, p, t: u[1] < 0.5, "
        "lambda u, p, t: 0.9 * u)), ps.Tsit5()"
    ),
    "DAEProblem": (
        "prob = ps.DAEProblem(lambda du, u, p, t: du - f(u, p, t), torch.tensor([1.0, -1.5]), "
        "torch.ones(2), (0.0, 1.0), p); alg = ps.DFBDF()"
    ),
    "ForwardSensitivity": (
        "prob, alg, options = plain(), ps.Tsit5(), {'sensealg': ps.ForwardSensitivity()}"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_use", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    for kind in parser.parse_args().kinds:
        code = f"KIND = {kind!r}\n{_BEFORE}\n{KINDS[kind]}\n{_AFTER}"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        print(ran.stdout.strip() or f"{kind}: {ran.stderr.strip()[-300:]}", flush=True)


if __name__ == "__main__":
    main()
