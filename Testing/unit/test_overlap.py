"""Guidance losses: label overlap and landmark distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from DiffeoRegLib.errors import InputError, ShapeError
from DiffeoRegLib.losses import overlap
from DiffeoRegLib.losses.overlap import labels_in, landmark_distance_mm, one_hot, soft_dice, warped_label_dice
from DiffeoRegLib.space.sample import identity_vox, sample

SHAPES = [(5, 7, 6), (9, 8)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def label_map(shape, seed=0, labels=(0, 3, 7, 250)):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(labels)[torch.randint(len(labels), (1, 1, *shape), generator=generator)]


def positions(shape, seed=1, size=0.4):
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(1, len(shape), *shape, generator=generator, dtype=torch.float64)
    return identity_vox(shape, torch.float64) + size * shift


def test_labels_and_one_hot():
    labels = torch.tensor([[[[0, 5], [2, 5]]]])
    assert labels_in(labels, torch.tensor([9.0, 0.0])) == [2, 5, 9]
    assert one_hot(labels, [5, 2, 8]).tolist() == [[[[0, 1], [0, 1]], [[0, 0], [1, 0]], [[0, 0], [0, 0]]]]
    with pytest.raises(ShapeError):
        labels_in(torch.tensor([0.5]))
    with pytest.raises(ShapeError):
        one_hot(torch.zeros(4, 4), [1])


@every_shape
def test_soft_dice_of_label_maps_is_one_minus_dice(shape):
    first, second = label_map(shape), label_map(shape, seed=1)
    arrays = [np.array(t.tolist()) for t in (first, second)]
    dice = []
    for name in (3, 7, 250):
        masks = [a == name for a in arrays]
        dice.append(2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()))
    both = [one_hot(labels, [3, 7, 250]) for labels in (first, second)]
    assert float(soft_dice(*both)) == pytest.approx(1 - np.mean(dice), rel=1e-6)
    assert soft_dice(both[0], both[0]) == 0


def test_soft_dice_counts_labels_present_in_either():
    first = one_hot(torch.tensor([[[[1, 1], [0, 0]]]]), [1, 2, 3])
    second = one_hot(torch.tensor([[[[1, 1], [2, 0]]]]), [1, 2, 3])
    assert float(soft_dice(first, second)) == pytest.approx(0.5)  # label 1 agrees, 2 does not, 3 is nowhere
    assert soft_dice(first[:, 2:], second[:, 2:]) == 0


@every_shape
@pytest.mark.parametrize("masked", [False, True])
def test_warped_label_dice_is_soft_dice_of_the_warped_channels(shape, masked, monkeypatch):
    fixed, moving, where = label_map(shape), label_map(tuple(n + 2 for n in shape), seed=2), positions(shape)
    mask = (where[:, :1] % 1 > 0.3).double() if masked else None
    warped = sample(one_hot(moving, [3, 7, 250], torch.float64), where, outside="zeros")
    expected = soft_dice(one_hot(fixed, [3, 7, 250], torch.float64), warped, mask=mask)
    for batch in (8, 2, 1):
        monkeypatch.setattr(overlap, "LABELS_PER_BATCH", batch)
        torch.testing.assert_close(warped_label_dice(fixed, moving, where, mask=mask), expected)
    chosen = warped_label_dice(fixed, moving, where, labels=[7], mask=mask)
    torch.testing.assert_close(
        chosen, soft_dice(one_hot(fixed, [7], torch.float64), warped[:, 1:2], mask=mask)
    )


@every_shape
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(shape, masked):
    fixed, moving, where = label_map(shape), label_map(shape, seed=2), positions(shape).requires_grad_()
    mask = (positions(shape, seed=6)[:, :1] % 1).detach() if masked else None
    assert gradcheck(lambda p: warped_label_dice(fixed, moving, p, mask=mask), (where,), fast_mode=True)
    channels = torch.rand(1, 3, *shape, dtype=torch.float64)
    warped = torch.rand(1, 3, *shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda w: soft_dice(channels, w, mask=mask), (warped,), fast_mode=True)
    u_vox = torch.randn(1, len(shape), *shape, dtype=torch.float64, requires_grad=True)
    points, targets = 4 * torch.rand(2, 6, len(shape), dtype=torch.float64)
    spacing = (2.0, 0.7, 1.1)[: len(shape)]
    assert gradcheck(
        lambda u: landmark_distance_mm(u, points, targets, spacing, mask=mask), (u_vox,), fast_mode=True
    )


def test_label_guidance_pulls_labels_together():
    fixed, moving = torch.zeros(2, 1, 1, 12, 12, dtype=torch.long)
    fixed[..., 4:8, 4:8] = 1
    moving[..., 5:9, 4:8] = 1
    where = identity_vox((12, 12)).requires_grad_()
    (gradient,) = torch.autograd.grad(warped_label_dice(fixed, moving, where), where)
    assert gradient[:, 0].sum() < 0  # looking further down the first axis lowers the loss
    assert abs(gradient[:, 1].sum()) < 1e-6


@every_shape
def test_landmark_distance(shape):
    dim = len(shape)
    points = torch.tensor([[1.0, 2.0, 3.0], [2.5, 4.0, 1.5]])[:, :dim]
    spacing = (2.0, 0.5, 3.0)[:dim]
    still = torch.zeros(1, dim, *shape)
    assert landmark_distance_mm(still, points, points, spacing) == 0
    target = points.clone()
    target[0, 0] += 1.5
    target[1, 1] += 1.0
    assert float(landmark_distance_mm(still, points, target, spacing)) == pytest.approx((3.0 + 0.5) / 2)
    move = still.clone()
    move[:, 0] = 1.5
    assert float(landmark_distance_mm(move, points, target, spacing)) == pytest.approx(
        (0 + np.hypot(3.0, 0.5)) / 2
    )
    mask = torch.zeros(1, 1, *shape)
    mask[:, :, 1, 2] = 1  # the first landmark only
    assert float(landmark_distance_mm(still, points, target, spacing, mask=mask)) == pytest.approx(3.0)


def test_met_landmarks_have_a_finite_gradient():
    u_vox = torch.zeros(1, 2, 5, 5, requires_grad=True)
    points = torch.tensor([[1.0, 2.0]])
    (gradient,) = torch.autograd.grad(landmark_distance_mm(u_vox, points, points, (1.0, 1.0)), u_vox)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_bad_input_is_refused():
    u_vox, labels = torch.zeros(1, 2, 5, 5), torch.ones(1, 1, 5, 5)
    where = identity_vox((5, 5))
    with pytest.raises(InputError, match="landmark"):
        landmark_distance_mm(u_vox, torch.zeros(0, 2), torch.zeros(0, 2), (1.0, 1.0))
    with pytest.raises(ShapeError):
        landmark_distance_mm(u_vox, torch.zeros(3, 2), torch.zeros(2, 2), (1.0, 1.0))
    with pytest.raises(ShapeError):
        landmark_distance_mm(u_vox, torch.zeros(3, 2), torch.zeros(3, 2), (1.0, 1.0, 1.0))
    outside = torch.zeros(1, 1, 5, 5)
    outside[..., 4, 4] = 1
    with pytest.raises(InputError, match="mask"):
        landmark_distance_mm(u_vox, torch.ones(1, 2), torch.ones(1, 2), (1.0, 1.0), mask=outside)
    with pytest.raises(InputError, match="label"):
        warped_label_dice(0 * labels, 0 * labels, where)
    with pytest.raises(ShapeError):
        warped_label_dice(labels, labels, where[..., 1:])
    with pytest.raises(InputError, match="empty"):
        soft_dice(labels, labels, mask=0 * labels)
    with pytest.raises(ShapeError):
        soft_dice(labels, labels[..., 1:])


def test_labels_outside_the_mask_do_not_count():
    first = one_hot(torch.tensor([[[[1, 1], [0, 0]]]]), [1])
    second = one_hot(torch.tensor([[[[1, 1], [1, 0]]]]), [1])
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]]]])
    assert soft_dice(first, second, mask=mask) == 0
    assert soft_dice(first, second) > 0.1
