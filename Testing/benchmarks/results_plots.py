"""The plots of the results page: accuracy against seconds, and folded corners; small PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import results_lines
import results_page
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from results_rows import Row

ACCURACY = {"brain": "dice", "tumour": "dice", "lung": "tre_mm", "liver": "tre_mm", "abdomen": "tre_mm",
            "multimodal": "dice", "hippocampus": "dice"}  # fmt: skip
"""What is drawn of each set; of tumours and modalities the pairs that have it."""
WORDS = {"dice": "Dice", "tre_mm": "TRE, mm"}
COLOURS = {"optimisation": "#1b6ca8", "network": "#d1802b", "refined": "#3a8f4d", "peer": "#777777"}
DPI = 80
TICKS = [factor * 10**power for power in range(4) for factor in (1, 2, 5)]


def kind_of(row: Row) -> str:
    """What its colour says."""
    return "peer" if row["peer"] else row["setting"] if row["setting"] in COLOURS else "optimisation"


def accuracy(axis: Axes, lines: Sequence[results_lines.Line], where: str) -> None:
    """One set; a method is drawn where all pairs were run, the start as a dotted line."""
    key = ACCURACY[where]
    drawn: list[tuple[float, float, str]] = []
    for line in lines:
        having = [row for row in line.done if row.get(key) is not None]
        if not having or not line.complete:
            continue
        value = sum(row[key] for row in having) / len(having)
        if line.method == "start":
            axis.axhline(value, color="#bbbbbb", linestyle=":", linewidth=1)
            continue
        seconds = sum(row["cpu_seconds"] for row in having) / len(having)
        kind = kind_of(having[0])
        axis.plot(seconds, value, "s" if kind == "peer" else "o", color=COLOURS[kind], markersize=5)
        plain = line.setting in ("default", "balanced", "from the headers")
        named = line.method if plain else f"{line.method} {line.setting}"
        drawn.append((value, seconds, named))
    for number, (value, seconds, named) in enumerate(
        sorted(drawn)
    ):  # neighbours get their names on either side
        left = number % 2 == 1
        axis.annotate(named, (seconds, value), fontsize=6, xytext=(-4 if left else 4, 2),
                      ha="right" if left else "left", textcoords="offset points")  # fmt: skip
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("CPU s of the whole process", fontsize=7)
    axis.set_ylabel(WORDS[key], fontsize=7)
    axis.set_title(results_page.TITLES[where], fontsize=9)
    axis.tick_params(labelsize=6)
    axis.margins(x=0.45, y=0.1)
    if key == "tre_mm":
        axis.invert_yaxis()  # up is better in every panel


def draw_accuracy(rows: Sequence[Row], path: Path) -> None:
    """A panel per set that has rows."""
    sets = [where for where in ACCURACY if any(row["set"] == where for row in rows)]
    columns = min(3, max(1, len(sets)))
    lines = -(-max(1, len(sets)) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 3.2 * lines), squeeze=False)
    for axis in axes.flat[len(sets) :]:
        axis.axis("off")
    for axis, where in zip(axes.flat, sets, strict=False):
        accuracy(axis, results_lines.lines_of(rows, where), where)
    handles = [
        Line2D([], [], marker="s" if k == "peer" else "o", linestyle="", color=c, label=k)
        for k, c in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="lower center", fontsize=8, ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def draw_folds(rows: Sequence[Row], path: Path) -> None:
    """The worst row of every program: share of all voxels with a folded corner."""
    worst: dict[str, tuple[float, str]] = {}
    for row in rows:
        if row["status"] == "ok" and row["method"] != "start":
            name = row["method"] if row["peer"] else f"{row['method']} {row['setting']}"
            share = max(row["folded_whole_percent"], worst.get(name, (0.0, ""))[0])
            worst[name] = (share, kind_of(row))
    names = list(worst)
    figure, axis = plt.subplots(figsize=(7.5, 0.17 * max(4, len(names)) + 0.8))
    for at, name in enumerate(names):
        share, kind = worst[name]
        axis.barh(at, share, color=COLOURS[kind])
        axis.annotate("0" if share == 0 else f"{share:.2g} %", (share, at), fontsize=6, va="center",
                      xytext=(3, 0), textcoords="offset points")  # fmt: skip
    axis.set_yticks(range(len(names)), names, fontsize=6)
    axis.invert_yaxis()
    axis.set_xlabel("voxels with a folded corner, % of the whole grid, worst of all pairs", fontsize=7)
    axis.set_xscale("symlog", linthresh=1e-4)
    axis.tick_params(axis="x", labelsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def draw(rows: Sequence[Row], docs: Path) -> None:
    """Both, into the folder of the page."""
    draw_accuracy(rows, docs / "results-accuracy.png")
    draw_folds(rows, docs / "results-folds.png")
