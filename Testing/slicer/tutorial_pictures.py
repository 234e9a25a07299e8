"""Pictures of the tutorial's steps: the part of the panel that each step is about, and the slice views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from PIL import Image

from DiffeoRegPanel.display import checkerboard, match_window
from Testing.slicer.bench.slicerbench import Bench
from Testing.slicer.bench.views import ORIENTATIONS, Picture, SliceView
from Testing.slicer.pictures import SIDE, SOURCE, WIDTH_MM, Pair, Result, centre_of, saved, sheet

STEPS = {
    "setup": ("setupSection",),
    "inputs": ("inputsSection", "modelSection"),
    "masks": ("masksSection",),
    "running": ("applyButton", "statusLabel"),
    "result": ("resultSection",),
}
"""What of the panel a step shows, from the first of these widgets to the last."""
EDGE = 4
WIDTH, HEIGHT = 430, 2200


def step(bench: Bench, widget: Any, panel: Any, name: str, folder: Path) -> None:
    """tutorial-NAME.png: the rows of the panel that the step is about."""
    file = folder / f"tutorial-{name}.png"
    bench.grab(widget, file, WIDTH, HEIGHT)
    first, last = (getattr(panel.ui, part) for part in (STEPS[name][0], STEPS[name][-1]))
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    top, bottom = (int(part.mapTo(widget, part.rect.topLeft()).y()) for part in (first, last))
    rows = pixels[max(0, top - EDGE) : bottom + int(last.height) + EDGE]
    saved(Image.fromarray(np.ascontiguousarray(rows)), file, few_colours=True)


def view_pictures(application: Any, pair: Pair, result: Result, folder: Path) -> None:
    """tutorial-views.png: the volumes as loaded, the moved one, and fixed and moved in alternating fields."""
    segmentations = (pair.fixed_labels, pair.moving_labels, result.moved_labels)
    for node in segmentations:
        node.SetDisplayVisibility(False)
    shown = {"fixed": pair.fixed, "moving": pair.moving, "moved": result.moved}
    rows = [(name, slices(application, pair, node)) for name, node in shown.items()]
    board = alternating(pair.fixed, result.moved)
    rows.append(("checkerboard", slices(application, pair, board)))
    slicer.mrmlScene.RemoveNode(board)
    sheet(rows, folder / "tutorial-views.png", scale=0.6, source=SOURCE.partition("  ")[2])
    for node in segmentations:
        node.SetDisplayVisibility(True)


def alternating(fixed: Any, moved: Any) -> Any:
    """A volume on the voxels of the fixed one, as the button Checkerboard shows it."""
    windows = []
    for node in (fixed, moved):
        display = node.GetDisplayNode()
        windows.append((display.GetWindowLevelMin(), display.GetWindowLevelMax()))
    arrays = [slicer.util.arrayFromVolume(node) for node in (fixed, moved)]
    matched = match_window(arrays[1], windows[1], windows[0])
    board = checkerboard(arrays[0], matched, fixed.GetSpacing()[::-1])
    node = slicer.util.addVolumeFromArray(board, name="checkerboard")
    matrix = vtk.vtkMatrix4x4()
    fixed.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevelMinMax(*windows[0])
    return node


def slices(application: Any, pair: Pair, volume: Any) -> list[Picture]:
    """The three standard slices of one volume, through the middle of the fixed segmentation."""
    pictures = []
    for orientation in ORIENTATIONS:
        with SliceView(application, orientation, (SIDE, SIDE)) as view:
            view.show(volume)
            view.look_at(centre_of(pair.fixed_labels), WIDTH_MM)
            pictures.append(view.picture())
    return pictures
