"""Scores of a healthy image brought onto a pathological one, in plain numbers.

Fields (1, d, *shape) in voxels; images, masks and labels (1, 1, *shape).  Inside lesions nothing says what is
right but a known truth; outside, tissue, overlap and truth do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from DiffeoRegLib.errors import InputError, ShapeError
from DiffeoRegLib.metrics import dice_per_label
from DiffeoRegLib.space.jacobian import folded_cells, jacobian_determinant
from DiffeoRegLib.space.sample import array_from_tensor, tensor_from_array, warp

SHELL_MM = 10.0
"""Tissue up to here from a lesion is `around` it."""
SHIFT_MM = 10.0
"""How far wrong marks lie beside the lesion."""
REGIONS = ("under", "around", "far")


@dataclass(frozen=True)
class Errors:
    """Lengths in mm over one region; all NaN where it has no voxel."""

    mean: float
    p95: float
    largest: float


def ssd(fixed: Tensor, found: Tensor, mask: Tensor | None = None) -> float:
    """Mean squared difference, of all voxels or of those where the mask is not 0; NaN where there is none.

    Raises ShapeError for images that do not fit.
    """
    _require_alike(fixed, found, *([] if mask is None else [mask]))
    squared = (fixed - found).double().square()
    chosen = squared if mask is None else squared[mask != 0]
    return float(chosen.mean()) if chosen.numel() else math.nan


def ssd_total(fixed: Tensor, metamorphic: Tensor) -> float:
    """Of the whole image: the pathological one and the deformed healthy one with its appearance change."""
    return ssd(fixed, metamorphic)


def ssd_healthy(fixed: Tensor, deformed: Tensor, pathology: Tensor) -> float:
    """Of everything outside the lesion: appearance changes nothing there."""
    return ssd(fixed, deformed, (pathology == 0).to(fixed.dtype))


def folded_voxels(u_vox: Tensor) -> int:
    """Voxels whose determinant of central differences is not above 0: the number of the paper's table."""
    return int((~(jacobian_determinant(u_vox) > 0)).sum())


def folded_cell_count(u_vox: Tensor) -> int:
    """Cells with a corner determinant that is not above 0: stricter, and exact for the interpolated map."""
    return int(folded_cells(u_vox).sum())


def regions(
    pathology: Tensor, organ: Tensor, spacing: Sequence[float], shell_mm: float = SHELL_MM
) -> dict[str, Tensor]:
    """Masks by `REGIONS`: under the lesion, in the organ up to `shell_mm` from it, and the organ's rest.

    Raises ShapeError for masks or a spacing that do not fit, InputError without a lesion.
    """
    _require_alike(pathology, organ)
    if len(spacing) != pathology.dim() - 2:
        raise ShapeError(f"{len(spacing)} spacings do not fit a mask of shape {tuple(pathology.shape)}.")
    under = array_from_tensor(pathology[0, 0]) > 0.5
    if not under.any():
        raise InputError("There is no lesion to look around.")
    distance = ndimage.distance_transform_edt(~under, sampling=spacing)
    tissue = (array_from_tensor(organ[0, 0]) > 0.5) & ~under
    masks = (under, tissue & (distance <= shell_mm), tissue & (distance > shell_mm))
    return {name: _mask(values, pathology) for name, values in zip(REGIONS, masks, strict=True)}


def endpoint_errors(
    u_vox: Tensor, truth_vox: Tensor, spacing: Sequence[float], masks: Mapping[str, Tensor]
) -> dict[str, Errors]:
    """How far the ends of a displacement are from the true ones, over each mask.

    spacing: mm per tensor axis.  Raises ShapeError for fields that do not fit.
    """
    _require_alike(u_vox, truth_vox)
    if len(spacing) != u_vox.shape[1]:
        raise ShapeError(f"{len(spacing)} spacings do not fit a field of {u_vox.shape[1]} components.")
    steps = u_vox.new_tensor(list(spacing)).double().view(1, -1, *[1] * (u_vox.dim() - 2))
    length = ((u_vox - truth_vox).double() * steps).square().sum(1, keepdim=True).sqrt()
    return {name: _errors(array_from_tensor(length[mask != 0])) for name, mask in masks.items()}


def dice_outside(
    fixed_labels: Tensor, moving_labels: Tensor, u_vox: Tensor, pathology: Tensor
) -> dict[int, float]:
    """Dice of each label outside the lesion, of maps of whole numbers, the moving one read by nearest voxels.

    Labels that neither map has outside the lesion are left out.  Raises ShapeError for maps that do not fit.
    """
    _require_alike(fixed_labels, moving_labels, pathology)
    moved = warp(moving_labels.float(), u_vox, mode="nearest", outside="zeros").round().to(torch.int64)
    outside = array_from_tensor(pathology[0, 0]) <= 0.5
    first, second = (
        array_from_tensor(labels[0, 0].to(torch.int64))[outside] for labels in (fixed_labels, moved)
    )
    return dice_per_label(first, second)


def mean_dice_outside(fixed_labels: Tensor, moving_labels: Tensor, u_vox: Tensor, pathology: Tensor) -> float:
    """Mean of `dice_outside`; NaN where no label is left."""
    values = dice_outside(fixed_labels, moving_labels, u_vox, pathology).values()
    return sum(values) / len(values) if values else math.nan


def wrong_marks(pathology: Tensor, spacing: Sequence[float]) -> dict[str, Tensor]:
    """Marks of a lesion as one should not make them, by what is wrong; `true` are the right ones.

    shifted: by `SHIFT_MM` along the last axis, towards the middle of the grid.  half: those voxels that lie
    deepest, about half of them.  empty: none.
    Raises ShapeError for a spacing that does not fit, InputError without a lesion.
    """
    if len(spacing) != pathology.dim() - 2:
        raise ShapeError(f"{len(spacing)} spacings do not fit a mask of shape {tuple(pathology.shape)}.")
    inside = array_from_tensor(pathology[0, 0]) > 0.5
    if not inside.any():
        raise InputError("There is no lesion to mark.")
    steps = round(SHIFT_MM / spacing[-1])
    left = float(inside.nonzero()[-1].mean()) < (inside.shape[-1] - 1) / 2
    shifted = np.zeros_like(inside)
    if left:
        shifted[..., steps:] = inside[..., :-steps]
    else:
        shifted[..., :-steps] = inside[..., steps:]
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)
    half = inside & (depth > np.median(depth[inside]))
    found = {"true": inside, "shifted": shifted, "half": half, "empty": np.zeros_like(inside)}
    return {name: _mask(values, pathology) for name, values in found.items()}


def _errors(lengths: NDArray[np.float64]) -> Errors:
    if not lengths.size:
        return Errors(math.nan, math.nan, math.nan)
    return Errors(float(lengths.mean()), float(np.percentile(lengths, 95)), float(lengths.max()))


def _mask(values: NDArray[np.bool_], like: Tensor) -> Tensor:
    return tensor_from_array(values, like.dtype, like.device)[None, None]


def _require_alike(*tensors: Tensor) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ShapeError(f"Scores compare what lies on one grid, not {sorted(shapes)}.")
