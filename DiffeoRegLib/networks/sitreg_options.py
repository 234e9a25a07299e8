"""The choices of a SITReg run that do not change the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from DiffeoRegLib.errors import SettingsError, UnknownNameError

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")


@dataclass(frozen=True)
class SITRegOptions:
    """How a SITReg network is run; the weights fit all of them, the maps differ a little.

    symmetric: False is the paper's ablation without inverses (equations 11 and 12).
    fast: fields on every second voxel, without the finest head.
    samples_per_control: 0 gives every level's maps the grid of the fields; m keeps those of coarse levels on
    grids with m samples between controls, and everything else of the level with them.
    tolerance_vox: residual of the inverses on grids, voxels of the image.
    precision: of the convolutions only; coordinates and fields keep the precision of the images.
    checkpointing: forget activations within levels and compute them again for the gradient.
    Raises SettingsError or UnknownNameError for values that make no sense.
    """

    symmetric: bool = True
    fast: bool = False
    samples_per_control: int = 0
    tolerance_vox: float = 0.01
    precision: Precision = "float32"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        m = self.samples_per_control
        if m < 0 or m & (m - 1):
            raise SettingsError(f"Samples per control are 0 or a power of two, not {m}.")
        if not self.tolerance_vox > 0:
            raise SettingsError("The tolerance of an inverse is a positive number of voxels.")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)
