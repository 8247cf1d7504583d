"""A torchdiffeq state (a tensor or a tuple of them) and function, in the forms solvers take."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pysciml.errors import InputError

__all__ = ["StateForm", "check_times", "state_form"]


def check_times(t: Any) -> None:
    """Raise InputError unless ``t`` is a 1-d float tensor in strict order, either way."""
    if not isinstance(t, Tensor):
        raise InputError(f"t is a {type(t).__name__}; give a 1-d tensor of times.")
    if not t.is_floating_point():
        raise InputError(f"t is a tensor of {t.dtype}; give floating-point times.")
    if t.ndim != 1 or not t.numel():
        raise InputError(f"t has shape {tuple(t.shape)}; give a 1-d tensor of times.")
    steps = t.detach().diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise InputError("t must be strictly increasing or strictly decreasing; sort its times.")


def state_form(y0: Any) -> StateForm:
    """The form of ``y0``: one object for all states alike, so that kernels are found again.

    Raises InputError for what is no tensor and no tuple of tensors.
    """
    is_tuple = not isinstance(y0, Tensor)
    if is_tuple and not (
        isinstance(y0, (tuple, list)) and y0 and all(isinstance(x, Tensor) for x in y0)
    ):
        raise InputError(f"y0 is {type(y0).__name__}; give a tensor or a non-empty tuple of them.")
    leaves = tuple(y0) if is_tuple else (y0,)
    dtype = leaves[0].dtype
    for x in leaves[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return _form(is_tuple, tuple(x.shape for x in leaves), dtype, leaves[0].device)


@lru_cache(maxsize=256)
def _form(
    is_tuple: bool, shapes: tuple[torch.Size, ...], dtype: torch.dtype, device: torch.device
) -> StateForm:
    return StateForm(is_tuple, shapes, dtype, device)


class StateForm:
    """What a state looks like: tuple or not, shapes, dtype; and the ways between the forms.

    *user*: as the user's function sees it. *real*: a tensor, or tuple of them, without complex
    numbers (real and imaginary parts on a last axis), for the engines. *flat*: one vector, or the
    tensor itself where the state is one, for the fixed-grid loop.
    """

    def __init__(
        self,
        is_tuple: bool,
        shapes: tuple[torch.Size, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.is_tuple, self.shapes, self.dtype, self.device = is_tuple, shapes, dtype, device
        self.complex = dtype.is_complex

    # ---- states

    def flat(self, y: Any) -> Tensor:
        if not self.is_tuple:
            return y
        return torch.cat([x.reshape(-1).to(self.dtype) for x in y])

    def from_flat(self, flat: Tensor, lead: int = 0) -> Any:
        """From (..., n) with ``lead`` leading axes to the user's form."""
        if not self.is_tuple:
            return flat
        parts = flat.split([s.numel() for s in self.shapes], dim=-1)
        return tuple(
            x.reshape((*flat.shape[:lead], *s)) for x, s in zip(parts, self.shapes, strict=True)
        )

    def real(self, y: Any) -> Any:
        def one(x: Tensor) -> Tensor:
            x = x.to(self.dtype)
            return torch.view_as_real(x.resolve_conj()) if self.complex else x

        return tuple(one(x) for x in y) if self.is_tuple else one(y)

    def from_real(self, y: Any) -> Any:
        if not self.complex:
            return y
        if self.is_tuple:
            return tuple(torch.view_as_complex(x.contiguous()) for x in y)
        return torch.view_as_complex(y.contiguous())

    # ---- values of the user's function

    def value(self, du: Any) -> Any:
        """What f returned, in the state's own shapes and dtype, where it can be brought there."""
        if not self.is_tuple:
            return self._like(du, self.shapes[0])
        if not isinstance(du, (tuple, list)) or len(du) != len(self.shapes):
            what = f"{len(du)} values" if isinstance(du, (tuple, list)) else type(du).__name__
            raise InputError(
                f"func returned {what}, but y0 is a tuple of {len(self.shapes)}; return a tuple "
                "of one derivative for each."
            )
        return tuple(self._like(x, s) for x, s in zip(du, self.shapes, strict=True))

    def _like(self, x: Any, shape: torch.Size) -> Tensor:
        if not isinstance(x, Tensor):
            raise InputError(
                f"func returned a {type(x).__name__} where a tensor of shape {tuple(shape)} was "
                "expected; compute the derivative with torch."
            )
        if x.shape != shape:
            if self.is_tuple and x.numel() == shape.numel():
                x = x.reshape(shape)
            else:
                try:
                    x = x.expand(shape)
                except RuntimeError:
                    raise InputError(
                        f"func returned shape {tuple(x.shape)}, but the state has shape "
                        f"{tuple(shape)}; return one derivative for each entry."
                    ) from None
        return x.to(self.dtype)

    # ---- functions

    def real_rhs(self, func: Callable[..., Any]) -> Callable[[Any, Any, Tensor], Any]:
        """``func(t, y)`` as f(u, p, t) of the real form."""
        form = self

        def f(u: Any, p: Any, t: Tensor) -> Any:
            return form.real(form.value(func(t, form.from_real(u))))

        return f

    def flat_rhs(self, func: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """``func(t, y)`` on flat states."""

        def f(t: Tensor, y: Tensor) -> Tensor:
            return self.flat(self.value(func(t, self.from_flat(y))))

        return f
