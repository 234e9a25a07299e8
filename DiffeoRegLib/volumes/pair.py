"""What preparation takes besides the images, and what it hands to every method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffeoRegLib.space.grid import Grid, Matrix
from DiffeoRegLib.volumes.pathology import PlacedPathology
from DiffeoRegLib.volumes.regions import PlacedRegions
from DiffeoRegLib.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Masks:
    """Where the images count; any value other than 0 marks a voxel.

    exclude_fixed, exclude_moving: True = the marked voxels are left out, False = only they count.
    """

    fixed: Volume | None = None
    moving: Volume | None = None
    exclude_fixed: bool = False
    exclude_moving: bool = False


@dataclass(frozen=True, eq=False)
class Correspondence:
    """What is known to correspond, as guidance or for judging: label maps, landmarks (n, 3) in RAS mm."""

    fixed_labels: Volume | None = None
    moving_labels: Volume | None = None
    fixed_points_mm: NDArray[np.float64] | None = None
    moving_points_mm: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images on one working grid, ready for a method.

    fixed, moving: (1, 1, *grid.shape), intensities in [0, 1]; both are already resampled through the
    initial alignment, so zero motion means "initial alignment only".
    fixed_mask, moving_mask: (1, 1, *grid.shape) in [0, 1], where the similarity counts; None = everywhere.
    moving_from_grid, fixed_from_grid: RAS mm 4x4, where a point of the grid's space is read in each image.
    The grid's space is that of the fixed image, or lies half-way between both.
    fixed_labels, moving_labels: (1, 1, *grid.shape) integer guidance on the working grid, or None.
    fixed_points_vox, moving_points_vox: (1, d, n) guidance landmarks in voxels of the working grid, or None.
    regions: where the moving image is how stiff, or None.
    pathology: where an image shows what the other one has nothing for, or None.
    moving_window: the intensities of the moving image that became 0 and 1.
    memory_bytes: what the search is expected to take on this grid, without the images as they were given.
    notes: sentences for the report on what preparation did.
    """

    fixed: Tensor
    moving: Tensor
    grid: Grid
    moving_from_grid: Matrix
    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None
    fixed_labels: Tensor | None = None
    moving_labels: Tensor | None = None
    fixed_points_vox: Tensor | None = None
    moving_points_vox: Tensor | None = None
    notes: list[str] = field(default_factory=list)
    fixed_from_grid: Matrix = field(default_factory=lambda: np.eye(4))
    regions: PlacedRegions | None = None
    pathology: PlacedPathology | None = None
    moving_window: tuple[float, float] = (0.0, 1.0)
    memory_bytes: int = 0

    def to(self, device: torch.device | str) -> Pair:
        """The pair with all its tensors on another device."""
        moved: dict[str, Any] = {
            item.name: value.to(device)
            for item in dataclasses.fields(self)
            if isinstance(value := getattr(self, item.name), (Tensor, PlacedPathology, PlacedRegions))
        }
        return dataclasses.replace(self, **moved)
