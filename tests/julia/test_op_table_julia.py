"""The op table through the Julia emitter: each kernel compiled and run, without allocating.

The roles are those that Julia's solvers and adjoints call most; ``jvp:u`` and ``jac:t`` read the
same operations.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

from large_cases import LARGE
from op_table import CASES, Case
from test_op_table import (
    LARGE_ROLES,
    _expected,
    _points,
    summed_points,
    summed_products,
)

from pysciml.engines.julia.models import kernel_graph
from pysciml.kernels.capture import capture
from pysciml.kernels.emit_julia import emit
from pysciml.kernels.kernels import Kernels

pytestmark = pytest.mark.julia

ROLES = ("value", "jac:u", "vjp:u", "vjp:p", "vjp:up")

#: Runs a kernel twice on copies of its inputs; gives its output, flat, and the second run's bytes.
_RUN = """
function (text, sizes, kf, ki, kb, shape, args)
    s = PySciML.compile(pyconvert(String, text), pyconvert(NTuple{3, Int}, sizes),
        (pyconvert(Vector{Float64}, kf), pyconvert(Vector{Int}, ki), pyconvert(Vector{Bool}, kb)),
        Float64)
    ws = PySciML.workspace(Float64, s)
    out = zeros(pyconvert(Tuple, shape)...)
    inputs = Any[pyconvert(Any, a) isa Number ? pyconvert(Float64, a) :
        pyconvert(Vector{Float64}, a) for a in args]
    function go(f, ws, out, inputs...)
        f(ws, out, inputs...)
        return @allocated f(ws, out, inputs...)
    end
    bytes = Base.invokelatest(go, s.f, ws, out, inputs...)
    return (vec(out), bytes)
end
"""

#: LAPACK's and sorting's own workspaces are allocated by the libraries called.
_ALLOCATING = ("solve", "inv", "sort", "argsort", "det", "cholesky", "median", "kthvalue", "topk")


@pytest.fixture(scope="module")
def run() -> Any:
    from pysciml.engines.julia.startup import julia

    main = julia().main
    main.seval("using PythonCall")
    return main.seval(_RUN)


def _check(
    case: Case, role: str, kernels: Kernels, run: Any, wanted: list[tuple[Any, Any]]
) -> None:
    """The role's kernel, compiled, against the values wanted of it at points."""
    graph = kernel_graph(kernels.graph(role))
    source = emit(graph, "float64")
    names = [n.attr("name") for n in graph.inputs]
    shape = graph.outputs[0].shape
    for point, want in wanted:
        args = [float(point[k]) if np.ndim(point[k]) == 0 else point[k] for k in names]
        flat, allocated = run(
            source.text, source.sizes, *source.constants, tuple(reversed(shape)), args
        )
        got = np.asarray(flat).reshape(shape)
        got = got.T if role == "jac:u" else got
        size = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(
            got, want, rtol=case.rtol, atol=1e-11 * size, err_msg=f"{case.name} {role}"
        )
        if not any(op in n.op for n in graph.nodes() for op in _ALLOCATING):
            assert allocated == 0, f"{case.name} {role} allocates {allocated} bytes a call"


def _check_roles(case: Case, roles: tuple[str, ...], run: Any) -> None:
    kernels = Kernels(capture(case.fn, case.inputs()))
    points = _points(case, kernels.capture)
    for role in roles if case.derivatives else ("value",):
        wanted = [
            (point, _expected(case, kernels.capture, role, seed, point))
            for seed, point in enumerate(points)
        ]
        _check(case, role, kernels, run, wanted)


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_against_torch(case: Case, run: Any) -> None:
    _check_roles(case, ROLES, run)


@pytest.mark.parametrize("case", LARGE, ids=[c.name for c in LARGE])
def test_large_models(case: Case, run: Any) -> None:
    _check_roles(case, LARGE_ROLES, run)


@pytest.mark.parametrize("case", LARGE, ids=[c.name for c in LARGE])
def test_products_summed_over_points(case: Case, run: Any) -> None:
    kernels = Kernels(capture(case.fn, case.inputs()))
    points = _points(case, kernels.capture)
    wanted = [(summed_points(points), summed_products(case, points, kernels))]
    _check(case, "vjp:p*2", kernels, run, wanted)
