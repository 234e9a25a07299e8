"""Similarity of a whole group, against histograms, against pairs one by one, and what it promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from DiffeoRegLib.errors import InputError, NoOverlapError, SettingsError, ShapeError
from DiffeoRegLib.losses import group_similarity
from DiffeoRegLib.losses.group_similarity import group_nmi, group_variance, inside_all, pair_nmi, pair_rmse
from DiffeoRegLib.losses.information import nmi
from DiffeoRegLib.losses.similarity import mse
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import array_from_tensor


def group(count=4, shape=(7, 6, 9), seed=0):
    """Related textures in [0, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(count, 1, *shape, generator=generator, dtype=torch.float64)
    return 0.5 * own + 0.5 * own[:1]


def smooth_texture(shape=(24, 24, 24), seed=0):
    """One smooth random volume whose values fill [0, 1] evenly."""
    generator = torch.Generator().manual_seed(seed)
    noise = gaussian_smooth(torch.randn(1, 1, *shape, generator=generator, dtype=torch.float64), 2.0)
    ranks = noise.flatten().argsort().argsort().double()
    return (ranks / (len(ranks) - 1)).view(noise.shape)


def soft_mask(shape=(7, 6, 9), seed=3):
    """Weights between 0 and 1, a third of them 0."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(1, 1, *shape, generator=generator, dtype=torch.float64) - 0.33).clamp(min=0)


every_mask = pytest.mark.parametrize("masked", [False, True])


@every_mask
@pytest.mark.parametrize("sigma_bins", [0.5, 1.0])
def test_it_is_the_mean_over_the_pairs_one_by_one(masked, sigma_bins, monkeypatch):
    monkeypatch.setattr(group_similarity, "SHARES_AT_A_TIME", 5000)  # several parts, the last one smaller
    images, mask = group(), soft_mask() if masked else None
    bounds = (0.1, 0.9)
    pairs = [
        nmi(
            a[None], b[None], kernel="gaussian", sigma_bins=sigma_bins, fixed_range=bounds,
            warped_range=bounds, mask=mask,
        )
        for a, b in itertools.combinations(images, 2)
    ]  # fmt: skip
    found = group_nmi(images, sigma_bins=sigma_bins, bounds=bounds, mask=mask)
    assert float(found) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-12)
    table = pair_nmi(images, sigma_bins=sigma_bins, bounds=bounds, mask=mask)
    assert float(table[1, 3]) == pytest.approx(1 - float(pairs[4]), abs=1e-12)
    torch.testing.assert_close(table, table.T)


@every_mask
def test_gradient(masked, monkeypatch):
    monkeypatch.setattr(group_similarity, "SHARES_AT_A_TIME", 1000)
    images, mask = group(3, (4, 3, 5)), soft_mask((4, 3, 5)) if masked else None
    images = (0.05 + 0.9 * images).requires_grad_()
    assert gradcheck(lambda x: group_nmi(x, bins=8, sigma_bins=0.8, mask=mask), [images], fast_mode=True)
    assert gradcheck(lambda x: group_variance(x, mask=mask), [images], fast_mode=True)


def test_plain_bins_are_numpys_histogram():
    images = group(3)
    arrays = [array_from_tensor(one).ravel() for one in images]
    found = pair_nmi(images, bins=16)
    for i, j in itertools.product(range(3), repeat=2):
        joint = np.histogram2d(arrays[i], arrays[j], bins=16, range=[[0, 1], [0, 1]])[0]

        def entropy(counts):
            p = counts[counts > 0] / counts.sum()
            return -(p * np.log(p)).sum()

        apart = entropy(joint.sum(1)) + entropy(joint.sum(0))
        assert float(found[i, j]) == pytest.approx(2 * (apart - entropy(joint)) / apart, abs=1e-12)
    assert found.diagonal().tolist() == pytest.approx([1.0] * 3, abs=1e-12)


def test_what_the_width_of_the_window_does():
    """The blur caps what an image shares with itself."""
    image = smooth_texture((32, 32, 32))
    same = image.expand(2, 1, *image.shape[2:])
    found = [1 - float(group_nmi(same, sigma_bins=sigma)) for sigma in (0.1, 0.5, 1.0)]
    assert found[0] > 0.95
    assert 0.75 > found[1] > 0.55 > found[2] > 0.35


def test_an_inverted_contrast_shares_as_much():
    image = smooth_texture()
    same, inverted = (group_nmi(torch.cat([image, other])) for other in (image, 1 - image))
    assert float(same) == pytest.approx(float(inverted), abs=1e-9)
    images = torch.cat([image, group(1, image.shape[2:])])
    assert float(group_nmi(images)) == pytest.approx(float(group_nmi(images.flip(0))), abs=1e-12)


def test_noise_shares_nothing_and_a_shift_costs():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 1, 48, 48, 48, generator=generator)
    assert 1 - float(group_nmi(noise)) < 0.005
    image = smooth_texture((32, 32, 32))
    shifted = torch.cat([image[:, :, :-1], image[:, :, 1:]])
    same = image[:, :, 1:].expand(2, 1, 31, 32, 32)
    kept, lost = (1 - float(group_nmi(x, sigma_bins=0.1)) for x in (same, shifted))
    assert lost < 0.5 * kept


def test_constant_images_share_nothing_and_pull_nowhere():
    images = torch.full((3, 1, 8, 8), 0.5)
    images[2] = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    for sigma in (1e-3, 1.0):
        varied = images.clone().requires_grad_()
        loss = group_nmi(varied, sigma_bins=sigma)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(1, abs=1e-5)
        assert bool(varied.grad.isfinite().all())
        assert float(varied.grad.abs().max()) < 1e-4
    assert pair_nmi(images).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, pytest.approx(1)]]


def test_half_precision_around_it_changes_nothing():
    images = group(3).float()
    plain = [x.requires_grad_() for x in (images.clone(), images.clone())]
    group_nmi(plain[0]).backward()
    with torch.autocast("cpu", torch.bfloat16):
        group_nmi(plain[1]).backward()
    assert torch.equal(plain[0].grad, plain[1].grad)
    assert group_nmi(images.bfloat16()).dtype == torch.float32


def test_a_share_of_the_voxels():
    images = group(3, (20, 20, 20))

    def drawn(seed, **options):
        return float(group_nmi(images, share=0.3, generator=torch.Generator().manual_seed(seed), **options))

    assert drawn(1) == drawn(1) != drawn(2)
    mean = np.mean([drawn(seed) for seed in range(8)])
    whole = float(group_nmi(images))
    assert abs(mean - whole) < 0.05
    # Of masked voxels none is drawn, whatever they hold.
    mask = torch.zeros(1, 1, 20, 20, 20)
    mask[..., :10] = 1
    spoilt = images.clone()
    spoilt[..., 10:] = torch.rand(spoilt[..., 10:].shape, generator=torch.Generator().manual_seed(5)).double()
    one, other = (
        float(group_nmi(x, mask=mask, share=0.5, generator=torch.Generator().manual_seed(3)))
        for x in (images, spoilt)
    )
    assert one == other


@every_mask
def test_the_variance_is_the_mean_squared_difference_over_all_pairs(masked):
    images, mask = group(), soft_mask() if masked else None
    pairs = [mse(a[None], b[None], mask=mask) for a, b in itertools.combinations(images, 2)]
    found = group_variance(images, mask=mask)
    assert float(found) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-12)
    table = pair_rmse(images, mask=mask)
    expected = [float(value) for value in pairs]
    first, second = torch.triu_indices(4, 4, 1)
    assert table[first, second].square().tolist() == pytest.approx(expected, abs=1e-12)
    assert bool((table == table.T).all())


def test_where_all_images_are_seen():
    u_vox = torch.zeros(3, 2, 6, 8)
    u_vox[1, 0] = 2.0  # rows 4 and 5 look below the image
    u_vox[2, 1] = -1.5  # columns 0 and 1 look left of it
    held = inside_all(u_vox)
    expected = torch.zeros(6, 8)
    expected[:4, 2:] = 1
    assert torch.equal(held[0, 0], expected)
    assert torch.equal(inside_all(u_vox, (8, 8))[0, 0, :, 2:], torch.ones(6, 6))
    with pytest.raises(NoOverlapError, match="No place"):
        inside_all(u_vox + 20)


def test_what_no_group_is_is_refused():
    images = group(3)
    for wrong in (images[:1], images.expand(3, 2, 7, 6, 9), images[0]):
        for function in (group_nmi, group_variance, pair_nmi, pair_rmse):
            with pytest.raises(ShapeError, match="two images or more"):
                function(wrong)
    for options in ({"bins": 4}, {"sigma_bins": 0.0}, {"bounds": (1.0, 1.0)}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(SettingsError):
            group_nmi(images, **options)
    with pytest.raises(InputError, match="empty"):
        group_nmi(images, mask=torch.zeros(1, 1, 7, 6, 9))
    with pytest.raises(InputError, match="larger share"):
        group_nmi(images[:, :, :2, :2, :1], share=1e-6)
