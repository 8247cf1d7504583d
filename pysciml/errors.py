"""The exceptions a user can meet, and where their advice is worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pysciml.solution import Solution

__all__ = [
    "CaptureWarning",
    "EngineError",
    "InputError",
    "PyscimlError",
    "SolveError",
    "did_you_mean",
]


class PyscimlError(Exception):
    """Base class of every error that pysciml raises on purpose."""


class InputError(PyscimlError, ValueError):
    """Bad input, refused before any solver runs: what was given and expected, how to mend it."""


class EngineError(PyscimlError, RuntimeError):
    """An engine is missing, broken, or cannot do what was asked; names the one that can."""


class SolveError(PyscimlError, RuntimeError):
    """A solve that failed on its way.

    Attributes
    ----------
    retcode : str
        SciML's return code, e.g. ``"MaxIters"``, ``"DtLessThanMin"``, ``"Unstable"``.
    t : float
        The time reached.
    solution : Solution
        What had been computed up to there (its ``retcode`` says that it is partial).

    Copies and pickles (from a process pool) hold a copy of the solution: see :class:`Solution`.
    """

    def __init__(self, message: str, *, retcode: str, t: float, solution: Solution | None) -> None:
        super().__init__(message)
        self.retcode = retcode
        self.t = t
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are made anew of args alone, which would end a process pool.
        return _restored_error, (type(self), self.args), vars(self)


def _restored_error(kind: type[SolveError], args: tuple[Any, ...]) -> SolveError:
    return kind.__new__(kind, *args)


class CaptureWarning(UserWarning):
    """A function could not be captured as a kernel and is called back in Python instead."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known name, or an empty string."""
    names = sorted(set(known))
    lower = {n.lower(): n for n in reversed(names)}
    close = difflib.get_close_matches(given.lower(), list(lower), n=1, cutoff=0.55)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""
