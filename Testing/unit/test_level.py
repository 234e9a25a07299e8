"""What a level is made of: its grids, its weights, its first comparison, its steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.losses.similarity import mse
from DiffeoRegLib.optimise import (
    LARGEST_STEP_VOX,
    Level,
    compare,
    half_way,
    layout,
    optimise_level,
    squarings_for,
)
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import warp
from Testing.level_plans import COARSE, PLAN
from Testing.scenes import pair_of, smooth_velocity, texture


@pytest.fixture(params=[(24, 28, 26), (36, 40), (23, 27)], ids=["3d", "2d", "odd"])
def scene(request):
    """(fixed, moving, true displacement): fixed(x) = moving(x + u(x))."""
    moving = texture(request.param)
    u = exp(smooth_velocity(request.param), 6)
    return warp(moving, u), moving, u


def test_layout_of_anisotropic_grids():
    grid = Grid((40, 96, 90), np.diag([3.0, 1.0, 1.0, 1.0]))
    coarse = layout(grid, dataclasses.replace(COARSE, level_mm=4.0))
    assert coarse.strides == (1, 4, 4)
    assert coarse.sides == (1, 1, 1)
    assert coarse.grid.same_as(grid.coarsened((1, 4, 4)))
    fine = layout(grid, dataclasses.replace(PLAN, level_mm=1.0))
    assert fine.strides == (1, 1, 1)
    assert fine.sides == (1, 2, 2)
    assert fine.image_grid.same_as(grid)
    assert fine.grid.same_as(grid.coarsened((1, 2, 2)))
    middle = layout(grid, dataclasses.replace(PLAN, level_mm=2.0))
    assert middle.strides == (1, 2, 2)
    assert middle.sides == (2, 2, 2)  # 3 mm is fine enough for a level of 2 mm


def test_layout_leaves_enough_voxels():
    grid = Grid((6, 30), np.diag([1.0, 1.0, 1.0, 1.0]))
    assert layout(grid, dataclasses.replace(COARSE, level_mm=8.0)).strides == (1, 7)
    assert layout(grid, PLAN).sides == (1, 2)


def test_a_level_reads_both_images_as_they_are(scene):
    fixed, moving, _ = scene
    pair = pair_of(fixed, moving)
    level = Level(pair, dataclasses.replace(PLAN, similarity="mse"), Settings())
    rest = torch.zeros(1, pair.grid.dim, *level.grid.shape)
    seen = compare(level, rest, rest)
    torch.testing.assert_close(level.blocks.join(seen.fixed_read)[None], fixed, atol=1e-5, rtol=0)
    torch.testing.assert_close(level.blocks.join(seen.moving_read)[None], moving, atol=1e-5, rtol=0)
    whole = [level.blocks.pad(v[0])[None] for v in (fixed, moving)]  # odd sizes: the border counts twice
    assert seen.value == pytest.approx(float(mse(*whole)), rel=1e-4)


def test_masks_meet_in_half_way_space():
    """The mask of each image moves with that image."""
    shape = (12, 10)
    first, second = torch.zeros(1, 1, *shape), torch.zeros(1, 1, *shape)
    first[..., 2:, :], second[..., :9, :] = 1.0, 1.0
    image = texture(shape)
    pair = pair_of(image, image, fixed_mask=first, moving_mask=second)
    level = Level(pair, COARSE, Settings())
    to_moving = torch.zeros(1, 2, *shape)
    to_moving[:, 0] = 1.0
    weight = level.weight(to_moving, -to_moving)
    assert weight[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert torch.equal(Level(pair_of(image, image), COARSE, Settings()).weight(to_moving, -to_moving),
                       torch.ones(shape))  # fmt: skip


@pytest.mark.parametrize(("steps", "expected"), [(1, 0), (2, 1), (3, 2), (16, 4), (17, 5)])
def test_steps_asked_for(steps, expected):
    assert squarings_for(torch.full((1, 2, 4, 4), 9.0), Settings(steps=steps)) == expected


@pytest.mark.parametrize(("size", "expected"), [(0.0, 1), (0.4, 1), (2.0, 1), (2.1, 2), (8.0, 3), (-8.1, 4)])
def test_automatic_steps_follow_the_largest_component(size, expected):
    velocity = torch.zeros(1, 2, 4, 4)
    velocity[0, 1, 2, 2] = size * LARGEST_STEP_VOX
    assert squarings_for(velocity, Settings()) == expected


@pytest.mark.parametrize("squarings", [0, 1, 4])
def test_half_way_is_the_flow_of_half_the_velocity(squarings):
    velocity = smooth_velocity((20, 22), 1.0)
    to_moving, to_fixed = half_way(velocity, squarings)
    for found, sign in ((to_moving, 0.5), (to_fixed, -0.5)):
        torch.testing.assert_close(found, exp(sign * velocity, max(0, squarings - 1), first_step=2))
        exact = exp(sign * velocity, 10)
        assert float((found - exact).abs().amax()) < 0.1 * float(exact.abs().amax())


def test_landmarks_are_read_in_voxels_of_the_velocity_grid():
    """Cell-centred: the middle of a fine block of two is the centre of the coarse voxel."""
    image = texture((16, 20))
    points = torch.tensor([[0.5, 6.5, 15.5], [4.5, 0.0, 10.0]])[None]
    pair = pair_of(image, image, fixed_points_vox=points, moving_points_vox=points + 2)
    fixed, moving = Level(pair, PLAN, Settings()).points
    assert fixed.tolist() == [[[0.0, 3.0, 7.5], [2.0, -0.25, 4.75]]]
    torch.testing.assert_close(moving, fixed + 1)


def test_forces_are_taken_per_millimetre():
    """The first step, in mm, is the derivative by millimetres: per voxel over the spacing, axis by axis."""
    moving = texture((20, 24))
    fixed = warp(moving, smooth_velocity((20, 24), 1.0))
    plan = dataclasses.replace(COARSE, similarity="mse", iterations=1, update_sigma=0.01, velocity_sigma=0.0)
    steps = []
    for spacing in ((1.0, 1.0), (1.0, 1.6)):
        level = Level(pair_of(fixed, moving, spacing), plan, Settings())
        start = torch.zeros(1, 2, *level.grid.shape)
        velocity = optimise_level(start, level, plan, Settings(), lambda *_: None)
        per_voxel = velocity * torch.tensor(spacing).view(1, 2, 1, 1).square()
        steps.append(per_voxel / per_voxel.norm())
    torch.testing.assert_close(*steps)
