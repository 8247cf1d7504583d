"""The aggregators of JumpProcesses.jl by name: a plain table (JumpProcesses 9.29).

The sets say what an aggregator needs and takes; what it needs is read off the captured functions.
"""

from __future__ import annotations

#: Which jump comes next, and when: Gillespie's direct method and its relatives, those of first and
#: next reactions, rejection methods, and thinning (``Coevolve``).
AGGREGATORS: tuple[str, ...] = (
    "CCNRM", "Coevolve", "Direct", "DirectCR", "DirectFW", "FRM", "FRMFW", "NRM", "RDirect", "RSSA",
    "RSSACR", "SortingDirect",
)  # fmt: skip

#: Need to know which jumps' rates each jump changes.
NEEDS_DEPENDENT: frozenset[str] = frozenset(
    "CCNRM Coevolve DirectCR NRM RDirect SortingDirect".split()
)

#: Need to know which rates read an entry of the state, and which entries each jump changes. They
#: bound rates by their values at bounds of the state, which holds for monotone ones.
NEEDS_VARIABLES: frozenset[str] = frozenset("RSSA RSSACR".split())

#: Draw jumps of variable rate from bounds.
TAKES_BOUNDED: frozenset[str] = frozenset({"Coevolve"})

#: From jump to jump, on a state that stays as it is between them.
STEPPER = "SSAStepper"
