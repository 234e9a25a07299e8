"""Evaluation numbers on small cases whose answers are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import GeometryError, InputError, ShapeError
from DiffeoRegLib.metrics import (
    Statistics,
    deformation_summary,
    dice_over_pairs,
    dice_per_label,
    displacement_statistics_mm,
    hd95_mm,
    inverse_consistency_mm,
    inverse_consistency_of_fields_mm,
    label_table,
    mean_dice,
    tre_mm,
)
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.jacobian import jacobian_determinant
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.volumes.volume import Volume


def blocks(shift=0):
    labels = np.zeros((8, 9, 7), dtype=np.int32)
    labels[1:4, 2:6, 1:6] = 4
    labels[5 + shift : 7 + shift, 2:6, 1:6] = 11
    return labels


def test_dice():
    first, second = blocks(), blocks(1)
    second[7, 8, 6] = 99
    assert dice_per_label(first, second) == {4: 1.0, 11: 0.5, 99: 0.0}
    assert mean_dice(first, second) == pytest.approx(0.5)
    chosen = dice_per_label(first, second, labels=[11, 5])
    assert chosen[11] == 0.5
    assert math.isnan(chosen[5])
    assert mean_dice(first, second, labels=[11, 5]) == 0.5
    assert math.isnan(mean_dice(0 * first, 0 * first))
    with pytest.raises(ShapeError):
        dice_per_label(first, second[1:])


def test_dice_over_pairs_is_the_mean_of_all_pairs():
    rng = np.random.default_rng(2)
    maps = [rng.choice([0, 0, 3, 70000, 9], (5, 6, 7)) for _ in range(4)]
    maps[2][maps[2] == 3] = 0
    each = [mean_dice(a, b) for a, b in itertools.combinations(maps, 2)]
    assert dice_over_pairs(maps) == pytest.approx(np.mean(each))
    assert math.isnan(dice_over_pairs([0 * maps[0]] * 2))
    with pytest.raises(InputError, match="two label maps or more, not 1"):
        dice_over_pairs(maps[:1])
    with pytest.raises(ShapeError):
        dice_over_pairs([maps[0], maps[1][1:]])


def literal_hd95(first, second, spacing):
    """All pairs of surface voxels."""
    surfaces = []
    for shape in (first, second):
        padded = np.pad(shape, 1)
        found = []
        for voxel in np.argwhere(padded):
            steps = [s * np.eye(shape.ndim, dtype=int)[a] for a in range(shape.ndim) for s in (1, -1)]
            if not all(padded[tuple(voxel + s)] for s in steps):
                found.append(voxel * spacing)
        surfaces.append(np.array(found))
    gaps = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=2)
    return max(np.percentile(gaps.min(1), 95), np.percentile(gaps.min(0), 95))


@pytest.mark.parametrize(("shape", "spacing"), [((7, 8, 6), (3.0, 0.7, 1.2)), ((12, 9), (0.5, 2.0))])
def test_hd95_against_all_pairs(shape, spacing):
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 3, shape) * (rng.random(shape) > 0.5) for _ in range(2))
    measured = hd95_mm(first, second, spacing)
    for label in (1, 2):
        assert measured[label] == pytest.approx(literal_hd95(first == label, second == label, spacing))


def test_hd95_of_equal_shifted_and_missing_labels():
    first, second = blocks(), blocks(1)
    assert hd95_mm(first, first, (2.0, 1.0, 1.0)) == {4: 0.0, 11: 0.0}
    assert hd95_mm(first, second, (2.5, 1.0, 1.0)) == {4: 0.0, 11: 2.5}
    second[second == 4] = 0
    missing = hd95_mm(first, second, (1.0, 1.0, 1.0), labels=[4, 77])
    assert missing[4] == math.inf
    assert math.isnan(missing[77])
    assert hd95_mm(0 * first, 0 * first, (1.0, 1.0, 1.0)) == {}
    with pytest.raises(ShapeError):
        hd95_mm(first, second, (1.0, 1.0))


def test_label_table():
    grid = Grid((8, 9, 7), np.diag([2.5, 1.0, 1.0, 1.0]))
    second = blocks(1)
    second[second == 4] = 0
    volumes = [Volume(torch.tensor(a), grid, is_labels=True) for a in (blocks(), second)]
    assert label_table(*volumes) == {4: {"dice": 0.0, "hd95_mm": None}, 11: {"dice": 0.5, "hd95_mm": 2.5}}
    elsewhere = Volume(volumes[1].data, Grid((8, 9, 7), np.eye(4)), is_labels=True)
    with pytest.raises(GeometryError):
        label_table(volumes[0], elsewhere)


def test_tre():
    fixed = np.array([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]])
    moving = fixed + np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    assert tre_mm(fixed, moving).tolist() == [5.0, 2.0]
    shift = np.eye(4)
    shift[:3, 3] = [3, 4, 0]
    assert tre_mm(fixed, moving, AffineTransform(shift)).tolist() == [0.0, pytest.approx(math.sqrt(29))]
    with pytest.raises(ShapeError):
        tre_mm(fixed, moving[:1])
    with pytest.raises(InputError):
        tre_mm(fixed[:0], moving[:0])


def test_inverse_consistency_of_transforms():
    matrix = np.eye(4)
    matrix[:3, :3] = [[1.1, 0.2, 0], [0, 0.9, 0], [0, 0.1, 1.0]]
    transform = AffineTransform(matrix)
    points = np.random.default_rng(1).normal(size=(50, 3)) * 40
    assert inverse_consistency_mm(transform, transform.inverse(), points).maximum < 1e-12
    off = np.linalg.inv(matrix)
    off[:3, 3] += [0.3, 0.0, 0.4]
    wrong = inverse_consistency_mm(transform, AffineTransform(off), points)
    assert (wrong.mean, wrong.p95, wrong.maximum) == pytest.approx((0.5, 0.5, 0.5))


def test_inverse_consistency_of_fields_ignores_what_leaves_the_grid():
    forward, inverse = torch.zeros(2, 1, 2, 6, 8)
    forward[:, 1], inverse[:, 1] = 3.0, -2.5
    measured = inverse_consistency_of_fields_mm(forward, inverse, (1.0, 4.0))
    assert (measured.mean, measured.maximum) == (2.0, 2.0)
    back, there = -forward, -inverse
    back[:, 1, :, 0] = -4.0  # leaves at the lower end
    assert inverse_consistency_of_fields_mm(back, there, (1.0, 4.0)).maximum == 2.0
    # Only the columns that stay on the grid count; an error beyond them does not show.
    spoilt = forward.clone()
    spoilt[:, 0, :, 5:] = 7.0
    assert inverse_consistency_of_fields_mm(spoilt, inverse, (1.0, 4.0)).maximum == 2.0
    spoilt[:, 0, 0, 0] = 1.0
    assert inverse_consistency_of_fields_mm(spoilt, inverse, (1.0, 4.0)).maximum > 2.0
    mask = torch.ones(1, 1, 6, 8)
    mask[..., 0, 0] = 0
    assert inverse_consistency_of_fields_mm(spoilt, inverse, (1.0, 4.0), mask).maximum == 2.0
    with pytest.raises(InputError):
        inverse_consistency_of_fields_mm(forward + 20, inverse, (1.0, 4.0))


def test_displacement_statistics():
    u_vox = torch.zeros(1, 3, 4, 5, 6)
    u_vox[:, 0], u_vox[:, 2] = 1.5, -4.0
    u_vox[..., 0] = 0
    spacing = (2.0, 9.0, 1.0)
    mask = torch.ones(1, 1, 4, 5, 6)
    mask[..., 0] = 0
    assert displacement_statistics_mm(u_vox, spacing).mean == pytest.approx(5.0 * 5 / 6)
    inside = displacement_statistics_mm(u_vox, spacing, mask)
    assert (inside.mean, inside.sd, inside.maximum) == (5.0, 0.0, 5.0)
    with pytest.raises(ShapeError):
        displacement_statistics_mm(u_vox, (1.0, 1.0))
    with pytest.raises(InputError):
        displacement_statistics_mm(u_vox, spacing, 0 * mask)


def test_deformation_summary():
    still = deformation_summary(torch.zeros(1, 3, 7, 8, 6))
    assert still == {"folded_percent": 0.0, "sd_log_jacobian": 0.0, "sd_log_jacobian_learn2reg": 0.0}
    generator = torch.Generator().manual_seed(0)
    u_vox = 0.4 * torch.randn(1, 3, 9, 8, 7, generator=generator, dtype=torch.float64)
    determinant = np.array(jacobian_determinant(u_vox)[0, 2:-2, 2:-2, 2:-2].tolist())
    summary = deformation_summary(u_vox)
    assert summary["folded_percent"] > 1
    expected = np.log(np.clip(determinant + 3, 1e-9, 1e9)).std()
    assert summary["sd_log_jacobian_learn2reg"] == pytest.approx(expected)


def test_statistics():
    values = Statistics.of(np.array([1.0, 2.0, 3.0, 10.0]))
    assert (values.mean, values.median, values.maximum) == (4.0, 2.5, 10.0)
    assert values.as_dict()["sd"] == pytest.approx(np.sqrt(12.5))
    assert values.as_dict()["p95"] == pytest.approx(8.95)
    with pytest.raises(InputError):
        Statistics.of(np.array([]))
