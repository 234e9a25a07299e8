"""From velocities to the finished map and its inverse, over the whole field of view."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from DiffeoRegLib.flows.exponential import exp_time_varying, midpoint_squarings
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.flows.logarithm import flows_without_folds
from DiffeoRegLib.space.field import folded_percent
from DiffeoRegLib.space.grid import Grid

FADE_MM = 20.0
"""Beyond the working grid the velocity falls to zero over this distance."""
LEAST_DETERMINANT = 0.01
MORE_SQUARINGS = 3
"""So often `auto` doubles the steps of a time-varying flow that folds."""
WIDEST_TAPER_MM = 30.0
TAPER_PER_MM = 2.5
"""An automatic taper is this many times as wide as the velocity on the border of the view is long."""
INVERSE_TOLERANCE_VOX = 1e-3


@dataclass(frozen=True, eq=False)
class Flow:
    """A diffeomorphism and its inverse, (1, d, *grid.shape) displacements in voxels of `grid`.

    velocity_vox: what was integrated, (T, d, *grid.shape). steps: time steps taken per velocity field,
    0 where there was nothing to integrate.
    notes: sentences for the report.  halves: half-way maps joined with the flow, see flows/halfway.py.
    """

    forward_vox: Tensor
    inverse_vox: Tensor
    velocity_vox: Tensor
    grid: Grid
    steps: int
    notes: list[str]
    halves: tuple[Tensor, Tensor] | None = None


@torch.no_grad()
def integrate(
    velocity_vox: Tensor,
    grid: Grid,
    cover: Grid,
    steps: int | Literal["auto"] = "auto",
    taper_mm: float | None = None,
) -> Flow:
    """The flow of velocities for unit time on a grid that covers `cover`, and its pointwise inverse.

    velocity_vox: (T, d, *grid.shape), voxels per unit time, each of T equal intervals constant in time.
    steps: per velocity field, rounded up to a power of two; `auto` = the fewest whose first step stays
    below a voxel; where the flow of a single velocity field would still fold, the velocity
    is smoothed locally.
    taper_mm: the velocity falls to zero over a ring of this width around `cover`, so that the map is the
    identity beyond, and programs that continue a field by zeros and those that continue it by its border
    agree there; None = as wide as the motion at the border needs, 0 = no ring.
    """
    if taper_mm is None:
        taper_mm = needed_taper_mm(velocity_vox, grid, cover)
    wide = covering_grid(grid, cover, taper_mm)
    velocity_vox = faded(velocity_vox, grid, wide, cover if taper_mm > 0 else None, taper_mm)
    notes: list[str] = []
    if steps == "auto" and len(velocity_vox) == 1:
        velocity_vox, (forward,), rounds = flows_without_folds(velocity_vox, LEAST_DETERMINANT, (1.0,))
        squarings = midpoint_squarings(velocity_vox)
        if rounds:
            notes.append(f"The velocity was smoothed where the map would fold, in {rounds} rounds.")
    else:
        auto = midpoint_squarings(velocity_vox / len(velocity_vox))
        squarings = auto if steps == "auto" else math.ceil(math.log2(steps))
        forward = exp_time_varying(velocity_vox, squarings, first_step=2)
        folded = folded_percent(forward)
        while steps == "auto" and folded > 0 and squarings < auto + MORE_SQUARINGS:
            squarings += 1
            forward = exp_time_varying(velocity_vox, squarings, first_step=2)
            folded = folded_percent(forward)
        if folded > 0:
            notes.append(
                f"The map folds in {folded:.4f} % of its cells with {2**squarings} time steps; "
                "more steps, 'auto' or a higher regularity prevent that."
            )
    inverse = fitted(invert(forward, "mixed", INVERSE_TOLERANCE_VOX))
    return Flow(forward, inverse, velocity_vox, wide, 2**squarings, notes)


def fitted(u_vox: Tensor) -> Tensor:
    """Node values whose multilinear interpolant lies nearest to a smooth field given at the nodes.

    Interpolating exact node values cuts every bend on its inside, by h^2/12 of the second derivative on
    average; taking that off beforehand halves the error of the inverse between the nodes.
    """
    out = u_vox.clone()
    for axis in range(2, u_vox.dim()):
        size = u_vox.shape[axis]
        if size < 3:
            continue
        bend = u_vox.diff(n=2, dim=axis)
        out.narrow(axis, 1, size - 2).sub_(bend, alpha=1 / 12)
    return out


def needed_taper_mm(velocity_vox: Tensor, grid: Grid, cover: Grid) -> float:
    """Width of a ring around `cover` in which the velocity on its border can fall to zero, mm; 0 at rest."""
    wide = covering_grid(grid, cover)
    velocity = faded(velocity_vox, grid, wide, None, 0.0)
    spacing = velocity.new_tensor(grid.spacing).view(-1, *[1] * grid.dim)
    length = (velocity * spacing).square().sum(1).amax(0).sqrt()
    ends = [length.select(axis, end).amax() for axis in range(grid.dim) for end in (0, -1)]
    return min(WIDEST_TAPER_MM, TAPER_PER_MM * float(torch.stack(ends).amax()))


def covering_grid(grid: Grid, cover: Grid, beyond_mm: float = 0.0) -> Grid:
    """`grid` continued by whole steps until its view holds that of `cover` and `beyond_mm` around it."""
    ends = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in cover.shape])))
    corners = grid.index_from_world(cover.world_from_index(ends))
    beyond = beyond_mm / np.array(grid.spacing)
    tolerance = 1e-3
    before = np.ceil(-0.5 - corners.min(axis=0) + beyond - tolerance)
    after = np.ceil(corners.max(axis=0) + 0.5 - np.array(grid.shape) + beyond - tolerance)
    return grid.padded(np.maximum(before, 0).astype(int).tolist(), np.maximum(after, 0).astype(int).tolist())


def continued(values: Tensor, grid: Grid, wide: Grid) -> Tensor:
    """Values (N, C, *grid.shape) on a wider grid of the same voxels, repeating the border."""
    for axis, (size, before) in enumerate(zip(grid.shape, _start(grid, wide), strict=True)):
        index = torch.arange(wide.shape[axis], device=values.device) - before
        values = values.index_select(2 + axis, index.clamp(0, size - 1))
    return values


def _start(grid: Grid, wide: Grid) -> list[int]:
    """Where the first voxel of a grid is in a wider one."""
    corner = wide.index_from_world(grid.world_from_index([0.0] * grid.dim))
    return [int(position) for position in np.rint(corner)]


def faded(velocity_vox: Tensor, grid: Grid, wide: Grid, cover: Grid | None, taper_mm: float) -> Tensor:
    """Velocities on a wider grid: border values, falling to zero over FADE_MM beyond the narrow grid.

    cover: with a taper, the velocity also falls to zero over `taper_mm` beyond this field of view.
    """
    velocity_vox = continued(velocity_vox, grid, wide)
    for axis, before in enumerate(_start(grid, wide)):
        index = torch.arange(wide.shape[axis], device=velocity_vox.device) - before
        outside = torch.maximum(-index, index - (grid.shape[axis] - 1)).clamp(min=0) * grid.spacing[axis]
        fade = _cosine_fall(outside / FADE_MM).to(velocity_vox)
        velocity_vox = velocity_vox * fade.view([-1 if a == axis else 1 for a in range(grid.dim)])
    if cover is None:
        return velocity_vox
    return velocity_vox * _ring(wide, cover, taper_mm).to(velocity_vox)


def tapered(u_vox: Tensor, counts: Sequence[int]) -> Tensor:
    """A field continued by its border for so many voxels at both ends of each axis, falling to zero."""
    sides = [count for count in reversed(counts) for _ in range(2)]
    out = functional.pad(u_vox, sides, mode="replicate")
    for axis, count in enumerate(counts, start=2):
        shape = [-1 if a == axis else 1 for a in range(out.dim())]
        fall = _cosine_fall(torch.arange(1, count + 1, dtype=torch.float64) / count).to(out).view(shape)
        out.narrow(axis, out.shape[axis] - count, count).mul_(fall)
        out.narrow(axis, 0, count).mul_(fall.flip(axis))
    return out


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
