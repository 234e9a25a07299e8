"""Similarity exactly as papers on learned registration compute it, so that their weights hold here too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.losses.weighting import checked_pair, mask_like, per_axis
from DiffeoRegLib.space.filters import box_sum

DAMPING = 1e-5
"""Absolute: intensities are thought to lie in [0, 1]."""


def published_lncc(
    fixed: Tensor, warped: Tensor, window: int | Sequence[int] = 7, *, mask: Tensor | None = None
) -> Tensor:
    """Minus the mean squared local correlation, a scalar in [-1, 0].

    With sums over the N voxels of the window at every voxel, zeros beyond the border:
        cross = sum FW - sum F sum W / N,   var_F, var_W alike,   cc2 = cross^2 / (var_F var_W + 1e-5)
        loss = -(mean of cc2 over all voxels)
    Flat windows count as unlike, so the best value depends on how much of the image is background, and near
    the border W -> s W + t changes it; `lncc` has neither property.
    fixed, warped: (N, C, *spatial), in about [0, 1].  window: odd number of voxels, one or one per axis.
    mask: (N or 1, 1, *spatial) weights >= 0; multiplies both images, and all voxels still count.
    Raises ShapeError for different shapes, SettingsError for a window that is not odd, InputError for an
    empty mask.
    Source: Balakrishnan et al., VoxelMorph, IEEE TMI 2019 (window 9), and Honkamaa and Marttinen, SITReg,
    MELBA 2024 (window 7), with the settings of their published code.
    """
    fixed, warped = checked_pair(fixed, warped)
    sizes = per_axis(window, fixed.dim() - 2, "The LNCC window")
    if any(w < 1 or w % 2 == 0 for w in sizes) or max(sizes) < 3:
        raise SettingsError(f"The LNCC window must be odd and at least 3 voxels, not {sizes}.")
    if mask is not None:
        weight = mask_like(mask, fixed)
        # Where the mask is 0 an image may hold anything, even what is no number.
        fixed, warped = (torch.where(weight > 0, image * weight, 0.0) for image in (fixed, warped))
    products = (fixed, warped, fixed.square(), warped.square(), fixed * warped)
    sums = box_sum(torch.cat(products, 1), [w // 2 for w in sizes]).chunk(5, 1)
    count = math.prod(sizes)
    # Of a flat window rounding would leave a negative variance, and the quotient could have any value.
    variances = [(sums[k + 2] - sums[k].square() / count).clamp(min=0) for k in (0, 1)]
    cross = sums[4] - sums[0] * sums[1] / count
    return -(cross.square() / (variances[0] * variances[1] + DAMPING)).mean()
