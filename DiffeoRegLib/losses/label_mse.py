"""Squared difference of label maps, one channel per label: the guidance of TransMorph-TVF's LDDMM form.

Source: Chen, Frey and Du, TransMorph-TVF, WBIR 2022, equation 2, averaged over labels and voxels as in its
code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.losses.overlap import LABELS_PER_BATCH, labels_in, one_hot
from DiffeoRegLib.losses.weighting import at_least_float32
from DiffeoRegLib.space.sample import sample


def warped_label_mse(
    fixed_labels: Tensor,
    moving_labels: Tensor,
    position_vox: Tensor,
    *,
    labels: Sequence[int] | None = None,
) -> Tensor:
    """Mean over labels and voxels of the squared difference of two label maps, one read through a motion.

    The moving labels are interpolated linearly, one channel per label, border repeated; a few channels exist
    at a time, in the backward pass too.
    fixed_labels: (1, 1, *spatial) whole numbers.  moving_labels: (1, 1, *moving spatial).
    position_vox: (1, d, *spatial), voxels of the moving grid; the gradient flows into it.
    labels: those that count; default all that occur in either map, and the background 0, as in the source.
    Returns a scalar in [0, 1].  Raises ShapeError for shapes that do not fit or no label.
    """
    spatial = fixed_labels.shape[2:]
    if fixed_labels.shape[:2] != (1, 1) or moving_labels.shape[:2] != (1, 1):
        raise ShapeError("Label guidance takes one pair at a time, label maps (1, 1, *spatial).")
    if position_vox.shape != (1, len(spatial), *spatial):
        raise ShapeError(f"Positions {tuple(position_vox.shape)} do not fit labels {tuple(spatial)}.")
    chosen = [0, *labels_in(fixed_labels, moving_labels)] if labels is None else list(labels)
    if not chosen:
        raise ShapeError("The difference of label maps needs at least one label.")
    position_vox = at_least_float32(position_vox)
    sums = [
        checkpoint(
            _difference,
            fixed_labels,
            moving_labels,
            position_vox,
            chosen[begin : begin + LABELS_PER_BATCH],
            use_reentrant=False,
        )
        for begin in range(0, len(chosen), LABELS_PER_BATCH)
    ]
    return torch.stack(sums).sum() / (len(chosen) * fixed_labels.numel())


def _difference(fixed: Tensor, moving: Tensor, position: Tensor, labels: list[int]) -> Tensor:
    read = sample(one_hot(moving, labels, position.dtype), position)
    return (one_hot(fixed, labels, position.dtype) - read).square().sum()
