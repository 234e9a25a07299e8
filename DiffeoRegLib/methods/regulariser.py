"""How stiff the images were taken to be: the width of the regulariser, mm, as volumes for display."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from DiffeoRegLib.flows.integrate import continued, covering_grid
from DiffeoRegLib.methods.geodesic import Geodesic
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, Transform
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.volume import Volume


def sigma_volumes(
    geodesics: Sequence[Geodesic], initial: Transform, fixed: Grid, moving: Grid
) -> tuple[Volume, Volume]:
    """sigma(x), mm, at the start on the grid of the moving image, at the end on that of the fixed one.

    initial: from fixed to moving points, before the geodesics.  A width is that in fixed space: the initial
    alignment only moves it.  Beyond the map grid it goes on as at its border.
    """
    first, last = geodesics[0].to("cpu"), geodesics[-1].to("cpu")
    start = _on(first.sigma_mm(0.0), first.place.grid, initial.inverse(), fixed, moving)
    end = _on(last.sigma_mm(1.0), last.place.grid, AffineTransform(np.eye(4)), fixed, fixed)
    return start, end


def _on(sigma_mm: Tensor, grid: Grid, place: Transform, fixed: Grid, target: Grid) -> Volume:
    """A width on the map grid, read on a target grid through the way from there to fixed space."""
    wide = covering_grid(grid, fixed)
    values = continued(sigma_mm, grid, wide)[0, 0]
    return warp_volume(Volume(values, wide, "sigma"), place, target, fill=float(values.max()))
