"""Shared by the tests: an algorithm for each engine, problems, comparisons, counted captures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import pysciml as ps
from pysciml import functions
from pysciml.algorithms import Algorithm

F64 = torch.float64


def f64(*values: Any, grad: bool = False) -> Tensor:
    """A float64 tensor: of one number, 0-d; of several, 1-d."""
    data = values[0] if len(values) == 1 else values
    return torch.tensor(data, dtype=F64, requires_grad=grad)


def stiff(engine: str) -> Algorithm:
    return ps.CVODE_BDF() if engine == "sundials" else ps.Rodas5P()


def nonstiff(engine: str) -> Algorithm:
    return ps.CVODE_Adams() if engine == "sundials" else ps.Tsit5()


def mass_matrix_solver(engine: str) -> Algorithm:
    return ps.IDA() if engine == "sundials" else ps.Rodas5P()


def dae_solver(engine: str) -> Algorithm:
    return ps.IDA() if engine == "sundials" else ps.DFBDF()


def lotka_volterra(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, y = u.unbind(-1)
    a, b, c, d = p.unbind(-1)
    return torch.stack([a * x - b * x * y, d * x * y - c * y], dim=-1)


def rober(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
    a, b, c = u.unbind()
    r1 = -p[0] * a + p[2] * b * c
    r2 = p[1] * b * b
    return torch.stack([r1, -r1 - r2, r2])


LV_U0 = (1.0, 1.0)
LV_P = (1.5, 1.0, 3.0, 1.0)
ROBER_U0 = (1.0, 0.0, 0.0)
ROBER_P = (0.04, 3e7, 1e4)


def net(inputs: int = 2, outputs: int | None = None, hidden: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    outputs = inputs if outputs is None else outputs
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
    ).double()  # fmt: skip


def wave(u: Any, p: Any, t: Any) -> Any:
    return torch.stack([u[1], -(p["k"] ** 2) * u[0]])


def wave_between(k: Any, a: Any, b: Any, t: Any) -> Any:
    """The solution of ``wave`` that is a at 0 and b at 1."""
    return a * torch.cos(k * t) + (b - a * torch.cos(k)) / torch.sin(k) * torch.sin(k * t)


def pendulum(u: Any, p: Any, t: Any) -> Any:
    return {"angle": u["speed"], "speed": -p[0] * torch.sin(u["angle"])}


def boundary_problem(ends: Any, **given: Any) -> ps.BVProblem:
    p = {"k": 2.0, "a": 0.7, "b": -0.4}
    return ps.BVProblem(
        **{"f": wave, "bc": ends, "u0": f64(0.0, 0.0), "tspan": (0.0, 1.0), "p": p} | given
    )


def central_difference(loss: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-5) -> Tensor:
    """The gradient of ``loss`` at ``x`` by differences of fourth order, steps relative to x."""
    x = x.detach()
    out = torch.zeros_like(x).reshape(-1)
    with torch.no_grad():
        for i in range(x.numel()):
            step = h * max(1.0, abs(float(x.reshape(-1)[i])))
            terms = []
            for k in (1, -1, 2, -2):
                moved = x.clone()
                moved.view(-1)[i] += k * step
                terms.append(loss(moved))
            out[i] = (8.0 * (terms[0] - terms[1]) - (terms[2] - terms[3])) / (12.0 * step)
    return out.reshape(x.shape)


def pair_gap(z: Tensor) -> Tensor:
    """The estimate of Tsit5's pair in a step of ``u' = a u``, relative to u; z is a times the step.

    Their stability functions: exp(z) to z^5, then z^6 / 600; and exp(z) to z^4, then
    1097 z^5 / 120000 + 161 z^6 / 120000 + z^7 / 24000.
    """
    return z**5 / 120 - 1097 * z**5 / 120000 + z**6 / 600 - 161 * z**6 / 120000 - z**7 / 24000


def descend(
    parameters: Iterable[Tensor], loss: Callable[[], Tensor], steps: int, lr: float = 2e-2
) -> None:
    """``steps`` of Adam down ``loss()``."""
    optimiser = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()


def penalised(model: Any, x: Tensor, want: Tensor) -> Callable[[], Tensor]:
    """The mean square of a model's error, and its penalty."""
    return lambda: (model(x) - want).square().mean() + model.penalty


def largest_gap(samples: Tensor) -> float:
    """Kolmogorov and Smirnov's distance from the exponential distribution, times sqrt(n)."""
    x, n = samples.sort().values, len(samples)
    at, steps = -torch.expm1(-x), torch.arange(n + 1, dtype=F64) / n
    gap = torch.maximum((steps[1:] - at).max(), (at - steps[:-1]).max())
    return float(gap) * math.sqrt(n)


def assert_close(got: Any, want: Any, rtol: float, atol: float = 0.0) -> None:
    """Every entry within ``rtol`` of the largest entry of ``want``, or within ``atol``."""
    got, want = torch.as_tensor(got).detach(), torch.as_tensor(want).detach()
    assert got.shape == want.shape, (got.shape, want.shape)
    size = float(want.abs().max()) if want.numel() else 0.0
    error = float((got.double() - want.double()).abs().max()) if want.numel() else 0.0
    assert error <= rtol * size + atol, f"error {error:.3g} of {size:.3g}: {got} for {want}"


@contextmanager
def counted_captures() -> Iterator[list[str]]:
    """A list that gets the name of each function captured inside the block."""
    names: list[str] = []
    real = functions.capture

    def capture(fn: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(fn.name)
        return real(fn, *args, **kwargs)

    with mock.patch.object(functions, "capture", capture):
        yield names
