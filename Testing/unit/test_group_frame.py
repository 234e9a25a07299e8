"""Velocities of a group, seen from its fixed image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffeoRegLib.flows.exponential import midpoint_exp
from DiffeoRegLib.methods.group_frame import seen_from
from DiffeoRegLib.space.field import compose
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.grid import Grid
from Testing.benchmarks.group_uncertainty import Case, judged

GRID = Grid((48, 48), np.eye(4))
INNER = (..., slice(8, -8), slice(8, -8))


def velocities(count: int) -> torch.Tensor:
    """Smooth velocities of up to about 5 voxels at rest near the border, with a mean of zero."""
    white = torch.randn(count, 2, 48, 48, generator=torch.Generator().manual_seed(2))
    line = (torch.minimum(torch.arange(48), 47 - torch.arange(48)) / 12).clamp(max=1)
    smooth = gaussian_smooth(white, 6.0) * line[:, None] * line
    smooth *= 5 / float(smooth.square().sum(1).sqrt().max())
    return smooth - smooth.mean(0, keepdim=True)


@pytest.mark.parametrize("fixed", [0, 2])
def test_flows_lead_from_the_fixed_image(fixed):
    given = velocities(3)
    found = seen_from(given.clone(), GRID, fixed)
    assert not found[fixed].any()
    for index in range(3):
        wanted = compose(midpoint_exp(given[index : index + 1]), midpoint_exp(-given[fixed : fixed + 1]))
        wrong = (midpoint_exp(found[index : index + 1]) - wanted)[INNER].square().sum(1).sqrt()
        plain = given[index : index + 1] - given[fixed : fixed + 1]
        guess = (midpoint_exp(plain) - wanted)[INNER].square().sum(1).sqrt()
        assert float(wrong.mean()) < 0.03
        assert float(wrong.max()) < 0.3
        if index != fixed:
            assert float(wrong.mean()) < 0.3 * float(guess.mean())


def test_of_two_images_it_is_twice_the_half():
    given = velocities(2)
    found = seen_from(given.clone(), GRID, 1)
    assert torch.equal(found[0], given[0] - given[1])
    assert not found[1].any()


def test_noise_does_not_pull_an_image_that_goes_to_another():
    """Compared in the space of the fixed image, errors are a third larger, and predicted far too large."""
    found = judged(Case("made", (80, 80), 4, 0.03, 2.0, 12.0, "lncc", fixed=1, seed=4))
    assert found["error_mm"] < 0.2 * found["motion_mm"]
    assert 0.6 < found["spread"] < 1.5
