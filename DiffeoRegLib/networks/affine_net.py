"""An affine network in several steps: what turns, shifts, scales and shears one image onto another.

Each image goes alone through one convolution that both share; what follows sees both and ends in d (d + 1)
numbers.  Step k sees the moving image read once through the composition of all steps before it, and adds its
own on the inside: phi = phi_1 o phi_2 o ..., so A = A1 A2 and b = A1 b2 + b1.
Coordinates are those of space, not of voxels: the origin is the middle of the box, and half of its longest
edge is 1.  The last features are averaged over 4 x 4 x 4 parts of the box, so it may have any size.
Source: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019, and RDMM,
NeurIPS 2019, whose code composes the steps the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from DiffeoRegLib.errors import SettingsError, ShapeError, UnknownNameError
from DiffeoRegLib.networks.sitreg_options import PRECISIONS, Precision
from DiffeoRegLib.networks.unet import convolution
from DiffeoRegLib.space.sample import identity_vox, warp

Way = Literal["12", "21"]
MOST_STEPS = 16


@dataclass(frozen=True)
class AffineNetConfig:
    """Sizes of the network; the defaults are the published ones.

    shared: channels of the convolution each image passes alone.  channels, strides: of the convolutions
    after it, on both together.  pooled: 2 where the maximum over 2 voxels per axis is taken before one, else
    1.  parts: of the box per axis that the last features are averaged over.  hidden: of the layer before the
    numbers.  dim: 2 or 3.  spacing: relative size of a voxel per tensor axis, None = cubes.
    Raises SettingsError for sizes that do not fit.
    """

    shared: int = 16
    channels: tuple[int, ...] = (32, 32, 32, 32, 16, 16, 4)
    strides: tuple[int, ...] = (1, 2, 1, 1, 2, 1, 2)
    pooled: tuple[int, ...] = (2, 1, 1, 2, 1, 1, 1)
    parts: int = 4
    hidden: int = 32
    dim: int = 3
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.dim not in (2, 3):
            raise SettingsError(f"An affine network has 2 or 3 dimensions, not {self.dim}.")
        if not self.channels or min(self.shared, *self.channels, self.parts, self.hidden) < 1:
            raise SettingsError("An affine network needs a convolution, and one channel and part or more.")
        if not len(self.channels) == len(self.strides) == len(self.pooled):
            raise SettingsError(
                f"{len(self.channels)} channels, {len(self.strides)} strides and {len(self.pooled)} poolings "
                "do not match: an affine network has one of each per convolution."
            )
        if not {*self.strides, *self.pooled} <= {1, 2}:
            raise SettingsError("Strides and poolings of an affine network are 1 or 2.")
        sizes = self.spacing
        if sizes is not None and not (len(sizes) == self.dim and all(0 < s < math.inf for s in sizes)):
            raise SettingsError(f"The voxel of a {self.dim}D network has {self.dim} sizes, not {sizes}.")


@dataclass(frozen=True)
class AffineNetOptions:
    """How an affine network is run; the weights fit all of them.

    steps: while it is trained, from the step of the optimiser `several_from` on; one before it.
    test_steps: afterwards.  precision: of the convolutions.
    Raises SettingsError for an absurd number of steps, UnknownNameError for an unknown precision.
    """

    steps: int = 3
    several_from: int = 0
    test_steps: int = 5
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.several_from < 0:
            raise SettingsError("Steps of training are counted from 0 up (several_from).")
        if not (1 <= self.steps <= MOST_STEPS and 1 <= self.test_steps <= MOST_STEPS):
            raise SettingsError(f"An affine network takes 1 to {MOST_STEPS} steps.")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> A x + b in the coordinates of the box: its middle is 0, half of its longest edge is 1.

    linear: A, (N, d, d), the same matrix as in mm along the axes of the box.  shift: b, (N, d).
    """

    linear: Tensor
    shift: Tensor

    def after(self, inner: Affine) -> Affine:
        """x -> self(inner(x))."""
        shift = torch.einsum("nab,nb->na", self.linear, inner.shift) + self.shift
        return Affine(self.linear @ inner.linear, shift)

    def in_voxels(self, shape: Sequence[int], spacing: Sequence[float] | None = None) -> Affine:
        """The same map of voxel positions about the middle of the box, (n - 1) / 2.

        spacing: relative size of a voxel per axis, None = cubes.
        """
        sizes = [1.0] * len(shape) if spacing is None else list(spacing)
        half = 0.5 * max(n * s for n, s in zip(shape, sizes, strict=True))
        size = torch.tensor(sizes, dtype=self.linear.dtype, device=self.linear.device)
        return Affine(self.linear * size / size[:, None], self.shift * half / size)

    def u_vox(self, shape: Sequence[int], spacing: Sequence[float] | None = None) -> Tensor:
        """Displacement (N, d, *shape), voxels, of a box of this shape."""
        linear, shift = self.linear, self.shift
        own = self.in_voxels(shape, spacing)
        step = own.linear - torch.eye(len(shape), dtype=linear.dtype, device=linear.device)
        index = identity_vox(shape, linear.dtype, linear.device)
        middle = torch.tensor([(n - 1) / 2 for n in shape], dtype=linear.dtype, device=linear.device)
        around = index - middle.view(1, -1, *[1] * len(shape))
        moved = torch.einsum("nab,b...->na...", step, around[0])
        return moved + own.shift.view(*shift.shape, *[1] * len(shape))


@dataclass(eq=False)
class AffineMaps:
    """What an affine network returns; the other way round is found when first asked for.

    there: fixed -> moving.  exchanged: runs the network on the exchanged images.
    shape, spacing: of the box, see AffineNetConfig.
    """

    there: Affine
    exchanged: Callable[[], Affine]
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None

    @cached_property
    def back(self) -> Affine:
        """moving -> fixed, by the network; nothing makes it the exact inverse."""
        return self.exchanged()

    def affine(self, way: Way) -> Affine:
        """The map behind u12 or u21; raises UnknownNameError for another way."""
        if way not in ("12", "21"):
            raise UnknownNameError("way", way, ("12", "21"))
        return self.there if way == "12" else self.back

    @cached_property
    def u12(self) -> Tensor:
        """moving(x + u12(x)) looks like fixed(x); (N, d, *shape), voxels."""
        return self.there.u_vox(self.shape, self.spacing)

    @cached_property
    def u21(self) -> Tensor:
        """fixed(x + u21(x)) looks like moving(x)."""
        return self.back.u_vox(self.shape, self.spacing)


class AffineNet(nn.Module):
    """(moving, fixed) to affine maps, 2D or 3D, any size; with random weights it says the identity."""

    def __init__(self, config: AffineNetConfig, options: AffineNetOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or AffineNetOptions()
        self.count = self.options.steps
        kind, dim = convolution(config.dim), config.dim
        self.shared = kind(1, config.shared, 3, padding=1)
        channels = (2 * config.shared, *config.channels)
        self.trunk = nn.ModuleList(
            kind(entering, leaving, 3, stride=stride, padding=1)
            for (entering, leaving), stride in zip(pairwise(channels), config.strides, strict=True)
        )
        self.hidden = nn.Linear(channels[-1] * config.parts**dim, config.hidden)
        self.numbers = nn.Linear(config.hidden, dim * (dim + 1))
        nn.init.zeros_(self.numbers.weight)
        nn.init.zeros_(self.numbers.bias)

    def at_step(self, step: int) -> None:
        """The step of the optimiser that comes, from 0: it says in how many steps the network is trained."""
        self.count = self.options.steps if step >= self.options.several_from else 1

    def forward(self, moving: Tensor, fixed: Tensor) -> AffineMaps:
        """(N, 1, *shape) twice, values about [0, 1]; gradients go through all steps.

        Raises ShapeError for what does not fit.
        """
        config = self.config
        if moving.shape != fixed.shape or moving.dim() != config.dim + 2 or moving.shape[1] != 1:
            raise ShapeError(
                f"This network takes two images (N, 1, *{config.dim}D shape) of one shape, "
                f"not {tuple(moving.shape)} and {tuple(fixed.shape)}."
            )
        seen = self._alone(moving), self._alone(fixed)

        def exchanged() -> Affine:
            return self._steps(fixed, seen[1], seen[0])

        there = self._steps(moving, seen[0], seen[1])
        return AffineMaps(there, exchanged, tuple(moving.shape[2:]), config.spacing)

    def _steps(self, moving: Tensor, seen_moving: Tensor, seen_fixed: Tensor) -> Affine:
        """All steps; the features of the images before the first are given."""
        count = self.count if self.training else self.options.test_steps
        total = self._step(seen_moving, seen_fixed)
        for _ in range(count - 1):
            u_vox = total.u_vox(moving.shape[2:], self.config.spacing)
            total = total.after(self._step(self._alone(warp(moving, u_vox)), seen_fixed))
        return total

    def _step(self, moving: Tensor, fixed: Tensor) -> Affine:
        """The map that one look at both suggests, in the images' precision."""
        config, dim = self.config, self.config.dim
        pool = functional.max_pool2d if dim == 2 else functional.max_pool3d
        average = functional.adaptive_avg_pool2d if dim == 2 else functional.adaptive_avg_pool3d
        x = torch.cat([moving, fixed], 1)
        with self._rounded(x):
            for layer, pooled in zip(self.trunk, config.pooled, strict=True):
                if pooled > 1:
                    x = pool(x, pooled, ceil_mode=True)
                x = functional.relu(layer(x))
        with torch.autocast(x.device.type, enabled=False):
            parts = average(x.to(self.hidden.weight.dtype), config.parts).flatten(1)
            numbers: Tensor = self.numbers(functional.relu(self.hidden(parts)))
        linear, shift = numbers[:, : dim * dim].view(-1, dim, dim), numbers[:, dim * dim :]
        return Affine(torch.eye(dim).to(linear) + linear, shift)

    def _alone(self, image: Tensor) -> Tensor:
        """Features of one image."""
        with self._rounded(image):
            return functional.relu(self.shared(image))

    def _rounded(self, like: Tensor) -> torch.autocast:
        """Inside, convolutions have the precision of the options."""
        half = self.options.precision == "bfloat16"
        return torch.autocast(like.device.type, torch.bfloat16, enabled=half)
