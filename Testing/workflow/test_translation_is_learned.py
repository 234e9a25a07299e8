"""A SITReg network that trains on one pair finds the whole voxels by which the images differ."""

from __future__ import annotations

import pytest
import torch

from DiffeoRegLib.networks.pyramid import PyramidConfig
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_options import SITRegOptions
from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.training.config import LossConfig
from DiffeoRegLib.training.objective import Batch, Objective

MARGIN = 6


def shifted_pair(shape, shift):
    """Two windows of one smooth texture: moving(x + shift) = fixed(x) exactly, new content at the border."""
    generator = torch.Generator().manual_seed(4)
    texture = torch.rand(1, 1, *[n + 2 * MARGIN for n in shape], generator=generator)
    texture = gaussian_smooth(texture, 1.5)
    texture = (texture - texture.min()) / (texture.max() - texture.min())
    windows = []
    for sign in (0, 1):
        box = [slice(MARGIN - sign * s, MARGIN - sign * s + n) for n, s in zip(shape, shift, strict=True)]
        windows.append(texture[(slice(None), slice(None), *box)])
    fixed, moving = windows
    return moving, fixed


@pytest.mark.parametrize(
    ("shape", "shift", "fast", "steps"),
    [((40, 44), (3, -2), False, 80), ((20, 22, 20), (2, -1, 2), True, 100)],
)
def test_one_pair_and_its_shift(shape, shift, fast, steps):
    dim = len(shape)
    moving, fixed = shifted_pair(shape, shift)
    inner = (slice(None), slice(None), *[slice(6, -6)] * dim)
    target = torch.tensor(shift, dtype=torch.float32).reshape(1, dim, *[1] * dim)
    torch.manual_seed(0)
    channels = (8, 16, 16, 16)
    network = SITReg(PyramidConfig(channels, channels, dim=dim), SITRegOptions(fast=fast))
    objective = Objective([LossConfig("lncc", 1.0, {"window": 7}), LossConfig("gradient", 0.5)])
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    batch = Batch(moving, fixed)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        optimiser.zero_grad()
        loss, _ = objective(network(moving, fixed), batch)
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        maps = network(moving, fixed)
    for u_vox, wanted in ((maps.u12, target), (maps.u21, -target)):
        assert float((u_vox - wanted)[inner].abs().max()) < 0.25
