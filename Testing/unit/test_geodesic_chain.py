"""Chains of geodesics: order, times between, what is kept of them, and the finished map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.methods.base import Motion
from DiffeoRegLib.methods.finish import finish
from DiffeoRegLib.methods.geodesic import Geodesic, chain, finished, momentum_metric, regional_metric
from DiffeoRegLib.methods.map_grid import Kernels, map_grid
from DiffeoRegLib.methods.regulariser import sigma_volumes
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform
from Testing.scenes import texture
from Testing.shooting_cases import bump, lengths

SHAPE = (40, 44)
GRID = Grid(SHAPE, np.diag([1.5, 2.0, 1.0, 1.0]))
KERNELS = Kernels((0.12, 0.24), (0.4, 0.6), 0.12)


def geodesic(axis, regional=False, notes=()):
    """A push of the middle along an axis."""
    place = map_grid(GRID, KERNELS)
    momentum = torch.zeros(1, 2, *place.grid.shape)
    momentum[:, axis] = 0.5 * bump(place.grid.shape, (0.5, 0.5), 0.1, torch.float32)[:, 0]
    if not regional:
        metric = momentum_metric(place, KERNELS.weights, momentum)
        return Geodesic(metric, place, (momentum,), 6, notes=notes)
    shares = torch.cat([texture(place.grid.shape, sigma=5.0)] * 2, 1)
    shares[:, 1] = 1 - shares[:, 0]
    return Geodesic(
        regional_metric(place, momentum, order=4), place, (momentum, shares.sqrt()), 6, notes=notes
    )


@pytest.fixture(scope="module")
def two():
    return geodesic(0), geodesic(1, regional=True)


def test_the_last_geodesic_carries_a_fixed_point_first(two):
    first, last = (one.maps(GRID) for one in two)
    inverse, forward = chain(two, GRID)
    assert torch.equal(inverse, compose(first[0], last[0]))
    assert torch.equal(forward, compose(last[1], first[1]))
    other, _ = chain(two[::-1], GRID)
    assert float(lengths(inverse - other).max()) > 0.3
    assert float(lengths(compose(inverse, forward)).max()) < 0.1
    assert float(lengths(inverse).max()) > 1.0


def test_at_times_between_the_first_links_are_whole(two):
    assert float(chain(two, GRID, 0.0)[0].abs().max()) == 0
    assert torch.equal(chain(two, GRID, 0.25)[0], two[0].maps(GRID, 0.5)[0])
    assert torch.equal(chain(two, GRID, 0.5)[0], two[0].maps(GRID)[0])
    expected = compose(two[0].maps(GRID)[0], two[1].maps(GRID, 0.5)[0])
    assert torch.equal(chain(two, GRID, 0.75)[0], expected)
    assert torch.equal(chain(two[:1], GRID, 0.3)[0], two[0].maps(GRID, 0.3)[0])
    sizes = [float(lengths(chain(two, GRID, t / 8)[0]).mean()) for t in range(9)]
    assert sizes == sorted(sizes)


def test_times_and_chains_that_are_none_are_refused(two):
    for time in (-0.1, 1.1, float("nan")):
        with pytest.raises(SettingsError, match="from time 0 to 1"):
            chain(two, GRID, time)
    with pytest.raises(SettingsError, match="no geodesic"):
        chain([], GRID)


@pytest.mark.parametrize("regional", [False, True])
def test_a_geodesic_that_was_elsewhere_is_the_same(regional):
    here = geodesic(0, regional)
    assert here.to("cpu") is here
    # Another type of numbers stands for another device: the kernels are built again in the same way.
    away = here.started_by(tuple(part.double() for part in here.tensors))
    assert float(lengths(away.maps(GRID)[0] - here.maps(GRID)[0]).max()) < 1e-4
    assert type(away.metric) is type(here.metric)
    assert away.metric.stencil.width == here.metric.stencil.width == (2 if regional else 1)
    assert (away.steps, away.integrator, away.place) == (here.steps, here.integrator, here.place)


def test_the_finished_map_is_the_same_again(two):
    cover = GRID.padded([2, 2], [2, 2])
    flow = finished(two, GRID, cover, None)
    again = finished([geodesic(0), geodesic(1, regional=True)], GRID, cover, None)
    assert torch.equal(flow.forward_vox, again.forward_vox)
    assert torch.equal(flow.inverse_vox, again.inverse_vox)
    start = np.rint(flow.grid.index_from_world(GRID.world_from_index([0.0, 0.0]))).astype(int)
    inner = tuple(slice(a, a + n) for a, n in zip(start.tolist(), SHAPE, strict=True))
    assert torch.equal(flow.forward_vox[:, :, *inner], chain(two, GRID)[0])
    assert float(finished(two, GRID, cover, None, 0.0).forward_vox.abs().max()) == 0


def test_a_motion_of_geodesics_shows_the_last_velocity_and_keeps_all(two):
    motion = Motion.of(geodesic(0, notes=("one",)), geodesic(1, True, ("two",)))
    assert motion.notes == ("one", "two")
    assert motion.grid is motion.geodesics[-1].place.grid
    assert torch.equal(motion.velocity_vox, motion.geodesics[-1].velocity_vox)
    assert float(motion.velocity_vox[:, 1].max()) > 5 * float(motion.velocity_vox[:, 0].abs().max())
    flow, kept = finish(motion, GRID, GRID, Settings(taper_mm=0.0))
    assert flow.steps == 12
    assert kept.geodesics == motion.geodesics
    assert flow.grid.same_as(GRID)


def test_the_width_is_shown_where_each_image_is(two):
    turn = np.eye(4)
    turn[:3, 3] = (6.0, -8.0, 0.0)
    moving = Grid(SHAPE, np.diag([1.5, 2.0, 1.0, 1.0])).padded([2, 2], [0, 0])
    start, end = sigma_volumes(two[1:], AffineTransform(turn), GRID, moving)
    assert start.grid is moving
    assert end.grid is GRID
    sigma = two[1].sigma_mm(0.0)[0, 0]
    low, high = (float(v) for v in sigma.aminmax())
    assert low < float(start.data.min()) + 1e-4
    assert float(start.data.max()) < high + 1e-4
    # A point of the moving image is read where the inverse alignment puts it.
    index = np.array([[20.0, 20.0]])
    there = moving.index_from_world(AffineTransform(turn).map_points(GRID.world_from_index(index)))
    place = two[1].place.grid
    near = np.rint(place.index_from_world(GRID.world_from_index(index)))[0].astype(int)
    found = float(start.data[tuple(np.rint(there)[0].astype(int))])
    assert found == pytest.approx(float(sigma[tuple(near)]), rel=0.02)
    assert high > 1.2 * low
    one, _ = sigma_volumes(two[:1], AffineTransform(turn), GRID, moving)
    assert float(one.data.max() - one.data.min()) < 1e-4
