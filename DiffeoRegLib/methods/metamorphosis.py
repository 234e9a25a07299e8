"""Registration of images of which one shows a pathology: a motion and a change of appearance together.

Minimise  D(fixed - q m, moving o phi) + rho sum m |grad q|^2  over smooth stationary velocities v, with
phi = exp(v), and sources q within the marks m, coarse to fine, with the steps of `svf`.  The source is
eliminated in closed form before every step (`losses.source`).  Two things give the velocity where a lesion
hides the tissue:

* What presses tissue aside moves it outwards.  The first levels start from the velocity they have plus an
  outflow from the marks of the strength that fits the visible tissue best, or none.  It is part of the model,
  so it is left out of the smoothing of the velocity.
* The kinetic energy sum |grad v|^2 alone decides where the comparison has no weight: after every level the
  velocity is stretched there like a membrane between what is known.

Marks of the moving image work the other way round, and both images may have some: images meet half-way, so
exchanging them only changes the sign of v.  No marks: this is `svf`.

Sources: Holm, Trouve, Younes, Quart Appl Math 2009; Joshi and Hong, MetaRegNet, 2023 (energy); the
elimination, the outflow and the membrane are ours.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.errors import InputError, SettingsError
from DiffeoRegLib.flows.logarithm import unfold
from DiffeoRegLib.losses.source import box_of
from DiffeoRegLib.methods.base import Motion, Pair, Report
from DiffeoRegLib.methods.svf import LEAST_DETERMINANT, StationaryVelocity, plans, tellers
from DiffeoRegLib.methods.trained import refined
from DiffeoRegLib.optimise import Level, compare, half_way, optimise_level, squarings_for
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.membrane import membrane
from DiffeoRegLib.volumes.pathology import Pathology, PlacedPathology, check_pathology, marks_anything
from DiffeoRegLib.volumes.volume import Volume

COMPARABLE = ("lncc", "lncc-squared", "mk-lncc", "mse")
"""Similarities of images whose intensities mean the same: only of these the difference is a source."""
GROWTHS = (-0.1, 0.1, 0.2, 0.3, 0.4, 0.55)
"""Longest outflows that are tried, in radii of what is marked."""
WIDTHS = (1 / 3, 2 / 3)
"""Widths of the Gaussian that spreads it, in the same radii."""
GROWING_LEVELS = 3
"""So many levels, the coarsest first, look for an outflow."""
HOLD = 20.0
"""How much more a velocity weighs where all tissue is known than its slope by the finest voxel there."""
MEMBRANE_ITERATIONS = 100


class Metamorphosis(StationaryVelocity):
    """The `metamorphosis` method: no training; without marks it is `svf`, bit for bit."""

    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Rest, or the large-displacement search in what is healthy."""
        if pair.pathology is not None:
            check_similarity(settings)
        return super().predict(healthy_part(pair), settings, report)

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Coarse-to-fine optimisation of the velocity, the source put in; any velocity can start it.

        The source that a network predicts needs no place in it: the best one for a motion is known.
        Raises SettingsError for a similarity that compares no intensities.
        """
        if pair.pathology is None:
            return super().refine(motion, pair, settings, report)
        check_similarity(settings)
        levels = [plan for plan in plans(settings, pair.grid) if plan.iterations > 0]
        grown = Motion(torch.zeros_like(motion.velocity_vox), motion.grid)
        tells = tellers(levels, pair.grid.dim, report)
        for number, (plan, tell) in enumerate(zip(levels, tells, strict=True)):
            level = Level(pair, plan, settings)
            velocity, given = (change_grid(m.velocity_vox, m.grid, level.grid) for m in (motion, grown))
            if number < GROWING_LEVELS:
                outflow = best_outflow(velocity, level, pair.pathology, pair.grid, settings)
                velocity, given = velocity + outflow, given + outflow
            velocity = optimise_level(velocity, level, plan, settings, tell, given)
            velocity = stretched(velocity, level, settings)
            if plan is not levels[-1]:
                velocity, _ = unfold(velocity, LEAST_DETERMINANT)
            motion, grown = Motion(velocity, level.grid), Motion(given, level.grid)
        return motion


def checked_pathology(
    chosen: Card, pathology: Pathology | None, fixed: Volume, moving: Volume, settings: Settings
) -> list[str]:
    """Sentences for the report about the pathology of a run.

    Without marks, or with marks that mark nothing, both images count as healthy, which is said.
    Raises InputError for a pathology that the method has no use for, and as `check_pathology` and, where the
    images are compared by iterations, `check_similarity`.
    """
    if not chosen.needs_pathology_mask:
        if pathology is not None:
            raise InputError(
                f"'{chosen.name}' has no use for a pathology: choose metamorphosis, or leave it out."
            )
        return []
    notes = check_pathology(pathology, fixed, moving)
    ill = pathology is not None and marks_anything(pathology)
    if ill and (not chosen.trained or refined(settings)):
        check_similarity(settings)
    return notes


def check_similarity(settings: Settings) -> None:
    """Raises SettingsError for a similarity of images whose intensities do not mean the same."""
    similarity = settings.similarity or PRESETS[settings.preset].similarity
    if similarity not in COMPARABLE:
        raise SettingsError(
            f"Metamorphosis explains a lesion by a difference of intensities, which '{similarity}' does not "
            f"compare: choose one of {', '.join(COMPARABLE)}, or svf with a mask that excludes the lesion."
        )


def healthy_part(pair: Pair) -> Pair:
    """The pair with everything marked left out by its masks: cost function masking."""
    if pair.pathology is None:
        return pair
    masks = []
    for mask, marks in ((pair.fixed_mask, pair.pathology.fixed), (pair.moving_mask, pair.pathology.moving)):
        healthy = None if marks is None else 1 - marks.to(pair.fixed)
        masks.append(mask if healthy is None else healthy if mask is None else mask * healthy)
    return dataclasses.replace(pair, fixed_mask=masks[0], moving_mask=masks[1], pathology=None)


# ---------------------------------------------------------------- growth


def best_outflow(
    velocity_vox: Tensor, level: Level, pathology: PlacedPathology, grid: Grid, settings: Settings
) -> Tensor:
    """The outflow that, added to a velocity, brings the images of a level nearest; zero where none does.

    One for the marks of each image: one lesion may have grown and the other not.  grid: of the marks.
    """
    best, least = torch.zeros_like(velocity_vox), _value(velocity_vox, level, settings)
    for marks, sign in ((pathology.fixed, 1.0), (pathology.moving, -1.0)):
        if marks is None:
            continue
        radius, before = marked_radius_mm(marks, grid), best
        for width in WIDTHS:
            unit = change_grid(outflow(marks, grid, width * radius), grid, level.grid)
            for growth in GROWTHS:
                trial = before + unit * (sign * growth * radius)
                value = _value(velocity_vox + trial, level, settings)
                if value < least:
                    best, least = trial, value
    return best


def _value(velocity_vox: Tensor, level: Level, settings: Settings) -> float:
    return compare(level, *half_way(velocity_vox, squarings_for(velocity_vox, settings))).value


def outflow(marks: Tensor, grid: Grid, sigma_mm: float) -> Tensor:
    """Velocity (1, d, *grid.shape), voxels, of tissue that marks push outwards, its longest vector 1 mm.

    marks: (1, 1, *grid.shape), of the fixed image.  It is the slope of the marks spread by a Gaussian: a pull
    map looks for displaced tissue nearer to what displaced it, so it flows into the marks.
    """
    spread = gaussian_smooth(marks, [sigma_mm / step for step in grid.spacing])
    slope = torch.stack(torch.gradient(spread[0, 0]))[None]
    spacing = slope.new_tensor(grid.spacing).view(1, -1, *[1] * grid.dim)
    slope_mm = slope / spacing
    longest = slope_mm.square().sum(1).amax().sqrt()
    return slope_mm / longest.clamp(min=1e-12) / spacing


def marked_radius_mm(marks: Tensor, grid: Grid) -> float:
    """Radius of the ball, or disc, as large as all that is marked."""
    size = float(marks.sum()) * math.prod(grid.spacing)
    return math.sqrt(size / math.pi) if grid.dim == 2 else float((0.75 * size / math.pi) ** (1 / 3))


# ---------------------------------------------------------------- membrane


def stretched(velocity_vox: Tensor, level: Level, settings: Settings) -> Tensor:
    """A velocity of least slope where the comparison has no weight, as it was where it has its full one."""
    assert level.source is not None
    to_moving, to_fixed = half_way(velocity_vox, squarings_for(velocity_vox, settings))
    images = level.blocks.read(level.fixed, to_fixed[0]), level.blocks.read(level.moving, to_moving[0])
    known = level.weight(to_moving, to_fixed)
    _, _, trust = level.source.taken_off(*images, known, to_fixed, to_moving)
    unknown = (1 - trust)[None, None]
    box = box_of(unknown, 1)  # beyond it no voxel hangs on another, so each keeps its value
    if box is None:
        return velocity_vox
    part = (slice(None), slice(None), *box)
    trust, unknown, finest = trust[box][None, None], unknown[part], min(level.grid.spacing)
    edges = []
    for axis, step in enumerate(level.grid.spacing, start=2):
        size = unknown.shape[axis] - 1
        either = torch.maximum(unknown.narrow(axis, 0, size), unknown.narrow(axis, 1, size))
        edges.append(either * (finest / step) ** 2)
    found = velocity_vox.clone()
    found[part] = membrane(velocity_vox[part], HOLD * trust, edges, MEMBRANE_ITERATIONS)
    return found
