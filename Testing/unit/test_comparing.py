"""Images compared through a displacement on another grid: all similarities, masks, guidance, gradients."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import InputError, UnknownNameError
from DiffeoRegLib.methods.comparing import Comparison
from DiffeoRegLib.settings import SIMILARITIES
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.sample import warp
from Testing.scenes import pair_of, texture

D = torch.float64
SHAPE = (40, 36)


def _pair(seed=0, shift=0, **others):
    image = texture((48, 48), seed).to(D)
    fixed = image[..., 4:44, 4:40].contiguous()
    moving = image[..., 4:44, 4 - shift : 40 - shift].contiguous()
    return pair_of(fixed, moving, **others)


def _shift(grid, voxels, pair):
    """u along the second axis, so many voxels of the pair's grid, in voxels of `grid`."""
    u = torch.zeros(1, 2, *grid.shape, dtype=D)
    u[:, 1] = voxels * pair.grid.spacing[1] / grid.spacing[1]
    return u


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("level", [1.0, 2.0])
def test_the_true_shift_is_the_best(name, level):
    pair = _pair(shift=3)
    map_grid = pair.grid.coarsened([2, 3])
    comparison = Comparison(pair, level, map_grid, name)
    values = [float(comparison.value(_shift(map_grid, v, pair))) for v in (0.0, 2.0, 3.0, 4.0, 6.0)]
    assert min(values) == values[2]
    assert values[2] < 0.8 * values[0]


@pytest.mark.parametrize("name", SIMILARITIES)
def test_gradients_by_the_map_are_exact(name):
    pair = _pair(shift=2)
    map_grid = pair.grid.coarsened([4, 4])
    comparison = Comparison(pair, 2.0, map_grid, name)
    u = (0.3 * torch.randn(1, 2, *map_grid.shape, dtype=D) + 0.217).requires_grad_()
    (gradient,) = torch.autograd.grad(comparison.value(u), u)
    direction = torch.randn_like(u)
    ends = [float(comparison.value(u.detach() + e * direction)) for e in (1e-6, -1e-6)]
    assert float((gradient * direction).sum()) == pytest.approx(
        (ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-9
    )


def test_levels_keep_four_voxels_and_masks_follow():
    mask = torch.zeros(1, 1, *SHAPE, dtype=D)
    mask[..., 10:30, 10:30] = 1
    pair = _pair(fixed_mask=mask, moving_mask=mask)
    comparison = Comparison(pair, 100.0, pair.grid, "mse")
    assert comparison.grid.shape == (4, 4)
    assert comparison.fixed_mask is not None
    assert comparison.fixed_mask.shape == (1, 1, 4, 4)


def test_what_either_mask_leaves_out_does_not_count():
    left, right = torch.ones(2, 1, 1, *SHAPE, dtype=D).unbind(0)
    left[..., :6], right[..., -9:] = 0, 0
    pair = _pair(shift=3)
    spoilt = pair_of(pair.fixed.clone(), pair.moving.clone(), fixed_mask=left, moving_mask=right)
    spoilt.fixed[..., :6] = 7.0
    spoilt.moving[..., -9:] = -5.0
    u = torch.zeros(1, 2, *SHAPE, dtype=D)
    clean = pair_of(pair.fixed, pair.moving, fixed_mask=left, moving_mask=right)
    values = [float(Comparison(p, 1.0, p.grid, "mse").value(u)) for p in (clean, spoilt)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    # The moving mask is read through the map: shifted away, none of it counts any more.
    shifted = _shift(pair.grid, 2.0, pair)
    moved = warp(right, shifted) * left
    expected = ((pair.fixed - warp(pair.moving, shifted)).square() * moved).sum() / moved.sum()
    assert float(Comparison(clean, 1.0, pair.grid, "mse").value(shifted)) == pytest.approx(float(expected))


def test_masks_that_no_longer_meet_are_an_error():
    near, far = torch.zeros(2, 1, 1, *SHAPE, dtype=D).unbind(0)
    near[..., :8], far[..., -8:] = 1, 1
    pair = _pair(fixed_mask=near, moving_mask=far)
    with pytest.raises(InputError):
        Comparison(pair, 1.0, pair.grid, "mse").value(torch.zeros(1, 2, *SHAPE, dtype=D))


def test_labels_and_landmarks_pull():
    labels = [torch.zeros(1, 1, *SHAPE, dtype=torch.int64) for _ in range(2)]
    labels[0][..., 10:20, 10:20] = 3
    labels[1][..., 10:20, 14:24] = 3
    points = torch.tensor([[[8.0, 20.0], [9.0, 21.0]]], dtype=D)
    there = points + torch.tensor([0.0, 4.0], dtype=D).view(1, 2, 1)
    blank = torch.full((1, 1, *SHAPE), 0.5, dtype=D)
    for extra in (
        {"fixed_labels": labels[0], "moving_labels": labels[1]},
        {"fixed_points_vox": points, "moving_points_vox": there},
    ):
        pair = pair_of(blank, blank, **extra)
        map_grid = pair.grid.coarsened([2, 2])
        comparison = Comparison(pair, 2.0, map_grid, "mse", guidance_weight=2.0)
        values = [float(comparison.value(_shift(map_grid, v, pair))) for v in (0.0, 2.0, 4.0)]
        assert values[0] > values[1] > values[2]
        assert values[2] == pytest.approx(0, abs=1e-5)
        silent = Comparison(pair, 2.0, map_grid, "mse", guidance_weight=0.0)
        assert float(silent.value(_shift(map_grid, 0.0, pair))) == 0


def test_landmark_gaps_are_shares_of_the_longest_side():
    points = torch.tensor([[[8.0], [9.0]]], dtype=D)
    pair = pair_of(
        torch.zeros(1, 1, *SHAPE, dtype=D), torch.zeros(1, 1, *SHAPE, dtype=D), [0.5, 2.0],
        fixed_points_vox=points, moving_points_vox=points + 3,
    )  # fmt: skip
    found = Comparison(pair, 2.0, pair.grid.coarsened([2, 2]), "mse").value(
        torch.zeros(1, 2, 20, 18, dtype=D)
    )
    assert float(found) == pytest.approx((1.5**2 + 6.0**2) ** 0.5 / 72)


def test_the_map_is_read_where_the_image_voxels_are():
    pair = _pair()
    map_grid = pair.grid.coarsened([3, 3])
    u = torch.randn(1, 2, *map_grid.shape, dtype=D)
    comparison = Comparison(pair, 2.0, map_grid, "mse")
    expected = warp(comparison.moving, change_grid(u, map_grid, comparison.grid)) - comparison.fixed
    assert float(comparison.value(u)) == pytest.approx(float(expected.square().mean()), rel=1e-12)


def test_an_unknown_similarity_is_named():
    pair = _pair()
    with pytest.raises(UnknownNameError, match="mk-lncc"):
        Comparison(pair, 1.0, pair.grid, "mk-lnc")
