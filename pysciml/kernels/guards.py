"""Guards: whether what a trace read on the Python side is still what it was.

A trace freezes everything that is not a tensor operation: numbers in closures and attributes,
which function a name stands for, ``module.training``. :class:`Guards` walks what a function can
reach, notes each such thing, and later compares in microseconds.

Only names that the reachable code mentions are followed, so that an object may carry state that
the function never reads (an optimiser, a history).
"""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pysciml.kernels.reasons import CaptureError

#: Packages whose functions, classes and modules are taken as constants.
_LIBRARIES = frozenset({"torch", "numpy", "scipy", "math", "functorch", "optree", "einops"}) | (
    sys.stdlib_module_names
)
_SCALARS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), range, slice)
_CONSTANT_TYPES = (
    *_SCALARS,
    torch.dtype,
    torch.device,
    torch.Size,
    torch.layout,
    torch.memory_format,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    np.dtype,
    np.generic,
    np.ufunc,
)
_MODULE_STATE = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_DYNAMIC = frozenset({"getattr", "vars", "__dict__", "hasattr", "eval", "exec"})
_MAX_OBJECTS = 20_000
_MAX_ARRAY = 4096
_MISSING = object()


def _library(name: str | None) -> bool:
    return name is not None and name.partition(".")[0] in _LIBRARIES


class Guards:
    """What ``fn`` can reach, noted so that a change is seen.

    Attributes:
        opaque: whether something reachable cannot be guarded; the caller then compares values.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.opaque = False
        # (mapping or sequence, key, object): still the same object, or an equal number
        self._items: list[tuple[Any, Any, Any]] = []
        self._lengths: list[tuple[Any, int]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._constants: list[tuple[Tensor, int]] = []
        self._closures: list[tuple[Tensor, bool, torch.dtype, torch.Size]] = []
        self._sets: list[tuple[Any, frozenset[Any]]] = []
        self._tensors: dict[int, Tensor] = {}
        self._seen: dict[int, Any] = {}
        self._names: set[str] = set()
        self._todo: list[Any] = [fn]
        self._partial: list[Any] = []  # objects of which only mentioned attributes are followed
        self._followed: set[tuple[int, str]] = set()
        self._walk()
        # what the walk held on to is not needed any more
        self._seen.clear()
        self._partial.clear()

    # ---- asking

    def ok(self) -> bool:
        """Whether everything noted is unchanged."""
        for owner, key, value in self._items:
            try:
                now = owner[key]
            except (KeyError, IndexError):
                return False
            if now is not value and not _equal(now, value):
                return False
        for cell, value in self._cells:
            now = _content(cell)
            if now is not value and not _equal(now, value):
                return False
        return (
            all(t._version == v for t, v in self._constants)
            and all(len(x) == n for x, n in self._lengths)
            and all(
                t.requires_grad is g and t.dtype is d and t.shape == s
                for t, g, d, s in self._closures
            )
            and all(
                f.__code__ is c and f.__defaults__ is d and f.__kwdefaults__ is k
                for f, c, d, k in self._functions
            )
            and all(x == v for x, v in self._sets)
            and all(a.shape == b.shape and (a == b).all() for a, b in self._arrays)
        )

    # ---- telling

    def watch_closures(self, *groups: Sequence[Tensor]) -> None:
        """Tensors lifted to inputs: their values may change, not what they are."""
        for group in groups:
            self._closures += [(t, t.requires_grad, t.dtype, t.shape) for t in group]
        lifted = {id(t) for group in groups for t in group}
        for tensor in self._tensors.values():
            # not an input of the graph: if it matters, its value was read in Python
            if id(tensor) not in lifted and tensor.is_floating_point():
                self.watch_constant(tensor)

    def watch_values(self) -> None:
        """Every reachable tensor without gradient: a value was read out of some of them."""
        for tensor in self._tensors.values():
            if not tensor.requires_grad:
                self.watch_constant(tensor)

    def watch_constant(self, tensor: Tensor) -> None:
        """A tensor whose value the trace holds (an index table, a mask)."""
        self._constants.append((tensor, tensor._version))

    def forget_changed(self) -> None:
        """Drop what the function itself changed since the walk, such as a counter of its calls.

        Its calls saw several values of it and gave results that the check found consistent.
        """
        self._items = [(o, k, v) for o, k, v in self._items if _same(_get(o, k), v)]
        self._cells = [(c, v) for c, v in self._cells if _same(_content(c), v)]
        self._lengths = [(x, n) for x, n in self._lengths if len(x) == n]

    @contextlib.contextmanager
    def unchanged_tensors(self) -> Iterator[None]:
        """Put reachable tensors back to their values, and raise if the function wrote to one."""
        from_before = [
            (t, t.detach().clone())
            for t in self._tensors.values()
            if not t.requires_grad and t.numel() <= 1_000_000 and t.layout == torch.strided
        ]
        try:
            yield
        finally:
            written = False
            for tensor, value in from_before:
                # by value: batch normalisation writes without counting a version
                if not _equal_tensors(tensor, value):
                    written = True
                    with torch.no_grad():
                        tensor.copy_(value)
        if written:
            raise CaptureError(
                "the function writes to a tensor that lives outside it",
                "return new tensors; call eval() on modules with running statistics",
            )

    # ---- walking

    def _walk(self) -> None:
        while self._todo:
            while self._todo:
                if len(self._seen) > _MAX_OBJECTS:
                    self.opaque = True
                    self._todo.clear()
                    return
                value = self._todo.pop()
                if isinstance(value, _CONSTANT_TYPES) or id(value) in self._seen:
                    continue
                self._seen[id(value)] = value
                self._visit(value)
            # names met meanwhile may be attributes of objects met before
            for owner in self._partial:
                self._attributes(owner)

    def _visit(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensors[id(value)] = value
            if not value.is_floating_point():
                self.watch_constant(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._todo += [value.__func__, value.__self__]
        elif isinstance(value, functools.partial):
            self._todo += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, (staticmethod, classmethod)):
            self._todo.append(value.__func__)
        elif isinstance(value, property):
            self._todo += [f for f in (value.fget,) if f is not None]
        elif isinstance(value, functools.cached_property):
            self._todo.append(value.func)
        elif isinstance(value, types.ModuleType):
            if not _library(value.__name__):
                self._partial.append(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, torch.jit.ScriptModule):
            self.opaque = True
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Mapping):
            self._mapping(value)
        elif isinstance(value, (list, tuple)):
            self._sequence(value)
        elif isinstance(value, (set, frozenset)):
            if isinstance(value, set):
                self._sets.append((value, frozenset(value)))
            self._todo += list(value)
        else:
            self._object(value)

    def _item(self, owner: Any, key: Any, value: Any) -> None:
        self._items.append((owner, key, value))
        self._todo.append(value)

    def _function(self, fn: types.FunctionType) -> None:
        inner = getattr(fn, "__wrapped__", None)
        if inner is not None:
            self._todo.append(inner)
        if _library(fn.__module__):
            # a library's wrapper may still close over the user's function (torch.vmap)
            self._todo += [_content(c) for c in fn.__closure__ or () if callable(_content(c))]
            return
        self._functions.append((fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__))
        self._todo += list(fn.__defaults__ or ())
        self._todo += list((fn.__kwdefaults__ or {}).values())
        for cell in fn.__closure__ or ():
            content = _content(cell)
            self._cells.append((cell, content))
            if content is not _MISSING:
                self._todo.append(content)
        self._code(fn.__code__, fn.__globals__)

    def _code(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        loads, mentioned = _names(code)
        self._names |= mentioned
        for name in loads:
            if name in namespace:
                self._item(namespace, name, namespace[name])
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._code(inner, namespace)

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            if not _library(base.__module__) and base.__module__ != "builtins":
                if id(base) in self._seen and base is not cls:
                    continue
                self._seen[id(base)] = base
                self._partial.append(base)

    def _array(self, array: np.ndarray) -> None:
        if array.size > _MAX_ARRAY or array.dtype == object:
            self.opaque = True
        else:
            self._arrays.append((array, array.copy()))

    def _module(self, module: nn.Module) -> None:
        state = module.__dict__
        self._items.append((state, "training", module.training))
        for name in _MODULE_STATE:
            held = state[name]
            self._lengths.append((held, len(held)))
            for key, value in held.items():
                self._item(held, key, value)
        for name in _HOOKS:
            if state.get(name):
                self._mapping(state[name])
        if _library(type(module).__module__):
            skip = ("training", *_MODULE_STATE)
            for key, value in state.items():
                if key not in skip and isinstance(value, (bool, int, float, str, tuple, Tensor)):
                    self._item(state, key, value)
        else:
            self._partial.append(module)
            self._todo.append(type(module))

    def _mapping(self, mapping: Mapping[Any, Any]) -> None:
        self._lengths.append((mapping, len(mapping)))
        for key, value in mapping.items():
            self._item(mapping, key, value)

    def _sequence(self, items: Sequence[Any]) -> None:
        if isinstance(items, list):
            self._lengths.append((items, len(items)))
            for i, value in enumerate(items):
                self._item(items, i, value)
        else:
            self._todo += list(items)

    def _object(self, value: Any) -> None:
        kind = type(value)
        if _library(kind.__module__):
            # a library's object without readable state (a generator, a file, a lock)
            stateless = kind.__module__.startswith(("torch.utils._pytree", "torch._ops", "enum"))
            if not stateless and not callable(value):
                self.opaque = True
            return
        self._todo.append(kind)
        state = getattr(value, "__dict__", None)
        slots = [s for c in kind.__mro__ for s in _slots(c)]
        if state is None and not slots and kind.__module__ != "builtins":
            return
        if state is None and not slots:
            self.opaque = True
            return
        if slots:
            held = _Slots(value)
            for slot in slots:
                if hasattr(value, slot):
                    self._item(held, slot, held[slot])
        if state is not None:
            self._partial.append(value)

    def _attributes(self, owner: Any) -> None:
        state: Mapping[str, Any] = owner.__dict__
        shared = isinstance(owner, (type, types.ModuleType))
        everything = bool(self._names & _DYNAMIC) and not shared
        special = ("__call__", "forward") if isinstance(owner, type) else ()
        for key in list(state) if everything else [*special, *self._names]:
            mark = (id(owner), key)
            if key not in state or mark in self._followed or key in _MODULE_STATE:
                continue
            self._followed.add(mark)
            self._item(state, key, state[key])


class _Slots:
    """An object's slots, read like a mapping."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __getitem__(self, slot: str) -> Any:
        try:
            return getattr(self.owner, slot)
        except AttributeError:
            raise KeyError(slot) from None


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(n for n in names if n not in ("__dict__", "__weakref__"))


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The globals that code loads, and every attribute name it mentions."""
    loads = frozenset(
        i.argval
        for i in dis.get_instructions(code)
        if i.opname in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME")
    )
    return loads, frozenset(code.co_names)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _equal_tensors(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _get(owner: Any, key: Any) -> Any:
    try:
        return owner[key]
    except (KeyError, IndexError):
        return _MISSING


def _equal(now: Any, then: Any) -> bool:
    """Numbers and strings by value (nan equal to itself); tuples of them too; no other object."""
    if type(now) is not type(then):
        return False
    if isinstance(then, tuple):
        return len(now) == len(then) and all(map(_same, now, then))
    return isinstance(then, _SCALARS) and bool(now == then or (now != now and then != then))


def _same(now: Any, then: Any) -> bool:
    return now is then or _equal(now, then)
