"""GroupMorph: a trained network says of every image of a group where it moves, and how well that is known.

The network sees all images on one grid, at the voxel size and with the axes it was trained for (3D: S, A, R).
exp(z_k) leads from the common space to image k, as in `methods/group_search.py`.

* Weights of the form `set` take any number of images, to one of them or to the middle, in any order.
* Those of the form `stack` are for as many images as they were trained with, in the order of time, and for
  one task; fewer images where they were trained with flags.  Times of a set count in the given order, too.

Effort `fast` takes the mean of the network's velocities, and its variances for the uncertainty.  Otherwise
the mean starts the search of `methods/group_search.py`, and what the network said of its variance no longer
holds: the uncertainty is that of `methods/group_uncertainty.py`.  Folds of the mean are smoothed away.

Source: van der Ouderaa et al., Deep group-wise variational diffeomorphic image registration, Thoracic Image
Analysis 2020; the mean of zero, the set and the search from the network's answer are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import SettingsError, WeightsError
from DiffeoRegLib.flows.exponential import midpoint_exp
from DiffeoRegLib.methods.base import Needs, Progress, Report
from DiffeoRegLib.methods.group_search import GroupMotion, centred, search, without_folds
from DiffeoRegLib.methods.group_uncertainty import SAMPLES, generators
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
from DiffeoRegLib.methods.voxelmorph import network_memory_bytes as unet_memory_bytes
from DiffeoRegLib.networks.groupmorph import GroupMorph, GroupMorphConfig
from DiffeoRegLib.networks.sitreg_options import Precision
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import downsample_image
from DiffeoRegLib.volumes.group import Group

STARTS = "The network's velocities start the search, and the uncertainty is that of the search."
ALONE = (
    "The uncertainty is what the network says of its velocities, {} draws carried through the flow: it knows "
    "nothing of neighbouring places, so that the flow averages a part of it out."
)
UNSEEN = "The network knows no masks: it looks at the whole images, as it did in training"
IMAGE_BYTES, COMMON_BYTES, RAW_BYTES, FIELD_BYTES = 14, 8, 8, 36
"""Per voxel: of an image, joined with the others and continued to what the levels divide; of a channel that a
set has in common, centre and spread; of a component of an image's velocity, what both heads say of it; and of
that component, mean, variances, centred and mended."""


def group_needs(settings: Settings, dim: int, count: int, fixed: int | None) -> Needs:
    """What the network of these settings needs for so many images of a dimension, to image `fixed` as given.

    Raises InputError for images of another dimension, SettingsError for a task the weights are not for, and
    what choosing and reading the network raises.
    """
    network, spacing_mm = _network(settings, "float32")
    config = network.config
    require_dimension(settings, config.dim, dim)
    _require_task(config, count, fixed)
    return Needs(spacing_mm, refined(settings), lambda voxels: network_memory_bytes(config, count, voxels))


def unseen_masks(searched: bool) -> str:
    """A sentence on the masks of a group; searched: the search follows the network."""
    return f"{UNSEEN}; the search that follows keeps to them." if searched else f"{UNSEEN}."


def register_by_network(
    group: Group,
    settings: Settings,
    fixed: int | None,
    order: Sequence[int],
    numbers: Sequence[int],
    report: Report,
) -> GroupMotion:
    """The network's velocities of a prepared group, or what the search finds from there.

    fixed: place in the group.  order: places of the first image as given, of the second, ...
    numbers: of these in the whole series, rising.  Raises as `search`.
    """
    found = predict_group(group, settings, fixed, order, numbers, report)
    if not refined(settings):
        return found
    _, spacing_mm = _network(settings, "float32")
    plan = refinement(settings, spacing_mm, group.grid)
    motion = search(group, plan, fixed, report, found)
    return replace(motion, notes=(*found.notes, STARTS))


@torch.no_grad()
def predict_group(
    group: Group,
    settings: Settings,
    fixed: int | None,
    order: Sequence[int],
    numbers: Sequence[int],
    report: Report,
) -> GroupMotion:
    """What the network says, with its variances; see `register_by_network`."""
    device = group.images[0].device
    precision, why = precision_on(device, chosen_precision(settings))
    network, spacing_mm = _network(settings, precision)
    network.to(device)
    config = network.config
    strides = strides_on(group.grid, spacing_mm)
    grid = group.grid.coarsened(strides)
    report(Progress("predict", 0.05, looks_at(grid)))
    if config.form == "set" and not config.times:
        order = range(len(group.images))  # it counts nothing; so not even rounding depends on it
    images = torch.cat([downsample_image(group.images[place], strides) for place in order])
    first, last = numbers[0], numbers[-1]
    times = [(number - first) / (last - first) for number in numbers] if config.times else None
    maps = network(images, None if fixed is None else list(order).index(fixed), times)
    maps = replace(maps, velocity_vox=centred(maps.velocity_vox.float().clone(), maps.fixed), center=True)
    back = [list(order).index(place) for place in range(len(order))]
    velocities = without_folds(maps.velocity_vox[back], fixed)
    return GroupMotion(
        velocities, grid.coarsened([config.stride] * grid.dim), fixed,
        notes=(why, used_weights(settings)), variances_vox=maps.variance.float()[back],
    )  # fmt: skip


@torch.no_grad()
def network_deviations(
    group: Group, motion: GroupMotion, settings: Settings, report: Report, samples: int = SAMPLES
) -> Tensor:
    """Standard deviation of where a point of the common space lies, mm, (K, *motion.grid.shape).

    From draws of every velocity with the variances of the motion, carried through the flow; 0 for the fixed
    image.  The random numbers of an image follow from what it holds and settings.seed.
    """
    assert motion.variances_vox is not None
    velocities, spreads = motion.velocities_vox, motion.variances_vox.sqrt()
    steps = velocities.new_tensor(motion.grid.spacing).view(-1, *[1] * motion.grid.dim)
    out = velocities.new_zeros((len(velocities), *motion.grid.shape))
    for index, generator in enumerate(generators(group, settings)):
        if index == motion.fixed:
            continue
        report(Progress("uncertainty", index / len(out), f"image {index + 1} of {len(out)}"))
        base = midpoint_exp(velocities[index : index + 1])[0]
        total, squares = torch.zeros_like(base), torch.zeros_like(base)
        for _ in range(samples):
            noise = torch.randn(base.shape, generator=generator)
            apart = midpoint_exp((velocities[index] + spreads[index] * noise)[None])[0] - base
            total += apart
            squares += apart.square()
        variance = (squares - total.square() / samples) / (samples - 1)
        out[index] = (variance.clamp_(min=0) * steps.square()).sum(0).sqrt()
    return out


def network_memory_bytes(config: GroupMorphConfig, count: int, voxels: int) -> int:
    """Peak memory of the network on so many images of so many voxels each, bytes.

    Either the U-Net looks, with what it said of all images so far beside it, or velocities are made of that.
    Measured, bytes a voxel, with random weights, where this says so many: a set of 2, 8 and 16 images 868 for
    981, 1020 for 1209, 1634 for 1952; with stride 2 of 2, 8 and 30 images 213 for 259, 287 for 361, 753 for
    825; a stack of 4 681 for 1028, with stride 2 138 for 264.
    """
    looks = 1 if config.form == "set" else config.images
    values = config.dim * max(count, looks) / int(config.stride**config.dim)
    looking = unet_memory_bytes(config.unet, voxels) / voxels + RAW_BYTES * values
    if config.form == "set":
        levels = enumerate((1, *config.encoder))
        looking += sum(COMMON_BYTES * channels * 0.5 ** (config.dim * level) for level, channels in levels)
    return math.ceil(voxels * (IMAGE_BYTES * count + max(looking, FIELD_BYTES * values)))


def _require_task(config: GroupMorphConfig, count: int, fixed: int | None) -> None:
    """Raises SettingsError for a number of images, or one that stays, that the weights are not for."""
    if not config.diffeomorphic:
        raise SettingsError(
            "These weights predict displacements that have no inverse: train with 'diffeomorphic: true'."
        )
    if config.form == "set":
        return
    fewest = 2 if config.presence else config.images
    if not fewest <= count <= config.images:
        number = f"{fewest} to {config.images}" if config.presence else str(config.images)
        raise SettingsError(
            f"These weights are for {number} images, not {count}: take as many, or weights of the form 'set'."
        )
    if fixed != config.fixed:
        own = "the middle of all images" if config.fixed is None else f"image {config.fixed}"
        asked = "the middle of all images" if fixed is None else f"image {fixed}"
        raise SettingsError(f"These weights register to {own}, not to {asked} (--fixed-index, --mean).")


def _network(settings: Settings, precision: Precision) -> tuple[GroupMorph, tuple[float, ...]]:
    """The network as these settings want it, and its voxel size per axis, mm."""
    known = card(settings.method)
    network, description = network_for(known, settings, "bf16" if precision == "bfloat16" else "fp32")
    if not isinstance(network, GroupMorph):
        raise WeightsError(f"The weights of '{known.title}' are not those of a GroupMorph.")
    return network, spacing_of(description, network.config.dim)
