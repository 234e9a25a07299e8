"""LDDMM, RDMM and the stationary velocity of a momentum as methods: recovery, regions, levels, bad input."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from DiffeoRegLib.errors import Cancelled, SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.shooting import Plan, ShootingDiverged, shoot
from DiffeoRegLib.methods.descent import descend, stages
from DiffeoRegLib.methods.geodesic import Geodesic
from DiffeoRegLib.methods.lddmm import LDDMM, MomentumModel
from DiffeoRegLib.methods.map_grid import Kernels, map_grid
from DiffeoRegLib.methods.options import REGIONAL_KERNELS, Options
from DiffeoRegLib.methods.rdmm import RDMM, JointModel
from DiffeoRegLib.methods.vector_momentum import StationaryModel, VectorMomentumVelocity
from DiffeoRegLib.settings import MOMENTUM_ITERATIONS, Settings
from DiffeoRegLib.space.field import change_grid, compose, folded_percent
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.regions import PlacedRegions
from Testing.scenes import pair_of, texture
from Testing.shooting_cases import disc, lengths, push

SHAPE = (64, 64)
KERNELS = Kernels((0.08, 0.16), (0.4, 0.6), 0.08)
SETTINGS = Settings(iterations=(20, 20, 8))


def quiet(_):
    """No progress."""


def solved(method, pair, settings):
    """What a method finds."""
    return method.refine(method.predict(pair, settings, quiet), pair, settings, quiet)


def with_regions(pair, labels, stiffness, rest="rigid-like"):
    """A pair whose moving image has regions."""
    return dataclasses.replace(pair, regions=PlacedRegions(labels, stiffness, rest))


class Truth:
    """A textured body, carried by a known geodesic of `voxels` at its fastest."""

    def __init__(self, voxels=6.0):
        blank = torch.zeros(1, 1, *SHAPE)
        place = map_grid(pair_of(blank, blank).grid, KERNELS)
        metric = MomentumMetric(place.grid.shape, place.spacing, place.sigmas, KERNELS.weights)
        factor = place.grid.spacing[0]
        momentum = push(
            lambda m: metric.sources(metric.start(m))[0] * factor,
            place.grid.shape,
            (0.5, 0.45),
            voxels,
            torch.float32,
        )
        u = shoot(metric, metric.start(momentum), Plan(20))[-1]
        self.u = change_grid(u, place.grid, pair_of(blank, blank).grid)
        body = disc(SHAPE, (0.5, 0.5), 0.36, 0.01, torch.float32)
        moving = body * (0.3 + 0.7 * texture(SHAPE, sigma=4.0))
        self.pair = pair_of(warp(moving, self.u), moving)
        self.foreground = warp(body, self.u) > 0.5

    def error(self, inverse_vox):
        return float(lengths(inverse_vox - self.u)[self.foreground[:, 0]].mean())


@pytest.fixture(scope="module")
def truth():
    return Truth()


@pytest.fixture(scope="module")
def lddmm(truth):
    return solved(LDDMM(Options(kernels=KERNELS, kinetic=1.0)), truth.pair, SETTINGS).geodesics[0]


@pytest.fixture(scope="module")
def joint(truth):
    return solved(RDMM(Options(kernels=KERNELS, kinetic=1.0, common=0.1)), truth.pair, SETTINGS).geodesics[0]


@pytest.mark.parametrize("name", ["lddmm", "joint"])
def test_a_known_geodesic_is_recovered(name, truth, request):
    found = request.getfixturevalue(name)
    inverse, forward = found.maps(truth.pair.grid)
    assert truth.error(torch.zeros_like(inverse)) > 1.5
    assert truth.error(inverse) < 0.5
    assert folded_percent(inverse) == 0
    assert folded_percent(forward) == 0
    rest = lengths(compose(inverse, forward))
    assert float(rest.mean()) < 0.02
    assert float(rest.max()) < 0.3


def test_a_stationary_velocity_comes_near(truth):
    method = VectorMomentumVelocity(Options(kernels=KERNELS, kinetic=1.0))
    motion = method.refine(method.predict(truth.pair, SETTINGS, quiet), truth.pair, SETTINGS, quiet)
    inverse = change_grid(exp(motion.velocity_vox, 7), motion.grid, truth.pair.grid)
    assert truth.error(inverse) < 0.5
    assert folded_percent(inverse) == 0


def test_the_path_begins_at_rest_and_ends_at_the_maps(lddmm, truth):
    grid = truth.pair.grid
    begin, middle, end = (lddmm.maps(grid, time)[0] for time in (0.0, 0.5, 1.0))
    assert float(begin.abs().max()) == 0
    assert 0.3 < float(middle.abs().max() / end.abs().max()) < 0.7
    again = Geodesic(lddmm.metric, lddmm.place, lddmm.tensors, lddmm.steps)
    assert torch.equal(again.maps(grid)[0], end)
    # The momentum is all there is to keep: shot again, with another scheme, it leads to the same place.
    other = Geodesic(lddmm.metric, lddmm.place, lddmm.tensors, 20, "dopri5")
    assert float(lengths(other.maps(grid)[0] - end).max()) < 0.1


def test_the_energy_of_what_was_found_is_constant(joint):
    energies = joint.path.energies()
    assert max(abs(e / energies[0] - 1) for e in energies) < 1e-2
    assert energies[0] > 0


def test_optimised_preweights_have_left_their_start_and_sum_to_one(joint):
    h = joint.tensors[1]
    assert torch.allclose(h.square().sum(1), torch.ones(1, *h.shape[2:]), atol=1e-5)
    assert float((h.square()[:, 0] - 0.4).abs().max()) > 0.01
    for time in (0.0, 1.0):
        sigma = joint.sigma_mm(time)
        assert sigma.shape == (1, 1, *joint.place.grid.shape)
        assert 0.08 * 63 * 0.8 < float(sigma.min()) < float(sigma.max()) < 0.16 * 63


def test_the_range_energy_holds_preweights_back(truth):
    settings, away = Settings(iterations=(12, 0, 0)), []
    for common in (0.0, 100.0):
        method = RDMM(Options(kernels=KERNELS, kinetic=1.0, common=common))
        (found,) = solved(method, truth.pair, settings).geodesics
        away.append(float((found.tensors[1].square()[:, 0] - 0.4).abs().max()))
    assert away[1] < away[0] / 5


def test_one_kernel_for_all_has_one_width(lddmm):
    expected = math.sqrt(0.4 * 0.08**2 + 0.6 * 0.16**2) * 63
    assert torch.allclose(lddmm.sigma_mm(1.0), torch.tensor(expected), rtol=1e-5)


def _inner_motion():
    """A disc with a core that grows and shifts inside it; nothing else moves."""
    shape = (96, 96)
    ring = disc(shape, (0.5, 0.5), 0.44, 0.006, torch.float32) * 0.4
    frame = ring * texture(shape, seed=3, sigma=2.0)
    moving = frame + 0.5 * disc(shape, (0.5, 0.5), 0.10, 0.006, torch.float32)
    fixed = frame + 0.5 * disc(shape, (0.52, 0.49), 0.15, 0.006, torch.float32)
    soft = (disc(shape, (0.5, 0.5), 0.26, 0.001, torch.float32) > 0.5).long()
    return pair_of(fixed, moving), soft


def test_regions_keep_the_motion_where_it_is_allowed():
    pair, soft = _inner_motion()
    settings = Settings(iterations=(18, 8, 0), similarity="mse")
    spills, cores = [], []
    regional = with_regions(pair, soft, {1: "soft"})
    for method, given in (
        (LDDMM(Options(kinetic=0.02)), pair),
        (RDMM(Options(kernels=REGIONAL_KERNELS, kinetic=0.02)), regional),
    ):
        (found,) = solved(method, given, settings).geodesics
        inverse, forward = found.maps(pair.grid)
        moved = warp((pair.moving > 0.45).float(), inverse) > 0.5
        core = pair.fixed > 0.45
        cores.append(2 * float((moved & core).sum() / (moved.sum() + core.sum())))
        spills.append(float(lengths(forward)[soft[:, 0] == 0].mean()))
        assert folded_percent(inverse) == 0
    assert min(cores) > 0.9
    assert abs(cores[0] - cores[1]) < 0.03
    assert spills[1] < spills[0] / 3
    assert "1 with a stiffness of their own; the rest, " in found.notes[0]
    sigma = change_grid(found.sigma_mm(0.0).expand(-1, 2, -1, -1), found.place.grid, pair.grid)[:, :1]
    assert float(sigma[soft == 1].mean()) < 0.5 * float(sigma[soft == 0].mean())


def test_regions_may_be_more_than_kernels_and_need_not_cover():
    pair, soft = _inner_motion()
    labels = soft.clone()
    labels[..., :20, :20], labels[..., -20:, :20], labels[..., :20, -20:] = 7, 8, 9
    labels[..., -20:, -20:] = 11
    names = {1: "soft", 7: "normal", 8: "stiff", 9: "rigid-like", 11: (0.0, 1.0, 1.0, 0.0), 99: "soft"}
    (found,) = RDMM().predict(with_regions(pair, labels, names, "stiff"), Settings(), quiet).geodesics
    h = found.tensors[1]
    assert torch.allclose(h.square().sum(1), torch.ones(()), atol=1e-5)
    where = {
        place: h.square()[0, :, i, j]
        for place, (i, j) in {"11": (-3, -3), "rest": (2, h.shape[3] // 2)}.items()
    }
    assert torch.allclose(where["11"], torch.tensor([0.0, 0.5, 0.5, 0.0]), atol=0.02)
    assert torch.allclose(where["rest"], torch.tensor([0.0, 0.05, 0.15, 0.8]), atol=0.02)
    assert "is stiff. Nowhere on the working grid: 99." in found.notes[0]


def test_preweights_sum_to_one_on_a_coarser_map_too():
    blank = torch.zeros(1, 1, 160, 160)
    labels = torch.zeros(1, 1, 160, 160, dtype=torch.int64)
    labels[..., 40:90, 31:77] = 1
    pair = with_regions(pair_of(blank, blank), labels, {1: "soft"})
    (found,) = RDMM().predict(pair, Settings(), quiet).geodesics
    h = found.tensors[1]
    assert h.shape[2:] == (80, 80)
    assert torch.allclose(h.square().sum(1), torch.ones(()), atol=1e-6)
    assert torch.allclose(h.square()[0, :, 32, 27], torch.tensor([0.2, 0.5, 0.3, 0.0]), atol=0.01)


def test_a_long_way_takes_more_time_steps():
    discs = [disc(SHAPE, centre, 0.18, 0.02, torch.float32) for centre in ((0.6, 0.6), (0.4, 0.4))]
    pair, settings = pair_of(*discs), Settings(iterations=(40, 15, 0), similarity="mse")
    method = LDDMM(Options(kernels=Kernels((0.08, 0.2), (0.3, 0.7)), kinetic=1.0))
    start = method.predict(pair, settings, quiet)
    (found,) = method.refine(start, pair, settings, quiet).geodesics
    assert start.geodesics[0].steps == 5
    assert found.steps > 5
    inverse, _ = found.maps(pair.grid)
    moved, there = warp(discs[1], inverse) > 0.5, discs[0] > 0.5
    assert 2 * float((moved & there).sum() / (moved.sum() + there.sum())) > 0.9
    assert folded_percent(inverse) == 0


def test_bad_regions_are_refused():
    pair, soft = _inner_motion()
    with pytest.raises(UnknownNameError, match="rigid-like"):
        RDMM().predict(with_regions(pair, soft, {1: "rigid"}), Settings(), quiet)
    with pytest.raises(ShapeError):
        RDMM().predict(with_regions(pair, soft[..., :-1], {1: "soft"}), Settings(), quiet)
    for row in ((0.0, 0.0, 0.0, 0.0), (1.0, 1.0), (-1.0, 1.0, 1.0, 1.0)):
        with pytest.raises(SettingsError):
            RDMM().predict(with_regions(pair, soft, {1: row}), Settings(), quiet)
    with pytest.raises(SettingsError):  # names stand for four kernels
        RDMM(Options()).predict(with_regions(pair, soft, {1: "soft"}), Settings(), quiet)


def test_no_iterations_change_nothing(truth):
    still = Settings(iterations=(0, 0, 0))
    for method in (LDDMM(), RDMM(), VectorMomentumVelocity()):
        start = method.predict(truth.pair, still, quiet)
        found = method.refine(start, truth.pair, still, quiet)
        before, after = (m.geodesics[0].tensors if m.geodesics else (m.velocity_vox,) for m in (start, found))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True))
        assert float(after[0].abs().max()) == 0


def test_progress_rises_and_cancelling_passes_on(truth):
    heard = []
    method = LDDMM(Options(kernels=KERNELS))
    settings = Settings(iterations=(3, 2, 1))
    start = method.predict(truth.pair, settings, quiet)
    method.refine(start, truth.pair, settings, heard.append)
    fractions = [step.fraction for step in heard]
    assert len(heard) == 6
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    assert heard[0].message.startswith("4 mm, step 1 of 3: loss ")

    def stop(_):
        raise Cancelled

    with pytest.raises(Cancelled):
        method.refine(start, truth.pair, settings, stop)


def test_levels_follow_the_settings(truth):
    pair = truth.pair
    assert [(s.level_mm, s.iterations) for s in stages(Settings(), pair)] == [
        *zip((4, 2, 1), MOMENTUM_ITERATIONS["balanced"], strict=True)
    ]
    own = Settings(levels_mm=(1.0, 6.0), iterations=(2, 9))
    assert [(s.level_mm, s.iterations) for s in stages(own, pair)] == [(6.0, 9), (1.0, 2)]
    with pytest.raises(SettingsError):
        stages(Settings(levels_mm=(2.0, 1.0)), pair)


def test_regularity_makes_the_motion_smaller(truth):
    settings = Settings(iterations=(8, 0, 0))
    method = LDDMM(Options(kernels=KERNELS, kinetic=50.0))
    start = method.predict(truth.pair, settings, quiet)
    sizes = [
        method.refine(start, truth.pair, settings.with_changes(regularity=r), quiet)
        .geodesics[0]
        .path.energies()[0]
        for r in (1.0, 10.0)
    ]
    assert sizes[1] < 0.8 * sizes[0]


def test_time_steps_follow_the_motion(lddmm):
    assert lddmm.steps >= MomentumModel(lddmm.metric, "rk4").steps(lddmm.start)
    place = lddmm.place
    stationary = StationaryModel(lddmm.metric, "rk4")
    few = stationary.steps(stationary.start([torch.zeros(1, 2, *place.grid.shape)]))
    start = stationary.start([lddmm.tensors[0] * 40])
    assert stationary.steps(start) > few + 2
    with pytest.raises(ShootingDiverged):
        stationary.displacement(start, few)


@pytest.mark.parametrize("model", [MomentumModel, StationaryModel])
def test_a_momentum_that_is_no_number_is_an_error(model, lddmm, truth):
    bad = torch.full_like(lddmm.tensors[0], math.nan)
    with pytest.raises(ShootingDiverged):
        descend(
            model(lddmm.metric, "rk4"),
            [bad],
            lddmm.place,
            truth.pair,
            Options(kernels=KERNELS),
            SETTINGS,
            quiet,
        )


def test_the_pull_to_the_common_weights_gives_way_to_the_transport_energy(joint):
    model = JointModel(joint.metric, Options(kernels=KERNELS), joint.place)
    scores = torch.zeros(1, 2, *joint.place.grid.shape)
    start = model.start([joint.tensors[0], scores])
    away = 2 * 0.5 - 2 * math.sqrt(0.5) * (math.sqrt(0.4) + math.sqrt(0.6)) + 1
    assert float(model.penalty(start, 0.0)) == pytest.approx(10 * away, rel=1e-3)
    assert float(model.penalty(start, 1e6)) == pytest.approx(10 * 0.1 * away + 0.1 * 0.9 * 0.5, rel=1e-3)
    assert model.stage(0.0) == 1
    assert model.stage(1e6) == 0.1


def test_energies_are_brought_up_to_date_while_searching(truth, joint):
    seen = []

    class Watched(JointModel):
        def penalty(self, start, epoch):
            seen.append(epoch)
            return super().penalty(start, epoch)

    options = Options(kernels=KERNELS, kinetic=1.0, tolerance=0.0)
    start = [torch.zeros_like(part) for part in joint.tensors]
    model = Watched(joint.metric, options, joint.place)
    settings = Settings(iterations=(30, 0, 0))
    found = descend(model, start, joint.place, truth.pair, options, settings, quiet)
    assert found.iterations == 30
    # rho falls below 0.9 at epoch 11.1, half the iterations, and next below 0.8 after the last one.
    assert sorted(set(seen)) == [0.0, 11.5]
    assert found.evaluations == len(seen)
    assert found.gradients == 30 + 1 + 1  # the start, and the place where the energies changed


@pytest.mark.parametrize("kind", ["lddmm", "regions", "joint"])
def test_volumes_of_unequal_sides_and_spacings(kind):
    shape, spacing = (20, 34, 28), (2.0, 1.0, 1.5)
    body = disc(shape, (0.5, 0.5, 0.5), 0.34, 0.02, torch.float32) * (0.3 + 0.7 * texture(shape, sigma=3.0))
    pair = pair_of(torch.roll(body, (1, -2), (2, 3)), body, spacing)
    labels = torch.ones_like(body, dtype=torch.int64)
    options = Options(kernels=Kernels((6.0, 9.0), (0.5, 0.5), 6.0, "mm"), kinetic=3e-5)
    method = {
        "lddmm": LDDMM(options),
        "joint": RDMM(options),
        "regions": RDMM(options),
    }[kind]
    if kind == "regions":
        pair = with_regions(pair, labels, {1: (0.5, 0.5)}, (0.5, 0.5))
    (found,) = solved(method, pair, Settings(iterations=(5, 8, 12), similarity="mse")).geodesics
    inverse, forward = found.maps(pair.grid)
    assert inverse.shape == forward.shape == (1, 3, *shape)
    inside = pair.fixed[0, 0] > 0.4
    mean = [float(inverse[0, axis][inside].mean()) for axis in range(3)]
    # The smooth texture does not tell all of the way; that the images agree is the sharper measure.
    assert mean == pytest.approx([-1.0, 2.0, 0.0], abs=0.6)
    before, after = (
        (image - pair.fixed).square().mean() for image in (pair.moving, warp(pair.moving, inverse))
    )
    assert float(after) < 0.02 * float(before)
    assert folded_percent(inverse) == 0
    sigma = found.sigma_mm(1.0)
    assert sigma.shape == (1, 1, *found.place.grid.shape)
    assert float(sigma.mean()) == pytest.approx(math.sqrt(0.5 * 36 + 0.5 * 81), rel=0.05)


def test_negative_weights_are_refused():
    for name in ("kinetic", "transport", "common", "precondition", "tolerance"):
        with pytest.raises(SettingsError):
            Options(**{name: -1.0})
    with pytest.raises(UnknownNameError):
        Options(integrator="euler")
