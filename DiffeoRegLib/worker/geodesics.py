"""Geodesics on their way between the engine and the scene: arrays as Images, everything else as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from DiffeoRegLib.geodesic_files import SavedGeodesics, pack, unpack
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.worker.arrays import arrays_of, images_of

MOST_KEPT_BYTES = 1 << 30
"""So much a geodesic that has been followed may hold on to; a longer one is shot anew for every position."""


def packed(saved: SavedGeodesics, axis: int | None) -> dict[str, Any]:
    """Geodesics as the scene keeps them: `description`, and `arrays`, Images (k, j, i, channels) by name.

    axis: of a single voxel in the fixed image, None in 3D.
    """
    arrays, description = pack(saved)

    def place(name: str) -> Grid:
        return saved.geodesics[int(name.partition(".")[0])].place.grid

    return {"description": description, "arrays": images_of(arrays, place, axis)}


def unpacked(given: Mapping[str, Any], axis: int | None) -> SavedGeodesics:
    """What `packed` was given; raises FileFormatError for anything else."""
    return unpack(arrays_of(given["arrays"], axis), given["description"], "The momentum")


class Followed:
    """The geodesic that was followed last: from one position of a slider to the next it is shot only once."""

    def __init__(self) -> None:
        self._mark = ""
        self._saved: SavedGeodesics | None = None

    def get(self, given: Mapping[str, Any], axis: int | None) -> SavedGeodesics:
        """`unpacked`, with what has been computed of it already."""
        mark = _mark(given, axis)
        if self._saved is None or mark != self._mark:
            self.forget()
            saved = unpacked(given, axis)
            if held_bytes(saved) > MOST_KEPT_BYTES:
                return saved
            self._mark, self._saved = mark, saved
        return self._saved

    def forget(self) -> None:
        """Give the memory back."""
        self._mark, self._saved = "", None


def held_bytes(saved: SavedGeodesics) -> int:
    """What the states at the ends of all steps take, with both maps."""
    total = 0
    for link in saved.geodesics:
        state = sum(tensor.nbytes for tensor in link.tensors) + 2 * link.tensors[0].nbytes
        total += (link.steps + 1) * state
    return total


def _mark(given: Mapping[str, Any], axis: int | None) -> str:
    """A text that only the same geodesic has."""
    total = hashlib.sha256(json.dumps([given["description"], axis], sort_keys=True).encode("utf-8"))
    for name in sorted(given["arrays"]):
        image = given["arrays"][name]
        total.update(f"\n{name} {image.array.shape}\n".encode())
        total.update(np.ascontiguousarray(image.array).tobytes())
    return total.hexdigest()
