"""Between the user's pytrees of tensors and the flat vectors that engines see."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pysciml.errors import InputError

__all__ = ["ParameterSpec", "StateSpec", "state_spec", "to_numpy"]

FLOATS = (torch.float64, torch.float32)


def to_numpy(x: Tensor) -> npt.NDArray[np.float64]:
    """A tensor as a float64 array of its own."""
    return np.array(x.detach().to("cpu", torch.float64).numpy(), dtype=np.float64)


def _where(path: Any, name: str) -> str:
    return name + pytree.keystr(path)


@dataclass(frozen=True)
class StateSpec:
    """The structure of a state: how a pytree of tensors becomes one vector, and back.

    Leaves follow each other in the pytree's own order, each row-major.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    device: torch.device
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        sizes = tuple(int(torch.Size(s).numel()) for s in self.shapes)
        object.__setattr__(self, "sizes", sizes)

    @property
    def size(self) -> int:
        """Length n of the flat vector."""
        return sum(self.sizes)

    @property
    def is_tensor(self) -> bool:
        """Whether the state is one tensor and not a structure of several."""
        return self.treedef.is_leaf()

    def flatten(self, tree: Any) -> Tensor:
        """A tree of this structure as a vector (n,), differentiably."""
        if self.is_tensor:
            return tree.reshape(-1)
        leaves = pytree.tree_leaves(tree)
        return torch.cat([leaf.reshape(-1) for leaf in leaves]) if leaves else tree

    def unflatten(self, flat: Tensor) -> Any:
        """A vector (..., n) as the tree, each leaf of shape (..., *leaf), as views."""
        lead = flat.shape[:-1]
        if self.is_tensor:
            return flat.reshape(lead + self.shapes[0])
        parts = flat.split(list(self.sizes), dim=-1)
        leaves = [x.reshape(lead + s) for x, s in zip(parts, self.shapes, strict=True)]
        return pytree.tree_unflatten(leaves, self.treedef)

    def flatten_series(self, tree: Any) -> Tensor:
        """A tree whose leaves have one more leading axis (m, *leaf) as a matrix (m, n)."""
        leaves = pytree.tree_leaves(tree)
        return torch.cat([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], dim=-1)

    def flatten_like(
        self, tree: Any, name: str, expected: str = "u0", verb: str = "returned"
    ) -> Tensor:
        """Flatten what a user's function returned, or raise InputError where it does not fit.

        ``name`` and ``verb`` begin the message: "f returned ...".
        """
        leaves, treedef = pytree.tree_flatten(tree)
        if treedef != self.treedef:
            raise InputError(
                f"{name} {verb} the structure {_describe(tree)}, but {expected} has "
                f"{_describe(self.unflatten(torch.empty(self.size)))}; "
                f"give a value built like {expected}."
            )
        for i, (leaf, shape) in enumerate(zip(leaves, self.shapes, strict=True)):
            which = "" if self.is_tensor else f" (leaf {i})"
            if not isinstance(leaf, Tensor):
                raise InputError(
                    f"{name} {verb} a {type(leaf).__name__}{which} where a tensor of shape "
                    f"{shape} was expected; build it with torch, e.g. torch.stack([...])."
                )
            if tuple(leaf.shape) != shape:
                raise InputError(
                    f"{name} {verb} shape {tuple(leaf.shape)}{which}, but {expected} has shape "
                    f"{shape}; give one value for each entry of {expected}."
                )
            if leaf.dtype != self.dtype:
                raise InputError(
                    f"{name} {verb} {_short(leaf.dtype)}{which}, but {expected} is "
                    f"{_short(self.dtype)}; convert the model or {expected} so that both agree, "
                    f"e.g. model.to({self.dtype}) or u0.to({leaf.dtype})."
                )
            if leaf.device != self.device:
                raise InputError(
                    f"{name} {verb} a tensor on {leaf.device}{which}, but {expected} is on "
                    f"{self.device}; move the model or {expected} so that both are together."
                )
        return self.flatten(tree)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(tree: Any) -> str:
    return str(pytree.tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else x, tree))


def state_spec(u0: Any, name: str = "u0") -> StateSpec:
    """The :class:`StateSpec` of a state. Raises InputError where it cannot be one."""
    paths, treedef = pytree.tree_flatten_with_path(u0)
    if not paths:
        raise InputError(f"{name} holds no tensor; give a tensor or a structure of tensors.")
    first: Tensor | None = None
    for path, leaf in paths:
        where = _where(path, name)
        if not isinstance(leaf, Tensor):
            raise InputError(
                f"{where} is a {type(leaf).__name__}, but a state is made of torch tensors; "
                f"give torch.tensor(...) of dtype float64 or float32."
            )
        if leaf.dtype not in FLOATS:
            raise InputError(
                f"{where} is {_short(leaf.dtype)}, but a state is float64 or float32; "
                f"convert it with .double() (or .float())."
            )
        if first is None:
            first = leaf
        elif leaf.dtype != first.dtype or leaf.device != first.device:
            raise InputError(
                f"{where} is {_short(leaf.dtype)} on {leaf.device}, but the leaf before it is "
                f"{_short(first.dtype)} on {first.device}; a state has one dtype and one device."
            )
    assert first is not None
    shapes = tuple(tuple(leaf.shape) for _, leaf in paths)
    spec = StateSpec(treedef, shapes, first.dtype, first.device)
    if spec.size == 0:
        raise InputError(f"{name} has no entries (shape {shapes[0]}); give at least one.")
    return spec


@dataclass(frozen=True)
class ParameterSpec:
    """The structure of p: real tensors and numbers go to the vector, all else stays as it is.

    ``slots`` has one entry a leaf: a shape for what is in the vector, or None for what is
    static (modules, strings, booleans, integers, integer tensors), kept in ``static``.
    """

    treedef: Any
    slots: tuple[tuple[int, ...] | None, ...]
    static: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        sizes = tuple(int(torch.Size(s).numel()) for s in self.slots if s is not None)
        object.__setattr__(self, "sizes", sizes)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    @property
    def is_none(self) -> bool:
        """Whether the problem was given no p."""
        return self.static == (None,) and self.treedef.is_leaf()

    def key(self) -> tuple[Any, ...]:
        """What a cached capture depends on."""
        static = tuple(
            # with its type, because True == 1
            (type(s), s) if isinstance(s, (str, bool, int, type(None))) else id(s)
            for s in self.static
        )
        return (str(self.treedef), self.slots, static, self.dtype, self.device)

    def unflatten(self, flat: Tensor) -> Any:
        """The vector (n_p,) as the user's p, tensors as views."""
        parts = iter(flat.split(list(self.sizes)) if self.sizes else ())
        static = iter(self.static)
        leaves = [next(static) if s is None else next(parts).reshape(s) for s in self.slots]
        return pytree.tree_unflatten(leaves, self.treedef)

    @staticmethod
    def flatten(p: Any, dtype: torch.dtype, device: torch.device) -> tuple[ParameterSpec, Tensor]:
        """The spec of ``p`` and its vector (n_p,), differentiable in p's tensors.

        Raises InputError for a tensor of another dtype or device than the state's.
        """
        paths, treedef = pytree.tree_flatten_with_path(p)
        slots: list[tuple[int, ...] | None] = []
        static: list[Any] = []
        parts: list[Tensor] = []
        for path, leaf in paths:
            if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point:
                where = _where(path, "p")
                if leaf.dtype != dtype:
                    raise InputError(
                        f"{where} is {_short(leaf.dtype)}, but u0 is {_short(dtype)}; "
                        f"convert one of them, e.g. p.to({dtype})."
                    )
                if leaf.device != device:
                    raise InputError(
                        f"{where} is on {leaf.device}, but u0 is on {device}; "
                        f"move one of them, e.g. p.to({str(device)!r})."
                    )
                slots.append(tuple(leaf.shape))
                parts.append(leaf.reshape(-1))
            elif isinstance(leaf, Tensor) and leaf.dtype.is_complex:
                raise InputError(
                    f"{_where(path, 'p')} is complex; split it into real and imaginary parts."
                )
            elif isinstance(leaf, numbers.Real) and not isinstance(leaf, (bool, int)):
                slots.append(())
                parts.append(torch.tensor([float(leaf)], dtype=dtype, device=device))
            else:
                slots.append(None)
                static.append(leaf)
        flat = torch.cat(parts) if parts else torch.empty(0, dtype=dtype, device=device)
        return ParameterSpec(treedef, tuple(slots), tuple(static), dtype, device), flat

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return tuple(s for s in self.static if isinstance(s, nn.Module))
