"""What the registration of a group will take: a guess before Apply, from numbers that were measured.

The constants are fitted to CPU seconds of groups of 2 to 20 images of 32 to 96 voxels along an axis, on one
core of an AMD EPYC; they hold within a factor of two there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence

from DiffeoRegLib.catalog import Card, card
from DiffeoRegLib.exchange import Image
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegPanel.estimate import (
    ALIGN_SECONDS,
    ALIGN_SECONDS_PER_MVOX,
    BASE_MB,
    CORES_EXPONENT,
    RIGID_SHARE,
    Estimate,
    Plan,
    dim_of,
    plan_of,
    sentence_of,
    transform_mb_of,
)

# As the engine has them: methods/group_memory.py, group_search.py, group_start.py and group_uncertainty.py,
# losses/group_forces.py, groupwise.py.
FRAME_BYTES, SHARED_BYTES, VIEW_BYTES = 24, 120, 8
BY_PRESET, DEFAULT_SIMILARITY = ("brain-mr", "lung-ct", "abdomen"), "nmi"
ROUNDS = 2
SEARCH_WIDTHS, STEPS_PER_WIDTH, MOST_SAMPLED = 1.1, 1.5, 60_000
SHARES, BINS, FEWER_BINS, MANY_IMAGES = 1 << 23, 32, 16, 12

# Seconds of one core; of an iteration, for each image.
IMAGE_SECONDS, IMAGE_SECONDS_PER_MVOX = (
    0.06,
    1.1,
)  # of the common view: integrated, resampled, measured, stored
ITERATION_SECONDS = 1.2e-3
FLOW_SECONDS_PER_MVOX, READ_SECONDS_PER_MVOX = 0.114, 0.040  # of the velocity, of the image
SHARE_SECONDS = 12e-9  # of all images together
EARLY = 25
"""Iterations after which a level that is not the finest has converged, but by mutual information."""
START_SECONDS, START_SECONDS_PER_MVOX = 0.25, 1.2  # the search for large displacements, of every pair
SAMPLE_SECONDS, SAMPLE_SECONDS_PER_MVOX = 0.05, {2: 10.0, 3: 50.0}  # the uncertainty of every image


def estimate_group(
    settings: Settings, images: Sequence[Image], *, fixed: int | None = None, want_uncertainty: bool = True,
    storage: str = "half", device: str = "cpu", cores: int | None = None,
) -> Estimate:  # fmt: skip
    """What registering these images will need; a guess for the whole field of view of the common space.

    fixed: number of the image whose space is the common one, None = the middle.  device: cpu, cuda, mps.
    cores: None = of this computer.  `transform_mb` of the answer: of everything that the scene gets.
    """
    method, count = card(settings.method), len(images)
    shape, spacing = _view(images, fixed)
    plan = plan_of(method, settings.with_changes(similarity=_similarity(settings)), shape, spacing)
    cores = settings.threads or cores or os.cpu_count() or 1
    mvox = math.prod(shape) / 1e6
    seconds = count * (IMAGE_SECONDS + IMAGE_SECONDS_PER_MVOX * mvox)
    seconds += _search_seconds(settings, plan, shape, count) + (plan.network_seconds or 0.0)
    if want_uncertainty:
        sampled = _sampled_voxels(settings, plan, shape, spacing)
        seconds += count * (SAMPLE_SECONDS + SAMPLE_SECONDS_PER_MVOX[max(2, dim_of(shape))] * sampled / 1e6)
    seconds = seconds / cores**CORES_EXPONENT + _align_seconds(settings, mvox, count, fixed)
    scene_mb = count * (transform_mb_of(shape, spacing, settings, storage) + 4 * mvox)
    unknown = _unknown(method, plan, device)
    measured = device.partition(":")[0] in ("cpu", "auto")
    needed = memory_mb(settings, count, plan, mvox)
    text = sentence_of(seconds, needed, scene_mb, cores, unknown, what="results")
    sentence = f"{count} images: {text[0].lower()}{text[1:]}"
    return Estimate(seconds if measured else None, seconds, needed, scene_mb, sentence)


def memory_mb(settings: Settings, count: int, plan: Plan, mvox: float) -> float:
    """Of the worker process; mvox: of the common view, million voxels."""
    frames = count * (FRAME_BYTES * plan.mvox + VIEW_BYTES * mvox)
    needed = BASE_MB + frames + max(SHARED_BYTES * plan.mvox, plan.network_mb)
    return min(needed, 1000 * settings.memory_limit_gb) if settings.memory_limit_gb else needed


def _view(images: Sequence[Image], fixed: int | None) -> tuple[tuple[int, ...], list[float]]:
    """Shape and voxel size of the common view: of the fixed image, or of the largest field of view."""

    def spacing(image: Image) -> list[float]:
        return [math.hypot(*axis) for axis in image.world_from_voxel[:3, :3].T.tolist()]

    def extent(image: Image) -> float:
        return math.prod(n * s for n, s in zip(image.array.shape, spacing(image), strict=True))

    chosen = max(images, key=extent) if fixed is None else images[fixed]
    return tuple(chosen.array.shape), spacing(chosen)


def _similarity(settings: Settings) -> str:
    usual = PRESETS[settings.preset].similarity if settings.preset in BY_PRESET else DEFAULT_SIMILARITY
    return settings.similarity or usual


def _levels(plan: Plan, dim: int) -> Iterator[tuple[int, float, float]]:
    """Iterations of every level, and the voxels of its velocities and images, millions; finest last."""
    finest = min(plan.levels_mm)
    for level_mm, count in zip(plan.levels_mm, plan.counts, strict=False):
        image = plan.mvox / max(1, round(level_mm / plan.spacing_mm)) ** dim
        yield count, image / 2**dim if level_mm == finest else image, image
    yield plan.dense, plan.mvox, plan.mvox


def _search_seconds(settings: Settings, plan: Plan, shape: Sequence[int], count: int) -> float:
    """Of all iterations, and of the search for large displacements before them."""
    dim, nmi, seconds = dim_of(shape), _similarity(settings) == "nmi", 0.0
    for iterations, velocity, image in _levels(plan, dim):
        coarse = velocity == image < plan.mvox
        taken = min(iterations, EARLY) if coarse and not nmi else iterations
        each = ITERATION_SECONDS + FLOW_SECONDS_PER_MVOX * velocity + READ_SECONDS_PER_MVOX * image
        shares = _shares(count, 1e6 * velocity, 1e6 * image, dim) if nmi else 0.0
        seconds += taken * (count * each + SHARE_SECONDS * shares)
    if plan.large:
        seconds += (count - 1) * (START_SECONDS + START_SECONDS_PER_MVOX * plan.mvox)
    return seconds


def _shares(count: int, blocks: float, voxels: float, dim: int) -> float:
    """Kernel weights of one joint histogram: of many voxels some are enough."""
    bins = BINS if count <= MANY_IMAGES else FEWER_BINS
    most = SHARES / (count * bins)
    if voxels > most:
        few = 2 * blocks <= most and voxels > blocks
        voxels = 2 * blocks if few else blocks / max(1, min(3, round((blocks / most) ** (1 / dim)))) ** dim
    return count * bins * voxels


def _sampled_voxels(settings: Settings, plan: Plan, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Of the grid on which the uncertainty of an image is sampled, for the widest prior."""
    dim, sigma = dim_of(shape), settings.update_sigma or PRESETS[settings.preset].update_sigma
    *_, (_, velocity, image) = [level for level in _levels(plan, dim) if level[0]] or [
        (0, plan.mvox, plan.mvox)
    ]
    voxel_mm = plan.spacing_mm * (plan.mvox / velocity) ** (1 / dim)
    fine = 2 if velocity < image else 1
    step = SEARCH_WIDTHS * sigma * settings.regularity * min(plan.levels_mm) * fine / STEPS_PER_WIDTH
    found = 1e6 * velocity / max(1, int(step / voxel_mm)) ** dim
    while found > MOST_SAMPLED:
        step *= 1.1
        found = 1e6 * velocity / max(1, int(step / voxel_mm)) ** dim
    return found


def _align_seconds(settings: Settings, mvox: float, count: int, fixed: int | None) -> float:
    """Every image to one, and where none is fixed, to the mean again; hardly faster on several cores."""
    if settings.init not in ("rigid", "affine"):
        return 0.1
    share = RIGID_SHARE if settings.init == "rigid" else 1.0
    alignments = count - 1 if fixed is not None else ROUNDS * count - 1
    return alignments * share * (ALIGN_SECONDS + ALIGN_SECONDS_PER_MVOX * mvox)


def _unknown(method: Card, plan: Plan, device: str) -> list[str]:
    """What the time says nothing about."""
    found = ["without the network, which was not measured"] if plan.network_seconds is None else []
    if device.partition(":")[0] not in ("cpu", "auto"):
        found.append("graphics processors were not measured")
    return found
