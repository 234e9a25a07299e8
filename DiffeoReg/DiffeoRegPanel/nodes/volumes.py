"""Volume nodes <-> arrays with a place in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from DiffeoRegLib.errors import GeometryError, InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.colours import Entry, colour_table, show_between
from DiffeoRegPanel.nodes.places import (
    KJI,
    Matrix,
    local_from_voxel,
    numbers_of,
    parent_matrix,
    remember_parent,
    text_of,
    vtk_from_matrix,
    world_from_voxel,
)

JACOBIAN, VELOCITY = "DiffeoReg.Jacobian", "DiffeoReg.Velocity"
STEPS, INITIAL = "DiffeoReg.VelocitySteps", "DiffeoReg.VelocityInitial"
MARK = "DiffeoReg.VelocityMark"
MOVING, FIXED = "spatialRegistrationMoving", "spatialRegistrationFixed"
"""Roles of the volumes a result belongs to, as Slicer names them."""
JACOBIAN_RANGE = (0.0, 2.0)
FOLDED, SMALLER, SAME, LARGER = (1.0, 1.0, 0.0), (0.13, 0.3, 0.7), (0.95, 0.95, 0.95), (0.7, 0.08, 0.12)


def array_of(node: Any) -> NDArray[Any]:
    """The voxels of a volume, (k, j, i) or (k, j, i, components): a view, no copy.

    Raises InputError for a volume without voxels.
    """
    data = node.GetImageData()
    scalars = None if data is None else data.GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        raise InputError(f"'{node.GetName()}' has no image data: load the image, or choose another volume.")
    shape = data.GetDimensions()[::-1]
    array = numpy_support.vtk_to_numpy(scalars)
    return array.reshape(shape) if array.ndim == 1 else array.reshape(*shape, -1)


def image_of(node: Any) -> Image:
    """A scalar or label map volume where it lies in the world; the array is a view, no copy.

    Raises InputError for volumes with several values per voxel, without voxels or under a non-linear
    transform.
    """
    array = array_of(node)
    if array.ndim != 3:
        raise InputError(
            f"'{node.GetName()}' has {array.shape[3]} values per voxel (a colour or vector volume): choose a "
            "volume with one value per voxel, or extract one channel first."
        )
    return Image(array, world_from_voxel(node), node.GetName())


def volume_on(
    volume: Any,
    image: Image | NDArray[Any],
    name: str,
    *,
    node: Any = None,
    label: bool = False,
    display_like: Any = None,
) -> Any:
    """A volume node on the voxels of another volume, with its directions and parent transform.

    image: (k, j, i) of that volume's shape; floats are kept as float32, labels as whole numbers.
    node: filled instead of a new one.  display_like: volume whose window, level and colours are taken over.
    Raises InputError when `node` is of another kind, GeometryError when the shapes differ.
    """
    array = image.array if isinstance(image, Image) else np.asarray(image)
    if array.shape != array_of(volume).shape[:3]:
        raise GeometryError(
            f"'{name}' has {array.shape[::-1]} voxels and '{volume.GetName()}' has "
            f"{volume.GetImageData().GetDimensions()}: was it changed during the run?"
        )
    node = _volume_node(volume.GetScene(), node, name, label)
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(vtk_image(_stored(array, label)))
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    _display(node, display_like)
    return node


def jacobian_on(fixed: Any, image: Image | NDArray[Any], name: str, *, node: Any = None) -> Any:
    """A volume of Jacobian determinants, coloured around 1: blue = smaller, red = larger, yellow = folded.

    Raises what `volume_on` raises.
    """
    node = volume_on(fixed, image, name, node=node)
    node.SetAttribute(JACOBIAN, "determinant")
    show_between(node, *JACOBIAN_RANGE, _jacobian_colours(node.GetScene()))
    return node


def grid_points(node: Any, about: int = 20_000) -> NDArray[np.float64]:
    """Evenly spread voxel centres of a volume, about so many, (n, 3) RAS mm."""
    shape = array_of(node).shape[:3]
    stride = max(1.0, (np.prod(shape) / about) ** (1 / 3))
    axes = [np.linspace(0, n - 1, max(min(n, 2), round(n / stride))).round() for n in shape]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    world = world_from_voxel(node)
    return np.asarray(index @ world[:3, :3].T + world[:3, 3])


def place_of(node: Any) -> dict[str, Any]:
    """Where a volume's voxels are, without their values: shape (k, j, i) and world_from_voxel."""
    return {"shape": list(array_of(node).shape[:3]), "world_from_voxel": world_from_voxel(node).tolist()}


def velocity_node(
    scene: Any,
    image: Image,
    steps: int,
    matrices: Sequence[Matrix] | Matrix,
    name: str,
    fixed: Any,
    moving: Any,
    *,
    node: Any = None,
    parent: Matrix | None = None,
) -> Any:
    """A vector volume node that keeps a stationary velocity, so that its flow can be followed later.

    image: (k, j, i, 3), RAS mm per unit time.  matrices: what is applied after the flow, fixed -> moving, the
    first one first.  node: filled instead of a new one.  parent: world from the moving volume's parent space
    when the registration began, which is remembered; None = as it is now.
    Raises InputError when `node` is no vector volume.
    """
    if node is not None and not node.IsA("vtkMRMLVectorVolumeNode"):
        raise InputError(f"'{node.GetName()}' is no vector volume: choose another node for the velocity.")
    parent = parent_matrix(moving) if parent is None else parent
    node = node or scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", scene.GetUniqueNameByString(name))
    array = np.asarray(image.array, dtype=np.float32)
    node.SetAndObserveImageData(vtk_image(array))
    node.SetIJKToRASMatrix(vtk_from_matrix(image.world_from_voxel[:, KJI]))
    node.SetAndObserveTransformNodeID(None)
    initial = np.eye(4)
    for matrix in np.reshape(np.asarray(matrices, dtype=float), (-1, 4, 4)):
        initial = matrix @ initial
    largest = _largest(array)
    place = image.world_from_voxel @ [*largest, 1]
    node.SetAttribute(VELOCITY, "stationary")
    node.SetAttribute(STEPS, str(int(steps)))
    node.SetAttribute(INITIAL, text_of(initial))
    node.SetAttribute(MARK, text_of(np.array([*place[:3], *array[largest]])))
    node.SetNodeReferenceID(FIXED, fixed.GetID())
    node.SetNodeReferenceID(MOVING, moving.GetID())
    remember_parent(node, parent)
    return node


def velocity_volumes(node: Any) -> tuple[Any, Any]:
    """The fixed and the moving volume of a velocity, None for one that is no longer in the scene."""
    return node.GetNodeReference(FIXED), node.GetNodeReference(MOVING)


def velocity_of(node: Any) -> dict[str, Any]:
    """What a node of `velocity_node` holds, as a "flow" job takes it: velocity, steps, initial.

    Raises InputError when the node holds no velocity or was changed since.
    """
    if node is None or node.GetAttribute(VELOCITY) is None:
        raise InputError(
            "This node holds no velocity of a registration: register again and keep the velocity."
        )
    try:
        steps, initial = int(node.GetAttribute(STEPS)), numbers_of(node.GetAttribute(INITIAL)).reshape(4, 4)
        array = _unturned(array_of(node), local_from_voxel(node), numbers_of(node.GetAttribute(MARK)))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The velocity in '{node.GetName()}' was changed ({error}): register again."
        ) from error
    velocity = Image(array, world_from_voxel(node), node.GetName())
    return {"velocity": velocity, "steps": steps, "initial": [{"matrix": initial.tolist()}]}


def _largest(array: NDArray[Any]) -> tuple[int, ...]:
    """Index (k, j, i) of the vector with the largest x and y components."""
    sideways = np.abs(array[..., 0]) + np.abs(array[..., 1])
    return tuple(int(n) for n in np.unravel_index(int(sideways.argmax()), sideways.shape))


def _unturned(array: NDArray[Any], world: Matrix, mark: NDArray[np.float64]) -> NDArray[Any]:
    """The vectors as they were kept; raises ValueError when they are others.

    Readers differ in whether they take the vectors of a file for LPS; one remembered vector tells.  It is
    remembered at a point, not a voxel: readers also reverse the slices of a left-handed volume.
    """
    index = np.round(np.linalg.inv(world) @ [*mark[:3], 1])[:3].astype(int)
    if ((index < 0) | (index >= array.shape[:3])).any():
        raise ValueError("it was moved")
    found, kept = array[tuple(index)], mark[3:]
    tolerance = 1e-4 * np.abs(kept).max() + 1e-12
    if np.abs(found - kept).max() <= tolerance:
        return array
    if np.abs(found * [-1, -1, 1] - kept).max() <= tolerance:
        return array * np.array([-1, -1, 1], dtype=array.dtype)
    raise ValueError("its vectors are not the ones that were kept")


def _volume_node(scene: Any, node: Any, name: str, label: bool) -> Any:
    """The given node if it fits, or a new one."""
    kind = "vtkMRMLLabelMapVolumeNode" if label else "vtkMRMLScalarVolumeNode"
    if node is None:
        return scene.AddNewNodeByClass(kind, scene.GetUniqueNameByString(name))
    if node.GetClassName() != kind:
        raise InputError(
            f"'{node.GetName()}' is a {node.GetNodeTagName()} node and cannot hold "
            f"{'labels' if label else 'an image'}: choose another output volume, or a new one."
        )
    return node


def _stored(array: NDArray[Any], label: bool) -> NDArray[Any]:
    """float32 for images; labels in a type VTK has, int16 if they fit."""
    if not label:
        return np.asarray(array, dtype=np.float32)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    return np.asarray(array, dtype=np.int16 if low >= -(2**15) and high < 2**15 else np.int32)


def vtk_image(array: NDArray[Any]) -> Any:
    """vtkImageData with a copy of (k, j, i) or (k, j, i, components)."""
    data = vtk.vtkImageData()
    data.SetDimensions(*array.shape[2::-1])
    flat = np.ascontiguousarray(array).reshape(-1, *array.shape[3:])
    data.GetPointData().SetScalars(numpy_support.numpy_to_vtk(flat, deep=True))
    return data


def _display(node: Any, like: Any) -> None:
    """A display node, with window, level and colours of another volume's."""
    node.CreateDefaultDisplayNodes()
    mine, other = node.GetDisplayNode(), None if like is None else like.GetDisplayNode()
    if other is None:
        return
    if other.GetColorNodeID():
        mine.SetAndObserveColorNodeID(other.GetColorNodeID())
    if hasattr(other, "GetWindow") and hasattr(mine, "SetWindowLevel"):
        mine.AutoWindowLevelOff()
        mine.SetWindowLevel(other.GetWindow(), other.GetLevel())
        mine.SetInterpolate(other.GetInterpolate())


def _jacobian_colours(scene: Any) -> Any:
    """The scene's colour table for determinants."""
    entries: list[Entry] = []
    for index in range(257):
        away = (index - 128) / 128
        end = np.array(SMALLER if away < 0 else LARGER)
        colour = FOLDED if index == 0 else np.array(SAME) * (1 - abs(away)) + end * abs(away)
        entries.append((f"{1 + away:.3f}", colour))
    return colour_table(scene, "determinant", "Jacobian determinant", entries)
