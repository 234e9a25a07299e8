"""Fine images seen from a coarser grid: blocks, interpolated reading, and the force on the coarse field."""

from __future__ import annotations

import itertools

import pytest
import torch

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.space.blocks import Blocks
from DiffeoRegLib.space.field import upsample_field
from DiffeoRegLib.space.sample import warp

CASES = [
    ((6, 8, 4), (2, 2, 2)),
    ((7, 5, 9), (2, 2, 2)),
    ((7, 8, 5), (1, 2, 2)),
    ((5, 6, 7), (2, 1, 1)),
    ((4, 5, 6), (1, 1, 1)),
    ((9, 6), (2, 2)),
    ((7, 6), (1, 2)),
    ((3, 1, 8), (2, 2, 2)),
]
F64 = torch.float64


def places(blocks):
    """(place, coarse voxel, fine voxel) of every fine voxel of the padded grid, one by one."""
    for number, place in enumerate(itertools.product(*[range(b) for b in blocks.sides])):
        for coarse in itertools.product(*[range(n) for n in blocks.coarse_shape]):
            fine = tuple(c * b + p for c, b, p in zip(coarse, blocks.sides, place, strict=True))
            yield number, coarse, fine


def gradient_by_u(blocks, image, weight, u):
    """Derivative of sum(weight * image(x + u(x))) by u, by autograd through the public field functions."""
    u = u.clone().requires_grad_()
    fine = upsample_field(u[None], blocks.sides, blocks.padded_shape)
    read = (
        blocks.split(warp(blocks.pad(image)[None], fine)[0]) if blocks.shape == blocks.padded_shape else None
    )
    assert read is not None
    return torch.autograd.grad((weight * read).sum(), u)[0]


@pytest.mark.parametrize(("shape", "sides"), CASES)
def test_every_fine_voxel_has_its_place(shape, sides):
    blocks = Blocks(shape, sides)
    image = torch.randn(2, *shape)
    parts, padded = blocks.split(image), blocks.pad(image)
    assert parts.shape == (2, blocks.per_block, *blocks.coarse_shape)
    assert padded.shape == (2, *blocks.padded_shape)
    for number, coarse, fine in places(blocks):
        inside = tuple(min(i, n - 1) for i, n in zip(fine, shape, strict=True))
        assert torch.equal(padded[(slice(None), *fine)], image[(slice(None), *inside)])
        assert torch.equal(parts[(slice(None), number, *coarse)], image[(slice(None), *inside)])


@pytest.mark.parametrize(("shape", "sides"), CASES)
def test_join_undoes_split(shape, sides):
    image = torch.randn(3, *shape)
    blocks = Blocks(shape, sides)
    assert torch.equal(blocks.join(blocks.split(image)), image)


@pytest.mark.parametrize(("shape", "sides"), CASES)
@pytest.mark.parametrize("size", [0.4, 3.0])
def test_reading_is_upsampling_and_sampling(shape, sides, size):
    """Also far outside: both repeat the border of the padded image."""
    blocks = Blocks(shape, sides)
    image = blocks.pad(torch.randn(2, *shape, dtype=F64))
    u = size * torch.randn(len(shape), *blocks.coarse_shape, dtype=F64)
    fine = upsample_field(u[None], sides, blocks.padded_shape)
    expected = Blocks(blocks.padded_shape, sides).split(warp(image[None], fine)[0])
    got = blocks.read(image, u)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1e-12
    assert (expected - blocks.split(image[(slice(None), *[slice(n) for n in shape])])).abs().max() > 0.05


def test_reading_at_rest_gives_the_image():
    blocks = Blocks((7, 5, 9), (2, 1, 2))
    image = torch.randn(1, 7, 5, 9)
    got = blocks.join(blocks.read(blocks.pad(image), torch.zeros(3, *blocks.coarse_shape)))
    assert (got - image).abs().max() < 1e-5


@pytest.mark.parametrize(("shape", "sides"), [c for c in CASES if min(c[0]) > 3])
def test_slope_of_a_linear_image(shape, sides):
    """Per coarse voxel: places times weight times the rise per coarse step; cut short at repeated borders."""
    blocks = Blocks(shape, sides)
    rise = torch.arange(1.0, len(shape) + 1)
    index = torch.meshgrid(*[torch.arange(float(n)) for n in blocks.padded_shape], indexing="ij")
    image = sum(r * i for r, i in zip(rise, index, strict=True))
    values = Blocks(blocks.padded_shape, sides).split(image[None])
    weight = torch.full_like(values, 0.5)
    got = blocks.slope(weight, values)
    for axis, side in enumerate(sides):
        expected = torch.full(blocks.coarse_shape, float(0.5 * blocks.per_block * rise[axis] * side))
        torch.testing.assert_close(got[axis], expected)


def test_slope_sums_over_channels_and_keeps_its_input():
    blocks = Blocks((6, 6, 6), (2, 1, 2))
    weight, values = torch.randn(3, 4, *blocks.coarse_shape), torch.randn(3, 4, *blocks.coarse_shape)
    kept = weight.clone(), values.clone()
    whole = blocks.slope(weight, values)
    apart = sum(blocks.slope(weight[c : c + 1], values[c : c + 1]) for c in range(3))
    torch.testing.assert_close(whole, apart)
    assert torch.equal(weight, kept[0])
    assert torch.equal(values, kept[1])


@pytest.mark.parametrize("sides", [(2, 2, 2), (1, 2, 1), (1, 1, 1)])
def test_slope_is_the_derivative_for_linear_images(sides):
    """Exact away from the border, where the reading is clamped and its derivative ends."""
    shape = (12, 10, 14)
    blocks = Blocks(shape, sides)
    index = torch.meshgrid(*[torch.arange(n, dtype=F64) for n in shape], indexing="ij")
    image = (2 * index[0] - index[1] + 0.5 * index[2])[None]
    u = torch.full((3, *blocks.coarse_shape), 0.3, dtype=F64)
    weight = torch.full((1, blocks.per_block, *blocks.coarse_shape), 1.5, dtype=F64)
    expected = gradient_by_u(blocks, image, weight, u)
    got = blocks.slope(weight, blocks.read(image, u))
    inner = (slice(None), *[slice(2, -2)] * 3)
    assert expected[inner].abs().min() > 0.5
    torch.testing.assert_close(got[inner], expected[inner])


@pytest.mark.parametrize(
    ("shape", "sides"), [((24, 26, 22), (2, 2, 2)), ((24, 26), (2, 1)), ((26, 24), (1, 1))]
)
def test_slope_is_close_to_the_derivative_for_smooth_images(shape, sides):
    """Weights and images that change over many voxels: the blocks' interpolation spreads little."""
    blocks = Blocks(shape, sides)
    index = torch.meshgrid(*[torch.arange(n, dtype=F64) for n in shape], indexing="ij")
    image = sum(torch.sin(i * 0.25 + a) for a, i in enumerate(index))[None]
    weight = blocks.split(torch.stack([i * 0.2 for i in index]).sin().prod(0, keepdim=True))
    coarse = torch.meshgrid(*[torch.arange(n, dtype=F64) for n in blocks.coarse_shape], indexing="ij")
    u = torch.stack([0.37 + 0.1 * torch.sin(0.3 * c) for c in coarse])
    expected = gradient_by_u(blocks, image, weight, u)
    got = blocks.slope(weight, blocks.read(image, u))
    inner = (slice(None), *[slice(3, -3)] * len(shape))
    error = (got - expected)[inner].norm() / expected[inner].norm()
    assert error < 0.2
    cosine = (got[inner] * expected[inner]).sum() / (got[inner].norm() * expected[inner].norm())
    assert cosine > 0.99


def test_an_axis_of_one_voxel_has_no_slope():
    blocks = Blocks((1, 6, 6), (1, 2, 2))
    values = torch.randn(1, 4, *blocks.coarse_shape)
    assert torch.equal(blocks.slope(torch.ones_like(values), values)[0], torch.zeros(blocks.coarse_shape))


@pytest.mark.parametrize("sides", [(3, 1, 1), (0, 1, 1), (1, 1), (2, 2, 2, 2)])
def test_other_blocks_are_refused(sides):
    with pytest.raises(ShapeError):
        Blocks((6, 6, 6), sides)
