"""Vector fields: how a module's function is called, and what it must not hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pysciml.errors import InputError

__all__ = ["Field", "Integrals", "check_field", "require_dtype", "require_tensor", "takes_time"]

_RANDOM = (nn.modules.dropout._DropoutNd,)
_RUNNING = (nn.modules.batchnorm._BatchNorm,)


def takes_time(field: Callable[..., Any], name: str = "vector_field") -> bool:
    """Whether a vector field is ``f(u, t)`` and not ``f(u)``, from its signature.

    Raises InputError for what cannot be called either way.
    """
    if not callable(field):
        raise InputError(
            f"{name} is a {type(field).__name__}; give an nn.Module or a function f(u) or f(u, t)."
        )
    call = field.forward if isinstance(field, nn.Module) else field
    try:
        signature = inspect.signature(call)
    except ValueError:  # a builtin such as torch.tanh
        return False
    for count in (1, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        needed = [
            p for p in signature.parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
        # f(u, t=0.0) depends on time too
        return count == 2 or (len(needed) == 2 and needed[1].name in ("t", "time"))
    raise InputError(
        f"{name} takes {signature}; write it as f(u), or as f(u, t) where it depends on time."
    )


def require_tensor(x: Any, name: str, shape: str, axes: int = 1) -> None:
    """Raise InputError for what is no tensor of ``axes`` axes or more; ``shape`` says which."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name} is a {type(x).__name__}; give a tensor of shape {shape}.")
    if x.ndim < axes:
        raise InputError(f"{name} has shape {tuple(x.shape)}; give {shape}.")


def require_dtype(x: Tensor, name: str, start: Tensor, start_name: str = "u0") -> None:
    """Raise InputError where what ``name`` gave is of another dtype than the state."""
    if x.dtype != start.dtype:
        raise InputError(
            f"{name} gave {str(x.dtype)[6:]}, but {start_name} is {str(start.dtype)[6:]}; convert "
            "one of them."
        )


class Field:
    """A vector field as ``f(u, p, t)``; subclasses write their equation in ``__call__``.

    A small object of its own, made once a module: kernels are found again by it, and watch what it
    reaches, which must not include what a module changes at each call.
    """

    def __init__(self, vector_field: Callable[..., Any], timed: bool) -> None:
        self.vector_field, self.timed = vector_field, timed

    def value(self, u: Any, t: Tensor) -> Any:
        """What the user's function gives."""
        return self.vector_field(u, t) if self.timed else self.vector_field(u)

    def __call__(self, u: Any, p: Any, t: Tensor) -> Any:
        return self.value(u, t)


class Integrals:
    """A field with integrals beside it, one column each: of |f|^2, |e^T J|^2, trace J, or e^T J e.

    States are (batch, d + k), or (d + k,) for one sample: a sample's entries, then its integrals.

    Parameters
    ----------
    field : Field
    kinds : tuple of "kinetic", "jacobian", "trace", "estimate"
        What is integrated, in the order of the columns.
    shape : tuple of int
        The state's own shape; its first axis is the batch where there are two or more.
    """

    def __init__(self, field: Field, kinds: tuple[str, ...], shape: tuple[int, ...]) -> None:
        self.field, self.kinds, self.shape = field, kinds, shape

    def __call__(self, full: Tensor, p: tuple[Any, Any], t: Tensor) -> Tensor:
        """``p``: the field's own, and the vectors e like the state; ``()`` where there is none."""
        own, noise = p
        return self.beside(full, lambda x: self.field(x, own, t), self.state(full), noise)

    def state(self, full: Tensor) -> Tensor:
        """The field's own state."""
        rows = full.reshape(self.shape[0] if len(self.shape) > 1 else 1, -1)
        return rows[:, : rows.shape[1] - len(self.kinds)].reshape(self.shape)

    def beside(self, full: Tensor, f: Callable[[Tensor], Any], x: Tensor, noise: Any) -> Tensor:
        """``f(x)``, the rates of the state, and those of the integrals; J is that of f by x."""
        batch = self.shape[0] if len(self.shape) > 1 else 1
        if self.kinds == ("kinetic",):
            value, pull = f(x), _no_pull
        else:
            value, pull = torch.func.vjp(f, x)[:2]
        if not isinstance(value, Tensor) or value.shape != self.shape:
            given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
            raise InputError(
                f"f returned {given}, but u0 has shape {self.shape}; give one value for each "
                "entry of u0."
            )
        columns = [value.reshape(batch, -1)]
        for kind in self.kinds:
            if kind == "kinetic":
                column = columns[0].square().sum(1)
            elif kind == "trace":
                column = _trace(pull, x, batch)
            else:
                assert isinstance(noise, Tensor)
                row = pull(noise)[0].reshape(batch, -1)
                other = row if kind == "jacobian" else noise.reshape(batch, -1)
                column = (row * other).sum(1)
            columns.append(column[:, None])
        return torch.cat(columns, dim=1).reshape(full.shape)


def _no_pull(cotangent: Tensor) -> tuple[Tensor, ...]:
    raise AssertionError("no product was asked for")


def _trace(pull: Callable[..., Any], u: Tensor, batch: int) -> Tensor:
    """The trace of each sample's own Jacobian, (batch,), one product for each entry of it."""
    size = u.numel() // batch
    total = u.new_zeros(batch)
    for i in range(size):
        unit = torch.zeros(size, dtype=u.dtype, device=u.device)
        unit[i] = 1.0
        (row,) = pull(unit.expand(batch, size).reshape(u.shape))
        total = total + row.reshape(batch, size)[:, i]
    return total


def check_field(field: Any, name: str = "vector_field") -> None:
    """Raise InputError for layers that give another value at each call, or change at each."""
    if not isinstance(field, nn.Module):
        return
    for where, layer in field.named_modules():
        if not layer.training:
            continue
        if isinstance(layer, _RANDOM) and layer.p > 0:
            raise InputError(
                f"{name} has {type(layer).__name__} in training mode ({where or 'itself'}): "
                "it would draw new random numbers at every evaluation, and no solver converges on "
                "that. Call .eval() on it, leave it out, or put dropout before or after the solve."
            )
        if isinstance(layer, _RUNNING):
            raise InputError(
                f"{name} has {type(layer).__name__} in training mode ({where or 'itself'}): "
                "its statistics would change at every evaluation, and couple the samples of a "
                "batch. Call .eval() on it, or use LayerNorm or GroupNorm."
            )
