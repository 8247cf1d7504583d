"""torchdiffeq's interface on pysciml: ``import pysciml.compat.torchdiffeq as torchdiffeq``.

Signatures, method names, options and tuple states are those of torchdiffeq 0.2.5 (and the newer
names ``tsit5`` and the implicit fixed-grid methods). What differs:

* Adaptive methods run in pysciml's engine: on ``julia`` by the algorithm of the same pair or order
  (``dopri5`` is ``DP5``), on the embedded engine by its default, Adams with a change to BDF where
  the equation is stiff. ``method`` may also be any algorithm of pysciml, stiff ones too:
  ``method="CVODE_BDF"``, ``method=pysciml.Rodas5P()``.
* ``func`` is captured as a kernel: Python side effects in it (a counter of calls) do not happen at
  each evaluation.
* Gradients of adaptive methods come from ``sensealg`` (GaussAdjoint where none is given) in
  ``odeint`` as in ``odeint_adjoint``; they reach every tensor that ``func`` uses, also those left
  out of ``adjoint_params``. They cannot be differentiated again; those of fixed-grid methods in
  ``odeint`` can.
* An event's time and state carry their whole gradient, in ``odeint`` as in ``odeint_event``.
* ``norm``, ``safety``, ``ifactor``, ``dfactor``, ``min_step`` have no effect on an engine's own
  step control, in ``options`` as in ``adjoint_options``, and a function given as ``norm`` is never
  called: NoEffectWarning says so. ``norm="seminorm"`` of the adjoint is how GaussAdjoint works
  anyway.
* ``callback_step`` and ``callback_accept_step`` of an adaptive solve are called once it is over,
  for each accepted step in turn; ``callback_reject_step``, and the ``..._adjoint`` of all three
  where the adjoint is adaptive, never (NoEffectWarning).

``options`` takes three more keys: ``engine``, ``sensealg`` and ``progress``, as in
:func:`pysciml.solve`. Fixed-grid methods keep their meaning, step by step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pysciml.compat.adaptive import AdaptiveSolve, NoEffectWarning
from pysciml.compat.adjoint import AdjointSolve
from pysciml.compat.events import combined, reroute
from pysciml.compat.fixed_grid import FIXED_METHODS, FixedGrid, fixed_grid
from pysciml.compat.methods import check_method
from pysciml.compat.states import StateForm, check_times, state_form
from pysciml.errors import InputError
from pysciml.sensitivity import GaussAdjoint

__all__ = ["NoEffectWarning", "odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

_STEP_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


def odeint(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: Any = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
) -> Any:
    """Solve ``dy/dt = func(t, y)`` with ``y(t[0]) = y0``.

    Parameters
    ----------
    func : callable
        ``func(t, y)`` in torch, ``t`` a 0-d tensor; returns the derivative in the form of ``y``.
    y0 : tensor or tuple of tensors, any shapes
    t : tensor (m,)
        Times in strict order, increasing or decreasing; ``y0`` belongs to the first.
    rtol, atol : numbers; ``atol`` may be a tensor, or a tuple with one entry for each part of y0
    method : str or algorithm, optional
        A name of torchdiffeq's, an algorithm of pysciml or its name; "dopri5" where None.
    options : dict, optional
        torchdiffeq's options of the method; also ``engine``, ``sensealg``, ``progress``.
    event_fn : callable, optional
        ``event_fn(t, y)``; the solve ends at the first sign change of one of its entries. ``t``
        then holds two times: the first, and one that gives the direction.

    Returns
    -------
    tensor (m, *y0.shape) or tuple of them; with ``event_fn``, the event's time (0-d) and the states
    at the start and at the event, (2, *y0.shape).

    Raises
    ------
    InputError (a ValueError)
        For input that cannot be meant.
    SolveError
        Where the solve fails.
    """
    return _Call(func, y0, t, rtol, atol, method, options, event_fn).run()


def odeint_adjoint(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: Any = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: Any = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """:func:`odeint` with gradients by an adjoint solve.

    Parameters
    ----------
    func : nn.Module, or callable with ``adjoint_params`` given
    adjoint_rtol, adjoint_atol : float, optional
        Tolerances of the adjoint; those of the solve where None.
    adjoint_method, adjoint_options
        Method and options of the adjoint where the solve or they are of the fixed-grid kind, else
        the adjoint is the solve's ``sensealg``. Those of the solve where None.
    adjoint_params : iterable of tensors, optional
        What ``func`` depends on; its parameters where None. Each gets a gradient, zero where
        unused.

    Other parameters, returns, raises
        As :func:`odeint`.
    """
    if adjoint_params is None:
        if not isinstance(func, torch.nn.Module):
            raise InputError(
                "odeint_adjoint takes an nn.Module as func; for another function give the tensors "
                "it depends on as adjoint_params, () where there are none."
            )
        adjoint_params = func.parameters()
    adjoint_params = tuple(adjoint_params)
    for p in adjoint_params:
        if not isinstance(p, torch.Tensor):
            raise InputError(f"adjoint_params holds a {type(p).__name__}; give tensors.")
    params = tuple(p for p in adjoint_params if p.requires_grad)
    check_method(adjoint_method)
    if adjoint_method not in (None, method) and options and adjoint_options is None:
        raise InputError(
            "options are given for method but not for adjoint_method; give adjoint_options too, {} "
            "for none."
        )
    call = _Call(func, y0, t, rtol, atol, method, options, event_fn)
    back = method if adjoint_method is None else adjoint_method
    back_options = dict((options or {}) if adjoint_options is None else adjoint_options)
    tolerances = {
        "rtol": rtol if adjoint_rtol is None else adjoint_rtol,
        "atol": atol if adjoint_atol is None else adjoint_atol,
    }
    if call.fixed is None and back not in FIXED_METHODS:
        if callable(back_options.get("norm")) and adjoint_options is not None:
            warnings.warn(_no_effect("adjoint_options['norm']"), NoEffectWarning, stacklevel=2)
        for name in _STEP_CALLBACKS:
            if getattr(func, f"{name}_adjoint", None) is not None:
                warnings.warn(
                    f"{name}_adjoint is never called: the adjoint of an adaptive method runs in "
                    "the engine.", NoEffectWarning, stacklevel=2,
                )  # fmt: skip
        if "sensealg" not in call.options:
            call.options["sensealg"] = back_options.get(
                "sensealg", GaussAdjoint(abstol=adjoint_atol, reltol=adjoint_rtol)
            )
        return _with_parameters(call.run(), params)
    return call.run_adjoint(back, back_options, tolerances, params)


def odeint_event(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[[Tensor, Any], Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    """The event's time and the states at the start and at the event, with their gradients.

    Parameters
    ----------
    t0 : tensor of one element
        Where ``y0`` is given; gradients flow to it.
    event_fn : callable
        As in :func:`odeint`.
    reverse_time : bool
        Solve towards smaller times.
    odeint_interface : ``odeint`` or ``odeint_adjoint``
    kwargs
        Passed to it.
    """
    if not isinstance(t0, Tensor) or t0.numel() != 1:
        raise InputError("t0 must be a tensor of one element, the time of y0.")
    start = t0.reshape(1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    return odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)


def odeint_dense(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: Any = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """The solution as a function of times between ``t0`` and ``t1``, differentiable."""
    for name, x in (("t0", t0), ("t1", t1)):
        if not isinstance(x, (int, float)) and (not isinstance(x, Tensor) or x.numel() != 1):
            raise InputError(f"{name} is {x!r}; give a number or a tensor of one.")
    t = torch.stack([torch.as_tensor(x, dtype=torch.float64).reshape(()) for x in (t0, t1)])
    call = _Call(func, y0, t, rtol, atol, method, options, None)
    if call.fixed is not None:
        raise InputError(
            f"odeint_dense takes an adaptive method, but {method!r} is a fixed-grid one."
        )
    return call.adaptive().dense()


def _no_effect(what: str) -> str:
    return f"{what} has no effect: the engine's own step control is used."


class _Attach(torch.autograd.Function):
    """A result that is said to depend on parameters: their gradients are at least zeros."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *params: Tensor) -> Tensor:
        ctx.save_for_backward(*params)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (grad, *(torch.zeros_like(p) for p in ctx.saved_tensors))


def _with_parameters(result: Any, params: tuple[Tensor, ...]) -> Any:
    if not params:
        return result
    if isinstance(result, tuple):
        return tuple(_with_parameters(x, params) for x in result)
    return _Attach.apply(result, *params)


class _Call:
    """One call's arguments, checked."""

    def __init__(
        self, func: Any, y0: Any, t: Any, rtol: Any, atol: Any, method: Any, options: Any,
        event_fn: Any,
    ) -> None:  # fmt: skip
        if not callable(func):
            raise InputError(f"func is a {type(func).__name__}; give a function func(t, y).")
        check_method(method)
        check_times(t)
        if event_fn is not None and not callable(event_fn):
            raise InputError(
                f"event_fn is a {type(event_fn).__name__}; give a function event_fn(t, y)."
            )
        if event_fn is not None and len(t) != 2:
            raise InputError(
                f"With event_fn, t holds two times, the start and one that gives the direction; "
                f"it has {len(t)}."
            )
        self.form: StateForm = state_form(y0)
        self.func, self.y0, self.method, self.event_fn = func, y0, method, event_fn
        self.t = t.to(self.form.device)
        self.rtol, self.atol = rtol, atol
        if options is not None and not isinstance(options, Mapping):
            raise InputError(f"options is a {type(options).__name__}; give a dict.")
        self.options = dict(options or {})
        self.reverse = len(t) > 1 and bool(t[0] > t[1])
        self.fixed = self._fixed() if method in FIXED_METHODS else None

    def run(self) -> Any:
        if len(self.t) == 1:
            return self._stacked(self.form.flat(self.y0)[None])
        if self.fixed is None:
            return self.adaptive().run()
        f, y0, t = self.field(self.func), self.form.flat(self.y0), self._forwards(self.t)
        if self.event_fn is None:
            return self._stacked(self.fixed.solve(f, y0, t))
        event = self._event()
        at, y = self.fixed.solve_until(f, y0, t[0].to(self._time_dtype()), event)
        return self._ended(f, event, y0, t, at, y)

    def run_adjoint(
        self, back: Any, options: dict[str, Any], tolerances: dict[str, Any],
        params: tuple[Tensor, ...],
    ) -> Any:  # fmt: skip
        """Forward and adjoint as two solves of this module's own interface."""
        if options.get("norm") == "seminorm":
            options = {k: v for k, v in options.items() if k != "norm"}
        f, y0, t = self.field(self.func), self.form.flat(self.y0), self._forwards(self.t)
        if self.reverse and callable(options.get("grid_constructor")):
            make = options["grid_constructor"]
            options["grid_constructor"] = lambda f, y0, t: -make(f, y0, -t)
        callbacks = {name: getattr(self.func, f"{name}_adjoint", None) for name in _STEP_CALLBACKS}

        def back_solve(field: Any, state: tuple[Tensor, ...], times: Tensor) -> Any:
            for name, callback in callbacks.items():
                if callback is not None:
                    setattr(field, name, callback)
            return odeint(field, state, times, method=back, options=options, **tolerances)

        if self.event_fn is None:

            def forward(y0: Tensor, t: Tensor) -> Tensor:
                if self.fixed is not None:
                    return self.fixed.solve(f, y0, t)
                found = odeint(f, y0, t, rtol=self.rtol, atol=self.atol, method=self.method,
                               options=self.options)  # fmt: skip
                return found

            return self._stacked(AdjointSolve.apply(forward, back_solve, f, y0, t, *params))
        event = self._event()
        start = t[0].to(self._time_dtype())
        with torch.no_grad():
            if self.fixed is None:
                at, ends = odeint(
                    f, y0, t, rtol=self.rtol, atol=self.atol, method=self.method,
                    options=self.options, event_fn=event,
                )  # fmt: skip
                y = ends[-1]
            else:
                at, y = self.fixed.solve_until(f, y0, start, event)
        ends = AdjointSolve.apply(
            lambda y0, t: torch.stack([y0, y]), back_solve, f, y0, torch.stack([start, at]), *params
        )
        return self._ended(f, event, y0, t, at, ends[-1])

    def adaptive(self) -> AdaptiveSolve:
        return AdaptiveSolve(
            self.func, self.form, self.y0, self.t, self.rtol, self.atol, self.method,
            self.options, self.event_fn,
        )  # fmt: skip

    def field(self, func: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """``func`` on flat states, in a time that always runs forwards."""
        flat = self.form.flat_rhs(func)
        if not self.reverse:
            return flat
        return lambda t, y: -flat(-t, y)

    def _fixed(self) -> FixedGrid:
        more: dict[str, Any] = {"atol": _smallest(self.atol), "rtol": _smallest(self.rtol)}
        options, form, reverse = dict(self.options), self.form, self.reverse
        for key in ("engine", "sensealg", "progress"):
            options.pop(key, None)
        callback = getattr(self.func, "callback_step", None)
        if callback is not None:
            more["callback_step"] = lambda t, y, dt: callback(
                -t if reverse else t, form.from_flat(y), dt
            )
        for name in ("callback_accept_step", "callback_reject_step"):
            if getattr(self.func, name, None) is not None:
                warnings.warn(f"Method {self.method!r} never calls {name}.", stacklevel=5)
        if reverse and options.get("grid_constructor") is not None:
            make = options["grid_constructor"]
            options["grid_constructor"] = lambda f, y0, t: -make(f, y0, -t)
        return fixed_grid(self.method, options, **more)

    def _forwards(self, t: Tensor) -> Tensor:
        return -t if self.reverse else t

    def _time_dtype(self) -> torch.dtype:
        return torch.empty(0, dtype=self.form.dtype).real.dtype

    def _event(self) -> Callable[[Tensor, Tensor], Tensor]:
        sign = -1.0 if self.reverse else 1.0
        event_fn, form = self.event_fn, self.form
        assert event_fn is not None
        return combined(
            lambda t, y: event_fn(sign * t, form.from_flat(y)),
            self._forwards(self.t)[0].detach(),
            form.flat(self.y0).detach(),
        )

    def _ended(
        self, f: Any, event: Any, y0: Tensor, t: Tensor, at: Tensor, y: Tensor
    ) -> tuple[Tensor, Any]:
        at, y = reroute(f, event, at, y)
        at = self._forwards(at).to(self.t)
        return at, self._stacked(torch.stack([y0.to(y.dtype), y]))

    def _stacked(self, y: Tensor) -> Any:
        return self.form.from_flat(y, 1)


def _smallest(tolerance: Any) -> float:
    if isinstance(tolerance, (tuple, list)):
        return min(_smallest(x) for x in tolerance)
    return float(torch.as_tensor(tolerance).detach().min())
