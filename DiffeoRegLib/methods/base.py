"""What every method gets and gives: a prepared pair of images and a motion between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from DiffeoRegLib.flows.time_varying import Order
from DiffeoRegLib.methods.geodesic import Geodesic
from DiffeoRegLib.settings import Settings
from DiffeoRegLib.space.grid import Grid
from DiffeoRegLib.volumes.pair import Pair
from DiffeoRegLib.volumes.volume import Volume

__all__ = ["PLAN_PHASE", "Method", "Motion", "Needs", "NetworkMethod", "Pair", "Progress", "Report"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands: phase name, fraction of the whole run in 0..1, one sentence."""

    phase: str
    fraction: float
    message: str


PLAN_PHASE = "plan"
"""Phase of the progress whose message says what the run will take; it comes before the search."""
Report = Callable[[Progress], None]
"""Receives Progress; raises errors.Cancelled to stop the run."""


@dataclass(frozen=True, eq=False)
class Motion:
    """What a method finds: velocities on a grid that covers the working grid.

    velocity_vox: (T, d, *grid.shape), voxels of `grid` per unit time; T = 1 is a stationary velocity,
    T > 1 piecewise constant in time, each over 1/T.
    halves: displacements (1, d, *grid.shape), voxels, from half-way space into the moving and into the fixed
    image; the velocity is then the rest between them: h_moving o exp(v) o h_fixed^-1 leads from fixed to
    moving.  None: there is nothing but the velocity.
    notes: sentences for the report.
    geodesics: not empty: the motion is theirs, phi^-1 = g_0^-1 o g_1^-1 o ... (fixed to moving points), and
    the velocity is v(0) of the last one on its map grid, for display only.
    stepping: the T velocities are followed by steps of this order (`flows/time_varying.py`), each for 1/T
    from fixed to moving points; None: each is integrated by scaling and squaring.
    source: what a network says a pathology adds to the moving image as it arrives in the space of the fixed
    one, (*shape) on a grid of its own there, in the intensities of the pair; to be taken where there are
    marks.  None: the best one for the motion is meant.
    """

    velocity_vox: Tensor
    grid: Grid
    halves: tuple[Tensor, Tensor] | None = None
    notes: tuple[str, ...] = ()
    geodesics: tuple[Geodesic, ...] = ()
    stepping: Order | None = None
    source: Volume | None = None

    @classmethod
    def of(cls, *geodesics: Geodesic) -> Motion:
        """The motion of one or more geodesics, the first of them first; their notes become its own."""
        last = geodesics[-1]
        notes = tuple(note for geodesic in geodesics for note in geodesic.notes)
        return cls(last.velocity_vox, last.place.grid, notes=notes, geodesics=geodesics)


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


@dataclass(frozen=True, eq=False)
class Needs:
    """What a trained network asks of the working grid.

    spacing_mm: its voxel size per axis of the grid.  refined: iterations follow, which need detail.
    memory_bytes: what it takes on a grid of so many of its voxels.
    least_voxels: an image is at least so many of its voxels long along every axis.
    """

    spacing_mm: tuple[float, ...]
    refined: bool
    memory_bytes: Callable[[int], int]
    least_voxels: int = 1


@runtime_checkable
class NetworkMethod(Method, Protocol):
    """A method with a trained network, which works at its own voxel size."""

    def needs(self, settings: Settings, dim: int) -> Needs:
        """What its network needs; raises InputError (and its kinds) for one that is not there or unfit."""
        ...
