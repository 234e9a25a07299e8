"""Weights of VoxelMorph networks whose answers are known, and images to try them on."""

from __future__ import annotations

import numpy as np
import torch

from DiffeoRegLib.networks.build import NetworkConfig, build_network
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.transform import AffineTransform
from DiffeoRegLib.training.checkpoint import write_checkpoint
from Testing.scenes import Scene, turned_grid

TURN = AffineTransform(
    np.array([[0.98, -0.17, 0.02, 3.0], [0.17, 0.97, 0.05, -2.0], [-0.03, -0.05, 1.04, 1.5], [0, 0, 0, 1.0]])
)
SIZES = {"encoder": [4, 8], "decoder": [8, 8], "final": [4], "stride": 2}
AXES_MM = np.eye(3)[::-1]
"""Directions of the network's axes: S, A, R."""
UP, RIGHT = 3.0 * AXES_MM[0], AXES_MM[2]


def write(path, network, config, spacing_mm):
    """A file of weights of this network."""
    content = {"kind": "weights", "network": config, "config": {"data": {"spacing_mm": spacing_mm}}}
    write_checkpoint(path, network.state_dict(), content)
    return path


def constant_file(path, velocity_vox, name="voxelmorph-diff", spacing_mm=(2.0, 2.0, 2.0), **changes):
    """Weights whose velocity, or displacement, is the same everywhere, voxels of its head."""
    dim = len(velocity_vox)
    sizes = {**SIZES, "dim": dim, **changes}
    torch.manual_seed(0)
    network = build_network(NetworkConfig(name, sizes))
    head = network.mean if name.endswith("diff") else network.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(velocity_vox))
    return write(path, network, {"name": name, "sizes": sizes, "options": {}}, list(spacing_mm)[:dim])


def settings_for(weights, **changes):
    """The network of a file alone, on the CPU, without alignment."""
    usual = {"method": "voxelmorph", "weights": str(weights), "device": "cpu", "init": "identity"}
    return Settings(**(usual | {"effort": "fast"} | changes))


def oblique(size_mm=0.0):
    """Images whose tensor axes run to I, P, L (as LPI files do), turned by 25 degrees, and to P only."""
    scene = Scene(size_mm=size_mm)
    fixed = turned_grid((23, 26, 24), (1.7, 1.4, 1.5), 25, (0, 1, 2))
    moving = turned_grid((26, 22, 24), (1.4, 1.7, 1.5), -20, (1,))
    return scene, scene.fixed(fixed), scene.moving(moving)


def shifted(folder, u_vox=(1.5, 0.0, 0.0)):
    """Weights of plain VoxelMorph, a vector for every voxel of 2 mm, the same everywhere: 3 mm to S."""
    return constant_file(
        folder / f"shifted{u_vox[0]:g}.safetensors", u_vox, "voxelmorph", decoder=[8] * 3, stride=1
    )
