"""Scores of lesion studies against plain numpy and cases one can count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import InputError, ShapeError
from Testing.benchmarks import lesion_scores as scores


def tensor(values):
    """(1, 1, *shape) of an array."""
    return torch.tensor(np.asarray(values))[None, None]


@pytest.fixture
def pair():
    """Two pictures and a mask."""
    draw = np.random.default_rng(3)
    return draw.random((9, 11)), draw.random((9, 11)), (draw.random((9, 11)) > 0.7).astype(np.float64)


def test_ssd_is_the_mean_square_of_all_or_of_what_is_outside(pair):
    fixed, found, mask = pair
    first, second, lesion = map(tensor, pair)
    assert scores.ssd_total(first, second) == pytest.approx(((fixed - found) ** 2).mean(), rel=1e-12)
    outside = ((fixed - found)[mask == 0] ** 2).mean()
    assert scores.ssd_healthy(first, second, lesion) == pytest.approx(outside, rel=1e-12)
    changed = torch.where(lesion > 0, second + 3, second)
    assert scores.ssd_healthy(first, changed, lesion) == scores.ssd_healthy(first, second, lesion)
    assert math.isnan(scores.ssd_healthy(first, second, torch.ones_like(lesion)))


def test_folds_are_counted_at_voxels_and_in_cells():
    u_vox = torch.zeros(1, 2, 8, 9)
    assert scores.folded_voxels(u_vox) == 0
    assert scores.folded_cell_count(u_vox) == 0
    u_vox[0, 1, :, 4] = 3  # column 4 lands beyond column 5: cells 4-5 turn over, of all 7 rows
    rows = np.arange(9) + u_vox[0, 1, 0].numpy()
    assert scores.folded_voxels(u_vox) == 8 * int((np.gradient(rows) <= 0).sum())
    assert scores.folded_cell_count(u_vox) == 7 * int((np.diff(rows) <= 0).sum()) == 7
    affine = torch.zeros(1, 2, 8, 9)
    affine[0, 0] = -1.2 * torch.arange(8.0)[:, None]
    assert scores.folded_voxels(affine) == 72
    assert scores.folded_cell_count(affine) == 56


def test_regions_are_measured_in_mm():
    lesion, organ = np.zeros((21, 21)), np.ones((21, 21))
    lesion[10, 10] = 1
    organ[:, 15:] = 0
    found = scores.regions(tensor(lesion), tensor(organ), (2.0, 1.0), shell_mm=4.0)
    y, x = np.mgrid[:21, :21] - 10
    distance = np.hypot(2 * y, x)
    assert np.array_equal(found["under"][0, 0].numpy(), distance == 0)
    assert np.array_equal(found["around"][0, 0].numpy(), (distance > 0) & (distance <= 4) & (organ == 1))
    assert np.array_equal(found["far"][0, 0].numpy(), (distance > 4) & (organ == 1))
    with pytest.raises(InputError, match="no lesion"):
        scores.regions(tensor(0 * lesion), tensor(organ), (1, 1))
    with pytest.raises(ShapeError):
        scores.regions(tensor(lesion), tensor(organ), (1, 1, 1))


def test_endpoint_errors_are_lengths_in_mm():
    draw = np.random.default_rng(5)
    first, second = draw.normal(size=(2, 1, 3, 5, 6, 7))
    mask = draw.random((5, 6, 7)) > 0.5
    found = scores.endpoint_errors(
        torch.tensor(first), torch.tensor(second), (2.0, 1.0, 0.5),
        {"some": tensor(mask.astype(float)), "none": tensor(np.zeros((5, 6, 7)))},
    )  # fmt: skip
    length = np.linalg.norm((first - second)[0] * np.array([2.0, 1.0, 0.5])[:, None, None, None], axis=0)[
        mask
    ]
    some = found["some"]
    assert some.mean == pytest.approx(length.mean(), rel=1e-12)
    assert some.p95 == pytest.approx(np.percentile(length, 95), rel=1e-12)
    assert some.largest == pytest.approx(length.max(), rel=1e-12)
    assert math.isnan(found["none"].mean)
    assert math.isnan(found["none"].largest)
    with pytest.raises(ShapeError):
        scores.endpoint_errors(torch.tensor(first), torch.tensor(second[:, :2]), (1, 1, 1), {})
    with pytest.raises(ShapeError):
        scores.endpoint_errors(torch.tensor(first), torch.tensor(second), (1, 1), {})


def test_dice_counts_what_lies_outside_the_lesion():
    fixed, moving, lesion = (np.zeros((8, 8), dtype=np.int64) for _ in range(3))
    fixed[2:6, 2:6], moving[2:6, 3:7] = 1, 1
    fixed[0, 0], lesion[0, 0] = 7, 1
    lesion[2, 2:7] = 1
    still = torch.zeros(1, 2, 8, 8)
    found = scores.dice_outside(tensor(fixed), tensor(moving), still, tensor(lesion))
    outside = lesion == 0
    both = ((fixed == 1) & (moving == 1) & outside).sum()
    expected = 2 * both / ((fixed == 1)[outside].sum() + (moving == 1)[outside].sum())
    assert found == {1: pytest.approx(expected)}
    shift = still.clone()
    shift[0, 1] = 1.0
    assert scores.dice_outside(tensor(fixed), tensor(moving), shift, tensor(lesion)) == {1: 1.0}
    assert scores.mean_dice_outside(tensor(fixed), tensor(moving), shift, tensor(lesion)) == 1.0
    everything = tensor(np.ones((8, 8), dtype=np.int64))
    assert math.isnan(scores.mean_dice_outside(tensor(fixed), tensor(moving), shift, everything))
    with pytest.raises(ShapeError):
        scores.ssd(tensor(fixed), tensor(fixed[:4]))


def test_wrong_marks_are_beside_the_lesion_smaller_or_none():
    lesion = np.zeros((30, 40))
    lesion[8:19, 5:16] = 1
    found = scores.wrong_marks(tensor(lesion), (1.0, 2.0))
    assert np.array_equal(found["true"][0, 0].numpy(), lesion)
    assert np.array_equal(found["shifted"][0, 0].numpy(), np.roll(lesion, 5, 1))
    mirrored = scores.wrong_marks(tensor(lesion[:, ::-1].copy()), (1.0, 2.0))
    assert np.array_equal(mirrored["shifted"][0, 0].numpy(), np.roll(lesion, 5, 1)[:, ::-1])
    half = found["half"][0, 0].numpy()
    assert 0.3 * lesion.sum() < half.sum() <= 0.5 * lesion.sum()
    assert half[13, 10] == 1
    assert not (half > lesion).any()
    assert not found["empty"].any()
    with pytest.raises(InputError, match="no lesion"):
        scores.wrong_marks(tensor(np.zeros((4, 4))), (1.0, 1.0))
    with pytest.raises(ShapeError, match="spacings"):
        scores.wrong_marks(tensor(lesion), (1.0, 1.0, 1.0))
