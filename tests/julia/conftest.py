"""JLArrays: GPU arrays in the memory of the CPU, for tests of what runs on a device."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def jlarrays() -> Any:
    """Julia's Main with PySciML, PythonCall and JLArrays, and no scalar indexing."""
    from pysciml.engines.julia.startup import julia

    main = julia().main
    if main.seval('Base.identify_package("JLArrays") === nothing'):
        pytest.skip("the Julia project has no JLArrays (a package for tests)")
    main.seval("using PythonCall, JLArrays")
    main.seval("JLArrays.allowscalar(false)")
    return main
