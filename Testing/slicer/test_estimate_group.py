"""The estimate of a group, against what was measured and against the engine's own numbers."""

from __future__ import annotations

import numpy as np
import pytest

from DiffeoRegLib.exchange import Image
from DiffeoRegLib.settings import EFFORTS, PRESETS, Settings
from DiffeoRegPanel import estimate_group as ours
from DiffeoRegPanel.estimate import Estimate, plan_of
from DiffeoRegPanel.estimate_group import estimate_group


def images(count: int, shape: tuple[int, ...], spacing: float) -> list[Image]:
    return [Image(np.zeros(shape, np.uint8), np.diag([spacing] * 3 + [1.0]), "frame")] * count


def guess(count: int, shape: tuple[int, ...], spacing: float, preset: str, effort: str, uncertainty: bool,
          **more: object) -> Estimate:  # fmt: skip
    settings = Settings(preset=preset, effort=effort, threads=1, **more)
    return estimate_group(settings, images(count, shape, spacing), want_uncertainty=uncertainty)


MEASURED = [
    # images, voxels, mm, preset, effort, uncertainty, CPU seconds (worker's job: the last five), peak MB
    (2, (1, 96, 96), 2.0, "general", "fast", True, 0.8, 303),
    (4, (1, 128, 128), 2.0, "general", "balanced", True, 2.2, 401),
    (2, (48, 48, 48), 2.0, "abdomen", "fast", True, 1.8, 405),
    (4, (48, 48, 48), 2.0, "general", "fast", True, 6.2, 417),
    (2, (48, 48, 48), 2.0, "general", "balanced", True, 3.9, 417),
    (2, (64, 64, 64), 2.0, "general", "fast", True, 7.5, 544),
    (3, (48, 48, 48), 2.0, "lung-ct", "fast", True, 4.0, 418),
    (8, (40, 40, 40), 2.0, "general", "fast", True, 7.8, 388),
    (3, (64, 64, 64), 2.0, "general", "balanced", False, 7.2, 438),
    (2, (48, 48, 48), 2.0, "brain-mr", "accurate", True, 3.0, 423),
    (2, (48, 48, 48), 2.0, "general", "fast", True, 5.3, 390),
    (3, (96, 96, 96), 1.5, "abdomen", "fast", True, 10.4, 554),
    (2, (96, 96, 96), 1.0, "general", "fast", False, 4.5, 571),
    (20, (32, 32, 32), 2.0, "general", "fast", True, 10.5, 580),
    (3, (96, 96, 96), 1.0, "brain-mr", "balanced", True, 15.3, 741),
]


@pytest.mark.parametrize(
    ("count", "shape", "spacing", "preset", "effort", "uncertainty", "seconds", "megabytes"), MEASURED
)
def test_measured_runs_are_within_a_factor_of_two(
    count: int, shape: tuple[int, ...], spacing: float, preset: str, effort: str, uncertainty: bool,
    seconds: float, megabytes: float,
) -> None:  # fmt: skip
    found = guess(count, shape, spacing, preset, effort, uncertainty)
    assert found.seconds is not None
    assert seconds / 2 < found.seconds < 2 * seconds
    assert megabytes / 2 < found.memory_mb < 2 * megabytes


def test_the_numbers_are_the_engine_s() -> None:
    from DiffeoRegLib.losses import group_forces
    from DiffeoRegLib.methods import group_memory, group_search, group_start, group_uncertainty

    for name in ("FRAME_BYTES", "SHARED_BYTES", "VIEW_BYTES"):
        assert getattr(ours, name) == getattr(group_memory, name)
    for name in ("BY_PRESET", "DEFAULT_SIMILARITY"):
        assert getattr(ours, name) == getattr(group_search, name)
    for name in ("SHARES", "BINS", "FEWER_BINS", "MANY_IMAGES"):
        assert getattr(ours, name) == getattr(group_forces, name)
    for name in ("SEARCH_WIDTHS", "STEPS_PER_WIDTH"):
        assert getattr(ours, name) == getattr(group_uncertainty, name)
    assert ours.MOST_SAMPLED == group_uncertainty.MOST_VOXELS
    assert ours.ROUNDS == group_start.ROUNDS


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_measure_and_levels_are_the_engine_s(preset: str, effort: str) -> None:
    from DiffeoRegLib.methods.group_search import group_plans, similarity_of
    from DiffeoRegLib.optimise import layout
    from DiffeoRegLib.space.grid import Grid

    settings = Settings(preset=preset, effort=effort)
    assert ours._similarity(settings) == similarity_of(settings)
    shape, spacing = (96, 96, 96), PRESETS[preset].working_spacing_mm
    plan = plan_of(ours.card("svf"), settings, shape, [spacing] * 3)
    grid = Grid(shape, np.diag([spacing] * 3 + [1.0]))
    found = [level for level in ours._levels(plan, 3) if level[0]]
    wanted = group_plans(settings, grid)
    assert [level[0] for level in found] == [level.iterations for level in wanted]
    for (_, velocity, image), level in zip(found, wanted, strict=True):
        grids = layout(grid, level)
        assert 1e6 * velocity == pytest.approx(grids.grid.voxel_count, rel=0.3)
        assert 1e6 * image == pytest.approx(grids.image_grid.voxel_count, rel=0.3)


@pytest.mark.parametrize("count", [2, 3, 8, 12, 13, 30])
@pytest.mark.parametrize("side", [8, 24, 64])
def test_as_many_voxels_make_a_histogram_as_in_the_engine(count: int, side: int) -> None:
    from DiffeoRegLib.losses.group_forces import _subset

    blocks, places = side**3, 8
    bins = ours.BINS if count <= ours.MANY_IMAGES else ours.FEWER_BINS
    chosen, step = _subset(places, blocks, ours.SHARES // (count * bins), 3)
    used = len(chosen) * (-(-side // step)) ** 3
    assert ours._shares(count, blocks, places * blocks, 3) == pytest.approx(count * bins * used, rel=0.25)


def test_memory_is_what_the_engine_says_before_it_starts() -> None:
    from DiffeoRegLib.methods.group_memory import memory_of_group
    from DiffeoRegLib.space.grid import Grid
    from DiffeoRegLib.volumes.working_grid import BASE_BYTES

    shape, count, settings = (96, 100, 104), 30, Settings(preset="abdomen")
    grid = Grid(shape, np.diag([1.5] * 3 + [1.0]))
    said = memory_of_group(settings, count, grid)(grid) - BASE_BYTES
    found = estimate_group(settings, images(count, shape, 1.5)).memory_mb - ours.BASE_MB
    assert found == pytest.approx(said / 1e6, rel=0.02)
    limited = estimate_group(settings.with_changes(memory_limit_gb=0.5), images(count, shape, 1.5))
    assert limited.memory_mb == 500


def test_what_costs_more_is_said_to_cost_more() -> None:
    usual = guess(3, (48, 48, 48), 2.0, "general", "fast", True).cpu_seconds
    for more in (
        guess(6, (48, 48, 48), 2.0, "general", "fast", True),
        guess(3, (64, 64, 64), 2.0, "general", "fast", True),
        guess(3, (48, 48, 48), 2.0, "general", "accurate", True),
        guess(3, (48, 48, 48), 2.0, "general", "fast", True, init="rigid"),
    ):
        assert more.cpu_seconds > 1.2 * usual
    assert guess(3, (48, 48, 48), 2.0, "general", "fast", False).cpu_seconds < 0.8 * usual
    middle, first = (
        estimate_group(Settings(init="rigid"), images(3, (8, 8, 8), 2.0), fixed=fixed) for fixed in (None, 0)
    )
    assert middle.cpu_seconds > 2 * first.cpu_seconds


def test_the_largest_image_or_the_fixed_one_counts() -> None:
    large, small = images(1, (60, 60, 60), 2.0), images(1, (30, 30, 30), 2.0)
    settings = Settings(effort="fast", threads=1)
    middle = estimate_group(settings, large + small)
    assert estimate_group(settings, small + large).cpu_seconds == middle.cpu_seconds
    assert estimate_group(settings, large + small, fixed=1).transform_mb < 0.3 * middle.transform_mb


def test_the_sentence() -> None:
    found = guess(3, (64, 64, 64), 2.0, "general", "fast", True)
    assert found.sentence.startswith("3 images: about ")
    assert "on 1 CPU core; " in found.sentence
    assert "for the results in the scene (estimates)." in found.sentence
    gpu = estimate_group(Settings(), images(2, (8, 8, 8), 2.0), device="cuda:0")
    assert gpu.seconds is None
    assert "graphics processors were not measured" in gpu.sentence
