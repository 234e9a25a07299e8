"""Known geodesics are found again, and images that say nothing move nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from DiffeoRegLib.methods.lddmm import LDDMM
from DiffeoRegLib.methods.map_grid import Kernels
from DiffeoRegLib.methods.options import Options
from DiffeoRegLib.methods.rdmm import RDMM
from DiffeoRegLib.methods.vector_momentum import VectorMomentumVelocity
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import folded_percent
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.regions import PlacedRegions
from Testing.scenes import pair_of, texture
from Testing.shooting_cases import bump, disc, lengths, push

D = torch.float64
SHAPE = (64, 64)
SETTINGS = Settings(iterations=(18, 8, 3))


def quiet(_):
    """No progress."""


class Truth:
    """A textured body moved by a geodesic of the regulariser that the pair's regions give."""

    def __init__(self, method, detail, momentum_at=None, regions=None, voxels=5.0):
        body = disc(SHAPE, (0.5, 0.5), 0.4, 0.01, D)
        image = body * (0.3 + 0.7 * texture(SHAPE, sigma=detail).to(D))
        pair = dataclasses.replace(pair_of(image, image), regions=regions)
        (rest,) = method.predict(pair, SETTINGS, quiet).geodesics
        place, more = rest.place.grid, rest.tensors[1:]

        def velocity(m):
            return rest.metric.sources(rest.metric.start(m, *more))[0] * place.spacing[0]

        if momentum_at is None:
            momentum = push(velocity, place.shape, (0.5, 0.45), voxels, D)
        else:
            momentum = bump(place.shape, momentum_at, 0.06, D) * torch.tensor([0.6, 1.0]).view(1, 2, 1, 1)
            momentum = momentum * (voxels / float(lengths(velocity(momentum)).max()))
        truth = dataclasses.replace(rest, tensors=(momentum, *more), steps=20)
        self.u, _ = truth.maps(pair.grid)
        self.pair = dataclasses.replace(pair, fixed=warp(image, self.u))
        self.foreground = (warp(body, self.u) > 0.5)[:, 0]

    def error(self, inverse_vox):
        return float(lengths(inverse_vox - self.u)[self.foreground].mean())


def solved(method, pair):
    """The maps that a method finds."""
    motion = method.refine(method.predict(pair, SETTINGS, quiet), pair, SETTINGS, quiet)
    return motion.geodesics[0].maps(pair.grid)


@pytest.mark.parametrize("walls", [False, True])
def test_a_geodesic_of_lddmm_is_recovered(walls):
    method = LDDMM(Options(kernels=Kernels((0.08, 0.16), (0.4, 0.6), 0.08), kinetic=1.0, walls=walls))
    truth = Truth(method, 3.5)
    inverse, forward = solved(method, truth.pair)
    assert truth.error(0 * inverse) > 1
    assert truth.error(inverse) < 0.5
    assert folded_percent(inverse) == folded_percent(forward) == 0


def test_a_geodesic_of_given_regions_is_recovered_and_lddmm_moves_more_outside_them():
    soft = (disc(SHAPE, (0.5, 0.5), 0.25, 0.001, D) > 0.5).long()
    kernels = Kernels((0.06, 0.1, 0.15, 0.4), (1.0, 1.0, 1.0, 1.0), 0.06)
    method = RDMM(Options(kernels=kernels, kinetic=0.05))
    truth = Truth(method, 5.0, (0.5, 0.47), PlacedRegions(soft, {1: "soft"}, "rigid-like"), 6.0)
    inverse, forward = solved(method, truth.pair)
    inside = soft[:, 0] == 1
    assert truth.error(0 * inverse) > 0.5
    assert truth.error(inverse) < 0.5
    assert float(lengths(inverse - truth.u)[inside].mean()) < 0.5 < float(lengths(truth.u)[inside].mean())
    assert folded_percent(inverse) == folded_percent(forward) == 0
    plain = LDDMM(Options(kernels=kernels, kinetic=0.05))
    other, _ = solved(plain, dataclasses.replace(truth.pair, regions=None))
    spills = [float(lengths(u)[~inside].mean()) for u in (inverse, other)]
    assert spills[0] < spills[1] / 3


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("method", [LDDMM, RDMM, VectorMomentumVelocity])
def test_constant_images_move_nothing(method, value):
    image = torch.full((1, 1, 40, 44), value)
    pair, settings = pair_of(image, image), Settings(iterations=(3, 3, 2))
    chosen = method(Options(kernels=Kernels((0.1, 0.2), (0.5, 0.5), 0.1)))
    motion = chosen.refine(chosen.predict(pair, settings, quiet), pair, settings, quiet)
    assert float(motion.velocity_vox.abs().max()) < 1e-6
    for geodesic in motion.geodesics:
        assert all(float(u.abs().max()) < 1e-6 for u in geodesic.maps(pair.grid))
        assert all(bool(torch.isfinite(part).all()) for part in geodesic.tensors)


def test_an_empty_image_against_one_with_content_gives_numbers():
    full = disc((40, 44), (0.5, 0.5), 0.3, 0.02, torch.float32)
    settings = Settings(iterations=(3, 3, 2))
    for images in ((0 * full, full), (full, 0 * full)):
        pair = pair_of(*images)
        chosen = LDDMM(Options(kernels=Kernels((0.1, 0.2), (0.5, 0.5), 0.1)))
        motion = chosen.refine(chosen.predict(pair, settings, quiet), pair, settings, quiet)
        inverse, _ = motion.geodesics[0].maps(pair.grid)
        assert bool(torch.isfinite(inverse).all())
        assert folded_percent(inverse) == 0
