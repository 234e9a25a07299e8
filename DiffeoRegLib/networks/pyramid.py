"""The convolutional pyramid of SITReg: one encoder for both images, one head per level for their motion.

Source: Honkamaa and Marttinen, SITReg, MELBA 2024, sections 3.2-3.5 and the authors' configurations.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import InputError, SettingsError

Order = Literal["conv-norm-act", "conv-act-norm"]
ORDERS = ("conv-norm-act", "conv-act-norm")


@dataclass(frozen=True)
class PyramidConfig:
    """Sizes of the network; index 0 is the finest level.

    encoder: channels per level.  heads: channels per level with a dense head, at most as many levels.
    groups: of the encoder's normalisation.  head_groups: of the heads', 0 = none; before the activation.
    order: conv-norm-act is the published code's, conv-act-norm that of the published OASIS weights.
    affine: d (d + 1) affine parameters from the coarsest features, which must have shrunk to one voxel.
    affine_layers: hidden layers of the affine head, 2 in the paper; in the published code of 2024 one works.
    Raises SettingsError for sizes that do not fit.
    """

    encoder: tuple[int, ...]
    heads: tuple[int, ...]
    dim: int = 3
    channels_in: int = 1
    groups: int = 2
    head_groups: int = 0
    order: Order = "conv-norm-act"
    affine: bool = False
    affine_layers: int = 2

    def __post_init__(self) -> None:
        if self.dim not in (2, 3) or not self.encoder or not 1 <= len(self.heads) <= len(self.encoder):
            raise SettingsError("A pyramid needs 2 or 3 dimensions and at most one head per encoder level.")
        if self.order not in ORDERS:
            raise SettingsError(f"The order of a block is one of {', '.join(ORDERS)}, not '{self.order}'.")
        if any(c % self.groups for c in self.encoder):
            raise SettingsError(f"Encoder channels {self.encoder} do not split into {self.groups} groups.")
        if self.head_groups and any(c % self.head_groups for c in self.heads):
            raise SettingsError(f"Head channels {self.heads} do not split into {self.head_groups} groups.")
        if self.affine_layers < 1:
            raise SettingsError("The affine head needs at least one hidden layer.")

    @property
    def strides(self) -> tuple[int, ...]:
        """Voxels per step of every level."""
        return tuple(2**level for level in range(len(self.encoder)))


class Encoder(nn.Module):
    """Features of one image at every level; level k has ceil(n / 2^k) voxels per axis."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        conv = _conv(config.dim)
        channels = config.encoder
        self.entry = conv(config.channels_in, channels[0], 1)
        self.blocks = nn.ModuleList(_block(config, c) for c in channels)
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(conv(a, b, 2, stride=2) for a, b in pairs)
        self.skip = nn.ModuleList(conv(a, b, 1) for a, b in pairs)
        self.dim = config.dim

    def forward(self, image: Tensor, checkpointing: bool = False) -> list[Tensor]:
        """(N, channels_in, *shape) to a list of (N, C_k, *ceil(shape / 2^k)), finest first.

        checkpointing: forget what happens inside a level and compute it again for the gradient.
        """
        residual = self.entry(image)
        features: list[Tensor] = []
        for level, block in enumerate(self.blocks):
            if level:
                residual = self._coarser(level - 1, residual, features[-1])
            inside = checkpoint(block, residual, use_reentrant=False) if checkpointing else block(residual)
            features.append(inside)
        return features

    def _coarser(self, index: int, residual: Tensor, features: Tensor) -> Tensor:
        """The residual stream of the next level; it passes by the blocks."""
        pool = functional.avg_pool2d if self.dim == 2 else functional.avg_pool3d
        out: Tensor = self.skip[index](pool(_even(residual), 2)) + self.down[index](_even(features))
        return out


class Head(nn.Module):
    """Control values of the motion between two feature maps, in both orders for little more than one.

    The first convolution sees the difference and the sum of the features. It is linear, so the other order
    needs only the sign of the difference's share turned: u(z1, z2) and u(z2, z1) swap exactly with z1, z2.
    """

    def __init__(self, config: PyramidConfig, features: int, channels: int) -> None:
        super().__init__()
        conv = _conv(config.dim)
        self.features = features
        self.first = conv(2 * features, channels, 3, padding=1)
        self.second = conv(channels, channels, 3, padding=1)
        groups = config.head_groups
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) if groups else nn.Identity() for _ in "12")
        self.last = conv(channels, config.dim, 1)
        self.convolve = functional.conv2d if config.dim == 2 else functional.conv3d

    def forward(self, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, *spatial) twice to (N, d, *spatial) twice: u(z1, z2), then u(z2, z1), not yet bounded."""
        weight = self.first.weight
        difference = self.convolve(z1 - z2, weight[:, : self.features], padding=1)
        common = self.convolve(z1 + z2, weight[:, self.features :], self.first.bias, padding=1)
        return self._end(common + difference), self._end(common - difference)

    def _end(self, x: Tensor) -> Tensor:
        """Everything after the first convolution.

        One order at a time: in one batch a 1x1x1 convolution rounds differently in another row, and exchanged
        images would no longer give exactly exchanged results.
        """
        x = functional.relu(self.norms[0](x))
        x = functional.relu(self.norms[1](self.second(x)))
        out: Tensor = self.last(x)
        return out


class AffineHead(nn.Module):
    """Affine parameters from the two images' coarsest features, in both orders."""

    def __init__(self, features: int, dim: int = 3, hidden: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(hidden):
            layers += [nn.Linear(2 * features, 2 * features), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(2 * features, dim * (dim + 1)))

    def forward(self, z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, 1, ...) twice to (N, d (d + 1)) twice.

        Raises InputError where more than one voxel is left.
        """
        if z1[0, 0].numel() != 1:
            raise InputError(
                f"The affine stage needs features of one voxel, not {tuple(z1.shape[2:])}: the image is "
                "larger than this network was made for."
            )
        first, second = z1.flatten(1), z2.flatten(1)
        common = first + second
        # Not in one batch, see Head.
        forward = self.layers(torch.cat([first - second, common], 1))
        return forward, self.layers(torch.cat([second - first, common], 1))


class Pyramid(nn.Module):
    """Encoder and heads of one SITReg network."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        pairs = zip(config.encoder[: len(config.heads)], config.heads, strict=True)
        self.heads = nn.ModuleList(Head(config, c, t) for c, t in pairs)
        self.affine = (
            AffineHead(config.encoder[-1], config.dim, config.affine_layers) if config.affine else None
        )


def parameter_count(network: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in network.parameters())


def _conv(dim: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if dim == 2 else nn.Conv3d


def _block(config: PyramidConfig, channels: int) -> nn.Sequential:
    """Twice convolution, normalisation and ReLU, in the configured order."""
    layers: list[nn.Module] = []
    for _ in range(2):
        tail: Sequence[nn.Module] = (nn.GroupNorm(config.groups, channels), nn.ReLU())
        if config.order == "conv-act-norm":
            tail = tail[::-1]
        layers += [_conv(config.dim)(channels, channels, 3, padding=1), *tail]
    return nn.Sequential(*layers)


def _even(x: Tensor) -> Tensor:
    """Zeros on the right of every axis of odd length."""
    sides = [side for n in reversed(x.shape[2:]) for side in (0, n % 2)]
    return functional.pad(x, sides) if any(sides) else x
