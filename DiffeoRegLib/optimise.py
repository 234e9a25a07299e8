"""Instance optimisation of a stationary velocity field: symmetric, multi-level, without autograd.

Both images are carried half-way, moving by exp(v/2) and fixed by exp(-v/2), and compared there. A small step
s of the velocity at that place turns the whole flow into exp(v/2) exp(s) exp(v/2), whose logarithm is v + s
up to third order, so the closed-form force of the similarity is added to v directly. Swapping the images
only changes the sign of v.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.flows.exponential import exp, midpoint_squarings
from DiffeoRegLib.losses.forces import Forces, Similarity, similarity_forces
from DiffeoRegLib.losses.guidance import LabelPull, landmark_force
from DiffeoRegLib.losses.mind import mind_ssc
from DiffeoRegLib.losses.source import LevelSource
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.blocks import Blocks
from DiffeoRegLib.space.field import downsample_image
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.pair import Pair

LARGEST_STEP_VOX = 4.0
"""First step of the flow while optimising; coarse, since the forces of the next iteration see its error."""
CONVERGED = 2e-3
"""A level ends early when CONVERGENCE_WINDOW steps gained less than this share of all it gained so far."""
CONVERGENCE_WINDOW = 10
PATIENCE = 3
"""After so many steps without a new lowest value, the steps are halved."""
ALIKE = 1e-4
"""Images in [0, 1] that differ by less everywhere are the same: reading between voxels rounds by a tenth."""


@dataclass(frozen=True)
class Plan:
    """How one level is optimised.

    level_mm: voxel size the images are compared at.  fine: the velocity lives on blocks of two such voxels.
    step: largest movement of one iteration, in steps of the velocity grid.
    """

    level_mm: float
    iterations: int
    similarity: str
    window_vox: float
    update_sigma: float
    velocity_sigma: float
    fine: bool
    step: float = 0.5


@dataclass(frozen=True, eq=False)
class Layout:
    """The grids of one level: images at `strides` of the working grid, velocities on blocks of `sides`."""

    strides: tuple[int, ...]
    image_grid: Grid
    sides: tuple[int, ...]
    grid: Grid


def layout(working: Grid, plan: Plan) -> Layout:
    """Whole strides that bring every axis near to the level, leaving at least four voxels, and block sides.

    On the fine level blocks are 2 long along every axis that is fine enough, else 1 (thick slices, very few
    voxels).
    """
    size = list(zip(working.spacing, working.shape, strict=True))
    strides = tuple(max(1, min(round(plan.level_mm / spacing), n // 4)) for spacing, n in size)
    images = working.coarsened(strides)
    size = list(zip(images.spacing, images.shape, strict=True))
    sides = tuple(2 if plan.fine and s < 1.6 * plan.level_mm and n >= 8 else 1 for s, n in size)
    return Layout(strides, images, sides, images.coarsened(sides))


class Level:
    """A pair of images at one resolution, and the grid its velocity lives on."""

    def __init__(self, pair: Pair, plan: Plan, settings: Settings) -> None:
        grids = layout(pair.grid, plan)
        strides, image_grid, sides = grids.strides, grids.image_grid, grids.sides
        self.strides = tuple(s * b for s, b in zip(strides, sides, strict=True))
        self.grid = grids.grid
        self.nominal_mm = plan.level_mm * max(sides)
        self.blocks = Blocks(image_grid.shape, sides, device=pair.fixed.device)
        radii = [
            max(0, round((plan.window_vox * plan.level_mm / spacing - 1) / 2)) if size > 1 else 0
            for spacing, size in zip(self.grid.spacing, self.grid.shape, strict=True)
        ]
        self.similarity: Similarity = similarity_forces(plan.similarity, radii)
        self.fixed = self._image(pair.fixed, strides, plan, image_grid)
        self.moving = self._image(pair.moving, strides, plan, image_grid)
        self.fixed_weight = self._weight(pair.fixed_mask)
        self.moving_weight = self._weight(pair.moving_mask)
        self.everywhere = torch.ones(self.grid.shape, device=pair.fixed.device)
        self.labels = self._labels(pair) if settings.guidance_weight > 0 else None
        self.points = self._points(pair) if settings.guidance_weight > 0 else None
        self.guidance_weight = settings.guidance_weight
        self.source = self._source(pair, strides, image_grid)

    def _image(self, image: Tensor, strides: Sequence[int], plan: Plan, grid: Grid) -> Tensor:
        small = downsample_image(image, strides) if max(strides) > 1 else image
        if plan.similarity == "mind":
            small = mind_ssc(small, spacing=grid.spacing)
        return self.blocks.pad(small[0])

    def _weight(self, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else downsample_image(mask, self.strides)

    def _labels(self, pair: Pair) -> LabelPull | None:
        if pair.fixed_labels is None or pair.moving_labels is None:
            return None
        return LabelPull(pair.fixed_labels, pair.moving_labels, self.strides)

    def _source(self, pair: Pair, strides: Sequence[int], grid: Grid) -> LevelSource | None:
        """What pathology adds to the images; None for healthy ones."""
        if pair.pathology is None:
            return None
        marks = [
            None if mark is None else downsample_image(mark, strides)
            for mark in (pair.pathology.fixed, pair.pathology.moving)
        ]
        return LevelSource(marks[0], marks[1], self.blocks, grid.spacing)

    def _points(self, pair: Pair) -> tuple[Tensor, Tensor] | None:
        if pair.fixed_points_vox is None or pair.moving_points_vox is None:
            return None
        stride = pair.fixed.new_tensor(self.strides).view(1, -1, 1)
        both = (pair.fixed_points_vox, pair.moving_points_vox)
        fixed, moving = ((p.to(stride) + 0.5) / stride - 0.5 for p in both)
        return fixed, moving

    def weight(self, to_moving: Tensor, to_fixed: Tensor) -> Tensor:
        """Where both images count in half-way space, (*coarse)."""
        weight = self.everywhere
        for mask, u in ((self.fixed_weight, to_fixed), (self.moving_weight, to_moving)):
            if mask is not None:
                weight = weight * warp(mask, u)[0, 0]
        return weight


def squarings_for(velocity_vox: Tensor, settings: Settings) -> int:
    """Squarings of exp(v): what `steps` asks for, or as few as keep its first step short."""
    if settings.steps != "auto":
        return max(0, math.ceil(math.log2(settings.steps)))
    return midpoint_squarings(velocity_vox, LARGEST_STEP_VOX, fewest=1)


def half_way(velocity_vox: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
    """Displacements from half-way space to the moving and to the fixed image, exp(v/2) and exp(-v/2)."""
    count = max(squarings - 1, 0)
    return exp(velocity_vox * 0.5, count, first_step=2), exp(velocity_vox * -0.5, count, first_step=2)


@torch.no_grad()
def optimise_level(
    velocity_vox: Tensor,
    level: Level,
    plan: Plan,
    settings: Settings,
    tell: Callable[[int, float], None],
    given_vox: Tensor | None = None,
) -> Tensor:
    """The velocity after at most `plan.iterations` steps of smoothed, bounded gradient descent on one level.

    velocity_vox: (1, d, *level.grid.shape), voxels of that grid.  tell(iteration, value) is called each step
    and may raise Cancelled.  given_vox: the part of the velocity that is not to be smoothed, of that shape.
    """
    spacing = velocity_vox.new_tensor(level.grid.spacing).view(1, -1, *[1] * level.grid.dim)
    update_sigma = [plan.update_sigma * level.nominal_mm / s for s in level.grid.spacing]
    velocity_sigma = [plan.velocity_sigma * level.nominal_mm / s for s in level.grid.spacing]
    step_mm = plan.step * level.nominal_mm
    values: list[float] = []
    for iteration in range(plan.iterations):
        to_moving, to_fixed = half_way(velocity_vox, squarings_for(velocity_vox, settings))
        forces = compare(level, to_moving, to_fixed)
        downhill = level.blocks.slope(forces.by_fixed, forces.fixed_read) - level.blocks.slope(
            forces.by_moving, forces.moving_read
        )
        if _alike(level, forces):
            tell(iteration, forces.value)
            break
        update_mm = _unit(gaussian_smooth(downhill[None] / spacing, update_sigma))
        pull_mm, misfit = _guidance(level, to_moving, to_fixed, spacing, update_sigma)
        if pull_mm is not None:
            update_mm = _unit(update_mm + level.guidance_weight * pull_mm)
        velocity_vox = velocity_vox + update_mm * (step_mm / spacing)
        if given_vox is None:
            velocity_vox = gaussian_smooth(velocity_vox, velocity_sigma)
        else:
            velocity_vox = given_vox + gaussian_smooth(velocity_vox - given_vox, velocity_sigma)
        values.append(forces.value + level.guidance_weight * misfit)
        tell(iteration, forces.value)
        if _converged(values):
            break
        if _stalled(values):
            step_mm *= 0.5
    return velocity_vox


@dataclass(frozen=True, eq=False)
class Comparison(Forces):
    """Forces together with the images they were measured on, (C, P, *coarse)."""

    fixed_read: Tensor
    moving_read: Tensor


def compare(level: Level, to_moving: Tensor, to_fixed: Tensor) -> Comparison:
    """The similarity of both images in half-way space, free of their sources, and its derivatives by them."""
    moving = level.blocks.read(level.moving, to_moving[0])
    fixed = level.blocks.read(level.fixed, to_fixed[0])
    weight = level.weight(to_moving, to_fixed)
    if level.source is not None:
        fixed, moving, trust = level.source.taken_off(fixed, moving, weight, to_fixed, to_moving)
        weight = weight * trust
    forces = level.similarity(fixed, moving, weight)
    return Comparison(forces.value, forces.by_fixed, forces.by_moving, forces.factor, fixed, moving)


def _alike(level: Level, forces: Comparison) -> bool:
    """True where nothing is left to find: the longest step would follow what rounding has left."""
    if level.labels is not None or level.points is not None or level.source is not None:
        return False
    return float((forces.fixed_read - forces.moving_read).abs().amax()) < ALIKE


def _guidance(
    level: Level, to_moving: Tensor, to_fixed: Tensor, spacing: Tensor, sigma: Sequence[float]
) -> tuple[Tensor | None, float]:
    """Where labels and landmarks pull the flow, each at most 1 long, and their misfit; None, 0 without any.

    misfit: one minus the mean Dice, plus the largest landmark gap in steps of the velocity grid.
    """
    pull, misfit = None, 0.0
    if level.labels is not None:
        force = level.labels.force(to_moving[0], to_fixed[0])[None] / spacing
        pull = _unit(gaussian_smooth(force, sigma))
        misfit += 1 - level.labels.dice
    if level.points is not None:
        gaps = landmark_force((to_moving, to_fixed), level.points)[None] * spacing
        farthest = float(gaps.square().sum(1).amax().sqrt())
        misfit += farthest / level.nominal_mm
        share = min(1.0, farthest / level.nominal_mm)  # arrived landmarks stop pulling
        near = _unit(gaussian_smooth(gaps, [2 * s for s in sigma])) * share
        pull = near if pull is None else pull + near
    return pull, misfit


def _unit(direction_mm: Tensor) -> Tensor:
    """The field scaled so that its longest vector has length 1; zero stays zero."""
    longest = direction_mm.square().sum(1).amax().sqrt()
    return direction_mm / longest.clamp(min=1e-12)


def _converged(values: list[float]) -> bool:
    """True when the last steps, each half of the window averaged, no longer lower the value."""
    if len(values) < 2 * CONVERGENCE_WINDOW:
        return False
    recent = sum(values[-CONVERGENCE_WINDOW:]) / CONVERGENCE_WINDOW
    before = sum(values[-2 * CONVERGENCE_WINDOW : -CONVERGENCE_WINDOW]) / CONVERGENCE_WINDOW
    return before - recent <= CONVERGED * (values[0] - recent)


def _stalled(values: list[float]) -> bool:
    """True every PATIENCE steps that brought no new lowest value."""
    since = len(values) - 1 - min(range(len(values)), key=values.__getitem__)
    return since > 0 and since % PATIENCE == 0
