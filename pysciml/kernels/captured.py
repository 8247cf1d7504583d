"""Captured functions as the engines call them: kernels emitted on first need, and cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pysciml.kernels.capture import Capture
from pysciml.kernels.kernels import Kernels

Array = npt.NDArray[np.float64]


class CapturedFunctions:
    """A capture with everything derived from it: :class:`pysciml.engines.base.Functions`."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.kernels: Any | None = Kernels(capture)
        self._kernels = self.kernels
        self.names = capture.names
        self.sizes = capture.sizes
        self.n_out = capture.n_out

    @property
    def closures_p(self) -> tuple[Tensor, ...]:
        """The tensors with gradient that the function closes over; they follow the user's p."""
        return self.capture.closures_p

    def extend_p(self, p: Tensor) -> Tensor:
        return self.capture.extend_p(p)

    def data(self) -> Tensor:
        return self.capture.data()

    def ok(self) -> bool:
        return self.capture.guards.ok()

    @property
    def opaque(self) -> bool:
        return self.capture.guards.opaque

    def sparsity(self, wrt: str) -> npt.NDArray[np.bool_] | None:
        return self._kernels.sparsity(wrt)

    def bind(self, role: str, p: Array, c: Array) -> Callable[..., None]:
        """See :class:`pysciml.engines.base.Functions`.

        A fresh binding: not shared by threads. The caller holds ``np.errstate(all="ignore")``.
        """
        return self._kernels.numpy(role).bind(errstate=False, p=p, c=c)

    def bind_batched(
        self, role: str, p: Array, c: Array, reduce: bool = False
    ) -> Callable[..., Array]:
        """See :class:`pysciml.engines.base.Functions`."""
        extra = {"jvp": ("v",), "vjp": ("w",)}.get(role.split(":")[0], ())
        batched = frozenset([*extra, *(k for k in self.names if k not in ("p", "c"))])
        inner = self._kernels.numpy_batched(role, batched, reduce).bind(p=p, c=c)

        def bound(*args: Any) -> Array:
            return inner(*args)[0]

        return bound
