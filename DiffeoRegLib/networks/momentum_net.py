"""The residual network that predicts a momentum: two images in, one vector per second voxel out.

The images are encoded apart at first (convolutions in two groups), together from half resolution on, and
decoded back to half resolution.
Source: the "resid" network of the program of Shen, Vialard and Niethammer, NeurIPS 2019; small first weights
of the last convolution are ours, so that training starts from next to no motion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.networks.unet import convolution, filled

CHANNELS = (16, 32, 64, 128, 256)
"""At strides 1, 2, 4, 8 and 16, of a network of width 1."""
MULTIPLE = 16
"""Images are continued to whole multiples of the coarsest stride."""
STRIDE = 2
"""Voxels per vector."""
SMALL_WEIGHT = 1e-5
LEAKY = 0.01


def channels_of(width: float) -> tuple[int, ...]:
    """Channels at strides 1 to 16, even numbers: the first convolutions work in two groups.

    Raises SettingsError for a width that is not above 0 and at most 4.
    """
    if not 0 < width <= 4:
        raise SettingsError(f"The width of a momentum network lies above 0 and at most at 4, not {width}.")
    return tuple(max(2, 2 * round(c * width / 2)) for c in CHANNELS)


def transposed(dim: int) -> type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]:
    """The transposed convolution of 2D or 3D images."""
    return nn.ConvTranspose2d if dim == 2 else nn.ConvTranspose3d


class MomentumNet(nn.Module):
    """Momentum of a pair at half resolution.

    dim: 2 or 3.  width: factor on all channels but those of the images and of the momentum; 1 has 5.6
    million weights in 3D.
    Raises SettingsError for another dimension or an absurd width.
    """

    def __init__(self, dim: int, width: float = 1.0) -> None:
        super().__init__()
        if dim not in (2, 3):
            raise SettingsError(f"A momentum network has 2 or 3 dimensions, not {dim}.")
        self.dim = dim
        c1, c2, c4, c8, c16 = channels_of(width)
        self.first = self._conv(2, c1, groups=2)
        self.halved = nn.ModuleList(
            [self._conv(c1, c2, stride=2, groups=2), self._conv(c2, c2, groups=2), self._conv(c2, c2)]
        )
        self.quarter = self._level(c2, c4, 2)
        self.eighth = self._level(c4, c8, 2)
        self.sixteenth = self._level(c8, c16, 1)
        up = transposed(dim)
        self.up = nn.ModuleList([up(c16, c8, 2, stride=2), up(c8, c4, 2, stride=2), up(c2, c2, 2, stride=2)])
        self.joined = nn.ModuleList([self._conv(2 * c8, c8), self._conv(2 * c4, c2)])
        self.smoothed = nn.ModuleList([self._conv(c8, c8), self._conv(c2, c2)])
        self.last = nn.ModuleList([self._conv(2 * c2, c1), self._conv(c1, dim)])
        keep_the_spread(self)
        nn.init.normal_(self.last[1].weight, std=SMALL_WEIGHT)  # type: ignore[arg-type]

    def _conv(self, entering: int, leaving: int, stride: int = 1, groups: int = 1) -> nn.Module:
        return convolution(self.dim)(entering, leaving, 3, stride=stride, padding=1, groups=groups)

    def _level(self, entering: int, leaving: int, count: int) -> nn.ModuleList:
        """A strided convolution and residual ones."""
        residual = [self._conv(leaving, leaving) for _ in range(count)]
        return nn.ModuleList([self._conv(entering, leaving, stride=2), *residual])

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(N, 1, *shape) twice, values about [-1, 1], to (N, d, *ceil(shape / 2)), in their precision.

        Raises ShapeError for images of different shapes, or another number of channels or axes.
        """
        if moving.shape != fixed.shape or moving.dim() != self.dim + 2 or moving.shape[1] != 1:
            raise ShapeError(
                f"A momentum needs two {self.dim}D images (N, 1, *shape) of one shape, "
                f"not {tuple(moving.shape)} and {tuple(fixed.shape)}."
            )
        x = functional.relu(self.first(filled(torch.cat([moving, fixed], 1), MULTIPLE)))
        half = self._at_half(x)
        quarter = _down(self.quarter, half)
        eighth = _down(self.eighth, quarter)
        # Never in half precision: gradients of weights over next to no voxels came out infinite on a CPU.
        with torch.autocast(x.device.type, enabled=False):
            x = _down(self.sixteenth, eighth.to(moving.dtype))
        for index, skip in enumerate((eighth, quarter)):
            x = torch.cat([_leaky(self.up[index](x)), skip], 1)
            x = _leaky(self.joined[index](x))
            x = x + _leaky(self.smoothed[index](x))
        x = torch.cat([_leaky(self.up[2](x)), half], 1)
        x = self.last[0](x)
        with torch.autocast(x.device.type, enabled=False):  # a field needs all its digits
            momentum: Tensor = self.last[1](x.to(moving.dtype))
        return cropped(momentum, [-(-n // STRIDE) for n in moving.shape[2:]])

    def _at_half(self, x: Tensor) -> Tensor:
        """Features at half resolution; both residuals start from the strided convolution."""
        reduced, apart, together = self.halved
        start = functional.relu(reduced(x))
        x = start + functional.relu(apart(start))
        out: Tensor = start + functional.relu(together(x))
        return out


@torch.no_grad()
def keep_the_spread(network: nn.Module) -> None:
    """Random weights of all convolutions under which features neither fade nor grow through ReLUs; no bias.

    Source: He et al., Delving deep into rectifiers, ICCV 2015.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
            # Kernel and stride are alike: each output comes from one voxel of every channel.
            nn.init.normal_(layer.weight, std=(2 / layer.in_channels) ** 0.5)
        else:
            continue
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def cropped(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The first voxels of every axis."""
    return x[(slice(None), slice(None), *(slice(n) for n in shape))]


def _down(level: nn.ModuleList, x: Tensor) -> Tensor:
    reduced, *residual = level
    x = functional.relu(reduced(x))
    for block in residual:
        x = x + functional.relu(block(x))
    return x


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, LEAKY)
