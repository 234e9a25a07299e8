"""MIND-SSC: a descriptor of local structure that survives a change of modality, and the loss made from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.losses.weighting import at_least_float32, checked_pair, mask_like, per_axis, weighted_mean
from DiffeoRegLib.space.filters import box_sum

# The local noise estimate is kept within this factor of its mean over the image, either way.
VARIANCE_RANGE = 1000.0


def mind_ssc(
    image: Tensor,
    radius: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 2,
    spacing: Sequence[float] | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Self-similarity context of each voxel: how alike the patches around it are, pair by pair.

    Channel c compares the patches centred at x + a_c and x + b_c, two of the 2 d neighbours at distance
    `dilation` that are not opposite each other:
        D_c = sum over the patch of (I(x + a_c + y) - I(x + b_c + y))^2
        value_c = exp(-(D_c - min_c D) / V),  V = mean_c (D_c - min_c D)
    with V kept within 1000 times of its mean over the image, either way.
    Values lie in [0, 1]; any a I + b with a != 0 (contrast inversion included) gives the same ones, and a
    region without contrast gives 1 everywhere. Outside the image its border values are repeated.

    image: (N, 1, *spatial), d = 2 or 3.  Returns (N, 12, *spatial) for volumes, (N, 4, *spatial) for slices,
    in the image's precision but at least float32.
    radius, dilation: voxels, one number or one per axis. With `spacing` (mm per tensor axis) they count
    voxels of the finest axis and become fewer on coarser axes (the radius down to 0, the dilation to 1).
    mask: (N or 1, 1, *spatial) weights >= 0. Patch sums then use only differences of two points inside, patch
    pairs without any support take the neutral mean distance, and the descriptor is 0 outside the mask.
    Raises ShapeError for another shape of image or mask, InputError for an empty mask, SettingsError for a
    negative radius or a dilation below 1.
    Source: Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using
    self-similarities, MICCAI 2013.
    """
    if image.dim() not in (4, 5) or image.shape[1] != 1:
        raise ShapeError(f"MIND needs one image channel, (N, 1, *spatial), not {tuple(image.shape)}.")
    image = at_least_float32(image)
    radii, steps = _patch_geometry(radius, dilation, spacing, image.dim() - 2)
    weight = None if mask is None else mask_like(mask, image)
    distances = _patch_distances(image, weight, radii, steps)
    return _descriptor(distances, weight, _rounding_floor(image, radii))


def mind_loss(
    fixed: Tensor,
    warped: Tensor,
    radius: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 2,
    spacing: Sequence[float] | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the MIND-SSC descriptors of two images, in [0, 1]; 0 for equal structure.

    fixed, warped: (N, 1, *spatial).
    mask: (N or 1, 1, *spatial) weights, used for the descriptors and for the mean.
    radius, dilation, spacing: see `mind_ssc`.  Returns a scalar.
    Raises as `mind_ssc`.
    Source: Heinrich et al., MICCAI 2013, the sum of squared descriptor differences.
    """
    fixed, warped = checked_pair(fixed, warped)
    described = [mind_ssc(image, radius, dilation, spacing, mask=mask) for image in (fixed, warped)]
    difference = (described[0] - described[1]).square().mean(1, keepdim=True)
    return weighted_mean(difference, None if mask is None else mask_like(mask, fixed))


def _patch_geometry(
    radius: int | Sequence[int], dilation: int | Sequence[int], spacing: Sequence[float] | None, dim: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Patch radius and neighbour distance in voxels per axis."""
    radii, steps = per_axis(radius, dim, "MIND radius"), per_axis(dilation, dim, "MIND dilation")
    if min(radii) < 0 or min(steps) < 1:
        raise SettingsError(f"MIND needs radius >= 0 and dilation >= 1, not {radii} and {steps}.")
    if spacing is not None:
        if len(spacing) != dim:
            raise ShapeError(f"Spacing has {len(spacing)} entries for {dim} image axes.")
        ratio = [min(spacing) / s for s in spacing]
        radii = tuple(round(r * q) for r, q in zip(radii, ratio, strict=True))
        steps = tuple(max(1, round(s * q)) for s, q in zip(steps, ratio, strict=True))
    return radii, steps


def _patch_distances(
    image: Tensor, weight: Tensor | None, radii: tuple[int, ...], steps: tuple[int, ...]
) -> Tensor:
    """Patch distance of every pair of neighbours, (N, 2 d (d - 1), *spatial).

    The pairs (x + a, x + b) and (x - b, x - a) share one difference vector, so one box sum serves both.
    """
    dim, shape = image.dim() - 2, image.shape[2:]
    border = [2 * s + r for s, r in zip(steps, radii, strict=True)]
    padded = _repeat_border(image, border)
    padded_weight = None if weight is None else _repeat_border(weight, border)
    parts: list[Tensor] = []
    for first, second in combinations(range(dim), 2):
        for sign in (1, -1):
            near, far = [0] * dim, [0] * dim
            near[first], far[second] = steps[first], sign * steps[second]
            offset = [f - n for n, f in zip(near, far, strict=True)]
            distance = _box_distance(padded, padded_weight, offset, steps, radii)
            for start in (near, [-f for f in far]):
                origin = [p + s for p, s in zip(start, steps, strict=True)]
                parts.append(_window(distance, origin, shape))
    return torch.cat(parts, 1)


def _box_distance(
    padded: Tensor, weight: Tensor | None, offset: list[int], steps: tuple[int, ...], radii: tuple[int, ...]
) -> Tensor:
    """Patch sums of (I(y) - I(y + offset))^2 for y up to `steps` outside the image; -1 without support."""
    shape = [n - 2 * s for n, s in zip(padded.shape[2:], steps, strict=True)]
    here = list(steps)
    there = [s + o for s, o in zip(steps, offset, strict=True)]
    inner = [n - 2 * r for n, r in zip(shape, radii, strict=True)]
    squared = (_window(padded, here, shape) - _window(padded, there, shape)).square()
    if weight is None:
        return _window(box_sum(squared, radii), list(radii), inner)
    both = _window(weight, here, shape) * _window(weight, there, shape)
    total, support = (_window(box_sum(v, radii), list(radii), inner) for v in (both * squared, both))
    count = float(math.prod(2 * r + 1 for r in radii))
    held = support > 1e-3  # below that the rounding of the box sums is all there is
    return torch.where(held, total.clamp(min=0) * count / torch.where(held, support, 1.0), -1.0)


def _descriptor(distances: Tensor, weight: Tensor | None, floor: Tensor) -> Tensor:
    """exp(-(D - min D) / V) per channel; see `mind_ssc`."""
    held = None
    if weight is not None:
        held = distances >= 0
        number = held.sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(held, distances, 0.0).sum(1, keepdim=True) / number
        distances = torch.where(held, distances, mean)
    lowest = distances.amin(1, keepdim=True)
    excess = distances - lowest
    variance = excess.mean(1, keepdim=True)
    axes = list(range(1, variance.dim()))
    counted = torch.ones_like(variance) if weight is None else weight
    typical = (variance * counted).sum(axes, keepdim=True) / counted.sum(axes, keepdim=True)
    lower = torch.maximum(typical / VARIANCE_RANGE, floor)
    upper = torch.maximum(typical * VARIANCE_RANGE, floor)
    variance = torch.minimum(torch.maximum(variance, lower), upper)
    value = torch.exp(-excess / variance)
    return value if weight is None else value * (weight > 0)


def _rounding_floor(image: Tensor, radii: tuple[int, ...]) -> Tensor:
    """Patch distances below this are rounding of the intensities, (N, 1, ...)."""
    peak = image.detach().abs().amax(list(range(1, image.dim())), keepdim=True)
    resolution = 4 * torch.finfo(image.dtype).eps * peak
    floor = math.prod(2 * r + 1 for r in radii) * resolution.square()
    return floor.clamp(min=torch.finfo(image.dtype).tiny ** 0.5)


def _repeat_border(values: Tensor, border: Sequence[int]) -> Tensor:
    pads = [b for size in reversed(border) for b in (size, size)]
    return functional.pad(values, pads, mode="replicate")


def _window(values: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The box of `shape` voxels that begins at `start`."""
    for axis, (begin, length) in enumerate(zip(start, shape, strict=True)):
        values = values.narrow(axis + 2, begin, length)
    return values
