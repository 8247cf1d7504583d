"""The same slots as captured kernels, filled by calls back into torch.

For functions that cannot be captured, and for functions whose tensors live on a GPU while the
solver's vectors are on the CPU. Slower than a kernel, and right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pysciml.errors import InputError

Array = npt.NDArray[np.float64]

#: Numbers that one batched call in torch gives: its memory.
_CHUNK = 16_384


def reachable_leaves(out: Tensor, known: Sequence[Tensor]) -> list[Tensor]:
    """Leaf tensors that ``out`` depends on in autograd, without those in ``known``."""
    skip = {id(k) for k in known}
    found: dict[int, Tensor] = {}
    stack: list[Any] = [out.grad_fn] if out.grad_fn is not None else []
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in skip:
            found[id(variable)] = variable
        stack.extend(n for n, _ in node.next_functions)
    return list(found.values())


class CallbackFunctions:
    """``fn`` and its derivatives as functions on NumPy arrays, each call made in torch.

    Parameters
    ----------
    fn : callable
        Takes one flat tensor an input, in the order of ``inputs``; returns a flat tensor (n_out,).
    inputs : dict
        Name to example tensor. ``"p"`` is among them; ``"t"`` is 0-d.
    differentiable : bool or None
        Whether torch can differentiate fn; found out by trying where None.
    """

    kernels: Any | None = None
    reason: str | None
    closures_p: list[Tensor]

    def __init__(self, fn: Callable[..., Tensor], inputs: dict[str, Tensor]) -> None:
        self.fn, self.inputs = fn, inputs
        self.names = (*inputs, "c")
        first = next(iter(inputs.values()))
        self.dtype, self.device = first.dtype, first.device
        try:
            try:
                out, self.closures_p = self._probed(tuple(inputs))
            except InputError:
                raise
            except Exception:  # such as torch.full_like(u, t), which reads a t without gradient
                out, self.closures_p = self._probed(tuple(k for k in inputs if k != "t"))
            self.reason = None if out.requires_grad else "its result does not require grad"
        except InputError:
            raise
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"
            with torch.no_grad():
                out = fn(*(v.detach() for v in inputs.values()))
            self.closures_p = []
        self.n_out = out.numel()
        self.n_p = inputs["p"].numel()
        self.sizes = {k: v.numel() for k, v in inputs.items()} | {"c": 0}
        self.sizes["p"] += sum(x.numel() for x in self.closures_p)

    def _probed(self, wrt: tuple[str, ...]) -> tuple[Tensor, list[Tensor]]:
        """The value, with gradients by the inputs ``wrt``, and the leaves that it depends on."""
        with torch.enable_grad():
            probe = {k: v.detach().clone().requires_grad_(k in wrt) for k, v in self.inputs.items()}
            out = self.fn(*probe.values())
            return out, reachable_leaves(out, list(probe.values()))

    @property
    def differentiable(self) -> bool:
        return self.reason is None

    def data(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def then(self, change: Callable[[Tensor], Tensor]) -> CallbackFunctions:
        """The functions of ``change(fn(...))``."""
        return CallbackFunctions(lambda *inputs: change(self.fn(*inputs)), self.inputs)

    def ok(self) -> bool:
        return True

    opaque = False

    @property
    def shared(self) -> CallbackFunctions:
        return self

    def sparsity(self, wrt: str) -> None:
        return None

    # -- calls ---------------------------------------------------------------

    def _tensor(self, x: Any) -> Tensor:
        return torch.as_tensor(np.array(x, dtype=np.float64)).to(self.device, self.dtype)

    @staticmethod
    def _numpy(x: Tensor) -> Array:
        return x.detach().to("cpu", torch.float64).numpy()

    def _call(self, role: str, values: dict[str, Any], p: Array) -> Array:
        """One evaluation of a role; ``values`` holds arrays by input name, and v or w."""
        p_user = self._tensor(p[: self.n_p])
        tensors = {
            k: p_user if k == "p" else self._tensor(values[k]) for k in self.names if k != "c"
        }
        if role == "value":
            with torch.no_grad():
                return self._numpy(self.fn(*tensors.values()))
        kind, wrt = role.split(":")
        if not self.differentiable:
            raise InputError(
                f"The right-hand side cannot be differentiated by torch ({self.reason}); "
                "write it with torch operations only, or solve without gradients "
                "(torch.no_grad(), inputs that do not require grad)."
            )
        with torch.enable_grad():
            own = ("u", "p") if wrt == "up" else (wrt,)
            for k in own:
                tensors[k] = tensors[k].requires_grad_()
            out = self.fn(*tensors.values())
            targets = [*(tensors[k] for k in own), *(self.closures_p if "p" in own else ())]
            if kind == "vjp":
                return self._pull(out, targets, self._tensor(values["w"]))
            if kind == "jvp":
                w = torch.zeros_like(out, requires_grad=True)
                (g,) = self._grad(out, targets, w, create_graph=True)
                if not g.requires_grad:
                    return np.zeros(self.n_out)
                (tangent,) = self._grad(g, [w], self._tensor(values["v"]))
                return self._numpy(tangent)
            rows = [self._pull(out, targets, row) for row in torch.eye(
                self.n_out, dtype=self.dtype, device=self.device)]  # fmt: skip
            jac = np.stack(rows)
            return jac[:, 0] if wrt == "t" else jac

    def _grad(self, out: Tensor, targets: list[Tensor], w: Tensor, **kw: Any) -> list[Tensor]:
        if not out.requires_grad:
            return [torch.zeros_like(x) for x in targets]
        grads = torch.autograd.grad(out, targets, w, retain_graph=True, allow_unused=True, **kw)
        return [
            torch.zeros_like(x) if g is None else g for x, g in zip(targets, grads, strict=True)
        ]

    def _pull(self, out: Tensor, targets: list[Tensor], w: Tensor) -> Array:
        parts = self._grad(out, targets, w)
        return np.concatenate([self._numpy(g).reshape(-1) for g in parts])

    def _arguments(self, role: str) -> list[str]:
        extra = {"jvp": ["v"], "vjp": ["w"]}.get(role.split(":")[0], [])
        return [*extra, *(k for k in self.names if k not in ("p", "c"))]

    def bind(self, role: str, p: Array, c: Array) -> Callable[..., None]:
        """See :class:`pysciml.engines.base.Functions`."""
        names = self._arguments(role)
        k = len(names)

        def bound(*args: Any) -> None:
            args[k][...] = self._call(role, dict(zip(names, args[:k], strict=True)), p)

        return bound

    def bind_batched(
        self, role: str, p: Array, c: Array, reduce: bool = False
    ) -> Callable[..., Array]:
        """See :class:`pysciml.engines.base.Functions`.

        The whole batch in one call of fn under ``torch.vmap`` (one transfer each way where the
        tensors are on a GPU); where fn does not allow that, one call for each entry.
        """
        names = self._arguments(role)

        def one_by_one(*args: Any) -> Array:
            total: Any = None
            rows = []
            for entry in zip(*args, strict=True):
                value = self._call(role, dict(zip(names, entry, strict=True)), p)
                if reduce:
                    total = value if total is None else total + value
                else:
                    rows.append(value)
            return total if reduce else np.stack(rows)

        def bound(*args: Any) -> Array:
            if self._vmap is not False and role.split(":")[0] in ("value", "jac", "vjp"):
                try:
                    out = self._call_batched(role, dict(zip(names, args, strict=True)), p, reduce)
                except InputError:
                    raise
                except Exception:
                    if self._vmap:  # it worked before: this is another trouble
                        raise
                    self._vmap = False
                else:
                    self._vmap = True
                    return out
            return one_by_one(*args)

        size = max(8, _CHUNK // max(1, self.n_out))

        def in_parts(*args: Any) -> Array:
            if len(args[0]) <= size:
                return bound(*args)
            parts = [bound(*(x[k : k + size] for x in args)) for k in range(0, len(args[0]), size)]
            return np.asarray(sum(parts)) if reduce else np.concatenate(parts)

        return in_parts

    _vmap: bool | None = None

    def _call_batched(self, role: str, values: dict[str, Any], p: Array, reduce: bool) -> Array:
        kind, _, wrt = role.partition(":")
        if kind != "value" and not self.differentiable:
            self._call(role, {k: v[0] for k, v in values.items()}, p)  # raises, with the reason
        own = [k for k in self.names if k != "c"]
        given = {**values, "p": p[: self.n_p]}
        tensors = {k: self._tensor(given[k]) for k in own}
        axes = tuple(None if k == "p" else 0 for k in own)
        summed = wrt == "p" and reduce
        with torch.enable_grad() if kind != "value" else torch.no_grad():
            if wrt == "p" and not summed:
                raise NotImplementedError("a gradient for each entry of the batch")
            if wrt:
                tensors[wrt].requires_grad_()
            out = torch.vmap(self.fn, in_dims=axes)(*tensors.values())
            if kind == "value":
                return self._numpy(out.sum(0) if reduce else out)
            targets = [tensors[wrt], *(self.closures_p if wrt == "p" else ())]
            if kind == "vjp":
                grads = self._grad(out, targets, self._tensor(values["w"]))
                if summed:
                    return np.concatenate([self._numpy(g).reshape(-1) for g in grads])
                return self._numpy(grads[0].sum(0) if reduce else grads[0])
            rows = []
            for i in range(self.n_out):
                w = torch.zeros_like(out)
                w[:, i] = 1.0
                rows.append(self._grad(out, targets, w)[0])
            jac = self._numpy(torch.stack(rows, dim=1))
            return jac.sum(0) if reduce else jac
