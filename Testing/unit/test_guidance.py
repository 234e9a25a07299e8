"""Labels and landmarks pull the flow until they meet, and rest when they do."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.losses.guidance import LABELS_AT_ONCE, LabelPull, label_shares, landmark_force
from DiffeoRegLib.losses.overlap import one_hot
from DiffeoRegLib.space.field import downsample_image
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import identity_vox, sample, warp

SHAPES = [(18, 20, 22), (26, 24)]


def ball(shape, centre, radius):
    distance = (identity_vox(shape) - torch.tensor(centre).view(1, -1, *[1] * len(shape))).square().sum(1)
    return (distance < radius**2)[:, None]


def two_balls(shape, shift):
    """Labels 2 and 7, the second one inside a corner; moved along the axes by `shift`."""
    middle = [n / 2 + s for n, s in zip(shape, shift, strict=True)]
    corner = [n / 4 + s for n, s in zip(shape, shift, strict=True)]
    labels = 2 * ball(shape, middle, 5.0).int()
    return torch.where(ball(shape, corner, 3.0), 7, labels).int()


def dice_sum(fixed, moving, to_moving, to_fixed):
    """Sum of the soft Dices of label shares (1, L, *shape) met half-way: by definition, not by formula."""
    f, m = warp(fixed, to_fixed[None]), warp(moving, to_moving[None])
    axes = tuple(range(2, f.dim()))
    return (2 * (f * m).sum(axes) / ((f * f).sum(axes) + (m * m).sum(axes))).sum()


def test_label_shares_are_block_means():
    labels = two_balls((9, 10, 11), (0, 0, 0))
    shares = label_shares(labels, [2, 7], (2, 1, 3))
    expected = downsample_image(one_hot(labels, [2, 7]), (2, 1, 3))[0]
    assert torch.equal(shares, expected)
    assert shares.shape == (2, 5, 10, 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_following_the_labels_raises_their_overlap(shape):
    dim = len(shape)
    fixed, moving = two_balls(shape, [0.0] * dim), two_balls(shape, [2.0, -1.0, 1.0][:dim])
    pull = LabelPull(fixed, moving, (1,) * dim)
    shares = label_shares(fixed, [2, 7], (1,) * dim)[None], label_shares(moving, [2, 7], (1,) * dim)[None]
    velocity = torch.zeros(1, dim, *shape)
    values = []
    for _ in range(25):
        to_moving, to_fixed = exp(velocity * 0.5, 3)[0], exp(velocity * -0.5, 3)[0]
        values.append(float(dice_sum(*shares, to_moving, to_fixed)) / 2)
        force = gaussian_smooth(pull.force(to_moving, to_fixed)[None], 2.0)
        velocity = velocity + 0.4 * force / force.square().sum(1).amax().sqrt()
    assert values[0] < 0.7
    assert values[-1] > 0.9
    assert values[1] > values[0]
    at = tuple(n // 2 for n in shape)
    signs = [float(velocity[0, a][at]) for a in range(dim)]
    assert [s > 0 for s in signs] == [True, False, True][:dim]


@pytest.mark.parametrize("shape", SHAPES)
def test_label_force_is_the_derivative_of_soft_dice(shape):
    """By autograd through both readings: exact up to how a derivative is taken between voxels.

    Off the voxel centres the reading's own derivative is one difference, the force's the central one of what
    was read; on shares that are smooth both are near each other.
    """
    dim = len(shape)
    one = (1,) * dim
    fixed, moving = two_balls(shape, [0.0] * dim), two_balls(shape, [2.0, -1.0, 1.0][:dim])
    pull = LabelPull(fixed, moving, one)
    pull.fixed, pull.moving = (
        gaussian_smooth(label_shares(v, [2, 7], one)[None], 1.5)[0] for v in (fixed, moving)
    )
    size = [(-1) ** a * (0.3 + 0.1 * a) for a in range(dim)]
    half = torch.tensor(size).view(-1, *[1] * dim).expand(dim, *shape)
    step = torch.zeros(dim, *shape, requires_grad=True)
    value = dice_sum(pull.fixed[None], pull.moving[None], half + step, -half - step)
    (expected,) = torch.autograd.grad(value, step)
    got = pull.force(half, -half)
    inner = (slice(None), *[slice(1, -1)] * dim)
    assert expected.abs().max() > 1e-4
    assert (got - expected)[inner].norm() < 0.15 * expected[inner].norm()
    assert got.norm() / expected.norm() == pytest.approx(1, abs=0.15)


def test_more_labels_than_fit_at_once_all_count():
    """The force of many labels is the sum of the forces of each."""
    count = LABELS_AT_ONCE + 3
    fixed = torch.randint(0, count + 1, (1, 1, 6, 8, 7))
    moving = torch.randint(0, count + 1, (1, 1, 6, 8, 7))
    rest = torch.zeros(3, 6, 8, 7)
    whole = LabelPull(fixed, moving, (1, 1, 1)).force(rest, rest)
    apart = torch.zeros_like(whole)
    for label in range(1, count + 1):
        each = [torch.where(v == label, label, 0) for v in (fixed, moving)]
        apart += LabelPull(*each, (1, 1, 1)).force(rest, rest)
    torch.testing.assert_close(whole, apart)


def test_labels_that_meet_do_not_pull():
    labels = two_balls((12, 14, 16), (0, 0, 0))
    rest = torch.zeros(3, 12, 14, 16)
    assert not LabelPull(labels, labels.clone(), (1, 1, 1)).force(rest, rest).any()


def test_labels_without_a_partner_do_not_pull():
    fixed = torch.where(two_balls((12, 14, 16), (0, 0, 0)) == 2, 2, 0)
    moving = torch.where(two_balls((12, 14, 16), (1, 0, 0)) == 7, 7, 0)
    rest = torch.zeros(3, 12, 14, 16)
    assert not LabelPull(fixed, moving, (1, 1, 1)).force(rest, rest).any()
    both = LabelPull(two_balls((12, 14, 16), (0, 0, 0)), moving, (1, 1, 1))
    assert torch.equal(
        both.force(rest, rest),
        LabelPull(torch.where(two_balls((12, 14, 16), (0, 0, 0)) == 7, 7, 0), moving, (1, 1, 1)).force(
            rest, rest
        ),
    )


def test_swapping_the_images_turns_the_label_force_around():
    fixed, moving = two_balls((12, 14, 16), (0, 0, 0)), two_balls((12, 14, 16), (1, 1, 0))
    half = 0.3 * torch.randn(3, 12, 14, 16)
    there = LabelPull(fixed, moving, (1, 1, 1)).force(half, -half)
    back = LabelPull(moving, fixed, (1, 1, 1)).force(-half, half)
    torch.testing.assert_close(there, -back)


# ---------------------------------------------------------------- landmarks


def gaps(velocity, fixed, moving):
    """Distance of the fixed points carried by the whole flow from the moving ones, voxels."""
    return (fixed + sample(exp(velocity, 6), fixed) - moving).square().sum(1).sqrt()


@pytest.mark.parametrize("shape", SHAPES)
def test_following_the_landmarks_brings_them_together(shape):
    dim = len(shape)
    size = torch.tensor([float(n) for n in shape]).view(1, -1, 1)
    fixed = (0.3 + 0.4 * torch.rand(1, dim, 3)) * size
    moving = fixed + torch.tensor([2.0, -1.5, 1.0][:dim]).view(1, -1, 1)
    velocity = torch.zeros(1, dim, *shape)
    before = gaps(velocity, fixed, moving)
    for _ in range(40):
        flow = exp(velocity * 0.5, 4), exp(velocity * -0.5, 4)
        force = gaussian_smooth(landmark_force(flow, (fixed, moving))[None], 2.5)
        velocity = velocity + 0.3 * force / force.square().sum(1).amax().sqrt()
    after = gaps(velocity, fixed, moving)
    assert before.min() > 2
    assert after.max() < 0.35


def test_landmarks_that_meet_do_not_pull():
    points = torch.tensor([[4.0, 7.5], [5.0, 8.25], [6.0, 2.0]])[None]
    rest = torch.zeros(1, 3, 12, 14, 16)
    assert not landmark_force((rest, rest), (points, points.clone())).any()


def test_landmarks_met_by_the_flow_do_not_pull():
    """A constant velocity carries every fixed point to the moving one; half of it to half-way space."""
    shift = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, 12, 14, 16)
    fixed = torch.tensor([[4.0, 7.0], [5.0, 8.0], [6.0, 9.0]])[None]
    force = landmark_force((0.5 * shift, -0.5 * shift), (fixed, fixed + shift[..., 0, 0, :1]))
    assert force.abs().max() < 1e-6


def test_the_step_at_a_landmark_is_its_gap_in_half_way_space():
    rest = torch.zeros(1, 2, 10, 12)
    fixed = torch.tensor([[3.0, 3.0, 8.0], [4.0, 4.0, 9.0]])[None]
    moving = torch.tensor([[5.0, 3.0, 30.0], [4.0, 7.0, 9.0]])[None]
    force = landmark_force((rest, rest), (fixed, moving))
    expected = torch.zeros(2, 10, 12)
    expected[:, 4, 4] += torch.tensor([2.0, 0.0])
    expected[:, 3, 6] += torch.tensor([0.0, 3.0])  # the middle, 5.5, is rounded to the even voxel
    expected[:, 9, 9] += torch.tensor([22.0, 0.0])  # its middle is outside: it pulls at the border
    assert torch.equal(force, expected)


def test_landmarks_in_one_voxel_pull_together():
    rest = torch.zeros(1, 2, 10, 12)
    fixed = torch.tensor([[3.0, 3.2], [4.0, 4.1]])[None]
    moving = fixed + torch.tensor([1.0, 0.0]).view(1, 2, 1)
    assert float(landmark_force((rest, rest), (fixed, moving))[0].sum()) == pytest.approx(2.0)
    assert int((landmark_force((rest, rest), (fixed, moving)) != 0).sum()) == 1


def test_swapping_the_landmarks_turns_the_force_around():
    half = 0.3 * torch.randn(1, 2, 10, 12)
    fixed, moving = 9 * torch.rand(1, 2, 5), 9 * torch.rand(1, 2, 5)
    there, back = (
        landmark_force((half, -half), (fixed, moving)),
        landmark_force((-half, half), (moving, fixed)),
    )
    torch.testing.assert_close(there, -back)
