"""How coarse a grid still holds a displacement field, and what it costs to store it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.lattice import slabs
from DiffeoRegLib.space.sample import sample
from DiffeoRegLib.space.transform import DisplacementTransform, Transform, displacement_on

STRIDES = (2, 4, 8)


def storage_grid(transform: Transform, full_grid: Grid, tolerance_mm: float = 0.01) -> Grid:
    """The coarsest cell-centred grid whose linear interpolant is the displacement within a tolerance.

    full_grid: where the transform matters, usually the fixed image's grid; strides 1, 2, 4, 8 of it are
    tried on every axis. Half a coarse voxel at the ends repeats the edge value, so a field gets coarse only
    along axes where it is flat at the ends. A field that lives on a grid with fewer voxels already starts
    from that one.
    """
    grid = full_grid
    if isinstance(transform, DisplacementTransform) and transform.grid.voxel_count < full_grid.voxel_count:
        grid = transform.grid
    alone = [_strides_of(axis, transform, grid, tolerance_mm) for axis in range(grid.dim)]
    choices = sorted(
        product(*[[*strides, 1] for strides in alone]), key=lambda s: grid.coarsened(s).voxel_count
    )
    for strides in choices:
        if max(strides) == 1 or _reproduces(transform, grid, strides, tolerance_mm):
            return grid.coarsened(strides)
    return grid


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


def _strides_of(axis: int, transform: Transform, grid: Grid, tolerance_mm: float) -> list[int]:
    """The strides that one axis bears; where a stride loses too much, larger ones are not tried."""
    borne: list[int] = []
    for s in STRIDES:
        if grid.shape[axis] <= s or not _reproduces(transform, grid, _only(axis, s, grid), tolerance_mm):
            break
        borne.append(s)
    return borne


def _only(axis: int, stride: int, grid: Grid) -> tuple[int, ...]:
    """Stride of one axis, 1 on the others."""
    return tuple(stride if a == axis else 1 for a in range(grid.dim))


def _reproduces(transform: Transform, grid: Grid, strides: Sequence[int], tolerance_mm: float) -> bool:
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
