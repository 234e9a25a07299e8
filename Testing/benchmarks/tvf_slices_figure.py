"""The figure of the 2D study: registration forward and backward, a row per method, as in the TVF paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from torch import Tensor

from DiffeoRegLib.space.jacobian import folded_cells
from DiffeoRegLib.space.sample import array_from_tensor

if TYPE_CHECKING:
    from Testing.benchmarks.tvf_slices import Outcome, Pair

COLUMNS = 6
LINES = 4
"""Voxels between the lines of a grid."""
COLOURS = 96
"""Of the file."""
CONTRAST = 0.7
"""Of the differences: white and black."""


def draw(path: Path, shown: Mapping[str, tuple[Pair, Outcome]], dpi: int = 80) -> None:
    """Write the figure, a PNG; cells that fold are marked in red."""
    mpl.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    rows = 1 + len(shown)
    canvas, axes = pyplot.subplots(
        rows, COLUMNS, figsize=(2.0 * COLUMNS, 2.15 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    pair = next(iter(shown.values()))[0]
    _image(axes[0, 0], pair.moving, "moving")
    _difference(axes[0, 1], pair.moving - pair.fixed, "moving - fixed")
    _image(axes[0, 3], pair.fixed, "fixed")
    for row, (name, (_, outcome)) in zip(axes[1:], shown.items(), strict=True):
        if outcome.backward is None or outcome.u_vox is None or outcome.inverse_vox is None:
            raise ValueError(f"'{name}' makes no map to draw.")
        _image(row[0], outcome.moved, name)
        _difference(row[1], outcome.moved - pair.fixed, "moved - fixed")
        _grid(row[2], outcome.u_vox, "map")
        _image(row[3], outcome.backward, "fixed, moved back")
        _difference(row[4], outcome.backward - pair.moving, "moved back - moving")
        _grid(row[5], outcome.inverse_vox, "inverse map")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, format="png", dpi=dpi)
    pyplot.close(canvas)
    with Image.open(path) as drawn:
        small = drawn.convert("RGB").quantize(COLOURS)
    small.save(path, format="png", optimize=True)


def _image(axis: Any, image: Tensor, title: str) -> None:
    axis.imshow(array_from_tensor(image[0, 0]), cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=8)


def _difference(axis: Any, image: Tensor, title: str) -> None:
    axis.imshow(array_from_tensor(image[0, 0]), cmap="gray", vmin=-CONTRAST, vmax=CONTRAST)
    axis.set_title(title, fontsize=8)


def _grid(axis: Any, u_vox: Tensor, title: str) -> None:
    """Where every LINES-th line of voxels goes, and the cells that fold."""
    rows, columns = u_vox.shape[2:]
    index = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    place = array_from_tensor(u_vox[0] + index)
    for line in range(0, rows, LINES):
        axis.plot(place[1, line], place[0, line], color="black", linewidth=0.4)
    for line in range(0, columns, LINES):
        axis.plot(place[1, :, line], place[0, :, line], color="black", linewidth=0.4)
    folds = folded_cells(u_vox)[0, 0].nonzero().tolist()
    if folds:
        centers = [place[:, i : i + 2, j : j + 2].mean(axis=(1, 2)) for i, j in folds]
        axis.plot([c[1] for c in centers], [c[0] for c in centers], ".", color="tab:red", markersize=1.5)
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.set_aspect("equal")
    share = f", {len(folds)} cells fold" if folds else ""
    axis.set_title(title + share, fontsize=8)
