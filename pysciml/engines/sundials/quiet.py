"""Keeps SUNDIALS' own messages off the user's screen, and keeps them for the error message.

scikit-sundae prints errors with Python's ``print``; what the user's functions print goes through.
Warnings are written by SUNDIALS' logger straight to the process's standard output.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from types import TracebackType
from typing import Any

_MESSAGE = re.compile(r"^\s*\[\w+, Error: -?\d+\] (.*?)\s*$", re.DOTALL)


def silence_logger() -> None:
    """Send what SUNDIALS' logger writes nowhere; a file that the user has named is left alone.

    The logger reads these variables whenever a solver is made (SUNDIALS, "Status and error
    logging"), and there is no other way to reach it through scikit-sundae.
    """
    for level in ("WARNING", "ERROR"):
        os.environ.setdefault(f"SUNLOGGER_{level}_FILENAME", os.devnull)


class _Filter:
    """Stands in for ``sys.stdout``; drops what looks like a SUNDIALS message."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.messages = threading.local()
        self._after = threading.local()

    def write(self, text: str) -> int:
        match = _MESSAGE.match(text)
        if match:
            kept = getattr(self.messages, "kept", None)
            if kept is not None:
                kept.append(match.group(1))
            self._after.newline = True
            return len(text)
        if text == "\n" and getattr(self._after, "newline", False):  # print's own line end
            self._after.newline = False
            return 1
        return int(self.target.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


class Quiet:
    """Context manager; ``messages`` holds what SUNDIALS said in this thread."""

    _lock = threading.Lock()
    _users = 0
    _filter: _Filter | None = None
    _mine: _Filter

    def __enter__(self) -> Quiet:
        with Quiet._lock:
            if Quiet._users == 0 or Quiet._filter is None or sys.stdout is not Quiet._filter:
                Quiet._filter = _Filter(sys.stdout)
                sys.stdout = Quiet._filter
            Quiet._users += 1
            self._mine = Quiet._filter
        self.messages: list[str] = []
        self._mine.messages.kept = self.messages
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._mine.messages.kept = None
        with Quiet._lock:
            Quiet._users -= 1
            if Quiet._users == 0 and sys.stdout is self._mine:
                sys.stdout = self._mine.target
                Quiet._filter = None
