"""Correlation over blocks of voxels through a displacement: value, exact derivative, weights, threads."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.losses.forces import similarity_forces
from DiffeoRegLib.methods.blockwise import BlockwiseCorrelation
from DiffeoRegLib.methods.comparing import Comparison
from DiffeoRegLib.space.blocks import Blocks
from DiffeoRegLib.space.field import upsample_field
from DiffeoRegLib.space.sample import sample_normalised, warp
from Testing.scenes import pair_of, texture

D = torch.float64
SHAPES = [(40, 36), (22, 20, 25)]


def _pair(shape, **others):
    image = texture(shape, 3, sigma=1.5).to(D)
    return pair_of(torch.roll(image, 2, 2), image, **others)


def _u(grid, size=0.4, seed=1):
    torch.manual_seed(seed)
    return size * torch.randn(1, grid.dim, *grid.shape, dtype=D)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [1, 2])
def test_positions_and_their_transpose(shape, side):
    blocks = Blocks(shape, [side] * len(shape))
    a = torch.randn(len(shape), *blocks.coarse_shape, dtype=D)
    positions = blocks.positions(a)
    at_rest = blocks.positions(torch.zeros_like(a))
    b = torch.randn_like(positions)
    assert float(((positions - at_rest) * b).sum()) == pytest.approx(
        float((a * blocks.gathered(b)).sum()), rel=1e-10
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("measure", ["lncc", "lncc-squared"])
@pytest.mark.parametrize("side", [1, 2])
def test_the_derivative_by_the_displacement_is_exact(shape, measure, side):
    pair = _pair(shape)
    level = BlockwiseCorrelation(pair.fixed, pair.moving, pair.grid, measure, 5.0, side)
    u = (_u(level.grid) + 0.217).requires_grad_()
    (gradient,) = torch.autograd.grad(level.value(u, None), u)
    direction = torch.randn_like(u)
    ends = [float(level.value(u.detach() + e * direction, None)) for e in (1e-6, -1e-6)]
    expected = (ends[0] - ends[1]) / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("side", [1, 2])
def test_the_value_is_that_of_the_images_read_voxel_by_voxel(side):
    pair = _pair((24, 20, 26))
    level = BlockwiseCorrelation(pair.fixed, pair.moving, pair.grid, "lncc-squared", 5.0, side)
    u = _u(level.grid)
    fine = upsample_field(u, level.blocks.sides, pair.grid.shape) if side == 2 else u
    moved = level.blocks.split(warp(pair.moving, fine)[0])
    radius = 1 if side == 2 else 2
    expected = similarity_forces("lncc-squared", [radius] * 3)(
        level.fixed, moved, torch.ones(level.grid.shape)
    )
    assert float(level.value(u, None)) == pytest.approx(expected.value, rel=1e-5)


def test_axes_of_few_voxels_get_no_blocks():
    pair = _pair((40, 10, 25))
    level = BlockwiseCorrelation(pair.fixed, pair.moving, pair.grid, "lncc", 5.0, 2)
    assert level.grid.shape == (20, 10, 13)


@pytest.mark.parametrize("block", [1, 2])
def test_a_comparison_in_blocks_finds_the_shift_and_keeps_to_the_masks(block):
    shape = (40, 44)
    pair = _pair(shape)
    grid = pair.grid.coarsened([2, 2])
    values = []
    for voxels in (0.0, 1.0, 2.0, 3.0):
        u = torch.zeros(1, 2, *grid.shape, dtype=D)
        u[:, 0] = voxels / 2
        values.append(float(Comparison(pair, 1.0, grid, "lncc-squared", block=block).value(-u)))
    assert min(values) == values[2] < 0.3 * values[0]
    mask = torch.ones(1, 1, *shape, dtype=D)
    mask[..., 30:] = 0
    spoilt = pair_of(pair.fixed.clone(), pair.moving, fixed_mask=mask, moving_mask=mask)
    spoilt.fixed[..., 30:] = torch.rand(1, 1, 40, 14, dtype=D)
    # Blocks end where the mask does; windows that hold anything else count nothing of it.
    clean = pair_of(pair.fixed, pair.moving, fixed_mask=mask, moving_mask=mask)
    u = torch.zeros(1, 2, *grid.shape, dtype=D)
    found = [float(Comparison(p, 1.0, grid, "lncc-squared", block=block).value(u)) for p in (clean, spoilt)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_other_similarities_are_compared_as_ever():
    pair = _pair((40, 36))
    u = _u(pair.grid)
    values = [float(Comparison(pair, 1.0, pair.grid, "mse", block=b).value(u)) for b in (0, 2)]
    assert values[0] == values[1]


def test_reading_on_several_threads_has_the_same_derivative():
    values = torch.rand(1, 2, 9, 8, 7, dtype=D)
    positions = (torch.rand(1, 11, 4, 5, 3, dtype=D) * 1.8 - 0.9).requires_grad_()
    weight = torch.rand(1, 2, 11, 4, 5, dtype=D)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            read = sample_normalised(values, positions)
            found.append((read.detach(), *torch.autograd.grad((read * weight).sum(), positions)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
