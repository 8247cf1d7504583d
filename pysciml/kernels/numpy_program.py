"""Write a scalarised graph as Python source: the scalar mode of the NumPy emitter.

The source is one function, ``factory``, of the literals and the fixed inputs. Running it allocates
the kernel's memory, computes everything that depends on fixed inputs alone, and returns the kernel
proper: straight-line code of what is left. Each statement of the kernel is written twice, fast and
careful (see :mod:`.numpy_scalars`).
"""

from __future__ import annotations

from pysciml.kernels.graph import ELEMENTWISE, REDUCE, Graph, Node
from pysciml.kernels.numpy_arrays import ArrayWriter
from pysciml.kernels.numpy_memory import (
    CALL,
    FIXED,
    STATIC,
    VIEWS,
    Program,
    Ref,
    parts_of,
    view_text,
)
from pysciml.kernels.numpy_scalars import careful, literal, template
from pysciml.kernels.numpy_writer import CONVERT, DTYPE, Text

#: Inlined expressions are kept shorter than this.
_INLINE = 160


def write(graph: Graph, fixed: frozenset[str]) -> Program:
    """The program of a scalarised graph.

    Args:
        graph: from :func:`pysciml.kernels.scalarise.scalarise`.
        fixed: names of the inputs that ``factory`` takes; the kernel takes the others.
    """
    return _Writer(graph, fixed).program()


class _Writer(ArrayWriter):
    """Writes the whole program."""

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
            kind = DTYPE[node.kind]
            text = f"ascontiguousarray({name}, {kind})" if node.shape else f"{kind}({name})"
            self.prologue.append(f"{name} = {text}")
        else:
            name = self.memory.name("h")
            args = [self.names[id(a)] for a in node.args]
            if op in ELEMENTWISE:
                if op == "cast" and node.shape:
                    text = f"{args[0]}.astype({DTYPE[node.kind]})"
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
            self.texts[id(node)] = Text(fast, slow, atom=False)
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
            self.texts[id(element)] = Text(names[index], names[index])
        flat = ref.name if node.ndim == 1 else self.flat(node)
        where = self.head if node.op == "input" else self.body
        # tolist costs about 40 ns and 8 ns an element; item 37 ns an element.
        if 40 + 8 * node.size <= 37 * len(names):
            targets = "".join(names.get(i, "_") + ", " for i in range(node.size)).rstrip()
            where.append((f"{targets} = {flat}.tolist()", f"{targets} = {flat}"))
            return
        for index, name in names.items():
            where.append((f"{name} = {flat}.item({index})", f"{name} = {flat}[{index}]"))

    def compute(self, node: Node) -> None:
        op = node.op
        if op == "input":
            name = f"x_{node.attr('name')}"
            if node.shape == ():
                if self.uses[id(node)]:
                    convert = CONVERT[node.kind]
                    self.head.append((f"{name} = {convert}({name})", f"{name} = float64({name})"))
                self.texts[id(node)] = Text(name, name)
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
        self.define(node, f"{CONVERT[node.kind]}({text})", text)

    def write_output(self, name: str, node: Node) -> None:
        if node.shape == ():
            text = self.text(node)
            self.body.append((f"{name}[...] = {text.fast}", f"{name}[...] = {text.careful}"))
            return
        ref = self.refs.get(id(node))
        if ref is not None and ref.name == name:
            return
        self.body.append((f"{name}[...] = {self.operand(node)}",) * 2)
