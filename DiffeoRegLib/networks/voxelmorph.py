"""VoxelMorph: one U-Net sees both images and says where to read the first so that it looks like the second.

`VoxelMorph` predicts the displacement itself.  `VoxelMorphDiff` predicts a Gaussian over stationary
velocities on every second voxel; their flow is a diffeomorphism with an inverse.
Sources: Balakrishnan et al., VoxelMorph, IEEE TMI 2019; Dalca et al., Unsupervised learning for fast
probabilistic diffeomorphic registration, MICCAI 2018 and Medical Image Analysis 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.flows.exponential import MOST_SQUARINGS, exp
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.flows.time_varying import INVERSE_TOLERANCE_VOX
from DiffeoRegLib.networks.unet import UNet, UNetConfig, UNetOptions, convolution
from DiffeoRegLib.space.field import upsample_field

Way = Literal["12", "21"]
WAYS: tuple[Way, ...] = ("12", "21")
CLASSIC: Mapping[str, Any] = MappingProxyType(
    {"encoder": (16, 32, 32, 32), "decoder": (32, 32, 32, 32, 32), "final": (16, 16), "stride": 1}
)
"""Sizes of the displacement network in the authors' code."""
CLASSIC_DIFF: Mapping[str, Any] = MappingProxyType(
    {"encoder": (16, 32, 32, 32), "decoder": (32, 32, 32, 32), "final": (16,), "stride": 2}
)
"""Sizes of the probabilistic network of 2018, whose velocity has half the images' resolution."""
SMALL_WEIGHT = 1e-5
"""Spread of a head's first weights: training starts from next to no motion."""
VARIANCE_WEIGHT = 1e-10
"""The same for the variance, which is the same everywhere then."""


@dataclass(eq=False)
class DisplacementMaps:
    """What VoxelMorph returns: u12 (N, d, *shape), voxels; moving(x + u12(x)) looks like fixed(x)."""

    u12: Tensor

    @cached_property
    def u21(self) -> Tensor:
        """fixed(x + u21(x)) looks like moving(x): the inverse of u12, voxel by voxel.

        Where u12 folds there is none; see `flows/inversion.py`.
        """
        return invert(self.u12, "mixed", INVERSE_TOLERANCE_VOX)

    def deformable(self, way: Way) -> Tensor:
        """The displacement of a way: what a penalty is for; raises UnknownNameError."""
        if way not in WAYS:
            raise UnknownNameError("way", way, WAYS)
        return self.u12 if way == "12" else self.u21


@dataclass(eq=False)
class VelocityMaps:
    """The flow of a stationary velocity, both ways; fields (N, d, *shape), voxels, made when first asked.

    velocity_vox, mean, log_variance: (N, d, *ceil(shape / stride)), voxels of that grid.  velocity_vox is a
    draw from the Gaussian of the other two, or the mean.  log_variance is that of the components of `mean`.
    """

    velocity_vox: Tensor
    mean: Tensor
    log_variance: Tensor
    shape: tuple[int, ...]
    stride: int
    squarings: int

    @cached_property
    def u12(self) -> Tensor:
        """moving(x + u12(x)) looks like fixed(x): exp(v)."""
        return self._flow(self.velocity_vox)

    @cached_property
    def u21(self) -> Tensor:
        """fixed(x + u21(x)) looks like moving(x): exp(-v)."""
        return self._flow(-self.velocity_vox)

    def deformable(self, way: Way) -> Tensor:
        """The velocity of a way in voxels of its own grid: what a regularity penalty is for."""
        if way not in WAYS:
            raise UnknownNameError("way", way, WAYS)
        return self.velocity_vox if way == "12" else -self.velocity_vox

    def _flow(self, velocity_vox: Tensor) -> Tensor:
        """Integrated where the velocity lives, then enlarged: vectors count in voxels of the image."""
        u_vox = exp(velocity_vox, self.squarings)
        return upsample_field(u_vox, [self.stride] * len(self.shape), self.shape)


class VoxelMorph(nn.Module):
    """Displacement of every voxel; sizes as in UNetConfig, usually CLASSIC."""

    def __init__(self, config: UNetConfig, options: UNetOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config, options)
        self.head = _head(config, SMALL_WEIGHT, 0.0)

    def forward(self, moving: Tensor, fixed: Tensor) -> DisplacementMaps:
        """(N, channels, *shape) twice, values about [0, 1]; raises ShapeError for what does not fit."""
        u_vox = _predicted(self.head, _seen(self.unet, moving, fixed))
        stride, shape = self.config.stride, moving.shape[2:]
        return DisplacementMaps(upsample_field(u_vox, [stride] * len(shape), shape))


@dataclass(frozen=True)
class VoxelMorphDiffOptions(UNetOptions):
    """How a VoxelMorphDiff is run.

    squarings: 2^squarings steps make the flow.
    first_log_variance: of untrained weights.  The published -10 is far from the best value without images,
    -ln(2 d smoothness) of the term `kl`; with long steps of Adam the variance then overshoots and explodes.
    Raises SettingsError for an absurd number of squarings, or a variance that is none.
    """

    squarings: int = 7
    first_log_variance: float = -10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.squarings <= MOST_SQUARINGS:
            raise SettingsError(f"Scaling and squaring takes 0 to {MOST_SQUARINGS} squarings.")
        if not math.isfinite(self.first_log_variance):
            raise SettingsError("The first log-variance is a finite number.")


class VoxelMorphDiff(nn.Module):
    """A Gaussian over velocities; training draws from it with torch's generator, else the mean counts."""

    def __init__(self, config: UNetConfig, options: VoxelMorphDiffOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or VoxelMorphDiffOptions()
        self.unet = UNet(config, self.options)
        self.mean = _head(config, SMALL_WEIGHT, 0.0)
        self.log_variance = _head(config, VARIANCE_WEIGHT, self.options.first_log_variance)

    def forward(self, moving: Tensor, fixed: Tensor) -> VelocityMaps:
        """(N, channels, *shape) twice, values about [0, 1]; raises ShapeError for what does not fit."""
        features = _seen(self.unet, moving, fixed)
        mean, log_variance = _predicted(self.mean, features), _predicted(self.log_variance, features)
        velocity_vox = mean
        if self.training:
            velocity_vox = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        shape = tuple(moving.shape[2:])
        return VelocityMaps(
            velocity_vox, mean, log_variance, shape, self.config.stride, self.options.squarings
        )


def _head(config: UNetConfig, spread: float, bias: float) -> nn.Module:
    """A convolution to one number per axis with small random weights."""
    layer = convolution(config.dim)(config.channels_out, config.dim, 3, padding=1)
    nn.init.normal_(layer.weight, std=spread)
    nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]
    return layer


def _seen(unet: UNet, moving: Tensor, fixed: Tensor) -> Tensor:
    """Features of a pair."""
    if moving.shape != fixed.shape:
        raise ShapeError(
            f"Two images of one shape are registered, not {tuple(moving.shape)} and {tuple(fixed.shape)}."
        )
    seen: Tensor = unet(torch.cat([moving, fixed], 1))
    return seen


def _predicted(head: nn.Module, features: Tensor) -> Tensor:
    """A field, never rounded to half precision: positions need all their digits."""
    with torch.autocast(features.device.type, enabled=False):
        field: Tensor = head(features)
    return field
