"""Right-hand sides ``-rate * u`` made anew at each step: captures counted, results compared."""

from __future__ import annotations

import torch

import pysciml as ps
from support import assert_close, counted_captures, f64, nonstiff

U0 = (1.0, 2.0)


def check(f, rate, leaves, p=None, engine="sundials"):
    """Solve with ``f``; compare with u0 exp(-rate) and its gradient by ``leaves``."""
    u0 = f64(*U0, grad=True)
    prob = ps.ODEProblem(f, u0, (0.0, 1.0), p)
    sol = ps.solve(prob, nonstiff(engine), engine=engine, abstol=1e-9, reltol=1e-9)
    want = torch.exp(-rate) * u0
    assert_close(sol.u[-1], want, 1e-7)
    got = torch.autograd.grad(
        sol.u[-1].square().sum(), (u0, *leaves), allow_unused=True, retain_graph=True
    )
    expected = torch.autograd.grad(want.square().sum(), (u0, *leaves), allow_unused=True)
    for a, b in zip(got, expected, strict=True):
        if a is None or b is None:
            assert b is None or not b.any()
            assert a is None or not a.any()
        else:
            assert_close(a, b, 1e-6)


class Steps:
    """Fresh tensors from leaves that change at each step."""

    def __init__(self):
        self.raw = f64(0.1, grad=True)
        self.gain = f64(0.7, grad=True)

    @property
    def leaves(self):
        return self.raw, self.gain

    def fresh(self):
        with torch.no_grad():
            self.raw.add_(0.05)
            self.gain.mul_(1.1)
        return self.raw.exp(), self.gain.square()


def run(steps, make, states):
    """Solve with ``make(theta, state) -> (f, rate)`` for each state; the count of captures."""
    with counted_captures() as captures:
        for state in states:
            theta = steps.fresh()[0]
            f, rate = make(theta, state)
            check(f, rate, steps.leaves)
    return len(captures)
