"""Between the user's pytrees of tensors and the flat vectors that engines see."""

from __future__ import annotations

import functools
import numbers
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.utils import _pytree as pytree

from pysciml.errors import InputError

__all__ = ["ParameterSpec", "StateSpec", "state_spec", "to_numpy"]

_set_grad_enabled: Any = torch._C._set_grad_enabled
FLOATS = (torch.float64, torch.float32)


def to_numpy(x: Tensor) -> npt.NDArray[np.float64]:
    """A tensor as a float64 array of its own."""
    if x.dtype is torch.float64 and x.device.type == "cpu":
        own: npt.NDArray[np.float64] = x.detach().numpy().copy()
        return own
    return np.array(x.detach().to("cpu", torch.float64).numpy(), dtype=np.float64)


@functools.lru_cache(maxsize=256)
def constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A 0-d tensor that nobody writes to, so that equal ones are one."""
    return torch.tensor(value, dtype=dtype, device=device)


def joined(leaves: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The leaves' values as one vector of its own, each row-major, without gradients."""
    if not leaves:
        return torch.empty(0, dtype=dtype, device=device)
    before = torch.is_grad_enabled()
    _set_grad_enabled(False)  # torch.no_grad() costs as much as the rest
    try:
        if any(x.dtype is not dtype or x.device != device for x in leaves):
            leaves = [x.to(device, dtype) for x in leaves]
        if len(leaves) == 1:
            return leaves[0].reshape(-1).clone()
        flat: Tensor = _flatten_dense_tensors(leaves)  # one call, not one for each
        return flat
    finally:
        _set_grad_enabled(before)


def parted(
    flat: npt.NDArray[Any] | Tensor, leaves: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """A vector's parts as tensors like the leaves (shape, dtype, device), None where unwanted."""
    if not any(wanted):
        return [None] * len(leaves)
    if isinstance(flat, np.ndarray):
        flat = torch.from_numpy(flat)
    every = _unflatten_dense_tensors(flat, leaves)
    return [
        None
        if not want
        else part
        if part.dtype is leaf.dtype and part.device == leaf.device
        else part.to(leaf.device, leaf.dtype)
        for part, leaf, want in zip(every, leaves, wanted, strict=True)
    ]


def is_real(x: Tensor) -> bool:
    """Whether a tensor holds real numbers."""
    return not (x.is_meta or x.dtype.is_complex or x.dtype == torch.bool)


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

    def __hash__(self) -> int:
        return hash(self.key)  # torch's own tree structures have no hash before torch 2.7

    def __deepcopy__(self, memo: Any) -> StateSpec:
        return self  # it never changes

    def __reduce__(self) -> tuple[Any, ...]:
        # torch's own pickles of tree structures warn of themselves: as a tree of numbers instead
        skeleton = pytree.tree_unflatten(list(range(len(self.shapes))), self.treedef)
        return _restored_spec, (skeleton, self.shapes, self.dtype, self.device)

    @functools.cached_property
    def size(self) -> int:
        """Length n of the flat vector."""
        return sum(self.sizes)

    @functools.cached_property
    def is_tensor(self) -> bool:
        """Whether the state is one tensor and not a structure of several."""
        return bool(self.treedef.is_leaf())

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """What a cached capture depends on."""
        return (str(self.treedef), self.shapes, self.dtype, self.device)

    def leaves(self, tree: Any) -> list[Tensor]:
        """The tensors of a tree of this structure, in order."""
        return [tree] if self.is_tensor else pytree.tree_leaves(tree)

    def flatten(self, tree: Any) -> Tensor:
        """A tree of this structure as a vector (n,), differentiably."""
        if self.is_tensor:
            return tree.reshape(-1)
        leaves = pytree.tree_leaves(tree)
        return torch.cat([leaf.reshape(-1) for leaf in leaves]) if leaves else tree

    def unflatten(self, flat: Tensor) -> Any:
        """A vector (..., n) as the tree, each leaf of shape (..., *leaf), as views."""
        if self.is_tensor:
            shape = self.shapes[0]
            return flat if len(shape) == 1 else flat.reshape(flat.shape[:-1] + shape)
        lead = flat.shape[:-1]
        parts = flat.split(list(self.sizes), dim=-1)
        leaves = [x.reshape(lead + s) for x, s in zip(parts, self.shapes, strict=True)]
        return pytree.tree_unflatten(leaves, self.treedef)

    def in_order(self, tree: Any) -> Any:
        """``tree`` with the entries of its dicts in the state's order, where they are the same."""
        if self.is_tensor:
            return tree
        skeleton = pytree.tree_unflatten(list(range(len(self.shapes))), self.treedef)
        return _in_order(tree, skeleton)

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
        tree = self.in_order(tree)
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


_LEAF = pytree.tree_structure(0)


def _with_paths(tree: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """``tree_flatten_with_path``, which takes its time over a single leaf."""
    if isinstance(tree, (Tensor, nn.Module)):
        return [((), tree)], _LEAF
    return pytree.tree_flatten_with_path(tree)


def _in_order(tree: Any, like: Any) -> Any:
    if type(tree) is not type(like):
        return tree
    if type(tree) in (dict, OrderedDict) and tree.keys() == like.keys():
        return type(tree)((key, _in_order(tree[key], like[key])) for key in like)
    if type(tree) in (list, tuple) and len(tree) == len(like):
        return type(tree)(_in_order(a, b) for a, b in zip(tree, like, strict=True))
    return tree


def _restored_spec(tree: Any, shapes: Any, dtype: torch.dtype, device: Any) -> StateSpec:
    return StateSpec(pytree.tree_structure(tree), shapes, dtype, device)


def _restored_params(
    tree: Any, slots: Any, static: Any, dtype: torch.dtype, device: Any
) -> ParameterSpec:
    return ParameterSpec(pytree.tree_structure(tree), slots, static, dtype, device)


def _is_number(x: Any) -> bool:
    """A real number that is a parameter, not a setting: floats, not integers or flags."""
    return isinstance(x, numbers.Real) and not isinstance(x, (bool, int))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(tree: Any) -> str:
    return str(pytree.tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else x, tree))


def state_spec(u0: Any, name: str = "u0") -> StateSpec:
    """The :class:`StateSpec` of a state. Raises InputError where it cannot be one."""
    paths, treedef = _with_paths(u0)
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
            mend = (
                "give its real and imaginary parts, torch.view_as_real(u), and take "
                "torch.view_as_complex(u) inside f"
                if leaf.dtype.is_complex
                else "convert it with .double() (or .float())"
            )
            raise InputError(
                f"{where} is {_short(leaf.dtype)}, but a state is float64 or float32; {mend}."
            )
        if first is None:
            first = leaf
        elif leaf.dtype != first.dtype or leaf.device != first.device:
            raise InputError(
                f"{where} is {_short(leaf.dtype)} on {leaf.device}, but the leaf before it is "
                f"{_short(first.dtype)} on {first.device}; convert them to one "
                "dtype and one device."
            )
    assert first is not None
    if first.is_meta:
        raise InputError(
            f"{name} is on the device meta, where tensors have no values; give one that has, "
            f"e.g. torch.zeros({tuple(first.shape)})."
        )
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

    def __deepcopy__(self, memo: Any) -> ParameterSpec:
        return self  # where its static leaves are copied too, ``leaves`` sees that they are others

    def __reduce__(self) -> tuple[Any, ...]:
        skeleton = pytree.tree_unflatten(list(range(len(self.slots))), self.treedef)
        return _restored_params, (skeleton, self.slots, self.static, self.dtype, self.device)

    @functools.cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    @property
    def is_none(self) -> bool:
        """Whether the problem was given no p."""
        return self.static == (None,) and self.treedef.is_leaf()

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """What a cached capture depends on."""
        static = tuple(
            # with its type, because True == 1
            (type(s), s) if isinstance(s, (str, bool, int, type(None))) else id(s)
            for s in self.static
        )
        return (static, *self.layout)

    @functools.cached_property
    def layout(self) -> tuple[Any, ...]:
        """The same without the static leaves."""
        return (str(self.treedef), self.slots, self.dtype, self.device)

    @property
    def kind(self) -> str:
        """What p is, by the name of its type, where it is neither a tensor nor a number."""
        if not self.treedef.is_leaf():
            return str(self.treedef.type.__name__)
        return type(self.static[0]).__name__ if self.static else ""

    def unflatten(self, flat: Tensor) -> Any:
        """The vector (n_p,) as the user's p, tensors as views."""
        parts = iter(flat.split(list(self.sizes)) if self.sizes else ())
        static = iter(self.static)
        leaves = [next(static) if s is None else next(parts).reshape(s) for s in self.slots]
        return pytree.tree_unflatten(leaves, self.treedef)

    @functools.cached_property
    def _keys(self) -> tuple[Any, ...] | None:
        """The keys, where the structure is a dict of leaves."""
        if self.treedef.type is dict and self.treedef.num_nodes == len(self.slots) + 1:
            return tuple(self.treedef.context)
        return None

    def leaves(self, p: Any) -> list[Tensor] | None:
        """The tensors of ``p`` that go to the vector, in order; None where p is not of this spec.

        Numbers become tensors of their own.
        """
        if type(p) is dict and self._keys is not None:
            if tuple(p) != self._keys:
                return None
            values = list(p.values())
        elif self.treedef.is_leaf() and isinstance(p, (Tensor, nn.Module, type(None))):
            values = [p]
        else:
            values, treedef = pytree.tree_flatten(p)
            if treedef != self.treedef:
                return None
        static = iter(self.static)
        leaves = []
        for value, slot in zip(values, self.slots, strict=True):
            if slot is None:
                kept = next(static)
                simple = isinstance(value, (str, bool, int)) and type(value) is type(kept)
                if value is not kept and not (simple and value == kept):
                    return None
            elif isinstance(value, Tensor):
                fits = value.shape == slot and value.dtype is self.dtype
                if not fits or value.device != self.device:
                    return None
                leaves.append(value)
            elif _is_number(value) and slot == ():
                leaves.append(torch.tensor(float(value), dtype=self.dtype, device=self.device))
            else:
                return None
        return leaves

    @staticmethod
    def of(p: Any, dtype: torch.dtype, device: torch.device) -> tuple[ParameterSpec, list[Tensor]]:
        """The spec of ``p`` and the tensors that go to its vector, in order.

        Raises InputError for a tensor of another dtype or device than the state's.
        """
        paths, treedef = _with_paths(p)
        slots: list[tuple[int, ...] | None] = []
        static: list[Any] = []
        leaves: list[Tensor] = []
        for path, leaf in paths:
            if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point:
                where = _where(path, "p")
                if leaf.layout != torch.strided:
                    raise InputError(
                        f"{where} is a sparse tensor, but p is made of dense ones; give "
                        f"{where}.to_dense(), or let f close over it."
                    )
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
                leaves.append(leaf)
            elif isinstance(leaf, Tensor) and leaf.dtype.is_complex:
                raise InputError(
                    f"{_where(path, 'p')} is complex, but p is made of real tensors; split it "
                    "into real and imaginary parts, e.g. with torch.view_as_real."
                )
            elif _is_number(leaf):
                slots.append(())
                leaves.append(torch.tensor(float(leaf), dtype=dtype, device=device))
            else:
                slots.append(None)
                static.append(leaf)
        return ParameterSpec(treedef, tuple(slots), tuple(static), dtype, device), leaves

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return tuple(s for s in self.static if isinstance(s, nn.Module))
