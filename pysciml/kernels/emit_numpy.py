"""Kernels in NumPy and Python: graphs as straight-line source, compiled and run in process.

Small values are Python floats and ``math`` functions, larger ones arrays in memory that the kernel
owns. A kernel is therefore **not** to be shared between threads: give each its own
(:meth:`Kernel.copy`, or a :meth:`Kernel.bind` of its own).
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any

import numpy as np

from pysciml.kernels import fold
from pysciml.kernels.graph import Graph
from pysciml.kernels.numpy_batched import write_batched
from pysciml.kernels.numpy_memory import Program
from pysciml.kernels.numpy_program import write
from pysciml.kernels.numpy_scalars import NAMESPACE
from pysciml.kernels.scalarise import Costs, scalarise

#: Costs measured on CPython 3.11 and NumPy 2: a scalar addition is 12 ns, a function of a scalar
#: 25 ns, an operation on a small array 150 ns.
COSTS = Costs(limit=12.0)
#: Over a batch a scalar is an array too: only what literals switch off is worth taking apart.
BATCHED_COSTS = Costs(limit=4.0)
#: Numbers (of 8 bytes) that the largest value of a part of a batch has.
_PART = 65_536

_NAMES: dict[str, Any] = {
    **NAMESPACE,
    **{f"reduce_{op}": function.reduce for op, function in fold.REDUCERS.items()},
    **{
        name: getattr(np, name)
        for name in (
            "arange array asarray ascontiguousarray broadcast_to copyto dot einsum empty errstate "
            "flip float64 int64 bool_ logaddexp matmul ones searchsorted zeros"
        ).split()
    },
    "apply": fold.apply,
    "solve_batch": fold.solve,
    "Struct": Struct,
}


class Kernel:
    """A compiled graph.

    Called as ``kernel(*inputs, *outs)``: inputs in the graph's order, float64 arrays (a float
    where the graph's input is a scalar); each output is written into the array given for it, which
    has the output's shape and any strides, and is none of the inputs. Results follow IEEE
    arithmetic: infinities and nans, never exceptions or warnings.

    Not to be shared between threads; see :meth:`copy`.
    """

    def __init__(self, graph: Graph, *, costs: Costs = COSTS) -> None:
        self.graph = graph
        self.costs = costs
        self.names = tuple(n.attr("name") for n in graph.inputs)
        self._programs: dict[frozenset[str], tuple[Program, Callable[..., Any]]] = {}
        self._call: Callable[..., None] | None = None

    def __call__(self, *args: Any) -> None:
        if self._call is None:
            self._call = self.bind()
        self._call(*args)

    def bind(self, *, errstate: bool = True, **fixed: Any) -> Callable[..., None]:
        """A kernel of the remaining inputs, with everything that depends on the fixed ones alone
        computed now.

        Args:
            errstate: False where the caller holds ``np.errstate(all="ignore")`` itself, around
                many calls; entering it costs 0.6 microseconds a call.
            **fixed: values of inputs, by name. Arrays may be kept as views: they must not change
                while the bound kernel is in use.

        Returns:
            ``fn(*remaining inputs, *outs)``, with memory of its own.
        """
        program, factory = self._program(frozenset(fixed))
        values = [fixed[n] for n in self.names if n in fixed]
        with np.errstate(all="ignore"):
            fast = factory(program.literals, *values)
        if not (errstate and program.arrays):
            return fast

        def quiet(*args: Any) -> None:
            with np.errstate(all="ignore"):
                fast(*args)

        return quiet

    def source(self, *fixed: str) -> str:
        """The Python source, with these inputs fixed."""
        return self._program(frozenset(fixed))[0].source

    def copy(self) -> Kernel:
        """The same kernel with memory of its own, for another thread."""
        other = Kernel(self.graph, costs=self.costs)
        other._programs = self._programs  # source and code hold no memory
        return other

    def _program(self, fixed: frozenset[str]) -> tuple[Program, Callable[..., Any]]:
        unknown = fixed - set(self.names)
        if unknown:
            raise TypeError(f"the kernel has no inputs {sorted(unknown)}; it takes {self.names}")
        if fixed not in self._programs:
            graph = scalarise(self.graph, costs=self.costs, fixed=fixed)
            program = write(graph, fixed)
            self._programs[fixed] = (program, _factory(program, graph.name))
        return self._programs[fixed]


class BatchedKernel:
    """A compiled graph over a leading batch axis.

    Called as ``kernel(*inputs)``; returns a tuple with an array for each output. Inputs named in
    ``batched`` are (B, ...), the others as in the graph. An output is (B, ...), or with ``reduce``
    its sum over the batch, of the graph's own shape. Any B; nothing is kept between calls, so it
    may be shared between threads. Infinities and nans, never exceptions or warnings.

    A large batch is computed in parts: values that outgrow the cache, and that the allocator takes
    from the system anew each time and gives back, cost up to twice the time.
    """

    def __init__(
        self,
        graph: Graph,
        batched: Iterable[str],
        reduce: bool = False,
        *,
        costs: Costs = BATCHED_COSTS,
    ) -> None:
        self.graph = graph
        self.names = tuple(n.attr("name") for n in graph.inputs)
        self.batched = frozenset(batched)
        self.reduce = reduce
        self.costs = costs
        unknown = self.batched - set(self.names)
        if unknown or not self.batched:
            raise ValueError(f"batched inputs {sorted(self.batched)}, of inputs {self.names}")
        self._programs: dict[frozenset[str], tuple[Program, Callable[..., Any]]] = {}
        self._call = self.bind()

    def __call__(self, *args: Any) -> tuple[np.ndarray, ...]:
        return self._call(*args)

    def bind(self, **fixed: Any) -> Callable[..., tuple[np.ndarray, ...]]:
        """A function of the remaining inputs, with what depends on the fixed ones alone computed
        now. At least one batched input must remain."""
        program, factory = self._program(frozenset(fixed))
        values = [fixed[n] for n in self.names if n in fixed]
        with np.errstate(all="ignore"):
            call = factory(program.literals, *values)

        free = [n in self.batched for n in self.names if n not in fixed]
        of_batch = free.index(True)
        most = max(1, _PART // program.width)

        def quiet(*args: Any) -> tuple[np.ndarray, ...]:
            count = len(args[of_batch])
            slots = [np.empty((min(count, most), n)) for n in program.slots]
            with np.errstate(all="ignore"):
                if count <= most:
                    return call(slots, *args)
                parts = (
                    [x[k : k + most] if b else x for x, b in zip(args, free, strict=True)]
                    for k in range(0, count, most)
                )
                return self._joined(call(slots, *part) for part in parts)

        return quiet

    def _joined(self, parts: Iterable[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        if not self.reduce:
            return tuple(np.concatenate(each) for each in zip(*parts, strict=True))
        each = iter(parts)
        total = next(each)
        for part in each:
            total = tuple(np.asarray(a + b) for a, b in zip(total, part, strict=True))
        return total

    def source(self, *fixed: str) -> str:
        """The Python source, with these inputs fixed."""
        return self._program(frozenset(fixed))[0].source

    def _program(self, fixed: frozenset[str]) -> tuple[Program, Callable[..., Any]]:
        if not fixed <= set(self.names) - self.batched:
            raise TypeError(f"{sorted(fixed)}: not all are unbatched inputs of {self.names}")
        if fixed not in self._programs:
            graph = scalarise(self.graph, costs=self.costs, fixed=fixed)
            program = write_batched(graph, fixed, self.batched, self.reduce)
            self._programs[fixed] = (program, _factory(program, graph.name))
        return self._programs[fixed]


def _factory(program: Program, name: str) -> Callable[..., Any]:
    namespace = dict(_NAMES)
    exec(builtins.compile(program.source, f"<pysciml {name}>", "exec"), namespace)
    factory: Callable[..., Any] = namespace["factory"]
    return factory


def source(graph: Graph) -> str:
    """The Python source that :func:`compile` runs, with no input fixed."""
    return Kernel(graph).source()


def compile(graph: Graph, *, costs: Costs = COSTS) -> Kernel:
    """A :class:`Kernel` of the graph."""
    return Kernel(graph, costs=costs)


def compile_batched(
    graph: Graph, batched: Iterable[str], reduce: bool = False, *, costs: Costs = BATCHED_COSTS
) -> BatchedKernel:
    """A :class:`BatchedKernel` of the graph.

    Args:
        graph: any kernel graph.
        batched: names of the inputs that carry a leading batch axis; at least one.
        reduce: return sums over the batch. A weight gradient ``sum_b outer(w_b, x_b)`` is then one
            matrix product.

    Raises:
        ValueError: no input is batched, or there is none of that name.
    """
    return BatchedKernel(graph, batched, reduce, costs=costs)
