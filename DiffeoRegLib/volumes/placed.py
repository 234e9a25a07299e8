"""From voxel values in storage order to a Volume: single slices become 2D, values become float32 or int32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.errors import FileFormatError, GeometryError
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array
from DiffeoRegLib.volumes.volume import Volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns RAS into LPS and back."""
NEARLY_ORTHOGONAL = 1e-3
"""Largest cosine between two axes that still counts as a right angle."""


def placed(array: NDArray[Any], ras_from_kji: Matrix, name: str, *, labels: bool, where: str) -> Volume:
    """Volume of a (k, j, i) array; an axis of one voxel is dropped and becomes the slice direction.

    where: the file, for messages.
    Raises GeometryError for empty or lone axes and singular directions, FileFormatError for label maps
    with fractions.
    """
    if min(array.shape) < 1:
        raise GeometryError(f"'{where}' has an axis without voxels: {array.shape[::-1]}.")
    array, ras_from_kji = without_single_axis(array, ras_from_kji, where)
    try:
        grid = Grid(array.shape, ras_from_kji)
    except GeometryError as error:
        raise GeometryError(
            f"'{where}' has no usable place in the patient: its direction matrix is singular or not finite. "
            "Export it again with its orientation."
        ) from error
    values = _whole_numbers(array, where) if labels else _floats(array)
    return Volume(tensor_from_array(values), grid, name, labels)


def without_single_axis(array: NDArray[Any], ras_from_kji: Matrix, where: str) -> tuple[NDArray[Any], Matrix]:
    """A (k, j, i, ...) array without its axis of one voxel, whose step becomes the affine's third column.

    Raises GeometryError when fewer than two axes have more than one voxel.
    """
    single = [axis for axis, size in enumerate(array.shape[:3]) if size == 1]
    if len(single) > 1:
        size = " x ".join(str(n) for n in array.shape[2::-1])
        raise GeometryError(f"'{where}' has {size} voxels: at least two axes need more than one voxel.")
    if not single:
        return array, ras_from_kji
    rest = [axis for axis in range(3) if axis != single[0]]
    return array.squeeze(single[0]), ras_from_kji[:, [*rest, single[0], 3]]


def storage_array(volume: Volume) -> tuple[NDArray[Any], Matrix]:
    """(k, j, i) array of the smallest fitting type and its RAS affine on (i, j, k); undoes `placed`."""
    array = array_from_tensor(volume.data)
    if volume.grid.dim == 2:
        array = array[None]
        matrix = volume.grid.world_from_voxel[:, [1, 0, 2, 3]]
    else:
        matrix = volume.grid.world_from_voxel[:, [2, 1, 0, 3]]
    return array.astype(storage_type(array)), np.asarray(matrix)


def storage_type(array: NDArray[Any]) -> np.dtype[Any]:
    """float32 for an image, the smallest common integer type for whole numbers."""
    if not np.issubdtype(array.dtype, np.integer) or array.size == 0:
        return np.dtype(np.float32)
    low, high = int(array.min()), int(array.max())
    for kind in (np.uint8, np.uint16, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.int64)


def shear_of(matrix: Matrix) -> float:
    """Largest cosine between two of the three axes of a 4x4 affine; 0 = all at right angles."""
    unit = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return float(np.abs(unit.T @ unit - np.eye(3)).max())


def _floats(array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float32 is infinite: prepare() says so
        return array.astype(np.float32)


def _whole_numbers(array: NDArray[Any], where: str) -> NDArray[np.int32]:
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(invalid="ignore", over="ignore"):
            near = np.abs(array - np.rint(array)) < 1e-3
        if not near.all():
            raise FileFormatError(
                f"'{where}' is no label map: it holds fractions or invalid numbers. "
                "Give a segmentation with whole numbers."
            )
        array = np.rint(array)
    if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise FileFormatError(f"'{where}' holds labels beyond 32 bits. Renumber them.")
    return array.astype(np.int32)
