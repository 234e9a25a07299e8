"""How long a run will take and what it will need: a guess before Apply, from numbers that were measured.

The constants are fitted to Resources/docs/results.md and to runs on cubes of 48 to 96 voxels, all on one
processor type (AMD EPYC, one and two cores). They hold within a factor of two there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegPanel import estimate_velocities as velocities
from DiffeoRegPanel.estimate_momentum import Need, need_of

ALIGN_SECONDS, ALIGN_SECONDS_PER_MVOX = 2.9, 0.3  # multi-start affine: nearly the same for every size
RIGID_SHARE = 0.4  # of that, for rigid: fewer parameters, the same starts
PREPARE_SECONDS_PER_MVOX = 0.09
ITERATION_SECONDS_PER_MVOX = 0.32  # a velocity for every voxel
FINE_ITERATION_SECONDS_PER_MVOX = 0.055  # images voxel by voxel, velocity on every second
MIND_ITERATION_SECONDS_PER_MVOX = 0.40
SEARCH_SECONDS_PER_MVOX = 0.40  # the search for large displacements
METAMORPHOSIS_FACTOR = 2.2  # marks and source beside the iterations; more for very large lesions
INTEGRATE_SECONDS_PER_MVOX = {True: 1.0, False: 0.5}  # with and without dense iterations
RESAMPLE_SECONDS_PER_MVOX = 0.1
MEASURE_SECONDS, MEASURE_SECONDS_PER_MVOX, MOST_MEASURED_MVOX = 0.1, 0.75, 3.0
CORES_EXPONENT = 0.5  # two cores are 1.4 times as fast as one

BASE_MB = 400.0  # interpreter and libraries
IMAGES_MB_PER_MVOX = 4.0
WORKING_MB_PER_MVOX = {True: 240.0, False: 122.0}  # with and without dense iterations
SHOWN_MB_PER_MVOX = 16.0  # of the fixed image: the moved one, and what measures and sends it
PAIR_MB_PER_MVOX = 24.0  # both images on the working grid while large displacements are searched
MIND_MB_PER_MVOX = 96.0  # twelve feature channels of both images
AFFINE_MB_PER_MVOX = 70.0
FEWEST_VOXELS = 96  # a preset's voxel size shrinks so that the longest axis keeps these
# The search for large displacements, as methods/discrete.py has it: spacing and reach of its stages, mm, and
# bytes per point and per displacement that a point may choose.
SEARCH_STAGES = ((8.0, 40.0), (6.0, 12.0), (4.0, 8.0))
SEARCH_BYTES = (1500, 9)
WIDEST_RING_MM = 30.0  # beyond the image a motion falls to zero; as wide as the motion at the border needs
FIELD_BYTES = 3 * 4  # three float32 components

# A trained network and what follows it: iterations at twice its voxel size, at that size and at the working
# one, as methods/trained.py has them.
NETWORK_ITERATIONS = {"fast": (0,), "balanced": (15, 25, 0), "accurate": (40, 40, 10)}
NETWORK_DENSE_ITERATIONS = {"fast": 0, "balanced": 10, "accurate": 20}


@dataclass(frozen=True)
class Plan:
    """What a deformable method does on one core.

    spacing_mm, mvox: of the working grid.  levels_mm, counts, dense: its iterations.
    network_seconds, network_mb: of the trained network before them; None = there is one, but not measured.
    search_seconds: of iterations that are none of these, but of velocities for several time steps.
    """

    spacing_mm: float
    mvox: float
    levels_mm: Sequence[float]
    counts: Sequence[int]
    dense: int
    large: bool
    network_seconds: float | None = 0.0
    network_mb: float = 0.0
    search_seconds: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to need.

    seconds: from Apply to the result with a worker that is running already; None where nothing was measured
    (graphics processors).  cpu_seconds: the same on the CPU.  memory_mb: of the worker process.
    transform_mb: both transform nodes in Slicer's memory.  sentence: all of it for the user.
    """

    seconds: float | None
    cpu_seconds: float
    memory_mb: float
    transform_mb: float
    sentence: str


def estimate(
    card: Card,
    settings: Settings,
    fixed_shape: Sequence[int],
    fixed_spacing: Sequence[float],
    moving_shape: Sequence[int],
    device: str = "cpu",
    *,
    cores: int | None = None,
    has_initial: bool = False,
    storage: str = "half",
    want_inverse: bool = True,
) -> Estimate:
    """What registering images of these sizes will need; a guess for the whole fixed image.

    Objects on an empty background take less: the run is cropped to them.
    shape, spacing: in one order of axes, mm.  device: cpu, cuda, mps.  cores: None = of this computer.
    has_initial: an initial transform is given.  storage: grid of the transform, `half` or `full`.
    """
    cores = settings.threads or cores or os.cpu_count() or 1
    speed = cores**CORES_EXPONENT
    fixed_mvox, moving_mvox = math.prod(fixed_shape) / 1e6, math.prod(moving_shape) / 1e6
    seconds = _align_seconds(settings, fixed_mvox, has_initial)
    seconds += (RESAMPLE_SECONDS_PER_MVOX * fixed_mvox + _measure_seconds(fixed_mvox)) / speed
    memory = BASE_MB + IMAGES_MB_PER_MVOX * (fixed_mvox + moving_mvox)
    transform_mb = 0.0
    unknown = []
    if card.kernels and not card.trained:
        need, working_mvox = _momentum(card, settings, fixed_shape, fixed_spacing)
        seconds += (
            need.seconds
            + PREPARE_SECONDS_PER_MVOX * (fixed_mvox + moving_mvox)
            + INTEGRATE_SECONDS_PER_MVOX[False] * working_mvox
        ) / speed
        memory += need.memory_mb
        transform_mb = transform_mb_of(fixed_shape, fixed_spacing, settings, storage) * (
            2 if want_inverse else 1
        )
    elif card.deformable:
        plan = plan_of(card, settings, fixed_shape, fixed_spacing)
        dense = plan.dense > 0
        factor = METAMORPHOSIS_FACTOR if card.appearance_change else 1.0
        seconds += (
            factor * _refine_seconds(plan, _similarity(settings) == "mind", dim_of(fixed_shape))
            + PREPARE_SECONDS_PER_MVOX * (fixed_mvox + moving_mvox)
            + INTEGRATE_SECONDS_PER_MVOX[dense] * plan.mvox
            + (plan.network_seconds or 0.0)
            + plan.search_seconds
        ) / speed
        if plan.network_seconds is None:
            unknown.append("without the network, which was not measured")
        per_mvox = WORKING_MB_PER_MVOX[dense] + (MIND_MB_PER_MVOX if _similarity(settings) == "mind" else 0)
        search_mb = large_search_mb(fixed_shape, fixed_spacing) if plan.large else 0.0
        memory += max(
            per_mvox * plan.mvox, plan.network_mb, search_mb + PAIR_MB_PER_MVOX * plan.mvox,
            SHOWN_MB_PER_MVOX * fixed_mvox,
        )  # fmt: skip
        transform_mb = transform_mb_of(fixed_shape, fixed_spacing, settings, storage) * (
            2 if want_inverse else 1
        )
    else:
        memory += AFFINE_MB_PER_MVOX * min(fixed_mvox, MOST_MEASURED_MVOX)
    if settings.memory_limit_gb:
        memory = min(memory, 1000 * settings.memory_limit_gb)
    measured = device.partition(":")[0] in ("cpu", "auto")
    if not measured:
        unknown.append("graphics processors were not measured")
    sentence = sentence_of(seconds, memory, transform_mb, cores, unknown)
    return Estimate(seconds if measured else None, seconds, memory, transform_mb, sentence)


def _momentum(
    card: Card, settings: Settings, shape: Sequence[int], spacing: Sequence[float]
) -> tuple[Need, float]:
    """What a method of kernels needs, and the voxels of its working grid, millions."""
    wanted = working_spacing_mm_of(shape, spacing, settings)
    sizes = [(n, s, max(wanted, s)) for n, s in zip(shape, spacing, strict=True) if n > 1]
    working = [math.ceil(n * s / step) for n, s, step in sizes]
    need = need_of(card, settings, working, [step for _, _, step in sizes])
    return need, math.prod(working) / 1e6


def _align_seconds(settings: Settings, mvox: float, has_initial: bool) -> float:
    if settings.init in ("identity", "geometry", "mass") or (settings.init == "auto" and has_initial):
        return 0.1
    share = RIGID_SHARE if settings.init == "rigid" else 1.0
    return share * (ALIGN_SECONDS + ALIGN_SECONDS_PER_MVOX * mvox)


def _measure_seconds(mvox: float) -> float:
    return MEASURE_SECONDS + MEASURE_SECONDS_PER_MVOX * min(mvox, MOST_MEASURED_MVOX)


def plan_of(card: Card, settings: Settings, shape: Sequence[int], spacing: Sequence[float]) -> Plan:
    """What the method of a card will do with a fixed image of this shape and voxel size."""
    spacing_mm = working_spacing_mm_of(shape, spacing, settings)
    if card.time_varying:  # the voxel size of the user's own weights is not known: twice the working one
        network = card.spacing_mm or (2 * spacing_mm,) * 3
        return _steps_plan(card, network, settings, shape, spacing, spacing_mm)
    if card.spacing_mm is not None:
        return _network_plan(card, card.spacing_mm, settings, shape, spacing, spacing_mm)
    preset = PRESETS[settings.preset]
    levels = settings.levels_mm or preset.levels_mm
    counts = settings.iterations or preset.iterations[settings.effort]
    scale = 1.0
    if settings.levels_mm is None and spacing_mm < 0.7 * min(levels):
        scale = spacing_mm / min(levels)  # small animals: all levels shrink together
    levels = [max(level * scale, spacing_mm) for level in levels]
    mvox = math.prod(shape) / 1e6 / math.prod(max(1.0, spacing_mm / s) for s in _real(shape, spacing))
    large = preset.large_displacement if settings.large_displacement is None else settings.large_displacement
    network = None if card.trained else 0.0  # weights of the user, about which nothing is known here
    return Plan(spacing_mm, mvox, levels, counts, _dense_iterations(settings), large, network)


def _network_plan(
    card: Card,
    network: Sequence[float],
    settings: Settings,
    shape: Sequence[int],
    spacing: Sequence[float],
    wanted_mm: float,
) -> Plan:
    """A trained network's: a working grid of cubes, a whole number of which make a voxel of the network."""
    counts = settings.iterations or NETWORK_ITERATIONS[settings.effort]
    dense = settings.dense_iterations
    if dense is None:
        dense = NETWORK_DENSE_ITERATIONS[settings.effort] if settings.iterations is None else 0
    finer = max(1, round(max(network) / wanted_mm)) if any((*counts, dense)) else 1
    spacing_mm = max(network) / finer
    mvox = math.prod(shape) / 1e6 / math.prod(spacing_mm / s for s in _real(shape, spacing))
    levels = settings.levels_mm or (2 * max(network), max(network), spacing_mm)[-len(counts) :]
    levels = [max(level, spacing_mm) for level in levels]
    seconds, memory = None, 0.0
    if card.measured is not None:
        share = mvox / finer ** dim_of(shape) * 1e6 / card.measured.voxels
        memory = share * max(card.measured.memory_mb - BASE_MB, 0.0)
        if card.measured.cores:  # on a graphics processor nothing is learned about this one
            seconds = share * card.measured.seconds * card.measured.cores**CORES_EXPONENT
    return Plan(spacing_mm, mvox, levels, counts, dense, False, seconds, memory)


def _steps_plan(
    card: Card,
    network: Sequence[float],
    settings: Settings,
    shape: Sequence[int],
    spacing: Sequence[float],
    wanted_mm: float,
) -> Plan:
    """Of a network that predicts a velocity for every time step: it has a search of its own."""
    counts = velocities.counts_of(settings)
    alone = settings.with_changes(iterations=counts, dense_iterations=0, levels_mm=None)
    plan = _network_plan(card, network, alone, shape, spacing, wanted_mm)
    dim = dim_of(shape)
    seconds = velocities.search_seconds(card, settings, max(network), plan.spacing_mm, plan.mvox, dim)
    voxels = plan.mvox * 1e6 * (plan.spacing_mm / max(network)) ** dim
    searched_mb = velocities.search_mb(card, settings, max(network), voxels, dim)
    memory_mb = max(plan.network_mb, searched_mb)
    return replace(plan, counts=(), search_seconds=seconds, network_mb=memory_mb)


def _refine_seconds(plan: Plan, mind: bool, dim: int) -> float:
    """One core: iterations times voxels of their level, times what one of them costs."""
    plain = MIND_ITERATION_SECONDS_PER_MVOX if mind else ITERATION_SECONDS_PER_MVOX
    fine = plain if mind else FINE_ITERATION_SECONDS_PER_MVOX
    total = plain * plan.mvox * plan.dense
    finest = min(plan.levels_mm)
    for level_mm, count in zip(plan.levels_mm, plan.counts, strict=False):
        cost = fine if level_mm == finest else plain
        total += cost * count * plan.mvox * (plan.spacing_mm / level_mm) ** dim
    return total + (SEARCH_SECONDS_PER_MVOX * plan.mvox if plan.large else 0.0)


def _dense_iterations(settings: Settings) -> int:
    if settings.dense_iterations is not None:
        return settings.dense_iterations
    return PRESETS[settings.preset].dense_iterations[settings.effort] if settings.iterations is None else 0


def _similarity(settings: Settings) -> str:
    return settings.similarity or PRESETS[settings.preset].similarity


def working_spacing_mm_of(shape: Sequence[int], spacing: Sequence[float], settings: Settings) -> float:
    """Finest voxel size worked on: the user's, or the preset's unless that leaves too few voxels."""
    if settings.working_spacing_mm is not None:
        wanted = settings.working_spacing_mm
    else:
        longest = max(n * s for n, s in zip(shape, spacing, strict=True))
        wanted = min(PRESETS[settings.preset].working_spacing_mm, longest / FEWEST_VOXELS)
    return max(wanted, min(_real(shape, spacing)))


def _real(shape: Sequence[int], spacing: Sequence[float]) -> list[float]:
    """Spacing of the axes that have more than one voxel."""
    found = [s for n, s in zip(shape, spacing, strict=True) if n > 1]
    return found or [1.0]


def dim_of(shape: Sequence[int]) -> int:
    return max(1, sum(n > 1 for n in shape))


def transform_mb_of(
    shape: Sequence[int], spacing: Sequence[float], settings: Settings, storage: str
) -> float:
    """One transform node's field on the fixed image's grid and the widest ring around it, MB of memory."""
    step = 2 if storage == "half" else 1
    ring_mm = WIDEST_RING_MM if settings.taper_mm is None else settings.taper_mm
    return (
        FIELD_BYTES
        * math.prod(_nodes(n, s * step, step, ring_mm) for n, s in zip(shape, spacing, strict=True))
        / 1e6
    )


def large_search_mb(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """What the search for large displacements takes over this field of view."""
    found = 0.0
    for grid_mm, reach_mm in SEARCH_STAGES:
        points, choices = 1, 1
        for extent in (n * s for n, s in zip(shape, spacing, strict=True) if n > 1):
            count = max(2, round(extent / grid_mm))
            points *= count
            choices *= 2 * min(max(1, math.ceil(reach_mm * count / extent - 0.25)), count - 1) + 1
        found = max(found, points * (SEARCH_BYTES[0] + SEARCH_BYTES[1] * choices) / 1e6)
    return found


def _nodes(voxels: int, step_mm: float, step: int, ring_mm: float) -> int:
    """Along one axis; of a single slice there is no ring."""
    return -(-voxels // step) + (2 * math.ceil(ring_mm / step_mm) + 2 if voxels > 1 else 0)


def sentence_of(
    seconds: float,
    memory: float,
    scene_mb: float,
    cores: int,
    unknown: Sequence[str],
    what: str = "transforms",
) -> str:
    """unknown: what the time says nothing about.  scene_mb: of what the run leaves in the scene."""
    on = f"{cores} CPU core" + ("" if cores == 1 else "s")
    time = f"About {_duration(seconds)} on {on}"
    if unknown:
        time += f" ({'; '.join(unknown)})"
    most = "at most " if scene_mb >= 1 else ""
    field = f" and {most}{_size(scene_mb)} for the {what} in the scene" if scene_mb else ""
    return f"{time}; {_size(memory)} of memory{field} (estimates)."


def _duration(seconds: float) -> str:
    """A length of time with no more digits than an estimate deserves."""
    if seconds < 60:
        return f"{max(1, round(seconds)):d} s" if seconds < 20 else f"{round(seconds / 5) * 5:d} s"
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"


def _size(megabytes: float) -> str:
    if megabytes >= 1000:
        return f"{megabytes / 1000:.1f} GB"
    return f"{megabytes:.0f} MB" if megabytes >= 1 else "less than 1 MB"
