"""A displacement from fixed to moving points, as a network predicts it, in the form all methods give."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.jacobian import folded_cells


@torch.no_grad()
def displaced(u_vox: Tensor, grid: Grid, working: Grid) -> Motion:
    """The motion that reads the moving image through a displacement and leaves the fixed one where it is.

    u_vox: (1, d, *grid.shape), voxels of `grid`; moving(x + u(x)) looks like fixed(x).  It becomes the half
    into the moving image on the working grid, beside a velocity at rest, from which iterations can go on.
    Nothing makes such a map invertible: folds are mended when it is finished (`methods/finish.py`), and a
    note says how many there were.
    """
    folded = folded_cells(u_vox)
    count, cells = int(folded.sum()), folded.numel()
    notes: tuple[str, ...] = ()
    if count:
        notes = (
            f"The network's own map folds in {count} of {cells} cells of its grid; it is smoothed there.",
        )
    u_working = change_grid(u_vox, grid, working)
    rest = torch.zeros_like(u_working)
    return Motion(rest, working, (u_working, torch.zeros_like(rest)), notes)
