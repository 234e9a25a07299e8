"""SITReg's maps at any points: exact inverses, positive determinants, the same map in every mode."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.networks.sitreg import at_level
from DiffeoRegLib.networks.sitreg_maps import moved_by
from DiffeoRegLib.space.sample import identity_vox
from Testing.sitreg_cases import moving_network, pictures

SHAPES = [(23, 30), (17, 22, 13)]
GRIDS = [{}, {"fast": True}, {"samples_per_control": 2}, {"samples_per_control": 1}]


def random_points(shape, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, len(shape), dtype=torch.float64, generator=generator) * (torch.tensor(shape) - 1)


@torch.no_grad()
def test_wrong_questions():
    maps = moving_network(2)(*pictures((23, 30)))
    with pytest.raises(SettingsError, match="keep_atoms"):
        maps.map_points(torch.zeros(1, 2))
    kept = moving_network(2)(*pictures((23, 30)), keep_atoms=True)
    for points, item in ((torch.zeros(1, 3), 0), (torch.zeros(2), 0), (torch.zeros(1, 2), 1)):
        with pytest.raises(ShapeError, match="Points"):
            kept.map_points(points, item=item)
    with pytest.raises(UnknownNameError, match="'13'"):
        kept.map_points(torch.zeros(1, 2), "13")


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", GRIDS)
def test_exact_points_go_and_come_back(shape, options):
    network = moving_network(len(shape), strength=30.0, **options)
    maps = network(*pictures(shape, batch=2), keep_atoms=True)
    points = random_points(shape, 5000)
    for item in range(2):
        for way, back in (("12", "21"), ("21", "12")):
            there = maps.map_points(points, way, item)
            assert float((there - points).abs().max()) > 1
            assert float((maps.map_points(there, back, item) - points).abs().max()) < 1e-9


@torch.no_grad()
@pytest.mark.parametrize("shape", [(41, 37), (25, 22, 29)])
def test_determinants_are_positive_and_those_of_the_map(shape):
    maps = moving_network(len(shape), strength=30.0)(*pictures(shape), mode="complete-exact")
    points = random_points(shape, 100_000 if len(shape) == 2 else 30_000)
    step = 1e-7
    for way in ("12", "21"):
        there, determinant = maps.points_and_determinants(points, way)
        assert float(determinant.min()) > 0
        some = points[:2000]
        columns = [
            (
                maps.map_points(some + step * torch.eye(len(shape), dtype=torch.float64)[axis], way)
                - there[:2000]
            )
            / step
            for axis in range(len(shape))
        ]
        measured = torch.linalg.det(torch.stack(columns, 2))
        assert float(measured.min()) > 0
        close = (measured - determinant[:2000]).abs() < 1e-4 * determinant[:2000].clamp(min=1)
        assert float(close.double().mean()) > 0.99  # a step may cross into another cell


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_the_modes_are_one_map(shape):
    network = moving_network(len(shape), strength=0.1, tolerance_vox=1e-6)
    images = pictures(shape)
    exact = network(*images, mode="complete-exact")
    points = identity_vox(shape, torch.float64).flatten(2)[0].T
    at_voxels = (exact.map_points(points) - points).T.reshape(exact.u12.shape).float()
    torch.testing.assert_close(exact.u12, at_voxels, rtol=0, atol=1e-5)
    size = float(exact.u12.abs().max())
    for mode in ("standard", "complete"):
        assert float((network(*images, mode=mode).u12 - exact.u12).abs().mean()) < 0.03 * size


@pytest.mark.parametrize("shape", [(24, 17), (16, 22, 11)])
@pytest.mark.parametrize("stride", [1, 2])
def test_fields_are_read_where_their_voxels_lie(shape, stride):
    """A field that grows linearly with the place, u(x) = x / 10, is known everywhere inside."""
    grid = [-(-n // stride) for n in shape]
    place = (identity_vox(grid, torch.float64) + 0.5) * stride - 0.5
    u = 0.1 * place / stride
    at = random_points([n - 2 * stride for n in shape], 500).T[None] + stride
    torch.testing.assert_close(moved_by(at, u, stride), 1.1 * at)
    for size in (stride, 2 * stride, 4 * stride):
        level = [-(-n // size) for n in shape]
        expected = 0.1 * ((identity_vox(level, torch.float64) + 0.5) * size - 0.5) / size
        inside = (..., *[slice(0, n // size) for n in shape])
        torch.testing.assert_close(at_level(u, size, stride, level)[inside], expected[inside])
