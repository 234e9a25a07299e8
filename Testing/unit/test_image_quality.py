"""SSIM and FSIM: against their definitions, against other programs, and what they have to be like."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from Testing.image_quality import fsim, phase_congruency, ssim, ssim_map


def picture(seed=0, shape=(64, 72), sigma=2.0):
    values = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return (values - values.min()) / (values.max() - values.min())


def drawn(seed, shape=(48, 60)):
    """Values whose digits do not depend on a filter's library."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(float) / 255


def waves():
    """Two pictures by a formula, and noise on the second."""
    y, x = np.mgrid[0:48, 0:60].astype(float)
    one = 0.5 + 0.25 * np.sin(x / 5) * np.cos(y / 7) + 0.2 * (np.hypot(x - 30, y - 20) < 11)
    other = 0.5 + 0.25 * np.sin((x + 1.5) / 5) * np.cos(y / 7) + 0.2 * (np.hypot(x - 32, y - 21) < 11)
    return one, other + 0.02 * (drawn(3) - 0.5)


def test_a_window_of_ssim_by_its_definition():
    one, other = picture(0), picture(1)
    steps = np.arange(-5, 6)
    weight = np.exp(-(steps**2) / (2 * 1.5**2))
    window = np.outer(weight, weight) / weight.sum() ** 2
    a, b = one[20:31, 30:41], other[20:31, 30:41]
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
    both = (window * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    expected /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    assert ssim_map(one, other)[20, 30] == pytest.approx(expected, rel=1e-10)
    assert ssim_map(one, other).shape == (54, 62)


@pytest.mark.parametrize(
    ("pictures", "structural", "feature"),
    [
        (waves(), 0.8286944740, 0.944971),
        ((drawn(0), drawn(1)), 0.0077469285, 0.774673),
    ],
    ids=["waves", "noise"],
)
def test_the_figures_of_other_programs(pictures, structural, feature):
    """Of scikit-image 0.26.0 (Gaussian weights, sigma 1.5, moments of the population) and of piq 0.8.0."""
    one, other = (np.clip(picture, 0, 1) for picture in pictures)
    assert ssim(one, other) == pytest.approx(structural, abs=1e-9)
    assert fsim(one, other) == pytest.approx(feature, abs=1e-5)


@pytest.mark.parametrize("measure", [ssim, fsim])
def test_what_a_measure_of_likeness_is_like(measure):
    one = picture()
    noise = drawn(1, one.shape) - 0.5
    assert measure(one, one) == pytest.approx(1, abs=1e-12)
    values = [measure(one, np.clip(one + size * noise, 0, 1)) for size in (0.1, 0.3, 1.0)]
    assert 1 > values[0] > values[1] > values[2] > 0
    assert measure(one, picture(1)) == pytest.approx(measure(picture(1), one), rel=1e-12)
    moved = [measure(one, np.roll(one, step, 1)) for step in (1, 2, 4)]
    assert 1 > moved[0] > moved[1] > moved[2]


def test_black_pictures_are_alike():
    black = np.zeros((32, 32))
    assert ssim(black, black) == pytest.approx(1)
    assert fsim(black, black) == 1.0


def test_phase_congruency_sees_edges_whatever_their_height():
    """Of all contrasts alike, along the border of a disc, and not beside it."""
    y, x = np.mgrid[0:64, 0:64].astype(float)
    away = np.hypot(x - 32, y - 30) - 14
    disc = 1 / (1 + np.exp(away / 0.5))
    found = phase_congruency(disc)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found[np.abs(away) < 0.5].mean() > 0.7
    assert found[np.abs(away - 8) < 2].mean() < 0.3
    np.testing.assert_allclose(phase_congruency(0.3 * disc + 0.2), found, atol=1e-3)
    assert not math.isclose(fsim(disc, 0.3 * disc + 0.2), 1, abs_tol=1e-3)  # its gradients differ


@pytest.mark.parametrize("measure", [ssim, fsim])
def test_what_cannot_be_compared(measure):
    with pytest.raises(ValueError, match="one shape"):
        measure(picture(), picture(0, (64, 70)))
    with pytest.raises(ValueError, match="one shape"):
        measure(np.zeros((3, 20, 20)), np.zeros((3, 20, 20)))


def test_a_picture_below_a_window():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(np.zeros((10, 40)), np.zeros((10, 40)))
