"""What the methods with trained networks share: voxel sizes, precision, and the refinement that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from DiffeoRegLib.catalog import card
from DiffeoRegLib.device import native_bfloat16
from DiffeoRegLib.errors import InputError, SettingsError, WeightsError
from DiffeoRegLib.methods.base import Needs
from DiffeoRegLib.networks.sitreg_options import Precision
from DiffeoRegLib.networks.weights import find_weights
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.volume import Volume

ITERATIONS: Mapping[str, tuple[int, ...]] = {"fast": (0,), "balanced": (15, 25, 0), "accurate": (40, 40, 10)}
"""Per effort: at twice the voxel size of the network, at that size, and at the working one."""
DENSE_ITERATIONS: Mapping[str, int] = {"fast": 0, "balanced": 10, "accurate": 20}
MOST_LEVELS = 3


def counts_of(settings: Settings, per_effort: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Iterations per level, coarse to fine, of a search whose levels follow the network's voxel size.

    Raises SettingsError where levels and iterations do not match.
    """
    counts = settings.iterations or per_effort[settings.effort]
    levels = settings.levels_mm
    if levels is not None and len(levels) != len(counts):
        raise SettingsError(
            f"{len(levels)} levels {levels} and {len(counts)} numbers of iterations {counts} do not match."
        )
    if levels is None and len(counts) > MOST_LEVELS:
        raise SettingsError(
            f"Without levels this method takes up to {MOST_LEVELS} numbers of iterations, not {counts}."
        )
    return counts


def levels_and_iterations(settings: Settings) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Levels (empty: as in ITERATIONS) and iterations, the dense ones last.

    Fewer numbers of iterations than levels are for the finest of these.
    Raises SettingsError when levels and iterations do not match.
    """
    counts = settings.iterations or ITERATIONS[settings.effort]
    levels = settings.levels_mm or ()
    if levels and len(levels) != len(counts):
        raise SettingsError(
            f"{len(levels)} levels {levels} and {len(counts)} numbers of iterations {counts} do not match."
        )
    if not levels and len(counts) > MOST_LEVELS:
        raise SettingsError(
            f"Without levels this method takes up to {MOST_LEVELS} numbers of iterations, not {counts}."
        )
    dense = settings.dense_iterations
    if dense is None:
        dense = DENSE_ITERATIONS[settings.effort] if settings.iterations is None else 0
    return levels, (*counts, dense)


def refined(settings: Settings) -> bool:
    """True if instance optimisation follows the network."""
    return any(levels_and_iterations(settings)[1])


def refinement_sources(settings: Settings) -> list[str]:
    """The citation of the instance optimisation, where there is any."""
    return [card("svf").citation] if refined(settings) else []


def refinement(settings: Settings, spacing_mm: Sequence[float], grid: Grid) -> Settings:
    """The settings of `svf` that refine what a network of this voxel size found on a working grid."""
    levels, counts = levels_and_iterations(settings)
    if not levels:
        own = max(spacing_mm)
        levels = (2 * own, own, min(grid.spacing))[-(len(counts) - 1) :]
    return settings.with_changes(
        levels_mm=levels, iterations=counts[:-1], dense_iterations=counts[-1], large_displacement=False
    )


def spacing_of(description: Mapping[str, Any], dim: int) -> tuple[float, ...]:
    """The voxel size in the description of a network's weights, mm; raises WeightsError for another `dim`."""
    spacing = description["config"]["data"]["spacing_mm"]
    if len(spacing) != dim:
        raise WeightsError(f"The weights are for {dim}D images but state the voxel size {tuple(spacing)}.")
    return tuple(float(s) for s in spacing)


def require_dimension(settings: Settings, network_dim: int, dim: int) -> None:
    """Raises InputError for images of another dimension than the network's."""
    if network_dim != dim:
        raise InputError(
            f"'{card(settings.method).title}' works on {network_dim}D images and these are {dim}D: "
            "choose another method, such as svf."
        )


def require_extent(needs: Needs, *images: Volume) -> None:
    """Raises InputError for an image that is too short along an axis for the network."""
    least_mm = needs.least_voxels * max(needs.spacing_mm)
    for image in images:
        length_mm = min(n * s for n, s in zip(image.grid.shape, image.grid.spacing, strict=True))
        if needs.least_voxels > 1 and length_mm < least_mm:
            raise InputError(
                f"'{image.name}' is {length_mm:.3g} mm long along one axis, and this network looks at patches"
                f" of {needs.least_voxels} voxels, {least_mm:.3g} mm: choose another method, such as svf."
            )


def strides_on(grid: Grid, spacing_mm: Sequence[float]) -> list[int]:
    """Voxels of a working grid per voxel of the network."""
    return [round(wide / own) for wide, own in zip(spacing_mm, grid.spacing, strict=True)]


def looks_at(network_grid: Grid) -> str:
    """What the network is busy with, for the progress."""
    return f"the network looks at {' x '.join(str(n) for n in reversed(network_grid.shape))} voxels"


def used_weights(settings: Settings) -> str:
    """For the report: which weights a run used, by name, version and check sum."""
    known = card(settings.method)
    found = find_weights(known, settings)
    name = f"'{known.title}', version {known.version}" if found.of_card else "given by the user"
    return f"Weights: {name}, {found.path.name}, SHA-256 {found.sha256[:16]}."


def precision_on(device: torch.device, wanted: Precision | None) -> tuple[Precision, str]:
    """The precision of the convolutions on a device, and a sentence for the report."""
    if wanted is not None:
        return wanted, f"Convolutions in {wanted}, as asked for."
    if native_bfloat16(device):
        return "bfloat16", "Convolutions in bfloat16, which this device computes natively; maps in float32."
    return "float32", "Convolutions in float32: this device does not compute bfloat16 natively."
