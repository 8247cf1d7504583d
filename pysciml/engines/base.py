"""The contract between the front door and an engine.

An engine sees flat vectors only: a state ``u`` of length n, parameters ``p`` (the user's, with
the closed-over tensors that require grad appended), data ``c`` (closed-over tensors that don't),
all NumPy arrays of float64 (or float32 where the problem says so). It gives flat arrays back and
a handle of its own, from which it later interpolates and computes gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pysciml.algorithms import Algorithm
from pysciml.errors import EngineError
from pysciml.sensitivity import SensitivityAlgorithm

Array = npt.NDArray[np.float64]

#: Where an output time came from, see :attr:`FlatSolution.source`.
FROM_T0, FROM_T1, FIXED, FIRST_EVENT = -1, -2, -3, -4


class Functions(Protocol):
    """A right-hand side (or residual, condition, affect) and all that derives from it.

    Two kinds exist: captured (:class:`pysciml.kernels.kernels.Kernels` inside) and called back
    in torch. Roles are named ``"value"``, ``"jac:u"``, ``"jac:t"``, ``"jac:p"``, ``"jvp:u"``,
    ``"vjp:u"``, ``"vjp:p"``, ``"vjp:up"``, ``"vjp:p*K"``; see :mod:`pysciml.kernels.derivatives`.
    """

    kernels: Any | None  # Kernels, or None where capture failed
    names: tuple[str, ...]
    sizes: dict[str, int]
    n_out: int

    @property
    def shared(self) -> Any:
        """Where an engine keeps what it derives: the same object for functions that differ in
        the closed-over tensors alone, whose values ``p`` and ``c`` hold."""
        ...

    def bind(self, role: str, p: Array, c: Array) -> Callable[..., None]:
        """``fn(*inputs without p and c, *outs)`` on NumPy arrays, writing into ``outs``."""
        ...

    def bind_batched(
        self, role: str, p: Array, c: Array, reduce: bool = False
    ) -> Callable[..., Any]:
        """``fn(*inputs without p and c)``, each with a leading batch axis, to one array.

        With ``reduce`` the result is summed over the batch.
        """
        ...

    def sparsity(self, wrt: str) -> sparse.csr_matrix | None:
        """Pattern of the Jacobian by ``wrt``, ones where not zero; None where unknown or full."""
        ...


@dataclass(frozen=True)
class FlatCallback:
    """An event, flat.

    kind ``"continuous"``: ``condition`` is a function to one number whose root is the event;
    ``"discrete"``: ``condition`` to one number, true where nonzero, asked after every step;
    ``"preset"``: ``times`` alone. ``affect`` maps (u, p, t) to the new state, or is None for
    an event that ends the solve when ``terminate`` is set, and otherwise only records.
    ``"domain"`` is no event: steps to where ``condition`` is nonzero are rejected.
    The other kinds are jumps: see :class:`pysciml.callbacks.JumpCallback`; ``condition`` is the
    rate, ``direction`` the number, ``times`` the numbers of a reaction.
    """

    kind: Literal[
        "continuous", "discrete", "preset", "reaction", "constant", "variable", "bound", "domain"
    ]
    condition: Functions | None
    affect: Functions | None
    terminate: bool = False
    direction: int = 0
    times: Array | None = None
    save_positions: tuple[bool, bool] = (True, True)
    condition_p: Array | None = None  # the condition's own p (user's p and its closures)
    condition_c: Array | None = None
    affect_p: Array | None = None
    affect_c: Array | None = None


@dataclass(frozen=True)
class FlatJumps:
    """How the jumps among a problem's callbacks are drawn.

    kind ``"pure"``: on a state that stays as it is in between; else by what they go along with.
    ``aggregator``: the algorithm that draws them. ``dependent``: for each jump those whose rates
    it changes, as far as the user has given them. ``every``: whether the states after jumps are
    outputs (pure ones; of others ``save_positions`` of their callbacks tells).
    """

    kind: Literal["pure", "ode", "sde"]
    aggregator: Algorithm
    dependent: tuple[tuple[int, ...], ...] | None = None
    every: bool = True


@dataclass(frozen=True)
class FlatProblem:
    """An initial value problem on flat vectors.

    kind ``"ode"``: ``functions`` takes (u, p, t, c) and gives du, with ``mass_matrix`` (n, n)
    or None for the identity. kind ``"dae"``: ``functions`` takes (du, u, p, t, c) and gives
    the residual; ``du0`` and ``differential_vars`` (n booleans) belong to it.

    form: how an ODE can be taken apart. ``"partitioned"``: ``parts`` give the first ``split`` and
    the other entries of du (``"second_order"``: the latter are the former entries of u);
    ``"split"``: ``parts`` sum up to ``functions`` (``"semilinear"``: the first is linear in u);
    ``"sde"``: ``parts`` are drift and diffusion, which stand one after the other in ``functions``,
    the diffusion's matrix of ``columns`` columns column by column (0: diagonal noise, -1: scalar);
    ``"dde"``: the functions take ``x = [u; delayed states]`` for u, and ``parts`` are the rate, the
    times of the delayed states and the history, which stand one after the other in ``functions``;
    ``"rode"``: ``functions`` takes u with the ``columns`` values of the noise appended.

    memo: what an engine keeps for the next problem that differs in ``u0``, ``p`` and ``c`` alone.
    """

    kind: Literal["ode", "dae"]
    functions: Functions
    u0: Array
    p: Array
    c: Array
    t0: float
    t1: float
    mass_matrix: Array | None = None
    du0: Array | None = None
    differential_vars: npt.NDArray[np.bool_] | None = None
    callbacks: tuple[FlatCallback, ...] = ()
    dtype: Literal["float64", "float32"] = "float64"
    name: str = "f"
    form: Literal[
        "", "partitioned", "second_order", "split", "semilinear", "sde", "dde", "rode"
    ] = ""
    parts: tuple[Functions, ...] = ()
    split: int = 0
    columns: int = 0
    noise: tuple[Array, Array] | None = None  # a path to follow: times (k,), values (k, m)
    jumps: FlatJumps | None = None
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def at(self, u0: Array, p: Array, c: Array) -> FlatProblem:
        """The same problem, the memo included, from other values."""
        new = object.__new__(FlatProblem)
        new.__dict__.update(self.__dict__, u0=u0, p=p, c=c)  # replace() takes ten times as long
        return new


@dataclass(frozen=True)
class Tuning:
    """How the steps are chosen, where the user has a say in it.

    controller, initializealg: SciML's, as :class:`Algorithm`; discontinuities: times at which the
    right-hand side may jump.
    """

    force_dtmin: bool = False
    controller: Algorithm | None = None
    initializealg: Algorithm | None = None
    discontinuities: tuple[float, ...] = ()


@dataclass(frozen=True)
class SolveOptions:
    """What a solve was asked for. Times are in the direction of integration."""

    abstol: float | Array = 1e-6
    reltol: float = 1e-3
    saveat: Array | None = None
    tstops: Array | None = None
    dt: float | None = None
    dtmax: float | None = None
    dtmin: float | None = None
    maxiters: int = 100_000
    adaptive: bool = True
    gradient: bool = False
    sensealg: SensitivityAlgorithm | None = None
    progress: Callable[[float], None] | None = None
    seed: int | None = None
    tuning: Tuning = Tuning()


@dataclass(repr=False)
class Stats:
    """Counts of a solve; the names are SciML's.

    nf right-hand sides, njacs Jacobians, naccept and nreject steps, nsolve linear solves,
    nnonliniter nonlinear iterations, jumps those of a JumpProblem; None where an engine does
    not count it.
    """

    nf: int | None = None
    njacs: int | None = None
    naccept: int | None = None
    nreject: int | None = None
    nsolve: int | None = None
    nnonliniter: int | None = None
    algorithm: str = ""
    jumps: int | None = None

    def __repr__(self) -> str:
        known = ", ".join(f"{k}={v}" for k, v in vars(self).items() if v not in (None, ""))
        return f"Stats({known})"


@dataclass
class FlatSolution:
    """What an engine gives back.

    Attributes
    ----------
    t : array (m,), u : array (m, n)
    source : int array (m,)
        For each output: index into ``saveat``, or FROM_T0, FROM_T1, FIXED (an inner step), or
        ``FIRST_EVENT - k`` for the k-th event of ``events``.
    events : list of (time, index of the callback)
        Of a problem with jumps those among them too, but of a pure jump process.
    jumps : (times, numbers) or None
    at_saveat : whether the outputs are known to be all of ``saveat``, and nothing else
    """

    t: Array
    u: Array
    source: npt.NDArray[np.int64]
    retcode: str
    stats: Stats
    handle: Any
    message: str = ""
    t_reached: float = 0.0
    events: list[tuple[float, int]] = field(default_factory=list)
    at_saveat: bool = False
    jumps: tuple[Array, npt.NDArray[np.int64]] | None = None

    @property
    def success(self) -> bool:
        return self.retcode in ("Success", "Terminated")


@dataclass
class FlatGradient:
    """Cotangents of the inputs.

    ``u0`` (n,), ``p`` (n_p,), ``t0`` a number, ``times`` (m,): the change of the loss with each
    output time through the state there (zero at events, whose motion is part of ``p`` and
    ``u0``). ``t1``: the change with the end of the time span besides that, where what lies before
    it depends on it. ``callbacks_p``: one pair (condition, affect) a callback, each None or an
    array.
    """

    u0: Array
    p: Array
    t0: float
    times: Array
    du0: Array | None = None
    callbacks_p: list[tuple[Array | None, Array | None]] = field(default_factory=list)
    t1: float = 0.0


@dataclass(frozen=True)
class FlatMembers:
    """What the members of an ensemble have of their own.

    ``u0`` (N, n): one row a member. ``own`` (N, k): each member's values of the parameters at the
    positions ``at`` (k,); all others are the problem's ``p``. ``spans`` (N, 2): time spans of their
    own, which ``solve_members_on_gpu`` takes.
    """

    u0: Array
    at: npt.NDArray[np.int64]
    own: Array
    spans: Array | None = None


@dataclass
class FlatEnsemble:
    """The solutions of all members of an ensemble, one after the other.

    Attributes
    ----------
    counts : int array (N,)
        How many rows of ``t``, ``u`` and ``source`` belong to each member. Where output times were
        asked for, members stand ``len(saveat)`` rows apart, and ``t`` and ``source`` are empty.
    t : array (total,), u : array (total, n), source : int array (total,)
    retcodes : list of str, stats : int array (N, 6), t_reached : array (N,)
    """

    counts: npt.NDArray[np.int64]
    t: Array
    u: Array
    source: npt.NDArray[np.int64]
    retcodes: list[str]
    stats: npt.NDArray[np.int64]
    t_reached: Array
    algorithm: str
    handle: Any


@dataclass
class FlatEnsembleGradient:
    """Cotangents of the members' ``u0`` (N, n) and ``own`` (N, k), of the whole ``p`` (n_p,)
    summed over the members, of ``t0`` (N,), and of the output times (total,)."""

    u0: Array
    own: Array
    p: Array
    t0: Array
    times: Array


@dataclass(frozen=True)
class FlatBoundary:
    """A boundary value problem over s in [0, length]: K pieces of n entries side by side.

    Piece k follows ``functions`` at the times ``starts[k] + rates[k] s``. ``conditions`` is a
    function of the states of all pieces at s = 0, then those at s = length, to K n numbers, of
    which the first ``at_start`` depend on the former alone and the others on the latter; 0 where
    they are tied. ``guess`` (N + 1, K n): the states on the mesh ``s`` (N + 1,).
    """

    functions: Functions
    p: Array
    c: Array
    conditions: Functions
    conditions_p: Array
    conditions_c: Array
    starts: Array
    rates: Array
    at_start: int
    s: Array
    guess: Array


@dataclass
class FlatMesh:
    """States ``u`` (N + 1, K n) on a mesh, and whether they are a solution.

    tableau: the method's coefficients c, v, b, x, and the weights of its interpolant at
    :data:`pysciml.boundary_mesh.SAMPLES`.
    """

    u: Array
    retcode: str
    calls: int
    tableau: tuple[Array, Array, Array, Array, Array]


class Engine(ABC):
    """A place where problems are solved. One instance lives for the whole process."""

    name: str

    def start(self) -> None:  # noqa: B027  (nothing to start is the rule)
        """Start what the engine needs, from the thread that is to hold it."""

    @abstractmethod
    def check(self, problem_kind: str, alg: Algorithm | None, has_mass_matrix: bool) -> None:
        """Raise EngineError where this engine cannot run ``alg`` on such a problem.

        ``problem_kind`` is the flat problem's kind, or its form where it has one.
        """

    def require_tuning(self, tuning: Tuning, callbacks: tuple[Any, ...]) -> None:
        """Raise EngineError where this engine does not choose steps so."""
        names = [k for k in ("force_dtmin", "controller", "initializealg") if getattr(tuning, k)]
        # those that are made of others have no kind of their own
        kinds = [getattr(c, "kind", None) for c in callbacks]
        names += ["isoutofdomain"] * ("domain" in kinds)
        if names:
            raise EngineError(
                f"{names[0]} was given, which the {self.name} engine does not have; leave it out, "
                "or use engine='julia' (install it with: python -m pysciml setup)."
            )

    def takes_tensors(
        self, prob: Any, alg: Algorithm | None, sensealg: Any, has_callbacks: bool
    ) -> bool:
        """Whether this engine solves the problem where its tensors are.

        It is then given tensors on their device for the arrays ``u0``, ``p``, ``c`` and
        ``grad_u``, and gives tensors for ``u`` and the gradients of ``u0`` and ``p``.
        """
        return False

    @abstractmethod
    def solve(
        self, problem: FlatProblem, alg: Algorithm | None, options: SolveOptions
    ) -> FlatSolution:
        """Solve; a failure on the way is a retcode, not an exception."""

    @abstractmethod
    def interpolate(self, solution: FlatSolution, ts: Array, deriv: int = 0) -> Array:
        """The solution (or its ``deriv``-th derivative) at times ``ts``: array (len(ts), n)."""

    def portable(self, solution: FlatSolution) -> Callable[[Array, int], Array] | None:
        """:meth:`interpolate` by itself, fit to be pickled; None where there is none."""
        return None

    def noise_path(self, solution: FlatSolution) -> tuple[Array, Array]:
        """Times of the steps (k,) and the noise there (k, m) of a stochastic equation."""
        raise NotImplementedError

    @abstractmethod
    def adjoint(
        self,
        solution: FlatSolution,
        grad_u: Array,
        grad_t: Array | None = None,
        at: Array | None = None,
        by_times: bool = True,
    ) -> FlatGradient:
        """Gradient of ``sum(grad_u * u) + sum(grad_t * t)``.

        The state is taken at the outputs of the solution, or, where ``at`` is given, at those
        times (between steps too; the right limit at an event). Where ``by_times`` is False the
        gradient's ``t0`` and ``times`` are not asked for, and may be anything.
        """

    def solve_boundary(
        self, problem: FlatBoundary, alg: Algorithm, options: SolveOptions
    ) -> FlatMesh:
        """Solve a method's equations for a boundary value problem on the mesh given."""
        raise EngineError(
            f"{alg.name} belongs to the julia engine: use engine='julia', or on the "
            f"{self.name} engine pysciml.SolveBVP() or pysciml.Shooting()."
        )

    def why_no_tensors(self, prob: Any, alg: Algorithm | None, sensealg: Any, name: str) -> str:
        """Why :meth:`takes_tensors` says no, as a sentence about ``name``."""
        raise NotImplementedError

    def solves_members(self, problem: FlatProblem, alg: Algorithm | None) -> bool:
        """Whether :meth:`solve_members` takes ensembles of such a problem."""
        return False

    def solve_members(
        self,
        problem: FlatProblem,
        members: FlatMembers,
        alg: Algorithm | None,
        options: SolveOptions,
        threads: int,
    ) -> FlatEnsemble:
        """Solve all members of an ensemble at once, on at most ``threads`` threads."""
        raise NotImplementedError

    def solve_members_on_gpu(
        self, problem: FlatProblem, members: FlatMembers, alg: Algorithm, options: SolveOptions
    ) -> FlatEnsemble:
        """As ``solve_members``, each member by one thread of a GPU.

        The vectors of ``problem`` and ``members`` are tensors, and so is the solution's ``u``,
        where a member has the rows that it did not reach too (NaN). Where nobody asked for output
        times the outputs are the states at both ends.
        """
        raise NotImplementedError

    def adjoint_members_on_gpu(
        self,
        solution: FlatEnsemble,
        grad_u: Any,
        by_times: bool,
        by_state: bool,
        directions: npt.NDArray[np.int64],
    ) -> FlatEnsembleGradient:
        """Gradient of ``sum(grad_u * u)`` by u0 where ``by_state``, and by the parameters at
        ``directions``, as tensors; all others are zero."""
        raise NotImplementedError

    def adjoint_members(
        self, solution: FlatEnsemble, grad_u: Array, by_times: bool = True
    ) -> FlatEnsembleGradient:
        """Gradient of ``sum(grad_u * u)``; where not ``by_times``, that of times is left zero."""
        raise NotImplementedError
