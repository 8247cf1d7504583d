"""Why a function could not be captured, in the user's terms."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as FxNode
from torch.utils._python_dispatch import TorchDispatchMode

from pysciml.errors import CaptureWarning
from pysciml.kernels.trace import TraceError, trace

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_OWN = (_PACKAGE + os.sep, _TORCH + os.sep)
_STDLIB = sysconfig.get_paths()["stdlib"]


class CaptureError(Exception):
    """A function that cannot become a kernel.

    Attributes:
        reason: what is in the way, naming the operation or the line.
        hint: how to rewrite.
        kind: ``"random"`` where the function draws random numbers (no way of calling it solves
            an ODE), ``"mismatch"`` where the graph disagrees with the function, else
            ``"unsupported"``.
    """

    def __init__(self, reason: str, hint: str, kind: str = "unsupported") -> None:
        super().__init__(f"{reason}; {hint}")
        self.reason = reason
        self.hint = hint
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptureError, (self.reason, self.hint, self.kind)


def warn_called_back(what: str, error: CaptureError) -> None:
    """One CaptureWarning, which points at the user's line, that ``what`` is called back."""
    warnings.warn(
        f"{what} is called back in Python at every evaluation, because {error.reason}. "
        f"To run it as a kernel: {error.hint}.",
        CaptureWarning,
        stacklevel=_callers_level(),
    )


def _callers_level() -> int:
    """The ``stacklevel`` of the innermost frame outside this package and torch (a backward)."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    return level


def _is_users(filename: str) -> bool:
    path = os.path.abspath(filename)
    if filename.startswith("<") and not filename.startswith("<ipython"):
        return False
    library = path.startswith(_STDLIB) or f"{os.sep}site-packages{os.sep}" in path
    return not path.startswith(_OWN) and not library


def user_line(error: BaseException) -> str:
    """`` (file.py:12: `code`)`` for the innermost of the user's lines in a traceback, or ""."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            return _describe(frame.filename, frame.lineno or 0, frame.line)
    return ""


def _describe(filename: str, line: int, code: str | None = None) -> str:
    code = (code or linecache.getline(filename, line)).strip()
    return f" ({os.path.basename(filename)}:{line}: `{code}`)"


def explain(error: Exception) -> CaptureError:
    """The :class:`CaptureError` for an exception that the tracer raised."""
    if isinstance(error, CaptureError):
        return error
    text = str(error)
    line = user_line(error)
    if isinstance(error, TraceError):
        what, hint = error.args
        return CaptureError(f"the function {what}{line}", hint)
    if "get value out of a tracing tensor" in text or "data-dependent" in text.lower():
        return CaptureError(
            f"the function needs a tensor's value while it runs, in an if, a loop, float(), "
            f".item() or torch.tensor([...]){line}",
            "use torch.where instead of if, torch.stack instead of torch.tensor, "
            "and torch.* instead of math.*",
        )
    if "HigherOrderOperator" in text or "for HOP " in text:  # the latter in torch 2.6
        return CaptureError(
            f"the function uses torch's control flow operators{line}",
            "use torch.where instead of torch.cond, and a Python loop of fixed length",
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return CaptureError(
        f"tracing the function failed with {type(error).__name__}: {first}{line}",
        "write it with torch operations only",
    )


class _Lines(TorchDispatchMode):
    """Notes the user's line for every operation of one kind."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self.target = target
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.target:
            frame = sys._getframe(1)
            while frame.f_back is not None and not _is_users(frame.f_code.co_filename):
                frame = frame.f_back
            users = _is_users(frame.f_code.co_filename)
            self.found.append(_describe(frame.f_code.co_filename, frame.f_lineno) if users else "")
        return func(*args, **(kwargs or {}))


def line_of_op(fn: Callable[..., Tensor], inputs: Sequence[Tensor], node: FxNode) -> str:
    """`` (file.py:12: `code`)`` of the user's line behind a traced operation, or "".

    Traces ``fn`` once more, so it is for messages only.
    """
    lines = _Lines(node.target)
    try:
        trace(fn, inputs, read=[], watch=lines)
    except Exception:
        return ""
    same = [n for n in node.graph.nodes if n.target is node.target]
    if len(same) == len(lines.found):
        return lines.found[same.index(node)]
    return lines.found[0] if len(set(lines.found)) == 1 else ""
