"""MetaRegNet: a trained network says where a healthy image moves and what a lesion adds to it.

    moving(x + u(x)) + q(x) M(x)  looks like  fixed(x)

The network sees the healthy and the pathological image, at the voxel size and with the axes it was trained
for (3D: S, A, R), and gives the displacement u and the change of intensity q.  It does not see the marks M of
the pathology: they say where q counts, so that without any this is plain registration.  Who is ill decides
which image the network takes for the pathological one:

* the fixed one, or both: as published, in the space of the fixed image; where both are marked, the marks are
  joined through the transform when the change is shown (`methods/appearance.py`);
* the moving one alone: the network gets the images exchanged, and the motion is the inverse of its map.

As published u may fold; folds are mended when the motion is finished, and a note says how many there were.
Weights trained with `compose` give velocities instead, which are followed step by step.
The refinement is that of `methods/metamorphosis.py`: from the mean of the network's velocities, or from where
its displacement put both images.  The change is then the best one for the motion it found, no longer the
network's.

Source: Joshi and Hong, MetaRegNet: metamorphic image registration using flow-driven residual networks, 2023;
the way back from a moving patient, the mending of folds and the refinement are ours.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import WeightsError
from DiffeoRegLib.flows.time_varying import Order, position_at
from DiffeoRegLib.methods.base import Motion, Needs, Pair, Progress, Report
from DiffeoRegLib.methods.displacement import displaced
from DiffeoRegLib.methods.metamorphosis import Metamorphosis
from DiffeoRegLib.methods.sitreg import carried_half_way
from DiffeoRegLib.methods.stepping import chosen_steps, per_step, per_time
from DiffeoRegLib.methods.trained import (
    looks_at,
    precision_on,
    refined,
    refinement,
    require_dimension,
    spacing_of,
    strides_on,
    used_weights,
)
from DiffeoRegLib.methods.voxelmorph import chosen_precision
from DiffeoRegLib.networks.metaregnet import MetamorphicMaps, MetaRegNet, MetaRegNetConfig
from DiffeoRegLib.networks.sitreg_options import Precision
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, downsample_image
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import warp
from DiffeoRegLib.volumes.volume import Volume

OWN_CHANGE = "The change of appearance is the one that the network predicts."
BEST_CHANGE = "The change of appearance is the best one for the refined motion, not the network's."
ORDER: Order = "paper"
"""Of the velocities of weights that were trained with `compose`."""
FIELD_BYTES = 60
"""Of both images, together and apart, displacement and change, per voxel of the network."""


class MetaRegNetMethod:
    """The `metaregnet` method and every model trained for it."""

    def needs(self, settings: Settings, dim: int) -> Needs:
        """What the network of these settings needs.

        Raises InputError for images of another dimension, and what choosing and reading the network raises.
        """
        chosen_precision(settings)
        network, spacing_mm = _network(settings, "float32")
        require_dimension(settings, network.config.dim, dim)
        config = network.config
        return Needs(spacing_mm, refined(settings), lambda voxels: network_memory_bytes(config, voxels))

    @torch.no_grad()
    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """The network's motion from fixed to moving points, and what it adds to the moving image."""
        precision, why = precision_on(pair.fixed.device, chosen_precision(settings))
        network, spacing_mm = _network(settings, precision)
        network.to(pair.fixed.device)
        strides = strides_on(pair.grid, spacing_mm)
        grid = pair.grid.coarsened(strides)
        report(Progress("predict", 0.1, looks_at(grid)))
        backwards = moving_is_ill(pair)
        healthy, ill = (pair.fixed, pair.moving) if backwards else (pair.moving, pair.fixed)
        maps = network(downsample_image(healthy, strides), downsample_image(ill, strides))
        if refined(settings) and maps.velocities_vox:
            motion = _stationary(maps, grid, backwards)
        else:
            motion = _motion(maps, grid, pair.grid, backwards, settings)
        notes = (why, used_weights(settings), *motion.notes)
        if pair.pathology is None:
            return replace(motion, notes=notes)
        if refined(settings):
            return replace(motion, notes=(*notes, BEST_CHANGE))
        return replace(motion, notes=(*notes, OWN_CHANGE), source=_source(maps, grid, backwards))

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Coarse-to-fine metamorphosis, from the network's velocity or between images where it put them."""
        if not refined(settings):
            return motion
        _, spacing_mm = _network(settings, "float32")
        plan = refinement(settings, spacing_mm, pair.grid)
        if motion.halves is None:
            found = Metamorphosis().refine(motion, pair, plan, report)
            return replace(found, notes=motion.notes)
        carried = carried_half_way(pair, motion.halves)
        found = Metamorphosis().refine(Motion(motion.velocity_vox, motion.grid), carried, plan, report)
        return replace(motion, velocity_vox=change_grid(found.velocity_vox, found.grid, motion.grid))

    def sources(self, settings: Settings) -> list[str]:
        """The metamorphosis that refines, where there is any."""
        return [card("metamorphosis").citation] if refined(settings) else []


def moving_is_ill(pair: Pair) -> bool:
    """True if the moving image alone has marks of a pathology."""
    marks = pair.pathology
    return marks is not None and marks.fixed is None and marks.moving is not None


def _motion(maps: MetamorphicMaps, grid: Grid, working: Grid, backwards: bool, settings: Settings) -> Motion:
    """What leads from fixed to moving points; backwards: the maps lead from moving to fixed ones."""
    if maps.velocities_vox:
        velocity_vox = per_time([velocity.float() for velocity in maps.velocities_vox])
        motion = Motion(velocity_vox, grid, stepping=ORDER)
        if not backwards:
            return motion
        motion = _as_displacement(motion, working, settings)
    else:
        motion = displaced(maps.u12.float(), grid, working)
    assert motion.halves is not None
    return replace(motion, halves=motion.halves[::-1]) if backwards else motion


def _stationary(maps: MetamorphicMaps, grid: Grid, backwards: bool) -> Motion:
    """Where a refinement of velocities starts: their mean, whose details every level can take back.

    Images read through the map itself would keep the network's errors: what smooths the velocity does not
    reach them.
    """
    mean = per_time([velocity.float() for velocity in maps.velocities_vox]).mean(0, keepdim=True)
    return Motion(-mean if backwards else mean, grid)


def _as_displacement(motion: Motion, working: Grid, settings: Settings) -> Motion:
    """Velocities that are followed in steps as halves on the working grid, with a rest between them."""
    assert motion.stepping is not None
    most = card(settings.method).steps_range[1]
    steps = chosen_steps(motion.velocity_vox, motion.stepping, settings.steps, most)
    u_vox = position_at(per_step(motion.velocity_vox), steps, motion.stepping, 1.0)
    found = displaced(u_vox, motion.grid, working)
    return replace(found, notes=(*motion.notes, *found.notes), source=motion.source)


def _source(maps: MetamorphicMaps, grid: Grid, backwards: bool) -> Volume:
    """What is added to the moving image as it arrives in the space of the fixed one.

    backwards: q belongs to the healthy image as it arrives at the patient.  Seen from the healthy image it
    lies where the inverse leads, and has to be taken off the patient.
    """
    q = maps.appearance.float()
    return Volume((-warp(q, maps.u21.float()) if backwards else q)[0, 0].cpu(), grid, "change of appearance")


def _network(settings: Settings, precision: Precision) -> tuple[MetaRegNet, tuple[float, ...]]:
    """The network as these settings want it, and its voxel size per axis, mm."""
    known = card(settings.method)
    network, description = network_for(known, settings, "bf16" if precision == "bfloat16" else "fp32")
    if not isinstance(network, MetaRegNet):
        raise WeightsError(f"The weights of '{known.title}' are not those of a MetaRegNet.")
    return network, spacing_of(description, network.config.dim)


def network_memory_bytes(config: MetaRegNetConfig, voxels: int) -> int:
    """Peak memory of the network on so many voxels, bytes: the skips, and what its largest layer holds.

    Float32; a convolution orders copies of its input and output.
    Measured, bytes a voxel, with random weights, in 3D and 2D: 248 and 233 where this says 316 and 316 (sizes
    of the paper), 396 and 460 for 460 and 468 (RELEASED), 350 and 371 for 512 and 456 (`compose`).
    """
    sizes = [2.0 ** (-config.dim * level) for level in range(len(config.encoder) + 1)]
    skips = [c * s for c, s in zip((2, *config.encoder), sizes, strict=True)]
    live = [sum(skips[:level]) + 2 * (skips[level - 1] + skips[level]) for level in range(1, len(skips))]
    entering, level = config.encoder[-1], len(config.encoder)
    ups = iter(config.up)
    for number, leaving in enumerate(config.decoder):
        live.append(sum(skips[:level]) + 2 * (entering + leaving) * sizes[level])
        entering = leaving
        if level > 1 or number == len(config.encoder):  # two layers stand before the last step up
            level -= 1
            up = next(ups)
            joined = up + int(skips[level] / sizes[level])
            live.append(sum(skips[:level]) + leaving * sizes[level + 1] + (2 * up + joined) * sizes[level])
            entering = joined
    states = config.blocks * (2 * config.dim + 1) if config.compose else 0
    return round(voxels * (4 * (max(live) + states) + FIELD_BYTES))
