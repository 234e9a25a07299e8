"""Small volumes that the tests of files share."""

from __future__ import annotations

import numpy as np
import torch

from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.volume import Volume

OBLIQUE = np.array(
    [[1.5, 0.4, -0.3, 10.0], [-0.375, 1.6, 0.45, -20.0], [0.2475, -0.28, 2.4, 30.0], [0, 0, 0, 1.0]]
)


def oblique_grid(shape=(5, 6, 7)) -> Grid:
    """A left-handed, anisotropic grid at an odd angle."""
    axes, _ = np.linalg.qr(OBLIQUE[:3, :3])
    world = np.eye(4)
    world[:3, :3] = axes * [2.5, 1.25, 0.75]
    world[:3, 3] = (10, -20, 30)
    return Grid(shape, world)


def volume(shape=(5, 6, 7), *, labels=False) -> Volume:
    rng = np.random.default_rng(5)
    data = rng.integers(0, 300, shape) if labels else rng.normal(50, 20, shape)
    kind = torch.int32 if labels else torch.float32
    return Volume(torch.tensor(data.tolist(), dtype=kind), oblique_grid(shape), "v", labels)
