"""The op table through the emitter over whole arrays, with scalar indexing forbidden.

On JLArrays and, where there is a GPU, on CuArrays: the host reads and writes no single element.
Julia compiles every broadcast, which takes its time: so the value and one product with all
derivatives stand for the roles, and what is unrolled into long kernels (decompositions, recurrent
nets) runs where PYSCIML_LONG_TESTS is set.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

from op_table import CASES, Case
from test_op_table import _expected, _points

from pysciml.engines.julia.models import device_graph
from pysciml.kernels.capture import capture
from pysciml.kernels.emit_julia_device import emit
from pysciml.kernels.kernels import Kernels

pytestmark = pytest.mark.julia

ROLES = ("value", "vjp:up")

#: Most lines of a case's kernels that run without PYSCIML_LONG_TESTS.
MOST_LINES = 60

_RUN = """
function (Array_, text, kf, ki, kb, shape, args)
    s = PySciML.compile(pyconvert(String, text), (0, 0, 0),
        (pyconvert(Vector{Float64}, kf), pyconvert(Vector{Int}, ki), pyconvert(Vector{Bool}, kb)),
        Float64)
    ws = (kf = Array_(s.kf), ki = Array_(s.ki), kb = Array_(s.kb))
    out = Array_(fill(NaN, pyconvert(Tuple, shape)...))
    inputs = Any[pyconvert(Any, a) isa Number ? pyconvert(Float64, a) :
        Array_(pyconvert(Vector{Float64}, a)) for a in args]
    Base.invokelatest(s.f, ws, out, inputs...)
    return vec(Array(out))
end
"""


@pytest.fixture(scope="module")
def run(place: Any) -> Any:
    return functools.partial(place.main.seval(_RUN), place.arrays)


def test_scalar_indexing_is_forbidden(place: Any) -> None:
    with pytest.raises(Exception, match="Scalar indexing is disallowed"):
        place.main.seval("A -> A([1.0, 2.0])[1]")(place.arrays)


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_against_torch(case: Case, run: Any) -> None:
    kernels = Kernels(capture(case.fn, case.inputs()))
    points = _points(case, kernels.capture)
    roles = ROLES if case.derivatives else ("value",)
    graphs = {role: device_graph(kernels.graph(role)) for role in roles}
    sources = {role: emit(graph, "float64") for role, graph in graphs.items()}
    lines = sum(source.text.count("\n") for source in sources.values())
    if lines > MOST_LINES and not os.environ.get("PYSCIML_LONG_TESTS"):
        pytest.skip("long kernels: set PYSCIML_LONG_TESTS=1 to run them")
    for role, graph in graphs.items():
        source = sources[role]
        names = [n.attr("name") for n in graph.inputs]
        shape = graph.outputs[0].shape
        for seed, point in enumerate(points):
            args = [float(point[k]) if np.ndim(point[k]) == 0 else point[k] for k in names]
            flat = run(source.text, *source.constants, tuple(reversed(shape or (1,))), args)
            got = np.asarray(flat).reshape(shape)
            got = got.T if got.ndim == 2 else got
            want = _expected(case, kernels.capture, role, seed, point)
            size = max(1.0, float(np.abs(want).max(initial=0)))
            np.testing.assert_allclose(
                got, want, rtol=case.rtol, atol=1e-11 * size, err_msg=f"{case.name} {role}"
            )
