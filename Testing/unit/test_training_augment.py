"""Random variants of pairs: what belongs together stays together, the same numbers give the same variant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.training.augment import (
    NO_AFFINE,
    AffineRange,
    Augmentation,
    AugmentedPairs,
    augment,
    vary_intensity,
)
from DiffeoRegLib.training.draws import generator_for

STILL = Augmentation(
    together=NO_AFFINE, flip_probability=0.0, gamma=1.0, contrast=1.0, brightness=0.0, noise=0.0
)
MOVED = replace(STILL, together=AffineRange(25.0, 1.3, 0.1, 0.05), affine_probability=1.0)
SHAPES = [(30, 24), (20, 18, 16)]


def _batch(shape, count=2):
    """Pairs with labels that are read off the image, so that they can be checked after any motion."""
    noise = torch.rand(count, 2, *shape, generator=torch.Generator().manual_seed(1))
    smooth = gaussian_smooth(noise, 3.0)
    smooth = (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())
    batch = {"names": ["a"] * count}
    for channel, side in enumerate(("moving", "fixed")):
        batch[side] = smooth[:, channel : channel + 1].clone()
        batch[f"{side}_labels"] = (batch[side] * 6).long() + 1
        batch[f"{side}_mask"] = torch.ones_like(batch[side])
    return batch


def _blob(shape, center):
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))
    center = torch.tensor(center).view(-1, *[1] * len(shape))
    return (-(index - center).square().sum(0) / 12).exp()[None, None]


def _peak(image):
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in image.shape[2:]], indexing="ij"))
    weight = image[0, 0].clamp(min=0.02) - 0.02
    return (index * weight).flatten(1).sum(1) / weight.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_asked_for_is_nothing_done(shape):
    batch = _batch(shape)
    result = augment(batch, generator_for(0), STILL)
    assert result.keys() == batch.keys()
    for key, value in batch.items():
        assert torch.equal(result[key], value) if isinstance(value, torch.Tensor) else result[key] == value


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_follow_their_image(shape):
    batch = _batch(shape)
    result = augment(batch, generator_for(5), replace(MOVED, flip_probability=0.5))
    for side in ("moving", "fixed"):
        assert (result[side] - batch[side]).abs().mean() > 0.02
        inside = result[f"{side}_mask"] > 0.999
        assert 0.3 < inside.float().mean() < 1
        expected = (result[side] * 6).long() + 1
        near = (result[f"{side}_labels"] - expected).abs()
        assert result[f"{side}_labels"].dtype == torch.int64
        assert (near[inside] == 0).float().mean() > 0.8
        assert (near[inside] <= 1).float().mean() > 0.999
        assert (result[f"{side}_labels"][result[f"{side}_mask"] == 0] == 0).all()


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(40, 36), (36, 34, 40)])
def test_points_follow_their_image(shape, flip):
    center = [n / 2 + o for n, o in zip(shape, (3.0, -4.0, 2.0), strict=False)]
    batch = {"names": ["x"]}
    for side in ("moving", "fixed"):
        batch[side] = _blob(shape, center)
        batch[f"{side}_points_vox"] = torch.tensor([[center]])[0]
    options = replace(MOVED, flip_probability=flip, together=AffineRange(20.0, 1.0, 0.0, 0.04))
    result = augment(batch, generator_for(1), options)
    moved = result["fixed_points_vox"][0, 0]
    assert (moved - torch.tensor(center)).norm() > 1
    torch.testing.assert_close(moved, _peak(result["fixed"]), atol=0.15, rtol=0)


def test_labels_are_never_interpolated():
    batch = _batch((20, 18))
    batch["fixed_labels"] = 1000 * (batch["fixed_labels"] % 2) + 1
    moved = augment(batch, generator_for(5), MOVED)["fixed_labels"]
    assert not torch.equal(moved, batch["fixed_labels"])
    assert moved.unique().tolist() == [0, 1, 1001]


def test_both_images_get_one_affine_unless_told_otherwise():
    batch = _batch((20, 18, 16))
    for key in ("", "_labels", "_mask"):
        batch[f"moving{key}"] = batch[f"fixed{key}"].clone()
    together = augment(batch, generator_for(2), replace(MOVED, flip_probability=1.0))
    assert torch.equal(together["fixed"], together["moving"])
    assert torch.equal(together["fixed_labels"], together["moving_labels"])
    apart = replace(STILL, apart=AffineRange(15.0, 1.1, 0.0, 0.05), affine_probability=1.0)
    result = augment(batch, generator_for(2), apart)
    assert torch.equal(result["fixed"], batch["fixed"])
    assert (result["moving"] - batch["moving"]).abs().mean() > 0.01
    assert not torch.equal(result["moving_labels"], batch["moving_labels"])


def test_a_mirror_image_is_exact_and_along_its_axis():
    batch = _batch((12, 10, 8))
    for axis in (0, 1, -1):
        result = augment(batch, generator_for(0), replace(STILL, flip_probability=1.0, flip_axis=axis))
        for key in ("moving", "fixed", "fixed_labels", "moving_mask"):
            assert torch.equal(result[key], batch[key].flip(2 + axis % 3))


def test_mirror_images_come_at_the_stated_rate_per_pair():
    batch = _batch((6, 6), count=200)
    result = augment(batch, generator_for(0), replace(STILL, flip_probability=0.3))
    turned = [not torch.equal(a, b) for a, b in zip(result["fixed"], batch["fixed"], strict=True)]
    assert 40 <= sum(turned) <= 80
    assert turned == [not torch.equal(a, b) for a, b in zip(result["moving"], batch["moving"], strict=True)]


def test_rotations_are_rotations_in_millimetres():
    shape, spacing = (21, 41), (4.0, 2.0)
    blob = gaussian_smooth(_blob(shape, (10.0, 20.0)), 0.0)
    center = torch.tensor([10.0, 20.0])
    batch = {side: blob.clone() for side in ("moving", "fixed")} | {"names": ["x"]}
    corner = torch.tensor([[[15.0, 25.0], [5.0, 33.0]]])
    batch |= {"fixed_points_vox": corner, "moving_points_vox": corner}
    options = replace(MOVED, together=AffineRange(60.0, 1.0, 0.0, 0.0))
    moved = augment(batch, generator_for(3), options, spacing)["fixed_points_vox"]
    mm = torch.tensor(spacing)
    before, after = ((p - center) * mm for p in (corner, moved))
    assert (after - before).norm() > 5
    torch.testing.assert_close(after.norm(dim=2), before.norm(dim=2))


def test_intensities_vary_within_their_limits():
    image = _batch((24, 24), count=40)["fixed"]
    gamma = vary_intensity(image, generator_for(0), replace(STILL, gamma=2.0))
    powers = gamma[:, 0, 12, 12].log() / image[:, 0, 12, 12].log()
    assert 0.5 <= powers.min() < 0.7
    assert 1.4 < powers.max() <= 2.0
    noisy = vary_intensity(image * 0 + 0.5, generator_for(0), replace(STILL, noise=0.1))
    spread = noisy.flatten(1).std(1)
    assert spread.max() < 0.11
    assert spread.max() > 3 * spread.min()
    wild = vary_intensity(image, generator_for(0), Augmentation(contrast=3.0, brightness=0.5, noise=0.3))
    assert wild.min() == 0
    assert wild.max() == 1


def test_images_of_a_pair_get_different_intensities():
    batch = _batch((16, 16))
    batch["moving"] = batch["fixed"].clone()
    result = augment(batch, generator_for(0), replace(STILL, gamma=2.0, noise=0.05))
    assert (result["moving"] - result["fixed"]).abs().mean() > 0.02


def test_the_same_generator_gives_the_same_variant_and_inputs_stay():
    batch = _batch((20, 18))
    kept = {key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)}
    options = Augmentation(flip_probability=1.0)
    first, again, other = (augment(batch, generator_for("k", n), options) for n in (1, 1, 2))
    for key, value in kept.items():
        assert torch.equal(batch[key], value)
        assert torch.equal(first[key], again[key])
    assert not torch.equal(first["fixed"], other["fixed"])


class _Pairs:
    epoch = None

    def __len__(self):
        return 3

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        return {key: v[index % 2] for key, v in _batch((16, 14)).items()} | {"names": f"pair {index}"}


def test_items_vary_by_seed_epoch_and_index_only():
    pairs = _Pairs()
    data = AugmentedPairs(pairs, Augmentation(), seed=4)
    data.set_epoch(2)
    assert pairs.epoch == 2
    item = data[0]
    assert item["names"] == "pair 0"
    assert item["fixed"].shape == item["fixed_labels"].shape == (1, 16, 14)
    torch.rand(5)  # what others draw does not matter
    assert torch.equal(data[0]["fixed"], item["fixed"])
    assert not torch.equal(data[2]["fixed"], item["fixed"])  # the same images, another index
    data.set_epoch(3)
    assert not torch.equal(data[0]["fixed"], item["fixed"])
    assert not torch.equal(AugmentedPairs(pairs, Augmentation(), seed=5)[0]["fixed"], item["fixed"])


@pytest.mark.parametrize(
    "values", [{"flip_probability": 1.5}, {"gamma": 0.9}, {"noise": -0.1}, {"brightness": -1.0}]
)
def test_impossible_variation_is_refused(values):
    with pytest.raises(SettingsError):
        Augmentation(**values)
    with pytest.raises(SettingsError):
        AffineRange(scale=0.9)
