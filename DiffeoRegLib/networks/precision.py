"""How far a network's maps move when its convolutions are rounded to bfloat16 on the device at hand."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_options import PRECISIONS
from DiffeoRegLib.space.filters import gaussian_smooth

TRIAL_SIZE = 24
TRIAL_SIGMA_VOX = 2.0


@torch.no_grad()
def precision_gap_vox(network: SITReg, image_1: Tensor, image_2: Tensor) -> float:
    """Largest difference between the maps with bfloat16 and with full convolutions, voxels.

    Some machines' half precision convolutions were wrong, not only rounded: look before trusting them.
    """
    options = network.options
    found = []
    try:
        for precision in PRECISIONS:
            network.options = replace(options, precision=precision)
            found.append(network(image_1, image_2).u12)
    finally:
        network.options = options
    return float((found[0] - found[1]).abs().max())


def trial_gap_vox(network: SITReg) -> float:
    """`precision_gap_vox` of two small smooth pictures, the same ones every time, on the network's device."""
    config, like = network.config, network.pyramid.encoder.entry.weight
    shape = (max(TRIAL_SIZE, network.smallest_size),) * config.dim
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand((2, config.channels_in, *shape), generator=generator)
    smooth = gaussian_smooth(pictures, TRIAL_SIGMA_VOX).to(like)
    low, high = smooth.amin(), smooth.amax()
    one, other = torch.split((smooth - low) / (high - low), 1)
    return precision_gap_vox(network, one, other)
