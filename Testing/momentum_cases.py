"""Small networks that predict a momentum, lively ones, and files of their weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.networks.shooting_net import RDMMNet, ShootingNet
from DiffeoRegLib.plain import as_plain
from DiffeoRegLib.training.checkpoint import write_checkpoint

NAMES = ("vsvf-network", "lddmm-network", "rdmm-network")
SIGMAS = (0.13, 0.25)
"""Four voxels or more of the boxes here: the map grid takes every second one."""


def sizes_of(dim: int = 2, **changes: Any) -> dict[str, Any]:
    """Sizes of a small network."""
    box = [32, 36, 34][:dim]
    return {"box": box, "sigmas": list(SIGMAS), "weights": [1.0, 3.0], "width": 0.25, **changes}


def small(name: str, dim: int = 2, seed: int = 0, looks: int = 2, **changes: Any) -> ShootingNet:
    """An untrained network of random weights."""
    torch.manual_seed(seed)
    made = build_network(NetworkConfig(name, sizes_of(dim, **changes), {"looks": looks}))
    assert isinstance(made, ShootingNet)
    return made


def lively(network: ShootingNet, largest: float = 0.4, seed: int = 1) -> ShootingNet:
    """The same with a momentum of about this size, in sides of the box, and with pre-weights that differ."""
    head = network.momentum.last[1]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
        shape = (1, 1, *network.sizes.box)
        one, other = (torch.rand(shape, generator=generator) * 2 - 1 for _ in range(2))
        head.weight.mul_(largest / network.momentum(one, other).abs().max())
        if isinstance(network, RDMMNet):
            network.preweights.norm.weight.fill_(0.5)
    return network.eval()


def pictures(shape: tuple[int, ...], batch: int = 1, seed: int = 0) -> list[torch.Tensor]:
    """Two batches of smooth random images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    coarse = [torch.rand(batch, 1, *[max(2, n // 5) for n in shape], generator=generator) for _ in range(2)]
    return [torch.nn.functional.interpolate(part, size=shape, mode=mode) for part in coarse]


def write_network(path: Path, network: ShootingNet, name: str, spacing_mm: float = 1.0) -> Path:
    """A file of its weights, as a training run writes it."""
    description = {
        "kind": "weights",
        "network": {"name": name, "sizes": as_plain(network.sizes), "options": {"looks": network.looks}},
        "config": {"data": {"spacing_mm": [spacing_mm] * network.sizes.dim}},
    }
    write_checkpoint(path, network.state_dict(), description)
    return path


def with_looks(network: ShootingNet, looks: int) -> ShootingNet:
    """The same network, which looks so many times."""
    network.options = replace(network.options, looks=looks)
    return network
