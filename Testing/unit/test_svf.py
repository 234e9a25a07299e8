"""The stationary-velocity method: its levels, its first guess, its progress."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import Cancelled, SettingsError, UnknownNameError
from DiffeoRegLib.methods import METHODS, method_named
from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.methods.discrete import CITATION
from DiffeoRegLib.methods.svf import StationaryVelocity, plans, searches
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.pair import Pair


def grid_of(shape=(40, 40, 40), spacing=(1.0, 1.0, 1.0)):
    return Grid(shape, np.diag([*spacing, *[1.0] * (4 - len(spacing))]))


def levels(settings, grid):
    return [(p.level_mm, p.iterations) for p in plans(settings, grid)]


def pair_of(shape=(24, 26, 22)):
    images = [gaussian_smooth(torch.rand(1, 1, *shape), 2.0) for _ in range(2)]
    fixed, moving = ((v - v.amin()) / (v.amax() - v.amin()) for v in images)
    return Pair(fixed, moving, grid_of(shape), np.eye(4))


def silent(_):
    """Nobody listens."""


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("effort", ["fast", "balanced", "accurate"])
def test_presets_give_their_levels_coarse_to_fine(name, effort):
    preset = PRESETS[name]
    settings = Settings(preset=name, effort=effort, dense_iterations=0)
    found = plans(settings, grid_of(spacing=(min(preset.levels_mm),) * 3))
    assert [p.level_mm for p in found] == sorted(preset.levels_mm, reverse=True)
    assert [p.iterations for p in found] == list(preset.iterations[effort])
    assert {p.similarity for p in found} == {preset.similarity}
    assert [p.fine for p in found] == [False] * (len(found) - 1) + [preset.similarity != "mind"]
    assert found[0].window_vox == preset.window_vox
    assert (found[0].update_sigma, found[0].velocity_sigma) == (preset.update_sigma, preset.velocity_sigma)


@pytest.mark.parametrize("effort", ["fast", "balanced", "accurate"])
@pytest.mark.parametrize("name", PRESETS)
def test_dense_steps_come_last_on_the_finest_images(name, effort):
    wanted = PRESETS[name].dense_iterations[effort]
    grid = grid_of(spacing=(2.0, 2.0, 2.0))
    for given, expected in ((None, wanted), (0, 0), (7, 7)):
        settings = Settings(preset=name, effort=effort, dense_iterations=given)
        blocks = plans(settings.with_changes(dense_iterations=0), grid)
        found = plans(settings, grid)
        assert found[: len(blocks)] == blocks
        assert [(p.level_mm, p.iterations, p.fine) for p in found[len(blocks) :]] == [(2.0, expected, False)][
            : min(expected, 1)
        ]
    own = Settings(preset=name, effort=effort, levels_mm=(4.0, 2.0), iterations=(5, 5))
    assert len(plans(own, grid)) == 2
    assert len(plans(own.with_changes(dense_iterations=3), grid)) == 3


def test_settings_go_before_presets():
    settings = Settings(
        similarity="mse", levels_mm=(2.0, 6.0), iterations=(7, 9), window_vox=9.0, update_sigma=2.0,
        velocity_sigma=0.0, regularity=1.5,
    )  # fmt: skip
    found = plans(settings, grid_of(spacing=(2.0, 2.0, 2.0)))
    assert [(p.level_mm, p.iterations) for p in found] == [(6.0, 9), (2.0, 7)]
    assert {(p.similarity, p.window_vox, p.update_sigma, p.velocity_sigma) for p in found} == {
        ("mse", 9.0, 3.0, 0.0)
    }
    assert (
        plans(Settings(regularity=2.0), grid_of())[0].velocity_sigma == 2 * PRESETS["general"].velocity_sigma
    )


def test_no_level_is_finer_than_the_working_grid():
    settings = Settings(levels_mm=(8.0, 4.0, 2.0, 1.0), iterations=(10, 20, 30, 40))
    assert levels(settings, grid_of(spacing=(3.0, 5.0, 3.0))) == [(8.0, 10), (4.0, 20), (3.0, 70)]


def test_levels_of_presets_shrink_with_small_objects_but_given_ones_stay():
    mouse = grid_of(spacing=(0.25, 0.25, 0.25))
    presets = PRESETS["general"].levels_mm
    shrunk = [0.25 * level / min(presets) for level in sorted(presets, reverse=True)]
    assert [level for level, _ in levels(Settings(dense_iterations=0), mouse)] == pytest.approx(shrunk)
    given = Settings(levels_mm=(4.0, 2.0), iterations=(10, 20))
    assert levels(given, mouse) == [(4.0, 10), (2.0, 20)]


@pytest.mark.parametrize(
    "others", [{"levels_mm": (4.0, 2.0)}, {"iterations": (5,)}, {"levels_mm": (4.0,), "iterations": (5, 5)}]
)
def test_levels_and_iterations_must_match(others):
    with pytest.raises(SettingsError, match="do not match"):
        plans(Settings(**others), grid_of())


def test_the_first_guess_is_rest_on_the_coarsest_grid():
    pair = pair_of()
    motion = StationaryVelocity().predict(pair, Settings(), silent)
    assert not motion.velocity_vox.any()
    assert motion.velocity_vox.shape == (1, 3, *motion.grid.shape)
    np.testing.assert_allclose(motion.grid.center_mm, pair.grid.center_mm, atol=4.0)
    assert max(motion.grid.spacing) > 4


def test_who_searches_and_who_is_cited():
    assert [name for name in PRESETS if searches(Settings(preset=name))] == ["lung-ct", "abdomen"]
    assert searches(Settings(large_displacement=True))
    assert not searches(Settings(preset="lung-ct", large_displacement=False))
    assert StationaryVelocity().sources(Settings(large_displacement=True)) == [CITATION]
    assert StationaryVelocity().sources(Settings()) == []


def test_no_iterations_leave_the_guess_as_it_is():
    pair = pair_of()
    guess = Motion(torch.randn(1, 3, 6, 7, 6), pair.grid.coarsened((4, 4, 4)))
    settings = Settings(levels_mm=(4.0, 1.0), iterations=(0, 0))
    assert StationaryVelocity().refine(guess, pair, settings, silent) is guess


def test_progress_rises_to_the_end():
    pair, told = pair_of(), []
    settings = Settings(
        levels_mm=(4.0, 2.0, 1.0), iterations=(12, 0, 12), update_sigma=0.6, velocity_sigma=0.0
    )
    method = StationaryVelocity()
    motion = method.refine(method.predict(pair, settings, silent), pair, settings, told.append)
    fractions = [step.fraction for step in told]
    assert len(told) == 24
    assert fractions == sorted(fractions)
    assert fractions[0] > 0
    assert fractions[-1] == pytest.approx(1.0)
    assert told[0].message.startswith("4 mm, step 1 of 12: lncc-squared 0.")
    assert told[-1].message.startswith("1 mm, step 12 of 12")
    assert motion.grid.spacing == pytest.approx((2.0, 2.0, 2.0))


def test_progress_can_cancel():
    def stop(step):
        raise Cancelled(step.message)

    pair = pair_of()
    method = StationaryVelocity()
    with pytest.raises(Cancelled, match="step 1 of"):
        method.refine(method.predict(pair, Settings(), silent), pair, Settings(), stop)


def test_methods_by_name():
    assert all(isinstance(method_named(name), kind) for name, kind in METHODS.items())
    with pytest.raises(UnknownNameError, match="svf"):
        method_named("sfv")
