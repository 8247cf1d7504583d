"""Everything derived from one capture, made on first need and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pysciml.kernels import emit_numpy, structure
from pysciml.kernels.capture import Capture, CaptureError
from pysciml.kernels.derivatives import derive, derive_compressed
from pysciml.kernels.graph import Graph
from pysciml.kernels.reasons import warn_called_back
from pysciml.kernels.simplify import simplify


class Kernels:
    """The kernels of a captured function, by role.

    Roles: ``"value"`` (n_out,); ``"jac:u"`` (n_out, n_u), ``"jac:p"``, ``"jac:du"``, ``"jac:t"``
    (n_out,) where t is 0-d; ``"jvp:X"`` with the extra first input ``"v"``; ``"vjp:X"`` with the
    extra first input ``"w"``, shaped as X, ``"vjp:up"`` (n_u + n_p,), and ``"vjp:p*K"`` (n_p,),
    summed over K points. The other inputs follow in the capture's order, ``"c"`` last.

    A role that cannot be made raises :class:`pysciml.kernels.capture.CaptureError`, at every
    request. Safe to share between threads.
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self._made: dict[Any, Any] = {}
        self._lock = threading.RLock()

    def once(self, key: Any, build: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._made:
                self._made[key] = build()
            return self._made[key]

    def graph(self, role: str) -> Graph:
        """The simplified (not scalarised) graph of a role."""
        graph: Graph = self.once(("graph", role), lambda: simplify(derive(self.capture, role)))
        return graph

    def available(self, role: str) -> bool:
        """Whether a role has a graph. Where not, one CaptureWarning for the function says why."""

        def tried() -> bool:
            try:
                self.graph(role)
            except CaptureError as error:
                warn = partial(warn_called_back, f"{self.capture.name}'s derivative", error)
                self.once("warned", warn)
                return False
            return True

        found: bool = self.once(("available", role), tried)
        return found

    def compressed_jacobian(self, seed: npt.NDArray[np.float64], wrt: str = "u") -> Graph:
        """``J @ seed`` for a constant ``seed`` (n_in, k): a graph with output (n_out, k)."""
        seed = np.ascontiguousarray(seed, np.float64)
        graph: Graph = self.once(
            ("compressed", wrt, seed.shape, seed.tobytes()),
            lambda: simplify(derive_compressed(self.capture, wrt, seed)),
        )
        return graph

    def numpy(self, role: str) -> Any:
        """The role compiled by :func:`pysciml.kernels.emit_numpy.compile`."""
        return self.once(("numpy", role), lambda: emit_numpy.compile(self.graph(role)))

    def numpy_batched(self, role: str, batched: frozenset[str], reduce: bool = False) -> Any:
        """The role compiled by :func:`pysciml.kernels.emit_numpy.compile_batched`."""
        return self.once(
            ("batched", role, batched, reduce),
            lambda: emit_numpy.compile_batched(self.graph(role), batched, reduce),
        )

    def piecewise(self, wrt: str) -> bool:
        """See :func:`pysciml.kernels.structure.piecewise`, of the value."""
        graph = self.graph("value")
        found: bool = self.once(("piecewise", wrt), lambda: structure.piecewise(graph, wrt))
        return found

    @property
    def timed(self) -> bool:
        """Whether the value depends on ``t`` by itself."""
        graph = self.graph("value")
        found: bool = self.once("timed", lambda: structure.depends(graph, "t"))
        return found

    @property
    def driven(self) -> bool:
        """Whether the value depends on ``t`` by itself, and not by pieces."""
        return self.timed and not self.piecewise("t")

    def sparsity(self, wrt: str, role: str = "value") -> sparse.csr_matrix | None:
        """Which entries of ``role``'s Jacobian by ``wrt`` can be nonzero (n_out, n_in), as ones.

        None: unknown, or taken as full.
        """
        try:
            pattern: sparse.csr_matrix | None = self.once(
                ("sparsity", role, wrt), lambda: structure.dependencies(self.graph(role), wrt)
            )
        except (NotImplementedError, MemoryError):
            return None
        return pattern
