"""Neural ordinary differential equations, plain, augmented and of second order; ODE blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pysciml.errors import InputError
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import Field, require_tensor
from pysciml.options import require_count

__all__ = ["AugmentedNeuralODE", "NeuralODE", "ODEBlock", "SecondOrderNeuralODE"]


class NeuralODE(ContinuousModule):
    """``u0 -> u(t1)`` of ``du/dt = f(u, t)``, or the states at ``saveat``.

    Parameters, attributes: see :class:`ContinuousModule`. Source: Chen, Rubanova, Bettencourt,
    Duvenaud, "Neural ordinary differential equations", NeurIPS 2018.
    """

    def forward(self, u0: Any, saveat: Any = None) -> Any:
        """From the state at ``t0`` (tensor or pytree, any shapes) to the solution.

        Returns the state at ``t1`` in the shape of ``u0``; with ``saveat``, here or at
        construction, the states there, (m, *u0.shape).
        """
        given = self._outputs(saveat)
        return self._states(u0, given)


class AugmentedNeuralODE(ContinuousModule):
    """A neural ODE in more dimensions than its input: paths may then cross.

    Parameters
    ----------
    vector_field : as for NeuralODE, on states whose last axis has ``augment`` more entries
    augment : int
        Number of dimensions added, starting at zero.
    keep : bool
        Whether the result keeps them; else it has the input's shape.
    lift : nn.Module, optional
        Gives the added entries from the input, (..., d) -> (..., augment); zeros where None.

    Source: Dupont, Doucet, Teh, "Augmented neural ODEs", NeurIPS 2019.
    """

    def __init__(
        self,
        vector_field: Callable[..., Any],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        *,
        augment: int,
        keep: bool = False,
        lift: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(vector_field, tspan, alg, **options)
        require_count("augment", augment)
        if lift is not None and not callable(lift):
            raise InputError(f"lift is a {type(lift).__name__}; give an nn.Module, or None.")
        self.augment, self.keep, self.lift = augment, keep, lift

    def forward(self, u0: Tensor, saveat: Any = None) -> Tensor:
        """From (..., d) to (..., d), (..., d + augment) with ``keep``; ``saveat``: as NeuralODE."""
        require_tensor(u0, "u0", "(..., d)")
        given = self._outputs(saveat)
        if self.lift is None:
            added = u0.new_zeros(*u0.shape[:-1], self.augment)
        else:
            added = self.lift(u0)
            require_tensor(added, "What lift gave", f"{(*u0.shape[:-1], self.augment)}", u0.ndim)
            if added.shape != (*u0.shape[:-1], self.augment):
                raise InputError(
                    f"lift gave shape {tuple(added.shape)}; it must give "
                    f"{(*u0.shape[:-1], self.augment)}, the entries to be added."
                )
        out = self._states(torch.cat([u0, added], dim=-1), given)
        return out if self.keep else out[..., : u0.shape[-1]]


class _SecondOrder(Field):
    def __call__(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        _, v = u.chunk(2, dim=-1)
        a = self.value(u, t)
        require_tensor(a, "What acceleration gave", f"{tuple(v.shape)}", v.ndim)
        if a.shape != v.shape:
            raise InputError(
                f"acceleration gave shape {tuple(a.shape)} for a state [x, v] of shape "
                f"{tuple(u.shape)}; it must give {tuple(v.shape)}."
            )
        return torch.cat([v, a], dim=-1)


class SecondOrderNeuralODE(ContinuousModule):
    """``x'' = a(x, x', t)`` with ``a`` a network; states are ``[x, x']`` on the last axis.

    Parameters
    ----------
    acceleration : nn.Module or callable
        ``a(u)`` or ``a(u, t)`` of ``u = [x, v]``, (..., 2 d), giving (..., d).

    Other parameters as :class:`ContinuousModule`. Source: Norcliffe et al., "On second order
    behaviour in augmented neural ODEs", NeurIPS 2020.
    """

    def __init__(
        self,
        acceleration: Callable[..., Any],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(acceleration, tspan, alg, **options)

    def _make_field(self, timed: bool) -> Field:
        return _SecondOrder(self.vector_field, timed)

    def forward(self, u0: Tensor, saveat: Any = None) -> Tensor:
        """From ``[x0, v0]``, (..., 2 d), to that at ``t1``, or at ``saveat``, times in front."""
        require_tensor(u0, "u0", "(..., 2 d)")
        if u0.shape[-1] % 2:
            raise InputError(
                f"u0 has shape {tuple(u0.shape)}; its last axis is [x, v], of even length."
            )
        given = self._outputs(saveat)
        return self._states(u0, given)


class _WithTime(Field):
    def __call__(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        column = t.expand(u.shape[0], 1, *u.shape[2:])
        return self.value(torch.cat([u, column], dim=1), t)


class ODEBlock(ContinuousModule):
    """A neural ODE as one layer of a network: features in, features of the same shape out.

    For classifiers, in ``nn.Sequential`` between other layers. As :class:`NeuralODE` without
    ``saveat``; the time may be appended to the features.

    Parameters
    ----------
    append_time : bool
        The vector field gets ``[u, t]`` on axis 1 (features, channels), one more than it gives.
    """

    def __init__(
        self,
        vector_field: Callable[..., Any],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        *,
        append_time: bool = False,
        **options: Any,
    ) -> None:
        if options.get("saveat") is not None:
            raise InputError("ODEBlock gives its features at the end only; use NeuralODE.")
        self.append_time = append_time
        super().__init__(vector_field, tspan, alg, **options)

    def _make_field(self, timed: bool) -> Field:
        kind = _WithTime if self.append_time else Field
        return kind(self.vector_field, timed)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, ...) to the same shape."""
        if self.append_time:
            require_tensor(x, "x", "(batch, features, ...), as append_time=True takes it", 2)
        return self._states(x)
