"""The membrane against a dense solution; the intensity source in closed form, its trust, its shares."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.losses.source import LEAST_TRUST, LevelSource, box_of, smooth_source
from DiffeoRegLib.space.blocks import Blocks
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.membrane import membrane
from Testing.scenes import texture


def dense_minimum(target, hold, edges):
    """The same energy as one matrix; target (1, 1, *shape)."""
    shape, count = target.shape[2:], target.numel()
    index = torch.arange(count).view(shape)
    matrix = torch.diag(hold.flatten())
    for axis, edge in enumerate(edges):
        size = shape[axis] - 1
        low, high = (index.narrow(axis, start, size).flatten().tolist() for start in (0, 1))
        for i, j, value in zip(low, high, edge.flatten().tolist(), strict=True):
            matrix[i, i] += value
            matrix[j, j] += value
            matrix[i, j] -= value
            matrix[j, i] -= value
    return torch.linalg.solve(matrix, (hold * target).flatten()).view_as(target)


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 3)])
def test_the_membrane_is_the_minimum(shape):
    torch.manual_seed(1)
    target, hold = torch.randn(2, 1, 1, *shape, dtype=torch.float64)
    hold = hold.abs() + 0.1
    edges = [
        torch.rand(1, 1, *[n - (a == axis) for a, n in enumerate(shape)]).double()
        for axis in range(len(shape))
    ]
    found = membrane(torch.cat([target, 2 * target], 1), hold, edges, 200)
    expected = dense_minimum(target, hold, edges)
    torch.testing.assert_close(found[:, :1], expected, rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(found[:, 1:], 2 * expected, rtol=1e-2, atol=1e-2)
    assert float((expected - target).abs().max()) > 0.3


def test_a_membrane_without_a_hole_stays():
    target = texture((8, 9))
    edges = [torch.zeros(1, 1, 7, 9), torch.zeros(1, 1, 8, 8)]
    assert torch.equal(membrane(target, torch.ones(1, 1, 8, 9), edges, 50), target)


def test_a_hole_is_filled_by_a_plane():
    """Linear around, linear within: the least slope between what is held."""
    ramp = torch.arange(12.0).view(1, 1, 12, 1).expand(1, 1, 12, 10).clone()
    hold = torch.ones(1, 1, 12, 10)
    hold[..., 4:8, :] = 0
    start = ramp.clone()
    start[..., 4:8, :] = 5.0
    free = (hold == 0).float()
    edges = [torch.maximum(free[..., :-1, :], free[..., 1:, :]), torch.maximum(free[..., :-1], free[..., 1:])]
    found = membrane(start, 1e4 * hold, edges, 300)
    torch.testing.assert_close(found, ramp, atol=0.02, rtol=0)


# ---------------------------------------------------------------- the source


def square(shape, low, high):
    marks = torch.zeros(1, 1, *shape)
    marks[(..., *[slice(a, b) for a, b in zip(low, high, strict=True)])] = 1
    return marks


def test_a_constant_difference_is_a_source_whatever_its_edge():
    marks = square((20, 24), (5, 6), (14, 15))
    for rho in (0.0, 64.0, 1e4):
        source = smooth_source(0.4 * marks, marks, (1.0, 2.0), rho)
        torch.testing.assert_close(marks * source, 0.4 * marks, atol=1e-3, rtol=0)


def test_roughness_costs_the_more_the_larger_rho_is():
    """rho 0 explains all; a large rho leaves everything but the mean."""
    marks = square((20, 24), (4, 4), (16, 20))
    residual = texture((20, 24), sigma=1.0)
    left = []
    for rho in (0.0, 4.0, 100.0, 1e6):
        source = smooth_source(residual, marks, (1.0, 1.0), rho)
        left.append(float((marks * (residual - source).square()).sum()))
    assert left[0] < 1e-9
    assert left[0] < left[1] < left[2] < left[3]
    inside = residual[marks > 0]
    assert left[3] == pytest.approx(float((inside - inside.mean()).square().sum()), rel=0.05)


def test_rho_is_in_millimetres():
    """The same picture on twice as fine voxels has the same source."""
    coarse_marks, coarse = square((16, 16), (3, 3), (13, 12)), texture((16, 16))
    fine_marks, fine = (v.repeat_interleave(2, 2).repeat_interleave(2, 3) for v in (coarse_marks, coarse))
    found = smooth_source(fine, fine_marks, (1.0, 1.0), 30.0)
    expected = smooth_source(coarse, coarse_marks, (2.0, 2.0), 30.0)
    means = torch.nn.functional.avg_pool2d(found, 2)
    assert float(((means - expected) * coarse_marks).abs().max()) < 0.03


def scene(shape=(32, 36)):
    """Blocks, a healthy image, and the same with a bright patch, block-wise; the marks of the patch."""
    blocks = Blocks(shape, [2] * len(shape))
    image = texture(shape, sigma=3.0)
    marks = square(shape, (10, 10), (20, 22))
    return blocks, image, marks


def taken_off(blocks, fixed, moving, fixed_marks, moving_marks):
    source = LevelSource(fixed_marks, moving_marks, blocks, (1.0, 1.0))
    rest = torch.zeros(1, 2, *blocks.coarse_shape)
    weight = torch.ones(blocks.coarse_shape)
    found = source.taken_off(blocks.split(fixed[0]), blocks.split(moving[0]), weight, rest, rest)
    return blocks.join(found[0])[None], blocks.join(found[1])[None], found[2]


def test_a_smooth_stain_is_taken_off_and_what_shows_through_is_trusted():
    blocks, image, marks = scene()
    noise = 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    fixed, moving, trust = taken_off(blocks, image + 0.3 * marks + noise * (1 - marks), image, marks, None)
    torch.testing.assert_close(fixed, image, atol=0.06, rtol=0)
    assert torch.equal(moving, image)
    assert float(trust.min()) > 0.9


def test_what_no_source_explains_is_not_trusted():
    blocks, image, marks = scene()
    generator = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(image.shape, generator=generator)
    rough = gaussian_smooth(torch.randn(image.shape, generator=generator), 1.0)
    _, _, trust = taken_off(blocks, image + marks * rough + noise, image, marks, None)
    inside = torch.nn.functional.avg_pool2d(marks, 2)[0, 0] == 1
    assert float(trust[inside].max()) < 0.2
    assert float(trust.min()) >= LEAST_TRUST
    outside = torch.nn.functional.avg_pool2d(marks, 2)[0, 0] == 0
    assert float(trust[outside].min()) > 0.999


def test_marks_of_either_image_work_alike_and_both_share():
    blocks, image, marks = scene()
    ill = image + 0.3 * marks
    first = taken_off(blocks, ill, image, marks, None)
    second = taken_off(blocks, image, ill, None, marks)
    torch.testing.assert_close(first[0], second[1])
    torch.testing.assert_close(first[2], second[2])
    both = taken_off(blocks, ill, image - 0.1 * marks, marks, marks)
    torch.testing.assert_close(both[0] - both[1], torch.zeros_like(image), atol=0.02, rtol=0)
    middle = image + 0.1 * marks  # each image bears half
    torch.testing.assert_close(both[0], middle, atol=0.02, rtol=0)


def test_without_marks_in_sight_nothing_changes():
    blocks, image, marks = scene()
    fixed, moving, trust = taken_off(blocks, image + 0.1, image, 0 * marks, None)
    assert torch.equal(fixed, image + 0.1)
    assert torch.equal(moving, image)
    assert bool((trust == 1).all())


def test_a_box_holds_all_marks_and_two_voxels_at_least():
    marks = torch.zeros(1, 4, 9, 8)
    assert box_of(marks) is None
    marks[0, 2, 8, 3] = 0.1
    assert box_of(marks) == (slice(7, 9), slice(2, 4))
    marks[0, 0, 2, 5] = 1
    assert box_of(marks) == (slice(2, 9), slice(3, 6))
