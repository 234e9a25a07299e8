"""TransMorph-TVF: a trained transformer gives a velocity for every step of time; optimisation improves them.

The network works at the voxel size and with the axes it was trained for (3D: S, A, R), in the space of the
fixed image; the moving one is read through the initial alignment.  Its velocities live on every second of its
voxels and lead from fixed to moving points.  Exchanged images give another result.

Source: Chen, Frey and Du, Unsupervised Learning of Diffeomorphic Image Registration via TransMorph, WBIR
2022; the refinement: `methods/velocity_search.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.errors import SettingsError, UnknownNameError, WeightsError
from DiffeoRegLib.flows.time_varying import ORDERS, Order
from DiffeoRegLib.methods.base import Motion, Needs, Pair, Progress, Report
from DiffeoRegLib.methods.stepping import per_time
from DiffeoRegLib.methods.trained import (
    looks_at,
    precision_on,
    require_dimension,
    spacing_of,
    strides_on,
    used_weights,
)
from DiffeoRegLib.methods.velocity_search import prior_of, refined, search, search_bytes
from DiffeoRegLib.networks.axes import Axes
from DiffeoRegLib.networks.sitreg_options import PRECISIONS, Precision
from DiffeoRegLib.networks.tvf import TransMorphTVF, TVFConfig
from DiffeoRegLib.networks.weights import network_for
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.field import downsample_image

EXTRAS = ("order", "precision")
IMAGE_COPIES = 8
WINDOW_BYTES = 100_000_000
"""Of tokens, attention and masks."""
HALF = 2
"""Voxels of the network along those of its velocities."""
AXES = ("inferior to superior", "posterior to anterior", "left to right")


class TransMorphTVFMethod:
    """The `transmorph-tvf` method and every model trained for it."""

    def needs(self, settings: Settings, dim: int) -> Needs:
        """What the network of these settings needs.

        Raises InputError for images of another dimension, SettingsError (and its kinds) for settings that do
        not fit the network, and what choosing and reading the network raises.
        """
        network, spacing_mm, _ = _network(settings, "float32")
        config = network.config
        require_dimension(settings, config.dim, dim)
        check_steps_of(chosen_order(settings, config), settings, config)
        again = refined(settings)
        weights = sum(value.nbytes for value in network.parameters())

        def needed(voxels: int) -> int:
            own = memory_bytes(config, weights, voxels)
            if not again:
                return own
            return max(own, search_bytes(settings, max(spacing_mm), config.steps, dim, voxels))

        return Needs(spacing_mm, again, needed, least_voxels=config.patch)

    @torch.no_grad()
    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """The velocities of all steps, on the grid the network gives them on."""
        device = pair.fixed.device
        precision, why = precision_on(device, settings.extras.get("precision"))
        network, spacing_mm, description = _network(settings, precision)
        order = chosen_order(settings, network.config)
        network.to(device)
        strides = strides_on(pair.grid, spacing_mm)
        grid = pair.grid.coarsened(strides)
        report(Progress("predict", 0.1, looks_at(grid)))
        moving, fixed = (downsample_image(image, strides) for image in (pair.moving, pair.fixed))
        axes = axes_of(description)
        if axes is None:
            fields = network(moving, fixed).velocities_vox
        else:
            found = network(axes.to_network(moving), axes.to_network(fixed))
            fields = tuple(axes.from_network(field) for field in found.velocities_vox)
        velocity_vox = per_time([field.float() for field in fields])
        if network.config.order == "official":
            velocity_vox = velocity_vox / HALF  # its code forgot to double them, and it has learned with that
        window = network.config.window if axes is None else axes.ours(network.config.window)
        notes = (why, used_weights(settings), *cut_windows(window, network.config.patch, grid.shape))
        return Motion(velocity_vox, grid.coarsened([HALF] * grid.dim), notes=notes, stepping=order)

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Optimises the velocities from the predicted ones; zero iterations change nothing."""
        if not refined(settings):
            return motion
        _, spacing_mm, description = _network(settings, "float32")
        found = search(motion, pair, spacing_mm, prior_of(description), settings, report)
        return replace(
            motion, velocity_vox=found.velocity_vox, grid=found.grid, notes=(*motion.notes, *found.notes)
        )

    def sources(self, settings: Settings) -> list[str]:
        """None beyond the card's."""
        return []


def chosen_order(settings: Settings, config: TVFConfig) -> Order:
    """How the velocities are put together: as the settings say, or as the network was trained.

    Raises UnknownNameError for an unknown order, SettingsError for the official one of another network.
    """
    wanted: Order = settings.extras.get("order", config.order)
    if wanted not in ORDERS:
        raise UnknownNameError("order of composition", str(wanted), ORDERS)
    if wanted == "official" and config.order != "official":
        raise SettingsError(
            f"This network was trained with the order '{config.order}', and the order 'official' would read "
            "its velocities wrongly: leave it out, or take 'paper' or 'residual'."
        )
    return wanted


def check_steps_of(order: Order, settings: Settings, config: TVFConfig) -> None:
    """Raises SettingsError for the order `official` in other steps than the network has velocities."""
    if order == "official" and settings.steps not in ("auto", config.steps):
        raise SettingsError(
            f"The order 'official' follows the {config.steps} velocities of this network in as many steps, "
            f"not in {settings.steps}: leave the steps at auto, or take the order 'paper'."
        )


def axes_of(description: Mapping[str, Any]) -> Axes | None:
    """Where the axes of imported weights point; None for those that were trained along ours."""
    imported = description.get("imported") or {}
    named = imported.get("axes")
    return None if named is None else Axes.named(named)


def cut_windows(window: Sequence[int], patch: int, shape: Sequence[int]) -> list[str]:
    """One sentence about axes of the network's grid that are shorter than a window, if there are any.

    window: tokens per axis, of so many voxels along each.  shape: of the grid, voxels.
    """
    sides = [tokens * patch for tokens in window]
    short = [axis for axis, (n, side) in enumerate(zip(shape, sides, strict=True)) if n < side]
    if not short:
        return []
    names = AXES if len(shape) == len(AXES) else ("along a column", "along a row")
    where = ", ".join(f"{shape[axis]} of {sides[axis]} voxels ({names[axis]})" for axis in short)
    return [f"The windows of the network are cut where they are longer than its grid: {where}."]


def memory_bytes(config: TVFConfig, weights_bytes: int, voxels: int) -> int:
    """Peak memory of the network on so many of its voxels, bytes; weights_bytes: of its parameters.

    Measured in float32 with 8 velocities, MB: tiny on 80 x 96 x 80 voxels 67 where this says 197, on
    512 x 512 50 for 178; small on 80 x 96 x 80 101 for 301; base on 64^3 134 for 542.
    """
    halves = (4 * config.embed + 3 * config.head_channels + 3 * config.steps) / HALF**config.dim
    return round(4 * voxels * (IMAGE_COPIES + float(halves))) + 2 * weights_bytes + WINDOW_BYTES


def _network(
    settings: Settings, precision: Precision
) -> tuple[TransMorphTVF, tuple[float, ...], dict[str, Any]]:
    """The network as these settings want it, its voxel size per axis, mm, and its file's description."""
    for name in settings.extras:
        if name not in EXTRAS:
            raise UnknownNameError("setting of this network", str(name), EXTRAS)
    wanted = settings.extras.get("precision")
    if wanted is not None and wanted not in PRECISIONS:
        raise UnknownNameError("precision", str(wanted), PRECISIONS)
    known = card(settings.method)
    network, description = network_for(known, settings, "bf16" if precision == "bfloat16" else "fp32")
    if not isinstance(network, TransMorphTVF) or network.config.channels_in != 2:
        raise WeightsError(
            f"The weights of '{known.title}' are not those of a TransMorph-TVF network for two images."
        )
    return network, spacing_of(description, network.config.dim), description
