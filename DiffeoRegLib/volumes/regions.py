"""Where the moving image is how stiff: a label map and a stiffness per label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from DiffeoRegLib.errors import InputError
from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.stiffness import REST, Stiffness, shares_of
from DiffeoRegLib.volumes.intensity import resample_affine
from DiffeoRegLib.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of the moving image with a stiffness each.

    labels: whole numbers, in the space of the moving image.  stiffness: of every label that has one.
    rest: of all other labels, of 0, and of what the map does not cover.
    """

    labels: Volume
    stiffness: Mapping[int, Stiffness]
    rest: Stiffness = REST


@dataclass(frozen=True, eq=False)
class PlacedRegions:
    """Regions on a working grid, read like the moving image: labels (1, 1, *grid.shape), whole numbers."""

    labels: Tensor
    stiffness: Mapping[int, Stiffness]
    rest: Stiffness = REST

    def to(self, device: torch.device | str) -> PlacedRegions:
        """The same with its labels on another device."""
        return dataclasses.replace(self, labels=self.labels.to(device))


def check_regions(regions: Regions, moving: Volume, kernels: int) -> list[str]:
    """Sentences for the report about regions that can be used with so many kernels.

    There may be more regions than kernels: a region is a mixture of all of them, not one.
    Raises InputError for a map of another dimension, or without any label that has a stiffness, SettingsError
    like `shares_of`.
    """
    for stiffness in (*regions.stiffness.values(), regions.rest):
        shares_of(stiffness, kernels)
    labels = regions.labels
    if labels.grid.dim != moving.grid.dim:
        raise InputError(f"The regions '{labels.name}' are {labels.grid.dim}D, the image {moving.grid.dim}D.")
    if not regions.stiffness:
        raise InputError(f"No region of '{labels.name}' was given a stiffness.")
    present = {int(value) for value in torch.unique(labels.data).tolist()}
    if not present & set(regions.stiffness):
        raise InputError(
            f"'{labels.name}' has none of the labels that were given a stiffness "
            f"({_listed(set(regions.stiffness))}); it has {_listed(present - {0}) or 'none at all'}."
        )
    notes = []
    if absent := set(regions.stiffness) - present:
        notes.append(f"Regions without a voxel in '{labels.name}': {_listed(absent)}.")
    if others := present - set(regions.stiffness) - {0}:
        notes.append(f"Labels of '{labels.name}' without a stiffness of their own: {_listed(others)}.")
    if not labels.grid.same_as(moving.grid, tolerance=1e-2):
        notes.append(
            f"The regions '{labels.name}' have another geometry than '{moving.name}'; "
            "they were read in patient space."
        )
    return notes


def place_regions(
    regions: Regions, grid: Grid, moving_from_grid: Matrix, device: torch.device | str = "cpu"
) -> PlacedRegions:
    """Regions at the voxels of a grid, through the RAS mm 4x4 that leads to the moving image.

    Raises InputError when none of the regions lies on the grid.
    """
    matrix = np.asarray(moving_from_grid, dtype=np.float64)
    read = resample_affine(regions.labels, grid, matrix, mode="nearest", outside="zeros")
    labels = read.round().to(device, torch.int32)
    if not any(bool((labels == label).any()) for label in regions.stiffness):
        raise InputError(
            f"No region of '{regions.labels.name}' lies where the images are compared: "
            "were they drawn on the moving image?"
        )
    return PlacedRegions(labels, dict(regions.stiffness), regions.rest)


def _listed(labels: set[int]) -> str:
    names = [str(label) for label in sorted(labels)]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
