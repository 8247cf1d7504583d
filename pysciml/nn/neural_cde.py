"""Neural controlled differential equations: sequences, irregular and with gaps, as paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pysciml.errors import InputError
from pysciml.flatten import state_spec
from pysciml.functions import mistakes_named
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import Field
from pysciml.nn.paths import CubicPath, LinearPath, Path, cubic_derivative, linear_derivative
from pysciml.nn.regularise import RandomEndTime
from pysciml.problems import require_finite

__all__ = ["NeuralCDE"]

_PATHS = {
    "linear": LinearPath,
    "rectilinear": LinearPath,
    "natural": CubicPath,
    "hermite": CubicPath,
}


class _Controlled(Field):
    def __init__(self, vector_field: Any, timed: bool, cubic: bool, channels: int) -> None:
        super().__init__(vector_field, timed)
        self.cubic, self.channels = cubic, channels

    def __call__(self, z: Tensor, p: Any, t: Tensor) -> Tensor:
        coeffs, times = p
        derivative = cubic_derivative if self.cubic else linear_derivative
        control = derivative(coeffs, times, t)
        value = self.value(z, t)
        if not isinstance(value, Tensor):
            raise InputError(
                f"vector_field gave a {type(value).__name__}; it must give a tensor of shape "
                f"{(*z.shape, self.channels)}."
            )
        if value.numel() != z.numel() * self.channels:
            raise InputError(
                f"vector_field gave shape {tuple(value.shape)} for hidden states of shape "
                f"{tuple(z.shape)} and {self.channels} channels; it must give "
                f"{(*z.shape, self.channels)}, or that with the last two axes as one."
            )
        matrix = value.reshape(*z.shape, self.channels)
        return (matrix * control.unsqueeze(-2)).sum(-1)


class NeuralCDE(ContinuousModule):
    """``dz = f(z, t) dX`` along a path ``X`` through the data, from ``z(t0) = initial(X(t0))``.

    Parameters
    ----------
    vector_field : nn.Module or callable
        ``f(z)`` or ``f(z, t)`` of (batch, hidden), giving (batch, hidden, channels) or
        (batch, hidden * channels); end it with a tanh, which keeps its size in bounds.
    channels, hidden : int
    path : "hermite", "natural", "linear" or "rectilinear"
        Which coefficients the module is given: those of :func:`hermite_coefficients`,
        :func:`natural_cubic_coefficients` or :func:`linear_coefficients` of
        :mod:`pysciml.nn.paths`.
    initial : nn.Module, optional
        From (batch, channels) to (batch, hidden); a linear layer where None.
    readout : nn.Module, optional
        Applied to the hidden states that are returned.

    Other parameters as :class:`ContinuousModule`, without ``tspan``: the path's own times. Its
    regularisers, RandomEndTime excepted, take ``dz/dt = f(z, t) dX/dt`` for the vector field.

    Source: Kidger, Morrill, Foster, Lyons, "Neural controlled differential equations for irregular
    time series", NeurIPS 2020.
    """

    def __init__(
        self,
        vector_field: Callable[..., Any],
        channels: int,
        hidden: int,
        alg: Any = None,
        *,
        path: str = "hermite",
        initial: nn.Module | None = None,
        readout: nn.Module | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(path, str) or path not in _PATHS:
            raise InputError(f"path is {path!r}; give one of {', '.join(_PATHS)}.")
        for name, size in (("channels", channels), ("hidden", hidden)):
            if type(size) is not int or size < 1:
                raise InputError(f"{name} is {size!r}; give a positive whole number.")
        for name, part in (("initial", initial), ("readout", readout)):
            if part is not None and not callable(part):
                raise InputError(f"{name} is a {type(part).__name__}; give an nn.Module, or None.")
        if "tspan" in options:
            raise InputError(
                "NeuralCDE does not take 'tspan': the path's own times are the span; leave it out."
            )
        self.path, self.channels, self.hidden = path, channels, hidden
        super().__init__(vector_field, (0.0, 1.0), alg, **options)
        if any(isinstance(r, RandomEndTime) for r in self.regularise):
            raise InputError(
                "NeuralCDE does not take RandomEndTime: its path ends with the data, and there is "
                "none beyond; give another regulariser."
            )
        self.initial = nn.Linear(channels, hidden) if initial is None else initial
        self.readout = readout

    def _make_field(self, timed: bool) -> Field:
        cubic = _PATHS[self.path] is CubicPath
        return _Controlled(self.vector_field, timed, cubic, self.channels)

    def forward(self, coeffs: Tensor | Path, t: Tensor | None = None, saveat: Any = None) -> Tensor:
        """From a batch of coefficients to hidden states, or to what ``readout`` makes of them.

        Parameters
        ----------
        coeffs : tensor (batch, ...) of the kind of ``path``, or a Path
        t : tensor (m,), optional
            Times the coefficients were made with; 0, 1, ... where None.
        saveat : times, optional
            Where the result is given, times in front; at the end of the path only where None.

        Raises
        ------
        InputError
            Coefficients that do not fit the times or ``channels``, or have no batch axis.
        """
        kind = _PATHS[self.path]
        path = coeffs if isinstance(coeffs, Path) else kind(coeffs, t)
        if not isinstance(path, kind):
            raise InputError(f"The path is a {type(path).__name__}, but path={self.path!r}.")
        if isinstance(path, LinearPath) and path.channels == 4 * self.channels:
            raise InputError(
                f"The coefficients have {path.channels} columns, as those of a cubic path of "
                f"{self.channels} channels have, but path={self.path!r}; make them by "
                "linear_coefficients, or give path='hermite' or 'natural' to the module."
            )
        if path.coeffs.ndim != 3 or path.channels != self.channels:
            raise InputError(
                f"The coefficients have shape {tuple(path.coeffs.shape)}, of {path.channels} "
                f"channels; this module takes a batch (axis 0) of {self.channels} channels."
            )
        require_finite(path.coeffs, "coeffs")
        first = path.evaluate(path.times[0])
        with mistakes_named(self.initial, "initial", ("x",), state_spec(first), False):
            z0 = self.initial(first)
        if not isinstance(z0, Tensor):
            raise InputError(
                f"initial gave a {type(z0).__name__}; it must give a tensor of shape "
                f"{(len(path.coeffs), self.hidden)}."
            )
        if z0.shape != (len(path.coeffs), self.hidden):
            raise InputError(
                f"initial gave shape {tuple(z0.shape)}; it must give "
                f"{(len(path.coeffs), self.hidden)}."
            )
        span = (float(path.times[0]), float(path.times[-1]))
        given = self._outputs(saveat, span)
        more = {"tstops": path.times[1:-1]} if path.kinks and len(path.times) > 2 else {}
        p = (path.coeffs, path.times)
        out = self._states(z0, given, span, p, (True, False), **more)
        return out if self.readout is None else self.readout(out)
