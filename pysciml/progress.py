"""A progress bar of the time reached."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

with warnings.catch_warnings():
    # Without ipywidgets tqdm warns on import, and draws a text bar: which will do.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(show: bool, t0: float, t1: float) -> Iterator[Callable[[float], None] | None]:
    """A function to report the time reached to, or None where nothing is to be shown."""
    if not show:
        yield None
        return
    with tqdm(total=100.0, bar_format="{percentage:3.0f}%|{bar}| {desc} [{elapsed}]") as bar:
        bar.set_description_str(f"t = {t0:.6g}")
        done = 0.0

        def report(t: float) -> None:
            nonlocal done
            percent = 100.0 * (t - t0) / (t1 - t0)
            if percent - done >= 0.5 or percent >= 100.0:
                bar.set_description_str(f"t = {t:.6g}", refresh=False)
                bar.update(percent - done)
                done = percent

        yield report
