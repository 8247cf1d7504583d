"""Every operation: value and derivatives of kernels against torch's own, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from interpreter import evaluate
from large_cases import LARGE
from op_table import CASES, Case

from pysciml.kernels.capture import Capture, capture
from pysciml.kernels.graph import Graph
from pysciml.kernels.kernels import Kernels
from pysciml.kernels.reasons import CaptureError

Arrays = dict[str, Any]
Backend = Callable[[Kernels, str, list[Arrays]], list[np.ndarray]]

ROLES = ("value", "jac:u", "vjp:u", "vjp:p", "vjp:up", "jac:t", "jvp:u")
#: Jacobians of hundreds of states are left out: the cases of the table have shown them.
LARGE_ROLES = ("value", "vjp:u", "vjp:p", "vjp:up", "jvp:u")


def _names(graph: Graph) -> list[str]:
    return [n.attr("name") for n in graph.inputs]


def _interpreted(kernels: Kernels, role: str, points: list[Arrays]) -> list[np.ndarray]:
    graph = kernels.graph(role)
    return [evaluate(graph, **{k: p[k] for k in _names(graph)})[0] for p in points]


def _scalar_numpy(kernels: Kernels, role: str, points: list[Arrays]) -> list[np.ndarray]:
    graph = kernels.graph(role)
    compiled = kernels.numpy(role)
    results = []
    for p in points:
        out = np.full(graph.outputs[0].shape, np.nan)
        with np.errstate(all="ignore"):
            compiled(*(p[k] for k in _names(graph)), out)
        results.append(out)
    return results


def _batched_numpy(kernels: Kernels, role: str, points: list[Arrays]) -> list[np.ndarray]:
    graph = kernels.graph(role)
    names = _names(graph)
    batched = frozenset(k for k in names if k not in ("p", "c"))
    compiled = kernels.numpy_batched(role, batched)
    # p is shared by the batch: the points' own p are taken one group at a time
    results = []
    for p in points:
        args = [np.stack([p[k], p[k]]) if k in batched else p[k] for k in names]
        with np.errstate(all="ignore"):
            out = compiled(*args)[0]
        np.testing.assert_array_equal(out[0], out[1])
        results.append(out[0])
    return results


#: A further backend (another emitter) is one more entry.
BACKENDS: dict[str, Backend] = {
    "interpreter": _interpreted,
    "numpy": _scalar_numpy,
    "numpy-batched": _batched_numpy,
}


@pytest.fixture(scope="module")
def captured() -> Callable[[Case], Kernels]:
    """Kernels of a case, captured once for all backends."""
    made: dict[str, Kernels] = {}

    def get(case: Case) -> Kernels:
        if case.name not in made:
            made[case.name] = Kernels(capture(case.fn, case.inputs()))
        return made[case.name]

    return get


def _points(case: Case, found: Capture) -> list[Arrays]:
    points = []
    for seed in (0, 1):
        inputs = case.inputs(seed)
        args = dict(zip(found.names, found.example(inputs), strict=True))
        rng = np.random.default_rng(seed)
        args["w"] = torch.as_tensor(rng.normal(size=found.n_out))
        args["v"] = torch.as_tensor(rng.normal(size=case.n_u))
        points.append({k: x.numpy() for k, x in args.items()})
    return points


def _expected(case: Case, found: Capture, role: str, seed: int, point: Arrays) -> np.ndarray:
    """torch's own answer, from the function itself (closures included)."""
    inputs = {k: v.requires_grad_(True) for k, v in case.inputs(seed).items()}
    if role == "value":
        return case.fn(*inputs.values()).detach().numpy()

    def pull(w: torch.Tensor, wrt: str) -> np.ndarray:
        own = ("u", "p") if wrt == "up" else (wrt,)
        leaves = [*(inputs[k] for k in own), *(found.closures_p if "p" in own else ())]
        out = case.fn(*inputs.values())
        if not out.requires_grad:
            zeros = np.zeros(sum(x.numel() for x in leaves))
            return zeros.reshape(inputs["t"].shape if wrt == "t" else -1)
        grads = torch.autograd.grad(out, leaves, w, allow_unused=True)
        whole = [
            torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)
        ]
        if wrt == "t":
            return whole[0].numpy()
        return torch.cat([g.reshape(-1) for g in whole]).numpy()

    kind, wrt = role.split(":")
    if kind == "vjp":
        return pull(torch.as_tensor(point["w"]), wrt)
    rows = np.stack([pull(e, wrt) for e in torch.eye(found.n_out, dtype=torch.float64)])
    return rows @ point["v"] if kind == "jvp" else rows


def _compare(case: Case, roles: tuple[str, ...], backend: str, kernels: Kernels) -> None:
    points = _points(case, kernels.capture)
    for role in roles if case.derivatives else ("value",):
        results = BACKENDS[backend](kernels, role, points)
        for seed, (got, point) in enumerate(zip(results, points, strict=True)):
            want = _expected(case, kernels.capture, role, seed, point)
            size = max(1.0, float(np.abs(want).max(initial=0)))
            np.testing.assert_allclose(
                got, want, rtol=case.rtol, atol=1e-11 * size, err_msg=f"{case.name} {role}"
            )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_against_torch(case: Case, backend: str, captured: Callable[[Case], Kernels]) -> None:
    _compare(case, ROLES, backend, captured(case))


@pytest.mark.parametrize("backend", ["numpy", "numpy-batched"])
@pytest.mark.parametrize("case", LARGE, ids=[c.name for c in LARGE])
def test_large_models(case: Case, backend: str, captured: Callable[[Case], Kernels]) -> None:
    _compare(case, LARGE_ROLES, backend, captured(case))


def test_names_are_distinct() -> None:
    names = [c.name for c in [*CASES, *LARGE]]
    assert len(set(names)) == len(names)


#: Cases that torch.vmap does not do, or does wrong: there is no kernel for many points then, and
#: engines do without.
UNSUMMED = {"in_place", "in_place_slices", "select_scatter", "index_apart", "embedding"}


def summed_points(points: list[Arrays]) -> Arrays:
    """Several points with the first one's p and c as inputs of ``"vjp:p*K"``."""
    first = points[0]
    together = {k: np.concatenate([np.reshape(p[k], -1) for p in points]) for k in first}
    return together | {k: first[k] for k in ("p", "c")}


def summed_products(case: Case, points: list[Arrays], kernels: Kernels) -> np.ndarray:
    """What ``"vjp:p*K"`` is to give at these points: the products of each, summed."""
    one = kernels.graph("vjp:p")
    shared = {k: points[0][k] for k in ("p", "c")}
    return sum(evaluate(one, **{k: (p | shared)[k] for k in _names(one)})[0] for p in points)


@pytest.mark.parametrize(
    "case", [*(c for c in CASES if c.derivatives), *LARGE], ids=lambda c: c.name
)
def test_products_summed_over_points(case: Case, captured: Callable[[Case], Kernels]) -> None:
    kernels = captured(case)
    points = _points(case, kernels.capture)
    try:
        graph = kernels.graph("vjp:p*2")
    except CaptureError:
        assert case.name in UNSUMMED
        return
    assert case.name not in UNSUMMED
    inputs = summed_points(points)
    got = evaluate(graph, **{k: inputs[k] for k in _names(graph)})[0]
    want = summed_products(case, points, kernels)
    size = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=case.rtol, atol=1e-11 * size)
