"""The estimate before a run, against what was measured and against a run done here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from DiffeoRegLib.catalog import CARDS, Card, Measured
from DiffeoRegLib.methods.discrete import search_bytes
from DiffeoRegLib.settings import EFFORTS, PRESETS, Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegPanel import estimate as room
from DiffeoRegPanel import estimate_momentum as momentum
from DiffeoRegPanel import estimate_velocities as velocities
from DiffeoRegPanel.estimate import Estimate, estimate

SPACING = (1.0, 1.0, 1.0)
BRAIN = (156, 206, 166)
PAIR = (34, 52, 35)  # the shipped one


def guess(
    n: int | tuple[int, ...], cores: int, effort: str, preset: str = "general", method: str = "svf"
) -> Estimate:
    shape = (n, n, n) if isinstance(n, int) else n
    settings = Settings(method=method, effort=effort, preset=preset)
    return estimate(CARDS[method], settings, shape, SPACING[: len(shape)], shape, cores=cores)


MEASURED = [
    # voxels, cores, effort, preset, method, seconds of register(), peak MB of the process
    (48, 1, "fast", "general", "svf", 3.95, 402),
    (96, 1, "fast", "general", "svf", 6.1, 522),
    (96, 1, "balanced", "general", "svf", 7.03, 558),
    (96, 1, "accurate", "general", "svf", 11.13, 604),
    (96, 1, "fast", "multimodal", "svf", 5.77, 514),
    (96, 1, "fast", "lung-ct", "svf", 8.99, 515),
    (96, 1, "balanced", "abdomen", "svf", 7.69, 514),
    (96, 1, "fast", "general", "affine", 3.77, 464),
    (BRAIN, 2, "balanced", "general", "svf", 18.0, 2150),  # Resources/docs/results.md, with our affine
    (BRAIN, 2, "fast", "general", "svf", 9.5, 950),
    (PAIR, 1, "fast", "general", "vsvf", 9.5, 565),
    (PAIR, 1, "balanced", "general", "vsvf", 16.4, 566),
    (PAIR, 1, "fast", "general", "lddmm", 22.0, 638),
    (PAIR, 1, "balanced", "general", "lddmm", 46.2, 656),
    (PAIR, 1, "fast", "general", "rdmm", 52.0, 1078),
]


@pytest.mark.parametrize(("n", "cores", "effort", "preset", "method", "seconds", "megabytes"), MEASURED)
def test_measured_runs_are_within_a_factor_of_two(
    n: int, cores: int, effort: str, preset: str, method: str, seconds: float, megabytes: float
) -> None:
    found = guess(n, cores, effort, preset, method)
    assert found.seconds is not None
    assert seconds / 2 < found.seconds < seconds * 2
    assert megabytes / 2 < found.memory_mb < megabytes * 2


NETWORK = {"spacing_mm": (2.0,) * 3, "halfway": True}
NEEDED = Measured(seconds=8.0, memory_mb=2400.0, voxels=1_000_000, cores=4, machine="a test")


def network_guess(effort: str = "fast", *, side: int = 200, measured: Measured | None = NEEDED,
                  **changes: Any) -> Estimate:  # fmt: skip
    card = Card("net", "Net", "Use.", "Paper.", measured=measured, **NETWORK)
    settings = Settings(method="net", effort=effort, init="identity", **changes)
    return estimate(card, settings, (side,) * 3, SPACING, (side,) * 3, cores=1)


def test_a_network_takes_what_was_measured_by_its_voxels() -> None:
    """200^3 voxels of 1 mm are 100^3 of the network: as many as were measured; one core is half as fast."""
    whole, none = network_guess(), network_guess(measured=replace(NEEDED, seconds=1e-9))
    assert whole.cpu_seconds - none.cpu_seconds == pytest.approx(16.0)
    assert whole.memory_mb == pytest.approx(2400 + 4 * 16)  # and 4 MB for each million voxels of the images
    eighth = network_guess(side=100)
    without = network_guess(side=100, measured=replace(NEEDED, seconds=1e-9))
    assert eighth.cpu_seconds - without.cpu_seconds == pytest.approx(2.0)


def test_a_network_is_refined_according_to_the_effort() -> None:
    seconds = [network_guess(effort).cpu_seconds for effort in EFFORTS]
    assert seconds == sorted(seconds)
    assert seconds[1] > seconds[0] + 5
    assert network_guess("balanced", iterations=(0,)).cpu_seconds == pytest.approx(seconds[0])
    assert network_guess("fast", iterations=(15, 25, 0), dense_iterations=10).cpu_seconds == pytest.approx(
        seconds[1]
    )


def test_a_network_that_was_not_measured_here_is_not_counted() -> None:
    for measured in (None, replace(NEEDED, cores=0)):
        found = network_guess(measured=measured)
        assert "without the network, which was not measured" in found.sentence
        assert found.cpu_seconds < network_guess().cpu_seconds
    assert "not measured" not in network_guess().sentence
    own = estimate(CARDS["sitreg"], Settings(method="sitreg"), (96,) * 3, SPACING, (96,) * 3)
    assert "without the network" in own.sentence


def test_a_metamorphosis_takes_about_twice_the_iterations_of_svf() -> None:
    """Measured on 80 x 80 x 80, balanced, one core: refine 18.2 s and 36.9 s."""
    svf, other = (guess(160, 1, "balanced", method=name) for name in ("svf", "metamorphosis"))
    assert 1.3 * svf.cpu_seconds < other.cpu_seconds < 2.2 * svf.cpu_seconds
    assert other.memory_mb == svf.memory_mb


def test_a_trained_network_for_lesions_is_refined_at_the_price_of_a_metamorphosis() -> None:
    needed = Measured(seconds=2.0, memory_mb=1400.0, voxels=80**3, cores=1, machine="one core")
    plain = replace(CARDS["sitreg"], spacing_mm=(2.0,) * 3, measured=needed)
    lesions = replace(plain, appearance_change=True)
    for effort, least, most in (("fast", 1.0, 1.0), ("balanced", 1.2, 2.2)):
        one, other = (
            estimate(card, Settings(effort=effort), (160,) * 3, SPACING, (160,) * 3, cores=1)
            for card in (plain, lesions)
        )
        assert least * one.cpu_seconds <= other.cpu_seconds <= most * one.cpu_seconds
        assert "not measured" not in other.sentence
    flat = replace(lesions, spacing_mm=(1.0, 1.0), measured=replace(needed, voxels=128**2, memory_mb=500.0))
    found = estimate(flat, Settings(effort="fast"), (128, 128, 1), SPACING, (128, 128, 1), cores=1)
    assert found.cpu_seconds == pytest.approx(2.0, abs=4.0)
    assert found.memory_mb < 700


def test_the_iterations_assumed_are_the_method_s() -> None:
    from DiffeoRegLib.methods import trained

    assert room.NETWORK_ITERATIONS == trained.ITERATIONS
    assert room.NETWORK_DENSE_ITERATIONS == trained.DENSE_ITERATIONS


VARYING = {"time_varying": True, "trained_steps": 8, "spacing_mm": (2.0,) * 3}


def steps_guess(effort: str = "balanced", *, measured: Measured | None = NEEDED, own: bool = False,
                **changes: Any) -> Estimate:  # fmt: skip
    card = Card("steps", "Steps", "Use.", "Paper.", measured=measured, **VARYING)
    settings = Settings(method="steps", effort=effort, init="identity", **changes)
    card = CARDS["transmorph-tvf"] if own else card
    return estimate(card, settings, (200,) * 3, SPACING, (200,) * 3, cores=1)


def test_a_network_with_time_steps_is_refined_by_a_search_of_its_own() -> None:
    seconds = [steps_guess(effort).cpu_seconds for effort in EFFORTS]
    assert seconds == sorted(seconds)
    assert seconds[0] == pytest.approx(network_guess("fast").cpu_seconds)
    assert seconds[1] > seconds[0] + 5
    assert steps_guess(iterations=(0,)).cpu_seconds == pytest.approx(seconds[0])
    few, many = (steps_guess(steps=n).cpu_seconds - seconds[0] for n in (8, 64))
    assert few == pytest.approx(seconds[1] - seconds[0])
    assert 2 * few < many < 8 * few
    assert steps_guess(levels_mm=(4.0, 2.0, 1.0), iterations=(0, 0, 30)).cpu_seconds > seconds[1]
    assert "not measured" not in steps_guess().sentence
    for unknown in (steps_guess(measured=None), steps_guess(own=True)):
        assert "without the network, which was not measured" in unknown.sentence
        assert unknown.cpu_seconds > 5


def test_the_search_assumed_is_the_method_s() -> None:
    from DiffeoRegLib.methods import velocity_search

    assert velocities.ITERATIONS == velocity_search.ITERATIONS
    assert velocities.levels_of(Settings(effort="accurate"), 2.0, 1.0) == (4.0, 2.0, 1.0)
    card, voxels = CARDS["transmorph-tvf"], 500_000
    for settings in (Settings(effort="accurate"), Settings(iterations=(10, 20))):
        needed = velocity_search.search_bytes(settings, 2.0, velocities.STEPS, 3, voxels)
        assert velocities.search_mb(card, settings, 2.0, voxels, 3) == pytest.approx(needed / 1e6)
    assert velocities.search_mb(card, Settings(effort="fast"), 2.0, voxels, 3) == 0


def test_the_memory_of_256_cubed_is_the_measured_one() -> None:
    assert guess(256, 1, "balanced", "brain-mr").memory_mb == pytest.approx(4460, rel=0.15)


def test_a_run_done_now_takes_the_memory_estimated(samples: Path) -> None:
    """The shipped pair, `fast`, one thread."""
    code = """if True:
        import json
        import torch; torch.set_num_threads(1)
        from pathlib import Path
        from DiffeoRegLib.pipeline import register
        from DiffeoRegLib.settings import Settings
        from DiffeoRegLib.volumes.files import read_volume
        import sys
        folder = Path(sys.argv[1]) / "hippocampus" / "images"
        fixed, moving = (read_volume(folder / f"hippocampus_{n}.nii.gz") for n in ("006", "138"))
        report = register(fixed, moving, Settings(effort="fast")).report
        print(json.dumps([report["peak_memory_mb"], fixed.grid.shape]))
        """
    done = subprocess.run(
        [sys.executable, "-c", code, str(samples)], capture_output=True, check=True, encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=samples.parents[1],
    )  # fmt: skip
    megabytes, shape = json.loads(done.stdout)
    found = estimate(CARDS["svf"], Settings(effort="fast"), shape, SPACING, shape, cores=1)
    assert megabytes / 2 < found.memory_mb < megabytes * 2


KINDS = ("vsvf", "lddmm", "rdmm", "rdmm-regions")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_assumed_of_the_methods_of_kernels_is_theirs(preset: str, name: str) -> None:
    from DiffeoRegLib.methods.options import options_from

    settings = Settings(method=name, preset=preset)
    own, assumed = options_from(settings, name), momentum.recipe_of(CARDS[name], settings)  # type: ignore[arg-type]
    assert (assumed.narrowest, assumed.unit) == (min(own.kernels.sigmas), own.kernels.units)
    assert assumed.kernels == len(own.kernels.sigmas)
    for effort, counts in own.iterations.items():  # a guess need not follow every change of a number
        guessed = assumed.iterations[effort]
        assert all(a <= 1.5 * b and b <= 1.5 * a for a, b in zip(guessed, counts, strict=True)), effort
    assert assumed.coarse_maps == own.coarse_maps


@pytest.mark.parametrize("name", KINDS)
def test_map_grid_and_memory_are_the_engine_s(name: str) -> None:
    import numpy as np

    from DiffeoRegLib.methods.map_grid import map_grid
    from DiffeoRegLib.methods.memory import memory_of
    from DiffeoRegLib.methods.options import options_from
    from DiffeoRegLib.space.grid import Grid

    shape, spacing = (80, 96, 150), (2.0, 1.5, 1.0)
    working = Grid(shape, np.diag([*spacing, 1.0]))
    for settings in (
        Settings(method=name),
        Settings(method=name, kernel_sigmas=(9.0, 20.0), kernel_units="mm"),
    ):
        recipe = momentum.recipe_of(CARDS[name], settings)
        place = map_grid(working, options_from(settings, name).kernels)  # type: ignore[arg-type]
        strides = momentum.strides_of(recipe, shape, spacing)
        assert place.grid.shape == tuple(-(-n // s) for n, s in zip(shape, strides, strict=True))
        needed = memory_of(settings)
        assert needed is not None
        found = momentum.need_of(CARDS[name], settings, shape, spacing).memory_mb + room.BASE_MB
        assert needed(working) / 1.3e6 < found < needed(working) * 1.3 / 1e6


def test_methods_of_kernels_take_longer_the_more_they_do() -> None:
    times = [guess(64, 1, "balanced", method=name).cpu_seconds for name in ("vsvf", "lddmm", "rdmm")]
    assert times == sorted(times)
    settings = {"method": "lddmm", "init": "identity"}
    few, many = (
        estimate(CARDS["lddmm"], Settings(steps=n, **settings), (64,) * 3, SPACING, (64,) * 3, cores=1)
        for n in (5, 20)
    )
    assert many.cpu_seconds > 2 * few.cpu_seconds
    assert many.memory_mb > few.memory_mb
    assert guess(64, 1, "fast", method="lddmm").transform_mb == guess(64, 1, "fast").transform_mb
    flat = estimate(CARDS["lddmm"], Settings(method="lddmm"), (1, 128, 128), SPACING, (1, 128, 128), cores=1)
    assert 0 < flat.cpu_seconds < 60


def test_more_work_is_estimated_to_take_longer() -> None:
    times = [guess(96, 1, effort).cpu_seconds for effort in EFFORTS]
    assert times == sorted(times)
    assert guess(128, 1, "fast").cpu_seconds > guess(96, 1, "fast").cpu_seconds
    assert guess(96, 4, "fast").cpu_seconds < guess(96, 1, "fast").cpu_seconds
    assert guess(96, 1, "fast", method="affine").cpu_seconds < guess(96, 1, "fast").cpu_seconds
    assert guess(96, 1, "fast", method="affine").memory_mb < guess(96, 1, "fast").memory_mb


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(64, 64), (1, 128, 128), (40, 60, 80), (512, 512, 300)])
def test_every_preset_and_size_has_an_estimate(preset: str, shape: tuple[int, ...]) -> None:
    for settings in (Settings(preset=preset), Settings(preset=preset, iterations=(5,), levels_mm=(3.0,))):
        found = estimate(CARDS["svf"], settings, shape, (0.8, 0.7, 2.5)[: len(shape)], shape, cores=2)
        assert 0 < found.cpu_seconds < 3600
        assert 400 < found.memory_mb < 100_000
        assert "estimate" in found.sentence
        assert "2 CPU cores" in found.sentence


@pytest.mark.parametrize(("shape", "spacing"), [((60, 70, 80), (2.0, 1.5, 4.0)), ((90, 40, 30), (1.0,) * 3)])
def test_the_search_for_large_displacements_is_as_large_as_the_engine_says(
    shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    assert room.large_search_mb(shape, spacing) == pytest.approx(search_bytes(grid, Settings()) / 1e6)


def test_a_large_fixed_image_takes_memory_on_any_working_grid() -> None:
    settings = Settings(working_spacing_mm=8.0, effort="fast")
    shape = (300, 512, 512)
    assert estimate(CARDS["svf"], settings, shape, SPACING, shape).memory_mb > 24 * math.prod(shape) / 1e6


def test_an_initial_transform_spares_the_alignment() -> None:
    arguments = (CARDS["svf"], Settings(effort="fast"), (96,) * 3, SPACING, (96,) * 3)
    given = estimate(*arguments, cores=1, has_initial=True)
    assert given.cpu_seconds < estimate(*arguments, cores=1).cpu_seconds - 2
    assert estimate(*arguments, cores=1, has_initial=True).memory_mb == given.memory_mb


def test_the_transform_s_size_is_that_of_its_grid_and_of_the_widest_ring() -> None:
    arguments = (CARDS["svf"], Settings(taper_mm=0.0), (256,) * 3, SPACING, (256,) * 3)
    assert estimate(*arguments, want_inverse=False).transform_mb == pytest.approx(12e-6 * 130**3)
    full = estimate(*arguments, want_inverse=False, storage="full").transform_mb
    assert full == pytest.approx(12e-6 * 258**3)
    assert estimate(*arguments).transform_mb == pytest.approx(24e-6 * 130**3)
    wide = estimate(arguments[0], Settings(), *arguments[2:]).transform_mb
    assert wide == pytest.approx(24e-6 * 160**3)
    assert "at most 98 MB for the transforms" in estimate(arguments[0], Settings(), *arguments[2:]).sentence
    flat = estimate(CARDS["svf"], Settings(), (1, 128, 128), SPACING, (1, 128, 128), want_inverse=False)
    assert flat.transform_mb == pytest.approx(12e-6 * 96**2)
    affine = estimate(CARDS["affine"], *arguments[1:])
    assert affine.transform_mb == 0
    assert "transforms" not in affine.sentence


def test_for_a_graphics_processor_no_number_is_made_up() -> None:
    arguments = (CARDS["svf"], Settings(), (96,) * 3, SPACING, (96,) * 3)
    found = estimate(*arguments, "cuda:0", cores=2)
    assert found.seconds is None
    assert "not measured" in found.sentence
    assert "not measured" not in estimate(*arguments, "cpu", cores=2).sentence


def test_threads_and_memory_limit_of_the_settings_count() -> None:
    shape = (256,) * 3
    found = estimate(CARDS["svf"], Settings(threads=1, memory_limit_gb=2), shape, SPACING, shape, cores=8)
    assert "1 CPU core;" in found.sentence
    assert found.memory_mb == 2000


def test_levels_that_do_not_match_are_estimated_too() -> None:
    """The run itself refuses them in words; the panel still has to show something while they are typed."""
    settings = Settings(levels_mm=(4.0, 2.0, 1.0))
    assert estimate(CARDS["svf"], settings, (64,) * 3, SPACING, (64,) * 3, cores=1).cpu_seconds > 0
