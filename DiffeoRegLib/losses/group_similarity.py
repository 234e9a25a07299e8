"""How alike the images of one group are: every pair counts the same, all pairs in one pass over the voxels.

Source: van der Ouderaa et al., Deep group-wise variational diffeomorphic image registration (GroupMorph),
2020, equations 2 and 7; Studholme et al., Pattern Recognition 1999, for the normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from DiffeoRegLib.errors import InputError, NoOverlapError, SettingsError, ShapeError
from DiffeoRegLib.losses.weighting import at_least_float32, mask_like, weighted_mean

Bounds = tuple[float, float]
FEWEST_BINS = 8

SHARES_AT_A_TIME = 1 << 20
"""Kernel weights (voxels x images x bins) that exist at one time."""
ROWS_AT_A_TIME = 128
"""Rows of one product: the joint distribution is symmetric, blocks below its diagonal are left out."""


def group_nmi(
    images: Tensor,
    *,
    bins: int = 32,
    sigma_bins: float = 1.0,
    bounds: Bounds = (0.0, 1.0),
    mask: Tensor | None = None,
    share: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One minus the normalised mutual information, mean over all pairs of a group; a scalar in [0, 1].

    p_ij(a, b) = (1/sum w) sum_x w(x) k(x_i(x) - a) k(x_j(x) - b) with k a Gaussian normalised per voxel, and
        NMI_ij = 2 (H_i + H_j - H_ij) / (H_i + H_j)
    The Gaussian blurs: the NMI of an image with itself is below 1 (compare values of equal bins and width
    only).  A pair with a constant image has next to none.  Computed in float32 or float64, whatever runs
    around it; kernel weights are made again for the gradient, never kept.
    images: (K, 1, *spatial) on one grid.  sigma_bins: standard deviation of the Gaussian, bins.
    bounds: intensities of the first and last bin, values beyond are cut off.
    mask: (1, 1, *spatial) weights >= 0.  share: of the voxels drawn for this call, the same of all images.
    generator: to draw with, on the CPU; None = torch's own.
    Raises ShapeError for fewer than two images or several channels, SettingsError for fewer than 8 bins or
    another number that makes no sense, InputError for an empty mask.
    """
    _check_group(images)
    if not 0 < share <= 1:
        raise SettingsError(f"The share of the voxels lies above 0 and at most at 1, not at {share}.")
    values, weight = _chosen(images, mask, share, generator)
    positions = _in_bins(values, bins, sigma_bins, bounds)
    joint, single = _Distributions.apply(positions, weight, bins, sigma_bins)  # type: ignore[no-untyped-call]
    return 1 - _information(joint, single, len(images)).mean()


def group_variance(images: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference over all pairs of a group, a scalar: 2 / (K - 1) sum_k (x_k - mean)^2.

    images: (K, 1, *spatial); mask: (1, 1, *spatial) weights >= 0.  Raises as `group_nmi`.
    """
    _check_group(images)
    images = at_least_float32(images)
    weight = None if mask is None else mask_like(mask, images[:1])
    squares = (images - images.mean(0, keepdim=True)).square().sum(0, keepdim=True)
    return weighted_mean(squares * (2 / (len(images) - 1)), weight)


@torch.no_grad()
def pair_nmi(
    images: Tensor,
    *,
    bins: int = 32,
    sigma_bins: float | None = None,
    bounds: Bounds = (0.0, 1.0),
    mask: Tensor | None = None,
) -> Tensor:
    """The normalised mutual information of every pair, (K, K) float64, on the diagonal each with itself.

    sigma_bins: of `group_nmi`; None = each value counts in its bin alone, bins of equal width over `bounds`,
    for reports: an image has then 1 with itself.  Constant images have 0 with any.
    images, bounds, mask: as in `group_nmi`.  Raises as it.
    """
    _check_group(images)
    values, weight = _chosen(images, mask, 1.0, None)
    if sigma_bins is None:
        _check_bins(bins, 1.0, bounds)
        low, high = bounds
        positions = (values.sub(low).mul(bins / (high - low))).floor().clamp(0, bins - 1)
    else:
        positions = _in_bins(values, bins, sigma_bins, bounds)
    joint, single = _distributions(positions, weight, bins, sigma_bins)
    count = len(images)
    found = torch.zeros(count, count, dtype=torch.float64, device=joint.device)
    first, second = torch.triu_indices(count, count, device=joint.device)
    found[first, second] = _information(joint.double(), single.double(), count, diagonal=True)
    return found + found.triu(1).T


@torch.no_grad()
def pair_rmse(images: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Root mean squared difference of every pair, (K, K) float64, in the images' units.

    images: (K, 1, *spatial); mask: (1, 1, *spatial) weights >= 0.  Raises as `group_nmi`.
    """
    _check_group(images)
    values, weight = _chosen(images, mask, 1.0, None)
    squares = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    for row in range(len(images) - 1):
        for other in range(row + 1, len(images)):
            apart = (values[other] - values[row]).square() * weight
            squares[row, other] = squares[other, row] = apart.sum(dtype=torch.float64)
    return (squares / weight.sum(dtype=torch.float64)).sqrt()


@torch.no_grad()
def inside_all(u_vox: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """1 where x + u_k(x) of every image k lies in the box of its voxel centres, else 0: (1, 1, *spatial).

    u_vox: (K, d, *spatial), voxels.  shape: of the images, None = that of the fields.
    Raises NoOverlapError where no place is left.
    """
    grid = u_vox.shape[2:]
    held = torch.ones(grid, dtype=torch.bool, device=u_vox.device)
    for axis, size in enumerate(shape or grid):
        along = [-1 if a == axis else 1 for a in range(len(grid))]
        start = torch.arange(grid[axis], dtype=u_vox.dtype, device=u_vox.device).view(along)
        for one in u_vox[:, axis]:
            position = one + start
            held &= (position >= 0) & (position <= size - 1)
    if not bool(held.any()):
        raise NoOverlapError("No place of the common space lies inside all images of the group any more.")
    return held.to(u_vox.dtype)[None, None]


def _check_group(images: Tensor) -> None:
    if images.dim() not in (4, 5) or images.shape[1] != 1 or len(images) < 2:
        raise ShapeError(
            f"A group is (K, 1, *2D or 3D shape) with two images or more, not {tuple(images.shape)}."
        )


def _check_bins(bins: int, sigma_bins: float, bounds: Bounds) -> None:
    if bins < FEWEST_BINS or not sigma_bins > 0 or not bounds[0] < bounds[1]:
        raise SettingsError(
            f"NMI needs {FEWEST_BINS} bins or more, a width above 0 and rising bounds, "
            f"not {bins}, {sigma_bins} and {bounds}."
        )


def _chosen(
    images: Tensor, mask: Tensor | None, share: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Values (K, n) of the voxels that count, and their weights (n,)."""
    values = at_least_float32(images).flatten(1)
    weight = values.new_ones(values.shape[1])
    kept = None
    if mask is not None:
        weight = mask_like(mask, at_least_float32(images[:1])).flatten()
        kept = weight > 0
    if share < 1:
        # Drawn on the CPU: the same voxels on every device.
        drawn = (torch.rand(values.shape[1], generator=generator) < share).to(values.device)
        kept = drawn if kept is None else kept & drawn
    if kept is None:
        return values, weight
    index = kept.nonzero()[:, 0]
    if not len(index):
        raise InputError("No voxel was drawn to compare: give a larger share or a larger mask.")
    return values[:, index], weight[index]


def _in_bins(values: Tensor, bins: int, sigma_bins: float, bounds: Bounds) -> Tensor:
    """Intensities as positions 1 ... bins - 2, one bin free at either end, as in `information.nmi`."""
    _check_bins(bins, sigma_bins, bounds)
    low, high = bounds
    return 1 + (values.clamp(low, high) - low) * ((bins - 3) / (high - low))


class _Distributions(torch.autograd.Function):
    """`_distributions`, differentiable in the positions without keeping kernel weights."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, positions: Tensor, weight: Tensor, bins: int, width: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(positions, weight)
        ctx.bins, ctx.width = bins, width  # type: ignore[attr-defined]
        return _distributions(positions, weight, bins, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_joint: Tensor, by_single: Tensor) -> tuple[Tensor, None, None, None]:
        positions, weight = ctx.saved_tensors
        bins, width = ctx.bins, ctx.width
        count = len(positions)
        scale = weight / weight.sum()
        both = by_joint + by_joint.T
        centres = torch.arange(bins, dtype=positions.dtype, device=positions.device)
        gradient = torch.empty_like(positions)
        with torch.autocast(positions.device.type, enabled=False):
            for part in _parts(positions, bins):
                shares = _shares(positions[:, part], bins, width)
                by_shares = torch.addmm(by_single, shares, both).view(-1, count, bins)
                held = shares.view(-1, count, bins)
                # d share_b / d position = share_b (b - mean of the bins) / width^2
                weighed = by_shares * held
                mean = (held * centres).sum(2)
                slope = (weighed * centres).sum(2) - mean * weighed.sum(2)
                gradient[:, part] = (slope * (scale[part, None] / width**2)).T
        return gradient, None, None, None


def _distributions(
    positions: Tensor, weight: Tensor, bins: int, width: float | None
) -> tuple[Tensor, Tensor]:
    """Joint distributions of all pairs (K bins, K bins), nothing below the diagonal blocks; single ones.

    positions: (K, n) in bins; weight: (n,).  Each block sums to 1, and so do the single (K bins,) ones.
    """
    size = len(positions) * bins
    joint, single = positions.new_zeros((size, size)), positions.new_zeros(size)
    step = max(1, ROWS_AT_A_TIME // bins) * bins
    with torch.autocast(positions.device.type, enabled=False):
        for part in _parts(positions, bins):
            shares = _shares(positions[:, part], bins, width)
            weighed = shares * weight[part, None]
            single += weighed.sum(0)
            for row in range(0, size, step):
                joint[row : row + step, row:].addmm_(weighed[:, row : row + step].T, shares[:, row:])
    total = weight.sum()
    return joint / total, single / total


def _parts(positions: Tensor, bins: int) -> Iterator[slice]:
    """Runs of voxels whose kernel weights may exist at one time."""
    count, voxels = positions.shape
    step = max(1, SHARES_AT_A_TIME // (count * bins))
    for first in range(0, voxels, step):
        yield slice(first, min(first + step, voxels))


def _shares(positions: Tensor, bins: int, width: float | None) -> Tensor:
    """Weight of every bin in every voxel, (n, K bins), those of one image sum to 1; None = one bin alone."""
    centres = torch.arange(bins, dtype=positions.dtype, device=positions.device)
    apart = positions.T[:, :, None] - centres
    if width is None:
        return (apart == 0).to(positions.dtype).flatten(1)
    return torch.softmax(apart.square_().mul_(-0.5 / width**2), dim=2).flatten(1)


def _information(joint: Tensor, single: Tensor, count: int, *, diagonal: bool = False) -> Tensor:
    """2 (H_i + H_j - H_ij) / (H_i + H_j) of every pair i < j, or i <= j, as a list."""
    bins = len(single) // count
    first, second = torch.triu_indices(count, count, 0 if diagonal else 1, device=joint.device)
    blocks = joint.view(count, bins, count, bins)[first, :, second]
    own = _entropy(single.view(count, bins))
    apart = own[first] + own[second]
    # Two constant images without any blur have no entropy to share.
    floor = torch.finfo(joint.dtype).eps
    return 2 * (apart - _entropy(blocks.flatten(1))) / apart.clamp(min=floor)


def _entropy(probability: Tensor) -> Tensor:
    """Of every row."""
    floor = torch.finfo(probability.dtype).tiny
    return -(probability * probability.clamp(min=floor).log()).sum(1)
