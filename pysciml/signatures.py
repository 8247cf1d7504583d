"""What the functions of a problem are called with."""

from __future__ import annotations

import inspect
from typing import Any

from pysciml.errors import InputError
from pysciml.julia_function import JuliaFunction
from pysciml.problems import require_callable

__all__ = ["require_function"]


def require_function(f: Any, name: str, takes: tuple[str, ...]) -> None:
    """Raise InputError for what is no function in torch of these arguments."""
    call = f"({', '.join(takes)})"
    require_callable(f, f"{name}{call}", name)
    if isinstance(f, JuliaFunction):
        raise InputError(
            f"{name} is a julia_function, which an ODEProblem takes as its right-hand side alone; "
            "write this one in torch."
        )
    try:
        signature = inspect.signature(f)
        signature.bind(*takes)
    except ValueError:  # a builtin without a signature
        return
    except TypeError:
        raise InputError(
            f"{name} takes {signature}, but it is called with {call}, in SciML's order; give it "
            "these arguments."
        ) from None
