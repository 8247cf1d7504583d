"""Functions that pass through complex values: captured as real graphs, or refused by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pysciml as ps
from pysciml.kernels.capture import CaptureError, capture
from pysciml.kernels.kernels import Kernels
from support import assert_close, counted_captures, f64

F64 = torch.float64
N = 24


def _inputs(n: int = 6) -> dict[str, Tensor]:
    u = torch.linspace(0.2, 1.3, n, dtype=F64) ** 2
    return {"u": u, "p": torch.zeros(0, dtype=F64), "t": torch.tensor(0.1, dtype=F64)}


def test_nothing_complex_is_left() -> None:
    found = capture(lambda u, p, t: torch.fft.irfft(torch.fft.rfft(u) * 1j, n=6), _inputs())
    values = [n.meta.get("val") for n in found.module.graph.nodes]
    assert not any(isinstance(v, Tensor) and v.is_complex() for v in values)
    assert {n.op for n in Kernels(found).graph("value").nodes()} <= {
        "input", "const", "matmul", "reshape", "slice", "cat", "mul", "neg", "add",
    }  # fmt: skip


def test_a_complex_closure_is_read_at_its_current_value() -> None:
    factor = torch.full((4,), 1.0 + 2.0j, dtype=torch.complex128)
    found = capture(lambda u, p, t: torch.fft.irfft(torch.fft.rfft(u) * factor, n=6), _inputs())
    assert found.guards.ok()
    before = found.module(*found.example())
    factor.mul_(3.0)
    assert found.guards.ok()
    assert_close(found.module(*found.example()), 3.0 * before, 1e-12)


def test_single_precision() -> None:
    inputs = {k: v.float() for k, v in _inputs().items()}
    fn = lambda u, p, t: torch.fft.ifft(torch.fft.fft(u) * (2.0 + 0.0j)).real
    found = capture(fn, inputs)
    out = found.module(*found.example())
    assert out.dtype == torch.float32
    assert_close(out, 2.0 * inputs["u"], 1e-5)


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda u, p, t: torch.sqrt(torch.complex(u, u)).real, r"aten.sqrt on complex.*`.*sqrt"),
        (lambda u, p, t: torch.complex(u, u).pow(0.5).real, "raised to 0.5"),
        (lambda u, p, t: torch.fft.rfft(u.repeat(400)).real[:6], "length 2400"),
    ],
    ids=["no rule", "power", "length"],
)
def test_what_has_no_real_form_is_named(fn, reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CaptureError, match=reason):
        capture(fn, _inputs())


def test_a_complex_parameter_is_refused_with_advice() -> None:
    w = torch.ones(4, dtype=torch.complex128, requires_grad=True)
    fn = lambda u, p, t: torch.fft.irfft(torch.fft.rfft(u) * w, n=6)
    with pytest.raises(CaptureError, match=r"requires grad; close over its real and imaginary"):
        capture(fn, _inputs())


def test_heat_equation_in_fourier_space() -> None:
    """Each wave decays by its own rate, and the gradient by the diffusivity is known."""
    x = torch.arange(N, dtype=F64) * (2.0 * math.pi / N)
    squares = torch.fft.rfftfreq(N, 1.0 / N).double() ** 2

    def f(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return torch.fft.irfft(-p * squares * torch.fft.rfft(u), n=N)

    nu = f64(0.3, grad=True)
    u0 = torch.sin(x) + 0.5 * torch.cos(3.0 * x)
    with counted_captures() as captures:
        sol = ps.solve(
            ps.ODEProblem(f, u0, (0.0, 1.0), nu), ps.CVODE_BDF(), engine="sundials",
            saveat=[0.5, 1.0], abstol=1e-10, reltol=1e-10,
        )  # fmt: skip
    assert captures == ["f"]
    t = f64(0.5, 1.0)[:, None]
    want = torch.exp(-nu * t) * torch.sin(x) + 0.5 * torch.exp(-9.0 * nu * t) * torch.cos(3.0 * x)
    assert_close(sol.u, want, 1e-7)
    (got,) = torch.autograd.grad(sol.u.square().sum(), nu)
    assert_close(got, torch.autograd.grad(want.square().sum(), nu)[0], 1e-6)
