"""Synthetic pairs: repeatable, never folded, and what their truth maps onto each other agrees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.jacobian import folded_percent
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.training.contrasts import ContrastOptions, Palette, palette, picture
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.training.shapes import ShapeOptions, label_map, motion_pair, smooth_noise, velocity
from DiffeoRegLib.training.synthesis import Synthesis, SyntheticPairs, synthetic_pair

CPU = torch.device("cpu")
SMALL = ShapeOptions(labels=(6, 6), scales_vox=(16, 8), motion_scales_vox=(16,), motion_vox=3.0)
PLAIN = ContrastOptions(0.0, 0.0, 0.0, 40, 0.0, 1.0, 1, 0.0, 1.0)
SHAPES = [(56, 48), (30, 24, 27)]


def _core(values, margin):
    return values[(..., *(slice(margin, -margin) for _ in values.shape[1:]))]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_truth_carries_the_moving_labels_onto_the_fixed_ones(shape):
    options = Synthesis(shape, replace(SMALL, background_probability=0.0), with_truth=True)
    for index in range(3):
        item = synthetic_pair(options, 1, index)
        truth = item["truth_vox"][None]
        moved = warp(item["moving_labels"][None].float(), truth, mode="nearest")[0].long()
        margin = 6
        before = (_core(item["moving_labels"], margin) == _core(item["fixed_labels"], margin)).float().mean()
        after = (_core(moved, margin) == _core(item["fixed_labels"], margin)).float().mean()
        # What is left are borders read twice from the nearest voxel.
        assert after > 0.85
        assert 1 - after < 0.65 * (1 - before)


@pytest.mark.parametrize("shape", SHAPES)
def test_items_are_images_in_range_with_labels(shape):
    item = synthetic_pair(Synthesis(shape, SMALL), 0, 0)
    assert set(item) == {"fixed", "moving", "fixed_labels", "moving_labels", "names"}
    for side in ("fixed", "moving"):
        assert item[side].shape == item[f"{side}_labels"].shape == (1, *shape)
        assert item[side].dtype == torch.float32
        assert item[side].min() >= 0
        assert item[side].max() == pytest.approx(1)
        assert item[f"{side}_labels"].dtype == torch.int64
        assert item[f"{side}_labels"].min() >= 0
        assert item[f"{side}_labels"].max() <= 6
        assert len(item[f"{side}_labels"].unique()) >= 4


@pytest.mark.parametrize("shape", [(64, 64), (32, 32, 32)])
def test_strong_motion_does_not_fold_and_its_inverse_is_one(shape):
    options = replace(SMALL, motion_vox=50.0)
    for index in range(4):
        fixed, moving, back = motion_pair(generator_for(index), shape, options, CPU)
        for field in (fixed, moving, back, compose(back, fixed)):
            assert folded_percent(field) == 0
        assert fixed.abs().max() > 1
        there_and_back = compose(back, moving)
        margin = 2 + int(max(moving.abs().max(), back.abs().max()))
        if 2 * margin + 4 < min(shape):
            assert _core(there_and_back[0], margin).abs().max() < 0.12


def test_velocities_keep_their_limits():
    for index in range(6):
        gentle = velocity(generator_for(index), (40, 40), replace(SMALL, motion_vox=0.5), CPU)
        size = gentle.square().sum(1).mean().sqrt()
        assert 0.09 < size <= 0.501
        steep = velocity(generator_for(index), (40, 40), replace(SMALL, motion_vox=99.0), CPU)
        slope = max(steep.diff(dim=axis).abs().max() for axis in (2, 3))
        assert slope == pytest.approx(SMALL.steepest, rel=1e-4)
    assert velocity(generator_for(0), (20, 20), replace(SMALL, motion_vox=0.0), CPU).abs().max() == 0


@pytest.mark.parametrize("shape", [(256, 256), (48, 48, 48)])
def test_noise_has_unit_variance_and_the_size_asked_for_in_all_directions(shape):
    scale = 8
    noise = smooth_noise(generator_for(0), 6, shape, scale, CPU)[0]
    assert noise.shape == (6, *shape)
    assert noise.var() == pytest.approx(0.95, abs=0.2)
    correlations = []
    for axis in range(1, noise.dim()):
        length = noise.shape[axis] - scale
        near, far = noise.narrow(axis, 0, length), noise.narrow(axis, scale, length)
        correlations.append(float((near * far).mean() / noise.var()))
    # A Gaussian of sigma 0.7 scales: exp(-1 / (4 * 0.49)) = 0.6.
    assert all(abs(c - 0.6) < 0.15 for c in correlations)


def test_label_maps_hold_the_labels_asked_for():
    options = replace(SMALL, labels=(3, 9), background_probability=0.0)
    counts = set()
    for index in range(20):
        labels, count, on_background = label_map(generator_for(index), (48, 48), options, CPU)
        assert not on_background
        assert labels.min() >= 1
        assert labels.max() < count
        counts.add(count - 1)
    assert counts <= set(range(3, 10))
    assert len(counts) >= 5


def test_an_object_on_background_leaves_the_border_mostly_free():
    options = replace(SMALL, background_probability=1.0)
    for index in range(5):
        labels, _, on_background = label_map(generator_for(index), (48, 40), options, CPU)
        assert on_background
        inside = (labels[0, 0] > 0).float()
        assert 0.2 < inside.mean() < 0.8
        assert inside[24, 20] == 1
        corners = torch.stack([inside[a, b] for a in (0, -1) for b in (0, -1)])
        assert corners.sum() == 0


def test_a_plain_picture_shows_the_palette():
    labels = label_map(generator_for(0), (40, 40), replace(SMALL, background_probability=0.0), CPU)[0]
    means = torch.tensor([0.0, 0.9, 0.2, 0.4, 0.6, 0.0, 1.0])
    colours = Palette(means, torch.zeros(7), dark=False)
    image = picture(labels, colours, generator_for(1), PLAIN)
    shown = means[labels.unique()]
    expected = (means[labels] - shown.min()) / (shown.max() - shown.min())
    torch.testing.assert_close(image, expected)


@pytest.mark.parametrize(
    "option", [{"texture": 0.3}, {"blur_vox": 3.0}, {"bias": 1.0}, {"noise": 0.3}, {"thickest_slice": 5}]
)
def test_every_effect_changes_the_picture(option):
    labels = label_map(generator_for(0), (40, 40), replace(SMALL, background_probability=0.0), CPU)[0]
    options = replace(PLAIN, **option)
    colours = palette(generator_for(3), 7, options, on_background=False)
    plain = picture(labels, colours if "texture" not in option else replace(colours, spreads=torch.zeros(7)),
                    generator_for(4), PLAIN)  # fmt: skip
    changed = picture(labels, colours, generator_for(4), options)
    assert (changed - plain).abs().mean() > 0.005


def test_a_dark_background_is_black_and_nothing_else_is_forced_to_be():
    options = replace(ContrastOptions(), dark_probability=1.0)
    labels = label_map(generator_for(2), (40, 40), replace(SMALL, background_probability=1.0), CPU)[0]
    colours = palette(generator_for(0), 7, options, on_background=True)
    image = picture(labels, colours, generator_for(0), options)
    assert (image[labels == 0] == 0).all()
    assert image[labels > 0].mean() > 0.05
    assert not palette(generator_for(0), 7, options, on_background=False).dark


def test_contrasts_differ_between_the_images_unless_asked_to_be_one():
    still = replace(SMALL, motion_vox=0.0, background_probability=0.0)
    same = Synthesis((32, 32), still, replace(PLAIN, same_probability=1.0))
    differing = Synthesis((32, 32), still, PLAIN)
    alike = synthetic_pair(same, 0, 0)
    assert torch.equal(alike["fixed"], alike["moving"])
    other = synthetic_pair(differing, 0, 0)
    assert torch.equal(other["fixed_labels"], other["moving_labels"])
    assert (other["fixed"] - other["moving"]).abs().mean() > 0.1


def test_a_pair_depends_on_seed_and_number_only():
    options = Synthesis((24, 24), SMALL)
    first = synthetic_pair(options, 7, 3)
    torch.rand(3)
    again = synthetic_pair(options, 7, 3)
    assert all(torch.equal(first[key], again[key]) for key in first if key != "names")
    for seed, index in ((7, 4), (8, 3)):
        assert not torch.equal(synthetic_pair(options, seed, index)["fixed"], first["fixed"])


def test_epochs_go_on_where_the_last_one_ended_and_resume():
    data = SyntheticPairs(Synthesis((24, 24), SMALL), pairs_per_epoch=3, seed=7)
    data.set_epoch(2)
    assert len(data) == 3
    assert torch.equal(data[1]["fixed"], synthetic_pair(data.options, 7, 7)["fixed"])
    data.set_epoch(2, position=1)
    assert len(data) == 2
    assert torch.equal(data[0]["moving"], synthetic_pair(data.options, 7, 7)["moving"])
    with pytest.raises(IndexError):
        data[2]
    with pytest.raises(SettingsError):
        data.set_epoch(0, position=4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Synthesis((16,)),
        lambda: Synthesis((16, 4)),
        lambda: ShapeOptions(labels=(5, 4)),
        lambda: ShapeOptions(scales_vox=()),
        lambda: ShapeOptions(steepest=2.0),
        lambda: ContrastOptions(noise=-1.0),
        lambda: ContrastOptions(same_probability=2.0),
        lambda: SyntheticPairs(Synthesis((16, 16)), pairs_per_epoch=0),
    ],
)
def test_impossible_options_are_refused(make):
    with pytest.raises(SettingsError):
        make()
