"""SITReg: a trained network brings both images half-way, instance optimisation finds what is left.

The network runs at the voxel size it was trained for. Its half-way maps are carried to the working grid,
both images are read through them once, and `svf` looks for the velocity between the two.
Exchanged images give exchanged maps to the last bit.

Source: Honkamaa and Marttinen, SITReg, MELBA 2024; the refinement is that of `methods.svf`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import SettingsError, UnknownNameError, WeightsError
from DiffeoRegLib.flows.inversion import invert_at
from DiffeoRegLib.methods.base import Motion, Needs, Pair, Progress, Report
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
from DiffeoRegLib.networks.precision import trial_gap_vox
from DiffeoRegLib.networks.pyramid import PyramidConfig
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_maps import MODES, Mode, SITRegMaps
from DiffeoRegLib.networks.sitreg_options import PRECISIONS, Precision
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, compose, downsample_image, upsample_field
from DiffeoRegLib.space.sample import identity_vox, warp

FIELD_BYTES = {3: 250, 2: 190}
"""Of both images, and of maps and their inverses beside a level's activations, per voxel of the network."""
LIVE_FEATURES = 3.5
"""Activations of the widest level that exist at one time, in feature maps of both images, in float32.

Measured, bytes a voxel, with random weights: 657 where this says 803 (encoder 8, 36 ...), 527 for 669
(8, 16, 24 ...), 428 for 590 (8, 36 ..., fast); in bfloat16 511, 384, 259. With strong motion 464 for 459
(4, 8, 8).
"""
POINTS_AT_ONCE = 1 << 18
PASSES = {"fast": 1, "balanced": 2, "accurate": 2}
"""Per effort. Half-way maps of two passes joined are half-way maps again: symmetric, and without folds."""
MOST_PASSES = 10
MOST_GAP_VOX = 0.5
"""So much may bfloat16 change the maps of the trial; rounding changes them by .06 (trained weights)."""


@dataclass(frozen=True)
class Choices:
    """What Settings.extras may say of a network run.

    mode: of the maps, see SITReg.  precision: of the convolutions, None = bfloat16 where the device has it.
    fast: fields at half resolution, without the finest head; None = as the network was trained.
    passes: how often the network looks; it sees the images where the passes before put them. None = PASSES.
    """

    mode: Mode = "standard"
    precision: Precision | None = None
    fast: bool | None = None
    passes: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownNameError("mode", str(self.mode), MODES)
        if self.precision is not None and self.precision not in PRECISIONS:
            raise UnknownNameError("precision", str(self.precision), PRECISIONS)
        if not (self.fast is None or isinstance(self.fast, bool)):
            raise SettingsError(f"fast is true or false, not {self.fast!r}.")
        if self.passes is not None and (
            not isinstance(self.passes, int) or not 1 <= self.passes <= MOST_PASSES
        ):
            raise SettingsError(f"passes is a whole number from 1 to {MOST_PASSES}, not {self.passes!r}.")


def choices_of(settings: Settings) -> Choices:
    """The choices in settings.extras; raises UnknownNameError or SettingsError for others."""
    known = [field.name for field in dataclasses.fields(Choices)]
    for name in settings.extras:
        if name not in known:
            raise UnknownNameError("setting of a network", str(name), known)
    return Choices(**settings.extras)


class SITRegMethod:
    """The `sitreg` method and every model trained for it."""

    def needs(self, settings: Settings, dim: int) -> Needs:
        """What the network of these settings needs.

        Raises InputError for images of another dimension, and what choosing and reading the network raises.
        """
        choices = choices_of(settings)
        network, spacing_mm = _network(settings, "float32", choices)
        require_dimension(settings, network.config.dim, dim)
        config, fast = network.config, network.options.fast
        return Needs(spacing_mm, refined(settings), lambda voxels: network_memory_bytes(config, voxels, fast))

    @torch.no_grad()
    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """The network's half-way maps on the working grid, and a velocity at rest."""
        choices, device = choices_of(settings), pair.fixed.device
        precision, why = precision_on(device, choices.precision)
        network, spacing_mm = _network(settings, precision, choices)
        network.to(device)
        if (
            precision == "bfloat16"
            and choices.precision is None
            and not trial_gap_vox(network) < MOST_GAP_VOX
        ):
            network, spacing_mm = _network(settings, "float32", choices)
            network.to(device)
            why = "Convolutions in float32: on a trial this device's bfloat16 gave other maps."
        strides = strides_on(pair.grid, spacing_mm)
        count = PASSES[settings.effort] if choices.passes is None else choices.passes
        halves: list[Tensor] = []
        for number in range(count):
            report(Progress("predict", (number + 0.1) / count, looks_at(pair.grid.coarsened(strides))))
            images = _read(pair, halves)
            small = [downsample_image(image, strides) for image in images]
            found = _halves(network, small, choices.mode, spacing_mm)
            fine = [upsample_field(u.float(), strides, pair.grid.shape) for u in found]
            halves = [compose(h, u) for h, u in zip(halves, fine, strict=True)] if halves else fine
        to_moving, to_fixed = halves
        return Motion(
            torch.zeros_like(to_moving), pair.grid, (to_moving, to_fixed), (why, used_weights(settings))
        )

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Coarse-to-fine instance optimisation between both images where the network put them."""
        if not refined(settings):
            return motion
        _, spacing_mm = _network(settings, "float32", choices_of(settings))
        plan = refinement(settings, spacing_mm, pair.grid)
        carried = pair if motion.halves is None else carried_half_way(pair, motion.halves)
        found = StationaryVelocity().refine(
            Motion(motion.velocity_vox, motion.grid), carried, plan, report
        )  # starts from rest
        velocity = change_grid(found.velocity_vox, found.grid, motion.grid)
        return dataclasses.replace(motion, velocity_vox=velocity)

    def sources(self, settings: Settings) -> list[str]:
        """The instance optimisation, where there is any."""
        return refinement_sources(settings)


def _network(settings: Settings, precision: Precision, choices: Choices) -> tuple[SITReg, tuple[float, ...]]:
    """The network as these settings want it, and its voxel size per axis, mm."""
    known = card(settings.method)
    shared, description = network_for(known, settings, "bf16" if precision == "bfloat16" else "fp32")
    if not isinstance(shared, SITReg) or shared.config.channels_in != 1:
        raise WeightsError(f"The weights of '{known.title}' are not those of a SITReg network for one image.")
    if shared.options.fast and choices.fast is False:
        raise SettingsError(
            f"The finest level of '{known.title}' was never trained: it runs with fast only, leave that out."
        )
    network = copy.copy(shared)  # others may run the same network with other options
    fast = shared.options.fast if choices.fast is None else choices.fast
    network.options = dataclasses.replace(shared.options, fast=fast, precision=precision)
    return network, spacing_of(description, network.config.dim)


def network_memory_bytes(config: PyramidConfig, voxels: int, fast: bool) -> int:
    """Peak memory of the network on so many voxels, bytes: features of both images, a head, the maps."""
    shrink = [2.0 ** (config.dim * level) for level in range(len(config.encoder))]
    kept = 2 * sum(c / s for c, s in zip(config.encoder, shrink, strict=True))
    heads = [(2 * c + t) / s for c, t, s in zip(config.encoder, config.heads, shrink, strict=False)]
    widest = max([2 * c / s for c, s in zip(config.encoder, shrink, strict=True)] + heads[int(fast) :])
    return round(voxels * (4 * (kept + LIVE_FEATURES * widest) + FIELD_BYTES[config.dim]))


def exact_halves(maps: SITRegMaps) -> tuple[Tensor, Tensor]:
    """a o d1 and a^-1 o d2 with every inverse solved where it is needed, (1, d, *shape) each, voxels."""
    like = maps.atoms[0].u_vox[0]
    voxels = identity_vox(maps.shape, torch.float64, like.device).flatten(2)[0].T
    halves = []
    for way in (0, 1):
        moved = []
        for at in torch.split(voxels, POINTS_AT_ONCE):
            for atoms in maps.atoms[::-1]:  # the finest update acts first
                at = atoms.update_exactly(at, way, 0)[0]
            moved.append(at if maps.affines is None else maps.affines[way].at(at.T[None])[0].T)
        halves.append((torch.cat(moved) - voxels).T.reshape(1, -1, *maps.shape).to(like.dtype))
    return halves[0], halves[1]


def _read(pair: Pair, halves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Both images where the half-way maps so far put them."""
    images = pair.moving, pair.fixed
    return (warp(images[0], halves[0]), warp(images[1], halves[1])) if halves else images


def _halves(
    network: SITReg, images: Sequence[Tensor], mode: Mode, spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The half-way maps of one pass, voxels of the network's grid."""
    maps = network(*images, mode=mode, spacing=spacing_mm)
    return exact_halves(maps) if mode == "complete-exact" else maps.halfway()


@torch.no_grad()
def carried_half_way(pair: Pair, halves: tuple[Tensor, Tensor]) -> Pair:
    """Both images, and all that belongs to them, brought half-way by displacements into moving and fixed."""
    to_moving, to_fixed = halves
    changes: dict[str, Tensor | None] = {}
    for side, u_vox in (("moving", to_moving), ("fixed", to_fixed)):
        image, mask = getattr(pair, side), getattr(pair, f"{side}_mask")
        labels, points = getattr(pair, f"{side}_labels"), getattr(pair, f"{side}_points_vox")
        changes[side] = warp(image, u_vox)
        changes[f"{side}_mask"] = None if mask is None else warp(mask, u_vox)
        if labels is not None:
            read = warp(labels.to(image.dtype), u_vox, mode="nearest")
            changes[f"{side}_labels"] = read.round().to(labels.dtype)
        if points is not None:
            found = invert_at(u_vox.cpu(), points[0].T.cpu())
            changes[f"{side}_points_vox"] = found.T[None].to(points)
    pathology = None if pair.pathology is None else pair.pathology.carried(to_fixed, to_moving)
    return dataclasses.replace(pair, pathology=pathology, **changes)  # type: ignore[arg-type]
