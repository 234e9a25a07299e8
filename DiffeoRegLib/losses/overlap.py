"""Guidance: overlap of label maps and distance of landmarks, as losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import InputError, ShapeError
from DiffeoRegLib.losses.weighting import at_least_float32, checked_pair, mask_like
from DiffeoRegLib.space.sample import array_from_tensor, sample

LABELS_PER_BATCH = 8


def labels_in(*label_maps: Tensor) -> list[int]:
    """The labels other than 0 that occur in any of the label maps, ascending.

    label_maps: whole numbers, any shape.  Raises ShapeError for other values.
    """
    found: set[int] = set()
    for labels in label_maps:
        values = np.unique(array_from_tensor(labels))
        if (values != np.round(values)).any():
            raise ShapeError("A label map holds whole numbers only.")
        found.update(int(v) for v in values)
    return sorted(found - {0})


def one_hot(label_map: Tensor, labels: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """One channel per label, 1 where the map has it: (N, 1, *spatial) -> (N, len(labels), *spatial)."""
    if label_map.dim() < 3 or label_map.shape[1] != 1:
        raise ShapeError(f"A label map is (N, 1, *spatial), not {tuple(label_map.shape)}.")
    values = torch.tensor(list(labels), device=label_map.device).reshape(1, -1, *[1] * (label_map.dim() - 2))
    return (label_map == values).to(dtype)


def soft_dice(fixed: Tensor, warped: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """One minus the mean soft Dice of the labels, in [0, 1]; 0 for equal maps.

        dice_l = 2 sum w p_l q_l / (sum w p_l^2 + sum w q_l^2)
    averaged over the labels that have any mass in either map, then over the batch; a pair without any has
    nothing to disagree on and gives 0.
    fixed, warped: (N, L, *spatial) one-hot or probabilities, background left out by the caller (`one_hot`).
    mask: (N or 1, 1, *spatial) weights >= 0.
    Raises ShapeError for different shapes, InputError for an empty mask.
    Source: Milletari et al., V-Net, 3DV 2016 (squares in the denominator).
    """
    fixed, warped = checked_pair(fixed, warped)
    weight = None if mask is None else mask_like(mask, fixed)
    return _mean_loss(*_overlap(fixed, warped, weight))


def warped_label_dice(
    fixed_labels: Tensor,
    moving_labels: Tensor,
    position_vox: Tensor,
    *,
    labels: Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`soft_dice` of a label map and another one read through a motion, a few labels at a time.

    The moving labels are interpolated linearly, one channel per label, 0 outside; eight channels exist at a
    time, in the backward pass too, so that a hundred labels need no more memory than eight.
    fixed_labels: (1, 1, *spatial) whole numbers.  moving_labels: (1, 1, *moving spatial).
    position_vox: (1, d, *spatial), voxels of the moving grid; the gradient flows into it.
    labels: those that count; default all but 0 that occur in either map.
    mask: (1, 1, *spatial) weights >= 0.
    Raises ShapeError for shapes that do not fit, InputError for an empty mask or no label at all.
    """
    spatial = fixed_labels.shape[2:]
    if fixed_labels.shape[:2] != (1, 1) or moving_labels.shape[:2] != (1, 1):
        raise ShapeError("Label guidance takes one pair at a time, label maps (1, 1, *spatial).")
    if position_vox.shape != (1, len(spatial), *spatial):
        raise ShapeError(f"Positions {tuple(position_vox.shape)} do not fit labels {tuple(spatial)}.")
    chosen = labels_in(fixed_labels, moving_labels) if labels is None else list(labels)
    if not chosen:
        raise InputError("The guidance segmentations hold no label other than background.")
    position_vox = at_least_float32(position_vox)
    weight = None if mask is None else mask_like(mask, position_vox)
    shared, masses = [], []
    for begin in range(0, len(chosen), LABELS_PER_BATCH):
        some = chosen[begin : begin + LABELS_PER_BATCH]
        overlap: tuple[Tensor, Tensor] = checkpoint(
            _overlap_at, fixed_labels, moving_labels, position_vox, some, weight, use_reentrant=False
        )
        shared.append(overlap[0])
        masses.append(overlap[1])
    return _mean_loss(torch.cat(shared, 1), torch.cat(masses, 1))


def landmark_distance_mm(
    u_vox: Tensor,
    fixed_points_vox: Tensor,
    moving_points_vox: Tensor,
    spacing: Sequence[float],
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean distance between the fixed landmarks moved by a displacement and the moving landmarks, mm.

    u_vox: (1, d, *spatial), voxels; read linearly at the landmarks, its border value repeated outside.
    fixed_points_vox, moving_points_vox: (n, d) positions in voxels of the field's grid, tensor axis order.
    spacing: mm per tensor axis.
    mask: (1, 1, *spatial) weights >= 0, read at the fixed landmarks; each landmark counts by it.
    Returns a scalar, 0 when all landmarks meet; a landmark that is met exactly pulls no further.
    Raises ShapeError for shapes that do not fit, InputError for no landmark, or none inside the mask.
    """
    dim = u_vox.dim() - 2
    if u_vox.shape[:2] != (1, dim) or len(spacing) != dim or not min(spacing) > 0:
        raise ShapeError(
            f"Landmarks need a field (1, d, *spatial) and its spacing, not {tuple(u_vox.shape)}."
        )
    if fixed_points_vox.shape != moving_points_vox.shape or fixed_points_vox.shape[1:] != (dim,):
        raise ShapeError(
            f"Landmarks come in pairs (n, {dim}), not {tuple(fixed_points_vox.shape)} "
            f"and {tuple(moving_points_vox.shape)}."
        )
    if len(fixed_points_vox) == 0:
        raise InputError("There is no landmark to measure.")
    u_vox = at_least_float32(u_vox)
    points, targets = (p.to(u_vox).T[None] for p in (fixed_points_vox, moving_points_vox))
    gap_mm = (points + sample(u_vox, points) - targets) * u_vox.new_tensor(list(spacing))[:, None]
    distance: Tensor = torch.linalg.vector_norm(gap_mm, dim=1)
    if mask is None:
        return distance.mean()
    weight = sample(mask_like(mask, u_vox), points, outside="zeros")[:, 0]
    if not bool(weight.sum() > 0):
        raise InputError("No landmark lies inside the mask.")
    return (distance * weight).sum() / weight.sum()


def _overlap(fixed: Tensor, warped: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Twice the shared mass and the sum of both masses per label, (N, L) each."""
    both, mass = fixed * warped, fixed.square() + warped.square()
    if weight is not None:
        both, mass = both * weight, mass * weight
    return 2 * both.flatten(2).sum(2), mass.flatten(2).sum(2)


def _overlap_at(
    fixed_labels: Tensor, moving_labels: Tensor, position: Tensor, labels: list[int], weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    warped = sample(one_hot(moving_labels, labels, position.dtype), position, outside="zeros")
    return _overlap(one_hot(fixed_labels, labels, position.dtype), warped, weight)


def _mean_loss(shared: Tensor, mass: Tensor) -> Tensor:
    present = mass > 0
    dice = shared / torch.where(present, mass, 1.0)
    number = present.sum(1)
    return (torch.where(present, 1 - dice, 0.0).sum(1) / number.clamp(min=1)).mean()
