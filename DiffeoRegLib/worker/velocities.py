"""Velocities that change in time on their way between the engine and the scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from DiffeoRegLib.velocity_files import SavedVelocities, pack, unpack
from DiffeoRegLib.worker.arrays import arrays_of, images_of


def packed(saved: SavedVelocities, axis: int | None) -> dict[str, Any]:
    """Velocities as the scene keeps them: `description`, and `arrays`, Images (k, j, i, channels) by name.

    axis: of a single voxel in the fixed image, None in 3D.
    """
    arrays, description = pack(saved)
    return {"description": description, "arrays": images_of(arrays, lambda _: saved.grid, axis)}


def unpacked(given: Mapping[str, Any], axis: int | None) -> SavedVelocities:
    """What `packed` was given; raises FileFormatError for anything else."""
    return unpack(arrays_of(given["arrays"], axis), given["description"], "The velocities")
