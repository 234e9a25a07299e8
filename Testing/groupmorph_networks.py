"""Tiny GroupMorphs, their files, and the settings that run them: for the tests of the method."""

from __future__ import annotations

import math

import torch

from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.training.checkpoint import write_checkpoint

SIZES = {"encoder": [4, 8], "decoder": [8, 8, 8], "final": [4]}


def network_file(path, network, spacing_mm):
    """A file of weights of a network from `random` or `moving_the_fixed_flag`."""
    content = {
        "kind": "weights",
        "network": {"name": "groupmorph", "sizes": network.sizes, "options": {}},
        "config": {"data": {"spacing_mm": list(spacing_mm)}},
    }
    write_checkpoint(path, network.state_dict(), content)
    return path


def random(dim=2, largest=2.0, seed=0, **changes):
    """A network with random weights that moves images by a few voxels."""
    network = _network(dim, seed, **changes)
    network.mean.weight.normal_(std=largest)
    network.variance.weight.normal_(std=0.05)
    return network


def constant(shifts_vox, deviation_vox=0.5, **changes):
    """A network that says the same shift, voxels of the velocity, for every image, or one each of a stack."""
    rows = [shifts_vox] if isinstance(shifts_vox[0], float) else shifts_vox
    network = _network(len(rows[0]), 0, **changes)
    for value in network.parameters():
        value.zero_()
    said = [math.atanh(shift / network.config.largest_vox) for row in rows for shift in row]
    network.mean.bias.copy_(torch.tensor(said))
    network.variance.bias.fill_(math.log(math.expm1(deviation_vox**2)))
    return network


def _network(dim, seed, **changes):
    sizes = {**SIZES, "dim": dim, **changes}
    if sizes.get("stride") == 2:
        sizes["decoder"] = [8, 8]
    torch.manual_seed(seed)
    network = build_network(NetworkConfig("groupmorph", sizes)).eval().requires_grad_(False)
    network.sizes = sizes
    return network


def settings_for(weights, **changes):
    """The network of a file alone, in full precision, on the CPU, without alignment."""
    usual = {
        "method": "groupmorph", "weights": str(weights), "device": "cpu", "init": "identity",
        "effort": "fast", "extras": {"precision": "float32"},
    }  # fmt: skip
    return Settings(**(usual | changes))
