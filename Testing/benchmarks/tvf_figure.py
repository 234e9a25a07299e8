"""The figure of the number of steps: accuracy, folds, error of the inverse and time, a line per network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

PANELS = (
    ("dice", "Dice"),
    ("folded_percent", "folded cells, %"),
    ("per_step_mean_mm", "mean error of the inverse, mm"),
    ("following_seconds", "following the velocities, s"),
)
LEAST_SPAN = 0.02
"""Of the axis for Dice: less would make much of nothing."""
NEXT_TO_NOTHING = 1e-4
"""Percent of folds up to which their axis is linear, so that 0 has a place."""
COLOURS = ("#0b6e99", "#c1440e", "#4a7c2c")
MARKS = ("o", "s", "^")
INVERSES = (("per_step_mean_mm", "-", "composed of steps"), ("inverse_mean_mm", ":", "pointwise"))


def draw(path: Path, means: Sequence[Mapping[str, Any]], dpi: int = 80) -> None:
    """Write the figure, a PNG: a panel per measure over the steps S, from the rows that state S."""
    mpl.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in means if row["steps"] is not None]
    names = list(dict.fromkeys(row["name"] for row in rows))
    canvas, axes = pyplot.subplots(1, len(PANELS), figsize=(3.0 * len(PANELS), 2.9), layout="constrained")
    for axis, (key, title) in zip(axes, PANELS, strict=True):
        for name, colour, mark in zip(names, COLOURS, MARKS, strict=False):
            some = [row for row in rows if row["name"] == name]
            lines = INVERSES if key == "per_step_mean_mm" else ((key, "-", ""),)
            for what, dashes, label in lines:
                axis.plot(
                    [row["steps"] for row in some], [row[what] for row in some], dashes, color=colour,
                    marker=mark, markersize=4, label=f"{name}, {label}" if label else name,
                )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({row["steps"] for row in rows}))
        axis.xaxis.set_major_formatter("{x:.0f}")
        if key == "dice":
            axis.set_ylim(*limits([row[key] for row in rows]))
        elif key == "folded_percent":
            axis.set_yscale("symlog", linthresh=NEXT_TO_NOTHING)
            most = max(row[key] for row in rows)
            axis.set_ylim(-NEXT_TO_NOTHING / 5, max(2 * most, 10 * NEXT_TO_NOTHING))
        else:
            axis.set_ylim(bottom=0)
        axis.set_xlabel("steps", fontsize=9)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    canvas.savefig(path, format="png", dpi=dpi)
    pyplot.close(canvas)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis for Dice: around the values."""
    low, high = min(values), max(values)
    margin = max(0.1 * (high - low), (LEAST_SPAN - (high - low)) / 2)
    return low - margin, high + margin
