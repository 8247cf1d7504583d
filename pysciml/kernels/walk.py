"""What a function can reach on the Python side: closures, globals, attributes, tensors.

A trace freezes everything that is not a tensor operation: numbers in closures and attributes,
which function a name stands for, ``module.training``. A :class:`Walk` visits each such thing once,
in an order that depends on nothing but what it finds. It notes where things are held, so that
:mod:`pysciml.kernels.guards` can see a change later, and writes *tokens*: two functions whose
tokens are equal are the same code over equal Python state, and differ in the values of their
tensors alone, which are met in the same order (:mod:`pysciml.kernels.relift`).

Only names that the reachable code mentions are followed, so that an object may carry state that
the function never reads (an optimiser, a history).
"""

from __future__ import annotations

import enum
import functools
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pysciml.kernels.python_state import (
    MISSING,
    SCALARS,
    Slots,
    content,
    hides_state,
    is_library,
    is_operation,
    names_in,
    slots,
)

__all__ = ["Walk"]


class _Named(NamedTuple):
    field: int


#: One object for each value, so the object itself is the value.
_SINGLE = (
    torch.dtype,
    torch.layout,
    torch.memory_format,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
    np.ufunc,
    type(_Named.field),
)
_MODULE_STATE = ("_parameters", "_buffers", "_modules")
_MODULE_OWN = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: Names by which code reads attributes that it does not mention.
_BY_STRING = frozenset("getattr vars __dict__ hasattr attrgetter methodcaller".split())
_DYNAMIC = _BY_STRING | frozenset(
    "asdict astuple fields replace tree_map tree_map_ tree_flatten tree_leaves".split()
)
_UNSEEN = frozenset({"globals", "locals", "eval", "exec", "__import__", "import_module", "environ"})
_MAX_OBJECTS = 20_000
_MAX_ARRAY = 4096


class Walk:
    """Everything that code can reach from ``roots``.

    Attributes:
        opaque: whether something reachable cannot be seen through; the rest still holds.
        tokens: the state as found. Equal lists mean equal state, tensors' values excepted.
        tensors: every tensor met, in order.
        items: (mapping or sequence, key, object) triples.
        lengths: (container, length) pairs.
        cells: (closure cell, content) pairs.
        functions: (function, code, defaults, keyword defaults).
        arrays: (NumPy array, copy of its values) pairs.
        sets: (set, its members) pairs.
        kept: objects whose ids stand in the tokens; who stores the tokens keeps these alive.
    """

    def __init__(self, *roots: Any) -> None:
        self.opaque = False
        self.tokens: list[Any] = []
        self.tensors: list[Tensor] = []
        self.items: list[tuple[Any, Any, Any]] = []
        self.lengths: list[tuple[Any, int]] = []
        # (instance state, key): an attribute of the class that no attribute of the instance hides
        self.hidden: list[tuple[Mapping[str, Any], str]] = []
        self._from_class: set[tuple[int, str]] = set()
        self.cells: list[tuple[types.CellType, Any]] = []
        self.functions: list[tuple[types.FunctionType, Any, Any, Any]] = []
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self.sets: list[tuple[Any, frozenset[Any]]] = []
        self.kept: list[Any] = []
        self._seen: dict[int, tuple[int, Any]] = {}
        self._names: set[str] = set()
        self._partial: dict[int, tuple[int, Any, set[str]]] = {}
        self._todo: list[Any] = [*roots]
        self._walk()
        # what the walk held on to is not needed any more
        self._seen.clear()
        self._partial.clear()

    def _walk(self) -> None:
        while self._todo:
            while self._todo:
                if len(self._seen) > _MAX_OBJECTS:
                    self.opaque = True
                    self._todo.clear()
                    return
                value = self._todo.pop()
                if self._constant(value):
                    continue
                found = self._seen.get(id(value))
                if found is not None:
                    self.tokens.append(("again", found[0]))
                    continue
                self._seen[id(value)] = (len(self._seen), value)
                self._visit(value)
            # names met meanwhile may be attributes of objects met before
            for index, owner, followed in list(self._partial.values()):
                self._attributes(index, owner, followed)
        if self._names & _UNSEEN:
            self.opaque = True

    # ---- what is noted

    def _same_object(self, kind: str, value: Any, *more: Any) -> None:
        """A token that only this very object has."""
        self.kept.append(value)
        self.tokens.append((kind, id(value), *more))

    def _item(self, owner: Any, key: Any, value: Any) -> None:
        self.items.append((owner, key, value))
        self._todo.append(value)

    def _follow(self, owner: Any) -> None:
        """An object of which only mentioned attributes are followed."""
        if id(owner) not in self._partial:
            self._partial[id(owner)] = (len(self._partial), owner, set())

    # ---- values

    def _constant(self, value: Any) -> bool:
        """Note a value that is what it is, and can be told from its token."""
        kind = type(value)
        if kind in SCALARS:
            # a float by its bits: -0.0 and nan too
            self.tokens.append((kind, value.hex() if kind is float else repr(value)))
        elif isinstance(value, _SINGLE):
            self._same_object("single", value)
        elif isinstance(value, (torch.device, torch.Size, np.dtype)):
            self.tokens.append((kind, str(value)))
        elif isinstance(value, np.generic):
            self.tokens.append((kind, str(value.dtype), value.tobytes()))
            self.opaque |= value.dtype == object
        elif isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
            owner = value.__self__
            if owner is None or isinstance(owner, (types.ModuleType, type)):
                self._same_object("builtin", value)
            else:
                self.tokens.append(("builtin of", value.__name__))
                self._todo.append(owner)
        else:
            return False
        return True

    def _visit(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._several("method", value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            names = tuple(value.keywords)
            self.tokens.append(("partial", len(value.args), names))
            self._todo += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, functools.partialmethod):
            self.tokens.append(("partialmethod", len(value.args), tuple(value.keywords)))
            self._todo += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, (staticmethod, classmethod)):
            self._several(type(value).__name__, value.__func__)
        elif isinstance(value, property):
            self._several("property", value.fget)
        elif isinstance(value, functools.cached_property):
            self._several("cached_property", value.func)
        elif type(value) is slice:
            self._several("slice", value.start, value.stop, value.step)
        elif type(value) is weakref.ref:
            self._several("ref", value())
        elif isinstance(value, types.ModuleType):
            self._same_object("module", value)
            if not is_library(value.__name__):
                self._follow(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, torch.jit.ScriptModule):
            self.opaque = True
        elif isinstance(value, nn.Module):
            self._module(value)
        elif type(value) in (dict, OrderedDict, types.MappingProxyType):
            self._mapping(value)
        elif type(value) in (list, tuple):
            self._sequence(value)
        elif type(value) in (set, frozenset):
            self._set(value)
        else:
            self._object(value)

    def _several(self, kind: str, *values: Any) -> None:
        self.tokens.append((kind, len(values)))
        self._todo += values

    def _tensor(self, x: Tensor) -> None:
        strided = x.layout is torch.strided
        self.tokens.append(
            (
                "tensor", len(self.tensors), type(x), x.dtype, x.device, x.layout, tuple(x.shape),
                x.stride() if strided else None, x.requires_grad, x.is_leaf,
            )
        )  # fmt: skip
        self.tensors.append(x)
        self.kept.append(type(x))
        if x.__dict__:
            self._follow(x)

    def _function(self, fn: types.FunctionType) -> None:
        if is_library(fn.__module__):
            home = sys.modules.get(fn.__module__)
            if not fn.__closure__ or getattr(home, fn.__name__, None) is fn:
                self._same_object("library", fn)
                return
            # a library's wrapper may close over the user's function (torch.vmap)
            self._same_object("wrapper", fn.__code__, len(fn.__closure__))
            self._todo += [content(c) for c in fn.__closure__ if content(c) is not MISSING]
            return
        defaults, keywords = fn.__defaults__ or (), fn.__kwdefaults__ or {}
        contents = [content(c) for c in fn.__closure__ or ()]
        filled = tuple(x is not MISSING for x in contents)
        self._same_object("function", fn.__code__, len(defaults), tuple(keywords), filled)
        self._same_object("namespace", fn.__globals__)
        self.functions.append((fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__))
        self._todo += [*defaults, *keywords.values()]
        for cell, inside in zip(fn.__closure__ or (), contents, strict=True):
            self.cells.append((cell, inside))
            if inside is not MISSING:
                self._todo.append(inside)
        if fn.__dict__:
            if "__wrapped__" in fn.__dict__:
                self._several("wrapped", fn.__dict__["__wrapped__"])
            self._follow(fn)
        self._code(fn.__code__, fn.__globals__)

    def _code(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        loads, imports, mentioned, inner = names_in(code)
        self._names |= mentioned
        for name in loads:
            if name in namespace:
                self.tokens.append(("global", name))
                self._item(namespace, name, namespace[name])
        for name in imports:
            if name in sys.modules:
                self._several("import", sys.modules[name])
        for nested in inner:
            self._code(nested, namespace)

    def _class(self, cls: type) -> None:
        self._same_object("class", cls)
        for base in cls.__mro__:
            if not is_library(base.__module__):
                self._follow(base)
        if not is_library(type(cls).__module__):
            self._todo.append(type(cls))

    def _array(self, array: np.ndarray) -> None:
        if array.size > _MAX_ARRAY or array.dtype == object or type(array) is not np.ndarray:
            self._same_object("array", array)
            self.opaque = True
        else:
            copy = array.copy()
            self.arrays.append((array, copy))
            self.tokens.append(("array", str(array.dtype), array.shape, copy.tobytes()))

    def _module(self, module: nn.Module) -> None:
        state, kind = module.__dict__, type(module)
        self._same_object("nn", kind, module.training)
        self.items.append((state, "training", module.training))
        for name in _MODULE_STATE:
            self._mapping(state[name])
        for name in _HOOKS:
            if state.get(name):
                self._mapping(state[name])
        if is_library(kind.__module__):
            own = [k for k in state if k not in _MODULE_OWN]
            self.tokens.append(("options", tuple(own)))
            for key in own:
                self._item(state, key, state[key])
        else:
            self._follow(module)
            self._todo.append(kind)

    def _mapping(self, mapping: Mapping[Any, Any]) -> None:
        self.tokens.append(("mapping", type(mapping), len(mapping)))
        self.lengths.append((mapping, len(mapping)))
        for key, value in mapping.items():
            if not self._constant(key):
                self._todo.append(key)
            self._item(mapping, key, value)

    def _sequence(self, items: Sequence[Any]) -> None:
        self.tokens.append((type(items), len(items)))
        if isinstance(items, list):
            self.lengths.append((items, len(items)))
            for i, value in enumerate(items):
                self._item(items, i, value)
        else:
            self._todo += items

    def _set(self, members: Any) -> None:
        if isinstance(members, set):
            self.sets.append((members, frozenset(members)))
        if all(type(x) in SCALARS for x in members):
            self.tokens.append((type(members), frozenset((type(x), x) for x in members)))
        else:
            self.opaque = True  # visited in no certain order
            self._todo += members

    def _object(self, value: Any) -> None:
        kind = type(value)
        if kind.__module__.startswith("pysciml.") and is_library(kind.__module__):
            # a problem or an algorithm, held by an object that also has the right-hand side
            self._same_object("own", kind)
            self._follow(value)
            return
        if is_library(kind.__module__):
            # a library's object without readable state (a generator, a file, a lock)
            stateless = kind.__module__.startswith(("torch.utils._pytree", "torch._ops", "enum"))
            self._same_object("object", value)
            if not stateless and (not callable(value) or getattr(value, "__dict__", None)):
                wrapped = getattr(value, "__wrapped__", None)
                self.opaque |= wrapped is None
                if wrapped is not None:  # functools.lru_cache
                    self._todo.append(wrapped)
            return
        if isinstance(value, enum.Enum):
            self._same_object("member", value)
        if isinstance(value, SCALARS):
            self.tokens.append(("value", repr(value)))
        elif isinstance(value, Mapping):
            self._mapping(value)
        elif isinstance(value, (list, tuple)):
            self._sequence(value)
        elif isinstance(value, (set, frozenset)):
            self._set(value)
        elif any(hides_state(base) for base in kind.__mro__):
            self.opaque = True
        state = getattr(value, "__dict__", None)
        names = [s for c in kind.__mro__ for s in slots(c)]
        if state is None and not names and not any("__slots__" in vars(c) for c in kind.__mro__):
            self.opaque = True  # an extension type
        held = Slots(value)
        present = [s for s in names if hasattr(value, s)]
        self._same_object("instance", kind, tuple(present))
        self._todo.append(kind)
        for slot in present:
            self._item(held, slot, held[slot])
        if state is not None:
            self._follow(value)

    def _class_attributes(self, owner: Any, state: Mapping[str, Any]) -> None:
        """Note the names that an object has from its class alone, and may come to hide."""
        classes = [c for c in type(owner).__mro__ if not is_library(c.__module__)]
        for key in self._names - state.keys():
            mark = (id(owner), key)
            if mark not in self._from_class and any(key in c.__dict__ for c in classes):
                self._from_class.add(mark)
                self.hidden.append((state, key))

    def _attributes(self, index: int, owner: Any, followed: set[str]) -> None:
        state: Mapping[str, Any] = owner.__dict__
        dynamic = bool(self._names & _DYNAMIC)
        keys: list[str]
        if isinstance(owner, types.ModuleType):
            self.opaque |= bool(self._names & _BY_STRING)
            keys = sorted(state.keys() & self._names)
        elif isinstance(owner, type):
            special = {k for k, v in state.items() if is_operation(k, v)}
            keys = sorted(special | (state.keys() & self._names))
            if dynamic:
                keys += sorted(k for k in state if not k.startswith("__") and k not in keys)
        else:
            # torch calls a module's forward, also one that an instance was given
            wanted = self._names | {"forward"}
            keys = list(state) if dynamic else sorted(state.keys() & wanted)
            self._class_attributes(owner, state)
        for key in keys:
            if key in followed or key in _MODULE_STATE:
                continue
            followed.add(key)
            self.tokens.append(("attribute", index, key))
            self._item(state, key, state[key])
