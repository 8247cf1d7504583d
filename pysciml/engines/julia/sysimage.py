"""A system image: PySciML, its solvers and PythonCall compiled into what Julia starts from.

Made by ``python -m pysciml setup --sysimage`` with PackageCompiler.jl, and used by later starts as
long as it was made for this very Julia, this project's package versions and these sources of
PySciML: a stamp beside it says for which. It lies in the Julia project's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from pysciml.errors import EngineError

__all__ = [
    "VARIABLE", "build", "chosen_by_user", "image_of", "manifest_of", "stamp", "stamp_of",
    "why_stale", "write_project",
]  # fmt: skip

#: juliacall's variable for the image to start from.
VARIABLE = "PYTHON_JULIACALL_SYSIMAGE"

#: What the image holds, with all that these depend on.
PACKAGES = ("PySciML", "PythonCall")
PACKAGE_COMPILER = {"uuid": "9b87118b-4619-50d2-8e1e-99f35a4d4d9d", "version": "2.2"}
_EXTENSION = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")

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


def chosen_by_user() -> str | None:
    """The system image that the user tells juliacall to start from, if any."""
    option = sys._xoptions.get("juliacall-sysimage")
    return option if isinstance(option, str) else os.environ.get(VARIABLE)


def folder_of(project: Path) -> Path:
    return project / "pysciml"


def image_of(project: Path) -> Path:
    """Where the image of a Julia project lies, or would lie."""
    return folder_of(project) / f"sysimage.{_EXTENSION}"


def manifest_of(project: Path, version: str) -> Path | None:
    """The project's manifest for a Julia such as ``julia version 1.12.5``, or None."""
    found = re.search(r"\d+\.\d+", version)
    specific = [f"Manifest-v{found[0]}.toml"] if found else []
    for name in (*specific, "JuliaManifest.toml", "Manifest.toml"):
        if (project / name).is_file():
            return project / name
    return None


def julia_version(executable: str) -> str:
    """What ``julia --version`` says. Raises EngineError where it does not run."""
    try:
        return subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(
            f"{executable} does not run ({error}); 'python -m pysciml doctor' says more."
        ) from error


def stamp(executable: str, project: Path, package: Path) -> dict[str, str]:
    """What an image made now would be made for: Julia, the packages' versions, PySciML's sources.

    ``package`` is the folder of the Julia package PySciML.
    """
    version = julia_version(executable)
    manifest = manifest_of(project, version)
    sources = hashlib.sha256()
    for path in [package / "Project.toml", *sorted(package.glob("*/*.jl"))]:
        if path.parent.name != "test":
            sources.update(path.relative_to(package).as_posix().encode() + b"\0")
            sources.update(path.read_bytes())
    return {
        "Julia": f"{version} at {os.path.realpath(executable)}",
        "the Julia packages": _digest(manifest.read_bytes() if manifest else b""),
        "PySciML's sources": f"{sources.hexdigest()} in {package}",
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stamp_of(image: Path) -> dict[str, str]:
    """The stamp beside an image; empty where there is none that can be read."""
    try:
        read = json.loads(image.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def why_stale(image: Path, now: Mapping[str, str]) -> str | None:
    """What has changed since the image was made, in words; None where nothing has."""
    then = stamp_of(image)
    if not then:
        return "nothing says for which Julia it was made"
    changed = [what for what, value in now.items() if then.get(what) != value]
    return f"{' and '.join(changed)} changed since it was made" if changed else None


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
            "or the one that JULIA_CC names) and about 8 GB of memory. Everything works without it."
        )
    image.with_suffix(".json").unlink(missing_ok=True)
    os.replace(target, image)
    image.with_suffix(".json").write_text(json.dumps(made_for, indent=1), encoding="utf-8")
    return image


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
