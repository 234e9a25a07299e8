"""Preparation: where the working grid lies, what the images become on it, and what counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import MemoryLimitError, NoOverlapError
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import array_from_tensor
from DiffeoRegLib.volumes import working_grid as room
from DiffeoRegLib.volumes.intensity import background, finite, intensity_window, reduced, smooth
from DiffeoRegLib.volumes.pair import Correspondence, Masks
from DiffeoRegLib.volumes.prepare import prepare
from DiffeoRegLib.volumes.volume import Volume
from DiffeoRegLib.volumes.working_grid import estimate_memory_bytes, fit_to_memory, working_grid

IDENTITY = np.eye(4)


def oblique(shape, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), degrees=25.0, flip=False):
    """A rotated, possibly left-handed grid."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn_z @ turn_x @ np.diag([-1.0 if flip else 1.0, 1, 1]) * np.array(spacing)
    matrix[:3, 3] = origin
    return Grid(shape, matrix)


def world_ramp(grid, direction=(0.3, -0.5, 0.2), name="ramp"):
    """An image that is linear in patient space: exact under linear interpolation, wherever it is read."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    values = grid.world_from_index(index.astype(float)) @ np.array(direction)
    return Volume(torch.tensor(values, dtype=torch.float32), grid, name)


def ball(grid, center, radius, value=100.0, around=0.0, name="ball"):
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    distance = np.linalg.norm(grid.world_from_index(index.astype(float)) - np.array(center), axis=-1)
    inside = distance < radius
    values = np.where(inside, value - distance, around)
    return Volume(torch.tensor(values, dtype=torch.float32), grid, name)


def corners_ok(grid, points):
    position = grid.index_from_world(points)
    return bool(((position > -0.5) & (position < np.array(grid.shape) - 0.5)).all())


# ---------------------------------------------------------------- the working grid


def test_grid_is_cropped_to_both_objects_with_a_margin():
    fixed = ball(Grid((80, 90, 100), np.eye(4)), (30, 40, 50), 10)
    moving = ball(Grid((80, 90, 100), np.eye(4)), (30, 40, 70), 10)
    grid = working_grid(fixed, moving, IDENTITY, Settings())
    low, high = grid.corners_mm().min(axis=0), grid.corners_mm().max(axis=0)
    assert np.all(low <= np.array([20, 30, 40]) - 7)
    assert np.all(high >= np.array([40, 50, 80]) + 7)
    assert grid.voxel_count < 0.35 * fixed.grid.voxel_count
    assert all(n % 2 == 0 for n in grid.shape)


def test_moving_object_is_followed_through_the_initial_alignment():
    fixed = ball(Grid((80, 90, 100), np.eye(4)), (30, 40, 50), 10)
    moving = ball(Grid((80, 90, 100), np.eye(4)), (30, 40, 80), 10)
    shift = np.eye(4)
    shift[2, 3] = 30.0
    aligned = working_grid(fixed, moving, shift, Settings())
    assert aligned.extent_mm[2] < 60 < working_grid(fixed, moving, IDENTITY, Settings()).extent_mm[2]


def test_no_crop_without_a_constant_border():
    grid = Grid((40, 42, 44), np.eye(4))
    noise = Volume(torch.rand(grid.shape, generator=torch.Generator().manual_seed(1)), grid)
    assert background(noise) is None
    assert working_grid(noise, noise, IDENTITY, Settings()).shape == grid.shape


def test_noisy_background_is_background():
    image = ball(Grid((60, 60, 60), np.eye(4)), (30, 30, 30), 12)
    noise = torch.randn(image.data.shape, generator=torch.Generator().manual_seed(2)).abs()
    noisy = Volume(image.data + 2.0 * noise, image.grid)
    around = background(noisy)
    assert around is not None
    assert around.tolerance < 15
    assert around.border_percent < 0.5
    assert max(working_grid(noisy, noisy, IDENTITY, Settings()).shape) < 60


def test_object_cut_by_the_border_is_noticed():
    around = background(ball(Grid((40, 40, 40), np.eye(4)), (0, 20, 20), 15))
    assert around is not None
    assert around.border_percent > 2


def test_included_mask_makes_the_box():
    fixed = ball(Grid((80, 90, 100), np.eye(4)), (30, 40, 50), 25)
    marked = torch.zeros(fixed.grid.shape, dtype=torch.int32)
    marked[28:32, 38:42, 48:52] = 1
    box = working_grid(fixed, fixed, IDENTITY, Settings(), Masks(fixed=Volume(marked, fixed.grid)))
    assert box.shape == (24, 24, 24)
    away = working_grid(
        fixed, fixed, IDENTITY, Settings(), Masks(fixed=Volume(marked, fixed.grid), exclude_fixed=True)
    )
    assert min(away.shape) > 50


def test_padding_goes_beyond_the_field_of_view():
    fixed = world_ramp(oblique((30, 32, 34)))
    plain = working_grid(fixed, fixed, IDENTITY, Settings())
    padded = working_grid(fixed, fixed, IDENTITY, Settings(padding_mm=5.0))
    assert tuple(b - a for a, b in zip(plain.shape, padded.shape, strict=True)) == (10, 10, 10)
    np.testing.assert_allclose(padded.center_mm, plain.center_mm, atol=1e-9)


@pytest.mark.parametrize(
    ("spacing", "wanted", "expected"),
    [
        ((0.5, 0.5, 0.5), 1.0, (1.0, 1.0, 1.0)),
        ((0.9, 0.9, 6.0), 1.0, (0.9, 0.9, 6.0)),
        ((0.3, 0.3, 2.0), 0.9, (0.9, 0.9, 2.0)),
        ((0.7, 0.7, 0.7), 1.0, (1.0, 1.0, 1.0)),
        ((2.0, 2.0, 2.0), 1.0, (2.0, 2.0, 2.0)),
    ],
)
def test_spacing_is_brought_near_the_wanted_one_and_never_finer(spacing, wanted, expected):
    fixed = world_ramp(oblique((40, 44, 36), spacing))
    grid = working_grid(fixed, fixed, IDENTITY, Settings(working_spacing_mm=wanted))
    np.testing.assert_allclose(grid.spacing, expected, rtol=1e-6)
    assert corners_ok(grid, fixed.grid.corners_mm())


def test_small_animals_keep_their_voxels():
    fixed = world_ramp(oblique((100, 100, 100), (0.1, 0.1, 0.1)))
    assert working_grid(fixed, fixed, IDENTITY, Settings()).shape == (100, 100, 100)


def test_sheared_fixed_image_gets_right_angles_around_all_of_it():
    matrix = np.diag([1.0, 1.5, 2.0, 1.0])
    matrix[1, 2] = 0.5
    fixed = world_ramp(Grid((30, 30, 20), matrix))
    grid = working_grid(fixed, fixed, IDENTITY, Settings())
    columns = grid.world_from_voxel[:3, :3]
    off_diagonal = columns.T @ columns - np.diag(np.diag(columns.T @ columns))
    assert np.abs(off_diagonal).max() < 1e-9
    assert corners_ok(grid, fixed.grid.corners_mm())


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("flip", [False, True])
def test_both_images_are_read_in_patient_space(flip):
    """A field linear in patient space stays linear through any grid and any initial alignment."""
    fixed = world_ramp(oblique((36, 30, 28), (1.0, 1.2, 1.5), (5, -7, 3)))
    placed = oblique((44, 40, 40), (1.1, 1.0, 1.3), degrees=-15, flip=flip)
    offset = fixed.grid.center_mm - placed.center_mm
    moving = world_ramp(oblique((44, 40, 40), (1.1, 1.0, 1.3), offset, degrees=-15, flip=flip))
    turn = oblique((4, 4, 4), degrees=4.0, origin=(1.0, 2.0, -1.5)).world_from_voxel
    pair = prepare(fixed, moving, None, None, Settings(), turn)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in pair.grid.shape], indexing="ij"), -1).astype(float)
    world = pair.grid.world_from_index(index)
    for tensor, image, points in (
        (pair.fixed, fixed, world),
        (pair.moving, moving, world @ turn[:3, :3].T + turn[:3, 3]),
    ):
        low, high = intensity_window(image)
        expected = np.clip((points @ np.array((0.3, -0.5, 0.2)) - low) / (high - low), 0, 1)
        position = image.grid.index_from_world(points)
        inside = ((position >= 0) & (position <= np.array(image.grid.shape) - 1)).all(axis=-1)
        assert inside.mean() > 0.3
        np.testing.assert_allclose(array_from_tensor(tensor[0, 0])[inside], expected[inside], atol=2e-4)


def test_reading_on_a_coarser_grid_averages():
    """Voxel-wise alternation has no place on a grid of twice the spacing: it must vanish, not alias."""
    grid = Grid((64, 64, 64), np.diag([0.5, 0.5, 0.5, 1.0]))
    index = np.indices(grid.shape).sum(axis=0)
    base = world_ramp(grid, (1.0, 0.0, 0.0)).data
    striped = Volume(base + 10.0 * torch.tensor((-1.0) ** index, dtype=torch.float32), grid)
    pair = prepare(striped, striped, None, None, Settings(working_spacing_mm=1.0), IDENTITY)
    assert float(pair.fixed.diff(dim=3).abs().max()) < 1e-3
    shifted = np.eye(4)
    shifted[0, 3] = 0.3
    moved = prepare(striped, striped, None, None, Settings(working_spacing_mm=1.0), shifted).moving
    assert float(moved.diff(dim=3).abs().max()) < 1e-3


def test_nan_becomes_the_smallest_value_and_the_input_stays():
    image = world_ramp(oblique((20, 20, 20)))
    data = image.data.clone()
    data[3:5, 4, 4] = torch.nan
    holes = Volume(data, image.grid)
    pair = prepare(holes, image, None, None, Settings(), IDENTITY)
    assert bool(torch.isfinite(pair.fixed).all())
    assert int(torch.isnan(holes.data).sum()) == 2
    assert float(finite(holes).data[3, 4, 4]) == float(data[torch.isfinite(data)].min())
    assert finite(image) is image


def test_intensities_use_the_object_not_the_outliers():
    image = ball(Grid((50, 50, 50), np.eye(4)), (25, 25, 25), 15)
    data = image.data.clone()
    data[25, 25, 25] = 1e6
    low, high = intensity_window(Volume(data, image.grid))
    assert low == 0.0
    assert 95 < high < 101


def test_preset_window_applies_to_its_units_only():
    grid = oblique((20, 20, 20))
    hounsfield = Volume(world_ramp(grid).data * 60.0 - 300.0, grid)
    low = prepare(hounsfield, hounsfield, None, None, Settings(preset="lung-ct"), IDENTITY).fixed
    expected = ((hounsfield.data + 1100.0) / 1700.0).clamp(0, 1)
    torch.testing.assert_close(low[0, 0], expected, atol=1e-4, rtol=0)
    other = world_ramp(grid)
    scaled = prepare(other, other, None, None, Settings(preset="lung-ct"), IDENTITY).fixed
    assert float(scaled.max()) == 1.0
    assert float(scaled.min()) == 0.0


# ---------------------------------------------------------------- masks, labels, points


def test_smaller_moving_field_of_view_counts_only_where_it_has_data():
    fixed = world_ramp(Grid((40, 40, 40), np.eye(4)))
    half = world_ramp(Grid((40, 40, 20), np.eye(4)))
    pair = prepare(fixed, half, None, None, Settings(), IDENTITY)
    assert pair.fixed_mask is None
    assert pair.moving_mask is not None
    assert bool((pair.moving_mask[..., :20] == 1).all())
    assert bool((pair.moving_mask[..., 22:] == 0).all())


def test_flat_background_goes_on_beyond_the_field_of_view():
    fixed = ball(Grid((60, 60, 60), np.eye(4)), (30, 30, 30), 20)
    moving = ball(Grid((46, 46, 46), np.diag([1.0, 1.0, 1.0, 1.0])), (23, 23, 23), 15)
    assert prepare(fixed, moving, None, None, Settings(), IDENTITY).moving_mask is None


@pytest.mark.parametrize("exclude", [False, True])
def test_masks_are_resampled_from_their_own_geometry(exclude):
    fixed = world_ramp(Grid((40, 40, 40), np.eye(4)))
    coarse = torch.zeros((20, 20, 20), dtype=torch.int32)
    coarse[5:15, 5:15, 5:15] = 7
    marked = Volume(coarse, Grid((20, 20, 20), np.eye(4)).refined((1, 1, 1)), "m")
    doubled = Volume(coarse, Grid((40, 40, 40), np.eye(4)).coarsened((2, 2, 2)), "m")
    settings = Settings()
    masks = Masks(fixed=doubled, moving=marked, exclude_fixed=exclude, exclude_moving=exclude)
    pair = prepare(fixed, fixed, masks, None, settings, IDENTITY)
    assert pair.fixed_mask is not None
    assert pair.moving_mask is not None
    for tensor, center, size in ((pair.fixed_mask, 19.5, 9.0), (pair.moving_mask, 9.5, 4.0)):
        index = np.stack(np.meshgrid(*[np.arange(n) for n in pair.grid.shape], indexing="ij"), -1).astype(
            float
        )
        distance = np.abs(pair.grid.world_from_index(index) - center).max(axis=-1)
        values = array_from_tensor(tensor[0, 0])
        deep, far = distance < size, distance > size + 2.5
        assert np.all(values[deep] == (0.0 if exclude else 1.0))
        assert np.all(values[far] == (1.0 if exclude else 0.0))


def test_masks_that_never_meet_leave_nothing_to_register():
    fixed = world_ramp(Grid((40, 40, 40), np.eye(4)))
    left = torch.zeros(fixed.grid.shape, dtype=torch.int32)
    right = left.clone()
    left[..., :4], right[..., 36:] = 1, 1
    masks = Masks(Volume(left, fixed.grid, "left"), Volume(right, fixed.grid, "right"))
    with pytest.raises(NoOverlapError, match="share no space"):
        prepare(fixed, fixed, masks, None, Settings(), IDENTITY)


def test_images_that_never_meet_are_refused():
    fixed = world_ramp(Grid((20, 20, 20), np.eye(4)))
    away = np.eye(4)
    away[0, 3] = 300.0
    with pytest.raises(NoOverlapError):
        prepare(fixed, fixed, None, None, Settings(), away)


def test_guidance_follows_the_initial_alignment():
    grid = Grid((40, 42, 44), np.eye(4))
    fixed, moving = ball(grid, (18, 20, 22), 9), ball(grid, (22, 20, 20), 9)
    shift = np.eye(4)
    shift[:3, 3] = (4, 0, -2)
    labels = [Volume((image.data > 0).to(torch.int32) * 3, grid, "seg", True) for image in (fixed, moving)]
    points = np.array([[18.0, 20.0, 22.0], [15.0, 22.0, 25.0]])
    guidance = Correspondence(labels[0], labels[1], points, points + np.array([4.0, 0.0, -2.0]))
    pair = prepare(fixed, moving, None, guidance, Settings(), shift)
    assert pair.fixed_labels is not None
    assert pair.moving_labels is not None
    assert pair.fixed_labels.dtype == torch.int32
    assert set(pair.fixed_labels.unique().tolist()) == {0, 3}
    assert torch.equal(pair.fixed_labels, pair.moving_labels)
    assert pair.fixed_points_vox is not None
    assert pair.moving_points_vox is not None
    assert pair.fixed_points_vox.shape == (1, 3, 2)
    torch.testing.assert_close(pair.fixed_points_vox, pair.moving_points_vox, atol=1e-4, rtol=0)
    back = pair.grid.world_from_index(array_from_tensor(pair.fixed_points_vox[0]).T.astype(float))
    np.testing.assert_allclose(back, points, atol=1e-4)


def test_two_dimensions():
    frame = np.eye(4)
    frame[:3, :3] = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 5]], dtype=float)
    grid = Grid((50, 60), frame)
    index = np.stack(np.meshgrid(np.arange(50), np.arange(60), indexing="ij"), -1)
    disc = np.linalg.norm(index - np.array([25, 30]), axis=-1) < 12
    image = Volume(torch.tensor(disc, dtype=torch.float32), grid, "slice")
    pair = prepare(image, image, None, None, Settings(), IDENTITY)
    assert pair.fixed.dim() == 4
    assert pair.grid.dim == 2
    assert torch.equal(pair.fixed, pair.moving)
    assert pair.grid.voxel_count < grid.voxel_count


# ---------------------------------------------------------------- memory and filters


def test_grid_is_coarsened_to_the_memory_and_says_so():
    grid = oblique((256, 256, 128), (1.0, 1.0, 2.0))
    needed = estimate_memory_bytes(grid)
    assert fit_to_memory(grid, needed) == (grid, [])
    limit = int(room.BASE_BYTES + (needed - room.BASE_BYTES) / 3)
    coarser, (note,) = fit_to_memory(grid, limit)
    assert estimate_memory_bytes(coarser) <= limit
    assert coarser.spacing[2] == pytest.approx(2.0)
    assert 1.5 < coarser.spacing[0] <= 2.0
    assert corners_ok(coarser, grid.corners_mm())
    assert "coarsened to" in note


def test_too_little_memory_is_refused():
    with pytest.raises(MemoryLimitError, match="GB"):
        fit_to_memory(oblique((256, 256, 128)), room.BASE_BYTES + 1000)


def test_memory_limit_of_the_settings_is_kept():
    fixed = world_ramp(oblique((64, 64, 64)))
    limit_gb = (room.BASE_BYTES + 0.2 * room.BYTES_PER_VOXEL_3D * 64**3) / 1e9
    pair = prepare(fixed, fixed, None, None, Settings(memory_limit_gb=limit_gb), IDENTITY)
    assert max(pair.grid.shape) < 45
    assert any("coarsened" in note for note in pair.notes)


def test_block_means_sit_at_block_centres():
    ramp = world_ramp(oblique((12, 15, 16), (1.0, 2.0, 0.5)))
    small = reduced(ramp, (2, 3, 4))
    torch.testing.assert_close(small.data, world_ramp(small.grid).data, atol=1e-4, rtol=0)


def test_smoothing_keeps_the_mean_and_has_the_stated_width():
    line = torch.zeros(1, 1, 61, 5)
    line[0, 0, 30, 2] = 1.0
    smoothed = smooth(line, (2.0, 0.0))[0, 0, :, 2]
    position = torch.arange(61.0) - 30
    assert float(smoothed.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float((smoothed * position**2).sum()) == pytest.approx(4.0, rel=0.05)
