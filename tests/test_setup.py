"""What `python -m pysciml setup` asks of Julia, and when a system image is used: without Julia."""

from __future__ import annotations

import json
import stat
import sys
import tomllib
from pathlib import Path

import pytest

import pysciml.__main__ as command
from pysciml.engines.julia import build_image, doctor, startup, sysimage
from pysciml.engines.julia.refusals import refused
from pysciml.errors import EngineError

PACKAGE = startup.package_folder() / "PySciML"
VARIABLES = (
    "PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT", "PYTHON_JULIACALL_SYSIMAGE",
    "PYSCIML_SYSIMAGE",
)  # fmt: skip
MANIFEST = """\
julia_version = "1.11.2"
manifest_format = "2.0"
project_hash = "0000"

[[deps.Unneeded]]
uuid = "00000000-0000-0000-0000-000000000001"
version = "1.0.0"

[[deps.Base64]]
uuid = "2a0f44e3-6c83-55bd-87e4-b1978d98bd5f"
version = "1.11.0"

[[deps.PythonCall]]
deps = ["Base64", "Twin"]
git-tree-sha1 = "0123456789012345678901234567890123456789"
uuid = "6099a3de-0909-46bc-b1f4-468b9a2dfc0d"
version = "0.9.34"

[[deps.Twin]]
path = "../twin"
uuid = "00000000-0000-0000-0000-000000000002"
version = "1.0.0"
"""


def julia_saying(version: str, folder: Path) -> str:
    """An executable that answers ``--version`` and nothing else."""
    path = folder / "julia"
    path.write_text(f"#!/bin/sh\necho julia version {version}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Julia project of the user's own, with a manifest that holds all that PySciML needs."""
    if sys.platform == "win32":
        pytest.skip("the stand-in for Julia is a shell script")
    folder = tmp_path / "project"
    folder.mkdir()
    needed = tomllib.loads((PACKAGE / "Project.toml").read_text())["deps"]
    entries = "".join(f'\n[[deps.{name}]]\nuuid = "{uuid}"\n' for name, uuid in needed.items())
    (folder / "Manifest.toml").write_text(MANIFEST + entries)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", julia_saying("1.11.2", tmp_path))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(folder))
    return folder


def an_image(project: Path, tmp_path: Path) -> Path:
    """A file where the project's image belongs, with the stamp of one made now."""
    image = sysimage.image_of(project)
    image.parent.mkdir(parents=True)
    image.write_bytes(b"an image")
    made_for = sysimage.stamp(str(tmp_path / "julia"), project, PACKAGE)
    image.with_suffix(".json").write_text(json.dumps(made_for))
    return image


def test_an_image_is_used_while_nothing_it_was_made_for_has_changed(project, tmp_path):
    assert startup.image_in_use() is None
    image = an_image(project, tmp_path)
    assert startup.image_in_use() == (image, None)


def newer_julia(project, tmp_path, monkeypatch):
    julia_saying("1.11.3", tmp_path)


def other_packages(project, tmp_path, monkeypatch):
    (project / "Manifest.toml").write_text(MANIFEST.replace("0.9.34", "0.9.35"))


def other_sources(project, tmp_path, monkeypatch):
    folder = tmp_path / "julia-packages" / "PySciML"
    for name in ("Project.toml", "src/PySciML.jl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((PACKAGE / name).read_text() + "\n# changed\n")
    monkeypatch.setattr(startup, "package_folder", lambda: folder.parent)


def no_stamp(project, tmp_path, monkeypatch):
    sysimage.image_of(project).with_suffix(".json").write_text("{")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (newer_julia, "Julia changed"), (other_packages, "the Julia packages changed"),
        (other_sources, "PySciML's sources changed"), (no_stamp, "nothing says for which Julia"),
    ],
)  # fmt: skip
def test_a_stale_image_is_not_used_and_said(project, tmp_path, monkeypatch, change, said):
    image = an_image(project, tmp_path)
    change(project, tmp_path, monkeypatch)
    found = startup.image_in_use()
    assert found is not None and found[0] == image and said in found[1]
    with pytest.warns(RuntimeWarning, match="setup --sysimage") as warned:
        assert not startup._take_image()
    assert len(warned) == 1 and said in str(warned[0].message)
    (finding,) = doctor._sysimage()
    assert not finding.ok and said in finding.found and "--sysimage" in finding.mend


def test_a_fresh_image_is_named_to_juliacall(project, tmp_path, monkeypatch):
    image = an_image(project, tmp_path)
    (finding,) = doctor._sysimage()
    assert finding.ok and finding.found == str(image)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHON_JULIACALL_SYSIMAGE", "")
        assert startup._take_image()
        assert sysimage.chosen_by_user() == str(image)
    monkeypatch.setenv("PYSCIML_SYSIMAGE", "no")
    assert startup.image_in_use() is None and not startup._take_image()


def test_the_users_own_image_is_respected(project, tmp_path, monkeypatch):
    an_image(project, tmp_path)
    monkeypatch.setenv("PYTHON_JULIACALL_SYSIMAGE", "/of/my/own.so")
    assert not startup._take_image()
    (finding,) = doctor._sysimage()
    assert not finding.ok and "/of/my/own.so" in finding.found
    with pytest.raises(EngineError, match="PYTHON_JULIACALL_SYSIMAGE"):
        doctor.setup(image=True)


def test_the_images_project_holds_pysciml_and_what_it_needs(project, tmp_path):
    to = tmp_path / "packages"
    to.mkdir()
    (project / "Project.toml").write_text("[preferences.PythonCall]\nexe = 'python'\n")
    build_image.write_project(project, "julia version 1.11.2", PACKAGE, to)
    made = tomllib.loads((to / "Project.toml").read_text())
    own = tomllib.loads((PACKAGE / "Project.toml").read_text())
    assert made["deps"]["PySciML"] == own["uuid"] and set(made["deps"]) == set(build_image.PACKAGES)
    assert made["preferences"] == {"PythonCall": {"exe": "python"}}
    manifest = tomllib.loads((to / "Manifest.toml").read_text())
    assert set(manifest["deps"]) == {"PySciML", "PythonCall", "Base64", "Twin", *own["deps"]}
    (entry,) = manifest["deps"]["PySciML"]
    assert (entry["path"], entry["deps"]) == (str(PACKAGE), own["deps"])
    assert manifest["deps"]["Twin"][0]["path"] == str((tmp_path / "twin").resolve())
    assert manifest["julia_version"] == "1.11.2" and "project_hash" not in manifest


def test_a_project_without_the_packages_is_refused(project, tmp_path):
    (project / "Manifest.toml").write_text(MANIFEST)
    with pytest.raises(EngineError, match="lacks .*OrdinaryDiffEqCore.*pysciml setup"):
        build_image.write_project(project, "julia version 1.11.2", PACKAGE, tmp_path)
    (project / "Manifest.toml").unlink()
    with pytest.raises(EngineError, match="no manifest.*pysciml setup"):
        build_image.write_project(project, "julia version 1.11.2", PACKAGE, tmp_path)


def test_a_manifest_of_one_julia_version_comes_first(project):
    (project / "Manifest-v1.12.toml").write_text(MANIFEST)
    assert sysimage.manifest_of(project, "julia version 1.12.5").name == "Manifest-v1.12.toml"
    assert sysimage.manifest_of(project, "julia version 1.11.2").name == "Manifest.toml"


@pytest.fixture
def juliapkg_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which juliapkg keeps what was added, in a project of its own."""
    import juliapkg

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "pyjuliapkg" / "juliapkg.json"
    for key, value in {"project": str(tmp_path), "deps": str(file), "resolved": False}.items():
        monkeypatch.setitem(juliapkg.state.STATE, key, value)
    return file


@pytest.mark.parametrize("card", [None, "NVIDIA H100"])
def test_setup_gpu_asks_for_cuda(juliapkg_project, monkeypatch, capsys, card):
    import juliapkg

    resolved = []
    monkeypatch.setattr(juliapkg, "resolve", lambda: resolved.append(True))
    monkeypatch.setattr(doctor, "_time_first_solves", lambda image: "fast")
    monkeypatch.setattr(doctor, "nvidia_card", lambda: card)
    assert command.main(["setup", "--gpu"]) == 0
    added = json.loads(juliapkg_project.read_text())["packages"]
    assert added["CUDA"]["uuid"] == "052768ef-5323-5732-b1bb-66c8b64840ba"
    assert resolved == [True]
    _, wanted = juliapkg.deps.find_requirements()
    (cuda,) = [p for p in wanted if p.name == "CUDA"]
    assert "5" in cuda.version and "6" in cuda.version
    out = capsys.readouterr().out
    assert card in out if card else "No NVIDIA card is found on this machine" in out


def test_setup_gpu_leaves_a_project_of_the_users_own_alone(project):
    with pytest.raises(EngineError, match="PYTHON_JULIACALL_PROJECT.*CUDA.*Pkg.add"):
        doctor.setup(gpu=True)


def test_setup_without_flags_asks_for_neither(juliapkg_project, monkeypatch):
    import juliapkg

    monkeypatch.setattr(juliapkg, "resolve", lambda: None)
    monkeypatch.setattr(doctor, "_time_first_solves", lambda image: "fast")
    monkeypatch.setattr(build_image, "build", lambda *_: pytest.fail("an image was made"))
    assert command.main(["setup"]) == 0
    assert not juliapkg_project.exists()


def test_a_card_is_found_by_nvidia_smi_too(tmp_path, monkeypatch):
    if sys.platform == "win32":
        pytest.skip("the stand-in for nvidia-smi is a shell script")
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.nvidia_card() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA A100\n")
    tool.chmod(0o755)
    assert doctor.nvidia_card() == "NVIDIA A100"


def test_what_juliapkg_will_install() -> None:
    """juliapkg reads all requirements, this project's and juliacall's, without a conflict."""
    import juliapkg
    from juliapkg.compat import Compat
    from semver import Version

    julia, packages = juliapkg.deps.find_requirements()
    assert Version(1, 10, 10) in julia or Version(1, 11, 7) in julia
    wanted = json.loads((PACKAGE.parents[1] / "juliapkg.json").read_text())["packages"]
    found = {p.name: p for p in packages}
    assert "PythonCall" in found  # which juliacall brings
    for name, spec in wanted.items():
        assert found[name].uuid == spec["uuid"], name
        assert Compat.parse(found[name].version), name


def test_what_a_project_of_the_users_own_lacks_and_how_it_is_added(project):
    """setup leaves such a project as it is, so that running it would mend nothing."""
    lacking = startup.missing_packages()
    assert "SciMLSensitivity" in lacking and "PythonCall" not in lacking
    said = startup.how_to_add(("SciMLSensitivity",))
    assert f"--project={project} -e 'import Pkg; Pkg.add([\"SciMLSensitivity\"])'" in said
    (found,) = [f for f in doctor.diagnose().findings if f.what == "SciMLSensitivity"]
    assert not found.ok and "Pkg.add" in found.mend and "unset" in found.mend
    (found,) = [f for f in doctor.diagnose().findings if f.what == "packages for GPUs"]
    assert found.ok and "CUDA, DiffEqGPU not installed" in found.found
    assert 'Pkg.add(["CUDA", "DiffEqGPU"])' in found.found
    (project / "Manifest.toml").unlink()
    (found,) = [f for f in doctor.diagnose().findings if f.found.startswith("no manifest")]
    assert "Pkg.add" in found.mend and '"PythonCall"' in found.mend


def test_a_package_that_is_needed_later_and_missing(project):
    error = EngineError("Julia reports: the Julia package DelayDiffEq is not installed in this")
    said = refused(error, None)
    assert isinstance(said, EngineError) and 'Pkg.add(["DelayDiffEq"])' in str(said)
