"""Small images with an organ on dark ground, for tests of lesions."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffeoRegLib.space.filters import gaussian_smooth
from DiffeoRegLib.space.sample import identity_vox
from DiffeoRegLib.training.draws import generator_for
from DiffeoRegLib.training.shapes import smooth_noise


def disc(shape: tuple[int, ...], center: tuple[float, ...], radius_vox: float) -> Tensor:
    """A ball with an edge of two voxels, (1, 1, *shape)."""
    offset = identity_vox(shape, torch.float32, torch.device("cpu")) - torch.tensor(center).view(
        1, -1, *[1] * len(shape)
    )
    return ((radius_vox - offset.norm(dim=1, keepdim=True)) / 2 + 0.5).clamp(0, 1)


def brain(shape: tuple[int, ...], seed: int) -> Tensor:
    """A textured ellipsoid in [0.2, 1] on 0, (1, 1, *shape)."""
    generator = generator_for("brain", *shape, seed)
    device = torch.device("cpu")
    texture = smooth_noise(generator, 1, shape, 8, device) + 0.5 * smooth_noise(
        generator, 1, shape, 4, device
    )
    offset = identity_vox(shape, torch.float32, device)
    squared = torch.zeros(1, 1, *shape)
    for axis, n in enumerate(shape):
        squared += ((offset[:, axis : axis + 1] - (n - 1) / 2) / (0.42 * n)) ** 2
    inside = (squared < 1).float()
    return gaussian_smooth((0.6 + 0.15 * texture).clamp(0.2, 1) * inside, 0.5) * inside
