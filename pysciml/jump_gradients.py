"""Which derivatives of a path with jumps are none: see :class:`pysciml.JumpProblem`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysciml.engines.base import FlatCallback
from pysciml.errors import InputError
from pysciml.kernels.reach import entries_read

__all__ = ["refuse_constants", "refuse_undefined"]

_INSTEAD = (
    "use what is smooth in it: the mean by the rate equation (an ODEProblem), the score function "
    "(the gradient of the log-likelihood of sol.jump_times and sol.jump_indices), or differences "
    "of many paths"
)


def refuse_undefined(setup: Any) -> None:
    """Raise InputError where a derivative at fixed jumps is asked for that is none, or zero.

    ``setup`` is a :class:`pysciml.flattened.Flattened` of a problem with jumps.
    """
    jumps = [c for c in setup.flat_callbacks if c.kind in ("reaction", "constant", "variable")]
    wanted = _leaves(setup)
    if setup.prob.how_jumps.kind == "pure":
        _refuse_counts(setup, jumps, wanted)
    else:
        _refuse_rates_alone(setup, jumps, wanted)


def refuse_constants(constants: Tensor) -> None:
    """Raise InputError for rate constants of reactions that a gradient is asked for."""
    if constants.requires_grad and torch.is_grad_enabled():
        raise InputError(
            "rates of a MassActionJump require grad, but they move the times of the jumps "
            f"alone, by which a path has no derivative; detach them, or {_INSTEAD}."
        )


def _leaves(setup: Any) -> list[tuple[str, Tensor, range]]:
    """Name, tensor and place in the flat p of each of the parameters that require grad."""
    first = setup.counts[0]
    out, position = [], 0
    for i, leaf in enumerate(setup.leaves[first : first + setup.counts[1]]):
        if leaf.requires_grad:
            out.append((f"p (leaf {i})", leaf, range(position, position + leaf.numel())))
        position += leaf.numel()
    return out


def _reads(functions: Any, leaf: Tensor, where: range | None) -> bool:
    """Whether a function reads any entry of a parameter, as its p or by closing over it."""
    if functions is None:
        return False
    if any(x is leaf for x in functions.closures_p):
        return True
    return where is not None and not entries_read(functions, "p").isdisjoint(where)


def _refuse_counts(setup: Any, jumps: list[FlatCallback], wanted: Any) -> None:
    u0 = any(x.requires_grad for x in setup.leaves[: setup.counts[0]])
    affects: list[Any] = [c.affect for c in setup.flat_callbacks if c.affect is not None]
    moved = u0 or any(
        f.closures_p or any(_reads(f, leaf, where) for _, leaf, where in wanted) for f in affects
    )
    for c in jumps:
        for name, leaf, where in wanted:
            if _reads(c.condition, leaf, where):
                raise InputError(
                    f"rate of jump {c.direction} depends on {name}, which requires grad: it moves "
                    "the times of the jumps alone, by which counts have no derivative (a path's is "
                    f"zero or undefined); detach it, or {_INSTEAD}."
                )
        if c.condition is not None and c.condition.closures_p:  # type: ignore[attr-defined]
            raise InputError(
                f"rate of jump {c.direction} closes over a tensor that requires grad: it moves the "
                "times of the jumps alone, by which counts have no derivative; detach it, or "
                f"{_INSTEAD}."
            )
        depends = c.condition is None or entries_read(c.condition, "u")
        if c.condition is None and c.times is not None:
            depends = c.times[1] > 0
        if moved and depends:
            raise InputError(
                f"the rate of jump {c.direction} depends on the state, and so on what requires "
                "grad: the path's jumps would change with it, by which counts have no derivative; "
                f"detach it, or {_INSTEAD}."
            )


def _refuse_rates_alone(setup: Any, jumps: list[FlatCallback], wanted: Any) -> None:
    others = [setup.functions, *(c.affect for c in setup.flat_callbacks)]
    others += [c.condition for c in setup.flat_callbacks if c not in jumps and c.kind != "bound"]
    rates = [(c.direction, c.condition) for c in jumps if c.condition is not None]
    closed = [
        ("a tensor that it closes over", x, None)
        for _, f in rates
        for x in f.closures_p  # type: ignore[attr-defined]
    ]
    for name, leaf, where in (*wanted, *closed):
        number = next((k for k, f in rates if _reads(f, leaf, where)), None)
        if number is None or any(_reads(f, leaf, where) for f in others):
            continue
        raise InputError(
            f"rate of jump {number} depends on {name}, which requires grad, and nothing else does: "
            "it moves the times of the jumps alone, and these are held; the derivative would be "
            f"zero without meaning. Detach it, or {_INSTEAD}."
        )
