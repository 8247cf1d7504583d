"""Making the system image of a Julia project, with PackageCompiler.jl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from pysciml.engines.julia.sysimage import folder_of, image_of, manifest_of, stamp
from pysciml.errors import EngineError

__all__ = ["PACKAGES", "build", "compile_rest", "write_project"]

#: What the image holds, with all that these depend on.
PACKAGES = ("PySciML", "PythonCall")
PACKAGE_COMPILER = {"uuid": "9b87118b-4619-50d2-8e1e-99f35a4d4d9d", "version": "2.2"}
#: Run in an environment of its own; arguments: the image's path, the image's project, packages.
_SCRIPT = """
import Pkg
Base.identify_package("PackageCompiler") === nothing && Pkg.add(
    Pkg.PackageSpec(name = "PackageCompiler", uuid = "{uuid}", version = "{version}")
)
import PackageCompiler
PackageCompiler.create_sysimage(
    ARGS[3:end]; sysimage_path = ARGS[1], project = ARGS[2], import_into_main = false
)
"""


def build(executable: str, project: Path, package: Path) -> Path:
    """Make the image of a project, and its stamp. Raises EngineError where that fails.

    PackageCompiler is added to an environment of its own, the user's project is left as it is.
    Takes several minutes, and a C compiler, which PackageCompiler looks for (on Windows it brings
    one).
    """
    image, made_for = image_of(project), stamp(executable, project, package)
    folder = folder_of(project)
    tools, packages, new = folder / "packagecompiler", folder / "packages", folder / "new"
    for each in (tools, packages, new):
        each.mkdir(parents=True, exist_ok=True)
    write_project(project, made_for["Julia"], package, packages)
    script = _SCRIPT.format(**PACKAGE_COMPILER)
    target = new / image.name
    outer = ("JULIA_PROJECT", "JULIA_LOAD_PATH")
    environment = {k: v for k, v in os.environ.items() if k not in outer}
    environment |= {"JULIA_PYTHONCALL_EXE": sys.executable, "JULIA_CONDAPKG_BACKEND": "Null"}
    ran = subprocess.run(
        [executable, "--startup-file=no", f"--project={tools}", "-e", script,
         str(target), str(packages), *PACKAGES],
        env=environment,
    )  # fmt: skip
    if ran.returncode != 0 or not target.is_file():
        raise EngineError(
            "The system image could not be made (see above); it needs a C compiler (gcc or clang, "
            "or the one that JULIA_CC names) and some 10 GB of memory. Everything works without "
            "it."
        )
    image.with_suffix(".json").unlink(missing_ok=True)
    os.replace(target, image)
    image.with_suffix(".json").write_text(json.dumps(made_for, indent=1), encoding="utf-8")
    return image


def compile_rest(executable: str, project: Path, package: Path) -> bool:
    """Compile the packages outside the image, which load on need, for a Julia started from it.

    What was compiled for Julia's own image does not serve there. Whether all went well.
    """
    script = (
        "import Pkg; Pkg.precompile(); push!(LOAD_PATH, ARGS[1]); "
        "import PySciML, PythonCall, SciMLSensitivity"
    )
    ran = subprocess.run(
        [executable, "--startup-file=no", f"--sysimage={image_of(project)}",
         f"--project={project}", "-e", script, str(package.parent)],
        env={**os.environ, "JULIA_PYTHONCALL_EXE": sys.executable},
    )  # fmt: skip
    return ran.returncode == 0


def write_project(project: Path, version: str, package: Path, to: Path) -> None:
    """A Julia project of PySciML and PythonCall alone, in the versions of another project.

    PySciML is loaded from its folder and stands in no manifest, but only what stands in a project
    can be put into an image.
    """
    manifest = manifest_of(project, version)
    if manifest is None:
        raise EngineError(
            f"The Julia project {project} has no manifest; run 'python -m pysciml setup' first."
        )
    given = tomllib.loads(manifest.read_text(encoding="utf-8"))
    own = tomllib.loads((package / "Project.toml").read_text(encoding="utf-8"))
    entry = {k: own[k] for k in ("uuid", "version", "deps", "weakdeps", "extensions") if k in own}
    entries = {**given.get("deps", {}), own["name"]: [{**entry, "path": str(package)}]}
    missing = [name for name in ("PythonCall", *own["deps"]) if name not in entries]
    if missing:
        raise EngineError(
            f"The Julia project {project} lacks {', '.join(missing)}; "
            "run 'python -m pysciml setup'."
        )
    needed = _closure(entries, PACKAGES)
    for name in needed:
        for e in entries[name]:
            if "path" in e:
                e["path"] = str((project / e["path"]).resolve())
    kept: dict[str, Any] = {k: v for k, v in given.items() if k not in ("deps", "project_hash")}
    kept["deps"] = {name: entries[name] for name in sorted(needed)}
    uuids = {name: entries[name][0]["uuid"] for name in PACKAGES}
    chosen: dict[str, Any] = {"deps": uuids}
    for name in ("JuliaProject.toml", "Project.toml"):
        if (project / name).is_file():
            settings = tomllib.loads((project / name).read_text(encoding="utf-8"))
            if "preferences" in settings:
                chosen["preferences"] = settings["preferences"]
            break
    (to / "Project.toml").write_text(tomlkit.dumps(chosen), encoding="utf-8")
    (to / "Manifest.toml").write_text(tomlkit.dumps(kept), encoding="utf-8")
    preferences = project / "LocalPreferences.toml"
    if preferences.is_file():
        (to / preferences.name).write_bytes(preferences.read_bytes())


def _closure(entries: Mapping[str, Any], names: tuple[str, ...]) -> set[str]:
    """The names with all that they depend on."""
    needed: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in needed and name in entries:
            needed.add(name)
            todo += [d for e in entries[name] for d in e.get("deps", ())]
    return needed
