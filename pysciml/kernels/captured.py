"""Captured functions as the engines call them: kernels emitted on first need, and cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from pysciml.kernels.callback import CallbackFunctions
from pysciml.kernels.capture import Capture
from pysciml.kernels.guards import Guards
from pysciml.kernels.kernels import Kernels

Array = npt.NDArray[np.float64]


class CapturedFunctions:
    """A capture with everything derived from it: :class:`pysciml.engines.base.Functions`.

    Attributes:
        kernels: shared by all functions that were relifted from one capture.
        shared: the functions without the user's tensors, one object for all relifted ones; what
            an engine derives, it keeps with this.
    """

    def __init__(
        self, capture: Capture, shared: CapturedFunctions | None = None, guarded: bool = False
    ) -> None:
        self.capture, self._guarded = capture, guarded
        self.names = capture.names
        self.sizes = capture.sizes
        self.n_out = capture.n_out
        self.shared: CapturedFunctions = self if shared is None else shared
        self._kernels: Kernels = Kernels(capture) if shared is None else shared._kernels
        self.kernels: Any | None = self._kernels

    @classmethod
    def of(cls, capture: Capture) -> CapturedFunctions:
        """The functions of a fresh capture."""
        return cls(capture, cls(capture.detached()), guarded=True)

    def relifted(
        self,
        closures_p: Sequence[Tensor],
        closures_c: Sequence[Tensor],
        guards: Guards | None = None,
    ) -> CapturedFunctions:
        """The same functions over other closed-over tensors; without guards, for one use."""
        capture = self.capture.relifted(closures_p, closures_c, guards or Guards())
        return CapturedFunctions(capture, self.shared, guards is not None)

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

    @property
    def guarded(self) -> bool:
        """Whether ``ok`` alone says that the capture still holds, for the function it is of."""
        return self._guarded and not self.opaque

    def sparsity(self, wrt: str) -> sparse.csr_matrix | None:
        return self._kernels.sparsity(wrt)

    def bind(self, role: str, p: Array, c: Array) -> Callable[..., None]:
        """See :class:`pysciml.engines.base.Functions`.

        A fresh binding: not shared by threads. The caller holds ``np.errstate(all="ignore")``.
        """
        if not self._kernels.available(role):
            return self._in_torch(c).bind(role, p, c)
        return self._kernels.numpy(role).bind(errstate=False, p=p, c=c)

    def bind_batched(
        self, role: str, p: Array, c: Array, reduce: bool = False
    ) -> Callable[..., Array]:
        """See :class:`pysciml.engines.base.Functions`."""
        if not self._kernels.available(role):
            return self._in_torch(c).bind_batched(role, p, c, reduce)
        extra = {"jvp": ("v",), "vjp": ("w",)}.get(role.split(":")[0], ())
        batched = frozenset([*extra, *(k for k in self.names if k not in ("p", "c"))])
        inner = self._kernels.numpy_batched(role, batched, reduce).bind(p=p, c=c)

        def bound(*args: Any) -> Array:
            return inner(*args)[0]

        return bound

    def _in_torch(self, c: Array) -> CallbackFunctions:
        """The captured graph run in torch: for derivatives that have no kernel."""
        capture = self.capture
        data = torch.as_tensor(c).to(capture.device, capture.dtype)
        examples = dict(zip(capture.names[:-1], capture.example(), strict=False))
        return CallbackFunctions(lambda *inputs: capture.module(*inputs, data), examples)
