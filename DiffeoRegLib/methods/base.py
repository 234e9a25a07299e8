"""What every method gets and gives: a prepared pair of images and a motion between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.pair import Pair

__all__ = ["Method", "Motion", "Pair", "Progress", "Report"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands: phase name, fraction of the whole run in 0..1, one sentence."""

    phase: str
    fraction: float
    message: str


Report = Callable[[Progress], None]
"""Receives Progress; raises errors.Cancelled to stop the run."""


@dataclass(frozen=True, eq=False)
class Motion:
    """What a method finds: velocities on a grid that covers the working grid.

    velocity_vox: (T, d, *grid.shape), voxels of `grid` per unit time; T = 1 is a stationary velocity,
    T > 1 piecewise constant in time, each over 1/T.
    """

    velocity_vox: Tensor
    grid: Grid


class Method(Protocol):
    """One registration method."""

    def predict(self, pair: Pair, settings: Settings, report: Report) -> Motion:
        """A first guess (a network's, a discrete search's, or zero motion)."""
        ...

    def refine(self, motion: Motion, pair: Pair, settings: Settings, report: Report) -> Motion:
        """Instance optimisation starting from `motion`; zero iterations return it unchanged."""
        ...

    def sources(self, settings: Settings) -> list[str]:
        """Citations, beyond the card's, of what a run with these settings uses."""
        ...
