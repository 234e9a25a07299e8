"""Pathologies in training: losses of MetaRegNet, by hand and by known maps, and cost function masking."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import InputError, SettingsError, UnknownNameError
from DiffeoRegLib.losses.regularity import FOLD_VOXELS, fold_sum, image_diffusion
from DiffeoRegLib.losses.similarity import l1, mse
from DiffeoRegLib.networks.metaregnet import MetamorphicMaps
from DiffeoRegLib.space.jacobian import jacobian_determinant
from DiffeoRegLib.space.sample import identity_vox, warp
from DiffeoRegLib.training.config import LossConfig, config_from
from DiffeoRegLib.training.objective import Batch, Objective, objective_of
from Testing.metaregnet_cases import LESION, PAPER, SHAPE, lesion, objective
from Testing.sitreg_cases import pictures
from Testing.training_cases import SETTINGS, Fields


def linear_field(matrix, shape):
    """u of the map x -> A x."""
    matrix = torch.tensor(matrix, dtype=torch.float64)
    moved = torch.einsum("ab,nb...->na...", matrix, identity_vox(shape, torch.float64))
    return moved - identity_vox(shape, torch.float64)


@pytest.mark.parametrize("reading", ["corners", "central"])
def test_determinants_and_folds_of_affine_maps(reading):
    turn = [[0.9, -0.3], [0.25, 1.1]]
    u_vox = linear_field(turn, (9, 8))
    determinant = 0.9 * 1.1 + 0.3 * 0.25
    assert float((jacobian_determinant(u_vox, reading) - determinant).abs().max()) < 1e-10
    assert float(fold_sum(u_vox, reading=reading)) == 0
    mirrored = linear_field([[-0.2, 0.0], [0.0, 1.0]], (9, 8))  # the slope of u is -1.2
    assert float((jacobian_determinant(mirrored, reading) + 0.2).abs().max()) < 1e-10
    assert float(fold_sum(mirrored, reading=reading)) == pytest.approx(0.2 * FOLD_VOXELS)


def test_a_slice_and_a_volume_of_equal_slices_cost_the_same():
    generator = torch.Generator().manual_seed(4)
    u_vox = 1.5 * torch.randn(1, 2, 12, 14, generator=generator, dtype=torch.float64)
    image = torch.rand(1, 1, 12, 14, generator=generator, dtype=torch.float64)
    in_plane = u_vox[..., None].expand(1, 2, 12, 14, 5)
    volume = torch.cat([in_plane, torch.zeros(1, 1, 12, 14, 5, dtype=torch.float64)], 1)
    deep = image[..., None].expand(1, 1, 12, 14, 5)
    for reading in ("corners", "central"):
        flat, thick = jacobian_determinant(u_vox, reading), jacobian_determinant(volume, reading)
        assert float(flat.min()) < 0
        if reading == "central":
            torch.testing.assert_close(thick[..., 2], flat)
        torch.testing.assert_close(fold_sum(volume, reading=reading), fold_sum(u_vox, reading=reading))
    torch.testing.assert_close(3 * image_diffusion(deep), 2 * image_diffusion(image))
    torch.testing.assert_close(mse(deep, warp(deep, volume)), mse(image, warp(image, u_vox)))


def test_the_terms_by_hand():
    moving, fixed = pictures(SHAPE)
    generator = torch.Generator().manual_seed(1)
    u_vox, q = torch.randn(1, 2, *SHAPE, generator=generator), torch.randn(1, 1, *SHAPE, generator=generator)
    maps, mask = MetamorphicMaps(u_vox, q), 0.7 * lesion()
    terms = [*PAPER, ("l1", 1.0), ("lncc", 1.0), ("gradient", 0.01)]
    _, found = objective(terms)(maps, Batch(moving, fixed, pathology=mask))
    out = warp(moving, u_vox) + q * mask
    assert float(found["mse"]) == pytest.approx(float((fixed - out).square().mean()), rel=1e-5)
    assert float(found["l1"]) == pytest.approx(float((fixed - out).abs().mean()), rel=1e-5)
    rows, columns = ((q * mask).diff(dim=axis).square().mean() for axis in (2, 3))
    assert float(found["appearance"]) == pytest.approx(float(rows + columns) / 2, rel=1e-5)
    dx, dy = u_vox.diff(dim=2), u_vox.diff(dim=3)
    total = 0.0
    for a in (0, 1):
        for b in (0, 1):
            along = dx[..., b : b + 43][0], dy[:, :, a : a + 39][0]
            (xx, xy), (yx, yy) = along
            determinant = (1 + xx) * (1 + yy) - xy * yx
            total += float(0.5 * (determinant.abs() - determinant).mean())
    assert float(found["folds"]) == pytest.approx(total / 4 * 224 * 160, rel=1e-4)
    assert found["lncc"] != objective([("lncc", 1.0)])(maps, Batch(moving, fixed))[1]["lncc"]


def test_in_the_other_direction_the_change_is_taken_away_first():
    moving, fixed = pictures(SHAPE)
    q = torch.full((1, 1, *SHAPE), 0.3)
    maps = MetamorphicMaps(torch.full((1, 2, *SHAPE), 1.0), q)
    batch = Batch(moving, fixed, pathology=lesion())
    both, one = (objective([("mse", 1.0)], symmetric=s)(maps, batch)[0] for s in (True, False))
    back = mse(moving, warp(fixed - q * lesion(), maps.u21))
    torch.testing.assert_close(2 * both - one, back)


def test_terms_that_a_batch_or_a_network_lacks():
    moving, fixed = pictures(SHAPE)
    maps = MetamorphicMaps(torch.zeros(1, 2, *SHAPE), torch.zeros(1, 1, *SHAPE))
    with pytest.raises(InputError, match="pathology masks"):
        objective()(maps, Batch(moving, fixed))
    with pytest.raises(SettingsError, match="metaregnet"):
        objective()(Fields(maps.u12, maps.u12), Batch(moving, fixed, pathology=lesion()))
    with pytest.raises(SettingsError, match="leave_out_pathology"):
        objective(leave_out_pathology=True)(maps, Batch(moving, fixed, pathology=lesion()))
    with pytest.raises(UnknownNameError, match="option of folds"):
        Objective([LossConfig("folds", 1.0, {"mask": True})])


# ---------------------------------------------------------------- cost function masking


@pytest.mark.parametrize(("name", "tolerance"), [("mse", 1e-7), ("l1", 1e-7), ("lncc-squared", 1e-6)])
def test_left_out_pathology_does_not_count(name, tolerance):
    moving, fixed = pictures(SHAPE)
    u_vox = torch.full((1, 2, *SHAPE), 0.3)
    mask, values = lesion(), []
    for look in (0.0, 0.9):
        changed = torch.where(mask > 0, look, fixed)
        batch = Batch(moving, changed, pathology=mask)
        values.append([
            float(objective([(name, 1.0)], leave_out_pathology=left)(Fields(u_vox, -u_vox), batch)[0])
            for left in (True, False)
        ])  # fmt: skip
    assert values[0][0] == pytest.approx(values[1][0], abs=tolerance)
    assert abs(values[0][1] - values[1][1]) > 1e-3


def test_left_out_by_its_weight_and_beside_another_mask():
    """The published form: the sum of (1 - M) (fixed - moved)^2 over that of 1 - M."""
    moving, fixed = pictures(SHAPE)
    maps, mask = Fields(torch.zeros(1, 2, *SHAPE), None), 0.6 * lesion()
    value, _ = objective([("mse", 1.0)], leave_out_pathology=True)(maps, Batch(moving, fixed, pathology=mask))
    weighted = ((1 - mask) * (fixed - moving).square()).sum() / (1 - mask).sum()
    torch.testing.assert_close(value, weighted)
    brain = torch.ones_like(mask)
    brain[..., :8] = 0
    batch = Batch(moving, fixed, fixed_mask=brain, pathology=mask)
    value, _ = objective([("mse", 1.0)], leave_out_pathology=True)(maps, batch)
    weight = (1 - mask) * brain
    torch.testing.assert_close(value, (weight * (fixed - moving).square()).sum() / weight.sum())


def test_a_mask_of_everything_is_refused_and_a_missing_one_named():
    moving, fixed = pictures(SHAPE, batch=2)
    maps = Fields(torch.zeros(2, 2, *SHAPE), None)
    masked = objective([("mse", 1.0)], leave_out_pathology=True)
    mask = torch.cat([lesion(), torch.ones_like(lesion())])
    with pytest.raises(InputError, match="covers the whole"):
        masked(maps, Batch(moving, fixed, pathology=mask))
    with pytest.raises(InputError, match="needs a pathology mask"):
        masked(maps, Batch(moving, fixed))


def test_the_setting_reaches_the_objective():
    config = config_from({**SETTINGS, "leave_out_pathology": True})
    assert objective_of(config).leave_out_pathology
    assert not objective_of(config_from(SETTINGS)).leave_out_pathology


def test_the_mean_absolute_difference():
    one, other = pictures(SHAPE)
    assert float(l1(one, other)) == pytest.approx(float((one - other).abs().mean()))
    assert float(l1(one, other, mask=lesion())) == pytest.approx(float((one - other)[LESION].abs().mean()))
