"""Where the arrays of an emitted kernel live: buffers, views of them, and results put in place.

A kernel owns a buffer for every array it computes. Views of buffers are made once, when the kernel
is bound, and a piece of a ``cat`` or ``pad`` is computed straight into its place in the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pysciml.kernels.fold import DTYPES, pad_slices
from pysciml.kernels.graph import Node, Shape

#: Operations that only look at their argument's memory in another way.
VIEWS = frozenset("reshape permute expand flip slice".split())
STATIC, FIXED, CALL = 0, 1, 2


@dataclass(frozen=True)
class Program:
    """Source of a kernel and the literals it takes.

    Args:
        source: a module that defines ``factory(literals, *fixed inputs)``, which returns the
            kernel.
        literals: the first argument.
        arrays: whether the kernel computes with arrays, and so may meet NumPy's warnings.
        width: of a kernel over a batch, the numbers that its largest value has for one entry.
        slots: of a kernel over a batch, the numbers an entry of each array it writes to, which it
            is given.
    """

    source: str
    literals: list[np.ndarray]
    arrays: bool
    width: int = 1
    slots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ref:
    """An array in emitted code.

    Args:
        name: its text.
        stage: when the text is made: with the kernel's memory (STATIC), once the fixed inputs are
            known (FIXED), or in each call (CALL).
        proto: an uninitialised array of the same shape and strides, for STATIC ones.
    """

    name: str
    stage: int
    proto: np.ndarray | None = None

    @property
    def contiguous(self) -> bool:
        return self.proto is not None and self.proto.flags.c_contiguous


def view_text(node: Node) -> str:
    """The view operation as text after its argument's name (``expand`` apart)."""
    if node.op == "reshape":
        return f".reshape({node.shape})"
    if node.op == "permute":
        return f".transpose({node.attr('perm')})"
    if node.op == "flip":
        parts = ["::-1" if d in node.attr("dims") else ":" for d in range(node.ndim)]
        return f"[{', '.join(parts)}]"
    assert node.op == "slice"
    parts = []
    for a, b, s in zip(node.attr("starts"), node.attr("stops"), node.attr("steps"), strict=True):
        parts.append(f"{a}:{b}" if s == 1 else f"{a}:{b}:{s}")
    return f"[{', '.join(parts)}]"


def view_of(node: Node, x: np.ndarray) -> np.ndarray:
    """The view operation on an array."""
    if node.op == "expand":
        return np.broadcast_to(x, node.shape)
    if node.op == "reshape":
        return x.reshape(node.shape)
    if node.op == "permute":
        return x.transpose(node.attr("perm"))
    if node.op == "flip":
        return np.flip(x, node.attr("dims"))
    spans = zip(node.attr("starts"), node.attr("stops"), node.attr("steps"), strict=True)
    return x[tuple(slice(a, b, s) for a, b, s in spans)]


def index_text(index: tuple[slice, ...]) -> str:
    """A tuple of slices as text in brackets."""
    parts = []
    for s in index:
        span = ":" if s.start is None else f"{s.start}:{s.stop}"
        parts.append(span if s.step in (None, 1) else f"{span}:{s.step}")
    return f"[{', '.join(parts)}]"


def parts_of(node: Node) -> list[tuple[Node, tuple[slice, ...]]]:
    """The arguments of a cat or pad, each with its place in the result."""
    if node.op == "pad":
        x = node.args[0]
        return [(x, pad_slices(node.attr("lo"), node.attr("interior"), x.shape))]
    dim = node.attr("dim")
    out = []
    start = 0
    for a in node.args:
        stop = start + a.shape[dim]
        place = [slice(0, n) for n in node.shape]
        place[dim] = slice(start, stop)
        out.append((a, tuple(place)))
        start = stop
    return out


class Memory:
    """Allocates buffers as text, and keeps what each piece of text looks like.

    Args:
        lines: where statements that make memory go.
    """

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self._count = 0

    def name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def buffer(self, shape: Shape, kind: str = "f", *, zeros: bool = False) -> Ref:
        """A new buffer."""
        name = self.name("b")
        dtype = {"f": "", "i": ", int64", "b": ", bool_"}[kind]
        self.lines.append(f"{name} = {'zeros' if zeros else 'empty'}({shape}{dtype})")
        return Ref(name, STATIC, np.empty(shape, DTYPES[kind]))

    def derived(self, ref: Ref, text: str, proto: np.ndarray) -> Ref:
        """A view of static memory, by the text that makes it."""
        name = self.name("v")
        self.lines.append(f"{name} = {text}")
        return Ref(name, STATIC, proto)

    def place(self, ref: Ref, index: tuple[slice, ...]) -> Ref:
        """A part of static memory."""
        assert ref.proto is not None
        return self.derived(ref, ref.name + index_text(index), ref.proto[index])

    def view(self, node: Node, ref: Ref) -> Ref | None:
        """The view ``node`` of static memory; None where it would be a copy."""
        assert ref.proto is not None
        proto = view_of(node, ref.proto)
        if proto.size and not np.may_share_memory(proto, ref.proto):
            return None
        if node.op == "expand":
            return self.derived(ref, f"broadcast_to({ref.name}, {node.shape})", proto)
        return self.derived(ref, ref.name + view_text(node), proto)

    def reshaped(self, ref: Ref, shape: Shape) -> Ref:
        """Contiguous static memory in another shape."""
        assert ref.proto is not None and ref.contiguous
        if ref.proto.shape == shape:
            return ref
        return self.derived(ref, f"{ref.name}.reshape({shape})", ref.proto.reshape(shape))
