"""Dissimilarity of two feature images at every voxel for every displacement of a cube: a cost volume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.losses.weighting import mask_like


@dataclass(frozen=True, eq=False)
class CostVolume:
    """What each displacement would cost each voxel.

    costs: (n, *spatial), >= 0, lower is better; row r belongs to offsets[r].
    offsets: (n, d) whole voxels along the tensor axes, nearest first, so that ties go to the shorter one.
    """

    costs: Tensor
    offsets: Tensor


def cost_volume(
    fixed: Tensor,
    moving: Tensor,
    radius_vox: Sequence[int],
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> CostVolume:
    """Mean squared feature difference between x in `fixed` and x + offset in `moving`.

    fixed, moving: features (1, C, *spatial).  radius_vox: offsets reach -r..r along each axis.
    moving_mask: (1, 1, *spatial) in 0..1; where it ends the cost passes to that of an unrelated pair of
    features, so that leaving the mask is neither rewarded nor forbidden. Without one the border is repeated.
    fixed_mask: (1, 1, *spatial) in 0..1, scales the costs of a voxel: 0 = no opinion.
    dtype: storage; float16 halves the memory, its error (5e-4 of a cost) is far below the noise of features.
    Raises ShapeError for features of different shape, SettingsError for a wrong radius.
    Source: Heinrich et al., Non-parametric discrete registration with convex optimisation, WBIR 2014.
    """
    if fixed.shape != moving.shape or fixed.dim() not in (4, 5) or fixed.shape[0] != 1:
        raise ShapeError(
            f"Features are (1, C, *spatial), both alike, not {tuple(fixed.shape)}, {tuple(moving.shape)}."
        )
    shape = fixed.shape[2:]
    if len(radius_vox) != len(shape) or min(radius_vox) < 0:
        raise SettingsError(f"The search needs one radius >= 0 per axis, not {tuple(radius_vox)}.")
    pads = [side for r in reversed(radius_vox) for side in (r, r)]
    around = functional.pad(moving, pads, mode="replicate")[0]
    weight = None if moving_mask is None else functional.pad(mask_like(moving_mask, moving), pads)[0, 0]
    unrelated = _unrelated_cost(fixed, moving, fixed_mask, moving_mask)
    scale = None if fixed_mask is None else mask_like(fixed_mask, fixed)[0, 0]
    offsets = sorted(
        itertools.product(*(range(-r, r + 1) for r in radius_vox)), key=lambda o: sum(v * v for v in o)
    )
    costs = torch.empty((len(offsets), *shape), dtype=dtype, device=fixed.device)
    difference, row = torch.empty_like(fixed[0]), torch.empty_like(fixed[0, 0])
    for number, offset in enumerate(offsets):
        box = tuple(slice(r + o, r + o + n) for r, o, n in zip(radius_vox, offset, shape, strict=True))
        torch.sub(fixed[0], around[(slice(None), *box)], out=difference)
        torch.mean(difference.square_(), 0, out=row)
        if weight is not None:
            row.sub_(unrelated).mul_(weight[box]).add_(unrelated)
        costs[number] = row if scale is None else row.mul_(scale)
    return CostVolume(costs, torch.tensor(offsets, dtype=fixed.dtype, device=fixed.device))


def _unrelated_cost(
    fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None, moving_mask: Tensor | None
) -> float:
    """Expected cost of features drawn independently: both variances plus the squared mean difference."""
    means, spread = [], 0.0
    for features, mask in ((fixed, fixed_mask), (moving, moving_mask)):
        weight = torch.ones_like(features[:, :1]) if mask is None else mask_like(mask, features)
        axes = list(range(2, features.dim()))
        mean = (features * weight).sum(axes, keepdim=True) / weight.sum()
        spread += float(((features - mean).square() * weight).sum() / (weight.sum() * features.shape[1]))
        means.append(mean)
    return spread + float((means[0] - means[1]).square().mean())
