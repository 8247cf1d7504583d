"""Set-up and diagnosis of the engines: what ``python -m pysciml setup`` and ``doctor`` do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from pysciml.engines.julia import build_image, sysimage
from pysciml.engines.julia.startup import (
    SETTINGS,
    chosen_by_user,
    how_to_add,
    how_to_add_gpu,
    image_in_use,
    installed_at,
    is_set_up,
    missing_packages,
    package_folder,
)
from pysciml.errors import EngineError

__all__ = ["Diagnosis", "Finding", "diagnose", "setup"]

#: Julia packages whose versions a bug report needs.
_PACKAGES = (
    "OrdinaryDiffEq", "OrdinaryDiffEqCore", "SciMLBase", "SciMLSensitivity", "DiffEqBase",
    "LinearSolve", "PythonCall",
)  # fmt: skip
_SETUP = "python -m pysciml setup"

#: Solved in a fresh process, which was begun at the time that it is given: what a first solve, a
#: first gradient and the next ones cost.
_FIRST_SOLVE = """
import sys, time
begun = float(sys.argv[1])
import torch, pysciml as ps
imported = time.time() - begun
p = torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=torch.float64, requires_grad=True)
f = lambda u, p, t: torch.stack([p[0]*u[0] - p[1]*u[0]*u[1], p[3]*u[0]*u[1] - p[2]*u[1]])
prob = ps.ODEProblem(f, torch.ones(2, dtype=torch.float64), (0.0, 5.0), p)
try:
    sol = ps.solve(prob, ps.Tsit5(), engine="julia", saveat=1.0)
except ps.errors.PyscimlError as error:
    sys.exit(f"pysciml: {error}")
first = time.time() - begun
sol.u.sum().backward()
gradient = time.time() - begun
start = time.perf_counter()
ps.solve(prob, ps.Tsit5(), engine="julia", saveat=1.0)
again = time.perf_counter() - start
print(f"torch and pysciml imported after {imported:.1f} s, first solution after {first:.1f} s, "
      f"first gradient after {gradient:.1f} s; a later solve takes {1e3 * again:.1f} ms")
"""

#: The optional packages of ``setup --gpu``, as juliapkg.add takes them: arrays on a card, and
#: ensembles whose members its threads solve.
GPU_PACKAGES = {
    "CUDA": {"uuid": "052768ef-5323-5732-b1bb-66c8b64840ba", "version": "5, 6"},
    "DiffEqGPU": {"uuid": "071ae1c0-96b5-11e9-1965-c90190d839ea", "version": "~3.15"},
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``mend`` says what to do where ``ok`` is False."""

    what: str
    found: str
    ok: bool = True
    mend: str = ""


@dataclass
class Diagnosis:
    """What was found. Printed, it can be pasted into a bug report.

    Attributes
    ----------
    findings : list of Finding
    """

    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. A julia engine that was never set up is not wrong."""
        return all(f.ok for f in self.findings)

    def __str__(self) -> str:
        width = max(len(f.what) for f in self.findings)
        lines = []
        for f in self.findings:
            lines.append(f"{'ok   ' if f.ok else 'WRONG'}  {f.what:{width}}  {f.found}")
            if f.mend:
                lines.append(f"       {'':{width}}  -> {f.mend}")
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Look at both engines and what they need. Starts no Julia session and installs nothing."""
    out = Diagnosis()
    out.findings += [*_python(), *_embedded(), *_julia()]
    return out


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> list[Finding]:
    findings = [
        Finding("pysciml", f"{_version('pysciml') or 'not installed (a bare checkout)'}"),
        Finding("Python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    for package in ("torch", "numpy"):
        version = _version(package)
        mend = "" if version else f"pip install {package}"
        findings.append(Finding(package, version or "missing", version is not None, mend))
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    findings.append(Finding("GPU", device))
    return findings


def _embedded() -> list[Finding]:
    version = _version("scikit-sundae")
    if version is None:
        return [Finding("sundials engine", "missing", False, "pip install scikit-sundae")]
    try:
        from sksundae.cvode import CVODE

        def decay(t: float, y: object, yp: object) -> None:
            yp[:] = -y  # type: ignore[index,operator]

        end = CVODE(decay, rtol=1e-8, atol=1e-10).solve([0.0, 1.0], [1.0]).y[-1, 0]
        good = abs(end - 0.36787944117) < 1e-6
    except Exception as error:
        return [Finding("sundials engine", f"{version}, but it fails: {error}", False,
                        "pip install --force-reinstall scikit-sundae")]  # fmt: skip
    return [Finding("sundials engine", f"scikit-sundae {version}", good)]


def _julia() -> list[Finding]:
    findings = []
    for package in ("juliacall", "juliapkg"):
        version = _version(package)
        mend = "" if version else f"pip install {package}"
        findings.append(Finding(package, version or "missing", version is not None, mend))
    folder = package_folder()
    findings.append(
        Finding("PySciML (Julia)", "found" if folder else "missing", folder is not None,
                "" if folder else "install pysciml again")
    )  # fmt: skip
    findings.append(Finding("Julia's version", _version_rule()))
    if not is_set_up():
        findings.append(Finding("julia engine", "not set up", True, f"to have it: {_SETUP}"))
    else:
        executable, project = installed_at()
        findings.append(_executable(executable))
        findings.append(Finding("Julia's project", str(project)))
        findings.append(Finding("Julia's threads", _threads()))
        findings += _sysimage()
        findings += _packages(project)
    variables = {k: v for k, v in os.environ.items() if k.startswith(("PYTHON_JULIA", "JULIA_"))}
    for key in sorted(variables):
        findings.append(Finding(key, variables[key]))
    auto = os.environ.get("PYSCIML_ENGINE") or ("julia" if is_set_up() else "sundials")
    findings.append(Finding("engine='auto' takes", auto))
    return findings


def _version_rule() -> str:
    """Which Julia juliapkg would take, and why: it ties Julia's OpenSSL to Python's."""
    if chosen_by_user():
        return "the one that PYTHON_JULIACALL_EXE names"
    newest = "1.12" if ssl.OPENSSL_VERSION_INFO >= (3, 5) else "1.11"
    return f"1.10 to {newest}, because this Python has {ssl.OPENSSL_VERSION} (3.5 allows 1.12)"


def _threads() -> str:
    key = "PYTHON_JULIACALL_THREADS"
    if key in os.environ:
        return f"{os.environ[key]}, as {key} says"
    return f"{SETTINGS[key]} ({os.cpu_count()} processors here); {key} sets another number"


def _sysimage() -> list[Finding]:
    """The system image that Julia will start from."""
    what, path = "system image", sysimage.chosen_by_user()
    if path:
        if Path(path).is_file():
            return [Finding(what, f"{path}, as {sysimage.VARIABLE} says")]
        mend = f"correct or unset {sysimage.VARIABLE}"
        return [Finding(what, f"{path} is no file", False, mend)]
    try:
        found = image_in_use()
    except EngineError:  # Julia does not run: that is a finding of its own
        return []
    make = f"{_SETUP} --sysimage"
    if found is None:
        return [Finding(what, f"none; {make} makes one, for faster starts")]
    image, stale = found
    if stale is not None:
        return [Finding(what, f"{image} is not used: {stale}", False, f"run {make}, or delete it")]
    return [Finding(what, str(image))]


def _executable(path: str | None) -> Finding:
    mend = f"run {_SETUP}, or correct PYTHON_JULIACALL_EXE"
    if path is None:
        return Finding("Julia", "to be found by juliapkg at the first solve")
    found = shutil.which(path)
    if found is None:
        return Finding("Julia", f"{path} is not an executable", False, mend)
    try:
        said = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("Julia", f"{found} does not run: {error}", False, mend)
    version = re.search(r"(\d+)\.(\d+)", said)
    good = version is not None and (1, 10) <= (int(version[1]), int(version[2])) <= (1, 12)
    return Finding("Julia", f"{said} ({found})", good, "" if good else "use Julia 1.10 to 1.12")


def _packages(project: Path | None) -> list[Finding]:
    missing = missing_packages()
    manifests = [] if project is None else sorted(project.glob("Manifest*.toml"))
    if not manifests:
        mend = how_to_add(missing)
        return [Finding("Julia packages", f"no manifest in {project}", False, mend)]
    text = "".join(m.read_text(encoding="utf-8") for m in manifests)
    findings = []
    for name in _PACKAGES:
        entry = re.search(rf"\[\[deps\.{name}\]\](.*?)(?=\n\[\[|\Z)", text, re.DOTALL)
        if entry is None:
            findings.append(Finding(name, "missing", False, how_to_add((name,))))
            continue
        version = re.search(r'^version = "(.*?)"', entry[1], re.MULTILINE)
        findings.append(Finding(name, version[1] if version else "of no stated version"))
    there = [name for name in GPU_PACKAGES if f"[[deps.{name}]]" in text]
    absent = [name for name in GPU_PACKAGES if name not in there]
    said = [", ".join(there)] if there else []
    if absent:
        said.append(f"{', '.join(absent)} not installed (for a GPU, {how_to_add_gpu()})")
    findings.append(Finding("packages for GPUs", "; ".join(said)))
    others = tuple(name for name in missing if name not in _PACKAGES)
    if others:
        found = f"{', '.join(others)} missing"
        findings.append(Finding("Julia packages", found, False, how_to_add(others)))
    return findings


def setup(*, image: bool = False, gpu: bool = False) -> None:
    """Install Julia and the packages of the julia engine, compile them, and time a first solve.

    Where juliacall's own variables name a Julia and a project, nothing is installed: they are used
    as they are. Raises EngineError where a step fails; what it printed stays on the screen.

    Parameters
    ----------
    image : bool
        Make a system image, and time a first solve with it too.
    gpu : bool
        Add the packages for states on an NVIDIA card (``GPU_PACKAGES``).
    """
    folder = package_folder()
    if folder is None:
        raise EngineError("The Julia package PySciML is missing; install pysciml again.")
    if importlib.util.find_spec("juliapkg") is None:
        raise EngineError("juliapkg is missing; install it with: pip install juliacall juliapkg.")
    if image and sysimage.chosen_by_user():
        raise EngineError(
            f"{sysimage.VARIABLE} names a system image of your own, which Julia starts from; unset "
            "it to have one made."
        )
    begun = time.perf_counter()
    if gpu:
        _add_gpu_packages()
    if chosen_by_user():
        print(f"Using {os.environ['PYTHON_JULIACALL_EXE']}, as PYTHON_JULIACALL_EXE says.")
    else:
        print(f"Installing Julia and its packages. Julia's version: {_version_rule()}.", flush=True)
        import juliapkg

        try:
            juliapkg.resolve()
        except Exception as error:
            raise EngineError(
                f"Julia or its packages could not be installed ({type(error).__name__}: {error}); "
                "check the network connection and run this again."
            ) from error
    print("Compiling, and solving a first problem (minutes the first time) ...", flush=True)
    said = _time_first_solves(image=not image)
    print(f"Ready after {time.perf_counter() - begun:.0f} s. In a new process: {said}.", flush=True)
    if image:
        _make_image(folder / "PySciML")


def _time_first_solves(*, image: bool) -> str:
    """What a session costs from now on, with the system image or without."""
    environment = {**os.environ, "PYSCIML_SETUP": "1"}
    if not image:
        environment["PYSCIML_SYSIMAGE"] = "no"
    for _ in range(2):  # the first run compiles, the second shows what a session costs
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _FIRST_SOLVE, str(time.time())],
            env=environment, text=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        if ran.returncode != 0:
            raise EngineError(
                "Julia is there, but a first problem could not be solved (see above); "
                "'python -m pysciml doctor' says what is wrong."
            )
    return ran.stdout.strip()


def _make_image(package: Path) -> None:
    begun = time.perf_counter()
    executable, project = installed_at()
    if executable is None:
        raise EngineError("Julia was not found; run 'python -m pysciml setup' first.")
    print("Making a system image (up to an hour on two cores) ...", flush=True)
    image = build_image.build(executable, project, package)
    try:
        said = _time_first_solves(image=True)
    except EngineError as error:
        image.unlink(missing_ok=True)
        raise EngineError(
            "Julia does not run from the system image that was made (see above); it was deleted, "
            "and Julia starts without it as before."
        ) from error
    print("Compiling the packages that load on need ...", flush=True)
    if not build_image.compile_rest(executable, project, package):
        print("Some were not compiled (see above); they are at their first use.")
    size = image.stat().st_size / 2**20
    print(
        f"Made {image} ({size:.0f} MB) in {time.perf_counter() - begun:.0f} s. In a new process, "
        f"started from it: {said}."
    )


def _add_gpu_packages() -> None:
    """Have juliapkg install the packages for states on a GPU."""
    if chosen_by_user():
        names = ", ".join(f'"{name}"' for name in GPU_PACKAGES)
        raise EngineError(
            "PYTHON_JULIACALL_PROJECT names a Julia project of your own, which is left as it is; "
            f"add {', '.join(GPU_PACKAGES)} to it yourself: julia --project="
            f"{os.environ['PYTHON_JULIACALL_PROJECT']} -e 'import Pkg; Pkg.add([{names}])'."
        )
    import juliapkg

    for name, required in GPU_PACKAGES.items():
        juliapkg.add(name, **required)
    print(f"Adding {', '.join(GPU_PACKAGES)}.")
    card = nvidia_card()
    if card is None:
        print(
            "No NVIDIA card is found on this machine: the packages are installed all the same, "
            "and serve where nvidia-smi lists a card and torch.cuda.is_available() is true."
        )
    else:
        print(f"NVIDIA card: {card}.")


def nvidia_card() -> str | None:
    """The name of this machine's first NVIDIA card, by torch or by nvidia-smi; None without one."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    ran = subprocess.run(
        [command, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
    )
    names = ran.stdout.strip().splitlines()
    return names[0] if ran.returncode == 0 and names else None
