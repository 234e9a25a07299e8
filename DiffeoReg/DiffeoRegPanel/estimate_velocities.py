"""What the search after a network with time steps needs, as far as sizes tell: for the guess before Apply.

CPU seconds of one core (AMD EPYC).  What is said of the search mirrors methods/velocity_search.py of the
engine, which needs torch; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.settings import Settings
from DiffeoRegPanel.estimate_momentum import COMPARE_SECONDS_PER_MVOX, EVALUATIONS

ITERATIONS: Mapping[str, tuple[int, ...]] = {
    "fast": (0,),
    "balanced": (10, 20, 8),
    "accurate": (20, 40, 25),
}
"""At twice the voxel size of the network, at that size, and at the working one."""
STEP_SECONDS_PER_MVOX = 0.16  # one step there and back, with its smoothing
HALF = 2  # voxels of the images along those of the velocities
FINER = 0.75  # velocities get finer only where that is worth it
FLOAT_BYTES, SEARCH_COPIES, COMPARISON_BYTES = 4, 32, 100
STEPS = 8  # where neither settings nor card say how many


def counts_of(settings: Settings) -> tuple[int, ...]:
    """Iterations per level, coarse to fine."""
    return settings.iterations or ITERATIONS[settings.effort]


def levels_of(settings: Settings, network_mm: float, finest_mm: float) -> tuple[float, ...]:
    """Voxel sizes of the images, mm, matching `counts_of`."""
    own = (HALF * network_mm, network_mm, finest_mm)
    return settings.levels_mm or own[: len(counts_of(settings))]


def search_seconds(
    card: Card, settings: Settings, network_mm: float, spacing_mm: float, mvox: float, dim: int
) -> float:
    """CPU seconds of one core.

    network_mm, spacing_mm: voxel size of the network and of the working grid.  mvox: millions of its voxels.
    """
    steps = (card.trained_steps or STEPS) if settings.steps == "auto" else settings.steps
    total, velocity_mm = 0.0, HALF * network_mm
    for level_mm, count in _levels(settings, network_mm, spacing_mm):
        if HALF * level_mm < FINER * velocity_mm:
            velocity_mm = HALF * level_mm
        images = mvox * (spacing_mm / level_mm) ** dim
        velocities = mvox * (spacing_mm / velocity_mm) ** dim
        cost = COMPARE_SECONDS_PER_MVOX * images + steps * STEP_SECONDS_PER_MVOX * velocities
        total += EVALUATIONS * count * cost
    return total


def search_mb(card: Card, settings: Settings, network_mm: float, network_voxels: float, dim: int) -> float:
    """Peak memory of the search, MB; network_voxels: of the network's grid.  0 without a search."""
    if not any(counts_of(settings)):
        return 0.0
    levels = _levels(settings, network_mm, 0.5 * network_mm)
    copies = FLOAT_BYTES * (card.trained_steps or STEPS) * dim * SEARCH_COPIES
    if min(mm for mm, _ in levels) >= FINER * network_mm:
        copies /= HALF**dim
    return network_voxels * (copies + COMPARISON_BYTES * HALF**dim) / 1e6


def _levels(settings: Settings, network_mm: float, spacing_mm: float) -> Sequence[tuple[float, int]]:
    """Voxel size, at least the working one, and iterations, of the levels that have any."""
    pairs = zip(levels_of(settings, network_mm, spacing_mm), counts_of(settings), strict=False)
    return sorted(((max(mm, spacing_mm), n) for mm, n in pairs if n > 0), reverse=True)
