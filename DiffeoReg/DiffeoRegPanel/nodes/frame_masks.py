"""Where the images of a series count: one region for all of them, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import slicer
import vtk

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.frames import SEQUENCE, Frame, Frames, proxy_of, sequence_shown_by
from DiffeoRegPanel.nodes.places import KJI, Matrix, parent_matrix, vtk_from_matrix
from DiffeoRegPanel.nodes.regions import mask_of
from DiffeoRegPanel.request import Region

MARKED = ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode")
Masks = Region | Sequence[Region | None] | None
"""One region for all frames, or one for each.  A sequence of segmentations, or the node that shows its items
one at a time, is a region for each, too."""


def check_masks(masks: Masks, frames: Frames) -> None:
    """Raise InputError for masks that are not one for all frames, nor one for each; quick."""
    for region in _per_frame(masks, frames):
        if region is None:
            continue
        if not any(region.node.IsA(name) for name in MARKED):
            raise InputError(
                f"'{region.node.GetName()}' is no segmentation and no label map: choose one as the mask, or "
                "a sequence of them."
            )


def masks_of(masks: Masks, frames: Frames) -> list[Image | None] | None:
    """uint8 masks (1 = counts) on the voxels of each frame; None without any.

    Raises InputError as `check_masks`, for a mask that marks nothing in a frame, and for one that excludes
    all of it.
    """
    regions, placed = _per_frame(masks, frames), _placed(masks)
    if all(region is None for region in regions):
        return None
    return [
        None if region is None else _mask(region, frame, placed)
        for region, frame in zip(regions, frames.frames, strict=True)
    ]


def _mask(region: Region, frame: Frame, placed: Matrix) -> Image:
    """placed: world from the space in which the items of a sequence lie."""
    image = frame.image
    mask = mask_of(region, _voxels_of(frame, np.linalg.inv(placed) @ image.world_from_voxel))
    marked = (mask.array == 0).astype(np.uint8) if region.exclude else mask.array
    if not marked.any():
        raise InputError(
            f"The mask '{region.node.GetName()}' excludes all of '{frame.name}': invert it, or use it to "
            "include."
        )
    return Image(marked, image.world_from_voxel, mask.name)


def _per_frame(masks: Masks, frames: Frames) -> list[Region | None]:
    if masks is None:
        return [None] * len(frames)
    if isinstance(masks, Region):
        sequence = _sequence_of(masks.node)
        if sequence is None:
            return [masks] * len(frames)
        return [replace(masks, node=_item(sequence, frame)) for frame in frames.frames]
    if len(masks) != len(frames):
        raise InputError(
            f"'{frames.name}' has {len(frames)} frames, and there are {len(masks)} masks: give one for all, "
            "or one for each, None for a frame without."
        )
    return list(masks)


def _placed(masks: Masks) -> Matrix:
    """The items of a sequence lie where the node that shows them lies."""
    sequence = _sequence_of(masks.node) if isinstance(masks, Region) else None
    shown = None if sequence is None else proxy_of(sequence)
    return np.eye(4) if shown is None else parent_matrix(shown)


def _sequence_of(node: Any) -> Any:
    return node if node.IsA(SEQUENCE) else sequence_shown_by(node)


def _item(sequence: Any, frame: Frame) -> Any:
    item = sequence.GetDataNodeAtValue(frame.value)
    if item is None:
        raise InputError(
            f"The sequence '{sequence.GetName()}' has no mask for '{frame.name}': it needs an item for every "
            "frame, at the same values."
        )
    return item


def _voxels_of(frame: Frame, world_from_voxel: Matrix) -> Any:
    """A volume node, in no scene, that has the voxels of a frame and no values in them."""
    data, node = vtk.vtkImageData(), slicer.vtkMRMLScalarVolumeNode()
    data.SetDimensions(*frame.image.array.shape[::-1])
    node.SetAndObserveImageData(data)
    node.SetIJKToRASMatrix(vtk_from_matrix(world_from_voxel[:, KJI]))
    node.SetName(frame.name)
    return node
