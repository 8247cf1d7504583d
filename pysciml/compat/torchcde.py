"""torchcde's interface on pysciml: ``import pysciml.compat.torchcde as torchcde``.

Names, shapes and defaults are those of torchcde 0.2.5. What differs:

* Solves run as those of :mod:`pysciml.compat.torchdiffeq`, with its methods and options; there is
  no ``backend="torchsde"``.
* On a linear path an adaptive solver stops at the knots, where the path's derivative jumps.
* Gradients reach the path's coefficients without being asked for in ``adjoint_params``.
* ``logsig_windows`` is not there: it needs signatory.
* Coefficients are torchcde's to rounding, beside it on data with gaps (``tests/compat``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pysciml.compat.fixed_grid import FIXED_METHODS
from pysciml.compat.torchdiffeq import odeint, odeint_adjoint
from pysciml.errors import InputError
from pysciml.flatten import state_spec
from pysciml.functions import mistakes_named
from pysciml.nn import paths
from pysciml.nn.field import require_dtype
from pysciml.problems import require_finite
from pysciml.signatures import require_function

__all__ = [
    "CubicSpline",
    "LinearInterpolation",
    "NaturalCubicSpline",
    "TupleControl",
    "cdeint",
    "hermite_cubic_coefficients_with_backward_differences",
    "linear_interpolation_coeffs",
    "natural_cubic_coeffs",
    "natural_cubic_spline_coeffs",
]


def natural_cubic_coeffs(x: Tensor, t: Tensor | None = None) -> Tensor:
    """See :func:`pysciml.nn.natural_cubic_coefficients`; for :class:`CubicSpline`.

    As in torchcde, what is missing before a channel's first value, or after its last one, is that
    value, at each of those times.
    """
    return paths.natural_cubic_coefficients(_with_ends(x), t)


def natural_cubic_spline_coeffs(x: Tensor, t: Tensor | None = None) -> Tensor:
    """torchcde's older form: the first and the last value stand at the very ends alone."""
    return paths.natural_cubic_coefficients(x, t)


def _with_ends(x: Any) -> Any:
    """``x`` (..., m, c) with missing ends filled; what is not of this form as it is."""
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point() or not x.numel():
        return x
    seen = (~x.isnan()).int()
    m = x.shape[-2]
    first = seen.argmax(-2, keepdim=True)
    last = m - 1 - seen.flip(-2).argmax(-2, keepdim=True)
    at = torch.arange(m, device=x.device)[:, None].expand(x.shape)
    return x.gather(-2, torch.minimum(torch.maximum(at, first), last))


def hermite_cubic_coefficients_with_backward_differences(
    x: Tensor, t: Tensor | None = None
) -> Tensor:
    """See :func:`pysciml.nn.hermite_coefficients`; for :class:`CubicSpline`."""
    return paths.hermite_coefficients(x, t)


def linear_interpolation_coeffs(
    x: Tensor, t: Tensor | None = None, rectilinear: int | None = None
) -> Tensor:
    """See :func:`pysciml.nn.linear_coefficients`; for :class:`LinearInterpolation`."""
    if rectilinear is not None and bool(torch.isnan(x[..., 0, :]).any()):
        warnings.warn(
            "The series begin with missing values, which are filled with the first value seen: the "
            "path looks ahead there. Fill them, e.g. with the channel's mean, if it must not.",
            stacklevel=2,
        )
    return paths.linear_coefficients(x, t, rectilinear)


class LinearInterpolation(paths.LinearPath):
    """The linear path of :func:`linear_interpolation_coeffs`."""

    @property
    def grid_points(self) -> Tensor:
        return self.times


class CubicSpline(paths.CubicPath):
    """The path of :func:`natural_cubic_coeffs`, or of Hermite coefficients."""

    @property
    def grid_points(self) -> Tensor:
        return self.times


class NaturalCubicSpline(CubicSpline):
    """The older name of :class:`CubicSpline`."""


class TupleControl(nn.Module):
    """Several paths over one interval as one, for states that are tuples."""

    def __init__(self, *controls: Any) -> None:
        super().__init__()
        if not controls:
            raise InputError("TupleControl takes one path or more.")
        for c in controls:
            if not hasattr(c, "interval"):
                raise InputError(f"A TupleControl was given a {type(c).__name__}; give paths.")
        first = controls[0].interval
        if not all(torch.equal(c.interval, first) for c in controls[1:]):
            raise InputError("The paths of a TupleControl must cover one and the same interval.")
        self.controls = nn.ModuleList(controls)

    @property
    def interval(self) -> Any:
        return self.controls[0].interval

    @property
    def grid_points(self) -> Any:
        """The paths' times. Raises RuntimeError where they differ."""
        first: Any = self.controls[0].grid_points
        if not all(torch.equal(c.grid_points, first) for c in self.controls):  # type: ignore[arg-type]
            raise RuntimeError("The paths of this TupleControl have different times.")
        return first

    def evaluate(self, t: Any) -> tuple[Tensor, ...]:
        return tuple(c.evaluate(t) for c in self.controls)  # type: ignore[operator]

    def derivative(self, t: Any) -> tuple[Tensor, ...]:
        return tuple(c.derivative(t) for c in self.controls)  # type: ignore[operator]


def cdeint(
    X: Any,
    func: Callable[[Tensor, Any], Any],
    z0: Any,
    t: Tensor,
    adjoint: bool = True,
    backend: str = "torchdiffeq",
    **kwargs: Any,
) -> Any:
    """Solve ``dz = func(t, z) dX`` with ``z(t[0]) = z0``.

    Parameters
    ----------
    X : path
        With a method ``derivative(t)``, giving (..., channels) at a 0-d ``t``.
    func : nn.Module or callable
        ``func(t, z)`` of (..., hidden), giving (..., hidden, channels). Where it has a method
        ``prod(t, z, dXdt)``, that is called for the product, (..., hidden).
    z0 : tensor (..., hidden), or tuple of them where ``X`` and ``func`` give tuples
    t : tensor (m,)
    adjoint : bool
        ``odeint_adjoint`` or ``odeint``: a difference for fixed-grid methods only.
    kwargs
        Passed to :func:`pysciml.compat.torchdiffeq.odeint`; ``rtol`` is 1e-4 and ``atol`` 1e-6
        where not given.

    Returns
    -------
    tensor (..., m, hidden) or tuple of them: the times stand before the last axis.

    Raises
    ------
    InputError (a ValueError)
        For a path, function and state that do not fit.
    """
    if backend != "torchdiffeq":
        raise InputError(f"backend is {backend!r}; there is 'torchdiffeq' only.")
    kwargs = {"rtol": 1e-4, "atol": 1e-6, **kwargs}
    product = hasattr(func, "prod")
    _check(X, func, z0, t, product)
    field = _field(X, func, product)
    method = kwargs.get("method")
    if method not in FIXED_METHODS:
        _stop_at_kinks(X, adjoint, kwargs)
    if adjoint:
        kwargs.setdefault("adjoint_params", _parameters(X, func))
        out = odeint_adjoint(field, z0, t, **kwargs)
    else:
        out = odeint(field, z0, t, **kwargs)
    if isinstance(out, tuple):
        return tuple(x.movedim(0, -2) for x in out)
    return out.movedim(0, -2)


def _field(X: Any, func: Any, product: bool) -> Callable[[Tensor, Any], Any]:
    def times(value: Tensor, control: Tensor) -> Tensor:
        return (value @ control.unsqueeze(-1)).squeeze(-1)

    def field(t: Tensor, z: Any) -> Any:
        control = X.derivative(t)
        if product:
            return func.prod(t, z, control)
        value = func(t, z)
        if isinstance(value, (tuple, list)):
            return tuple(times(v, c) for v, c in zip(value, control, strict=True))
        return times(value, control)

    return field


def _stop_at_kinks(X: Any, adjoint: bool, kwargs: dict[str, Any]) -> None:
    parts = list(X.controls) if isinstance(X, TupleControl) else [X]
    knots = [p.times for p in parts if isinstance(p, paths.Path) and p.kinks]
    given = kwargs.get("options")
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"options is a {type(given).__name__}; give a dict.")
    options = dict(given or {})
    if knots and "jump_t" not in options:
        options["jump_t"] = torch.cat(knots).detach().unique()
        kwargs["options"] = options
        if adjoint:
            kwargs.setdefault("adjoint_options", {})


def _parameters(X: Any, func: Any) -> tuple[Tensor, ...]:
    found = []
    for module in (func, X):
        if isinstance(module, nn.Module):
            found += [*module.parameters(), *module.buffers()]
    return tuple(x for x in found if x.requires_grad)


def _check(X: Any, func: Any, z0: Any, t: Tensor, product: bool) -> None:
    if not hasattr(X, "derivative"):
        raise InputError(f"X is a {type(X).__name__}; give a path with a method derivative(t).")
    if not isinstance(t, Tensor) or t.ndim != 1 or not len(t):
        raise InputError("t must be a 1-d tensor of times.")
    if t.is_meta or t.dtype.is_complex:
        raise InputError(f"t is a tensor of {t.dtype} on {t.device}; give real times.")
    if isinstance(func, Tensor) or not (product or callable(func)):
        raise InputError(
            f"func is a {type(func).__name__}; give an nn.Module or a function func(t, z)."
        )
    if not product:
        require_function(func, "func", ("t", "z"))
    spec = state_spec(z0, "z0")
    require_finite(z0, "z0")
    with torch.no_grad(), mistakes_named(func, "func", ("t", "z"), spec, False):
        start = t[0].detach()
        control = X.derivative(start)
        if isinstance(z0, (tuple, list)) and not isinstance(control, (tuple, list)):
            raise InputError(
                f"z0 is a {type(z0).__name__} of {len(z0)}; X.derivative and func must give tuples "
                f"of {len(z0)} too."
            )
        value = func.prod(start, z0, control) if product else func(start, z0)
    several = isinstance(z0, (tuple, list))
    if several and not (
        isinstance(control, (tuple, list)) and isinstance(value, (tuple, list))
        and len(z0) == len(control) == len(value)
    ):  # fmt: skip
        raise InputError(
            f"z0 is a tuple of {len(z0)}; X.derivative and func must give tuples of {len(z0)} too."
        )
    triples = zip(z0, control, value, strict=True) if several else [(z0, control, value)]
    for z, c, v in triples:
        _check_one(z, c, v, product)


def _check_one(z: Any, control: Any, value: Any, product: bool) -> None:
    if not all(isinstance(x, Tensor) for x in (z, control, value)):
        raise InputError("z0 is a tensor, so X.derivative and func must give tensors.")
    for name, x in (("X.derivative", control), ("func", value)):
        if not product:
            require_dtype(x, name, z, "z0")
    if control.shape[:-1] != z.shape[:-1]:
        raise InputError(
            f"X.derivative gave shape {tuple(control.shape)} and z0 has {tuple(z.shape)}; their "
            "batches (all axes but the last) must be of one size."
        )
    want = z.shape if product else (*z.shape, control.shape[-1])
    if tuple(value.shape) != tuple(want):
        name = "func.prod" if product else "func"
        raise InputError(
            f"{name} gave shape {tuple(value.shape)}; with z0 {tuple(z.shape)} and "
            f"{control.shape[-1]} channels it must give {tuple(want)}."
        )
