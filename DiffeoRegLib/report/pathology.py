"""What was marked as pathology, and how far it changes the look of the image it is seen in."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import Transform
from DiffeoRegLib.volumes.pathology import Pathology, carried_marks
from DiffeoRegLib.volumes.volume import Volume


def pathology_scores(
    pathology: Pathology | None, change: Volume | None, transform: Transform, grid: Grid
) -> dict[str, Any] | None:
    """Volume of the marks of both images, mm3, where they lie on a grid, and the change within them.

    grid: of the fixed image.  change: on it, in intensities of the moving image, or None.  None without a
    pathology.  A slice counts with its thickness.
    """
    if pathology is None:
        return None
    own, carried = carried_marks(dataclasses.replace(pathology, edge_mm=0.0), transform, grid)
    voxel_mm3 = abs(float(np.linalg.det(grid.world_from_voxel[:3, :3])))
    scores: dict[str, Any] = {
        "fixed_mm3": None if pathology.fixed is None else voxel_mm3 * float(own.double().sum()),
        "moving_mm3": None if pathology.moving is None else voxel_mm3 * float(carried.double().sum()),
    }
    inside = torch.maximum(own, carried) > 0.5
    return scores | {"change": None if change is None else _change(change.data[inside])}


def _change(inside: Tensor) -> dict[str, float] | None:
    """Mean, least and largest change of the marked voxels; None without any."""
    if not len(inside):
        return None
    return {
        "mean": float(inside.double().mean()), "min": float(inside.min()), "max": float(inside.max())
    }  # fmt: skip
