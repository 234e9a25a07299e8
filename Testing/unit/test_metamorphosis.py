"""Metamorphosis: svf without marks, a better map than with or without a mask where a lesion pushes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.methods.metamorphosis import (
    Metamorphosis,
    best_outflow,
    healthy_part,
    marked_radius_mm,
    outflow,
    stretched,
)
from DiffeoRegLib.methods.svf import StationaryVelocity
from DiffeoRegLib.optimise import Level, compare, half_way
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.pathology import PlacedPathology, softened
from Testing.level_plans import COARSE
from Testing.metamorphosis_cases import (
    SETTINGS,
    SHAPE,
    brain,
    displacement,
    errors_mm,
    marked,
    patient,
    quiet,
    register,
)
from Testing.scenes import pair_of, smooth_velocity, texture


@pytest.mark.parametrize("shape", [(40, 44), (20, 22, 24)])
def test_without_marks_it_is_svf_bit_for_bit(shape):
    moving = texture(shape)
    pair = pair_of(warp(moving, smooth_velocity(shape)), moving)
    settings = dataclasses.replace(SETTINGS, iterations=(8, 5))
    expected = register(StationaryVelocity(), pair, settings).velocity_vox
    assert torch.equal(register(Metamorphosis(), pair, settings).velocity_vox, expected)
    assert expected.abs().max() > 0.3


def test_marks_without_a_voxel_in_them_hardly_matter():
    """Marks of zeros are placed as None; should zeros come all the same, nothing is taken off."""
    moving = brain()
    pair = pair_of(warp(moving, smooth_velocity(SHAPE)), moving, (2.0, 2.0))
    level = Level(marked(pair, torch.zeros(1, 1, *SHAPE)), COARSE, SETTINGS)
    plain = Level(pair, COARSE, SETTINGS)
    rest = torch.zeros(1, 2, *level.grid.shape)
    assert compare(level, rest, rest).value == compare(plain, rest, rest).value


@pytest.mark.parametrize("seed", [0, 1])
def test_it_beats_a_mask_and_no_mask_where_a_lesion_pushes(seed):
    pair, marks, truth = patient(seed)
    with_marks = marked(pair, softened(marks, (2.0, 2.0), 4.0))
    found = errors_mm(register(Metamorphosis(), with_marks), pair, truth, marks)
    masked = errors_mm(register(StationaryVelocity(), healthy_part(marked(pair, marks))), pair, truth, marks)
    none = errors_mm(register(StationaryVelocity(), pair), pair, truth, marks)
    assert sum(found) < 0.9 * sum(masked)
    assert sum(found) < 0.9 * sum(none)
    assert found[0] < min(masked[0], none[0])


def test_a_lesion_of_the_moving_image_is_the_same_the_other_way_round():
    pair, marks, _ = patient()
    there = register(Metamorphosis(), marked(pair, marks)).velocity_vox
    swapped = dataclasses.replace(pair, fixed=pair.moving, moving=pair.fixed)
    back = register(Metamorphosis(), marked(swapped, None, marks)).velocity_vox
    assert float((there + back).abs().max()) < 1e-3 * float(there.abs().max())


def test_both_images_may_be_ill():
    """A second lesion, in the moving image, is left out, too, and better than by masks."""
    pair, marks, truth = patient()
    spot = torch.zeros_like(marks)
    spot[..., 50:60, 38:48] = 1
    assert float((spot * marks).sum()) == 0
    stained = dataclasses.replace(pair, moving=torch.lerp(pair.moving, torch.tensor(0.05), spot))
    ways = (
        register(Metamorphosis(), marked(stained, marks, spot)),
        register(Metamorphosis(), marked(stained, marks, None)),
        register(StationaryVelocity(), healthy_part(marked(stained, marks, spot))),
    )
    under = (spot > 0).expand_as(truth)
    both, one, masked = (float((displacement(m, pair.grid) - truth)[under].abs().mean()) for m in ways)
    assert both < 0.6 * one
    assert both < 0.7 * masked


def test_a_given_motion_is_where_it_starts():
    """Without iterations a velocity comes back as it is; otherwise a good one gives a better end."""
    pair, marks, _ = patient()
    pair = marked(pair, marks)
    start = Motion(smooth_velocity(SHAPE), pair.grid)
    none = dataclasses.replace(SETTINGS, iterations=(0, 0), dense_iterations=0)
    assert register(Metamorphosis(), pair, none, start) is start
    few = dataclasses.replace(SETTINGS, iterations=(0, 3), dense_iterations=0)
    first = register(Metamorphosis(), pair, few).velocity_vox
    second = register(Metamorphosis(), pair, few, start).velocity_vox
    assert float((first - second).abs().max()) > 0.3


@pytest.mark.parametrize("name", ["mind", "nmi"])
def test_measures_without_comparable_intensities_are_refused(name):
    pair, marks, _ = patient()
    settings = dataclasses.replace(SETTINGS, similarity=name)
    with pytest.raises(SettingsError, match=f"which '{name}' does not compare: choose one of lncc"):
        Metamorphosis().predict(marked(pair, marks), settings, quiet)
    with pytest.raises(SettingsError, match="difference of intensities"):
        Metamorphosis().refine(
            Motion(smooth_velocity(SHAPE), pair.grid), marked(pair, marks), settings, quiet
        )


# ---------------------------------------------------------------- its parts


def test_the_healthy_part_leaves_marks_out_of_the_masks():
    pair, marks, _ = patient()
    half = torch.full_like(marks, 0.5)
    found = healthy_part(marked(dataclasses.replace(pair, fixed_mask=half), marks, marks))
    torch.testing.assert_close(found.fixed_mask, 0.5 * (1 - marks))
    torch.testing.assert_close(found.moving_mask, 1 - marks)
    assert found.pathology is None
    assert healthy_part(pair) is pair


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 1.5)])
def test_an_outflow_is_one_millimetre_long_and_points_into_marks_of_the_fixed_image(spacing):
    marks = torch.zeros(1, 1, 40, 44)
    marks[..., 16:24, 16:28] = 1
    grid = pair_of(marks, marks, spacing).grid
    found = outflow(marks, grid, 6.0)
    length = (found * torch.tensor(spacing).view(1, 2, 1, 1)).square().sum(1).sqrt()
    assert float(length.max()) == pytest.approx(1, rel=1e-5)
    assert float(found[0, 0, 10, 22]) > 0 > float(found[0, 0, 30, 22])
    assert float(found[0, 1, 20, 10]) > 0 > float(found[0, 1, 20, 34])


def test_the_strength_of_an_outflow_is_found_and_none_where_nothing_grew():
    moving = brain()
    marks = torch.zeros(1, 1, *SHAPE)
    marks[..., 30:42, 26:38] = 1
    pair = pair_of(moving, moving, (2.0, 2.0))
    pathology = PlacedPathology(marks, None)
    radius = marked_radius_mm(marks, pair.grid)
    assert radius == pytest.approx((144 * 4 / torch.pi) ** 0.5)
    grown = 0.3 * radius * outflow(marks, pair.grid, radius * 2 / 3)
    found = []
    for image in (warp(moving, exp(grown, 6)), moving):
        level = Level(marked(pair_of(image, moving, (2.0, 2.0)), marks), COARSE, SETTINGS)
        rest = torch.zeros(1, 2, *level.grid.shape)
        found.append(best_outflow(rest, level, pathology, pair.grid, SETTINGS))
    assert float((found[0] - grown).abs().max()) < 0.35 * float(grown.abs().max())
    assert not found[1].any()


def test_a_velocity_is_stretched_only_where_nothing_is_known():
    pair, marks, _ = patient()
    level = Level(marked(pair, marks), COARSE, SETTINGS)
    velocity = change_grid(smooth_velocity(SHAPE), pair.grid, level.grid)
    jagged = velocity + marks * torch.randn(velocity.shape, generator=torch.Generator().manual_seed(0))
    found = stretched(jagged, level, SETTINGS)
    away = softened(marks, (1.0, 1.0), 8.0)[0, 0] < 1e-3
    torch.testing.assert_close(found[:, :, away], jagged[:, :, away], atol=0.02, rtol=0)
    deep = (softened(1 - marks, (1.0, 1.0), 2.0) < 0.05)[0, 0]
    assert int(deep.sum()) > 10

    def roughness(values):
        return float(values.diff(dim=2)[:, :, deep[1:]].square().mean())

    assert roughness(found) < 0.05 * roughness(jagged)


def test_every_level_ends_with_a_membrane_under_the_lesion():
    """A velocity that starts jagged there stays so where nothing smooths it but the membrane."""
    pair, marks, _ = patient()
    noise = torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    start = Motion(2 * marks * noise, pair.grid)
    few = dataclasses.replace(SETTINGS, iterations=(0, 2), dense_iterations=0, velocity_sigma=0.0)
    motion = register(Metamorphosis(), marked(pair, marks), few, start)
    found = change_grid(motion.velocity_vox, motion.grid, pair.grid)
    deep = (softened(1 - marks, (1.0, 1.0), 2.0) < 0.05).expand_as(found)
    assert int(deep.sum()) > 20

    def roughness(values):
        return float((values - gaussian_smooth(values, 1.5))[deep].square().mean())

    before = change_grid(change_grid(start.velocity_vox, pair.grid, motion.grid), motion.grid, pair.grid)
    assert roughness(found) < 0.5 * roughness(before)


def test_the_growth_that_was_found_is_not_smoothed_away():
    """Smoothing that leaves nothing of the iterations' velocity keeps the outflow of the lesion."""
    moving = brain()
    marks = torch.zeros(1, 1, *SHAPE)
    marks[..., 30:42, 26:38] = 1
    pair = pair_of(moving, moving, (2.0, 2.0))
    radius = marked_radius_mm(marks, pair.grid)
    grown = 0.3 * radius * outflow(marks, pair.grid, radius * 2 / 3)
    ill = torch.lerp(warp(moving, exp(grown, 6)), torch.tensor(0.9), marks)
    stiff = dataclasses.replace(SETTINGS, velocity_sigma=3.0)
    motion = register(Metamorphosis(), marked(pair_of(ill, moving, (2.0, 2.0)), marks), stiff)
    found = change_grid(motion.velocity_vox, motion.grid, pair.grid)
    around = ((softened(marks, (1.0, 1.0), 6.0) > 0.05) & (marks == 0)).expand_as(found)
    share = float((found * grown)[around].sum() / grown[around].square().sum())
    assert share == pytest.approx(1, abs=0.1)


def test_half_way_marks_follow_the_motion():
    """The source is taken off where the lesion is after its image moved."""
    image = texture(SHAPE)
    marks = torch.zeros(1, 1, *SHAPE)
    marks[..., 30:40, 30:40] = 1
    level = Level(marked(pair_of(image, image), marks), COARSE, SETTINGS)
    velocity = torch.zeros(1, 2, *SHAPE)
    velocity[:, 0] = 8.0
    to_moving, to_fixed = half_way(velocity, 3)
    own, other = level.source.shares(to_fixed, to_moving)
    torch.testing.assert_close(own[0, 0, 34:44, 30:40], torch.ones(10, 10), atol=1e-3, rtol=0)
    assert float(own.sum()) == pytest.approx(100, rel=1e-3)
    assert not other.any()
