"""Segmentations and label maps carried onto the fixed volume.

Everything is resampled once, nearest neighbour, straight from where the user has it: hardening a transform
and then resampling would round twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
import vtk

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes.layers import (
    BINARY,
    Array,
    Grid,
    Layer,
    binary_segmentation,
    chain,
    grid_of,
    grid_of_image,
    label_map_layer,
    oriented_geometry,
    oriented_image,
    resample,
    segment_layers,
)
from DiffeoRegPanel.nodes.places import parent_matrix, parent_of
from DiffeoRegPanel.nodes.regions import labels_of, mask_of, matched_labels, overlap_notes

__all__ = ["labels_of", "mask_of", "matched_labels", "overlap_notes", "transfer", "transfer_label_map"]


def transfer(
    segmentation: Any, transform: Any, fixed: Any, *, name: str | None = None, node: Any = None
) -> Any:
    """The segmentation carried onto the grid of the fixed volume: a vtkMRMLSegmentationNode.

    transform: vtkAbstractTransform from fixed world point to moving world point, or the output transform node
    of a run (the segmentation may lie under it).  node: a segmentation node to fill, None = a new one.
    Names, colours, terminology, tags, label values, overlaps and the display are kept; the result lies under
    the parent transform of the fixed volume.
    Raises InputError for non-linear parent transforms, and when there is no segment to carry.
    """
    _refuse_itself(segmentation, node)
    grid, local_from_fixed = grid_of(fixed), _local_from_fixed(segmentation, transform, fixed)
    source = binary_segmentation(segmentation, _filling_grid(segmentation, grid))
    layers = segment_layers(source, segmentation.GetName())
    carried = _carried(source, layers, resample(layers, grid, local_from_fixed), grid)
    target = node or _new_node(segmentation, name or f"{segmentation.GetName()} on {fixed.GetName()}")
    target.SetAndObserveTransformNodeID(fixed.GetTransformNodeID())
    target.SetAndObserveSegmentation(carried)
    target.SetReferenceImageGeometryParameterFromVolumeNode(fixed)
    target.CreateDefaultDisplayNodes()
    if segmentation.GetDisplayNode() is not None:  # after the segments: it has properties for each of them
        target.GetDisplayNode().CopyContent(segmentation.GetDisplayNode())
    return target


def transfer_label_map(
    label_map: Any, transform: Any, fixed: Any, *, name: str | None = None, node: Any = None
) -> Any:
    """The label map carried onto the grid of the fixed volume: a vtkMRMLLabelMapVolumeNode.

    The arguments are those of `transfer`; values and colour table are kept.
    """
    _refuse_itself(label_map, node)
    grid = grid_of(fixed)
    layer = label_map_layer(label_map)
    labels = resample([layer], grid, _local_from_fixed(label_map, transform, fixed))[0]
    target = node or _new_node(label_map, name or f"{label_map.GetName()} on {fixed.GetName()}")
    target.SetAndObserveTransformNodeID(fixed.GetTransformNodeID())
    image = vtk.vtkImageData()  # voxels only: in a volume node, the node says where they lie
    image.DeepCopy(oriented_image(labels, grid))
    image.SetOrigin(0, 0, 0)
    image.SetSpacing(1, 1, 1)
    image.SetDirectionMatrix(1, 0, 0, 0, 1, 0, 0, 0, 1)
    target.SetAndObserveImageData(image)
    target.CopyOrientation(fixed)
    target.CreateDefaultDisplayNodes()
    if label_map.GetDisplayNode() is not None:
        target.GetDisplayNode().CopyContent(label_map.GetDisplayNode())
        target.GetDisplayNode().SetAndObserveColorNodeID(label_map.GetDisplayNode().GetColorNodeID())
    return target


def _new_node(source: Any, name: str) -> Any:
    scene = source.GetScene()
    return scene.AddNewNodeByClass(source.GetClassName(), scene.GetUniqueNameByString(name))


def _refuse_itself(source: Any, node: Any) -> None:
    if node is source:
        raise InputError(f"'{source.GetName()}' cannot be carried onto itself: choose another output.")


def _local_from_fixed(node: Any, transform: Any, fixed: Any) -> Any:
    """From the fixed volume's own coordinates, through the registration, to those of a moving node."""
    if not transform.IsA("vtkMRMLTransformNode"):
        return chain(parent_matrix(fixed), transform, np.linalg.inv(parent_matrix(node)))
    through = vtk.vtkGeneralTransform()
    transform.GetTransformFromWorld(through)
    if node.GetTransformNodeID() == transform.GetID():
        return chain(parent_matrix(fixed), through)
    return chain(parent_matrix(fixed), through, parent_of(transform), np.linalg.inv(parent_matrix(node)))


def _filling_grid(segmentation: Any, fixed: Grid) -> Grid:
    """Where closed surfaces are filled: the grid they came from, or voxels as fine as the fixed volume's."""
    converter = slicer.vtkSegmentationConverter
    known = segmentation.GetSegmentation().GetConversionParameter(
        converter.GetReferenceImageGeometryParameterName()
    )
    image = slicer.vtkOrientedImageData()
    if known and converter.DeserializeImageGeometry(known, image, False):
        return grid_of_image(image)
    bounds = np.zeros(6)
    segmentation.GetSegmentation().GetBounds(bounds)
    spacing = float(np.linalg.norm(fixed.local_from_index[:3, :3], axis=0).min())
    local_from_index = np.diag([spacing, spacing, spacing, 1.0])
    local_from_index[:3, 3] = bounds[::2] - spacing
    shape = np.ceil((bounds[1::2] - bounds[::2]) / spacing).astype(int) + 3
    return Grid(tuple(shape[::-1].tolist()), local_from_index)


def _carried(source: Any, layers: Sequence[Layer], arrays: Sequence[Array], grid: Grid) -> Any:
    """A vtkSegmentation with the segments of another on new layers, everything else as it was."""
    images = [oriented_image(array, grid) for array in arrays]
    layer_of = {entry.key: n for n, layer in enumerate(layers) for entry in layer.entries}
    carried = slicer.vtkSegmentation()
    carried.SetSourceRepresentationName(BINARY)
    for key in source.GetSegmentIDs():
        segment = slicer.vtkSegment()
        segment.DeepCopyMetadata(source.GetSegment(key))
        segment.SetLabelValue(source.GetSegment(key).GetLabelValue())
        empty = oriented_geometry(Grid((0, 0, 0), grid.local_from_index))
        segment.AddRepresentation(BINARY, images[layer_of[key]] if key in layer_of else empty)
        carried.AddSegment(segment, key)
    return carried
