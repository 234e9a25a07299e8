"""Layers of labels, from segmentations and label maps, on the voxel grid of a volume: nearest neighbour.

A layer is one image that one or more segments share; overlapping segments lie in different layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from DiffeoRegLib.errors import InputError
from DiffeoRegPanel.nodes.places import Matrix, matrix_from_vtk, parent_matrix, vtk_from_matrix
from DiffeoRegPanel.request import Region

BINARY = "Binary labelmap"
MOST_LABELS = int(np.iinfo(np.int16).max)

Array = NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """One segment, or one value of a label map: number in the layer, key (segment id) and name."""

    value: int
    key: str
    name: str


@dataclass(frozen=True, eq=False)
class Layer:
    """One image of labels where the user has it (local coordinates of its node), and what its numbers mean.

    labels: (k, j, i) integers; the first voxel has the index `start` (i, j, k).
    local_from_index: 4x4, from the index (i, j, k, 1) to the coordinates of the node, RAS mm.
    """

    labels: Array
    start: tuple[int, int, int]
    local_from_index: Matrix
    entries: tuple[Entry, ...]


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of a volume: shape (k, j, i), and 4x4 from (i, j, k, 1) to its own coordinates, mm."""

    shape: tuple[int, int, int]
    local_from_index: Matrix


def chain(*parts: Any) -> Any:
    """One transform from 4x4 matrices and vtkAbstractTransforms; the first acts first."""
    if all(isinstance(part, np.ndarray) for part in parts):
        linear = vtk.vtkMatrixToLinearTransform()  # VTK resamples far faster when it knows
        linear.SetInput(vtk_from_matrix(np.linalg.multi_dot([np.eye(4), *reversed(parts), np.eye(4)])))
        return linear
    general = vtk.vtkGeneralTransform()
    general.PostMultiply()
    for part in parts:
        general.Concatenate(vtk_from_matrix(part) if isinstance(part, np.ndarray) else part)
    return general


def grid_of(volume: Any) -> Grid:
    """The voxel grid of a volume node, in the node's own coordinates."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return Grid(tuple(reversed(volume.GetImageData().GetDimensions())), matrix_from_vtk(matrix))


def layers_of(region: Region, grid: Grid, world_from_grid: Matrix) -> list[Layer]:
    """The layers of a region; closed surfaces are filled on the grid, which lies in the world by a 4x4.

    Raises InputError for a node that has no segments, and for one that is no segmentation and no label map.
    """
    node = region.node
    if node is not None and node.IsA("vtkMRMLLabelMapVolumeNode"):
        return [_chosen_labels(label_map_layer(node, region.segment_id), region.classes)]
    if node is None or not node.IsA("vtkMRMLSegmentationNode"):
        name = "Nothing" if node is None else f"'{node.GetName()}'"
        raise InputError(f"{name} is no segmentation and no label map: choose one of these.")
    local_from_grid = np.linalg.inv(parent_matrix(node)) @ world_from_grid
    filled = Grid(grid.shape, local_from_grid @ grid.local_from_index)
    return segment_layers(binary_segmentation(node, filled), node.GetName(), region.keys)


def _chosen_labels(layer: Layer, classes: tuple[str, ...]) -> Layer:
    """Of a label map only the chosen labels, where any are; those without a voxel are left out."""
    return replace(layer, entries=tuple(e for e in layer.entries if not classes or e.key in classes))


def binary_segmentation(node: Any, grid: Grid) -> Any:
    """The node's vtkSegmentation, or where it has only surfaces, a copy with them filled on a grid.

    grid: in the node's own coordinates.  The user's node stays as it is.
    """
    segmentation = node.GetSegmentation()
    if segmentation is None or segmentation.GetNumberOfSegments() == 0:
        raise InputError(f"The segmentation '{node.GetName()}' has no segments: add one, or choose another.")
    if segmentation.ContainsRepresentation(BINARY):
        return segmentation
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(segmentation)
    converter = slicer.vtkSegmentationConverter
    copy.SetConversionParameter(
        converter.GetReferenceImageGeometryParameterName(),
        converter.SerializeImageGeometry(oriented_geometry(grid)),
    )
    if not copy.CreateRepresentation(BINARY, True):
        raise InputError(
            f"The segments of '{node.GetName()}' cannot be turned into voxels: "
            "create a binary labelmap representation in the Segmentations module."
        )
    return copy


def segment_layers(segmentation: Any, name: str, keys: Sequence[str] = ()) -> list[Layer]:
    """One layer per image that the segments share, in the order of the segments; empty segments have none.

    keys: IDs of the segments that count, all without any.  name: of the node, for the sentence of the
    InputError when one of them is missing.
    """
    images: dict[str, Any] = {}
    entries: dict[str, list[Entry]] = {}
    for key in keys or segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(key)
        if segment is None:
            raise InputError(f"The segmentation '{name}' has no segment '{key}' any more: choose another.")
        image = segment.GetRepresentation(BINARY)
        if image is None or image.IsEmpty():
            continue
        address = image.GetAddressAsString("")
        images[address] = image
        entries.setdefault(address, []).append(Entry(segment.GetLabelValue(), key, segment.GetName() or key))
    return [_image_layer(image, tuple(entries[address])) for address, image in images.items()]


def _image_layer(image: Any, entries: tuple[Entry, ...]) -> Layer:
    """The voxels are a view: a layer is read, never written."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    start = image.GetExtent()[::2]
    return Layer(_array(image), start, matrix_from_vtk(matrix), entries)


def label_map_layer(node: Any, segment_id: str = "") -> Layer:
    """The layer of a label map node, values named by its colour table; InputError when it has no voxels."""
    if segment_id:
        raise InputError(f"'{node.GetName()}' is a label map, which has no segments: choose all of it.")
    if node.GetImageData() is None or not node.GetImageData().GetNumberOfPoints():
        raise InputError(f"The label map '{node.GetName()}' has no voxels: load it again, or choose another.")
    labels = _array(node.GetImageData())
    if labels.dtype.kind == "f":
        labels = np.rint(np.nan_to_num(labels)).astype(np.int32)
    colours = node.GetDisplayNode().GetColorNode() if node.GetDisplayNode() else None
    values = counts_of(labels)
    if len(values) > MOST_LABELS:
        raise InputError(
            f"The label map '{node.GetName()}' has {len(values)} different values, more than the "
            f"{MOST_LABELS} that are possible: choose a label map, not an image loaded as one."
        )
    entries = tuple(Entry(v, str(v), (colours and colours.GetColorName(v)) or str(v)) for v in values)
    return Layer(labels, (0, 0, 0), grid_of(node).local_from_index, entries)


def counts_of(labels: Array) -> dict[int, int]:
    """How often every value other than 0 occurs."""
    if labels.dtype.kind == "u" and labels.dtype.itemsize <= 2:  # far faster than sorting
        counts = np.bincount(labels.ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(labels, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True) if value}


def _array(image: Any) -> Array:
    """(k, j, i) view of the voxels of a vtkImageData."""
    flat = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return flat.reshape(tuple(reversed(image.GetDimensions())))


def oriented_geometry(grid: Grid) -> Any:
    """A vtkOrientedImageData without voxels."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*reversed(grid.shape))
    image.SetGeometryFromImageToWorldMatrix(vtk_from_matrix(grid.local_from_index))
    return image


def oriented_image(labels: Array, grid: Grid) -> Any:
    """A vtkOrientedImageData with a copy of these voxels (k, j, i)."""
    image = oriented_geometry(grid)
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(labels.ravel(), deep=True))
    return image


def grid_of_image(image: Any) -> Grid:
    """The grid of a vtkOrientedImageData, its first voxel at index 0."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    local_from_index = matrix_from_vtk(matrix)
    local_from_index[:3, 3] = (local_from_index @ [*image.GetExtent()[::2], 1])[:3]
    return Grid(tuple(reversed(image.GetDimensions())), local_from_index)


def resample(layers: Sequence[Layer], grid: Grid, local_from_grid: Any) -> list[Array]:
    """The layers on a grid, nearest neighbour, 0 outside: one array (k, j, i) per layer.

    local_from_grid: vtkAbstractTransform or 4x4 from the coordinates of the grid to those of the layers.
    It is evaluated once for all layers that lie on one lattice, however many there are.
    """
    found: dict[int, Array] = {}
    for numbers in _by_lattice(layers):
        same = [layers[n] for n in numbers]
        low = np.min([layer.start for layer in same], axis=0)
        high = np.max([np.add(layer.start, layer.labels.shape[::-1]) for layer in same], axis=0)
        source = _source_voxels(same[0].local_from_index, low, high, grid, local_from_grid)
        for n in numbers:
            found[n] = _widened(layers[n], low, high).take(source)
    return [found[n] for n in range(len(layers))]


def _by_lattice(layers: Sequence[Layer]) -> Iterable[list[int]]:
    """Numbers of the layers that lie on one lattice."""
    groups: dict[bytes, list[int]] = {}
    for n, layer in enumerate(layers):
        groups.setdefault(np.round(layer.local_from_index, 9).tobytes(), []).append(n)
    return groups.values()


def _source_voxels(local_from_index: Matrix, low: Array, high: Array, grid: Grid, transform: Any) -> Array:
    """(k, j, i) of the grid: which voxel, counted from 1, of a box on a lattice is the nearest; 0 = outside.

    low, high: (i, j, k) first and one past the last index of the box.
    """
    box = vtk.vtkImageData()
    box.SetExtent(*np.stack([low, high - 1], axis=1).ravel().tolist())
    numbers = np.arange(1, np.prod(high - low) + 1, dtype=np.int32)
    box.GetPointData().SetScalars(numpy_support.numpy_to_vtk(numbers))
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(box)
    reslice.SetResliceTransform(chain(grid.local_from_index, transform, np.linalg.inv(local_from_index)))
    reslice.SetInterpolationModeToNearestNeighbor()
    reslice.SetBackgroundLevel(0)
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputExtent(0, grid.shape[2] - 1, 0, grid.shape[1] - 1, 0, grid.shape[0] - 1)
    reslice.Update()
    return _array(reslice.GetOutput()).astype(np.intp)


def _widened(layer: Layer, low: Array, high: Array) -> Array:
    """The voxels of a layer in a box around it, as one row after a 0 for "outside"."""
    row = np.zeros(1 + int(np.prod(high - low)), dtype=layer.labels.dtype)
    i, j, k = np.array(layer.start) - low
    n, m, o = layer.labels.shape
    row[1:].reshape((high - low)[::-1])[k : k + n, j : j + m, i : i + o] = layer.labels
    return row
