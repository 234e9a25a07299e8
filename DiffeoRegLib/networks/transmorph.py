"""TransMorph: a Swin transformer sees both images, a convolutional decoder says where to read the first.

Here are what its forms share, the sizes by name, and the single-step form, which predicts the displacement of
every voxel at once; `tvf.py` has the form with velocities that change in time.
Source: Chen et al., TransMorph, Medical Image Analysis 2022, with the sizes of the published code.
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
from DiffeoRegLib.networks.sitreg_options import PRECISIONS, Precision
from DiffeoRegLib.networks.swin import Swin, SwinConfig
from DiffeoRegLib.networks.unet import convolution, filled
from DiffeoRegLib.networks.voxelmorph import SMALL_WEIGHT
from DiffeoRegLib.space.field import downsample_image
from DiffeoRegLib.space.filters import apply_axes, linear_resize_matrix

SLOPE = 0.01
HALVES = (torch.bfloat16, torch.float16)
STAGES = 4

SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": {"embed": 24, "depths": (2, 2, 4, 2), "heads": (1, 2, 4, 8)},
        "small": {"embed": 48, "depths": (2, 2, 4, 2), "heads": (2, 4, 8, 16)},
        "base": {"embed": 96, "depths": (2, 2, 4, 2), "heads": (4, 4, 8, 8)},
        "large": {"embed": 128, "depths": (2, 2, 12, 2), "heads": (4, 4, 8, 16)},
    }
)
"""Base and large are the published ones; tiny and small are ours, with 24 channels per head throughout."""
WINDOWS: Mapping[int, tuple[int, ...]] = MappingProxyType({2: (8, 8), 3: (5, 6, 7)})
"""Tokens per window: of the published networks in 3D, for squares in 2D."""


def sizes_of(name: str, dim: int = 3) -> dict[str, Any]:
    """Embedding, depths, heads and window of a size by name.

    Raises UnknownNameError for an unknown size, SettingsError for another number of axes.
    """
    if name not in SIZES:
        raise UnknownNameError("size", name, SIZES)
    if dim not in WINDOWS:
        raise SettingsError(f"A TransMorph network has 2 or 3 dimensions, not {dim}.")
    return {**SIZES[name], "window": WINDOWS[dim]}


@dataclass(frozen=True)
class TransMorphConfig(SwinConfig):
    """Sizes of a TransMorph network: those of `SwinConfig`, and the channels that enter a head.

    Raises SettingsError for sizes that do not fit.
    """

    head_channels: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != STAGES or self.patch != 4:
            raise SettingsError("A TransMorph network has 4 stages and patches of 4 voxels.")
        if self.embed % 2 or self.channels_in % 2 or self.head_channels < 1:
            raise SettingsError(
                "A TransMorph network needs two images of equal channels and an even embedding."
            )


@dataclass(frozen=True)
class TransMorphOptions:
    """How a TransMorph network is run; the weights fit all of them.

    precision: of convolutions and attention; fields keep that of the images.
    checkpointing: forget activations within blocks and steps, compute them again for the gradient.
    Raises UnknownNameError for an unknown precision.
    """

    precision: Precision = "float32"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)


class Backbone(nn.Module):
    """Transformer and decoder of a pair up to a quarter of its resolution."""

    def __init__(self, config: SwinConfig, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.swin = Swin(config, checkpointing)
        c = config.channels
        self.up = nn.ModuleList(
            UpBlock(config.dim, c[stage], c[stage - 1], c[stage - 1]) for stage in (3, 2, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels_in, *shape) of any size to (N, embed, *filled shape / 4)."""
        features: list[Tensor] = self.swin(filled(images, self.config.coarsest))
        x: Tensor = features.pop()
        for block in self.up:
            x = block(x, features.pop())
        return x


class UpBlock(nn.Module):
    """Twice the resolution, beside a skip, then two convolutions."""

    def __init__(self, dim: int, entering: int, leaving: int, skip: int) -> None:
        super().__init__()
        self.conv1 = bare_convolution(dim, entering + skip, leaving)
        self.conv2 = bare_convolution(dim, leaving, leaving)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, entering, *grid), (N, skip, *twice the grid or less) to (N, leaving, *that)."""
        wide = enlarged(x, skip.shape[2:])
        inner = normalised(convolved(torch.cat([wide, skip.to(wide.dtype)], 1), self.conv1.weight))
        return normalised(convolved(inner, self.conv2.weight))


def bare_convolution(dim: int, entering: int, leaving: int) -> nn.Conv2d | nn.Conv3d:
    """A convolution of 3^d without bias, which a normalisation would take off again."""
    return convolution(dim)(entering, leaving, 3, padding=1, bias=False)


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution of 3^d without bias, (N, entering, *grid) to (N, leaving, *grid), as precise as x."""
    if x.dtype in HALVES:
        return _Convolved.apply(x, weight, None, x.dtype)  # type: ignore[no-any-return, no-untyped-call]
    return _convolve(x, weight)


def predicted(head: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """The field a head makes of features, as precise as its weights: positions need all their digits."""
    if x.dtype in HALVES:
        full = head.weight.dtype
        return _Convolved.apply(x, head.weight, head.bias, full)  # type: ignore[no-any-return, no-untyped-call]
    return _convolve(x, head.weight, head.bias)


class _Convolved(torch.autograd.Function):
    """Convolution of numbers in half precision, with all channels of a voxel together, as it is fastest.

    The result has the precision asked for, the gradient that of the input, and both are laid out as usual:
    what else is done to them is slow with mixed layouts.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        laid = laid_out(x)
        ctx.save_for_backward(laid, weight)
        with torch.autocast(x.device.type, enabled=False):
            return _convolve(laid.to(dtype), weight.to(dtype), bias).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        sides, wanted = [1] * (x.dim() - 2), ctx.needs_input_grad
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            laid_out(grads[0].to(x.dtype)), x, weight.to(x.dtype), None,
            sides, sides, sides, False, [0] * len(sides), 1, [wanted[0], wanted[1], False],
        )  # fmt: skip
        of_bias = grads[0].sum((0, *range(2, x.dim()))) if wanted[2] else None
        return (
            of_x.contiguous() if wanted[0] else None,
            of_weight.to(weight.dtype) if wanted[1] else None,
            of_bias,
            None,
        )


def laid_out(x: Tensor) -> Tensor:
    """The same values as `convolved` reads them: in half precision all channels of a voxel together."""
    if x.dtype not in HALVES:
        return x
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return (functional.conv2d if x.dim() == 4 else functional.conv3d)(x, weight, bias, padding=1)


def normalised(x: Tensor) -> Tensor:
    """Every channel of every sample brought to mean 0 and variance 1, then the activation.

    Means and variances in full precision also of half precision numbers, which would lose what is small.
    """
    full = torch.float64 if x.dtype == torch.float64 else torch.float32
    unit = torch.ones(x.shape[1], dtype=full, device=x.device)
    # A group per channel: several times faster here than torch's normalisation of instances.
    normal = functional.group_norm(x, len(unit), unit, torch.zeros_like(unit))
    return functional.leaky_relu(normal, SLOPE, inplace=True).to(x.dtype)


def enlarged(x: Tensor, shape: torch.Size) -> Tensor:
    """Twice the resolution by linear interpolation, cell-centred, cut on the right to a shape."""
    # One thin matrix per axis: many times faster on a CPU than torch's interpolation along all axes at once.
    return apply_axes(
        x,
        [
            linear_resize_matrix(rows, columns, 0.5, -0.25, x.dtype, x.device)
            for rows, columns in zip(shape, x.shape[2:], strict=True)
        ],
    )


def field_head(dim: int, entering: int) -> nn.Conv2d | nn.Conv3d:
    """A convolution to one number per axis; training starts from next to no motion."""
    layer = convolution(dim)(entering, dim, 3, padding=1)
    nn.init.normal_(layer.weight, std=SMALL_WEIGHT)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def check_pair(config: SwinConfig, moving: Tensor, fixed: Tensor) -> None:
    """Raises ShapeError for images this network cannot take."""
    channels = config.channels_in // 2
    if moving.shape != fixed.shape:
        raise ShapeError(
            f"Two images of one shape are registered, not {tuple(moving.shape)} and {tuple(fixed.shape)}."
        )
    if moving.dim() != config.dim + 2 or moving.shape[1] != channels:
        raise ShapeError(
            f"This network takes images (N, {channels}, *{config.dim}D shape), not {tuple(moving.shape)}."
        )
    if min(moving.shape[2:]) < config.patch:
        raise ShapeError(
            f"This network looks at patches of {config.patch} voxels: an image of {tuple(moving.shape[2:])} "
            "voxels is too small for it."
        )


@dataclass(frozen=True, eq=False)
class SingleStepMaps:
    """What TransMorph returns: u12 (N, d, *shape), voxels; moving(x + u12(x)) looks like fixed(x)."""

    u12: Tensor

    @property
    def u21(self) -> Tensor:
        """Raises SettingsError: nothing makes this displacement invertible."""
        raise SettingsError(
            "TransMorph predicts one direction only: train it with symmetric: false, or use transmorph-tvf, "
            "whose maps have inverses."
        )


class TransMorph(nn.Module):
    """The single-step form: displacement of every voxel; nothing makes it invertible."""

    def __init__(self, config: TransMorphConfig, options: TransMorphOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or TransMorphOptions()
        dim, e, last = config.dim, config.embed, config.head_channels
        self.backbone = Backbone(config, self.options.checkpointing)
        self.on_half = bare_convolution(dim, config.channels_in, e // 2)
        self.on_full = bare_convolution(dim, config.channels_in, last)
        self.up3 = UpBlock(dim, e, e // 2, e // 2)
        self.up4 = UpBlock(dim, e // 2, last, last)
        self.head = field_head(dim, last)

    def forward(self, moving: Tensor, fixed: Tensor) -> SingleStepMaps:
        """(N, channels, *shape) twice, values about [0, 1]; raises ShapeError for what does not fit."""
        check_pair(self.config, moving, fixed)
        images = torch.cat([moving, fixed], 1)
        device, half = images.device.type, self.options.precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=half):
            x = self.backbone(images)
            halves = downsample_image(images, [2] * self.config.dim)
            for block, entry, given in ((self.up3, self.on_half, halves), (self.up4, self.on_full, images)):
                x = self._run(block, x, normalised(convolved(given.to(x.dtype), entry.weight)))
        return SingleStepMaps(predicted(self.head, x))

    def _run(self, block: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
        held = self.options.checkpointing and torch.is_grad_enabled()
        out: Tensor = checkpoint(block, x, skip, use_reentrant=False) if held else block(x, skip)
        return out
