"""The problems: what is to be solved, as the user writes it."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.callbacks import as_callbacks
from pysciml.errors import InputError, did_you_mean
from pysciml.flatten import ParameterSpec, StateSpec, is_real, state_spec
from pysciml.transforms import refuse_transforms

__all__ = ["DAEProblem", "ODEProblem", "remake"]


def _is_fine(leaf: Any) -> bool:
    """Whether a leaf is known at once to be finite."""
    if isinstance(leaf, Tensor):
        plain = leaf.layout == torch.strided and not leaf.is_meta
        # what is not finite makes a sum that is not
        return plain and leaf.dtype.is_floating_point and math.isfinite(float(leaf.detach().sum()))
    if isinstance(leaf, torch.nn.Module):
        return all(map(_is_fine, leaf.parameters()))
    return leaf is None or (type(leaf) in (int, float) and math.isfinite(leaf))


def require_finite(tree: Any, name: str) -> None:
    single = isinstance(tree, (Tensor, torch.nn.Module))
    if all(map(_is_fine, (tree,) if single else pytree.tree_leaves(tree))):
        return
    for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
        where = name + pytree.keystr(path)
        if isinstance(leaf, np.ndarray):
            raise InputError(
                f"{where} is a NumPy array; give a torch tensor, e.g. torch.as_tensor({where})."
            )
        dense = isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_meta
        if dense and leaf.dtype.is_floating_point:
            bad = ~torch.isfinite(leaf.detach())
            if bool(bad.any()):
                index = tuple(int(i) for i in bad.nonzero()[0])
                value = leaf.detach()[index].item()
                raise InputError(
                    f"{where} holds {value} at index {index}, but every entry must be finite; "
                    "replace it by a finite number."
                )
        elif isinstance(leaf, torch.nn.Module):
            require_finite(dict(leaf.named_parameters()), where)
        elif isinstance(leaf, float) and not math.isfinite(leaf):
            raise InputError(f"{where} is {leaf}; give a finite number.")


def _as_time(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        if value.numel() != 1 or not is_real(value):
            raise InputError(
                f"{name} is a tensor of shape {tuple(value.shape)} and dtype {value.dtype} on "
                f"{value.device}; "
                "give one real number."
            )
    elif not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; give a real number or a tensor of one.")
    time = number(value)
    if not math.isfinite(time):
        raise InputError(f"{name} is {time}; give a finite time.")
    return value


def number(time: Any) -> float:
    """A time, number or 0-d tensor, as a number."""
    return float(time.detach()) if isinstance(time, Tensor) else float(time)


def check_tspan(tspan: Any) -> tuple[Any, Any]:
    """A time span as a pair of numbers or tensors. Raises InputError."""
    if isinstance(tspan, Tensor):
        if tspan.shape != (2,):
            raise InputError(
                f"tspan is a tensor of shape {tuple(tspan.shape)}; give (t0, t1), two numbers."
            )
        pair = (tspan[0], tspan[1])
    else:
        try:
            pair = tuple(tspan)
        except TypeError:
            raise InputError(f"tspan is {tspan!r}; give (t0, t1), two numbers.") from None
        if len(pair) != 2:
            raise InputError(f"tspan has {len(pair)} entries; give (t0, t1), two numbers.")
    t0, t1 = _as_time(pair[0], "tspan[0]"), _as_time(pair[1], "tspan[1]")
    first, last = number(t0), number(t1)
    if first == last:
        raise InputError(f"tspan ({first}, {last}) has no length; give two different times.")
    return t0, t1


def require_onward(tspan: tuple[Any, Any], what: str) -> None:
    """Raise InputError for a time span that runs backwards, where ``what`` cannot."""
    t0, t1 = map(number, tspan)
    if t1 < t0:
        raise InputError(
            f"tspan ({t0:g}, {t1:g}) runs backwards, but {what} runs forward; give t0 < t1."
        )


class Problem:
    """What all problems have in common: how they are shown, copied, and made of another one."""

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_plans"}  # see plan.py

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}: {v}' for k, v in _facts(self))})"

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        rows = "".join(
            f"<tr><th {left}>{k}</th><td {left}>{escape(v)}</td></tr>" for k, v in _facts(self)
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"

    def _take(self, made: Any, *names: str) -> None:
        """These attributes from a problem that was made of this one and checked its inputs."""
        for name in names:
            object.__setattr__(self, name, getattr(made, name))


@dataclass(frozen=True, eq=False, repr=False)
class ODEProblem(Problem):
    """``M u' = f(u, p, t)`` with ``u(t0) = u0``.

    Parameters
    ----------
    f : callable
        ``f(u, p, t)`` written in torch, returning the derivative in the structure of ``u``
        (same shapes, dtype and device). ``t`` is a 0-d tensor.
    u0 : tensor or pytree of tensors
        float64 or float32, any shape, batch dimensions included.
    tspan : (t0, t1)
        Numbers or 0-d tensors; ``t1 < t0`` solves backwards.
    p : pytree of tensors and numbers, nn.Module, or None
        Passed to ``f`` as it is. Real tensors and numbers take part in gradients.
    mass_matrix : tensor (n, n), optional
        Constant (kept dense where it is given sparse); singular for a DAE of index 1 in
        mass-matrix form. ``n`` is the number of entries of the state, in the pytree's order,
        row-major.
    callback : optional
        Events that belong to the problem; see :mod:`pysciml.callbacks`.

    Raises
    ------
    InputError
        For what cannot be a problem: dtypes, devices, NaN or inf, an empty time span, shapes.
    """

    f: Callable[[Any, Any, Any], Any]
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    mass_matrix: Any = None
    callback: Any = None

    kind = "ode"

    def __post_init__(self) -> None:
        require_callable(self.f, "f(u, p, t)")
        _require_order(self.f)
        refuse_transforms(self.u0, self.p)
        require_finite(self.u0, "u0")
        require_finite(self.p, "p")
        spec = state_spec(self.u0)
        object.__setattr__(self, "state_spec", spec)
        object.__setattr__(self, "tspan", check_tspan(self.tspan))
        object.__setattr__(self, "callback", as_callbacks(self.callback))
        params, _ = ParameterSpec.of(self.p, spec.dtype, spec.device)
        object.__setattr__(self, "params_spec", params)
        if self.mass_matrix is not None:
            object.__setattr__(self, "mass_matrix", _mass_matrix(self.mass_matrix, spec.size))

    state_spec: StateSpec = dataclasses.field(init=False)
    params_spec: ParameterSpec = dataclasses.field(init=False)


@dataclass(frozen=True, eq=False, repr=False)
class DAEProblem(Problem):
    """``0 = f(u', u, p, t)`` with ``u(t0) = u0`` and ``u'(t0) = du0``, of index 1.

    Parameters
    ----------
    f : callable
        ``f(du, u, p, t)`` in torch, returning the residual in the structure of ``u``.
    du0, u0 : tensor or pytree of tensors
        Of one structure. Where they do not satisfy the equation, the algebraic entries of ``u0``
        and the derivatives of the differential ones are computed from the rest.
    tspan, p, callback
        As for :class:`ODEProblem`.
    differential_vars : bool tensor or pytree of them, like u0
        True where the derivative of that entry stands in the equation.

    Raises
    ------
    InputError
        As :class:`ODEProblem`.
    """

    f: Callable[[Any, Any, Any, Any], Any]
    du0: Any
    u0: Any
    tspan: tuple[Any, Any]
    p: Any = None
    differential_vars: Any = None
    callback: Any = None

    kind = "dae"
    state_spec: StateSpec = dataclasses.field(init=False)
    params_spec: ParameterSpec = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        require_callable(self.f, "f(du, u, p, t)")
        refuse_transforms(self.u0, self.p)
        require_finite(self.u0, "u0")
        require_finite(self.du0, "du0")
        require_finite(self.p, "p")
        spec = state_spec(self.u0)
        object.__setattr__(self, "state_spec", spec)
        spec.flatten_like(self.du0, "du0", verb="has")
        object.__setattr__(self, "tspan", check_tspan(self.tspan))
        object.__setattr__(self, "callback", as_callbacks(self.callback))
        params, _ = ParameterSpec.of(self.p, spec.dtype, spec.device)
        object.__setattr__(self, "params_spec", params)
        if self.differential_vars is not None:
            _require_flags(self.differential_vars, spec)


def _mass_matrix(given: Any, n: int) -> Any:
    """``given``, dense where it is sparse. Raises InputError for what is no matrix (n, n)."""
    expected = f"give a real matrix of shape ({n}, {n}), e.g. torch.eye({n})."
    try:
        if hasattr(given, "toarray"):  # SciPy's sparse matrices
            given = torch.as_tensor(given.toarray())
        mass = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"mass_matrix is a {type(given).__name__}; {expected}") from None
    if mass.requires_grad:
        raise InputError(
            "mass_matrix requires grad, but no gradient is taken for it; detach it, or "
            "solve for the derivative inside f."
        )
    if mass.is_meta:
        raise InputError(
            f"mass_matrix is on the device meta, where tensors have no values; {expected}"
        )
    if mass.dtype.is_complex:
        raise InputError(f"mass_matrix is {str(mass.dtype)[6:]}; {expected}")
    if mass.shape != (n, n):
        raise InputError(
            f"mass_matrix has shape {tuple(mass.shape)}, but the state has {n} entries; {expected}"
        )
    if mass.layout != torch.strided:
        given = mass = mass.to_dense()
    require_finite(mass, "mass_matrix")
    return given


def _require_flags(given: Any, spec: StateSpec) -> None:
    """Raise InputError for differential_vars that are not one boolean an entry."""
    expected = f"give one boolean for each entry of u0 ({spec.size})."
    try:
        flags = [torch.as_tensor(x) for x in pytree.tree_leaves(spec.in_order(given))]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"differential_vars is {given!r}; {expected}") from None
    if any(x.is_meta for x in flags):
        raise InputError(
            f"differential_vars is on the device meta, where tensors have no values; {expected}"
        )
    others = [str(x.dtype)[6:] for x in flags if x.dtype != torch.bool]
    count = sum(x.numel() for x in flags)
    if count != spec.size or others:
        of = f" of {others[0]}" if others else ""
        raise InputError(
            f"differential_vars has {count} entries{of}, but the state has {spec.size}; {expected}"
        )


def in_another_order(names: Sequence[str], takes: tuple[str, ...]) -> bool:
    """Whether the very names are swapped, or time stands elsewhere, as it does in SciPy."""
    if sorted(names) == sorted(takes):
        return tuple(names) != takes
    if "t" not in takes or "t" not in names or len(names) < len(takes):
        return False
    other = names[takes.index("t")]
    return other != "t" and not other.startswith(("t", "_"))


def _require_order(f: Any) -> None:
    """Raise InputError where a plain function names its arguments in another order than SciML's."""
    code = f.__code__ if isinstance(f, types.FunctionType) else None
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    if len(names) == 3 and in_another_order(names, ("u", "p", "t")):
        raise InputError(
            f"f takes ({', '.join(names)}), but it is called with (u, p, t), in SciML's order; put "
            "them in this order."
        )


def require_callable(f: Any, signature: str, name: str = "f") -> None:
    """Raise InputError for a function that is none."""
    if not callable(f):
        raise InputError(
            f"{name} is a {type(f).__name__}; give a function {signature} written in torch."
        )


def remake(prob: Any, **changes: Any) -> Any:
    """The same problem with some fields replaced, e.g. ``remake(prob, p=new_p)``.

    The function's captured kernels are kept, so this is what a training loop should use.
    Raises InputError for a field that the problem does not have.
    """
    if hasattr(prob, "remade"):
        return prob.remade(changes)
    fields = [f.name for f in dataclasses.fields(prob) if f.init]
    for key in changes:
        if key not in fields:
            raise InputError(
                f"{type(prob).__name__} has no field {key!r} (it has {', '.join(fields)})."
                f"{did_you_mean(key, fields)}"
            )
    made = dataclasses.replace(prob, **changes)
    hand_on(plans_of(prob), made)
    return made


def plans_of(prob: Any) -> tuple[Any, ...]:
    """What a problem keeps of its last solves for the next ones: see plan.py."""
    plans: tuple[Any, ...] = getattr(prob, "_plans", ())
    return plans


def hand_on(plans: tuple[Any, ...], prob: Any) -> None:
    """Give a problem these plans; those that do not fit it are not used."""
    if plans:
        vars(prob)["_plans"] = plans


def _facts(prob: Any) -> list[tuple[str, str]]:
    spec: StateSpec = prob.state_spec
    shapes = str(spec.shapes[0] if spec.is_tensor else list(spec.shapes))
    functions = [k for k in ("f", "f1", "f2", "H") if hasattr(prob, k)]
    facts = [
        *(
            (k, getattr(getattr(prob, k), "__name__", type(getattr(prob, k)).__name__))
            for k in functions
        ),
        ("u0", f"shape {shapes}, {str(spec.dtype)[6:]}, {spec.device}"),
        ("tspan", f"({number(prob.tspan[0]):g}, {number(prob.tspan[1]):g})"),
        ("p", _describe_p(prob.p)),
    ]
    if getattr(prob, "mass_matrix", None) is not None:
        facts.append(("mass_matrix", "given"))
    if prob.callback:
        facts.append(("callbacks", str(len(prob.callback))))
    return facts


def _describe_p(p: Any) -> str:
    if p is None:
        return "none"
    if isinstance(p, torch.nn.Module):
        return f"{type(p).__name__}, {sum(x.numel() for x in p.parameters())} parameters"
    leaves = pytree.tree_leaves(p)
    count = sum(x.numel() if isinstance(x, Tensor) else 1 for x in leaves)
    return f"{count} value{'s' if count != 1 else ''} in {type(p).__name__}"
