"""TransMorph-TVF: a transformer sees a pair once, then N heads predict N velocities, one after the other.

Every head sees the features of the pair and, at half resolution, the fixed image beside the moving image as
the fields before left it.  How fields make a map: see `flows/time_varying.py`.
The first convolution of a head reads features and images at once. It is linear: both have their share of it,
and are never put together; the features are enlarged once for all heads.
Departures from the published code, all but the last two undone by the order `official`: images are halved by
block means (its pooling darkens borders and is off by half a voxel) and read at the right places, beyond
their border by the border; images of any size are taken, and tokens of the filling are not seen.
Source: Chen, Frey and Du, Unsupervised Learning of Diffeomorphic Image Registration via TransMorph, WBIR
2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from DiffeoRegLib.errors import SettingsError, UnknownNameError
from DiffeoRegLib.flows.inversion import invert
from DiffeoRegLib.flows.time_varying import (
    INVERSE_TOLERANCE_VOX,
    MOST_SUBSTEPS,
    ORDERS,
    InverseKind,
    Order,
    advance,
    full_resolution,
    integrate_steps,
    inverse_of_steps,
    published_warp,
    states,
    until,
)
from DiffeoRegLib.networks.transmorph import (
    Backbone,
    TransMorphConfig,
    TransMorphOptions,
    bare_convolution,
    check_pair,
    convolved,
    enlarged,
    field_head,
    laid_out,
    normalised,
    predicted,
)
from DiffeoRegLib.networks.voxelmorph import WAYS, Way
from DiffeoRegLib.space.field import downsample_image
from DiffeoRegLib.space.sample import warp

MOST_STEPS = 32


@dataclass(frozen=True)
class TVFConfig(TransMorphConfig):
    """Sizes of a TransMorph-TVF network: those of `TransMorphConfig`, and what else belongs to the weights.

    steps: velocity fields.  order: of their composition, also of the images the heads see.
    Raises SettingsError for sizes that do not fit, UnknownNameError for an unknown order.
    """

    steps: int = 8
    order: Order = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.steps <= MOST_STEPS:
            raise SettingsError(f"A network predicts 1 to {MOST_STEPS} velocity fields, not {self.steps}.")
        if self.order not in ORDERS:
            raise UnknownNameError("order of composition", self.order, ORDERS)


@dataclass(frozen=True)
class TVFOptions(TransMorphOptions):
    """How a TransMorph-TVF network is run; the weights fit all of them.

    substeps: parts in which every field is followed for the final map; the heads see one step per field, as
    in training.
    Raises SettingsError for substeps that cannot be, UnknownNameError for an unknown precision.
    """

    substeps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.substeps <= MOST_SUBSTEPS:
            raise SettingsError(
                f"A velocity field is followed in 1 to {MOST_SUBSTEPS} parts, not {self.substeps}."
            )


@dataclass(eq=False)
class TimeVaryingMaps:
    """The flow of N velocities, both ways; fields (N, d, *shape), voxels, made when first asked.

    velocities_vox: each (N, d, *ceil(shape / 2)), voxels of that grid per step.  shape: of the images.
    order, substeps: see `flows/time_varying.py`.
    """

    velocities_vox: tuple[Tensor, ...]
    shape: tuple[int, ...]
    order: Order = "paper"
    substeps: int = 1

    @cached_property
    def half_vox(self) -> Tensor:
        """The displacement of all fields on their own grid, in its voxels."""
        return integrate_steps(self.velocities_vox, self.order, self.substeps)

    @cached_property
    def u12(self) -> Tensor:
        """moving(x + u12(x)) looks like fixed(x)."""
        return full_resolution(self.half_vox, self.shape, self.order)

    @cached_property
    def u21(self) -> Tensor:
        """fixed(x + u21(x)) looks like moving(x): the inverse of u12, voxel by voxel."""
        return invert(self.u12, "mixed", INVERSE_TOLERANCE_VOX)

    def deformable(self, way: Way) -> Tensor:
        """The displacement of a way: what the published code penalises; raises UnknownNameError."""
        if way not in WAYS:
            raise UnknownNameError("way", way, WAYS)
        return self.u12 if way == "12" else self.u21

    def path(self) -> Iterator[Tensor]:
        """The map after every field, (N, d, *shape), voxels, one at a time; the last one is u12."""
        for state in states(self.velocities_vox, self.order, self.substeps):
            yield full_resolution(state, self.shape, self.order)

    def at(self, time: float) -> Tensor:
        """The map at a time in [0, 1], (N, d, *shape), voxels: the identity at 0, u12 at 1.

        Raises SettingsError for another time.
        """
        half = integrate_steps(until(self.velocities_vox, time), self.order, self.substeps)
        return full_resolution(half, self.shape, self.order)

    def inverse(self, kind: InverseKind = "global") -> Tensor:
        """The inverse of u12, (N, d, *shape), voxels: u21, or composed from inverses of the steps.

        Raises as `inverse_of_steps`.
        """
        if kind == "global":
            return self.u21
        half = inverse_of_steps(self.velocities_vox, kind, self.order, self.substeps)
        return full_resolution(half, self.shape, self.order)


class TransMorphTVF(nn.Module):
    """Velocities that change in time; see the head of this file."""

    def __init__(self, config: TVFConfig, options: TVFOptions | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = options or TVFOptions()
        self.backbone = Backbone(config, self.options.checkpointing)
        self.steps = nn.ModuleList(Step(config) for _ in range(config.steps))

    def forward(self, moving: Tensor, fixed: Tensor) -> TimeVaryingMaps:
        """(N, channels, *shape) twice, values about [0, 1]; raises ShapeError for what does not fit."""
        check_pair(self.config, moving, fixed)
        order, substeps = self.config.order, self.options.substeps
        device, rounded = moving.device.type, self.options.precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=rounded):
            halves = halved(torch.cat([moving, fixed], 1), order)
            features = enlarged(self.backbone(torch.cat([moving, fixed], 1)), halves.shape[2:])
            velocities, u_vox = self._integrated(laid_out(features), halves)
        maps = TimeVaryingMaps(tuple(velocities), tuple(moving.shape[2:]), order, substeps)
        if substeps == 1:
            maps.half_vox = u_vox
        return maps

    def _integrated(self, features: Tensor, halves: Tensor) -> tuple[list[Tensor], Tensor]:
        """All velocities, and the displacement they make, at half resolution."""
        moving, fixed = halves.chunk(2, 1)
        moved, u_vox = moving, None
        velocities: list[Tensor] = []
        for step in self._heads():
            if velocities:
                moved = self._moved(moving, u_vox)
            if self.options.checkpointing and torch.is_grad_enabled():
                velocity = checkpoint(step, features, moved, fixed, use_reentrant=False)
            else:
                velocity = step(features, moved, fixed)
            velocities.append(velocity)
            u_vox = advance(u_vox, velocity, self.config.order)
        if u_vox is None:
            raise SettingsError("A network predicts at least one velocity field.")
        return velocities, u_vox

    def _heads(self) -> list[Step]:
        return [step for step in self.steps if isinstance(step, Step)]

    def _moved(self, moving: Tensor, u_vox: Tensor | None) -> Tensor:
        if u_vox is None:
            return moving
        return published_warp(moving, u_vox) if self.config.order == "official" else warp(moving, u_vox)


class Step(nn.Module):
    """One head: features of the pair and images as they are now to a velocity."""

    def __init__(self, config: TVFConfig) -> None:
        super().__init__()
        dim, e, inner = config.dim, config.embed, config.head_channels
        self.context = bare_convolution(dim, config.channels_in, e // 2)
        self.first = bare_convolution(dim, e + e // 2, inner)
        self.second = bare_convolution(dim, inner, inner)
        self.head = field_head(dim, inner)

    def forward(self, features: Tensor, moved: Tensor, fixed: Tensor) -> Tensor:
        """(N, embed, *half), then images (N, channels, *half), to (N, d, *half), voxels per step."""
        images = torch.cat([moved, fixed], 1).to(features.dtype)
        context = normalised(convolved(images, self.context.weight))
        of_features, of_images = self.first.weight.tensor_split([features.shape[1]], 1)
        x = normalised(convolved(features, of_features) + convolved(context, of_images))
        return predicted(self.head, normalised(convolved(x, self.second.weight)))


def halved(images: Tensor, order: Order) -> Tensor:
    """Images at half resolution, (N, C, *ceil(shape / 2)): block means, or the official code's pooling."""
    dim = images.dim() - 2
    if order != "official":
        return downsample_image(images, [2] * dim)
    pool = functional.avg_pool2d if dim == 2 else functional.avg_pool3d
    return pool(images, 3, stride=2, padding=1)
