"""Members of an ensemble as tasks of an executor, their gradients too."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pysciml.boundary import BVProblem
from pysciml.callbacks import as_callbacks
from pysciml.engines.choice import engine as choose_engine
from pysciml.errors import InputError, PyscimlError, SolveError
from pysciml.flattened import Flattened
from pysciml.jump_solve import as_problem
from pysciml.jumps import JumpProblem
from pysciml.kernels.walk import Walk
from pysciml.problems import remake
from pysciml.solve import once, solve
from pysciml.steady import SteadyStateProblem, SteadyStateSolution

__all__ = ["solve_by_executor"]


def solve_by_executor(
    executor: Any,
    problems: Sequence[Any],
    alg: Any,
    options: dict[str, Any],
    seeds: Sequence[int] | None = None,
) -> tuple[list[Any], BaseException | None]:
    """The members' solutions in order, and the error that ended the executor with work left.

    ``seeds``: of each member, where it draws noise; it goes with each of its tasks.

    Members that were not finished are None. What a member itself raises is raised here.
    """
    sent = [_sent(prob) for prob in problems]
    plain = _no_gradient_of_times(problems, options)
    own = [plain if seeds is None else {**plain, "seed": seeds[i]} for i in range(len(sent))]
    if isinstance(executor, ThreadPoolExecutor):
        choose_engine(plain.get("engine", "auto")).start()
    futures: list[Any] = []
    error: BaseException | None = None
    try:
        for prob, asked in zip(sent, own, strict=True):
            futures.append(executor.submit(_told, _forward, prob, alg, asked))
    except Exception as ended:
        error = ended
    found: list[Any] = []
    for future in futures:
        try:
            answer = future.result()
        except Exception as ended:  # not the task's own, which is an answer
            _refuse_unpicklable(ended)
            error = error or ended
            found.append(None)
        else:
            found.append(_value(answer))
    found += [None] * (len(problems) - len(found))
    if torch.is_grad_enabled():
        for i, sol in enumerate(found):
            if sol is not None:
                found[i] = _with_gradient(executor, problems[i], sent[i], alg, own[i], sol)
    return found, error


@dataclasses.dataclass
class _Raised:
    """In place of a task's value: what it raised."""

    error: Exception


def _told(task: Callable[..., Any], *arguments: Any) -> Any:
    """A task's value, or what it raised; so that all that a future raises is the executor's."""
    try:
        return task(*arguments)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it would end the executor on its way back
            return _Raised(PyscimlError(f"{type(error).__name__}: {error}"))
        return _Raised(error)


def _value(answer: Any) -> Any:
    if isinstance(answer, _Raised):
        raise answer.error
    return answer


def _refuse_unpicklable(error: Exception) -> None:
    if isinstance(error, pickle.PicklingError) or "pickle" in str(error):
        raise InputError(
            f"A member cannot be sent to another process ({type(error).__name__}: {error}); write "
            "its functions at the top of a module, or give an executor that pickles closures "
            "(loky, dask) or of threads."
        ) from error


def _sent(prob: Any) -> Any:
    """The problem with leaf tensors of its own, which can be pickled."""

    def own(x: Any) -> Any:
        return x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x

    if isinstance(prob, JumpProblem):
        names = ["u0", "p"]
    else:
        names = [f.name for f in dataclasses.fields(prob) if f.init]
    given = {name: getattr(prob, name) for name in names}
    held = {k: v for k, v in given.items() if any(map(_is_tensor, pytree.tree_leaves(v)))}
    return remake(prob, **{k: pytree.tree_map(own, v) for k, v in held.items()})


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def _no_gradient_of_times(problems: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    times = [*(x for prob in problems for x in prob.tspan), options.get("saveat")]
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in times):
        raise InputError(
            "tspan or saveat requires grad, but no gradient is taken for times through an "
            "executor; detach them, or use EnsembleThreads()."
        )
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in options.items()}


def _forward(prob: Any, alg: Any, options: dict[str, Any]) -> Any:
    with torch.no_grad():
        return solve(prob, alg, raise_on_failure=False, **options)


#: Methods that give a problem in the form that is flattened.
_FORMS = ("first_order", "sum", "as_pair", "as_flat", "as_whole")


def _flat_form(prob: Any) -> Any:
    if isinstance(prob, SteadyStateProblem):
        return prob.as_ode(1.0)
    if isinstance(prob, JumpProblem):
        return as_problem(prob)
    made = [getattr(prob, name) for name in _FORMS if hasattr(prob, name)]
    return made[0]() if made else prob


def _leaves(prob: Any, options: dict[str, Any]) -> list[Tensor]:
    """The tensors that gradients flow to, in an order that is the same in every process."""
    chosen = choose_engine(options.get("engine", "auto"))
    callbacks = as_callbacks(options.get("callback"))
    leaves = Flattened(_flat_form(prob), chosen, callbacks).leaves
    if isinstance(prob, BVProblem):  # what its conditions close over
        leaves = [*leaves, *(x for x in Walk(prob.bc).tensors if x.requires_grad)]
    return leaves


def _backward(
    prob: Any, alg: Any, options: dict[str, Any], cotangent: Tensor
) -> list[Tensor | None]:
    with torch.enable_grad():
        sol = solve(prob, alg, raise_on_failure=False, **options)
        leaves = _leaves(prob, options)
        wanted = [x for x in leaves if x.requires_grad]
        grads = torch.autograd.grad(_flat(sol), wanted, cotangent, allow_unused=True)
    found = iter(grads)
    return [next(found) if x.requires_grad else None for x in leaves]


def _flat(sol: Any) -> Tensor:
    if isinstance(sol, SteadyStateSolution):
        state: Tensor = sol.prob.state_spec.flatten(sol.u)
        return state
    out: Tensor = sol.u if sol.save_idxs is not None else sol.spec.flatten_series(sol.u)
    return out


def _with_gradient(
    executor: Any, prob: Any, sent: Any, alg: Any, options: dict[str, Any], sol: Any
) -> Any:
    leaves = _leaves(prob, options)
    flat = _flat(sol)
    if not flat.is_floating_point() or not any(x.requires_grad for x in leaves):
        return sol

    def pull(cotangent: Tensor) -> list[Tensor | None]:
        try:
            answer = executor.submit(_told, _backward, sent, alg, options, cotangent).result()
        except Exception as ended:
            raise SolveError(
                "The executor ended before the gradient of a member was there "
                f"({type(ended).__name__}: {ended}); call backward with an executor that is still "
                "running, or solve again. The member, without gradient, is in this error's "
                ".solution.",
                retcode="Failure", t=math.nan, solution=sol,
            ) from ended  # fmt: skip
        out: list[Tensor | None] = _value(answer)
        return out

    flat = _Remote.apply(pull, flat, *leaves)
    if isinstance(sol, SteadyStateSolution):
        return dataclasses.replace(sol, u=prob.state_spec.unflatten(flat), prob=prob)
    u = flat if sol.save_idxs is not None else sol.spec.unflatten(flat)
    # its interpolant would have no gradient
    return dataclasses.replace(sol, u=u, prob=prob, _interpolate=None)


class _Remote(torch.autograd.Function):
    """The states as they came back, with the gradient computed where they came from."""

    @staticmethod
    def forward(ctx: Any, pull: Any, u: Tensor, *leaves: Tensor) -> Tensor:
        ctx.pull, ctx.leaves = pull, leaves
        return u.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads = tuple(ctx.pull(grad.detach()))
        return (None, None, *once(grads, *ctx.leaves, grad))
