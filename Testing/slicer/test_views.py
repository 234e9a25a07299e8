"""The off-screen slice views show what is in the scene, where it is, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from PIL import Image

from Testing.slicer import pictures
from Testing.slicer.bench import core, views
from Testing.slicer.bench.views import Picture, SliceView

SIDE = 120  # pixels; the volume is 30 mm wide: 4 pixels are 1 mm


def volume(array: np.ndarray, name: str = "volume") -> Any:
    """Array (k, j, i) with 1 mm voxels along R, A, S, centred on the origin; black is 0 and white 255."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    place = np.eye(4)
    place[:3, 3] = -(np.array(array.shape[::-1]) - 1) / 2
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(place))
    slicer.util.updateVolumeFromArray(node, array.astype(np.float32))
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    display.AutoWindowLevelOff()
    display.SetWindowLevel(255, 127.5)
    display.InterpolateOff()
    return node


def box(low: tuple[int, int, int], high: tuple[int, int, int], value: float = 255.0) -> np.ndarray:
    """30 x 30 x 30 zeros with a box of `value`; corners in (i, j, k)."""
    array = np.zeros((30, 30, 30), dtype=np.float32)
    array[low[2] : high[2], low[1] : high[1], low[0] : high[0]] = value
    return array


def shown(orientation: str, *volumes: Any, opacity: float = 0.5) -> Picture:
    with SliceView(core.boot().application, orientation, (SIDE, SIDE)) as view:
        view.show(*volumes, opacity=opacity)
        view.look_at((0.25, 0.25, 0.25), SIDE / 4)
        return view.picture()


def middle(picture: Picture) -> tuple[float, float]:
    """Row and column of the centre of what is bright."""
    rows, columns = np.nonzero(picture.max(axis=2) > 128)
    return float(rows.mean()), float(columns.mean())


def segmentation(array: np.ndarray) -> Any:
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    labels.Copy(volume(array))
    slicer.util.updateVolumeFromArray(labels, (array > 0).astype(np.int16))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    node.CreateDefaultDisplayNodes()
    assert slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, node)
    node.GetSegmentation().GetNthSegment(0).SetColor(1.0, 1.0, 0.0)
    return node


def translation(scene: Any, right_mm: float) -> Any:
    """A linear transform node that moves what is under it to the patient's right."""
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "translation")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, right_mm)
    node.SetMatrixTransformToParent(matrix)
    return node


@pytest.mark.parametrize(
    ("orientation", "up", "left"),
    [("Axial", 1, 0), ("Coronal", 2, 0), ("Sagittal", 2, 1)],  # axes R, A, S
)
def test_views_are_turned_as_radiologists_expect(scene: Any, orientation: str, up: int, left: int) -> None:
    """Anterior or superior is up; the patient's right, in sagittal views anterior, is on the left."""
    for axis, expected in ((up, (SIDE / 4, SIDE / 2)), (left, (SIDE / 2, SIDE / 4))):
        low, high = [10, 10, 10], [20, 20, 20]
        low[axis], high[axis] = 20, 25  # 7.5 mm towards right, anterior or superior
        picture = shown(orientation, volume(box(tuple(low), tuple(high))))
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.dtype == np.uint8
        assert middle(picture) == pytest.approx(expected, abs=4)
        scene.Clear(0)


@pytest.mark.parametrize(("opacity", "expected"), [(0.0, 200), (0.25, 175), (1.0, 100)])
def test_the_foreground_covers_by_its_opacity(scene: Any, opacity: float, expected: int) -> None:
    background = volume(np.full((30, 30, 30), 200.0))
    foreground = volume(np.full((30, 30, 30), 100.0))
    picture = shown("Axial", background, foreground, opacity=opacity)
    assert picture[SIDE // 2, SIDE // 2].tolist() == pytest.approx([expected] * 3, abs=3)


def test_a_volume_is_shown_where_its_transform_puts_it(scene: Any) -> None:
    node = volume(box((12, 12, 12), (18, 18, 18)))
    empty = volume(np.zeros((30, 30, 30)))
    before = middle(shown("Axial", empty, node, opacity=1.0))
    node.SetAndObserveTransformNodeID(translation(scene, 5.0).GetID())
    after = middle(shown("Axial", empty, node, opacity=1.0))
    assert np.subtract(after, before) == pytest.approx((0, -5 * 4), abs=1)


def test_outlines_run_along_the_border_and_follow_a_transform(scene: Any) -> None:
    empty = volume(np.zeros((30, 30, 30)))
    node = segmentation(box((10, 10, 10), (20, 20, 20)))
    views.outlines(node, width=1)
    picture = shown("Axial", empty)
    rows, columns = np.nonzero((picture[..., 0] > 128) & (picture[..., 2] < 64))
    assert np.ptp(rows) == pytest.approx(40, abs=8)  # 10 mm
    assert np.ptp(columns) == pytest.approx(40, abs=8)
    assert not picture[SIDE // 2 - 10 : SIDE // 2 + 10, SIDE // 2 - 10 : SIDE // 2 + 10].any()
    node.SetAndObserveTransformNodeID(translation(scene, 5.0).GetID())
    moved = shown("Axial", empty)
    assert np.subtract(middle(moved), middle(picture)) == pytest.approx((0, -5 * 4), abs=1)
    node.GetDisplayNode().SetVisibility(False)
    assert not shown("Axial", empty).any()


def bump(scene: Any, height_mm: float) -> Any:
    """A transform node that pushes the middle to the patient's right, and nothing at the borders."""
    i = np.linspace(-1, 1, 30)
    bell = np.einsum("k,j,i->kji", *[np.cos(np.pi * i / 2) ** 2] * 3)
    vectors = np.zeros((30, 30, 30, 3), dtype=np.float32)
    vectors[..., 0] = height_mm * bell
    image = vtk.vtkImageData()
    image.SetDimensions(30, 30, 30)
    image.SetOrigin(-14.5, -14.5, -14.5)
    scalars = vtk.util.numpy_support.numpy_to_vtk(vectors.reshape(-1, 3), deep=True)
    image.GetPointData().SetScalars(scalars)
    grid = slicer.vtkOrientedGridTransform()
    grid.SetDisplacementGridData(image)
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "bump")
    node.SetAndObserveTransformFromParent(grid)
    return node


def test_the_grid_bends_where_the_transform_does(scene: Any) -> None:
    empty = volume(np.zeros((30, 30, 30)))

    def lines(height_mm: float, row: int) -> np.ndarray:
        """Columns where the lines from top to bottom cross a row."""
        node = bump(scene, height_mm)
        views.deformed_grid(node, empty, spacing_mm=5.0)
        picture = shown("Axial", empty)
        scene.RemoveNode(node)
        return np.nonzero(picture[row].max(axis=1) > 32)[0]

    straight = lines(1e-6, row=55)
    assert np.diff(straight).tolist() == [20] * 5  # 5 mm
    # From parent it points to the right, so things move to the left, which is on the right of the view.
    assert (lines(4.0, row=55) - straight).max() == pytest.approx(4 * 4, abs=2)
    assert np.abs(lines(4.0, row=3) - straight).max() <= 1


def test_a_closed_view_leaves_the_scene_as_it_was(scene: Any) -> None:
    node = volume(np.zeros((4, 4, 4)))
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)  # made when it is first asked for
    before = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
    for _ in range(2):
        shown("Coronal", node)
    assert {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())} == before
    assert core.boot().application.GetSliceLogics().GetNumberOfItems() == 0


def test_an_unknown_orientation_is_refused(scene: Any) -> None:
    with pytest.raises(ValueError, match="'axial' is none of Axial, Coronal, Sagittal"):
        SliceView(core.boot().application, "axial")


def test_the_pictures_of_the_pages_are_drawn(scene: Any, tmp_path: Path) -> None:
    pair = pictures.load_pair(core.boot())
    moved_labels = segmentation(box((10, 10, 10), (20, 20, 20)))
    result = pictures.Result(pair.moving, moved_labels, bump(scene, 4.0))
    pictures.slice_pictures(core.boot(), pair, result, tmp_path)
    for name in ("blend.png", "grid.png", "DiffeoReg.png"):
        with Image.open(tmp_path / name) as image:
            drawn = np.asarray(image.convert("RGB"), dtype=int)
        assert (tmp_path / name).stat().st_size < 1_000_000
        yellow = (drawn[..., 0] > 200) & (drawn[..., 1] > 150) & (drawn[..., 2] < 80)
        assert 500 < yellow.sum() < 0.1 * yellow.size  # outlines
