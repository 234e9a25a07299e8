"""Learned vSVF, LDDMM and RDMM: a trained network predicts the momentum; optimisation improves it.

The network works at the voxel size and with the axes it was trained for (3D: S, A, R), in the space of the
fixed image; the moving one is read through the initial alignment.  Each of its looks is a geodesic of its
own (vSVF: an interval of a velocity), and the refinement is of the last: the moving image is then read
through those before.  RDMM's pre-weights stay as predicted.
Source: section 3.3 of Shen, Vialard and Niethammer, NeurIPS 2019; the refinement: `methods/descent.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import WeightsError
from DiffeoRegLib.flows.exponential import exp
from DiffeoRegLib.flows.momentum import MomentumMetric
from DiffeoRegLib.flows.regional import RegionalMetric
from DiffeoRegLib.methods.base import Motion, Needs, Pair, Progress, Report
from DiffeoRegLib.methods.descent import Descended, Model, descend, first_steps
from DiffeoRegLib.methods.geodesic import Geodesic, chain, momentum_metric, regional_metric
from DiffeoRegLib.methods.lddmm import MomentumModel
from DiffeoRegLib.methods.map_grid import MapGrid
from DiffeoRegLib.methods.memory import MAP_BYTES, MAP_BYTES_PER_KERNEL, STEPS, flow_bytes
from DiffeoRegLib.methods.options import KINETIC_PER_SQUARE_MM, Options
from DiffeoRegLib.methods.rdmm import RegionalModel
from DiffeoRegLib.methods.trained import (
    counts_of,
    looks_at,
    precision_on,
    require_dimension,
    spacing_of,
    strides_on,
    used_weights,
)
from DiffeoRegLib.methods.vector_momentum import StationaryModel
from DiffeoRegLib.methods.voxelmorph import chosen_precision
from DiffeoRegLib.networks.momentum_net import channels_of
from DiffeoRegLib.networks.shooting_net import Look, ShootingNet
from DiffeoRegLib.networks.shooting_sizes import ShootingSizes
from DiffeoRegLib.networks.sitreg_options import Precision
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.settings import PRESETS, Settings
from DiffeoRegLib.space.field import change_grid, downsample_image
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import sample, warp

ITERATIONS: Mapping[str, tuple[int, ...]] = {"fast": (0,), "balanced": (10, 10), "accurate": (25, 25, 10)}
"""Per effort: at twice the voxel size of the network, at that size, and at the working one."""
FIELDS = 12
"""Displacements and copies of them that two looks need at once."""


@dataclass(frozen=True, eq=False)
class MomentumMotion(Motion):
    """A velocity in intervals that remembers its momenta, the first look's first, and their map grid."""

    momenta: tuple[Tensor, ...] = ()
    place: MapGrid | None = None


class LearnedMomentum:
    """What the three methods share."""

    def needs(self, settings: Settings, dim: int) -> Needs:
        """What the network of these settings needs.

        Raises InputError for images of another dimension, and what choosing and reading the network raises.
        """
        chosen_precision(settings)
        network, spacing_mm = _network(settings, "float32")
        require_dimension(settings, network.sizes.dim, dim)
        iterations(settings)
        again = refined(settings)
        return Needs(spacing_mm, again, partial(memory_bytes, network.sizes, network.regional, again))

    @torch.no_grad()
    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """What the network finds in all its looks."""
        precision, why = precision_on(pair.fixed.device, chosen_precision(settings))
        network, spacing_mm = _network(settings, precision)
        network.to(pair.fixed.device)
        strides = strides_on(pair.grid, spacing_mm)
        grid = pair.grid.coarsened(strides)
        report(Progress("predict", 0.1, looks_at(grid)))
        moving, fixed = (downsample_image(image, strides) for image in (pair.moving, pair.fixed))
        looks = network.look_at(moving, fixed)
        motion = self._motion(looks, _place(network.sizes, grid), network, settings)
        return replace(motion, notes=(why, used_weights(settings), _said(network)))

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Optimises the momentum of the last look from the predicted one; zero iterations change nothing."""
        if not refined(settings):
            return motion
        _, spacing_mm = _network(settings, "float32")
        plan = refinement(settings, spacing_mm, pair.grid)
        return self._refined(motion, pair, plan, report)

    def sources(self, settings: Settings) -> list[str]:
        """None beyond the card's: the refinement is of the same papers."""
        return []

    def _motion(
        self, looks: Sequence[Look], place: MapGrid, network: ShootingNet, settings: Settings
    ) -> Motion:
        """One geodesic per look."""
        return Motion.of(*(_geodesic(look, place, network, settings) for look in looks))

    def _refined(self, motion: Motion, pair: Pair, plan: Settings, report: Report) -> Motion:
        *before, last = motion.geodesics
        if before:
            pair = seen_through(pair, *chain(before, pair.grid))
        model = _model(last)
        options = _options(last.place, plan)
        found = descend(model, [last.tensors[0]], last.place, pair, options, plan, report)
        tensors = (found.tensors[0], *last.tensors[1:])
        refined_motion = Motion.of(*before, replace(last, tensors=tensors, steps=found.steps))
        return replace(refined_motion, notes=(*motion.notes, *found.notes))


class LearnedLDDMM(LearnedMomentum):
    """The `lddmm-network` method and every model trained for it."""


class LearnedRDMM(LearnedMomentum):
    """The `rdmm-network` method and every model trained for it: the network says what is how stiff."""


class LearnedVSVF(LearnedMomentum):
    """The `vsvf-network` method and every model trained for it; gives velocities like `svf`."""

    def _motion(
        self, looks: Sequence[Look], place: MapGrid, network: ShootingNet, settings: Settings
    ) -> Motion:
        velocities = [look.velocity_vox for look in looks]
        return MomentumMotion(
            _intervals(velocities), place.grid, momenta=tuple(look.momentum for look in looks), place=place
        )

    def _refined(self, motion: Motion, pair: Pair, plan: Settings, report: Report) -> Motion:
        assert isinstance(motion, MomentumMotion)
        assert motion.place is not None
        place, weights = motion.place, _network(plan, "float32")[0].sizes.weights
        *before, last = motion.momenta
        metric = momentum_metric(place, weights, last)
        model = StationaryModel(metric, "rk4")
        intervals = torch.split(motion.velocity_vox / -float(len(motion.momenta)), 1)
        velocities = list(reversed(intervals))
        if before:
            maps = (_flow(velocities[:-1], sign, place, pair.grid) for sign in (-1.0, 1.0))
            pair = seen_through(pair, *maps)
        # The squarings follow the motion; settings.steps are those of the finished map.
        found: Descended = descend(
            model, [last], place, pair, _options(place, plan), plan.with_changes(steps="auto"), report
        )
        velocities[-1] = metric.sources(model.start(found.tensors))[0]
        return replace(
            motion,
            velocity_vox=_intervals(velocities),
            momenta=(*before, found.tensors[0]),
            notes=(*motion.notes, *found.notes),
        )


def iterations(settings: Settings) -> tuple[int, ...]:
    """Iterations of the refinement, coarse to fine; raises SettingsError where they do not fit the levels."""
    return counts_of(settings, ITERATIONS)


def refined(settings: Settings) -> bool:
    """True if instance optimisation follows the network."""
    return any(iterations(settings))


def refinement(settings: Settings, spacing_mm: Sequence[float], grid: Grid) -> Settings:
    """The settings of the search that refines what a network of this voxel size found on a working grid."""
    counts = iterations(settings)
    own = max(spacing_mm)
    levels = settings.levels_mm or (2 * own, own, min(grid.spacing))[: len(counts)]
    return settings.with_changes(levels_mm=levels, iterations=counts)


def seen_through(pair: Pair, inverse_vox: Tensor, forward_vox: Tensor) -> Pair:
    """The pair with everything of the moving image read through a motion of the working grid.

    inverse_vox: of phi^-1, which carries images, (1, d, *grid).  forward_vox: of phi, which carries points.
    """
    points = pair.moving_points_vox
    if points is not None:
        points = points + sample(forward_vox, points)
    mask, labels = pair.moving_mask, pair.moving_labels
    return replace(
        pair,
        moving=warp(pair.moving, inverse_vox),
        moving_mask=None if mask is None else warp(mask, inverse_vox, outside="zeros"),
        moving_labels=None
        if labels is None
        else warp(labels.float(), inverse_vox, mode="nearest", outside="zeros").round().to(labels.dtype),
        moving_points_vox=points,
    )


def memory_bytes(sizes: ShootingSizes, regional: bool, refined: bool, voxels: int) -> int:
    """Peak memory of the network on so many of its voxels, and of the search after it, bytes.

    Measured for 96^3 voxels and two looks without a search, width 0.5, bytes a voxel: 235 to 249 where this
    says 344 (one metric) and 384 (three kernels).
    """
    c1, c2 = channels_of(sizes.width)[:2]
    # The images, the first features beside their copies in the order of the convolution, those at half size.
    network = 2 + 3 * c1 + 5 * c2 * 0.5**sizes.dim
    own = round(4 * voxels * (network + FIELDS * sizes.dim))
    map_voxels = round(voxels / math.prod(sizes.strides))
    kernels = len(sizes.sigmas) if regional else 0
    if refined:
        return own + flow_bytes(map_voxels, sizes.dim, kernels, STEPS)
    # Without gradients there is no history of the search and no adjoint.
    return own + map_voxels * (MAP_BYTES + MAP_BYTES_PER_KERNEL * kernels) // 2


def _network(settings: Settings, precision: Precision) -> tuple[ShootingNet, tuple[float, ...]]:
    """The network as these settings want it, and its voxel size per axis, mm."""
    known = card(settings.method)
    network, description = network_for(known, settings, "bf16" if precision == "bfloat16" else "fp32")
    if not isinstance(network, ShootingNet):
        raise WeightsError(
            f"The weights of '{known.title}' are not those of a network that gives a momentum."
        )
    return network, spacing_of(description, network.sizes.dim)


def _options(place: MapGrid, settings: Settings) -> Options:
    """Of the search: the similarity of the preset, the kinetic weight usual in mm."""
    kinetic = KINETIC_PER_SQUARE_MM * place.mean_unit_mm**2
    return Options(kinetic=kinetic, similarity=PRESETS[settings.preset].similarity)


def _place(sizes: ShootingSizes, grid: Grid) -> MapGrid:
    """The map grid over a grid of the network's voxels; lengths count in sides of the box of training."""
    unit = tuple((n - 1) * s for n, s in zip(sizes.box, grid.spacing, strict=True))
    return MapGrid(grid.coarsened(sizes.strides), unit, sizes.sigmas, sizes.preweight_sigma)


def _geodesic(look: Look, place: MapGrid, network: ShootingNet, settings: Settings) -> Geodesic:
    tensors = (look.momentum,) if look.preweights is None else (look.momentum, look.preweights)
    metric: MomentumMetric | RegionalMetric
    if look.preweights is None:
        metric = momentum_metric(place, network.sizes.weights, look.momentum)
    else:
        metric = regional_metric(place, look.momentum)
    found = Geodesic(metric, place, tensors, 1, settings.integrator or "rk4")
    model = _model(found)
    return replace(found, steps=first_steps(model, [look.momentum], settings))


def _model(geodesic: Geodesic) -> Model:
    """The flow of a momentum, with the pre-weights of the geodesic if it has any."""
    if isinstance(geodesic.metric, RegionalMetric):
        return RegionalModel(geodesic.metric, geodesic.integrator, geodesic.tensors[1])
    return MomentumModel(geodesic.metric, geodesic.integrator)


def _intervals(velocities: Sequence[Tensor]) -> Tensor:
    """Velocities of looks as those of a Motion, (T, d, *grid): backwards, the last look's comes first."""
    return torch.cat(list(reversed(velocities))) * -float(len(velocities))


def _flow(velocities: Sequence[Tensor], sign: float, place: MapGrid, grid: Grid) -> Tensor:
    """Displacement of exp(sign v) of the only velocity, on a grid, voxels."""
    (velocity,) = velocities
    return change_grid(exp(sign * velocity, "auto"), place.grid, grid)


def _said(network: ShootingNet) -> str:
    looks = "one look" if network.looks == 1 else f"{network.looks} looks, each at what the one before left"
    return f"The network predicts the momentum in {looks}."
