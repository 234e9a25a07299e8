"""Velocities of a group that met in its middle, as the fixed image sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffeoRegLib.flows.exponential import midpoint_exp
from DiffeoRegLib.flows.logarithm import logarithm
from DiffeoRegLib.space.field import change_grid, compose
from DiffeoRegLib.space.grid import Grid

FEWEST = 16
"""Axes with fewer voxels are not made coarser."""


@torch.no_grad()
def seen_from(velocities_vox: Tensor, grid: Grid, fixed: int) -> Tensor:
    """The velocities w_k with exp(w_k) = exp(z_k) o exp(-z_p), p the fixed image, which rests; in place.

    velocities_vox: (K, d, *grid.shape), voxels.  Of two images w is exactly the difference of both; of more a
    logarithm, see `flows.logarithm`.  What it adds to the difference is smooth: every second voxel will do.
    """
    small = grid.coarsened([2 if size >= FEWEST else 1 for size in grid.shape])
    own = velocities_vox[fixed : fixed + 1].clone()
    few = change_grid(own, grid, small)
    into, back = midpoint_exp(-few), midpoint_exp(few)
    for index in range(len(velocities_vox)):
        one = velocities_vox[index : index + 1]
        wanted = one - own
        if index != fixed and len(velocities_vox) > 2:
            other = change_grid(one, grid, small)
            forward, backward = compose(midpoint_exp(other), into), compose(back, midpoint_exp(-other))
            guess = other - few
            wanted += change_grid(logarithm(forward, backward, guess).velocity_vox - guess, small, grid)
        velocities_vox[index : index + 1] = wanted
    return velocities_vox
