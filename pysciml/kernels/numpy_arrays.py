"""How operations on arrays are written: into memory of the kernel's own."""

from __future__ import annotations

import numpy as np

from pysciml.kernels.graph import ELEMENTWISE, REDUCE, Node
from pysciml.kernels.numpy_memory import CALL, FIXED, STATIC, VIEWS, Ref, parts_of
from pysciml.kernels.numpy_writer import Writer

#: Up to this many elements are written to an array one by one.
_ONE_BY_ONE = 6


class ArrayWriter(Writer):
    """Writes operations whose result is an array."""

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
