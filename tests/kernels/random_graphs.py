"""Random kernel graphs with finite values, for property tests of the passes and emitters.

Every operation of the table comes up. Functions with poles or branch cuts are given arguments that
keep well away from them, so that a change of rounding cannot change the result by more than that.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from pysciml.kernels.graph import Graph, Node, const, input_node, make

SHAPES = [
    (),
    (1,),
    (2,),
    (3,),
    (4,),
    (2, 3),
    (3, 2),
    (1, 3),
    (3, 1),
    (2, 2),
    (2, 1, 3),
    (6,),
    (12,),
]
INPUTS: dict[str, tuple[int, ...]] = {"u": (4,), "p": (6,), "t": ()}
TAME = "neg abs sin cos tanh sigmoid softplus erf erfc atan asinh sign".split()


class Grower:
    """Grows a graph one operation at a time from a pool of nodes."""

    def __init__(self, rng: random.Random, inputs: dict[str, tuple[int, ...]]) -> None:
        self.rng = rng
        self.inputs = {name: input_node(name, shape) for name, shape in inputs.items()}
        self.pool: list[Node] = list(self.inputs.values())

    def pick(self, ndim: int | None = None, least: int = 0) -> Node:
        """A real node, of this rank if one is asked for; views of the pool count."""
        found = [n for n in self.pool if n.kind == "f" and n.size >= least]
        node = self.rng.choice(found or [n for n in self.pool if n.kind == "f"])
        if ndim is None or node.ndim == ndim:
            return node
        if ndim == 0:
            return make("elem", node, index=self.rng.randrange(node.size))
        if ndim == 1:
            return make("reshape", node, shape=(node.size,))
        sizes = [d for d in range(1, node.size + 1) if node.size % d == 0]
        d = self.rng.choice(sizes)
        return make("reshape", node, shape=(*(1,) * (ndim - 2), d, node.size // d))

    def like(self, shape: tuple[int, ...]) -> Node:
        """A real node of this shape, or a scalar."""
        found = [n for n in self.pool if n.kind == "f" and n.shape in (shape, ())]
        return self.rng.choice(found) if found else self.literal(shape)

    def literal(self, shape: tuple[int, ...]) -> Node:
        """A literal, in which zeros and ones are common."""
        n = int(np.prod(shape, dtype=int))
        values = [self.rng.choice([0.0, 0.0, 1.0, -1.0, self.rng.uniform(-2, 2)]) for _ in range(n)]
        if self.rng.random() < 0.3:
            values = values[:1] * n
        return const(np.array(values).reshape(shape))

    def tame(self, node: Node) -> Node:
        """Values within [-1, 1]."""
        return make("tanh", node)

    def positive(self, node: Node) -> Node:
        return make("add", make("abs", self.tame(node)), const(0.5))

    def indices(self, length: int, shape: tuple[int, ...]) -> Node:
        n = int(np.prod(shape, dtype=int))
        flat = [self.rng.randrange(length) for _ in range(n)]
        if n <= length and self.rng.random() < 0.5:
            start = self.rng.randrange(length - n + 1)
            flat = list(range(start, start + n))
        return const(np.array(flat, dtype=np.int64).reshape(shape))

    def grow(self) -> None:
        method = getattr(self, "_" + self.rng.choice(METHODS))
        node = method()
        if 0 < node.size <= 200:
            self.pool.append(node)

    def _tame_unary(self) -> Node:
        return make(self.rng.choice(TAME), self.pick())

    def _guarded_unary(self) -> Node:
        op = self.rng.choice(
            "exp expm1 exp2 log log1p log2 log10 sqrt rsqrt reciprocal tan asin acos sinh cosh "
            "acosh atanh lgamma digamma".split()
        )
        x = self.pick()
        if op in (
            "log",
            "log2",
            "log10",
            "log1p",
            "sqrt",
            "rsqrt",
            "reciprocal",
            "lgamma",
            "digamma",
        ):
            return make(op, self.positive(x))
        if op == "acosh":
            return make(op, make("add", self.positive(x), const(1.0)))
        if op in ("asin", "acos", "atanh"):
            return make(op, make("mul", self.tame(x), const(0.75)))
        return make(op, self.tame(x))

    def _steps(self) -> Node:
        """Rounding, of values that are not near where it jumps."""
        x = make("add", make("mul", make("sign", self.pick()), const(3.0)), const(0.3))
        return make(self.rng.choice(["floor", "ceil", "round", "trunc"]), x)

    def _arithmetic(self) -> Node:
        x = self.pick()
        args = [x, self.like(x.shape)]
        self.rng.shuffle(args)
        return make(self.rng.choice(["add", "sub", "mul", "maximum", "minimum"]), *args)

    def _with_literal(self) -> Node:
        x = self.pick()
        args = [x, self.literal(x.shape)]
        self.rng.shuffle(args)
        return make(self.rng.choice(["add", "sub", "mul"]), *args)

    def _division(self) -> Node:
        x = self.pick()
        y = self.positive(self.like(x.shape))
        op = self.rng.choice(["div", "pow", "atan2"])
        return make(op, self.positive(x) if op == "pow" else x, y)

    def _power(self) -> Node:
        exponent = self.rng.choice([0.0, 1.0, 2.0, 3.0, 4.0, -1.0, -2.0, 0.5, -0.5, 1.5])
        return make("pow", self.positive(self.pick()), const(exponent))

    def _modulo(self) -> Node:
        op = self.rng.choice(["fmod", "remainder", "floordiv"])
        x = make("add", make("mul", make("sign", self.pick()), const(5.2)), const(0.1))
        return make(op, x, const(self.rng.choice([2.0, -2.0, 3.0])))

    def _where(self) -> Node:
        x = self.pick()
        y = self.like(x.shape)
        away = make("add", make("sign", self.like(x.shape)), const(0.5))
        condition = make(self.rng.choice(["lt", "le", "gt", "ge", "eq", "ne"]), away, const(0.25))
        if self.rng.random() < 0.3:
            condition = make("not", condition)
        if self.rng.random() < 0.3:
            other = make("gt", make("abs", self.like(x.shape)), const(-1.0))
            condition = make(self.rng.choice(["and", "or", "xor"]), condition, other)
        return make("where", condition, x, y)

    def _cast(self) -> Node:
        x = self.pick()
        whole = make("cast", make("add", make("sign", x), const(0.5)), kind="i")
        if self.rng.random() < 0.5:
            whole = make("add", make("mul", whole, const(2)), const(1))
        return make("cast", whole, kind="f")

    def _flags(self) -> Node:
        x = self.pick()
        return make("cast", make(self.rng.choice(["isnan", "isinf"]), x), kind="f")

    def _reduce(self) -> Node:
        x = self.pick(least=2)
        dims = tuple(sorted(self.rng.sample(range(x.ndim), self.rng.randint(0, x.ndim))))
        op = self.rng.choice(["sum", "sum", "prod", "amax", "amin"])
        return make(op, self.tame(x) if op == "prod" else x, dims=dims)

    def _any(self) -> Node:
        x = self.pick(least=2)
        dims = tuple(sorted(self.rng.sample(range(x.ndim), self.rng.randint(0, x.ndim))))
        big = make("gt", make("add", make("sign", x), const(0.5)), const(0.25))
        return make("cast", make(self.rng.choice(["any", "all"]), big, dims=dims), kind="f")

    def _matmul(self) -> Node:
        x = self.tame(self.pick(2))
        k = x.shape[1]
        found = [n for n in self.pool if n.kind == "f" and n.ndim and n.size % k == 0]
        y = self.rng.choice(found) if found else self.literal((k, 2))
        y = make("reshape", y, shape=(k, y.size // k))
        if self.rng.random() < 0.2:
            y = self.literal((k, self.rng.randint(1, 3)))
        if self.rng.random() < 0.2:
            y = const(np.eye(k))
        if self.rng.random() < 0.3:
            x, y = make("permute", y, perm=(1, 0)), make("permute", x, perm=(1, 0))
        if self.rng.random() < 0.3:
            g = self.rng.randint(1, 3)
            x3 = make("expand", make("reshape", x, shape=(1, *x.shape)), shape=(g, *x.shape))
            y3 = make("expand", make("reshape", y, shape=(1, *y.shape)), shape=(g, *y.shape))
            if self.rng.random() < 0.5:
                x3 = make("mul", x3, make("expand", const(np.full((1, 1, 1), 1.5)), shape=x3.shape))
            return make("matmul", x3, make("tanh", y3) if self.rng.random() < 0.5 else y3)
        return make("matmul", x, y)

    def _solve(self) -> Node:
        y = self.pick(2)
        m = y.shape[0]
        if m > 6:
            return y
        noise = self.literal((m, m))
        a = make("add", make("mul", self.tame(self.like((m, m))), const(0.1)), noise)
        return make("solve", make("add", a, const(6.0 * m * np.eye(m))), y)

    def _reshape(self) -> Node:
        x = self.pick()
        shapes = [s for s in SHAPES if int(np.prod(s, dtype=int)) == x.size]
        return make("reshape", x, shape=self.rng.choice([*shapes, (x.size,)]))

    def _permute(self) -> Node:
        x = self.pick(self.rng.choice([2, 2, 3]), least=2)
        return make("permute", x, perm=tuple(self.rng.sample(range(x.ndim), x.ndim)))

    def _expand(self) -> Node:
        x = self.pick()
        shape = tuple(self.rng.randint(1, 3) if n == 1 else n for n in x.shape)
        return make("expand", x, shape=shape)

    def _flip(self) -> Node:
        x = self.pick(least=2)
        dims = tuple(sorted(self.rng.sample(range(x.ndim), self.rng.randint(0, x.ndim))))
        return make("flip", x, dims=dims)

    def _slice(self) -> Node:
        x = self.pick(least=2)
        starts, stops, steps = [], [], []
        for n in x.shape:
            start = self.rng.randrange(n)
            starts.append(start)
            stops.append(self.rng.randint(start + 1, n))
            steps.append(self.rng.choice([1, 1, 1, 2]))
        return make("slice", x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))

    def _cat(self) -> Node:
        x = self.pick(self.rng.choice([1, 1, 2]))
        dim = self.rng.randrange(x.ndim)
        found = [
            n
            for n in self.pool
            if n.kind == "f"
            and n.ndim == x.ndim
            and all(i == dim or n.shape[i] == x.shape[i] for i in range(x.ndim))
        ]
        parts = [x, *(self.rng.choice(found) for _ in range(self.rng.randint(0, 3)) if found)]
        if self.rng.random() < 0.3:
            parts.append(const(np.zeros(x.shape)))
        self.rng.shuffle(parts)
        return make("cat", *parts, dim=dim)

    def _stack(self) -> Node:
        parts = [self.pick(0) for _ in range(self.rng.randint(1, 9))]
        parts = [make("reshape", p, shape=(1,)) for p in parts]
        return make("cat", *parts, dim=0)

    def _pad(self) -> Node:
        x = self.pick(self.rng.choice([1, 2]))
        lo, hi, interior = (tuple(self.rng.choice([0, 0, 1, 2]) for _ in x.shape) for _ in range(3))
        if self.rng.random() < 0.7:
            interior = (0,) * x.ndim
        return make("pad", x, lo=lo, hi=hi, interior=interior)

    def _pads(self) -> Node:
        """A sum of padded slices, as the gradient of indexing is."""
        x = self.pick(1, least=2)
        n = x.size
        cut = self.rng.randrange(1, n) if n > 1 else 1
        a = make("slice", x, starts=(0,), stops=(cut,), steps=(1,))
        out = make("pad", make("sin", a), lo=(0,), hi=(n - cut,), interior=(0,))
        if cut < n:
            b = make("slice", x, starts=(cut,), stops=(n,), steps=(1,))
            out = make("add", out, make("pad", b, lo=(cut,), hi=(0,), interior=(0,)))
        return out

    def _take(self) -> Node:
        x = self.pick(1)
        return make(
            "take", x, self.indices(x.size, self.rng.choice([(), (1,), (2,), (3,), (2, 2)]))
        )

    def _take_computed(self) -> Node:
        x = self.pick(1, least=2)
        if x.size < 2:
            return x
        idx = make("cast", make("gt", self.like((3,)), const(0.0123)), kind="i")
        return make("take", x, idx)

    def _scatter(self) -> Node:
        vals = self.pick(1)
        size = vals.size + self.rng.randint(0, 4)
        idx = self.indices(size, vals.shape)
        if self.rng.random() < 0.5:
            return make("scatter_add", idx, vals, size=size)
        idx = const(np.array(self.rng.sample(range(size), vals.size), dtype=np.int64))
        base = make("expand", make("reshape", self.pick(0), shape=(1,)), shape=(size,))
        return make("scatter_set", base, idx, vals)

    def _accumulate(self) -> Node:
        x = self.pick(self.rng.choice([1, 2]))
        op = self.rng.choice(["cumsum", "cumprod"])
        return make(op, self.tame(x), dim=self.rng.randrange(x.ndim))

    def _sorting(self) -> Node:
        x = self.pick(self.rng.choice([1, 2]))
        # Distinct values, so that no order hangs on rounding.
        steps = const(np.arange(x.size, dtype=float).reshape(x.shape)[::-1] * 5.0)
        x = make("add", self.tame(x), steps)
        dim = self.rng.randrange(x.ndim)
        op = self.rng.choice(["sort", "argsort", "argmax", "argmin"])
        if op in ("sort", "argsort"):
            node = make(op, x, dim=dim, descending=self.rng.random() < 0.5)
        else:
            node = make(op, x, dim=dim)
        return node if node.kind == "f" else make("cast", node, kind="f")

    def _search(self) -> Node:
        grid = const(np.linspace(-1.03, 1.07, 7))
        values = make("sign", self.pick())
        return make("cast", make("searchsorted", grid, values, right=False), kind="f")


METHODS = [name[1:] for name in vars(Grower) if name.startswith("_") and not name.startswith("__")]


def random_graph(rng: random.Random, n_ops: int, outputs: int = 1) -> Graph:
    """A graph of inputs u (4,), p (6,) and t () and of ``n_ops`` operations or a few more."""
    grower = Grower(rng, INPUTS)
    for _ in range(n_ops):
        grower.grow()
    real = [n for n in grower.pool if n.kind == "f"]
    return Graph(tuple(grower.inputs.values()), tuple(real[-outputs:]))


def random_inputs(rng: random.Random) -> dict[str, np.ndarray]:
    """Values for the inputs of :func:`random_graph`."""
    values = np.random.default_rng(rng.randrange(2**32))
    return {name: values.uniform(-2, 2, shape) for name, shape in INPUTS.items()}


def tame(values: Sequence[np.ndarray]) -> bool:
    """Whether results are finite and of a size that leaves rounding out of sight."""
    return all(np.isfinite(v).all() and np.abs(v).max(initial=0.0) < 1e6 for v in values)


def assert_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Equal up to rounding that a few ill-conditioned operations have magnified."""
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-8 * max(1.0, np.abs(y).max(initial=0)))
