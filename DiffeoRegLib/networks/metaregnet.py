"""MetaRegNet: where a healthy image moves, and what a pathology adds to it, found together.

A U-Net sees the moving (healthy) and the fixed (pathological) image and starts two branches of Lipschitz
blocks (`networks/lipschitz.py`) without common weights: the displacement of every voxel, and the change of
its intensity, which counts where the fixed image is pathological only:
    moving(x + u(x)) + q(x) M(x)  looks like  fixed(x).
The network does not see the mask M; without one this is plain registration.

As published the displacement is the last state of its branch: nothing makes it invertible, so folds have to
be counted.  With `compose` the states after the blocks are velocities instead, each followed for one n-th of
the time: a flow, invertible if its steps are.
Departures from the released code: 16 features at the end in place of 2, and heads that start from next to no
motion.
Source: Joshi and Hong, MetaRegNet: metamorphic image registration using flow-driven residual networks, 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.time_varying import MOST_SUBSTEPS, integrate_steps
from DiffeoRegLib.networks.lipschitz import LIPSCHITZ, MOST_BLOCKS, Branch, Lipschitz, side_by_side
from DiffeoRegLib.networks.unet import UNetOptions, convolution, filled
from DiffeoRegLib.networks.voxelmorph import DisplacementMaps

RELEASED: Mapping[str, Any] = MappingProxyType(
    {
        "dim": 2, "encoder": (16, 32, 64, 128), "decoder": (32, 32, 32, 32, 16, 16),
        "up": (256, 128, 64, 32), "blocks": 4,
    }
)  # fmt: skip
"""Sizes of the authors' program, which differ from those of the paper."""
SMALL_WEIGHT = 1e-3
"""Spread of the heads' first weights."""
START = 0.5
"""What the heads say counts half."""


@dataclass(frozen=True)
class MetaRegNetConfig:
    """Sizes of the network, by default those of the paper (R2Net's), and what else belongs to the weights.

    encoder: channels at strides 2, 4, ...  decoder: from the coarsest stride to 2, a second one there, then
    one or more at full resolution.  up: channels of the steps up.
    blocks: Lipschitz blocks per branch; 4 in the released code.  slope: of all activations below zero.
    lipschitz: see `networks/lipschitz.py`.  compose: see the head of this file.
    Raises SettingsError for sizes that do not fit, UnknownNameError for an unknown norm.
    """

    dim: int = 2
    encoder: tuple[int, ...] = (16, 32, 32, 32)
    decoder: tuple[int, ...] = (32, 32, 32, 32, 16, 16, 16)
    up: tuple[int, ...] = (8, 8, 8, 8)
    blocks: int = 7
    slope: float = 0.2
    lipschitz: Lipschitz = "flattened"
    compose: bool = False

    def __post_init__(self) -> None:
        if self.dim not in (2, 3):
            raise SettingsError(f"A MetaRegNet has 2 or 3 dimensions, not {self.dim}.")
        levels = len(self.encoder)
        if not levels or min((*self.encoder, *self.decoder, *self.up), default=0) < 1:
            raise SettingsError("A MetaRegNet needs an encoder level, and at least one channel everywhere.")
        if len(self.up) != levels or len(self.decoder) < levels + 2:
            raise SettingsError(
                f"{levels} levels take {levels} steps up and a decoder of {levels + 2} or more, "
                f"not {len(self.up)} and {len(self.decoder)}."
            )
        if not 1 <= self.blocks <= MOST_BLOCKS or not 0 <= self.slope < 1:
            raise SettingsError(
                f"A branch has 1 to {MOST_BLOCKS} blocks, and a slope below zero in [0, 1), "
                f"not {self.blocks} and {self.slope}."
            )
        if self.lipschitz not in LIPSCHITZ:
            raise UnknownNameError("spectral norm", self.lipschitz, LIPSCHITZ)

    @property
    def coarsest(self) -> int:
        """Voxels per step of the coarsest level."""
        return int(2 ** len(self.encoder))


@dataclass(frozen=True)
class MetaRegNetOptions(UNetOptions):
    """How a MetaRegNet is run; the weights fit all of them.

    substeps: parts in which every velocity is followed, with `compose`.
    Raises SettingsError for substeps that cannot be, UnknownNameError for an unknown precision.
    """

    substeps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.substeps <= MOST_SUBSTEPS:
            raise SettingsError(f"A velocity is followed in 1 to {MOST_SUBSTEPS} parts, not {self.substeps}.")


@dataclass(eq=False)
class MetamorphicMaps(DisplacementMaps):
    """Where to read the moving image, and what to add to it; all on the grid of the fixed image.

    u12: (N, d, *shape), voxels.  u21, its inverse: fixed - q M, read at x + u21(x), looks like moving(x).
    appearance: q, (N, 1, *shape), within (-1, 1), to be masked.
    velocities_vox: with `compose` the steps of the flow, (N, d, *shape) each, voxels per step, for the order
    `paper` of `flows/time_varying.py`; else empty.
    """

    appearance: Tensor
    velocities_vox: tuple[Tensor, ...] = ()


class MetaRegNet(nn.Module):
    """See the head of this file."""

    def __init__(self, config: MetaRegNetConfig, options: MetaRegNetOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or MetaRegNetOptions()
        self.unet = Features(config, self.options)
        dim, entering = config.dim, config.decoder[-1]
        self.motion_head = _head(dim, entering, dim)
        self.appearance_head = _head(dim, entering, 1)
        self.motion = Branch(dim, dim, config.blocks, config.lipschitz, config.slope)
        self.appearance = Branch(dim, 1, config.blocks, config.lipschitz, config.slope)

    def forward(self, moving: Tensor, fixed: Tensor) -> MetamorphicMaps:
        """(N, 1, *shape) twice, values about [0, 1]; raises ShapeError for what does not fit."""
        if moving.shape != fixed.shape:
            raise ShapeError(
                f"Two images of one shape are registered, not {tuple(moving.shape)} and {tuple(fixed.shape)}."
            )
        features = self.unet(torch.cat([moving, fixed], 1))
        with torch.autocast(features.device.type, enabled=False):  # positions need all their digits
            starts = self._starts(features)
            states = side_by_side(
                (self.motion, self.appearance),
                starts,
                every=self.config.compose,
                checkpointing=self.options.checkpointing,
            )
            u_vox, appearance = states[-1]
            velocities: tuple[Tensor, ...] = ()
            if self.config.compose:
                velocities = tuple(velocity / self.config.blocks for velocity, _ in states)
                u_vox = integrate_steps(velocities, "paper", self.options.substeps)
            return MetamorphicMaps(u_vox.contiguous(), appearance.tanh(), velocities)

    def _starts(self, features: Tensor) -> tuple[Tensor, ...]:
        """What both branches start from, in one convolution."""
        heads = torch.cat([self.motion_head.weight, self.appearance_head.weight])
        convolve = functional.conv2d if self.config.dim == 2 else functional.conv3d
        both = START * convolve(features, heads, padding=1)
        return torch.split(both, [self.config.dim, 1], 1)


class Features(nn.Module):
    """The U-Net: strided convolutions down, transposed ones up, the images themselves as the last skip."""

    def __init__(self, config: MetaRegNetConfig, options: MetaRegNetOptions) -> None:
        super().__init__()
        self.config, self.options = config, options
        down, levels = (2, *config.encoder), len(config.encoder)
        self.down = nn.ModuleList(_block(config, down[i], down[i + 1], 2) for i in range(levels))
        self.up = nn.ModuleList(_step_up(config.dim, a, b) for a, b in self._steps())
        entering = [down[-1], *(up + skip for up, skip in zip(config.up, down[-2:0:-1], strict=False))]
        entering += [config.decoder[levels - 1], config.up[-1] + 2, *config.decoder[levels + 1 : -1]]
        self.decoder = nn.ModuleList(
            _block(config, a, b) for a, b in zip(entering, config.decoder, strict=True)
        )

    def _steps(self) -> list[tuple[int, int]]:
        """Channels into and out of the steps up: two convolutions stand before the last."""
        levels, decoder = len(self.config.encoder), self.config.decoder
        return list(zip((*decoder[: levels - 1], decoder[levels]), self.config.up, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 2, *shape) to (N, decoder[-1], *shape), in the images' precision; raises ShapeError."""
        config = self.config
        if images.dim() != config.dim + 2 or images.shape[1] != 2:
            raise ShapeError(
                f"This network takes two images (N, 1, *{config.dim}D shape), together {tuple(images.shape)}."
            )
        half = self.options.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            features = self._decoded(filled(images, config.coarsest))
        kept = [slice(n) for n in images.shape[2:]]
        return features[(slice(None), slice(None), *kept)].to(images.dtype)

    def _decoded(self, images: Tensor) -> Tensor:
        skips = [images]
        for block in self.down:
            skips.append(self._run(block, skips[-1]))
        x, levels = skips.pop(), len(self.down)
        for number, block in enumerate(self.decoder):
            x = self._run(block, x)
            level = number if number < levels - 1 else levels - 1
            if number < levels - 1 or number == levels:
                x = self.up[level](x)
                x = torch.cat([x, skips.pop().to(x.dtype)], 1)
        return x

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block, remembered in full or by its input only."""
        if self.options.checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, x, use_reentrant=False)
            return again
        out: Tensor = block(x)
        return out


def _block(config: MetaRegNetConfig, entering: int, leaving: int, stride: int = 1) -> nn.Sequential:
    """Convolution and leaky ReLU."""
    layer = convolution(config.dim)(entering, leaving, 3, stride=stride, padding=1)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(layer, nn.LeakyReLU(config.slope, inplace=True))


def _step_up(dim: int, entering: int, leaving: int) -> nn.Module:
    """Twice as many voxels along every axis, linear."""
    kind = nn.ConvTranspose2d if dim == 2 else nn.ConvTranspose3d
    layer = kind(entering, leaving, 3, stride=2, padding=1, output_padding=1)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _head(dim: int, entering: int, leaving: int) -> nn.Conv2d | nn.Conv3d:
    layer = convolution(dim)(entering, leaving, 3, padding=1, bias=False)
    nn.init.normal_(layer.weight, std=SMALL_WEIGHT)
    return layer
