"""Closing a map: what it is inside, that it ends, that it does not fold, and that its inverse undoes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.flows.closing import close
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.integrate import covering_grid
from DiffeoRegLib.space.field import compose, folded_percent
from DiffeoRegLib.space.grid import Grid
from Testing.scenes import texture
from Testing.shooting_cases import lengths

SPACING = (2.0, 1.5, 1.0)


def grid_of(shape):
    return Grid(shape, np.diag([*SPACING[: len(shape)], *[1.0] * (4 - len(shape))]))


def part_of(wide, grid):
    """Where the voxels of a grid are in a wider one."""
    start = np.rint(wide.index_from_world(grid.world_from_index([0.0] * grid.dim))).astype(int)
    return tuple(slice(int(a), int(a) + n) for a, n in zip(start, grid.shape, strict=True))


@pytest.mark.parametrize("shape", [(30, 34), (20, 22, 24)])
def test_a_map_stays_as_it_is_and_ends_in_the_ring(shape):
    grid = grid_of(shape)
    cover = grid.padded([3] * grid.dim, [5] * grid.dim)
    u = exp(1.5 * torch.cat([texture(shape, seed, 5.0) for seed in range(grid.dim)], 1), 6)
    flow = close(u, grid, cover)
    inside = part_of(flow.grid, grid)
    assert torch.equal(flow.forward_vox[:, :, *inside], u)
    # Between both grids the border goes on.
    around = part_of(flow.grid, cover)
    shown = flow.forward_vox[:, :, *around]
    assert torch.equal(shown[:, :, 0], shown[:, :, 3])
    assert torch.equal(shown[..., -1], shown[..., -6])
    for axis in range(2, flow.forward_vox.dim()):
        for end in (0, -1):
            assert float(flow.forward_vox.select(axis, end).abs().max()) == 0
            assert float(flow.inverse_vox.select(axis, end).abs().max()) < 1e-3
    ring_mm = [a.start * s for a, s in zip(around, flow.grid.spacing, strict=True)]
    assert min(ring_mm) >= 10.0
    assert folded_percent(flow.forward_vox) == 0
    rest = lengths(compose(flow.inverse_vox, flow.forward_vox))
    assert float(rest.mean()) < 0.01
    assert float(rest.max()) < 0.3  # where the ring bends most, in its corners
    assert float(rest[:, *inside].max()) < 0.1
    assert flow.notes == []
    assert flow.velocity_vox.shape[0] == 0


def test_a_ring_too_narrow_for_the_motion_is_widened():
    grid = grid_of((30, 30))
    flow = close(torch.full((1, 2, 30, 30), 8.0), grid, grid, 2.0)
    # 16 mm along the first axis: a cosine over less than pi / 2 times that turns over.
    before = part_of(flow.grid, grid)[0].start
    assert before * 2.0 > 16 * np.pi / 2
    assert folded_percent(flow.forward_vox) == 0
    assert flow.notes == []
    assert part_of(close(torch.zeros(1, 2, 30, 30), grid, grid, 2.0).grid, grid)[0].start == 1


def test_without_a_ring_nothing_is_added():
    grid = grid_of((30, 30))
    cover = grid.padded([2, 2], [2, 2])
    flow = close(torch.full((1, 2, 30, 30), 3.0), grid, cover, 0.0)
    assert flow.grid.same_as(covering_grid(grid, cover))
    assert torch.equal(flow.forward_vox, torch.full((1, 2, 34, 34), 3.0))


def test_a_map_that_folds_is_smoothed_and_the_note_says_so():
    grid = grid_of((30, 30))
    u = torch.zeros(1, 2, 30, 30)
    u[:, 0, 12:18, 12:18] = 4 * texture((6, 6), sigma=1.0)[0]
    assert folded_percent(u) > 0
    flow = close(u, grid, grid)
    assert folded_percent(flow.forward_vox) == 0
    (note,) = flow.notes
    assert note.startswith("The map was smoothed where it would fold, in ")
    away = part_of(flow.grid, grid)
    assert torch.equal(flow.forward_vox[:, :, *away][..., 29, 29], u[..., 29, 29])
