"""Learned vSVF, LDDMM and RDMM: a network predicts a momentum (and pre-weights), a flow makes the map of it.

The network may look twice: the second look sees the moving image as the first left it, and its map goes on
from there, phi^-1 = psi^-1 o phi_new^-1.  The other direction is a pass with the images exchanged.
Kernels are as wide, in voxels, on images of every size: widths are shares of a box that belongs to the
weights.
Source: section 3.3 of Shen, Vialard and Niethammer, NeurIPS 2019; Shen, Han, Xu and Niethammer, CVPR 2019
(vSVF).  Maps that start from another are composed on displacements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from DiffeoRegLib.errors import ShapeError, UnknownNameError
from DiffeoRegLib.flows.exponential import MOST_SQUARINGS, exp
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric
from DiffeoRegLib.flows.runge_kutta import State
from DiffeoRegLib.flows.shooting import Plan, ShootingDiverged, energy, shoot, steps_for
from DiffeoRegLib.networks.momentum_net import MomentumNet
from DiffeoRegLib.networks.preweight_net import PreweightNet
from DiffeoRegLib.networks.shooting_sizes import (
    MOST_STEPS,
    ShootingOptions,
    ShootingSizes,
    metric_on,
    on_map_grid,
    sharpened,
)
from DiffeoRegLib.networks.voxelmorph import WAYS, Way
from DiffeoRegLib.space.field import compose, downsample_image, upsample_field
from DiffeoRegLib.space.sample import warp

FEWEST_SQUARINGS = 5
FIRST_STEP_VOX = 0.1


@dataclass(frozen=True, eq=False)
class Look:
    """What one look found.

    momentum: (N, d, *map grid), in sides of the box.  preweights: (N, n, *map grid), RDMM only.
    velocity_vox: (N, d, *map grid), voxels of that grid, at time 0.  u_vox: displacement (N, d, *shape) of
    all looks so far, voxels of the images.  kinetic: mean of m . v, per pair.
    weights: smoothed pre-weights (N, n, *map grid), RDMM only.
    """

    momentum: Tensor
    preweights: Tensor | None
    velocity_vox: Tensor
    u_vox: Tensor
    kinetic: Tensor
    weights: Tensor | None


@dataclass(eq=False)
class _Both:
    """Both directions; the second pass is made when first asked for."""

    network: ShootingNet
    moving: Tensor
    fixed: Tensor
    first: tuple[Look, ...]

    @cached_property
    def second(self) -> tuple[Look, ...]:
        """With the images exchanged."""
        return self.network.look_at(self.fixed, self.moving)


@dataclass(frozen=True, eq=False)
class ShotMaps:
    """The maps after one look, both ways."""

    both: _Both
    index: int

    @property
    def u12(self) -> Tensor:
        """moving(x + u12(x)) looks like fixed(x)."""
        return self.look("12").u_vox

    @property
    def u21(self) -> Tensor:
        """fixed(x + u21(x)) looks like moving(x)."""
        return self.look("21").u_vox

    @property
    def earlier(self) -> tuple[ShotMaps, ...]:
        """The maps after the looks before; training judges them too."""
        return tuple(ShotMaps(self.both, index) for index in range(self.index))

    @property
    def sizes(self) -> ShootingSizes:
        """The kernels."""
        return self.both.network.sizes

    def look(self, way: Way) -> Look:
        """What the network found in a direction; raises UnknownNameError."""
        if way not in WAYS:
            raise UnknownNameError("way", way, WAYS)
        return (self.both.first if way == "12" else self.both.second)[self.index]


class ShootingNet(nn.Module):
    """What the three networks share.

    at_step: training says which step it is at; without it all looks are taken.
    """

    regional = False

    def __init__(self, sizes: ShootingSizes, options: ShootingOptions | None = None) -> None:
        super().__init__()
        self.sizes = sizes
        self.options = options or ShootingOptions()
        self.momentum = MomentumNet(sizes.dim, sizes.width)
        self._step: int | None = None

    def at_step(self, step: int) -> None:
        """The step of training at work."""
        self._step = step

    @property
    def looks(self) -> int:
        """How many times it looks now."""
        late = self._step is None or self._step >= self.options.second_look_from
        return self.options.looks if late else 1

    def forward(self, moving: Tensor, fixed: Tensor) -> ShotMaps:
        """(N, 1, *shape) twice, values in [0, 1].

        Raises ShapeError for what does not fit, ShootingDiverged for a motion no step can follow.
        """
        first = self.look_at(moving, fixed)
        return ShotMaps(_Both(self, moving, fixed, first), len(first) - 1)

    def look_at(self, moving: Tensor, fixed: Tensor) -> tuple[Look, ...]:
        """One direction, all looks; raises as `forward`."""
        if moving.dim() != self.sizes.dim + 2:
            raise ShapeError(f"This network takes {self.sizes.dim}D images, not {tuple(moving.shape)}.")
        found: list[Look] = []
        for _ in range(self.looks):
            total = found[-1].u_vox if found else None
            warped = moving if total is None else warp(moving, total)
            found.append(self._look(warped, fixed, total))
        return tuple(found)

    def metric(self, like: Tensor) -> MomentumMetric | RegionalMetric:
        """The inverse metric on the grid of a momentum (N, d, *map grid)."""
        return metric_on(self.sizes, self.regional, tuple(like.shape[2:]), like.dtype, like.device)

    def _look(self, warped: Tensor, fixed: Tensor, before_vox: Tensor | None) -> Look:
        momentum, preweights = self._predicted(warped, fixed)
        metric = self.metric(momentum)
        if isinstance(metric, RegionalMetric):
            assert preweights is not None
            start, weights = metric.start(momentum, preweights), metric.weights_of(preweights)
        else:
            start, weights = metric.start(momentum), None
        velocity = metric.sources(start)[0]
        strides, shape = self.sizes.strides, fixed.shape[2:]
        u_vox = upsample_field(self._displacement(metric, start, velocity), strides, shape)
        if before_vox is not None:
            u_vox = compose(before_vox, u_vox)
        return Look(momentum, preweights, velocity, u_vox, 2 * energy(metric, start), weights)

    def _predicted(self, warped: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Momentum on the map grid, and pre-weights if there are any."""
        half = self.options.precision == "bfloat16"
        with torch.autocast(warped.device.type, torch.bfloat16, enabled=half):
            momentum = self.momentum(2 * warped - 1, 2 * fixed - 1)
        return sharpened(self.sizes, on_map_grid(momentum, self.sizes.strides, fixed.shape[2:])), None

    def _displacement(
        self, metric: MomentumMetric | RegionalMetric, start: State, velocity_vox: Tensor
    ) -> Tensor:
        """Of phi^-1 by shooting, voxels of the map grid."""
        steps = self.options.steps or steps_for(metric, start)
        if steps > MOST_STEPS:
            raise ShootingDiverged(f"The predicted motion needs {steps} steps, more than {MOST_STEPS}.")
        return shoot(metric, start, Plan(steps))[-1]


class LDDMMNet(ShootingNet):
    """Geodesics of one kernel."""


class VSVFNet(ShootingNet):
    """Stationary velocities v = K m, phi^-1 = exp(-v) by scaling and squaring."""

    def _displacement(
        self, metric: MomentumMetric | RegionalMetric, start: State, velocity_vox: Tensor
    ) -> Tensor:
        squarings = self.options.steps or squarings_for(velocity_vox)
        if squarings > MOST_SQUARINGS:
            raise ShootingDiverged(f"The predicted motion needs {squarings} squarings.")
        return exp(-velocity_vox, squarings)


class RDMMNet(ShootingNet):
    """Geodesics of a regulariser that the network predicts, too, and that moves with the moving image."""

    regional = True

    def __init__(self, sizes: ShootingSizes, options: ShootingOptions | None = None) -> None:
        super().__init__(sizes, options)
        self.preweights = PreweightNet(sizes.dim, sizes.shares)

    def _predicted(self, warped: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor | None]:
        most = self.sizes.most_momentum
        momentum = most * torch.tanh(super()._predicted(warped, fixed)[0] / most)
        small = [2 * downsample_image(image, self.sizes.strides) - 1 for image in (warped, fixed)]
        return momentum, self.preweights(*small)


def squarings_for(velocity_vox: Tensor) -> int:
    """Squarings whose first step is a tenth of a voxel at most; raises ShootingDiverged for NaN."""
    fastest = float(velocity_vox.detach().abs().max())
    if not math.isfinite(fastest):
        raise ShootingDiverged("The momentum contains NaN or infinite values.")
    needed = math.ceil(math.log2(max(fastest, FIRST_STEP_VOX) / FIRST_STEP_VOX))
    return max(FEWEST_SQUARINGS, needed)
