"""Derivatives of the similarity of a group by every one of its images: the inner loop of its optimisation.

Images come block-wise, (K, P, *coarse), as `space.blocks.Blocks` keeps them, all of them read on the common
grid.  Every measure treats the images alike: exchanged images give exchanged derivatives.
Source: van der Ouderaa et al., GroupMorph, 2020, equation 2 (all pairs count the same).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from DiffeoRegLib.errors import UnknownNameError
from DiffeoRegLib.losses.forces import local_correlation
from DiffeoRegLib.losses.group_similarity import group_nmi

GROUP_SIMILARITIES = ("nmi", "mse", "lncc", "lncc-squared")
"""nmi and mse: the mean over all pairs; lncc: every image with the mean of the others."""
SHARES = 1 << 23
"""Kernel weights (voxels x images x bins) that one histogram of a large group is made of."""
BINS, FEWER_BINS, MANY_IMAGES = 32, 16, 12
"""The joint histograms of many images would take longer than all the rest."""


@dataclass(frozen=True, eq=False)
class GroupForces:
    """A similarity of a group, lower is better, and a multiple of its derivative by each image."""

    value: float
    by_image: Tensor


GroupSimilarity = Callable[[Tensor, Tensor], GroupForces]
"""Called with images (K, P, *coarse) and a weight (*coarse) >= 0; by_image has the shape of the images."""


def group_similarity(name: str, radii: Sequence[int]) -> GroupSimilarity:
    """The forces of a group by the name of the measure; radii: of windows, in blocks per axis.

    Raises UnknownNameError.
    """
    if name == "nmi":
        return mutual_information
    if name == "mse":
        return variance
    if name in ("lncc", "lncc-squared"):
        return to_the_others(radii, squared=name == "lncc-squared")
    raise UnknownNameError("similarity of a group", name, GROUP_SIMILARITIES)


def variance(images: Tensor, weight: Tensor) -> GroupForces:
    """Mean squared difference over all pairs: 2 / (K - 1) sum_k (x_k - mean)^2."""
    apart = images - images.mean(0, keepdim=True)
    by_image = apart * weight
    total = max(float(weight.sum()) * images.shape[1], 1e-12)
    value = 2 / (len(images) - 1) * float(torch.tensordot(by_image, apart, images.dim())) / total
    return GroupForces(value, by_image)


def to_the_others(radii: Sequence[int], *, squared: bool) -> GroupSimilarity:
    """One minus the local correlation of every image with the mean of the others, mean over the images.

    The derivative is exact: an image is also a part of the mean that the others are compared with.
    """
    correlation = local_correlation(radii, squared=squared)

    def forces(images: Tensor, weight: Tensor) -> GroupForces:
        count = len(images)
        if count == 2:  # either is the mean of the other: one comparison says it all
            pair = correlation(images[:1], images[1:], weight)
            return GroupForces(pair.value, torch.cat([pair.by_fixed, pair.by_moving]))
        together, value = images.sum(0, keepdim=True), 0.0
        by_image, by_means = torch.empty_like(images), torch.zeros_like(together)
        for index in range(count):
            one = images[index : index + 1]
            found = correlation((together - one) / (count - 1), one, weight)
            by_mean = found.by_fixed / ((count - 1) * found.factor)
            by_image[index : index + 1] = found.by_moving / found.factor - by_mean
            by_means += by_mean
            value += found.value / count
        return GroupForces(value, by_image.add_(by_means))

    return forces


def mutual_information(images: Tensor, weight: Tensor) -> GroupForces:
    """One minus normalised mutual information, mean over all pairs; see `losses.group_similarity`.

    Of many voxels some are enough: two opposite places of each block, one, or one of every few blocks.
    """
    count, places = images.shape[:2]
    bins = BINS if count <= MANY_IMAGES else FEWER_BINS
    chosen, step = _subset(places, weight.numel(), SHARES // (count * bins), weight.dim())
    every: tuple[Any, ...] = (slice(None, None, step),) * weight.dim()
    used: tuple[Any, ...] = (slice(None), chosen, *every)
    part = images[used]
    kept = weight[every]
    mask = kept.expand(len(chosen), *kept.shape)
    with torch.enable_grad():
        lists = part.reshape(count, 1, -1, 1).requires_grad_()
        value = group_nmi(lists, bins=bins, mask=mask.reshape(1, 1, -1, 1))
        (by_list,) = torch.autograd.grad(value, lists)
    by_image = torch.zeros_like(images)
    by_image[used] = by_list.view_as(part)
    return GroupForces(float(value.detach()), by_image)


def _subset(places: int, blocks: int, most: int, dim: int) -> tuple[list[int], int]:
    """Places of each block and the stride over blocks that leave about `most` voxels."""
    if places * blocks <= most:
        return list(range(places)), 1
    if 2 * blocks <= most and places > 1:
        return [0, places - 1], 1
    return [0], max(1, min(3, round((blocks / most) ** (1 / dim))))
