"""SITReg: a trained network brings both images half-way, instance optimisation finds what is left.

The network runs at the voxel size it was trained for. Its half-way maps are carried to the working grid,
both images are read through them once, and `svf` looks for the velocity between the two.
Exchanged images give exchanged maps to the last bit.

Source: Honkamaa and Marttinen, SITReg, MELBA 2024; the refinement is that of `methods.svf`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from DiffeoRegLib.catalog import card
from DiffeoRegLib.device import native_bfloat16
from DiffeoRegLib.errors import InputError, SettingsError, UnknownNameError, WeightsError
from DiffeoRegLib.flows.inversion import invert_at
from DiffeoRegLib.methods.base import Motion, Needs, Pair, Progress, Report
from DiffeoRegLib.methods.svf import StationaryVelocity
from DiffeoRegLib.networks.pyramid import PyramidConfig
from DiffeoRegLib.networks.sitreg import SITReg
from DiffeoRegLib.networks.sitreg_maps import MODES, Mode, SITRegMaps
from DiffeoRegLib.networks.sitreg_options import PRECISIONS, Precision
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import change_grid, downsample_image, upsample_field
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.space.sample import identity_vox, warp

ITERATIONS: Mapping[str, tuple[int, int]] = {"fast": (0, 0), "balanced": (25, 25), "accurate": (40, 40)}
"""Per effort: at the voxel size of the network and at the working one."""
DENSE_ITERATIONS: Mapping[str, int] = {"fast": 0, "balanced": 0, "accurate": 10}
FIELD_BYTES = {3: 250, 2: 190}
"""Of both images, and of maps and their inverses beside a level's activations, per voxel of the network."""
LIVE_FEATURES = 3.5
"""Activations of the widest level that exist at one time, in feature maps of both images, in float32.

Measured, bytes a voxel, with random weights: 657 where this says 803 (encoder 8, 36 ...), 527 for 669
(8, 16, 24 ...), 428 for 590 (8, 36 ..., fast); in bfloat16 511, 384, 259. With strong motion 464 for 459
(4, 8, 8).
"""
POINTS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Choices:
    """What Settings.extras may say of a network run.

    mode: of the maps, see SITReg.  precision: of the convolutions, None = bfloat16 where the device has it.
    fast: fields at half resolution, without the finest head; None = as the network was trained.
    """

    mode: Mode = "standard"
    precision: Precision | None = None
    fast: bool | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownNameError("mode", str(self.mode), MODES)
        if self.precision is not None and self.precision not in PRECISIONS:
            raise UnknownNameError("precision", str(self.precision), PRECISIONS)
        if not (self.fast is None or isinstance(self.fast, bool)):
            raise SettingsError(f"fast is true or false, not {self.fast!r}.")


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
        title = card(settings.method).title
        if network.config.dim != dim:
            raise InputError(
                f"'{title}' works on {network.config.dim}D images and these are {dim}D: "
                "choose another method, such as svf."
            )
        refined = any(_iterations(settings)[1])
        config, fast = network.config, network.options.fast
        return Needs(spacing_mm, refined, lambda voxels: network_memory_bytes(config, voxels, fast))

    @torch.no_grad()
    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """The network's half-way maps on the working grid, and a velocity at rest."""
        choices, device = choices_of(settings), pair.fixed.device
        precision, why = precision_on(device, choices.precision)
        network, spacing_mm = _network(settings, precision, choices)
        network.to(device)
        strides = _strides(pair.grid, spacing_mm)
        size = " x ".join(str(-(-n // s)) for n, s in reversed([*zip(pair.grid.shape, strides, strict=True)]))
        report(Progress("predict", 0.1, f"the network looks at {size} voxels"))
        images = [downsample_image(image, strides) for image in (pair.moving, pair.fixed)]
        maps = network(*images, mode=choices.mode, spacing=spacing_mm)
        halves = exact_halves(maps) if choices.mode == "complete-exact" else maps.halfway()
        del maps
        to_moving, to_fixed = (upsample_field(u.float(), strides, pair.grid.shape) for u in halves)
        return Motion(torch.zeros_like(to_moving), pair.grid, (to_moving, to_fixed), (why,))

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Coarse-to-fine instance optimisation between both images where the network put them."""
        levels, counts = _iterations(settings)
        if not any(counts):
            return motion
        if not levels:
            _, spacing_mm = _network(settings, "float32", choices_of(settings))
            levels = (max(spacing_mm), min(pair.grid.spacing))[-(len(counts) - 1) :]
        plan = settings.with_changes(
            levels_mm=levels, iterations=counts[:-1], dense_iterations=counts[-1], large_displacement=False
        )
        carried = pair if motion.halves is None else carried_half_way(pair, motion.halves)
        found = StationaryVelocity().refine(
            Motion(motion.velocity_vox, motion.grid), carried, plan, report
        )  # starts from rest
        velocity = change_grid(found.velocity_vox, found.grid, motion.grid)
        return dataclasses.replace(motion, velocity_vox=velocity)

    def sources(self, settings: Settings) -> list[str]:
        """The instance optimisation, where there is any."""
        return [card("svf").citation] if any(_iterations(settings)[1]) else []


def _iterations(settings: Settings) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Levels (empty: those of network and working grid) and iterations, the dense ones last.

    One number of iterations is for the working grid, two are for the network's voxel size and that.
    Raises SettingsError when levels and iterations do not match.
    """
    counts = settings.iterations or ITERATIONS[settings.effort]
    levels = settings.levels_mm or ()
    if levels and len(levels) != len(counts):
        raise SettingsError(
            f"{len(levels)} levels {levels} and {len(counts)} numbers of iterations {counts} do not match."
        )
    if not levels and len(counts) > 2:
        raise SettingsError(
            f"Without levels this method takes one or two numbers of iterations, not {counts}."
        )
    dense = settings.dense_iterations
    if dense is None:
        dense = DENSE_ITERATIONS[settings.effort] if settings.iterations is None else 0
    return levels, (*counts, dense)


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
    return network, _spacing(description, network.config.dim)


def _spacing(description: Mapping[str, Any], dim: int) -> tuple[float, ...]:
    spacing = description["config"]["data"]["spacing_mm"]
    if len(spacing) != dim:
        raise WeightsError(f"The weights are for {dim}D images but state the voxel size {tuple(spacing)}.")
    return tuple(float(s) for s in spacing)


def _strides(grid: Grid, spacing_mm: Sequence[float]) -> list[int]:
    """Working voxels per voxel of the network."""
    return [round(wide / own) for wide, own in zip(spacing_mm, grid.spacing, strict=True)]


def precision_on(device: torch.device, wanted: Precision | None) -> tuple[Precision, str]:
    """The precision of the convolutions on a device, and a sentence for the report."""
    if wanted is not None:
        return wanted, f"Convolutions in {wanted}, as asked for."
    if native_bfloat16(device):
        return "bfloat16", "Convolutions in bfloat16, which this device computes natively; maps in float32."
    return "float32", "Convolutions in float32: this device does not compute bfloat16 natively."


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
    return dataclasses.replace(pair, **changes)  # type: ignore[arg-type]
