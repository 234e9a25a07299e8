"""Normalised mutual information of two images by Parzen windows."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.losses.weighting import checked_pair, mask_like

Kernel = Literal["bspline", "gaussian"]
Range = tuple[float, float]

# Voxels whose kernel weights exist at one time: few enough to stay in the cache of a processor.
VOXELS_PER_CHUNK = 1 << 15


def nmi(
    fixed: Tensor,
    warped: Tensor,
    *,
    bins: int = 32,
    kernel: Kernel = "bspline",
    sigma_bins: float = 1.0,
    fixed_range: Range | None = None,
    warped_range: Range | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """One minus the normalised mutual information, in [0, 1]; a scalar, mean over the batch.

    p_ij = (1/sum w) sum_x w(x) k(f(x) - i) k(g(x) - j) with f, g the intensities in bins, and
        NMI = 2 (H_F + H_W - H_FW) / (H_F + H_W)
    The kernel blurs: NMI of an image with itself is below 1 (compare values of equal bins and kernel only).
    fixed, warped: (N, 1, *spatial); kernel weights exist for 2^15 voxels at a time, forward and backward.
    kernel: cubic B-spline of four bins' width, or a Gaussian of `sigma_bins` bins normalised per voxel.
    fixed_range, warped_range: intensities of the first and last bin, values beyond are cut off; default the
    range within the mask, which the derivative holds constant. Give them where warped images are compared
    with each other.
    mask: (N or 1, 1, *spatial) weights >= 0.
    Raises ShapeError for different shapes, InputError for an empty mask or several channels, SettingsError
    for fewer than 8 bins, an unknown kernel or a width that is not positive.
    Source: Studholme et al., Pattern Recognition 1999 (normalisation); Mattes et al., IEEE TMI 2003 (kernel).
    """
    fixed, warped = checked_pair(fixed, warped)
    if fixed.shape[1] != 1:
        raise InputError(f"Mutual information compares images of one channel, not {fixed.shape[1]}.")
    if bins < 8 or kernel not in ("bspline", "gaussian") or not sigma_bins > 0:
        raise SettingsError(f"NMI needs 8 bins or more and a kernel: {bins}, '{kernel}', {sigma_bins}.")
    width = sigma_bins if kernel == "gaussian" else None
    weight = torch.ones_like(fixed[:1, :1]) if mask is None else mask_like(mask, fixed)
    weight = weight.expand(fixed.shape[0], 1, *fixed.shape[2:])
    values = []
    for one, other, w in zip(fixed, warped, weight, strict=True):
        first = _in_bins(one, w, fixed_range, bins)
        second = _in_bins(other, w, warped_range, bins)
        values.append(1 - _normalised_information(_joint_histogram(first, second, w.flatten(), bins, width)))
    return torch.stack(values).mean()


def _in_bins(image: Tensor, weight: Tensor, bounds: Range | None, bins: int) -> Tensor:
    """Intensities as positions 1 ... bins - 2, one bin free at either end for the kernel; a flat list.

    A constant image sits in the middle.
    """
    values = image.flatten()
    if bounds is None:
        inside = values.detach()[weight.flatten() > 0]
        low, high = inside.amin(), inside.amax()
    else:
        low, high = (values.new_tensor(b) for b in bounds)
    extent = high - low
    scale = torch.where(extent > 0, (bins - 3) / torch.where(extent > 0, extent, 1.0), 0.0)
    start = torch.where(extent > 0, 1.0, (bins - 1) / 2)
    return start + torch.minimum(torch.maximum(values, low), high).sub(low) * scale


def _joint_histogram(first: Tensor, second: Tensor, weight: Tensor, bins: int, width: float | None) -> Tensor:
    """Weighted joint distribution (bins, bins) of two lists of positions; sums to 1."""
    total = first.new_zeros((bins, bins))
    needs_gradient = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
    number = -(-first.numel() // VOXELS_PER_CHUNK)
    # chunk, not slices: its backward pass joins the parts once instead of one whole volume per part
    parts = zip(first.chunk(number), second.chunk(number), weight.chunk(number), strict=True)
    for one, other, share in parts:
        if needs_gradient:  # kernel weights are made again in the backward pass, never kept
            counts: Tensor = checkpoint(_counts, one, other, share, bins, width, use_reentrant=False)
            total = total + counts
        else:
            total += _counts(one, other, share, bins, width)
    return total / total.sum()


def _counts(first: Tensor, second: Tensor, weight: Tensor, bins: int, width: float | None) -> Tensor:
    spread = _spline_shares if width is None else partial(_gaussian_shares, width=width)
    return (spread(first, bins) * weight[:, None]).T @ spread(second, bins)


def _spline_shares(position: Tensor, bins: int) -> Tensor:
    """Cubic B-spline weight of every bin in every voxel, (voxels, bins), four in each row, sum 1."""
    below = position.detach().floor().clamp(1, bins - 3)
    t = position - below
    r = 1 - t
    shares = torch.stack((r**3, 4 - 6 * t.square() + 3 * t**3, 4 - 6 * r.square() + 3 * r**3, t**3), 1)
    index = below.long()[:, None] + torch.arange(-1, 3, device=position.device)
    return shares.new_zeros((len(position), bins)).scatter(1, index, shares / 6)


def _gaussian_shares(position: Tensor, bins: int, width: float) -> Tensor:
    """Gaussian weight of every bin in every voxel, (voxels, bins), each row scaled to sum 1."""
    centres = torch.arange(bins, dtype=position.dtype, device=position.device)
    return torch.softmax(-0.5 * ((position[:, None] - centres) / width).square(), dim=1)


def _normalised_information(joint: Tensor) -> Tensor:
    """2 (H_F + H_W - H_FW) / (H_F + H_W) of a joint distribution."""
    apart = _entropy(joint.sum(1)) + _entropy(joint.sum(0))
    return 2 * (apart - _entropy(joint)) / apart


def _entropy(probability: Tensor) -> Tensor:
    floor = torch.finfo(probability.dtype).tiny
    return -(probability * probability.clamp(min=floor).log()).sum()
