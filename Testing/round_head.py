"""A head made of balls, of which one knows every voxel."""

from __future__ import annotations

import numpy as np
import torch

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.volume import Volume

SIZE = 40


def head(noise):
    """A ball of 32 mm: a shell of fluid, grey, white matter, a pool deep inside; and what each voxel is."""
    offset = np.indices((SIZE,) * 3) - (SIZE - 1) / 2
    radius = np.sqrt((offset**2).sum(0)) * 2
    kinds = np.select([radius < 10, radius < 22, radius < 28, radius < 32], [1, 3, 2, 1], 0)
    values = np.array([0.0, 20.0, 100.0, 160.0])[kinds]
    grain = noise * np.random.default_rng(0).standard_normal(kinds.shape)
    image = np.where(kinds > 0, np.maximum(values + grain, 1), 0)
    grid = Grid(kinds.shape, np.diag([2.0, 2, 2, 1]))
    return Volume(torch.tensor(image, dtype=torch.float32), grid, "head"), kinds
