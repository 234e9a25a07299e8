"""From the displacement of a geodesic on the working grid to the finished map over a whole field of view."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from DiffeoRegLib.flows.halfway import LEAST_RING_MM, MOST_WIDER, WIDER, longest_on_border_mm, ring_folds
from DiffeoRegLib.flows.integrate import (
    INVERSE_TOLERANCE_VOX,
    LEAST_DETERMINANT,
    TAPER_PER_MM,
    Flow,
    continued,
    covering_grid,
    fitted,
    tapered,
)
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.flows.logarithm import unfold_map
from DiffeoRegLib.space.grid import Grid


@torch.no_grad()
def close(inverse_vox: Tensor, grid: Grid, cover: Grid, taper_mm: float | None = None) -> Flow:
    """phi^-1 as a finished map from fixed to moving points without folds, and its pointwise inverse.

    inverse_vox: (1, d, *grid.shape), voxels of `grid`.  The map is continued by its border over the field of
    view of `cover`, and falls to the identity in a ring around that.
    taper_mm: least width of the ring; None = as wide as the motion at the border needs, 0 = no ring.
    A ring that folds is widened; where the map itself folds it is smoothed, and a note says so.
    """
    wide = covering_grid(grid, cover)
    map_vox = continued(inverse_vox, grid, wide)
    if taper_mm != 0:
        map_vox, counts = _in_ring(map_vox, wide, taper_mm)
        wide = wide.padded(counts, counts)
    map_vox, rounds = unfold_map(map_vox, LEAST_DETERMINANT)
    notes = [f"The map was smoothed where it would fold, in {rounds} rounds."] if rounds else []
    back = fitted(invert(map_vox, "mixed", INVERSE_TOLERANCE_VOX))
    nothing = map_vox.new_zeros((0, *map_vox.shape[1:]))
    return Flow(map_vox, back, nothing, wide, 0, notes)


def _in_ring(u_vox: Tensor, grid: Grid, taper_mm: float | None) -> tuple[Tensor, list[int]]:
    """The field with a ring in which it falls to zero without a fold, and voxels of the ring per axis."""
    needed_mm = TAPER_PER_MM * longest_on_border_mm(u_vox, grid)
    width_mm = max(LEAST_RING_MM, needed_mm) if taper_mm is None else taper_mm
    for attempt in range(MOST_WIDER + 1):
        counts = [max(1, math.ceil(width_mm / spacing)) for spacing in grid.spacing]
        out = tapered(u_vox, counts)
        if attempt == MOST_WIDER or not ring_folds(out, counts):
            break
        width_mm = max(needed_mm, WIDER * max(width_mm, max(grid.spacing)))
    return out, counts
