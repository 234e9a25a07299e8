"""What the methods with a regulariser of kernels need, as far as sizes tell: for the guess before Apply.

The times are CPU seconds of one core (AMD EPYC), fitted to the shipped pair and to a quarter of a brain. What
is said of the methods mirrors methods/options.py and methods/memory.py of the engine, which need torch; tests
compare them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.settings import MOMENTUM_ITERATIONS, MOMENTUM_LEVELS, Settings
from DiffeoRegLib.stiffness import REGIONAL_SIGMAS

EVALUATIONS = 1.1  # of the objective per iteration: line searches try a little more than once
STEPS = 6  # of shooting, where the user has not said how many
VELOCITY_SECONDS_PER_MVOX = 1.0  # the exponential of a velocity on the map grid, there and back
SHOOT_SECONDS_PER_MVOX = 0.7  # one step of a geodesic of one metric
KERNEL_SECONDS_PER_MVOX = 0.35  # one step, for every kernel of a regional metric
COMPARE_SECONDS_PER_MVOX = 0.35  # images and their gradient

WORKING_BYTES = 210
MAP_BYTES, MAP_BYTES_PER_KERNEL, STATIONARY_BYTES = 900, 210, 600
GRAPHS, MOST_GRAPH_BYTES, MEMORY_STEPS = 3, 1 << 30, 8
STEPS_PER_SIGMA, LEAST_SIGMA_STEPS, FEWEST_VOXELS = 1.9, 1.5, 8


@dataclass(frozen=True)
class Recipe:
    """What a method does by itself: narrowest kernel and its unit, kernels, iterations per effort.

    coarse_maps: coarse images are compared on a coarser map.
    """

    narrowest: float
    unit: str
    kernels: int
    iterations: Mapping[str, tuple[int, ...]]
    coarse_maps: bool = False


_BRAIN_ITERATIONS = {"fast": (8, 12, 0), "balanced": (8, 15, 15), "accurate": (15, 30, 30)}
_REGIONAL_ITERATIONS = {"fast": (25, 12, 0), "balanced": (25, 15, 15), "accurate": (40, 30, 30)}
PAPER = Recipe(0.05, "box", 5, MOMENTUM_ITERATIONS)
RECIPES = {"brain-mr": Recipe(4.0, "mm", 4, _BRAIN_ITERATIONS, coarse_maps=True)}
_NARROWEST, _COUNT = min(REGIONAL_SIGMAS), len(REGIONAL_SIGMAS)
REGIONAL = Recipe(_NARROWEST, "box", _COUNT, MOMENTUM_ITERATIONS)
REGIONAL_RECIPES = {"brain-mr": Recipe(_NARROWEST, "box", _COUNT, _REGIONAL_ITERATIONS, coarse_maps=True)}


@dataclass(frozen=True)
class Need:
    """CPU seconds of one core, and memory of the process without the images, MB."""

    seconds: float
    memory_mb: float


def recipe_of(card: Card, settings: Settings) -> Recipe:
    """The method's own for the preset, with the kernels that the user has chosen."""
    own = RECIPES.get(settings.preset, PAPER)
    if card.needs_region_labels:
        own = REGIONAL_RECIPES.get(settings.preset, REGIONAL)
    narrowest, unit, count = own.narrowest, own.unit, own.kernels
    if settings.kernel_sigmas:
        chosen = settings.kernel_sigmas
        narrowest, unit, count = min(chosen), settings.kernel_units, len(chosen)
    return Recipe(narrowest, unit, count, own.iterations, own.coarse_maps)


def need_of(card: Card, settings: Settings, shape: Sequence[int], spacing: Sequence[float]) -> Need:
    """What a method of kernels needs on a working grid.

    shape, spacing: of the axes with more than one voxel, mm.
    """
    recipe, steps = recipe_of(card, settings), STEPS if settings.steps == "auto" else settings.steps
    regional = card.method == "rdmm"
    strides = strides_of(recipe, shape, spacing)
    map_spacing = [step * stride for step, stride in zip(spacing, strides, strict=True)]
    voxels = math.prod(-(-n // stride) for n, stride in zip(shape, strides, strict=True))
    cost = VELOCITY_SECONDS_PER_MVOX
    if card.geodesic:
        per_step = KERNEL_SECONDS_PER_MVOX * recipe.kernels if regional else SHOOT_SECONDS_PER_MVOX
        cost = steps * per_step
    seconds = 0.0
    finest = min(spacing)
    levels = settings.levels_mm or tuple(finest * level for level in MOMENTUM_LEVELS)
    counts = settings.iterations or recipe.iterations[settings.effort]
    for level, count in zip(sorted(levels, reverse=True), counts, strict=False):
        images = math.prod(shape) * math.prod(min(1.0, step / level) for step in spacing)
        maps = voxels
        if recipe.coarse_maps:
            maps *= math.prod(1 / max(1, math.floor(level / step + 1e-6)) for step in map_spacing)
        seconds += EVALUATIONS * count * (cost * maps + COMPARE_SECONDS_PER_MVOX * images) / 1e6
    kernels = recipe.kernels if regional else 0
    memory = WORKING_BYTES * math.prod(shape) + _flow_bytes(card, voxels, len(shape), kernels, settings)
    return Need(seconds, memory / 1e6)


def strides_of(recipe: Recipe, shape: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """Voxels of the working grid in a step of the map grid, along each axis."""
    box = [max(n - 1, 1) * step for n, step in zip(shape, spacing, strict=True)]
    widths = [recipe.narrowest * (side if recipe.unit == "box" else 1.0) for side in box]
    steps = [width / step for width, step in zip(widths, spacing, strict=True)]
    wider = max(1.0, LEAST_SIGMA_STEPS / min(steps))
    return [
        max(1, min(math.floor(wider * step / STEPS_PER_SIGMA), n // FEWEST_VOXELS))
        for step, n in zip(steps, shape, strict=True)
    ]


def _flow_bytes(card: Card, voxels: int, dim: int, kernels: int, settings: Settings) -> float:
    if not card.geodesic:
        return voxels * (MAP_BYTES + GRAPHS * STATIONARY_BYTES)
    steps = MEMORY_STEPS if settings.steps == "auto" else settings.steps
    values = 3 * dim + kernels * (dim + 2)
    graph = min(MOST_GRAPH_BYTES, 16 * steps * values * voxels)
    return voxels * (MAP_BYTES + MAP_BYTES_PER_KERNEL * kernels) + GRAPHS * graph
