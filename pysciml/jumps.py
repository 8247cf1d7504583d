"""Jump processes: what happens at random times, at rates that depend on the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysciml.algorithms import Algorithm, AlgorithmName, algorithm
from pysciml.discrete import DiscreteProblem
from pysciml.dispatch import solved_by
from pysciml.errors import InputError, did_you_mean
from pysciml.flatten import is_real
from pysciml.jumpprocesses import AGGREGATORS, TAKES_BOUNDED
from pysciml.noise import NoiseGrid
from pysciml.problems import ODEProblem, Problem, remake
from pysciml.signatures import require_function
from pysciml.stochastic import SDEProblem, require_forward
from pysciml.stoichiometry import kind_of, reactions

__all__ = ["ConstantRateJump", "JumpProblem", "JumpSet", "MassActionJump", "VariableRateJump"]

Function = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, eq=False)
class ConstantRateJump:
    """A jump whose rate stays as it is between jumps.

    rate
        ``rate(u, p, t)`` in torch: one number (a 0-d tensor), not negative. It must not depend on
        t, nor on entries of the state that move between jumps.
    affect
        ``affect(u, p, t) -> u`` in torch: the state after the jump.
    """

    rate: Function
    affect: Function

    def __post_init__(self) -> None:
        _require_functions(self)


@dataclass(frozen=True, eq=False)
class VariableRateJump:
    """A jump whose rate may depend on time, and on a state that moves between jumps.

    rate, affect
        As for :class:`ConstantRateJump`, without its restriction.
    urate, rateinterval, lrate
        Bounds, functions of (u, p, t) in torch: as long as no jump happens, the rate stays below
        ``urate(u, p, t)`` (and above ``lrate(u, p, t)``) for the time ``rateinterval(u, p, t)``.
        With them :func:`pysciml.Coevolve` draws the jump by thinning, also on a DiscreteProblem.

    Without bounds the next jump comes when the integral of the rate along the solution has grown by
    a number drawn from the exponential distribution. Source: Salis, Kaznessis, "Accurate hybrid
    stochastic simulation of a system of coupled chemical or biochemical reactions", J. Chem. Phys.
    122 (2005).
    """

    rate: Function
    affect: Function
    urate: Function | None = None
    rateinterval: Function | None = None
    lrate: Function | None = None

    def __post_init__(self) -> None:
        _require_functions(self)
        if (self.urate is None) != (self.rateinterval is None):
            given, other = ("urate", "rateinterval")
            if self.urate is None:
                given, other = other, given
            raise InputError(
                f"{given} was given without {other}; a bound needs both: give {other} too, or "
                "neither."
            )
        if self.lrate is not None and self.urate is None:
            raise InputError(
                "lrate was given without urate and rateinterval; give these too, or leave it out."
            )

    @property
    def bounded(self) -> bool:
        return self.urate is not None


@dataclass(frozen=True, eq=False)
class MassActionJump:
    """Reactions by the law of mass action.

    rates
        Rate constants: a number, a tensor (k,), a sequence of k numbers, or a function of p that
        returns one of these.
    reactant_stoich
        For each reaction what it takes to happen: ``{entry of the state: how many}``, or such pairs
        in a list, or a tensor (k, n) of whole numbers. Entries are flat indices, from 0.
    net_stoich
        For each reaction what it changes, likewise.
    scale_rates
        Whether constants are divided by the factorials of the reactants' numbers, as for reactions
        of indistinguishable molecules: the rate of 2 A -> B is then k a (a - 1) / 2.

    Source: Gillespie, "A general method for numerically simulating the stochastic time evolution of
    coupled chemical reactions", J. Comput. Phys. 22 (1976).
    """

    rates: Any
    reactant_stoich: Any
    net_stoich: Any
    scale_rates: bool = True

    def __post_init__(self) -> None:
        before = reactions(self.reactant_stoich, "reactant_stoich")
        change = reactions(self.net_stoich, "net_stoich")
        if len(before) != len(change):
            raise InputError(
                f"reactant_stoich has {len(before)} reactions, but net_stoich has {len(change)}; "
                "give one entry a reaction in both."
            )
        if not before:
            raise InputError("reactant_stoich has no reactions; give one entry a reaction.")
        for i, row in enumerate(before):
            if any(count < 1 for _, count in row):
                raise InputError(
                    f"reactant_stoich[{i}] has a count below 1; give how many of each reactant the "
                    "reaction takes, and leave out what it does not."
                )
        object.__setattr__(self, "reactant_stoich", before)
        object.__setattr__(self, "net_stoich", change)
        if type(self.scale_rates) is not bool:
            raise InputError(f"scale_rates is {self.scale_rates!r}; give True or False.")
        if callable(self.rates):
            require_function(self.rates, "rates", ("p",))
        else:
            self.constants(None)

    def constants(self, p: Any) -> Tensor:
        """The rate constants (k,), float64. Raises InputError where they do not fit."""
        given = self._given(p)
        try:
            if isinstance(given, bool) or isinstance(given, Tensor) and not is_real(given):
                raise TypeError
            rates = torch.as_tensor(given, dtype=torch.float64).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"rates is {kind_of(given)}; give one number a reaction, e.g. a tensor "
                f"({len(self)},), or a function of p that returns them."
            ) from None
        if len(rates) != len(self):
            raise InputError(
                f"rates has {len(rates)} entries, but there are {len(self)} reactions; give one "
                "rate constant a reaction."
            )
        if not bool(((rates.detach() >= 0) & rates.detach().isfinite()).all()):
            raise InputError(
                f"rates are {rates.tolist()}; rate constants must be finite and not negative."
            )
        return rates

    def _given(self, p: Any) -> Any:
        if not callable(self.rates):
            return self.rates
        try:
            return self.rates(p)
        except (TypeError, AttributeError) as error:
            if p is None and "NoneType" in str(error):
                raise InputError(
                    f"rates uses p, but the problem has none ({error}); give it as the problem's "
                    "p, e.g. pysciml.remake(prob, p=...)."
                ) from error
            raise

    def __len__(self) -> int:
        return len(self.reactant_stoich)


Jump = ConstantRateJump | VariableRateJump | MassActionJump


@dataclass(frozen=True, eq=False)
class JumpSet:
    """Several jumps together, in the order in which ``sol.jump_indices`` numbers them."""

    jumps: tuple[Jump, ...]

    def __init__(self, *jumps: Any) -> None:
        object.__setattr__(self, "jumps", as_jumps(jumps))


def as_jumps(given: Any) -> tuple[Jump, ...]:
    """Jumps, JumpSets and sequences of these as a tuple. Raises InputError."""
    if isinstance(given, Jump):
        return (given,)
    if isinstance(given, JumpSet):
        return given.jumps
    if isinstance(given, Sequence) and not isinstance(given, str):
        return tuple(jump for x in given for jump in as_jumps(x))
    raise InputError(
        f"a jump is a {type(given).__name__}; give a ConstantRateJump, VariableRateJump, "
        "MassActionJump, or a JumpSet of these."
    )


def _require_functions(jump: Any) -> None:
    for f in dataclasses.fields(jump):
        value = getattr(jump, f.name)
        if value is not None or f.name in ("rate", "affect"):
            require_function(value, f.name, ("u", "p", "t"))


@solved_by("pysciml.jump_solve", "solve_jumps")
class JumpProblem(Problem):
    """A problem with jumps: on a DiscreteProblem a pure jump process, else jumps of a moving state.

    Parameters
    ----------
    prob : DiscreteProblem, ODEProblem or SDEProblem
        A DiscreteProblem's f is not used, and may be None; its u0 may be int64 (the functions and
        ``sol(t)`` then see float64, the solution is int64). tspan runs forward.
    aggregator : Algorithm
        How jumps of constant rate and reactions are drawn, e.g. ``pysciml.Direct()``; see
        :mod:`pysciml.jumpprocesses`. ``RSSA`` and ``RSSACR`` need rates that are monotone in each
        entry of the state.
    jumps : ConstantRateJump, VariableRateJump, MassActionJump, JumpSet
    save_positions : (before, after), optional
        Whether the states around a jump are outputs. Where None: as SciML, (False, True) on a
        DiscreteProblem and (True, True) elsewhere; nothing beside ``saveat`` where that is given.
    dep_graph : sequence of sequences of int, optional
        For each jump those whose rates it changes, from 0 in the order of the aggregator:
        reactions, then jumps of constant rate, then of variable rate. Read off the functions
        where None.

    Solved by the ``julia`` engine: ``solve(jprob, SSAStepper(), seed=1)`` on a DiscreteProblem,
    otherwise with an algorithm of ``prob``, such as ``Tsit5()``. Two solves with one seed are
    equal. ``sol.jump_times`` and ``sol.jump_indices`` tell when which jump happened.

    Gradients are of the path that was drawn, with the times of its jumps, and which jumps they are,
    held: the continuous part and the affects are differentiated, the rates are not. That is the
    derivative of an expectation only where no rate depends on what is differentiated; elsewhere the
    change of the jumps' distribution is left out. What depends on inputs through rates alone,
    counts of a pure jump process above all, has no such derivative: it is refused. Source:
    Glasserman, "Gradient Estimation via Perturbation Analysis" (1991), chapter 1, on when
    derivative and expectation may be interchanged.

    Raises
    ------
    InputError
        For jumps, aggregators and problems that do not go together.
    """

    kind = "jump"

    def __init__(
        self,
        prob: Any,
        aggregator: Any = None,
        *jumps: Any,
        save_positions: tuple[bool, bool] | None = None,
        dep_graph: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if isinstance(aggregator, (Jump, JumpSet)):
            aggregator, jumps = None, (aggregator, *jumps)
        if type(prob) not in (DiscreteProblem, ODEProblem, SDEProblem):
            raise InputError(
                f"prob is a {type(prob).__name__}; give a DiscreteProblem, ODEProblem or "
                "SDEProblem for the jumps to act on."
            )
        require_forward(prob.tspan, "a jump process")
        if isinstance(getattr(prob, "noise", None), NoiseGrid):
            raise InputError(
                f"prob follows a given path ({prob.noise!r}), whose times are the steps, but jumps "
                'come in between; give the SDEProblem noise="diagonal" or a noise_rate_prototype.'
            )
        if isinstance(prob, DiscreteProblem) and prob.state_spec.dtype is not torch.float64:
            raise InputError(
                f"u0 is {str(prob.state_spec.dtype)[6:]}, in which a count stays where it is from "
                "16,777,216 on; give whole numbers, or u0.double()."
            )
        self.prob = prob
        self.jumps = as_jumps(jumps)
        self.aggregator = _aggregator(aggregator, self.jumps)
        self.save_positions = _positions(save_positions)
        self.dep_graph = dep_graph
        if not self.jumps:
            raise InputError(
                "JumpProblem was given no jumps; give e.g. ConstantRateJump(rate, affect) after "
                "the aggregator."
            )
        self._check_reactions()
        self._check_bounds()
        self._check_graph()
        if getattr(prob, "mass_matrix", None) is not None:
            raise InputError(
                "prob has a mass_matrix, whose equations a jump would break; write it as an "
                "ODEProblem without one."
            )

    def _check_reactions(self) -> None:
        n = self.state_spec.size
        for jump in self.jumps:
            if not isinstance(jump, MassActionJump):
                continue
            for name in ("reactant_stoich", "net_stoich"):
                for i, row in enumerate(getattr(jump, name)):
                    worst = max((k for k, _ in row), default=0)
                    if worst >= n:
                        raise InputError(
                            f"{name}[{i}] names entry {worst}, but the state has {n} entries (0 to "
                            f"{n - 1}); give flat indices of the state."
                        )

    def _check_bounds(self) -> None:
        if not isinstance(self.prob, DiscreteProblem):
            return
        for i, jump in enumerate(self.jumps):
            if not isinstance(jump, VariableRateJump):
                continue
            if not jump.bounded:
                raise InputError(
                    f"jump {i} is a VariableRateJump on a DiscreteProblem, which goes from jump to "
                    "jump; give it bounds (urate, rateinterval) and the aggregator "
                    "pysciml.Coevolve(), or put the jumps on an ODEProblem."
                )
            if self.aggregator.name not in TAKES_BOUNDED:
                raise InputError(
                    f"jump {i} is a VariableRateJump, which {self.aggregator.name} does not draw "
                    "on a DiscreteProblem; use pysciml.Coevolve()."
                )

    def _check_graph(self) -> None:
        if self.dep_graph is None:
            return
        count = sum(
            len(x) if isinstance(x, MassActionJump) else not goes_along(x, self.aggregator)
            for x in self.jumps
        )
        try:
            rows = [list(row) for row in self.dep_graph]
        except TypeError:
            raise InputError(
                f"dep_graph is {self.dep_graph!r}; give a list with one list of numbers a jump."
            ) from None
        good = all(type(i) is int and 0 <= i < count for row in rows for i in row)
        if len(rows) != count or not good:
            raise InputError(
                f"dep_graph has {len(rows)} rows, but {self.aggregator.name} draws {count} jumps; "
                f"give one row a jump, of numbers from 0 to {count - 1}."
            )

    # what other problems have, of the problem that the jumps act on
    @property
    def u0(self) -> Any:
        return self.prob.u0

    @property
    def p(self) -> Any:
        return self.prob.p

    @property
    def tspan(self) -> Any:
        return self.prob.tspan

    @property
    def state_spec(self) -> Any:
        return self.prob.state_spec

    @property
    def callback(self) -> Any:
        return self.prob.callback

    def remade(self, changes: dict[str, Any]) -> JumpProblem:
        """See :func:`pysciml.remake`: fields of its own, or of the problem that it acts on."""
        own = {k: getattr(self, k) for k in ("save_positions", "dep_graph")}
        given = {"prob": self.prob, "aggregator": self.aggregator, "jumps": self.jumps, **own}
        inner = [f.name for f in dataclasses.fields(self.prob) if f.init]
        for key in changes:
            if key not in given and key not in inner:
                fields = [*given, *inner]
                raise InputError(
                    f"JumpProblem has no field {key!r} (it has {', '.join(fields)})."
                    f"{did_you_mean(key, fields)}"
                )
        given |= {k: v for k, v in changes.items() if k in given}
        of_prob = {k: v for k, v in changes.items() if k not in given}
        prob = remake(given["prob"], **of_prob) if of_prob else given["prob"]
        return JumpProblem(prob, given["aggregator"], given["jumps"], **{k: given[k] for k in own})

    def __repr__(self) -> str:
        return f"JumpProblem({self.prob!r}, {self.aggregator!r}, {len(self.jumps)} jumps)"

    def _repr_html_(self) -> str:
        return str(self.prob._repr_html_())


def _aggregator(given: Any, jumps: tuple[Jump, ...]) -> Algorithm:
    if given is None:
        bounded = any(isinstance(x, VariableRateJump) and x.bounded for x in jumps)
        return algorithm("Coevolve" if bounded else "Direct")()
    if isinstance(given, AlgorithmName):
        given = given()
    if not isinstance(given, Algorithm) or given.name not in AGGREGATORS:
        what = repr(given) if isinstance(given, Algorithm) else f"a {type(given).__name__}"
        raise InputError(
            f"aggregator is {what}; give one of {', '.join(AGGREGATORS)}, e.g. pysciml.Direct()."
        )
    return given


def goes_along(jump: Any, aggregator: Algorithm) -> bool:
    """Whether the jump is drawn along the solution, and not by the aggregator."""
    if not isinstance(jump, VariableRateJump):
        return False
    return not (jump.bounded and aggregator.name in TAKES_BOUNDED)


def _positions(given: Any) -> tuple[bool, bool] | None:
    if given is None:
        return None
    if not isinstance(given, (tuple, list)) or [type(x) for x in given] != [bool, bool]:
        raise InputError(f"save_positions is {given!r}; give two booleans, (before, after).")
    return given[0], given[1]
