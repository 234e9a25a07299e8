"""What the registration of a group takes, bytes, from sizes alone."""

from __future__ import annotations

import math
from collections.abc import Callable

from DiffeoRegLib.methods.base import Needs
from DiffeoRegLib.methods.group_search import similarity_of
from DiffeoRegLib.methods.trained import strides_on
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.working_grid import BASE_BYTES

FRAME_BYTES = 24
"""Per working voxel and image: it, what is read of it, the derivative by that, velocities and updates."""
SHARED_BYTES = 120
"""Per working voxel once: the flow of one image, window sums or the kernels of a histogram."""
VIEW_BYTES = 8
"""Per voxel of the common view and image: as it was given, and aligned."""


def memory_of_group(
    settings: Settings, count: int, view: Grid, needs: Needs | None = None
) -> Callable[[Grid], int]:
    """Peak memory of a run with so many images on a working grid, bytes; needs: of a network, if any."""
    similarity_of(settings)

    def estimate(working: Grid) -> int:
        frames = count * (FRAME_BYTES * working.voxel_count + VIEW_BYTES * view.voxel_count)
        search = SHARED_BYTES * working.voxel_count
        if needs is None:
            return BASE_BYTES + frames + search
        seen = working.voxel_count // math.prod(strides_on(working, needs.spacing_mm))
        return BASE_BYTES + frames + max(search, needs.memory_bytes(seen))

    return estimate
