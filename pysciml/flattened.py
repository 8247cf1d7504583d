"""A user's problem as an engine sees it: flat vectors, flat functions, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pysciml.callbacks import (
    Callback,
    JumpCallback,
    PresetTimeCallback,
    terminate,
)
from pysciml.engines.base import Engine, FlatCallback, FlatGradient, FlatProblem
from pysciml.errors import InputError
from pysciml.flatten import ParameterSpec, StateSpec, constant, joined, parted, to_numpy
from pysciml.functions import FlatFunction, FlatFunctions, functions_for
from pysciml.julia_function import JuliaFunction, JuliaSource
from pysciml.kernels.captured import CapturedFunctions
from pysciml.kernels.parts import halves_added, stretch
from pysciml.options import times_within
from pysciml.problems import number

__all__ = ["Flattened"]

_NOTHING = np.empty(0)


class Flattened:
    """A problem flattened: specs, flat vectors, functions, and the callbacks' own.

    ``leaves`` are the tensors that gradients flow to: those of u0, those of p, then those that
    ``f`` and the callbacks' functions close over. They go into autograd as they are, and not
    through the vectors made of them, so that torch has no graph of copies to walk.
    """

    def __init__(
        self, prob: Any, engine: Engine, more: tuple[Callback, ...], tensors: bool = False
    ) -> None:
        """With ``tensors`` vectors stay tensors on their device: see ``Engine.takes_tensors``."""
        self.prob: Any = prob
        self.engine = engine
        spec: StateSpec = prob.state_spec
        self.state = spec
        cpu = torch.device("cpu")
        self.t0_t, self.t1_t = (
            x if isinstance(x, Tensor) else constant(float(x), torch.float64, cpu)
            for x in prob.tspan
        )
        self.t0, self.t1 = map(number, prob.tspan)
        u0 = spec.leaves(prob.u0)
        self.params: ParameterSpec = prob.params_spec
        p = self.params.leaves(prob.p)
        if p is None:  # p was changed since the problem was made
            self.params, p = ParameterSpec.of(prob.p, spec.dtype, spec.device)
        self.u0, self.p = (joined(x, spec.dtype, spec.device) for x in (u0, p))
        self.counts = (len(u0), len(p))
        self.leaves: list[Tensor] = [*u0, *p]
        self._own: list[tuple[int, int, int, int]] = []  # of callbacks: see _vectors
        self.form: Any = getattr(prob, "form", "")
        role = "residual" if prob.kind == "dae" else "rhs"
        if self.form in ("split", "semilinear"):
            role = "sides"
        elif self.form in ("sde", "dde", "rode"):
            role = {"sde": "noise", "dde": "delayed", "rode": "rode"}[self.form]
        self.functions = self._functions(prob.f, role, "f")
        self._captured: Any = self.functions
        self.parts: tuple[Any, ...] = ()
        if self.form and self.form != "rode":
            self._take_apart(getattr(prob, "parts", 0))
        self.keeps_tensors = tensors and self.functions.kernels is not None
        self.closures = len(self.functions.closures_p)
        self.total_p, self.c = self._vectors(self.functions)
        self.callbacks = (*prob.callback, *more, *getattr(prob, "jumps", ()))
        basic = [
            (b, i, k)
            for i, c in enumerate(self.callbacks)
            for k, b in enumerate(c.for_problem(prob, self.t0, self.t1))
        ]
        #: of each basic callback: the position of the one it comes from, and its number in that
        self.origins = [(i, k) for _, i, k in basic]
        self.flat_callbacks = tuple(self._callback(b, j, i) for j, (b, i, _) in enumerate(basic))
        self._called_back = [
            (x, x._version)
            for functions in self._all_functions()
            if functions.kernels is None
            for x in functions.closures_p
        ]
        self._flat: FlatProblem | None = None

    def kept(self) -> Flattened | None:
        """This without the values of tensors, for :meth:`again`; None where that cannot be had.

        It cannot where functions are called back, or not guarded, or belong to callbacks.
        """
        if self.callbacks or self.keeps_tensors or self.form or self.prob.kind != "ode":
            return None
        captured = self._captured
        if not isinstance(captured, CapturedFunctions) or not captured.guarded:
            return None
        spec = self.state
        if spec.dtype is not torch.float64 or spec.device.type != "cpu":
            return None
        kept = copy.copy(self)
        kept._flat = self.flat_problem().at(_NOTHING, _NOTHING, _NOTHING)
        kept.prob, kept.leaves = None, []
        kept.u0 = kept.p = torch.empty(0)
        kept.total_p = kept.c = _NOTHING
        return kept

    def again(self, prob: Any) -> Flattened | None:
        """The same for a problem like the one this is of, with the present values of its tensors.

        None where more than these changed.
        """
        spec, functions = self.state, cast(Any, self._captured)
        if prob.state_spec is not spec and prob.state_spec != spec:
            return None
        p = self.params.leaves(prob.p)
        if p is None or not functions.ok():
            return None
        new = object.__new__(Flattened)
        new.__dict__.update(self.__dict__)
        u0 = spec.leaves(prob.u0)
        new.prob, new.leaves = prob, [*u0, *p, *functions.closures_p]
        new.u0 = joined(u0, spec.dtype, spec.device)
        total = joined(new.leaves[len(u0) :], spec.dtype, spec.device)
        new.p, new.total_p = total[: self.params.size], total.numpy()
        new.c = to_numpy(functions.data()) if functions.sizes["c"] else _NOTHING
        return new

    def _take_apart(self, first: int) -> None:
        """The functions of a partitioned or split equation, and those of its two parts."""
        whole: Any = self.functions
        if self.form == "sde":
            first = self.state.size
        if self.form in ("split", "semilinear"):
            first = self.state.size
            self.functions = halves_added(whole)
        if self.form == "dde":
            n, k = self.state.size, self.prob.asks
            cuts = ((0, n), (n, n + k), (n + k, whole.n_out))
            self.parts = tuple(stretch(whole, a, b) for a, b in cuts)
            return
        self.parts = (stretch(whole, 0, first), stretch(whole, first, whole.n_out))

    def _all_functions(self) -> list[Any]:
        if not self.flat_callbacks:
            return [self.functions]
        pairs = [(c.condition, c.affect) for c in self.flat_callbacks]
        return [f for f in (self.functions, *sum(pairs, ())) if f is not None]

    def require_unchanged(self) -> None:
        """Raise RuntimeError where a tensor that a called-back function reads was written to."""
        if any(x._version != version for x, version in self._called_back):
            raise RuntimeError(
                "A tensor that the model closes over was changed in place between solve and "
                "backward, and the model is called back in Python (see the CaptureWarning); call "
                "backward before the optimiser's step."
            )

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that gradients may flow to, the time span first."""
        return (self.t0_t, self.t1_t, *self.leaves)

    def _functions(
        self, f: Any, role: str, name: str, x: Tensor | None = None
    ) -> FlatFunctions | JuliaSource:
        """``x``: what it is a function of, u0 where None."""
        if isinstance(f, JuliaFunction):
            if role != "rhs":
                raise InputError(
                    f"{name} is a julia_function, which an ODEProblem takes as its right-hand "
                    "side alone; write this one in torch."
                )
            return f.source(self.u0.numel(), self.p.numel(), self.engine.name)
        spec, u = self.state, self.u0 if x is None else x
        if role == "rode":
            spec = self.prob.pair_spec
            u = torch.cat([u, u.new_zeros(spec.size - len(u))])
        flat = FlatFunction(f, role, name, spec, self.params)
        inputs = {"u": u, "p": self.p, "t": constant(self.t0, spec.dtype, spec.device)}
        if role == "delayed":
            inputs["u"] = torch.cat([self.u0, self.prob.delayed])
        if role == "residual":
            inputs = {"du": spec.flatten(spec.in_order(self.prob.du0)).detach(), **inputs}
        return functions_for(flat, inputs, self.engine.name)

    def conditions(self, f: Any, x: Tensor) -> tuple[Any, np.ndarray, np.ndarray]:
        """Conditions of a boundary value problem as functions of ``x``, and their own p and c.

        Their parameters' gradient is the first of ``callbacks_p``.
        """
        functions = self._functions(f, "conditions", "bc", x)
        own = self._vectors_of_callback(functions, 0, "condition")
        if functions.kernels is None:
            self._called_back += [(x, x._version) for x in functions.closures_p]
        return functions, own["condition_p"], own["condition_c"]

    def _vectors(self, functions: FlatFunctions | JuliaSource) -> tuple[np.ndarray, np.ndarray]:
        """The function's whole p (the user's, then its closures) and its data, as arrays."""
        spec, closures, total = self.state, functions.closures_p, self.p
        if closures:
            total = joined([total, *closures], spec.dtype, spec.device)
            self.leaves += closures
        if self.keeps_tensors:
            data = functions.data().detach().to(spec.device, spec.dtype, copy=True)
            return total.detach(), data.contiguous()  # type: ignore[return-value]
        return _array(total), to_numpy(functions.data())

    def require_differentiable(self) -> None:
        """Raise InputError where torch cannot differentiate what an adjoint has to."""
        needed: list[tuple[str, Any]] = [("f", self.functions)]
        for i, c in enumerate(self.flat_callbacks):
            needed.append((f"affect of callback {i}", c.affect))
            if c.kind == "continuous":
                needed.append((f"condition of callback {i}", c.condition))
        for name, functions in needed:
            if functions is not None and not getattr(functions, "differentiable", True):
                raise InputError(
                    f"{name} cannot be differentiated by torch ({functions.reason}), but an input "
                    "requires grad; write it with torch operations only, or solve without "
                    "gradients (in torch.no_grad(), or with inputs that do not require grad)."
                )
        own = getattr(self.prob, "require_differentiable", None)
        if own is not None:
            own(self)

    def _callback(self, c: Any, i: int, given: int) -> FlatCallback:
        condition = affect = None
        own: dict[str, Any] = {}
        names = (f"condition of callback {given}", f"affect of callback {given}")
        if hasattr(c, "names"):  # what is no callback of the user's
            names = c.names
        if getattr(c, "condition", None) is not None:
            roles = {"continuous": "root", "discrete": "truth", "domain": "truth"}
            condition = self._functions(c.condition, roles.get(c.kind, "rate"), names[0])
            own |= self._vectors_of_callback(condition, i, "condition")
        if getattr(c, "affect", None) is not None and c.affect is not terminate:
            affect = self._functions(c.affect, "affect", names[1])
            own |= self._vectors_of_callback(affect, i, "affect")
        times = None
        if isinstance(c, PresetTimeCallback):
            times = times_within(c.times, "times", self.t0, self.t1, any_order=True)
        if isinstance(c, JumpCallback):
            times = c.numbers
        return FlatCallback(
            kind=c.kind,
            condition=condition,
            affect=affect,
            terminate=c.affect is terminate,
            direction=getattr(c, "direction", getattr(c, "number", 0)),
            times=times,
            save_positions=c.save_positions,
            **own,
        )

    def _vectors_of_callback(
        self, functions: FlatFunctions | JuliaSource, i: int, which: str
    ) -> dict[str, Any]:
        first = len(self.leaves)
        p, c = self._vectors(functions)
        self._own.append((i, ("condition", "affect").index(which), first, len(self.leaves)))
        return {f"{which}_p": p, f"{which}_c": c}

    def flat_problem(self) -> FlatProblem:
        u0: Any = self.u0 if self.keeps_tensors else _array(self.u0)
        if self._flat is None:
            self._flat = self._made_flat(u0)
        return self._flat.at(u0, self.total_p, self.c)

    def _made_flat(self, u0: Any) -> FlatProblem:
        prob, spec = self.prob, self.state
        mass = getattr(prob, "mass_matrix", None)
        flags = getattr(prob, "differential_vars", None)
        if flags is not None:
            leaves = torch.utils._pytree.tree_leaves(spec.in_order(flags))
            flags = np.concatenate([np.asarray(torch.as_tensor(x)).reshape(-1) for x in leaves])
        return FlatProblem(
            kind=prob.kind,
            functions=self.functions,
            u0=u0,
            p=self.total_p,
            c=self.c,
            t0=self.t0,
            t1=self.t1,
            mass_matrix=None if mass is None else to_numpy(torch.as_tensor(mass)),
            du0=to_numpy(spec.flatten(spec.in_order(prob.du0))) if prob.kind == "dae" else None,
            differential_vars=flags,
            callbacks=self.flat_callbacks,
            dtype="float32" if spec.dtype is torch.float32 else "float64",
            name=getattr(prob.f, "__name__", type(prob.f).__name__),
            form=self.form,
            parts=self.parts,
            split=getattr(prob, "parts", 0),
            columns=getattr(prob, "columns", 0),
            jumps=getattr(prob, "how_jumps", None),
            noise=getattr(prob, "noise_path", None),
        )

    def from_numpy(self, x: np.ndarray, time: bool = False) -> Tensor:
        """An array on the user's device, in the state's dtype (times stay float64)."""
        if isinstance(x, Tensor):
            return x.detach()  # the engine's own must not become part of a graph
        out = torch.from_numpy(np.ascontiguousarray(x))
        spec = self.state
        if out.dtype is spec.dtype and spec.device.type == "cpu":
            return out
        return out.to(spec.device) if time else out.to(spec.device, spec.dtype)

    def to_engine(self, x: Tensor) -> np.ndarray:
        """A cotangent of the states as the engine takes it."""
        return x.detach() if self.keeps_tensors else to_numpy(x)  # type: ignore[return-value]

    def cotangents(self, gradient: FlatGradient, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradient as tensors like ``leaves``, None for those that are not ``wanted``."""
        n_u, n_p = self.counts
        size = self.p.numel()
        user = gradient.p[:size]
        pairs = gradient.callbacks_p
        for i, which, _, _ in self._own:
            own = pairs[i][which] if i < len(pairs) else None
            if own is not None:
                user = user + own[:size]
        end = n_u + n_p + self.closures
        blocks: list[tuple[np.ndarray | None, int, int]] = [
            (gradient.u0, 0, n_u),
            (user, n_u, n_u + n_p),
            (gradient.p[size:], n_u + n_p, end),
        ]
        for i, which, first, last in self._own:
            own = pairs[i][which] if i < len(pairs) else None
            blocks.append((None if own is None else own[size:], first, last))
        out: list[Tensor | None] = []
        for flat, first, last in blocks:
            leaves = self.leaves[first:last]
            if flat is None:
                out += [None] * len(leaves)
            elif leaves:
                out += parted(flat, leaves, wanted[first:last])
        return out


def _array(x: Tensor) -> np.ndarray:
    """A vector that is this solve's own as a float64 array."""
    if x.dtype is torch.float64 and x.device.type == "cpu":
        out: np.ndarray = x.numpy()
        return out
    return to_numpy(x)
