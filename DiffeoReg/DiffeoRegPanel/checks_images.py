"""Checks of the two images: kind, voxels, place in the world, initial transform."""

from __future__ import annotations

from typing import Any

import numpy as np

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes.places import parent_matrix, world_from_voxel
from DiffeoRegPanel.nodes.volumes import array_of
from DiffeoRegPanel.request import Request
from DiffeoRegPanel.request_nodes import inputs_of

SHORTEST_AXIS = 4
"""Fewest voxels along an axis that the engine can register."""
VOLUME, LABEL_MAP = "vtkMRMLScalarVolumeNode", "vtkMRMLLabelMapVolumeNode"
SEGMENTATION, TRANSFORM = "vtkMRMLSegmentationNode", "vtkMRMLTransformNode"


def check_kind(node: Any, role: str) -> None:
    """An image with one value per voxel."""
    name = node.GetName()
    if node.IsA(SEGMENTATION) or node.IsA(LABEL_MAP):
        kind = "segmentation" if node.IsA(SEGMENTATION) else "label map"
        raise InputError(
            f"'{name}' is a {kind}, not an image: choose an image as {role} volume, and '{name}' as a mask, "
            "guidance or evaluation."
        )
    if not node.IsA(VOLUME):
        raise InputError(f"'{name}' is not a volume: choose an image as {role} volume.")
    array = array_of(node)
    if array.ndim != 3:
        raise InputError(
            f"'{name}' has {array.shape[3]} values per voxel (a colour or vector volume): convert it "
            "with the Vector to Scalar Volume module and choose the result."
        )


def is_under(node: Any, transform: Any) -> bool:
    """Whether a transform is the node's parent, or a parent of that."""
    parent = node.GetParentTransformNode()
    while parent is not None and parent is not transform:
        parent = parent.GetParentTransformNode()
    return parent is not None


def check_places(request: Request) -> None:
    """Linear parent transforms only, and voxels that take up space."""
    for _, node in inputs_of(request):
        if node is not request.initial:
            parent_matrix(node)
    for volume in (request.fixed, request.moving):
        axes = world_from_voxel(volume)[:3, :3]
        sizes = np.linalg.norm(axes, axis=0)
        if not np.isfinite(axes).all() or abs(np.linalg.det(axes)) < 1e-6 * np.prod(sizes) or not sizes.all():
            raise InputError(
                f"The voxels of '{volume.GetName()}' have no size in one direction: correct its spacing and "
                "directions in the Volumes module, or take it out of its transform."
            )


def check_dimensions(fixed: Any, moving: Any) -> None:
    """Two volumes, or two single slices, with enough voxels along every axis."""
    for node in (fixed, moving):
        shape = array_of(node).shape
        if sorted(shape)[1] == 1 or min(n for n in shape if n > 1) < SHORTEST_AXIS:
            size = " x ".join(map(str, reversed(shape)))
            raise InputError(
                f"'{node.GetName()}' ({size} voxels) is too thin: every axis of an image needs at least "
                f"{SHORTEST_AXIS} voxels; choose a volume with more slices, or a single slice (without "
                "'Single File', slices in several files are read as one volume)."
            )
    flat = [min(array_of(node).shape) == 1 for node in (fixed, moving)]
    if flat[0] != flat[1]:
        single, full = (fixed, moving) if flat[0] else (moving, fixed)
        raise InputError(
            f"'{single.GetName()}' is a single slice and '{full.GetName()}' is a volume: choose two volumes, "
            "or two single slices."
        )


def check_model(card: Card, fixed: Any, moving: Any) -> None:
    """A trained network for volumes gets volumes, one for slices gets slices."""
    flat = [min(array_of(node).shape[:3]) == 1 for node in (fixed, moving)]
    if card.spacing_mm is None or flat[0] != flat[1] or flat[0] == (len(card.spacing_mm) == 2):
        return
    takes, given = ("volumes", "single slices") if flat[0] else ("single slices", "volumes")
    raise InputError(
        f"'{card.title}' takes {takes}, and these are {given}: choose another method, such as svf."
    )


def check_planes(request: Request) -> None:
    """Two single slices in one plane, where nothing will bring them there."""
    fixed, moving = request.fixed, request.moving
    single = [axis for axis, size in enumerate(array_of(moving).shape) if size == 1]
    if not single or request.initial is not None or request.settings.init != "identity":
        return
    corners = _corners(fixed)
    away = (corners @ np.linalg.inv(world_from_voxel(moving)).T)[:, single[0]]
    if np.abs(away).max() > 0.5:
        distance = np.abs(away).max() * np.linalg.norm(world_from_voxel(moving)[:3, single[0]])
        raise InputError(
            f"The slices '{fixed.GetName()}' and '{moving.GetName()}' lie in different planes, up to "
            f"{distance:.3g} mm apart, and no initial alignment is set: choose one, such as Automatic."
        )


def check_voxels(volume: Any, role: str) -> None:
    """Values that differ somewhere."""
    array = array_of(volume)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        finite = array[np.isfinite(array)]
        if not finite.size:
            raise InputError(
                f"The {role} volume '{volume.GetName()}' holds no valid value (every voxel is NaN or "
                "infinite): load it again, or choose another."
            )
        low, high = float(finite.min()), float(finite.max())
    if low == high:
        raise InputError(
            f"The {role} volume '{volume.GetName()}' has the same value ({low:g}) everywhere, so that "
            "there is nothing to align: choose another."
        )


def check_initial(request: Request) -> list[str]:
    """The initial transform, and whether the images need one."""
    initial = request.initial
    if initial is not None and not initial.IsA(TRANSFORM):
        raise InputError(
            f"'{initial.GetName()}' is not a transform: choose a transform as initial transform."
        )
    if initial is not None and is_under(request.moving, initial):
        raise InputError(
            f"The moving volume '{request.moving.GetName()}' already lies under the initial transform "
            f"'{initial.GetName()}', which would act twice: choose no initial transform, or take the volume "
            "out of it."
        )
    boxes = [_box(volume) for volume in (request.fixed, request.moving)]
    apart = np.maximum(boxes[0][0], boxes[1][0]) > np.minimum(boxes[0][1], boxes[1][1])
    if initial is not None or not apart.any():
        return []
    text = f"'{request.fixed.GetName()}' and '{request.moving.GetName()}' do not overlap in space"
    if request.settings.init == "identity":
        return [f"{text}, and no initial alignment is set: choose one if the result is off."]
    return [f"{text}; the initial alignment brings them together."]


def _box(volume: Any) -> tuple[Any, Any]:
    """Lowest and highest world coordinates of a volume's voxel centres."""
    corners = _corners(volume)
    return corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)


def _corners(volume: Any) -> Any:
    """World coordinates (8, 4) of the outermost voxel centres."""
    last = np.array(array_of(volume).shape[:3]) - 1
    return np.array([[*(last * c), 1] for c in np.ndindex(2, 2, 2)]) @ world_from_voxel(volume).T
