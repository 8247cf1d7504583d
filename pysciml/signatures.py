"""What the functions of a problem are called with."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from pysciml.errors import InputError
from pysciml.julia_function import JuliaFunction
from pysciml.problems import in_another_order, require_callable

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
    plain = isinstance(f, nn.Module) and type(f).__call__ is nn.Module.__call__
    try:
        signature = inspect.signature(f.forward if plain else f)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind(*takes)
    except TypeError:
        mend = "give it these arguments"
    else:
        names = [
            x.name for x in signature.parameters.values()
            if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)
        ][: len(takes)]  # fmt: skip
        if not in_another_order(names, takes):
            return
        mend = "put them in this order"
    order = ", in SciML's order" if "p" in takes else ""
    raise InputError(f"{name} takes {signature}, but it is called with {call}{order}; {mend}.")
