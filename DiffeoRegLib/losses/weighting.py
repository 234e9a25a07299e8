"""What every loss does with its inputs: check shapes, lift the precision, weigh by a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError, ShapeError

Number = TypeVar("Number", int, float)


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float64 if they are, else in float32: sums over windows cancel in half precision."""
    return values if values.dtype == torch.float64 else values.float()


def checked_pair(fixed: Tensor, warped: Tensor) -> tuple[Tensor, Tensor]:
    """Both images (N, C, *spatial) in one precision of at least float32; raises ShapeError otherwise."""
    if fixed.shape != warped.shape or fixed.dim() not in (4, 5):
        raise ShapeError(
            "Two images of one shape (N, C, *spatial) are compared, "
            f"not {tuple(fixed.shape)} and {tuple(warped.shape)}."
        )
    fixed, warped = at_least_float32(fixed), at_least_float32(warped)
    dtype = torch.promote_types(fixed.dtype, warped.dtype)
    return fixed.to(dtype), warped.to(dtype)


def mask_like(mask: Tensor, image: Tensor) -> Tensor:
    """The mask as weights in the image's precision, (N or 1, 1, *spatial), the largest of each sample 1.

    Raises ShapeError when it lies on another grid, InputError when it holds no voxel or a negative weight.
    """
    expected = {(n, 1, *image.shape[2:]) for n in (1, image.shape[0])}
    if tuple(mask.shape) not in expected:
        raise ShapeError(f"The mask is {tuple(mask.shape)}, the image {tuple(image.shape)}.")
    weight = mask.to(device=image.device, dtype=image.dtype)
    per_sample = weight.flatten(1)
    if not bool((per_sample.amax(1) > 0).all()):
        raise InputError("The mask is empty: no voxel is left to compare. Check its values and its position.")
    if bool((per_sample.amin() < 0).any()):
        raise InputError("The mask has negative values; its values are weights of at least 0.")
    # Only proportions matter; with a known largest weight, thresholds on sums of weights mean something.
    return weight / per_sample.amax(1).reshape(-1, *[1] * (weight.dim() - 1))


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over channels and voxels by weight, then over the batch; a scalar.

    values: (N, C, *spatial).  weight: (N or 1, 1, *spatial) with positive sums; None = equal weights.
    """
    if weight is None:
        return values.mean()
    weight = weight.expand(values.shape[0], 1, *weight.shape[2:])
    total = (values * weight).flatten(1).sum(1)
    return (total / (weight.flatten(1).sum(1) * values.shape[1])).mean()


def per_axis(value: Number | Sequence[Number], dim: int, what: str) -> tuple[Number, ...]:
    """One number per spatial axis; raises ShapeError when a sequence has another length."""
    if isinstance(value, int | float):
        return (value,) * dim
    values = tuple(value)
    if len(values) != dim:
        raise ShapeError(f"{what} has {len(values)} entries for {dim} image axes.")
    return values
