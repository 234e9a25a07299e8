"""Draw the pictures of the pages: `make pictures`, or `python -m Testing.slicer.pictures FOLDER`.

The shipped hippocampus pair is registered by pressing the buttons of the panel on the Qt bench, and what the
module leaves in the scene is drawn with slicer-core: by Slicer's own classes, but these are no screenshots of
3D Slicer.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from PIL import Image, ImageDraw, ImageFont

from Testing.slicer.bench import core, views
from Testing.slicer.bench.views import ORIENTATIONS, Picture, SliceView

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "Resources" / "SampleData" / "hippocampus"
FIXED, MOVING = "hippocampus_006.nii.gz", "hippocampus_138.nii.gz"
SOURCE = (
    "Outlines: fixed yellow, moving blue.  Rendered with slicer-core, not a screenshot of 3D Slicer.\n"
    "Images: Medical Segmentation Decathlon, Task04 Hippocampus, CC BY-SA 4.0."
)
YELLOW, CYAN = (1.0, 0.85, 0.1), (0.2, 0.9, 1.0)
SIDE, WIDTH_MM = 400, 50.0  # of one view
MARGIN, GAP, FOOTER = 36, 4, 48
BACKGROUND, TEXT = "#202225", "#e8e8e8"


@dataclass(frozen=True)
class Pair:
    """Two volumes and the segmentations on them."""

    fixed: Any
    moving: Any
    fixed_labels: Any
    moving_labels: Any


@dataclass(frozen=True)
class Result:
    """What a registration left in the scene."""

    moved: Any
    moved_labels: Any
    transform: Any


def volume(booted: core.Core, path: Path, name: str, colours: str) -> Any:
    """A scalar volume from a file, shown from its darkest to its brightest percentile in one colour."""
    node = booted.logics["Volumes"].AddArchetypeVolume(str(path), name, 0)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID(f"vtkMRMLColorTableNode{colours}")
    node.GetDisplayNode().AutoWindowLevelOn()
    return node


def segmentation(booted: core.Core, path: Path, name: str, colour: Sequence[float]) -> Any:
    """A segmentation from a label map file, all its segments in one colour."""
    labels = booted.logics["Volumes"].AddArchetypeVolume(str(path), name, 1)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    importing = slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode
    if not importing(labels, node):
        raise RuntimeError(f"'{path.name}' could not be made a segmentation.")
    slicer.mrmlScene.RemoveNode(labels)
    for segment_id in node.GetSegmentation().GetSegmentIDs():
        node.GetSegmentation().GetSegment(segment_id).SetColor(*colour)
    views.outlines(node, width=3)
    return node


def load_pair(booted: core.Core) -> Pair:
    """The scene of all pictures, before anything is registered, named as Sample Data names it."""
    return Pair(
        volume(booted, SAMPLES / "images" / FIXED, "Hippocampus fixed", "Grey"),
        volume(booted, SAMPLES / "images" / MOVING, "Hippocampus moving", "Grey"),
        segmentation(booted, SAMPLES / "labels" / FIXED, "Hippocampus fixed segmentation", YELLOW),
        segmentation(booted, SAMPLES / "labels" / MOVING, "Hippocampus moving segmentation", CYAN),
    )


def centre_of(labels: Any) -> list[float]:
    """RAS point in the middle of a segmentation."""
    bounds = [0.0] * 6
    labels.GetRASBounds(bounds)
    return [(bounds[n] + bounds[n + 1]) / 2 for n in (0, 2, 4)]


def row(booted: core.Core, pair: Pair, foreground: Any, opacity: float) -> list[Picture]:
    """The three standard slices through the fixed labels; opacity of the foreground over the fixed volume."""
    pictures = []
    for orientation in ORIENTATIONS:
        with SliceView(booted.application, orientation, (SIDE, SIDE)) as view:
            view.show(pair.fixed, foreground, opacity)
            view.look_at(centre_of(pair.fixed_labels), WIDTH_MM)
            pictures.append(view.picture())
    return pictures


def sheet(
    rows: Sequence[tuple[str, Sequence[Picture]]], file: Path, scale: float = 0.8, source: str = SOURCE
) -> None:
    """Write rows of views as one PNG, with what each row shows beside it and where it comes from below."""
    step = SIDE + GAP
    size = (MARGIN + len(rows[0][1]) * step, len(rows) * step + FOOTER)
    canvas = Image.new("RGB", size, BACKGROUND)
    for r, (title, pictures) in enumerate(rows):
        words = text(title, 17, (step, MARGIN)).transpose(Image.Transpose.ROTATE_90)
        canvas.paste(words, (0, r * step))
        for c, picture in enumerate(pictures):
            canvas.paste(Image.fromarray(picture), (MARGIN + c * step, r * step))
    canvas.paste(text(source, 14, (size[0] - MARGIN, FOOTER), centred=False), (MARGIN, len(rows) * step))
    saved(canvas.resize([round(scale * n) for n in size]), file)


def saved(image: Image.Image, file: Path, *, few_colours: bool = False) -> None:
    """Write a PNG as small as it gets; few_colours: hardly more than 256, as a panel has and no image."""
    if few_colours:
        image = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(file, optimize=True)


def text(words: str, size: int, room: tuple[int, int], *, centred: bool = True) -> Image.Image:
    """Words in the middle of a piece of background, from its left side unless centred."""
    piece = Image.new("RGB", room, BACKGROUND)
    place, anchor = ((room[0] / 2, room[1] / 2), "mm") if centred else ((0, room[1] / 2), "lm")
    ImageDraw.Draw(piece).text(place, words, TEXT, ImageFont.load_default(size), anchor)
    return piece


def slice_pictures(booted: core.Core, pair: Pair, result: Result, folder: Path) -> None:
    """blend.png, grid.png and DiffeoReg.png, the picture of the extension."""
    result.moved_labels.SetDisplayVisibility(False)
    before = ("before", row(booted, pair, pair.moving, 0.5))
    pair.moving_labels.SetDisplayVisibility(False)
    views.outlines(result.moved_labels, width=3)
    result.moved_labels.SetDisplayVisibility(True)
    after = ("after", row(booted, pair, result.moved, 0.5))
    views.deformed_grid(result.transform, pair.fixed)
    grid = ("deformed grid", row(booted, pair, result.moved, 1.0))
    sheet([before, after], folder / "blend.png")
    sheet([grid], folder / "grid.png")
    sheet([before, after, grid], folder / "DiffeoReg.png")


def main(arguments: Sequence[str]) -> int:
    """Draw everything into the folder given."""
    from Testing.slicer.panel_pictures import panel_pictures
    from Testing.slicer.tutorial_pictures import view_pictures

    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    booted = core.boot()
    pair = load_pair(booted)
    with tempfile.TemporaryDirectory() as settings:
        result = panel_pictures(booted, pair, folder, Path(settings))
    view_pictures(booted.application, pair, result, folder)  # before the grid is drawn over everything
    slice_pictures(booted, pair, result, folder)
    for path in sorted(folder.glob("*.png")):
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
