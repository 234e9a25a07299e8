"""A plain U-Net, 2D or 3D: features of a stack of images on their own grid or on a coarser one.

Source: Ronneberger et al., U-Net, MICCAI 2015, in the form of Balakrishnan et al., VoxelMorph, CVPR 2018:
strided convolutions down, nearest-neighbour steps up, the images themselves as the last skip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.networks.sitreg_options import PRECISIONS, Precision


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network.

    encoder: channels at strides 2, 4, ...  decoder: channels from the coarsest stride up to `stride`.
    final: channels of further convolutions there.  stride: voxels per step of the features, a power of two.
    slope: of the activation below zero.
    Raises SettingsError for sizes that do not fit.
    """

    encoder: tuple[int, ...] = (16, 32, 32, 32)
    decoder: tuple[int, ...] = (32, 32, 32, 32, 32)
    final: tuple[int, ...] = (16, 16)
    dim: int = 3
    channels_in: int = 2
    stride: int = 1
    slope: float = 0.2

    def __post_init__(self) -> None:
        if self.dim not in (2, 3):
            raise SettingsError(f"A U-Net has 2 or 3 dimensions, not {self.dim}.")
        if min((self.channels_in, *self.encoder, *self.decoder, *self.final)) < 1 or not self.encoder:
            raise SettingsError("A U-Net needs an encoder level, and at least one channel everywhere.")
        if self.stride < 1 or self.stride & (self.stride - 1) or self.stride > self.coarsest:
            raise SettingsError(
                f"Features at stride {self.stride} need a power of two of at most {self.coarsest}."
            )
        wanted = int(math.log2(self.coarsest // self.stride)) + 1
        if len(self.decoder) != wanted:
            raise SettingsError(
                f"From stride {self.coarsest} to {self.stride} the decoder has {wanted} levels, "
                f"not {len(self.decoder)}."
            )
        if not 0 <= self.slope < 1:
            raise SettingsError(f"The slope below zero lies in [0, 1), not at {self.slope}.")

    @property
    def coarsest(self) -> int:
        """Voxels per step of the coarsest level."""
        return int(2 ** len(self.encoder))

    @property
    def channels_out(self) -> int:
        """Channels of the features."""
        return (*self.decoder, *self.final)[-1]


@dataclass(frozen=True)
class UNetOptions:
    """How a U-Net is run; the weights fit all of them.

    precision: of the convolutions.  checkpointing: forget activations, compute them again for the gradient.
    Raises UnknownNameError for an unknown precision.
    """

    precision: Precision = "float32"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)


class UNet(nn.Module):
    """Encoder and decoder with skips, for images of any size."""

    def __init__(self, config: UNetConfig, options: UNetOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or UNetOptions()
        down = (config.channels_in, *config.encoder)
        self.down = nn.ModuleList(
            _block(config, down[i], down[i + 1], stride=2) for i in range(len(config.encoder))
        )
        entering = [down[-1]]
        for level in range(1, len(config.decoder)):
            entering.append(config.decoder[level - 1] + down[-1 - level])
        self.up = nn.ModuleList(_block(config, a, b) for a, b in zip(entering, config.decoder, strict=True))
        last = (config.decoder[-1], *config.final)
        self.final = nn.ModuleList(_block(config, last[i], last[i + 1]) for i in range(len(config.final)))

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels_in, *shape) to (N, channels_out, *ceil(shape / stride)), in the images' precision.

        Raises ShapeError for another number of channels or axes.
        """
        config = self.config
        if images.dim() != config.dim + 2 or images.shape[1] != config.channels_in:
            raise ShapeError(
                f"This network takes (N, {config.channels_in}, *{config.dim}D shape), "
                f"not {tuple(images.shape)}."
            )
        device, half = images.device.type, self.options.precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=half):
            features = self._decoded(self._encoded(filled(images, config.coarsest)))
        kept = [slice(-(-n // config.stride)) for n in images.shape[2:]]
        return features[(slice(None), slice(None), *kept)].to(images.dtype)

    def _encoded(self, images: Tensor) -> list[Tensor]:
        """The images and the features of every encoder level, finest first."""
        found = [images]
        for block in self.down:
            found.append(self._run(block, found[-1]))
        return found

    def _decoded(self, skips: list[Tensor]) -> Tensor:
        """Features at the output stride."""
        x = skips.pop()
        for level, block in enumerate(self.up):
            x = self._run(block, x) if level == 0 else self._run(block, x, skips.pop())
        for block in self.final:
            x = self._run(block, x)
        return x

    def _run(self, block: nn.Module, *held: Tensor) -> Tensor:
        """A block, after a step up to a skip if there is one; remembered in full or by its inputs only."""

        def step(x: Tensor, skip: Tensor | None = None) -> Tensor:
            if skip is not None:
                enlarged = functional.interpolate(x, scale_factor=2, mode="nearest")
                x = torch.cat([enlarged, skip.to(x.dtype)], 1)
            out: Tensor = block(x)
            return out

        if not (self.options.checkpointing and torch.is_grad_enabled()):
            return step(*held)
        again: Tensor = checkpoint(step, *held, use_reentrant=False)
        return again


def convolution(dim: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """The convolution of 2D or 3D images."""
    return nn.Conv2d if dim == 2 else nn.Conv3d


def _block(config: UNetConfig, entering: int, leaving: int, stride: int = 1) -> nn.Sequential:
    """Convolution and leaky ReLU."""
    layer = convolution(config.dim)(entering, leaving, 3, stride=stride, padding=1)
    return nn.Sequential(layer, nn.LeakyReLU(config.slope))


def filled(images: Tensor, multiple: int) -> Tensor:
    """The border repeated on the right of every axis until its length is a multiple."""
    missing: Sequence[int] = [-n % multiple for n in images.shape[2:]]
    if not any(missing):
        return images
    sides = [side for m in reversed(missing) for side in (0, m)]
    return functional.pad(images, sides, mode="replicate")
