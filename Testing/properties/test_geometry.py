"""Laws of geometry that hold for every grid and transform; all 48 storage orders are one image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from DiffeoRegLib.errors import GeometryError, ShapeError
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.lattice import slabs
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    InverseTransform,
    Transform,
    displacement_on,
)
from DiffeoRegLib.volumes.files import read_volume, write_volume
from DiffeoRegLib.volumes.resample import warp_volume
from DiffeoRegLib.volumes.volume import Volume

seeds = st.integers(0, 2**31 - 1)
dims = st.sampled_from([2, 3])


def random_grid(rng, dim=3, low=4, high=10) -> Grid:
    """Oblique, anisotropic, off-centre, either handedness."""
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    world = np.eye(4)
    world[:3, :3] = axes * rng.uniform(0.5, 3, 3)
    world[:3, 3] = rng.normal(0, 100, 3)
    return Grid(tuple(int(n) for n in rng.integers(low, high, dim)), world)


def random_affine(rng) -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, :3] += rng.normal(0, 0.15, (3, 3))
    matrix[:3, 3] = rng.normal(0, 5, 3)
    return AffineTransform(matrix)


def random_field(rng, grid: Grid, fraction=0.12) -> DisplacementTransform:
    """Invertible: steps between neighbours stay below the voxel size. In the plane of a 2D grid."""
    coordinates = rng.uniform(-fraction, fraction, (grid.dim, *grid.shape))
    u = np.einsum("ac,c...->a...", grid.world_from_voxel[:3, : grid.dim], coordinates)
    return DisplacementTransform(grid, torch.tensor(u[None].tolist(), dtype=torch.float64))


def points_in(rng, grid: Grid, count=30, margin=0.0):
    return grid.world_from_index(
        rng.uniform(margin, 1 - margin, (count, grid.dim)) * (np.array(grid.shape) - 1)
    )


@pytest.mark.parametrize(
    "order", list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
)
def test_all_storage_orders_are_one_image(tmp_path, order):
    permutation, signs = order
    rng = np.random.default_rng(4)
    grid = random_grid(rng)
    image = Volume(torch.tensor(rng.normal(size=grid.shape).tolist()), grid)
    flips = [axis for axis, sign in enumerate(signs) if sign < 0]
    data = image.data.permute(permutation).flip(flips)
    column = np.eye(4)
    column[:3, :3] = 0
    for new, old in enumerate(permutation):
        column[old, new] = signs[new]
        column[old, 3] = 0 if signs[new] > 0 else grid.shape[old] - 1
    stored = Volume(data, Grid(tuple(data.shape), grid.world_from_voxel @ column))
    write_volume(stored, tmp_path / "v.nii")
    back = warp_volume(read_volume(tmp_path / "v.nii"), AffineTransform(np.eye(4)), grid, fill=99.0)
    # Files keep float32 geometry: an edge voxel may fall out of the image by rounding, no other may.
    assert torch.allclose(back.data, image.data, atol=1e-3)


@given(seeds)
def test_affine_undone_by_its_inverse(seed):
    rng = np.random.default_rng(seed)
    affine, points = random_affine(rng), rng.normal(0, 100, (20, 3))
    assert np.allclose(affine.inverse().map_points(affine.map_points(points)), points, atol=1e-8)


@given(seeds, dims)
def test_field_undone_by_its_inverse(seed, dim):
    rng = np.random.default_rng(seed)
    field = random_field(rng, random_grid(rng, dim))
    points = points_in(rng, field.grid, margin=0.25)
    there = field.map_points(points)
    assert np.abs(there - points).max() > 1e-3
    inverse = field.inverse()
    assert isinstance(inverse, InverseTransform)
    assert np.abs(inverse.map_points(there) - points).max() < 1e-5
    assert inverse.residual_mm(there).max() < 1e-5
    assert inverse.inverse() is field


@given(seeds, dims)
def test_composite_is_one_after_the_other_and_its_inverse_goes_back(seed, dim):
    rng = np.random.default_rng(seed)
    grid = random_grid(rng, dim)
    field, affine = random_field(rng, grid), random_affine(rng)
    whole = CompositeTransform([field, affine])
    points = points_in(rng, grid, margin=0.25)
    assert np.allclose(whole.map_points(points), affine.map_points(field.map_points(points)))
    assert np.abs(whole.inverse().map_points(whole.map_points(points)) - points).max() < 1e-5


@given(seeds, dims)
def test_blocks_and_points_agree(seed, dim):
    """The fast way through a transform (blocks of voxels) is the exact way (points)."""
    rng = np.random.default_rng(seed)
    target, grid = random_grid(rng, dim), random_grid(rng, dim)
    near = np.eye(4)
    near[:3, 3] = grid.center_mm - target.center_mm
    field = random_field(rng, grid)
    whole = CompositeTransform([AffineTransform(near), field, random_affine(rng), field.inverse()])
    nodes = target.world_from_index(np.argwhere(np.ones(target.shape)).astype(float))
    exact = whole.map_points(nodes)
    blocks = np.concatenate([whole.advance(block).points_mm() for block in slabs(target, 20)])
    edge = grid.index_from_world(AffineTransform(near).map_points(nodes))
    size = np.array(grid.shape)
    # On the very rim, and outside again after the second map, rounding decides which side a point is.
    clear = (np.minimum(np.abs(edge + 0.5), np.abs(edge - size + 0.5)) > 1e-3).all(axis=1)
    off = np.linalg.norm(blocks - exact, axis=1)[clear]
    assert np.median(off) < 1e-4
    assert (off > 1e-3).mean() < 0.05
    dense = displacement_on(CompositeTransform(whole.parts[:2]), target).reshape(3, -1).T.double()
    straight = CompositeTransform(whole.parts[:2]).map_points(nodes) - nodes
    assert np.abs(np.array(dense.tolist()) - straight)[clear].max() < 1e-4


@given(seeds, dims)
def test_gradient_of_a_field_is_its_slope(seed, dim):
    rng = np.random.default_rng(seed)
    field = random_field(rng, random_grid(rng, dim))
    index = rng.integers(0, np.array(field.grid.shape) - 1, (20, dim)) + rng.uniform(0.2, 0.8, (20, dim))
    points = field.grid.world_from_index(index)
    gradient = field.displacement_and_gradient(points, gradient=True)[1]
    step = 1e-5
    for axis in range(3):
        move = step * np.eye(3)[axis]
        difference = field.map_points(points + move) - field.map_points(points - move) - 2 * move
        assert np.allclose(difference / (2 * step), gradient[:, :, axis], atol=1e-6)


def test_outside_its_grid_a_field_moves_nothing():
    rng = np.random.default_rng(0)
    field = random_field(rng, random_grid(rng))
    outside = field.grid.world_from_index(np.array([[-0.6, 1, 1], [1, 1, field.grid.shape[2] - 0.4]]))
    assert np.array_equal(field.map_points(outside), outside)
    rim = field.grid.world_from_index(np.array([[-0.4, 1.0, 1.0]]))
    edge = field.grid.world_from_index(np.array([[0.0, 1.0, 1.0]]))
    assert np.allclose(field.map_points(rim) - rim, field.map_points(edge) - edge)
    assert np.abs(field.map_points(rim) - rim).max() > 1e-3


def test_folding_fields_are_honest_about_their_inverse():
    grid = Grid((8, 8, 8), np.eye(4))
    u = torch.zeros(1, 3, 8, 8, 8)
    u[:, 0, 4:] = -3.0  # the right half jumps over the left one: some points come from two places
    inverse = DisplacementTransform(grid, u).inverse()
    points = grid.world_from_index(np.random.default_rng(0).uniform(0, 7, (200, 3)))
    back = inverse.map_points(points)
    assert np.isfinite(back).all()
    forward = DisplacementTransform(grid, u).map_points(back)
    assert np.allclose(np.linalg.norm(forward - points, axis=1), inverse.residual_mm(points))


def test_everything_is_a_transform():
    grid = Grid((3, 4, 5), np.eye(4))
    field = DisplacementTransform(grid, torch.zeros(1, 3, 3, 4, 5))
    for thing in (AffineTransform(np.eye(4)), field, field.inverse(), CompositeTransform([field])):
        assert isinstance(thing, Transform)
        assert thing.map_points(np.zeros((0, 3))).shape == (0, 3)


def test_bad_transforms_are_refused():
    for matrix in (np.zeros((4, 4)), np.eye(3), np.diag([1, 1, 0, 1.0]), np.full((4, 4), np.nan)):
        with pytest.raises(GeometryError):
            AffineTransform(matrix)
    with pytest.raises(ShapeError):
        DisplacementTransform(Grid((3, 4, 5), np.eye(4)), torch.zeros(1, 3, 3, 4, 6))
    with pytest.raises(ShapeError):
        AffineTransform(np.eye(4)).map_points(np.zeros((4, 2)))
