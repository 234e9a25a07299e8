"""Grids: where voxels are, and how crops, coarser and finer grids keep them there."""

from __future__ import annotations

import numpy as np
import pytest

from DiffeoRegLib.errors import GeometryError
from DiffeoRegLib.space.grid import Grid, index_affine

WORLD = np.array([[0.0, 0.3, 1.2, 5.0], [0.2, -1.5, 0.1, -7.0], [2.5, 0.1, 0.0, 11.0], [0, 0, 0, 1]])


def grid(shape=(4, 5, 6)) -> Grid:
    return Grid(shape, WORLD)


def test_spacing_extent_center():
    g = Grid((4, 5, 6), np.diag([2.0, -3.0, 0.5, 1.0]))
    assert g.spacing == (2.0, 3.0, 0.5)
    assert g.extent_mm == (8.0, 15.0, 3.0)
    assert np.allclose(g.center_mm, [3.0, -6.0, 1.25])
    assert g.voxel_count == 120


@pytest.mark.parametrize("shape", [(4, 5, 6), (5, 6)])
def test_index_and_world_undo_each_other(shape):
    g = grid(shape)
    index = np.random.default_rng(0).normal(0, 9, (20, len(shape)))
    assert np.allclose(g.index_from_world(g.world_from_index(index)), index)
    assert np.allclose(g.world_from_index([1.0] * g.dim), WORLD[:3, : g.dim].sum(axis=1) + WORLD[:3, 3])


def test_a_plane_drops_the_distance_from_it():
    g = grid((5, 6))
    off = g.world_from_index([2.0, 3.0]) + 4 * WORLD[:3, 2]
    assert np.allclose(g.index_from_world(off), [2, 3])


def test_coarse_voxels_sit_at_the_middle_of_those_they_replace():
    fine = grid((8, 9, 10))
    coarse = fine.coarsened((4, 2, 1))
    assert coarse.shape == (2, 5, 10)
    for j in ((0, 0, 0), (1, 4, 7)):
        place = [s * (n + 0.5) - 0.5 for s, n in zip((4, 2, 1), j, strict=True)]
        assert np.allclose(coarse.world_from_index(j), fine.world_from_index(place))


def test_refined_undoes_coarsened():
    fine = grid((8, 4, 6))
    assert fine.coarsened((4, 2, 3)).refined((4, 2, 3)).same_as(fine, 1e-9)


def test_crop_and_pad_keep_voxels_in_place():
    g = grid()
    part = g.cropped((1, 2, 3), (3, 5, 6))
    assert part.shape == (2, 3, 3)
    assert np.allclose(part.world_from_index((0, 1, 2)), g.world_from_index((1, 3, 5)))
    assert part.padded((1, 2, 3), (1, 0, 0)).same_as(g, 1e-9)


def test_same_as_sees_small_shifts_and_other_shapes():
    g = grid()
    moved = WORLD.copy()
    moved[0, 3] += 0.01
    assert g.same_as(grid())
    assert not g.same_as(Grid((4, 5, 6), moved))
    assert g.same_as(Grid((4, 5, 6), moved), tolerance=0.1)
    assert not g.same_as(grid((4, 5, 7)))


def test_corners_are_the_outermost_voxels():
    corners = grid().corners_mm()
    assert corners.shape == (8, 3)
    assert np.allclose(corners[-1], grid().world_from_index((3, 4, 5)))


def test_index_affine_maps_voxels_to_voxels():
    source = grid((5, 6))
    target = Grid((7, 8, 9), np.diag([1.0, 2.0, 3.0, 1.0]))
    between = np.eye(4)
    between[:3, 3] = (1, 2, 3)
    matrix = index_affine(target, source, between)
    assert matrix.shape == (3, 3)
    index = np.array([2.0, 4.0])
    expected = target.index_from_world(source.world_from_index(index) + np.array([1, 2, 3]))
    assert np.allclose(matrix @ [2, 4, 1], expected)


@pytest.mark.parametrize(
    ("shape", "world"),
    [
        ((4, 5, 0), np.eye(4)),
        ((4,), np.eye(4)),
        ((4, 5, 6, 7), np.eye(4)),
        ((4, 5, 6), np.eye(3)),
        ((4, 5, 6), np.diag([1.0, 0.0, 1.0, 1.0])),
        ((4, 5, 6), np.diag([1.0, np.nan, 1.0, 1.0])),
        ((4, 5, 6), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
    ],
)
def test_impossible_grids_are_refused(shape, world):
    with pytest.raises(GeometryError):
        Grid(shape, world)


def test_a_grid_keeps_its_own_matrix():
    world = np.eye(4)
    g = Grid((2, 3, 4), world)
    world[0, 0] = 5
    assert g.spacing == (1, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        g.world_from_voxel[0, 0] = 2
