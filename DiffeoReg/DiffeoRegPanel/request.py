"""What one registration is asked to do: nodes and settings, from the panel or from the Python console."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from DiffeoRegLib.settings import PATHOLOGY_EDGE_MM, Settings
from DiffeoRegLib.stiffness import REST, Stiffness

STORAGES = ("half", "full")
NORMAL = "normal"
"""Stiffness of a region that was given none."""


@dataclass(frozen=True, eq=False)
class Region:
    """Where something is marked in an image.

    node: vtkMRMLSegmentationNode or vtkMRMLLabelMapVolumeNode.  segment_id: one segment of it; empty = all.
    exclude: the marked voxels are left out instead of being the only ones that count (masks only).
    classes: several segments by their IDs, or labels as text; empty = as `segment_id` says.
    """

    node: Any
    segment_id: str = ""
    exclude: bool = False
    classes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The segments or labels that count, by ID or as text; empty = all."""
        return self.classes or ((self.segment_id,) if self.segment_id else ())


@dataclass(frozen=True, eq=False)
class Marks:
    """Where one volume shows what the other has nothing for: each marked in the space of its volume.

    edge_mm: width over which the marks fade beyond their border.
    """

    fixed: Region | None = None
    moving: Region | None = None
    edge_mm: float = PATHOLOGY_EDGE_MM

    def __bool__(self) -> bool:
        return self.fixed is not None or self.moving is not None


@dataclass(frozen=True, eq=False)
class Matching:
    """What is known to correspond in both images: regions of equal name, points of equal order."""

    fixed: Region | None = None
    moving: Region | None = None
    fixed_points: Any = None
    moving_points: Any = None

    def __bool__(self) -> bool:
        return any(x is not None for x in (self.fixed, self.moving, self.fixed_points, self.moving_points))


@dataclass(frozen=True, eq=False)
class Outputs:
    """Which nodes the run writes.

    transform, inverse, volume: nodes to fill; None = a new node.
    want_volume: False applies the transform to the moving volume instead.
    want_velocity: keep what the 0-100 % slider follows as a node: the velocity, those of all time steps, or
    the momentum of a geodesic.
    want_regulariser: the width of the regulariser as a volume on the moving and one on the fixed volume.
    storage: the transform's grid, `half` the resolution of the fixed volume or `full`.
    """

    transform: Any = None
    inverse: Any = None
    volume: Any = None
    want_inverse: bool = True
    want_volume: bool = True
    want_velocity: bool = True
    want_jacobian: bool = False
    want_regulariser: bool = False
    storage: str = "half"


@dataclass(frozen=True, eq=False)
class Request:
    """One registration of the moving volume to the fixed volume.

    pathology: what only one of the volumes shows, for the methods that ask for it.
    regions: parts of the moving volume of different stiffness (region-specific methods).
    stiffness: segment id of `regions` -> its stiffness, NORMAL where it is missing.
    rest: stiffness of everything else.
    segmentations, markups, models: nodes that lie on the moving volume and are carried to the fixed one.
    """

    fixed: Any
    moving: Any
    settings: Settings = field(default_factory=Settings)
    initial: Any = None
    fixed_mask: Region | None = None
    moving_mask: Region | None = None
    guidance: Matching = field(default_factory=Matching)
    evaluation: Matching = field(default_factory=Matching)
    pathology: Marks = field(default_factory=Marks)
    regions: Region | None = None
    stiffness: Mapping[str, Stiffness] = field(default_factory=dict)
    rest: Stiffness = REST
    segmentations: tuple[Any, ...] = ()
    markups: tuple[Any, ...] = ()
    models: tuple[Any, ...] = ()
    outputs: Outputs = field(default_factory=Outputs)
