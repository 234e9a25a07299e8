"""Small SITReg networks in files of weights, pairs on hostile grids, and what exchanged results share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.transform import AffineTransform, CompositeTransform, DisplacementTransform, Transform
from DiffeoRegLib.training.checkpoint import write_checkpoint
from DiffeoRegLib.volumes.volume import Volume
from Testing.scenes import Scene, turned_grid
from Testing.sitreg_cases import moving_network

TURN = AffineTransform(
    np.array([[0.98, -0.17, 0.02, 3.0], [0.17, 0.97, 0.05, -2.0], [-0.03, -0.05, 1.04, 1.5], [0, 0, 0, 1.0]])
)
TURN_IN_PLANE = AffineTransform(
    np.array([[0.98, -0.17, 0, -2.0], [0.17, 0.98, 0, 3.0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
)


def network_file(
    path: Path, strength: float = 30.0, dim: int = 3, levels: int = 3, spacing_mm: float = 2.0, **options: Any
) -> Path:
    """A file of weights; strength: 0 = it never moves anything, 1 = a little, 30 = near its bound."""
    network = moving_network(dim=dim, levels=levels, strength=strength, seed=1)
    if strength == 0:
        for head in network.pyramid.heads:
            torch.nn.init.zeros_(head.last.bias)
    sizes = {"encoder": list(network.config.encoder), "heads": list(network.config.heads), "dim": dim}
    write_checkpoint(
        path,
        network.state_dict(),
        {
            "kind": "weights",
            "network": {"name": "sitreg", "sizes": sizes, "options": options},
            "config": {"data": {"source": "synthetic", "spacing_mm": [spacing_mm] * dim}},
            "step": 1,
        },
    )  # fmt: skip
    return path


def settings_for(weights: Path, **changes: Any) -> Settings:
    """The network of a file alone, on the CPU, after no more than a centring."""
    usual: dict[str, Any] = {"method": "sitreg", "weights": str(weights), "device": "cpu", "init": "mass",
                             "effort": "fast"}  # fmt: skip
    return Settings(**(usual | changes))


def hostile_pair(dim: int = 3, size_mm: float = 1.5, **others: Any) -> tuple[Scene, Volume, Volume]:
    """A scene as two scanners see it: oblique, anisotropic, flipped, odd and different sizes."""
    scene = Scene(size_mm=size_mm, flat=dim == 2, **others)
    if dim == 2:
        fixed, moving = (
            turned_grid((40, 37), (1.4, 1.1), 20, (1,)),
            turned_grid((35, 44), (1.2, 1.0), -15, (0,)),
        )
    else:
        fixed = turned_grid((19, 26, 23), (1.9, 1.4, 1.5), 15, (1,))
        moving = turned_grid((26, 21, 24), (1.4, 1.7, 1.5), -20, (0, 2))
    return scene, scene.fixed(fixed), scene.moving(moving)


def same_numbers(one: Transform, other: Transform) -> bool:
    """True if two transforms have the same parts, to the last bit."""
    assert isinstance(one, CompositeTransform)
    assert isinstance(other, CompositeTransform)
    return all(_same_part(a, b) for a, b in zip(one.parts, other.parts, strict=True))


def _same_part(one: Transform, other: Transform) -> bool:
    if isinstance(one, AffineTransform) and isinstance(other, AffineTransform):
        return np.array_equal(one.moving_from_fixed, other.moving_from_fixed)
    assert isinstance(one, DisplacementTransform)
    assert isinstance(other, DisplacementTransform)
    same_grid = np.array_equal(one.grid.world_from_voxel, other.grid.world_from_voxel)
    return same_grid and torch.equal(one.u_mm, other.u_mm)
