"""torchsde's interface on pysciml: ``import pysciml.compat.torchsde as torchsde``.

Signatures, method names and conventions of SDE objects are those of torchsde 0.2.6. What differs:

* Solves run on the ``julia`` engine by StochasticDiffEq's algorithms, drift and diffusion captured
  as kernels: ``euler`` is ``EM(split=False)``, ``milstein`` ``RKMil`` (a difference in place of the
  diffusion's derivative), ``srk`` ``SRIW1`` (``SRA1`` for additive noise), and every method for
  Stratonovich's equation but ``milstein`` and ``log_ode`` is ``EulerHeun``, which is torchsde's
  ``heun``. With ``adaptive=True`` the adaptive kin: ``LambaEM``, ``LambaEulerHeun``. ``method`` may
  also be any algorithm of pysciml. Without Julia, torchsde's own methods are used.
* ``method=None`` is ``milstein`` for Ito's equation with diagonal noise, else ``euler``, or
  ``heun`` for Stratonovich's: each has gradients (``srk``, torchsde's default, has none in Julia).
* Gradients go back through the steps taken, in ``sdeint_adjoint`` as in ``sdeint``: exact for the
  numbers computed. They reach every tensor that the equation uses, and cannot be taken twice.
* New noise is drawn from torch's generator. A given ``bm`` is followed exactly where steps are
  fixed: torchsde's and :class:`BrownianInterval`, or anything with ``bm(ta, tb)`` and ``bm.shape``.
* General noise of a batch is one block-diagonal matrix: for small batches.

``options`` takes one more key, ``engine``, as in :func:`pysciml.solve`.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pysciml import torchsde as own
from pysciml.algorithms import Algorithm, AlgorithmName, algorithm
from pysciml.compat.adaptive import NoEffectWarning
from pysciml.compat.brownian import (
    BrownianInterval,
    BrownianPath,
    BrownianTree,
    brownian_interval_like,
)
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import EngineError, InputError, did_you_mean
from pysciml.flatten import is_real, state_spec
from pysciml.functions import mistakes_named
from pysciml.noise import NoiseGrid
from pysciml.sensitivity import BacksolveAdjoint
from pysciml.signatures import require_function
from pysciml.solve import solve
from pysciml.stochastic import SDEProblem, require_no_times

__all__ = [
    "BaseSDE",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "NoEffectWarning",
    "SDEIto",
    "SDEStratonovich",
    "brownian_interval_like",
    "sdeint",
    "sdeint_adjoint",
]

_NOISE_TYPES = ("diagonal", "scalar", "additive", "general")
_SDE_TYPES = ("ito", "stratonovich")
_NAMES = ("drift", "diffusion", "prior_drift", "drift_and_diffusion")
_ITO = ("euler", "milstein", "srk")
_STRATONOVICH = ("milstein", "midpoint", "heun", "euler_heun", "reversible_heun", "log_ode")
#: More entries than this of the matrix of general noise are too many.
_MOST_ENTRIES = 2e7


class BaseSDE(nn.Module):
    """An equation with its ``noise_type`` and ``sde_type``. Raises InputError for others."""

    def __init__(self, noise_type: str, sde_type: str) -> None:
        super().__init__()
        _check_types(noise_type, sde_type)
        self.noise_type, self.sde_type = noise_type, sde_type


class SDEIto(BaseSDE):
    """Base of equations in Ito's sense."""

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, "ito")


class SDEStratonovich(BaseSDE):
    """Base of equations in Stratonovich's sense."""

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, "stratonovich")


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Any = None,
    method: Any = None,
    dt: Any = 1e-3,
    adaptive: bool = False,
    rtol: Any = 1e-5,
    atol: Any = 1e-4,
    dt_min: Any = 1e-5,
    options: dict[str, Any] | None = None,
    names: dict[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
    **unused_kwargs: Any,
) -> Any:
    """Solve ``dy = f(t, y) dt + g(t, y) dW`` with ``y(ts[0]) = y0``.

    Parameters
    ----------
    sde : object
        With ``noise_type`` ("diagonal", "scalar", "additive" or "general"), ``sde_type`` ("ito" or
        "stratonovich") and methods ``f(t, y)``, (batch, d), and ``g(t, y)``, (batch, d) for
        diagonal noise, else (batch, d, m); or ``f_and_g(t, y)`` for both.
    y0 : tensor (batch, d)
    ts : tensor or sequence (T,)
        Increasing times.
    bm : BrownianInterval or the like, optional
        The noise; (batch, m) increments.
    method : str or algorithm, optional
        See the module.
    dt : the step, or with ``adaptive`` the first one
    rtol, atol : of adaptive steps
    dt_min : without Julia, the step at which a solve fails
    options : dict, optional
        ``engine``; torchsde's ``grad_free`` has no effect.
    names : dict, optional
        Other names of the methods: "drift", "diffusion", "prior_drift", "drift_and_diffusion".
    logqp : bool
        Also return the log-ratio of the path measures between the times: with a method ``h(t, y)``,
        the prior's drift, the integral of ``|g^-1 (f - h)|^2 / 2``.
    extra : bool
        Also return the solver's own state, which is empty here.

    Returns
    -------
    tensor (T, batch, d); with ``logqp`` also a tensor (T - 1, batch).

    Raises
    ------
    InputError (a ValueError)
        For input that cannot be meant.
    EngineError
        For what the engine cannot do.
    SolveError
        Where the solve fails.
    """
    _warn_of_unused(unused_kwargs, "sdeint")
    call = _Call(sde, y0, ts, method, names, logqp, options, extra_solver_state)
    return call.run(bm, dt, adaptive, rtol, atol, dt_min, extra, None)


def sdeint_adjoint(
    sde: Any,
    y0: Tensor,
    ts: Any,
    bm: Any = None,
    method: Any = None,
    adjoint_method: Any = None,
    dt: Any = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: Any = 1e-5,
    adjoint_rtol: Any = 1e-5,
    atol: Any = 1e-4,
    adjoint_atol: Any = 1e-4,
    dt_min: Any = 1e-5,
    options: dict[str, Any] | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    names: dict[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Any = None,
    **unused_kwargs: Any,
) -> Any:
    """:func:`sdeint`, whose gradients need no memory of torch's here either.

    ``adjoint_method``, ``adjoint_adaptive``, ``adjoint_rtol``, ``adjoint_atol`` and
    ``adjoint_options`` have no effect on the julia engine, where gradients go back through the
    steps themselves. ``sde`` is an nn.Module, or ``adjoint_params`` are given, as in torchsde.
    """
    _warn_of_unused(unused_kwargs, "sdeint_adjoint")
    if adjoint_params is None and not isinstance(sde, nn.Module):
        raise InputError(
            "sdeint_adjoint takes an nn.Module as sde; for another object give the tensors it "
            "depends on as adjoint_params, () where there are none."
        )
    for name, value in (("adjoint_method", adjoint_method), ("adjoint_options", adjoint_options)):
        if value is not None:
            warnings.warn(
                f"{name} has no effect: gradients go back through the steps themselves, or by "
                "torchsde's default adjoint without Julia.", NoEffectWarning, stacklevel=2,
            )  # fmt: skip
    call = _Call(sde, y0, ts, method, names, logqp, options, extra_solver_state)
    sensealg = BacksolveAdjoint(abstol=float(adjoint_atol), reltol=float(adjoint_rtol))
    return call.run(bm, dt, adaptive, rtol, atol, dt_min, extra, sensealg)


# -- the equation ----------------------------------------------------------------------------------


class _Fields:
    """Drift and diffusion of an SDE object as ``f(u, p, t)`` and ``g(u, p, t)``; made once."""

    def __init__(self, sde: Any, names: dict[str, str], logqp: bool) -> None:
        for key in names:
            if key not in _NAMES:
                raise InputError(
                    f"names has the key {key!r}; it takes {', '.join(_NAMES)}."
                    f"{did_you_mean(str(key), _NAMES)}"
                )
        self.sde, self.logqp = sde, logqp
        self.noise_type = sde.noise_type
        self.f = self._method(names.get("drift", "f"))
        self.g = self._method(names.get("diffusion", "g"))
        self.h = self._method(names.get("prior_drift", "h"))
        self.both = self._method(names.get("drift_and_diffusion", "f_and_g"))
        if self.both is None and (self.f is None or self.g is None):
            raise InputError(
                f"sde, a {type(sde).__name__}, must have methods f(t, y) and g(t, y), or "
                "f_and_g(t, y); products alone (g_prod, f_and_g_prod) do not do here."
            )
        if logqp and self.h is None:
            raise InputError("logqp=True needs the prior's drift, a method h(t, y) of sde.")

    def _method(self, name: str) -> Callable[[Tensor, Tensor], Any] | None:
        found = getattr(self.sde, name, None)
        if found is not None:
            require_function(found, f"{name} of sde", ("t", "y"))
        return found

    def pair(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.f is not None and self.g is not None:
            return _tensor(self.f(t, y), "f"), _tensor(self.g(t, y), "g")
        assert self.both is not None
        both = self.both(t, y)
        if not isinstance(both, (tuple, list)) or len(both) != 2:
            raise InputError(f"f_and_g gave {_a(both)}; it must give the pair (f, g) of tensors.")
        return _tensor(both[0], "f"), _tensor(both[1], "g")

    def drift(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        if not self.logqp:
            return _tensor(self.f(t, u), "f") if self.f is not None else self.pair(t, u)[0]
        y = u[:, :-1]
        f, g = self.pair(t, y)
        assert self.h is not None
        gap = f - _tensor(self.h(t, y), "h")
        if self.noise_type == "diagonal":
            small = 1e-7 * torch.where(g < 0, -torch.ones_like(g), torch.ones_like(g))
            ratio = gap / torch.where(g.abs() > 1e-7, g, small)
        else:
            ratio = _least(g, gap)
        return torch.cat([f, ratio.square().sum(1, keepdim=True) / 2], dim=1)

    def diffusion(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        y = u[:, :-1] if self.logqp else u
        g = _tensor(self.g(t, y), "g") if self.g is not None else self.pair(t, y)[1]
        if self.logqp:
            g = torch.cat([g, torch.zeros_like(g[:, :1])], dim=1)
        # one process for one entry is diagonal noise, and one for one sample scalar noise
        one = g.ndim == 3 and g.shape[2] == 1 and (g.shape[0] == 1 or g.shape[1] == 1)
        return g[..., 0] if one else g


def _least(g: Tensor, v: Tensor) -> Tensor:
    """The least w with ``g w = v``, or the w nearest to it: g (b, d, m) of full rank."""
    t = g.transpose(1, 2)
    if g.shape[1] <= g.shape[2]:
        return (t @ torch.linalg.solve(g @ t, v[..., None]))[..., 0]
    return torch.linalg.solve(t @ g, t @ v[..., None])[..., 0]


class _Call:
    """One call of ``sdeint``, its input checked."""

    def __init__(
        self, sde: Any, y0: Any, ts: Any, method: Any, names: Any, logqp: bool, options: Any,
        extra_solver_state: Any,
    ) -> None:  # fmt: skip
        if isinstance(sde, type):
            raise InputError(f"sde is the class {sde.__name__}; give an object of it.")
        for name in ("noise_type", "sde_type"):
            if not hasattr(sde, name):
                raise InputError(
                    f"sde, a {type(sde).__name__}, has no attribute {name}; give it one, e.g. by "
                    'SDEIto("diagonal").'
                )
        _check_types(sde.noise_type, sde.sde_type)
        if not isinstance(y0, Tensor) or y0.ndim != 2:
            given = f"has shape {tuple(y0.shape)}" if isinstance(y0, Tensor) else f"is {_a(y0)}"
            raise InputError(f"y0 {given}; give a tensor (batch, d).")
        self.spec = state_spec(y0, "y0")
        for name, value in (("options", options), ("names", names)):
            if value is not None and not isinstance(value, Mapping):
                raise InputError(f"{name} is {_a(value)}; give a dict.")
        if extra_solver_state:
            raise EngineError(
                "extra_solver_state was given, but the engine's methods keep no state beside y."
            )
        options = dict(options or {})
        self.engine = choose_engine(options.pop("engine", "auto")).name
        options.pop("grad_free", None)
        if options:
            raise InputError(
                f"options does not take {next(iter(options))!r}; it takes engine and grad_free."
            )
        self.ts = _times(ts)
        self.sde, self.logqp = sde, bool(logqp)
        self.fields = _Fields(sde, dict(names or {}), self.logqp)
        self.y0 = torch.cat([y0, torch.zeros_like(y0[:, :1])], dim=1) if self.logqp else y0
        self.prototype, self.m = self._noise()
        self.method = self._method(method)

    def _noise(self) -> tuple[Tensor | None, int]:
        """The shape of general noise, and how many processes a sample has. Raises InputError."""
        takes = ("u", "p", "t")
        with torch.no_grad(), mistakes_named(self.fields.drift, "sde", takes, self.spec, False):
            t0 = torch.as_tensor(float(self.ts[0]), dtype=self.y0.dtype, device=self.y0.device)
            y0 = self.y0.detach()
            g, f = self.fields.diffusion(y0, None, t0), self.fields.drift(y0, None, t0)
        kind, (batch, d) = self.sde.noise_type, self.y0.shape
        if f.shape != self.y0.shape:
            raise InputError(
                f"f gave shape {tuple(f.shape)}, but y0 has shape {tuple(self.y0.shape)}; give one "
                "value for each of its entries."
            )
        single = g.ndim == 2 and (d == 1 or batch == 1) and kind != "diagonal"
        self.scalar = single and d > 1
        fits = g.shape == self.y0.shape if g.ndim == 2 else g.shape[:2] == self.y0.shape
        if not fits or (g.ndim == 2) != (kind == "diagonal" or single):
            wanted = "(batch, d)" if kind == "diagonal" else "(batch, d, m)"
            raise InputError(
                f"g gave shape {tuple(g.shape)} for {kind} noise and y0 of shape "
                f"{tuple(self.y0.shape)}; it must give {wanted}."
            )
        if g.ndim == 2:
            return None, 1 if self.scalar else d
        if kind == "scalar" and g.shape[2] != 1:
            raise InputError(
                f"g gave shape {tuple(g.shape)} for scalar noise, which has one process; it must "
                "give (batch, d, 1)."
            )
        entries = batch * d * batch * g.shape[2]
        if self.engine == "julia" and entries > _MOST_ENTRIES:
            raise EngineError(
                f"g has shape {tuple(g.shape)}: the julia engine would form a matrix of "
                f"{entries:.2g} entries for this batch; solve it in smaller batches."
            )
        return torch.empty(g.shape), int(g.shape[2])

    def _method(self, given: Any) -> Any:
        if isinstance(given, (Algorithm, AlgorithmName)):
            return given
        ito = self.sde.sde_type == "ito"
        names = _ITO if ito else _STRATONOVICH
        if given is None:
            if self.engine == "sundials":
                return None if ito else own.midpoint()
            plain = "milstein" if self.prototype is None else "euler"
            return plain if ito else "heun"
        if given not in names:
            known = {*_ITO, *_STRATONOVICH}
            what = "Ito's" if ito else "Stratonovich's"
            raise InputError(
                f"method is {given!r}, but {what} equation is solved by {', '.join(names)}."
                f"{did_you_mean(str(given), known) if given not in known else ''}"
            )
        return given

    def _algorithm(self, adaptive: bool) -> Any:
        name = self.method
        if name is None or isinstance(name, (Algorithm, AlgorithmName)):
            return name
        ito = self.sde.sde_type == "ito"
        interpretation = "Ito" if ito else "Stratonovich"
        if name == "milstein" and self.sde.noise_type == "additive" and self.prototype is not None:
            name, ito = "euler", True  # noise that the state does not move has no term beyond it
        if self.engine == "sundials":
            made = getattr(own, name)
            return made(interpretation=interpretation) if name == "milstein" else made()
        if name == "milstein":
            return algorithm("RKMil")(interpretation=interpretation)
        if name == "euler":
            return algorithm("LambaEM" if adaptive else "EM")(split=False)
        if name == "srk":
            return algorithm("SRA1" if self.sde.noise_type == "additive" else "SRIW1")()
        if name == "log_ode":
            raise EngineError(
                "log_ode reads areas of the noise, which the julia engine does not draw; use "
                'method="heun", or torchsde itself.'
            )
        return algorithm("LambaEulerHeun" if adaptive else "EulerHeun")()

    def run(
        self, bm: Any, dt: Any, adaptive: bool, rtol: Any, atol: Any, dt_min: Any, extra: bool,
        sensealg: Any,
    ) -> Any:  # fmt: skip
        first, last = float(self.ts[0]), float(self.ts[-1])
        if isinstance(dt, bool) or not isinstance(dt, (Tensor, numbers.Real)):
            raise InputError(f"dt is {dt!r}; give a number > 0.")
        step = float(dt)
        given: dict[str, Any] = {"dt": step, "adaptive": bool(adaptive)}
        additive = self.sde.noise_type == "additive" and self.prototype is not None
        noise: Any = "scalar" if self.scalar else "additive" if additive else "diagonal"
        if adaptive:
            given |= {"reltol": float(rtol), "abstol": float(atol)}
            if self.engine == "sundials":
                given["dtmin"] = float(dt_min)
        if bm is not None:
            noise = self._followed(bm, first, last, step, adaptive)
            given = {}
        if self.engine == "sundials":
            given["sensealg"] = sensealg
        prob = SDEProblem(
            self.fields.drift, self.fields.diffusion, self.y0, (first, last),
            noise_rate_prototype=self.prototype, noise=noise,
        )  # fmt: skip
        alg = self._algorithm(adaptive)
        ys = solve(prob, alg, engine=self.engine, saveat=self.ts, **given).u
        more = ((),) if extra else ()
        if not self.logqp:
            return (ys, *more) if more else ys
        return (ys[..., :-1], ys[..., -1].diff(dim=0), *more)

    def _followed(self, bm: Any, first: float, last: float, dt: float, adaptive: bool) -> NoiseGrid:
        """The given noise at the steps. Raises where it cannot be followed."""
        wanted = (len(self.y0), self.m)
        # of diagonal noise the log-ratio has a column of its own in torchsde, which does nothing
        own_column = self.logqp and self.prototype is None and not self.scalar
        if isinstance(bm, type) or not callable(bm) or not hasattr(bm, "shape"):
            what = f"the class {bm.__name__}" if isinstance(bm, type) else _a(bm)
            raise InputError(
                f"bm is {what}; give a motion, e.g. BrownianInterval(t0, t1, size={wanted})."
            )
        short = own_column and tuple(bm.shape) == (wanted[0], self.m - 1)
        if tuple(bm.shape) != wanted and not short:
            raise InputError(
                f"bm has shape {tuple(bm.shape)}, but the equation needs {wanted}: a row for each "
                "sample, a column for each process."
            )
        if adaptive:
            raise EngineError(
                "bm was given with adaptive=True, but a given noise is followed at fixed steps "
                "only; leave one of them out."
            )
        count = max(1, math.ceil((last - first) / dt * (1 - 1e-9)))
        times = [first + k * dt for k in range(count)] + [last]
        w = [torch.zeros(tuple(bm.shape), dtype=self.y0.dtype, device=self.y0.device)]
        with torch.no_grad():
            for a, b in zip(times, times[1:], strict=False):
                w.append(w[-1] + bm(a, b).to(w[0]))
        path = torch.stack(w)
        if short:
            path = torch.cat([path, torch.zeros_like(path[..., :1])], dim=2)
        return NoiseGrid(torch.tensor(times, dtype=torch.float64), path)


def _check_types(noise_type: Any, sde_type: Any) -> None:
    for name, given, known in (
        ("noise_type", noise_type, _NOISE_TYPES), ("sde_type", sde_type, _SDE_TYPES),
    ):  # fmt: skip
        if given not in known:
            raise InputError(f"{name} is {given!r}; give one of {', '.join(map(repr, known))}.")


def _a(x: Any) -> str:
    return f"a {type(x).__name__}"


def _tensor(x: Any, name: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise InputError(f"{name} gave {_a(x)}; it must give a tensor.")
    return x


def _times(ts: Any) -> Tensor:
    require_no_times(ts, "ts")
    try:
        if isinstance(ts, Tensor) and not is_real(ts):
            raise TypeError
        t = torch.as_tensor(ts).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"ts is {ts!r}; give a 1-d tensor or a sequence of times.") from None
    if t.ndim != 1 or len(t) < 2 or not bool((t.diff() > 0).all()):
        raise InputError(f"ts has shape {tuple(t.shape)}; give two increasing times or more.")
    return t


def _warn_of_unused(unused: dict[str, Any], name: str) -> None:
    if unused:
        warnings.warn(f"{name}: Unexpected arguments {unused}", stacklevel=3)
