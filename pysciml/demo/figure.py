"""The demo's figure: record, fits and forecasts, and the learned interaction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pysciml.demo.hare_lynx import Demo
from pysciml.demo.interaction import near_data, orbit
from pysciml.errors import PyscimlError

__all__ = ["draw", "save"]

_UDE, _LV, _DATA = "#0b5fa5", "#c8641e", "#222222"
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "mathtext.default": "it",
}


def save(demo: Demo, folder: Path) -> Path:
    """Write ``hare_lynx.png`` into ``folder``, made where missing, and return its path.

    Raises PyscimlError where matplotlib is missing.
    """
    figure = draw(demo)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hare_lynx.png"
    figure.savefig(path, dpi=200)
    return path


def draw(demo: Demo) -> Any:
    """The figure (a matplotlib Figure that no window shows).

    Raises PyscimlError where matplotlib is missing.
    """
    try:
        import matplotlib  # drawing is optional: extra "plot"
        from matplotlib.figure import Figure
    except ImportError:
        raise PyscimlError(
            "The figure needs matplotlib; install it with: pip install 'pysciml[plot]'."
        ) from None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.0, 5.8), layout="constrained")
        sides: Any = figure.subfigures(1, 2, width_ratios=(1.4, 1.0), wspace=0.02)
        hare, lynx = sides[0].subplots(2, 1, sharex=True)
        _series(hare, demo, 0, "a  Hare")
        _series(lynx, demo, 1, "b  Lynx")
        lynx.set_xlabel("Year")
        handles, labels = hare.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper left", ncols=len(labels), columnspacing=1.4
        )
        contours, response = sides[1].subplots(2, 1)
        _contours(contours, demo)
        _response(response, demo)
    return figure


def _series(ax: Any, demo: Demo, species: int, title: str) -> None:
    record = demo.record
    n, first = record.training, int(record.year[0])
    years, pelts = record.year.numpy(), record.pelts[:, species].numpy()
    t = torch.linspace(0.0, float(record.t[-1]), 800, dtype=torch.float64)

    def curve(fitted: Any) -> Any:
        with torch.no_grad():
            return fitted.solution(t)[:, species].exp().numpy()

    x = t.numpy() + first
    ax.axvspan(years[n - 1], years[-1], color="0.93", lw=0, zorder=0)
    ax.plot(x, curve(demo.baseline), color=_LV, lw=1.5, ls=(0, (4, 2)), zorder=3,
            label="Lotka-Volterra")  # fmt: skip
    ax.plot(x, curve(demo.ude), color=_UDE, lw=1.8, zorder=4,
            label="Universal differential equation")  # fmt: skip
    for i, other in enumerate(demo.starts[1:]):
        ax.plot(x, curve(other), color=_UDE, lw=0.7, alpha=0.45, zorder=2,
                label=None if i else "its other starts")  # fmt: skip
    ax.plot(years[:n], pelts[:n], "o", color=_DATA, ms=4.5, zorder=5, label="Record, fitted")
    ax.plot(years[n:], pelts[n:], "o", color=_DATA, mfc="white", mew=1.1, ms=4.8, zorder=5,
            label="Record, held out")  # fmt: skip
    ax.set_title(title, fontweight="bold")
    ax.set_ylabel("Pelts (thousands)")
    ax.set_xlim(years[0] - 0.4, years[-1] + 0.4)
    ax.set_ylim(0, 1.15 * pelts.max())
    ax.set_xticks(range(first, int(years[-1]) + 1, 5))
    ax.text(0.5 * (years[n - 1] + years[-1]), 1.13 * pelts.max(), "forecast", ha="center", va="top",
            color="0.35", fontsize=8.5)  # fmt: skip


def _plane(demo: Demo, points: int = 160) -> tuple[Any, Any, torch.Tensor]:
    known = demo.record.log[: demo.record.training]
    low, high = known.amin(0) - 0.12, known.amax(0) + 0.12
    x = torch.linspace(float(low[0]), float(high[0]), points, dtype=known.dtype)
    y = torch.linspace(float(low[1]), float(high[1]), points, dtype=known.dtype)
    vy, vx = torch.meshgrid(y, x, indexing="ij")
    return x.exp().numpy(), y.exp().numpy(), torch.stack([vx, vy], -1)


def _contours(ax: Any, demo: Demo) -> None:
    from matplotlib.lines import Line2D  # drawing is optional: extra "plot"
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FixedLocator, NullFormatter

    x, y, v = _plane(demo)
    with torch.no_grad():
        learned = demo.ude.model.interaction(v).numpy()
        product = demo.baseline.model.interaction(v).numpy()
    inside = np.where(near_data(demo, v).numpy(), learned, np.nan)
    levels = [2.5, 5.0, 10.0, 20.0, 40.0, 80.0]
    product_lines = ax.contour(
        x, y, product, levels, colors=_LV, linewidths=1.0, linestyles=[(0, (4, 2))]
    )
    ax.contour(x, y, learned, levels, colors=_UDE, linewidths=0.7, alpha=0.35)
    drawn = ax.contour(x, y, inside, levels, colors=_UDE, linewidths=1.7)
    path = orbit(demo).exp().numpy()
    ax.plot(path[:, 0], path[:, 1], color="0.6", lw=0.9, zorder=1.5)
    pelts = demo.record.pelts[: demo.record.training].numpy()
    ax.plot(pelts[:, 0], pelts[:, 1], "o", color=_DATA, ms=3.0, zorder=5)
    for lines, color in ((drawn, _UDE), (product_lines, _LV)):
        for label in ax.clabel(lines, fmt="%g", fontsize=7.5, inline=False, colors=color):
            label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
            label.set_zorder(6)
    ax.set(xscale="log", yscale="log", xlabel="Hare (thousands)", ylabel="Lynx (thousands)")
    for axis, ticks in ((ax.xaxis, (20, 40, 80)), (ax.yaxis, (4, 10, 20, 50))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    ax.tick_params(which="minor", length=0)
    ax.set_title("c  Hares lost to lynx, thousands a year", fontweight="bold")
    styles = [
        Line2D([], [], color=_UDE, lw=1.7, label="learned $N(x, y)$; faint: no data near"),
        Line2D([], [], color=_LV, lw=1.0, ls=(0, (4, 2)), label="product $b\\,x\\,y$"),
    ]
    ax.legend(
        handles=styles,
        loc="upper left",
        bbox_to_anchor=(0.0, 1.02),
        fontsize=8,
        handlelength=1.8,
        labelspacing=0.3,
        borderaxespad=0.0,
    )
    ax.set_ylim(y[0], y[-1] * 2.1)


def _response(ax: Any, demo: Demo) -> None:
    """Loss for each lynx against hares, the ecologist's functional response."""
    x, _, v = _plane(demo)
    row = v[0].clone()
    for lynx, color in zip((8.0, 20.0, 50.0), ("#7db8e8", "#2f86c9", "#08406f"), strict=True):
        row[:, 1] = math.log(lynx)
        with torch.no_grad():
            rate = (demo.ude.model.interaction(row) / lynx).numpy()
        inside = np.where(near_data(demo, row).numpy(), rate, np.nan)
        ax.plot(x, rate, color=color, lw=0.8, alpha=0.45)
        ax.plot(x, inside, color=color, lw=1.8, label=f"$N/y$ at {lynx:g} thousand lynx")
    ax.plot(x, demo.baseline.model.rates()["b"] * x, color=_LV, lw=1.3, ls=(0, (4, 2)),
            label="$b\\,x$, product term")  # fmt: skip
    ax.set(xlabel="Hare (thousands)", ylabel="Hares a lynx, a year", xlim=(0, x[-1]))
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper left", handlelength=1.8, labelspacing=0.3, fontsize=8)
    ax.set_title("d  Loss for each lynx", fontweight="bold")
