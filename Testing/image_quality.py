"""How alike two pictures look, as studies of registration report it: SSIM, and FSIM of grey values.

Both take numpy arrays (H, W) with values in [0, 1] and return 1 for equal pictures.  For studies only: no
method makes them small.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Picture = NDArray[np.float64]

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
"""Of the Gaussian window, voxels: 11 x 11."""
K1, K2 = 0.01, 0.03
SCALES, ORIENTATIONS = 4, 4
SHORTEST_WAVE = 6.0
"""Voxels; every further scale is twice as long."""
BANDWIDTH = 0.55
ANGLES = 1.2
"""Distance of two orientations over the sigma of one."""
NOISE_SIGMAS = 2.0
NOISE_SHARE = 1.7
"""The estimate of the noise's energy is divided by it."""
PHASE_CONSTANT, GRADIENT_CONSTANT = 0.85, 160.0 / 255.0**2
TINY = 1e-4 / 255.0


def ssim(one: Picture, other: Picture) -> float:
    """Mean structural similarity of two pictures (H, W) in [0, 1], where whole windows fit.

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, moments of the population.
    Raises ValueError for different shapes or sides below 11.
    Source: Wang et al., Image quality assessment, IEEE Transactions on Image Processing 2004.
    """
    values = ssim_map(one, other)
    return float(values.mean())


def ssim_map(one: Picture, other: Picture) -> Picture:
    """The structural similarity at every place where a whole window fits, (H - 10, W - 10); see `ssim`."""
    _check(one, other)
    if min(one.shape) < 2 * SSIM_RADIUS + 1:
        raise ValueError(f"A window of 11 x 11 does not fit into a picture of {one.shape}.")
    mean_one, mean_other = _windowed(one), _windowed(other)
    variance_one = _windowed(one * one) - mean_one**2
    variance_other = _windowed(other * other) - mean_other**2
    covariance = _windowed(one * other) - mean_one * mean_other
    c1, c2 = K1**2, K2**2
    brightness = (2 * mean_one * mean_other + c1) / (mean_one**2 + mean_other**2 + c1)
    structure = (2 * covariance + c2) / (variance_one + variance_other + c2)
    whole = slice(SSIM_RADIUS, -SSIM_RADIUS)
    found: Picture = (brightness * structure)[whole, whole]
    return found


def fsim(one: Picture, other: Picture) -> float:
    """Feature similarity of two pictures (H, W) in [0, 1]: phase congruency and gradients.

    Likeness of phase congruency (constant 0.85) times likeness of Scharr gradients (constant 160 for values
    up to 255), mean weighted by the larger congruency of the two.  Pictures with sides above 383 are not made
    smaller first, as the published program does.
    Raises ValueError for different shapes; pictures without any feature are alike (1).
    Source: Zhang et al., FSIM, IEEE Transactions on Image Processing 2011.
    """
    _check(one, other)
    phases = [phase_congruency(picture) for picture in (one, other)]
    slopes = [_scharr(picture) for picture in (one, other)]
    alike = _likeness(*phases, PHASE_CONSTANT) * _likeness(*slopes, GRADIENT_CONSTANT)
    weight = np.maximum(*phases)
    total = float(weight.sum())
    return float((alike * weight).sum()) / total if total > 0 else 1.0


def phase_congruency(picture: Picture) -> Picture:
    """How much waves of all lengths agree on an edge or a line, per voxel, 0 to 1, (H, W).

    Log-Gabor filters of 4 scales (6 to 48 voxels) and 4 orientations; what noise would give is taken off, its
    strength estimated from the shortest waves.
    Source: Kovesi, Image features from phase congruency, Videre 1999, as FSIM uses it.
    """
    spectrum = np.fft.fft2(picture)
    energy, amplitude = np.zeros_like(picture), np.zeros_like(picture)
    for filters in _log_gabor(picture.shape):
        answers = [np.fft.ifft2(spectrum * one) for one in filters]
        total = np.sum(answers, axis=0)
        length = np.abs(total) + TINY
        mean = total / length
        # Along the mean phase, less what stands across it: sharper than the length of the sum.
        turned = [answer * mean.conj() for answer in answers]
        along = np.sum([one.real - np.abs(one.imag) for one in turned], axis=0)
        energy += np.maximum(along - _noise(answers[0], filters), 0)
        amplitude += np.sum(np.abs(answers), axis=0)
    found: Picture = energy / np.maximum(amplitude, TINY)
    return found


def _noise(shortest: NDArray[np.complex128], filters: list[Picture]) -> float:
    """Energy that noise alone would not often exceed, of one orientation."""
    power = float(np.median(np.abs(shortest) ** 2)) / math.log(2) / float((filters[0] ** 2).sum())
    waves = [np.fft.ifft2(one).real * math.sqrt(one.size) for one in filters]
    squares = sum(float((one**2).sum()) for one in waves)
    products = sum(
        float((waves[i] * waves[j]).sum()) for i in range(len(waves)) for j in range(i + 1, len(waves))
    )
    rayleigh = math.sqrt(max(power * squares + 2 * power * products, 0.0))
    mean, spread = rayleigh * math.sqrt(math.pi / 2), rayleigh * math.sqrt(2 - math.pi / 2)
    return (mean + NOISE_SIGMAS * spread) / NOISE_SHARE


@lru_cache(maxsize=4)
def _log_gabor(shape: tuple[int, int]) -> tuple[list[Picture], ...]:
    """Filters in the order of FFT frequencies, by orientation, then scale."""
    rows, columns = (np.fft.fftfreq(n) for n in shape)
    radius = np.hypot(rows[:, None], columns[None, :])
    angle = np.arctan2(-rows[:, None], columns[None, :])
    soft_end = 1 / (1 + (radius / 0.45) ** 30)
    radius[0, 0] = 1.0
    radial = []
    for scale in range(SCALES):
        center = 1 / (SHORTEST_WAVE * 2**scale)
        band = np.exp(-((np.log(radius / center)) ** 2) / (2 * math.log(BANDWIDTH) ** 2)) * soft_end
        band[0, 0] = 0.0
        radial.append(band)
    sigma = math.pi / ORIENTATIONS / ANGLES
    result = []
    for number in range(ORIENTATIONS):
        direction = number * math.pi / ORIENTATIONS
        away = np.abs(np.angle(np.exp(1j * (angle - direction))))
        spread = np.exp(-(away**2) / (2 * sigma**2))
        result.append([band * spread for band in radial])
    return tuple(result)


def _scharr(picture: Picture) -> Picture:
    """Length of the gradient by Scharr's filter, 0 beyond the border."""
    across = np.array([3.0, 10.0, 3.0]) / 16
    along = np.array([1.0, 0.0, -1.0])
    parts = []
    for axis in (0, 1):
        first = ndimage.correlate1d(picture, along, axis=axis, mode="constant")
        parts.append(ndimage.correlate1d(first, across, axis=1 - axis, mode="constant"))
    found: Picture = np.hypot(*parts)
    return found


def _likeness(one: Picture, other: Picture, constant: float) -> Picture:
    found: Picture = (2 * one * other + constant) / (one**2 + other**2 + constant)
    return found


def _windowed(picture: Picture) -> Picture:
    found: Picture = ndimage.gaussian_filter(picture, SSIM_SIGMA, radius=SSIM_RADIUS, mode="nearest")
    return found


def _check(one: Picture, other: Picture) -> None:
    if one.ndim != 2 or one.shape != other.shape:
        raise ValueError(f"Two pictures of one shape are compared, not {one.shape} and {other.shape}.")
