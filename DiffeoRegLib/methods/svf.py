"""Registration by one stationary velocity field, optimised for the pair at hand.

Minimise  D(fixed o exp(-v/2), moving o exp(v/2))  over smooth stationary velocities v, coarse to fine. The
images meet half-way, so neither is preferred; exp(v) maps fixed to moving points, exp(-v) is its inverse.
Smoothness comes from smoothing each update (as a viscous fluid resists) and the velocity itself (as an
elastic body does). The finest level compares the images voxel by voxel but moves a velocity known on every
second voxel: the smoothed field loses little and costs an eighth. A few last, dense iterations may move
every voxel.

Sources: Arsigny et al., MICCAI 2006 (exponentials of stationary velocities); Avants et al., Med Image Anal
2008 (symmetric correlation-driven registration); Vercauteren et al., MICCAI 2008 (updates of log-domain
velocities). The second-order step and the block-wise correlation are ours, see `optimise`, `losses.forces`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.flows.logarithm import unfold
from DiffeoRegLib.methods.base import Motion, Pair, Progress, Report
from DiffeoRegLib.methods.discrete import CITATION, discrete_start
from DiffeoRegLib.optimise import Level, Plan, layout, optimise_level
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.grid import Grid

LEAST_DETERMINANT = 0.02
COARSE_STEP, FINE_STEP, DENSE_STEP = 0.4, 0.5, 1.0
"""Largest movement of an iteration, in steps of the velocity grid; chosen on the pairs of results.md."""


class StationaryVelocity:
    """The `svf` method: no training, any pair."""

    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Rest, or the large-displacement search where preset or settings ask for it."""
        if searches(settings):
            return discrete_start(pair, settings, report)
        grid = layout(pair.grid, plans(settings, pair.grid)[0]).grid
        rest = torch.zeros((1, grid.dim, *grid.shape), dtype=pair.fixed.dtype, device=pair.fixed.device)
        return Motion(rest, grid)

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Coarse-to-fine instance optimisation; levels without iterations are skipped."""
        levels = [plan for plan in plans(settings, pair.grid) if plan.iterations > 0]
        for plan, tell in zip(levels, tellers(levels, pair.grid.dim, report), strict=True):
            level = Level(pair, plan, settings)
            velocity = change_grid(motion.velocity_vox, motion.grid, level.grid)
            velocity = optimise_level(velocity, level, plan, settings, tell)
            if plan is not levels[-1]:  # the last velocity is looked after when it is integrated
                velocity, _ = unfold(velocity, LEAST_DETERMINANT)
            motion = Motion(velocity, level.grid)
        return motion

    def sources(self, settings: Settings) -> list[str]:
        """The large-displacement search, where it is used."""
        return [CITATION] if searches(settings) else []


def tellers(levels: Sequence[Plan], dim: int, report: Report) -> list[Callable[[int, float], None]]:
    """What every level calls with (iteration, value): its progress, as a part of that of all levels."""
    effort = [plan.iterations / plan.level_mm**dim for plan in levels]

    def teller(plan: Plan, start: float, share: float) -> Callable[[int, float], None]:
        def tell(iteration: int, value: float) -> None:
            fraction = (start + share * (iteration + 1) / plan.iterations) / sum(effort)
            step = f"{plan.level_mm:g} mm, step {iteration + 1} of {plan.iterations}"
            report(Progress("optimise", fraction, f"{step}: {plan.similarity} {value:.4f}"))

        return tell

    return [teller(plan, sum(effort[:k]), effort[k]) for k, plan in enumerate(levels)]


def searches(settings: Settings) -> bool:
    """True if preset or settings ask for the large-displacement search."""
    wanted = settings.large_displacement
    return PRESETS[settings.preset].large_displacement if wanted is None else wanted


def plans(settings: Settings, grid: Grid) -> list[Plan]:
    """One plan per level, coarse to fine, from settings, preset and effort.

    A preset's levels shrink together when the working grid is much finer than the finest of them (small
    animals). Levels finer than the working grid are left out; the finest that remains takes over their
    iterations.
    Raises SettingsError when levels and iterations do not match.
    """
    preset = PRESETS[settings.preset]
    levels = settings.levels_mm or preset.levels_mm
    counts = settings.iterations or preset.iterations[settings.effort]
    if len(levels) != len(counts):
        raise SettingsError(
            f"{len(levels)} levels {levels} and {len(counts)} numbers of iterations {counts} do not match."
        )
    spacing = min(grid.spacing)
    scale = spacing / min(levels) if settings.levels_mm is None and spacing < 0.7 * min(levels) else 1.0
    used = dict[float, int]()
    for level, count in zip(levels, counts, strict=True):
        level_mm = max(level * scale, spacing)
        used[level_mm] = used.get(level_mm, 0) + count
    finest = min(used)
    similarity = settings.similarity or preset.similarity
    update, velocity = settings.update_sigma or preset.update_sigma, settings.velocity_sigma
    found = [
        Plan(
            level_mm=level_mm,
            iterations=count,
            similarity=similarity,
            window_vox=settings.window_vox or preset.window_vox,
            update_sigma=update * settings.regularity,
            velocity_sigma=(preset.velocity_sigma if velocity is None else velocity) * settings.regularity,
            fine=level_mm == finest and similarity != "mind",
            step=FINE_STEP if level_mm == finest else COARSE_STEP,
        )
        for level_mm, count in sorted(used.items(), reverse=True)
    ]
    dense = settings.dense_iterations
    if dense is None:
        dense = preset.dense_iterations[settings.effort] if settings.iterations is None else 0
    if dense:
        found.append(dataclasses.replace(found[-1], iterations=dense, fine=False, step=DENSE_STEP))
    return found
