"""What is kept of a transform is the transform: small errors, upright grids, zeros at the ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.flows.integrate import integrate
from DiffeoRegLib.space.field import u_mm_from_vox
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.volumes.placed import shear_of
from DiffeoRegLib.worker.cubic import CubicField
from DiffeoRegLib.worker.stored import facts, parts_of, stored_field, stored_form
from Testing.fake_run import known_motion
from Testing.scenes import points_of, turned_grid

FIXED = turned_grid((20, 24, 22), (1.5, 1.2, 2.0), 20, (2,))
SHIFT = AffineTransform(np.array([[1.0, 0.1, 0, 5], [0, 1, 0, -3], [0, 0, 0.9, 2], [0, 0, 0, 1]]))


def moving_border(fixed: Grid, taper_mm: float = 12.0) -> DisplacementTransform:
    """A flow that moves the border of the view too, so that a ring is needed."""
    noise = torch.randn(1, 3, *fixed.shape, generator=torch.Generator().manual_seed(5))
    velocity = gaussian_smooth(noise, 5.0)
    flow = integrate(velocity * (1.5 / velocity.abs().amax()) + 0.5, fixed, fixed, taper_mm=taper_mm)
    return DisplacementTransform(flow.grid, u_mm_from_vox(flow.forward_vox, flow.grid))


def sheared(shape=(12, 14, 10)) -> Grid:
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[0, 1] = 0.5
    matrix[:3, 3] = (5, -7, 9)
    return Grid(shape, matrix)


@pytest.mark.parametrize(("storage", "p95", "most"), [("full", 0.06, 0.3), ("half", 0.03, 0.2)])
def test_the_stored_field_is_the_computed_one(storage, p95, most):
    exact = moving_border(FIXED)
    points = points_of(FIXED)
    moved = exact.map_points(points)
    error = np.linalg.norm(stored_field(exact, FIXED, storage).map_points(points) - moved, axis=1)
    assert np.linalg.norm(moved - points, axis=1).max() > 2.0
    assert np.percentile(error, 95) < p95
    assert error.max() < most


@pytest.mark.parametrize("storage", ["full", "half"])
@pytest.mark.parametrize("taper_mm", [12.0, 0.0])
def test_the_outermost_layer_is_zero_and_the_ring_is_kept(storage, taper_mm):
    exact = moving_border(FIXED, taper_mm)
    field = stored_field(exact, FIXED, storage)
    for axis in range(3):
        for end in (0, -1):
            assert float(field.u_mm.select(2 + axis, end).abs().max()) == 0
    corners = field.grid.index_from_world(exact.grid.corners_mm())
    assert corners.min() > 0
    assert (corners < np.array(field.grid.shape) - 1).all()


def test_half_takes_an_eighth_and_short_axes_stay():
    half = stored_field(moving_border(FIXED), FIXED, "half").grid
    np.testing.assert_allclose(half.spacing, np.array(FIXED.spacing) * 2)
    thin = turned_grid((6, 20, 20), (3.0, 1.0, 1.0))
    np.testing.assert_allclose(stored_field(moving_border(thin), thin, "half").grid.spacing, (3.0, 2.0, 2.0))


@pytest.mark.parametrize("storage", ["full", "half"])
def test_a_sheared_image_gets_an_upright_field(storage):
    fixed = sheared()
    exact = moving_border(fixed)
    field = stored_field(exact, fixed, storage)
    assert shear_of(field.grid.world_from_voxel) < 1e-6
    points = points_of(fixed)
    error = np.linalg.norm(field.map_points(points) - exact.map_points(points), axis=1)
    assert np.percentile(error, 95) < 0.15


def test_the_parts_of_transform_and_inverse_come_in_their_order():
    exact = moving_border(FIXED)
    forward = stored_form(CompositeTransform([exact, SHIFT]), FIXED, "full", None)
    assert [next(iter(part)) for part in parts_of(forward)] == ["displacement", "matrix"]
    image = parts_of(forward)[0]["displacement"]
    assert image.array.dtype == np.float32
    assert image.array.shape == (*forward[0].grid.shape, 3)
    np.testing.assert_allclose(image.array[9, 8, 7], forward[0].u_mm[0, :, 9, 8, 7].tolist())
    np.testing.assert_allclose(parts_of(forward)[1]["matrix"], SHIFT.moving_from_fixed)


def test_the_inverse_of_a_given_field_is_kept_as_a_field():
    given = stored_field(moving_border(FIXED), FIXED, "full")
    (backward,) = stored_form(given.inverse(), FIXED, "full", None)
    assert isinstance(backward, CubicField)
    points = points_of(FIXED)[::11]
    error = np.linalg.norm(backward.map_points(given.map_points(points)) - points, axis=1)
    assert np.percentile(error, 95) < 0.15


def test_the_facts_notice_a_wrong_stored_form():
    exact = moving_border(FIXED)
    forward = stored_form(CompositeTransform([exact, SHIFT]), FIXED, "half", None)
    wrong = CompositeTransform([exact, AffineTransform(np.eye(4))])
    back = stored_form(SHIFT.inverse(), FIXED, "half", None)
    good = facts(forward, CompositeTransform([exact, SHIFT]), FIXED, back, FIXED)
    bad = facts(forward, wrong, FIXED, back, FIXED)
    assert good["stored_error_mm"]["p95"] < 0.05 < 1 < bad["stored_error_mm"]["p95"]
    assert good["stored_inverse_consistency_mm"]["p95"] > 1  # `back` lacks the field
    assert good["grid"] == list(forward[0].grid.shape[::-1])
    assert good["folded_percent"] == 0
    assert good["megabytes"] == pytest.approx(np.prod(good["grid"]) * 12 / 2**20)


def test_a_fold_in_the_stored_field_is_counted():
    u = torch.zeros(1, 3, 8, 8, 8)
    u[0, 0, 4, 4, 4] = 5.0
    grid = Grid((8, 8, 8), np.eye(4)[[2, 1, 0, 3]])
    assert facts([CubicField(grid, u)], CubicField(grid, u), grid, [], grid)["folded_percent"] > 0


@pytest.mark.parametrize(("spacing", "kept"), [(2.0, 2.0), (1.2, 2.4)])
def test_a_half_way_field_keeps_its_axes_and_what_detail_it_has(spacing, kept):
    """Half the resolution is half the image's; a field coarser than that keeps every node."""
    fixed = turned_grid((30, 30, 30), (1.4, 1.4, 1.4), 25)
    grid = turned_grid((24, 26, 22), (spacing,) * 3)
    field, _ = known_motion(grid)
    whole = CompositeTransform([SHIFT, field, SHIFT.inverse()])
    stored = stored_form(whole, fixed, "half", None)
    assert stored[1].grid.spacing == pytest.approx([kept] * 3)
    directions = stored[1].grid.world_from_voxel[:3, :3] / kept
    np.testing.assert_allclose(directions, grid.world_from_voxel[:3, :3] / spacing, atol=1e-9)
    points = points_of(fixed)[::7]
    error = np.linalg.norm(CompositeTransform(stored).map_points(points) - whole.map_points(points), axis=1)
    assert np.percentile(error, 95) < 0.05
