"""``python tests/julia/run_package_tests.py``: the Julia package's own tests, in Julia.

In the project that setup has filled, or the one that juliacall's variables name.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pysciml.engines.julia.startup import installed_at

PACKAGES = Path(__file__).resolve().parents[2] / "julia"


def main() -> int:
    executable, project = installed_at()
    if executable is None:
        print("Julia has not been set up here: python -m pysciml setup", file=sys.stderr)
        return 1
    code = "push!(LOAD_PATH, ARGS[1]); include(ARGS[2])"
    tests = PACKAGES / "PySciML" / "test" / "runtests.jl"
    return subprocess.run(
        [executable, f"--project={project}", "-e", code, str(PACKAGES), str(tests)]
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
