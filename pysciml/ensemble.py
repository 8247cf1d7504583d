"""Ensembles: one problem many times over, with other initial values or parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.dispatch import solved_by
from pysciml.engines.base import Stats
from pysciml.errors import InputError, PyscimlError
from pysciml.options import is_whole
from pysciml.partitioned import HamiltonianProblem
from pysciml.problems import remake, require_finite
from pysciml.signatures import require_function
from pysciml.solution import drawn, new_axes

__all__ = [
    "EnsembleAlgorithm",
    "EnsembleExecutor",
    "EnsembleGPUArray",
    "EnsembleGPUKernel",
    "EnsembleProblem",
    "EnsembleSerial",
    "EnsembleSolution",
    "EnsembleThreads",
]


@dataclass(frozen=True)
class EnsembleAlgorithm:
    """Where the members of an ensemble are solved."""


@dataclass(frozen=True)
class EnsembleSerial(EnsembleAlgorithm):
    """One member after the other, on one thread."""


@dataclass(frozen=True)
class EnsembleThreads(EnsembleAlgorithm):
    """On several threads: the default.

    On the ``julia`` engine all members of a batch (``EnsembleProblem(prob, u0=..., p=...)``) of an
    ODE or DAE are solved by one call, on Julia's threads (``PYTHON_JULIACALL_THREADS``, all cores
    where it is not set); other members on Python's threads, which also Julia's solves leave free
    to run.

    threads : int, optional
        At most so many; as many as there are where None.
    """

    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and (not is_whole(self.threads) or self.threads < 1):
            raise InputError(f"threads is {self.threads!r}; give a positive whole number, or None.")


@dataclass(frozen=True)
class EnsembleExecutor(EnsembleAlgorithm):
    """By an executor of ``concurrent.futures`` or of its kind (dask, loky, mpi4py, ray).

    Each member is one task, its gradient another, in which the member is solved once more (with
    the same seed, where it draws noise). What goes to another process must be picklable: functions
    at the top of a module, or an executor that pickles closures (loky, dask).

    executor : object with ``submit(function, *arguments)``
        It is used and not shut down.
    """

    executor: Executor | Any

    def __post_init__(self) -> None:
        made = not isinstance(self.executor, type)
        if not made or not callable(getattr(self.executor, "submit", None)):
            what = f"a {type(self.executor).__name__}" if made else "a class"
            raise InputError(
                f"executor is {what}; give an executor, e.g. "
                "concurrent.futures.ProcessPoolExecutor()."
            )


@dataclass(frozen=True)
class EnsembleGPU(EnsembleAlgorithm):
    """On a GPU.

    backend : str, optional
        Whose GPU: ``"cuda"``, NVIDIA's, is the one that there is.
    """

    backend: str = "cuda"

    def __post_init__(self) -> None:
        if self.backend != "cuda":
            raise InputError(
                f'backend is {self.backend!r}; give "cuda" (an NVIDIA card), or leave it out.'
            )


@dataclass(frozen=True)
class EnsembleGPUKernel(EnsembleGPU):
    """Each member whole by one thread of an NVIDIA card, with steps of its own (``julia``).

    DiffEqGPU.jl's methods solve ODEs of few states: ``Tsit5`` (at most 64), ``Vern7`` and ``Vern9``
    (32), and ``Rosenbrock23``, ``Rodas4``, ``Rodas5P``, ``Kvaerno3`` and ``Kvaerno5`` (16), or
    their names there (``GPUTsit5``, ...). Outputs are at ``saveat``, else at both ends of tspan.
    Tensors on the CPU are copied to the card, and the solution back. Gradients are forward
    sensitivities in the same kernel, by at most 256 numbers a member (u0, and what of p and
    closures requires grad). No callbacks, mass matrices or tstops.

    Needs ``python -m pysciml setup --gpu``.
    """


@dataclass(frozen=True)
class EnsembleGPUArray(EnsembleGPU):
    """All members as one state on an NVIDIA card, with one step size (``julia``).

    Any f that the device's solver takes, by its methods (``Tsit5`` where None), with its adjoints:
    for members of many states or parameters, as networks are. Methods with Jacobians form one of
    all members together, and suit few. The step is that of the member that needs the shortest, and
    the tolerance is for the mean square over all of them.

    Needs ``python -m pysciml setup --gpu``, and tensors that are on the card.
    """


_CALLED_WITH = {
    "prob_func": ("prob", "i"),
    "output_func": ("sol", "i"),
    "reduction": ("u", "batch", "I"),
}


@solved_by("pysciml.ensemble_solve", "solve_ensemble")
@dataclass(frozen=True, eq=False, repr=False)
class EnsembleProblem:
    """One problem many times over.

    Parameters
    ----------
    prob : problem of any kind
        What the members have in common.
    prob_func : callable, optional
        ``prob_func(prob, i)`` gives member ``i`` (from 0), e.g. ``pysciml.remake(prob, u0=...)``.
    output_func : callable, optional
        ``output_func(sol, i)``: what is kept of a member; its whole solution where None.
    reduction : callable, optional
        ``reduction(u, batch, I) -> (u, converged)``: takes ``u`` (``u_init`` at first), the
        outputs of one batch of ``batch_size`` members and their numbers ``I``; ends the solve
        where ``converged``.
    u_init : optional
        Where the reduction begins; an empty list where None.
    u0 : optional
        Like ``prob.u0``, each leaf with one leading row a member (N, ...), in place of prob_func.
        A leaf of the problem's own shape is shared by all members. Of a HamiltonianProblem the
        pair ``(p0, q0)``.
    p : optional
        The same for ``prob.p``.

    Solve it with ``solve(ensemble, alg, ensemblealg, trajectories=N, ...)``. Gradients flow through
    every member.

    Raises
    ------
    InputError
        Where u0 or p fits neither the problem nor a batch, batches differ in length, or prob_func
        is given beside them.
    """

    prob: Any
    prob_func: Callable[[Any, int], Any] | None = None
    output_func: Callable[[Any, int], Any] | None = None
    reduction: Callable[[Any, list[Any], range], tuple[Any, bool]] | None = None
    u_init: Any = None
    u0: Any = None
    p: Any = None

    kind = "ensemble"
    members: int | None = field(init=False)  # of the batch

    def __post_init__(self) -> None:
        if isinstance(self.prob, EnsembleProblem) or not hasattr(self.prob, "state_spec"):
            raise InputError(
                f"prob is a {type(self.prob).__name__}; give the problem that the members have in "
                "common, e.g. pysciml.ODEProblem(f, u0, (t0, t1), p)."
            )
        for name, takes in _CALLED_WITH.items():
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise InputError(f"{name} is a {type(value).__name__}; give a function, or None.")
            if value is not None:
                require_function(value, name, takes)
        require_finite(self.u0, "u0")
        require_finite(self.p, "p")
        batched = self.u0 is not None or self.p is not None
        if batched and self.prob_func is not None:
            raise InputError(
                "prob_func was given beside a batch of u0 or p; give one of the two: prob_func can "
                "take rows of a batch itself, e.g. pysciml.remake(prob, u0=batch[i])."
            )
        object.__setattr__(self, "members", self._count() if batched else None)

    def _count(self) -> int:
        if not hasattr(self.prob, "u0") or not hasattr(self.prob, "p"):
            raise InputError(
                f"A batch of u0 or p was given for a {type(self.prob).__name__}, which does not "
                "have both; give prob_func, e.g. "
                "lambda prob, i: pysciml.remake(prob, p=batch[i])."
            )
        found: tuple[str, int] | None = None
        for name in ("u0", "p"):
            batch, single = getattr(self, name), getattr(self.prob, name)
            for i, rows in batched_leaves(name, batch, single):
                where = f"{name}{f' (leaf {i})' if not isinstance(batch, Tensor) else ''}"
                if found is not None and found[1] != rows:
                    raise InputError(
                        f"{where} has {rows} rows, but {found[0]} has {found[1]}; give each one "
                        "row a member."
                    )
                found = found or (where, rows)
        if found is None:
            raise InputError(
                "u0 and p have the shapes of one member; give one of them a leading axis with one "
                "row a member, e.g. torch.stack([...])."
            )
        if found[1] == 0:
            raise InputError(f"{found[0]} has no rows; give one a member.")
        return found[1]

    def member(self, i: int) -> Any:
        """The problem of member ``i``. Raises InputError where prob_func gives none."""
        if self.members is None:
            if self.prob_func is None:
                return self.prob
            made = self.prob_func(self.prob, i)
            if not hasattr(made, "state_spec"):
                raise InputError(
                    f"prob_func returned a {type(made).__name__} for member {i}; return a problem, "
                    "e.g. pysciml.remake(prob, u0=...)."
                )
            return made
        changes = {}
        for name in ("u0", "p"):
            batch, single = getattr(self, name), getattr(self.prob, name)
            if batch is not None:
                changes[name] = pytree.tree_map(
                    lambda x, one: x[i] if _is_batch(x, one) else x, batch, single
                )
        if "u0" in changes and isinstance(self.prob, HamiltonianProblem):
            changes["p0"], changes["q0"] = changes.pop("u0")
        return remake(self.prob, **changes)

    def __repr__(self) -> str:
        how = (
            f"a batch of {self.members}" if self.members is not None
            else "prob_func" if self.prob_func is not None else "equal members"
        )  # fmt: skip
        return f"EnsembleProblem({self.prob!r}, members: {how})"


def _is_batch(x: Any, single: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == torch.as_tensor(single).ndim + 1


def _built(tree: Any) -> str:
    kinds = pytree.tree_map(lambda x: "tensor" if isinstance(x, Tensor) else type(x).__name__, tree)
    return str(kinds).replace("'", "")


def batched_leaves(name: str, batch: Any, single: Any) -> Iterator[tuple[int, int]]:
    """Number and rows of each leaf that has one row a member. Raises InputError."""
    if batch is None:
        return
    leaves, structure = pytree.tree_flatten(batch)
    own, expected = pytree.tree_flatten(single)
    if structure != expected:
        raise InputError(
            f"{name} of the ensemble is built like {_built(batch)}, but {name} of its problem like "
            f"{_built(single)}; build them alike, with one row a member in each tensor (e.g. by "
            "torch.stack)."
        )
    for i, (x, one) in enumerate(zip(leaves, own, strict=True)):
        number = isinstance(one, (int, float)) and not isinstance(one, bool)
        if not isinstance(one, Tensor) and not number:
            if one is None:
                raise InputError(
                    f"{name} of the ensemble was given (leaf {i}), but its problem has none; give "
                    f"the problem a {name}."
                )
            if x is not one and x != one:
                raise InputError(
                    f"{name} of the ensemble has a {type(x).__name__} (leaf {i}) that is not the "
                    "problem's own; only tensors and numbers can differ between members."
                )
            continue
        shape = tuple(torch.as_tensor(one).shape)
        given = tuple(x.shape) if isinstance(x, Tensor) else ()
        if given == shape:
            continue
        if not isinstance(x, Tensor) or given[1:] != shape or len(given) != len(shape) + 1:
            raise InputError(
                f"{name} of the ensemble has shape {given} (leaf {i}), but the problem's is "
                f"{shape}; give {('N', *shape)} with one row a member, or {shape} to share it."
            )
        yield i, given[0]


@dataclass(eq=False, repr=False)
class EnsembleSolution:
    """What the members of an ensemble gave.

    Attributes
    ----------
    u : tensor (N, m, ...) or pytree of them, or list
        The states of all members at ``t``, where these have their output times in common;
        otherwise the list of their solutions. With an ``output_func`` the list of what it
        returned; with a ``reduction`` what that made of it.
    t : tensor (m,) or None
        The output times that the members have in common.
    retcodes : list of str, one a member
    stats : Stats
        Counts, summed over the members.
    engine, algorithm : str

    ``sim[i]`` is member ``i``'s :class:`~pysciml.Solution` (or output), ``len(sim)`` their number.
    """

    u: Any
    t: Tensor | None
    retcodes: list[str]
    stats: Stats
    engine: str
    algorithm: str
    _member: Callable[[int], Any]
    _count: int

    @property
    def converged(self) -> bool:
        """Whether every member reached its end, or was ended by an event."""
        return all(code in ("Success", "Terminated") for code in self.retcodes)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Any:
        if not -self._count <= i < self._count:
            raise IndexError(f"member {i} of {self._count}")
        return self._member(range(self._count)[i])

    def __iter__(self) -> Iterator[Any]:
        return (self._member(i) for i in range(self._count))

    def __repr__(self) -> str:
        failed = sum(code not in ("Success", "Terminated") for code in self.retcodes)
        return (
            f"EnsembleSolution({self._count} members, {failed} of them failed, {self.algorithm} "
            f"on {self.engine})"
        )

    def plot(self, ax: Any = None, *, idxs: Any = None, **line: Any) -> Any:
        """Plot the members' states against time (matplotlib), at most 100 of them.

        Parameters
        ----------
        ax : matplotlib axes, optional
        idxs : flat indices of the entries to draw, a mask or a slice; all where None (at most 20)
        line : passed to ``Axes.plot``

        Returns
        -------
        The axes.
        """
        if ax is None:
            ax = new_axes()
        line = {"lw": 0.7, "alpha": 0.5, **line}
        for i in range(min(self._count, 100)):
            sol = self[i]
            if not hasattr(sol, "plot"):
                raise PyscimlError(
                    "The members' outputs are not solutions, which plot draws; leave output_func "
                    "out, or draw them yourself."
                )
            series = sol.spec.flatten_series(sol.u).detach().cpu()
            chosen = drawn(idxs, series.shape[1])
            for k, j in enumerate(chosen):
                ax.plot(sol.t.detach().cpu(), series[:, j], color=f"C{k}", **line)
        ax.set_xlabel("t")
        return ax
