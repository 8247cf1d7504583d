"""Two-stage optimisation: Adam to get near, L-BFGS to get there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pysciml.errors import InputError, SolveError

__all__ = ["FitResult", "two_stage"]


@dataclass(frozen=True)
class FitResult:
    """How an optimisation went; the parameters themselves hold its best point.

    Attributes
    ----------
    loss : float
        The smallest loss met, which is the loss at the parameters as they are now.
    history : list of float
        The loss after each step of Adam, then after each iteration of L-BFGS.
    adam_steps : int
        How many entries of ``history`` are Adam's.
    failed_solves : int
        How many times the loss could not be computed because a solve failed.
    """

    loss: float
    history: list[float] = field(repr=False)
    adam_steps: int
    failed_solves: int


class _Tracker:
    """The loss with its gradient and its best point; a solve that fails is a high wall."""

    def __init__(self, loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
        self.loss, self.parameters = loss, parameters
        self.best, self.best_point = math.inf, [p.detach().clone() for p in parameters]
        self.failed = 0
        self.last_error: SolveError | None = None

    def __call__(self) -> Tensor:
        for p in self.parameters:
            p.grad = None
        try:
            value = self.loss()
            if not value.requires_grad:
                raise InputError(
                    "The loss does not require grad, so it does not depend on the parameters that "
                    "were given; compute it from them with torch operations, outside no_grad."
                )
            if bool(torch.isfinite(value)):
                value.backward()
        except SolveError as error:
            self.last_error = error
            return self._wall()
        if not bool(torch.isfinite(value)) or not all(
            p.grad is None or bool(torch.isfinite(p.grad).all()) for p in self.parameters
        ):
            return self._wall()
        if float(value.detach()) < self.best:
            self.best = float(value.detach())
            self.best_point = [p.detach().clone() for p in self.parameters]
        return value.detach()

    def _wall(self) -> Tensor:
        # Finite, so that L-BFGS's line search interpolates its way back from it.
        self.failed += 1
        for p in self.parameters:
            p.grad = torch.zeros_like(p)
        if not math.isfinite(self.best):
            message = "The loss cannot be computed at the parameters that the fit starts from"
            advice = "Start from other parameters, or mend the model there."
            if self.last_error is not None:
                raise InputError(f"{message}: {self.last_error} {advice}") from self.last_error
            raise InputError(f"{message}: it, or its gradient, is not finite. {advice}")
        return torch.tensor(100.0 * (1.0 + abs(self.best)), dtype=torch.float64)

    def restore(self) -> None:
        with torch.no_grad():
            for p, best in zip(self.parameters, self.best_point, strict=True):
                p.copy_(best)


def two_stage(
    loss: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    *,
    adam_steps: int = 500,
    lr: float = 1e-2,
    lbfgs_steps: int = 100,
    tolerance: float = 1e-9,
    progress: bool | tqdm = True,
    description: str = "fit",
) -> FitResult:
    """Minimise a loss by Adam, then by L-BFGS, and leave the parameters at the best point met.

    Adam takes large, noisy steps out of poor starts; its rate falls along a half cosine to a
    hundredth of ``lr``. L-BFGS (Liu and Nocedal 1989, with a strong Wolfe line search) then
    converges fast where Adam would crawl. A solve that fails on the way counts as a very high
    loss: Adam goes back to the best point with half the rate, L-BFGS shortens its step.

    Parameters
    ----------
    loss : callable
        ``loss()`` -> 0-d tensor, computed from ``parameters``, deterministic.
    parameters : tensors that require grad, e.g. ``model.parameters()``
    adam_steps, lbfgs_steps : int
        Steps of each stage; 0 leaves the stage out.
    lr : float
        Adam's rate at its start.
    tolerance : float
        L-BFGS ends when 10 iterations together lower the loss by less than this fraction of it.
    progress : bool or tqdm bar
        Whether to show a bar over the steps, or a bar of one's own to advance.
    description : str
        Text in front of the bar.

    Returns
    -------
    FitResult

    Raises
    ------
    InputError
        Where there is nothing to optimise, or the loss cannot be computed at the start.
    """
    wanted = [p for p in parameters if p.requires_grad]
    if not wanted:
        raise InputError(
            "two_stage was given no parameter that requires grad; give the tensors to optimise, "
            "e.g. model.parameters(), or call requires_grad_() on them."
        )
    track = _Tracker(loss, wanted)
    history: list[float] = []
    with _bar(progress, adam_steps + lbfgs_steps, description) as advance:
        _adam(track, history, adam_steps, lr, advance)
        track.restore()
        done = len(history)
        _lbfgs(track, history, lbfgs_steps, tolerance, advance)
        track.restore()
    for p in wanted:
        p.grad = None
    return FitResult(track.best, history, done, track.failed)


def _adam(
    track: _Tracker, history: list[float], steps: int, lr: float, advance: Callable[[float], Any]
) -> None:
    scale = 1.0
    optimiser = torch.optim.Adam(track.parameters, lr=lr)
    for step in range(steps):
        before = track.failed
        value = track()
        if track.failed > before:
            scale *= 0.5
            track.restore()
            optimiser = torch.optim.Adam(track.parameters, lr=lr)
        else:
            fall = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            optimiser.param_groups[0]["lr"] = lr * scale * fall
            optimiser.step()
        history.append(float(value))
        advance(track.best)


def _lbfgs(
    track: _Tracker,
    history: list[float],
    steps: int,
    tolerance: float,
    advance: Callable[[float], Any],
) -> None:
    def fresh() -> torch.optim.LBFGS:
        return torch.optim.LBFGS(
            track.parameters, lr=1.0, max_iter=1, max_eval=25, history_size=20,
            tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe",
        )  # fmt: skip

    optimiser, restarted = fresh(), True
    bests = [track.best]
    for _ in range(steps):
        optimiser.step(track)
        bests.append(track.best)
        history.append(track.best)
        advance(track.best)
        if bests[-1] >= bests[-2]:
            # torch's line search gave up, and would again along the same direction: once more
            # from the gradient alone, then it is over.
            if restarted:
                break
            track.restore()
            optimiser, restarted = fresh(), True
            continue
        restarted = False
        if len(bests) > 10 and bests[-11] - bests[-1] <= tolerance * abs(bests[-1]):
            break


@contextmanager
def _bar(progress: bool | tqdm, total: int, description: str) -> Iterator[Callable[[float], Any]]:
    if progress is False:
        yield lambda best: None
        return
    own = progress is True
    bar: Any = tqdm(total=total, unit="step") if own else progress
    bar.set_description(description)
    start = bar.n

    def advance(best: float) -> None:
        bar.set_postfix_str(f"loss {best:.4g}", refresh=False)
        bar.update(1)

    try:
        yield advance
        bar.update(start + total - bar.n)  # a stage that ended early fills its share
    finally:
        if own:
            bar.close()
