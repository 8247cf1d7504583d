"""Build hook: puts the Julia side into wheels, and leaves it out of editable installs.

juliapkg looks for juliapkg.json at the top of sys.path's folders and of the packages in them. An
editable install is found by the checkout's own file; copies of the Julia sources beside it would
only grow stale. (PySciML itself is not listed in juliapkg.json with its path: juliapkg refuses
two paths for one package, which a wheel and a checkout as the current folder would give.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class JuliaSources(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        # one by one: hatchling's excludes do not reach into a folder that is forced in, and
        # Julia leaves manifests and preferences of this machine there
        sources = [*(root / "julia" / "PySciML").rglob("*.jl"), root / "julia/PySciML/Project.toml"]
        for path in [root / "juliapkg.json", *sources]:
            inside = path.relative_to(root).as_posix()
            build_data["force_include"][inside] = f"pysciml/{inside}"
