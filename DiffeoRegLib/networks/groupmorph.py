"""GroupMorph: K images at once to one of them, or to a space of their own; a Gaussian over velocities each.

A U-Net says of every image and voxel what its velocity is and how well that is known: a mean and a variance.
Training draws from them, afterwards the mean counts.  Image k is read at x + u_k(x), u_k = exp(z_k) - id, or
z_k itself.
Two forms: `stack`, the paper's, has the images on the channel axis, so their number and order belong to the
weights; `set`, ours, takes any number in any order (`networks/group_unet.py`).
All-to-one: the image `fixed` stays as it is.  All-moving: all move; nothing but a weak prior pins the common
part of their velocities, so it is taken out, which the paper does not do (`center`).
Departures: the paper's figure with the channels is lost, ours are VoxelMorph's; `stride` above 1.
Source: van der Ouderaa, Isgum, Veldhuis and de Vos, Deep group-wise variational diffeomorphic image
registration, Thoracic Image Analysis 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from DiffeoRegLib.errors import SettingsError, ShapeError
from DiffeoRegLib.flows.exponential import MOST_SQUARINGS, exp
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.networks.group_unet import COMMON_CHANNELS, SetUNet
from DiffeoRegLib.networks.unet import UNet, UNetConfig, UNetOptions, convolution, filled
from DiffeoRegLib.space.field import upsample_field
from DiffeoRegLib.space.sample import warp

Form = Literal["set", "stack"]
CLASSIC: Mapping[str, Any] = MappingProxyType(
    {"encoder": (16, 32, 32, 32), "decoder": (32, 32, 32, 32, 32), "final": (16, 16), "stride": 1}
)
"""Sizes of the U-Net where the paper's are lost: VoxelMorph's."""
SMALL_WEIGHT = 1e-5
"""Spread of the mean's first weights: training starts from next to no motion."""
VARIANCE_WEIGHT = 1e-10
FIRST_VARIANCE = -4.0
"""What softplus makes the first variance of: a deviation of .13 voxel everywhere."""
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class GroupMorphConfig(UNetConfig):
    """Sizes of the network and what else belongs to the weights; channels_in follows from the rest.

    form: `set` or `stack`.  images: their number in the stack.  presence: further channels of the stack say
    which images there are, so that fewer may be given.
    fixed: the image of the stack that stays, counted from 0; None = all move.  A set is told per call.
    times: a set is told when each image was taken, 0 to 1.
    largest_vox: of the mean, per component, voxels of its own grid.
    diffeomorphic: what is predicted is a velocity; otherwise the displacement.
    Raises SettingsError for sizes that do not fit.
    """

    encoder: tuple[int, ...] = CLASSIC["encoder"]
    decoder: tuple[int, ...] = CLASSIC["decoder"]
    final: tuple[int, ...] = CLASSIC["final"]
    channels_in: int = 1
    form: Form = "set"
    images: int = 0
    presence: bool = False
    fixed: int | None = None
    times: bool = False
    largest_vox: float = 15.0
    diffeomorphic: bool = True

    def __post_init__(self) -> None:
        if self.channels_in != 1:
            raise SettingsError("The images of a group have one channel.")
        if self.form == "set" and (self.images or self.presence or self.fixed is not None):
            raise SettingsError("images, presence and fixed are of the form 'stack'; a set is told per call.")
        if self.form == "stack" and (self.images < 2 or self.times):
            raise SettingsError("A stack has two images or more, whose order is their time: no times.")
        if self.fixed is not None and not 0 <= self.fixed < self.images:
            raise SettingsError(
                f"The fixed image of a stack of {self.images} is numbered from 0, not {self.fixed}."
            )
        if not 0 < self.largest_vox < math.inf:
            raise SettingsError(f"The largest velocity is above 0 voxels, not {self.largest_vox}.")
        super().__post_init__()

    @property
    def unet(self) -> UNetConfig:
        """Sizes of the U-Net alone."""
        own = {name: getattr(self, name) for name in UNetConfig.__dataclass_fields__}
        flags = 2 + self.times + COMMON_CHANNELS
        channels = flags if self.form == "set" else self.images * (1 + self.presence)
        return UNetConfig(**{**own, "channels_in": channels})

    @property
    def fields(self) -> int:
        """Fields made of one look at the features."""
        return 1 if self.form == "set" else self.images - (self.fixed is not None)


@dataclass(frozen=True)
class GroupMorphOptions(UNetOptions):
    """How a GroupMorph is run.

    squarings: 2^squarings steps make the flow; with 7 the first is below .12 of 15 voxels.
    center: where all images move, their velocities have mean 0 in every voxel.
    margin_vox: the images are continued by so many voxels of their edges' values outside training: what the
    network says of a border without them differs within about 16 voxels.
    Raises SettingsError for an absurd number of squarings or a negative margin.
    """

    squarings: int = 7
    center: bool = True
    margin_vox: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.squarings <= MOST_SQUARINGS:
            raise SettingsError(f"Scaling and squaring takes 0 to {MOST_SQUARINGS} squarings.")
        if self.margin_vox < 0:
            raise SettingsError("The margin is a number of voxels of at least 0.")


@dataclass(eq=False)
class GroupMaps:
    """The maps of a group, both ways, in voxels; fields of single images are made when asked for.

    velocity_vox: (K, d, *grid) on the grid of the stride, ceil(shape / stride), in voxels of it: a draw or
    the mean, without the common part if that was wanted; exactly 0 for the fixed image.  Without squarings it
    is the displacement itself.
    mean, log_variance: (M, d, *grid) of the M moving images as predicted, common part included.
    """

    velocity_vox: Tensor
    mean: Tensor
    log_variance: Tensor
    shape: tuple[int, ...]
    stride: int = 1
    fixed: int | None = None
    squarings: int | None = 7
    center: bool = True

    @cached_property
    def u_vox(self) -> Tensor:
        """(K, d, *shape): image k, read at x + u_k(x), looks like the common space at x."""
        return self._flow(self.velocity_vox, 1.0)

    @cached_property
    def inverse_vox(self) -> Tensor:
        """(K, d, *shape): place x of image k is at x + inverse_k(x) of the common space."""
        return self._flow(self.velocity_vox, -1.0)

    def warped(self, images: Tensor) -> Tensor:
        """Images (K, 1, *shape) in the common space; the fixed one is what it was, bit for bit."""
        moving = self.moving
        read = warp(images[moving], self.u_vox[moving])
        if self.fixed is None:
            return read
        return torch.cat([read[: self.fixed], images[self.fixed : self.fixed + 1], read[self.fixed :]])

    def u_of(self, image: int) -> Tensor:
        """u_vox of one image, (1, d, *shape), not kept."""
        return self._flow(self.velocity_vox[image : image + 1], 1.0)

    def inverse_of(self, image: int) -> Tensor:
        """inverse_vox of one image, (1, d, *shape), not kept."""
        return self._flow(self.velocity_vox[image : image + 1], -1.0)

    @property
    def moving(self) -> list[int]:
        """Indices of the images that move."""
        return [k for k in range(len(self.velocity_vox)) if k != self.fixed]

    @property
    def variance(self) -> Tensor:
        """Of velocity_vox, (K, d, *grid): the common part of a centred group is uncertain, too."""
        own = self.log_variance.exp()
        count = len(own)
        if self.fixed is None and self.center:
            own = own * (1 - 2 / count) + own.sum(0, keepdim=True) / count**2
        return _with_fixed(own, self.fixed)

    def drawn(self, generator: torch.Generator | None = None) -> GroupMaps:
        """Another draw of the same Gaussian, for the spread of anything made from the maps."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        draw = self.mean + (0.5 * self.log_variance).exp() * noise
        return replace(self, velocity_vox=centred(draw, self.fixed, self.center))

    def _flow(self, velocity_vox: Tensor, time: float) -> Tensor:
        """Made where the velocity lives, then enlarged: vectors count in voxels of the images."""
        if self.squarings is not None:
            u_vox = exp(velocity_vox, self.squarings, time=time)
        else:
            u_vox = velocity_vox if time > 0 else invert(velocity_vox)
        if self.stride == 1:
            return u_vox
        return upsample_field(u_vox, [self.stride] * len(self.shape), self.shape)


class GroupMorph(nn.Module):
    """A Gaussian over velocities for every image of a group; training draws with torch's generator."""

    def __init__(self, config: GroupMorphConfig, options: GroupMorphOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or GroupMorphOptions()
        self.unet = (SetUNet if config.form == "set" else UNet)(config.unet, self.options)
        self.mean = _head(config, SMALL_WEIGHT, 0.0)
        self.variance = _head(config, VARIANCE_WEIGHT, FIRST_VARIANCE)

    def forward(
        self, images: Tensor, fixed: int | None = None, times: Sequence[float] | None = None
    ) -> GroupMaps:
        """Maps of (K, 1, *shape), values about [0, 1].

        fixed: the image that stays; None = all move, or as a stack was made for.
        times: 0 to 1, for a set that is trained with them; None = evenly spread in the given order.
        Where no gradient is wanted a set is looked at image by image, which needs less memory.
        Raises ShapeError or SettingsError for images or a fixed one the network is not for.
        """
        config, options = self.config, self.options
        fixed = self._checked(images, fixed)
        alone = self._looks(images, fixed, times)
        if isinstance(self.unet, SetUNet) and not torch.is_grad_enabled():
            wanted = [k for k in range(len(images)) if k != fixed]
            raw = torch.cat(list(self.unet.each(alone, fixed, self._raw, wanted)))
        elif isinstance(self.unet, SetUNet):
            raw = self._raw(self.unet(torch.cat(list(alone)), fixed))
            raw = raw if fixed is None else torch.cat([raw[:fixed], raw[fixed + 1 :]])
        else:
            raw = self._raw(self.unet(alone[0]))
            raw = raw.view(2, config.images - (fixed is not None), config.dim, *raw.shape[2:])
            raw = raw.transpose(0, 1).flatten(1, 2)[: len(images) - (fixed is not None)]
        raw = self._without_margin(raw, images.shape[2:])
        mean = config.largest_vox * torch.tanh(raw[:, : config.dim])
        log_variance = (functional.softplus(raw[:, config.dim :]) + LEAST_VARIANCE).log()
        draw = mean
        if self.training:
            draw = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return GroupMaps(
            centred(draw, fixed, options.center), mean, log_variance, tuple(images.shape[2:]), config.stride,
            fixed, options.squarings if config.diffeomorphic else None, options.center,
        )  # fmt: skip

    def _checked(self, images: Tensor, fixed: int | None) -> int | None:
        """The fixed image, after a look at the group."""
        config = self.config
        if images.dim() != config.dim + 2 or images.shape[1] != 1 or len(images) < 2:
            raise ShapeError(
                f"A group is (K, 1, *{config.dim}D shape) with two images or more, not {tuple(images.shape)}."
            )
        count = len(images)
        if config.form == "stack":
            fewest = 2 if config.presence else config.images
            if not fewest <= count <= config.images:
                raise SettingsError(
                    f"These weights are for a stack of {config.images} images, not {count}"
                    + ("." if config.presence else "; the form 'set' takes any number.")
                )
            if fixed not in (None, config.fixed):
                raise SettingsError(f"These weights are for the fixed image {config.fixed}, not {fixed}.")
            fixed = config.fixed
        if fixed is not None and not 0 <= fixed < count:
            raise SettingsError(f"The fixed image of {count} is one of 0 to {count - 1}, not {fixed}.")
        return fixed

    def _looks(self, images: Tensor, fixed: int | None, times: Sequence[float] | None) -> Sequence[Tensor]:
        """What the U-Net is shown: the stack, or every image of a set with its flags."""
        config = self.config
        if times is not None and len(times) != len(images):
            raise SettingsError(f"{len(images)} images have as many times, not {len(times)}.")
        images = self._with_margin(images)
        if config.form == "set":
            if times is None:
                times = [k / (len(images) - 1) for k in range(len(images))]
            return _Flagged(images, fixed, times if config.times else None)
        missing = config.images - len(images)
        filled_up = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images
        stack = filled_up.transpose(0, 1)
        if config.presence:
            flags = torch.ones_like(stack)
            flags[:, len(images) :] = 0
            stack = torch.cat([stack, flags], 1)
        return [stack]

    def _raw(self, features: Tensor) -> Tensor:
        """Both heads, (N, 2 fields d, *grid), never in half precision: fields need all their digits."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.mean.weight.dtype)
            return torch.cat([self.mean(features), self.variance(features)], 1)

    @property
    def _margin(self) -> int:
        """A multiple of the stride that is at least what is wanted; none in training."""
        wanted = 0 if self.training else self.options.margin_vox
        return -(-wanted // self.config.stride) * self.config.stride

    def _with_margin(self, images: Tensor) -> Tensor:
        """Edge values all around, and on the right until the levels divide the axes."""
        margin = self._margin
        if margin:
            images = functional.pad(images, [margin] * 2 * self.config.dim, mode="replicate")
        return filled(images, self.config.coarsest)

    def _without_margin(self, fields: Tensor, shape: Sequence[int]) -> Tensor:
        first, stride = self._margin // self.config.stride, self.config.stride
        kept = [slice(first, first + -(-n // stride)) for n in shape]
        return fields[(slice(None), slice(None), *kept)]


class _Flagged(Sequence[Tensor]):
    """Images of a set with their flags, (1, channels, *shape) each, made when asked for."""

    def __init__(self, images: Tensor, fixed: int | None, times: Sequence[float] | None) -> None:
        self.images, self.fixed, self.times = images, fixed, times

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if not 0 <= index < len(self.images):
            raise IndexError(index)
        image = self.images[index : index + 1]
        parts = [image, torch.full_like(image, float(index == self.fixed))]
        if self.times is not None:
            parts.append(torch.full_like(image, self.times[index]))
        return torch.cat(parts, 1)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))


def centred(draw: Tensor, fixed: int | None, center: bool) -> Tensor:
    """Velocities (K, d, *grid) of a group from those of its moving images (M, d, *grid).

    All-moving: without their mean, if `center`.  All-to-one: with 0 in the place of the fixed image.
    """
    if fixed is None and center:
        draw = draw - draw.mean(0, keepdim=True)
    return _with_fixed(draw, fixed)


def _with_fixed(values: Tensor, fixed: int | None) -> Tensor:
    if fixed is None:
        return values
    return torch.cat([values[:fixed], torch.zeros_like(values[:1]), values[fixed:]])


def _head(config: GroupMorphConfig, spread: float, bias: float) -> nn.Conv2d | nn.Conv3d:
    """A convolution to one number per field and axis, with small random weights."""
    layer = convolution(config.dim)(config.channels_out, config.fields * config.dim, 3, padding=1)
    nn.init.normal_(layer.weight, std=spread)
    nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]
    return layer
