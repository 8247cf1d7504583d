"""What a neural jump SDE is made of: its rates, what its events do, and what goes along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysciml.errors import InputError
from pysciml.nn.field import Field, Integrals, require_dtype

__all__ = ["Event", "Jump", "Noise", "Observed", "Parts", "Rate", "a_kind"]


def a_kind(x: Any) -> str:
    return f"a {type(x).__name__}"


class Parts:
    """What the equations are made of; it may be replaced in the module."""

    def __init__(self, drift: Field, intensity: Field, jump: Any, diffusion: Field | None) -> None:
        self.drift, self.intensity, self.jump, self.diffusion = drift, intensity, jump, diffusion

    def take(self, model: Any) -> None:
        self.drift.vector_field, self.intensity.vector_field = model.drift, model.intensity
        self.jump = model.jump
        if self.diffusion is not None and model.diffusion is not None:
            self.diffusion.vector_field = model.diffusion

    def rates(self, u: Tensor, t: Tensor) -> Tensor:
        value: Tensor = self.intensity.value(u, t)
        return value

    def after(self, u: Tensor, mark: Tensor) -> Tensor:
        change = self.jump(u, mark)
        if not isinstance(change, Tensor) or change.shape != u.shape:
            given = f"{tuple(change.shape)}" if isinstance(change, Tensor) else a_kind(change)
            raise InputError(
                f"jump gave {given} for a state of shape {tuple(u.shape)}; it must give that."
            )
        require_dtype(change, "jump", u)
        return u + change


class Observed:
    """The state with integrals and the log-likelihood of no event beside it."""

    def __init__(self, parts: Parts, kinds: tuple[str, ...], size: int) -> None:
        self.parts = parts
        self.integrals = Integrals(parts.drift, kinds, (size,)) if kinds else None

    def __call__(self, full: Tensor, p: Any, t: Tensor) -> Tensor:
        u, own = full[:-1], self.integrals
        value = self.parts.drift.value(u, t) if own is None else own(u, (None, p), t)
        u = u if own is None else own.state(u)
        return torch.cat([value, -self.parts.rates(u, t).sum().reshape(1)])


class Noise:
    """The diffusion, and none of the ``more`` entries beside the state."""

    def __init__(self, parts: Parts, more: int) -> None:
        self.parts, self.more = parts, more

    def __call__(self, full: Tensor, p: Any, t: Tensor) -> Tensor:
        assert self.parts.diffusion is not None
        value = self.parts.diffusion.value(full[: len(full) - self.more], t)
        return torch.cat([value, full.new_zeros(self.more)]) if self.more else value


class OfKind:
    """Something of the events of one kind."""

    def __init__(self, parts: Parts, kind: int, kinds: int) -> None:
        self.parts, self.kind, self.kinds = parts, kind, kinds

    def mark(self, u: Tensor) -> Tensor:
        return torch.stack([u.new_tensor(float(i == self.kind)) for i in range(self.kinds)])


class Event(OfKind):
    """An observed event: the logarithm of its rate, and the state after it."""

    def __init__(self, parts: Parts, kind: int, kinds: int, more: int) -> None:
        super().__init__(parts, kind, kinds)
        self.more = more  # entries beside the state

    def __call__(self, full: Tensor, p: Any, t: Tensor) -> Tensor:
        size = len(full) - self.more
        u = full[:size]
        seen = full[-1] + self.parts.rates(u, t)[self.kind].log()
        return torch.cat([self.parts.after(u, self.mark(u)), full[size:-1], seen.reshape(1)])


class Jump(OfKind):
    def __call__(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return self.parts.after(u, self.mark(u))


class Rate:
    def __init__(self, parts: Parts, kind: int) -> None:
        self.parts, self.kind = parts, kind

    def __call__(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return self.parts.rates(u, t)[self.kind]
