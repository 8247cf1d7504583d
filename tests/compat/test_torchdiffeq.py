"""pysciml.compat.torchdiffeq beside torchdiffeq itself, and beside closed forms."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torchdiffeq as reference
from torch import Tensor, nn

import pysciml as ps
import pysciml.compat.torchdiffeq as ours
from pysciml.compat.fixed_grid import FIXED_METHODS
from pysciml.compat.tableaux import EXPLICIT, IMPLICIT, adams_bashforth, adams_moulton
from support import F64, assert_close, counted_captures, f64

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.unused = nn.Linear(2, 2).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * (1.0 + 0.1 * torch.sin(t))


def both(engine: str, name: str, func: Any, y0: Any, t: Tensor, **kwargs: Any) -> None:
    """Values and all gradients of the two libraries agree."""
    options = kwargs.pop("options", {})
    rtol = kwargs.pop("agree", 1e-6)
    results = []
    for library, extra in ((reference, {}), (ours, {"engine": engine})):
        leaves = [x.clone().requires_grad_() for x in (y0 if isinstance(y0, tuple) else (y0,))]
        at = t.clone().requires_grad_()
        state = tuple(leaves) if isinstance(y0, tuple) else leaves[0]
        given = {**options, **extra}
        y = getattr(library, name)(func, state, at, options=given or None, **kwargs)
        parts = y if isinstance(y, tuple) else (y,)
        params = [p for p in func.parameters()] if isinstance(func, nn.Module) else []
        loss = sum((x**2).sum() for x in parts)
        grads = torch.autograd.grad(loss, [*leaves, at, *params], allow_unused=True)
        results.append(([*parts], [torch.zeros(1, dtype=F64) if g is None else g for g in grads]))
    (values, grads), (got, got_grads) = results
    for a, b in zip(got, values, strict=True):
        assert_close(a, b, rtol)
    size = max(float(g.abs().max()) for g in grads)
    for a, b in zip(got_grads, grads, strict=True):
        assert float((a - b).abs().max()) <= 10 * rtol * size


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "adaptive_heun"])
def test_adaptive_methods(engine: str, name: str, method: str) -> None:
    low = {"rtol": 1e-7, "atol": 1e-8} if method in ("bosh3", "adaptive_heun") else TIGHT
    t = torch.linspace(0.0, 1.5, 5, dtype=F64)
    agree = 1e-4 if low is not TIGHT else 1e-7
    both(engine, name, Field(), torch.randn(3, 2, dtype=F64), t, method=method, agree=agree, **low)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_time_reversed(engine: str, name: str) -> None:
    t = torch.linspace(1.5, 0.2, 4, dtype=F64)
    both(engine, name, Field(), torch.randn(3, 2, dtype=F64), t, agree=1e-7, **TIGHT)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("euler", {}),
        ("euler", {"step_size": 0.07}),
        ("midpoint", {"step_size": 0.07, "perturb": True}),
        ("midpoint", {"grid_constructor": lambda f, y, t: torch.linspace(0, 1, 23).to(t) * (
            t[-1] - t[0]) + t[0]}),
        ("heun2", {"step_size": 0.07, "interp": "cubic"}),
        ("heun3", {}),
        ("rk4", {}),
        ("rk4", {"step_size": 0.11, "interp": "cubic"}),
        ("explicit_adams", {"step_size": 0.05}),
        ("explicit_adams", {"step_size": 0.05, "max_order": 5}),
        ("implicit_adams", {"step_size": 0.05}),
        ("fixed_adams", {"step_size": 0.05}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*did not converge:UserWarning")
@pytest.mark.filterwarnings("ignore:Functional iteration:UserWarning")
def test_fixed_grid_methods_keep_their_meaning(name, direction, method, options) -> None:
    t = torch.linspace(0.0, 1.0, 4, dtype=F64)
    t = t if direction == 1 else t.flip(0)
    y0 = torch.randn(3, 2, dtype=F64)
    loose = {"rtol": 1e-4, "atol": 1e-6}  # of the corrector's iteration
    both("sundials", name, Field(), y0, t, method=method, options=options, agree=1e-9, **loose)


def test_tuple_states_of_any_shapes(engine: str) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(f64(0.7))

        def forward(self, t, y):
            x, v = y
            return v.sum() * torch.cos(self.a * x), (-self.a * v * x).reshape(-1)  # flat: accepted

    y0 = (f64(0.3), torch.randn(2, 3, dtype=F64))
    t = torch.linspace(0.0, 1.0, 4, dtype=F64)
    for name in ("odeint", "odeint_adjoint"):
        both(engine, name, Pair(), y0, t, agree=1e-7, **TIGHT)
        both(engine, name, Pair(), y0, t, method="rk4", agree=1e-12)


def test_complex_state() -> None:
    y0 = torch.tensor([1.0 + 0.5j], dtype=torch.complex128)
    t = torch.linspace(0.0, 2.0, 5, dtype=F64)
    for method in (None, "rk4"):
        options = {"engine": "sundials"} if method is None else {"step_size": 0.01}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ps.CaptureWarning)
            y = ours.odeint(lambda t, y: 1j * y, y0, t, method=method, options=options, **TIGHT)
        assert y.dtype == torch.complex128
        assert float((y[:, 0] - y0 * torch.exp(1j * t)).abs().max()) < 1e-8


def test_float32_and_one_time(engine: str) -> None:
    y0 = torch.tensor([1.0, 2.0])
    t = torch.linspace(0, 1, 3)
    y = ours.odeint(lambda t, y: -y, y0, t, options={"engine": engine})
    assert y.dtype == torch.float32
    assert_close(y, torch.exp(-t)[:, None] * y0, 1e-5)
    assert ours.odeint(lambda t, y: -y, y0, t[:1]).tolist() == [[1.0, 2.0]]


def test_stiff_methods_by_name(engine: str) -> None:
    def f(t, y):
        return -1e5 * (y - torch.cos(t))

    t = f64(0.0, 1.0, 3.0)
    alg = {"sundials": ["CVODE_BDF", ps.CVODE_BDF(), ps.CVODE_BDF], "julia": ["Rodas5P", ps.FBDF()]}
    for method in alg[engine]:
        y = ours.odeint(f, f64([0.0]), t, method=method, options={"engine": engine})
        assert_close(y[1:, 0], torch.cos(t[1:]), 1e-4)
    for solver in ("BDF", "Radau", "LSODA"):
        options = {"solver": solver, "engine": engine}
        y = ours.odeint(f, f64([0.0]), t, method="scipy_solver", options=options)
        assert_close(y[1:, 0], torch.cos(t[1:]), 1e-4)


def test_jumps_are_stepped_on(engine: str) -> None:
    def f(t, y):
        return torch.where(t < 0.5, 1.0, -3.0) * torch.ones_like(y)

    t = f64(0.0, 1.0)
    options = {"jump_t": f64([0.5]), "first_step": 1e-2, "max_step": 0.2, "engine": engine}
    y = ours.odeint(f, f64([0.0]), t, options=options)
    # the first or last stage of a Runge-Kutta step stands on the jump, on its wrong side, and only
    # the error control sees it
    assert_close(y[-1], f64([-1.0]), 1e-9 if engine == "sundials" else 1e-6)
    y = ours.odeint(f, f64([0.0]), t.flip(0), options={"step_t": f64([0.5]), "engine": engine})
    assert_close(y[-1], f64([1.0]), 1e-6 if engine == "sundials" else 1e-4)


def test_adjoint_parameters_get_a_gradient_even_where_unused(engine: str) -> None:
    field = Field()
    y = ours.odeint_adjoint(
        field, torch.ones(2, dtype=F64), f64(0.0, 1.0), options={"engine": engine}
    )
    y.sum().backward()
    assert field.unused.weight.grad is not None and not field.unused.weight.grad.any()
    assert field.net[0].weight.grad.any()


def test_a_training_loop_captures_once() -> None:
    field = Field()
    y0, t = torch.ones(2, dtype=F64), f64(0.0, 1.0)
    with counted_captures() as names:
        for _ in range(3):
            # functions made anew, as programs write them
            y = ours.odeint(lambda t, y: field(t, y), y0, t, options={"engine": "sundials"})
            y.sum().backward()
            ours.odeint_adjoint(field, y0, t, options={"engine": "sundials"}).sum().backward()
            for p in field.parameters():
                p.data.sub_(1e-3)
    assert len(names) == 1  # for both interfaces


def falling(y0: Tensor, g: Tensor, t0: Tensor) -> Any:
    """Fall from rest at height y0: the time and the speed at the ground, in closed form."""
    return t0 + torch.sqrt(2 * y0 / g), torch.sqrt(2 * y0 * g)


@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", [None, "rk4"])
@pytest.mark.parametrize("reverse", [False, True])
def test_event_time_and_gradients_in_closed_form(engine, interface, method, reverse) -> None:
    height, g, t0 = f64(1.7, grad=True), f64(9.8, grad=True), f64([0.3], grad=True)
    sign = -1.0 if reverse else 1.0

    class Fall(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g = nn.Parameter(g.detach().clone())

        def forward(self, t, y):
            return sign * y[1], sign * -self.g

    fall = Fall()
    options = {"engine": engine} if method is None else {"step_size": 0.01, "interp": "cubic"}
    t, y = ours.odeint_event(
        fall, (height, f64(0.0)), t0, event_fn=lambda t, y: torch.stack([y[0], y[0] + 5.0]),
        reverse_time=reverse, odeint_interface=getattr(ours, interface), method=method,
        options=options, rtol=1e-10, atol=1e-12,
    )  # fmt: skip
    start = t0[0] if not reverse else -t0[0]
    want_t, want_v = falling(height, g, start)
    assert_close(sign * t, want_t, 1e-8)
    assert_close(y[1][-1], -want_v, 1e-8)
    inputs = [height, t0]
    for got, want in ((sign * t, want_t), (y[1][-1], -want_v)):
        a = torch.autograd.grad(got, [*inputs, fall.g], retain_graph=True, allow_unused=True)
        b = torch.autograd.grad(want, [height, t0, g], retain_graph=True, allow_unused=True)
        for x, z in zip(a, b, strict=True):
            x = torch.zeros(1, dtype=F64) if x is None else x.reshape(-1)
            z = torch.zeros(1, dtype=F64) if z is None else z.reshape(-1)
            assert_close(x, z, 1e-6, 1e-7)


def test_events_agree_with_torchdiffeq(engine: str) -> None:
    def event(t, y):
        return y[0] - 0.3

    t0, y0 = f64([0.0]), f64(2.0, 1.0)
    f = lambda t, y: -y * torch.stack([t + 0.5, y[0] * 0.1])
    want_t, want = reference.odeint_event(f, y0, t0, event_fn=event, **TIGHT)
    got_t, got = ours.odeint_event(f, y0, t0, event_fn=event, options={"engine": engine}, **TIGHT)
    assert_close(got_t, want_t, 1e-8)
    assert_close(got, want, 1e-8)


def test_an_event_far_away_and_one_at_the_start(engine: str) -> None:
    t, y = ours.odeint(
        lambda t, y: torch.ones_like(y), f64([0.0]), f64(0.0, 0.5), event_fn=lambda t, y: y - 123.0,
        options={"engine": engine},
    )  # fmt: skip
    assert_close(t, f64(123.0), 1e-6)
    t, y = ours.odeint(
        lambda t, y: torch.ones_like(y), f64([0.0]), f64(2.0, 3.0), event_fn=lambda t, y: y,
        options={"engine": engine},
    )  # fmt: skip
    assert t == 2.0 and y.tolist() == [[0.0], [0.0]]


def test_dense_output(engine: str) -> None:
    y0 = f64([1.0], grad=True)
    sol = ours.odeint_dense(lambda t, y: -y, y0, 0.0, 2.0, options={"engine": engine}, **TIGHT)
    y = sol(f64(0.3, 1.7))
    assert_close(y[:, 0], torch.exp(-f64(0.3, 1.7)), 1e-8)
    assert_close(torch.autograd.grad(y[1, 0], y0)[0], torch.exp(-f64([1.7])), 1e-7)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_step_callbacks_are_called_with_the_state(method: str) -> None:
    seen = []

    class Watched(nn.Module):
        def forward(self, t, y):
            return -y[0], y[0]

        def callback_step(self, t, y, dt):
            seen.append((float(t), float(y[0]), float(dt)))

    options = {"step_size": 0.1} if method == "rk4" else {"engine": "sundials"}
    y0 = (f64(1.0), f64(0.0))
    ours.odeint(Watched(), y0, f64(0.0, 1.0), method=method, options=options)
    if method == "rk4":
        assert len(seen) == 10
    assert seen[0][:2] == (0.0, 1.0)
    assert abs(sum(dt for _, _, dt in seen) - 1.0) < 1e-12
    for t, y, _ in seen:
        assert abs(y - float(torch.exp(f64(-t)))) < 1e-5


@pytest.mark.parametrize("method", [None, "rk4"])
def test_gradcheck(engine: str, method: str | None) -> None:
    y0, t = f64([0.4, 0.9], grad=True), f64(0.0, 0.4, 1.0, grad=True)
    options = {"engine": engine} if method is None else None

    def call(y0, t):
        f = lambda t, y: torch.sin(y) * t
        return ours.odeint(f, y0, t, method=method, options=options, **TIGHT)

    assert torch.autograd.gradcheck(call, (y0, t), eps=1e-5, atol=1e-4)


def test_fixed_grid_gradients_can_be_differentiated_again() -> None:
    y0 = f64([0.4], grad=True)
    y = ours.odeint(lambda t, y: torch.sin(y), y0, f64(0.0, 0.5), method="rk4")
    (g,) = torch.autograd.grad(y[-1].sum(), y0, create_graph=True)
    assert torch.autograd.grad(g.sum(), y0)[0].abs() > 0.01


# ---- methods


@pytest.mark.filterwarnings("ignore:.*did not converge:UserWarning")
@pytest.mark.parametrize("method", FIXED_METHODS)
def test_order_of_convergence(method: str) -> None:
    """Errors on a non-linear problem with known solution fall as the method's order says."""
    if "adams" in method:
        order, steps = 4, (32, 64)  # the starting steps' order, with max_order 4
    else:
        order, steps = {**EXPLICIT, **IMPLICIT}[method].order, (8, 16)
    errors = []
    for n in steps:
        options = {"step_size": 1.0 / n}
        if "adams" in method:
            options["max_order"] = 5
        tight = {"rtol": 1e-13, "atol": 1e-13} if "implicit_adams" not in method else {}
        y = ours.odeint(
            lambda t, y: -2 * t * y**2, f64([1.0]), f64(0.0, 1.0), method=method, options=options,
            **tight,
        )  # fmt: skip
        errors.append(float((y[-1] - 0.5).abs()))
    assert errors[1] < errors[0] / 2 ** (order - 0.7) or errors[1] < 1e-13


@pytest.mark.parametrize("method", list(IMPLICIT))
def test_implicit_methods_differentiate_their_own_steps(method: str) -> None:
    y0 = f64([0.7, 0.2], grad=True)
    f = lambda t, y: torch.stack([y[1], -torch.sin(y[0]) - 0.1 * y[1]])
    call = lambda y0: ours.odeint(f, y0, f64(0.0, 0.3, 0.6), method=method)[-1]
    assert torch.autograd.gradcheck(call, (y0,), eps=1e-6, atol=1e-6)


def test_adams_coefficients() -> None:
    assert adams_bashforth(2) == (1.5, -0.5)
    assert adams_bashforth(4) == tuple(x / 24 for x in (55, -59, 37, -9))
    assert adams_moulton(4) == tuple(x / 24 for x in (9, 19, -5, 1))
    assert adams_moulton(3) == tuple(x / 12 for x in (5, 8, -1))


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dopri7"}, "Did you mean 'dopri"),
        ({"method": 5}, "There is no method 5"),
        ({"t": f64(0.0, 1.0, 0.5)}, "strictly increasing or strictly decreasing"),
        ({"t": f64(0.0, 0.0)}, "strictly increasing or strictly decreasing"),
        ({"t": [0.0, 1.0]}, "t is a list"),
        ({"t": torch.tensor([0, 1])}, "floating-point times"),
        ({"t": f64([[0.0, 1.0]])}, r"t has shape \(1, 2\)"),
        ({"y0": "x"}, "y0 is str"),
        ({"y0": ()}, "y0 is tuple"),
        ({"y0": torch.tensor([1, 2])}, "a state is float64 or float32"),
        ({"func": 3}, "func is a int"),
        ({"func": lambda t, y: y[:1].repeat(5)}, r"func returned shape \(5,\)"),
        ({"func": lambda t, y: (y, y), "y0": (f64([1.0]),)}, "func returned 2 values"),
        ({"func": lambda t, y: None}, "func returned a NoneType"),
        ({"method": "euler", "options": {"step_size": -1.0}}, "step_size"),
        ({"method": "euler", "options": {"interp": "quintic"}}, "interp"),
        ({"method": "explicit_adams", "options": {"max_order": 40}}, "max_order"),
        ({"method": "rk4", "event_fn": lambda t, y: y.sum() - 3}, "step_size"),
        ({"t": f64(0.0, 1.0, 2.0), "event_fn": lambda t, y: y.sum()}, "two times"),
        ({"event_fn": lambda t, y: 1.0}, "event_fn returned a float"),
        ({"event_fn": 3}, "event_fn is a int"),
        ({"method": "scipy_solver", "options": {"solver": "RK54"}}, "Did you mean 'RK45'"),
        ({"options": {"jump_t": f64(0.5, 0.5)}}, "must not repeat"),
        ({"y0": (f64(1.0),), "func": lambda t, y: y, "atol": (1e-3, 1e-3)}, "one for each part"),
        ({"atol": torch.full((6,), 1e-3)}, r"atol has shape \(6,\), but y0"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"func": lambda t, y: -y, "y0": f64(1.0, 2.0), "t": f64(0.0, 1.0)}
    given |= arguments
    if given.get("method") is None:
        given.setdefault("options", {})["engine"] = "sundials"
    with pytest.raises(ps.InputError, match=message):
        ours.odeint(given.pop("func"), given.pop("y0"), given.pop("t"), **given)


@pytest.mark.parametrize(("t0", "t1"), [("a", 1.0), (0.0, f64(1.0, 2.0)), (None, 1.0)])
def test_ends_of_a_dense_solve_that_are_no_numbers_are_refused(t0: Any, t1: Any) -> None:
    with pytest.raises(ps.InputError, match=r"t[01] is .*give a number"):
        ours.odeint_dense(lambda t, y: -y, f64([1.0]), t0, t1)


def test_a_grid_that_misses_the_ends_is_refused() -> None:
    options = {"grid_constructor": lambda f, y, t: t[:-1]}
    with pytest.raises(ps.InputError, match="begin and end it there"):
        ours.odeint(lambda t, y: y, f64([1.0]), f64(0, 1, 2), method="euler", options=options)
    options["step_size"] = 0.1
    with pytest.raises(ps.InputError, match="both step_size and grid_constructor"):
        ours.odeint(lambda t, y: y, f64([1.0]), f64(0, 1, 2), method="euler", options=options)


def test_adjoint_of_a_plain_function_needs_its_parameters() -> None:
    with pytest.raises(ps.InputError, match="adjoint_params"):
        ours.odeint_adjoint(lambda t, y: -y, f64([1.0]), f64(0.0, 1.0))
    with pytest.raises(ps.InputError, match="adjoint_options"):
        ours.odeint_adjoint(
            Field(), f64(1.0, 1.0), f64(0.0, 1.0), method="rk4", options={"step_size": 0.1},
            adjoint_method="euler",
        )  # fmt: skip


def test_options_without_effect_are_said() -> None:
    y0, t = f64([1.0]), f64(0.0, 1.0)
    with pytest.warns(ours.NoEffectWarning, match="safety"):
        ours.odeint(lambda t, y: -y, y0, t, options={"safety": 0.5, "engine": "sundials"})
    with pytest.warns(ours.NoEffectWarning, match="Did you mean 'first_step'"):
        ours.odeint(lambda t, y: -y, y0, t, options={"frist_step": 0.5, "engine": "sundials"})
    with pytest.warns(UserWarning, match="no effect on method 'rk4'"):
        ours.odeint(lambda t, y: -y, y0, t, method="rk4", options={"max_order": 4})


def test_what_an_adaptive_solve_never_calls_is_said() -> None:
    """A norm of one's own, and the callbacks of the adjoint's steps, as the module says."""
    y0, t, called = f64(1.0, 1.0), f64(0.0, 1.0), []

    def norm(y: Tensor) -> Tensor:
        called.append(y)
        return y.abs().max()

    options = {"engine": "sundials", "norm": norm}
    with pytest.warns(ours.NoEffectWarning, match="norm"):
        ours.odeint(lambda t, y: -y, y0, t, options=options)
    field = Field()
    field.callback_step_adjoint = lambda *given: called.append(given)
    with pytest.warns(ours.NoEffectWarning) as said:
        out = ours.odeint_adjoint(
            field, y0, t, options={"engine": "sundials"}, adjoint_options={"norm": norm}
        )
    out.sum().backward()
    texts = [str(w.message) for w in said]
    assert any("adjoint_options['norm']" in x for x in texts)
    assert any("callback_step_adjoint is never called" in x for x in texts)
    assert not called


def test_an_event_that_never_comes_is_an_error() -> None:
    with pytest.raises(ps.SolveError, match="No event"):
        ours.odeint(
            lambda t, y: torch.zeros_like(y), f64([1.0]), f64(0.0, 1.0), method="euler",
            options={"step_size": 1.0}, event_fn=lambda t, y: y.sum(),
        )  # fmt: skip
