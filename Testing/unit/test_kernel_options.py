"""What the methods with kernels do by themselves per preset, and what settings change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.methods.descent import descend, stages
from DiffeoRegLib.methods.geodesic import momentum_metric
from DiffeoRegLib.methods.lddmm import LDDMM, MomentumModel
from DiffeoRegLib.methods.map_grid import (
    Kernels,
    carried,
    coarser,
    map_grid,
    momentum_of_velocity,
    read_on,
)
from DiffeoRegLib.methods.options import RECIPES, Options, options_from
from DiffeoRegLib.methods.rdmm import RDMM
from DiffeoRegLib.methods.vector_momentum import VectorMomentumVelocity
from DiffeoRegLib.settings import EFFORTS, MOMENTUM_LEVELS, PRESETS, Settings
from DiffeoRegLib.space.field import change_grid, folded_percent
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.regions import PlacedRegions
from Testing.scenes import pair_of, texture
from Testing.shooting_cases import disc, lengths

KINDS = ("vsvf", "lddmm", "rdmm", "rdmm-regions")
SHAPE = (64, 64)
KERNELS = Kernels((4.0, 8.0, 16.0), (1.0, 1.0, 1.0), 8.0, "mm")
BRAIN = Settings(preset="brain-mr", iterations=(10, 6, 3))


def quiet(_):
    """No progress."""


def _pair():
    body = disc(SHAPE, (0.5, 0.5), 0.38, 0.01, torch.float32)
    moving = body * (0.3 + 0.7 * texture(SHAPE, sigma=3.0))
    ramp = torch.linspace(0, 3.14159, SHAPE[0])
    u = torch.zeros(1, 2, *SHAPE)
    u[:, 0] = 2.5 * torch.sin(ramp)[:, None] * torch.sin(ramp)[None]
    return pair_of(warp(moving, u), moving), u, warp(body, u)[:, 0] > 0.5


def _place(shape=(40, 48, 44), spacing=1.0):
    return map_grid(Grid(shape, np.diag([spacing] * 3 + [1.0])), KERNELS)


@pytest.mark.parametrize("kind", KINDS)
def test_other_presets_do_as_the_paper(kind):
    for preset in set(PRESETS) - set(RECIPES):
        options = options_from(Settings(preset=preset), kind)
        assert options.kernels.units == "box"
        assert options.kinetic == 10
        assert options.similarity is None
        assert not options.blocks
        assert not options.coarse_maps


@pytest.mark.parametrize("preset", sorted(RECIPES))
@pytest.mark.parametrize("kind", KINDS)
def test_recipes_fit_levels_and_efforts(preset, kind):
    options = options_from(Settings(preset=preset), kind)
    assert options.similarity == "lncc-squared"
    totals = [sum(options.iterations[effort]) for effort in EFFORTS]
    assert all(len(options.iterations[effort]) == len(MOMENTUM_LEVELS) for effort in EFFORTS)
    assert totals == sorted(set(totals))


def test_widths_of_the_user_replace_all_that_goes_with_them():
    mm = options_from(Settings(preset="brain-mr"))
    box = options_from(Settings(preset="brain-mr", kernel_sigmas=(0.05, 0.1)))
    assert (box.kernels.units, box.kernels.weights, box.kinetic) == ("box", (0.05, 0.1), 10)
    assert not box.kernels.widened
    assert box.blocks
    own = options_from(Settings(preset="brain-mr", kernel_sigmas=(5.0, 10.0), kernel_units="mm"))
    assert own.kinetic == mm.kinetic
    assert own.kernels.preweight_sigma == pytest.approx(5.0 * mm.kernels.preweight_sigma / 4.0)
    plain = options_from(Settings(kernel_sigmas=(5.0, 10.0), kernel_units="mm"))
    assert plain.kinetic < 0.1  # per mm^2, not per box
    assert options_from(Settings(preset="brain-mr", kinetic=0.5)).kinetic == 0.5
    with pytest.raises(UnknownNameError):
        options_from(Settings(extras={"sigma": 1.0}))
    with pytest.raises(SettingsError):
        options_from(Settings(extras={"order": 3}))


def test_kernels_that_may_be_widened_fit_every_working_grid():
    brain = options_from(Settings(preset="brain-mr")).kernels
    for spacing, narrowest in ((1.0, 4.0), (2.0, 4.0), (5.0, 7.5)):
        place = map_grid(Grid((40, 40, 30), np.diag([spacing] * 3 + [1.0])), brain)
        assert place.sigmas[0] * place.unit_mm[0] == pytest.approx(narrowest)
        assert place.sigmas[3] == pytest.approx(8 * place.sigmas[0])
        assert place.preweight_sigma == pytest.approx(2 * place.sigmas[0])
    with pytest.raises(SettingsError):
        map_grid(Grid((40, 40, 30), np.diag([5.0] * 3 + [1.0])), KERNELS)


def test_coarser_maps_keep_the_box_and_kernels_they_can_carry():
    place = _place()
    assert place.grid.spacing == (2, 2, 2)
    assert coarser(place, 2.0) is place
    assert coarser(place, 1.0) is place
    coarse = coarser(place, 4.0)
    assert coarse.grid.same_as(place.grid.coarsened([2, 2, 2]))
    widths = [sigma * coarse.unit_mm[0] for sigma in coarse.sigmas]
    assert widths == pytest.approx([6.0, 8.0, 16.0])
    assert min(coarser(place, 50.0).grid.shape) >= 8


def test_a_carried_momentum_keeps_its_velocity():
    place = _place()
    coarse = coarser(place, 4.0)
    torch.manual_seed(0)
    momentum = torch.randn(1, 3, *coarse.grid.shape, dtype=torch.float64)
    # Away from the border, where the periodic spectrum and the kernels differ.
    window = [torch.hann_window(n, periodic=False, dtype=torch.float64) for n in coarse.grid.shape]
    momentum = momentum * window[0][:, None, None] * window[1][None, :, None] * window[2]
    fine = carried(momentum, coarse, place, (1 / 3,) * 3)
    speeds = []
    for where, m in ((coarse, momentum), (place, fine)):
        metric = momentum_metric(where, (1, 1, 1), m)
        speeds.append(metric.sources(metric.start(m))[0])
    there = read_on(speeds[0], coarse, place) * 2  # voxels half as long
    assert float((speeds[1] - there).norm()) < 0.1 * float(there.norm())
    plain = momentum_metric(place, (1, 1, 1), fine)
    unchanged = plain.sources(plain.start(read_on(momentum, coarse, place)))[0]
    assert float((unchanged - there).norm()) > 0.15 * float(there.norm())


def test_the_momentum_of_a_velocity_gives_it_back():
    place = _place()
    torch.manual_seed(0)
    metric = momentum_metric(place, (1, 1, 1), torch.zeros(1, dtype=torch.float64))
    momentum = torch.randn(1, 3, *place.grid.shape, dtype=torch.float64)
    momentum[..., :4], momentum[..., -4:] = 0, 0
    velocity = metric.sources(metric.start(momentum))[0]
    unit = velocity.new_tensor(place.spacing).view(1, 3, 1, 1, 1)
    again = momentum_of_velocity(velocity * unit, place, (1 / 3,) * 3)
    difference = metric.sources(metric.start(again))[0] - velocity
    inside = (..., *[slice(6, -6)] * 3)
    # The spectrum is that of a periodic grid, the kernels end at the border.
    assert float(difference[inside].norm()) < 0.15 * float(velocity[inside].norm())


@pytest.mark.parametrize("method", [LDDMM, RDMM, VectorMomentumVelocity])
def test_the_search_starts_from_a_stationary_velocity(method):
    pair, u, inside = _pair()
    heard = []
    settings = BRAIN.with_changes(iterations=(1, 0, 0))
    options = options_from(settings)
    errors = []
    for begin in (None, (20, 20, 0, 0)):
        chosen = method(dataclasses.replace(options, begin=begin))
        heard.clear()
        motion = chosen.refine(chosen.predict(pair, settings, quiet), pair, settings, heard.append)
        if motion.geodesics:
            inverse, _ = motion.geodesics[0].maps(pair.grid)
        else:
            inverse = change_grid(motion.velocity_vox, motion.grid, pair.grid)
        errors.append(float(lengths(inverse - u)[inside].mean()))
        assert any(step.message.startswith("start: ") for step in heard) == (begin is not None)
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("method", [LDDMM, RDMM, VectorMomentumVelocity])
def test_coarse_maps_and_blocks_find_the_motion(method):
    pair, u, inside = _pair()
    motion = method().refine(method().predict(pair, BRAIN, quiet), pair, BRAIN, quiet)
    if motion.geodesics:
        (found,) = motion.geodesics
        assert found.place.grid.spacing == (2, 2)
        inverse, _ = found.maps(pair.grid)
    else:
        inverse = change_grid(motion.velocity_vox, motion.grid, pair.grid)
    errors = [float(lengths(field - u)[inside].mean()) for field in (0 * u, inverse)]
    assert errors[0] > 1
    assert errors[1] < 0.5
    assert folded_percent(inverse) == 0


def test_regions_follow_to_coarse_maps():
    pair, u, inside = _pair()
    labels = torch.zeros(1, 1, *SHAPE, dtype=torch.int32)
    labels[..., 14:50, 14:50] = 1
    regional = pair_of(pair.fixed, pair.moving, regions=PlacedRegions(labels, {1: "soft"}, "stiff"))
    settings = BRAIN.with_changes(kernel_sigmas=(4.0, 8.0, 16.0, 32.0), kernel_units="mm")
    (found,) = RDMM().refine(RDMM().predict(regional, settings, quiet), regional, settings, quiet).geodesics
    inverse, _ = found.maps(pair.grid)
    assert float(lengths(inverse - u)[inside].mean()) < 0.5
    h = found.tensors[1].square()
    assert float(h[0, 0, 16, 16]) == pytest.approx(0.2, abs=0.01)
    assert float(h[0, 0, 2, 2]) == pytest.approx(0.0, abs=0.01)


def test_a_start_that_moves_stays_on_its_own_grid():
    pair, _, _ = _pair()
    options = options_from(BRAIN)
    place = map_grid(pair.grid, options.kernels)
    start = 1e-4 * torch.randn(1, 2, *place.grid.shape)
    asked = []

    def on(coarse):
        asked.append(coarse)
        return MomentumModel(momentum_metric(coarse, options.kernels.weights, start), "rk4")

    for tensors, expected in (([start], 0), ([0 * start], 1)):
        asked.clear()
        found = descend(on(place), tensors, place, pair, options, BRAIN.with_changes(iterations=(2, 1, 1)),
                        quiet, on=on)  # fmt: skip
        assert len(asked) - 1 == expected
        assert found.tensors[0].shape == start.shape


def test_only_the_finest_level_has_windows_of_larger_blocks():
    pair, _, _ = _pair()
    assert [stage.block for stage in stages(BRAIN, pair, options_from(BRAIN))] == [1, 1, 2]
    assert [stage.block for stage in stages(Settings(), pair, Options())] == [0, 0, 0]
