"""Control paths against SciPy and closed forms; controlled equations along them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.interpolate import CubicHermiteSpline, CubicSpline
from torch import nn

import pysciml as ps
from pysciml import nn as pn
from pysciml.nn import paths
from support import F64, assert_close, counted_captures, f64

TIGHT = {"abstol": 1e-11, "reltol": 1e-10}
T = f64(0.0, 0.4, 1.1, 1.5, 2.7)
NAN = float("nan")


def series(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape, len(T), 3, dtype=F64)


def test_natural_cubic_spline_is_scipys() -> None:
    x = series(2)
    path = pn.CubicPath(pn.natural_cubic_coefficients(x, T), T)
    want = CubicSpline(T, x, axis=1, bc_type="natural")
    at = torch.linspace(0.0, 2.7, 50, dtype=F64)
    assert_close(path.evaluate(at), torch.tensor(want(at)), 1e-12)
    assert_close(path.derivative(at), torch.tensor(want(at, 1)), 1e-12)


def test_hermite_spline_with_backward_differences() -> None:
    x = series()
    path = pn.CubicPath(pn.hermite_coefficients(x, T), T)
    line = x.diff(dim=0) / T.diff()[:, None]
    slopes = torch.cat([line[:1], line])
    want = CubicHermiteSpline(T, x, slopes)
    at = torch.linspace(0.0, 2.7, 50, dtype=F64)
    assert_close(path.evaluate(at), torch.tensor(want(at)), 1e-12)
    assert_close(path.derivative(at), torch.tensor(want(at, 1)), 1e-12)


def test_linear_path() -> None:
    x = series()
    path = pn.LinearPath(pn.linear_coefficients(x, T), T)
    assert_close(path.evaluate(T), x, 1e-14)
    assert_close(path.evaluate(f64(0.2)), x[:2].mean(0), 1e-14)
    assert_close(path.derivative(f64(0.2)), (x[1] - x[0]) / 0.4, 1e-14)


def test_missing_values_between_and_beyond() -> None:
    x = f64([[NAN, 1.0, NAN], [2.0, NAN, NAN], [NAN, NAN, NAN], [4.0, 3.0, NAN], [NAN, NAN, NAN]])
    got = paths.fill_linear(x, f64(0.0, 1.0, 2.0, 3.0, 4.0))
    want = f64([[2.0, 1.0, 0.0], [2.0, 1 + 2 / 3, 0.0], [3.0, 1 + 4 / 3, 0.0], [4.0, 3.0, 0.0],
                [4.0, 3.0, 0.0]])  # fmt: skip
    assert_close(got, want, 1e-14)
    forward = paths.fill_forward(x)
    assert torch.isnan(forward[0, 0]) and forward[:, 1].tolist() == [1.0, 1.0, 1.0, 3.0, 3.0]


def test_natural_spline_goes_through_what_is_seen() -> None:
    x = series(2)
    x[0, 2, 1] = x[1, 1, 0] = x[1, 3, 0] = NAN
    path = pn.CubicPath(pn.natural_cubic_coefficients(x, T), T)
    at = torch.linspace(0.0, 2.7, 40, dtype=F64)
    for b in range(2):
        for c in range(3):
            seen = ~torch.isnan(x[b, :, c])
            want = CubicSpline(T[seen], x[b, seen, c], bc_type="natural")
            assert_close(path.evaluate(at)[b, :, c], torch.tensor(want(at)), 1e-12)


def test_rectilinear_path_never_looks_ahead() -> None:
    x = f64([[0.0, 1.0], [1.0, NAN], [3.0, 5.0]])
    got = pn.linear_coefficients(x, rectilinear=0)
    want = f64([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [3.0, 1.0], [3.0, 5.0]])
    assert_close(got, want, 1e-14)


def test_coefficients_are_differentiable() -> None:
    x = series().requires_grad_()
    for make in (
        pn.natural_cubic_coefficients, pn.hermite_coefficients, pn.linear_coefficients
    ):  # fmt: skip
        assert torch.autograd.gradcheck(lambda x, make=make: make(x, T), (x,))


# ---- controlled equations


def field(channels: int, hidden: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(hidden, 8), nn.Tanh(), nn.Linear(8, hidden * channels), nn.Tanh()
    ).double()


def test_constant_matrix_adds_up_the_increments(engine: str) -> None:
    matrix = torch.randn(4, 3, dtype=F64)
    x = series(2)
    for kind, make in (("natural", pn.natural_cubic_coefficients),
                       ("hermite", pn.hermite_coefficients),
                       ("linear", pn.linear_coefficients)):  # fmt: skip
        model = pn.NeuralCDE(
            lambda z: matrix.expand(len(z), 4, 3), 3, 4, path=kind, engine=engine, **TIGHT
        ).double()
        got = model(make(x, T), T, saveat=f64(1.1, 2.7))
        start = model.initial(x[:, 0])
        for row, k in ((0, 2), (1, 4)):
            assert_close(got[row], start + (x[:, k] - x[:, 0]) @ matrix.T, 1e-7)


def test_linear_cde_in_closed_form(engine: str) -> None:
    """dz = a z dX with one channel: z = z0 exp(a (X1 - X0)) along any path."""
    x = series(2)[..., :1]
    a = nn.Parameter(f64(0.7))

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = a

        def forward(self, z):
            return (self.a * z)[..., None]

    coeffs = pn.hermite_coefficients(x, T).requires_grad_()
    model = pn.NeuralCDE(Linear(), 1, 4, engine=engine, **TIGHT).double()
    got = model(coeffs, T)
    rise = x[:, -1] - x[:, 0]
    want = model.initial(x[:, 0]) * torch.exp(a * rise)
    assert_close(got, want, 1e-7)
    g = torch.autograd.grad(got.sum(), [a, coeffs])
    assert_close(g[0], torch.autograd.grad(want.sum(), a)[0], 1e-6)
    assert g[1].abs().max() > 0


@pytest.mark.parametrize("kind", ["linear", "hermite"])
def test_output_does_not_depend_on_how_time_runs(engine: str, kind: str) -> None:
    """The path of the same pieces in other times is the same path, run at another speed."""
    x = series(3)
    model = pn.NeuralCDE(field(3), 3, 4, path=kind, engine=engine, **TIGHT).double()
    other = f64(1.0, 1.2, 4.0, 4.1, 7.5)
    if kind == "linear":
        one, two = model(pn.linear_coefficients(x, T), T), model(x, other)
        assert_close(one, two, 1e-7)
        return
    # a smooth change of time, t = 2 s + 1: the coefficients of the pieces scale with its powers
    coeffs = pn.hermite_coefficients(x, T)
    a, b, two_c, three_d = coeffs.chunk(4, -1)
    slow = torch.cat([a, b / 2, two_c / 4, three_d / 8], -1)
    assert_close(model(slow, 2 * T + 1), model(coeffs, T), 1e-7)


def test_hidden_states_do_not_see_the_future(engine: str) -> None:
    x = torch.cat([T[:, None].expand(2, -1, 1), series(2)], -1)
    y = x.clone()
    y[:, 3:, 1:] += 5.0
    model = pn.NeuralCDE(field(4), 4, 4, path="rectilinear", engine=engine, **TIGHT).double()
    at = f64(2.0, 4.0, 8.0)  # knots of the path: two a time
    one, two = (model(pn.linear_coefficients(v, rectilinear=0), saveat=at) for v in (x, y))
    assert_close(one[:2], two[:2], 1e-8)
    assert float((one[2] - two[2]).detach().abs().max()) > 1e-3


def test_batches_of_a_size_share_a_kernel() -> None:
    model = pn.NeuralCDE(field(3), 3, 4, readout=nn.Linear(4, 1), engine="sundials").double()
    with counted_captures() as names:
        for _ in range(3):
            coeffs = pn.hermite_coefficients(torch.randn(5, 6, 3, dtype=F64))
            assert model(coeffs).shape == (5, 1)
    assert names == ["f"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pn.hermite_coefficients(series(2), T[:-1]), "t has 4 times, but the data have 5"),
        (lambda: pn.hermite_coefficients(series(2), T.flip(0)), "increase strictly"),
        (lambda: pn.linear_coefficients(1.0 / torch.zeros(5, 2)), "infinite values"),
        (lambda: pn.LinearPath(torch.ones(2, 2), torch.tensor([0.0, torch.inf])), "infinite t"),
        (lambda: pn.natural_cubic_coefficients(1.0 / torch.zeros(5, 2)), "infinite values"),
        (lambda: pn.linear_coefficients(1.0 / torch.zeros(5, 2), rectilinear=0), "infinite values"),
        (lambda: pn.linear_coefficients(torch.ones(3)), "give a float tensor"),
        (lambda: pn.linear_coefficients(torch.ones(1, 3)), "needs two or more"),
        (lambda: pn.linear_coefficients(torch.ones(4, 3), rectilinear=3), "0 to 2"),
        (lambda: pn.linear_coefficients(f64([[0.0], [NAN]]), rectilinear=0), "missing values"),
        (lambda: pn.CubicPath(torch.ones(4, 7)), "4 . channels"),
        (lambda: pn.NeuralCDE(field(3), 3, 4)([1.0, 2.0]), "coefficients are a list"),
        (lambda: pn.CubicPath(torch.ones(4, 8), T[:3]), "belong to 5 times"),
        (lambda: pn.LinearPath(torch.ones(5, 2), T.flip(0)), "increase strictly"),
        (lambda: pn.NeuralCDE(field(3), 3, 4, path="cubic"), "path is 'cubic'"),
        (lambda: pn.NeuralCDE(field(3), 3, 4, path=["linear"]), r"path is \['linear'\]"),
        (lambda: pn.NeuralCDE(field(3), 3.0, 4), "channels is 3.0; give a positive whole"),
        (lambda: pn.NeuralCDE(field(3), 3, 0), "hidden is 0; give a positive whole"),
        (lambda: pn.NeuralCDE(field(3), 3, 4, initial=torch.ones(3)), "initial is a Tensor"),
        (lambda: pn.NeuralCDE(field(3), 3, 4, readout="sum"), "readout is a str; give an"),
        (lambda: pn.NeuralCDE(field(3), 3, 4, tspan=(0.0, 1.0)), "does not take 'tspan'"),
        (lambda: pn.NeuralCDE(field(3), 3, 4)(torch.ones(2, 4, 12), [0.0, 1.0]), "t is a list"),
        (lambda: pn.NeuralCDE(field(3), 3, 4)(torch.full((2, 4, 12), NAN)), "coeffs holds nan"),
        (lambda: pn.NeuralCDE(field(3), 3, 4, initial=nn.Linear(2, 4))(torch.ones(2, 4, 12)),
         "initial fails on a state of shape"),
        (lambda: pn.NeuralCDE(field(3), 3, 4).float()(torch.ones(2, 4, 12, dtype=F64)),
         "initial mixes dtypes"),
        (lambda: pn.NeuralCDE(field(3), 3, 4, initial=lambda x: None)(torch.ones(2, 4, 12)),
         "initial gave a NoneType; it must give a tensor"),
        (lambda: pn.NeuralCDE(lambda z: None, 3, 4, engine="sundials")(torch.ones(2, 4, 12)),
         "vector_field gave a NoneType; it must give a tensor"),
        (lambda: pn.LinearPath(torch.ones(5, 2).long()), "coefficients are of int64"),
        (lambda: pn.LinearPath(torch.ones(5, 2, device="meta")), "coefficients are on the device"),
        (lambda: pn.LinearPath(torch.ones(5, 2)).evaluate("end"), "t is 'end'; give a time"),
        (lambda: pn.linear_coefficients(torch.ones(5, 2, device="meta")), "data are on the device"),
        (lambda: pn.linear_coefficients(torch.ones(4, 3), rectilinear=True), "rectilinear is True"),
        (lambda: pn.NeuralCDE(field(3), 2, 4)(torch.ones(2, 4, 12)), "takes a batch"),
        (lambda: pn.NeuralCDE(field(3), 3, 4)(torch.ones(4, 12)), "takes a batch"),
        (lambda: pn.NeuralCDE(field(2), 3, 4, engine="sundials").double()(
            torch.ones(2, 4, 12, dtype=F64)), "it must give"),
        (lambda: pn.NeuralCDE(field(3), 3, 4, initial=nn.Linear(3, 5))(torch.ones(2, 4, 12)),
         "initial gave"),
        (lambda: pn.NeuralCDE(field(3), 3, 4)(pn.LinearPath(torch.ones(2, 4, 3))), "LinearPath"),
        (lambda: pn.NeuralCDE(field(3), 3, 4, path="linear")(torch.ones(2, 4, 12)),
         "as those of a cubic path of 3 channels have"),
        (lambda: pn.NeuralCDE(field(3), 3, 4)(torch.ones(2, 4, 3)), "made by hermite_coefficients"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ps.InputError, match=message):
        make()
