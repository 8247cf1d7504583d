"""Which outputs depend on which inputs, and what a Jacobian of that pattern looks like.

:func:`dependencies` follows dependencies through a graph element by element; :func:`analyse` finds
blocks, bands and a colouring of the columns, by which a sparse Jacobian is computed from few
products (Curtis, Powell and Reid, 1974).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from pysciml.kernels.fold import SHAPE_OPS, shape_op
from pysciml.kernels.graph import ELEMENTWISE, REDUCE, Graph, Node

Pattern = npt.NDArray[np.bool_]

#: Beyond this many dependencies at once (or terms of one operation) a pattern is taken as full.
LIMIT = 20_000_000
#: Operations that are constant almost everywhere: their derivative is zero.
_FLAT = frozenset("floor ceil round trunc sign floordiv".split())
#: Those with a kink, or whose pieces are others.
_KINKED = frozenset("abs maximum minimum fmod remainder amax amin sort".split())


class _TooMuch(Exception):
    """The dependencies do not fit in memory."""


def dependencies(graph: Graph, wrt: str) -> sparse.csr_matrix | None:
    """Which entries of the Jacobian of the first output by an input can be nonzero.

    Exact, up to cancellation, through elementwise operations, moves of elements, sums, and products
    with literals; elsewhere an output depends on all that its arguments depend on.
    Piecewise constant operations depend on nothing.

    Args:
        graph: any kernel graph.
        wrt: name of the input.

    Returns:
        Sparse matrix of ones (n_out, n_in), axes flattened; None for a pattern too large to
        follow, which is taken as full.
    """
    try:
        return _Dependencies(graph, wrt).of(graph.outputs[0])
    except _TooMuch:
        return None


def depends(graph: Graph, wrt: str) -> bool:
    """Whether the outputs, or anything that they are made of, read an input."""
    given = id(graph.input(wrt))
    used = {id(a) for node in graph.nodes() for a in node.args}
    return given in used or given in {id(output) for output in graph.outputs}


def piecewise(graph: Graph, wrt: str) -> bool:
    """Whether the outputs are put together of pieces that an input chooses between.

    So they are where a value that is no real number, or that has a step or a kink, depends on it.
    """
    reached: set[int] = set()
    for node in graph.nodes():
        if node.op == "input":
            depends = node.attr("name") == wrt
        else:
            depends = any(id(a) in reached for a in node.args)
        if depends:
            if node.kind != "f" or node.op in _FLAT or node.op in _KINKED:
                return True
            reached.add(id(node))
    return False


class _Dependencies:
    """A sparse 0/1 matrix (size, n_in) for every value: what each of its elements depends on."""

    def __init__(self, graph: Graph, wrt: str) -> None:
        self.n = graph.input(wrt).size
        self.made: dict[int, sparse.csr_matrix] = {}
        last = {id(a): i for i, node in enumerate(graph.nodes()) for a in node.args}
        kept = {id(o) for o in graph.outputs}
        for i, node in enumerate(graph.nodes()):
            if node.op == "input" and node.attr("name") == wrt:
                self.made[id(node)] = sparse.identity(self.n, dtype=np.int32, format="csr")
            elif node.kind != "f" or not node.args or node.op in _FLAT:
                self.made[id(node)] = self.nothing(node.size)
            else:
                self.made[id(node)] = self.node(node)
            if self.made[id(node)].nnz > LIMIT:
                raise _TooMuch
            for a in node.args:
                if last[id(a)] == i and id(a) not in kept:
                    self.made.pop(id(a), None)

    def of(self, node: Node) -> sparse.csr_matrix:
        return self.made[id(node)]

    def nothing(self, size: int) -> sparse.csr_matrix:
        return sparse.csr_matrix((size, self.n), dtype=np.int32)

    def node(self, node: Node) -> sparse.csr_matrix:
        op, args = node.op, [self.of(a) for a in node.args]
        if not any(a.nnz for a in args):
            return self.nothing(node.size)
        if op in ELEMENTWISE:
            return self.elementwise(node, args)
        if op in SHAPE_OPS or op in ("pack", "elem"):
            return self.move(node, args)
        if op in REDUCE:
            return self.join(node, args[0], node.attr("dims"))
        if op == "matmul":
            return self.matmul(node, args)
        if op in ("take", "scatter_add", "scatter_set"):
            return self.indexed(node, args)
        if op in ("cumsum", "cumprod", "sort"):
            return self.along(node, args[0], node.attr("dim"))
        # solve and whatever else: everything depends on everything
        return self.all_of(node.size, args)

    def all_of(self, size: int, args: list[sparse.csr_matrix]) -> sparse.csr_matrix:
        row = sum(a.getnnz(axis=0) for a in args) > 0
        self.check(size * int(row.sum()))
        return sparse.csr_matrix(np.broadcast_to(row, (size, self.n)).astype(np.int32))

    def check(self, terms: int) -> None:
        if terms > LIMIT:
            raise _TooMuch

    def elementwise(self, node: Node, args: list[sparse.csr_matrix]) -> sparse.csr_matrix:
        total = self.nothing(node.size)
        for i, (a, dependencies) in enumerate(zip(node.args, args, strict=True)):
            if dependencies.nnz == 0:
                continue
            live = self.factor(node, i)
            if a.shape != node.shape:
                self.check(node.size * dependencies.nnz)
                dependencies = dependencies[np.zeros(node.size, dtype=int)]
            if live is not None:
                dependencies = sparse.diags(live.astype(np.int32), dtype=np.int32) @ dependencies
            total = total + dependencies
        return _ones(total)

    def factor(self, node: Node, i: int) -> np.ndarray | None:
        """Where the result depends on argument ``i``, if the others' literals tell."""
        if node.op == "mul":
            other = node.args[1 - i]
            found = other.value != 0 if other.is_const else None
        elif node.op == "where" and node.args[0].is_const:
            found = node.args[0].value != (i == 2)
        else:
            return None
        return None if found is None else np.broadcast_to(found, node.shape).reshape(-1)

    def move(self, node: Node, args: list[sparse.csr_matrix]) -> sparse.csr_matrix:
        if node.op == "pack":
            return _ones(sparse.vstack(args, format="csr"))
        if node.op == "elem":
            return args[0][[node.attr("index")]]
        numbers, start = [], 1  # element numbers; 0 for a padding zero
        for a in node.args:
            numbers.append(np.arange(start, start + a.size).reshape(a.shape))
            start += a.size
        moved = shape_op(node.op, numbers, dict(node.attrs), node.shape).reshape(-1)
        stacked = sparse.vstack([self.nothing(1), *args], format="csr")
        lengths = np.diff(stacked.indptr)
        self.check(int(lengths[moved].sum()))
        return stacked[moved]

    def gather(
        self, size: int, rows: np.ndarray, columns: np.ndarray, x: sparse.csr_matrix
    ) -> sparse.csr_matrix:
        """Element rows[i] of the result depends on all that element columns[i] of x does."""
        self.check(int(np.diff(x.indptr)[columns].sum()))
        ones = np.ones(len(rows), dtype=np.int32)
        return _ones(sparse.csr_matrix((ones, (rows, columns)), shape=(size, x.shape[0])) @ x)

    def join(self, node: Node, x: sparse.csr_matrix, dims: tuple[int, ...]) -> sparse.csr_matrix:
        """Axes reduced away."""
        source = node.args[0]
        kept = tuple(1 if d in dims else n for d, n in enumerate(source.shape))
        target = np.arange(node.size).reshape(kept)
        rows = np.broadcast_to(target, source.shape).reshape(-1)
        return self.gather(node.size, rows, np.arange(source.size), x)

    def along(self, node: Node, x: sparse.csr_matrix, dim: int) -> sparse.csr_matrix:
        """Every element depends on the whole line along one axis."""
        shape = node.shape
        kept = tuple(1 if d == dim else n for d, n in enumerate(shape))
        lines = np.arange(node.size // max(shape[dim], 1)).reshape(kept)
        rows = np.broadcast_to(lines, shape).reshape(-1)
        joined = self.gather(lines.size, rows, np.arange(node.size), x)
        self.check(int(np.diff(joined.indptr)[rows].sum()))
        return joined[rows]

    def indexed(self, node: Node, args: list[sparse.csr_matrix]) -> sparse.csr_matrix:
        at = 0 if node.op == "scatter_add" else 1
        if not node.args[at].is_const:
            return self.all_of(node.size, args)
        idx = node.args[at].value.reshape(-1)
        if node.op == "take":
            self.check(int(np.diff(args[0].indptr)[idx].sum()))
            return args[0][idx]
        vals = args[-1]
        scattered = self.gather(node.size, idx, np.arange(len(idx)), vals)
        if node.op == "scatter_add":
            return scattered
        keep = np.ones(node.size, dtype=np.int32)
        keep[idx] = 0
        return _ones(sparse.diags(keep, dtype=np.int32) @ args[0] + scattered)

    def matmul(self, node: Node, args: list[sparse.csr_matrix]) -> sparse.csr_matrix:
        a, b = node.args
        shape = (1,) * (3 - node.ndim)
        (g, m, k), n = (*shape, *a.shape), b.shape[-1]
        numbers = np.arange(g * m * n).reshape(g, m, 1, n)
        na = np.arange(g * m * k).reshape(g, m, k, 1)
        nb = np.arange(g * k * n).reshape(g, 1, k, n)
        # Only a literal factor can switch terms off; without one, whole rows and columns count.
        total = self.nothing(node.size)
        for x, other, own in ((args[0], b, na), (args[1], a, nb)):
            if x.nnz == 0:
                continue
            self.check(g * m * n * k)
            live = np.ones((g, m, k, n), dtype=bool)
            if other.is_const:
                nonzero = other.value != 0
                live &= nonzero.reshape(nb.shape if other is b else na.shape)
            where = np.nonzero(live)
            rows = np.broadcast_to(numbers, live.shape)[where]
            columns = np.broadcast_to(own, live.shape)[where]
            total = total + self.gather(node.size, rows, columns, x)
        return _ones(total)


def _ones(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    """The pattern of a matrix: ones where it is not zero."""
    matrix = sparse.csr_matrix(matrix)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.data = np.ones_like(matrix.data, dtype=np.int32)
    return matrix


@dataclass(frozen=True, eq=False)
class Structure:
    """What a square matrix of some pattern looks like.

    Args:
        kind: "diagonal", "blocks", "banded", "sparse" or "dense": how it is best solved with.
        lband, uband: how far entries lie below and above the diagonal, in the given order.
        blocks: indices of each connected component, ascending; one block if all are connected.
        colors: a colour for each column, so that columns of one colour share no row.
        ncolors: how many colours.
        nnz: entries of the pattern.
    """

    kind: str
    lband: int
    uband: int
    blocks: tuple[npt.NDArray[np.intp], ...]
    colors: npt.NDArray[np.intp]
    ncolors: int
    nnz: int

    def seed(self) -> npt.NDArray[np.float64]:
        """(n, ncolors): one column a colour, ones at its columns."""
        seed = np.zeros((len(self.colors), self.ncolors))
        seed[np.arange(len(self.colors)), self.colors] = 1.0
        return seed


def analyse(pattern: npt.ArrayLike | sparse.spmatrix) -> Structure:
    """Blocks, bands and colouring of a square pattern, dense or sparse.

    Raises:
        ValueError: the pattern is not square.
    """
    matrix = _matrix(pattern)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a pattern of shape {matrix.shape} is not square")
    n = matrix.shape[0]
    rows, columns = matrix.nonzero()
    nnz = len(rows)
    lband = int(max((rows - columns).max(initial=0), 0))
    uband = int(max((columns - rows).max(initial=0), 0))
    blocks = _blocks(matrix)
    colors = color_columns(matrix)
    ncolors = int(colors.max(initial=-1)) + 1
    kind = _kind(n, nnz, lband, uband, max((len(b) for b in blocks), default=0))
    return Structure(kind, lband, uband, blocks, colors, ncolors, nnz)


def _kind(n: int, nnz: int, lband: int, uband: int, block: int) -> str:
    width = lband + uband + 1
    if width == 1:
        return "diagonal"
    if block <= min(width, n // 2):
        return "blocks"
    if width <= n // 3:
        return "banded"
    return "sparse" if n >= 50 and nnz < 0.2 * n * n else "dense"


def _matrix(pattern: npt.ArrayLike | sparse.spmatrix) -> sparse.csr_matrix:
    if sparse.issparse(pattern):
        return _ones(pattern)
    dense = np.asarray(pattern, dtype=bool)
    if dense.ndim != 2:
        raise ValueError(f"a pattern of shape {dense.shape} is not a matrix")
    return sparse.csr_matrix(dense.astype(np.int32))


def _blocks(pattern: sparse.csr_matrix) -> tuple[npt.NDArray[np.intp], ...]:
    count, labels = connected_components(pattern, directed=False)
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=count))[:-1]
    return tuple(np.split(order, ends)) if count else ()


def color_columns(pattern: npt.ArrayLike | sparse.spmatrix) -> npt.NDArray[np.intp]:
    """Colours such that no two columns of one colour have an entry in the same row.

    Greedy, columns with the most neighbours first. Works for any (n_out, n_in) pattern.
    """
    matrix = _matrix(pattern).tocsc()
    n = matrix.shape[1]
    by_row = matrix.tocsr()
    longest = int(np.diff(by_row.indptr).max(initial=0))
    if longest == n:  # a full row: no two columns can share
        return np.arange(n)
    neighbours = (matrix.T @ matrix).tocsr()
    colors = np.full(n, -1, dtype=np.intp)
    for j in np.argsort(-np.diff(neighbours.indptr), kind="stable"):
        near = colors[neighbours.indices[neighbours.indptr[j] : neighbours.indptr[j + 1]]]
        taken = np.zeros(len(near) + 1, dtype=bool)
        taken[near[(near >= 0) & (near <= len(near))]] = True
        colors[j] = int(np.argmin(taken))
    return colors
