"""Models written in Julia, for the julia engine: the text of a function as ``f`` of a problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pysciml.errors import EngineError, InputError

__all__ = ["JuliaFunction", "JuliaSource", "julia_function"]

Array = npt.NDArray[np.float64]


def julia_function(text: str) -> JuliaFunction:
    """A right-hand side written in Julia, for ``ODEProblem`` on ``engine="julia"``.

    Parameters
    ----------
    text : str
        Julia source whose value is a function ``(du, u, p, t) -> ...`` that fills ``du``. ``u``
        and ``p`` are vectors: a state or parameters given as a pytree stand in it one leaf after
        the other, each row by row. ``LinearAlgebra`` is in scope, ``using`` gets more. The function
        is differentiated by ForwardDiff, so it must take any number type.

    Returns
    -------
    JuliaFunction
        Gives solutions and gradients as a function written in torch does.

    Raises
    ------
    InputError
        Where ``text`` is not a string, or is empty.
    EngineError
        At the solve: on another engine, and with Julia's message and the line of the text where
        Julia meets an error in it.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"julia_function was given {text!r}; give Julia source text, e.g. "
            '"(du, u, p, t) -> (du .= -p[1] .* u)".'
        )
    return JuliaFunction(text)


class JuliaFunction:
    """What :func:`julia_function` makes. It cannot be called in Python."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.__name__ = "julia_function"
        self._sources: dict[tuple[int, int], JuliaSource] = {}

    def __call__(self, *arguments: Any) -> NoReturn:
        """Raises EngineError: the function runs in Julia alone."""
        raise EngineError(_ELSEWHERE)

    def __repr__(self) -> str:
        return f"julia_function({self.text!r})"

    def source(self, n: int, n_p: int, engine: str) -> JuliaSource:
        """The function over ``n`` states and ``n_p`` parameters, as an engine takes it."""
        if engine != "julia":
            raise EngineError(f"{_ELSEWHERE[:-1]}, not on engine={engine!r}.")
        return self._sources.setdefault((n, n_p), JuliaSource(self.text, n, n_p))


_ELSEWHERE = (
    "A julia_function runs in Julia: solve with engine='julia' ('python -m pysciml setup' "
    "installs it)."
)


class JuliaSource:
    """The text as :class:`pysciml.engines.base.Functions`: all derivatives are made in Julia."""

    kernels: Any | None = None
    names: tuple[str, ...] = ("u", "p", "t", "c")
    closures_p: tuple[Tensor, ...] = ()
    differentiable = True
    opaque = False

    def __init__(self, text: str, n: int, n_p: int) -> None:
        self.text, self.n_out = text, n
        self.sizes: dict[str, int] = {"u": n, "p": n_p, "t": 1, "c": 0}

    @property
    def shared(self) -> JuliaSource:
        return self

    def data(self) -> Tensor:
        return torch.empty(0, dtype=torch.float64)

    def ok(self) -> bool:
        return True

    def sparsity(self, wrt: str) -> None:
        return None

    def bind(self, role: str, p: Array, c: Array) -> Callable[..., None]:
        raise EngineError(_ELSEWHERE)

    def bind_batched(
        self, role: str, p: Array, c: Array, reduce: bool = False
    ) -> Callable[..., Any]:
        raise EngineError(_ELSEWHERE)
