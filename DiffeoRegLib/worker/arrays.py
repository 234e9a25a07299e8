"""Arrays of kept motions on their way between the engine and the scene: as Images of three axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.exchange import Image
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.worker.cubic import thick_grid


def images_of(
    arrays: Mapping[str, NDArray[Any]], place: Callable[[str], Grid], axis: int | None
) -> dict[str, Image]:
    """Arrays (1, channels, *grid.shape) as Images (k, j, i, channels) of the same names.

    place: grid of an array, by its name.  axis: of a single voxel in the fixed image, None in 3D.
    """
    images = {}
    for name, array in arrays.items():
        grid, values = place(name), np.moveaxis(array[0], 0, -1)
        if axis is not None:
            values, grid = np.expand_dims(values, axis), thick_grid(grid, axis)
        images[name] = Image(values, grid.world_from_voxel, name)
    return images


def arrays_of(images: Mapping[str, Image], axis: int | None) -> dict[str, NDArray[Any]]:
    """What `images_of` was given."""
    arrays = {}
    for name, image in images.items():
        values = image.array if axis is None else np.squeeze(image.array, axis)
        arrays[name] = np.ascontiguousarray(np.moveaxis(values, -1, 0)[None])
    return arrays
