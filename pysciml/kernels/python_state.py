"""What Python's objects are to a walk: a library's, with hidden state, with names they mention."""

from __future__ import annotations

import dis
import functools
import sys
import types
from typing import Any

#: Packages whose functions, classes and modules are taken as constants.
_LIBRARIES = frozenset(
    {
        "torch",
        "numpy",
        "scipy",
        "functorch",
        "optree",
        "einops",
        "pysciml",
        *sys.stdlib_module_names,
    }
)
#: Parts of this package whose functions and objects hold the user's own.
_WRAPPERS = ("pysciml.nn", "pysciml.compat", "pysciml.fit")
SCALARS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), range)
#: Bases from a library that hold no state of their own that a walk would miss.
_TRANSPARENT = frozenset({"abc", "typing", "enum", "collections.abc", "dataclasses", "contextlib"})
#: Special methods that no operation of a right-hand side calls on an object that exists.
_NOT_CALLED = frozenset(
    {
        "__init__", "__new__", "__post_init__", "__repr__", "__str__", "__del__", "__reduce__",
        "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__",
        "__init_subclass__", "__class_getitem__", "__set_name__", "__sizeof__", "__dir__",
    }
)  # fmt: skip
#: Methods that torch calls by itself: of modules, and of an autograd.Function.
_BY_TORCH = frozenset({"forward", "backward", "setup_context", "jvp", "vmap"})
_COMPARISONS = frozenset({"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__"})
MISSING = object()


def is_library(module: Any) -> bool:
    """Whether a module of this name is taken as constant."""
    if not isinstance(module, str) or module.startswith(_WRAPPERS):
        return False
    return module.partition(".")[0] in _LIBRARIES


def is_operation(name: str, value: Any) -> bool:
    """Whether an entry of a class may be called though no code mentions its name."""
    if name in _BY_TORCH:
        return True
    if not (name.startswith("__") and name.endswith("__")) or name in _NOT_CALLED:
        return False
    code = getattr(value, "__code__", None)
    # comparisons that dataclasses write mention every field
    return callable(value) and not (code is not None and code.co_filename == "<string>")


def hides_state(base: type) -> bool:
    """Whether a base class may keep state where a walk does not look."""
    name = base.__module__
    return base is not object and is_library(name) and name not in _TRANSPARENT


class Slots:
    """An object's slots, read like a mapping."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __getitem__(self, slot: str) -> Any:
        try:
            return getattr(self.owner, slot)
        except AttributeError:
            raise KeyError(slot) from None


def slots(cls: type) -> tuple[str, ...]:
    held = cls.__dict__.get("__slots__", ())
    names = (held,) if isinstance(held, str) else tuple(held)
    return tuple(n for n in names if n not in ("__dict__", "__weakref__"))


@functools.lru_cache(maxsize=4096)
def names_in(
    code: types.CodeType,
) -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str], tuple[types.CodeType, ...]]:
    """Globals that code loads, modules it imports, names it mentions, code inside it."""
    loads, imports, mentioned = set(), set(), set(code.co_names)
    for i in dis.get_instructions(code):
        if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            loads.add(i.argval)
        elif i.opname == "IMPORT_NAME":
            imports.add(i.argval)
        elif i.opname in ("COMPARE_OP", "CONTAINS_OP"):
            mentioned |= _COMPARISONS
        elif i.opname == "MATCH_CLASS":  # its attributes stand among the constants
            for names in code.co_consts:
                if isinstance(names, tuple):
                    mentioned.update(n for n in names if isinstance(n, str))
    inner = tuple(c for c in code.co_consts if isinstance(c, types.CodeType))
    return tuple(sorted(loads)), tuple(sorted(imports)), frozenset(mentioned), inner


def content(cell: types.CellType) -> Any:
    """What a closure cell holds, ``MISSING`` where it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING
