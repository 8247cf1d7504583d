"""The options of ``solve`` that few solves have: what is saved, and how steps are chosen."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pysciml.algorithms import Algorithm, AlgorithmName, require_value
from pysciml.callbacks import Callback
from pysciml.engines.base import FROM_T0, FROM_T1, FlatSolution, Tuning
from pysciml.errors import EngineError, InputError
from pysciml.options import Grid, times_within

__all__ = ["EXTRA", "Extra"]

_FLAGS = ("save_everystep", "save_start", "save_end", "dense", "force_dtmin", "verbose")
_VALUES = ("d_discontinuities", "isoutofdomain", "controller", "initializealg")
_TUNING = ("force_dtmin", *_VALUES)
#: The names of these options.
EXTRA: frozenset[str] = frozenset((*_FLAGS, *_VALUES))

_CONTROLLER = (
    "it belongs to the controller of the steps; give e.g. controller=pysciml.PIController({}=...)"
)
_NOTHING = "it has no meaning here; leave it out"
_BAR = "progress=True shows a bar, and there is no more to set; leave it out"
#: Other options of SciML's solve, and what to do instead.
_INSTEAD = {
    **{
        name: _CONTROLLER.format(name)
        for name in (
            "gamma beta1 beta2 qmin qmax qsteady_min qsteady_max qoldinit failfactor".split()
        )
    },
    **dict.fromkeys("progress_steps progress_name progress_message progress_id".split(), _BAR),
    **dict.fromkeys("timeseries_errors dense_errors".split(), "compare sol.u with what you know"),
    **dict.fromkeys(
        "alias alias_u0 alias_p calck save_discretes initialize_save userdata merge_callbacks "
        "kwargshandle wrap allow_extrapolation internalopnorm".split(),
        _NOTHING,
    ),
    "alg_hints": "name an algorithm, e.g. pysciml.Rodas5P() for a stiff problem, or none",
    "internalnorm": "errors are measured in the root mean square, each entry by its own abstol: "
    "give abstol as a vector",
    "save_on": "give save_everystep=False, and save_start=False or save_end=False",
    "unstable_check": "a solve ends where the state is no longer finite; give isoutofdomain= to "
    "have steps rejected, or a DiscreteCallback(condition, pysciml.terminate) to end earlier",
    "save_noise": "the noise is sol.W",
    "stats": "counts are in sol.stats",
    "autodiff": "derivatives come from torch",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Domain(Callback):
    """What ``isoutofdomain`` says, on its way to the engine beside the callbacks."""

    condition: Callable[[Any, Any, Any], Any]
    affect: Any = None
    save_positions: tuple[bool, bool] = (False, False)
    names: tuple[str, str] = ("isoutofdomain", "")

    kind = "domain"


@dataclass(frozen=True)
class Extra:
    """What a solve was asked for besides; None for what was not given."""

    save_everystep: bool | None = None
    save_start: bool | None = None
    save_end: bool | None = None
    dense: bool | None = None
    force_dtmin: bool | None = None
    verbose: bool | None = None
    d_discontinuities: Any = None
    isoutofdomain: Callable[[Any, Any, Any], Any] | None = None
    controller: Algorithm | None = None
    initializealg: Algorithm | None = None

    @classmethod
    def taken(cls, options: dict[str, Any]) -> Extra:
        """Those that are among ``options``, and taken out of them. Raises InputError."""
        for key in options:
            if key in _INSTEAD:
                raise InputError(f"solve does not take {key!r}: {_INSTEAD[key]}.")
        found = {name: options.pop(name) for name in EXTRA if name in options}
        for name in _FLAGS:
            value = found.get(name)
            if value is not None and not isinstance(value, (bool, np.bool_)):
                raise InputError(f"{name} is {value!r}; give True or False.")
        for name in ("controller", "initializealg"):
            value = found.get(name)
            if isinstance(value, AlgorithmName):
                value = found[name] = value()
            require_value(name, value)
        controller: Any = found.get("controller")
        for name, x in controller.options.items() if controller is not None else ():
            values = x if isinstance(x, (tuple, list)) else (x,)
            if not all(isinstance(v, numbers.Real) and v == v for v in values):
                raise InputError(
                    f"{name} of {controller.name} is {x!r}; give a number, e.g. the default by "
                    "leaving it out."
                )
        outside = found.get("isoutofdomain")
        if outside is not None and not callable(outside):
            raise InputError(
                f"isoutofdomain is a {type(outside).__name__}; give a function (u, p, t) that is "
                "true where the state must not be, e.g. lambda u, p, t: (u < 0).any()."
            )
        if found.get("verbose"):
            raise InputError(
                "verbose is True, but solvers print nothing here: what goes wrong is raised; leave "
                "it out."
            )
        return cls(**found)

    def grid(self, grid: Grid, whole: Callable[[], Grid], t0: float, t1: float) -> Grid:
        """The times to save at: ``grid``, those of saveat, with and without the ends.

        ``whole`` makes the grid of both ends alone. Raises InputError.
        """
        if grid.values is None:
            if self.save_everystep is not False:
                return grid
            grid = whole()
        elif self.save_everystep:
            raise InputError(
                "save_everystep=True was given with saveat, but one solution holds either; leave "
                "one of them out, and read sol(t) at the times."
            )
        for name, end, first in (("save_start", t0, True), ("save_end", t1, False)):
            grid = _with_end(grid, whole, getattr(self, name), end, first)
        assert grid.values is not None
        if not len(grid.values):
            raise InputError(
                "save_start and save_end leave nothing to save; leave one of them out."
            )
        return grid

    def kept(self, flat: FlatSolution) -> torch.Tensor | None:
        """Which of the solver's own steps to give, as a mask; None for all of them."""
        if self.save_start is not False and self.save_end is not False:
            return None
        keep = np.ones(len(flat.t), bool)
        if self.save_start is False:
            keep &= flat.source != FROM_T0
        if self.save_end is False:
            keep &= flat.source != FROM_T1
        return None if keep.all() else torch.from_numpy(keep)

    def callbacks(self) -> tuple[Callback, ...]:
        return () if self.isoutofdomain is None else (_Domain(self.isoutofdomain),)

    def tuning(self, prob: Any, t0: float, t1: float) -> Tuning:
        """What the engine is told. Raises where the problem is not of a kind that takes it."""
        given = [
            k for k in _TUNING if getattr(self, k) is not None and getattr(self, k) is not False
        ]
        random = getattr(prob, "form", "") in ("sde", "dde", "rode") or hasattr(prob, "how_jumps")
        if given and random:
            raise EngineError(
                f"{given[0]} is for ODEs and DAEs, but this is a {type(prob).__name__}; "
                "leave it out."
            )
        times: tuple[float, ...] = ()
        if self.d_discontinuities is not None:
            asked = self.d_discontinuities
            times = tuple(times_within(asked, "d_discontinuities", t0, t1, any_order=True).tolist())
        return Tuning(
            force_dtmin=bool(self.force_dtmin),
            controller=self.controller,
            initializealg=self.initializealg,
            discontinuities=times,
        )


def _with_end(
    grid: Grid, whole: Callable[[], Grid], wanted: bool | None, end: float, first: bool
) -> Grid:
    """The grid with its first (or last) end, or without it; as it is where ``wanted`` is None."""
    values = grid.values
    assert values is not None
    there = len(values) > 0 and values[0 if first else -1] == end
    if wanted is None or wanted == there:
        return grid
    if not wanted:
        rest = slice(1, None) if first else slice(None, -1)
        return Grid(values[rest], None if grid.tensor is None else grid.tensor[rest])
    ends = whole()
    assert ends.values is not None
    mine = slice(None, 1) if first else slice(-1, None)
    parts = [(ends.values[mine], ends.tensor), (values, grid.tensor)]
    if ends.tensor is not None:
        parts[0] = (ends.values[mine], ends.tensor[mine])
    if not first:
        parts.reverse()
    together = np.concatenate([x for x, _ in parts])
    if all(tensor is None for _, tensor in parts):
        return Grid(together, None)
    made = [torch.as_tensor(x) if tensor is None else tensor for x, tensor in parts]
    return Grid(together, torch.cat([x.to("cpu", torch.float64) for x in made]))
