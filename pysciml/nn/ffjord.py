"""Continuous normalising flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from pysciml.errors import InputError
from pysciml.nn.base import ContinuousModule
from pysciml.nn.field import require_tensor
from pysciml.nn.record import last_of
from pysciml.nn.regularise import integrals_in, with_integrals, with_random_ends
from pysciml.nn.times import direction_of, end_of
from pysciml.options import is_whole, require_count

__all__ = ["FFJORD"]


class FFJORD(ContinuousModule):
    """A density by a continuous flow from a simple one: ``z ~ base`` at ``t0``, data at ``t1``.

    ``dx/dt = f(x, t)`` and ``d log p / dt = -trace(df/dx)``.

    Parameters
    ----------
    vector_field : nn.Module or callable
        ``f(x)`` or ``f(x, t)`` on (batch, *event_shape), each sample by itself.
    event_shape : int or tuple of int
        Shape of one sample.
    tspan, alg, engine, regularise, options : as :class:`ContinuousModule`
    trace : "exact" or "hutchinson"
        Exact costs one product for each dimension; Hutchinson's estimate costs one, with a normal
        vector a sample that is drawn anew for each call.
    base : torch Distribution, optional
        Of ``event_shape``; standard normal where None.

    Sources: Chen et al., "Neural ordinary differential equations", NeurIPS 2018; Grathwohl et al.,
    "FFJORD: free-form continuous dynamics for scalable reversible generative models", ICLR 2019.
    """

    def __init__(
        self,
        vector_field: Callable[..., Any],
        event_shape: int | Iterable[int],
        tspan: Any = (0.0, 1.0),
        alg: Any = None,
        *,
        trace: str = "exact",
        base: Distribution | None = None,
        **options: Any,
    ) -> None:
        if options.get("saveat") is not None:
            raise InputError(
                "FFJORD does not take 'saveat': densities are at the ends of tspan; leave it out."
            )
        super().__init__(vector_field, tspan, alg, **options)
        shape = _shape(event_shape)
        if trace not in ("exact", "hutchinson"):
            raise InputError(f"trace is {trace!r}; give 'exact' or 'hutchinson'.")
        if base is not None and tuple(base.event_shape) != shape:
            raise InputError(
                f"base has event_shape {tuple(base.event_shape)}, but samples have {shape}."
            )
        self.event_shape, self.trace, self._base = shape, trace, base
        # where samples are to live; moves with .to()
        self.register_buffer("_where", torch.zeros(()), persistent=False)

    @property
    def base(self) -> Distribution:
        """The distribution at ``t0``."""
        if self._base is not None:
            return self._base
        like = self._like()
        zeros = torch.zeros(self.event_shape, dtype=like.dtype, device=like.device)
        return Independent(Normal(zeros, torch.ones_like(zeros)), len(self.event_shape))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data (batch, *event_shape) to ``(z, log |dz/dx|)``: base points, and (batch,)."""
        t0, t1 = self._times()
        return self._flow(x, (t1, t0))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Base points to ``(x, log |dx/dz|)``."""
        return self._flow(z, self.tspan)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of data (batch, *event_shape), (batch,)."""
        z, log_det = self(x)
        return self.base.log_prob(z) + log_det

    def sample(self, count: int) -> Tensor:
        """Samples (count, *event_shape); no gradient is kept."""
        require_count("count", count)
        with torch.no_grad():
            z = self.base.sample((count,))
            return self._solved(self._field, z, self.tspan, end_of(self.tspan[1]))[0]

    def _like(self) -> Tensor:
        where: Any = self._where
        return next(self.parameters(), where)

    def _times(self) -> tuple[Any, Any]:
        return with_random_ends(self.regularise if self.training else (), None, self.tspan)[1]

    def _flow(self, x: Tensor, span: Any) -> tuple[Tensor, Tensor]:
        require_tensor(x, "x", f"(batch, {', '.join(map(str, self.event_shape))})", 0)
        if tuple(x.shape[1:]) != self.event_shape or x.ndim < 2:
            raise InputError(
                f"The data have shape {tuple(x.shape)}; give (batch, "
                f"{', '.join(map(str, self.event_shape))})."
            )
        weighted, kinds = integrals_in(self.regularise if self.training else ())
        needs_noise = self.trace == "hutchinson" or "jacobian" in kinds
        noise = torch.randn_like(x) if needs_noise else None
        trace = "trace" if self.trace == "exact" else "estimate"
        z, integrals = self._with_integrals(x, (trace, *kinds), span, None, noise)
        last = last_of(self)
        last.penalty = self._penalty_of_steps(x, span, None)[0] if self.training else None
        if weighted:
            last.penalty = with_integrals(last.penalty, weighted, integrals[:, 1:])
        # d log p(x(t)) / dt = - trace, and log |dz/dx| is what log p gains on the way
        return z, direction_of(span) * integrals[:, 0]


def _shape(given: Any) -> tuple[int, ...]:
    sizes = given if isinstance(given, Iterable) else (given,)
    shape = tuple(sizes)
    if not shape or not all(is_whole(x) and x > 0 for x in shape):
        raise InputError(
            f"event_shape is {given!r}; give the shape of one sample, a positive whole number or "
            "a tuple of them."
        )
    return tuple(int(x) for x in shape)
