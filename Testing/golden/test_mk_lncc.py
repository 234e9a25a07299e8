"""Multi-kernel LNCC against dense strided and dilated convolutions, as the publication computes it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from DiffeoRegLib.losses.similarity import mk_lncc
from Testing.scenes import texture

D = torch.float64
KERNELS = {
    (22, 25): [(11, 1.0, 1)],
    (18, 17, 21): [(8, 1.0, 1)],
    (70, 65): [(16, 0.3, 2), (32, 0.7, 2)],
    (64, 70, 66): [(16, 0.3, 2), (32, 0.7, 2)],
    (161, 177): [(10, 0.1, 2), (20, 0.3, 2), (40, 0.6, 2)],
}


def _dense(fixed, warped, mask, kernels, squared, faithful):
    """Section by section of the definition; images (1, 1, *shape), float64."""
    convolve = functional.conv2d if fixed.dim() == 4 else functional.conv3d
    mean = [float((image * mask).sum() / mask.sum()) for image in (fixed, warped)]
    first, second = fixed - mean[0], warped - mean[1]
    total = 0.0
    for size, share, dilation in kernels:
        ones = torch.ones(1, 1, *[size] * (fixed.dim() - 2), dtype=D)
        sums = [
            convolve(mask * x, ones, stride=max(int((size + 1) / 4), 1), dilation=dilation)
            for x in (torch.ones_like(first), first, second, first**2, second**2, first * second)
        ]
        n, whole = sums[0].clamp(min=1e-9), ones.numel()
        var = [(sums[k + 2] - sums[k] ** 2 / n).clamp(min=0) for k in (1, 2)]
        cross = (sums[5] - sums[1] * sums[2] / n) * whole / n
        energy = var[0] * var[1] * (whole / n) ** 2 + 1e-5
        term = 1 - (cross**2 / energy if squared else cross / energy.sqrt())
        counts = sums[0] * (sums[0] > 1e-3)
        if not faithful:
            counts = counts * ((var[0] / n > 1e-6) | (var[1] / n > 1e-6))
        total += share * float((term * counts).sum() / counts.sum())
    return total


def _pair(shape):
    """Two textures, of which a third is empty in both and a corner in one."""
    fixed = texture(shape, seed=1, sigma=1.5).to(D)
    warped = 0.6 * fixed + 0.4 * texture(shape, seed=2, sigma=1.5).to(D)
    third = shape[0] // 3
    fixed[:, :, :third], warped[:, :, :third] = 0, 0
    warped[..., -shape[-1] // 3 :] = 0.2
    return fixed, warped


@pytest.mark.parametrize("shape", KERNELS)
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_value_is_that_of_dense_convolutions(shape, masked, squared, faithful):
    fixed, warped = _pair(shape)
    mask = torch.ones_like(fixed)
    if masked:
        mask = (texture(shape, seed=4, sigma=2.0).to(D) - 0.4).clamp(min=0)
        mask = mask / mask.max()
    expected = _dense(fixed, warped, mask, KERNELS[shape], squared, faithful)
    given = mask if masked else None
    found = float(mk_lncc(fixed, warped, mask=given, squared=squared, faithful=faithful))
    assert 0.02 < expected < 1.5
    assert found == pytest.approx(expected, rel=1e-9)
    single = mk_lncc(fixed.float(), warped.float(), mask=given, squared=squared, faithful=faithful)
    # Where one image is flat, rounding is all of the covariance, and its root of 1e-5 does not hide it.
    assert float(single) == pytest.approx(expected, rel=1e-5 if squared else 5e-4)


@pytest.mark.parametrize("shape", KERNELS)
def test_a_mask_of_ones_is_none(shape):
    fixed, warped = _pair(shape)
    found = mk_lncc(fixed, warped, mask=torch.ones_like(fixed))
    assert float(found) == pytest.approx(float(mk_lncc(fixed, warped)), rel=1e-12)


@pytest.mark.parametrize("shape", KERNELS)
def test_what_is_empty_in_both_says_nothing_and_the_worst_in_the_publication(shape):
    image = texture(shape, seed=1, sigma=1.5).to(D)
    half = shape[0] // 2
    image[:, :, :half] = 0
    empty = 0.0
    for size, share, dilation in KERNELS[shape]:
        reach = (size - 1) * dilation + 1
        starts = range(0, shape[0] - reach + 1, max((size + 1) // 4, 1))
        empty += share * sum(start + reach <= half for start in starts) / len(starts)
    assert 0 <= float(mk_lncc(image, image)) < 1e-5
    assert float(mk_lncc(image, image, faithful=True)) == pytest.approx(empty, abs=1e-5)
    assert float(mk_lncc(0 * image, 0 * image)) == 0
    assert float(mk_lncc(0 * image, 0 * image, faithful=True)) == pytest.approx(1)
    # Empty in one image alone is a difference, and counts.
    assert float(mk_lncc(image.flip(2), image)) > 0.1


def test_a_large_offset_costs_no_digits_in_single_precision():
    fixed, warped = _pair((64, 70, 66))
    exact = float(mk_lncc(fixed, warped))
    shifted = mk_lncc((fixed + 8).float(), (warped + 8).float())
    assert float(shifted) == pytest.approx(exact, rel=1e-4)
