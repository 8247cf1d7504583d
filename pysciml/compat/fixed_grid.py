"""Fixed-grid methods, stepped in torch: the discretisation itself is the model.

They keep the meaning they have in torchdiffeq (method names, grid, interpolation between grid
points, ``perturb``), so that a network trained through ten Euler steps is that network here too.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysciml.compat.tableaux import (
    EXPLICIT,
    IMPLICIT,
    Tableau,
    adams_bashforth,
    adams_moulton,
)
from pysciml.errors import InputError, SolveError, did_you_mean

__all__ = ["FIXED_METHODS", "FixedGrid", "fixed_grid"]

ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
FIXED_METHODS = (*EXPLICIT, *ADAMS, *IMPLICIT)

#: Options that mean something to adaptive methods only, and are accepted.
_IGNORED = ("norm", "dtype")
_MOST_STEPS = 20_000
_MOST_ORDER = 12

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass
class FixedGrid:
    """One method with its options; ``solve`` and ``solve_until`` run it on f(t, y), y one tensor.

    f may be evaluated just after the start of a step and just before its end (``perturb``): where
    it jumps on a grid point, each step then sees its own side.
    """

    method: str
    step_size: Any = None
    grid_constructor: Any = None
    interp: str = "linear"
    perturb: bool = False
    rtol: float = 1e-7
    atol: float = 1e-9
    max_order: int = _MOST_ORDER
    max_iters: int | None = None
    callback_step: Callable[[Tensor, Any, Any], None] | None = None

    def __post_init__(self) -> None:
        if self.step_size is not None and self.grid_constructor is not None:
            raise InputError("options has both step_size and grid_constructor; give one of them.")
        if self.step_size is not None and not float(self.step_size) > 0:
            raise InputError(f"options['step_size'] is {self.step_size}; give a number > 0.")
        if self.interp not in ("linear", "cubic"):
            raise InputError(f"options['interp'] is {self.interp!r}; give 'linear' or 'cubic'.")
        if not 1 <= int(self.max_order) <= _MOST_ORDER:
            raise InputError(
                f"options['max_order'] is {self.max_order}; give one from 1 to {_MOST_ORDER}."
            )

    # ---- running

    def solve(self, f: Field, y0: Tensor, t: Tensor) -> Tensor:
        """States at the times ``t`` (increasing), (m, *y0.shape)."""
        grid = self._grid(f, y0, t)
        step = _stepper(self)
        out, y, j = [y0], y0, 1
        for t0, t1 in zip(grid[:-1], grid[1:], strict=True):
            dt = t1 - t0
            if self.callback_step is not None:
                self.callback_step(t0, y, dt)
            dy, f0 = step(f, t0, dt, t1, y)
            y1 = y + dy.to(y.dtype)
            while j < len(t) and bool(t1 >= t[j]):
                out.append(self._between(f, t0, t1, y, y1, f0, t[j]))
                j += 1
            y = y1
        return torch.stack(out)

    def solve_until(
        self, f: Field, y0: Tensor, t0: Tensor, event: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The first time after ``t0`` at which ``event(t, y)`` changes sign, and the state there.

        The time carries no gradient, and the state that of a fixed time.
        """
        if self.step_size is None:
            raise InputError(
                f"An event with method {self.method!r} needs options={{'step_size': ...}}: there "
                "is no grid of output times to step on."
            )
        dt = torch.as_tensor(self.step_size, dtype=t0.dtype, device=t0.device)
        step, y = _stepper(self), y0
        sign0 = torch.sign(event(t0, y0))
        for _ in range(_MOST_STEPS):
            t1 = t0 + dt
            dy, f0 = step(f, t0, dt, t1, y)
            y1 = y + dy.to(y.dtype)
            if bool(torch.sign(event(t1, y1)) != sign0):
                break
            t0, y = t1, y1
        else:
            raise SolveError(
                f"No event in {_MOST_STEPS} steps, up to t = {float(t1.detach()):g}; check "
                "event_fn, or give a larger step_size.",
                retcode="MaxIters", t=float(t1.detach()), solution=None,
            )  # fmt: skip
        with torch.no_grad():
            low, high = t0.clone(), t1.clone()
            while bool(high - low > float(self.atol)):
                middle = (low + high) / 2
                if bool((middle == low) | (middle == high)):
                    break
                value = event(middle, self._between(f, t0, t1, y, y1, f0, middle))
                low, high = (middle, high) if torch.sign(value) == sign0 else (low, middle)
            at = (low + high) / 2
        return at, self._between(f, t0, t1, y, y1, f0, at)

    # ---- parts

    def _grid(self, f: Field, y0: Tensor, t: Tensor) -> Tensor:
        if self.step_size is not None:
            count = int(torch.ceil((t[-1] - t[0]).detach() / self.step_size + 1))
            inner = torch.arange(0, count - 1, dtype=t.dtype, device=t.device) * self.step_size
            return torch.cat([inner + t[0], t[-1:]])
        if self.grid_constructor is None:
            return t
        grid = self.grid_constructor(f, y0, t)
        if not bool((grid[0] == t[0]) & (grid[-1] == t[-1])):
            raise InputError(
                f"grid_constructor gave a grid over [{float(grid[0]):g}, {float(grid[-1]):g}], but "
                f"t covers [{float(t[0]):g}, {float(t[-1]):g}]; begin and end it there exactly."
            )
        return grid

    def _between(
        self, f: Field, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, f0: Tensor, t: Tensor
    ) -> Tensor:
        """The state at ``t`` in [t0, t1], by a line or the cubic Hermite polynomial."""
        if self.interp == "linear":
            if bool(t == t0):
                return y0
            if bool(t == t1):
                return y1
            return (y0 + (t - t0) / (t1 - t0) * (y1 - y0)).to(y0.dtype)
        h, x = t1 - t0, (t - t0) / (t1 - t0)
        f1 = _at(f, t1, y1)
        value = (1 + 2 * x) * (1 - x) ** 2 * y0 + x**2 * (3 - 2 * x) * y1
        return (value + h * x * (1 - x) * ((1 - x) * f0 - x * f1)).to(y0.dtype)


def fixed_grid(method: str, options: dict[str, Any], **more: Any) -> FixedGrid:
    """The method with torchdiffeq's options; warns of unknown ones as torchdiffeq does."""
    known = {"step_size", "grid_constructor", "interp", "perturb"}
    if method in ADAMS or method in IMPLICIT:
        known.add("max_iters")
    if method in ADAMS:
        known.add("max_order")
    for key in options:
        if key not in known and key not in _IGNORED:
            warnings.warn(
                f"options[{key!r}] has no effect on method {method!r}.{did_you_mean(key, known)}",
                stacklevel=4,
            )
    if int(options.get("max_order", 4)) < 4 and method in ADAMS:
        warnings.warn(f"With max_order below 4, {method} is the method 'rk4'.", stacklevel=4)
    return FixedGrid(method, **{k: v for k, v in options.items() if k in known}, **more)


def _at(f: Field, t: Tensor, y: Tensor, nudge: int = 0) -> Tensor:
    """f just after (+1), at (0) or just before (-1) ``t``, in the state's precision of time."""
    t = torch.as_tensor(t, device=y.device)
    t = t.to(y.real.dtype if y.is_complex() else y.dtype)
    if nudge:
        # the time itself still gets its gradient
        t = t + (torch.nextafter(t.detach(), t.detach() + nudge) - t.detach())
    return f(t, y)


Step = Callable[[Field, Tensor, Any, Tensor, Tensor], tuple[Tensor, Tensor]]


def _stepper(grid: FixedGrid) -> Step:
    """A function of one step: the change of y, and f at its start. Adams methods remember."""
    first, last = (1, -1) if grid.perturb else (0, 0)
    if grid.method in EXPLICIT:
        tableau = EXPLICIT[grid.method]
        return lambda f, t0, dt, t1, y: _explicit(tableau, f, t0, dt, t1, y, first, last)
    if grid.method in ADAMS:
        return _Adams(grid, first, last)
    implicit = IMPLICIT[grid.method]
    most = 100 if grid.max_iters is None else grid.max_iters
    return lambda f, t0, dt, t1, y: _implicit(implicit, f, t0, dt, t1, y, first, last, most)


def _explicit(
    tableau: Tableau, f: Field, t0: Tensor, dt: Any, t1: Tensor, y: Tensor, first: int, last: int,
    f0: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    ks: list[Tensor] = []
    for c, row in zip(tableau.c, tableau.a, strict=True):
        if not row:
            ks.append(_at(f, t0, y, first) if f0 is None else f0)
            continue
        at = y + dt * _combine(row, ks)
        time, nudge = (t1, last) if c == 1.0 else (t0 + c * dt, 0)
        ks.append(_at(f, time, at.to(y.dtype), nudge))
    return dt * _combine(tableau.b, ks), ks[0]


def _combine(weights: tuple[float, ...], ks: Any) -> Tensor:
    terms = [w * k for w, k in zip(weights, ks, strict=False) if w]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class _Adams:
    """Adams-Bashforth, with an Adams-Moulton corrector by functional iteration where implicit."""

    def __init__(self, grid: FixedGrid, first: int, last: int) -> None:
        self.grid, self.first, self.last = grid, first, last
        self.implicit = grid.method != "explicit_adams"
        self.past: deque[Tensor] = deque(maxlen=int(grid.max_order) - 1)
        self.most = 4 if grid.max_iters is None else grid.max_iters

    def __call__(
        self, f: Field, t0: Tensor, dt: Any, t1: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        f0 = _at(f, t0, y, self.first)
        self.past.appendleft(f0)
        order = len(self.past)
        if order < 3:  # too little is known: Runge-Kutta steps start the method
            return _explicit(EXPLICIT["rk4"], f, t0, dt, t1, y, self.first, self.last, f0)
        dy = self._combine(dt, adams_bashforth(order), y)
        if not self.implicit:
            return dy, f0
        lead, *rest = adams_moulton(order + 1)
        known = self._combine(dt, tuple(rest), y)
        for _ in range(self.most):
            before, at = dy, (y + dy).to(y.dtype)
            dy = dt * lead * _at(f, t1, at, self.last) + known
            scale = self.grid.atol + self.grid.rtol * torch.maximum(before.abs(), dy.abs())
            if bool(((before - dy).abs() / scale).max() < 1):
                break
        else:
            warnings.warn(
                "implicit_adams: the corrector's iteration did not converge; take a smaller "
                "step_size, or looser rtol and atol.",
                stacklevel=2,
            )
            self.past.pop()
        return dy, f0

    def _combine(self, dt: Any, weights: tuple[float, ...], like: Tensor) -> Tensor:
        # in double precision: the weights of high orders are large and alternate in sign
        wide = torch.promote_types(like.dtype, torch.float64)
        return (dt * _combine(weights, [k.to(wide) for k in self.past])).to(like.dtype)


def _implicit(
    tableau: Tableau, f: Field, t0: Tensor, dt: Any, t1: Tensor, y: Tensor, first: int, last: int,
    most: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Newton's iteration on all stages together; gradients by one last, differentiable step.

    With the residual r(k) = 0 solved, k - J^-1 r(k) has the derivative of the implicit function.
    """
    if y.is_complex():
        raise InputError("Implicit fixed-grid methods take real states; split a complex one.")
    f0 = _at(f, t0, y, first)
    s, dtype = len(tableau.b), y.dtype
    a = torch.tensor(tableau.a, dtype=dtype, device=y.device)
    h = torch.as_tensor(dt, device=y.device).to(dtype)

    nudges = {0.0: (t0, first), 1.0: (t1, last)}
    times = [nudges.get(c, (t0 + c * dt, 0)) for c in tableau.c]

    def residual(k: Tensor) -> Tensor:
        stages = y.reshape(1, -1) + h * (a @ k)
        values = [_at(f, t, x.reshape(y.shape), n) for (t, n), x in zip(times, stages, strict=True)]
        return k - torch.stack([v.reshape(-1) for v in values])

    k = f0.detach().reshape(1, -1).repeat(s, 1)
    tol = 1e-8 if dtype == torch.float64 else 1e-6
    with torch.no_grad():
        for _ in range(most):
            jacobian = _jacobian(residual, k)
            r = residual(k)
            if bool(r.norm() < tol * 1e-3):
                break
            k = k - torch.linalg.solve(jacobian, r.reshape(-1)).reshape(k.shape)
            if bool(r.norm() < tol):  # this step squared it
                break
        else:
            warnings.warn(
                "Newton's iteration did not converge; take a smaller step_size.",
                stacklevel=2,
            )
    if torch.is_grad_enabled():
        k = k - torch.linalg.solve(jacobian, residual(k).reshape(-1)).reshape(k.shape)
    b = torch.tensor(tableau.b, dtype=dtype, device=y.device)
    return (h * (b @ k)).reshape(y.shape), f0


def _jacobian(residual: Callable[[Tensor], Tensor], k: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(residual, k, vectorize=False)
    return jacobian.reshape(k.numel(), k.numel())
