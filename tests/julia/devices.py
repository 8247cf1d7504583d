"""Arrays of a device in Julia, for tests."""

from __future__ import annotations

from typing import Any

import pytest

from pysciml.engines.julia.startup import julia


def load(package: str) -> Any:
    """Julia's Main with ``package`` (JLArrays or CUDA) loaded and scalar indexing forbidden."""
    main = julia().main
    if main.seval(f'Base.identify_package("{package}") === nothing'):
        pytest.skip(f"the Julia project has no {package} (a package for tests)")
    main.seval(f"using PythonCall, {package}")
    if package == "CUDA" and not main.seval("CUDA.functional()"):
        pytest.skip("CUDA.jl does not find the GPU")
    main.seval(f"{package}.allowscalar(false)")
    return main
