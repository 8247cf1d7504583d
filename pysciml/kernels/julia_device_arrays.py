"""Operations on whole arrays that are more than an expression to broadcast.

See :mod:`pysciml.kernels.emit_julia_device`. The functions that the lines call are those of
``PySciML.DeviceRuntime``; axes are Julia's there, counted from 1 the other way round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pysciml.kernels import julia_ops
from pysciml.kernels.graph import Node, Shape
from pysciml.kernels.julia_values import Value, dims

if TYPE_CHECKING:
    from pysciml.kernels.emit_julia_device import DeviceEmitter


def emit(e: DeviceEmitter, node: Node) -> Value:
    """Lines for one node, and how its value is spelt after them."""
    if not node.size:
        return Value(julia_ops.literal(0, node.kind, e.dtype), None)
    return _HANDLERS[node.op](e, node)


def _call(e: DeviceEmitter, node: Node, function: str, *more: object) -> Value:
    """``function(args..., more...)``, whose result has the node's full size."""
    arguments = [*(e.solid(a) for a in node.args), *map(str, more)]
    return Value(e.assign(f"{function}({', '.join(arguments)})"), node.shape)


def _flat(e: DeviceEmitter, node: Node) -> str:
    name = e.solid(node)
    return name if node.ndim <= 1 else e.assign(f"reshape({name}, {node.size})")


# -- moves -----------------------------------------------------------------------------------------


def _permute(e: DeviceEmitter, node: Node) -> Value:
    (arg,) = node.args
    value = e.of(arg)
    if not value.extent:
        return value
    if e.stays_transposed(node):
        return Value("", node.shape)  # never read: see `DeviceEmitter._matrix`
    perm = node.attr("perm")
    long = [axis for axis in perm if arg.shape[axis] > 1]
    if long == sorted(long):  # moves nothing
        return Value(e.assign(f"reshape({e.solid(arg)}, {dims(node.shape)})"), node.shape)
    order = ", ".join(str(node.ndim - axis) for axis in reversed(perm))
    return Value(e.assign(f"permutedims({e.solid(arg)}, ({order},))"), node.shape)


def _slice(e: DeviceEmitter, node: Node) -> Value:
    (arg,) = node.args
    value = e.of(arg)
    if not value.extent:
        return value
    starts, steps = node.attr("starts"), node.attr("steps")
    cut = [i for i in range(node.ndim) if node.shape[i] != arg.shape[i]]
    if not cut:
        return value
    last = cut[-1]
    if all(d == 1 for d in node.shape[:last]) and (steps[last] == 1 or node.shape[last] == 1):
        # one stretch of memory
        first = int(np.ravel_multi_index(starts, arg.shape))
        part = e.assign(f"view({_flat(e, arg)}, {first + 1}:{first + node.size})")
        if node.ndim > 1:
            part = e.assign(f"reshape({part}, {dims(node.shape)})")
        return Value(part, node.shape)
    ranges = [
        f"{start + 1}:{step}:{start + (d - 1) * step + 1}"
        for start, step, d in zip(starts, steps, node.shape, strict=True)
    ]
    return Value(e.assign(f"{e.solid(arg)}[{', '.join(reversed(ranges))}]"), node.shape)


def _flip(e: DeviceEmitter, node: Node) -> Value:
    (arg,) = node.args
    value = e.of(arg)
    if not value.extent:
        return value
    flipped = node.attr("dims")
    ranges = [f"{d}:-1:1" if i in flipped else ":" for i, d in enumerate(node.shape)]
    return Value(e.assign(f"{e.solid(arg)}[{', '.join(reversed(ranges))}]"), node.shape)


def _pad(e: DeviceEmitter, node: Node) -> Value:
    (arg,) = node.args
    array = e.empty(node.shape, node.kind)
    e.lines.append(f"fill!({array}, 0)")
    if arg.size:
        spans = zip(arg.shape, node.attr("lo"), node.attr("interior"), strict=True)
        ranges = [f"{lo + 1}:{gap + 1}:{lo + (d - 1) * (gap + 1) + 1}" for d, lo, gap in spans]
        value = e.values[id(arg)] if e.users[id(arg)] == 1 else e.of(arg)
        part = e.assign(f"view({array}, {', '.join(reversed(ranges))})", "w")
        e.lines.append(f"@. {part} = {value.text}")
    return Value(array, node.shape)


def _elem(e: DeviceEmitter, node: Node) -> Value:
    (arg,) = node.args
    value = e.of(arg)
    if not value.extent:
        return value
    place = node.attr("index") + 1
    return Value(e.assign(f"view({_flat(e, arg)}, {place}:{place})"), ())


# -- gathers and scatters ------------------------------------------------------------------------


def _take(e: DeviceEmitter, node: Node) -> Value:
    x, index = node.args
    value = e.values[id(index)]
    if value.extent is None:
        place = e.assign(f"{e.of(index).text} + 1", "s")
        return Value(e.assign(f"view({e.solid(x)}, {place}:{place})"), ())
    whole = e.ref(x)
    return e.broadcast((index,), value.extent, lambda texts: f"gather({whole}, {texts[0]})")


def _like(e: DeviceEmitter, values: Node, shape: Shape) -> str:
    """The values that go to indices of a shape, flat."""
    if values.shape == shape:
        return _flat(e, values)
    array = e.empty((int(np.prod(shape)),), values.kind)
    e.lines.append(f"@. {array} = {e.of(values).text}")
    return array


def _scatter_add(e: DeviceEmitter, node: Node) -> Value:
    index, values = node.args
    size = node.attr("size")
    if not index.size:
        return Value(julia_ops.literal(0, node.kind, e.dtype), None)
    given = _like(e, values, index.shape)
    if not index.is_const:
        return Value(e.assign(f"scattered({_flat(e, index)}, {given}, {size})"), node.shape)
    levels, last = summing_tables(index.value.reshape(-1), size)
    for first, second in levels:
        tables = [e.literal_array(t, "i") for t in (first, second)]
        r = e.assign(f"Ref({given})", "r")
        given = e.assign(f"@. gather_pair({r}, {tables[0]}, {tables[1]})")
    r = e.assign(f"Ref({given})", "r")
    return Value(f"gather_or_zero({r}, {e.literal_array(last, 'i')})", node.shape, 1)


def summing_tables(
    index: npt.NDArray[np.int64], size: int
) -> tuple[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]], npt.NDArray[np.int64]]:
    """How values that go to ``index`` are summed by gathers alone, in a fixed order.

    Each level is a pair of tables into the values before it: what is added to what (-1 where
    there is nothing to add), halving the values that go to one place. The last table says for
    every place where its sum then stands, or -1.
    """
    order = np.argsort(index, kind="stable")
    goes, stands = index[order], order
    levels = []
    while (goes[1:] == goes[:-1]).any():
        starts = np.flatnonzero(np.r_[True, goes[1:] != goes[:-1]])
        lengths = np.diff(np.r_[starts, len(goes)])
        rank = np.arange(len(goes)) - np.repeat(starts, lengths)
        first = np.flatnonzero(rank % 2 == 0)
        following = np.minimum(first + 1, len(goes) - 1)
        paired = (following > first) & (goes[following] == goes[first])
        levels.append((stands[first], np.where(paired, stands[following], -1)))
        goes, stands = goes[first], np.arange(len(first))
    last = np.full(size, -1, np.int64)
    last[goes] = stands
    return levels, last


def _scatter_set(e: DeviceEmitter, node: Node) -> Value:
    base, index, values = node.args
    if not index.size:
        return e.of(base)
    given = _like(e, values, index.shape)
    if not index.is_const:
        arguments = f"{e.solid(base)}, {_flat(e, index)}, {given}"
        return Value(e.assign(f"overwritten({arguments})"), node.shape)
    table = np.full(node.size, -1, np.int64)
    table[index.value.reshape(-1)] = np.arange(index.size)
    r, places = e.assign(f"Ref({given})", "r"), e.literal_array(table, "i")
    return e.broadcast(
        (base,), node.shape, lambda texts: f"gather_or_keep({r}, {places}, {texts[0]})"
    )


def _searchsorted(e: DeviceEmitter, node: Node) -> Value:
    table, values = node.args
    extent = e.values[id(values)].extent
    right = str(node.attr("right")).lower()
    call = f"searchsorted_({e.ref(table)}, 1, 1, {table.size}, {{}}, {right})"
    if extent is None:  # else nothing in the broadcast says that it is on the device
        array = e.empty((), "i")
        e.lines.append(f"@. {array} = {call.format(e.of(values).text)}")
        return Value(array, ())
    return e.broadcast((values,), extent, lambda texts: call.format(texts[0]))


# -- along one axis, and linear algebra ------------------------------------------------------------


def _along(e: DeviceEmitter, node: Node) -> Value:
    (arg,) = node.args
    more: list[object] = [arg.ndim - node.attr("dim")]
    if node.op in ("sort", "argsort"):
        more.append(str(node.attr("descending")).lower())
    found = _call(e, node, f"{node.op}_along", *more)
    if node.op in ("argmax", "argmin"):
        return Value(e.assign(f"reshape({found.text}, {dims(node.shape)})"), node.shape)
    return found


def _matmul(e: DeviceEmitter, node: Node) -> Value:
    a, b = node.args
    if not a.shape[-1]:
        return Value(julia_ops.literal(0, "f", e.dtype), None)
    return Value(e.assign(f"batched_product({e.solid(b)}, {e.solid(a)})"), node.shape)


def _solve(e: DeviceEmitter, node: Node) -> Value:
    return _call(e, node, "solved")


_HANDLERS = {
    "permute": _permute,
    "slice": _slice,
    "flip": _flip,
    "pad": _pad,
    "elem": _elem,
    "take": _take,
    "scatter_add": _scatter_add,
    "scatter_set": _scatter_set,
    "searchsorted": _searchsorted,
    "argmax": _along,
    "argmin": _along,
    "cumsum": _along,
    "cumprod": _along,
    "sort": _along,
    "argsort": _along,
    "matmul": _matmul,
    "solve": _solve,
}
