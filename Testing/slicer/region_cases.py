"""A fixed and a moving volume that agree in nothing, labels on the moving one, and SimpleITK's answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

Array = NDArray[Any]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
FIXED_SHAPE, MOVING_SHAPE = (30, 40, 48), (36, 52, 44)
"""(k, j, i), as numpy orders voxels."""


def rotation(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> Array:
    """4x4: rotations about x, y and z, then a shift in mm."""
    turn = vtk.vtkTransform()
    turn.Translate(shift)
    for angle, axis in zip(degrees, np.eye(3), strict=True):
        turn.RotateWXYZ(angle, *axis)
    return np.array([[turn.GetMatrix().GetElement(r, c) for c in range(4)] for r in range(4)])


def _placed(
    degrees: tuple[float, float, float], spacing: tuple[float, float, float], flip: int, shape: Any
) -> Array:
    """World from index (i, j, k) of an oblique grid, its middle near the origin; flip = -1: left-handed."""
    matrix = rotation(degrees, (0, 0, 0)) @ np.diag([flip, 1, 1, 1]) @ np.diag([*spacing, 1])
    matrix[:3, 3] = [3, -2, 5] - matrix[:3, :3] @ ((np.array(shape)[::-1] - 1) / 2)
    return matrix


FIXED_PLACE = _placed((12, -20, 31), (0.9, 1.3, 2.1), -1, FIXED_SHAPE)
MOVING_PLACE = _placed((-25, 8, -14), (1.2, 0.8, 1.7), 1, MOVING_SHAPE)
FIELD_SHAPE = (24, 26, 28)
FIELD_PLACE = _placed((5, 9, -7), (3.1, 3.3, 3.7), 1, FIELD_SHAPE)


def vtk_matrix(matrix: Array) -> Any:
    """A vtkMatrix4x4 with these numbers."""
    out = vtk.vtkMatrix4x4()
    out.DeepCopy(matrix.ravel().tolist())
    return out


def add_volume(shape: Any, place: Array, name: str, kind: str = "vtkMRMLScalarVolumeNode") -> Any:
    """A volume node with random voxels, or with the given array as its voxels."""
    array = shape if isinstance(shape, np.ndarray) else np.random.default_rng(1).random(shape, np.float32)
    return slicer.util.addVolumeFromArray(array, ijkToRAS=vtk_matrix(place), name=name, nodeClassName=kind)


def add_parent(scene: Any, node: Any, matrix: Array) -> Any:
    """Put the node under a linear transform."""
    parent = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "parent")
    parent.SetMatrixTransformToParent(vtk_matrix(matrix))
    node.SetAndObserveTransformNodeID(parent.GetID())
    return parent


def add_warped_parent(scene: Any, node: Any) -> Any:
    """Put the node under a non-linear transform."""
    parent = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "bent")
    parent.SetAndObserveTransformFromParent(vtk_field())
    node.SetAndObserveTransformNodeID(parent.GetID())
    return parent


def positions(shape: Any, place: Array) -> Array:
    """(k, j, i, 3) positions of the voxels."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)[..., ::-1]
    return np.asarray(index @ place[:3, :3].T + place[:3, 3])


def displacement() -> Array:
    """(k, j, i, 3) RAS mm on the field's grid: smooth, up to 6 mm, no two components alike."""
    x, y, z = np.moveaxis(positions(FIELD_SHAPE, FIELD_PLACE), -1, 0)
    u = (4 * np.sin(x / 11 + y / 17), 2.5 * np.cos(y / 9 - z / 13) + 1.5, 3 * np.sin(z / 8 + x / 23) - 1)
    return np.stack(u, axis=-1)


def vtk_field() -> Any:
    """The displacement as a transform from fixed to moving world points."""
    image = vtk.vtkImageData()
    image.SetDimensions(FIELD_SHAPE[::-1])
    image.SetSpacing(np.linalg.norm(FIELD_PLACE[:3, :3], axis=0))
    image.SetOrigin(FIELD_PLACE[:3, 3])
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(displacement().reshape(-1, 3), deep=True))
    directions = np.eye(4)
    directions[:3, :3] = FIELD_PLACE[:3, :3] / np.linalg.norm(FIELD_PLACE[:3, :3], axis=0)
    field = slicer.vtkOrientedGridTransform()
    field.SetGridDirectionMatrix(vtk_matrix(directions))
    field.SetDisplacementGridData(image)
    return field


def sitk_field() -> Any:
    """The displacement as SimpleITK's transform (LPS)."""
    image = sitk_image(displacement() * [-1, -1, 1], FIELD_PLACE, vector=True)
    return sitk.DisplacementFieldTransform(image)


def sitk_image(array: Array, place: Array, vector: bool = False) -> Any:
    """A SimpleITK image where `place` (RAS, from index i, j, k) says."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=vector)
    lps = LPS @ place
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def nearest(labels: Array, place: Array, shape: Any, onto: Array, transform: Any = None) -> Array:
    """SimpleITK's nearest-neighbour labels on another grid."""
    reference = sitk_image(np.zeros(shape, np.uint8), onto)
    return sitk.GetArrayFromImage(
        sitk.Resample(
            sitk_image(labels, place), reference, transform or sitk.Transform(3, sitk.sitkIdentity),
            sitk.sitkNearestNeighbor, 0,
        )
    )  # fmt: skip


def labels() -> Array:
    """Three structures with labels 1, 2 and 7, the last one touching the border."""
    k, j, i = np.indices(MOVING_SHAPE)
    out = np.zeros(MOVING_SHAPE, np.uint8)
    out[(k - 18) ** 2 / 1.2 + (j - 26) ** 2 / 3 + (i - 22) ** 2 / 2 < 130] = 1
    out[(k - 12) ** 2 + (j - 20) ** 2 + (i - 18) ** 2 < 30] = 2
    out[(k > 24) & (j > 30) & (i > 25)] = 7
    return out


def ball() -> Array:
    """A structure that overlaps labels 1 and 2."""
    k, j, i = np.indices(MOVING_SHAPE)
    return ((k - 15) ** 2 + (j - 22) ** 2 + (i - 24) ** 2 < 60).astype(np.uint8)


def add_segmentation(
    scene: Any, layers: list[Array], place: Array, names: list[list[str]], name: str = "organs"
) -> Any:
    """A segmentation node; every layer holds the segments of its values, in the order of the names."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    for layer, called in zip(layers, names, strict=True):
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(layer.shape[::-1])
        image.SetGeometryFromImageToWorldMatrix(vtk_matrix(place))
        image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(layer.ravel(), deep=True))
        values = [int(v) for v in np.unique(layer) if v]
        for value, text in zip(values, called, strict=True):
            segment = slicer.vtkSegment()
            segment.SetName(text)
            segment.SetLabelValue(value)
            segment.SetColor(value / 10, 0.5, 0.25)
            segment.SetTag("Sort", f"tag of {text}")
            segment.AddRepresentation("Binary labelmap", image)
            node.GetSegmentation().AddSegment(segment, f"id-{text}")
    return node


def segment_mask(node: Any, key: str) -> Array:
    """(k, j, i) bool of one segment on the image it lies in, and nothing else."""
    segment = node.GetSegmentation().GetSegment(key)
    image = segment.GetRepresentation("Binary labelmap")
    array = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return np.asarray(array.reshape(image.GetDimensions()[::-1]) == segment.GetLabelValue())


FIXED_TURN = rotation((3, 7, -11), (2.5, -1.25, 4))
SEGMENTS_TURN = rotation((-6, 4, 9), (-3, 2, 1.5))


def organs(scene, name="organs"):
    """Labels 1, 2, 7 in one layer, and in a second layer a ball that overlaps the first two."""
    return add_segmentation(
        scene,
        [labels(), ball()],
        MOVING_PLACE,
        [["liver", "tumour", "spine"], ["ball"]],
        name,
    )


def expected(array, moving_turn=None, fixed_turn=None, transform=None):
    """SimpleITK's answer with the parent transforms multiplied into the places."""
    return nearest(
        array, (np.eye(4) if moving_turn is None else moving_turn) @ MOVING_PLACE, FIXED_SHAPE,
        (np.eye(4) if fixed_turn is None else fixed_turn) @ FIXED_PLACE, transform,
    )  # fmt: skip
