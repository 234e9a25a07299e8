"""Coarse-to-fine search for velocities that change in time, from those a network gave.

Minimise  D(fixed, moving o phi) + weight R(v_1 ... v_T)  over v = v_network + G w, by L-BFGS over w: what is
added to every velocity is smooth, because G is a Gaussian, and no change at all is w = 0.  R is the kind of
roughness that the weights were trained with.  Images get finer from level to level; velocities live on every
second of their voxels where that is finer than what the network gave, at finest on the network's own.
Source: the losses are those of Chen, Frey and Du, WBIR 2022; the search is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.flows.time_varying import Order, position_at
from DiffeoRegLib.losses.lddmm_operator import ALPHA, BETA, GAMMA, lddmm_energy
from DiffeoRegLib.losses.regularity import diffusion
from DiffeoRegLib.methods.base import Motion, Pair, Progress, Report
from DiffeoRegLib.methods.comparing import Comparison
from DiffeoRegLib.methods.lbfgs import LBFGS, Tensors, Watch
from DiffeoRegLib.methods.stepping import per_step, per_time
from DiffeoRegLib.methods.trained import counts_of
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.field import change_grid
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid

ITERATIONS: Mapping[str, tuple[int, ...]] = {"fast": (0,), "balanced": (10, 20, 8), "accurate": (20, 40, 25)}
"""Per effort: at twice the voxel size of the network, at that size, and at the working one."""
TOLERANCE = 1e-4
FINER = 0.75
"""A voxel size below this share of another is another one."""
FIRST_MOVE_VOX = 0.5
"""Voxels of the velocities' grid that the first step of a level moves any point at most."""
SMOOTHING_VOX = 0.7
"""Width of the Gaussian G, voxels of the velocities' grid, for a regularity of 1."""
WEIGHT = 0.3
"""Of R beside a similarity, for a regularity of 1; chosen, like the width, on the brains 1001 and 1006."""
SEARCH_COPIES = 32
"""Of all velocities: those of L-BFGS and of the graph of one value."""
COMPARISON_BYTES = 100
"""Per voxel at the finest level, which has half the network's voxel size."""
LDDMM_WAVE_VOX = 8.0
"""Waves of this length, voxels of the velocities' grid, cost by the operator of LDDMM what they cost by
diffusion."""


@dataclass(frozen=True)
class Prior:
    """What makes velocities rough: `diffusion`, or the operator of LDDMM with these factors."""

    kind: Literal["diffusion", "lddmm"] = "diffusion"
    alpha: float = ALPHA
    gamma: float = GAMMA
    beta: float = BETA

    @property
    def title(self) -> str:
        """In words."""
        return "operator of LDDMM" if self.kind == "lddmm" else "gradient of the velocities"

    def energy(self, fields: Sequence[Tensor], spacing: Sequence[float]) -> Tensor:
        """Of T velocities (1, d, *grid), voxels per step, a scalar; the mean over the grid.

        spacing: of the grid, mm.
        """
        if self.kind == "lddmm":
            wave = 2 - 2 * math.cos(2 * math.pi / LDDMM_WAVE_VOX)
            scale: float = len(fields) * wave / (self.gamma + self.alpha * wave) ** (2 * self.beta)
            factors = {"alpha": self.alpha, "gamma": self.gamma, "beta": self.beta}
            return scale * lddmm_energy(fields, form="paper_mean", **factors)
        return len(fields) * torch.stack([diffusion(field, spacing) for field in fields]).sum()


def prior_of(description: Mapping[str, Any]) -> Prior:
    """The prior that a network was trained with, from its file's description."""
    config = description.get("config")
    losses = config.get("losses", []) if isinstance(config, Mapping) else []
    for loss in losses:
        if loss.get("name") == "lddmm":
            given = {name: float(v) for name, v in (loss.get("options") or {}).items() if name != "form"}
            return Prior("lddmm", **given)
    return Prior()


@dataclass(frozen=True, eq=False)
class FoundVelocities:
    """Where a search ended: velocities (T, d, *grid), voxels per unit time, and sentences for the report."""

    velocity_vox: Tensor
    grid: Grid
    notes: tuple[str, ...]


def iterations(settings: Settings) -> tuple[int, ...]:
    """Iterations per level, coarse to fine; raises SettingsError where they do not fit the levels."""
    return counts_of(settings, ITERATIONS)


def refined(settings: Settings) -> bool:
    """True if the search follows the network."""
    return any(iterations(settings))


def search(
    motion: Motion,
    pair: Pair,
    spacing_mm: Sequence[float],
    prior: Prior,
    settings: Settings,
    report: Report,
) -> FoundVelocities:
    """The velocities after all levels; levels without iterations are skipped.

    motion: one that is stepped.  spacing_mm: voxel size of the network.  prior: see `prior_of`.
    Raises Cancelled from the report, SettingsError for settings that do not fit.
    """
    assert motion.stepping is not None
    counts, own = iterations(settings), max(spacing_mm)
    levels = settings.levels_mm or (2 * own, own, min(pair.grid.spacing))[: len(counts)]
    todo = [(mm, n) for mm, n in sorted(zip(levels, counts, strict=True), reverse=True) if n > 0]
    effort = [n / mm**pair.grid.dim for mm, n in todo]
    # Automatic steps are for the finished map: they may be many, and each would cost as much again here.
    steps = len(motion.velocity_vox) if settings.steps == "auto" else settings.steps
    velocity_vox, grid = motion.velocity_vox, motion.grid
    done, spent = 0.0, Spent()
    for (level_mm, count), share in zip(todo, effort, strict=True):
        wide = _grid_of(max(2 * level_mm, own), grid, pair.grid)
        velocity_vox, grid = change_grid(velocity_vox, grid, wide), wide

        def tell(
            iteration: int,
            value: float,
            mm: float = level_mm,
            n: int = count,
            a: float = done,
            b: float = share,
        ) -> None:
            fraction = (a + b * (iteration + 1) / n) / sum(effort)
            step = f"{mm:g} mm, step {iteration + 1} of {n}"
            report(Progress("optimise", fraction, f"{step}: loss {value:.4f}"))

        level = _Level(pair, level_mm, grid, prior, settings, motion.stepping, steps)
        velocity_vox, here = level.optimise(velocity_vox, count, tell)
        spent, done = spent + here, done + share
    said = (
        f"Refinement of the velocities: {spent.iterations} iterations of L-BFGS, {spent.evaluations} "
        f"evaluations, {spent.gradients} gradients; the roughness counts by the {prior.title}."
    )
    return FoundVelocities(velocity_vox, grid, (said,))


def search_bytes(settings: Settings, own_mm: float, fields: int, dim: int, voxels: int) -> int:
    """Peak memory of the search for so many velocities on a network's grid of so many voxels, bytes.

    own_mm: size of these voxels.
    Measured on the CPU, 8 velocities on 81 x 104 x 80 voxels, MB of the whole process: 3 070 where this and
    BASE_BYTES say 3 010; without the finest level 1 200 for 1 200.
    """
    counts = iterations(settings)
    levels = settings.levels_mm or (2 * own_mm, own_mm, 0.5 * own_mm)[: len(counts)]
    finest = min((mm for mm, count in zip(levels, counts, strict=True) if count), default=own_mm)
    copies, corners = 4 * fields * dim * SEARCH_COPIES, int(2**dim)
    if finest < FINER * own_mm:
        return voxels * (copies + COMPARISON_BYTES * corners)
    return voxels * (copies // corners + COMPARISON_BYTES * corners)


def _grid_of(wide_mm: float, grid: Grid, working: Grid) -> Grid:
    """Where velocities live: on voxels of this size, or where they are if that is fine enough."""
    if wide_mm >= FINER * max(grid.spacing):
        return grid
    return working.coarsened([max(1, round(wide_mm / spacing)) for spacing in working.spacing])


@dataclass(frozen=True)
class Spent:
    """What a search cost."""

    iterations: int = 0
    evaluations: int = 0
    gradients: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.iterations + other.iterations,
            self.evaluations + other.evaluations,
            self.gradients + other.gradients,
        )


class _Level:
    """The search at one resolution of the images."""

    def __init__(
        self,
        pair: Pair,
        level_mm: float,
        grid: Grid,
        prior: Prior,
        settings: Settings,
        order: Order,
        steps: int,
    ) -> None:
        preset = PRESETS[settings.preset]
        finest = level_mm < FINER * 2 * min(pair.grid.spacing)
        self.comparison = Comparison(
            pair, level_mm, grid, settings.similarity or preset.similarity,
            window_vox=settings.window_vox or preset.window_vox, guidance_weight=settings.guidance_weight,
            block=2 if finest else 1,
        )  # fmt: skip
        self.grid, self.prior, self.order, self.steps = grid, prior, order, steps
        self.weight, self.sigma = WEIGHT * settings.regularity, SMOOTHING_VOX * settings.regularity

    def optimise(
        self, velocity_vox: Tensor, iterations: int, tell: Callable[[int, float], None]
    ) -> tuple[Tensor, Spent]:
        """Velocities (T, d, *grid), voxels per unit time, after so many iterations, and what they cost."""
        start = torch.cat(per_step(velocity_vox))

        def fields(change: Tensor) -> list[Tensor]:
            return list(torch.split(start + gaussian_smooth(change, self.sigma), 1))

        def objective(tensors: Tensors) -> Tensor:
            here = fields(tensors[0])
            unlike = self.comparison.value(position_at(here, self.steps, self.order))
            return unlike + self.weight * self.prior.energy(here, self.grid.spacing)

        def first_step(direction: Tensors) -> float:
            moves = gaussian_smooth(direction[0], self.sigma).sum(0).abs().max()
            return FIRST_MOVE_VOX / max(float(moves), 1e-30)

        descent = LBFGS(objective, [torch.zeros_like(start)], first_step=first_step, infinite=InputError)
        watch, moved = Watch(TOLERANCE), 0
        for iteration in range(iterations):
            before = descent.value
            if not descent.step():
                break
            moved += 1
            tell(iteration, descent.value)
            if watch.idle(before, descent.value):
                break
        with torch.no_grad():
            found = per_time(fields(descent.point[0]))
        return found, Spent(moved, descent.evaluations, descent.gradients)
