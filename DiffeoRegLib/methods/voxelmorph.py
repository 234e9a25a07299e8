"""VoxelMorph: a trained network gives a velocity or a displacement; optimisation goes on from it.

The network works at the voxel size and with the axes it was trained for (3D: S, A, R), in the space of the
fixed image; the moving one is read through the initial alignment.  Exchanged images give another result.
VoxelMorph-diff gives a velocity, which the refinement improves.  Plain VoxelMorph gives a displacement that
may fold: it is mended (`methods.displacement`), and the refinement finds a velocity on top of it.

Sources: Dalca et al., Unsupervised learning of probabilistic diffeomorphic registration, Medical Image
Analysis 2019; Balakrishnan et al., VoxelMorph, IEEE TMI 2019; the refinement is that of `methods.svf`.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import UnknownNameError, WeightsError
from DiffeoRegLib.methods.base import Motion, Needs, Pair, Progress, Report
from DiffeoRegLib.methods.displacement import displaced
from DiffeoRegLib.methods.sitreg import carried_half_way
from DiffeoRegLib.methods.svf import StationaryVelocity
from DiffeoRegLib.methods.trained import (
    looks_at,
    precision_on,
    refined,
    refinement,
    refinement_sources,
    require_dimension,
    spacing_of,
    strides_on,
    used_weights,
)
from DiffeoRegLib.networks.sitreg_options import PRECISIONS, Precision
from DiffeoRegLib.networks.unet import UNetConfig
from DiffeoRegLib.networks.voxelmorph import VoxelMorph, VoxelMorphDiff
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, downsample_image

EXTRA = "precision"
FIELD_BYTES = 60
"""Of both images, together and apart, and of mean, variance and velocity, per voxel of the network."""


class VoxelMorphMethod:
    """The `voxelmorph` method and every model trained for it."""

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
        """The network's mean velocity, or its displacement, carried to the working grid."""
        device = pair.fixed.device
        precision, why = precision_on(device, chosen_precision(settings))
        network, spacing_mm = _network(settings, precision)
        network.to(device)
        strides = strides_on(pair.grid, spacing_mm)
        network_grid = pair.grid.coarsened(strides)
        report(Progress("predict", 0.1, looks_at(network_grid)))
        moving, fixed = (downsample_image(image, strides) for image in (pair.moving, pair.fixed))
        notes = (why, used_weights(settings))
        if isinstance(network, VoxelMorph):
            motion = displaced(network(moving, fixed).u12.float(), network_grid, pair.grid)
            return dataclasses.replace(motion, notes=(*notes, *motion.notes))
        velocity_vox = network(moving, fixed).mean.float()
        velocity_grid = network_grid.coarsened([network.config.stride] * pair.grid.dim)
        return Motion(change_grid(velocity_vox, velocity_grid, pair.grid), pair.grid, notes=notes)

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Coarse-to-fine instance optimisation that starts from the network's velocity or displacement."""
        if not refined(settings):
            return motion
        _, spacing_mm = _network(settings, "float32")
        plan = refinement(settings, spacing_mm, pair.grid)
        if motion.halves is None:
            return StationaryVelocity().refine(motion, pair, plan, report)
        carried = carried_half_way(pair, motion.halves)
        found = StationaryVelocity().refine(Motion(motion.velocity_vox, motion.grid), carried, plan, report)
        velocity_vox = change_grid(found.velocity_vox, found.grid, motion.grid)
        return dataclasses.replace(motion, velocity_vox=velocity_vox)

    def sources(self, settings: Settings) -> list[str]:
        """The instance optimisation, where there is any."""
        return refinement_sources(settings)


def chosen_precision(settings: Settings) -> Precision | None:
    """The precision in settings.extras, None = what suits the device; raises UnknownNameError for others."""
    for name in settings.extras:
        if name != EXTRA:
            raise UnknownNameError("setting of a network", str(name), [EXTRA])
    wanted: Precision | None = settings.extras.get(EXTRA)
    if wanted is not None and wanted not in PRECISIONS:
        raise UnknownNameError("precision", str(wanted), PRECISIONS)
    return wanted


def _network(
    settings: Settings, precision: Precision
) -> tuple[VoxelMorph | VoxelMorphDiff, tuple[float, ...]]:
    """The network as these settings want it, and its voxel size per axis, mm."""
    known = card(settings.method)
    network, description = network_for(known, settings, "bf16" if precision == "bfloat16" else "fp32")
    if not isinstance(network, VoxelMorph | VoxelMorphDiff) or network.config.channels_in != 2:
        raise WeightsError(
            f"The weights of '{known.title}' are not those of a VoxelMorph network for two images."
        )
    return network, spacing_of(description, network.config.dim)


def network_memory_bytes(config: UNetConfig, voxels: int) -> int:
    """Peak memory of the network on so many voxels, bytes: the skips, and what its largest block holds.

    Float32; a convolution orders copies of its input and output, and a step up enlarges before it joins.
    Measured, bytes a voxel, with random weights: 134 where this says 188 (CLASSIC_DIFF), 291 for 308 (twice
    the channels), 852 for 852 (one more step up, to every voxel).
    """
    channels = (config.channels_in, *config.encoder)
    sizes = [2.0 ** (-config.dim * level) for level in range(len(channels))]
    skips = [c * s for c, s in zip(channels, sizes, strict=True)]
    live = [sum(skips[:level]) + skips[level - 1] + 3 * skips[level] for level in range(1, len(channels))]
    entering, level = channels[-1], len(channels) - 1
    for step, leaving in enumerate(config.decoder):
        level -= step > 0
        enlarged, joined = (entering, entering + channels[level]) if step else (0, entering)
        live.append(sum(skips[: level + 1]) + (enlarged + 2 * joined + 3 * leaving) * sizes[level])
        entering = leaving
    for before, leaving in itertools.pairwise((entering, *config.final)):
        live.append(sum(skips[:level]) + (2 * before + 3 * leaving) * sizes[level])
    return round(voxels * (4 * max(live) + FIELD_BYTES))
