"""Velocities that change in time: made by hand, and by a tiny network whose weights are written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.velocity_files import SavedVelocities
from Testing.fake_run import hostile_grid, plane_grid
from Testing.geodesic_cases import TURN
from Testing.model_cases import write_weights

FIELDS = 3
SIZES = {
    "embed": 4, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "window": [2, 2, 2], "mlp_ratio": 2,
    "steps": FIELDS, "head_channels": 4, "drop_path": 0.0,
}  # fmt: skip


def bumps(grid: Grid, fields: int = FIELDS, speed: float = 2.0) -> torch.Tensor:
    """(fields, d, *grid.shape), voxels per unit time: another bump in every direction for each field."""
    found = []
    for number in range(fields):
        value = torch.ones(grid.shape)
        for axis, n in enumerate(grid.shape):
            shape = [-1 if a == axis else 1 for a in range(grid.dim)]
            place = torch.linspace(0, 1, n) - 0.35 - 0.1 * ((number + axis) % 3)
            value = value * torch.exp(-((place / 0.22) ** 2)).view(shape)
        turn = torch.arange(1, grid.dim + 1, dtype=torch.float32) + number
        found.append(speed * value * torch.cos(2.1 * turn).view(-1, *[1] * grid.dim))
    return torch.stack(found)


def saved(dim: int = 3, steps: int = FIELDS, order: str = "paper") -> SavedVelocities:
    """Three velocities on every second voxel of a grid that the fixed image reaches beyond."""
    working = hostile_grid((20, 24, 26)) if dim == 3 else plane_grid()
    grid = working.coarsened([2] * dim)
    cover = working.padded((2, 1, 0)[:dim], (0, 1, 3)[:dim])
    start = TURN if dim == 3 else np.eye(4)
    return SavedVelocities(bumps(grid), grid, order, steps, working, cover, start, 4.0)  # type: ignore[arg-type]


def network_weights(path: Path, dim: int = 3, spacing_mm: float = 2.0, speed: float = 0.4) -> Path:
    """Weights of a tiny network whose velocities are nearly the same: `speed` voxels of their grid a step."""
    sizes = {**SIZES, "window": SIZES["window"][:dim]}  # type: ignore[index]
    generator = torch.Generator().manual_seed(5)
    tensors = build_network(NetworkConfig("transmorph-tvf", sizes)).state_dict()
    for name, value in tensors.items():
        if name.startswith("steps.") and "head" in name:
            small = 0.002 * torch.randn(value.shape, generator=generator)
            tensors[name] = small + speed if name.endswith("bias") else small
    return write_weights(
        path,
        tensors,
        network={"name": "transmorph-tvf", "sizes": sizes, "options": {}},
        config={"data": {"source": "none", "spacing_mm": [spacing_mm] * dim}},
    )
