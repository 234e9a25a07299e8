"""What the registration of a group will need in memory, before it is started."""

from __future__ import annotations

import math
from collections.abc import Sequence

from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.estimate import BASE_MB, working_spacing_mm_of

# As methods/group_memory.py of the engine has them, bytes.
FRAME_BYTES, SHARED_BYTES, VIEW_BYTES = 24, 120, 8


def memory_mb(settings: Settings, count: int, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Of the worker process, for so many images of this size; a guess for the whole field of view.

    shape, spacing: in one order of axes, mm.
    """
    wanted = working_spacing_mm_of(shape, spacing, settings)
    sizes = [(n, s) for n, s in zip(shape, spacing, strict=True) if n > 1]
    working = math.prod(math.ceil(n * s / max(wanted, s)) for n, s in sizes)
    frames = count * (FRAME_BYTES * working + VIEW_BYTES * math.prod(shape))
    needed = BASE_MB + (frames + SHARED_BYTES * working) / 1e6
    return min(needed, 1000 * settings.memory_limit_gb) if settings.memory_limit_gb else needed
