"""Which engine a solve runs on."""

from __future__ import annotations

import os
import threading
import warnings
from functools import cache

from pysciml.engines.base import Engine
from pysciml.errors import EngineError, InputError, did_you_mean

__all__ = ["EngineChoiceWarning", "engine", "engine_names"]

_NAMES = ("sundials", "julia")
_engines: dict[str, Engine] = {}
_lock = threading.Lock()


class EngineChoiceWarning(UserWarning):
    """Says once which engine ``engine="auto"`` took."""


def engine_names() -> tuple[str, ...]:
    return _NAMES


def engine(name: str) -> Engine:
    """The engine of that name: ``"sundials"``, ``"julia"``, or ``"auto"``.

    ``"auto"`` takes julia where it has been set up, else sundials; the environment variable
    PYSCIML_ENGINE replaces ``"auto"``. Raises InputError for an unknown name and EngineError
    where the engine is not there.
    """
    if name == "auto":
        name = os.environ.get("PYSCIML_ENGINE", "auto")
    if name == "auto":
        name = _auto()
    if name not in _NAMES:
        raise InputError(
            f"engine is {name!r}; give 'auto', 'sundials' or 'julia'."
            f"{did_you_mean(str(name), (*_NAMES, 'auto'))}"
        )
    with _lock:
        if name not in _engines:
            _engines[name] = _load(name)
        return _engines[name]


def _load(name: str) -> Engine:
    # Imported here, and nowhere at the top: the julia engine starts Julia.
    if name == "sundials":
        from pysciml.engines.sundials import SundialsEngine

        return SundialsEngine()
    try:
        from pysciml.engines.julia import JuliaEngine
    except ImportError as error:
        raise EngineError(
            f"The julia engine cannot be loaded ({error}); install it with "
            "'python -m pysciml setup', or solve with engine='sundials'."
        ) from error
    return JuliaEngine()


@cache
def _auto() -> str:
    """The engine that "auto" stands for in this process: looked for once, and said once."""
    try:
        from pysciml.engines.julia import is_set_up
    except ImportError:
        found = False
    else:
        found = is_set_up()
    name = "julia" if found else "sundials"
    why = (
        "a Julia project with its packages was found"
        if found
        else "no Julia was set up; 'python -m pysciml setup' installs it"
    )
    warnings.warn(
        f"engine='auto' takes {name!r} ({why}). Name the engine to silence this.",
        EngineChoiceWarning,
        stacklevel=4,
    )
    return name
