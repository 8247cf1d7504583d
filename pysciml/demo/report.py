"""The demo's findings as text."""

from __future__ import annotations

import textwrap

from pysciml.demo.hare_lynx import Demo, Errors
from pysciml.demo.interaction import compare, power_law

__all__ = ["report"]


def report(demo: Demo) -> str:
    """Errors, and the learned interaction beside the product, as lines of at most 100 columns."""
    return "\n\n".join([_errors(demo), _rates(demo), _interaction(demo), _verdict(demo)])


def _errors(demo: Demo) -> str:
    record = demo.record
    year = [int(y) for y in record.year]
    n = record.training
    lines = [
        f"Hudson Bay hare and lynx: fitted to {year[0]}-{year[n - 1]}, "
        f"held out {year[n]}-{year[-1]}.",
        "Root mean square errors over both species, in thousands of pelts and of their logarithms:",
        "",
        f"{'':<34}{'training years':>20}{'held-out years':>22}",
        f"{'':<34}{'thousands':>12}{'log':>8}{'thousands':>14}{'log':>8}",
    ]
    rows: list[tuple[str, Errors]] = [
        ("mean of the training years", demo.mean),
        ("Lotka-Volterra", demo.baseline.errors),
        ("universal differential equation", demo.ude.errors),
    ]
    rows += [
        (f"  its start {i + 2}, by training loss", f.errors) for i, f in enumerate(demo.starts[1:])
    ]
    lines += [
        f"{name:<34}{e.training:>12.2f}{e.training_log:>8.3f}{e.held_out:>14.2f}{e.held_out_log:>8.3f}"
        for name, e in rows
    ]
    return "\n".join(lines)


def _rates(demo: Demo) -> str:
    lv, ude = demo.baseline.model.rates(), demo.ude.model.rates()
    return "\n".join(
        [
            f"Lotka-Volterra   x' = {lv['a']:.3f} x - {lv['b']:.4f} x y,     "
            f"y' = {lv['d']:.4f} x y - {lv['c']:.3f} y",
            f"universal        x' = {ude['a']:.3f} x - N(x, y),       "
            f"y' = {ude['e']:.3f} N(x, y) - {ude['c']:.3f} y",
        ]
    )


def _interaction(demo: Demo) -> str:
    grid = compare(demo)
    law = power_law(demo)
    lines = [
        "Hares lost to lynx, thousands a year: learned N(x, y) | product b x y of Lotka-Volterra",
        "(in brackets: away from the training years, where the network extrapolates)",
        "",
        f"{'':>11}" + "".join(f"{f'hare {x:.1f}':>16}" for x in grid.hare.tolist()),
    ]
    for i, y in reversed(list(enumerate(grid.lynx.tolist()))):
        cells = []
        for j in range(len(grid.hare)):
            text = f"{grid.learned[i, j]:.2f} | {grid.product[i, j]:.2f}"
            cells.append(text if grid.near[i, j] else f"({text})")
        lines.append(f"{f'lynx {y:.1f}':>11}" + "".join(f"{c:>16}" for c in cells))
    lines += [
        "",
        f"Along the fitted orbit N is nearest to x^{law.hare:.2f} y^{law.lynx:.2f} "
        "(the product has exponents 1 and 1);",
        f"of the variance of log N that power law explains {1 - law.unexplained:.0%}, "
        f"the product {1 - law.by_product:.0%}.",
    ]
    return "\n".join(lines)


def _verdict(demo: Demo) -> str:
    ude, base = demo.ude.errors, demo.baseline.errors
    fit = base.training_log / ude.training_log
    forecast = ude.held_out_log / base.held_out_log - 1.0
    how = (
        "about as well as" if abs(forecast) < 0.05 else f"{abs(forecast):.0%} "
        f"{'better' if forecast < 0 else 'worse'} than"
    )  # fmt: skip
    spread = [f.errors.held_out_log for f in demo.starts]
    among = f" (over its starts: {min(spread):.2f} to {max(spread):.2f})" if len(spread) > 1 else ""
    text = (
        f"The universal equation's training error is {fit:.1f} times smaller than "
        f"Lotka-Volterra's; it forecasts the held-out years {how} Lotka-Volterra, by the error "
        f"of the logarithms{among}."
    )
    return textwrap.fill(text, 96)
