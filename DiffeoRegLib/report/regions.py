"""What a registration did to each region of the moving image, in the space of the fixed one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.report.scores import Deformation, deformation_of
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.jacobian import jacobian_determinant, minimum_corner_determinant
from DiffeoRegLib.space.transform import AffineTransform, Transform
from DiffeoRegLib.volumes.regions import Regions
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume

IDENTITY = AffineTransform(np.eye(4))
REST = "rest"


def region_scores(regions: Regions | None, transform: Transform, grid: Grid) -> dict[str, Any] | None:
    """Of every region with a stiffness, and of the rest: how the deformation alone moved and stretched it.

    grid: of the fixed image; a voxel belongs to the region that the transform finds there.  None without
    regions.  A region of which nothing is seen has a volume of 0 and no other numbers.
    """
    if regions is None:
        return None
    labels = warp_labels(regions.labels, transform, grid).data
    deformation = deformation_of(transform, grid)
    maps = None if deformation is None else _maps(deformation, grid)
    scores: dict[str, Any] = {}
    rest = torch.ones_like(labels, dtype=torch.bool)
    for label, stiffness in regions.stiffness.items():
        inside = labels == label
        rest &= ~inside
        scores[str(label)] = {"stiffness": stiffness, **_scores(inside, maps, grid)}
    scores[REST] = {"stiffness": regions.rest, **_scores(rest, maps, grid)}
    return scores


def sigma_scores(sigma: tuple[Volume, Volume] | None) -> dict[str, Any] | None:
    """Least, mean and largest width of the regulariser, mm, in the moving and in the fixed image."""
    if sigma is None:
        return None
    return {
        side: {"min": float(v.data.min()), "mean": float(v.data.double().mean()), "max": float(v.data.max())}
        for side, v in zip(("moving", "fixed"), sigma, strict=True)
    }


def _maps(deformation: Deformation, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """On a grid: length of the displacement, mm, determinant, and the least of its cells' corners there."""
    u_vox = deformation.u_vox
    lowest = minimum_corner_determinant(u_vox)[0, 0]
    for axis in range(lowest.dim()):  # of a voxel: the least of the cells around it
        edge = lowest.narrow(axis, 0, 1), lowest.narrow(axis, lowest.shape[axis] - 1, 1)
        lowest = torch.minimum(torch.cat([edge[0], lowest], axis), torch.cat([lowest, edge[1]], axis))
    length = torch.linalg.vector_norm(deformation.u_mm[0], dim=0)
    own = (length, jacobian_determinant(u_vox)[0], lowest)
    fills = (0.0, 1.0, 1.0)
    length, determinant, lowest = (
        warp_volume(Volume(values, deformation.grid, ""), IDENTITY, grid, fill=fill).data
        for values, fill in zip(own, fills, strict=True)
    )
    return length, determinant, lowest


def _scores(inside: Tensor, maps: tuple[Tensor, Tensor, Tensor] | None, grid: Grid) -> dict[str, Any]:
    count = int(inside.sum())
    # Of a slice, too: the third column of a 2D grid is its thickness.
    voxel_mm3 = abs(float(np.linalg.det(grid.world_from_voxel[:3, :3])))
    found: dict[str, Any] = {"volume_mm3": count * voxel_mm3}
    names = ("mean", "max")
    if count == 0:
        empty: dict[str, Any] = {"displacement_mm": dict.fromkeys(names), "folded_percent": None}
        return found | empty | {"determinant": dict.fromkeys(("mean", "std", "min", "max"))}
    if maps is None:
        length, determinant, lowest = (torch.full((count,), value) for value in (0.0, 1.0, 1.0))
    else:
        length, determinant, lowest = (values[inside].double() for values in maps)
    spread = {
        "mean": float(determinant.mean()),
        "std": float(determinant.std(correction=0)),
        "min": float(determinant.min()),
        "max": float(determinant.max()),
    }
    return found | {
        "displacement_mm": dict(zip(names, (float(length.mean()), float(length.max())), strict=True)),
        "determinant": spread,
        "folded_percent": 100 * float((~(lowest > 0)).double().mean()),
    }
