"""Resampling of images and label maps: outside rule, smooth labels, blocks, kinds of data, memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from DiffeoRegLib.errors import GeometryError
from DiffeoRegLib.space import lattice
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import sample
from DiffeoRegLib.space.transform import (
    AffineTransform,
    CompositeTransform,
    DisplacementTransform,
    displacement_on,
)
from DiffeoRegLib.volumes import resample
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume

IDENTITY = AffineTransform(np.eye(4))


def shift(*mm) -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, 3] = mm
    return AffineTransform(matrix)


def warped_by_noise(grid: Grid, amplitude=1.5) -> CompositeTransform:
    turn = np.eye(4)
    turn[:2, :2] = [[0.98, -0.199], [0.199, 0.98]]
    field = DisplacementTransform(grid, torch.randn(1, 3, *grid.shape) * amplitude)
    return CompositeTransform([field, AffineTransform(turn)])


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_identity_changes_nothing(mode):
    moving = Volume(torch.randn(5, 6, 7), Grid((5, 6, 7), np.diag([2.0, -1.0, 0.5, 1.0])), "m")
    out = warp_volume(moving, IDENTITY, moving.grid, mode=mode)
    assert torch.allclose(out.data, moving.data, atol=1e-5)
    assert out.name == "m"


def test_fill_starts_half_a_voxel_outside():
    moving = Volume(torch.ones(4, 4, 4), Grid((4, 4, 4), np.eye(4)))
    for distance, expected in ((-0.5, 1.0), (-0.51, -9.0), (0.49, 1.0), (0.5, -9.0)):
        at = 0 if distance < 0 else 3
        out = warp_volume(moving, shift(distance, 0, 0), moving.grid, fill=-9.0).data
        assert (out[at] == expected).all()


@pytest.mark.parametrize("smooth", [False, True])
def test_labels_outside_are_background(smooth):
    moving = Volume(torch.full((4, 4, 4), 7, dtype=torch.int32), Grid((4, 4, 4), np.eye(4)), "l", True)
    out = warp_labels(moving, shift(2, 0, 0), moving.grid, smooth=smooth)
    assert out.is_labels
    assert out.data.dtype == torch.int32
    assert out.data[:2].unique().tolist() == [7]
    assert out.data[2:].unique().tolist() == [0]


def test_large_labels_stay_exact():
    data = torch.tensor([16777217, 16777219, 2147483647, -5], dtype=torch.int32).repeat(2, 2, 1)
    moving = Volume(data, Grid((2, 2, 4), np.eye(4)), "l", True)
    for smooth in (False, True):
        assert torch.equal(warp_labels(moving, IDENTITY, moving.grid, smooth=smooth).data, data)


@pytest.mark.parametrize("shape", [(7, 8, 9), (12, 13)])
def test_smooth_labels_are_the_strongest_of_interpolated_masks(shape):
    grid = Grid(shape, np.diag([1.5, 1.0, 2.0, 1.0]))
    moving = Volume(torch.randint(0, 6, shape, dtype=torch.int32), grid, "l", True)
    transform = warped_by_noise(grid, 0.8)
    position = torch.cat([transform.advance(b).positions_vox(grid) for b in lattice.slabs(grid)], dim=2)
    masks = torch.cat([(moving.data == label).float()[None, None] for label in range(6)], dim=1)
    scores = sample(masks, position)[0]
    clear = scores.topk(2, dim=0).values.diff(dim=0)[0].abs() > 1e-5
    expected = torch.where(lattice.inside(position, shape)[0, 0], scores.argmax(dim=0).int(), 0)
    got = warp_labels(moving, transform, grid, smooth=True).data
    assert torch.equal(got[clear], expected[clear])
    assert clear.float().mean() > 0.9
    assert not torch.equal(got, warp_labels(moving, transform, grid).data)


def test_ties_go_to_the_smaller_label():
    moving = Volume(torch.tensor([[4, 2], [4, 2]], dtype=torch.int32), Grid((2, 2), np.eye(4)), "l", True)
    middle = Grid((2, 2), np.array([[1.0, 0, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert warp_labels(moving, IDENTITY, middle, smooth=True).data[:, 0].tolist() == [2, 2]


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_blocks_do_not_show(mode, monkeypatch):
    grid = Grid((9, 8, 7), np.diag([1.0, 2.0, 1.5, 1.0]))
    moving = Volume(torch.randn(9, 8, 7), grid)
    transform = warped_by_noise(grid)
    whole = warp_volume(moving, transform, grid, mode=mode).data
    monkeypatch.setattr(resample, "CHUNK", 60)
    assert len(list(lattice.slabs(grid, 60))) == 9
    assert torch.allclose(warp_volume(moving, transform, grid, mode=mode).data, whole, atol=1e-5)


def test_whole_numbers_are_interpolated_as_fractions():
    moving = Volume(torch.tensor([[0, 1], [0, 1]], dtype=torch.int32), Grid((2, 2), np.eye(4)))
    out = warp_volume(moving, shift(0, 0.25, 0), moving.grid).data
    assert out[0].tolist() == [0.25, 1.0]


def test_nothing_given_is_changed():
    grid = Grid((5, 6, 7), np.eye(4))
    moving, transform = Volume(torch.randn(5, 6, 7), grid), warped_by_noise(grid)
    before = moving.data.clone(), transform.parts[0].u_mm.clone()
    for mode in ("linear", "nearest", "cubic"):
        warp_volume(moving, transform, grid, mode=mode)
    displacement_on(transform, grid)
    assert torch.equal(moving.data, before[0])
    assert torch.equal(transform.parts[0].u_mm, before[1])


def test_planes_and_volumes_do_not_mix():
    moving = Volume(torch.zeros(5, 6), Grid((5, 6), np.eye(4)), "slice")
    with pytest.raises(GeometryError, match="2D"):
        warp_volume(moving, IDENTITY, Grid((5, 6, 7), np.eye(4)))


MEMORY = """
import numpy as np, torch
from DiffeoRegLib.report.memory import peak_memory_mb
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform
from DiffeoRegLib.volumes.resample import warp_labels, warp_volume
from DiffeoRegLib.volumes.volume import Volume

grid = Grid((128, 160, 160), np.eye(4))
coarse = grid.coarsened((4, 4, 4))
field = DisplacementTransform(coarse, torch.randn(1, 3, *coarse.shape))
transform = CompositeTransform([field, AffineTransform(np.eye(4))])
image = Volume(torch.randn(grid.shape), grid)
layers = (torch.arange(128, dtype=torch.int32) // 8)[:, None, None]
labels = Volume(layers.expand(grid.shape).contiguous(), grid, "l", True)
before = peak_memory_mb()
warp_volume(image, transform, grid)
warp_labels(labels, transform, grid, smooth=True)
print(peak_memory_mb() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a child's own peak is known on Linux only")
def test_memory_is_that_of_the_result_and_a_block(repository):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, encoding="utf-8", check=True, cwd=repository
    )
    assert float(done.stdout) < 350  # MiB; positions of all voxels alone would take 75 in double precision
