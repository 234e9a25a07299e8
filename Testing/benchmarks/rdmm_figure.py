"""The figure of the synthetic study: a row per method, as in figures 1 and 4 of the RDMM paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from torch import Tensor

from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor, warp
from Testing.planar_objects import Picture, covered

if TYPE_CHECKING:
    from Testing.benchmarks.rdmm_synthetic import Outcome

COLUMNS = ("map", "momentum at t = 0", "displacement", "sigma(x) at t = 0", "sigma(x) at t = 1")
COUNT = 2 + len(COLUMNS)
LEGEND = (
    "orange: objects of the\nfixed image\ncyan, white: foreground\nof the moving image\n"
    "displacement, sigma(x):\nvoxels"
)
NAMES = {
    "vsvf": "vSVF",
    "lddmm": "LDDMM",
    "lddmm-soft": "LDDMM, soft kernels",
    "lddmm-wide": "LDDMM, wide kernels",
    "rdmm-regions": "RDMM, regions given",
    "rdmm": "RDMM, optimised",
}
LINES = 10
"""Voxels between the lines of the grid."""
COLOURS = 160
"""Of the file: enough for the colour maps, and a third of the size."""


def draw(path: Path, case: Picture, outcomes: Mapping[str, Outcome], dpi: int = 75) -> None:
    """Write the figure, a PNG."""
    mpl.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    rows = max(len(outcomes), 4)
    canvas, axes = pyplot.subplots(
        rows, COUNT, figsize=(2.15 * COUNT, 2.1 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    pair = case.pair()
    given = ((pair.moving, "moving"), (pair.fixed, "fixed"), (pair.moving - pair.fixed, "moving - fixed"))
    for axis, (image, title) in zip(axes[:3, 0], given, strict=True):
        low = -1 if "-" in title else 0
        axis.imshow(array_from_tensor(image[0, 0]), cmap="gray", vmin=low, vmax=1)
        axis.set_title(title, fontsize=9)
    _outline(axes[0, 0], covered(case.moving[0], case.shape), "tab:cyan")
    for row, (name, outcome) in zip(axes, outcomes.items(), strict=False):
        _method(row[1:], case, outcome, canvas)
        for axis, title in zip(row[1:], (NAMES[name], *COLUMNS), strict=True):
            axis.set_title(
                "" if title.startswith("sigma") and outcome.geodesic is None else title, fontsize=9
            )
    _said(axes[3, 0], LEGEND, fontsize=8)
    canvas.savefig(path, format="png", dpi=dpi)
    pyplot.close(canvas)
    with Image.open(path) as drawn:
        small = drawn.convert("RGB").quantize(COLOURS)
    small.save(path, format="png", optimize=True)


def _method(axes: Any, case: Picture, outcome: Outcome, canvas: Any) -> None:
    """Warped image with the outlines of the fixed objects, map, momentum, displacement, both widths."""
    pair, grid = case.pair(), case.pair().grid
    moved = array_from_tensor(warp(pair.moving, outcome.inverse_vox)[0, 0])
    axes[0].imshow(moved, cmap="gray", vmin=0, vmax=1)
    for thing in case.fixed:
        _outline(axes[0], covered(thing, case.shape), "tab:orange")
    for part, count in enumerate(case.shape):
        steps = torch.arange(count, dtype=outcome.inverse_vox.dtype)
        places = outcome.inverse_vox[0, part] + (steps.view(-1, 1) if part == 0 else steps)
        levels = list(range(0, count, LINES))
        axes[1].contour(array_from_tensor(places), levels=levels, colors="black", linewidths=0.6)
    axes[1].set_aspect("equal")
    axes[1].invert_yaxis()
    _outline(axes[1], covered(case.fixed[0], case.shape), "tab:orange")
    _shown(axes[3], outcome.forward_vox.square().sum(1)[0].sqrt(), canvas, low=0.0)
    _outline(axes[3], case.soft().float(), "white")
    geodesic = outcome.geodesic
    if geodesic is None:
        _said(axes[2], "stationary:\nno geodesic")
        return
    _shown(axes[2], geodesic.tensors[0].square().sum(1)[0].sqrt(), canvas, low=0.0)
    both = [_finer(geodesic.sigma_mm(time), geodesic.place.grid, grid) for time in (0.0, 1.0)]
    low, high = (float(f(torch.stack(both))) for f in (torch.min, torch.max))
    for axis, width in zip(axes[4:], both, strict=True):
        if high - low < 0.01:
            _said(axis, f"{low:.1f} everywhere")
        else:
            _shown(axis, width, canvas, low=low, high=high)


def _finer(values: Tensor, place: Grid, grid: Grid) -> Tensor:
    """Values (1, 1, *place.shape) at the voxels of another grid, (*grid.shape)."""
    step = grid.spacing[0] / place.spacing[0]
    return step * change_grid(values.expand(-1, 2, -1, -1), place, grid)[0, 0]


def _shown(axis: Any, values: Tensor, canvas: Any, low: float, high: float | None = None) -> None:
    shown = axis.imshow(array_from_tensor(values), vmin=low, vmax=high)
    canvas.colorbar(shown, ax=axis, fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)


def _said(axis: Any, text: str, fontsize: int = 9) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=fontsize, transform=axis.transAxes)


def _outline(axis: Any, mask: Tensor, colour: str) -> None:
    axis.contour(array_from_tensor(mask[0, 0]), levels=[0.5], colors=colour, linewidths=0.8)
