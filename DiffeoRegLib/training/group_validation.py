"""How well a network aligns groups it was not trained on, over all pairs of their images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from DiffeoRegLib.losses.group_similarity import pair_nmi, pair_rmse
from DiffeoRegLib.metrics import deformation_summary, mean_dice
from DiffeoRegLib.networks.groupmorph import GroupMaps
from DiffeoRegLib.space.sample import array_from_tensor, sample, warp
from DiffeoRegLib.training.group_terms import GroupBatch, GroupObjective, common_mask

GROUP_METRICS = ("loss", "nmi", "rmse", "dice", "tre_mm", "folded_percent", "sd_log_jacobian")


@torch.no_grad()
def measure_group(network: nn.Module, batch: GroupBatch, objective: GroupObjective) -> dict[str, float]:
    """The metrics of one group, without those its data do not allow.

    nmi: with plain bins, and rmse, in the normalised intensities, where all images have something to say.
    dice: of labels in the common space.  tre_mm: landmarks carried from image to image.
    folded_percent, sd_log_jacobian: mean over the moving images.
    """
    maps = batch.through(network)
    pairs = tuple(torch.triu_indices(len(batch.images), len(batch.images), 1))
    warped, mask = maps.warped(batch.images), common_mask(maps, batch)
    row = {
        "loss": float(objective(maps, batch)[0]),
        "nmi": float(pair_nmi(warped, mask=mask)[pairs].mean()),
        "rmse": float(pair_rmse(warped, mask=mask)[pairs].mean()),
    }
    summaries = [deformation_summary(maps.u_vox[k : k + 1]) for k in maps.moving]
    for name in ("folded_percent", "sd_log_jacobian"):
        row[name] = float(np.mean([one[name] for one in summaries]))
    if batch.labels is not None:
        moved = warp(batch.labels.float(), maps.u_vox, mode="nearest", outside="zeros").round()
        found = [array_from_tensor(one).astype(np.int64) for one in moved]
        row["dice"] = float(np.nanmean([mean_dice(a, b) for a, b in itertools.combinations(found, 2)]))
    if batch.points:
        row["tre_mm"] = float(np.mean(group_errors_mm(maps, batch.points, objective.spacing)))
    return row


@torch.no_grad()
def group_errors_mm(
    maps: GroupMaps, points_vox: Sequence[Tensor], spacing: Sequence[float] | None = None
) -> np.ndarray:
    """How far landmarks end from where they should, mm: (ordered pairs, n).

    Landmark p of image i is at exp(-z_i)(p) in the common space, and at exp(z_j)(exp(-z_i)(p)) in image j.
    points_vox: (n, d) of every image, voxels.  spacing: mm per tensor axis, None = 1.
    """
    size = torch.tensor(spacing or [1.0] * len(maps.shape), dtype=torch.float64)
    common = [_moved(maps.inverse_vox[k : k + 1], points) for k, points in enumerate(points_vox)]
    errors = []
    for i, j in itertools.permutations(range(len(points_vox)), 2):
        reached = _moved(maps.u_vox[j : j + 1], common[i])
        errors.append(array_from_tensor(((reached - points_vox[j].double()) * size).norm(dim=1)))
    return np.stack(errors)


def _moved(u_vox: Tensor, points: Tensor) -> Tensor:
    """Points (n, d) after a displacement (1, d, *shape), float64."""
    position = points.double().T[None]
    moved: Tensor = (position + sample(u_vox.double().cpu(), position.cpu()))[0].T
    return moved
