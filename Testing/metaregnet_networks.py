"""Tiny MetaRegNets, their files, the settings that run them, and images: for the tests of the method."""

from __future__ import annotations

import math

import numpy as np
import torch

from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.sample import tensor_from_array
from DiffeoRegLib.training.checkpoint import write_checkpoint
from DiffeoRegLib.volumes.volume import Volume
from Testing.scenes import CENTRE_MM, points_of, texture, turned_grid

SIZES = {"encoder": [4, 4], "decoder": [4, 4, 4, 4], "up": [4, 4], "blocks": 2}


def network_file(path, network, spacing_mm, **more):
    """A file of weights of a network from `tiny` or `constant`."""
    content = {
        "kind": "weights",
        "network": {"name": "metaregnet", "sizes": network.sizes, "options": {}},
        "config": {"data": {"spacing_mm": list(spacing_mm)}},
        **more,
    }
    write_checkpoint(path, network.state_dict(), content)
    return path


def tiny(dim=2, largest=1.5, change=0.4, **changes):
    """A network that moves some pictures by up to `largest` voxels and changes them by up to `change`."""
    network = _network(dim, **changes)
    for block in [*network.motion, *network.appearance]:
        block.second.weight.zero_()
    moving, fixed = (texture([24] * dim, seed) for seed in (1, 2))
    for head in (network.motion_head, network.appearance_head):
        head.weight.normal_(std=1.0)
    found = network(moving, fixed)
    network.motion_head.weight.mul_(largest / float(found.u12.abs().max()))
    network.appearance_head.weight.mul_(math.atanh(change) / float(found.appearance.atanh().abs().max()))
    return network


def constant(shift_vox, change=0.0, **changes):
    """A network that says the same shift, voxels, and change of intensity everywhere for any images."""
    network = _network(len(shift_vox), **changes)
    for value in network.parameters():
        value.zero_()
    network.unet.decoder[-1][0].bias.fill_(1.0)
    middle = (1,) * len(shift_vox)
    for head, said in (
        (network.motion_head, shift_vox),
        (network.appearance_head, [math.atanh(change)]),
    ):
        for row, value in zip(head.weight, said, strict=True):
            row[(0, *middle)] = 2 * value  # half of what heads say counts
    return network


def _network(dim, **changes):
    sizes = {**SIZES, "dim": dim, **changes}
    torch.manual_seed(4)
    network = build_network(NetworkConfig("metaregnet", sizes)).eval().requires_grad_(False)
    network.sizes = sizes
    return network


def settings_for(weights, **changes):
    """The network of a file alone, in full precision, on the CPU, without alignment."""
    usual = {
        "method": "metaregnet", "weights": str(weights), "device": "cpu", "init": "identity",
        "effort": "fast", "extras": {"precision": "float32"},
    }  # fmt: skip
    return Settings(**(usual | changes))


GRID = turned_grid((46, 52), (1.5, 1.5))


def pictures():
    """Two smooth pictures of other units on one grid, and marks of a lesion in the middle of it."""
    fixed, moving = (
        Volume(scale * texture(GRID.shape, seed)[0, 0] + 10, GRID, name)
        for seed, scale, name in ((1, 100, "patient"), (2, 300, "atlas"))
    )
    return fixed, moving, ball(fixed, 9.0)


def ball(image, radius_mm=5.0, aside_mm=(0.0, 0.0, 0.0), label=1):
    """Marks around the middle of the scene, on the grid of an image."""
    away = np.linalg.norm(points_of(image.grid) - CENTRE_MM - aside_mm, axis=1)
    data = tensor_from_array((away < radius_mm).astype(np.int32) * label).reshape(image.grid.shape)
    return Volume(data, image.grid, f"lesion of {image.name}", is_labels=True)
