"""Pictures of a group: the panel before and after a run, and the series before and after it.

The series is made of one real brain slice, bent by a known motion; a spot in it fills with contrast agent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from DiffeoRegPanel.group import group_nodes_of
from DiffeoRegPanel.nodes.series import browser_of, show_frame
from Testing.slicer.bench.slicerbench import Bench
from Testing.slicer.bench.views import Picture, SliceView
from Testing.slicer.lesion_pictures import pixels
from Testing.slicer.pictures import BACKGROUND, FOOTER, GAP, MARGIN, saved, text

FRAMES, SHOWN = 5, (0, 2, 4)
LARGEST_VOX, WIDTH_VOX, NOISE = 10.0, 14.0, 0.02
SIDE, WIDTH_MM = 270, 130.0
SPOT, RADIUS, UPTAKE = (58.0, 80.0), 5.0, (0.0, 0.35, 0.55, 0.45, 0.3)
NAME, PLAYER = "Dynamic", "Dynamic browser"
SOURCE = (
    "Outline: drawn on the first frame, carried to the others.  A brain slice (OASIS-1, example data of\n"
    "mermaid, Apache-2.0) bent by a synthetic motion.  Rendered with slicer-core, no screenshot of 3D Slicer."
)


def group_pictures(bench: Bench, widget: Any, panel: Any, folder: Path, patience_seconds: float) -> None:
    """panel-group.png, panel-group-result.png and group.png, by the buttons of the panel."""
    from Testing.slicer.panel_pictures import fold, picture

    player, spot = scene()
    ui, p = panel.ui, panel.parameters
    ui.modeCombo.setCurrentIndex(ui.modeCombo.findData("group"))
    p.model.preset, p.advanced.similarity = "general", ""
    ui.groupSeries.setCurrentNode(player)
    p.groupSegmentations = [spot]
    panel.status.say("Ready.")  # what it says of the run before is no matter here
    fold(panel)
    picture(bench, widget, folder / "panel-group.png")
    bench.click(ui.applyButton)
    bench.wait(lambda: not panel.run.running, patience_seconds, "the end of the run of a group")
    if p.group.browser is None:
        raise RuntimeError(f"{ui.statusLabel.text}\n{ui.logText.toPlainText()}")
    fold(panel, "resultSection")
    bench.click(ui.uncertaintyButton)
    picture(bench, widget, folder / "panel-group-result.png")
    series_picture(bench.core.application, player, p.group.browser, spot, folder / "group.png")
    ui.modeCombo.setCurrentIndex(ui.modeCombo.findData("pair"))


def scene() -> tuple[Any, Any]:
    """A browser that plays the series, and a segmentation of the spot on its first frame."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", NAME)
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    sequence.SetIndexType(slicer.vtkMRMLSequenceNode.NumericIndex)
    for number in range(FRAMES):
        node = slicer.util.addVolumeFromArray(frame(number), name=f"{NAME} {number}")
        sequence.SetDataNodeAtValue(node, str(10 * number))
        slicer.mrmlScene.RemoveNode(node)
    player = browser_of(slicer.mrmlScene, [sequence], PLAYER)
    shown = player.GetProxyNode(sequence)
    shown.SetName(NAME)
    shown.CreateDefaultDisplayNodes()
    shown.GetDisplayNode().SetAutoWindowLevel(False)
    shown.GetDisplayNode().SetWindowLevelMinMax(0.0, 1.0)
    return player, segmentation(shown)


def frame(number: int) -> NDArray[np.float32]:
    """(1, 128, 128): the slice with as much contrast agent as there is by then, bent, with noise."""
    image = pixels("0001")[0]
    image += UPTAKE[number] * (distance(image.shape) < RADIUS)
    place = np.indices(image.shape) + motion(number, image.shape)
    noise = np.random.default_rng(number + 50).normal(0, NOISE, image.shape)
    return np.float32(map_coordinates(image, place, order=1, mode="nearest") + noise)[None]


def motion(number: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(2, j, i), voxels: a smooth field for each frame, none at the first."""
    if number == 0:
        return np.zeros((2, *shape))
    white = np.random.default_rng(number).normal(size=(2, *shape))
    smooth = np.stack([gaussian_filter(one, WIDTH_VOX, mode="nearest") for one in white])
    return np.asarray(smooth * LARGEST_VOX / np.abs(smooth).max())


def distance(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """From the middle of the spot, voxels."""
    j, i = np.indices(shape)
    return np.hypot(j - SPOT[0], i - SPOT[1])


def segmentation(volume: Any) -> Any:
    """The spot on the voxels of the first frame, as an outline."""
    labels = (distance(pixels("0001").shape[1:]) < RADIUS).astype(np.uint8)[None]
    label_map = slicer.util.addVolumeFromArray(labels, nodeClassName="vtkMRMLLabelMapVolumeNode")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Spot")
    node.CreateDefaultDisplayNodes()
    if not slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(label_map, node):
        raise RuntimeError("The labels could not be made a segmentation.")
    slicer.mrmlScene.RemoveNode(label_map)
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.GetSegmentation().GetNthSegment(0).SetName("spot")
    node.GetSegmentation().GetNthSegment(0).SetColor(1.0, 0.85, 0.1)
    node.GetDisplayNode().SetAllSegmentsVisibility2DFill(False)
    node.GetDisplayNode().SetSliceIntersectionThickness(2)
    return node


def series_picture(application: Any, player: Any, browser: Any, spot: Any, file: Path) -> None:
    """Some frames as given and aligned, the mean of all before and after, and the uncertainty: three rows."""
    given, nodes = player.GetProxyNode(player.GetMasterSequenceNode()), group_nodes_of(browser)
    aligned, spread = nodes["aligned"], nodes["uncertainty"]
    carried = next(
        browser.GetProxyNode(node)
        for node in slicer.util.getNodesByClass("vtkMRMLSequenceNode")
        if node.GetName().startswith("Spot on all frames")
    )
    spot.SetDisplayVisibility(False)
    carried.GetDisplayNode().SetVisibility2DFill(False)
    rows: list[list[tuple[str, Picture]]] = [[], [], []]
    for number in SHOWN:
        show_frame(player, number)
        show_frame(browser, number)
        carried.SetDisplayVisibility(True)
        rows[0].append((f"frame {number + 1} as given", shot(application, given)))
        carried.SetDisplayVisibility(False)
        rows[1].append(("aligned", shot(application, aligned)))
        rows[2].append(("uncertainty of the motion", shot(application, spread)))
    before = mean_of(player.GetMasterSequenceNode(), given)
    rows[0].append(("mean of the frames as given", shot(application, before)))
    rows[1].append(("mean of the aligned frames", shot(application, nodes["mean"])))
    slicer.mrmlScene.RemoveNode(before)
    most = spread.GetDisplayNode().GetWindow()
    sheet(rows, f"standard deviation,\nblack 0 to light {most:.1f} mm", file)


def mean_of(sequence: Any, like: Any) -> Any:
    """The mean of the frames as they are, as a volume shown like them."""
    frames = [slicer.util.arrayFromVolume(sequence.GetNthDataNode(n)) for n in range(FRAMES)]
    node = slicer.util.addVolumeFromArray(np.mean(frames, axis=0), name="mean before")
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().CopyContent(like.GetDisplayNode())
    return node


def shot(application: Any, volume: Any) -> Picture:
    """The slice, the front of the head up."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    with SliceView(application, "Axial", (SIDE, SIDE)) as view:
        view.show(volume)
        view.look_at([(bounds[n] + bounds[n + 1]) / 2 for n in (0, 2, 4)], WIDTH_MM)
        return view.picture()


def sheet(rows: list[list[tuple[str, Picture]]], scale: str, file: Path) -> None:
    """The views with their titles; what the colours mean in the last cell."""
    step, columns = SIDE + GAP, max(map(len, rows))
    canvas = Image.new("RGB", (columns * step, len(rows) * (step + MARGIN) + FOOTER), BACKGROUND)
    for r, cells in enumerate(rows):
        for c, (title, picture) in enumerate(cells):
            canvas.paste(text(title, 17, (SIDE, MARGIN)), (c * step, r * (step + MARGIN)))
            canvas.paste(Image.fromarray(picture), (c * step, r * (step + MARGIN) + MARGIN))
    place = ((columns - 1) * step, (len(rows) - 1) * (step + MARGIN) + MARGIN)
    canvas.paste(text(scale, 17, (SIDE, SIDE)), place)
    words = text(SOURCE, 14, (columns * step - MARGIN, FOOTER), centred=False)
    canvas.paste(words, (GAP, len(rows) * (step + MARGIN)))
    saved(canvas, file)
