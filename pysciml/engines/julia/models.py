"""Functions as Julia knows them: kernels handed over on first need, or called back in Python."""

from __future__ import annotations

import ctypes as ct
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pysciml.engines.base import Functions
from pysciml.engines.julia.bridge import (
    FUNCTIONS,
    MODELS,
    Bridge,
    ForeignSource,
    Source,
    address,
)
from pysciml.engines.julia.sparse import Pattern, pattern
from pysciml.julia_function import JuliaSource
from pysciml.kernels import emit_julia_device
from pysciml.kernels.emit_julia import JuliaSource as KernelText
from pysciml.kernels.emit_julia import emit
from pysciml.kernels.graph import Graph, make
from pysciml.kernels.reasons import CaptureError
from pysciml.kernels.scalarise import scalarise

Array = npt.NDArray[Any]

#: Points at which parameter gradients are taken together; `BATCH` in batches.jl.
BATCH = 32
#: Operations a parameter, in a call of the function, from which on its own products are matrix
#: products already: many points together would only not fit in the cache.
ENOUGH_WORK = 8
#: Roles by the numbers that ``bridge.jl`` gives them.
ROLES = (
    "value", "jac:u", "jac:t", "jac:p", "jvp:u", "vjp:u", "vjp:p", "vjp:t", "jac:du", "vjp:up",
    f"vjp:p*{BATCH}", "compressed:u",
)  # fmt: skip

#: Roles of kernels over arrays of a device, by the numbers of ``ROLES`` plus this.
DEVICE_ROLES = 100

#: Roles of kernels for one thread of a GPU, by the numbers of ``ROLES`` plus this.
STATIC_ROLES = 200

#: Values of at most this many elements become scalar code; in a thread of a GPU, whose arrays are
#: registers only where no index is computed.
SCALAR_LIMIT, STATIC_LIMIT = 8, 64

_LOAD = ct.CFUNCTYPE(ct.c_int, ct.c_int64, ct.c_int64)
_CALL = ct.CFUNCTYPE(ct.c_int, ct.c_double)


def kernel_graph(graph: Graph) -> Graph:
    """The graph as it is emitted: small values scalar, matrices as Julia lays them out."""
    return scalarise(device_graph(graph), SCALAR_LIMIT)


def device_graph(graph: Graph) -> Graph:
    """The graph as it is emitted for a device: matrices as Julia lays them out."""
    outputs = tuple(make("permute", o, perm=(1, 0)) if o.ndim == 2 else o for o in graph.outputs)
    return Graph(graph.inputs, outputs, graph.name)


def static_graph(graph: Graph) -> Graph:
    """The graph as it is emitted for one thread of a GPU."""
    return scalarise(device_graph(graph), STATIC_LIMIT)


def gains_by_points(value: Graph) -> bool:
    """Whether parameter gradients of many points are cheaper taken together.

    So it is where the function multiplies each weight with a few rows: a network of one state.
    """
    work = sum(n.size * (n.args[0].shape[-1] if n.op == "matmul" else 1) for n in value.nodes())
    return work < ENOUGH_WORK * value.input("p").size


class Loader:
    """Answers Julia's wish for a kernel, from within a solve: see ``fetch_source`` in Julia."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.known: weakref.WeakValueDictionary[int, JuliaFunctions] = weakref.WeakValueDictionary()
        self._callback = _LOAD(self._load)
        bridge.set_loader(self._callback)

    def _load(self, functions: int, role: int) -> int:
        """0: provided; 1: it failed, and why is pending; 2: there is none, do without."""
        found = self.known[functions]
        if role >= STATIC_ROLES:
            name = ROLES[role - STATIC_ROLES]
            return self.bridge.guard(lambda: found.provide_static(name, role))
        if role >= DEVICE_ROLES:
            name = ROLES[role - DEVICE_ROLES]
            return self.bridge.guard(lambda: found.provide_on_device(name, role))
        if not ROLES[role].startswith("vjp:p*"):
            return self.bridge.guard(lambda: found.provide(ROLES[role], role))
        kernels = found.functions.kernels
        if kernels is None:
            return 2
        try:
            if not gains_by_points(kernels.graph("value")):
                return 2
            kernels.graph(ROLES[role])
        except CaptureError:  # what torch.vmap does not do
            return 2
        return self.bridge.guard(lambda: found.provide(ROLES[role], role))


def _is_driven(functions: Functions) -> bool:
    kernels = functions.kernels
    return kernels is None or bool(kernels.driven)  # not known of what could not be captured


class JuliaFunctions:
    """One :class:`~pysciml.engines.base.Functions` in Julia."""

    def __init__(self, loader: Loader, functions: Functions, kind: str, dtype: str) -> None:
        self.loader, self.kind, self.dtype = loader, kind, dtype
        # The engine finds this by the functions, for as long as they live: held here they would
        # live for ever. What is solved, and every solution, holds them.
        self._functions = weakref.ref(functions)
        self.bridge = bridge = loader.bridge
        self.single = dtype == "float32"
        self.id = bridge.new_functions(
            kind == "dae", self.single, functions.sizes["c"], _is_driven(functions)
        )
        loader.known[self.id] = self
        self.done: set[tuple[Any, ...]] = set()  # what they have been used for
        self._models: dict[Any, int] = {}
        self._static: dict[str, KernelText] = {}
        self._callbacks: list[Any] = []
        self._p: Array | None = None
        self._c: Array | None = None
        self._bound: dict[str, Callable[..., None]] = {}
        weakref.finalize(
            self, _drop, bridge, self.id, self._models
        ).atexit = False  # Julia has ended by then

    @property
    def functions(self) -> Functions:
        found = self._functions()
        assert found is not None
        return found

    def model(self, n: int, mass_matrix: Array | None, pattern: Pattern | None = None) -> int:
        """The number of the model of ``n`` states made of these functions.

        With ``pattern`` its Jacobian is kept sparse.
        """
        key = (None if mass_matrix is None else mass_matrix.tobytes(), pattern is not None)
        if key not in self._models:
            mass = None
            if mass_matrix is not None:
                mass = np.ascontiguousarray(mass_matrix, self.dtype)
            numbers = None if pattern is None else pattern.numbers
            self._models[key] = self.bridge.number(
                "new_model", self.id, n, address(mass), address(numbers)
            )
        return self._models[key]

    def model_of_parts(
        self, n: int, parts: tuple[JuliaFunctions, JuliaFunctions], split: int, linear: bool
    ) -> int:
        """The number of the model of these functions with those of its two parts."""
        key = ("parts", parts[0].id, parts[1].id, linear)
        if key not in self._models:
            self._models[key] = self.bridge.number(
                "new_parts", self.id, parts[0].id, parts[1].id, n, split, int(linear)
            )
        return self._models[key]

    def device_model(self, n: int, nc: int, device: str, index: int) -> int:
        """The number of the model of ``n`` states on a device of Julia's, by its name."""
        key = (device, index)
        if key not in self._models:
            self._models[key] = self.bridge.number(
                "new_device_model", self.id, int(self.single), n, nc, device.encode(), index
            )
        return self._models[key]

    def members_model(self, sizes: npt.NDArray[np.int64], device: str, index: int) -> int:
        """The number of the model whose members are solved by threads of a device.

        ``sizes``: how many states, parameters and data. 0 or less where there is none: see
        ``new_members_model`` in Julia.
        """
        key = ("members", device, index)
        if key not in self._models:
            made = self.bridge.number(
                "new_members_model", self.id, int(self.single), address(sizes), device.encode(),
                index,
            )  # fmt: skip
            if made <= 0:
                return made
            self._models[key] = made
        return self._models[key]

    def static_source(self, role: str) -> KernelText:
        """The source of a role for one thread of a GPU."""
        if role not in self._static:
            self._static[role] = emit(static_graph(self._graph(role)), self.dtype)
        return self._static[role]

    def model_of_delay(
        self, n: int, parts: tuple[JuliaFunctions, ...], flags: npt.NDArray[np.int64]
    ) -> int:
        """The number of the model of a delay equation: rate, times and history.

        ``flags``: see ``c_new_delayed``.
        """
        key = ("delay", *(part.id for part in parts), flags.tobytes())
        if key not in self._models:
            self._models[key] = self.bridge.number(
                "new_delayed", self.id, *(part.id for part in parts), n, address(flags), len(flags)
            )
        return self._models[key]

    def model_of_noise(self, n: int, parts: tuple[JuliaFunctions, ...], columns: int) -> int:
        """The number of the model of a stochastic equation: ``parts`` are drift and diffusion."""
        drift, diffusion = parts
        key = ("noise", drift.id, diffusion.id, columns)
        if key not in self._models:
            self._models[key] = self.bridge.number(
                "new_noisy", self.id, drift.id, diffusion.id, n, columns
            )
        return self._models[key]

    def model_of_random(self, n: int, m: int) -> int:
        """The number of the model of a random equation of ``n`` states and ``m`` processes."""
        key = ("random", n, m)
        if key not in self._models:
            self._models[key] = self.bridge.number("new_random", self.id, n, m)
        return self._models[key]

    def use(self, p: Array, c: Array) -> None:
        """The parameters of the solve that comes, for what is called back in Python."""
        self._p, self._c = p, c
        if self._bound:
            self._bound.clear()

    def provide(self, role: str, number: int) -> None:
        if isinstance(self.functions, JuliaSource):
            text = self.functions.text.encode()
            self.bridge.call("provide_native", self.id, number, int(self.single), text, len(text))
            return
        kernels = self.functions.kernels
        # what has no kernel is called back; so is a derivative of a function that has one
        if kernels is None or not (role == "compressed:u" or kernels.available(role)):
            self._provide_callback(role, number)
            return
        self._hand_over(emit(kernel_graph(self._graph(role)), self.dtype), number)

    def provide_on_device(self, role: str, number: int) -> None:
        graph = device_graph(self._graph(role))
        self._hand_over(emit_julia_device.emit(graph, self.dtype), number)

    def provide_static(self, role: str, number: int) -> None:
        self._hand_over(self.static_source(role), number)

    def _hand_over(self, source: KernelText, number: int) -> None:
        text = source.text.encode()
        kf, ki, kb = source.constants
        self.bridge.call(
            "provide",
            ct.byref(
                Source(
                    self.id, number, self.single, text, len(text), source.sizes,
                    address(kf), len(kf), address(ki), len(ki), address(kb), len(kb),
                )
            ),
        )  # fmt: skip

    def _graph(self, role: str) -> Graph:
        kernels = self.functions.kernels
        assert kernels is not None
        if role == "compressed:u":
            made = pattern(self.functions)
            assert made is not None
            graph: Graph = kernels.compressed_jacobian(made.seed)
            return graph
        graph = kernels.graph(role)
        return graph

    def _provide_callback(self, role: str, number: int) -> None:
        extra = {"jvp": ["v"], "vjp": ["w"]}.get(role.split(":")[0], [])
        names = [*extra, *(k for k in self.functions.names if k not in ("p", "c", "t"))]
        sizes = self.functions.sizes | {"w": self.functions.n_out, "v": self.functions.sizes["u"]}
        inputs = [np.zeros(sizes[k], self.dtype) for k in names]
        out = np.zeros(self._out_shape(role), self.dtype, order="F")

        def call() -> None:
            bound = self._bound.get(role)
            if bound is None:
                assert self._p is not None and self._c is not None
                bound = self._bound[role] = self.functions.bind(role, self._p, self._c)
            bound(*inputs, self._t, out)

        def entry(t: float) -> int:
            self._t = t
            return self.bridge.guard(call)

        callback = _CALL(entry)
        self._callbacks.append((callback, inputs, out))
        spec = ForeignSource(
            self.id, number, self.single, ct.cast(callback, ct.c_void_p).value, len(inputs)
        )
        for i, x in enumerate(inputs):
            spec.inputs[i], spec.lengths[i] = x.ctypes.data, x.size
        spec.out, spec.rank = out.ctypes.data, out.ndim
        spec.shape[: out.ndim] = out.shape
        self.bridge.call("provide_foreign", ct.byref(spec))

    def _out_shape(self, role: str) -> tuple[int, ...]:
        n, sizes = self.functions.n_out, self.functions.sizes
        kind, _, wrt = role.partition(":")
        if wrt == "up":
            return (sizes["u"] + sizes["p"],)
        if kind == "vjp":
            return (1,) if wrt == "t" else (sizes[wrt],)
        if kind == "jac" and wrt != "t":
            return (n, sizes[wrt])
        return (n,)


def _drop(bridge: Bridge, functions: int, models: dict[Any, int]) -> None:
    for model in models.values():
        bridge.drop(MODELS, model)
    bridge.drop(FUNCTIONS, functions)
