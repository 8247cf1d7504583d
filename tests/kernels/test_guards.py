"""Guards: every change on the Python side that a trace froze is seen, and little else is."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pysciml.kernels.capture import capture
from pysciml.kernels.guards import Guards

F64 = torch.float64
GAIN = 2.0
TABLE = {"rate": 0.5}


def _helper(x: Tensor) -> Tensor:
    return GAIN * x


def guards_of(fn: Callable[..., Any]) -> Guards:
    guards = Guards(fn)
    assert guards.ok()
    assert not guards.opaque
    return guards


def test_closure_cell() -> None:
    k = 1.0

    def fn(u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        return k * u

    guards = guards_of(fn)
    k = 1.0 + 0.0
    assert guards.ok()
    k = 2.0
    assert not guards.ok()


def test_global_number_through_a_helper() -> None:
    global GAIN
    guards = guards_of(lambda u, p, t: _helper(u))
    try:
        GAIN = 3.0
        assert not guards.ok()
    finally:
        GAIN = 2.0
    assert guards.ok()


def test_global_dict() -> None:
    guards = guards_of(lambda u, p, t: TABLE["rate"] * u)
    TABLE["rate"] = 0.7
    assert not guards.ok()
    TABLE["rate"] = 0.5
    assert guards.ok()


def test_list_and_nested_tuple() -> None:
    gains = [1.0, (2.0, [3.0])]
    guards = guards_of(lambda u, p, t: gains[0] * u)
    gains[1][1][0] = 4.0  # type: ignore[index]
    assert not guards.ok()
    gains[1][1][0] = 3.0  # type: ignore[index]
    gains.append(5.0)
    assert not guards.ok()


def test_defaults_and_code() -> None:
    def fn(u: Tensor, p: Tensor, t: Tensor, k: float = 2.0) -> Tensor:
        return k * u

    guards = guards_of(fn)
    fn.__defaults__ = (3.0,)
    assert not guards.ok()


def test_partial() -> None:
    box = [2.0]
    guards = guards_of(functools.partial(lambda b, u, p, t: b[0] * u, box))
    box[0] = 3.0
    assert not guards.ok()


def test_training_flag_and_module_parts() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.Tanh())
    guards = guards_of(lambda u, p, t: net(u))
    net.eval()
    assert not guards.ok()
    net.train()
    assert guards.ok()
    net[2] = nn.ReLU()
    assert not guards.ok()


def test_replaced_parameter() -> None:
    net = nn.Linear(2, 2)
    guards = guards_of(lambda u, p, t: net(u))
    with torch.no_grad():
        net.weight.add_(1.0)
    assert guards.ok()
    net.weight = nn.Parameter(torch.zeros(2, 2))
    assert not guards.ok()


def test_library_module_option() -> None:
    act = nn.LeakyReLU(0.1)
    guards = guards_of(lambda u, p, t: act(u))
    act.negative_slope = 0.2
    assert not guards.ok()


class _Model(nn.Module):
    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2).double()
        self.gain = 2.0
        self.log: list[float] = []
        self.nfe = 0

    def forward(self, u: Tensor, p: Tensor, t: Tensor) -> Tensor:
        self.nfe += 1
        return self.net(u) * self.gain * self.scale


def test_users_module() -> None:
    model = _Model()
    guards = guards_of(model)
    model.log.append(1.0)  # forward never reads it
    assert guards.ok()
    model.gain = 3.0
    assert not guards.ok()
    model.gain = 2.0
    assert guards.ok()
    try:
        _Model.scale = 2.0
        assert not guards.ok()
    finally:
        _Model.scale = 1.0


def _inputs() -> dict[str, Tensor]:
    u = torch.tensor([0.5, 0.7], dtype=F64)
    return {"u": u, "p": torch.zeros(0, dtype=F64), "t": torch.tensor(0.1, dtype=F64)}


def test_a_counter_of_calls_does_not_spoil_the_capture() -> None:
    model = _Model()
    found = capture(model, _inputs())
    assert found.guards.ok()
    model.nfe = 0
    assert found.guards.ok()
    model.gain = 5.0
    assert not found.guards.ok()


def test_bound_method_and_dataclass() -> None:
    @dataclass
    class Constants:
        k: float = 1.0
        names: list[str] = field(default_factory=list)

    class System:
        def __init__(self) -> None:
            self.constants = Constants()

        def rhs(self, u: Tensor, p: Tensor, t: Tensor) -> Tensor:
            return self.constants.k * u

    system = System()
    guards = guards_of(system.rhs)
    system.constants.names.append("unused")
    assert guards.ok()
    system.constants.k = 2.0
    assert not guards.ok()


def test_numpy_array() -> None:
    a = np.array([1.0, 2.0])
    guards = guards_of(lambda u, p, t: u * torch.from_numpy(a))
    a[0] = 3.0
    assert not guards.ok()


def test_index_table_changed_in_place() -> None:
    index = torch.tensor([1, 0])
    found = capture(lambda u, p, t: u[index], _inputs())
    assert found.guards.ok()
    index[0] = 0
    assert not found.guards.ok()


def test_requires_grad_of_a_closure() -> None:
    w = torch.ones(2, dtype=F64)
    found = capture(lambda u, p, t: w * u, _inputs())
    assert found.guards.ok()
    w.requires_grad_(True)
    assert not found.guards.ok()


def test_constant_shape_of_a_literal() -> None:
    found = capture(lambda u, p, t: u * torch.tensor([1.0, 2.0]), _inputs())
    assert found.guards.ok()
    assert found.sizes["c"] == 0


def test_libraries_are_not_opaque() -> None:
    guards_of(lambda u, p, t: torch.sin(u) * np.pi + nn.functional.relu(u))


def test_opaque_state() -> None:
    generator = np.random.default_rng(0)
    assert Guards(lambda u, p, t: u * generator.normal()).opaque
    big = np.zeros(100_000)
    assert Guards(lambda u, p, t: u * big[0]).opaque


def test_cheap() -> None:
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)], nn.Tanh()).double()
    guards = guards_of(lambda u, p, t: net(u))
    start = time.perf_counter()
    for _ in range(200):
        guards.ok()
    assert (time.perf_counter() - start) / 200 < 1e-3  # about 10 microseconds on an idle machine
