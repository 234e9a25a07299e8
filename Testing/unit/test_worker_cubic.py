"""Fields between their nodes; the comparison with VTK itself is in Testing/slicer/test_runner.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import tensor_from_array
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, displacement_on
from DiffeoRegLib.worker.cubic import CubicField, as_volume, cubic_matrix, taps_of, thick_grid
from Testing.scenes import points_of, turned_grid

GRID = turned_grid((7, 5, 9), (2.0, 2.5, 1.5), 25, (1,))


def random_field(grid: Grid, size: float = 1.0) -> CubicField:
    values = np.random.default_rng(3).normal(size=(1, 3, *grid.shape)) * size
    return CubicField(grid, tensor_from_array(values, torch.float32))


@pytest.mark.parametrize(("size", "degree"), [(2, 1), (3, 2), (4, 2), (9, 2)])
def test_polynomials_are_read_exactly_up_to_the_ends(size, degree):
    x = torch.linspace(0, size - 1, 37, dtype=torch.float64)
    nodes = torch.arange(size, dtype=torch.float64)
    for power in range(degree + 1):
        read = cubic_matrix(x, size) @ nodes**power
        torch.testing.assert_close(read, x**power, atol=1e-12, rtol=0)


def test_the_slopes_are_those_of_the_weights():
    x = torch.linspace(-0.5, 5.5, 50, dtype=torch.float64)
    step = 1e-6
    numeric = (taps_of(x + step, 6).weight - taps_of(x - step, 6).weight) / (2 * step)
    smooth = (x % 1 > 0.01) & (x % 1 < 0.99)
    torch.testing.assert_close(taps_of(x, 6).slope[:, smooth], numeric[:, smooth], atol=1e-6, rtol=0)


def test_outside_the_edge_value_stays():
    far = cubic_matrix(torch.tensor([-4.0, 0.0, 4.0, 11.0], dtype=torch.float64), 5)
    assert far[0].tolist() == far[1].tolist() == [1, 0, 0, 0, 0]
    assert far[2].tolist() == far[3].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("fine", [(2, 2, 2), (1, 3, 2)])
def test_both_ways_through_the_field_agree(fine):
    field, target = random_field(GRID), GRID.refined(fine).padded((1, 0, 2), (0, 2, 1))
    by_axes = displacement_on(field, target)
    points = points_of(target)
    by_points = (field.map_points(points) - points).T.reshape(3, *target.shape)
    np.testing.assert_allclose(by_axes[0].tolist(), by_points, atol=2e-5)


def test_a_lattice_at_an_angle_is_read_point_by_point():
    field, target = random_field(GRID), turned_grid((5, 6, 7), (2.0, 1.0, 1.5), -40)
    turned = CompositeTransform([AffineTransform(np.diag([1.1, 0.9, 1.0, 1.0])), field])
    points = points_of(target)
    expected = (turned.map_points(points) - points).T.reshape(3, *target.shape)
    np.testing.assert_allclose(displacement_on(turned, target)[0].tolist(), expected, atol=1e-4)


def test_the_inverse_undoes_the_cubic_field_itself():
    field = random_field(GRID, 0.15)
    points = points_of(GRID)[::7]
    back = field.inverse().map_points(field.map_points(points))
    np.testing.assert_allclose(back, points, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_becomes_a_grid_of_one_voxel_along_its_axis(axis):
    flat = turned_grid((6, 8), (2.0, 1.5), 30)
    field = as_volume(random_field(flat), axis)
    assert field.grid.shape[axis] == 1
    assert [n for n in field.grid.shape if n > 1] == [6, 8]
    points = points_of(flat)
    np.testing.assert_allclose(points_of(thick_grid(flat, axis)), points, atol=1e-9)
    np.testing.assert_allclose(field.map_points(points), random_field(flat).map_points(points), atol=1e-6)
