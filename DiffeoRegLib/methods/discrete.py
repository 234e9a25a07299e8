"""Large-displacement start: an exhaustive search on a coarse grid, turned into a diffeomorphism.

Breathing moves a lung base or a liver dome by 20-50 mm, farther than any gradient sees. Each stage compares
MIND-SSC features of both images for every displacement of a small cube, makes the choices smooth (coupled
convex optimisation), does the same from moving to fixed, draws both towards each other's inverse, and fits a
stationary velocity to both. The next stage looks, on a finer grid, only around what the flow already
explains: both images are carried half-way, so no stage prefers one of them.

Sources: Heinrich, Papiez, Schnabel, Handels, Non-parametric discrete registration with convex
optimisation, WBIR 2014; Siebert, Grossbroehmer, Hansen, Heinrich, Fast 3D registration with accurate
optimisation and little learning for Learn2Reg 2021 (ConvexAdam); Arsigny et al., MICCAI 2006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.logarithm import Logarithm, logarithm, make_consistent
from DiffeoRegLib.losses.cost_volume import cost_volume
from DiffeoRegLib.losses.mind import mind_ssc
from DiffeoRegLib.methods.base import Motion, Pair, Progress, Report
from DiffeoRegLib.methods.coupled_convex import coupled_convex
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, compose, downsample_image, u_mm_from_vox
from DiffeoRegLib.space.grid import Grid, index_affine
from DiffeoRegLib.space.sample import identity_vox, sample, tensor_from_array

CITATION = (
    "Heinrich MP, Papiez BW, Schnabel JA, Handels H. Non-parametric discrete registration with convex "
    "optimisation. WBIR 2014; Siebert H, Grossbroehmer C, Hansen L, Heinrich MP. Fast 3D registration with "
    "accurate optimisation and little learning for Learn2Reg 2021."
)
SEARCH_RADIUS_MM = 40.0
BYTES_PER_POINT, BYTES_PER_CHOICE = 1500, 9
"""Peak memory per control point, and per displacement it may choose; measured on cubes of 200 to 300 mm."""
HALF_PRECISION_ABOVE = 50_000_000
"""Cost volumes with more entries than this are kept in float16."""


@dataclass(frozen=True)
class Stage:
    """One search.

    grid_mm: distance of the control points, also the step of the displacements.  radius_mm: how far it looks.
    stiffness: weight of smoothness against features.  smoothing_vox: box radius of the smoothing.
    """

    grid_mm: float
    radius_mm: float
    stiffness: float = 0.02
    smoothing_vox: int = 1

    def __post_init__(self) -> None:
        if not (self.grid_mm > 0 and self.radius_mm > 0 and self.stiffness > 0 and self.smoothing_vox >= 1):
            raise SettingsError(f"A search stage needs positive numbers, not {self}.")


@dataclass(frozen=True, eq=False)
class Start:
    """What the search found.

    motion: stationary velocity on the grid of the last stage.
    residual_mean_mm, residual_max_mm: distance of the diffeomorphism from the displacements it was made from.
    largest_mm: longest displacement of the flow, in the fixed mask where there is one.
    """

    motion: Motion
    residual_mean_mm: float
    residual_max_mm: float
    largest_mm: float


def default_stages(search_radius_mm: float = SEARCH_RADIUS_MM) -> tuple[Stage, ...]:
    """Coarse grid with the whole radius, then two finer ones around the result."""
    return (Stage(8.0, search_radius_mm), Stage(6.0, 12.0), Stage(4.0, 8.0))


def search_bytes(grid: Grid, settings: Settings) -> int:
    """Peak memory of `discrete_start` over the field of view of a working grid, bytes, without the pair."""
    found = 0
    for stage in default_stages(_radius_mm(settings)):
        points = search_grid(grid, stage.grid_mm)
        choices = math.prod(2 * steps + 1 for steps in _radius(stage, points))
        found = max(found, points.voxel_count * (BYTES_PER_POINT + BYTES_PER_CHOICE * choices))
    return found


def discrete_start(pair: Pair, settings: Settings, report: Report) -> Motion:
    """A stationary velocity that brings moving near fixed, however far it has to go; never folded.

    settings.extras["search_radius_mm"]: how far the first stage looks, default 40 mm.
    Returns velocity (1, d, *coarse) on a grid of about 4 mm that covers pair.grid.
    Raises SettingsError for a wrong radius, InputError for an empty mask, and what `report` raises.
    """
    return search(pair, default_stages(_radius_mm(settings)), report).motion


def _radius_mm(settings: Settings) -> float:
    radius_mm = settings.extras.get("search_radius_mm", SEARCH_RADIUS_MM)
    if not isinstance(radius_mm, int | float) or not radius_mm > 0:
        raise SettingsError(f"search_radius_mm must be a number of millimetres above 0, not {radius_mm!r}.")
    return float(radius_mm)


@torch.no_grad()
def search(pair: Pair, stages: Sequence[Stage], report: Report) -> Start:
    """All stages, coarse to fine; see `discrete_start`.  Raises SettingsError without a stage."""
    if not stages:
        raise SettingsError("The large-displacement search needs at least one stage.")
    grid = search_grid(pair.grid, stages[0].grid_mm)
    velocity = pair.fixed.new_zeros((1, grid.dim, *grid.shape))
    for number, stage in enumerate(stages):
        message = f"Searching on a {stage.grid_mm:g} mm grid"
        report(Progress("large displacement", number / len(stages), message))
        finer = search_grid(pair.grid, stage.grid_mm)
        velocity, grid = change_grid(velocity, grid, finer), finer
        found = _stage(pair, stage, velocity, grid)
        velocity = found.velocity_vox
    start = _summary(found, grid, pair)
    report(Progress("large displacement", 1.0, describe(start)))
    return start


def describe(start: Start) -> str:
    """One sentence on what was found, for the progress line and the report."""
    return (
        f"Large-displacement search: motion of up to {start.largest_mm:.1f} mm, made diffeomorphic within "
        f"{start.residual_mean_mm:.2f} mm (largest difference {start.residual_max_mm:.1f} mm)."
    )


def search_grid(grid: Grid, target_mm: float) -> Grid:
    """A grid over the same field of view with voxels of about `target_mm` along every axis, finer or coarser.

    At least two voxels per axis; the spacing gives way so that the outer faces meet exactly.
    """
    shape = [max(2, round(extent / target_mm)) for extent in grid.extent_mm]
    step = np.eye(4)
    for axis, (n, m) in enumerate(zip(grid.shape, shape, strict=True)):
        step[axis, axis] = n / m
        step[axis, 3] = (n / m - 1) / 2
    return Grid(tuple(shape), grid.world_from_voxel @ step)


def _stage(pair: Pair, stage: Stage, velocity: Tensor, grid: Grid) -> Logarithm:
    """Search around the flow of `velocity` and fit a velocity to the whole."""
    radius = _radius(stage, grid)
    fixed, fixed_mask = _features(pair.fixed, pair.fixed_mask, pair.grid, -0.5 * velocity, grid)
    moving, moving_mask = _features(pair.moving, pair.moving_mask, pair.grid, 0.5 * velocity, grid)
    sides = ((fixed, moving, fixed_mask, moving_mask), (moving, fixed, moving_mask, fixed_mask))
    forward, backward = (_displacement(*side, radius, stage, grid) for side in sides)
    forward, backward = make_consistent(forward, backward)
    ahead, back = exp(0.5 * velocity, "auto"), exp(-0.5 * velocity, "auto")
    return logarithm(
        compose(ahead, compose(forward, ahead)),
        compose(back, compose(backward, back)),
        velocity + 0.5 * (forward - backward),
    )


def _radius(stage: Stage, grid: Grid) -> list[int]:
    """How far a stage looks, in steps of its grid."""
    return [
        min(max(1, math.ceil(stage.radius_mm / s - 0.25)), n - 1)
        for s, n in zip(grid.spacing, grid.shape, strict=True)
    ]


def _features(
    image: Tensor, mask: Tensor | None, image_grid: Grid, half_velocity: Tensor, grid: Grid
) -> tuple[Tensor, Tensor | None]:
    """Features and mask of an image carried half-way, as means over the cells of the stage's grid.

    Features are taken at half the spacing of the stage's grid: finer detail would average out anyway.
    """
    twice = (2,) * grid.dim
    half = grid.refined(twice)
    ratios = [h / s for h, s in zip(half.spacing, image_grid.spacing, strict=True)]
    strides = [max(1, math.floor(ratio + 0.25)) for ratio in ratios]
    source = image_grid.coarsened(strides)
    position = _positions(source, half, change_grid(exp(half_velocity, "auto"), grid, half))
    carried = sample(downsample_image(image, strides), position)
    features = downsample_image(mind_ssc(carried), twice)
    if mask is None:
        return features, None
    weight = sample(downsample_image(mask.to(image.dtype), strides), position)
    return features, downsample_image(weight, twice)


def _positions(target: Grid, source: Grid, u_vox: Tensor) -> Tensor:
    """Positions x + u(x), x the voxels of `source`, in voxels of `target`; (1, d, *source.shape)."""
    matrix = tensor_from_array(index_affine(target, source), u_vox.dtype, u_vox.device)
    moved = identity_vox(source.shape, u_vox.dtype, u_vox.device) + u_vox
    start = matrix[:, -1].view(1, -1, *[1] * source.dim)
    return torch.einsum("ab,nb...->na...", matrix[:, :-1], moved) + start


def _displacement(
    fixed: Tensor,
    moving: Tensor,
    fixed_mask: Tensor | None,
    moving_mask: Tensor | None,
    radius: Sequence[int],
    stage: Stage,
    grid: Grid,
) -> Tensor:
    """Smooth displacement of one direction, (1, d, *spatial), voxels of the stage's grid."""
    entries = math.prod(2 * r + 1 for r in radius) * grid.voxel_count
    dtype = torch.float16 if entries > HALF_PRECISION_ABOVE else torch.float32
    volume = cost_volume(fixed, moving, radius, fixed_mask, moving_mask, dtype=dtype)
    aspect = [s / stage.grid_mm for s in grid.spacing]
    return coupled_convex(
        volume, fixed_mask, stiffness=stage.stiffness, radius_vox=stage.smoothing_vox, aspect=aspect
    )


def _summary(found: Logarithm, grid: Grid, pair: Pair) -> Start:
    """The last stage's velocity with its numbers in millimetres."""
    u_vox = exp(found.velocity_vox, "auto")
    if pair.fixed_mask is not None:
        position = _positions(pair.grid, grid, torch.zeros_like(u_vox))
        u_vox = u_vox * (sample(pair.fixed_mask.to(u_vox.dtype), position) > 0.5)
    step_mm = max(grid.spacing)
    return Start(
        Motion(found.velocity_vox, grid),
        found.residual_mean_vox * step_mm,
        found.residual_max_vox * step_mm,
        float(u_mm_from_vox(u_vox, grid).square().sum(1).sqrt().max()),
    )
