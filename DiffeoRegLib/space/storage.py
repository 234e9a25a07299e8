"""How coarse a grid still holds a displacement field, and what it costs to store it."""

from __future__ import annotations

import numpy as np
import torch

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.lattice import slabs
from DiffeoRegLib.space.sample import sample
from DiffeoRegLib.space.transform import DisplacementTransform, Transform, displacement_on

STRIDES = (8, 4, 2)


def storage_grid(transform: Transform, full_grid: Grid, tolerance_mm: float = 0.01) -> Grid:
    """The coarsest cell-centred grid whose linear interpolant is the displacement within a tolerance.

    full_grid: where the transform matters, usually the fixed image's grid; strides 1, 2, 4, 8 of it are
    tried axis by axis. A field that lives on a grid with fewer voxels already starts from that one.
    """
    grid = full_grid
    if isinstance(transform, DisplacementTransform) and transform.grid.voxel_count < full_grid.voxel_count:
        grid = transform.grid
    strides = [1] * grid.dim
    for axis in range(grid.dim):
        for stride in STRIDES:
            trial = [*strides[:axis], stride, *strides[axis + 1 :]]
            if grid.shape[axis] > stride and _reproduces(transform, grid, trial, tolerance_mm):
                strides = trial
                break
    return grid.coarsened(strides)


def storage_bytes(grid: Grid) -> int:
    """Bytes of a displacement field in double precision on a grid, as .h5 holds it."""
    return 3 * 8 * grid.voxel_count


def upright_grid(grid: Grid) -> Grid:
    """The smallest grid at right angles that covers a sheared one, its steps the shortest of the old ones."""
    matrix = grid.world_from_voxel[:3, :3]
    axes, upper = np.linalg.qr(matrix)
    axes = axes * np.sign(np.diag(upper))
    corners = grid.corners_mm() @ axes
    low, high = corners.min(axis=0), corners.max(axis=0)
    steps = np.array([*grid.spacing, np.linalg.norm(matrix[:, 2])][:3])
    shape = np.ceil((high - low) / steps - 1e-6).astype(int)[: grid.dim] + 1
    world = np.eye(4)
    world[:3, :3] = axes * steps
    world[:3, 3] = axes @ low
    return Grid(tuple(int(n) for n in shape), world)


def _reproduces(transform: Transform, grid: Grid, strides: list[int], tolerance_mm: float) -> bool:
    """Whether the field on the coarsened grid gives the displacement at all voxels of `grid`."""
    coarse = DisplacementTransform(
        grid.coarsened(strides), displacement_on(transform, grid.coarsened(strides), extend=True)
    )
    for block in slabs(grid):
        start, stop = [block.start, *[0] * (grid.dim - 1)], [block.start + block.shape[0], *grid.shape[1:]]
        exact = displacement_on(transform, grid.cropped(start, stop))
        position = block.positions_vox(coarse.grid)
        error = (sample(coarse.u_mm, position) - exact).square().sum(dim=1).max()
        if not bool(error <= torch.tensor(tolerance_mm**2)):
            return False
    return True
