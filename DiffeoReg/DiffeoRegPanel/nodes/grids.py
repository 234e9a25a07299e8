"""Displacement grids: from arrays to VTK's grid transform, and any transform sampled on a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from DiffeoRegLib.errors import GeometryError
from DiffeoRegLib.exchange import Image
from DiffeoRegPanel.nodes.places import KJI, Matrix, vtk_from_matrix
from DiffeoRegPanel.nodes.volumes import vtk_image

NOT_ORTHOGONAL = 1e-3
"""Largest cosine between two axes that still counts as a right angle."""
MOST_VOXELS = 20_000_000
"""A sampled grid has twice the spacing of a volume with more."""
SLICE_COPIES = 2


def grid_transform(image: Image) -> Any:
    """A field of displacements (k, j, i, 3), RAS mm, as vtkOrientedGridTransform, cubic between its nodes.

    Raises GeometryError for a grid without right angles.
    """
    image = thickened(image)
    step = image.world_from_voxel[:3, KJI[:3]]
    spacing = np.linalg.norm(step, axis=0)
    direction = np.eye(4)
    direction[:3, :3] = step / spacing
    if np.abs(direction[:3, :3].T @ direction[:3, :3] - np.eye(3)).max() > NOT_ORTHOGONAL:
        raise GeometryError("The grid of the displacement field has no right angles: register again.")
    data = vtk_image(np.asarray(image.array, dtype=np.float32))
    data.SetSpacing(*spacing.tolist())
    data.SetOrigin(*image.world_from_voxel[:3, 3].tolist())
    grid = slicer.vtkOrientedGridTransform()
    grid.SetGridDirectionMatrix(vtk_from_matrix(direction))
    grid.SetDisplacementGridData(data)
    # As Slicer does when it loads a field: the same before and after saving.
    grid.SetInterpolationModeToCubic()
    return grid


def thickened(image: Image) -> Image:
    """A field of a single slice, repeated on both sides and ending in zeros; any other field as it is.

    VTK continues a single slice for ever and ITK ends it at half its thickness.  Two copies on each side keep
    the cubic interpolant constant within a slice's thickness, and the zeros make both end at the same place.
    """
    array, world = image.array, np.array(image.world_from_voxel, dtype=float)
    for axis in range(3):
        if array.shape[axis] == 1:
            array = np.repeat(array, 2 * SLICE_COPIES + 1, axis=axis)
            ends = [(1, 1) if a == axis else (0, 0) for a in range(4)]
            array = np.pad(array, ends)
            world[:3, 3] -= (SLICE_COPIES + 1) * world[:3, axis]
    return Image(array, world, image.name)


def sampled(transform: Any, shape: Sequence[int], world: Matrix) -> Image:
    """The displacements T(x) - x at the voxels of a grid, float32 (k, j, i, 3), RAS mm."""
    step = world[:3, KJI[:3]]
    spacing = np.linalg.norm(step, axis=0)
    frame = np.eye(4)
    frame[:3] = np.c_[step / spacing, world[:3, 3]]
    # VTK's sampler uses all cores but knows no directions: it works in a frame along the grid's axes.
    chain = vtk.vtkGeneralTransform()
    chain.PostMultiply()
    chain.Concatenate(vtk_from_matrix(frame))
    chain.Concatenate(transform)
    chain.Concatenate(vtk_from_matrix(np.linalg.inv(frame)))
    sampler = vtk.vtkTransformToGrid()
    sampler.SetInput(chain)
    sampler.SetGridScalarTypeToFloat()
    sampler.SetGridSpacing(*spacing.tolist())
    sampler.SetGridExtent(0, shape[2] - 1, 0, shape[1] - 1, 0, shape[0] - 1)
    sampler.Update()
    along = numpy_support.vtk_to_numpy(sampler.GetOutput().GetPointData().GetScalars())
    return Image((along @ frame[:3, :3].T.astype(np.float32)).reshape(*shape, 3), world)


def mapped(transform: Any, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 3) through a vtkAbstractTransform."""
    before, after = vtk.vtkPoints(), vtk.vtkPoints()
    before.SetData(numpy_support.numpy_to_vtk(np.ascontiguousarray(points, dtype=np.float64), deep=True))
    after.SetDataTypeToDouble()
    transform.TransformPoints(before, after)
    return numpy_support.vtk_to_numpy(after.GetData()).copy()


def covering_grid(
    shape: Sequence[int], world: Matrix, beyond_vox: float = 0.5
) -> tuple[tuple[int, ...], Matrix]:
    """Shape (k, j, i) and world_from_voxel of a grid at right angles that covers the voxels of a volume.

    beyond_vox: it also covers so much beyond the outer voxel centres; a single slice stays one.
    """
    axes, upper = np.linalg.qr(world[:3, :3])
    axes = axes * np.sign(np.diag(upper))
    spacing = np.linalg.norm(world[:3, :3], axis=0)
    ends = [(-beyond_vox, n - 1 + beyond_vox) if n > 1 else (0.0, 0.0) for n in shape]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
    along = (corners @ world[:3, :3].T + world[:3, 3]) @ axes
    low, extent = along.min(axis=0), np.ptp(along, axis=0)
    if math.prod(shape) > MOST_VOXELS:
        spacing = 2 * spacing
    counts = np.ceil(extent / spacing - 1e-6).astype(int) + 1
    out = np.eye(4)
    out[:3, :3] = axes * spacing
    out[:3, 3] = axes @ (low - (spacing * (counts - 1) - extent) / 2)
    return tuple(int(n) for n in counts), out
