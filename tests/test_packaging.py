"""What is installed: the wheel's contents, what an import costs, and versions that agree."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata, resources
from pathlib import Path

import pytest

import pysciml as ps

ROOT = Path(__file__).resolve().parent.parent
#: Julia's standard library, which a Project.toml names but a package registry does not.
STANDARD_LIBRARY = {
    "Dates", "Distributed", "InteractiveUtils", "Libdl", "LinearAlgebra", "Logging", "Markdown",
    "Pkg", "Printf", "Random", "Serialization", "SparseArrays", "Statistics", "TOML", "Test",
    "UUIDs",
}  # fmt: skip


def toml(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from the checkout, by the build backend itself: no network, no pip."""
    folder = tmp_path_factory.mktemp("wheel")
    build = (
        f"import hatchling.build; print(hatchling.build.build_wheel({str(folder)!r}), flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(folder / done.stdout.split()[-1])


def test_wheel_holds_the_julia_package_data_and_types(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {
        "pysciml/juliapkg.json",
        "pysciml/julia/PySciML/Project.toml",
        "pysciml/julia/PySciML/src/PySciML.jl",
        "pysciml/data/hudson_bay.csv",
        "pysciml/data/README.md",
        "pysciml/py.typed",
    } <= names
    python = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pysciml").rglob("*.py")}
    assert python <= names
    julia = {
        f"pysciml/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "julia" / "PySciML").rglob("*.jl")
    }
    assert julia <= names


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    strange = [
        name
        for name in wheel.namelist()
        if not re.match(r"pysciml(-[\d.]+\.dist-info)?/", name)
        or re.search(r"(Manifest.*\.toml|\.pyc|\.so|\.dll|\.dylib)$", name)
    ]
    assert strange == []


def test_versions_agree(wheel: zipfile.ZipFile) -> None:
    version = toml(ROOT / "pyproject.toml")["project"]["version"]
    assert ps.__version__ == version
    assert f"pysciml-{version}.dist-info/METADATA" in wheel.namelist()
    assert toml(ROOT / "julia" / "PySciML" / "Project.toml")["version"] == version
    try:
        installed = metadata.version("pysciml")
    except metadata.PackageNotFoundError:
        pytest.skip("pysciml is not installed: the tests run on a bare checkout")
    assert installed == version


def test_juliapkg_json_is_what_juliapkg_reads() -> None:
    from juliapkg.compat import Compat
    from juliapkg.deps import PkgSpec
    from semver import Version

    wanted = json.loads((ROOT / "juliapkg.json").read_text(encoding="utf-8"))
    julia = Compat.parse(wanted["julia"])
    assert Version(1, 10, 3) in julia and Version(1, 12, 5) in julia
    assert Version(1, 9, 4) not in julia and Version(1, 13, 0) not in julia
    for name, spec in wanted["packages"].items():
        assert Compat.parse(PkgSpec(name, **spec).version), name


def test_juliapkg_json_agrees_with_the_julia_package() -> None:
    """Every package that PySciML depends on is installed, in versions that it allows; and Julia."""
    from juliapkg.compat import Compat

    from pysciml.engines.julia.doctor import GPU_PACKAGES

    stated = json.loads((ROOT / "juliapkg.json").read_text(encoding="utf-8"))
    wanted = {**stated["packages"], **GPU_PACKAGES}  # those come with setup --gpu
    project = toml(ROOT / "julia" / "PySciML" / "Project.toml")
    tested, allowed = Compat.parse(stated["julia"]), Compat.parse(project["compat"]["julia"])
    assert str(tested & allowed) == str(tested)
    needed = {**project["deps"], **project.get("weakdeps", {})}
    for name, uuid in needed.items():
        # juliacall brings PythonCall; JLArrays stands in for a GPU in tests
        if name in STANDARD_LIBRARY or name in ("PythonCall", "JLArrays"):
            continue
        assert name in wanted, f"{name} is missing in juliapkg.json"
        assert wanted[name]["uuid"] == uuid, name
        tested, allowed = (
            Compat.parse(wanted[name]["version"]),
            Compat.parse(project["compat"][name]),
        )
        assert str(tested & allowed) == str(tested), name


def test_setup_installs_the_packages_of_every_algorithm() -> None:
    from pysciml.algorithms import algorithm, algorithm_names
    from pysciml.engines.julia.doctor import GPU_PACKAGES

    wanted = json.loads((ROOT / "juliapkg.json").read_text(encoding="utf-8"))["packages"]
    packages = {algorithm(name).package for name in algorithm_names()}
    packages -= {"Sundials", "torchsde", *GPU_PACKAGES}  # the last come with setup --gpu
    assert packages <= set(wanted), packages - set(wanted)


def imported_by(code: str) -> set[str]:
    """Top-level modules that are loaded after ``code`` in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_import_loads_neither_julia_nor_plots() -> None:
    loaded = imported_by("import pysciml")
    assert "pysciml" in loaded
    heavy = {
        "juliacall", "juliapkg", "matplotlib", "IPython", "pysindy", "pandas", "torchdiffeq",
        "jax", "pytest",
    }  # fmt: skip
    assert loaded & heavy == set()


def test_data_is_found_as_a_package_resource() -> None:
    text = resources.files("pysciml").joinpath("data", "hudson_bay.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert [int(row["year"]) for row in rows] == list(range(1900, 1921))
    assert (float(rows[3]["hare"]), float(rows[4]["lynx"])) == (77.4, 59.4)


def test_readme_names_the_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = set(re.findall(r"\.\[(\w+)\]", readme))
    known = set(toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"])
    assert extras and extras <= known
    assert "<!-- test command -->" in readme
