"""pysciml.compat.torchcde against closed forms, and against solves written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pysciml as ps
import pysciml.compat.torchcde as torchcde
import pysciml.compat.torchdiffeq as torchdiffeq
from support import F64, assert_close, f64

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


class Field(nn.Module):
    def __init__(self, channels: int = 2, hidden: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(hidden, hidden * channels).double()
        self.shape = (hidden, channels)

    def forward(self, t, z):
        return torch.tanh(self.linear(z)).reshape(*z.shape[:-1], *self.shape)


def data(*batch: int, channels: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(*batch, 6, channels, dtype=F64)


def spline(x: torch.Tensor) -> torchcde.CubicSpline:
    make = torchcde.hermite_cubic_coefficients_with_backward_differences
    return torchcde.CubicSpline(make(x))


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_shapes_and_values_against_the_equation_written_out(engine: str, batch: Any) -> None:
    x = spline(data(*batch))
    func, z0 = Field(), torch.randn(*batch, 3, dtype=F64)
    t = f64(0.0, 2.5, 5.0)
    options = {"engine": engine}
    out = torchcde.cdeint(x, func, z0, t, options=options, **TIGHT)
    assert out.shape == (*batch, 3, 3)

    def written_out(t, z):
        return (func(t, z) * x.derivative(t).unsqueeze(-2)).sum(-1)

    want = torchdiffeq.odeint(written_out, z0, t, options=options, **TIGHT)
    assert_close(out, want.movedim(0, -2), 1e-7)


def test_linear_equation_in_closed_form_with_gradients(engine: str) -> None:
    x = data(3, channels=1).requires_grad_()
    a = f64(0.6, grad=True)
    z0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    for adjoint in (True, False):
        more = {"adjoint_params": (a,)} if adjoint else {}
        out = torchcde.cdeint(
            spline(x), lambda t, z: (a * z)[..., None], z0, f64(0.0, 5.0), adjoint=adjoint,
            options={"engine": engine}, **TIGHT, **more,
        )  # fmt: skip
        want = z0 * torch.exp(a * (x[:, -1] - x[:, 0]))
        assert_close(out[:, -1], want, 1e-7)
        got = torch.autograd.grad(out[:, -1].square().sum(), [a, x, z0])
        exact = torch.autograd.grad(want.square().sum(), [a, x, z0])
        for g, h in zip(got, exact, strict=True):
            assert_close(g, h, 1e-6, 1e-8)


def test_linear_paths_are_stepped_on_at_their_knots(engine: str) -> None:
    x = data(2)
    path = torchcde.LinearInterpolation(torchcde.linear_interpolation_coeffs(x))
    func = Field()
    out = torchcde.cdeint(
        path, func, torch.zeros(2, 3, dtype=F64), path.interval, options={"engine": engine}, **TIGHT
    )
    z = torch.zeros(2, 3, dtype=F64)
    for k in range(5):  # a smooth equation on each piece
        step = x[:, k + 1] - x[:, k]
        z = torchdiffeq.odeint(
            lambda t, z, step=step: (func(t, z) * step[:, None]).sum(-1), z, f64(0.0, 1.0),
            options={"engine": engine}, **TIGHT,
        )[-1]  # fmt: skip
    assert_close(out[:, -1], z, 1e-8)


def test_fixed_grid_methods(engine: str) -> None:
    x = spline(data(2))
    z0 = torch.randn(2, 3, dtype=F64)
    fine = torchcde.cdeint(x, Field(), z0, x.interval, options={"engine": engine}, **TIGHT)
    for adjoint in (True, False):
        func = Field()
        out = torchcde.cdeint(
            x, func, z0, x.interval, adjoint=adjoint, method="rk4", options={"step_size": 0.02}
        )
        assert_close(out, fine, 1e-5)
        out.sum().backward()
        assert func.linear.weight.grad.abs().max() > 0


def test_products_and_tuples(engine: str) -> None:
    func = Field()

    class Product:
        def prod(self, t, z, dx):
            return (func(t, z) @ dx.unsqueeze(-1)).squeeze(-1)

    x, z0 = spline(data(2)), torch.randn(2, 3, dtype=F64)
    options = {"engine": engine}
    want = torchcde.cdeint(x, func, z0, x.interval, options=options, **TIGHT)
    got = torchcde.cdeint(x, Product(), z0, x.interval, adjoint_params=(), options=options, **TIGHT)
    assert_close(got, want, 1e-7)
    both = torchcde.TupleControl(x, spline(data(channels=2)))
    pair = torchcde.cdeint(
        both, lambda t, z: tuple(func(t, v) for v in z), (z0, z0[0]), both.interval,
        adjoint=False, options=options, **TIGHT,
    )  # fmt: skip
    assert_close(pair[0], want, 1e-7)
    assert pair[1].shape == (2, 3)


def test_paths_have_their_names() -> None:
    x = spline(data(2))
    assert x.grid_points.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert x.interval.tolist() == [0.0, 5.0]
    assert torchcde.NaturalCubicSpline(torchcde.natural_cubic_coeffs(data(2))).channels == 2
    both = torchcde.TupleControl(x, x)
    assert both.grid_points.shape == (6,) and len(both.evaluate(f64(0.5))) == 2
    with pytest.warns(UserWarning, match="looks ahead"):
        missing = data(2)
        missing[:, 0, 1] = torch.nan
        missing[..., 0] = torch.arange(6)
        torchcde.linear_interpolation_coeffs(missing, rectilinear=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "torchsde"}, "'torchdiffeq' only"),
        ({"X": 3}, "give a path"),
        ({"t": 5.0}, "1-d tensor of times"),
        ({"z0": torch.zeros(3, 3, dtype=F64)}, "of one size"),
        ({"func": Field(channels=3)}, "2 channels it must give"),
        ({"func": lambda t, z: 1.0}, "must give tensors"),
        ({"z0": (torch.zeros(2, 3, dtype=F64),)}, "z0 is a tuple"),
        ({"func": lambda z: z}, r"func takes \(z\), but it is called with \(t, z\)"),
        ({"func": lambda z, t: z}, "func takes .*put them in this order"),
        ({"func": torch.zeros(2, 3)}, "func is a Tensor; give an nn.Module or a function"),
        ({"z0": [0.0, 1.0, 2.0]}, r"z0\[0\] is a float"),
        ({"z0": torch.zeros(2, 3, dtype=torch.int64)}, "z0 is int64"),
        ({"z0": torch.zeros(2, 3)}, "X.derivative gave float64, but z0 is float32; convert"),
        ({"z0": torch.full((2, 3), torch.nan, dtype=F64)}, "z0 holds nan"),
        ({"z0": torch.zeros(2, 3, dtype=F64, device="meta")}, "z0 is on the device meta"),
        ({"t": torch.zeros(2, device="meta")}, "t is a tensor of torch.float32 on meta"),
        ({"options": "fast"}, "options is a str; give a dict"),
        ({"adjoint": True, "adjoint_params": "ab"}, "adjoint_params holds a str; give tensors"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    x = spline(data(2))
    given = {"X": x, "func": lambda t, z: z[..., None].expand(*z.shape, 2), "t": x.interval,
             "z0": torch.zeros(2, 3, dtype=F64), "adjoint": False} | change  # fmt: skip
    if isinstance(given["z0"], tuple):
        given["func"] = lambda t, z: z[0]
    with pytest.raises(ps.InputError, match=message):
        torchcde.cdeint(**given)


def test_paths_of_other_intervals_do_not_go_together() -> None:
    short = torchcde.CubicSpline(torchcde.natural_cubic_coeffs(data(2)[:, :4]))
    with pytest.raises(ps.InputError, match="one and the same interval"):
        torchcde.TupleControl(spline(data(2)), short)
    with pytest.raises(ps.InputError, match="was given a int; give paths"):
        torchcde.TupleControl(3)
    with pytest.raises(ps.InputError, match="one path or more"):
        torchcde.TupleControl()


@pytest.mark.parametrize("shape", [(3, 0, 2), (1, 2)])
def test_series_without_two_times_are_refused(shape) -> None:
    for make in (torchcde.natural_cubic_coeffs, torchcde.natural_cubic_spline_coeffs):
        with pytest.raises(ps.InputError, match="a path needs two or more"):
            make(torch.ones(shape))


# -- beside torchcde itself --------------------------------------------------------------------


def irregular() -> tuple[torch.Tensor, torch.Tensor]:
    """Series with gaps inside, at the start, at the end, and a channel that was never seen."""
    torch.manual_seed(0)
    x = torch.randn(5, 6, 3, dtype=F64)
    for place in ((0, 2, 1), (1, slice(0, 2), 0), (2, 5, 2), (3, slice(None), 1)):
        x[place] = float("nan")
    return x, torch.tensor([0.0, 0.4, 1.0, 1.3, 2.1, 3.0], dtype=F64)


@pytest.mark.parametrize(
    "name",
    [
        "hermite_cubic_coefficients_with_backward_differences", "linear_interpolation_coeffs",
        "natural_cubic_coeffs", "natural_cubic_spline_coeffs",
    ],
)  # fmt: skip
def test_coefficients_are_those_of_torchcde(name) -> None:
    theirs = pytest.importorskip("torchcde")
    x, t = irregular()
    want, got = getattr(theirs, name)(x, t), getattr(torchcde, name)(x, t)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", ["CubicSpline", "LinearInterpolation"])
def test_a_solve_beside_torchcde(engine: str, path: str) -> None:
    """Both against torchcde's at 1e-11, with a step at each time of the data."""
    theirs = pytest.importorskip("torchcde")
    x, t = torch.randn(5, 6, 3, dtype=F64), irregular()[1]
    linear = path == "LinearInterpolation"
    make = theirs.linear_interpolation_coeffs if linear else theirs.natural_cubic_coeffs
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 12, dtype=F64)
    z0 = torch.randn(5, 4, dtype=F64)

    def func(t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(net(z)).view(*z.shape[:-1], 4, 3)

    def solved(module: Any, tolerance: float, **options: Any) -> list[torch.Tensor]:
        made = getattr(module, path)(make(x, t), t)
        z = module.cdeint(
            X=made, func=func, z0=z0, t=made.interval, adjoint=False, method="dopri5",
            rtol=tolerance, atol=tolerance, options=options,
        )  # fmt: skip
        return [z.detach(), *torch.autograd.grad(z.sum(), list(net.parameters()))]

    want = solved(theirs, 1e-11, jump_t=t[1:-1])
    for got, exact in zip(solved(torchcde, 1e-9, engine=engine), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=2e-5)
