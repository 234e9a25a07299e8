"""Pictures of a lesion that only one image shows: the panel before and after a run, and what the run left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
from numpy.typing import NDArray
from PIL import Image

from Testing.slicer.bench.slicerbench import Bench
from Testing.slicer.bench.views import Picture, SliceView
from Testing.slicer.pictures import (
    BACKGROUND,
    FOOTER,
    GAP,
    MARGIN,
    REPOSITORY,
    SIDE,
    saved,
    text,
)

SLICES = REPOSITORY / "Resources" / "SampleData" / "brain_slices"
CORE, RIM, SWELLING = 1, 2, 3
CENTRE, RADII = (70.0, 84.0), {CORE: 5.0, RIM: 8.0, SWELLING: 12.0}
LOOKS = {CORE: 0.15, RIM: 1.1}
WIDTH_MM = 150.0
SOURCE = (
    "A synthetic lesion in a real brain slice (OASIS-1, example data of mermaid, Apache-2.0).\n"
    "Rendered with slicer-core, not a screenshot of 3D Slicer."
)


def lesion_pictures(bench: Bench, widget: Any, panel: Any, folder: Path, patience_seconds: float) -> None:
    """panel-pathology.png, panel-pathology-result.png and lesion.png, by the buttons of the panel."""
    from Testing.slicer.panel_pictures import fold, picture

    fixed, moving, lesion = scene()
    panel.ui.fixedSelector.setCurrentNode(fixed)
    panel.ui.movingSelector.setCurrentNode(moving)
    panel.parameters.segmentations = []
    for side in (panel.parameters.evaluation.fixed, panel.parameters.evaluation.moving):
        side.node = None
    panel.parameters.model.method = "metamorphosis"
    panel.ui.pathologyFixedNode.setCurrentNode(lesion)
    panel.status.say("Ready.")  # what it says of the run before is no matter here
    fold(panel, "masksSection")
    picture(bench, widget, folder / "panel-pathology.png")
    fold(panel)
    bench.click(panel.ui.applyButton)
    bench.wait(lambda: not panel.run.running, patience_seconds, "the end of the run with a lesion")
    if panel.parameters.change is None:
        raise RuntimeError(f"{panel.ui.statusLabel.text}\n{panel.ui.logText.toPlainText()}")
    fold(panel, "resultSection")
    bench.click(panel.ui.changeButton)
    picture(bench, widget, folder / "panel-pathology-result.png")
    views(bench.core.application, panel.parameters, lesion, folder / "lesion.png")


def scene() -> tuple[Any, Any, Any]:
    """A brain slice with a lesion, a healthy one, and a segmentation of the lesion on the first."""
    array, healthy = (pixels(number) for number in ("0001", "0010"))
    labels = lesion_labels(array.shape)
    for label, look in LOOKS.items():
        array[labels == label] = look * float(np.percentile(array[array > 0], 90))
    array[labels == SWELLING] *= 0.75
    fixed = slicer.util.addVolumeFromArray(array, name="Patient")
    moving = slicer.util.addVolumeFromArray(healthy, name="Healthy brain")
    for node in (fixed, moving):
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAutoWindowLevel(False)
        node.GetDisplayNode().SetWindowLevelMinMax(0.0, 1.0)
    return fixed, moving, segmentation(labels, fixed)


def pixels(number: str) -> NDArray[np.float32]:
    """(1, 128, 128), the front of the head up in Slicer's view."""
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(SLICES / f"oasis2d_{number}.nrrd")))
    return np.ascontiguousarray(image[None], dtype=np.float32)


def lesion_labels(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Core, rim and swelling, one around the other."""
    j, i = np.indices(shape[1:])
    distance = np.hypot((j - CENTRE[0]) / 1.2, i - CENTRE[1])
    labels = np.zeros(shape, np.uint8)
    for label in (SWELLING, RIM, CORE):
        labels[0][distance < RADII[label]] = label
    return labels


def segmentation(labels: NDArray[np.uint8], volume: Any) -> Any:
    """The three parts as segments on the voxels of a volume, shown as outlines."""
    label_map = slicer.util.addVolumeFromArray(labels, nodeClassName="vtkMRMLLabelMapVolumeNode")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Lesion")
    node.CreateDefaultDisplayNodes()
    if not slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(label_map, node):
        raise RuntimeError("The labels could not be made a segmentation.")
    slicer.mrmlScene.RemoveNode(label_map)
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    colours = ((1.0, 0.3, 0.2), (1.0, 0.85, 0.1), (0.2, 0.9, 1.0))
    for number, (name, colour) in enumerate(zip(("core", "rim", "swelling"), colours, strict=True)):
        node.GetSegmentation().GetNthSegment(number).SetName(name)
        node.GetSegmentation().GetNthSegment(number).SetColor(*colour)
    display = node.GetDisplayNode()
    display.SetAllSegmentsVisibility2DFill(False)
    display.SetSliceIntersectionThickness(2)
    return node


def views(application: Any, parameters: Any, lesion: Any, file: Path) -> None:
    """Both images, the moved one, the change over it, the metamorphic one, the healthy look: two rows."""
    p = parameters
    cells = [
        ("Patient (fixed), marked", p.resultFixed, None, True),
        ("Healthy brain (moving)", p.resultSource, None, False),
        ("Moved", p.resultMoving, None, False),
        ("Moved, with the change", p.resultMoving, p.change, False),
        ("Metamorphic", p.metamorphic, None, False),
        ("Healthy look", p.healthy, None, False),
    ]
    step = SIDE + GAP
    canvas = Image.new("RGB", (3 * step, 2 * (step + MARGIN) + FOOTER), BACKGROUND)
    for number, (title, background, foreground, outlined) in enumerate(cells):
        lesion.SetDisplayVisibility(outlined)
        with SliceView(application, "Axial", (SIDE, SIDE)) as view:
            shown = view_picture(view, background, foreground)
        place = (number % 3 * step, number // 3 * (step + MARGIN))
        canvas.paste(text(title, 17, (SIDE, MARGIN)), place)
        canvas.paste(Image.fromarray(shown), (place[0], place[1] + MARGIN))
    words = text(SOURCE, 14, (3 * step - MARGIN, FOOTER), centred=False)
    canvas.paste(words, (GAP, 2 * (step + MARGIN)))
    saved(canvas, file)


def view_picture(view: SliceView, background: Any, foreground: Any) -> Picture:
    """One volume, or one with the change over it, as the panel shows it."""
    bounds = [0.0] * 6
    background.GetRASBounds(bounds)
    view.show(background, foreground, 0.6)
    view.look_at([(bounds[n] + bounds[n + 1]) / 2 for n in (0, 2, 4)], WIDTH_MM)
    return view.picture()
