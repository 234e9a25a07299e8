"""How long a run will take and what it will need: a guess before Apply, from numbers that were measured.

The constants are fitted to Resources/docs/results.md and to runs on cubes of 48 to 96 voxels, all on one
processor type (AMD EPYC, one and two cores). They hold within a factor of two there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from DiffeoRegLib.catalog import Card
from DiffeoRegLib.settings import PRESETS, Settings

ALIGN_SECONDS, ALIGN_SECONDS_PER_MVOX = 2.9, 0.3  # multi-start affine: nearly the same for every size
RIGID_SHARE = 0.4  # of that, for rigid: fewer parameters, the same starts
PREPARE_SECONDS_PER_MVOX = 0.09
ITERATION_SECONDS_PER_MVOX = 0.32  # a velocity for every voxel
FINE_ITERATION_SECONDS_PER_MVOX = 0.055  # images voxel by voxel, velocity on every second
MIND_ITERATION_SECONDS_PER_MVOX = 0.40
SEARCH_SECONDS_PER_MVOX = 0.40  # the search for large displacements
INTEGRATE_SECONDS_PER_MVOX = {True: 1.0, False: 0.5}  # with and without dense iterations
RESAMPLE_SECONDS_PER_MVOX = 0.1
MEASURE_SECONDS, MEASURE_SECONDS_PER_MVOX, MOST_MEASURED_MVOX = 0.1, 0.75, 3.0
CORES_EXPONENT = 0.5  # two cores are 1.4 times as fast as one

BASE_MB = 400.0  # interpreter and libraries
IMAGES_MB_PER_MVOX = 4.0
WORKING_MB_PER_MVOX = {True: 240.0, False: 122.0}  # with and without dense iterations
MIND_MB_PER_MVOX = 96.0  # twelve feature channels of both images
AFFINE_MB_PER_MVOX = 70.0
FEWEST_VOXELS = 96  # a preset's voxel size shrinks so that the longest axis keeps these
FIELD_BYTES = 3 * 4  # three float32 components


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
    if card.deformable:
        spacing_mm = _working_spacing_mm(fixed_shape, fixed_spacing, settings)
        working_mvox = fixed_mvox / math.prod(
            max(1.0, spacing_mm / s) for s in _real(fixed_shape, fixed_spacing)
        )
        dense = _dense_iterations(settings) > 0
        seconds += (
            _refine_seconds(settings, working_mvox, _dim(fixed_shape), spacing_mm)
            + PREPARE_SECONDS_PER_MVOX * (fixed_mvox + moving_mvox)
            + INTEGRATE_SECONDS_PER_MVOX[dense] * working_mvox
        ) / speed
        per_mvox = WORKING_MB_PER_MVOX[dense] + (MIND_MB_PER_MVOX if _similarity(settings) == "mind" else 0)
        memory += per_mvox * working_mvox
        transform_mb = _transform_mb(fixed_shape, storage) * (2 if want_inverse else 1)
    else:
        memory += AFFINE_MB_PER_MVOX * min(fixed_mvox, MOST_MEASURED_MVOX)
    if settings.memory_limit_gb:
        memory = min(memory, 1000 * settings.memory_limit_gb)
    measured = device.partition(":")[0] in ("cpu", "auto")
    sentence = _sentence(seconds, memory, transform_mb, cores, measured)
    return Estimate(seconds if measured else None, seconds, memory, transform_mb, sentence)


def _align_seconds(settings: Settings, mvox: float, has_initial: bool) -> float:
    if settings.init in ("identity", "geometry", "mass") or (settings.init == "auto" and has_initial):
        return 0.1
    share = RIGID_SHARE if settings.init == "rigid" else 1.0
    return share * (ALIGN_SECONDS + ALIGN_SECONDS_PER_MVOX * mvox)


def _measure_seconds(mvox: float) -> float:
    return MEASURE_SECONDS + MEASURE_SECONDS_PER_MVOX * min(mvox, MOST_MEASURED_MVOX)


def _refine_seconds(settings: Settings, mvox: float, dim: int, spacing_mm: float) -> float:
    """One core: iterations times voxels of their level, times what one of them costs."""
    preset = PRESETS[settings.preset]
    levels = settings.levels_mm or preset.levels_mm
    counts = settings.iterations or preset.iterations[settings.effort]
    scale = 1.0
    if settings.levels_mm is None and spacing_mm < 0.7 * min(levels):
        scale = spacing_mm / min(levels)  # small animals: all levels shrink together
    mind = _similarity(settings) == "mind"
    plain = MIND_ITERATION_SECONDS_PER_MVOX if mind else ITERATION_SECONDS_PER_MVOX
    fine = plain if mind else FINE_ITERATION_SECONDS_PER_MVOX
    finest = max(min(levels) * scale, spacing_mm)
    total = plain * mvox * _dense_iterations(settings)
    for level, count in zip(levels[: len(counts)], counts[: len(levels)], strict=True):
        level_mm = max(level * scale, spacing_mm)
        cost = fine if level_mm == finest else plain
        total += cost * count * mvox * (spacing_mm / level_mm) ** dim
    large = preset.large_displacement if settings.large_displacement is None else settings.large_displacement
    return total + (SEARCH_SECONDS_PER_MVOX * mvox if large else 0.0)


def _dense_iterations(settings: Settings) -> int:
    if settings.dense_iterations is not None:
        return settings.dense_iterations
    return PRESETS[settings.preset].dense_iterations[settings.effort] if settings.iterations is None else 0


def _similarity(settings: Settings) -> str:
    return settings.similarity or PRESETS[settings.preset].similarity


def _working_spacing_mm(shape: Sequence[int], spacing: Sequence[float], settings: Settings) -> float:
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


def _dim(shape: Sequence[int]) -> int:
    return max(1, sum(n > 1 for n in shape))


def _transform_mb(shape: Sequence[int], storage: str) -> float:
    """One transform node's field on the fixed image's grid, MB of memory."""
    step = 2 if storage == "half" else 1
    return FIELD_BYTES * math.prod(-(-n // step) for n in shape) / 1e6


def _sentence(seconds: float, memory: float, transform_mb: float, cores: int, measured: bool) -> str:
    on = f"{cores} CPU core" + ("" if cores == 1 else "s")
    time = f"About {_duration(seconds)} on {on}"
    if not measured:
        time += " (graphics processors were not measured)"
    field = f" and {_size(transform_mb)} for the transforms in the scene" if transform_mb else ""
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
