"""An image or label map together with its place in the patient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from DiffeoRegLib.errors import ShapeError
from DiffeoRegLib.space.grid import Grid


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxel values on a grid.

    data: (*grid.shape), float32 for an image, int32 for a label map.
    Raises ShapeError when data and grid disagree.
    """

    data: Tensor
    grid: Grid
    name: str = "volume"
    is_labels: bool = False

    def __post_init__(self) -> None:
        if tuple(self.data.shape) != self.grid.shape:
            raise ShapeError(f"Volume '{self.name}': data {tuple(self.data.shape)}, grid {self.grid.shape}.")

    @property
    def batch(self) -> Tensor:
        """The values as a batch of one with one channel, (1, 1, *spatial)."""
        return self.data[None, None]
