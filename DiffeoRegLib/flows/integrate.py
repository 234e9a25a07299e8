"""From velocities to the finished map and its inverse, over the whole field of view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.flows.exponential import exp_time_varying
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.space.field import folded_percent
from DiffeoRegLib.space.grid import Grid

FADE_MM = 20.0
"""Beyond the working grid the velocity falls to zero over this distance."""
LARGEST_FIRST_STEP_VOX = 0.5
MOST_STEPS = 1024
INVERSE_TOLERANCE_VOX = 1e-3


@dataclass(frozen=True, eq=False)
class Flow:
    """A diffeomorphism and its inverse, (1, d, *grid.shape) displacements in voxels of `grid`.

    steps: time steps taken per velocity field. notes: sentences for the report.
    """

    forward_vox: Tensor
    inverse_vox: Tensor
    grid: Grid
    steps: int
    notes: list[str]


@torch.no_grad()
def integrate(
    velocity_vox: Tensor, grid: Grid, cover: Grid, steps: int | Literal["auto"] = "auto", taper_mm: float = 0.0
) -> Flow:
    """The flow of velocities for unit time on a grid that covers `cover`, and its pointwise inverse.

    velocity_vox: (T, d, *grid.shape), voxels per unit time, each of T equal intervals constant in time.
    steps: per velocity field, rounded up to a power of two; `auto` = the fewest, with a first step below half a
    voxel, that leave no corner determinant at or below zero.
    taper_mm: the velocity is zero on a ring of this width around `cover`, so that programs that continue a
    field by zeros and those that continue it by its border agree there.
    """
    wide = covering_grid(grid, cover, taper_mm)
    velocity_vox = faded(velocity_vox, grid, wide, cover if taper_mm > 0 else None, taper_mm)
    notes: list[str] = []
    squarings = fewest_squarings(velocity_vox) if steps == "auto" else math.ceil(math.log2(steps))
    forward = exp_time_varying(velocity_vox, squarings)
    folded = folded_percent(forward)
    while steps == "auto" and folded > 0 and 2**squarings < MOST_STEPS:
        squarings += 1
        forward = exp_time_varying(velocity_vox, squarings)
        folded = folded_percent(forward)
    if folded > 0:
        notes.append(
            f"The map folds in {folded:.4f} % of its cells with {2**squarings} time steps; "
            "more steps or a higher regularity prevent that."
        )
    inverse = invert(forward, "mixed", INVERSE_TOLERANCE_VOX)
    return Flow(forward, inverse, wide, 2**squarings, notes)


def fewest_squarings(velocity_vox: Tensor) -> int:
    """Squarings that bring the first step of every interval below half a voxel, at least 2."""
    largest = float(velocity_vox.abs().amax()) / len(velocity_vox)
    return max(2, math.ceil(math.log2(max(largest, 1e-9) / LARGEST_FIRST_STEP_VOX)))


def covering_grid(grid: Grid, cover: Grid, beyond_mm: float = 0.0) -> Grid:
    """`grid` continued by whole steps until its field of view holds that of `cover` and `beyond_mm` around it."""
    ends = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in cover.shape], indexing="ij"), -1).reshape(-1, cover.dim)
    corners = grid.index_from_world(cover.world_from_index(ends))
    beyond = beyond_mm / np.array(grid.spacing)
    tolerance = 1e-3
    before = np.ceil(-0.5 - corners.min(axis=0) + beyond - tolerance)
    after = np.ceil(corners.max(axis=0) + 0.5 - np.array(grid.shape) + beyond - tolerance)
    return grid.padded(np.maximum(before, 0).astype(int).tolist(), np.maximum(after, 0).astype(int).tolist())


def faded(velocity_vox: Tensor, grid: Grid, wide: Grid, cover: Grid | None, taper_mm: float) -> Tensor:
    """Velocities on a wider grid: border values, falling to zero over FADE_MM beyond the narrow grid.

    cover: with a taper, the velocity also falls to zero over `taper_mm` beyond this field of view.
    """
    start = np.rint(wide.index_from_world(grid.world_from_index([0.0] * grid.dim))).astype(int)
    for axis in range(grid.dim):
        before = int(start[axis])
        index = torch.arange(wide.shape[axis], device=velocity_vox.device) - before
        size = grid.shape[axis]
        velocity_vox = velocity_vox.index_select(2 + axis, index.clamp(0, size - 1))
        outside = torch.maximum(-index, index - (size - 1)).clamp(min=0) * grid.spacing[axis]
        fade = _cosine_fall(outside / FADE_MM)
        velocity_vox = velocity_vox * fade.view([-1 if a == axis else 1 for a in range(grid.dim)]).to(velocity_vox)
    if cover is None:
        return velocity_vox
    return velocity_vox * _ring(wide, cover, taper_mm).to(velocity_vox)


def _ring(wide: Grid, cover: Grid, taper_mm: float) -> Tensor:
    """1 within the field of view of `cover`, falling to 0 at `taper_mm` beyond it, per axis of `wide`."""
    low, high = _bounds(wide, cover)
    weight = torch.ones(wide.shape)
    for axis, size in enumerate(wide.shape):
        index = torch.arange(size, dtype=torch.float64)
        outside = torch.maximum(low[axis] - index, index - high[axis]).clamp(min=0) * wide.spacing[axis]
        fall = _cosine_fall(outside / taper_mm).float()
        fall[[0, -1]] = 0.0
        weight = weight * fall.view([-1 if a == axis else 1 for a in range(wide.dim)])
    return weight


def _bounds(wide: Grid, cover: Grid) -> tuple[Sequence[float], Sequence[float]]:
    """First and last voxel centre of `cover` as positions of `wide`."""
    corners = wide.index_from_world(cover.corners_mm())
    return corners.min(axis=0).tolist(), corners.max(axis=0).tolist()


def _cosine_fall(distance: Tensor) -> Tensor:
    """1 at 0, 0 from 1 on, smooth."""
    return 0.5 + 0.5 * torch.cos(math.pi * distance.clamp(0, 1))
