"""Derivatives of a similarity by both images, in closed form: the inner loop of instance optimisation.

Images come block-wise, (C, P, *coarse), as `space.blocks.Blocks` keeps them. The measures are those of
`losses.similarity` and `losses.information`; windows of the local correlation are boxes of whole blocks,
so every window sum is a sum over the coarse grid only, and exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.errors import UnknownNameError
from DiffeoRegLib.losses.information import nmi
from DiffeoRegLib.settings import SIMILARITIES
from DiffeoRegLib.space.filters import box_sum

FLAT_VARIANCE = 1e-5
"""Windows with less variance (intensities in [0, 1]) in either image say nothing and are left out."""


@dataclass(frozen=True, eq=False)
class Forces:
    """A similarity and its derivatives.

    value: lower is better.  by_fixed, by_moving: `factor` times its derivative by each image, (C, P, *coarse)
    factor: number of windows, half the sum of weights, or 1; steps are scaled by their longest vector anyway.
    """

    value: float
    by_fixed: Tensor
    by_moving: Tensor
    factor: float


Similarity = Callable[[Tensor, Tensor, Tensor], Forces]
"""Called with fixed (C, P, *coarse), moving (C, P, *coarse) and weight (*coarse) in [0, 1]."""


def local_correlation(radii: Sequence[int], *, squared: bool) -> Similarity:
    """One minus the mean (squared) correlation coefficient over all boxes of 2 r + 1 blocks per axis.

    With A = sum (F - mean F)(M - mean M), B and C the sums of squares, a window adds A^2/(BC) or A/sqrt(BC);
    its derivative by M is s ((F - mean F) - A/C (M - mean M)), s = 2A/(BC) or 1/sqrt(BC). Summing s, s A/C
    and their products with the means over the windows that hold a voxel gives the exact derivative there.
    Windows that are flat in either image are left out of the mean; FLAT_VARIANCE also damps B and C. A weight
    cuts the windows, and a window counts if the weight of its centre is positive.
    Source: Avants et al., Med Image Anal 2008 (local correlation); the block-wise form is ours.
    """

    def forces(fixed: Tensor, moving: Tensor, weight: Tensor) -> Forces:
        # One call per image: a matrix product rounds differently in another row, and exchanged images would
        # no longer give exactly exchanged forces.
        (count,) = _window_sums(radii, weight * (fixed.shape[0] * fixed.shape[1]))
        fixed_sum, fixed_energy = _window_sums(radii, *_moments(fixed, weight))
        moving_sum, moving_energy = _window_sums(radii, *_moments(moving, weight))
        (product,) = _window_sums(radii, (fixed * moving).sum((0, 1)).mul_(weight))
        count = count.clamp(min=1e-6)
        fixed_mean, moving_mean = fixed_sum / count, moving_sum / count
        flat = count * FLAT_VARIANCE
        fixed_energy = (fixed_energy - fixed_sum * fixed_mean).clamp_(min=0)
        moving_energy = (moving_energy - moving_sum * moving_mean).clamp_(min=0)
        # a product of both means, not of a mean and a sum: the same bits when the images are swapped
        product = product.addcmul_(fixed_mean * moving_mean, count, value=-1)
        counts = ((fixed_energy > flat) & (moving_energy > flat) & (weight > 0)).to(fixed.dtype)
        fixed_energy, moving_energy = fixed_energy + flat, moving_energy + flat
        if squared:
            scale = product / (fixed_energy * moving_energy)
            correlation = scale * product
            scale = 2 * scale
        else:
            scale = torch.rsqrt(fixed_energy * moving_energy)
            correlation = scale * product
        windows = max(float(counts.sum()), 1.0)
        value = 1 - float((correlation * counts).sum()) / windows
        scale = scale * counts
        to_fixed, to_moving = scale * product / fixed_energy, scale * product / moving_energy
        cross = _window_sums(radii, scale)[0].mul_(weight)
        own, rest = _window_sums(radii, to_fixed, to_fixed * fixed_mean - scale * moving_mean)
        by_fixed = own.mul_(weight) * fixed
        by_fixed.addcmul_(cross.expand_as(moving), moving, value=-1).sub_(rest.mul_(weight))
        own, rest = _window_sums(radii, to_moving, to_moving * moving_mean - scale * fixed_mean)
        by_moving = own.mul_(weight) * moving
        by_moving.addcmul_(cross.expand_as(fixed), fixed, value=-1).sub_(rest.mul_(weight))
        return Forces(value, by_fixed, by_moving, windows)

    return forces


def _moments(image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of an image and of its square over each block, (*coarse)."""
    return image.sum((0, 1)).mul_(weight), (image * image).sum((0, 1)).mul_(weight)


def _window_sums(radii: Sequence[int], *maps: Tensor) -> Tensor:
    """Sums of maps (*coarse) over the windows, (number of maps, *coarse)."""
    stacked = maps[0][None] if len(maps) == 1 else torch.stack(maps)
    sums = box_sum(stacked[None], radii)[0]
    return (
        sums.clone() if sums.data_ptr() == stacked.data_ptr() else sums
    )  # windows of one block: no copy yet


def multi_kernel_correlation(radii: Sequence[Sequence[int]], shares: Sequence[float]) -> Similarity:
    """Weighted sum of squared local correlations with windows of several sizes.

    Source: Shen et al., RDMM, NeurIPS 2019 (weights); here every block is the centre of one window per size.
    """
    parts = [
        (share, local_correlation(radius, squared=True)) for radius, share in zip(radii, shares, strict=True)
    ]

    def forces(fixed: Tensor, moving: Tensor, weight: Tensor) -> Forces:
        results = [(share, part(fixed, moving, weight)) for share, part in parts]
        factor = max(r.factor for _, r in results)
        scaled = [(share * factor / r.factor, r) for share, r in results]
        return Forces(
            sum(share * r.value for share, r in results),
            torch.stack([scale * r.by_fixed for scale, r in scaled]).sum(0),
            torch.stack([scale * r.by_moving for scale, r in scaled]).sum(0),
            factor,
        )

    return forces


def squared_difference(fixed: Tensor, moving: Tensor, weight: Tensor) -> Forces:
    """Mean squared difference over channels and voxels by weight; also for features such as MIND."""
    difference = moving - fixed
    weighted = difference * weight
    total = max(float(weight.sum()) * fixed.shape[0] * fixed.shape[1], 1e-12)
    return Forces(float((weighted * difference).sum()) / total, -weighted, weighted, total / 2)


def mutual_information(fixed: Tensor, moving: Tensor, weight: Tensor) -> Forces:
    """One minus normalised mutual information over all fine voxels, differentiated by autograd.

    The joint histogram of exchanged images is a product of matrices that rounds differently. So the darker
    image always comes first in it, and exchanged images give exactly exchanged forces.
    """
    if float(fixed.sum()) > float(moving.sum()):
        turned = _information_forces(moving, fixed, weight)
        return Forces(turned.value, turned.by_moving, turned.by_fixed, 1.0)
    return _information_forces(fixed, moving, weight)


def _information_forces(fixed: Tensor, moving: Tensor, weight: Tensor) -> Forces:
    """`mutual_information` in the order the images are given in."""
    spatial = (1, 1, -1, *fixed.shape[3:])  # the places of a block stacked along the first axis
    with torch.enable_grad():
        first = fixed.reshape(spatial).requires_grad_()
        second = moving.reshape(spatial).requires_grad_()
        mask = weight.expand(fixed.shape[1], *weight.shape).reshape(spatial)
        value = nmi(first, second, mask=mask, fixed_range=(0.0, 1.0), warped_range=(0.0, 1.0))
        by_first, by_second = torch.autograd.grad(value, (first, second))
    if torch.equal(fixed, moving):
        by_second = by_first  # else their difference, mere rounding, would be scaled up to a whole step
    return Forces(float(value.detach()), by_first.view_as(fixed), by_second.view_as(moving), 1.0)


PLAIN: dict[str, Similarity] = {
    "nmi": mutual_information,
    "mse": squared_difference,
    "mind": squared_difference,
}
"""Those without windows."""


def similarity_forces(name: str, radii: Sequence[int]) -> Similarity:
    """The forces of a similarity by name; radii: window radii in blocks per axis, where it has windows.

    `mind` compares features with `squared_difference`: the caller computes them once.
    Raises UnknownNameError.
    """
    if name in ("lncc", "lncc-squared"):
        return local_correlation(radii, squared=name == "lncc-squared")
    if name == "mk-lncc":
        return multi_kernel_correlation([[k * r for r in radii] for k in (1, 2, 4)], [0.1, 0.3, 0.6])
    if name in PLAIN:
        return PLAIN[name]
    raise UnknownNameError("similarity", name, SIMILARITIES)
