"""Write a scalarised graph as Python source: the scalar mode of the NumPy emitter.

The source is one function, ``factory``, of the literals and the fixed inputs. Running it allocates
the kernel's memory, computes everything that depends on fixed inputs alone, and returns the kernel
proper: straight-line code of what is left. Each statement of the kernel is written twice, fast and
careful (see :mod:`.numpy_scalars`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from pysciml.kernels.graph import ELEMENTWISE, REDUCE, Graph, Node
from pysciml.kernels.numpy_memory import (
    CALL,
    FIXED,
    STATIC,
    VIEWS,
    Memory,
    Program,
    Ref,
    parts_of,
    view_text,
)
from pysciml.kernels.numpy_scalars import careful, literal, template

#: Inlined expressions are kept shorter than this.
_INLINE = 160
#: Up to this many elements are written to an array one by one.
_ONE_BY_ONE = 6
_CONVERT = {"f": "float", "i": "int", "b": "bool"}
_DTYPE = {"f": "float64", "i": "int64", "b": "bool_"}


@dataclass(frozen=True)
class _Text:
    """A scalar expression, fast and careful; ``atom``: a name or a literal."""

    fast: str
    careful: str
    atom: bool = True

    @property
    def operand(self) -> str:
        return self.fast if self.atom else f"({self.fast})"


def write(graph: Graph, fixed: frozenset[str]) -> Program:
    """The program of a scalarised graph.

    Args:
        graph: from :func:`pysciml.kernels.scalarise.scalarise`.
        fixed: names of the inputs that ``factory`` takes; the kernel takes the others.
    """
    return _Writer(graph, fixed).program()


class _Writer:
    def __init__(self, graph: Graph, fixed: frozenset[str]) -> None:
        self.graph = graph
        self.fixed = fixed
        self.statics: list[str] = []
        self.prologue: list[str] = []
        self.head: list[tuple[str, str]] = []
        self.body: list[tuple[str, str]] = []
        self.memory = Memory(self.statics)
        self.literals: list[np.ndarray] = []
        self.stage: dict[int, int] = {}
        self.uses: Counter[int] = Counter()
        self.elements: dict[int, dict[int, Node]] = {}
        self.texts: dict[int, _Text] = {}
        self.refs: dict[int, Ref] = {}
        self.names: dict[int, str] = {}  # fixed values in the prologue
        self.places: dict[int, Ref] = {}
        self.copies: dict[int, Ref] = {}
        self.cells: dict[int, str] = {}
        self.arrays = False

    # -- the whole ------------------------------------------------------------------------------

    def program(self) -> Program:
        nodes = self.graph.nodes()
        for node in nodes:
            self.survey(node)
        for out in self.graph.outputs:
            self.uses[id(out)] += 1
        self.allocate(nodes)
        for node in nodes:
            if self.stage[id(node)] == FIXED:
                self.precompute(node)
            else:
                self.compute(node)
        for i, out in enumerate(self.graph.outputs):
            self.write_output(f"o{i}", out)
        return Program(self.source(), self.literals, self.arrays)

    def source(self) -> str:
        names = [n.attr("name") for n in self.graph.inputs]
        fixed = [f"x_{n}" for n in names if n in self.fixed]
        args = [f"x_{n}" for n in names if n not in self.fixed]
        args += [f"o{i}" for i in range(len(self.graph.outputs))]
        call = ", ".join(args)
        lines = [f"def factory({', '.join(['K', *fixed])}):"]
        lines += [f"    {line}" for line in (*self.statics, *self.prologue)]
        steps = [*self.head, *self.body]
        lines.append(f"    def careful({call}):")
        lines += [f"        {c}" for _, c in steps] or ["        pass"]
        lines.append(f"    def fast({call}):")
        lines.append("        try:")
        lines += [f"            {f}" for f, _ in steps] or ["            pass"]
        lines.append("        except (ArithmeticError, ValueError):")
        lines.append('            with errstate(all="ignore"):')
        lines.append(f"                careful({call})")
        lines.append("    return fast")
        return "\n".join(lines) + "\n"

    def survey(self, node: Node) -> None:
        if node.op == "input":
            self.stage[id(node)] = FIXED if node.attr("name") in self.fixed else CALL
        else:
            self.stage[id(node)] = max((self.stage[id(a)] for a in node.args), default=FIXED)
        for a in node.args:
            self.uses[id(a)] += 1
        if node.op == "elem" and self.stage[id(node)] == CALL:
            self.elements.setdefault(id(node.args[0]), {})[node.attr("index")] = node

    def allocate(self, nodes: tuple[Node, ...]) -> None:
        """Give every array that is computed in a call its memory: wholes before their pieces."""
        for i, out in enumerate(self.graph.outputs):
            # Nothing else reads it: it can be computed where the caller wants it.
            direct = out.op in ELEMENTWISE and out.op not in ("where", "cast")
            if self.uses[id(out)] == 1 and direct and out.shape != ():
                self.places[id(out)] = Ref(f"o{i}", CALL)
        for node in reversed(nodes):
            if self.stage[id(node)] != CALL or node.shape == () or node.op in VIEWS:
                continue
            if node.op in ("input", "pack") and id(node) not in self.places:
                continue
            ref = self.places.get(id(node))
            if ref is None:
                zeros = node.op in ("pad", "scatter_add")
                ref = self.memory.buffer(node.shape, node.kind, zeros=zeros)
                self.places[id(node)] = ref
            if node.op in ("cat", "pad") and ref.stage == STATIC:
                for piece, index in parts_of(node):
                    self.put_in_place(piece, self.memory.place(ref, index))

    def put_in_place(self, piece: Node, ref: Ref) -> None:
        while piece.op == "reshape" and ref.contiguous and piece.args[0].shape != ():
            piece = piece.args[0]
            ref = self.memory.reshaped(ref, piece.shape)
        owned = piece.op not in VIEWS and piece.op not in ("input", "const", "pad", "scatter_add")
        if not owned or piece.shape == () or self.stage[id(piece)] != CALL:
            return
        if id(piece) in self.places or (
            piece.op in ("matmul", "pack", *REDUCE) and not ref.contiguous
        ):
            return
        self.places[id(piece)] = ref

    # -- fixed values: computed once, in the prologue -------------------------------------------

    def precompute(self, node: Node) -> None:
        op = node.op
        if op == "const":
            if node.shape == ():
                self.names[id(node)] = literal(node.value)
                return
            name = f"k{len(self.literals)}"
            self.statics.append(f"{name} = K[{len(self.literals)}]")
            self.literals.append(node.value)
        elif op == "input":
            name = f"x_{node.attr('name')}"
            kind = _DTYPE[node.kind]
            text = f"ascontiguousarray({name}, {kind})" if node.shape else f"{kind}({name})"
            self.prologue.append(f"{name} = {text}")
        else:
            name = self.memory.name("h")
            args = [self.names[id(a)] for a in node.args]
            if op in ELEMENTWISE:
                if op == "cast" and node.shape:
                    text = f"{args[0]}.astype({_DTYPE[node.kind]})"
                else:
                    function = f"cast_{node.kind}" if op == "cast" else op
                    text = careful(function, len(args)).format(*args)
            elif op == "elem":
                flat = "" if node.args[0].ndim == 1 else ".reshape(-1)"
                text = f"{args[0]}{flat}[{node.attr('index')}]"
            elif op == "expand":
                text = f"broadcast_to({args[0]}, {node.shape})"
            elif op in VIEWS:
                head = f"asarray({args[0]})" if node.args[0].shape == () else args[0]
                text = head + view_text(node)
            else:
                attrs = "{" + ", ".join(f"{k!r}: {v!r}" for k, v in node.attrs) + "}"
                joined = "".join(a + ", " for a in args)
                text = f"apply({op!r}, ({joined}), {attrs}, {node.shape}, {node.kind!r})"
                if node.shape == ():
                    text += "[()]"
            self.prologue.append(f"{name} = {text}")
        self.names[id(node)] = name
        if node.shape != ():
            self.refs[id(node)] = Ref(name, FIXED)

    # -- scalars --------------------------------------------------------------------------------

    def text(self, node: Node) -> _Text:
        """A scalar's expression, for use in a call."""
        if id(node) not in self.texts:
            name = self.names[id(node)]  # a fixed value
            if not node.is_const:
                plain = "f" + name.removeprefix("x_")
                self.prologue.append(f"{plain} = {name}.item()")
                name = plain
            self.texts[id(node)] = _Text(name, name)
        return self.texts[id(node)]

    def define(self, node: Node, fast: str, slow: str | None = None) -> None:
        """A statement that gives a scalar its name."""
        name = self.memory.name("s")
        self.body.append((f"{name} = {fast}", f"{name} = {slow or fast}"))
        self.texts[id(node)] = _Text(name, name)

    def named(self, node: Node) -> _Text:
        text = self.text(node)
        if not text.atom:
            self.define(node, text.fast, text.careful)
        return self.texts[id(node)]

    def scalar(self, node: Node) -> None:
        kind = node.args[0].kind if node.op != "where" else node.kind
        op = f"cast_{node.kind}" if node.op == "cast" else node.op
        form = template(op, kind)
        for i, a in enumerate(node.args):
            if form.count(f"{{{i}}}") > 1:
                self.named(a)
        args = [self.text(a) for a in node.args]
        fast = form.format(*(a.operand for a in args))
        slow = careful(op, len(args)).format(*(a.careful for a in args))
        if self.uses[id(node)] == 1 and len(fast) < _INLINE:
            self.texts[id(node)] = _Text(fast, slow, atom=False)
        else:
            self.define(node, fast, slow)

    def unpack(self, node: Node) -> None:
        """Take out the elements that scalar code needs."""
        wanted = self.elements.get(id(node))
        if not wanted:
            return
        ref = self.ref(node)
        names = {}
        for index, element in wanted.items():
            names[index] = self.memory.name("s")
            self.texts[id(element)] = _Text(names[index], names[index])
        flat = ref.name if node.ndim == 1 else self.flat(node)
        where = self.head if node.op == "input" else self.body
        # tolist costs about 40 ns and 8 ns an element; item 37 ns an element.
        if 40 + 8 * node.size <= 37 * len(names):
            targets = "".join(names.get(i, "_") + ", " for i in range(node.size)).rstrip()
            where.append((f"{targets} = {flat}.tolist()", f"{targets} = {flat}"))
            return
        for index, name in names.items():
            where.append((f"{name} = {flat}.item({index})", f"{name} = {flat}[{index}]"))

    # -- arrays ---------------------------------------------------------------------------------

    def ref(self, node: Node) -> Ref:
        """An array's text, made now if it is a view."""
        if id(node) not in self.refs:
            assert node.op in VIEWS, node
            (x,) = node.args
            if x.shape == ():
                self.refs[id(node)] = self.cell_array(x, node)
                return self.refs[id(node)]
            source = self.ref(x)
            if source.stage == CALL:
                source = self.copied(x, source)
            view = self.memory.view(node, source)
            if view is None:  # a reshape that needs its elements moved
                view = self.memory.buffer(node.shape, node.kind)
                as_source = self.memory.reshaped(view, x.shape)
                self.step(f"{as_source.name}[...] = {source.name}")
            self.refs[id(node)] = view
        return self.refs[id(node)]

    def cell_array(self, scalar: Node, node: Node) -> Ref:
        """A scalar as an array of one element (or many)."""
        buffer = self.memory.buffer(node.shape, node.kind)
        text = self.text(scalar)
        self.body.append(
            (f"{buffer.name}[...] = {text.fast}", f"{buffer.name}[...] = {text.careful}")
        )
        return buffer

    def copied(self, node: Node, ref: Ref) -> Ref:
        """An input in the kernel's own memory, so that views of it can be made beforehand."""
        if id(node) not in self.copies:
            buffer = self.memory.buffer(node.shape, node.kind)
            self.head.append((f"{buffer.name}[...] = {ref.name}",) * 2)
            self.copies[id(node)] = buffer
        return self.copies[id(node)]

    def step(self, text: str) -> None:
        self.arrays = True
        self.body.append((text, text))

    def flat(self, node: Node) -> str:
        """An array as one axis, contiguous."""
        while node.op == "reshape" and node.args[0].shape != ():
            node = node.args[0]
        ref = self.ref(node)
        if node.ndim == 1:
            if ref.stage != STATIC or ref.contiguous:
                return ref.name
        if ref.stage == FIXED:
            return self.fixed_view(ref.name + ".reshape(-1)")
        if ref.stage == CALL:
            return self.memory.reshaped(self.copied(node, ref), (node.size,)).name
        if not ref.contiguous:
            copy = self.memory.buffer(node.shape, node.kind)
            self.step(f"{copy.name}[...] = {ref.name}")
            ref = copy
        return self.memory.reshaped(ref, (node.size,)).name

    def fixed_view(self, text: str) -> str:
        name = self.memory.name("h")
        self.prologue.append(f"{name} = {text}")
        return name

    def operand(self, node: Node) -> str:
        """An argument of an array operation; a scalar sits in an array of rank 0, which NumPy
        takes faster than a Python number."""
        if node.shape != ():
            while node.op == "expand":
                node = node.args[0]
            return self.ref(node).name
        if id(node) not in self.cells:
            dtype = _DTYPE[node.kind]
            cell = self.memory.name("z")
            if self.stage[id(node)] == FIXED:
                self.prologue.append(f"{cell} = array({self.names[id(node)]}, {dtype})")
            else:
                self.statics.append(f"{cell} = empty((), {dtype})")
                text = self.text(node)
                self.body.append((f"{cell}[()] = {text.fast}", f"{cell}[()] = {text.careful}"))
            self.cells[id(node)] = cell
        return self.cells[id(node)]

    def compute(self, node: Node) -> None:
        op = node.op
        if op == "input":
            name = f"x_{node.attr('name')}"
            if node.shape == ():
                if self.uses[id(node)]:
                    convert = _CONVERT[node.kind]
                    self.head.append((f"{name} = {convert}({name})", f"{name} = float64({name})"))
                self.texts[id(node)] = _Text(name, name)
                return
            self.refs[id(node)] = Ref(name, CALL)
        elif op == "elem":
            if id(node) not in self.texts:
                raise AssertionError("an element whose array was not unpacked")
            return
        elif node.shape == ():
            self.compute_scalar(node)
            return
        elif op not in VIEWS:
            self.compute_array(node)
        self.unpack(node)

    def compute_scalar(self, node: Node) -> None:
        op = node.op
        if op in ELEMENTWISE:
            self.scalar(node)
            return
        if op == "sum" and node.kind == "f" and node.args[0].kind == "f":
            ones = self.ones(node.args[0].size)
            text = f"{self.flat(node.args[0])}.dot({ones})"
        elif op in REDUCE:
            text = f"reduce_{op}({self.ref(node.args[0]).name}, None)"
        elif op == "reshape":
            flat = self.flat(node.args[0])
            self.define(node, f"{flat}.item(0)", f"{flat}[0]")
            return
        else:
            text = self.general(node)
        self.arrays = True
        self.define(node, f"{_CONVERT[node.kind]}({text})", text)

    def ones(self, n: int) -> str:
        name = f"ones{n}"
        line = f"{name} = ones({n})"
        if line not in self.statics:
            self.statics.append(line)
        return name

    def general(self, node: Node) -> str:
        """An operation through the table of :mod:`.fold`; allocates its result."""
        args = []
        for a in node.args:
            args.append(self.operand(a) if a.shape == () or a.op == "expand" else self.ref(a).name)
        args = [
            f"broadcast_to({t}, {a.shape})" if a.op == "expand" else t
            for t, a in zip(args, node.args, strict=True)
        ]
        attrs = "{" + ", ".join(f"{k!r}: {v!r}" for k, v in node.attrs) + "}"
        joined = "".join(a + ", " for a in args)
        return f"apply({node.op!r}, ({joined}), {attrs}, {node.shape}, {node.kind!r})[()]"

    def compute_array(self, node: Node) -> None:
        op = node.op
        if op == "pack":
            self.pack(node)
            return
        out = self.refs[id(node)] = self.places[id(node)]
        if op in ELEMENTWISE:
            self.elementwise(node, out.name)
        elif op == "matmul":
            self.matmul(node, out)
        elif op in ("cat", "pad"):
            self.assemble(node, out)
        elif op in REDUCE:
            self.reduce(node, out)
        elif op in ("cumsum", "cumprod"):
            function = {"cumsum": "np_add", "cumprod": "np_mul"}[op]
            x = self.ref(node.args[0]).name
            self.step(f"{function}.accumulate({x}, {node.attr('dim')}, None, {out.name})")
        elif op == "take":
            x, idx = (self.ref(a).name for a in node.args)
            self.step(f"{x}.take({idx}, None, {out.name}, 'clip')")
        elif op == "scatter_add" and self.distinct(node.args[0]) and out.name.startswith("b"):
            # The buffer starts as zeros, and the same places are written in every call.
            self.step(f"{out.name}[{self.ref(node.args[0]).name}] = {self.ref(node.args[1]).name}")
        elif op == "scatter_set":
            base, idx, vals = (self.ref(a).name for a in node.args)
            self.step(f"{out.name}[...] = {base}")
            self.step(f"{out.name}[{idx}] = {vals}")
        else:
            self.step(f"{out.name}[...] = {self.general(node)}")

    def distinct(self, idx: Node) -> bool:
        return idx.is_const and len(np.unique(idx.value)) == idx.size

    def elementwise(self, node: Node, out: str) -> None:
        op = node.op
        if op == "where":
            condition, x, y = node.args
            if condition.shape == ():
                text = self.text(condition).operand
                self.step(f"{out}[...] = {self.operand(x)} if {text} else {self.operand(y)}")
                return
            x_, y_, c_ = self.operand(x), self.operand(y), self.operand(condition)
            self.step(f"{out}[...] = {y_}")
            self.step(f"copyto({out}, {x_}, where={c_})")
            return
        args = [self.operand(a) for a in node.args]
        if op == "cast":
            text = f"np_ne({args[0]}, 0, {out})" if node.kind == "b" else f"{out}[...] = {args[0]}"
            self.step(text)
        elif op == "softplus":
            self.step(f"logaddexp({self.operand_zero()}, {args[0]}, {out})")
        elif op == "rsqrt":
            self.step(f"np_sqrt({args[0]}, {out})")
            self.step(f"np_reciprocal({out}, {out})")
        else:
            # NumPy is about to take more than two arguments for maximum and minimum.
            by_name = "out=" if op in ("maximum", "minimum") else ""
            self.step(f"np_{op}({', '.join(args)}, {by_name}{out})")

    def operand_zero(self) -> str:
        if "zero = array(0.0)" not in self.statics:
            self.statics.append("zero = array(0.0)")
        return "zero"

    def matmul(self, node: Node, out: Ref) -> None:
        x, y = node.args
        if node.ndim == 3:
            self.step(f"matmul({self.ref(x).name}, {self.ref(y).name}, {out.name})")
            return
        (m, k), n = x.shape, y.shape[1]
        if k == 1:
            self.step(f"np_mul({self.operand(x)}, {self.operand(y)}, {out.name})")
        elif n == 1:
            flat = self.memory.reshaped(out, (m,) if m > 1 else ())
            matrix = self.ref(x).name if m > 1 else self.flat(x)
            self.step(f"{matrix}.dot({self.flat(y)}, {flat.name})")
        elif m == 1:
            flat = self.memory.reshaped(out, (n,))
            self.step(f"{self.transposed(y)}.dot({self.flat(x)}, {flat.name})")
        else:
            self.step(f"{self.ref(x).name}.dot({self.ref(y).name}, {out.name})")

    def transposed(self, node: Node) -> str:
        ref = self.ref(node)
        if ref.stage == STATIC:
            assert ref.proto is not None
            return self.memory.derived(ref, f"{ref.name}.T", ref.proto.T).name
        return self.fixed_view(f"{ref.name}.T")

    def assemble(self, node: Node, out: Ref) -> None:
        for piece, index in parts_of(node):
            if self.in_place(piece, out, index):
                continue
            part = self.memory.place(out, index).name
            text = f"{part}[...] = {self.operand(piece)}"
            if self.stage[id(piece)] == FIXED:
                self.prologue.append(text)
            else:
                self.step(text)

    def in_place(self, piece: Node, out: Ref, index: tuple[slice, ...]) -> bool:
        """Whether a piece has been computed in its place in the whole."""
        while piece.op == "reshape" and id(piece) not in self.refs:
            piece = piece.args[0]
        ref = self.refs.get(id(piece))
        if ref is None or ref.proto is None or out.proto is None or piece.op in VIEWS:
            return False
        part = out.proto[index]
        return (
            ref.proto.__array_interface__["data"] == part.__array_interface__["data"]
            and part.size == ref.proto.size
            and part.size > 0
        )

    def reduce(self, node: Node, out: Ref) -> None:
        (x,) = node.args
        dims = node.attr("dims")
        if node.op == "sum" and x.kind == node.kind == "f" and x.ndim == 2 and out.contiguous:
            ones = self.ones(x.shape[dims[0]])
            matrix = self.ref(x).name
            text = f"{ones}.dot({matrix}, " if dims == (0,) else f"{matrix}.dot({ones}, "
            self.step(f"{text}{out.name})")
            return
        self.step(f"reduce_{node.op}({self.ref(x).name}, {dims}, None, {out.name})")

    # -- packs and outputs ----------------------------------------------------------------------

    def pack(self, node: Node) -> None:
        place = self.places.get(id(node))
        own = place is None or not place.contiguous
        buffer = self.memory.buffer(node.shape, node.kind) if own else place
        assert buffer is not None
        self.refs[id(node)] = buffer
        self.fill(node, buffer)
        if own and place is not None:
            self.step(f"{place.name}[...] = {buffer.name}")

    def fill(self, node: Node, buffer: Ref) -> None:
        """Write scalars into contiguous memory; the fixed ones once."""
        flat = self.memory.reshaped(buffer, (node.size,))
        live = [i for i, a in enumerate(node.args) if self.stage[id(a)] == CALL]
        whole = node.kind == "f" and len(live) > _ONE_BY_ONE and len(live) + 16 >= node.size
        if not whole and len(live) < node.size:
            values = np.array([a.value if a.is_const else 0 for a in node.args])
            if (values == 0).all():
                self.prologue.append(f"{flat.name}[...] = 0")
            else:
                self.prologue.append(f"{flat.name}[...] = K[{len(self.literals)}]")
                self.literals.append(values)
            for i, a in enumerate(node.args):
                if self.stage[id(a)] == FIXED and not a.is_const:
                    self.prologue.append(f"{flat.name}[{i}] = {self.names[id(a)]}")
        if node.kind != "f" or len(live) <= _ONE_BY_ONE:
            for i in live:
                text = self.text(node.args[i])
                self.body.append(
                    (f"{flat.name}[{i}] = {text.fast}", f"{flat.name}[{i}] = {text.careful}")
                )
            return
        if whole:
            live = list(range(node.size))
        run = live[-1] - live[0] + 1 == len(live)
        target = flat if run else self.memory.buffer((len(live),))
        self.store(target.name, live[0] if run else 0, [node.args[i] for i in live])
        if not run:
            index = f"K[{len(self.literals)}]"
            self.literals.append(np.array(live))
            name = self.memory.name("i")
            self.statics.append(f"{name} = {index}")
            self.body.append((f"{flat.name}[{name}] = {target.name}",) * 2)

    def store(self, name: str, offset: int, args: list[Node]) -> None:
        """Write neighbouring elements of a real array at once."""
        line = f"pack{len(args)} = Struct('{len(args)}d').pack_into"
        if line not in self.statics:
            self.statics.append(line)
        texts = [self.text(a) for a in args]
        head = f"pack{len(args)}({name}, {8 * offset}, "
        self.body.append(
            (
                head + ", ".join(t.fast for t in texts) + ")",
                head + ", ".join(t.careful for t in texts) + ")",
            )
        )

    def write_output(self, name: str, node: Node) -> None:
        if node.shape == ():
            text = self.text(node)
            self.body.append((f"{name}[...] = {text.fast}", f"{name}[...] = {text.careful}"))
            return
        ref = self.refs.get(id(node))
        if ref is not None and ref.name == name:
            return
        self.body.append((f"{name}[...] = {self.operand(node)}",) * 2)
