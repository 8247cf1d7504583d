"""Why a function could not be captured, in the user's terms."""

from __future__ import annotations

import linecache
import os
import sysconfig
import traceback
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pysciml.kernels.trace import ReadOutError, trace

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
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


def _is_users(filename: str) -> bool:
    path = os.path.abspath(filename)
    if filename.startswith("<") and not filename.startswith("<ipython"):
        return False
    own = (_PACKAGE + os.sep, _TORCH + os.sep)
    library = path.startswith(_STDLIB) or f"{os.sep}site-packages{os.sep}" in path
    return not path.startswith(own) and not library


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
    if isinstance(error, ReadOutError):
        return CaptureError(
            f"the function turns a tensor that requires grad into a Python number{line}",
            "keep it a tensor: no .item(), float() or math.* on it",
        )
    if "get value out of a tracing tensor" in text or "data-dependent" in text.lower():
        return CaptureError(
            f"the function needs a tensor's value while it runs, in an if, a loop, float(), "
            f".item() or torch.tensor([...]){line}",
            "use torch.where instead of if, torch.stack instead of torch.tensor, "
            "and torch.* instead of math.*",
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return CaptureError(
        f"tracing the function failed with {type(error).__name__}: {first}{line}",
        "write it with torch operations only",
    )


def line_of_op(fn: Callable[..., Tensor], inputs: Sequence[Tensor], op: str) -> str:
    """`` (file.py:12: `code`)`` of the user's line that called an ATen operation, or "".

    Traces ``fn`` once more, so it is for messages only.
    """
    try:
        module = trace(fn, inputs, stack_traces=True)
    except Exception:  # noqa: BLE001  (this is already an error path)
        return ""
    for node in module.graph.nodes:
        if node.op != "call_function" or not str(node.target).endswith(op):
            continue
        found = ""
        lines = (node.meta.get("stack_trace") or "").splitlines()
        for text in lines:
            parts = text.strip().split('"')
            if len(parts) >= 3 and parts[0].startswith("File") and _is_users(parts[1]):
                number = parts[2].split("line ")[1].split(",")[0]
                found = _describe(parts[1], int(number))
        return found
    return ""
