"""From a user's function to the functions an engine calls, captured once and kept.

The cache is keyed by what the function is (its code and what it closes over) and by the
structures it is called with, so a training loop never captures twice. Guards notice what changed
on the Python side since. A function that is new, or changed, is walked: where it differs from one
that was captured in the values of tensors alone, that capture serves it too; else it is captured.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysciml.callbacks import HOW_TO_END, terminate
from pysciml.errors import InputError
from pysciml.flatten import ParameterSpec, StateSpec
from pysciml.kernels.callback import CallbackFunctions
from pysciml.kernels.capture import CaptureError, capture
from pysciml.kernels.captured import CapturedFunctions
from pysciml.kernels.reasons import warn_called_back
from pysciml.kernels.relift import Relifts
from pysciml.kernels.walk import Walk

__all__ = ["FlatFunction", "functions_for", "mistakes_named"]

FlatFunctions = CapturedFunctions | CallbackFunctions

#: Captures kept; the least recently used goes first.
_KEEP = 128
_cache: OrderedDict[Any, tuple[FlatFunctions, Any]] = OrderedDict()
_relifts = Relifts(_KEEP)
_lock = threading.RLock()

#: How torch words it that tensors of two dtypes or devices met.
_MIXED = re.compile(
    r"same dtype|expected scalar type|same device|but found at least two devices|expected device"
)
#: And that their shapes do not go together.
_SHAPES = re.compile(r"shapes? cannot be multiplied|must match the size|invalid for input of size")


@dataclass(frozen=True)
class FlatFunction:
    """A user's function of pytrees as a function of flat tensors.

    role
        ``"rhs"``: f(u, p, t) -> like u; ``"residual"``: f(du, u, p, t) -> like u;
        ``"sides"``: f(u, p, t) -> a pair, each like u;
        ``"noise"``: f(u, p, t) -> a pair, like u and a vector;
        ``"delayed"``: f(x, p, t) -> a vector, x being longer than a state;
        ``"conditions"``: likewise;
        ``"rode"``: f((u, W), p, t) -> a vector;
        ``"rate"``: f(u, p, t) -> one number; ``"root"``: likewise, an event where it is zero;
        ``"truth"``: likewise, an event where it is true; ``"affect"``: f(u, p, t) -> like u.
    name
        How messages call it.
    """

    f: Callable[..., Any]
    role: str
    name: str
    state: StateSpec
    params: ParameterSpec

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("du", "u", "p", "t") if self.role == "residual" else ("u", "p", "t")

    def __call__(self, *args: Tensor) -> Tensor:
        *states, p, t = args
        if self.role in ("delayed", "conditions"):
            value: Tensor = self.f(states[0], self.params.unflatten(p), t)
            return value
        trees = [self.state.unflatten(x) for x in states]
        out = self.f(*trees, self.params.unflatten(p), t)
        if self.role in ("rate", "root", "truth"):
            return self._one_number(out)
        if self.role == "affect" and out is terminate:
            raise InputError(f"{self.name} returned pysciml.terminate; {HOW_TO_END}")
        if self.role == "sides":
            return torch.cat([self.state.flatten_like(x, f"f{i}") for i, x in enumerate(out, 1)])
        if self.role == "rode":
            return out
        if self.role == "noise":
            return torch.cat([self.state.flatten_like(out[0], "f"), out[1]])
        return self.state.flatten_like(out, self.name)

    def _one_number(self, out: Any) -> Tensor:
        if isinstance(out, (bool, int, float, np.bool_)):
            kept = self.state.dtype if isinstance(out, float) else None
            plain = bool(out) if isinstance(out, np.bool_) else out  # torch 2.6 knows no np.bool_
            out = torch.tensor(plain, dtype=kept, device=self.state.device)
        if not isinstance(out, Tensor) or out.numel() != 1:
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(f"{self.name} returned {given}; return one number (a 0-d tensor).")
        dtype = out.dtype
        if self.role == "root" and dtype is torch.bool:
            raise InputError(
                f"{self.name} returned true or false, but a continuous event is where a number "
                "crosses zero; return that number, e.g. u[0] - 5 instead of u[0] < 5."
            )
        if self.role == "truth" and dtype.is_floating_point:
            raise InputError(
                f"{self.name} returned a number, but a discrete event is where a condition "
                "is true; return true or false, e.g. u[0] < 5 instead of u[0] - 5."
            )
        return out.reshape(1).to(self.state.dtype)

    def key(self) -> tuple[Any, ...]:
        """What a cached capture depends on, f and p's static leaves as objects."""
        return (identity(self.f), self.params.key, self.role, self.state.key)

    def layout(self) -> tuple[Any, ...]:
        """The same without f and p's static leaves."""
        return (self.params.layout, self.role, self.state.key)

    def walk(self) -> Walk:
        """What f and p's static leaves can reach."""
        return Walk(self.f, *self.params.static)


def identity(f: Any, _within: tuple[int, ...] = ()) -> Any:
    """What a function is, by value where that is safe: a lambda written in a loop stays the same.

    Plain functions by their code, defaults and what their closure holds, functions there likewise;
    bound methods by object and function; all else by object. The ids stay valid because the cache
    keeps ``f``.
    """
    if id(f) in _within:  # a function that closes over itself
        return ("object", id(f))
    within = (*_within, id(f))
    if isinstance(f, types.MethodType):
        return ("method", id(f.__self__), identity(f.__func__, within))
    if isinstance(f, functools.partial):
        keywords = tuple(sorted((k, id(v)) for k, v in f.keywords.items()))
        return ("partial", identity(f.func, within), tuple(id(a) for a in f.args), keywords)
    if isinstance(f, types.FunctionType):
        cells = []
        for cell in f.__closure__ or ():
            try:
                cells.append(identity(cell.cell_contents, within))
            except ValueError:  # an empty cell
                cells.append(0)
        defaults = tuple(id(d) for d in f.__defaults__ or ())
        extra = tuple(sorted((k, id(v)) for k, v in (f.__kwdefaults__ or {}).items()))
        attributes = tuple(sorted((k, id(v)) for k, v in vars(f).items()))
        return (
            "function",
            id(f.__code__),
            id(f.__globals__),
            tuple(cells),
            defaults,
            extra,
            attributes,
        )
    return ("object", id(f))


def functions_for(flat: FlatFunction, inputs: dict[str, Tensor], engine: str) -> FlatFunctions:
    """The functions of ``flat`` at ``inputs`` (flat tensors by name, in order).

    Captured where that is possible, else called back, with one CaptureWarning. Raises InputError
    where the function returns something else than it should, or draws random numbers.
    """
    cuda = flat.state.device.type != "cpu" and engine == "sundials"
    key = (flat.key(), cuda)
    with _lock:
        entry = _cache.get(key)
        found = entry[0] if entry is not None and entry[0].ok() else None
        if isinstance(found, CallbackFunctions):
            # It calls the function itself, but what that closes over may be another tensor now.
            found = CallbackFunctions(flat, inputs)
        elif found is not None and found.opaque and not _agrees(found, flat, inputs):
            found = None
        if found is None:
            found, lasting = _relifted_or_made(flat, inputs, cuda)
            if not lasting:
                return found
        if entry is None or found is not entry[0]:
            _cache[key] = (found, _kept_alive(flat.f))
        _cache.move_to_end(key)
        while len(_cache) > _KEEP:
            _cache.popitem(last=False)
        return found


def _relifted_or_made(
    flat: FlatFunction, inputs: dict[str, Tensor], cuda: bool
) -> tuple[FlatFunctions, bool]:
    """The functions of an f that is new or changed, and whether to keep them for this very f."""
    walk = flat.walk()
    key = (flat.layout(), torch.get_default_dtype(), cuda)
    known, found = _relifts.find(key, walk)
    if known:
        return CallbackFunctions(flat, inputs) if found is None else found, False
    made = _make(flat, inputs, cuda, walk)
    captured = made if isinstance(made, CapturedFunctions) else None
    added = not cuda and _relifts.add(key, walk, flat.walk(), captured)
    # tensors that were computed will not come again, and hold their graph
    passing = captured is not None and not all(x.is_leaf for x in captured.capture.closures_p)
    return made, not (added and passing)


def _kept_alive(f: Any) -> Any:
    """What must not be collected while its ids stand in a key."""
    cells = [c for c in getattr(f, "__closure__", None) or ()]
    contents = []
    for cell in cells:
        try:
            contents.append(cell.cell_contents)
        except ValueError:
            continue
    return (f, contents)


def _agrees(found: FlatFunctions, flat: FlatFunction, inputs: dict[str, Tensor]) -> bool:
    """Whether the capture still gives the function's value: for what guards cannot see."""
    if isinstance(found, CallbackFunctions):
        return True
    with torch.no_grad():
        own = {k: v.detach() for k, v in inputs.items()}
        expected = flat(*own.values())
        args = dict(own)
        args["p"] = found.extend_p(own["p"]).detach()
        got = found.capture.module(*args.values(), found.data())
        got = got[0] if isinstance(got, (tuple, list)) else got
        return torch.allclose(got, expected, rtol=1e-4, atol=1e-7, equal_nan=True)


def _make(flat: FlatFunction, inputs: dict[str, Tensor], cuda: bool, walk: Walk) -> FlatFunctions:
    params = flat.params
    named = mistakes_named(
        flat.f, flat.name, flat.input_names, flat.state, params.is_none, params.kind
    )
    with named:
        if cuda:
            _require_repeatable(flat, inputs)
            return CallbackFunctions(flat, inputs)
        try:
            return CapturedFunctions.of(capture(flat, inputs, walk=walk, name=flat.name))
        except CaptureError as error:
            if error.kind == "random":
                raise InputError(_not_repeatable(flat, error.reason, error.hint)) from None
            made = CallbackFunctions(flat, inputs)
            warn_called_back(flat.name, error)
            return made


def _require_repeatable(flat: FlatFunction, inputs: dict[str, Tensor]) -> None:
    """Refuse random functions, which a capture would have found."""
    with torch.random.fork_rng():
        first, second = (flat(*(v.detach() for v in inputs.values())).detach() for _ in range(2))
    if not torch.allclose(first, second, rtol=1e-3, equal_nan=True):
        raise InputError(
            _not_repeatable(
                flat,
                "two calls with the same arguments gave different values",
                "draw random numbers before solving, or call eval() on modules with dropout",
            )
        )


def _not_repeatable(flat: FlatFunction, reason: str, hint: str) -> str:
    return (
        f"{flat.name} cannot be solved: {reason}. A right-hand side must give the same value "
        f"whenever it is called; {hint}."
    )


@contextlib.contextmanager
def mistakes_named(
    f: Any, name: str, takes: tuple[str, ...], state: StateSpec, no_p: bool, p_kind: str = ""
) -> Iterator[None]:
    """Raise InputError, saying what is wrong, for well-known mistakes in how f is written.

    ``takes``: what f is called with; ``no_p``: whether the problem was given no p; ``p_kind``: the
    name of p's type, where it is something else than a tensor or a number.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = _what_is_wrong(f, name, takes, state, no_p, error) or _unfit_p(name, p_kind, error)
        if said is None:
            raise
        raise InputError(said) from error


def _what_is_wrong(
    f: Any, name: str, takes: tuple[str, ...], state: StateSpec, no_p: bool, error: Exception
) -> str | None:
    call = f"({', '.join(takes)})"
    if isinstance(error, TypeError):
        try:
            inspect.signature(f).bind(*takes)
        except ValueError:  # a builtin without a signature
            pass
        except TypeError:
            return (
                f"{name} takes {inspect.signature(f)}, but it is called with {call}, in "
                f"SciML's order; give it these arguments."
            )
    if isinstance(error, (TypeError, AttributeError)) and "NoneType" in str(error):
        if no_p:
            return (
                f"{name} uses p, but the problem has none ({error}); give it as the "
                "problem's p, e.g. pysciml.remake(prob, p=...)."
            )
    if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return (
            f"{name} solves a singular linear system at the initial values "
            f"({str(error).splitlines()[0]}); check what it inverts there (for a LagrangianNN: the "
            "second derivative of the Lagrangian in the velocities), or start elsewhere."
        )
    if isinstance(error, RuntimeError) and _SHAPES.search(str(error)):
        return (
            f"{name} fails on a state of shape {_shapes(state)} "
            f"({str(error).splitlines()[0]}); give a state of the shape that {name} takes, or mend "
            f"{name}."
        )
    if isinstance(error, RuntimeError) and _MIXED.search(str(error)):
        return (
            f"{name} mixes dtypes or devices ({str(error).splitlines()[0]}): the state is "
            f"{str(state.dtype)[6:]} on {state.device}, and all that {name} uses "
            f"must be so too; convert it, e.g. model.to({state.dtype}), or convert u0."
        )
    return None


def _unfit_p(name: str, kind: str, error: Exception) -> str | None:
    """What is wrong where p as a whole is calculated with, and cannot be."""
    if not kind or not isinstance(error, TypeError) or f"'{kind}'" not in str(error):
        return None
    return (
        f"{name} fails on p, which is of type {kind} ({str(error).splitlines()[0]}); give a tensor "
        "or a number to calculate with, or a dict, list, tuple or module of them whose entries "
        f"{name} takes."
    )


def _shapes(state: StateSpec) -> str:
    return str(state.shapes[0] if state.is_tensor else state.shapes)
