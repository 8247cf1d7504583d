"""Emission of the operations that are more than a fused loop: products, solves, sorts, gathers.

Each becomes a call into ``PySciML.Runtime`` with, for every array, its buffer, the position of its
first element (from 1) and its strides. Sizes are literals, so that Julia unrolls small cases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysciml.kernels.graph import Node
from pysciml.kernels.strided import View

if TYPE_CHECKING:
    from pysciml.kernels.emit_julia import Emitter

#: Products of at most this many multiplications are unrolled in place; beyond that BLAS, whose
#: calls cost about as much as these do.
INLINE_MULTIPLICATIONS = 256
#: A transposed right factor is copied to rows first where the other has at least this many, in
#: products of at most this many multiplications: BLAS for small matrices (OpenBLAS's, with AVX-512)
#: takes half the time then, and no longer elsewhere; the copy takes as long as 30 rows.
PACKED_ROWS, SMALL_FOR_BLAS = 64, 1_000_000


def emit(e: Emitter, node: Node) -> None:
    """Append the lines of ``node`` to the emission ``e``."""
    handler = _HANDLERS.get(node.op)
    if handler is None:
        raise NotImplementedError(f"{node.op} has no Julia emission")
    handler(e, node)


def _place(view: View) -> str:
    """``buffer, first, strides...`` as arguments of a call."""
    return ", ".join([view.base, str(view.offset + 1), *map(str, view.strides)])


def _cell(cell: str) -> str:
    """A cell ``base[index]`` as the two arguments ``base, index``."""
    base, _, index = cell.partition("[")
    return f"{base}, {index[:-1]}"


def _matmul(e: Emitter, node: Node) -> None:
    a, b = (e.views[id(x)] for x in node.args)
    c = e.target(node)
    if not c.size:
        return
    if not a.size:
        e.fill(c, e.literal(0, "f"))
        return
    if node.ndim == 3:
        _batched(e, a, b, c)
    else:
        (m, k), n = a.shape, b.shape[1]
        if b.strides[1] != 1 and m >= PACKED_ROWS and m * n * k <= SMALL_FOR_BLAS:
            b = e.packed(b)
        e.lines.append(_product(a, b, c, m, n, k))


def _product(
    a: View, b: View, c: View, m: int, n: int, k: int, cells: list[str] | None = None
) -> str:
    """The call for C (m, n) = A (m, k) B (k, n); transposed where that makes better loops."""
    spots = [x.partition("[")[::2] for x in cells] if cells else []
    firsts = [s[1][:-1] for s in spots] or [str(v.offset + 1) for v in (a, b, c)]
    strides = [v.strides[-2:] for v in (a, b, c)]
    bases = [v.base for v in (a, b, c)]
    if (m == 1 and n > 1) or (n > 1 and strides[2][1] != 1 and strides[2][0] == 1):
        bases = [bases[1], bases[0], bases[2]]
        firsts = [firsts[1], firsts[0], firsts[2]]
        strides = [strides[1][::-1], strides[0][::-1], strides[2][::-1]]
        m, n = n, m
    parts = [
        f"{base}, {first}, {s[0]}, {s[1]}"
        for base, first, s in zip(bases, firsts, strides, strict=True)
    ]
    if m * n * k <= INLINE_MULTIPLICATIONS:
        shape = "matvec" if n == 1 else "outer" if k == 1 else "matmul"
        return f"{shape}!({parts[2]}, {parts[0]}, {parts[1]}, {m}, {n}, {k})"
    return f"product!({parts[2]}, {parts[0]}, {parts[1]}, {m}, {n}, {k})"


def _batched(e: Emitter, a: View, b: View, c: View) -> None:
    outer = [View(v.base, v.offset, v.shape[:1], v.strides[:1]) for v in (a, b, c)]
    _, cells = e.nest(c.shape[:1], outer, simd=False)
    (_, m, k), n = a.shape, b.shape[2]
    e.lines.append("    " + _product(a, b, c, m, n, k, cells))
    e.close()


def _solve(e: Emitter, node: Node) -> None:
    a, b = (e.views[id(x)] for x in node.args)
    to = e.target(node)
    if not to.size:
        return
    work = e.scratch(a.shape)
    e.copy(a, work)
    e.copy(b, to)
    n, m = to.shape[-2:]
    if node.ndim == 2:
        e.lines.append(f"solve!({_place(work)}, {_place(to)}, {n}, {m})")
        return
    outer = [View(v.base, v.offset, v.shape[:1], v.strides[:1]) for v in (work, to)]
    _, cells = e.nest(to.shape[:1], outer, simd=False)
    spots = [
        f"{_cell(cell)}, {v.strides[1]}, {v.strides[2]}"
        for cell, v in zip(cells, (work, to), strict=True)
    ]
    e.lines.append(f"    solve!({spots[0]}, {spots[1]}, {n}, {m})")
    e.close()


def _arg_extreme(e: Emitter, node: Node) -> None:
    dim = node.attr("dim")
    x = e.views[id(node.args[0])]
    if node.shape == ():
        name = e.scalars[id(node)] = e.name("s")
        e.lines.append(f"{name} = {node.op}_({_place(x)}, {x.shape[0]})")
        return
    to = e.target(node)
    if not to.size:
        return
    _, cells = e.nest(node.shape, [x.drop(dim), to], simd=False)
    e.lines.append(
        f"    {cells[1]} = {node.op}_({_cell(cells[0])}, {x.strides[dim]}, {x.shape[dim]})"
    )
    e.close()


def _cumulate(e: Emitter, node: Node) -> None:
    _along(e, node, "cumsum_!" if node.op == "cumsum" else "cumprod_!")


def _along(e: Emitter, node: Node, call: str, last: str = "") -> None:
    """``call(to lane, x lane, n)`` for every lane along the node's ``dim``."""
    dim = node.attr("dim")
    x, to = e.views[id(node.args[0])], e.target(node)
    if not to.size:
        return
    lanes = [v.drop(dim) for v in (to, x)]
    _, cells = e.nest(lanes[0].shape, lanes, simd=False)
    e.lines.append(
        f"    {call}({_cell(cells[0])}, {to.strides[dim]}, "
        f"{_cell(cells[1])}, {x.strides[dim]}, {x.shape[dim]}{last})"
    )
    e.close()


def _sort(e: Emitter, node: Node) -> None:
    descending = "true" if node.attr("descending") else "false"
    _along(e, node, f"{node.op}_!", f", {descending}")


def _gather(e: Emitter, view: View, index: str) -> str:
    """The cell of a vector at an index (from 0) that is known when the kernel runs."""
    scaled = index if view.strides[0] == 1 else f"{view.strides[0]} * {index}"
    return f"{view.base}[{view.offset + 1} + {scaled}]"


def _index(e: Emitter, node: Node) -> str:
    return e.scalars[id(node)]


def _take(e: Emitter, node: Node) -> None:
    x, index = node.args
    source = e.views[id(x)]
    if node.shape == ():
        name = e.scalars[id(node)] = e.name("s")
        e.lines.append(f"{name} = {_gather(e, source, _index(e, index))}")
        return
    to = e.target(node)
    if not to.size:
        return
    _, cells = e.nest(node.shape, [to, e.views[id(index)]])
    e.lines.append(f"    {cells[0]} = {_gather(e, source, cells[1])}")
    e.close()


def _scatter(e: Emitter, node: Node) -> None:
    to = e.target(node)
    if node.op == "scatter_add":
        index, values = node.args
        e.fill(to, e.literal(0, node.kind))
    else:
        base, index, values = node.args
        e.copy(e.views[id(base)], to)
    if index.size == 0:
        return
    if index.shape == ():
        cells = [_index(e, index), e.scalars[id(values)]]
        depth = ""
    elif values.shape == ():
        _, cells = e.nest(index.shape, [e.views[id(index)]], simd=False)
        cells, depth = [cells[0], e.scalars[id(values)]], "    "
    else:
        _, cells = e.nest(index.shape, [e.views[id(index)], e.views[id(values)]], simd=False)
        depth = "    "
    sign = "+=" if node.op == "scatter_add" else "="
    e.lines.append(f"{depth}{_gather(e, to, cells[0])} {sign} {cells[1]}")
    if depth:
        e.close()


def _searchsorted(e: Emitter, node: Node) -> None:
    table, values = node.args
    x = e.views[id(table)]
    call = f"searchsorted_({_place(x)}, {x.shape[0]}, {{}}, {str(node.attr('right')).lower()})"
    if node.shape == ():
        name = e.scalars[id(node)] = e.name("s")
        e.lines.append(f"{name} = {call.format(e.scalars[id(values)])}")
        return
    to = e.target(node)
    if not to.size:
        return
    _, cells = e.nest(node.shape, [to, e.views[id(values)]], simd=False)
    e.lines.append(f"    {cells[0]} = {call.format(cells[1])}")
    e.close()


_HANDLERS = {
    "matmul": _matmul,
    "solve": _solve,
    "argmax": _arg_extreme,
    "argmin": _arg_extreme,
    "cumsum": _cumulate,
    "cumprod": _cumulate,
    "sort": _sort,
    "argsort": _sort,
    "take": _take,
    "scatter_add": _scatter,
    "scatter_set": _scatter,
    "searchsorted": _searchsorted,
}
