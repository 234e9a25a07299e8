"""A hostile pair of volumes and a transform between them, in SimpleITK (LPS) and as MRML nodes (RAS).

The way from LPS to MRML is written here a second time, apart from the panel's own code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util import numpy_support

from DiffeoRegPanel.nodes import transforms

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    unit = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -unit[2], unit[1]], [unit[2], 0, -unit[0]], [-unit[1], unit[0], 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_matrix() -> np.ndarray:
    """A linear part, fixed -> moving points, LPS: turn, shear, scale and shift."""
    out = np.eye(4)
    out[:3, :3] = rotation((1, 3, -2), 7) @ np.array([[1.05, 0.04, 0], [0, 0.96, 0.02], [0, 0, 1.02]])
    out[:3, 3] = 1.2, -0.8, 1.5
    return out


def picture(size: tuple[int, int, int], spacing, direction: np.ndarray, centre, seed: int) -> sitk.Image:
    """Smooth noise, 0 .. about 400, around a point."""
    noise = np.random.default_rng(seed).random(size[::-1])
    image = sitk.GetImageFromArray(noise.astype(np.float32))
    image = sitk.RescaleIntensity(sitk.DiscreteGaussian(image, 2.25), 0, 400)
    return placed(image, spacing, direction, centre)


def placed(image: sitk.Image, spacing, direction: np.ndarray, centre) -> sitk.Image:
    image.SetSpacing([float(s) for s in spacing])
    image.SetDirection(direction.ravel().tolist())
    middle = (np.array(image.GetSize()) - 1) / 2 * spacing
    image.SetOrigin((np.array(centre) - direction @ middle).tolist())
    return image


def fixed_image(size=(24, 20, 15)) -> sitk.Image:
    """Oblique and left-handed."""
    direction = rotation((1, 2, 3), 35) @ np.diag([1.0, -1.0, 1.0])
    return picture(size, (0.9, 1.3, 2.1), direction, (11, -7, 23), 1)


def moving_image(size=(26, 30, 20)) -> sitk.Image:
    return picture(size, (1.2, 0.8, 1.7), rotation((-2, 1, 1), 50), (11, -7, 23), 2)


def field_image(fixed: sitk.Image, padding: int = 4) -> sitk.Image:
    """Displacements, LPS mm, zero on the border, on the fixed voxels and some more around them."""
    single = [n == 1 for n in fixed.GetSize()]
    size = np.array([n if one else n + 2 * padding for n, one in zip(fixed.GetSize(), single, strict=True)])
    shift = [0 if one else -padding for one in single]
    axes = [np.zeros(1) if one else np.linspace(-1, 1, n) for n, one in zip(size, single, strict=True)]
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    window = np.cos(np.pi / 2 * x) ** 2 * np.cos(np.pi / 2 * y) ** 2 * np.cos(np.pi / 2 * z) ** 2
    for axis in np.flatnonzero(~np.array(single)):
        for end in (0, -1):
            window[tuple(end if a == 2 - axis else slice(None) for a in range(3))] = 0
    u = np.stack([4 * np.cos(2 * y + 1), 3 * np.sin(2 * x) + 1, 2.5 * np.cos(1.5 * z - y)], -1)
    field = sitk.GetImageFromArray((u * window[..., None]).astype(np.float32), isVector=True)
    field.SetSpacing(fixed.GetSpacing())
    field.SetDirection(fixed.GetDirection())
    field.SetOrigin(fixed.TransformContinuousIndexToPhysicalPoint([float(s) for s in shift]))
    return field


def itk_transform(*parts: Any) -> sitk.Transform:
    """Fields and LPS matrices, the first acting first, as one SimpleITK transform."""
    steps = []
    for part in parts:
        if isinstance(part, sitk.Image):
            field = sitk.Cast(part, sitk.sitkVectorFloat64)
            steps.append(sitk.DisplacementFieldTransform(field))  # takes the image's content away
        else:
            affine = sitk.AffineTransform(3)
            affine.SetMatrix(part[:3, :3].ravel().tolist())
            affine.SetTranslation(part[:3, 3].tolist())
            steps.append(affine)
    return sitk.CompositeTransform(steps[::-1])


def resampled(moving: sitk.Image, fixed: sitk.Image, transform: sitk.Transform) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0))


def ras_matrix(image: sitk.Image) -> np.ndarray:
    """RAS mm of the voxel (i, j, k, 1)."""
    out = np.eye(4)
    out[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    out[:3, 3] = image.GetOrigin()
    return LPS @ out


def vtk_matrix(matrix: np.ndarray) -> Any:
    out = vtk.vtkMatrix4x4()
    out.DeepCopy(matrix.ravel().tolist())
    return out


def volume(scene: Any, image: sitk.Image, name: str, kind: str = "vtkMRMLScalarVolumeNode") -> Any:
    node = scene.AddNewNodeByClass(kind, name)
    array = sitk.GetArrayFromImage(image)
    data = vtk.vtkImageData()
    data.SetDimensions(*image.GetSize())
    flat = array.reshape(-1, *array.shape[3:])
    data.GetPointData().SetScalars(numpy_support.numpy_to_vtk(flat, deep=True))
    node.SetAndObserveImageData(data)
    node.SetIJKToRASMatrix(vtk_matrix(ras_matrix(image)))
    return node


def linear_node(scene: Any, to_parent: np.ndarray, name: str) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    node.SetMatrixTransformToParent(vtk_matrix(to_parent))
    return node


def under(scene: Any, node: Any, to_parent: np.ndarray) -> np.ndarray:
    """Put a volume under a new linear transform without moving it in the world; returns the matrix."""
    local = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(local)
    array = np.array([[local.GetElement(r, c) for c in range(4)] for r in range(4)])
    node.SetIJKToRASMatrix(vtk_matrix(np.linalg.inv(to_parent) @ array))
    parent = linear_node(scene, to_parent, f"parent of {node.GetName()}")
    node.SetAndObserveTransformNodeID(parent.GetID())
    return to_parent


def some_parent(seed: int) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = rotation((seed, 1, 2), 20 + seed)
    out[:3, 3] = 30, -12 * seed, 7
    return out


def slicer_resampled(moving: Any, fixed: Any) -> np.ndarray:
    """Slicer's own resampling of a volume under a transform; for a fixed volume without parent."""
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(moving.GetScene())
    out = logic.ResampleVolumeToReferenceVolume(moving, fixed)
    array = slicer.util.arrayFromVolume(out).copy()
    moving.GetScene().RemoveNode(out)
    return array


def saved(node: Any, path: Path) -> None:
    storage = slicer.vtkMRMLTransformStorageNode()
    storage.SetFileName(str(path))
    assert storage.WriteData(node), path


def loaded(scene: Any, path: Path) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", path.stem)
    storage = slicer.vtkMRMLTransformStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node), path
    return node


def numeric_inverse(node: Any, name: str) -> Any:
    """A new node: an independent copy of a transform node that VTK inverts point by point.

    It leads from the moving volume's own space (under its parent, if it has one) to fixed points.
    """
    inverse = node.GetScene().AddNewNodeByClass("vtkMRMLTransformNode")
    inverse.CopyContent(node)
    inverse.SetName(name)
    inverse.Inverse()
    inverse.SetNodeReferenceID(transforms.MOVING, node.GetNodeReferenceID(transforms.FIXED))
    inverse.SetNodeReferenceID(transforms.FIXED, node.GetNodeReferenceID(transforms.MOVING))
    return inverse
