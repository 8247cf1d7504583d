"""What a solve gives back."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._pytree import tree_leaves

from pysciml.engines.base import Stats
from pysciml.errors import InputError, PyscimlError
from pysciml.flatten import StateSpec, to_numpy
from pysciml.indices import flat_indices

__all__ = ["Event", "Solution"]


@dataclass(frozen=True)
class Event:
    """An event that happened: its time, and the position of its callback in the problem's list.

    ``component``: which of a VectorContinuousCallback's conditions it was; else 0.
    """

    t: float
    callback: int
    component: int = 0


@dataclass(frozen=True)
class NoisePath:
    """A path of the noise: its values ``u`` (k, m), m processes, at the times ``t`` (k,)."""

    t: Tensor
    u: Tensor


def as_times(t: Any) -> Tensor:
    """Times that were asked for as a tensor. Raises InputError for what are none."""
    try:
        times = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"t is {t!r}; give a time, or a tensor of times.") from None
    if times.dtype.is_complex or times.dtype == torch.bool:
        raise InputError(f"t is a tensor of {times.dtype}; give real times.")
    return times


@dataclass(frozen=True)
class _Values:
    """The interpolant of a copied solution: without gradients."""

    inner: Callable[[Any, int], Any]
    spec: Any

    def __call__(self, at: Tensor, deriv: int) -> Tensor:
        out = torch.from_numpy(self.inner(to_numpy(at), deriv))
        return out.to(self.spec.device, self.spec.dtype)


def new_axes() -> Any:
    """New axes of matplotlib. Raises PyscimlError where that is not installed."""
    try:
        import matplotlib.pyplot as plt  # drawing is optional: extra "plot"
    except ImportError:
        raise PyscimlError(
            "Plotting needs matplotlib; install it with: pip install 'pysciml[plot]'."
        ) from None
    return plt.subplots()[1]


def drawn(idxs: Any, n: int) -> list[int]:
    """Which of n curves to draw. Raises InputError for what are none of them."""
    if idxs is None:
        return list(range(min(n, 20)))
    chosen: list[int] = flat_indices(idxs, "idxs", n, "the solution has").tolist()
    return chosen


def detached(tree: Any) -> Any:
    """A tree without the graph of its tensors."""
    return pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, tree)


def _without_graph(prob: Any) -> Any:
    """The problem, its tensors that are no leaves of a graph detached: they cannot be copied."""

    def grown(x: Any) -> bool:
        return isinstance(x, Tensor) and x.grad_fn is not None

    if hasattr(prob, "remade"):  # a JumpProblem, which is no dataclass
        inner = _without_graph(prob.prob)
        return prob if inner is prob.prob else prob.remade({"prob": inner})
    values = {} if prob is None else {f.name: getattr(prob, f.name) for f in fields(prob) if f.init}
    changed = {k: detached(v) for k, v in values.items() if any(map(grown, tree_leaves(v)))}
    return replace(prob, **changed) if changed else prob


@dataclass(eq=False, repr=False)
class Solution:
    """A solution in the user's structure, dtype and device.

    Attributes
    ----------
    t : tensor (m,)
        Times, in the direction of integration, float64 or the state's dtype.
    u : tensor (m, ...) or pytree of them
        The state at ``t``, each leaf with the times in front.
    retcode : str
        SciML's return code: ``"Success"``, ``"Terminated"`` (by an event), or why it failed.
    stats : Stats
        Counts of function evaluations, Jacobians, steps.
    events : list of Event
    engine, algorithm : str
        What ran.
    seed : int or None
        Of a stochastic equation: solving with it gives the same noise again.
    dense : bool
        Whether sol(t) can be asked.

    Copies (``copy.deepcopy``, ``pickle``, ``torch.save``) keep the values and are detached.
    """

    t: Tensor
    u: Any
    retcode: str
    stats: Stats
    engine: str
    algorithm: str
    events: list[Event] = field(default_factory=list)
    message: str = ""
    prob: Any = None
    spec: StateSpec | None = None
    save_idxs: Any = None
    seed: int | None = None
    _interpolate: Callable[[Tensor, int], Tensor] | None = None
    _portable: Callable[[], Any] | None = None
    _noise: Callable[[], Any] | None = None
    _jumps: tuple[Tensor, Tensor] | None = None
    _span: tuple[float, float] = (0.0, 0.0)
    dense: bool = True

    @property
    def success(self) -> bool:
        """Whether the solve reached its end, or was ended by an event."""
        return self.retcode in ("Success", "Terminated")

    @property
    def jump_times(self) -> Tensor:
        """When the jumps of a JumpProblem happened (k,). Raises PyscimlError where it is none."""
        return self._of_jumps()[0]

    @property
    def jump_indices(self) -> Tensor:
        """Which jump it was (k,), int64: its place in the problem, reactions counted one by one."""
        return self._of_jumps()[1]

    def _of_jumps(self) -> tuple[Tensor, Tensor]:
        if self._jumps is None:
            raise PyscimlError("This solution has no jumps; solve a JumpProblem.")
        return self._jumps

    @property
    def W(self) -> NoisePath:
        """The noise that a stochastic equation was solved with, at the solver's steps.

        Raises PyscimlError where there is none, and in copies.
        """
        if self._noise is None:
            raise PyscimlError(
                "This solution has no noise; only those of an SDEProblem do, and not their copies."
            )
        t, w = self._noise()
        return NoisePath(t, w)

    def __len__(self) -> int:
        return len(self.t)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles are detached: values and, where the engine can, the interpolant.
        state = dict(vars(self), _portable=None, _noise=None)
        state["t"], state["u"] = detached(self.t), detached(self.u)
        state["prob"] = _without_graph(self.prob)
        if not isinstance(self._interpolate, _Values):
            inner = None if self._portable is None else self._portable()
            state["_interpolate"] = None if inner is None else _Values(inner, self.spec)
        return state

    def __call__(self, t: Any, deriv: int = 0, *, idxs: Any = None) -> Any:
        """The solution at time(s) ``t``, or its derivative: differentiable in u0, p, tspan and t.

        Parameters
        ----------
        t : number, sequence of numbers, or tensor of any shape
        deriv : 0, 1 or 2
            Order of the derivative with respect to time.
        idxs : int, or sequence of int, bool mask or slice, optional
            Which entries of the flat state (of those kept by save_idxs).

        Returns
        -------
        The state's structure, each leaf of shape ``(*t.shape, *leaf)``; with ``idxs`` a tensor of
        shape ``(*t.shape, k)``, or ``t.shape`` for one int.

        Raises
        ------
        InputError
            For a time outside the solution, and for an order other than 0, 1, 2.
        """
        if not self.dense:
            raise PyscimlError("sol(t) was given up by dense=False; solve again without it.")
        if self._interpolate is None or self.spec is None:
            raise PyscimlError(
                "This solution is a copy that keeps no interpolant (those of the julia engine do "
                "not); take sol(t) from the original, or solve again with saveat=."
            )
        if deriv not in (0, 1, 2):
            raise InputError(f"deriv is {deriv!r}; give 0, 1 or 2.")
        times = as_times(t)
        low, high = sorted(self._span)
        values = times.detach()
        if values.numel() and not bool(((values >= low) & (values <= high)).all()):
            bad = values.reshape(-1)[~((values >= low) & (values <= high)).reshape(-1)][0]
            raise InputError(
                f"t = {float(bad):g} lies outside the solution, which covers "
                f"[{low:g}, {high:g}]; solve over a longer tspan."
            )
        chosen = None
        if idxs is not None:
            size = self.spec.size if self.save_idxs is None else len(self.save_idxs)
            chosen = flat_indices(idxs, "idxs", size, "the solution has").to(self.spec.device)
        flat = self._interpolate(times.reshape(-1), deriv)
        if self.save_idxs is not None:
            flat = flat[:, self.save_idxs]
        if chosen is not None:
            flat = flat[:, chosen]
            if isinstance(idxs, numbers.Integral):
                return flat.reshape(times.shape)
        if chosen is not None or self.save_idxs is not None:
            return flat.reshape(*times.shape, flat.shape[-1])
        return self.spec.unflatten(flat.reshape(*times.shape, self.spec.size))

    def __repr__(self) -> str:
        if not len(self.t):
            return f"Solution({self.retcode}, no outputs)"
        t = self.t.detach()
        counted = "" if self.stats.nf is None else f", {self.stats.nf} evaluations of f"
        return (
            f"Solution(retcode: {self.retcode}, {len(t)} times in [{float(t[0]):g}, "
            f"{float(t[-1]):g}], {self.algorithm} on {self.engine}, "
            f"{self.stats.naccept} steps{counted})"
        )

    def _repr_html_(self) -> str:
        t = self.t.detach()
        span = f"{len(t)} in [{float(t[0]):g}, {float(t[-1]):g}]" if len(t) else "none"
        facts = [
            ("retcode", self.retcode),
            ("times", span),
            ("state", str(self.spec.shapes if self.spec is not None else "")),
            ("algorithm", f"{self.algorithm} ({self.engine})"),
            ("steps", str(self.stats.naccept)),
            ("evaluations of f", str(self.stats.nf)),
            ("events", str(len(self.events))),
        ]
        rows = "".join(
            f"<tr><th style='text-align:left'>{k}</th><td style='text-align:left'>{v}</td></tr>"
            for k, v in facts
        )
        return f"<table><caption>Solution</caption>{rows}</table>"

    def plot(
        self,
        ax: Any = None,
        *,
        idxs: Any = None,
        labels: Sequence[str] | None = None,
        points: int = 1000,
        **line: Any,
    ) -> Any:
        """Plot the state against time (matplotlib); returns the axes.

        Parameters
        ----------
        ax : matplotlib axes, optional
        idxs : flat indices of the entries to draw, a mask or a slice; all where None (at most 20)
        labels : their names
        points : points of the curve between the ends, from the interpolant
        line : passed to ``Axes.plot``
        """
        if ax is None:
            ax = new_axes()
        assert self.spec is not None
        if self._interpolate is not None and self.dense and len(self.t) > 1:
            low, high = self._span
            grid = torch.linspace(low, high, points, dtype=torch.float64)
            with torch.no_grad():
                values = self._interpolate(grid, 0)
                if self.save_idxs is not None:
                    values = values[:, self.save_idxs]
        else:
            grid, values = self.t.detach(), self.spec.flatten_series(self.u).detach()
        chosen = drawn(idxs, values.shape[-1])
        names = list(labels) if labels is not None else [f"u[{i}]" for i in chosen]
        if len(names) != len(chosen):
            raise InputError(
                f"labels has {len(names)} names for {len(chosen)} curves; give one for each."
            )
        for i, name in zip(chosen, names, strict=True):
            ax.plot(grid.cpu().numpy(), values[:, i].cpu().numpy(), label=name, **line)
        ax.set_xlabel("t")
        if len(chosen) > 1 or labels is not None:
            ax.legend()
        return ax
