"""CVODE and IDA (through scikit-sundae) set up for one problem: kernels in, a Stepper out."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sksundae.cvode import CVODE, CVODEJacTimes
from sksundae.ida import IDA, IDAJacTimes

from pysciml.engines.sundials import quiet
from pysciml.engines.sundials.consistent import consistent
from pysciml.engines.sundials.integrate import Conditions, InitialFailure, NotFinite

Array = npt.NDArray[np.float64]

quiet.silence_logger()

_SAID_BY_SUNDIALS = re.compile(r"(CVode|IDA|SUN|N_V)\w* - ")

#: Stands for a derivative that is not finite: a trial step that left the function's domain is
#: rejected and shortened. SUNDIALS itself would compare with NaN and never come back.
_HUGE = 1e100
#: Values that are not finite, without a step between them, after which to give up.
_PATIENCE = 1000
NOT_FINITE = "the right-hand side became inf or NaN"


class TooMany(Exception):
    """More evaluations than were allowed."""


@dataclass
class Linear:
    """The linear solver of Newton's iteration, chosen by size and structure of the Jacobian."""

    kind: str  # "dense", "lapackdense", "band", "sparse", "gmres", "bicgstab", "tfqmr"
    lband: int = 0
    uband: int = 0
    krylov_dim: int = 0
    sparsity: Any = None

    @property
    def is_direct(self) -> bool:
        return self.kind not in ("gmres", "bicgstab", "tfqmr")

    def options(self) -> dict[str, Any]:
        if self.kind == "band":
            return {"linsolver": "band", "lband": self.lband, "uband": self.uband}
        if self.kind == "sparse":
            return {"linsolver": "sparse", "sparsity": self.sparsity}
        if not self.is_direct:
            return {"linsolver": self.kind, "krylov_dim": self.krylov_dim or 10}
        return {"linsolver": self.kind}


@cache
def has_sparse_solver() -> bool:
    """Whether this build of scikit-sundae has SuperLU_MT."""
    try:
        _cvode(lambda t, y, yp: None, {"linsolver": "sparse", "sparsity": np.eye(2)})
    except ValueError:
        return False
    return True


def _cvode(rhs: Callable[..., None], options: dict[str, Any]) -> CVODE:
    if options["linsolver"] != "sparse":
        return CVODE(rhs, **options)
    with warnings.catch_warnings():
        # that a pattern goes with the Jacobian is said to be one too many, but is needed
        warnings.filterwarnings("ignore", message="Custom sparse Jacobian")
        return CVODE(rhs, **options)


@dataclass
class Counts:
    """Evaluations, counted where they are made."""

    nf: int = 0
    njacs: int = 0
    njv: int = 0
    bad: int = 0  # values that were not finite, since t last moved
    t: float = math.nan
    limit: float = math.inf  # evaluations after which TooMany is raised

    def after(self, result: Any) -> Any:
        """Take note of a step: where it got on, what was not finite before it is forgiven."""
        if result.status >= 0 and result.t != self.t:
            self.t, self.bad = result.t, 0
        return result


def _begin(make: Callable[[], Any], *initial: Any) -> tuple[Any, Any]:
    """A new solver at its initial values, and its first result."""
    try:
        solver = make()
        return solver, solver.init_step(*initial)
    except RuntimeError as error:
        # What the user's own function raises passes through as it is.
        if _SAID_BY_SUNDIALS.match(str(error)) is None:
            raise
        raise InitialFailure(str(error)) from error


@dataclass
class Tolerances:
    rtol: float
    atol: float | Array
    first_step: float = 0.0  # signed; 0 where the solver is to find it
    max_step: float = 0.0
    min_step: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        return {
            "rtol": self.rtol,
            "atol": self.atol,
            "first_step": max(self.first_step, 0.0),
            "max_step": self.max_step,
            "min_step": self.min_step,
            **self.extra,
        }

    def first_stop(self, t: float, stop: float) -> float:
        """Where the first step from t ends at the latest.

        scikit-sundae takes no negative first step, so in backward time it is bounded by a stop.
        """
        return max(stop, t + self.first_step) if self.first_step < 0.0 else stop


def _signed(fn: Callable[..., None], like: Callable[..., None]) -> Callable[..., None]:
    """``fn`` with its signature at hand, which scikit-sundae asks for at every solve."""
    fn.__signature__ = _signature(like)  # type: ignore[attr-defined]
    return fn


@cache
def _signature(like: Callable[..., None]) -> inspect.Signature:
    return inspect.signature(like)


def _three(t: float, y: Array, yp: Array) -> None: ...


def _four(t: float, y: Array, yp: Array, out: Array) -> None: ...


def guarded(value: Callable[..., None], counts: Counts) -> Callable[..., None]:
    """``value`` with its result checked; the last argument is the output."""
    isfinite = math.isfinite

    def check(out: Array) -> None:
        if not np.isfinite(out).all():
            counts.bad += 1
            if counts.nf <= 1 or counts.bad > _PATIENCE:
                raise NotFinite(NOT_FINITE)
            out[...] = _HUGE

    def rhs(t: float, y: Array, yp: Array) -> None:
        counts.nf += 1
        value(y, t, yp)
        if not isfinite(yp.dot(yp)):
            check(yp)
        if counts.nf > counts.limit:
            raise TooMany

    return _signed(rhs, _three)


class CvodeStepper:
    """CVODE on ``u' = f(u, t)``.

    ``value``: fn(u, t, out); ``jac``: fn(u, t, out (n, n)) or None for difference quotients;
    ``jvp``: fn(v, u, t, out) for the Krylov solvers.
    """

    def __init__(
        self,
        method: str,
        value: Callable[..., None],
        jac: Callable[..., None] | None,
        jvp: Callable[..., None] | None,
        linear: Linear,
        tol: Tolerances,
        conditions: Conditions | None,
        counts: Counts,
        monitor: Callable[[float, Array, float], bool] | None = None,
    ) -> None:
        options: dict[str, Any] = {"method": method, **linear.options(), **tol.options()}
        if linear.kind == "gmres" and jvp is not None:

            def times(t: float, y: Array, yp: Array, v: Array, out: Array) -> None:
                counts.njv += 1
                jvp(v, y, t, out)

            options["jactimes"] = CVODEJacTimes(None, times)
        elif jac is not None and linear.is_direct:

            def jacobian(t: float, y: Array, yp: Array, out: Array) -> None:
                counts.njacs += 1
                jac(y, t, out)

            options["jacfn"] = _signed(jacobian, _four)
        if conditions is not None and len(conditions):
            options["eventsfn"] = conditions.fn
            options["num_events"] = len(conditions)
        self._monitor = monitor
        self._counts, self._tol = counts, tol
        self._make = lambda: _cvode(guarded(value, counts), options)

    def start(self, t: float, u: Array, du: Array | None) -> tuple[Array, Array | None]:
        self._solver, _ = _begin(self._make, t, u)
        self._start: float | None = t
        return u, None

    def settle(self, t: float, u: Array, du: Array | None) -> tuple[Array, Array | None]:
        return u, None

    def step(self, t1: float, stop: float) -> Any:
        if self._start is not None:
            stop, self._start = self._tol.first_stop(self._start, stop), None
        return self._counts.after(self._solver.step(t1, "onestep", stop))

    def whole(self, t0: float, t1: float, u: Array, maxiters: int) -> Any:
        """All steps from t0 to t1 in one call: scikit-sundae's result, None where it fails."""
        if self._tol.first_step < 0.0:
            return None
        self._counts.limit = 2 * maxiters
        try:
            result = self._make().solve(np.array([t0, t1]), u)
        except (NotFinite, TooMany):
            return None
        finally:
            self._counts.limit = math.inf
        return result if result.status >= 0 and result.t[-1] == t1 else None

    def after_step(self, t: float, u: Array, h: float) -> bool:
        return self._monitor is not None and self._monitor(t, u, h)


class IdaStepper:
    """IDA on ``F(u', u, t) = 0``.

    ``value``: fn(du, u, t, out); ``jac``: fn(du, u, t, cj, out) filling dF/du + cj dF/du'.
    """

    def __init__(
        self,
        value: Callable[..., None],
        jac: Callable[..., None] | None,
        jvp: Callable[..., None] | None,
        linear: Linear,
        tol: Tolerances,
        conditions: Conditions | None,
        counts: Counts,
        algebraic: list[int],
        initial: str | None,
        span: float,
    ) -> None:
        options: dict[str, Any] = {**linear.options(), **tol.options()}
        if algebraic:
            options["algebraic_idx"] = algebraic
        if initial is not None:
            options["calc_initcond"] = initial
            # The direction and scale of the first step, for the consistent initial values.
            options["calc_init_dt"] = 1e-4 * span
        if linear.kind == "gmres" and jvp is not None:

            def times(
                t: float, y: Array, yp: Array, r: Array, v: Array, out: Array, cj: float
            ) -> None:
                counts.njv += 1
                jvp(yp, y, t, cj, v, out)

            options["jactimes"] = IDAJacTimes(None, times)
        elif jac is not None and linear.is_direct:

            def jacobian(t: float, y: Array, yp: Array, r: Array, cj: float, out: Array) -> None:
                counts.njacs += 1
                jac(yp, y, t, cj, out)

            options["jacfn"] = jacobian
        if conditions is not None and len(conditions):
            options["eventsfn"] = conditions.fn
            options["num_events"] = len(conditions)
        isfinite = math.isfinite

        def residual(t: float, y: Array, yp: Array, out: Array) -> None:
            counts.nf += 1
            value(yp, y, t, out)
            if not isfinite(out.dot(out)) and not np.isfinite(out).all():
                counts.bad += 1
                if counts.nf <= 1 or counts.bad > _PATIENCE:
                    raise NotFinite(NOT_FINITE)
                out[...] = _HUGE

        self._counts, self._tol = counts, tol
        self._make = lambda: IDA(residual, **options)
        as_is = {k: v for k, v in options.items() if not k.startswith("calc_init")}
        self._make_as_is = lambda: IDA(residual, **as_is)
        self._search: Callable[..., tuple[Array, Array] | None] = lambda t, u, du: None
        if initial is not None and jac is not None:
            self._search = partial(consistent, value, jac)

    def start(self, t: float, u: Array, du: Array | None) -> tuple[Array, Array | None]:
        du = np.zeros_like(u) if du is None else du
        try:
            self._solver, result = _begin(self._make, t, u, du)
        except InitialFailure:
            found = self._search(t, u, du)
            if found is None:
                raise
            self._solver, result = _begin(self._make_as_is, t, *found)
        self._start: float | None = t
        return result.y, result.yp

    def settle(self, t: float, u: Array, du: Array | None) -> tuple[Array, Array | None]:
        return self.start(t, u, du)

    def step(self, t1: float, stop: float) -> Any:
        if self._start is not None:
            stop, self._start = self._tol.first_stop(self._start, stop), None
        return self._counts.after(self._solver.step(t1, "onestep", stop))

    def after_step(self, t: float, u: Array, h: float) -> bool:
        return False
