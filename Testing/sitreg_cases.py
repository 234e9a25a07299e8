"""SITReg networks with random weights that move images by a chosen amount, and images to move."""

from __future__ import annotations

import torch
from torch import nn

from DiffeoRegLib.networks.pyramid import PyramidConfig
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_options import SITRegOptions


def moving_network(dim=3, levels=3, strength=1.0, seed=0, dtype=torch.float32, affine=False, **options):
    """A small network whose control points are about tanh(strength * noise) of their bound."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    encoder = (4, *[8] * (levels - 1), *[8] * (4 if affine else 0))
    config = PyramidConfig(encoder, (4, *[8] * (levels - 1)), dim=dim, affine=affine)
    network = SITReg(config, SITRegOptions(**options)).to(dtype)
    for head in network.pyramid.heads:
        shape = head.last.weight.shape
        weight = torch.randn(shape, generator=generator) * strength * 20 / shape[1] ** 0.5
        head.last.weight = nn.Parameter(weight.to(dtype))
    return network.eval()


def pictures(shape, batch=1, seed=0, dtype=torch.float32):
    """Two batches of smooth random images with some noise."""
    generator = torch.Generator().manual_seed(seed)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    made = []
    for _ in range(2):
        coarse = torch.rand(batch, 1, *[max(2, n // 6) for n in shape], generator=generator)
        image = nn.functional.interpolate(coarse, size=shape, mode=mode)
        made.append((image + 0.1 * torch.rand(image.shape, generator=generator)).to(dtype))
    return made
