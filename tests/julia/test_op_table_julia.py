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

from op_table import CASES, Case
from test_op_table import _expected, _points

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


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_against_torch(case: Case, run: Any) -> None:
    kernels = Kernels(capture(case.fn, case.inputs()))
    points = _points(case, kernels.capture)
    for role in ROLES if case.derivatives else ("value",):
        graph = kernel_graph(kernels.graph(role))
        source = emit(graph, "float64")
        names = [n.attr("name") for n in graph.inputs]
        shape = graph.outputs[0].shape
        for seed, point in enumerate(points):
            args = [float(point[k]) if np.ndim(point[k]) == 0 else point[k] for k in names]
            flat, allocated = run(
                source.text, source.sizes, *source.constants, tuple(reversed(shape)), args
            )
            got = np.asarray(flat).reshape(shape)
            got = got.T if role == "jac:u" else got
            want = _expected(case, kernels.capture, role, seed, point)
            size = max(1.0, float(np.abs(want).max(initial=0)))
            np.testing.assert_allclose(
                got, want, rtol=case.rtol, atol=1e-11 * size, err_msg=f"{case.name} {role}"
            )
            if not any(op in n.op for n in graph.nodes() for op in _ALLOCATING):
                assert allocated == 0, f"{case.name} {role} allocates {allocated} bytes a call"
