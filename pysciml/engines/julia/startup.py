"""Starting Julia: once, late, and with its settings made before.

juliacall reads its settings from environment variables when it is imported; what the user has set
stays. A Julia and project named by ``PYTHON_JULIACALL_EXE`` and ``PYTHON_JULIACALL_PROJECT`` are
used as they are (PySciML is loaded from this package's own folder, nothing is resolved or
installed); otherwise juliapkg finds Julia and installs what ``juliapkg.json`` names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pysciml.engines.julia import sysimage
from pysciml.errors import EngineError

__all__ = [
    "Julia", "how_to_add", "how_to_add_gpu", "image_in_use", "installed_at", "is_set_up", "julia",
    "missing_packages", "package_folder", "require_this_process", "started", "was_forked",
]  # fmt: skip

#: Settings of juliacall made before it starts, unless the user has made them.
SETTINGS = {
    # Julia's garbage collector stops threads by a signal that must reach Julia, not Python.
    "PYTHON_JULIACALL_HANDLE_SIGNALS": "yes",
    "PYTHON_JULIACALL_THREADS": "auto",
    "PYTHON_JULIACALL_STARTUP_FILE": "no",
}

_lock = threading.Lock()
_julia: Julia | None = None
_process: int | None = None  # in which Julia was started


@dataclass(frozen=True)
class Julia:
    """The running Julia, by juliacall's ``Main``."""

    main: Any

    def table(self, code: str) -> dict[str, str]:
        """The value of a Julia expression of the form ``key=value,key=value``."""
        pairs = (item.split("=") for item in str(self.main.seval(code)).split(","))
        return {key: value for key, value in pairs}


def package_folder() -> Path | None:
    """The folder that holds the Julia package PySciML, in a checkout or in an installed wheel."""
    here = Path(__file__).resolve()
    for candidate in (here.parents[2] / "julia", here.parents[3] / "julia"):
        if (candidate / "PySciML" / "Project.toml").is_file():
            return candidate
    return None


def chosen_by_user() -> bool:
    """Whether Julia and its project are named by juliacall's own variables."""
    return all(os.environ.get(f"PYTHON_JULIACALL_{k}") for k in ("EXE", "PROJECT"))


def missing_packages() -> tuple[str, ...]:
    """The packages that ``juliapkg.json`` names and the manifest of Julia's project does not."""
    folder, (_, project) = package_folder(), installed_at()
    if folder is None:
        return ()
    wanted = json.loads((folder.parent / "juliapkg.json").read_text(encoding="utf-8"))["packages"]
    manifests = sorted(project.glob("Manifest*.toml"))
    there = "".join(m.read_text(encoding="utf-8") for m in manifests)
    return tuple(name for name in (*wanted, "PythonCall") if f"[[deps.{name}]]" not in there)


def how_to_add(missing: tuple[str, ...]) -> str:
    """What to do where Julia's project lacks packages."""
    if not chosen_by_user():
        return "run 'python -m pysciml setup', which installs them"
    executable, project = installed_at()
    names = ", ".join(f'"{name}"' for name in missing)
    return (
        "add them to this project of yours, which pysciml leaves as it is, with: "
        f"{executable} --project={project} -e 'import Pkg; Pkg.add([{names}])'; or unset "
        "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT and run 'python -m pysciml setup'"
    )


def how_to_add_gpu() -> str:
    """What to do where Julia's project lacks the packages of GPUs."""
    if not chosen_by_user():
        return "install it with 'python -m pysciml setup --gpu'"
    return how_to_add(("CUDA", "DiffEqGPU"))


def _why_not() -> str:
    """What a start that failed lacked, and how to mend it."""
    missing = missing_packages() if chosen_by_user() else ()
    if missing:
        few = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return f"its project lacks {few}; {how_to_add(missing)}"
    return "'python -m pysciml doctor' says what is wrong, engine='sundials' needs no Julia"


def started() -> bool:
    """Whether Julia runs in this process already, by us or by another library."""
    module = sys.modules.get("juliacall")
    return module is not None and hasattr(module, "Main")


def is_set_up() -> bool:
    """Whether this engine can start without installing anything; starts nothing itself."""
    if importlib.util.find_spec("juliacall") is None or package_folder() is None:
        return False
    return started() or chosen_by_user() or _installed_by_juliapkg()


def _installed_by_juliapkg() -> bool:
    """Whether ``python -m pysciml setup`` has left a project with the packages in it."""
    try:
        import juliapkg

        manifest = Path(juliapkg.state.STATE["project"]) / "Manifest.toml"
        return manifest.is_file() and "[[deps.OrdinaryDiffEqCore]]" in manifest.read_text()
    except Exception:
        return False


def installed_at() -> tuple[str | None, Path]:
    """Julia's executable, where one is known, and its project; installs nothing."""
    if chosen_by_user():
        return os.environ["PYTHON_JULIACALL_EXE"], Path(os.environ["PYTHON_JULIACALL_PROJECT"])
    import juliapkg

    state = juliapkg.state.STATE
    meta = juliapkg.deps.load_meta() or {}
    return state.get("executable") or meta.get("executable"), Path(state["project"])


def image_in_use() -> tuple[Path, str | None] | None:
    """The system image of this project, and why it is stale (None where it is not).

    None where there is none, or ``PYSCIML_SYSIMAGE=no`` says to leave it.
    """
    executable, project = installed_at()
    folder, image = package_folder(), sysimage.image_of(project)
    if executable is None or folder is None or not image.is_file():
        return None
    if os.environ.get("PYSCIML_SYSIMAGE") == "no":
        return None
    return image, sysimage.why_stale(image, sysimage.stamp(executable, project, folder / "PySciML"))


def _take_image() -> bool:
    """Tell juliacall of the system image, where there is one to use and the user named none."""
    if sysimage.chosen_by_user():
        return False
    if not chosen_by_user():
        import juliapkg

        juliapkg.resolve()  # as juliacall would do next: the packages' versions may change by it
    found = image_in_use()
    if found is None:
        return False
    image, stale = found
    if stale is not None:
        warnings.warn(
            f"Julia starts without its system image: {stale}. Make it anew with "
            f"'python -m pysciml setup --sysimage', or delete {image}.",
            RuntimeWarning,
            stacklevel=5,
        )
        return False
    os.environ[sysimage.VARIABLE] = str(image)
    return True


def was_forked() -> bool:
    """Whether this process is a copy of the one that started Julia: a copy without its threads."""
    return _process is not None and _process != os.getpid()


def require_this_process() -> None:
    """Raise EngineError in a forked copy of the process that started Julia, which would hang."""
    if was_forked():
        raise EngineError(
            "Julia cannot run in a process that was forked after Julia had started; start worker "
            "processes by 'spawn', e.g. DataLoader(..., multiprocessing_context='spawn'), or solve "
            "in them with engine='sundials'."
        )


def julia() -> Julia:
    """The running Julia, started now if it was not. Raises EngineError with the mending command."""
    global _julia, _process
    require_this_process()
    with _lock:
        if _julia is None:
            _julia = _start()
            _process = os.getpid()
        return _julia


def _start() -> Julia:
    folder = package_folder()
    if folder is None:
        raise EngineError(
            "The Julia package PySciML is missing from this installation of pysciml; install "
            "pysciml again, or solve with engine='sundials'."
        )
    running = started()
    if not running and not is_set_up() and not os.environ.get("PYSCIML_SETUP"):
        raise EngineError(
            "Julia has not been set up here; install it with 'python -m pysciml setup' (once, some "
            "minutes), or solve with engine='sundials'."
        )
    if not running and threading.current_thread() is not threading.main_thread():
        # Julia waits for the thread that started it: when that had ended, the process did not end
        raise EngineError(
            "Julia has not been started yet, and must be by the main thread, but this is the "
            f"thread {threading.current_thread().name!r}; solve once in the main thread first "
            "(however small a problem), then in any thread."
        )
    taken = False
    try:
        if not running:
            for key, value in SETTINGS.items():
                os.environ.setdefault(key, value)
            taken = _take_image()
        with warnings.catch_warnings():
            # either order of import works with the settings above; juliacall warns of old versions
            warnings.filterwarnings("ignore", message="torch was imported before juliacall")
            import juliacall
    except ImportError as error:
        raise EngineError(
            f"The julia engine needs juliacall ({error}); install it with "
            "'python -m pysciml setup', or solve with engine='sundials'."
        ) from error
    except Exception as error:
        raise EngineError(
            f"Julia could not be started ({type(error).__name__}: {error}): {_why_not()}."
        ) from error
    finally:
        if taken:  # it is this process's own: another one looks for itself
            os.environ.pop(sysimage.VARIABLE, None)
    if running:
        _warn_of_settings(juliacall)
    _keep_signals()
    main = juliacall.Main
    try:
        # text in, text out: each of juliacall's conversions costs compilation in every session
        main.seval(f"push!(LOAD_PATH, {_quoted(str(folder))}); import PySciML")
    except Exception as error:
        mend = (
            _why_not()
            if chosen_by_user()
            else (
                "'python -m pysciml setup' installs what it needs, 'python -m pysciml doctor' "
                "says more"
            )
        )
        raise EngineError(
            f"Julia runs, but its package PySciML could not be loaded ({error}): {mend}."
        ) from error
    return Julia(main)


def _keep_signals() -> None:
    """Leave signals to Python: Julia, once it handles them, would end the process by Ctrl-C.

    Julia blocks them in the thread that starts it and waits for them in one of its own; what the
    main thread does not block is delivered there first. Processes inherit what is blocked: none
    could be ended by ``terminate()``, and Python waited for forked ones at its end.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_sigmask"):
        kept = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, kept)
        for number in kept:
            handler = signal.getsignal(number)
            if handler is not None:  # else made by what is not Python
                signal.signal(number, handler)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


def _warn_of_settings(juliacall: Any) -> None:
    threads = int(juliacall.Main.seval("Threads.nthreads()"))
    signals = juliacall.CONFIG.get("opt_handle_signals")
    if threads > 1 and signals != "yes":
        warnings.warn(
            f"Julia was started by another library with {threads} threads and without signal "
            "handling, which can crash the process; set PYTHON_JULIACALL_HANDLE_SIGNALS=yes "
            "before anything imports juliacall.",
            RuntimeWarning,
            stacklevel=4,
        )
