"""A mask that lets no motion reach the border: the velocity and the momentum are multiplied by it alike.

v = M K (M m) is symmetric like K, so a geodesic keeps its energy; v = M K m, as in the authors' program,
loses it.  M does not move with the image: it belongs to the grid.
Source: the program of Shen, Vialard and Niethammer, NeurIPS 2019, for the mask itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.space.fourier import reflecting_gaussian

MARGIN_VOXELS = 4
SIGMA_OF_SIDE = 0.04
FEWEST_VOXELS = 12
"""Below that, nothing in the middle could move freely."""


def wall_mask(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """M, (1, 1, *shape): a box that is 0 in the outer MARGIN_VOXELS, smoothed, squared; from about 0 to 1.

    The width of the smoothing is SIGMA_OF_SIDE of the distance between the first and last voxel, per axis.
    Raises SettingsError for an axis below FEWEST_VOXELS.
    """
    if min(shape) < FEWEST_VOXELS:
        raise SettingsError(f"Walls need a map grid of {FEWEST_VOXELS} voxels per axis, not {tuple(shape)}.")
    box = torch.ones(1, 1, *shape, dtype=torch.float64, device=device)
    for axis, n in enumerate(shape):
        for first in (0, n - MARGIN_VOXELS):
            box.narrow(2 + axis, first, MARGIN_VOXELS).zero_()
    widths = tuple(SIGMA_OF_SIDE * (n - 1) for n in shape)
    return reflecting_gaussian(tuple(shape), widths, box.dtype, device)(box).square().to(dtype)


def held(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """Vectors (N, d, *shape) times a mask (1, 1, *shape); as they are without one."""
    return vectors if mask is None else vectors * mask
