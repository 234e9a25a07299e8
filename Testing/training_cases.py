"""Small training runs: pairs, networks and settings that cost next to nothing."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.networks.build import build_network
from DiffeoRegLib.training.config import config_from
from DiffeoRegLib.training.loop import Trainer

SHAPE = (12, 14)
SETTINGS = {
    "method": "sitreg",
    "data": {"source": "somewhere"},
    "network": {"name": "sitreg", "sizes": {"encoder": [2, 4], "heads": [2, 4], "dim": 2}},
    "losses": [
        {"name": "lncc-squared", "options": {"window": 5}},
        {"name": "gradient", "weight": 0.5},
    ],
    "optimiser": {"learning_rate": 5e-3},
    "steps": 8,
    "validate_every": 4,
    "checkpoint_every": 2,
    "log_every": 3,
    "seed": 3,
}


def settings(**changes):
    """The settings of a small run."""
    return config_from({**SETTINGS, **changes})


def blob(center, shape=SHAPE, width=2.5):
    """A bright spot, (1, *shape)."""
    axes = np.meshgrid(*map(np.arange, shape), indexing="ij")
    squared = sum((a - c) ** 2 for a, c in zip(axes, center, strict=True))
    return torch.tensor(np.exp(-squared / (2 * width**2))[None], dtype=torch.float32)


class Blobs:
    """Pairs of spots, drawn with every global generator there is, as third parties do."""

    def __init__(self, count=6, labels=False, unreadable=(), noisy=True):
        self.count, self.labels, self.unreadable, self.noisy = count, labels, unreadable, noisy
        self.epoch = 0
        self.read = []

    def __len__(self):
        return self.count

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        if index in self.unreadable:
            raise InputError(f"'subject-{index}.nii.gz' is truncated.")
        self.read.append((self.epoch, index))
        item = {"names": (f"moving {index}", f"fixed {index}")}
        shift = 1 + index / 4 + (random.random() if self.noisy else 0)
        for role, center in (("moving", (5.0, 6.0)), ("fixed", (5.0 + shift, 6.5))):
            image = blob(center)
            if self.labels:
                item[f"{role}_labels"] = (image > 0.5).long()
            if self.noisy:
                noise = np.random.rand(*image.shape) + torch.rand(image.shape).numpy()  # noqa: NPY002
                image = image + 0.02 * torch.tensor(noise, dtype=torch.float32)
            item[role] = image
        return item


class Shifts(nn.Module):
    """A network that knows one number per axis, with noise of its own in training."""

    def __init__(self, dim=2, dropout=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, moving, fixed):
        grid = moving.shape[2:]
        u_vox = self.dropout(self.shift).reshape(1, -1, *[1] * len(grid))
        return Fields(u_vox.expand(len(moving), -1, *grid), -u_vox.expand(len(moving), -1, *grid))


class Fields:
    """Two displacement fields."""

    def __init__(self, u12, u21):
        self.u12, self.u21 = u12, u21


def trainer(folder, config=None, network=None, training=None, validation=None, **others):
    """A run that is ready to start, its network drawn from the seed."""
    config = config or settings(best="loss")
    if network is None:
        torch.manual_seed(config.seed)
        network = build_network(config.network, config.precision)
    return Trainer(config, network, training or Blobs(), validation, folder, **others)


def same_weights(first, second):
    """True where two networks agree to the last bit."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
