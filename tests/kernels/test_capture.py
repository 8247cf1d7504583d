"""Capture: what it lifts, what it refuses and how it says so, and what it leaves alone."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from interpreter import evaluate
from torch import Tensor, nn

from pysciml.kernels.capture import Capture, CaptureError, capture
from pysciml.kernels.derivatives import derive, derive_compressed
from pysciml.kernels.kernels import Kernels

F64 = torch.float64


def inputs(n: int = 2, n_p: int = 2, dtype: torch.dtype = F64) -> dict[str, Tensor]:
    u = torch.linspace(0.3, 1.1, n, dtype=dtype)
    p = torch.linspace(0.7, 1.3, n_p, dtype=dtype)
    return {"u": u, "p": p, "t": torch.tensor(0.4, dtype=dtype)}


def value(found: Capture, at: dict[str, Tensor]) -> np.ndarray:
    """The value kernel at the function's own inputs."""
    args = dict(zip(found.names, found.example(at), strict=True))
    return evaluate(derive(found, "value"), **{k: v.numpy() for k, v in args.items()})[0]


# ---- lifting


def test_module_parameters_are_lifted_with_gradients() -> None:
    net = nn.Linear(2, 2).double()
    at = inputs()
    found = capture(lambda u, p, t: torch.tanh(net(u)) * p, at)
    assert {id(c) for c in found.closures_p} == {id(net.weight), id(net.bias)}
    assert found.closures_c == ()
    assert found.sizes == {"u": 2, "p": 8, "t": 1, "c": 0}
    extended = found.extend_p(at["p"].requires_grad_(True))
    extended.sum().backward()
    assert torch.equal(net.weight.grad, torch.ones(2, 2, dtype=F64))
    assert torch.equal(at["p"].grad, torch.ones(2, dtype=F64))


def test_closed_over_constants_go_to_c_and_are_read_anew() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64)
    at = inputs()
    found = capture(lambda u, p, t: a @ u + p * t, at)
    assert found.closures_c[0] is a
    a *= 2
    np.testing.assert_allclose(value(found, at), (a @ at["u"] + at["p"] * at["t"]).numpy())
    assert found.guards.ok()


def test_a_tensor_met_twice_is_lifted_once() -> None:
    w = torch.ones(2, dtype=F64, requires_grad=True)
    found = capture(lambda u, p, t: w * u + w * p, inputs())
    assert len(found.closures_p) == 1


def test_a_computed_closure_keeps_its_history() -> None:
    raw = torch.tensor(0.5, dtype=F64, requires_grad=True)
    rate = torch.exp(raw)
    found = capture(lambda u, p, t: rate * u, inputs())
    found.extend_p(torch.zeros(0, dtype=F64)).sum().backward()
    assert math.isclose(raw.grad.item(), math.exp(0.5))


def test_no_p() -> None:
    at = inputs(n_p=0)
    found = capture(lambda u, p, t: -u, at)
    assert found.sizes["p"] == 0
    np.testing.assert_allclose(value(found, at), -at["u"].numpy())


def test_dae_residual_names() -> None:
    at = {"du": torch.ones(2, dtype=F64), **inputs()}
    found = capture(lambda du, u, p, t: du - p * u * t, at)
    assert found.names == ("du", "u", "p", "t", "c")
    args = {k: v.numpy() for k, v in zip(found.names, found.example(at), strict=True)}
    np.testing.assert_allclose(evaluate(derive(found, "jac:du"), **args)[0], np.eye(2))


def test_single_precision_closure_in_double_function() -> None:
    w = torch.tensor([0.1, 0.2])
    at = inputs()
    found = capture(lambda u, p, t: u * w, at)
    np.testing.assert_allclose(value(found, at), (at["u"] * w).numpy(), rtol=1e-12)


def test_single_precision_function() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    at = inputs(dtype=torch.float32)
    found = capture(lambda u, p, t: net(u) * p + t, at)
    assert found.dtype == torch.float32
    want = (net(at["u"]) * at["p"] + at["t"]).detach().numpy()
    np.testing.assert_allclose(value(found, at), want, rtol=1e-5)


def test_arguments_with_defaults_and_signature_free_callables() -> None:
    class Model:
        def __call__(self, *args: Tensor, gain: float = 2.0) -> Tensor:
            return gain * args[0]

    at = inputs()
    np.testing.assert_allclose(value(capture(Model(), at), at), 2 * at["u"].numpy())


# ---- refusals


def refused(fn: Any, **options: Any) -> CaptureError:
    with pytest.raises(CaptureError) as caught:
        capture(fn, inputs(**options))
    return caught.value


def test_data_dependent_branch_names_the_line() -> None:
    def fn(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        if u[0] > 0.2:  # the culprit
            return u
        return -u

    error = refused(fn)
    assert "if u[0] > 0.2" in error.reason
    assert "test_capture.py" in error.reason
    assert "torch.where" in error.hint


@pytest.mark.parametrize(
    "fn",
    [
        lambda u, p, t: torch.stack([u[0] * math.sin(t), u[1]]),
        lambda u, p, t: torch.tensor([u[0], -u[1]], dtype=F64),
        lambda u, p, t: u * float(p[0]),
        lambda u, p, t: u * u.sum().item(),
    ],
)
def test_values_turned_into_numbers(fn: Any) -> None:
    assert "test_capture.py" in refused(fn).reason


@pytest.mark.parametrize(
    "fn",
    [
        lambda u, p, t: u * torch.from_numpy(np.sin(u.detach().numpy())),
        lambda u, p, t: u * float(t.detach().numpy()),
    ],
)
def test_values_read_through_numpy_are_seen_by_the_check(fn: Any) -> None:
    error = refused(fn)
    assert error.kind == "mismatch"
    assert ".numpy()" in error.hint


def test_python_state_is_seen_by_the_check() -> None:
    calls: list[int] = []

    def fn(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return u * len(calls)

    assert refused(fn).kind == "mismatch"


@pytest.mark.parametrize(
    "fn",
    [
        lambda u, p, t: u + torch.randn(2, dtype=F64),
        lambda u, p, t: u + torch.rand_like(u),
        lambda u, p, t: torch.nn.functional.dropout(u, 0.5),
        lambda u, p, t: torch.bernoulli(torch.sigmoid(u)),
        lambda u, p, t: u + np.random.normal(),
        lambda u, p, t: u * random.random(),
    ],
)
def test_random_numbers(fn: Any) -> None:
    torch_state, numpy_state, state = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        random.getstate(),
    )
    assert refused(fn).kind == "random"
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert random.getstate() == state


def test_unknown_operation_names_op_and_line() -> None:
    def fn(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return torch.special.bessel_j0(u)  # no primitive for this

    error = refused(fn)
    assert "bessel_j0" in error.reason
    assert "torch.special.bessel_j0(u)" in error.reason


def test_shape_that_depends_on_values() -> None:
    error = refused(lambda u, p, t: torch.cat([u[u > 0.5], u[u <= 0.5]]))
    assert "shape" in error.reason


def test_read_out_parameter_is_not_frozen() -> None:
    rate = torch.tensor(0.5, dtype=F64, requires_grad=True)
    assert "requires grad" in refused(lambda u, p, t: u * rate.item()).reason


def test_parameter_read_out_through_numpy_is_not_frozen() -> None:
    rate = torch.tensor([0.5, 0.7], dtype=F64, requires_grad=True)
    refused(lambda u, p, t: u * torch.from_numpy(rate.detach().numpy()))


def test_lost_no_grad_block() -> None:
    def fn(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = torch.sin(u)
        return frozen * p

    assert "no_grad" in refused(fn).hint


def test_detach_is_kept() -> None:
    at = inputs()
    found = capture(lambda u, p, t: u.detach() * p, at)
    args = {k: v.numpy() for k, v in zip(found.names, found.example(at), strict=True)}
    np.testing.assert_array_equal(evaluate(derive(found, "jac:u"), **args)[0], np.zeros((2, 2)))


def test_custom_backward_is_not_dropped_in_silence() -> None:
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return torch.round(x)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    try:
        found = capture(lambda u, p, t: Straight.apply(u) * p, inputs())
    except CaptureError:
        return
    args = {k: v.numpy() for k, v in zip(found.names, found.example(inputs()), strict=True)}
    assert np.any(evaluate(derive(found, "jac:u"), **args)[0])


def test_the_functions_own_error_passes() -> None:
    def fn(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        capture(fn, inputs())


def test_writing_to_its_argument() -> None:
    at = inputs()
    before = at["u"].clone()
    with pytest.raises(CaptureError, match="own argument"):
        capture(lambda u, p, t: u.mul_(2.0), at)
    assert torch.equal(at["u"], before)


def test_control_flow_operator() -> None:
    fn = lambda u, p, t: torch.cond(u.sum() > 0, lambda x: 2 * x, lambda x: -x, (u,))
    assert "torch.where" in refused(fn).hint


# ---- no side effects


def test_nothing_of_the_users_changes() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).double().eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    at = inputs()
    capture(lambda u, p, t: net(u[None])[0] * p, at)
    assert all(q.grad is None and q.requires_grad for q in net.parameters())
    assert not net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not at["u"].requires_grad


def test_running_statistics_are_put_back() -> None:
    net = nn.BatchNorm1d(2).double()
    mean, count = net.running_mean.clone(), net.num_batches_tracked.clone()
    with pytest.raises(CaptureError):
        capture(lambda u, p, t: net(torch.stack([u, p]))[0], inputs())
    assert torch.equal(net.running_mean, mean)
    assert torch.equal(net.num_batches_tracked, count)


def test_under_no_grad() -> None:
    net = nn.Linear(2, 2).double()
    with torch.no_grad():
        found = capture(lambda u, p, t: net(u), inputs())
    assert len(found.closures_p) == 2


# ---- derivatives


def test_compressed_jacobian() -> None:
    at = inputs(n=6)
    found = capture(lambda u, p, t: torch.roll(u, 1) * u * p[0] + t, at)
    seed = np.tile(np.eye(3), (2, 1))
    args = {k: v.numpy() for k, v in zip(found.names, found.example(at), strict=True)}
    whole = evaluate(derive(found, "jac:u"), **args)[0]
    packed = evaluate(derive_compressed(found, "u", seed), **args)[0]
    np.testing.assert_allclose(packed, whole @ seed, atol=1e-14)


def test_derivative_by_what_is_not_read_is_zero() -> None:
    at = inputs()
    found = capture(lambda u, p, t: u * 2, at)
    args = {k: v.numpy() for k, v in zip(found.names, found.example(at), strict=True)}
    args |= {"w": np.ones(2), "v": np.ones(())}
    for role, shape in {"jac:t": (2,), "jac:p": (2, 2), "vjp:p": (2,), "jvp:t": (2,)}.items():
        out = evaluate(derive(found, role), **args)[0]
        np.testing.assert_array_equal(out, np.zeros(shape))


def test_input_order() -> None:
    found = capture(lambda u, p, t: u * p * t, inputs())
    kernels = Kernels(found)
    for role, first in {"value": [], "vjp:u": ["w"], "jvp:u": ["v"], "jac:t": []}.items():
        names = [n.attr("name") for n in kernels.graph(role).inputs]
        assert names == [*first, "u", "p", "t", "c"]


def test_kernels_are_made_once() -> None:
    kernels = Kernels(capture(lambda u, p, t: u * p, inputs()))
    assert kernels.graph("jac:u") is kernels.graph("jac:u")
    assert kernels.numpy("value") is kernels.numpy("value")
    with pytest.raises(ValueError, match="role"):
        kernels.graph("hessian:u")
