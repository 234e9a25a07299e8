"""What one registration is asked to do: nodes and settings, from the panel or from the Python console."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from DiffeoRegLib.settings import Settings

STORAGES = ("half", "full")


@dataclass(frozen=True, eq=False)
class Region:
    """Where something is marked in an image.

    node: vtkMRMLSegmentationNode or vtkMRMLLabelMapVolumeNode.  segment_id: one segment of it; empty = all.
    exclude: the marked voxels are left out instead of being the only ones that count (masks only).
    """

    node: Any
    segment_id: str = ""
    exclude: bool = False


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
    want_velocity: keep the velocity field as a node, which the 0-100 % slider needs.
    storage: the transform's grid, `half` the resolution of the fixed volume or `full`.
    """

    transform: Any = None
    inverse: Any = None
    volume: Any = None
    want_inverse: bool = True
    want_volume: bool = True
    want_velocity: bool = True
    want_jacobian: bool = False
    storage: str = "half"


@dataclass(frozen=True, eq=False)
class Request:
    """One registration of the moving volume to the fixed volume.

    stiffness: segment id of `regions` -> preset name or number (region-specific methods).
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
    pathology: Region | None = None
    regions: Region | None = None
    stiffness: Mapping[str, str | float] = field(default_factory=dict)
    segmentations: tuple[Any, ...] = ()
    markups: tuple[Any, ...] = ()
    models: tuple[Any, ...] = ()
    outputs: Outputs = field(default_factory=Outputs)
