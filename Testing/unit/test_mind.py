"""MIND-SSC against a literal computation, and what it promises about contrast, borders and masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from DiffeoRegLib.errors import InputError, SettingsError, ShapeError
from DiffeoRegLib.losses.mind import mind_loss, mind_ssc

SHAPES = [(7, 6, 8), (9, 8)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def texture(shape, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 1, *shape, generator=generator, dtype=torch.float64)


def literal_mind(image, radius, dilation):
    """Descriptor sorted by value per voxel (the order of channels is free), border values repeated."""
    dim = image.ndim
    neighbours = [sign * dilation * np.eye(dim, dtype=int)[axis] for axis in range(dim) for sign in (1, -1)]
    pairs = [(a, b) for a, b in itertools.combinations(neighbours, 2) if (a + b).any()]
    limits = np.array(image.shape) - 1
    patch = np.array(list(itertools.product(range(-radius, radius + 1), repeat=dim)))

    def at(points):
        return image[tuple(np.clip(points, 0, limits).T)]

    distances = np.zeros((len(pairs), *image.shape))
    for voxel in itertools.product(*map(range, image.shape)):
        for c, (a, b) in enumerate(pairs):
            distances[(c, *voxel)] = ((at(voxel + a + patch) - at(voxel + b + patch)) ** 2).sum()
    excess = distances - distances.min(0)
    variance = excess.mean(0)
    typical = variance.mean()
    return np.sort(np.exp(-excess / np.clip(variance, typical / 1000, typical * 1000)), 0)


@pytest.mark.parametrize(
    ("shape", "radius", "dilation"), [((5, 6, 4), 1, 1), ((5, 4, 7), 1, 2), ((9, 7), 2, 2)]
)
def test_against_a_literal_computation(shape, radius, dilation):
    image = texture(shape)
    value = np.sort(np.array(mind_ssc(image, radius, dilation)[0].tolist()), 0)
    np.testing.assert_allclose(
        value, literal_mind(np.array(image[0, 0].tolist()), radius, dilation), atol=1e-10
    )


@every_shape
def test_channels_and_range(shape):
    value = mind_ssc(texture(shape, batch=2))
    assert value.shape == (2, 12 if len(shape) == 3 else 4, *shape)
    assert value.min() >= 0
    assert value.max() == 1
    assert torch.equal(value.amax(1), torch.ones_like(value[:, 0]))  # the most alike pair scores 1


@every_shape
@pytest.mark.parametrize(("scale", "shift"), [(-1.0, 0.0), (250.0, -1024.0), (-1e-4, 3.0)])
def test_contrast_does_not_matter(shape, scale, shift):
    image = texture(shape)
    torch.testing.assert_close(mind_ssc(scale * image + shift), mind_ssc(image), atol=1e-6, rtol=0)
    assert mind_loss(image, scale * image + shift) < 1e-12
    assert mind_loss(image, texture(shape, seed=1)) > 1e-2


def test_shift_moves_the_descriptor():
    image = texture((12, 11, 13))
    moved = torch.roll(image, 1, 2)
    inner = (slice(None), slice(None), slice(5, -5), slice(4, -4), slice(4, -4))
    # The noise estimate is clamped by an image mean, which differs by the border only.
    torch.testing.assert_close(torch.roll(mind_ssc(image), 1, 2)[inner], mind_ssc(moved)[inner])


@every_shape
@pytest.mark.parametrize("level", [0.0, 0.3, 1000.0])
def test_flat_images_are_all_ones_with_a_finite_gradient(shape, level):
    image = torch.full((1, 1, *shape), level, requires_grad=True)
    assert torch.equal(mind_ssc(image).detach(), torch.ones(1, 12 if len(shape) == 3 else 4, *shape))
    (gradient,) = torch.autograd.grad(mind_loss(texture(shape).float(), image), image)
    assert torch.isfinite(gradient).all()


def test_rounding_of_a_large_offset_is_not_structure():
    flat = torch.full((1, 1, 9, 9, 9), 1000.0)
    noisy = flat.clone()
    noisy[..., ::2] = torch.nextafter(noisy[..., ::2], torch.tensor(2000.0))
    assert mind_ssc(noisy).min() > 0.9


@every_shape
@pytest.mark.parametrize("masked", [False, True])
def test_gradient(shape, masked):
    fixed, warped = texture(shape), texture(shape, seed=1).requires_grad_()
    mask = (texture(shape, seed=2) > 0.3).double() if masked else None
    assert gradcheck(lambda w: mind_loss(fixed, w, 1, 1, mask=mask), (warped,), fast_mode=True)


@every_shape
def test_a_full_mask_changes_nothing(shape):
    image = texture(shape)
    torch.testing.assert_close(mind_ssc(image, mask=torch.ones(1, 1, *shape)), mind_ssc(image))


@every_shape
def test_what_lies_outside_the_mask_is_never_seen(shape):
    fixed, warped = texture(shape), texture(shape, seed=1)
    mask = torch.zeros_like(fixed)
    mask[:, :, 2:, 1:6] = 1
    spoilt = torch.where(mask > 0, warped, 50.0)
    described = mind_ssc(spoilt, 1, 1, mask=mask)
    torch.testing.assert_close(described, mind_ssc(warped, 1, 1, mask=mask))
    assert (described[(mask == 0).expand_as(described)] == 0).all()
    torch.testing.assert_close(mind_loss(fixed, spoilt, mask=mask), mind_loss(fixed, warped, mask=mask))
    assert abs(mind_loss(fixed, spoilt) - mind_loss(fixed, warped)) > 1e-3


def test_pairs_without_support_are_neutral():
    image = texture((15, 14))
    mask = torch.zeros_like(image)
    mask[..., 7, 7] = 1
    value = mind_ssc(image, mask=mask)
    assert torch.equal(value[..., 7, 7], torch.ones(1, 4, dtype=value.dtype))
    assert torch.isfinite(value).all()


def test_coarse_axes_use_fewer_voxels():
    image = texture((6, 12, 12))
    thick = mind_ssc(image, 1, 3, spacing=(3.0, 1.0, 1.0))
    torch.testing.assert_close(thick, mind_ssc(image, (0, 1, 1), (1, 3, 3)))
    torch.testing.assert_close(mind_ssc(image, 1, 3, spacing=(2.0, 2.0, 2.0)), mind_ssc(image, 1, 3))


def test_precision_is_at_least_float32():
    image = texture((8, 9)).bfloat16()
    assert mind_ssc(image).dtype == torch.float32
    assert torch.equal(mind_ssc(image), mind_ssc(image.float()))


def test_bad_input_is_refused():
    image = texture((6, 7, 8))
    with pytest.raises(ShapeError):
        mind_ssc(image.repeat(1, 2, 1, 1, 1))
    with pytest.raises(ShapeError):
        mind_ssc(image, (1, 1))
    with pytest.raises(ShapeError):
        mind_ssc(image, spacing=(1.0, 1.0))
    with pytest.raises(SettingsError):
        mind_ssc(image, dilation=0)
    with pytest.raises(SettingsError):
        mind_ssc(image, radius=-1)
    with pytest.raises(InputError, match="empty"):
        mind_loss(image, image, mask=torch.zeros_like(image))
    with pytest.raises(ShapeError):
        mind_loss(image, image[..., 1:])


def test_partly_supported_voxels_score_their_supported_pairs():
    """On the mask's edge half of the pairs lie inside; the others are neutral, never the most alike."""
    mask = torch.ones(1, 1, 15, 15)
    mask[:, :, :5] = 0
    value = mind_ssc(texture((15, 15)), 0, 1, mask=mask)[:, :, 5]
    assert (value == 1).sum(1).unique().tolist() == [1]
