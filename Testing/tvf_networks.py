"""Tiny TransMorph-TVF networks, their files, and the settings that run them: for the tests of the method."""

from __future__ import annotations

import torch

from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.training.checkpoint import write_checkpoint

SIZES = {"embed": 8, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "head_channels": 4}
WINDOWS = {2: [4, 4], 3: [2, 2, 2]}


def network_file(path, network, spacing_mm, losses=(), **more):
    """A file of weights of a network from `tiny`."""
    content = {
        "kind": "weights",
        "network": {"name": network.named, "sizes": network.sizes, "options": {}},
        "config": {"data": {"spacing_mm": list(spacing_mm)}, "losses": list(losses)},
        **more,
    }
    write_checkpoint(path, network.state_dict(), content)
    return path


def tiny(dim=2, steps=8, largest=0.5, name="transmorph-tvf", **changes):
    """A network whose heads say what their features do; largest: of a step, voxels, on some pictures."""
    sizes = {**SIZES, "window": WINDOWS[dim], **changes}
    if name == "transmorph-tvf":
        sizes["steps"] = steps
    torch.manual_seed(4)
    network = build_network(NetworkConfig(name, sizes)).eval().requires_grad_(False)
    if name == "transmorph-tvf" and largest:
        images = torch.rand(2, 1, *[24] * dim).split(1)
        for step in network.steps:
            step.head.weight.normal_(std=1.0)
        found = network(*images).velocities_vox
        for step, velocity in zip(network.steps, found, strict=True):
            step.head.weight.mul_(largest / float(velocity.abs().max()))
    network.named, network.sizes = name, sizes
    return network


def constant(velocities_vox, **changes):
    """A network whose velocity of every step is the same everywhere, voxels of every second voxel."""
    network = tiny(len(velocities_vox[0]), len(velocities_vox), largest=0, **changes)
    for step, velocity in zip(network.steps, velocities_vox, strict=True):
        step.head.weight.zero_()
        step.head.bias.copy_(torch.tensor(velocity))
    return network


def settings_for(weights, **changes):
    """The network of a file alone, in full precision, on the CPU, without alignment."""
    usual = {
        "method": "transmorph-tvf", "weights": str(weights), "device": "cpu", "init": "identity",
        "effort": "fast", "extras": {"precision": "float32"},
    }  # fmt: skip
    return Settings(**(usual | changes))
