"""A system image: PySciML, its solvers and PythonCall compiled into what Julia starts from.

Made by ``python -m pysciml setup --sysimage`` (``build_image.py``), and used by later starts as
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
from collections.abc import Mapping
from pathlib import Path

from pysciml.errors import EngineError

__all__ = [
    "VARIABLE", "chosen_by_user", "folder_of", "image_of", "julia_version", "manifest_of", "stamp",
    "stamp_of", "why_stale",
]  # fmt: skip

#: juliacall's variable for the image to start from.
VARIABLE = "PYTHON_JULIACALL_SYSIMAGE"

_EXTENSION = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")


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
